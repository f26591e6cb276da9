"What a run keeps on the way, how it goes on, what it makes of damaged files, and runs of two words for one style."
import json, shutil
from dataclasses import fields, replace

import pytest, torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import load_file

from styleboost.core import StyleboostError
from styleboost.pictures.images import ImageSet
from styleboost.training.loop import train
from styleboost.training.recipes import Recipe, multi, upgraded
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

# going on

@pytest.fixture
def go(base, quick, tmp_path):
    def go(name='run', resume=True, watch=None, ref=None, **kw):
        more = {} if ref is None else dict(ref=ref)
        return train(quick(checkpoint=2, **more, **kw), tmp_path/name, base=base, device='cpu', progress=False, every=1, resume=resume, watch=watch)
    return go

def same(a, b):
    a, b = load_file(a), load_file(b)
    return a.keys()==b.keys() and all(torch.equal(a[k], b[k]) for k in a)

@pytest.mark.parametrize('schedule', [dict(), dict(lr_schedule='constant_with_warmup', warmup=2)], ids=['constant','warmup'])
def test_a_stopped_run_goes_on_to_more_steps_as_if_they_had_been_asked_for_at_once(go, schedule):
    go(steps=4, watch=lambda line: line['step']==3, **schedule)
    more, whole = go(steps=6, **schedule), go('whole', steps=6, **schedule)
    assert same(more.weights, whole.weights) and more.recipe==whole.recipe and more.info['recipe_hash']==whole.info['recipe_hash']
    assert more.info['went_on']==[dict(step=3, steps=4)] and [l['step'] for l in more.log]==[1,2,3,4,5,6]

def test_a_finished_run_goes_on_and_what_it_had_is_kept_as_that_step(go, said):
    four = go(steps=4)
    before = load_file(four.weights)
    (four.folder/'samples').mkdir(); (four.folder/'scores.json').write_text('{}')
    six = go(steps=6)
    assert six.done and [*six.snapshots]==[4] and [l['step'] for l in six.log]==[1,2,3,4,5,6] and six.recipe['steps']==6
    assert all(torch.equal(v, before[k]) for k,v in load_file(six.snapshots[4]).items()) and not same(six.weights, six.snapshots[4])
    assert any('begins anew at step 4' in m for m in said()) and not (four.folder/'checkpoints').exists()
    assert {p.name for p in four.folder.iterdir()}=={'recipe.json','log.jsonl','sheets','weights','samples-000004','scores-000004.json'}
    assert Run(six.folder, 4).model() and go(steps=6).done

@pytest.mark.parametrize('at', ['checkpoint', 'samples', 'weights'])
def test_killed_while_it_is_reopened_a_run_is_still_there(go, monkeypatch, at):
    "What a finished run had learnt is never without a name."
    class Killed(BaseException): pass
    four = go(steps=4)
    (four.folder/'samples').mkdir()
    before = load_file(four.weights)
    import os, pathlib
    def kill(name, whose, real):
        def call(old, new, *args):
            if name in str(new) or name in str(old): raise Killed
            return real(old, new, *args)
        return call
    with monkeypatch.context() as m:
        where, name, word = dict(checkpoint=(os,'replace','step-000004'), samples=(pathlib.Path,'rename','samples'), weights=(os,'replace','tuned'))[at]
        m.setattr(where, name, kill(word, where, getattr(where, name)))
        with pytest.raises(Killed): go(steps=6)
    was = Run(four.folder)
    assert was.done and all(torch.equal(v, before[k]) for k,v in load_file(was.weights).items())
    assert go(steps=6).done and [*Run(four.folder).snapshots]==[4]

@pytest.mark.parametrize('kw, words', [(dict(steps=3), 'has done 4 steps'), (dict(steps=4, lr=1e-5), 'ask for more steps too')])
def test_what_a_finished_run_cannot_do_is_said(go, refused, kw, words):
    run = go(steps=4)
    with refused(run.folder, words): go(**kw)
    assert go(steps=4).done

def test_more_steps_are_refused_where_the_schedule_depends_on_them(go, refused):
    run = go(steps=4, lr_schedule='cosine', watch=lambda line: line['step']==2)
    with refused('schedule cosine', '4 steps', 'train anew with 6'): go(steps=6, lr_schedule='cosine')
    assert go(steps=4, lr_schedule='cosine').done and 'went_on' not in run.info

def test_a_run_with_nothing_kept_begins_anew_with_what_is_asked_for(go, said):
    def fail(line): raise BaseException('killed')
    with pytest.raises(BaseException, match='killed'): go(steps=4, watch=fail)
    run, whole = go(steps=3, lr=1e-4), go('whole', steps=3, lr=1e-4)
    assert same(run.weights, whole.weights) and 'went_on' not in run.info and run.recipe==whole.recipe and any('no checkpoint to go on from' in m for m in said())

