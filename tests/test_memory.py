"Attention is tried before it is trusted, a step is the same step however it saves memory, and a plan is what it counts."
import copy, importlib, os, subprocess, sys, types
from dataclasses import replace

import pytest, torch
import torch.nn.functional as F
from hypothesis import given, strategies as st
from safetensors.torch import load_file, save_file

from styleboost.training import memory
from styleboost.bases.load import blank
from styleboost.training.plan import LiveBytes, gigabytes, plan
from styleboost.training.stepper import Stepper, round_stochastically
from styleboost.training.levers import attention_of, head_sizes, in_half, set_attention, xformers_fault
from styleboost.methods.method import method_for
from styleboost.training.recipes import Generated, Recipe, multi, with_prior
from styleboost.training.runs import Run
from styleboost.training.loop import train

# attention

@pytest.fixture
def xformers(monkeypatch):
    "Puts a stand-in for xformers in place, with the given attention."
    def put(attend):
        ops = types.ModuleType('xformers.ops'); ops.memory_efficient_attention = attend
        pack = types.ModuleType('xformers'); pack.ops = ops
        for k,v in (('xformers',pack), ('xformers.ops',ops)): monkeypatch.setitem(sys.modules, k, v)
        monkeypatch.setattr('diffusers.models.attention_processor.xformers', pack)
    return put

def right(q, k, v, attn_bias=None, op=None, scale=None, **_): return F.scaled_dot_product_attention(q, k, v, scale=scale)

class NoBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x): return x.clone()
    @staticmethod
    def backward(ctx, g): raise NotImplementedError('No operator found for `memory_efficient_attention_backward`')

@pytest.mark.parametrize('attend, fault', [
    (right, ''),
    (lambda q, k, v: NoBackward.apply(right(q, k, v)), 'memory_efficient_attention_backward'),
    (lambda q, k, v: right(q, k, v).detach()+0*(q+(k+v).sum()), 'does not agree'),
    (lambda q, k, v: right(q, k, v)*1.5, 'does not agree'),
    (lambda q, k, v: right(q, k, v)*float('nan'), 'does not agree')])
def test_xformers_is_tried_forward_and_backward(xformers, attend, fault):
    xformers(attend)
    got = xformers_fault([8, 16], torch.float32, 'cpu')
    assert (fault in got and 'head size 8' in got) if fault else not got

def test_xformers_that_works_is_really_installed_on_every_layer(xformers):
    xformers(right)
    b = blank('sd1')
    assert set_attention(b.unet, 'xformers')=='XFormersAttnProcessor'==attention_of(b.unet)

def test_xformers_that_does_not_work_leaves_torchs_own_and_says_so(said):
    b = blank('sd1')
    assert importlib.util.find_spec('xformers') is None and set_attention(b.unet, 'xformers')=='AttnProcessor2_0'
    told, = [m for m in said() if 'xformers' in m]
    assert 'cannot be imported' in told and '\n' not in told

@pytest.mark.parametrize('family, sizes', [('sd1',[40,80,160]), ('sd2',[64]), ('sdxl',[64])])
def test_the_head_sizes_are_those_of_the_published_models(family, sizes): assert head_sizes(blank(family, full=True, device='meta').unet)==sizes

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

def small():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8,32), torch.nn.SiLU(), torch.nn.Linear(32,1))

def fitted(steps=30, precision=None, start=None, before=None, **kw):
    "A small net trained for some steps; the net and its stepper."
    net = small()
    r = Recipe('toy', (), steps=steps, lr=1e-2, precision=precision, **dict(dict(grad_clip=None), **kw))
    if r.weights=='bfloat16': net.bfloat16()
    s = Stepper(list(net.parameters()), r, 'cpu', seed=1)
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
    with refused('bitsandbytes', 'styleboost[gpu]'): Stepper([torch.nn.Parameter(torch.zeros(2))], quick(optimizer='adamw8bit'), 'cpu')

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

@pytest.mark.parametrize('kw, word', [(dict(fused_backward=True), 'grad_clip'), (dict(weights='bfloat16', precision='fp16'), 'bf16'), (dict(fused_backward=True, grad_clip=None, accumulate=2, batch=2), 'accumulate'), (dict(batch=4, accumulate=3), 'divisors')])
def test_levers_that_exclude_each_other_are_refused(quick, refused, kw, word):
    with refused(word): quick(**kw)

# the levers in a run

@pytest.fixture
def tuned(base, tmp_path):
    "What a short run learns, by the recipe's settings."
    def tuned(recipe, **kw): return load_file(train(recipe, tmp_path/str(len(list(tmp_path.iterdir()))), **dict(dict(base=base, device='cpu', progress=False), **kw)).weights)
    return tuned

