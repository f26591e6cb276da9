"Strength: nothing at 0 and everything at 1, to the last bit, a straight line between, and a sentence where there is none."
import json
from dataclasses import replace

import numpy as np, pytest, torch
from safetensors.torch import load_file, save_file

from styleboost.bases.load import load_base
from styleboost.bases.sampling import sample
from styleboost.exporting.export import export
from styleboost.methods.adapters import ADAPTERS
from styleboost.methods.load import METHODS
from styleboost.methods.method import attached, state
from styleboost.methods.strength import STRONGEST
from styleboost.training.recipes import settled
from styleboost.training.runs import Run

NONE = ['dreamartist', 'inst_port']
STRONG = [m for m in METHODS if m not in (*NONE, 'svdiff')]     # which takes seconds to open and has a test of its own
WORDS = ['textual_inversion', 'custom_diffusion', 'dreamstyler', 'pivotal']
MERGEABLE = ['full', 'specialist_reconstruction', *(a.name for a in ADAPTERS), *(w for w in WORDS if w!='dreamstyler')]     # dreamstyler's stages cannot be folded in; a singular value of svdiff stops at nought, so it has no straight line

@pytest.fixture(scope='module')
def made(lively, quick, tmp_path_factory):
    "Makes a finished run of a method without training it: everything that it learnt is disturbed."
    runs = {}
    def make(name, **kw):
        if (name, *kw) not in runs:
            folder, recipe = tmp_path_factory.mktemp(name), settled(quick(method=name, **kw), lively)
            tuned, g = attached(lively, recipe.method), torch.Generator().manual_seed(1)
            tensors = {k: v+(.01 if name=='full' else .05)*torch.randn(v.shape, generator=g) for k,v in state(tuned).items()}
            (folder/'weights').mkdir()
            save_file(tensors, folder/'weights'/'tuned.safetensors')
            (folder/'recipe.json').write_text(json.dumps(dict(recipe=recipe.to_dict(), seed=0, base_hash=lively.hash, recipe_hash='', versions={})))
            runs[name, *kw] = folder
        return Run(runs[name, *kw])
    return make

def drawn(model, text='woman farmer', **kw): return sample(model, text, 3, 1, 1., device='cpu', **kw)[0].tobytes()

@pytest.mark.parametrize('name', STRONG)
def test_nought_is_the_base_and_one_is_the_run_to_the_last_bit(made, lively, picture, name):
    run = made(name)
    kw = dict(pictures=[picture('a').open()]) if name=='controlnet' else {}
    plain = drawn(lively, run.phrase('woman farmer'))
    at = {s: drawn(run.at(strength=s).model(base=lively), **kw) for s in (0., .5, 1.)}
    assert at[0.]==plain and at[1.]==drawn(run.model(base=lively), **kw) and len(set(at.values()))==3

@pytest.mark.parametrize('name', MERGEABLE)
def test_weights_lie_on_the_line_from_the_base_to_the_run(made, lively, name, strength=STRONGEST):
    run = made(name)
    def numbers(b): return {f'{k}.{n}': v for k,part in b.modules.items() for n,v in part.state_dict().items()}
    def folded(b): return numbers(b.method.merge(b))
    start = folded(attached(lively, run.method)) if name in WORDS else numbers(lively)     # which has no rows for a word
    end, there = folded(run.at().model(base=lively)), folded(run.at(strength=strength).model(base=lively))
    moved = [k for k in end if not torch.equal(start[k], end[k])]
    assert moved and there.keys()==end.keys()
    for k in end:
        want = start[k]+strength*(end[k]-start[k]) if end[k].is_floating_point() else end[k]
        torch.testing.assert_close(there[k], want, rtol=1e-4, atol=1e-5, msg=k)

@pytest.mark.parametrize('strength', [-.01, 1.51, float('nan'), float('inf'), True, '0.5', None])
def test_a_strength_outside_its_range_is_refused(made, refused, strength):
    with refused('The strength is', 'from 0', '1.5'): made('lora').at(strength=strength)

@pytest.mark.parametrize('name', NONE)
def test_a_method_that_has_none_says_so(made, lively, refused, name):
    run = made(name)
    for s in (0., .5):
        with refused(name, 'has no strength'): run.at(strength=s).model(base=lively)
    assert drawn(run.at().model(base=lively))==drawn(run.model(base=lively))

def test_a_word_goes_from_the_word_that_it_began_as(made, lively):
    run = made('textual_inversion')
    start, end = (state(b) for b in (attached(lively, run.method), run.at().model(base=lively)))
    now = state(run.at(strength=.5).model(base=lively))
    for k in end: torch.testing.assert_close(now[k], (start[k]+end[k])/2)

def test_shifts_of_singular_values_are_multiplied_as_in_the_paper(made, lively):
    run = made('svdiff')
    half, whole = (state(run.at(strength=s).model(base=lively)) for s in (.5, 1.))
    assert drawn(run.at(strength=0).model(base=lively))==drawn(lively, run.phrase('woman farmer'))
    for k in whole: torch.testing.assert_close(half[k], whole[k]/2)

def test_a_step_and_a_strength_go_together(made, lively, refused):
    run = made('lora')
    save_file({k: v*3 for k,v in load_file(run.weights).items()}, run.folder/'weights'/'step-000001.safetensors')
    early = run.at(1, .5)
    assert early.step==1 and early.strength==.5 and drawn(early.model(base=lively))!=drawn(run.at(strength=.5).model(base=lively))
    with refused('kept no weights of step 7'): run.at(7, .5)

# for other programs

@pytest.fixture
def opened(made, lively, monkeypatch):
    "Runs whose base is found by name."
    monkeypatch.setattr('styleboost.training.runs.load_base', lambda name, device='cpu': replace(lively.own(), shared=True))
    return made

@pytest.mark.parametrize('name', ['full','lora','dora'])
def test_a_folder_has_the_strength_baked_in(opened, lively, tmp_path, name):
    run = opened(name).at(strength=.5)
    theirs = load_base(export(run, tmp_path/'out'))
    ours, there = (np.asarray(sample(b, 'a photo of zwx style, dog', 3, 2, raw=True, device='cpu')[0], int) for b in (run, theirs))
    assert np.abs(ours-there).max()<=2
    card = (tmp_path/'out'/'README.md').read_text()
    assert 'drawn at a strength of 0.5, which is baked in' in card

@pytest.mark.parametrize('name, to', [('lora','lora'), ('lora','kohya'), ('loha','kohya'), ('lokr','kohya'), ('textual_inversion','embedding')])
def test_a_file_has_the_strength_baked_in(opened, tmp_path, name, to):
    run = opened(name)
    half, whole = (load_file(export(run.at(strength=s), tmp_path/f'{s}.safetensors', to, pictures=False)) for s in (.5, 1.))
    other = [k for k in whole if not torch.equal(half[k], whole[k])]
    if name!='textual_inversion':
        assert other and all(torch.allclose(half[k], whole[k]/2) for k in other)
        layers = {k.rpartition('lora')[0] if to=='lora' else k.split('.')[0] for k in whole}
        assert len(other)==len(layers)                                                       # one factor a layer, and not both
    else: assert other==list(whole)

def test_what_cannot_be_written_at_a_strength_is_refused_with_the_way_out(opened, tmp_path, refused):
    with refused('dora', 'strength of 0.5', 'the layout lora cannot hold that', 'export it to diffusers'): export(opened('dora').at(strength=.5), tmp_path/'out', 'lora')
    with refused('strength of 0', 'nothing to export'): export(opened('lora').at(strength=0), tmp_path/'out')
    assert not (tmp_path/'out').exists()
