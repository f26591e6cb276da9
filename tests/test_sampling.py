"Pictures by prompt and seed: the same alone, in a batch, and through diffusers' own pipeline."
from dataclasses import replace
from pathlib import Path

import diffusers, numpy as np, pytest, torch

from styleboost.bases.load import load_base
from styleboost.bases.processes import SAMPLERS
from styleboost.bases.sampling import sample
from styleboost.bases.stable_diffusion import STABLE, Clip
from styleboost.methods.method import Full

PROMPTS = ['a woman', 'a dog on a hill', 'a']

def gap(a, b): return np.abs(np.asarray(a, int)-np.asarray(b, int)).max()

@pytest.fixture
def asked(monkeypatch):
    "The prompts that a model is really asked for."
    seen = []
    monkeypatch.setattr(Clip, '__call__', lambda self, texts, real=Clip.__call__: seen.append(list(texts)) or real(self, texts))
    return seen

def test_a_negative_prompt_that_is_not_read_is_said(lively, said):
    sample(lively, 'a dog', 1, steps=1, guidance=1., negative='blue')
    assert any('negative prompt is not read' in m for m in said())
    sample(lively, 'a dog', 1, steps=1, negative='blue '*200)
    assert any('text encoder reads' in m for m in said())

def test_a_scheduler_without_its_library_is_a_sentence(lively, refused, monkeypatch):
    class Lacking(type):
        def __getattr__(cls, name): raise ImportError('LMSDiscreteScheduler requires the scipy library but it was not found')
    monkeypatch.setattr(diffusers, 'LMSDiscreteScheduler', Lacking('LMSDiscreteScheduler', (), {}))
    with refused('needs a library', 'scipy'): sample(lively, 'a dog', 1, steps=1, scheduler='LMSDiscreteScheduler')

def test_pictures_depend_on_prompt_and_seed(lively):
    same, prompt, seed = (sample(lively, p, [s], steps=3)[0] for p,s in (('a woman',1), ('a dog',1), ('a woman',2)))
    assert gap(same, prompt)>2 and gap(same, seed)>2

@pytest.mark.parametrize('scheduler', ['ddim', 'euler_a'])
def test_a_picture_is_the_same_alone_and_in_a_batch(lively, scheduler):
    kw = dict(steps=3, scheduler=scheduler)
    together = sample(lively, PROMPTS, [5,3,9], **kw)
    assert all(gap(a, sample(lively, p, [s], **kw)[0])<=2 for a,p,s in zip(together, PROMPTS, [5,3,9]))
    assert all(gap(a, b)<=2 for a,b in zip(together, sample(lively, PROMPTS, [5,3,9], batch=2, **kw)))

def pipeline(folder, scheduler):
    "Diffusers' own pipeline, with none of our code between the folder and the picture."
    cls = diffusers.StableDiffusionXLPipeline if (folder/'tokenizer_2').exists() else diffusers.StableDiffusionPipeline
    pipe = cls.from_pretrained(folder)
    pipe.scheduler = getattr(diffusers, SAMPLERS.get(scheduler, scheduler)).from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe

def both(folder, scheduler, guidance=7., negative=None, size=None, **theirs):
    """Their pictures and ours, of the same prompts and seeds. In double precision: a processor rounds by where weights lie
    in memory, and steps make pixels of it."""
    frame, base, pipe = theirs.pop('frame', None), load_base(folder), pipeline(folder, scheduler).to(torch.float64)
    for m in base.modules.values(): m.double()
    h, w = size or (None,None)
    gens = [torch.Generator().manual_seed(s) for s in (4,5,6)]
    noise = torch.stack([base.process.start(base.codec.shape(size or 2*(base.resolution,)), g) for g in gens]).double()
    a = pipe(PROMPTS, negative_prompt=None if negative is None else [negative]*3, num_inference_steps=4, guidance_scale=guidance, height=h, width=w, generator=gens, latents=noise, **theirs).images
    return a, sample(base, PROMPTS, 4, 4, guidance, scheduler, negative, size=size, frame=frame)

