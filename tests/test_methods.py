"Every method: the base's own predictions at step 0, only what is named moves, what is learnt survives, and any prior will do."
import copy, hashlib, re
from dataclasses import replace
from types import SimpleNamespace

import peft, pytest, torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from styleboost.bases.load import load_base
from styleboost.methods.method import TARGETS, adapter_config, method_for
from styleboost.methods.adapters import ADAPTERS
from styleboost.methods.load import METHODS
from styleboost.widgets.picker import suggested
from styleboost.training.recipes import Generated, Recipe
from styleboost.bases.sampling import sample
from styleboost.training.runs import Run
from styleboost.training.loop import train

CASES = [(m, 'attention') for m in METHODS] + [(m, 'all') for m,v in ADAPTERS.items() if v[3]]
cases = pytest.mark.parametrize('name, targets', CASES, ids=['-'.join(c) for c in CASES])

def recipe(name='lora', targets='attention', **kw): return Recipe('test', (), method=name, targets=targets, **kw)

@pytest.fixture
def fresh(base):
    "Makes bases of their own, in a precision."
    def make(dtype=torch.float32):
        parts = {k: copy.deepcopy(getattr(base, k)) for k in ('unet','text_encoder')}
        for m in parts.values():
            for p in m.parameters(): p.data = p.data.to(dtype)
        return replace(base, **parts)
    return make

@torch.no_grad()
def seen(b):
    g = torch.Generator().manual_seed(1)
    z = torch.randn((2,8,16,16), generator=g).to(b.unet.dtype)
    return b.predict(z, torch.tensor([300,900]), b.condition(['a photo of style','a dog'])).float()

def gap(a, b): return (seen(a)-seen(b)).abs().max().item()

def trains(parts): return {f'{k}.{n}': p for k,m in parts.items() for n,p in m.named_parameters() if p.requires_grad}

@torch.no_grad()
def disturb(parts, by=.02):
    g = torch.Generator().manual_seed(2)
    for p in trains(parts).values(): p.add_(by*torch.randn(p.shape, generator=g))

def digests(tensors): return {k: hashlib.sha256(v.detach().contiguous().numpy().tobytes()).hexdigest()[:8] for k,v in tensors.items()}

def frozen(b): return {f'{k}.{n.replace("base_layer.","")}': p for k in ('unet','text_encoder') for n,p in getattr(b, k).named_parameters() if not p.requires_grad}

# the interface

@cases
def test_at_step_0_the_prediction_is_the_bases(base, fresh, name, targets):
    b = fresh(); method_for(recipe(name, targets)).setup(b)
    assert gap(b, base)<1e-5

@cases
def test_disturbed_and_handed_over_it_predicts_the_same_and_not_what_the_base_does(base, fresh, name, targets):
    "The second base starts from another seed, so that nothing random is left out of what is saved."
    (a, b), m = (fresh(), fresh()), method_for(recipe(name, targets))
    disturb(m.setup(a, 1)); m.setup(b, 2)
    m.load(b, {k: v.clone() for k,v in m.state(a).items()})
    assert gap(a, b)==0 and gap(a, base)>1e-3

@cases
def test_merged_it_is_an_ordinary_base_that_predicts_the_same(base, fresh, name, targets):
    (a, b), m = (fresh(), fresh()), method_for(recipe(name, targets))
    for x in (a,b): disturb(m.setup(x, 1))
    m.merge(b)
    assert gap(a, b)<1e-4*max(1, seen(a).abs().max().item()) and gap(b, base)>1e-3
    for k in ('unet','text_encoder'): assert getattr(b, k).state_dict().keys()==getattr(base, k).state_dict().keys() and not hasattr(getattr(b, k), 'peft_config')

@cases
def test_only_what_is_named_moves(base, fresh, name, targets):
    b, m = fresh(), method_for(recipe(name, targets))
    parts = m.setup(b); mine = trains(parts)
    before, still = digests(mine), digests(frozen(b))
    opt = torch.optim.Adam(mine.values(), 1e-2)
    for _ in range(2):   # where a factor starts at nought, the other one moves in the second step
        z = torch.randn((2,8,16,16), generator=torch.Generator().manual_seed(3))
        b.predict(z, torch.tensor([10,500]), b.condition(['a photo of style','a dog'])).square().mean().backward()
        opt.step(); opt.zero_grad()
    after = digests(mine)
    assert [k for k in mine if before[k]==after[k]]==[] and digests(frozen(b))==still
    if name!='full': assert len(still)==sum(len(list(getattr(base, k).parameters())) for k in ('unet','text_encoder'))

