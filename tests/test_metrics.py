"The metrics against known answers: identical clouds, Gaussians, planted copies, planted people, intervals that hold what they should."
import math
from dataclasses import replace

import numpy as np, pandas as pd, pytest, torch
from PIL import Image
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from styleboost.judging import metrics
from styleboost.judging.judge import load_judge
from styleboost.judging.style import plain_statistics
from styleboost.pictures.images import ImageSet, Picture, png
from styleboost.judging.drift import ELSEWHERE
from styleboost.judging.metrics import (
    METRICS, SHOWN, copying, diversity, fid, interval, jackknife, kid, look_at, score, student, wilson, tidy)
from styleboost.pictures.prompts import Prompt
from styleboost.pictures.world import pictures, pool, prompts, reference, style_ref

def randn(*shape, seed=0, **kw): return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **kw)

def as_library(metric, x, y, **kw):
    look = torch.nn.Identity(); look.num_features = x.shape[1]
    m = metric(feature=look, **kw)
    m.update(y.double(), real=True); m.update(x.double(), real=False)
    return m.compute()

@pytest.fixture(autouse=True)
def say_again(): metrics._once.cache_clear()

REAL, ASKED, TAUGHT = reference('openmoji'), prompts('openmoji', 'test'), style_ref('openmoji')
TRUE = [p.truth for p in ASKED]

pytestmark = pytest.mark.filterwarnings('ignore:Metric .* will save all extracted features')

# intervals

@pytest.mark.parametrize('df, t', [(1, 12.7062), (2, 4.3027), (3, 3.1824), (9, 2.2622), (29, 2.0452), (10_000, 1.9602)])
def test_students_quantiles_are_those_of_the_tables(df, t): assert student(df)==pytest.approx(t, abs=2e-4)

def test_the_jackknife_of_a_mean_is_its_standard_error():
    v = randn(17).double()
    assert jackknife((v.sum()-v)/16)==pytest.approx((v.std()/17**.5).item())

def held(draw, truth, trials): return np.mean([low<=truth<=high for low,high in map(draw, range(trials))])

def test_the_interval_of_a_mean_holds_it_in_95_of_100():
    g = torch.Generator().manual_seed(0)
    v = torch.randn(1000, 8, generator=g)+.3
    assert .93 <= held(lambda i: interval(*metrics.mean_of(v[i]), 8), .3, 1000) <= .97

def test_the_interval_of_a_rate_holds_it_about_as_often_and_stays_possible():
    g = np.random.default_rng(0)
    for p in (.05, .5, .9): assert .92 <= np.mean([low<=p<=high for low,high in (wilson(int(k), 40) for k in g.binomial(40, p, 2000))]) <= .985
    assert wilson(0, 5)[0]==0 and wilson(5, 5)[1]==1 and wilson(0, 5)[1]>.3

def test_the_interval_of_kid_holds_the_distance_to_the_reference():
    y, g = randn(150, 8, seed=1), torch.Generator().manual_seed(2)
    draw = lambda n: torch.randn(n, 8, generator=g)*1.2+.5
    truth = kid(draw(6000), y)[0]
    assert .91 <= held(lambda i: interval(*kid(draw(40), y), 40), truth, 400) <= .98

def test_the_interval_of_diversity_holds_it():
    g = torch.Generator().manual_seed(3)
    draw = lambda n: torch.nn.functional.normalize(torch.randn(n, 6, generator=g)+1, dim=-1)
    truth = diversity(draw(4000))[0]
    assert .90 <= held(lambda i: interval(*diversity(draw(30)), 30), truth, 400) <= .98

# KID and FID

def test_kid_is_the_librarys_with_one_subset_of_everything():
    x, y = randn(60, 16), randn(60, 16, seed=1)*1.5+.2
    assert kid(x, y)[0]==pytest.approx(as_library(KernelInceptionDistance, x, y, subsets=1, subset_size=60)[0].item(), rel=1e-4)

def test_kid_is_the_mean_over_all_subsets():
    x, y = randn(12, 4), randn(12, 4, seed=1)+.5
    torch.manual_seed(0)                                       # the library draws its subsets from the common generator
    assert kid(x, y)[0]==pytest.approx(as_library(KernelInceptionDistance, x, y, subsets=4000, subset_size=9)[0].item(), abs=.01)

def test_kid_of_one_distribution_is_nought_on_average_and_of_any_size():
    for n in (10, 40): assert abs(np.mean([kid(randn(n, 16, seed=s), randn(50, 16, seed=1000+s))[0] for s in range(200)]))<.02