@pytest.mark.parametrize('scheduler, guidance', [('ddim',7.), ('euler',3.), ('dpmpp',7.), ('euler_a',1.)])
def test_a_picture_is_the_one_that_diffusers_draws(base, scheduler, guidance):
    assert all(gap(a, b)<=2 for a,b in zip(*both(base.folder, scheduler, guidance, 'blue')))

@pytest.mark.parametrize('scheduler', ['ddim','euler','euler_a','dpmpp','heun','unipc','PNDMScheduler'])
@pytest.mark.parametrize('family', STABLE)
def test_each_family_draws_what_diffusers_draws(family, scheduler, family_folder):
    assert all(gap(a, b)<=2 for a,b in zip(*both(family_folder(family), scheduler)))

@pytest.mark.parametrize('scheduler', ['ddim','euler','dpmpp'])
@pytest.mark.parametrize('family', ['sd2','sdxl'])
def test_settings_of_the_noise_are_kept(family, scheduler, family_folder, said):
    folder = family_folder(family, prediction_type='v_prediction', rescale_betas_zero_snr=True, timestep_spacing='trailing', beta_end=.02)
    theirs, ours = both(folder, scheduler)
    assert all(gap(a, b)<=2 for a,b in zip(theirs, ours)) and said()==[]
    assert max(gap(a, b) for a,b in zip(ours, sample(load_base(family_folder(family)), PROMPTS, 4, 4, scheduler=scheduler)))>2

def zeroed(b, zeros):
    "A base to which no prompt means zeros, or the empty text."
    return replace(b, reader=replace(b.reader, zeros=zeros))

@pytest.mark.parametrize('negative', [None, '', 'blue'])
@pytest.mark.parametrize('zeros', [True, False])
def test_no_negative_prompt_is_what_the_base_was_trained_with(zeros, negative, family_base, tmp_path):
    zeroed(family_base('sdxl'), zeros).pipeline().save_pretrained(tmp_path)
    theirs, ours = both(tmp_path, 'ddim', negative=negative)
    assert all(gap(a, b)<=2 for a,b in zip(theirs, ours))

def test_zeros_and_the_empty_prompt_are_told_apart(family_base):
    b = family_base('sdxl')
    none, empty = (sample(b, 'a dog', steps=3, negative=n)[0] for n in (None,''))
    assert gap(none, empty)>2 and gap(empty, sample(zeroed(b, False), 'a dog', steps=3)[0])==0

def test_a_frame_is_told_as_diffusers_tells_it(family_folder):
    folder, frame = family_folder('sdxl'), (512,768,0,32,64,128)
    theirs, ours = both(folder, 'ddim', size=(64,128), frame=frame, original_size=frame[:2], crops_coords_top_left=frame[2:4], target_size=frame[4:])
    assert all(gap(a, b)<=2 for a,b in zip(theirs, ours)) and ours[0].size==(128,64)
    assert max(gap(a, b) for a,b in zip(ours, both(folder, 'ddim', size=(64,128))[1]))>2

def test_a_frame_for_a_base_without_frames_is_refused(base, refused):
    with refused('SDXL', 'frame'): sample(base, 'a', frame=(64,64,0,0,64,64))

def test_a_sampler_that_does_not_know_a_setting_is_named(family_base, said):
    family_base('sd2', rescale_betas_zero_snr=True).process.scheduler('heun')
    assert len(said())==1 and 'rescale_betas_zero_snr' in said()[0] and 'Heun' in said()[0]

def test_a_sampler_whose_library_is_missing_is_refused(base, refused, monkeypatch):
    class Absent:
        set_timesteps = True
        @classmethod
        def from_config(cls, c): raise ImportError('AbsentScheduler requires the scipy library but it was not found in your environment.')
    monkeypatch.setattr(diffusers, 'AbsentScheduler', Absent, raising=False)
    with refused('AbsentScheduler', 'scipy'): base.process.scheduler('AbsentScheduler')

@pytest.mark.parametrize('guidance', [0., 1.])
def test_guidance_of_one_or_less_asks_once(base, asked, guidance):
    sample(base, ['a dog'], steps=1, guidance=guidance)
    assert asked==[['a dog']]

