"A step is the same step, however it saves memory, rounds or scales on the way."
import importlib, sys, types

import pytest, torch
import torch.nn.functional as F
from hypothesis import given, strategies as st
from safetensors.torch import load_file, save_file

from styleboost.training.recipes import Recipe
from styleboost.training.stepper import Stepper, round_stochastically

# rounding

@given(st.floats(-2.**100, 2.**100, allow_subnormal=False, width=32))
def test_rounding_takes_one_of_the_two_neighbours(x):
    got = {round_stochastically(torch.full((64,), x), torch.Generator().manual_seed(0))[i].item() for i in range(64)}
    t = torch.tensor(x); bits = t.view(torch.int32)
    below = ((bits) & -65536).view(torch.float32).item(); above = (((bits) & -65536)+65536).view(torch.float32).item()
    assert got<={below, above} and (len(got)==1 if below==x else True)

def test_rounding_keeps_what_is_exact_and_what_is_no_number():
    x = torch.tensor([0., 1., -2.5, float('inf'), float('-inf')])
    assert torch.equal(round_stochastically(x).float(), x) and round_stochastically(torch.tensor([float('nan')])).isnan().all()

def test_a_step_too_small_for_bfloat16_is_not_lost():
    "A thousand updates of a tenth of bfloat16's resolution move the weight as far as they should."
    w, g = torch.ones(4096).bfloat16(), torch.Generator().manual_seed(0)
    for _ in range(1000): w = round_stochastically(w.float()+4e-4, g)
    assert w.float().mean().item()==pytest.approx(1.4, abs=.01)

# one step, in any way

def one_group(params): return [dict(params=list(params), times=1.)]

def small():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8,32), torch.nn.SiLU(), torch.nn.Linear(32,1))

def fitted(steps=30, precision=None, start=None, before=None, **kw):
    "A small net trained for some steps; the net and its stepper."
    net = small()
    r = Recipe('toy', (), steps=steps, lr=1e-2, precision=precision, **dict(dict(grad_clip=None), **kw))
    if r.weights=='bfloat16': net.bfloat16()
    s = Stepper(one_group(net.parameters()), r, 'cpu', seed=1)
    if start: net.load_state_dict(start[0]); s.load(start[1])
    x = torch.randn(64,8, generator=torch.Generator().manual_seed(3)); y = x.sin().sum(1, keepdim=True)
    for i in range(steps):
        s.rate(1e-2)
        if before: before(i, s)
        s.backward(F.mse_loss(net(x.to(net[0].weight.dtype)).float(), y)); s.step()
    return net, s

def same(a, b): return all(torch.equal(x, y) for x,y in zip(a.parameters(), b.parameters()))

@pytest.mark.parametrize('weights', ['float32','bfloat16'])
def test_a_fused_backward_is_the_same_step(weights): assert same(fitted(weights=weights)[0], fitted(weights=weights, fused_backward=True)[0])

def test_a_fused_backward_leaves_no_gradient():
    net, s = fitted(fused_backward=True)
    assert all(p.grad is None for p in net.parameters())

@pytest.mark.parametrize('kw', [{}, dict(fused_backward=True), dict(weights='bfloat16'), dict(weights='bfloat16', fused_backward=True), dict(precision='fp16', fused_backward=True)], ids=str)
def test_a_stepper_goes_on_where_it_was(kw):
    whole, half = fitted(30, **kw)[0], fitted(15, **kw)
    tensors = {k:v.clone() for k,v in half[1].tensors().items()}
    assert same(whole, fitted(15, start=(half[0].state_dict(), tensors), **kw)[0])

def test_gradients_are_clipped_by_their_global_norm():
    seen, real = [], torch.optim.AdamW.step
    def step(self, *a, **kw): seen.append(torch.cat([p.grad.flatten() for g in self.param_groups for p in g['params']]).norm().item()); return real(self, *a, **kw)
    with pytest.MonkeyPatch.context() as m:
        m.setattr(torch.optim.AdamW, 'step', step)
        fitted(2); fitted(2, grad_clip=.01)
    assert min(seen[:2])>.01 and seen[2:]==pytest.approx([.01]*2, rel=1e-3)

@pytest.mark.parametrize('size', [.1, .9999, 1., 1.0001, 30., float('inf'), float('nan')])
@pytest.mark.parametrize('fused', [False, True])
def test_clipping_is_torchs_to_the_last_bit_also_where_there_is_nothing_to_clip(size, fused):
    g = torch.Generator().manual_seed(0)
    ours = [torch.nn.Parameter(torch.zeros(3,4)), torch.nn.Parameter(torch.zeros(5)), torch.nn.Parameter(torch.zeros(2))]
    grads = [torch.randn(p.shape, generator=g) for p in ours[:2]]
    norm = torch.cat([x.flatten() for x in grads]).norm()
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    for params in (ours, theirs):
        for p,x in zip(params, grads): p.grad = x/norm*size
    Stepper(one_group(ours), Recipe('toy', (), lr=1e-2, fused_backward=fused, grad_clip=None), 'cpu')._clip(1.)
    torch.nn.utils.clip_grad_norm_(theirs, 1.)
    assert all(torch.equal(a.grad.nan_to_num(7.), b.grad.nan_to_num(7.)) for a,b in zip(ours[:2], theirs)) and ours[2].grad is None

def test_a_weight_whose_gradient_overflows_stays_and_the_scale_is_halved():
    hits = []
    def before(i, s):
        if i==5:
            p = s.params[0]; hits.append((p, p.detach().clone(), s.params[2].detach().clone(), s.scale.item()))
            p.register_hook(lambda g: g*float('inf') if len(hits)==1 else g)
        if i==6: hits.append((s.params[0].detach().clone(), s.params[2].detach().clone(), s.scale.item()))
    net, s = fitted(8, precision='fp16', fused_backward=True, before=before)
    (_, still, other, scale), (after, moved, halved) = hits
    assert torch.equal(still, after) and not torch.equal(other, moved) and halved==scale/2
    assert all(p.isfinite().all() for p in net.parameters())

