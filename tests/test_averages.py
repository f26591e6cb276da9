"Averages of what trains: any width, chosen when the training is over, and what draws is what was averaged."
import numpy as np, pytest, torch
from hypothesis import given, strategies as st
from safetensors.torch import load_file

from styleboost.bases.sampling import sample
from styleboost.exporting.card import score_table
from styleboost.exporting.export import merged
from styleboost.training.averages import combination, exponent, shares
from styleboost.training.loop import train
from styleboost.training.runs import Run

@given(st.floats(.01, .28), st.integers(1, 500))
def test_an_average_of_anything_sums_to_one_and_has_its_width(width, step):
    s = shares(width, step, step)
    assert s.sum().item()==pytest.approx(1) and (s>=0).all()
    gamma = exponent(width)
    assert (gamma+1)**.5/((gamma+2)*(gamma+3)**.5)==pytest.approx(width, rel=1e-6)      # eq. in Karras et al. 2024

@pytest.fixture(scope='module')
def path(base, quick, tmp_path_factory):
    "A run whose every step is kept, and the same run with an average."
    folder = tmp_path_factory.mktemp('path')
    def go(name, **kw): return train(quick(steps=5, lr=1e-2, method='lora', rank=2, **kw), folder/name, 3, base, device='cpu', progress=False, snapshots=(1,2,3,4))
    plain, smooth = go('plain'), go('smooth', ema=.2)
    steps = [load_file(f) for f in plain.snapshots.values()]+[load_file(plain.weights)]
    return steps, smooth

def by_hand(steps, width, n=5):
    return {k: sum(w*s[k].double() for w,s in zip(shares(width, n, n).tolist(), steps)) for k in steps[0]}

def near(got, want): return all(torch.allclose(got[k].double(), want[k], atol=1e-6) for k in want) and got.keys()==want.keys()

def test_what_a_run_keeps_is_the_average_of_all_its_steps(path):
    steps, run = path
    assert near(load_file(run.weights), by_hand(steps, .2)) and near(load_file(run.snapshots[3]), by_hand(steps, .2, 3))
    assert not near(load_file(run.weights), {k:v.double() for k,v in steps[-1].items()})

@pytest.mark.parametrize('width', [.1, .13, .2])
def test_another_width_is_had_afterwards(path, width):
    steps, run = path
    assert near(run.averaged(width).learnt(), by_hand(steps, width))
    assert near(Run(run.folder, 4).averaged(width).learnt(), by_hand(steps, width, 4))

def test_an_average_draws_what_it_is(path, base):
    steps, run = path
    draw = lambda m: np.asarray(sample(m, 'a dog', 1, 2)[0], int)
    assert abs(draw(run.averaged(.2))-draw(run)).max()<=1 and abs(draw(run.averaged(.05))-draw(run)).max()>2

def test_an_average_keeps_step_and_strength_and_is_what_is_exported(path):
    _, run = path
    a = run.averaged(.05)
    assert (a.at(4, .5).width, a.at(4, .5).step, Run(run.folder, 4, .5).averaged(.05).strength)==(.05, 4, .5)
    draw = lambda m: np.asarray(sample(m, 'a photo of zwx style, a dog', 1, 2, raw=True)[0], int)
    assert abs(draw(merged(a))-draw(a)).max()<=2<abs(draw(merged(run))-draw(merged(a))).max()
    assert abs(draw(a.at(strength=.5))-draw(a)).max()>0 and score_table(a)==''

def test_too_little_kept_is_said(path, said):
    steps, run = path
    Run(run.folder).averaged(.02).learnt()
    assert not any('too little' in m for m in said())               # five snapshots are enough for that
    ends = [(.2, 200), (.1, 200)]
    assert combination(ends, .02, 200)[1]>.3 and combination(ends, .15, 200)[1]<.1

def test_the_last_look_shows_what_the_run_draws(base, quick, tmp_path):
    seen = []
    def preview(line, look):
        with look() as model: seen.append(sample(model, 'a dog', 1, 2)[0].tobytes())
    run = train(quick(steps=2, ema=.2), tmp_path/'run', base=base, device='cpu', progress=False, every=1, preview=preview)
    unseen = train(quick(steps=2, ema=.2), tmp_path/'unseen', base=base, device='cpu', progress=False)
    a, b = load_file(run.weights), load_file(unseen.weights)
    assert all(torch.equal(a[k], b[k]) for k in a) and seen[-1]==sample(run, 'a dog', 1, 2)[0].tobytes()!=seen[0]

def test_what_no_average_can_be_is_refused(path, base, quick, tmp_path, refused):
    _, run = path
    plain = train(quick(steps=1), tmp_path/'plain', base=base, device='cpu', progress=False)
    with refused('kept no averages', 'ema'): plain.averaged(.1)
    for width in (0, -1, .5):
        with refused('width', 'at most 0.28'): run.averaged(width)
    with refused('ema is 0.5', '0.28'): quick(ema=.5)
    with refused('is finished', 'ema is 0.2', 'train anew'):
        train(quick(steps=9, lr=1e-2, method='lora', rank=2, ema=.2), run.folder, 3, base, device='cpu', progress=False, resume=True)
