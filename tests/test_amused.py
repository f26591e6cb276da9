"aMUSEd from end to end: a folder that diffusers wrote, trained by LoRA, stopped and resumed, drawn, exported and planned."
import json, re, shutil, sys, types

import numpy as np, pytest, torch
from safetensors.torch import load_file

from styleboost.bases.amused import have_amused
from styleboost.bases.load import blank, load_base
from styleboost.bases.sampling import sample
from styleboost.exporting.export import export
from styleboost.methods.load import make_method
from styleboost.methods.method import attached
from styleboost.training.levers import checkpoint_activations
from styleboost.training.loop import train
from styleboost.training.plan import plan
from styleboost.training.recipes import Generated
from styleboost.training.runs import Run

PROMPT = 'a photo of zwx style, a dog'
PROMPTS, SEEDS = ['a woman', 'a dog on a hill', 'a'], [5,3,9]
needs_amused = pytest.mark.skipif(not have_amused(), reason='This diffusers no longer has the classes of aMUSEd.')

def gap(a, b): return np.abs(np.asarray(a, int)-np.asarray(b, int)).max()

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "A small base with random weights, as diffusers saves it; no test may change it."
    b, g = blank('amused', seed=1), torch.Generator().manual_seed(0)
    for p in (p for m in b.modules.values() for p in m.parameters()):
        p.data += .5*p.data.std().nan_to_num(0)*torch.randn(p.shape, generator=g)
    at = tmp_path_factory.mktemp('amused')/'base'
    b.pipeline().save_pretrained(at)
    return at

@pytest.fixture(scope='module')
def small(folder):
    "That base, loaded once; no test may change it."
    return load_base(folder)

@pytest.fixture(scope='module')
def recipe(quick, folder):
    "Makes a recipe for it that leaves its mark in three steps."
    def make(prior=None, method='lora', **kw):
        rank = dict(rank=4) if method=='lora' else {}
        settings = dict(method=method, base=str(folder), steps=3, batch=2, lr=1e-2, steps_sampled=3, **rank)
        return quick(prior, **(settings | kw))
    return make

@pytest.fixture(scope='module')
def runs(small, recipe, tmp_path_factory):
    "Makes one run of each kind."
    made = {}
    def make(**kw):
        key = tuple(kw.items())
        if key not in made:
            made[key] = train(recipe(**kw), tmp_path_factory.mktemp('run')/'style', base=small, device='cpu', progress=False)
        return made[key]
    return make

def theirs(pipe, prompt, seed, steps=3, **kw):
    "One picture of diffusers' own pipeline, which has one generator for all of a batch."
    pipe.set_progress_bar_config(disable=True)
    g = torch.Generator().manual_seed(seed)
    return pipe(prompt, num_inference_steps=steps, guidance_scale=7., generator=g, **kw).images[0]

def pipeline(folder):
    from diffusers import AmusedPipeline
    return AmusedPipeline.from_pretrained(folder)

# the base

@needs_amused
def test_a_base_comes_back_from_its_folder(folder):
    made, b = pipeline(folder), load_base(folder)
    assert (b.family.name, b.resolution, b.codec.downscale, b.grid)==('amused', 16, 2, 4) and len(b.hash)==16
    assert list(b.modules)==['transformer','text_encoder','vqvae']
    for k,m in b.modules.items():
        assert all(torch.equal(x, y) for x,y in zip(m.state_dict().values(), getattr(made, k).state_dict().values(), strict=True))
    assert not any(p.requires_grad or m.training for m in b.modules.values() for p in m.parameters())

@needs_amused
@pytest.mark.parametrize('kw', [{}, dict(negative='blue'), dict(size=(24,32))], ids=str)
def test_a_picture_is_the_one_that_diffusers_draws(folder, small, kw):
    more = dict(negative_prompt=kw.get('negative'))
    if 'size' in kw: more |= dict(zip(('height','width'), kw['size']))
    pipe = pipeline(folder)
    for p,s in zip(PROMPTS, SEEDS): assert gap(theirs(pipe, p, s, **more), sample(small, p, [s], steps=3, **kw)[0])<=2