def test_kid_grows_with_a_shift():
    x = randn(80, 16)
    ks = [kid(x, randn(80, 16, seed=1)+s)[0] for s in (0, .25, .5, 1)]
    assert ks==sorted(ks)

def test_kid_does_not_depend_on_the_order_or_the_seed():
    x, y = randn(30, 8), randn(20, 8, seed=1)
    torch.manual_seed(1); a = kid(x, y); torch.manual_seed(2); b = kid(x.flip(0), y.flip(0))
    assert a==pytest.approx(b)

def test_kid_of_seven_is_refused(refused):
    with refused('8 pictures', 'has 7'): kid(randn(7, 4), randn(50, 4))

def test_fid_of_gaussians_is_its_closed_form():
    n, d, shift, scale = 20_000, 6, .5, 1.5
    found, std = fid(randn(n, d)*scale+shift, randn(n, d, seed=1))
    assert found==pytest.approx(d*shift**2+d*(scale-1)**2, abs=.05) and 0<std<.05

def test_fid_is_the_librarys():
    a, b = randn(16, 16, seed=2), randn(16, 16, seed=3)
    x, y = randn(200, 16)@a, randn(200, 16, seed=1)@b
    assert fid(x, y)[0]==pytest.approx(as_library(FrechetInceptionDistance, x, y).item(), rel=1e-4)

def test_fid_of_a_set_with_itself_is_nought(): assert abs(fid(randn(50, 8), randn(50, 8))[0])<1e-6

def test_fid_is_taken_at_equal_n():
    x, y = randn(100, 4), randn(3000, 4, seed=1)
    cut = y[torch.randperm(3000, generator=torch.Generator().manual_seed(0))[:100]]
    assert fid(x, y)[0]==fid(x, y)[0]==pytest.approx(fid(x, cut)[0]) and fid(x, y)[0]!=fid(x, y, seed=1)[0]

def test_fid_of_too_few_is_refused_with_what_to_look_at(refused):
    with refused('more than 64', 'has 64', 'KID'): fid(randn(64, 64), randn(900, 64))

# copying and diversity

def test_a_copy_is_one_and_a_stranger_nought():
    ref, held_out = randn(20, 8), randn(500, 8, seed=1)
    assert copying(ref[:5], ref, held_out).tolist()==[1]*5
    assert abs(copying(randn(500, 8, seed=2), ref, held_out).mean())<.08

def test_a_held_out_picture_is_not_taken_for_a_copy():
    ref, held_out = randn(20, 8), randn(20, 8, seed=1)
    assert copying(held_out, ref, held_out).tolist()==[-1]*20

def test_the_expected_nearest_is_the_mean_over_all_subsets():
    from itertools import combinations
    d = randn(2, 7).abs()
    for k in (1, 3, 7): assert metrics._expected_nearest(d, k).tolist()==pytest.approx([np.mean([min(c) for c in combinations(r.tolist(), k)]) for r in d], rel=1e-5)

def test_diversity_of_one_picture_is_nought_and_of_unlike_ones_one():
    assert diversity(torch.eye(5)[[0]*6])[0]==pytest.approx(0) and diversity(torch.eye(6))==pytest.approx((1, 0))

# the table

@pytest.fixture(scope='module')
def perfect(): return score(TRUE, REAL, ASKED, ref=TAUGHT)

def test_it_has_a_row_a_group_and_a_value_an_interval_a_metric(perfect):
    assert perfect.index.tolist()==['people','things','all'] and perfect.n.tolist()==[42, 42, 84]
    for m in METRICS:
        if m in perfect: assert {f'{m}_low', f'{m}_high'} <= {*perfect}
    inside = [(g, m) for m in METRICS if m in perfect for g,r in perfect.iterrows() if r[m]==r[m] and not r[f'{m}_low']-1e-9<=r[m]<=r[f'{m}_high']+1e-9]
    assert inside==[] and {*METRICS}-{*perfect}=={'fid','style_gain','cmmd','memorising',*ELSEWHERE} and {*SHOWN} <= {*METRICS}

def test_the_artists_own_pictures_score_what_they_must(perfect):
    a = perfect.loc['all']
    assert a.paired==pytest.approx(1) and abs(a['style']-1)<.1 and abs(a.copying)<.1 and a.kid<.03 and abs(perfect.kid['people'])<.02
    assert perfect.people_rate['people']>.6 and perfect.false_people_rate['things']<.2 and math.isnan(perfect.people_rate['things'])

def test_pictures_in_another_order_lose_the_prompt_and_keep_the_style(perfect):
    other = score(TRUE[::-1], REAL, ASKED)
    assert other.text['all']<perfect.text['all']-.1 and other.paired['all']<.3 and other.kid['all']==pytest.approx(perfect.kid['all']) and other.diversity['all']==pytest.approx(perfect.diversity['all'])