def test_snapshots_of_another_learning_rate_are_not_taken_for_this_ones(base, quick, tmp_path, said):
    def go(lr, snapshots, stop): return train(quick(steps=4, checkpoint=2, lr=lr), tmp_path/'run', base=base, device='cpu', progress=False, every=1, resume=True, snapshots=snapshots, watch=stop)
    def kill(line):
        if line['step']==4: raise BaseException('killed')
    with pytest.raises(BaseException, match='killed'): go(1e-3, (1,3), kill)
    run = go(1e-4, (), None)
    assert [*run.snapshots]==[1] and (run.folder/'weights'/'earlier-step-000003.safetensors').exists() and any('another learning rate' in m for m in said())

@pytest.mark.parametrize('change, words', [
    (lambda ref: ref[:2], 'style: cat.png is gone'),
    (lambda ref: ImageSet([*ref, replace(ref[0], name='dog.png')], 'ref'), 'style: dog.png is new'),
    (lambda ref: ref[::-1], 'style: the same pictures come in another order'),
    (lambda ref: ImageSet([ref[0], replace(ref[1], caption='a beer'), ref[2]], 'ref'), 'style: bear.png or its caption is another'),
    (lambda ref: ImageSet([ref[0], replace(ref[1], data=ref[0].data), ref[2]], 'ref'), 'style: bear.png or its caption is another'),
    (lambda ref: ImageSet(ref.pictures, 'mine'), 'style: the name of the pictures was "ref" and is "mine"')])
def test_another_picture_is_named(go, ref, refused, change, words):
    run = go(steps=4, watch=lambda line: True)
    with refused(run.folder, words): go(steps=4, ref=change(ref))

# damaged files

@pytest.fixture(scope='module')
def half(base, quick, tmp_path_factory):
    "A run that stopped half-way."
    return train(quick(steps=4, checkpoint=2), tmp_path_factory.mktemp('half')/'run', base=base, device='cpu', progress=False, every=1, watch=lambda line: line['step']==2)

@pytest.fixture(scope='module')
def whole_run(base, quick, tmp_path_factory):
    return train(quick(steps=4, checkpoint=2), tmp_path_factory.mktemp('whole')/'run', base=base, device='cpu', progress=False, every=1)

STRANGE = [None, True, False, 0, -1, 1, 3.5, 10**30, 10**4000, float('nan'), float('inf'), '', 'x', '\0', '\ud800', 'a'*300, '../../x', [], {}, [1], ['x'], {'x': 1}, [[[]]], dict(name='lora'), dict(name=3)]

def spots(d, at=()):
    "Where something stands in plain data."
    yield at
    for k,v in d.items() if isinstance(d, dict) else enumerate(d) if isinstance(d, list) else (): yield from spots(v, (*at, k))

def spoil(d, at, value, gone):
    "A copy with another value, or none, at a spot."
    if not at: return value
    d = json.loads(json.dumps(d))
    *way, last = at
    inner = d
    for k in way: inner = inner[k]
    if gone: del inner[last]
    else: inner[last] = value
    return d

def damaged(data, text):
    "Damage to a file: bytes cut, changed or put in, or a value of the JSON in it changed or taken out."
    lines = text.splitlines() if '\n{' in text else [text]
    plain = json.loads(lines[0])
    if data.draw(st.booleans()):
        at, value, gone = data.draw(st.sampled_from(list(spots(plain)))), data.draw(st.sampled_from(STRANGE)), data.draw(st.booleans())
        return '\n'.join([json.dumps(spoil(plain, at, value, gone)), *lines[1:]]).encode()+b'\n'
    raw, i = text.encode(), data.draw(st.integers(0, len(text)-1))
    return data.draw(st.sampled_from([raw[:i], raw[:i]+b'\xff\0'+raw[i:], raw[:i]+b'['*100000+raw[i:], raw[:i]+b'}'+raw[i+1:], b'', b'9'*5000]))

def used(folder, base, quick):
    "Everything that is done with a run's folder; a sentence is as good as success."
    def look(f):
        try: return f()
        except StyleboostError as e: assert '\n' not in str(e) and str(e).endswith('.'), str(e)
    run = look(lambda: Run(folder))
    if run is not None:
        for f in (lambda: repr(run), lambda: run.log, lambda: run.method, lambda: run.words, lambda: run.phrase('a dog'), lambda: run.kept, lambda: run.model(base=base)): look(f)
    look(lambda: train(quick(steps=4, checkpoint=2), folder, base=base, device='cpu', progress=False, resume=True))

@pytest.mark.parametrize('file', ['recipe.json', 'log.jsonl', 'checkpoints/step-000002/state.json'])
@given(data=st.data())
@settings(max_examples=20)
def test_a_damaged_file_of_a_run_that_stopped_is_a_sentence(half, base, quick, tmp_path_factory, file, data):
    folder = tmp_path_factory.mktemp('damaged')/'run'
    shutil.copytree(half.folder, folder)
    (folder/file).write_bytes(damaged(data, (folder/file).read_text()))
    used(folder, base, quick)
    shutil.rmtree(folder)