def test_a_scaled_loss_takes_the_same_steps():
    for p,q in zip(fitted(fused_backward=True)[0].parameters(), fitted(precision='fp16', fused_backward=True)[0].parameters()): torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)

def test_8_bit_adamw_without_its_package_is_refused(refused, quick):
    if importlib.util.find_spec('bitsandbytes'): pytest.skip('bitsandbytes is installed')
    with refused('bitsandbytes', 'styleboost[gpu]'): Stepper(one_group([torch.nn.Parameter(torch.zeros(2))]), quick(optimizer='adamw8bit'), 'cpu')

class Eight(torch.optim.AdamW):
    "Stands in for bitsandbytes' AdamW8bit: AdamW whose state has a table that all weights share, nested as in newer releases or not, and steps in a plain number."
    table, nested = torch.arange(4.), False
    def step(self, closure=None):
        for s in self.state.values():
            s.pop('table', None), s.pop('quant', None)
            if 'step' in s: s['step'] = torch.tensor(float(s['step']))
        super().step(closure)
        for s in self.state.values(): s['step'] = int(s['step']); s |= {'quant':dict(table=self.table)} if self.nested else dict(table=self.table)

@pytest.mark.parametrize('nested', [True, False])
@pytest.mark.parametrize('fused', [True, False])
def test_8_bit_moments_are_kept_and_given_back(monkeypatch, nested, fused, tmp_path):
    pack = types.ModuleType('bitsandbytes'); pack.optim = types.SimpleNamespace(AdamW8bit=type('AdamW8bit', (Eight,), dict(nested=nested)))
    monkeypatch.setitem(sys.modules, 'bitsandbytes', pack)
    kw = dict(optimizer='adamw8bit', fused_backward=fused)
    whole, (net, s) = fitted(20, **kw)[0], fitted(10, **kw)
    save_file({k:v.contiguous() for k,v in s.tensors().items()}, tmp_path/'f.safetensors')
    assert same(whole, fitted(10, start=(net.state_dict(), load_file(tmp_path/'f.safetensors')), **kw)[0])

# groups

@pytest.mark.parametrize('kw', [{}, dict(fused_backward=True)], ids=str)
def test_a_group_has_its_own_share_of_the_learning_rate_and_its_own_decay(kw):
    "By plain AdamW, which is given the two rates and decays by hand."
    ours, theirs = small(), small()
    halves = lambda net: (list(net[0].parameters()), list(net[2].parameters()))
    a, b = halves(ours)
    r = Recipe('toy', (), steps=3, lr=1e-2, grad_clip=None, weight_decay=.1, **kw)
    s = Stepper([dict(params=a, times=1.), dict(params=b, times=10., weight_decay=0.)], r, 'cpu')
    a, b = halves(theirs)
    plain = torch.optim.AdamW([dict(params=a, lr=5e-3, weight_decay=.1), dict(params=b, lr=5e-2, weight_decay=0.)])
    x = torch.randn(64,8, generator=torch.Generator().manual_seed(3))
    for _ in range(3):
        s.rate(5e-3); s.backward(ours(x).square().mean()); s.step()
        plain.zero_grad(); theirs(x).square().mean().backward(); plain.step()
    for p,q in zip(ours.parameters(), theirs.parameters()): torch.testing.assert_close(p, q)

# Prodigy, schedule-free

def test_without_its_package_prodigy_says_what_to_install(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, 'prodigyplus', None)
    with refused('pip install prodigy-plus-schedule-free', 'adamw'): Stepper(one_group(small().parameters()), Recipe('toy', (), lr=1., optimizer='prodigy'), 'cpu')

def prodigious(steps, was=None):
    "A small net trained by Prodigy; the net, its stepper and its losses."
    net, r = small(), Recipe('toy', (), lr=1., optimizer='prodigy', grad_clip=None, weight_decay=0.)
    s, losses = Stepper(one_group(net.parameters()), r, 'cpu'), []
    if was: net.load_state_dict(was[0].state_dict()); s.load(was[1])
    x = torch.randn(64,8, generator=torch.Generator().manual_seed(3)); y = x.sin().sum(1, keepdim=True)
    for _ in range(steps):
        s.rate(1.)
        loss = F.mse_loss(net(x), y); losses.append(loss.item())
        s.backward(loss); s.step()
    return net, s, losses

def test_prodigy_finds_a_rate_that_learns_and_says_it_in_a_checkpoint(tmp_path):
    pytest.importorskip('prodigyplus')
    net, s, losses = prodigious(200)
    d = s.tensors()['group.0.d'].item()
    assert d>1e-4 and losses[-1]<.2*losses[0]                         # it began at a millionth
    save_file(s.tensors(), tmp_path/'o.safetensors')
    first = prodigious(100)
    save_file(first[1].tensors(), tmp_path/'half.safetensors')
    second = prodigious(100, (first[0], load_file(tmp_path/'half.safetensors')))
    assert same(net, second[0]) and all(torch.equal(v, second[1].tensors()[k]) for k,v in s.tensors().items())

def test_what_is_kept_of_prodigy_is_the_librarys_own_average():
    pytest.importorskip('prodigyplus')
    net, s, _ = prodigious(50)
    x, y = s.averaged(), [p.detach().clone() for p in net.parameters()]
    s.optimizers[0].eval()                                            # which turns the weights into it, in place
    assert all(torch.equal(a, p.detach()) for a,p in zip(x, net.parameters())) and not torch.equal(x[0], y[0])
