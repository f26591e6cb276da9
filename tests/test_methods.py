"Every method: the base's own predictions at step 0, only what is named moves, what is learnt survives, and any prior will do."
import hashlib, re
from dataclasses import replace

import numpy as np, pytest, torch
from safetensors.torch import load_file
from torch._subclasses.fake_tensor import FakeTensorMode

from styleboost.bases.load import blank, load_base
from styleboost.bases.sampling import sample
from styleboost.bases.stable_diffusion import Unet
from styleboost.exporting.export import export
from styleboost.methods.adapters import ADAPTERS, Scaled
from styleboost.methods.load import METHODS, make_method
from styleboost.methods.method import attached, frozen as at_rest, restore, state, trained, trained_modules
from styleboost.methods.svdiff import Shift, combined
from styleboost.training.loop import train
from styleboost.training.recipes import Generated, Recipe, settled
from styleboost.training.runs import Run

PLAIN = ('full','svdiff')                                # their layers are not chosen
TUNING = (*PLAIN, *(a.name for a in ADAPTERS))           # the methods that train layers; the others have tests of their own
CASES = [(m, 'attention') for m in TUNING] + [(a.name, 'all') for a in ADAPTERS if a.convolutions]
cases = pytest.mark.parametrize('name, targets', CASES, ids=['-'.join(c) for c in CASES])

def method(name='lora', targets='attention', **kw):
    "With the text encoder, unless the test says otherwise: there is more to go wrong."
    return make_method(name, **dict(dict(text_encoder=True), **kw), **({} if name in PLAIN else dict(targets=targets)))

@pytest.fixture
def fresh(base):
    "Makes bases of their own, in a precision."
    def make(dtype=torch.float32):
        own = base.own()
        for m in own.learning.values():
            for p in m.parameters(): p.data = p.data.to(dtype)
        return own
    return make

@torch.no_grad()
def seen(b):
    g = torch.Generator().manual_seed(1)
    z = torch.randn((2,8,16,16), generator=g).to(b.net.dtype)
    return b.net(z, torch.tensor([300,900]), b.reader(['a photo of style','a dog'])).float()

def gap(a, b): return (seen(a)-seen(b)).abs().max().item()

@torch.no_grad()
def disturb(b, by=.02):
    g = torch.Generator().manual_seed(2)
    for p in trained(b).values(): p.add_(by*torch.randn(p.shape, generator=g))

def digests(tensors): return {k: hashlib.sha256(v.detach().contiguous().numpy().tobytes()).hexdigest()[:8] for k,v in tensors.items()}

def frozen(b):
    plain = lambda n: n.replace('base_layer.','').replace('parametrizations.weight.original','weight')
    return {f'{k}.{plain(n)}': p for k,m in b.learning.items() for n,p in m.named_parameters() if not p.requires_grad}

# the interface

@cases
def test_at_step_0_the_prediction_is_the_bases(base, fresh, name, targets):
    assert gap(attached(fresh(), method(name, targets)), base)<1e-5

@cases
def test_disturbed_and_handed_over_it_predicts_the_same_and_not_what_the_base_does(base, fresh, name, targets):
    "The second base starts from another seed, so that nothing random is left out of what is saved."
    m = method(name, targets)
    a, b = attached(fresh(), m, 1), attached(fresh(), m, 2)
    disturb(a)
    restore(b, {k: v.clone() for k,v in state(a).items()})
    assert gap(a, b)==0 and gap(a, base)>1e-3

@cases
def test_merged_it_is_an_ordinary_base_that_predicts_the_same(base, fresh, name, targets):
    m = method(name, targets)
    a, b = attached(fresh(), m, 1), attached(fresh(), m, 1)
    for x in (a,b): disturb(x)
    b = m.merge(b)
    assert b.method is None
    assert gap(a, b)<1e-4*max(1, seen(a).abs().max().item()) and gap(b, base)>1e-3
    for k,part in b.learning.items(): assert part.state_dict().keys()==base.modules[k].state_dict().keys() and not hasattr(part, 'peft_config')

