"What holds a model to its base: bindings whose answer is the base's prediction, and an anchor on the weights."
from dataclasses import replace

import pytest, torch
from safetensors.torch import load_file

from styleboost.bases.load import blank
from styleboost.methods.adapters import Adapter
from styleboost.methods.load import METHODS, make_method
from styleboost.methods.method import attached, trained
from styleboost.training.batches import Batches
from styleboost.training.held import Anchor, Beginning, aimed, begun, rests, shrink
from styleboost.training.loop import train
from styleboost.training.objective import Objective
from styleboost.training.plan import LiveBytes, plan
from styleboost.training.recipes import hold, no_prior, settled, with_hold
from styleboost.training.runs import Run
from styleboost.training.trainer import accelerator_for, prepared

QUICK = dict(steps=3, batch=2, lr=1e-3, steps_sampled=1, resolution=64)
WORDS = [m for m in METHODS if make_method(m).only_words]     # learn a word, and the class prompt has none

@torch.no_grad()
def disturb(b, by=.02):
    g = torch.Generator().manual_seed(2)
    for p in trained(b).values(): p.add_(by*torch.randn(p.shape, generator=g))

def prepared_by_hand(base, recipe):
    "A base with the recipe's method, in the text encoder too, what it began with, and its first batch."
    if isinstance(recipe.method, Adapter): recipe = replace(recipe, method=replace(recipe.method, text_encoder=True))
    recipe = settled(recipe, base)
    tuned = attached(base, recipe.method, 1)
    return tuned, begun(tuned, recipe), Batches(tuned, recipe, 0, 'cpu')(0)

# the answer

@pytest.mark.parametrize('name', METHODS)
def test_a_method_is_held_to_what_an_untouched_copy_says(lively, ref, name):
    "Nought before anything is learnt, but for rounding: the tuned model sees the style's rows in the same pass."
    tuned, beginning, batch = prepared_by_hand(lively, hold(ref, method=name, **QUICK))
    assert batch.held==[2,3] and (beginning is None)==rests(tuned.method)
    objective = Objective(tuned, beginning)
    with torch.no_grad():
        style, before = objective(batch)
        disturb(tuned, .1)
        part = batch.part([2,3])
        want = lively.net(part.xt, part.t, lively.reader(part.texts)|part.told)
        now = objective(batch)[1]
    assert torch.equal(torch.stack(aimed(tuned, batch, beginning).y[2:]), want)
    assert before<1e-8 and style>1e-3 and (now<1e-8 if name in WORDS else now>1e-6)

def test_held_tokens_are_held_to_how_likely_they_were(ref):
    base = blank('amused')
    tuned, beginning, batch = prepared_by_hand(base, hold(ref, method='lora', **dict(QUICK, resolution=None, rank=4)))
    objective = Objective(tuned, beginning)
    before = objective(batch)[1]
    disturb(tuned, .1)
    style, now = objective(batch)
    now.backward()
    moved = [p for p in trained(tuned).values() if p.grad is not None and p.grad.abs().max()>0]
    assert abs(before.item())<1e-5<now and style>1 and len(moved)>10

@pytest.mark.parametrize('name', ['full','lora'])
def test_autocast_keeps_nothing_of_the_base_for_the_tuned_model(lively, ref, name):
    "Neither its weights in half precision nor their lack of a gradient."
    tuned, beginning, batch = prepared_by_hand(lively, hold(ref, method=name, **QUICK))
    disturb(tuned)
    def gradients(make):
        for p in trained(tuned).values(): p.grad = None
        with torch.autocast('cpu', torch.bfloat16): losses = make()
        sum(losses).backward()
        return [p.grad.clone() for p in trained(tuned).values() if p.grad is not None], losses[1].item()
    def by_hand():
        "The answers of another model, without a base in between."
        with torch.no_grad():
            part = batch.part([2,3])
            answers = lively.net(part.xt, part.t, lively.reader(part.texts)|part.told).float()
        return Objective(tuned)(replace(batch, y=[*batch.y[:2], *answers], held=[]))
    ours, theirs = gradients(lambda: Objective(tuned, beginning)(batch)), gradients(by_hand)
    assert len(ours[0])==len(theirs[0])>10 and ours[1]==pytest.approx(theirs[1], rel=1e-3) and ours[1]>1e-6
    for a,b in zip(ours[0], theirs[0]): torch.testing.assert_close(a, b, rtol=.05, atol=1e-3*b.abs().max().item()+1e-7)