@needs_amused
def test_a_picture_is_the_same_alone_and_in_any_batch(small):
    together = sample(small, PROMPTS, SEEDS, steps=4)
    assert all(gap(a, sample(small, p, [s], steps=4)[0])<=2 for a,p,s in zip(together, PROMPTS, SEEDS))
    assert all(gap(a, b)<=2 for a,b in zip(together, sample(small, PROMPTS, SEEDS, steps=4, batch=2)))
    prompt, seed = (sample(small, p, [s], steps=4)[0] for p,s in (('a dog',5), ('a woman',6)))
    assert gap(together[0], prompt)>2 and gap(together[0], seed)>2

@needs_amused
def test_another_sampler_is_refused(small, refused):
    with refused('AmusedScheduler', 'tokens'): sample(small, 'a', scheduler='euler')

@needs_amused
def test_a_folder_without_a_part_is_refused(folder, refused, tmp_path):
    own = shutil.copytree(folder, tmp_path/'own')
    index = json.loads((own/'model_index.json').read_text())
    (own/'model_index.json').write_text(json.dumps({k:v for k,v in index.items() if k!='vqvae'}))
    with refused('vqvae', own): load_base(own)

def test_a_diffusers_without_the_classes_is_said(monkeypatch, refused):
    monkeypatch.setitem(sys.modules, 'diffusers', types.ModuleType('diffusers'))
    assert not have_amused()
    with refused('aMUSEd', 'diffusers 0.42'): blank('amused')

# training

@needs_amused
@pytest.mark.parametrize('prior', ['none', 'aux', 'generated'])
def test_lora_learns_with_any_prior(small, recipe, aux, tmp_path, prior):
    shown = dict(none=None, aux=aux, generated=Generated('a photo of style', 2, steps=2))[prior]
    run = train(recipe(shown), tmp_path/'run', base=small, device='cpu', progress=False, every=1, cache=tmp_path/'cache')
    names = ['style','prior'][:1+(prior!='none')]
    assert run.done and [l['step'] for l in run.log]==[1,2,3] and [*run.log[0]]==['step','seconds',*names]
    assert {k.split('.')[0] for k in load_file(run.weights)}=={'transformer','text_encoder'}
    assert all(v.isfinite().all() for v in load_file(run.weights).values())
    assert gap(*(sample(m, PROMPT, 3, steps=3, raw=True)[0] for m in (run, small)))>2

@needs_amused
@pytest.mark.parametrize('method', ['full', 'dora', 'textual_inversion'])
def test_other_methods_learn_too(small, runs, method):
    run = runs(method=method)
    assert run.done and gap(*(sample(m, PROMPT, 3, steps=3)[0] for m in (run, small)))>2

@needs_amused
def test_resumed_is_uninterrupted_and_the_seed_matters(small, recipe, aux, tmp_path):
    def go(name, seed=0, **kw):
        return train(recipe(aux, checkpoint=1), tmp_path/name, seed, small, device='cpu', progress=False, every=1, **kw)
    go('halves', watch=lambda line: line['step']==2)
    assert not Run(tmp_path/'halves').done
    whole, halves, other = (load_file(r.weights) for r in (go('whole'), go('halves', resume=True), go('other', 1)))
    assert whole.keys()==halves.keys() and all(torch.equal(whole[k], halves[k]) for k in whole)
    assert any(not torch.equal(whole[k], other[k]) for k in whole)

@needs_amused
def test_without_the_text_encoder_it_is_left_alone(runs, small):
    run = runs(text_encoder=False)
    assert {k.split('.')[0] for k in load_file(run.weights)}=={'transformer'}
    tuned = run.model()
    assert torch.equal(tuned.reader(PROMPTS)['pooled'], small.reader(PROMPTS)['pooled'])
    assert gap(*(sample(m, PROMPT, 3, steps=3, raw=True)[0] for m in (run, small)))>2

@needs_amused
@pytest.mark.parametrize('lever', [dict(checkpointing=True), dict(accumulate=2), dict(precision='bf16')], ids=str)
def test_a_lever_learns_nearly_the_same(runs, lever):
    plain, less = (load_file(runs(**kw).weights) for kw in ({}, lever))
    ends = [torch.cat([v.flatten() for k,v in d.items() if 'lora_B' in k]) for d in (plain, less)]   # they start at nought
    assert ends[0].abs().max()>1e-3 and torch.cosine_similarity(*ends, dim=0)>(.7 if 'precision' in lever else .99)