def test_a_planted_person_is_a_success_for_one_half_and_a_fault_for_the_other():
    judge = load_judge()
    flag = judge.people(TRUE)>judge.person_line
    person, thing = ([p for p,f in zip(TRUE, flag.tolist()) if f is who] for who in (True, False))
    asked = [Prompt('a', True)]*10+[Prompt('b', False)]*10
    t = score([*person[:7], *thing[:3], *person[:1], *thing[:9]], REAL, asked)
    assert t.people_rate['people']==.7 and t.false_people_rate['things']==.1
    assert (t.people_rate_low['people'], t.people_rate_high['people'])==pytest.approx(wilson(7, 10))

def test_a_planted_copy_is_seen_and_more_of_them_more():
    seen = [score([*TAUGHT[:k], *TRUE[k:42]], REAL, ASKED[:42], ref=TAUGHT).copying['all'] for k in (0, 5, 10)]
    assert seen[0]+.1<seen[1] and seen[1]+.1<seen[2]

def test_the_base_has_gained_nothing_and_the_style_everything():
    drawn = list(pool('micah')[:42])+list(pool('landscape')[:42])
    nothing, all_ = score(drawn, REAL, ASKED, base=drawn), score(TRUE, REAL, ASKED, base=drawn)
    assert nothing.style_gain['all']==0 and all_.style_gain['all']==pytest.approx(1, abs=.1) and all_.style_gain_low['all']>.8

def test_a_base_that_draws_the_style_leaves_nothing_to_gain_and_it_is_said(said):
    same = [REAL[0]]*20
    t = score(same, ImageSet(same), ASKED[:20], base=same)
    assert 'style_gain' not in t and t['style']['all']==pytest.approx(1) and any('style gained is left out' in m for m in said())

def test_pictures_in_the_order_of_a_listing_beside_a_list_of_prompts_are_named(said):
    pics = ImageSet([replace(p, name=f'{i}.png') for p,i in zip(TRUE, (1,10,11,12,2,3,4,5,6,7,8,9))], 'listed')
    asked = [Prompt(p.text+' by the sea', p.people) for p in ASKED[:12]]
    score(pics, REAL[:40], asked); assert sum('10.png stands before 2.png' in m for m in said())==1
    score(pics.counted(), REAL[:40], asked); score(pics, REAL[:40], [Prompt(p.caption, p.people) for p in pics])
    assert sum('stands before' in m for m in said())==1

def test_pictures_that_are_all_equal_are_named_and_every_score_is_a_number(said):
    for drawn,real in (([REAL[0]]*20, REAL[:40]), (TRUE[:20], ImageSet([REAL[0]]*20, 'one')), ([REAL[0]]*20, ImageSet([REAL[1]]*20, 'one'))):
        rows = tidy(score(drawn, real, ASKED[:20], base=TRUE[:20]))
        assert len(rows)>8 and all(math.isfinite(r['value']) for r in rows)
    told = [m for m in said() if 'all equal' in m]
    assert len(told)==4 and ['of one' in m for m in told]==[False, True, False, True]

def test_people_are_compared_with_people_and_things_with_things():
    people, asked = TRUE[:42], ASKED[:42]
    other = ImageSet([*REAL.where(True), *(Picture(p.name, data=p.data, people=False) for p in pool('landscape'))])
    a, b = (score(people, r, asked, ref=TAUGHT) for r in (REAL, other))
    assert a['style']['people']==pytest.approx(b['style']['people']) and a.copying['people']==pytest.approx(b.copying['people'])

def test_the_plain_ranking_asks_no_encoder():
    t = score(TRUE[:12], REAL[:40], ASKED[:12])
    assert t.plain_kid['all']==pytest.approx(kid(plain_statistics(TRUE[:12]), plain_statistics(REAL[:40]))[0], abs=1e-4)

def test_fid_is_there_when_there_are_enough(perfect):
    some = list(REAL[:300])
    t = score(some, REAL[300:], [Prompt('x', p.people) for p in some])
    assert 0<t.fid['all']<50 and t.fid_low['all']<t.fid['all'] and math.isnan(t.fid['people'])