@pytest.mark.parametrize('name', ['full','lora','textual_inversion'])
def test_a_held_binding_costs_one_more_forward_of_its_rows(base, ref, aux, quick, name):
    def rows(recipe):
        tuned, beginning, batch = prepared_by_hand(base, recipe)
        seen = []
        tuned.net.register_forward_pre_hook(lambda net, given: seen.append((len(given[0]), torch.is_grad_enabled())))
        Objective(tuned, beginning)(batch)
        return seen
    kw = dict(QUICK, method=name)
    assert rows(quick(aux, method=name, batch=2, resolution=64))==[(4,True)] and rows(hold(ref, **kw))==rows(hold(ref, aux, **kw))==[(2,False),(4,True)]
    assert rows(with_hold(hold(ref, aux, **kw), None, '', more=True))==[(4,False),(6,True)]        # of two held bindings the rows go together

def test_held_on_the_style_it_sees_the_very_latents_of_the_style(base, ref, aux):
    "Whether the set is the same or equal; on other pictures it sees its own."
    equal = type(ref)(list(ref), 'a copy')
    for images in (None, equal):
        r = settled(with_hold(hold(ref, aux, **QUICK), images, '', more=True), base)
        batches = Batches(base, r, 5, 'cpu')
        for step in range(3):
            b, names = batches(step), batches.files(step)
            same = [torch.equal(b.xt[i], b.xt[k+i]) and bool(b.t[i]==b.t[k+i]) for k in (2,4) for i in (0,1)]
            assert same==[False,False,True,True] and b.held==[2,3,4,5] and names[:2]==names[4:] and b.texts[2:]==['a photo of style']*2+['']*2
            halves = [batches(step, part, 2) for part in (0,1)]
            assert all(h.held==[1,2] and torch.equal(h.xt[0], h.xt[2]) for h in halves)
    plain = Batches(base, settled(no_prior(ref, **QUICK), base), 5, 'cpu')(0)
    assert all(torch.equal(a, b) for a,b in zip(plain.xt, Batches(base, settled(hold(ref, **QUICK), base), 5, 'cpu')(0).xt))

# the anchor

def moved(run, base):
    start = {f'{p}.{k}':v for p,m in base.learning.items() for k,v in m.state_dict().items()}
    return max((v-start[k]).abs().max().item() for k,v in load_file(run.weights).items())

def products(run): return [(b@a).abs().max().item() for a,b,_ in run.method.products(run.model())]

def test_with_an_endless_anchor_nothing_moves(base, ref, tmp_path):
    def go(name, method, **kw): return train(no_prior(ref, method=method, **QUICK, **kw), tmp_path/name, base=base, device='cpu', progress=False)
    far = [moved(go(f'full{lam}', 'full', anchor=lam), base) for lam in (None, 1000., 1e30)]
    assert far[2]==0 and far[0]>2*far[1]>0
    lora = [max(products(go(f'lora{lam}', 'lora', anchor=lam))) for lam in (None, 1e30)]
    assert lora[1]<1e-20 and lora[0]>1e-5

@pytest.mark.parametrize('name', METHODS)
def test_by_every_method_nothing_moves_until_the_endless_anchor_is_weighed(base, ref, name):
    "What a method adds stays nought where two factors make it, and every other weight is where it began, to the last bit."
    recipe, acc = accelerator_for(settled(no_prior(ref, method=name, anchor=1e30, **QUICK), base), (), 'x', 'cpu')
    t = prepared(replace(base.own(), shared=False), recipe, 0, acc)
    t.stepper.rate(1e-2)
    products = t.base.method.products(t.base)
    apart = {id(p) for a,b,_ in products for p in (a,b)}
    start = [(p, p.detach().clone()) for p in t.stepper.params if id(p) not in apart]
    def far(): return max([(p-w).abs().max().item() for p,w in start]+[(b.flatten(1)@a.flatten(1)).abs().max().item() for a,b,_ in products])
    for _ in range(2): t.step()
    assert far()<1e-20
    t.anchor = None
    for _ in range(2): t.step()
    assert far()>1e-5