@given(data=st.data())
@settings(max_examples=30)
def test_a_damaged_recipe_of_a_run_that_is_done_is_a_sentence(whole_run, base, quick, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp('damaged')/'run'
    shutil.copytree(whole_run.folder, folder)
    (folder/'recipe.json').write_bytes(damaged(data, (folder/'recipe.json').read_text()))
    used(folder, base, quick)
    shutil.rmtree(folder)

def test_a_log_is_read_up_to_where_a_kill_cut_it_and_damage_before_that_is_named(half, tmp_path, refused):
    folder = shutil.copytree(half.folder, tmp_path/'run')
    good, log = half.log, folder/'log.jsonl'
    for tail in ('{"step": 3, "sec', '\0\0\0\0', '{"step": 3}}\n', '3\n'):
        log.write_text(''.join(json.dumps(r)+'\n' for r in good)+tail)
        assert Run(folder).log==good
    log.write_text(json.dumps(good[0])+'\nnonsense\n'+json.dumps(good[1])+'\n')
    with refused(log, 'line 2'): Run(folder).log

# settings

SETTINGS = dict(name='other', token='ukj', background_token='wxz', method='lora', steps=3, batch=4, lr=1e-4, lr_schedule='linear', warmup=1, weight_decay=.5,
    grad_clip=1e-3, min_snr=1e-3, resolution=32, crops=1, flip=True, pad='longest', pairing='fixed', buckets=True, precision='bf16', weights='bfloat16', log_snr=-2., anchor=100., ema=.2)

def test_every_setting_changes_something_or_is_refused(base, quick, picture, tmp_path, refused):
    """Those that change what is learnt, each on its own. The others are levers (`attention`, `checkpointing`, `optimizer`, `accumulate`, `fused_backward`; tests/test_levers.py),
    what the command draws with when it is done (`steps_sampled`, `guidance`, `scheduler`; tests/test_cli.py), `log_snr_std`, which goes with another (tests/test_batches.py), and `base`, `bindings` and `checkpoint`."""
    other = {'attention','checkpointing','optimizer','accumulate','fused_backward','steps_sampled','guidance','scheduler','log_snr_std','base','bindings','checkpoint'}
    assert {f.name for f in fields(Recipe)}=={*SETTINGS, *other}
    wide = ImageSet([picture(n, (96,64)) for n in ('anna','bear','cat')], 'wide')
    plain = dict(ref=wide, steps=2, batch=2, resolution=64, lr_schedule='constant_with_warmup', lr=1e-3, prompt='a photo of style, longer than the other', precision='no', grad_clip=None)
    def learnt(**kw):
        r = quick(**{**plain, **{k:v for k,v in kw.items() if k not in ('name','background_token')}})
        r = replace(r, **{k:v for k,v in kw.items() if k in ('name','background_token')})
        run = train(r, tmp_path/'-'.join(kw or ['plain']), base=base, device='cpu', progress=False, every=1, seed=3)
        return [{k:v for k,v in l.items() if k!='seconds'} for l in run.log], {k:v.float() for k,v in load_file(run.weights).items()}, repr(run).split(',')[1], run.phrase('a dog')
    def differs(before, after):
        return before[0]!=after[0] or before[2:]!=after[2:] or before[1].keys()!=after[1].keys() or any(not torch.equal(v, after[1][k]) for k,v in before[1].items())
    before, low = learnt(), learnt(precision='bf16')
    after = {k: learnt(**{k:v}) if k!='weights' else learnt(weights=v, precision='bf16') for k,v in SETTINGS.items() if k!='precision'} | dict(precision=low)
    assert [k for k,a in after.items() if not differs(low if k=='weights' else before, a)]==[]

def test_a_setting_that_a_schedule_does_not_read_is_refused(quick, refused):
    with refused('warmup is 20', 'constant_with_warmup'): quick(warmup=20)
    with refused('cosine_with_restarts', 'choose one of'): quick(lr_schedule='cosine_with_restarts')
    with refused('polynomial', '1e-07'): quick(lr_schedule='polynomial', lr=1e-8)

def test_what_nothing_read_in_older_runs_is_read_as_what_it_did(quick):
    d = quick().to_dict()
    assert upgraded(dict(d, warmup=20))==d and upgraded(dict(d, lr_schedule='cosine_with_restarts', warmup=2))==dict(d, lr_schedule='cosine', warmup=2)

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
    with refused('two rare words', 'tokens='): multi(ref.where(people=True), ref.where(people=False), aux, token='abc')
    with refused("'zwx'"): multi(ref.where(people=True), ref.where(people=False), aux, tokens=('zwx','zwx'))