def test_each_set_is_looked_at_once(monkeypatch):
    judge, calls = load_judge(), []
    real, asked = ImageSet(REAL[:60], 'here'), ASKED[:10]+ASKED[-10:]
    for network in (judge.image, judge.recogniser):
        monkeypatch.setattr(network, 'forward', lambda x, see=network.forward: calls.append(len(x)) or see(x))
    metrics._seen.clear()
    score([p.truth for p in asked], real, asked, ref=TAUGHT); score([p.truth for p in asked], ImageSet(REAL[:60], 'again'), asked, ref=TAUGHT)
    assert sorted(calls)==sorted(2*[20, 20, 20, 20, 60, 216])                                   # drawn twice; the truth, StyleRef, the reference and other styles once

def test_the_kept_features_are_of_the_encoder_and_the_pictures():
    judge = load_judge()
    a, b = look_at(REAL[:9], judge), look_at(REAL[:10], judge)
    assert look_at(REAL[:9], judge) is a and len(b.features)==10

# encoders that cannot do everything

class Blind:
    name, person_line, embed_texts, people = 'blind', None, None, None
    def features(self, images): return images if isinstance(images, torch.Tensor) else load_judge().features(images)
    def embed_images(self, images): return torch.nn.functional.normalize(self.features(images), dim=-1)

def test_what_an_encoder_cannot_do_is_left_out_and_said(said):
    t = score(TRUE, REAL, ASKED, Blind())
    assert not {'text','people_rate','false_people_rate'} & {*t} and {'kid','style','diversity'} <= {*t}
    assert any('does not read' in m for m in said()) and any('cannot tell people' in m for m in said())

# bad input

def test_pictures_and_prompts_that_do_not_pair_are_refused(refused):
    with refused('3 pictures and 2 prompts'): score(TRUE[:3], REAL, ASKED[:2])
    with refused('base drew 1'): score(TRUE[:3], REAL, ASKED[:3], base=TRUE[:1])
    with refused('no pictures'): score([], REAL, [])

def test_style_references_in_the_reference_are_taken_out_and_it_is_said(said):
    a, b = score(TRUE[:12], REAL[:50], ASKED[:12], ref=TAUGHT), score(TRUE[:12], REAL[:50]+TAUGHT[:7], ASKED[:12], ref=TAUGHT)
    pd.testing.assert_frame_equal(a, b)
    assert any('7 of 57' in m for m in said())

def test_a_reference_of_style_references_alone_is_refused(refused):
    with refused('All 20'): score(TRUE[:3], TAUGHT, ASKED[:3], ref=TAUGHT)

def test_too_few_for_kid_or_fid_says_how_many_are_needed(said):
    t = score(TRUE[:5], REAL, ASKED[:5])
    assert not {'kid','plain_kid','fid'} & {*t} and 'style' in t
    assert any('KID needs 8 pictures' in m and 'has 5' in m and 'style similarity' in m for m in said()) and any('FID needs more than 256' in m and 'KID' in m for m in said())

def test_a_reference_of_one_picture_leaves_style_out(said):
    t = score(TRUE[:5], REAL[:1], ASKED[:5])
    assert 'style' not in t and 'text' in t and any('needs two pictures' in m and 'left out' in m for m in said())

def test_pictures_without_a_prompt_are_left_out_of_text_alignment(said):
    asked = [Prompt('', p.people) if i<2 else Prompt(p.text, p.people) for i,p in enumerate(ASKED[:6])]
    t, rest = score(TRUE[:6], REAL, asked), score(TRUE[2:6], REAL, asked[2:])
    assert t.text['all']==pytest.approx(rest.text['all']) and t.text_n['all']==4 and any('2 of 6 pictures have no prompt' in m for m in said())

def test_prompts_without_flags_are_scored_together(said):
    t = score(TRUE[:9], REAL, [Prompt(p.text) for p in ASKED[:9]])
    assert t.index.tolist()==['all'] and any('people column' in m for m in said())

def test_a_reference_without_flags_scores_all(said):
    bare = ImageSet([Picture(p.name, data=p.data) for p in REAL[:30]])
    t = score(TRUE, bare, ASKED)
    assert t.index.tolist()==['all'] and any('flagged as people' in m for m in said())

def test_one_picture_is_scored_without_intervals():
    t = score(TRUE[:1], REAL, ASKED[:1])
    assert math.isnan(t.text_low['all']) and t.text['all']==t.text['all']

# subjects recognised

class Reader:
    "Sees of a picture one number, and reads texts as numbers: a picture is nearest to its own."
    name, person_line, people = 'reader', None, None
    def features(self, images):
        if isinstance(images, torch.Tensor): return images
        grey = lambda im: (im.open() if isinstance(im, Picture) else im).getpixel((0,0))[0]
        return torch.tensor([[grey(im)/255*3.]*2 for im in images])
    def embed_images(self, images): f = self.features(images)[:,0]; return torch.stack([f.cos(), f.sin()], 1)
    def embed_texts(self, texts): f = torch.tensor([int(t.split()[-1])/255*3. for t in texts]); return torch.stack([f.cos(), f.sin()], 1)