@needs_amused
def test_checkpointing_computes_each_layer_again(small):
    "The switch of diffusers' own transformer fails."
    b, seen = attached(small, make_method('lora')), []
    checkpoint_activations(b.method.through(b))
    layer = b.modules['transformer'].transformer_layers[0]
    layer.attn1.register_forward_pre_hook(lambda *a: seen.append(torch.is_grad_enabled()))
    pred = b.net(torch.zeros(1,8,8, dtype=torch.long), torch.zeros(1), b.reader(['a dog']))
    assert len(seen)==1
    pred.sum().backward()
    assert len(seen)==2 and all(p.grad is not None for k,p in layer.named_parameters() if p.requires_grad)

@needs_amused
def test_min_snr_is_refused(small, recipe, folder, tmp_path, refused):
    with refused('min_snr', 'tokens', small.name): train(recipe(min_snr=5.), tmp_path/'run', base=small, device='cpu', progress=False)
    assert not (tmp_path/'run').exists()
    with refused('min_snr', 'tokens'): plan(small, recipe(min_snr=5.), 'cpu')

# exports

@needs_amused
def test_as_a_folder_it_draws_in_diffusers_what_the_run_draws(runs, tmp_path):
    at = export(runs(), tmp_path/'out', pictures=False)
    ours = sample(runs(), PROMPT, 3, steps=3, raw=True)[0]
    assert gap(theirs(pipeline(at), PROMPT, 3), ours)<=2 and gap(sample(load_base(at), PROMPT, 3, steps=3)[0], ours)<=2

@needs_amused
@pytest.mark.parametrize('to', ['diffusers', 'lora'])
@pytest.mark.parametrize('kw', [{}, dict(text_encoder=False), dict(alpha=16.)], ids=str)
def test_the_lines_of_the_card_draw_what_the_run_draws(runs, small, folder, tmp_path, monkeypatch, to, kw):
    "diffusers' AmusedPipeline has no load_lora_weights; its loader is asked instead."
    run = runs(**kw)
    export(run, tmp_path/'out', to, pictures=False)
    card = (tmp_path/'out'/'README.md').read_text('utf-8')
    code = re.search(r'```python\n(.*?)```', card, re.S)[1].replace('path/to/base', str(folder))
    monkeypatch.chdir(tmp_path)
    out = {}
    exec(code, out)
    ours, before = (sample(m, run.phrase('woman farmer'), 0, steps=3, raw=True)[0] for m in (run, small))
    assert gap(out['image'], ours)<=2 and gap(ours, before)>2 and '"amused"' in card and 'stable-diffusion' not in card

@needs_amused
@pytest.mark.parametrize('to', ['kohya', 'single-file', 'embedding'])
def test_layouts_that_nobody_would_read_are_refused(runs, tmp_path, refused, to):
    with refused(to, 'aMUSEd', 'diffusers'): export(runs(), tmp_path/'out', to)
    assert not any(tmp_path.iterdir())

# the plan

@needs_amused
def test_a_plan_is_made_of_a_folder_and_of_a_base(small, recipe, folder, aux):
    r = recipe(aux)
    both, one = plan(str(folder), r, 'cpu'), plan(small, recipe(aux, text_encoder=False), 'cpu')
    again = plan(small, r, 'cpu')
    size = {k:4*sum(p.numel() for p in m.parameters()) for k,m in small.modules.items()}
    assert (both.step, both.weights, both.moments, both.before)==(again.step, again.weights, again.moments, again.before)
    assert one.weights>size['transformer'] and both.weights>one.weights+size['text_encoder']
    assert both.step>both.weights+both.moments and both.before>size['vqvae']

@needs_amused
def test_a_budget_is_met(small, recipe, aux):
    r = recipe(aux, method='full', batch=8)
    plain = plan(small, r, 'cpu')
    assert plain.step==plain.peak
    less = plan(small, r, 'cpu', f'{plain.peak*.95/1e9}GB')
    assert less.peak<=.95*plain.peak and less.levers
