"A ControlNet: the base stays, edges are cached beside the latents, pictures follow them, and diffusers reads what was learnt."
from dataclasses import replace

import diffusers, numpy as np, pytest, torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file

from styleboost.bases.load import blank, load_base
from styleboost.bases.sampling import sample
from styleboost.exporting.export import export, merged
from styleboost.methods.controlnet import edges
from styleboost.methods.load import make_method
from styleboost.methods.method import attached, restore, state, trained, trained_modules
from styleboost.pictures.tensors import to_tensor
from styleboost.training.loop import train
from styleboost.training.plan import plan
from styleboost.training.runs import Run

PROMPT = 'a photo of zwx style, a dog'
FAMILIES = ['sd1','sdxl']

@pytest.fixture
def recipe(quick):
    return lambda **kw: quick(**dict(dict(method='controlnet', steps=3, lr=1e-3, resolution=64), **kw))

@pytest.fixture(scope='module')
def runs(quick, family_folder, tmp_path_factory):
    "Makes a run on a small base of a family, with everything that it learnt disturbed."
    made = {}
    def make(family='sd1'):
        if family not in made:
            r = quick(method='controlnet', steps=3, lr=1e-3, resolution=64, base=str(family_folder(family)))
            run, g = train(r, tmp_path_factory.mktemp('run')/'style', progress=False, every=1, device='cpu'), torch.Generator().manual_seed(1)
            save_file({k: v+.05*torch.randn(v.shape, generator=g) for k,v in load_file(run.weights).items()}, run.weights)
            made[family] = Run(run.folder)
        return made[family]
    return make

@pytest.fixture(scope='module')
def house():
    "A picture with edges."
    im = Image.new('RGB', (64,64), 'white'); d = ImageDraw.Draw(im)
    d.rectangle((16,30,48,60), fill='brown'); d.polygon(((10,30),(54,30),(32,6)), fill='darkred')
    return im

def array(im): return np.asarray(im, int)

def ours(model, pictures=None, prompt=PROMPT): return array(sample(model, prompt, 3, steps=3, size=64, raw=True, pictures=pictures, device='cpu')[0])

def same(a, b): return np.abs(a-b).max()<=2

def equal(a, b): return a.keys()==b.keys() and all(torch.equal(a[k], b[k]) for k in a)

def copied(tensors): return {k: v.detach().clone() for k,v in tensors.items()}

# what it sees

def test_edges_are_white_where_colours_change_and_black_elsewhere(house):
    x = edges(to_tensor([house], (64,64)))
    assert x.shape==(1,3,64,64) and 0<=x.min() and x.max()<=1 and torch.equal(x[:,0], x[:,2])
    assert x[0,0,45,16]>.3 and x[0,0,45,32]<1e-6 and x[0,0,2,2]<1e-6 and not edges(torch.zeros(1,3,8,8)).any()

# training

@pytest.mark.parametrize('family', FAMILIES)
def test_a_run_saves_its_control_and_nothing_else(runs, family):
    run = runs(family)
    assert run.done and len(run.log)==3 and {k.split('.')[0] for k in load_file(run.weights)}=={'controlnet'}

@pytest.mark.parametrize('family', FAMILIES)
def test_only_the_control_moves(family, family_folder):
    b = attached(load_base(family_folder(family)), make_method('controlnet'))
    mine = {id(p) for p in trained(b).values()}
    others = {f'{k}.{n}': p for k,m in b.modules.items() for n,p in m.named_parameters() if id(p) not in mine}
    still, before = copied(others), copied(trained(b))
    assert {*trained_modules(b)}=={'controlnet'} and {*b.method.through(b)}=={'unet','controlnet'}
    told = b.reader([PROMPT])|b.method.see(torch.randn(1,3,64,64))
    opt = torch.optim.Adam(trained(b).values(), 1e-2)
    for _ in range(2):                                     # what stands behind weights of nought moves in the second step
        b.net(torch.randn(1, *b.codec.shape((64,64))), torch.tensor([500]), told).square().mean().backward()
        opt.step(); opt.zero_grad()
    assert equal(copied(others), still) and all(p.grad is None for p in others.values())
    assert sum(not torch.equal(before[k], p) for k,p in trained(b).items())>.9*len(mine)

def test_at_step_0_it_adds_nothing(family_folder, house):
    b = load_base(family_folder('sd1'))
    assert np.array_equal(ours(attached(b, make_method('controlnet')), [house]), ours(b))

