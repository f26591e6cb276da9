"Pictures by prompt and seed: the same alone, in a batch, and through diffusers' own pipeline."
from dataclasses import replace
from pathlib import Path

import diffusers, numpy as np, pytest, torch

from styleboost.base import Base
from styleboost.sampling import SCHEDULERS, sample, scheduler_for

PROMPTS = ['a woman', 'a dog on a hill', 'a']

def gap(a, b): return np.abs(np.asarray(a, int)-np.asarray(b, int)).max()

@pytest.fixture
def asked(monkeypatch):
    "The prompts that a model is really asked for."
    seen = []
    monkeypatch.setattr(Base, 'condition', lambda self, prompts, *a, real=Base.condition: seen.append(list(prompts)) or real(self, prompts, *a))
    return seen

def test_pictures_depend_on_prompt_and_seed(lively):
    same, prompt, seed = (sample(lively, p, [s], steps=3)[0] for p,s in (('a woman',1), ('a dog',1), ('a woman',2)))
    assert gap(same, prompt)>2 and gap(same, seed)>2

@pytest.mark.parametrize('scheduler', ['ddim', 'euler_a'])
def test_a_picture_is_the_same_alone_and_in_a_batch(lively, scheduler):
    kw = dict(steps=3, scheduler=scheduler)
    together = sample(lively, PROMPTS, [5,3,9], **kw)
    assert all(gap(a, sample(lively, p, [s], **kw)[0])<=2 for a,p,s in zip(together, PROMPTS, [5,3,9]))
    assert all(gap(a, b)<=2 for a,b in zip(together, sample(lively, PROMPTS, [5,3,9], batch=2, **kw)))

@pytest.mark.parametrize('scheduler, guidance', [('ddim',7.), ('euler',3.), ('dpmpp',7.), ('euler_a',1.)])
def test_a_picture_is_the_one_that_diffusers_draws(lively, scheduler, guidance):
    pipe = diffusers.StableDiffusionPipeline(lively.vae, lively.text_encoder, lively.tokenizer, lively.unet, scheduler_for(lively, scheduler), None, None, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(PROMPTS, negative_prompt=['blue']*3, num_inference_steps=4, guidance_scale=guidance, generator=[torch.Generator().manual_seed(s) for s in (4,5,6)]).images
    ours = sample(lively, PROMPTS, 4, 4, guidance, scheduler, 'blue')
    assert all(gap(a, b)<=2 for a,b in zip(ours, theirs))

@pytest.mark.parametrize('scheduler', [*SCHEDULERS, 'DEISMultistepScheduler'])
@pytest.mark.parametrize('steps', [2, 5])
def test_every_scheduler_on_offer_draws(lively, scheduler, steps):
    assert sample(lively, 'a dog', steps=steps, scheduler=scheduler)[0].size==(lively.resolution,)*2

@pytest.mark.parametrize('name', ['nonsense', 'UNet2DConditionModel', ''])
def test_what_is_no_scheduler_is_refused(base, refused, name):
    with refused(repr(name), 'ddim'): sample(base, 'a', scheduler=name)

def test_a_tuned_model_is_asked_in_its_own_words(base, asked):
    sample(replace(base, token='zwx'), ['a dog'], steps=1, guidance=1)
    assert asked==[['a photo of zwx style, a dog']]

def test_raw_prompts_are_taken_literally(base, asked):
    sample(replace(base, token='zwx'), ['a dog'], steps=1, guidance=1, raw=True)
    assert asked==[['a dog']]

def test_an_untouched_base_is_asked_as_it_is(base, asked):
    sample(base, ['a dog'], steps=1, guidance=1)
    assert asked==[['a dog']]

def test_a_prompt_that_is_too_long_is_said_with_its_beginning(base, said):
    sample(base, ['a dog', 'a long and winding road '*20], steps=1)
    assert len(said())==1 and 'a long and winding road' in said()[0] and str(base.tokenizer.model_max_length) in said()[0]

def test_the_callers_random_numbers_are_left_alone(base):
    torch.manual_seed(0); want = torch.rand(3)
    torch.manual_seed(0); sample(base, 'a', steps=2, scheduler='euler_a')
    assert torch.equal(torch.rand(3), want)

@pytest.mark.parametrize('of', [str, Path])
def test_a_base_is_opened_from_its_folder(base, of): assert gap(sample(of(base.folder), 'a', steps=1)[0], sample(base, 'a', steps=1)[0])==0

def test_too_few_seeds_are_refused(base, refused):
    with refused('2 prompts', '1 seeds'): sample(base, ['a','b'], [1])

def test_a_size_between_the_autoencoders_steps_is_refused(base, refused):
    with refused('62', base.downscale): sample(base, 'a', size=62)

def test_another_size_is_drawn(base): assert sample(base, 'a', steps=1, size=48)[0].size==(48,48)

@pytest.mark.parametrize('steps', [0, -1])
def test_no_steps_are_refused(base, refused, steps):
    with refused('steps'): sample(base, 'a', steps=steps)

def test_what_is_no_base_is_refused(refused, tmp_path):
    with refused(tmp_path): sample(str(tmp_path), 'a')
