"What a run keeps on the way, and runs of two words for one style."
import pytest, torch
from safetensors.torch import load_file

from styleboost.training.loop import train
from styleboost.training.recipes import multi
from styleboost.training.runs import Run

# snapshots

def test_snapshots_are_the_weights_of_their_step(base, quick, tmp_path):
    go = lambda name, steps, **kw: train(quick(steps=steps), tmp_path/name, base=base, device='cpu', progress=False, **kw)
    long, short = go('long', 4, snapshots=(2,)), go('short', 2)
    a, b = load_file(long.snapshots[2]), load_file(short.weights)
    assert list(long.snapshots)==[2] and all(torch.equal(a[k], b[k]) for k in a)
    assert torch.equal(Run(long.folder, 2).model().modules['unet'].conv_in.weight, short.model().modules['unet'].conv_in.weight)

def test_a_snapshot_that_was_not_kept_is_refused(base, quick, tmp_path, refused):
    run = train(quick(), tmp_path/'run', base=base, device='cpu', progress=False)
    with refused('step 7', 'only those of its end'): Run(run.folder, 7)
    assert Run(run.folder, run.recipe['steps']).weights==run.weights

# two words for one style

def test_multi_binds_two_words_each_with_its_own_auxiliary_images(base, ref, aux, tmp_path):
    r = multi(ref.where(people=True), ref.where(people=False), aux.where(people=True), aux.where(people=False), steps=1, batch=1)
    assert [b.images.people[0] for b in r.bindings]==[True,True,False,False]
    run = train(r, tmp_path/'run', base=base, device='cpu', progress=False)
    assert [k for k in run.log[0] if k not in ('step','seconds')]==['style0','prior1','style2','prior3'] and run.words=='zwx style, ukj' and run.model().method.words==('zwx','ukj')

@pytest.mark.parametrize('swap', [True, False])
def test_multi_refuses_the_wrong_pictures(ref, aux, refused, swap):
    people, rest = ref.where(people=True), ref.where(people=False)
    with refused('people', 'where'): multi(rest if swap else people, people, aux)

def test_multi_needs_two_words(ref, aux, refused):
    with refused("'zwx'"): multi(ref.where(people=True), ref.where(people=False), aux, tokens=('zwx','zwx'))
