"Votes: intervals that cover, pairs in balance, files of several voters, and what is refused."
import json
from collections import Counter
from types import SimpleNamespace

import numpy as np, pandas as pd, pytest, torch
from hypothesis import given, strategies as st

from styleboost.core import write_whole
from styleboost.judging.votes import agreement, coverage, standings, strengths, win_rates
from styleboost.studies.votes import (
    VOTED, add_votes, ballots, counted_votes, keep_votes, metric_agreement, read_votes, study_key, vote_numbers, vote_standings, votes_file, votes_of, votes_section)

TASTE = np.array([.6, .1, -.1, -.6])

# the statistics

@pytest.mark.parametrize('luck, prompts, voters', [(0., 24, 2), (.7, 24, 2)])
def test_the_intervals_of_a_thousand_studies_hold_the_truth(luck, prompts, voters):
    "Of the strengths and of the win rates, which is what is shown."
    held = coverage(TASTE, 1000, prompts, voters, luck, seed=1)
    assert held.shape==(2,4) and ((held>=930)&(held<=970)).all(), held

def test_strengths_are_the_maximum_of_the_likelihood():
    wins = torch.tensor(np.random.default_rng(0).integers(0, 9, (5,5)).astype(float)).fill_diagonal_(0)
    b = torch.zeros(5, dtype=torch.double, requires_grad=True)
    opt = torch.optim.LBFGS([b], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-14)
    def loss():
        opt.zero_grad()
        l = -(wins*torch.nn.functional.logsigmoid(b[:,None]-b[None])).sum()+.005*(b**2).sum()
        l.backward(); return l
    for _ in range(5): opt.step(loss)
    assert strengths(wins.numpy())==pytest.approx((b-b.mean()).detach().numpy(), abs=1e-6)

def test_who_won_everything_is_strong_and_finite():
    b = strengths(np.array([[0,50,50],[0,0,25],[0,25,0.]]))
    assert b[0]>3 and np.isfinite(b).all() and win_rates(b)[0]>.98 and b[1]==pytest.approx(b[2])

def vote(prompt, a, b, answer, voter='anna', seed=0): return dict(prompt=prompt, a=a, b=b, answer=answer, voter=voter, seed=seed)

def test_no_difference_gives_half_a_vote_to_each():
    t = standings(pd.DataFrame([vote(p, 'x', 'y', a) for p,a in enumerate(['tie']*6+['a']*3+['b'])]), resamples=100).set_index('arm')
    assert t.votes['x']==10 and t.rate['x']==pytest.approx(.6, abs=.002) and t.rate['y']==pytest.approx(.4, abs=.002)

def test_one_prompt_has_no_interval():
    t = standings(pd.DataFrame([vote(0, 'x', 'y', 'a'), vote(0, 'x', 'y', 'b')]))
    assert t.low.isna().all() and t.strength.notna().all()

def test_agreement_counts_votes_that_chose():
    votes = pd.DataFrame([vote(p, 'x', 'y', a) for p,a in enumerate(['a','a','b','tie'])])
    told = agreement(votes, [1, 1, 1, 1])
    assert told['n']==3 and told['share']==pytest.approx(2/3)
    assert agreement(votes, [1, float('nan'), 0, 1])['n']==1

# the pairs

@given(st.integers(2, 6), st.integers(1, 30), st.integers(1, 3), st.integers(0, 10**6))
def test_arms_and_prompts_come_equally_often_wherever_one_stops(arms, prompts, seeds, voter):
    q = arms*(arms-1)//2
    every = list(ballots([f'arm-{i}' for i in range(arms)], prompts, list(range(seeds)), str(voter)))
    assert len(every)==len({b.key for b in every})==q*prompts*seeds
    stop = voter%(q*prompts)+1
    pairs, asked = Counter((b.a, b.b) for b in every[:stop]), Counter(b.prompt for b in every[:stop])
    assert max(pairs.values())-min([*pairs.values()] if len(pairs)==q else [0])<=1
    assert max(asked.values())-min([*asked.values()] if len(asked)==prompts else [0])<=1

def test_sides_are_a_coins_choice():
    sides = Counter(b.left for b in ballots(list('abcd'), 60, [0], 'anna'))
    assert 140<sides['a']<220                                    # of 360, a deviation of 9.5

# the files

@pytest.fixture
def study(tmp_path):
    info = dict(style=dict(name='x', test=[dict(text=f'{i}', people=i%2==0) for i in range(8)]), sampler=dict(steps=3), arms=dict(none={}, aux={}), seeds=[0,1], base=dict(hash='1'))
    return SimpleNamespace(folder=tmp_path/'study', info=info, chosen=dict(none=50, aux=100))

def cast(study, voter, taste, n=40, at='2026-01-01'):
    step = {**study.chosen, 'base':0}
    rows = []
    for b in list(ballots(['base', *study.info['arms']], 8, study.info['seeds'], voter))[:n]:
        answer = 'a' if taste[b.a]>taste[b.b] else 'b'
        rows += [dict(question=q, prompt=b.prompt, seed=b.seed, a=b.a, b=b.b, step_a=step[b.a], step_b=step[b.b], left=b.left, answer=answer, at=at) for q in ('style','prompt')]
    return rows

