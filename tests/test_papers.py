"Custom Diffusion, DreamStyler, DreamArtist and StyleDrop: trained, resumed, handed over, and drawn by other programs."
from pathlib import Path

import numpy as np, pytest, torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from styleboost.bases.base import Condition
from styleboost.bases.load import load_base
from styleboost.bases.sampling import sample
from styleboost.exporting.export import export, merged
from styleboost.methods.custom_diffusion import prompt_layers, sizes_of
from styleboost.methods.load import make_method
from styleboost.methods.method import View, attached, restore, state, trained
from styleboost.training.batches import Batch, Batches
from styleboost.training.loop import train
from styleboost.training.plan import plan
from styleboost.training.recipes import no_prior, settled, styleboost
from styleboost.training.runs import Run

PAPERS = ('custom_diffusion','dreamstyler','dreamartist','styledrop')
papers = pytest.mark.parametrize('name', PAPERS)

@pytest.fixture
def go(quick, base, tmp_path):
    "Trains into a folder by its name."
    def run(name, method, seed=0, watch=None, resume=False, **kw):
        r = quick(**dict(dict(method=method, steps=4, lr=1e-2, checkpoint=2), **kw))
        return train(r, tmp_path/name, seed, base, progress=False, every=1, device='cpu', watch=watch, resume=resume)
    return run

def equal(a, b): return a.keys()==b.keys() and all(torch.equal(a[k], b[k]) for k in a)

def drawn(model, guidance=5.): return np.asarray(sample(model, 'a dog', 3, 2, guidance, device='cpu')[0], int)

def disturbed(run, by=.05):
    "What a run has learnt, moved at random, so that nothing is equal by accident."
    g = torch.Generator().manual_seed(1)
    save_file({k: v+by*torch.randn(v.shape, generator=g) for k,v in load_file(run.weights).items()}, run.weights)
    return Run(run.folder)

@papers
def test_resumed_is_uninterrupted_and_what_is_kept_is_what_is_named(go, name):
    whole, half = go('whole', name), go('half', name, watch=lambda line: line['step']==2)
    assert not half.done
    again, other = go('half', name, resume=True), go('other', name, seed=1)
    kept = load_file(whole.weights)
    assert again.done and equal(kept, load_file(again.weights)) and not equal(kept, load_file(other.weights))
    what = dict(custom_diffusion=('to_k.weight','to_v.weight','rows'), styledrop=('down.weight','up.weight')).get(name, ('rows',))
    assert all(k.endswith(what) for k in kept)

@papers
def test_a_run_that_is_opened_again_draws_what_was_learnt(go, base, name):
    run = disturbed(go('run', name))
    assert np.array_equal(drawn(run), drawn(run.model())) and not np.array_equal(drawn(run), drawn(base))

@papers
@pytest.mark.parametrize('kw', [dict(checkpointing=True), dict(precision='bf16'), dict(accumulate=2, batch=2)], ids=str)
def test_a_lever_does_not_stop_it_and_is_planned(go, base, quick, name, kw):
    assert go('run', name, steps=2, **kw).done and plan(base, quick(method=name, **kw), 'cpu').step>0

@pytest.mark.parametrize('name', PAPERS[:3])
def test_a_word_has_rows_in_both_text_encoders_of_sdxl(quick, family_base, tmp_path, name):
    run = train(quick(method=name), tmp_path/'run', base=family_base('sdxl'), progress=False, device='cpu')
    assert {k.split('.')[0] for k in load_file(run.weights) if k.endswith('rows')}=={'text_encoder','text_encoder_2'}

# other programs

def of_folder(quick, family_folder, tmp_path, name, **kw):
    r = quick(method=name, base=str(family_folder('sd1')), resolution=64, **kw)
    return disturbed(train(r, tmp_path/'run', progress=False, device='cpu'))

def pipe_of(folder):
    pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe

def theirs(pipe, prompt, negative, guidance=5.):
    return np.asarray(pipe(prompt, negative_prompt=negative, num_inference_steps=2, guidance_scale=guidance, height=64, width=64,
                           generator=torch.Generator().manual_seed(3)).images[0], int)

def ours(run, guidance=5.): return np.asarray(sample(run, 'a dog', 3, 2, guidance, size=64, device='cpu')[0], int)