@cases
def test_what_is_saved_is_what_trains(fresh, name, targets):
    b, m = fresh(), method_for(recipe(name, targets))
    parts = m.setup(b); state = m.state(b)
    assert sum(v.numel() for v in state.values())==sum(p.numel() for p in trains(parts).values())
    assert {k.split('.')[0] for k in state}=={'unet','text_encoder'}=={*parts}

@cases
def test_what_trains_is_in_single_precision_and_runs_on_a_half_precision_base(fresh, name, targets):
    b, m = fresh(torch.bfloat16), method_for(recipe(name, targets))
    mine = trains(m.setup(b))
    assert {p.dtype for p in mine.values()}=={torch.float32} and {p.dtype for p in frozen(b).values()}<={torch.bfloat16}
    if name!='full': assert gap(b, fresh(torch.bfloat16))<.1

@pytest.mark.parametrize('name', METHODS)
def test_without_the_text_encoder_it_is_left_alone(fresh, name):
    b, m = fresh(), method_for(recipe(name, text_encoder=False))
    assert {*m.setup(b)}=={'unet'} and {k.split('.')[0] for k in m.state(b)}=={'unet'} and not any(p.requires_grad for p in b.text_encoder.parameters())

@pytest.mark.parametrize('name', ['full','lora'])
def test_a_second_text_encoder_trains_too(base, fresh, name):
    second = CLIPTextModelWithProjection(CLIPTextConfig(vocab_size=99, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, projection_dim=32)).requires_grad_(False)
    b = fresh(); b = SimpleNamespace(unet=b.unet, text_encoder=b.text_encoder, text_encoder_2=second, device=b.device)
    m = method_for(recipe(name)); parts = m.setup(b)
    assert {*parts}=={'unet','text_encoder','text_encoder_2'}=={k.split('.')[0] for k in m.state(b)} and any(p.requires_grad for p in second.parameters())

def test_the_seed_decides_how_it_starts_and_the_callers_random_numbers_do_not(fresh):
    def start(seed, noise):
        torch.manual_seed(noise); b, m = fresh(), method_for(recipe()); m.setup(b, seed)
        return digests(m.state(b)), torch.rand(1).item()
    torch.manual_seed(5); want = torch.rand(1).item()
    a, b, c = start(1, 5), start(1, 6), start(2, 5)
    assert a[0]==b[0]!=c[0] and a[1]==c[1]==want

# settings

def full_size():
    with torch.device('meta'): return UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)

@pytest.mark.parametrize('rank', [4, 16])
def test_lora_on_stable_diffusion_has_the_published_number_of_parameters(rank):
    unet = full_size(); peft.inject_adapter_in_model(adapter_config(recipe(rank=rank), 'unet'), unet, low_cpu_mem_usage=True)
    assert sum(p.numel() for p in unet.parameters() if p.requires_grad)==797_184*rank//4

@pytest.mark.parametrize('unet', [full_size, lambda: load_base().unet], ids=['sd15','tiny'])
def test_all_means_every_linear_and_convolution_layer_of_the_blocks(unet):
    names = {n for n,m in unet().named_modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d)) and n.split('.')[0] in ('down_blocks','mid_block','up_blocks')}
    u = unet()
    assert {n for n,_ in u.named_modules() if re.fullmatch(TARGETS['unet']['all'], n)}==names and len(names)>50

@pytest.mark.parametrize('name, strength', [('lora', 2), ('rslora', 8), ('dora', 2), ('loha', 2), ('lokr', 2), ('gralora', 2)])
def test_alpha_is_the_strength_by_rank(fresh, name, strength):
    "rslora divides by the root of the rank."
    b = fresh(); method_for(recipe(name, alpha=32.)).setup(b)
    scales = {round(s, 6) for m in b.unet.modules() for s in getattr(m, 'scaling', {}).values()} if name!='gralora' else {m.scaling['default'] for m in b.unet.modules() if hasattr(m, 'gralora_A')}
    assert scales=={strength}

