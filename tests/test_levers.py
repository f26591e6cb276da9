"Attention is tried before it is trusted, and a lever saves memory without changing what is learnt."
import importlib, os, re, subprocess, sys, types
from dataclasses import replace

import pytest, torch
import torch.nn.functional as F
from safetensors.torch import load_file

from styleboost.bases.load import blank
from styleboost.methods.adapters import ADAPTERS
from styleboost.methods.load import METHODS
from styleboost.methods.method import attached, trained
from styleboost.training.batches import Batches
from styleboost.training.held import begun
from styleboost.training.levers import attention_of, head_sizes, in_half, set_attention, xformers_fault
from styleboost.training.loop import train
from styleboost.training.objective import Objective
from styleboost.training.recipes import settled, with_hold
from styleboost.training.stepper import Stepper
from styleboost.training.trainer import ready

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
    assert set_attention(b.net, 'xformers')=='XFormersAttnProcessor'==attention_of(b.net)

def test_xformers_that_does_not_work_leaves_torchs_own_and_says_so(said):
    b = blank('sd1')
    assert importlib.util.find_spec('xformers') is None and set_attention(b.net, 'xformers')=='AttnProcessor2_0'
    told, = [m for m in said() if 'xformers' in m]
    assert 'cannot be imported' in told and '\n' not in told

@pytest.mark.parametrize('family, sizes', [('sd1',[40,80,160]), ('sd2',[64]), ('sdxl',[64])])
def test_the_head_sizes_are_those_of_the_published_models(family, sizes): assert head_sizes(blank(family, full=True, device='meta').net)==sizes

# the levers in a run

@pytest.fixture
def tuned(base, tmp_path):
    "What a short run learns, by the recipe's settings."
    def tuned(recipe, **kw): return load_file(train(recipe, tmp_path/str(len(list(tmp_path.iterdir()))), **dict(dict(base=base, device='cpu', progress=False), **kw)).weights)
    return tuned

def moved(base, weights):
    "How far each weight went."
    start = {f'{p}.{k}':v for p in ('unet','text_encoder') for k,v in base.modules[p].state_dict().items()}
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
    r = quick(method='lora', text_encoder=False, precision='bf16')
    b = attached(base, r.method); in_half(b, r)
    kinds = lambda trained: {p.dtype for p in b.net.parameters() if p.requires_grad==trained}
    assert kinds(True)=={torch.float32} and kinds(False)=={torch.bfloat16}

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

@pytest.mark.parametrize('kw, word', [(dict(fused_backward=True), 'grad_clip'), (dict(weights='bfloat16', precision='fp16'), 'bf16'), (dict(fused_backward=True, grad_clip=None, accumulate=2, batch=2), 'accumulate'), (dict(batch=4, accumulate=3), 'divisors')])
def test_levers_that_exclude_each_other_are_refused(quick, refused, kw, word):
    with refused(word): quick(**kw)

def test_running_out_of_memory_says_what_to_pull(base, quick, tmp_path, refused, monkeypatch):
    def full(*a): raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2 GiB.\nmore')
    monkeypatch.setattr(Stepper, 'backward', full)
    with refused('step 1', '--memory', 'fused backward'): train(quick(), tmp_path/'run', base=base, device='cpu', progress=False)

# several parts, several processes

EVERY = dict(specialist_reconstruction=dict(content=1., every=1, walk=2), dreamartist=dict(pixels=1.), inst_port=dict(pictures=3))   # what there is of them in each step
ONE_OF_A_KIND = [m for m in METHODS if m not in {a.name for a in ADAPTERS}-{'lora'}]

@pytest.fixture
def taught(quick, family_base):
    "What step 0 of a method teaches in so many parts: losses, gradients."
    def make(name):
        b = family_base('sd1')
        # at 64 pixels a group of the innermost normalisation is one number, whose gradient is rounding alone
        r = settled(with_hold(quick(method=name, batch=4, resolution=128, precision='no', **EVERY.get(name, {})), more=True), b)
        batches, tuned, g = Batches(b, r, 0, 'cpu'), attached(b, r.method), torch.Generator().manual_seed(0)
        r.method.look(tuned, r.bindings)
        params = trained(tuned)
        for p in params.values(): p.data += .02*torch.randn(p.shape, generator=g)          # nothing is held back by a nought
        armed = ready(tuned, r, batches.texts, 'cpu')
        objective = Objective(armed, begun(armed, r))
        def of(parts):
            found = [torch.stack(objective(batches(0, k, parts)))/parts for k in range(parts)]
            for p in params.values(): p.grad = None
            sum(found).sum().backward()
            return sum(found).detach(), {k: p.grad for k,p in params.items() if p.grad is not None}
        return of
    return make

