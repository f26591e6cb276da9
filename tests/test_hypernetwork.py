"A hypernetwork: only its networks move, they come back as they were, and the model that carries them is copied whole."
import copy

import numpy as np, pytest, torch
from safetensors.torch import load_file, save_file

from styleboost.bases.load import blank
from styleboost.bases.sampling import sample
from styleboost.exporting.export import export, merged
from styleboost.methods.hypernetwork import ACTIVATIONS
from styleboost.methods.load import make_method
from styleboost.methods.method import attached, restore, state, trained
from styleboost.training.loop import train
from styleboost.training.plan import plan
from styleboost.training.runs import Run

PROMPT = 'a photo of zwx style, a dog'
FAMILIES = ['sd1','sdxl']

@pytest.fixture
def recipe(quick):
    return lambda **kw: quick(**dict(dict(method='hypernetwork', steps=4, lr=1e-2), **kw))

@pytest.fixture
def go(recipe, base, tmp_path):
    "Trains into a folder by its name."
    def run(name, seed=0, watch=None, resume=False, **kw):
        return train(recipe(**kw), tmp_path/name, seed, base, progress=False, every=1, device='cpu', watch=watch, resume=resume)
    return run

def drawn(model): return np.asarray(sample(model, PROMPT, 3, steps=2, raw=True, device='cpu')[0], int)

def equal(a, b): return a.keys()==b.keys() and all(torch.equal(a[k], b[k]) for k in a)

@torch.no_grad()
def seen(b):
    z = torch.randn((1, *b.codec.shape((64,64))), generator=torch.Generator().manual_seed(1))
    return b.net(z, torch.tensor([300]), b.reader([PROMPT]))

@torch.no_grad()
def disturb(b, by=.05):
    g = torch.Generator().manual_seed(2)
    for p in trained(b).values(): p.add_(by*torch.randn(p.shape, generator=g))

# training

def test_a_run_saves_its_networks_and_nothing_else(go, base):
    run = go('run', hidden=1, activation='relu')
    saved = load_file(run.weights)
    width = base.modules['text_encoder'].config.hidden_size
    want = {f'unet.hypernetwork.{width}_{what}.{layer}.{p}' for what in 'kv' for layer in ('widen','back') for p in ('weight','bias')}
    assert run.done and len(run.log)==4 and saved.keys()==want and all(v.any() for v in saved.values())
    assert (run.method.hidden, run.method.activation)==(1, 'relu') and not np.array_equal(drawn(run), drawn(base))

def test_the_callers_base_is_unchanged(go, base):
    before = {k: {n: v.clone() for n,v in m.state_dict().items()} for k,m in base.modules.items()}
    go('run')
    assert all(equal(before[k], m.state_dict()) for k,m in base.modules.items()) and not any(m._forward_pre_hooks for m in base.net.modules())

def test_resumed_is_uninterrupted_and_the_seed_matters(go):
    whole, half = go('whole'), go('half', watch=lambda line: line['step']==2)
    assert not half.done
    again, other = go('half', resume=True), go('other', 1)
    assert again.done and equal(load_file(whole.weights), load_file(again.weights)) and not equal(load_file(whole.weights), load_file(other.weights))

@pytest.mark.parametrize('kw', [dict(checkpointing=True), dict(precision='bf16'), dict(accumulate=2, batch=2)], ids=str)
def test_a_lever_does_not_stop_it(go, base, recipe, kw):
    assert go('run', steps=2, **kw).done and plan(base, recipe(**kw), 'cpu').step>0

# what is learnt

@pytest.mark.parametrize('activation', ACTIVATIONS)
def test_round_trip(tmp_path, base, activation):
    m = make_method('hypernetwork', activation=activation)
    a, b = attached(base, m, 1), attached(base, m, 2)
    assert torch.equal(seen(a), seen(base))
    disturb(a)
    save_file(state(a), tmp_path/'weights.safetensors')
    restore(b, load_file(tmp_path/'weights.safetensors'))
    assert torch.equal(seen(a), seen(b)) and not torch.allclose(seen(a), seen(base), atol=1e-3)
    with m.plain(b): assert torch.equal(seen(b), seen(base))

def test_a_run_that_is_opened_again_draws_the_same(go):
    run = go('run')
    save_file({k: v+.05*torch.randn(v.shape, generator=torch.Generator().manual_seed(1)) for k,v in load_file(run.weights).items()}, run.weights)
    assert np.array_equal(drawn(Run(run.folder)), drawn(Run(run.folder).model()))

@pytest.mark.parametrize('family', [*FAMILIES,'sd2','amused'])
def test_every_family_has_a_pair_for_the_width_of_its_prompt(family):
    b = blank(family)
    a = attached(b, make_method('hypernetwork'))
    names = {k.split('hypernetwork.')[1].split('.')[0] for k in trained(a)}
    assert len(names)==2 and {n.split('_')[1] for n in names}=={'k','v'}

def test_k_and_v_are_changed_apart(base):
    b = attached(base, make_method('hypernetwork'))
    found = []
    for what in 'kv':
        twin = copy.deepcopy(b)
        with torch.no_grad(): next(p for k,p in trained(twin).items() if f'_{what}.back.bias' in k).add_(.5)
        found.append(seen(twin))
    assert not torch.equal(*found) and not any(torch.equal(f, seen(base)) for f in found)

# refused

def test_what_is_no_setting_is_refused(refused):
    with refused('hidden', '1 to 8'): make_method('hypernetwork', hidden=9)
    with refused('activation', *ACTIVATIONS): make_method('hypernetwork', activation='magic')
    with refused('hypernetwork', "'rank'", 'hidden', 'activation'): make_method('hypernetwork', rank=4)

def test_weights_of_another_size_are_refused(base, refused):
    a, b = (attached(base, make_method('hypernetwork', hidden=h)) for h in (1,2))
    with refused('hypernetwork', 'do not match'): restore(b, state(a))

def test_it_is_not_folded_into_a_base(go, tmp_path, refused):
    run = go('run', steps=1)
    for to in ('diffusers','single-file','lora'):
        with refused('hypernetwork', f'{to} has no place'): export(run, tmp_path/'out', to)
    with refused('hypernetwork', 'cannot be folded'): merged(run)
    with refused('hypernetwork', 'merge it first'): run.model().pipeline()
