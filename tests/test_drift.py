"Drift and leak: what moved where nobody asked for the style, by any encoder, and nothing where nothing did."
import json
from pathlib import Path

import pytest, torch
import torch.nn.functional as F

from styleboost.judging.drift import EACH, ELSEWHERE, Elsewhere, elsewhere, score_elsewhere
from styleboost.judging.encoders import load_encoder
from styleboost.judging.judge import load_judge, units_of
from styleboost.judging.metrics import METRICS, interval, student, tidy
from styleboost.pictures.prompts import Prompt, style_prompt
from styleboost.pictures.tensors import to_tensor
from styleboost.pictures.world import pictures, prompts, reference

@pytest.fixture(scope='module')
def asked():
    "Test prompts that Fluent Emoji has drawn too, so that it can stand for a base."
    fluent = {p.caption: p for p in pictures('fluent-emoji')}
    known = [p for p in prompts('openmoji', 'test') if p.text in fluent]
    subject = {t: p for p in known for t in (p.text, style_prompt(p.text, ''))}
    few = elsewhere(known, 8)
    return few, [fluent[subject[p.text].text] for p in few.prompts], [subject[p.text].truth for p in few.prompts]

@pytest.fixture(scope='module')
def real(): return reference('openmoji', n=300)

class Colours:
    "An encoder that knows nothing but mean colours of a few places."
    name, person_line, embed_texts, people = 'colours', None, None, None
    def features(self, images): return images if isinstance(images, torch.Tensor) and images.ndim==2 else F.adaptive_avg_pool2d(to_tensor(images), 4).flatten(1)
    def embed_images(self, images): return F.normalize(self.features(images), dim=-1)

def test_a_model_that_left_all_alone_has_not_drifted(asked, real):
    few, base, _ = asked
    t = score_elsewhere(base, base, few, real)
    for m in ('drift','class_drift','leak','class_leak'): assert t[m].abs().max()<1e-6, m
    assert (t.diversity_elsewhere>0).all()

@pytest.mark.parametrize('judge', [None, Colours()])
def test_drift_is_half_of_one_minus_the_mean_cosine_by_any_encoder(asked, real, judge):
    "As in PEFT's benchmark, on plain prompts and on those of the class apart."
    few, base, truth = asked
    t, eye, n = score_elsewhere(truth, base, few, real, judge), load_encoder(judge or 'world'), len(few.named)
    x = to_tensor(truth) if judge is None else truth
    y = to_tensor(base) if judge is None else base
    cos = F.cosine_similarity(units_of(eye, x), units_of(eye, y))
    people = torch.tensor([p.people for p in few.prompts])
    assert t.class_drift['all']==pytest.approx((1-cos[:n].mean().item())/2, abs=1e-6)
    for group,flag in (('people',True), ('things',False)):
        assert t.drift[group]==pytest.approx((1-cos[n:][people[n:]==flag].mean().item())/2, abs=1e-6)
        assert t.drift_n[group]==8 and t.class_drift_n[group]==4

def test_the_interval_is_students_over_the_pictures(asked, real):
    few, base, truth = asked
    t, n = score_elsewhere(truth, base, few, real), len(few.named)
    eye = load_judge()
    each = (1-(eye.units(to_tensor(truth))*eye.units(to_tensor(base))).sum(1)[n:])/2
    half = student(15)*each.std().item()/4
    assert (t.drift_low['all'], t.drift_high['all'])==pytest.approx((each.mean().item()-half, each.mean().item()+half), abs=1e-6)
    assert interval(1., .5, 16)==pytest.approx((1-.5*student(15), 1+.5*student(15)))

def test_the_style_itself_leaks_wholly_and_half_of_it_by_half(asked, real):
    few, base, truth = asked
    whole = score_elsewhere(truth, base, few, real)
    half = score_elsewhere([t if i%2 else b for i,(t,b) in enumerate(zip(truth, base))], base, few, real)
    assert whole.leak['all']==pytest.approx(1, abs=.15) and .3<half.leak['all']<.7
    assert half.drift['all']<whole.drift['all']

def test_what_moved_in_things_is_not_laid_to_people(asked, real):
    few, base, truth = asked
    mixed = [t if p.people is False else b for p,t,b in zip(few.prompts, truth, base)]
    t = score_elsewhere(mixed, base, few, real)
    assert t.drift['people']<1e-6 and abs(t.leak['people'])<1e-6 and t.drift['things']>.02 and t.leak['things']>.5
    assert {r['metric'] for r in tidy(t)}=={*ELSEWHERE} and {*ELSEWHERE}<={*METRICS}

def test_all_equal_pictures_have_no_diversity_elsewhere(asked, real):
    few, base, _ = asked
    assert score_elsewhere([base[0]]*len(base), base, few, real).diversity_elsewhere['all']==pytest.approx(0, abs=1e-6)

def test_prompts_lose_the_word_and_nothing_else(picture):
    many = [Prompt(f'{w} {i}', w=='woman', picture('t')) for i in range(9) for w in ('woman','dog')]
    few = elsewhere(many, 4)
    assert [p.text for p in few.plain]==[f'woman {i}' for i in range(4)]+[f'dog {i}' for i in range(4)]
    assert [p.text for p in few.named]==[f'a photo of style, {t}' for t in ('woman 0','woman 1','dog 0','dog 1')]
    assert all(p.truth is None for p in few.prompts) and len(few)==12
    unflagged = elsewhere([Prompt(p.text) for p in many], 4)
    assert len(unflagged.plain)==len(unflagged.named)==4 and unflagged.plain[0].people is None

def test_too_few_prompts_or_pictures_are_one_sentence(asked, real, refused):
    with refused('Drift needs 4 prompts', 'has 3'): elsewhere([Prompt(t) for t in 'abc'])
    with refused('0 prompts of each kind'): elsewhere([Prompt(t) for t in 'abcd'], 0)
    with refused('Drift needs 4 prompts', 'has 2'): elsewhere([Prompt('a', True), Prompt('b', False), Prompt('c', True)], 1)
    few, base, _ = asked
    with refused(f'The model drew 1 pictures for {len(few)} prompts'): score_elsewhere(base[:1], base, few, real)
    with refused(f'The base drew 2 pictures for {len(few)} prompts'): score_elsewhere(base, base[:2], few, real)

def test_without_prompts_of_the_class_there_is_no_drift_of_the_class(asked, real):
    few, base, truth = asked
    n = len(few.named)
    t = score_elsewhere(truth[n:], base[n:], Elsewhere((), few.plain), real)
    assert {m for m in ELSEWHERE if m in t}=={'drift','leak','diversity_elsewhere'}

def test_what_it_adds_to_a_study_is_within_its_share():
    "By the seconds a picture that the benchmark of a study took: the base once a seed, and every cell once."
    took = json.loads((Path(__file__).resolve().parents[1]/'benchmarks/compare.json').read_text())
    seeds, n = len(took['seeds']), took['prompts']
    each_ = len(took['arms'])*seeds
    drawn = each_*(n['validation']*len(took['checkpoints'])+n['test'])+n['validation']+n['test']
    more = (each_+seeds)*3*EACH*took['minutes_drawing']/drawn
    assert more<=.15*(took['minutes']-took.get('minutes_elsewhere', 0))