def test_dreamartists_two_files_draw_in_diffusers_what_the_run_draws(quick, family_folder, tmp_path):
    run = of_folder(quick, family_folder, tmp_path, 'dreamartist')
    file = Path(export(run, tmp_path/'out', 'embedding', pictures=False))
    pipe = pipe_of(family_folder('sd1'))
    pipe.load_textual_inversion(str(file), token='zwx')
    pipe.load_textual_inversion(str(file.parent/'not-zwx.safetensors'), token='not-zwx')
    got = theirs(pipe, 'a photo of zwx style, a dog', 'a photo of not-zwx style, a dog')
    assert abs(got-ours(run)).max()<=2
    card = (file.parent/'README.md').read_text()
    assert 'token="not-zwx"' in card and 'negative_prompt="a photo of not-zwx style, woman farmer"' in card

@pytest.mark.parametrize('name', ['custom_diffusion','dreamartist'])
def test_a_merged_folder_draws_in_diffusers_what_the_run_draws(quick, family_folder, tmp_path, name):
    run = of_folder(quick, family_folder, tmp_path, name)
    export(run, tmp_path/'out', 'diffusers', pictures=False)
    m = run.method
    away = m.spell(m.negative(m.phrase('a dog'))) or None
    assert abs(theirs(pipe_of(tmp_path/'out'), m.spell(m.phrase('a dog')), away)-ours(run)).max()<=2
    assert m.spell(m.phrase('…')) in (tmp_path/'out'/'README.md').read_text()

@pytest.mark.parametrize('name', ['dreamstyler','styledrop'])
def test_what_other_programs_cannot_hold_is_refused_in_a_sentence(go, tmp_path, refused, name):
    run = go('run', name, steps=1)
    for to in ('diffusers','single-file','embedding'):
        with refused(name, f'{to} has no place'): export(run, tmp_path/'out', to)

# Custom Diffusion

def test_a_smaller_pictures_border_teaches_nothing(base):
    m = make_method('custom_diffusion')
    b, (small, *_) = attached(base, m), sizes_of(View())
    g = torch.Generator().manual_seed(0)
    xt, y, mask = torch.randn(1,8,16,16, generator=g), torch.randn(1,8,16,16, generator=g), small.mask(16, 16)[None]
    def loss(y): return m.losses(b, Batch(xt, torch.tensor([300]), y, [m.spell('a photo of zwx style')], [1], Condition(mask=mask, frame=torch.zeros(1,6))))
    with torch.no_grad():
        one, other = loss(y), loss(torch.where(mask>0, y, y+9))
        pred = b.net(xt, torch.tensor([300]), b.reader([m.spell('a photo of zwx style')]))
        want = ((pred-y)**2*mask).sum()/(8*mask.sum())
    assert torch.equal(one, other) and torch.allclose(one, want, rtol=1e-4)

def test_pictures_of_a_prior_are_shown_as_they_are_and_those_of_the_style_in_six_sizes(quick, base):
    r = settled(quick(method='custom_diffusion'), base)
    batches = Batches(base, r, 0, 'cpu')
    assert [{len(v) for v in pictures} for pictures in batches.kept]==[{6}, {1}]
    assert any(t.startswith('very small') for t in batches.texts) and 'a photo of style' in batches.texts
    assert all(k.told['mask'].shape==(1,1,16,16) for k in batches.views())

def test_nothing_is_learnt_through_the_first_token(base):
    b = attached(base, make_method('custom_diffusion'))
    layer, c = prompt_layers(b.net.unet)[0], torch.randn(1,5,192)
    layer(c).square().sum().backward()
    got = layer.weight.grad.clone()
    layer.weight.grad = None
    torch.nn.functional.linear(c[:,1:], layer.weight).square().sum().backward()
    assert torch.allclose(got, layer.weight.grad, rtol=1e-4, atol=1e-5)

# StyleDrop

def test_a_method_that_asks_in_words_of_its_own_is_trained_on_them(ref, aux):
    assert no_prior(ref, method='styledrop').bindings[0].prompt=='{caption} in zwx style'
    assert [b.prompt for b in styleboost(ref, aux, method='styledrop').bindings]==['{caption} in zwx style', 'a photo of style']
    assert no_prior(ref, preset='paper', method='styledrop').bindings[0].prompt=='zwx style'