def grey(v): return Picture(f'{v}.png', data=png(Image.new('RGB', (8,8), (v,v,v))), caption=f'grey {v}', people=False)

def test_a_subject_is_recognised_among_the_five_nearest_texts_and_named_where_it_is_the_nearest():
    greys = ImageSet([grey(v) for v in range(0, 250, 10)], 'greys')
    asked = [Prompt(f'grey {v}', False) for v in (50, 100, 150, 200)]
    off = [p.open() for p in map(grey, (50, 108, 172, 20))]   # right, next to it, two texts off on one side, far off
    t = score(off, greys, asked, Reader()).loc['all']
    assert (t.subject_first_rate, t.subject_rate)==(.25, .75) and t.n_texts==25
    assert (t.subject_rate_low, t.subject_rate_high)==pytest.approx(wilson(3, 4))

def test_texts_are_counted_once_and_a_picture_without_a_prompt_is_not_asked_about():
    greys = ImageSet([grey(v) for v in range(0, 250, 10)]*2, 'greys')
    t = score([grey(50).open(), grey(60).open()], greys, [Prompt('grey 50', False), Prompt('', False)], Reader()).loc['all']
    assert t.n_texts==25 and t.subject_rate==1 and t.subject_rate_n==1

def test_too_few_texts_to_tell_a_subject_from_are_said(said):
    bare = ImageSet([replace(p, caption='') for p in REAL[:40]], 'bare')
    t = score(TRUE[:9], bare, ASKED[:9])
    assert 'text' in t and 'subject_rate' not in t and any('9 different prompts' in m and 'takes 20' in m for m in said())

def test_the_artists_own_pictures_are_recognised_and_those_of_other_prompts_are_not(perfect):
    other = score(TRUE[::-1], REAL, ASKED)
    assert perfect.n_texts['all']>1000 and perfect.subject_rate['all']>5*max(other.subject_rate['all'], 5/1200)
    assert perfect.subject_first_rate['all']<perfect.subject_rate['all']

# harder to fool

def test_the_style_is_told_from_others_and_its_own_pictures_are_at_one_by_csls(perfect):
    a = perfect.loc['all']
    assert a.style_gap>.2 and a.style_gap_low>0 and abs(a.style_csls-1)<.15 and (perfect.style_gap_n>100).all()
    assert score([p for p in pictures('twemoji')[:20]], REAL, ASKED[:20]).style_csls['all']<.7

def test_a_reference_of_many_styles_is_not_told_apart_and_it_is_said(said):
    mixed = ImageSet([p for k in ('twemoji','noto','fxemoji','emojione') for p in pictures(k)[::40][:8]], 'mixed')
    t = score(TRUE[:20], mixed, ASKED[:20])
    assert t.style_gap_low['all']<.1<perfect_gap() and (t.style_gap_low['all']>0 or any('do not trust style similarity' in s for s in said()))

def perfect_gap(): return score(TRUE[:20], REAL, ASKED[:20]).style_gap['all']

def test_the_style_itself_as_another_style_leaves_no_gap_and_no_score_by_csls(said):
    twin = ImageSet(REAL.pictures[:40], 'twin')
    t = score(TRUE[:20], ImageSet(REAL.pictures[40:]), ASKED[:20], others=[twin])
    assert abs(t.style_gap['all'])<.05 and any('do not trust style similarity' in s and 'twin' in s for s in said())
    assert 'style' in t and not [c for c in t if c.startswith('style_csls')]

def test_other_styles_change_nothing_but_what_is_measured_against_them():
    a, b = (score(TRUE[:20], REAL, ASKED[:20], others=o) for o in (None, [pool('micah')[:20], pool('landscape')[:20]]))
    same = [c for c in a if not c.startswith(('style_gap','style_csls'))]
    pd.testing.assert_frame_equal(a[same], b[same])
    assert a.style_gap['all']<b.style_gap['all']

def test_training_pictures_drawn_by_heart_are_seen_and_fresh_ones_are_not():
    taught, asked = TAUGHT[:12], [Prompt(p.caption, p.people) for p in TAUGHT[:12]]
    by_heart = score(list(taught), REAL, asked, ref=TAUGHT).memorising
    turned = score([*taught[1:], taught[0]], REAL, asked, ref=TAUGHT).memorising
    assert by_heart['all']>.02>0>turned['all'] and 'memorising' not in score(TRUE[:12], REAL, ASKED[:12], ref=TAUGHT)