@pytest.mark.parametrize('name', ONE_OF_A_KIND)
def test_the_parts_of_a_step_teach_what_the_step_does(taught, name):
    "On which accumulation and several processes rest: with a prior, and held to the base beside it."
    of = taught(name)
    losses, grads = of(1)
    for parts in (2, 4):
        again, same = of(parts)
        torch.testing.assert_close(again, losses, rtol=1e-4, atol=1e-6)
        apart, long = (torch.cat([x.flatten() for x in v]).norm().item() for v in ([same[k]-grads[k] for k in grads], grads.values()))
        assert len(losses)==3 and grads.keys()==same.keys() and apart<1e-3*long

@pytest.mark.parametrize('parts', [1, 2, 4])
def test_a_content_loss_counts_once_a_step_whatever_shapes_its_pictures_have(quick, base, picture, parts):
    ref = type(quick().bindings[0].images)([picture(n, size) for n,size in (('a',(64,64)), ('b',(96,64)), ('c',(64,96)), ('d',(64,64)))], 'ref')
    r = settled(quick(ref=ref, method='specialist_reconstruction', doubled=False, batch=4, buckets=True), base)
    batches = Batches(base, r, 0, 'cpu')
    seen = [r.method.compared(b.part(rows)) for b in (batches(0, k, parts) for k in range(parts)) for rows in b.shapes()]
    assert len(seen)>parts and [many for i,many in seen if i is not None]==[4] and r.method.compared(batches(1))==(None, 0)

LAUNCH = '''
import sys
from styleboost.pictures.images import ImageSet
from styleboost.training.recipes import no_prior, with_hold, with_prior
from styleboost.training.loop import train
here, out, *methods = sys.argv[1:]
more = dict(specialist_reconstruction=dict(content=1., every=1, walk=2), inst_port=dict(pictures=3), pivotal=dict(rank=2))
for method in methods:
    recipe = with_prior(no_prior(ImageSet.from_folder(f'{here}/ref'), batch=2, steps=3, lr=1e-3, checkpoint=2, method=method, anchor=1., ema=.2, **more.get(method, {})), ImageSet.from_folder(f'{here}/aux'))
    train(with_hold(recipe, more=True), f'{here}/{out}/{method}', device='cpu', progress=False, every=1)
'''

TWO = ('full','lora','controlnet','textual_inversion','custom_diffusion','svdiff','hypernetwork','dreamartist','styledrop_port','dreamstyler','inst_port','pivotal','specialist_reconstruction')

@pytest.fixture(scope='module')
def one_and_two(tmp_path_factory, ref, aux):
    "A folder with a run of each method that one process has learnt, and one that two have."
    here, env = tmp_path_factory.mktemp('processes'), dict(os.environ, OMP_NUM_THREADS='1')
    ref.save(here/'ref'); aux.save(here/'aux'); (here/'go.py').write_text(LAUNCH)
    call = lambda *cmd: subprocess.run([sys.executable, *cmd, *TWO], cwd=here, env=env, capture_output=True, text=True, timeout=900)
    two = call('-m', 'accelerate.commands.launch', '--cpu', '--num_processes', '2', '--num_machines', '1', '--mixed_precision', 'no', '--dynamo_backend', 'no', '--main_process_port', '0', 'go.py', str(here), 'two')
    one = call('go.py', str(here), 'one')
    assert two.returncode==one.returncode==0, two.stderr[-3000:]+one.stderr[-3000:]
    return here

@pytest.mark.parametrize('method', TWO)
def test_two_processes_learn_what_one_learns(one_and_two, method):
    "With a prior, held to the base beside it, anchored and averaged."
    one, two = one_and_two/'one'/method, one_and_two/'two'/method
    a, b = (load_file(f/'weights'/'tuned.safetensors') for f in (one, two))
    start = 1e-3
    for k in a: torch.testing.assert_close(b[k], a[k], rtol=1e-3, atol=start/20)
    logs = [[float(x) for x in re.findall(r'"(?:style|prior\d)": ([\d.]+)', (f/'log.jsonl').read_text())] for f in (one, two)]
    assert logs[0]==pytest.approx(logs[1], rel=1e-3, abs=1e-5) and len(logs[0])==9