def moved(base, weights):
    "How far each weight went."
    start = {f'{p}.{k}':v for p in ('unet','text_encoder') for k,v in getattr(base, p).state_dict().items()}
    return {k: v.float()-start[k] for k,v in weights.items()}

def alike(a, b):
    "The cosine between two sets of tensors."
    flat = lambda d: torch.cat([d[k].flatten().float() for k in sorted(d)])
    assert a.keys()==b.keys() and flat(a).abs().max()>1e-3
    return torch.cosine_similarity(flat(a), flat(b), dim=0)

@pytest.mark.parametrize('lever', [dict(checkpointing=True), dict(fused_backward=True), dict(accumulate=2), dict(buckets=True), dict(attention='xformers')], ids=lambda d: next(iter(d)))
def test_a_lever_does_not_change_what_is_learnt(tuned, quick, base, lever, xformers):
    xformers(right)
    r = quick(batch=2, steps=2, lr=1e-3, grad_clip=None)
    assert alike(*(moved(base, tuned(x)) for x in (r, replace(r, **lever))))>.99

def test_frozen_weights_are_kept_in_half_and_trained_ones_are_not(base, quick):
    b = replace(base, **copy.deepcopy(base.models))
    r = quick(method='lora', text_encoder=False, precision='bf16')
    method_for(r).setup(b); in_half(b, r)
    assert {p.dtype for p in b.unet.parameters() if p.requires_grad}=={torch.float32} and {p.dtype for p in b.unet.parameters() if not p.requires_grad}=={torch.bfloat16}

@pytest.mark.parametrize('kw', [{}, dict(weights='bfloat16', fused_backward=True)], ids=str)
def test_half_precision_learns_nearly_the_same(tuned, quick, base, kw):
    r = quick(batch=2, steps=3, lr=1e-2 if kw else 1e-3, grad_clip=None)                # a rate that leaves its mark on weights in bfloat16
    assert alike(*(moved(base, tuned(x)) for x in (replace(r, precision='bf16', **kw), replace(r, precision='no'))))>.7

def test_an_adapter_learns_nearly_the_same_in_half_precision(tuned, quick):
    half, full = (tuned(quick(batch=2, steps=3, lr=1e-3, grad_clip=None, method='lora', precision=p)) for p in ('bf16','no'))
    ends = lambda d: {k:v for k,v in d.items() if 'lora_B' in k}                       # they start at nought
    assert alike(ends(half), ends(full))>.7

def test_weights_in_bfloat16_resume_bit_for_bit(base, quick, tmp_path):
    r = quick(steps=4, weights='bfloat16', fused_backward=True, grad_clip=None, precision='bf16')
    go = lambda name, **kw: train(r, tmp_path/name, base=base, device='cpu', progress=False, every=1, **kw)
    whole = go('whole'); go('part', watch=lambda line: line['step']==2)
    a, b = load_file(whole.weights), load_file(go('part', resume=True).weights)
    assert all(torch.equal(a[k], b[k]) for k in a) and a['unet.conv_in.weight'].dtype==torch.bfloat16

def test_snapshots_are_the_weights_of_their_step(base, quick, tmp_path):
    go = lambda name, steps, **kw: train(quick(steps=steps), tmp_path/name, base=base, device='cpu', progress=False, **kw)
    long, short = go('long', 4, snapshots=(2,)), go('short', 2)
    a, b = load_file(long.snapshots[2]), load_file(short.weights)
    assert list(long.snapshots)==[2] and all(torch.equal(a[k], b[k]) for k in a)
    assert torch.equal(Run(long.folder, 2).model().unet.conv_in.weight, short.model().unet.conv_in.weight)

def test_a_snapshot_that_was_not_kept_is_refused(base, quick, tmp_path, refused):
    run = train(quick(), tmp_path/'run', base=base, device='cpu', progress=False)
    with refused('step 7', 'only those of its end'): Run(run.folder, 7)
    assert Run(run.folder, run.recipe['steps']).weights==run.weights

def test_running_out_of_memory_says_what_to_pull(base, quick, tmp_path, refused, monkeypatch):
    def full(*a): raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2 GiB.\nmore')
    monkeypatch.setattr(Stepper, 'backward', full)
    with refused('step 1', '--memory', 'fused backward'): train(quick(), tmp_path/'run', base=base, device='cpu', progress=False)

# the plan

def test_live_bytes_follow_tensors_to_their_end():
    live = LiveBytes()
    with live:
        a = torch.zeros(1000); b = [a*2 for _ in range(3)]
        del b; c = a+1
    assert (live.now, live.peak)==(2*4096, 4*4096)

