"What the embedded world and the tiny base promise."
import json, subprocess, zipfile
from pathlib import Path

import pytest
from safetensors import safe_open

from styleboost.bases.files import TINY
from styleboost.judging.judge import JUDGE
from styleboost.pictures.world import (
    PACKS, SETS, STYLES, pictures, pool, prompts, prompts_up_to, reference, split_of, style_ref, subject_of)

ROOT = Path(__file__).resolve().parents[1]
size = lambda folder: sum(f.stat().st_size for f in Path(folder).rglob('*') if f.is_file())

@pytest.mark.parametrize('name', SETS)
def test_every_pack_holds_captioned_pictures_of_one_size_and_its_licence(name):
    with zipfile.ZipFile(PACKS/f'{name}.zip') as z: licence = z.read('LICENSE.txt').decode()
    assert SETS[name].licence in licence and SETS[name].author in licence
    pics = pictures(name)
    assert len(pics) and all(p.caption and p.people is not None and p.licence==SETS[name].licence for p in pics)
    assert {p.open().size for p in pics[:20]}=={(64,64)}

@pytest.mark.parametrize('style', STYLES)
def test_no_subject_is_on_two_sides_of_a_target_style(style):
    sides = [{p.subject for p in style_ref(style)}, {p.truth.subject for p in prompts(style,'validation')}, {p.truth.subject for p in prompts(style,'test')}]
    assert not any(a & b for i,a in enumerate(sides) for b in sides[i+1:])
    assert not sides[0] & {p.subject for p in reference(style)}

def test_more_pictures_than_a_style_has_are_refused(refused):
    with refused("openmoji has", "people", "500"): style_ref('openmoji', 500)

@pytest.mark.parametrize('style', STYLES)
def test_half_of_a_styles_pictures_and_prompts_show_people(style):
    assert [len(style_ref(style)), sum(style_ref(style).people), len({p.sha for p in style_ref(style)})]==[20, 10, 20]
    for split,least in dict(validation=20, test=40).items():
        flags = [p.people for p in prompts(style, split)]
        assert len(flags)>=least and sum(flags)*2==len(flags)

def test_where_a_style_has_fewer_prompts_than_asked_for_all_are_taken_and_it_is_said(said):
    assert len(prompts_up_to(64, 'emojione-monotone'))==44 and any('has 44 test prompts' in m for m in said())
    assert len(prompts_up_to(64))==64 and len(said())==1

@pytest.mark.parametrize('variants', [('farmer','man-farmer','woman-farmer'), ('person','man-red-hair','woman-bald','person-beard'), ('merman','mermaid','merperson'), ('kiss','kiss-woman-man')])
def test_genders_and_hair_of_a_subject_fall_on_one_side(variants):
    assert len({(subject_of(v), split_of(subject_of(v),'target')) for v in variants})==1

def test_target_styles_and_pools_are_no_pre_training_sets():
    trained = set(json.loads((TINY/'pretraining.json').read_text())['sets'])
    assert trained=={k for k,s in SETS.items() if s.use=='pretrain'}
    assert not trained & {p.set for p in pool('people')+pool('things')} and not trained & set(STYLES)

def test_held_out_subjects_are_held_out_of_every_set():
    assert all(split_of(p.subject)=='held-out' for k in SETS for p in pictures(k) if p.split=='held-out')
    assert all(split_of(p.subject)!='held-out' for k,s in SETS.items() if s.use=='pretrain' for p in pictures(k) if p.split=='pretrain')

def test_what_ships_stays_within_its_limits():
    assert size(PACKS) <= 8.1e6
    assert size(TINY)+size(JUDGE) <= 40e6

def test_the_tracked_tree_clones_easily():
    r = subprocess.run(['git','ls-files','-z'], cwd=ROOT, capture_output=True, text=True)
    if r.returncode: pytest.skip('not a git checkout')
    assert sum((ROOT/f).stat().st_size for f in r.stdout.split('\0') if f and (ROOT/f).exists()) <= 58e6

def test_weights_are_safetensors_in_half_precision_and_what_recognises_in_eight_bits():
    files = [f for d in (TINY,JUDGE) for f in d.rglob('*.safetensors') if f.name!='ordinary.safetensors']
    assert len(files)==6
    assert not [f for d in (TINY,JUDGE) for f in d.rglob('*') if f.suffix in ('.bin','.pt','.ckpt','.pkl')]
    for f in files:
        small = f.name=='recogniser.safetensors' or f.is_relative_to(JUDGE/'text_encoder')
        with safe_open(f, 'pt') as s: assert {s.get_slice(k).get_dtype() for k in s.keys()} <= {'F16','I64'}|({'I8'} if small else set())
