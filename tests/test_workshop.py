"The workshop makes what ships and is no part of it; its loop keeps what it promises."
import json, re
from pathlib import Path

import pytest
import torch
from torch import nn

from styleboost.core import StyleboostError
from styleboost.workshop.artwork import MIT, licence_text
from styleboost.workshop.pretraining import Stage, fit, steady

ROOT = Path(__file__).resolve().parents[1]
AVERAGES = dict(ema=steady(.9), latest=lambda step: 0.)

def layers(n=2):
    torch.manual_seed(0)
    return {str(i): nn.Linear(4, 1) for i in range(n)}

def loss_of(modules):
    "How far the layers together are from adding; what they see comes from both generators."
    def loss(rng):
        x = torch.randn(8, 4)*rng.random()
        off = (sum(m(x) for m in modules.values())-x.sum(1, keepdim=True)).square().mean()
        return off, dict(off=off)
    return loss

def trained(folder, modules, **kw):
    fit('add', modules, loss_of(modules), folder, kw.pop('seconds', 600), warmup=3, **kw)
    return torch.cat([p.detach().flatten() for m in modules.values() for p in m.parameters()])

def test_nothing_else_imports_the_workshop():
    package = ROOT/'styleboost'
    outside = [p for p in package.rglob('*.py') if 'workshop' not in p.parts and p.name!='_modidx.py']
    assert not [p.name for p in outside if re.search(r'import.*workshop|from.*workshop', p.read_text('utf-8'))]

def test_the_mit_text_ships_with_the_package():
    assert 'workshop/*.txt' in (ROOT/'setup.py').read_text('utf-8') and MIT.exists()
    assert 'MIT License. Copyright (c) Microsoft Corporation.' in licence_text('fluent-emoji', 64)
    assert 'MIT License' not in licence_text('openmoji', 64)

@pytest.mark.parametrize('lr', [1e-2, {'0':1e-3, '1':1e-1}])
def test_a_stage_that_was_stopped_ends_where_it_would_have_ended(tmp_path, lr):
    whole = trained(tmp_path/'whole', layers(), lr=lr, averages=AVERAGES, steps=12)
    for steps in (1, 5, 12): stopped = trained(tmp_path/'stopped', layers(), lr=lr, averages=AVERAGES, steps=steps)
    assert torch.equal(whole, stopped)

def test_equal_rates_by_name_are_one_rate(tmp_path):
    one = trained(tmp_path/'one', layers(), lr=1e-2, steps=5)
    assert torch.equal(one, trained(tmp_path/'each', layers(), lr={'0':1e-2, '1':1e-2}, steps=5))

def test_a_module_whose_rate_is_zero_stays(tmp_path):
    before, modules = layers(), layers()
    trained(tmp_path, modules, lr={'0':0., '1':1e-1}, steps=5)
    assert torch.equal(before['0'].weight, modules['0'].weight)
    assert not torch.equal(before['1'].weight, modules['1'].weight)

def test_each_average_is_its_own(tmp_path):
    ema = trained(tmp_path/'both', layers(), averages=AVERAGES, steps=5)
    assert torch.equal(ema, trained(tmp_path/'alone', layers(), averages=dict(ema=steady(.9)), steps=5))
    stage = Stage(layers(), tmp_path/'both'/'add.pt', 1e-3, AVERAGES)
    raw = [p.detach().clone() for p in stage.params]
    stage.use('latest')
    assert all(torch.equal(a, b) for a,b in zip(raw, stage.params))

def test_a_checkpoint_with_other_averages_is_told_in_one_sentence(tmp_path):
    trained(tmp_path, layers(), steps=1)
    with pytest.raises(StyleboostError, match='other averages'): trained(tmp_path, layers(), averages=AVERAGES, steps=2)

def test_a_budget_that_is_used_up_trains_no_more(tmp_path):
    first = trained(tmp_path, layers(), seconds=.05)
    assert torch.equal(first, trained(tmp_path, layers(), seconds=.05))

def test_the_log_has_a_line_every_hundred_steps(tmp_path):
    trained(tmp_path, layers(), steps=250)
    assert [json.loads(l)['step'] for l in (tmp_path/'add.jsonl').read_text().splitlines()]==[100, 200]