def test_a_plan_counts_what_a_real_step_holds(quick):
    "The same counter around a real step on real tensors, as close to the plan as the issue asks of a measurement."
    b, r = blank('sd1'), quick(batch=2, resolution=64, text_encoder=False, precision='no', steps=1, grad_clip=None)
    want = plan(b, r, 'cpu').step
    r = replace(r, lr=1e-4)
    b.unet.requires_grad_(True).train()
    params = list(b.unet.parameters())
    with torch.no_grad(): cond = b.condition(['a','b','c','d'])
    live = LiveBytes()
    for x in (*params, *b.unet.buffers()): live.see(x)
    s = Stepper(params, r, 'cpu')
    with live:
        for _ in range(2):
            y = b.predict(torch.randn(4,4,8,8), torch.tensor([1,2,3,4]), cond)
            s.backward(y.square().mean()); del y; s.step()
    assert live.peak==pytest.approx(want, rel=.1)

def test_each_lever_lowers_the_peak(quick):
    b = blank('sd1')
    of = lambda **kw: plan(b, quick(batch=4, resolution=64, text_encoder=False, **dict(dict(precision='no', grad_clip=None), **kw)), 'cpu')
    plain = of()
    assert of(fused_backward=True).step<plain.step and of(checkpointing=True).step<plain.step and of(accumulate=4).step<plain.step
    assert of(precision='bf16', weights='bfloat16').weights<plain.weights and of(method='lora').moments<plain.moments/10

def test_a_budget_is_met_by_the_first_setting_that_fits(quick):
    b, r = blank('sd1'), quick(batch=4, resolution=64, text_encoder=False, precision='bf16')
    plain = plan(b, r, 'cpu', '100GB')
    assert plain.levers==[] and plan(b, r, 'cpu').step==plain.step>plain.before
    less = plan(b, r, 'cpu', f'{plain.peak/1e9*.9}GB')
    assert less.peak<=.9*plain.peak and less.recipe.fused_backward and less.recipe.grad_clip is None and 'fused backward' in str(less)

def test_a_budget_that_cannot_be_met_names_the_nearest(quick, refused):
    b, r = blank('sd1'), quick(batch=4, resolution=64, text_encoder=False)
    least = plan(b, r, 'cpu').before
    with refused('nearest', 'lora'): plan(b, r, 'cpu', f'{least*1.01/1e9}GB')
    with refused('to prepare the pictures'): plan(b, r, 'cpu', f'{least*.99/1e9}GB')

def test_what_comes_before_the_first_step_is_counted(quick):
    "The autoencoder alone, with as many pictures as it takes at a time; a prior that is drawn needs every model."
    b, r = blank('sd1'), quick(batch=1, resolution=64, text_encoder=False)
    live, x = LiveBytes(), torch.randn(max(len(i.images)*r.crops for i in r.bindings), 3, 64, 64)
    for p in (*b.vae.parameters(), *b.vae.buffers()): live.see(p)
    live.see(x)
    with live: b.moments(x)
    chosen, drawn = plan(b, r, 'cpu'), plan(b, with_prior(r, Generated('a photo of style', 4)), 'cpu')
    assert chosen.before==pytest.approx(live.peak, rel=.1) and drawn.before>4*sum(p.numel() for m in b.models.values() for p in m.parameters())>chosen.weights

def test_each_of_several_processes_holds_its_share(quick):
    "Fewer activations; of the weights and moments, all."
    b, r = blank('sd1'), quick(batch=4, resolution=64, text_encoder=False, method='lora')
    one, two = plan(b, r, 'cpu'), plan(b, r, 'cpu', processes=2)
    assert two.step<one.step and (two.weights,two.moments)==(one.weights,one.moments) and 'in 2 processes' in str(two)
    assert not plan(b, r, 'cpu', f'{two.step*.95/1e9}GB', processes=2).recipe.fused_backward

@pytest.mark.parametrize('method', ['full','lora'])
def test_a_gpu_that_is_not_here_is_planned_for_with_checkpointing(quick, method):
    "On CUDA normalisation stays in float32, in the backward pass as in the forward one."
    of = lambda **kw: plan(blank('sd1'), quick(batch=4, resolution=64, text_encoder=False, precision='bf16', method=method, **kw), 'cuda').step
    assert of(checkpointing=True)<of()

def test_a_device_that_is_none_is_refused(quick, refused):
    with refused("'T4' is no device", 'fp16'): plan(blank('sd1'), quick(resolution=64), 'T4')