def test_the_callers_base_is_unchanged(recipe, family_folder, tmp_path):
    b = load_base(family_folder('sd1'))
    before = {k: copied(m.state_dict()) for k,m in b.modules.items()}
    train(recipe(), tmp_path/'run', base=b, progress=False, device='cpu')
    assert b.method is None and {*b.modules}==before.keys() and all(equal(before[k], m.state_dict()) for k,m in b.modules.items())

@pytest.mark.parametrize('family', FAMILIES)
def test_edges_are_kept_beside_latents_and_used_again(recipe, family, family_folder, tmp_path, monkeypatch):
    b, r = load_base(family_folder(family)), recipe(steps=2)
    go = lambda name, **kw: train(r, tmp_path/name, base=b, progress=False, device='cpu', **kw)
    once = go('once', latents=tmp_path/'latents')
    kept = [load_file(f) for f in (tmp_path/'latents').glob('*.safetensors')]
    assert len(kept)==3+4 and all(t['picture'].shape==(3,64,64) for t in kept) and len({t['picture'].numpy().tobytes() for t in kept})==7
    monkeypatch.setattr(diffusers.AutoencoderKL, 'encode', lambda *a, **kw: pytest.fail('encoded again'))
    again = go('again', latents=tmp_path/'latents')
    monkeypatch.undo()
    assert equal(load_file(once.weights), load_file(again.weights)) and equal(load_file(once.weights), load_file(go('without').weights))

def test_latents_of_a_method_that_sees_nothing_are_not_taken_for_these(quick, recipe, family_folder, tmp_path):
    b = load_base(family_folder('sd1'))
    train(quick(method='lora', rank=2, resolution=64), tmp_path/'lora', base=b, progress=False, device='cpu', latents=tmp_path/'latents')
    assert train(recipe(), tmp_path/'control', base=b, progress=False, device='cpu', latents=tmp_path/'latents').done

def test_the_edges_are_learnt_from(recipe, family_folder, tmp_path, monkeypatch):
    "Without them it learns something else."
    from styleboost.methods.controlnet import ControlNet
    b = load_base(family_folder('sd1'))
    go = lambda name: load_file(train(recipe(), tmp_path/name, base=b, progress=False, device='cpu').weights)
    seeing = go('seeing')
    monkeypatch.setattr(ControlNet, 'see', lambda self, x: dict(picture=torch.zeros_like(x)))
    assert not equal(seeing, go('blind'))

@pytest.mark.parametrize('family', FAMILIES)
def test_resumed_is_uninterrupted(recipe, family, family_folder, tmp_path):
    b = load_base(family_folder(family))
    go = lambda name, **kw: train(recipe(), tmp_path/name, base=b, progress=False, every=1, device='cpu', **kw)
    whole, half = go('whole'), go('half', watch=lambda line: line['step']==2)
    assert not half.done and {k.split('.')[0] for k in load_file(half.checkpoint/'weights.safetensors')}=={'controlnet'}
    assert equal(load_file(go('half', resume=True).weights), load_file(whole.weights))

@pytest.mark.parametrize('kw', [dict(checkpointing=True), dict(accumulate=2)], ids=str)
def test_a_lever_changes_what_is_held_and_not_what_is_learnt(recipe, family_folder, tmp_path, kw):
    b = load_base(family_folder('sd1'))
    for m in b.modules.values(): m.double()    # Adam makes whole steps of gradients that are rounding alone
    def go(out, seed=0, **k):
        return load_file(train(recipe(batch=2, lr=1e-4, **k), tmp_path/out, seed, b, 'cpu', progress=False).weights)
    start = state(attached(b, make_method('controlnet'), 0))
    moved = lambda w: torch.cat([(w[k]-start[k]).flatten() for k in sorted(start)])
    plain, lean, other = (moved(w) for w in (go('plain'), go('lean', **kw), go('other', seed=1)))
    # Adam moves a weight of next to no gradient by its rounding, differently on each processor: hence .9.
    to = lambda w: torch.cosine_similarity(plain, w, dim=0)
    assert plain.abs().max()>1e-4 and to(lean)>.9 and to(other)<.5
    of = lambda **k: plan(b, recipe(batch=4, precision='no', **k), 'cpu').step
    assert of(**kw)<of()

# what is learnt

