"What version 0.1 wrote is read as it was meant: a run opens, draws and goes on, and so does a study."
import json

import pytest, torch
from safetensors.torch import load_file

from styleboost.bases.sampling import sample
from styleboost.methods.load import make_method
from styleboost.pictures.images import ImageSet
from styleboost.pictures.prompts import Prompt
from styleboost.studies.results import Results
from styleboost.studies.study import Study
from styleboost.studies.style import Style
from styleboost.training.loop import train
from styleboost.training.recipes import Recipe, recipe_of, upgraded
from styleboost.training.runs import Run

# a recipe's fields in version 0.1, in its order: every method's settings lay beside it
FIELDS = '''name base token background_token method text_encoder rank alpha targets steps batch lr lr_schedule warmup weight_decay
    grad_clip min_snr resolution crops flip pad pairing buckets precision weights attention checkpointing optimizer fused_backward
    accumulate checkpoint steps_sampled guidance scheduler bindings'''.split()
NEW = dict.fromkeys(('log_snr','log_snr_std','anchor','ema'))      # which it did not know
KINDS = dict(full=dict(method='full', text_encoder=False), lora=dict(method='lora', rank=4, alpha=2., targets='all'), oft=dict(method='oft', rank=4))

def flat(d):
    "A recipe's data as version 0.1 wrote it."
    old = dict(dict(text_encoder=True, rank=16, alpha=None, targets='attention'), **d['method'])
    d = dict(d, method=old.pop('name'), **old)
    assert {*d}=={*FIELDS, *NEW}
    return {k:d[k] for k in FIELDS}

def age(folder):
    "Makes a run what version 0.1 would have written."
    f = folder/'recipe.json'
    info = json.loads(f.read_text())
    f.write_text(json.dumps(dict(info, recipe=flat(info['recipe']))))
    return folder

@pytest.fixture
def go(base, quick, tmp_path):
    def go(name, kind, **kw):
        return train(quick(steps=4, checkpoint=2, **KINDS[kind]), tmp_path/name, base=base, progress=False, every=1, device='cpu', **kw)
    return go

def equal(a, b):
    a, b = load_file(a.weights), load_file(b.weights)
    return a.keys()==b.keys() and all(torch.equal(a[k], b[k]) for k in a)

# runs

@pytest.mark.parametrize('kind', KINDS)
def test_a_run_opens_and_draws(go, kind):
    run = go('run', kind)
    old = Run(age(run.folder))
    assert '"rank"' in (old.folder/'recipe.json').read_text() and old.recipe==run.recipe and old.method==run.method
    assert old.words=='zwx' and old.phrase('a dog')=='a photo of zwx style, a dog'
    assert sample(old, 'a dog', steps=2)[0].tobytes()==sample(run, 'a dog', steps=2)[0].tobytes()

@pytest.mark.parametrize('kind', KINDS)
def test_a_run_goes_on(go, kind):
    whole = go('whole', kind)
    half = go('half', kind, watch=lambda line: line['step']==2)
    age(half.folder)
    assert equal(go('half', kind, resume=True), whole)

def test_another_recipe_is_refused_as_ever(go, quick, base, refused):
    half = go('half', 'lora', watch=lambda line: line['step']==2)
    age(half.folder)
    with refused('method.rank was 4 and is 8'): train(quick(steps=4, checkpoint=2, method='lora', rank=8), half.folder, base=base, resume=True, progress=False, device='cpu')

def test_a_run_that_went_on_with_other_levers_still_does(go, quick, base):
    half = go('half', 'oft', watch=lambda line: line['step']==2)
    info = json.loads((age(half.folder)/'recipe.json').read_text())
    (half.folder/'recipe.json').write_text(json.dumps(dict(info, resumed=[dict(attention='xformers')])))
    run = go('half', 'oft', resume=True)
    assert run.done and run.info['resumed'][0]==dict(attention='xformers')

# recipes

OLD = ('full','lora','dora','rslora','loha','lokr','hira','oft','boft','hra','miss','gralora')

@pytest.mark.parametrize('name', OLD)
def test_every_method_of_version_0_1_is_read(name):
    given = dict(text_encoder=False, **({} if name=='full' else dict(rank=4)))
    r = Recipe('r', (), method=make_method(name, **given))
    old = flat(r.to_dict())
    assert old['method']==name and upgraded(old)|NEW==r.to_dict() and recipe_of(old)==r

def test_todays_data_are_left_alone():
    d = Recipe('r', (), method='textual_inversion').to_dict()
    assert upgraded(d) is d and recipe_of(d).to_dict()==d

# studies

def test_a_study_opens_and_goes_on(base, quick, ref, picture, tmp_path):
    asked = [Prompt(f'{w} {k}', k=='woman') for k in ('woman','dog') for w in ('red','old')]
    real = ImageSet([picture(f'real{i}', people=i%2==0) for i in range(10)], 'real')
    style = Style('mine', ref, real, [Prompt(f'{p.text} to choose by', p.people) for p in asked], asked)
    make = lambda out, seeds: Study(style, dict(lora=quick(method='lora', rank=2)), out, seeds=seeds, steps=(1,2), base=base, sampler=1, device='cpu')
    whole = make(tmp_path/'whole', (0,1)).run(progress=False)
    make(tmp_path/'old', (0,)).run(progress=False)
    f = tmp_path/'old'/'study.json'
    info = json.loads(f.read_text())
    f.write_text(json.dumps(dict(info, arms={k:flat(r) for k,r in info['arms'].items()})))
    run = age(Results(tmp_path/'old').run_folder('lora', 0))
    assert Results(tmp_path/'old').info['arms']['lora']['method']['name']=='lora' and Run(run).method.rank==2
    before = (run/'weights'/'tuned.safetensors').stat().st_mtime_ns
    more = make(tmp_path/'old', (0,1)).run(progress=False)
    assert len(more.done)==2 and not more.failed and (run/'weights'/'tuned.safetensors').stat().st_mtime_ns==before
    order = ['arm','seed','split','step','group','metric']
    assert more.chosen==whole.chosen
    told = lambda t: t[(t.split!='test')|t.step.isin([0, whole.chosen['lora']])]           # one seed may have chosen another step
    a, b = (told(s.table()).sort_values(order).reset_index(drop=True) for s in (more, whole))
    assert a.equals(b)