@pytest.mark.parametrize('scheduler', [*SAMPLERS, 'DEISMultistepScheduler'])
@pytest.mark.parametrize('steps', [2, 5])
def test_every_scheduler_on_offer_draws(lively, scheduler, steps):
    assert sample(lively, 'a dog', steps=steps, scheduler=scheduler)[0].size==(lively.resolution,)*2

@pytest.mark.parametrize('name', ['nonsense', 'UNet2DConditionModel', ''])
def test_what_is_no_scheduler_is_refused(base, refused, name):
    with refused(repr(name), 'ddim'): sample(base, 'a', scheduler=name)

def test_a_tuned_model_is_asked_in_its_own_words(base, asked):
    sample(replace(base, method=Full(words=('zwx',))), ['a dog'], steps=1, guidance=1)
    assert asked==[['a photo of zwx style, a dog']]

def test_raw_prompts_are_taken_literally(base, asked):
    sample(replace(base, method=Full(words=('zwx',))), ['a dog'], steps=1, guidance=1, raw=True)
    assert asked==[['a dog']]

def test_the_styles_words_are_said_once(base, asked, said):
    "A prompt that holds them stays as it was typed; the word alone, or within another, is not them."
    tuned, typed = replace(base, method=Full(words=('zwx',))), 'a drawing in zwx style of a dog'
    sample(tuned, [typed, 'a zwx cat', 'azwx style'], steps=1, guidance=1)
    assert asked[0]==[typed, 'a photo of zwx style, a zwx cat', 'a photo of zwx style, azwx style']
    assert [m for m in said() if 'already' in m]==[f'The prompt "{typed}" asks for the style already, so nothing is put before it.']
    sample(tuned, typed, steps=1, raw=True)
    assert len([m for m in said() if 'already' in m])==1

@pytest.mark.parametrize('prompt, sign', [('a (red hair:1.2) cook', '(red hair:1.2)'), ('((red)) cook', '((red))'), ('a cook BREAK a dog', 'BREAK'), ('a cook <lora:ink:0.8>', '<lora:ink:0.8>'), ('a cook (brown), 16:9, a daily break', None)])
@pytest.mark.parametrize('where', ['prompt', 'negative'])
def test_signs_of_other_programs_are_read_to_the_letter_and_that_is_said(base, said, prompt, sign, where):
    sample(base, [prompt if where=='prompt' else 'a dog']*2, steps=1, negative=prompt if where=='negative' else None)
    told = [m for m in said() if 'to the letter' in m]
    assert len(told)==bool(sign) and all(repr(sign) in m for m in told)

def test_an_untouched_base_is_asked_as_it_is(base, asked):
    sample(base, ['a dog'], steps=1, guidance=1)
    assert asked==[['a dog']]

def test_a_prompt_that_is_too_long_is_said_with_its_beginning(base, said):
    sample(base, ['a dog', 'a long and winding road '*20], steps=1)
    assert len(said())==1 and 'a long and winding road' in said()[0] and str(base.reader.tokenizer.model_max_length) in said()[0]

def test_the_callers_random_numbers_are_left_alone(base):
    torch.manual_seed(0); want = torch.rand(3)
    torch.manual_seed(0); sample(base, 'a', steps=2, scheduler='euler_a')
    assert torch.equal(torch.rand(3), want)

@pytest.mark.parametrize('of', [str, Path])
def test_a_base_is_opened_from_its_folder(base, of): assert gap(sample(of(base.folder), 'a', steps=1)[0], sample(base, 'a', steps=1)[0])==0

def test_too_few_seeds_are_refused(base, refused):
    with refused('2 prompts', '1 seeds'): sample(base, ['a','b'], [1])

def test_a_size_between_the_autoencoders_steps_is_refused(base, refused):
    with refused('62', base.codec.downscale): sample(base, 'a', size=62)

def test_another_size_is_drawn(base): assert sample(base, 'a', steps=1, size=48)[0].size==(48,48) and sample(base, 'a', steps=1, size=(32,48))[0].size==(48,32)

@pytest.mark.parametrize('steps', [0, -1])
def test_no_steps_are_refused(base, refused, steps):
    with refused('steps'): sample(base, 'a', steps=steps)

def test_what_is_no_base_is_refused(refused, tmp_path):
    with refused(tmp_path): sample(str(tmp_path), 'a')