def test_an_unknown_method_is_refused_with_the_list(refused):
    with refused("'magic'", *METHODS): method_for(recipe('magic'))

@pytest.mark.parametrize('name', [m for m,v in ADAPTERS.items() if not v[3]])
def test_an_adapter_for_linear_layers_is_refused_on_all_layers(refused, name):
    with refused(name, 'attention', 'lora'): method_for(recipe(name, 'all'))

@pytest.mark.parametrize('name', [m for m,v in ADAPTERS.items() if not v[2]])
def test_an_alpha_where_there_is_none_is_refused(refused, name):
    with refused(name, 'alpha', 'lora'): method_for(recipe(name, alpha=4.))

@pytest.mark.parametrize('kw, word', [(dict(rank=0), 'rank'), (dict(alpha=0.), 'alpha'), (dict(targets='some'), 'targets')])
def test_settings_that_mean_nothing_are_refused(refused, kw, word):
    with refused(word): recipe(**kw)

def test_a_rank_that_does_not_fit_is_refused(fresh, refused):
    with refused('boft', 'rank 7'): method_for(recipe('boft', rank=7)).setup(fresh())

def test_weights_of_another_rank_or_method_are_refused(fresh, refused):
    (a, b), m = (fresh(), fresh()), method_for(recipe())
    m.setup(a); state = m.state(a)
    other = method_for(recipe('loha')); other.setup(b)
    with refused('loha', 'do not match'): other.load(b, state)

def test_an_adapter_suggests_its_own_learning_rate_and_full_leaves_it_to_the_base(base):
    large = SimpleNamespace(unet=full_size())
    assert (suggested(recipe(), base).lr, suggested(recipe(), large).lr)==(1e-3, 1e-4)
    assert suggested(recipe('full'), base).lr is None and suggested(recipe(lr=7.), base).lr==7

# training

@pytest.mark.parametrize('name, prior', [(m,'aux') for m in METHODS] + [('lora','none'), ('lora','generated')])
def test_any_method_with_any_prior(base, quick, aux, tmp_path, name, prior):
    r = quick(dict(none=None, aux=aux, generated=Generated('a photo of style', 1, steps=1))[prior], method=name, rank=4)
    run = train(r, tmp_path/'run', base=base, progress=False, every=1, device='cpu', cache=tmp_path/'cache')
    ours, before = (sample(m, 'a photo of zwx style, a dog', 3, steps=2, raw=True)[0].tobytes() for m in (run, base))
    assert run.done and ours!=before and (len(run.log[0])==3+(prior!='none'))

def test_a_run_of_an_adapter_is_small_and_holds_only_the_adapter(base, quick, tmp_path):
    run = train(quick(method='lora', rank=2), tmp_path/'run', base=base, progress=False, device='cpu')
    assert {k.split('.')[-2] for k in load_file(run.weights)}=={'lora_A','lora_B'} and run.weights.stat().st_size<400e3

@pytest.mark.parametrize('name', ['lora','dora','lokr'])
def test_resumed_is_uninterrupted_and_the_seed_matters(base, quick, tmp_path, name):
    go = lambda folder, seed=0, **kw: train(quick(method=name, steps=4, checkpoint=2), tmp_path/folder, seed, base, progress=False, every=1, device='cpu', **kw)
    go('halves', watch=lambda line: line['step']==2)
    assert not Run(tmp_path/'halves').done
    whole, halves, other = go('whole'), go('halves', resume=True), go('other', 1)
    tuned = lambda run: digests(load_file(run.weights))
    assert tuned(whole)==tuned(halves)!=tuned(other)

def test_the_given_base_is_not_touched_by_an_adapter(base, quick, tmp_path):
    state = lambda: {k: digests(getattr(base, k).state_dict()) for k in ('unet','text_encoder')}
    before = state(); train(quick(method='lora'), tmp_path/'run', base=base, progress=False, device='cpu')
    assert state()==before and not any(p.requires_grad for p in base.unet.parameters())