@cases
def test_only_what_is_named_moves(base, fresh, name, targets):
    b = attached(fresh(), method(name, targets)); mine = trained(b)
    before, still = digests(mine), digests(frozen(b))
    opt = torch.optim.Adam(mine.values(), 1e-2)
    for _ in range(2):   # where a factor starts at nought, the other one moves in the second step
        z = torch.randn((2,8,16,16), generator=torch.Generator().manual_seed(3))
        b.net(z, torch.tensor([10,500]), b.reader(['a photo of style','a dog'])).square().mean().backward()
        opt.step(); opt.zero_grad()
    after = digests(mine)
    assert [k for k in mine if before[k]==after[k]]==[] and digests(frozen(b))==still
    if name!='full': assert len(still)==sum(len(list(m.parameters())) for m in base.learning.values())

@cases
def test_what_is_saved_is_what_trains(fresh, name, targets):
    b = attached(fresh(), method(name, targets)); saved = state(b)
    assert sum(v.numel() for v in saved.values())==sum(p.numel() for p in trained(b).values())
    assert {k.split('.')[0] for k in saved}=={'unet','text_encoder'}=={*trained_modules(b)}

@cases
def test_what_trains_is_in_single_precision_and_runs_on_a_half_precision_base(fresh, name, targets):
    b = attached(fresh(torch.bfloat16), method(name, targets))
    assert {p.dtype for p in trained(b).values()}=={torch.float32} and {p.dtype for p in frozen(b).values()}<={torch.bfloat16}
    if name!='full': assert gap(b, fresh(torch.bfloat16))<.1

@pytest.mark.parametrize('name', TUNING)
def test_without_the_text_encoder_it_is_left_alone(fresh, name):
    b = attached(fresh(), method(name, text_encoder=False))
    assert make_method(name).text_encoder==(name in PLAIN)     # an adapter asks for it; full fine-tuning takes it along
    assert {*trained_modules(b)}=={'unet'} and {k.split('.')[0] for k in state(b)}=={'unet'} and not any(p.requires_grad for p in b.modules['text_encoder'].parameters())

@pytest.mark.parametrize('name', ['full','lora'])
def test_a_second_text_encoder_trains_too(name):
    b = attached(blank('sdxl'), method(name))
    parts = {'unet','text_encoder','text_encoder_2'}
    assert {*trained_modules(b)}==parts=={k.split('.')[0] for k in state(b)} and any(p.requires_grad for p in b.modules['text_encoder_2'].parameters())

def test_the_seed_decides_how_it_starts_and_the_callers_random_numbers_do_not(fresh):
    def start(seed, noise):
        torch.manual_seed(noise); b = attached(fresh(), method(), seed)
        return digests(state(b)), torch.rand(1).item()
    torch.manual_seed(5); want = torch.rand(1).item()
    a, b, c = start(1, 5), start(1, 6), start(2, 5)
    assert a[0]==b[0]!=c[0] and a[1]==c[1]==want

def test_a_base_that_is_held_by_somebody_else_is_copied_and_a_tuned_one_is_refused(base, fresh, refused):
    one = attached(base, method())
    assert one.shared is False and base.method is None and not any(p.requires_grad for m in base.modules.values() for p in m.parameters())
    with refused('zwx', 'already'): attached(one, method())

# settings

def full_size(): return blank('sd1', full=True, device='meta')

@pytest.mark.parametrize('rank', [4, 16])
def test_lora_on_stable_diffusion_has_the_published_number_of_parameters(rank):
    with torch.device('meta'): b = attached(full_size(), method(rank=rank, text_encoder=False))
    assert sum(p.numel() for p in trained(b).values())==797_184*rank//4

@pytest.mark.parametrize('made', [full_size, load_base], ids=['sd15','tiny'])
def test_all_means_every_linear_and_convolution_layer_of_the_blocks(made):
    u = made().modules['unet']
    names = {n for n,m in u.named_modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d)) and n.split('.')[0] in ('down_blocks','mid_block','up_blocks')}
    assert {n for n,_ in u.named_modules() if re.fullmatch(Unet.targets['all'], n)}==names and len(names)>50

@pytest.mark.parametrize('name, strength', [('lora', 2), ('rslora', 8), ('dora', 2), ('loha', 2), ('lokr', 2), ('gralora', 2)])
def test_alpha_is_the_strength_by_rank(fresh, name, strength):
    "rslora divides by the root of the rank."
    layers = [*attached(fresh(), method(name, alpha=32.)).modules['unet'].modules()]
    scales = {round(s, 6) for m in layers for s in getattr(m, 'scaling', {}).values()} if name!='gralora' else {m.scaling['default'] for m in layers if hasattr(m, 'gralora_A')}
    assert scales=={strength}

