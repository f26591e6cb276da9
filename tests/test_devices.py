"Devices: which is chosen, what it lacks, and what is said of one that is not there."
import types

import pytest, torch

from styleboost.devices import device_report, lacks, pick_device

@pytest.fixture
def machine(monkeypatch):
    "Makes this machine look like another."
    def make(cards=0, mps=False, capability=(8,0), macos=True, hip=None):
        monkeypatch.setattr(torch.cuda, 'is_available', lambda: cards>0)
        monkeypatch.setattr(torch.cuda, 'device_count', lambda: cards)
        monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda d=None: capability)
        monkeypatch.setattr(torch.cuda, 'get_device_properties', lambda d=None: types.SimpleNamespace(name='A Card', total_memory=15*2**30, major=capability[0], minor=capability[1]))
        monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: mps)
        monkeypatch.setattr(torch.backends.mps, 'is_macos_or_newer', lambda major, minor: macos)
        monkeypatch.setattr(torch.version, 'hip', hip)
    return make

@pytest.mark.parametrize('there, want', [(dict(cards=1, mps=True), 'cuda'), (dict(mps=True), 'mps'), ({}, 'cpu')])
def test_the_fastest_is_chosen(there, want, machine):
    machine(**there)
    assert pick_device()==want and pick_device(want)==want and pick_device('cpu')=='cpu'

@pytest.mark.parametrize('there, name, words', [({}, 'cuda', ['cuda','only cpu']), ({}, 'mps', ['mps','only cpu']), (dict(mps=True), 'cuda:0', ['cuda:0','mps, cpu']), (dict(cards=2), 'cuda:2', ['cuda:2','2 GPUs','cuda:1']), ({}, 'gpu', ["'gpu'",'cpu']), ({}, '', ["''"]), ({}, 'meta', ['meta','only cpu']), ({}, 'xpu', ['xpu','only cpu'])])
def test_one_that_is_not_there_is_refused(there, name, words, machine, refused):
    machine(**there)
    with refused(*words): pick_device(name)

def test_one_of_several_is_taken(machine):
    machine(cards=2)
    assert pick_device('cuda:1')=='cuda:1' and pick_device(torch.device('cuda',0))=='cuda:0'

@pytest.mark.parametrize('there, device, want', [(dict(cards=1, capability=(9,0)), 'cuda', []), (dict(cards=1, capability=(7,5)), 'cuda', ['bfloat16','flash attention']), (dict(cards=1, capability=(6,1)), 'cuda', ['float16','bfloat16','flash attention']),
    (dict(cards=1, capability=(7,5), hip='6.2'), 'cuda', []), (dict(mps=True), 'mps', ['float64','flash attention']), (dict(mps=True, macos=False), 'mps', ['float64','bfloat16','flash attention']), ({}, 'cpu', ['float16','bfloat16'])])
def test_what_is_lacking_is_known_and_reported(there, device, want, machine):
    machine(**there)
    out, line = lacks(device), device_report(device)
    assert list(out)==want and all(w in line for w in want) and all(s.endswith('.') for s in out.values())
    assert line.startswith(device) and ('lacks nothing' in line)==(not want) and '\n' not in line

def test_a_report_names_card_and_memory(machine):
    machine(cards=1, capability=(7,5))
    assert all(w in device_report() for w in ('A Card','15.0 GiB','7.5'))