UP, DOWN = dict(base=0, none=1, aux=2), dict(base=2, none=1, aux=0)

def sent(study, path, votes, voter='anna', other={}):
    write_whole({path: json.dumps(dict(kind='styleboost votes', study=study_key(study.info), voter=voter, votes=votes) | other)})
    return path

def test_several_voters_have_a_file_each(study):
    for voter in ('anna', 'Ben B.', '../evil'): keep_votes(study, voter, cast(study, voter, UP))
    assert sorted(votes_of(study).voter.unique())==['../evil', 'Ben B.', 'anna'] and len(votes_of(study))==3*80
    assert {p.parent.name for p in study.folder.rglob('*.json')}=={'votes'} and votes_file(study.folder, 'anna').name=='anna.json'
    assert list(vote_standings(study).arm)==['aux','none','base'] and set(vote_numbers(study)['aux'])=={*VOTED}

def test_a_result_without_votes_is_a_sentence(study, refused):
    with refused('no votes yet'): vote_standings(study)

def test_a_file_that_was_dropped_into_the_folder_counts(study):
    study.folder.mkdir()
    sent(study, study.folder/'votes-1234-anna.json', cast(study, 'anna', UP))
    assert len(votes_of(study))==80

def test_a_file_is_merged_by_one_call_and_twice_is_once(study, tmp_path):
    keep_votes(study, 'anna', cast(study, 'anna', UP, 10))
    file = sent(study, tmp_path/'sent.json', cast(study, 'anna', DOWN, 20, at='2026-01-02'))
    for _ in range(2):
        add_votes(study, file)
        votes = votes_of(study)
        assert len(votes)==40 and (votes['at']=='2026-01-02').all()   # the later answer to the same question
    assert vote_standings(study).arm[0]=='base'

@pytest.mark.parametrize('other', [dict(study='0'*16), dict(kind='something')])
def test_votes_of_another_study_are_refused(study, tmp_path, refused, other):
    file = sent(study, tmp_path/'sent.json', cast(study, 'anna', UP, 2), other=other)
    with refused('sent.json', 'another study', study_key(study.info)): add_votes(study, file)
    assert not (study.folder/'votes').exists()

BAD = [dict(prompt=8), dict(prompt=-1), dict(seed=7), dict(a='other'), dict(b='base', a='base'), dict(answer='yes'), dict(left='up'), dict(question='taste'), dict(step_a='0'), dict(at=5)]

@pytest.mark.parametrize('change', BAD)
def test_a_vote_on_what_there_is_not_is_refused(study, tmp_path, refused, change):
    with refused('sent.json'): read_votes(study, sent(study, tmp_path/'sent.json', [cast(study, 'anna', UP, 1)[0] | change]))

@pytest.mark.parametrize('text', ['', '{', '[]', '{"votes": 3}', '['*100_000])
def test_a_damaged_file_is_refused(study, tmp_path, refused, text):
    (tmp_path/'sent.json').write_text(text)
    with refused('sent.json'): add_votes(study, tmp_path/'sent.json')

def test_votes_on_other_steps_are_left_out_and_it_is_said(study, said):
    keep_votes(study, 'anna', cast(study, 'anna', UP))
    study.chosen = dict(none=50, aux=200)
    left = counted_votes(study, 'style')
    assert 'aux' not in {*left.a, *left.b} and any('votes are about pictures of other steps' in s for s in said())

def test_more_arms_and_seeds_leave_the_votes_in_place(study):
    keep_votes(study, 'anna', cast(study, 'anna', UP))
    study.info |= dict(arms=dict(none={}, aux={}, more={}), seeds=[0,1,2])
    assert len(votes_of(study))==80

def test_the_metric_that_people_follow_agrees_and_its_opposite_does_not(study):
    for voter in ('anna','ben'): keep_votes(study, voter, cast(study, voter, UP))
    rows = [dict(arm=a, seed=s, group=g, metric=m, value=v) for a,v in UP.items() for s in (0,1) if a!='base' or s==0 for g in ('people','things','all') for m in ('style','kid')]
    study.at_chosen = lambda split: pd.DataFrame(rows)
    found = metric_agreement(study).set_index('metric')
    assert set(found.of)=={'runs'}
    assert found.share['style']==1 and found.share['kid']==0 and found.n['style']==80
    section = votes_section(study)
    assert '2 voters' in section.about and ['Which is more in the style?', 'all', 'two voters agree', '100%'] in [r[:4] for r in section.rows] and {r[1] for r in section.rows}=={'people','things','all'}

def test_a_report_goes_without_votes_that_cannot_be_read(study, said):
    study.folder.mkdir(); (study.folder/'votes-x.json').write_text('{')
    assert votes_section(study) is None and any('no votes' in s and 'votes-x.json' in s for s in said())