def test_an_unknown_method_is_refused_with_the_list(refused):
    with refused("'magic'", *METHODS): make_method('magic')
    with refused("'magic'", *METHODS): Recipe('test', (), method='magic')

@pytest.mark.parametrize('name', [a.name for a in ADAPTERS if not a.convolutions])
def test_an_adapter_for_linear_layers_is_refused_on_all_layers(refused, name):
    with refused(name, 'attention', 'lora'): method(name, 'all')

@pytest.mark.parametrize('name', [a.name for a in ADAPTERS if not issubclass(a, Scaled)])
def test_an_alpha_where_there_is_none_is_refused(refused, name):
    with refused(name, "'alpha'", 'text_encoder', 'rank', 'targets'): method(name, alpha=4.)

@pytest.mark.parametrize('kw, word', [(dict(rank=0), 'rank'), (dict(alpha=0.), 'alpha'), (dict(targets='some'), 'targets')])
def test_settings_that_mean_nothing_are_refused(refused, kw, word):
    with refused(word): method(**kw)

def test_a_rank_that_does_not_fit_is_refused(fresh, refused):
    with refused('boft', 'rank 7'): attached(fresh(), method('boft', rank=7))

def test_weights_of_another_rank_or_method_are_refused(fresh, refused):
    a, b, c = attached(fresh(), method()), attached(fresh(), method('loha')), attached(fresh(), method(rank=3))
    with refused('loha', 'do not match'): restore(b, state(a))
    with refused('lora', 'do not match'): restore(c, state(a))

def test_an_adapter_suggests_its_own_learning_rate_and_full_leaves_it_to_the_base(base):
    of = lambda b, name='lora', **kw: settled(Recipe('test', (), method=name, **kw), b).lr
    assert (of(base), of(full_size()))==(2e-3, 1e-4) and (of(base, 'loha'), of(full_size(), 'loha'))==(of(base, 'rslora'), of(full_size(), 'rslora'))==(1e-3, 1e-4)
    assert method('full').defaults(base)==dict(steps=100) and method('full').defaults(full_size())=={} and of(base, 'full')==base.family.defaults(base)['lr'] and of(base, lr=7.)==7

# training

@pytest.mark.parametrize('name, prior', [(m,'aux') for m in METHODS] + [('lora','none'), ('lora','generated')])
def test_any_method_with_any_prior(base, quick, aux, tmp_path, name, prior):
    r = quick(dict(none=None, aux=aux, generated=Generated('a photo of style', 1, steps=1))[prior], method=name, **(dict(rank=4) if name in TUNING[len(PLAIN):] else {}))
    run = train(r, tmp_path/'run', base=base, progress=False, every=1, device='cpu', cache=tmp_path/'cache')
    followed = dict(pictures=[aux[0].open()]) if run.method.see(torch.zeros(1,3,8,8)) else {}
    ours, before = (sample(m, 'a photo of zwx style, a dog', 3, steps=2, raw=True, **more)[0].tobytes() for m,more in ((run, followed), (base, {})))
    assert run.done and ours!=before and (len(run.log[0])==3+(prior!='none'))

def test_a_run_of_an_adapter_is_small_and_holds_only_the_adapter(base, quick, tmp_path):
    run = train(quick(method='lora', rank=2), tmp_path/'run', base=base, progress=False, device='cpu')
    assert {k.split('.')[-2] for k in load_file(run.weights)}=={'lora_A','lora_B'} and run.weights.stat().st_size<400e3

@pytest.mark.parametrize('name', ['lora','dora','lokr','svdiff'])
def test_resumed_is_uninterrupted_and_the_seed_matters(base, quick, tmp_path, name):
    go = lambda folder, seed=0, **kw: train(quick(method=name, steps=4, checkpoint=2), tmp_path/folder, seed, base, progress=False, every=1, device='cpu', **kw)
    go('halves', watch=lambda line: line['step']==2)
    assert not Run(tmp_path/'halves').done
    whole, halves, other = go('whole'), go('halves', resume=True), go('other', 1)
    tuned = lambda run: digests(load_file(run.weights))
    assert tuned(whole)==tuned(halves)!=tuned(other)

def test_the_given_base_is_not_touched_by_an_adapter(base, quick, tmp_path):
    now = lambda: {k: digests(m.state_dict()) for k,m in base.learning.items()}
    before = now(); train(quick(method='lora'), tmp_path/'run', base=base, progress=False, device='cpu')
    assert now()==before and not any(p.requires_grad for p in base.net.parameters())

# singular values