@pytest.mark.skipif(not torch.cuda.is_available(), reason='there is no GPU to measure on')
@pytest.mark.parametrize('levers', [{}, dict(method='lora'), dict(checkpointing=True), dict(fused_backward=True, grad_clip=None)], ids=lambda d: '-'.join(d) or 'plain')
def test_a_plan_is_what_a_gpu_measures(quick, tmp_path, levers):
    "Within a tenth of torch's own count, at the size of Stable Diffusion 1.5 with random weights."
    base, r = blank('sd1', full=True), quick(batch=1, resolution=512, text_encoder=False, **levers)
    torch.cuda.empty_cache(); torch.cuda.reset_peak_memory_stats()
    train(r, tmp_path/'run', base=base, progress=False)
    assert torch.cuda.max_memory_allocated()==pytest.approx(plan(base, r, 'cuda').peak, rel=.1)

@pytest.mark.parametrize('text', ['', 'much', '-3GB', '0', 'nanGB'])
def test_a_budget_that_is_no_amount_is_refused(refused, text):
    with refused(repr(text)): gigabytes(text)

@given(st.floats(.1, 500))
def test_budgets_are_read_as_they_are_written(n): assert gigabytes(f'{n}GB')==gigabytes(f' {n} gb')==gigabytes(n)==n*1e9

def test_training_uses_what_the_plan_chose(base, quick, tmp_path, said):
    r = quick(batch=2, text_encoder=False)
    need = plan(base, r, 'cpu').peak/1e9
    run = train(r, tmp_path/'run', base=base, device='cpu', progress=False, memory=f'{need*.95}GB')
    assert run.done and run.recipe['fused_backward'] and run.recipe['grad_clip'] is None and any('at the peak' in m for m in said())

# several processes

LAUNCH = '''
import sys
from styleboost.pictures.images import ImageSet
from styleboost.training.recipes import no_prior, with_prior
from styleboost.training.loop import train
here, out, method = sys.argv[1:]
recipe = with_prior(no_prior(ImageSet.from_folder(f'{here}/ref'), batch=2, steps=3, lr=1e-3, checkpoint=2, method=method), ImageSet.from_folder(f'{here}/aux'))
train(recipe, f'{here}/{out}', device='cpu', progress=False, every=1)
'''

@pytest.mark.parametrize('method', ['full', 'lora'])
def test_two_processes_learn_what_one_learns(tmp_path, ref, aux, method):
    ref.save(tmp_path/'ref'); aux.save(tmp_path/'aux'); (tmp_path/'go.py').write_text(LAUNCH)
    env = dict(os.environ, OMP_NUM_THREADS='1')
    call = lambda *cmd: subprocess.run([sys.executable, *cmd], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600)
    two = call('-m', 'accelerate.commands.launch', '--cpu', '--num_processes', '2', '--num_machines', '1', '--mixed_precision', 'no', '--dynamo_backend', 'no', '--main_process_port', '0', 'go.py', str(tmp_path), 'two', method)
    one = call('go.py', str(tmp_path), 'one', method)
    assert two.returncode==one.returncode==0, two.stderr[-3000:]+one.stderr[-3000:]
    a, b = (load_file(tmp_path/n/'weights'/'tuned.safetensors') for n in ('one','two'))
    start = 1e-3
    for k in a: torch.testing.assert_close(b[k], a[k], rtol=1e-3, atol=start/20)
    logs = [[float(x) for x in __import__('re').findall(r'"(?:style|prior)": ([\d.]+)', (tmp_path/n/'log.jsonl').read_text())] for n in ('one','two')]
    assert logs[0]==pytest.approx(logs[1], rel=1e-3) and len(logs[0])==6

# two words for one style

def test_multi_binds_two_words_each_with_its_own_auxiliary_images(base, ref, aux, tmp_path):
    r = multi(ref.where(people=True), ref.where(people=False), aux.where(people=True), aux.where(people=False), steps=1, batch=1)
    assert [b.images.people[0] for b in r.bindings]==[True,True,False,False]
    run = train(r, tmp_path/'run', base=base, device='cpu', progress=False)
    assert [k for k in run.log[0] if k not in ('step','seconds')]==['style0','prior1','style2','prior3'] and run.model().token=='zwx style, ukj'

@pytest.mark.parametrize('swap', [True, False])
def test_multi_refuses_the_wrong_pictures(ref, aux, refused, swap):
    people, rest = ref.where(people=True), ref.where(people=False)
    with refused('people', 'where'): multi(rest if swap else people, people, aux)

def test_multi_needs_two_words(ref, aux, refused):
    with refused("'zwx'"): multi(ref.where(people=True), ref.where(people=False), aux, tokens=('zwx','zwx'))