def test_the_anchors_step_is_the_proximal_step_of_what_it_holds(base):
    "Against the same minimum found by gradient descent: over the product's two factors, one after the other."
    g = torch.Generator().manual_seed(0)
    a, b, k = torch.randn(3, 5, generator=g).double(), torch.randn(4, 3, generator=g).double(), .7
    A, B = a.clone(), b.clone()
    shrink(A, B, k)
    def least(f, x):
        x = x.clone().requires_grad_(True)
        for _ in range(3000): x = (x-.02*torch.autograd.grad(f(x), x)[0]).detach().requires_grad_(True)
        return x.detach()
    near = least(lambda x: (x-b).square().sum()/2+k/2*(x@a).square().sum(), b)
    torch.testing.assert_close(B, near, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(A, least(lambda x: (x-a).square().sum()/2+k/2*(near@x).square().sum(), a), rtol=1e-5, atol=1e-6)
    tuned = attached(base, make_method('textual_inversion'))
    row, = trained(tuned).values()
    anchor, was = Anchor(tuned, 25., Beginning(tuned)), row.detach().clone()
    row.data += 1
    anchor.pull({id(row): 1e-2})                          # 2·0.01·25 = 1/2
    torch.testing.assert_close(row.detach(), was+2/3)

# whole runs

RUNS = dict(
    everything=lambda ref, aux: with_hold(hold(ref, aux, anchor=1., ema=.1, log_snr=-6., **QUICK), weight=.5, more=True),
    tlora=lambda ref, aux: hold(ref, prompt='', method='tlora', rank=4, min_rank=1, inverse=True, anchor=1., ema=.2, log_snr=-4., log_snr_std=1., **QUICK),
    prodigy=lambda ref, aux: hold(ref, method='lora', optimizer='prodigy', **{k:v for k,v in QUICK.items() if k!='lr'}))

@pytest.mark.parametrize('name', RUNS)
def test_resumed_is_uninterrupted(base, ref, aux, tmp_path, two_threads, name):
    if name=='prodigy': pytest.importorskip('prodigyplus')
    r = replace(RUNS[name](ref, aux), steps=5, checkpoint=2)
    def go(name, **kw): return train(r, tmp_path/name, 3, base, device='cpu', progress=False, every=1, snapshots=(4,), **kw)
    whole = go('whole')
    go('half', watch=lambda line: line['step']==3)
    half = go('half', resume=True)
    files = sorted(f.relative_to(whole.folder) for f in (whole.folder/'weights').rglob('*.safetensors'))
    assert half.done and len(files)==(4 if r.ema else 2)
    for f in files:
        a, b = load_file(whole.folder/f), load_file(half.folder/f)
        assert a.keys()==b.keys() and all(torch.equal(a[k], b[k]) for k in a), f
    timeless = [[{k:v for k,v in line.items() if k!='seconds'} for line in run.log] for run in (whole, half)]
    assert timeless[0]==timeless[1] and len(timeless[0][0])==1+len(r.bindings)
    assert Run(whole.folder).recipe['bindings'][1]['toward']=='base' and Run(whole.folder).model()

def test_another_answer_is_another_run(base, ref, aux, tmp_path, refused):
    held, plain = hold(ref, aux, name='x', **QUICK), hold(ref, aux, name='x', **QUICK)
    plain = replace(plain, bindings=(plain.bindings[0], replace(plain.bindings[1], toward='pictures')))
    run = train(held, tmp_path/'run', base=base, device='cpu', progress=False)
    with refused('prior: the toward was "base" and is null'): train(plain, tmp_path/'run', base=base, device='cpu', progress=False, resume=True)
    assert 'toward' not in plain.to_dict()['bindings'][1] and plain.hash!=held.hash and run.done

def test_a_base_that_another_method_has_changed_is_refused(base, ref, tmp_path, refused):
    tuned = attached(base, no_prior(ref, method='lora').method)
    with refused('tuned', 'zwx', 'train on its base'): train(hold(ref, **QUICK), tmp_path/'run', base=tuned, device='cpu', progress=False)
    assert not (tmp_path/'run').exists()

def test_holding_what_cannot_move_is_said(base, ref, tmp_path, said):
    train(hold(ref, method='textual_inversion', **dict(QUICK, steps=1)), tmp_path/'run', base=base, device='cpu', progress=False)
    assert any('learns words alone' in m for m in said())

# the plan

@pytest.mark.parametrize('name, kw', [('full', dict(ema=.1)), ('full', dict(anchor=1., prior=False))], ids=str)
def test_a_plan_counts_what_is_held_and_averaged(base, ref, name, kw):
    "Within half a percent of the same counter around a real step on real tensors."
    make = no_prior if kw.pop('prior', True) is False else hold
    r = settled(make(ref, method=name, precision='no', text_encoder=False, **kw, **QUICK), base)
    r, acc = accelerator_for(r, (), 'x', 'cpu')
    t = prepared(replace(base.own(), shared=False), r, 0, acc)
    t.stepper.rate(1e-3); t.step()
    live, still = LiveBytes(), t.objective.beginning
    live.see_all(t.base.net.parts.values())
    for v in t.base.reader.told.values(): live.see(v)
    for i,p in enumerate(t.stepper.params):
        for v in t.stepper._state(i)[p].values():
            if v.ndim: live.see(v)
    copies = (still.was if still else [])+sum(t.averages.kept if t.averages else [], [])
    for v in copies: live.see(v)
    with live: t.losses(1)
    p = plan(base, r, 'cpu')
    rounded = sum(-(-v.numel()*4//512)*512 for v in copies)
    assert p.step==pytest.approx(live.peak, rel=.005) and p.copies==rounded>0 and 'copies to hold on to' in str(p)
    assert plan(base, replace(r, bindings=r.bindings[:1], ema=None, anchor=None), 'cpu').copies==0