def test_the_embedded_base_is_trained(base, recipe, tmp_path, house):
    run = train(recipe(), tmp_path/'run', base=base, progress=False, device='cpu')
    assert not np.array_equal(ours(run, [house]), ours(run)) and np.array_equal(ours(run), ours(base))

def test_a_base_without_a_unet_is_refused(recipe, refused, tmp_path):
    with refused('amused', 'no U-Net', 'XL'): train(recipe(), tmp_path/'run', base=blank('amused'), progress=False, device='cpu')

@pytest.mark.parametrize('family', FAMILIES)
def test_with_a_picture_it_follows_it_and_without_it_is_the_base(runs, family, house):
    run = runs(family)
    plain, followed, other = ours(run), ours(run, [house]), ours(run, [house.rotate(90)])
    assert np.array_equal(plain, ours(load_base(run.recipe['base']))) and not same(followed, plain) and not np.array_equal(followed, other)

def test_each_prompt_follows_its_own_picture(runs, house, refused):
    run, two = runs(), [house, house.rotate(90)]
    ims = sample(run, [PROMPT]*2, [3,3], steps=3, size=64, raw=True, pictures=two, device='cpu')
    assert all(same(array(im), ours(run, [p])) for im,p in zip(ims, two))
    with refused('2 prompts', '1 pictures'): sample(run, [PROMPT]*2, pictures=[house], steps=1, device='cpu')

def test_a_model_that_follows_no_picture_says_so(base, house, refused):
    with refused('follows no picture'): sample(base, PROMPT, steps=1, pictures=[house])

def test_handed_over_it_draws_the_same(runs, house):
    run = runs(); a = run.model()
    b = attached(replace(load_base(run.recipe['base']), shared=False), run.method, 9)
    restore(b, copied(state(a)))
    assert np.array_equal(ours(a, [house]), ours(b, [house]))

def test_switched_off_it_is_the_base(runs):
    b = runs().model()
    c = b.reader([PROMPT])|b.method.see(torch.rand(1,3,64,64))
    x = torch.randn(1, *b.codec.shape((64,64)), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        with b.method.plain(b): off = b.net(x, torch.tensor([500]), c)
        assert torch.equal(off, b.net(x, torch.tensor([500]), b.reader([PROMPT]))) and not torch.equal(off, b.net(x, torch.tensor([500]), c))

def test_what_is_no_setting_is_refused(refused):
    with refused('controlnet', "'rank'", 'none'): make_method('controlnet', rank=4)

# for other programs

@pytest.mark.parametrize('family', FAMILIES)
def test_diffusers_reads_the_control_and_draws_what_the_run_draws(runs, tmp_path, family, house):
    run = runs(family)
    file = export(run, tmp_path/'out', 'controlnet', pictures=False)
    control = diffusers.ControlNetModel.from_pretrained(file.parent, local_files_only=True)
    assert equal(control.state_dict(), run.model().modules['controlnet'].state_dict())
    parts = load_base(run.recipe['base']).pipeline()
    cls = dict(sd1=diffusers.StableDiffusionControlNetPipeline, sdxl=diffusers.StableDiffusionXLControlNetPipeline)[family]
    more = {} if family=='sdxl' else dict(requires_safety_checker=False)
    pipe = cls(**{k:v for k,v in parts.components.items() if v is not None or family=='sd1'}, controlnet=control, **more)
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config); pipe.set_progress_bar_config(disable=True)
    seen = edges(to_tensor([house], (64,64)))
    got = pipe(PROMPT, image=seen, num_inference_steps=3, guidance_scale=7., height=64, width=64, generator=torch.Generator().manual_seed(3)).images[0]
    assert same(array(got), ours(run, [house])) and not same(array(got), ours(run))

def test_a_control_is_not_folded_into_a_base(runs, tmp_path, refused):
    for to in ('diffusers','single-file'):
        with refused('controlnet', f'{to} has no place', 'export it to controlnet'): export(runs(), tmp_path/'out', to)
    assert not (tmp_path/'out').exists()
    with refused('controlnet', 'merge it first'): runs().model().pipeline()
    with refused('controlnet', 'cannot be folded'): merged(runs())

def test_the_card_says_how_to_use_it(runs, tmp_path):
    file = export(runs(), tmp_path/'out', 'controlnet')
    text = (file.parent/'README.md').read_text()
    assert all(w in text for w in ('ControlNetModel.from_pretrained', 'models/controlnet', 'edges')) and (file.parent/'config.json').exists()