@pytest.mark.parametrize('device', ['cpu','cuda','mps'])
def test_svdiff_finds_its_directions_on_the_processor_and_keeps_them_in_half_wherever_the_weight_is(device, monkeypatch):
    found, svd = [], torch.linalg.svd
    monkeypatch.setattr(torch.linalg, 'svd', lambda m, **kw: found.append((m.device.type, m.dtype)) or svd(m, **kw))
    with FakeTensorMode(): s = Shift(torch.empty(4, 3, 3, 3, device=device))
    assert found==[('cpu', torch.float64)] and {x.device.type for x in (s.u, s.v, s.s, s.delta)}=={device}
    assert (s.u.dtype, s.s.dtype, s.v.dtype)==(torch.float16, torch.float32, torch.float16)

def test_svdiffs_gradient_is_that_of_the_shifted_weight():
    g = torch.Generator().manual_seed(0)
    w = torch.randn(5, 4, 3, 3, generator=g)
    s = Shift(w)
    with torch.no_grad(): s.delta.copy_(torch.randn(5, generator=g))
    plainly = w+((s.u.float()*((s.s+s.delta).relu()-s.s))@s.v.float()).view_as(w)
    torch.testing.assert_close(s.shifted(w), plainly)
    torch.testing.assert_close(*(torch.autograd.grad(x.sin().sum(), s.delta)[0] for x in (s.shifted(w), plainly)))

def test_svdiff_draws_and_folds_in_the_very_weights_that_it_trains_with(base):
    b = attached(base, method('svdiff'))
    disturb(b)
    training, layer = b.net.unet.conv_in.weight.detach().clone(), b.net.unet.conv_in
    assert torch.equal(at_rest(b).net.unet.conv_in.weight, training) and not torch.equal(training, base.net.unet.conv_in.weight)
    b.method.merge(b)
    assert torch.equal(layer.weight, training) and isinstance(layer._parameters['weight'], torch.nn.Parameter)

def test_shifts_of_runs_add_up_and_those_of_anything_else_are_refused(base, quick, family_base, tmp_path, refused):
    small, other = family_base('sd1'), family_base('sd1', seed=1)
    small, other = (replace(b, hash=h) for b,h in ((small, 'one'), (other, 'two')))
    def go(name, b=small, **kw): return train(quick(**dict(dict(method='svdiff', steps=1, lr=1e-2, resolution=64), **kw)), tmp_path/name, base=b, progress=False, device='cpu')
    one, two = go('one'), go('two', steps=2)
    a, b, both = one.learnt(), two.learnt(), combined([one, two], [.5, .25])
    assert a.keys()==both.keys() and all(torch.allclose(both[k], a[k]/2+b[k]/4) for k in a) and any(v.any() for v in both.values())
    for name,words,kw in (('lora', ('lora', 'no shifts'), dict(method='lora', rank=2)), ('elsewhere', ('one', 'different bases'), dict(b=other)), ('net', ('one', 'text_encoder'), dict(text_encoder=False))):
        with refused(tmp_path/name, *words): combined([one, go(name, **kw)], [.5, .5])
    for runs,shares in (([], []), ([one], [1, 1])):
        with refused(f'{len(runs)} runs and {len(shares)} shares'): combined(runs, shares)

# ranks by noise level

def test_tlora_resumes_draws_what_it_learnt_and_is_no_file_for_others(base, quick, tmp_path, refused):
    r = quick(method='tlora', rank=4, min_rank=0, steps=4, checkpoint=2, lr=1e-2)
    run = train(r, tmp_path/'run', 3, base, progress=False, device='cpu')
    b, lora = run.model(), attached(base, method('lora', rank=4, text_encoder=False))
    restore(lora, state(b))
    at = lambda m, t: m.net(torch.zeros(1,8,16,16), torch.tensor([t]), m.reader(['a dog']))
    with torch.no_grad():
        assert torch.equal(at(b, 999), at(base, 999)) and torch.equal(at(b, 0), at(lora, 0)) and not torch.equal(at(b, 0), at(base, 0))
    assert np.array_equal(drawn(run), drawn(Run(run.folder))) and not np.array_equal(drawn(run), drawn(lora))
    for to in ('diffusers','lora','kohya'):
        with refused('tlora'): export(run, tmp_path/to, to)

def drawn(m): return np.asarray(sample(m, 'a photo of zwx style, a dog', 3, steps=2, raw=True, device='cpu')[0], int)
