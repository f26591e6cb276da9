"Studies: nothing is drawn twice, nothing is lost, nothing is mixed, and what is reported chose nothing."
import copy, json, math, os, re, shutil, signal, subprocess, sys, time
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd, pytest, torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import load_file, save_file

from styleboost.core import StyleboostError, write_whole
from styleboost.studies import arms, cells, study as rooms
from styleboost.pictures import images
from styleboost.studies.style import Style, embedded, own_style
from styleboost.studies.comparison import by_seed, in_words, paired, ranked, t_interval
from styleboost.judging.encoders import load_encoder
from styleboost.pictures.images import ImageSet
from styleboost.judging.metrics import METRICS, without
from styleboost.pictures.prompts import Prompt
from styleboost.training.recipes import with_prior
from styleboost.studies.results import COLUMNS, Results
from styleboost.studies.arms import Bench, Trained, Untouched, arm_name, arm_recipe
from styleboost.studies.cells import kept_scores, learn_cell, report_cell
from styleboost.studies.study import Study
from styleboost.studies.ready import FinishedRun, Ready, ready
from styleboost.exporting.export import export
from styleboost.showing.page import number_rows
from styleboost.judging.drift import score_elsewhere
from styleboost.training.runs import Run
from styleboost.widgets.compare import Compare, numbers_of

class Killed(BaseException): "Ends the process as far as the code can tell: nothing catches it."

@pytest.fixture(scope='module')
def style(ref, picture):
    asked = [Prompt(f'{w} {k}', k=='woman') for k in ('woman','dog') for w in ('red','old')]
    real = ImageSet([picture(f'real{i}', people=i%2==0) for i in range(10)], 'real')
    return Style('mine', ref, real, [replace(p, text=f'{p.text} to choose by') for p in asked], [replace(asked[0], truth=real[0]), *asked[1:]])

@pytest.fixture(scope='module')
def make(style, quick, base):
    "Makes a study that takes seconds: two arms, two seeds, two checkpoints, and no look at drift."
    def make(out, arms=None, **kw):
        if arms is None: arms = dict(none=quick(None), aux=quick())
        return Study(kw.pop('style', style), arms, out, **dict(dict(seeds=(0,1), steps=(1,2), base=base, sampler=1, device='cpu', drift=0), **kw))
    return make

@pytest.fixture(scope='module')
def straight(make, tmp_path_factory): return make(tmp_path_factory.mktemp('straight')/'study').run(progress=False)

def numbers(study): return study.table().sort_values(['arm','seed','split','step','group','metric']).reset_index(drop=True)

def same(a, b): pd.testing.assert_frame_equal(numbers(a), numbers(b))

# what is in it

def test_the_artists_own_pictures_are_a_row_where_all_prompts_have_them(make, quick, tmp_path, refused):
    study = make(tmp_path/'s', dict(aux=quick()), style=embedded(validation=2, test=8), seeds=(0,), steps=(1,)).run(progress=False)
    t = study.at_chosen()
    assert list(dict.fromkeys(t.arm))==['truth','base','aux'] and t[(t.arm=='truth')&(t.metric=='paired')&(t.group=='all')].value.item()==pytest.approx(1)
    assert [a.size for a in study.images('truth')]==[(64,64)]*8 and list(by_seed(t, 'style'))==['aux']
    data = json.loads((study.report().parent/'report.json').read_text())
    assert [c['name'] for c in data['columns']]==['truth','base','aux'] and "the artist's own" in data['columns'][0]['title']
    with refused("'truth' cannot be the name"): make(tmp_path/'t', dict(truth=quick()))

def test_every_number_has_its_place(straight):
    t = straight.table()
    assert list(t.columns)==COLUMNS and set(t.metric)<=set(METRICS) and t.value.notna().all()
    assert {(a,s) for a,s in zip(t.arm, t.seed)}=={('base',0), *straight.cells}
    assert (t[(t.group=='all')&(t.metric!='style_gap')].n<=4).all() and set(t.group)=={'people','things','all'}
    assert len(straight.done)==4 and straight.failed=={}

def test_test_prompts_are_drawn_at_the_chosen_step_alone(straight):
    t = straight.table()
    t = t[t.arm!='base']
    assert set(t[t.split=='validation'].step)=={1,2}
    for arm,step in straight.chosen.items():
        assert set(t[(t.arm==arm)&(t.split=='test')].step)=={step}
        assert straight.images(arm, 0, 3-step) is None and len(straight.images(arm, 0, step))==4
    assert len(straight.images('base'))==4 and straight.images('base')[0].size==(64,64)

def test_validation_chooses_and_test_has_no_say(straight, tmp_path):
    folder = shutil.copytree(straight.folder, tmp_path/'s')
    for s in straight.seeds:
        f = folder/'runs'/'aux'/f'seed-{s}'/'scores.json'
        kept = json.loads(f.read_text())
        for r in kept['rows']:
            if r['metric']=='style': r['value'] = float(r['step']==1) if r['split']=='validation' else 99.
        kept['rows'] += [dict(r, step=2) for r in kept['rows'] if r['split']=='test']
        f.write_text(json.dumps(kept))
    assert Results(folder).chosen['aux']==1

def test_arms_of_one_recipe_cannot_be_told_apart(make, quick, tmp_path):
    study = make(tmp_path/'s', dict(a=quick(), b=quick()), seeds=(0,1)).run(progress=False)
    for s in (0,1): assert [i.tobytes() for i in study.images('a', s, study.chosen['a'])]==[i.tobytes() for i in study.images('b', s, study.chosen['b'])]
    found = study.compare('style')
    assert list(found.difference)==[0] and list(found.verdict)==['no difference seen']
    assert study.images('a', 0, study.chosen['a'])[0].tobytes()!=study.images('a', 1, study.chosen['a'])[0].tobytes()

def test_the_folder_can_be_taken_elsewhere(straight, tmp_path):
    there = Study.open(shutil.copytree(straight.folder, tmp_path/'s'))
    same(there, straight)
    assert [p.text for p in there.prompts()]==[p.text for p in straight.prompts()]
    assert there.prompts()[0].truth.open().size==(64,64) and there.prompts()[1].truth is None
    assert len(there.ref)==len(straight.ref) and there.chosen==straight.chosen
    page = there.report()
    data = json.loads((page.parent/'report.json').read_text())
    assert [c['name'] for c in data['columns']]==['base','none','aux'] and data['verdict']
    machine = [f for f in there.folder.rglob('*.json') if str(straight.folder) in f.read_text()]
    assert machine==[]

def test_a_disk_too_small_for_the_weights_is_said_beforehand(straight, make, tmp_path, said, monkeypatch):
    room = lambda free: monkeypatch.setattr(shutil, 'disk_usage', lambda at: SimpleNamespace(free=free))
    study = make(tmp_path/'s')
    size = rooms.weights_bytes(study.recipes['none'], study.bench.loaded)
    file = Run(straight.run_folder('none', 0)).weights.stat().st_size
    assert .98*file<size<file
    room(size*8); study.begin()
    assert not any('GB' in m for m in said())
    room(size*8-1); study.begin()                                      # two arms, two seeds, two checkpoints
    assert any('GB of weights' in m and 'lora' in m for m in said())

@pytest.mark.parametrize('room', [rooms, cells])
def test_a_disk_that_becomes_full_is_said(make, tmp_path, refused, monkeypatch, room):
    "Also where what went wrong with a cell cannot be noted either."
    def full(files): raise OSError(28, 'No space left on device', str(next(iter(files))))
    study = make(tmp_path/'s', seeds=(0,))
    monkeypatch.setattr(room, 'write_whole', full)
    if room is cells: monkeypatch.setattr(rooms, 'write_whole', lambda files: full(files) if 'failed' in str(files) else write_whole(files))
    with refused('No space left', 'make room'): study.run(progress=False)

def test_few_prompts_are_scored_with_what_they_allow(make, tmp_path, said):
    make(tmp_path/'s', seeds=(0,)).run(progress=False)
    assert any('too few to measure kid, so style similarity chooses' in m for m in said())

# nothing twice, nothing lost

def test_what_a_killed_process_had_begun_to_write_is_gone_when_the_study_goes_on(make, tmp_path):
    study = make(tmp_path/'s', seeds=(0,))
    study.begin()
    for part in ('base/samples/.validation-000000.77.part', '.study.77.part.json'): (study.folder/part).mkdir(parents=True)
    (study.folder/'base/samples/.validation-000000.77.part/0.png').write_bytes(b'half')
    study.run(progress=False)
    assert len(study.done)==2 and [*study.folder.rglob('*.part')]==[]

def test_what_is_done_is_not_done_again(straight, make, monkeypatch):
    before = {f:f.stat().st_mtime_ns for f in straight.folder.rglob('*.json') if f.name!='study.json'}
    def never(*a, **kw): pytest.fail('done again')
    for room,name in ((arms,'train'), (arms,'sample'), (cells,'score')): monkeypatch.setattr(room, name, never)
    make(straight.folder).run(progress=False)
    assert before=={f:f.stat().st_mtime_ns for f in straight.folder.rglob('*.json') if f.name!='study.json'}

@pytest.mark.parametrize('room,what,nth,error', [
    (arms,'train',2,Killed), (arms,'sample',4,Killed), (cells,'score',3,Killed), (cells,'score',12,Killed), (images,'png',2,Killed), (images,'png',31,Killed),
    (arms,'sample',4,KeyboardInterrupt), (cells,'score',12,KeyboardInterrupt)])
def test_stopped_and_called_again_is_uninterrupted(straight, make, tmp_path, monkeypatch, said, room, what, nth, error):
    "In training, drawing, scoring, and in the middle of a folder of pictures."
    with monkeypatch.context() as m:
        count, real = [], getattr(room, what)
        def stop(*a, **kw):
            count.append(0)
            if len(count)==nth: raise error
            return real(*a, **kw)
        m.setattr(room, what, stop)
        with pytest.raises(error): make(tmp_path/'s').run(progress=False)
    assert error is Killed or any('of 4 cells done' in s for s in said())
    same(make(tmp_path/'s').run(progress=False), straight)

def test_a_cell_that_fails_is_kept_as_failed_and_the_rest_stands(straight, make, tmp_path, monkeypatch):
    with monkeypatch.context() as m:
        real = arms.train
        def fails(recipe, out, seed, **kw):
            if (recipe.name, seed)==('aux',1): raise RuntimeError('the card fell out\nand more')
            return real(recipe, out, seed, **kw)
        m.setattr(arms, 'train', fails)
        study = make(tmp_path/'s').run(progress=False)
    assert study.failed=={('aux',1): 'RuntimeError: the card fell out.'}
    assert len(study.done)==3 and list(study.table().query('metric=="failed"').arm)==['aux']
    assert list(study.compare('style').verdict)==['too few seeds']
    assert 'the card fell out' in study.report().read_text('utf-8')
    again = make(tmp_path/'s').run(progress=False)
    assert again.failed=={} and again.chosen==straight.chosen
    pd.testing.assert_frame_equal(*(s.at_chosen().sort_values(['arm','seed','metric','group']).reset_index(drop=True) for s in (again, straight)))

def test_more_arms_and_seeds_are_added(straight, make, quick, tmp_path):
    folder = shutil.copytree(straight.folder, tmp_path/'s')
    study = make(folder, dict(none=quick(None), aux=quick(), half=quick(weight=.5)), seeds=(0,))
    assert study.arms==['none','aux','half'] and study.seeds==(0,1)
    study.run(progress=False)
    assert len(study.done)==6

def test_a_process_that_is_killed_goes_on(tmp_path, ref, aux, picture):
    ref.save(tmp_path/'ref'); aux.save(tmp_path/'aux')
    ImageSet([picture(f'real{i}', people=i%2==0) for i in range(9)], 'real').save(tmp_path/'real')
    (tmp_path/'cheap.json').write_text(json.dumps(dict(batch=1, scheduler='euler')))                    # the sampler of a run's own pictures is not the study's
    call = [sys.executable, '-m', 'styleboost.cli', 'compare', '--ref', 'ref', '--reference', 'real', '--aux', 'aux', '--seeds', '1', '--steps', '1,2', '--sampler', '1', '--recipe', 'cheap.json', '--out', 's']
    p = subprocess.Popen(call, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    t = time.monotonic()
    while not list(tmp_path.glob('s/runs/*/*/recipe.json')) and p.poll() is None and time.monotonic()-t<300: time.sleep(.02)
    p.send_signal(signal.SIGKILL); p.wait()
    assert p.returncode==-signal.SIGKILL and not (tmp_path/'s'/'report.html').exists()
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode==0, done.stderr
    found = Results(tmp_path/'s')
    assert len(found.done)==2 and (tmp_path/'s'/'report.html').exists() and found.info['sampler']['scheduler']=='dpmpp'
    assert 'The arm without a prior is added' in done.stdout

@pytest.mark.parametrize('scored', [True, False])
def test_a_picture_that_was_lost_or_spoilt(straight, make, tmp_path, said, scored):
    "Its scores stand and the report leaves it empty; unscored, all are drawn again and what was left is kept."
    folder = shutil.copytree(straight.folder, tmp_path/'s')
    run, step = straight.run_folder('aux', 0).relative_to(straight.folder), straight.chosen['aux']
    files = sorted((folder/run/'samples'/f'test-{step:06d}').glob('*.png'))
    files[0].unlink(); files[2].write_text('no picture')
    if not scored: (folder/run/'scores.json').unlink()
    study = make(folder).run(progress=False)
    same(study, straight)
    assert [im is None for im in study.images('aux', 0, step)]==[scored, False, scored, False]
    assert study.report().exists() and len(study.done)==4
    aside = folder/run/'samples'/f'test-{step:06d}.left-1'
    assert aside.exists()!=scored and any('missing' in m and aside.name in m for m in said())!=scored
    if not scored: assert (aside/files[1].name).exists()

def test_drawn_pictures_are_read_from_their_own_folder_alone(picture, tmp_path, refused, said):
    at, secret = cells.sheet_folder(tmp_path, 'test', 1), tmp_path/'secret.png'
    at.mkdir(parents=True); secret.write_bytes(picture('a').data); (at/'1.png').symlink_to(secret); (at/'2.png').write_bytes(picture('b').data)
    (at/'out').symlink_to(tmp_path)
    (at/'metadata.jsonl').write_text(''.join(json.dumps(dict(file_name=n))+'\n' for n in ('1.png','2.png','out/secret.png')))
    assert [im is None for im in cells.kept_pictures(tmp_path, 'test', 1)]==[True, False, True] and sum('link' in m for m in said())==2
    (at/'metadata.jsonl').write_text(json.dumps(dict(file_name=str(secret))))
    with refused('metadata.jsonl', str(secret)[:60]): cells.kept_pictures(tmp_path, 'test', 1)

def test_the_bases_pictures_are_drawn_again_where_one_is_lost(straight, make, tmp_path):
    folder = shutil.copytree(straight.folder, tmp_path/'s')
    next((folder/'base'/'samples'/'test-000000').glob('*.png')).unlink()
    study = make(folder).run(progress=False)
    same(study, straight)
    assert all(study.images('base')) and len(study.images('base'))==4

def test_a_folder_belongs_to_one_process(straight, make, tmp_path, refused):
    folder = shutil.copytree(straight.folder, tmp_path/'s')
    hold = 'import sys; from filelock import FileLock; lock = FileLock(sys.argv[1]); lock.acquire(); print("held", flush=True); sys.stdin.read()'
    other = subprocess.Popen([sys.executable, '-c', hold, str(folder/'.lock')], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline()=='held\n'
    with refused('Another process is at work', folder): make(folder).run(progress=False)
    other.kill(); other.wait()
    assert len(make(folder).run(progress=False).done)==4                                     # a lock ends with its process

@pytest.mark.parametrize('nth', [1, 2])
def test_a_study_that_is_moved_while_it_runs_begins_no_other_in_its_place(straight, make, tmp_path, monkeypatch, refused, nth):
    at, there, count = tmp_path/'s', tmp_path/'there', []
    with monkeypatch.context() as m:
        def moves(*a, real=arms.train, **kw):
            run = real(*a, **kw)
            count.append(0)
            if len(count)==nth: at.rename(there)
            return run
        m.setattr(arms, 'train', moves)
        with refused(at, 'is gone from here', 'put it back'): make(at).run(progress=False)
    assert len(count)==nth and not at.exists()
    same(make(there).run(progress=False), straight)

def test_what_another_process_added_is_not_forgotten(straight, make, tmp_path):
    folder = shutil.copytree(straight.folder, tmp_path/'s')
    before = make(folder)
    make(folder, seeds=(2,)).begin(); before.begin()
    assert Results(folder).seeds==before.seeds==(0,1,2)

# nothing is mixed

@pytest.mark.parametrize('change,words', [
    (dict(steps=(1,3)), ('steps differs in 1 of 2 places',)), (dict(sampler=2), ('sampler.steps was 1 and is 2',)), (dict(choose='style'), ('choose was "kid" and is "style"',)), (dict(guidance=3.), ('guidance',))])
def test_another_setting_is_refused(straight, make, refused, change, words):
    with refused('holds another study', *words): make(straight.folder, **change)

def test_another_judge_is_refused_however_it_is_given(straight, make, refused):
    class Other: name = 'other'
    make(straight.folder, judge='world')
    with refused('judge was "world ', 'and is "other"'): make(straight.folder, judge=Other())
    tuned = copy.deepcopy(load_encoder('world'))                                            # by the same name, with other weights
    tuned.image.person.bias.add_(1)
    with refused('judge was "world ', 'and is "world '): make(straight.folder, judge=tuned)
    with refused('There is no encoder'): make(straight.folder, judge='nowhere.safetensors')

def test_another_recipe_prompt_or_missing_arm_is_refused(straight, make, quick, style, refused):
    with refused('aux.lr was 0.001 and is 0.01'): make(straight.folder, dict(none=quick(None), aux=quick(lr=1e-2)))
    with refused('aux.bindings'): make(straight.folder, dict(none=quick(None), aux=quick(weight=.5)))
    with refused('arm aux is missing'): make(straight.folder, dict(none=quick(None)))
    with refused('style.test differs in 1 of 4'): make(straight.folder, style=replace(style, test=style.test[:3]))

def test_other_flags_of_the_reference_are_refused(straight, make, style, refused):
    "The hash of a set knows its pictures and captions; who is called a person changes the scores all the same."
    turned = ImageSet([replace(p, people=not p.people) for p in style.reference], style.reference.name)
    assert turned.hash==style.reference.hash
    with refused('holds another study', 'people_in_reference was "5 of 10, '): make(straight.folder, style=replace(style, reference=turned))

def test_another_base_or_version_is_refused(straight, make, refused, lively, monkeypatch):
    with refused('weights were', 'disturbed'): make(straight.folder, base=lively).run(progress=False)
    monkeypatch.setattr(rooms, '__version__', '99')
    with refused('version was', '"99"'): make(straight.folder)

def test_other_versions_of_libraries_are_named(straight, make, tmp_path, said):
    folder = shutil.copytree(straight.folder, tmp_path/'s')
    info = json.loads((folder/'study.json').read_text()); info['versions']['torch'] = '0.1'
    (folder/'study.json').write_text(json.dumps(info))
    make(folder)
    assert any('torch' in m and 'last digits' in m for m in said())

def test_a_folder_with_something_else_is_left_alone(make, tmp_path, refused):
    (tmp_path/'mine.txt').write_text('precious')
    with refused('holds no study'): make(tmp_path).run(progress=False)
    assert [f.name for f in tmp_path.iterdir()]==['mine.txt']
    with refused('is no study'): Study.open(tmp_path)
    (tmp_path/'study.json').write_text('{"version":')
    with refused('cannot be read'): Study.open(tmp_path)

# files that somebody changed

@pytest.fixture(scope='module')
def mutable(straight, tmp_path_factory):
    "A copy of a study that runs nothing, and gets its files back after each mutation."
    return shutil.copytree(straight.folder, tmp_path_factory.mktemp('mutable')/'s')

THINGS = [None, True, False, 0, 1, -1, 10**400, 2**64, 1e308, -1e308, math.inf, math.nan, '', 'kid', 'x', '../..', '\ud800', '\x1b[2J', [], [[]], {}, {'': 0}, [None], 'aux', 'base']

def places(value, at=()):
    "Every place in plain data, that of all of it included."
    yield at
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for k,v in parts: yield from places(v, (*at, k))

def mutated(value, at, how, thing):
    "The data with one place replaced, removed, doubled or renamed."
    if not at: return thing
    value = copy.deepcopy(value); parent = value
    for k in at[:-1]: parent = parent[k]
    if how=='replace': parent[at[-1]] = thing
    elif how=='remove': del parent[at[-1]]
    elif isinstance(parent, list): parent.append(parent[at[-1]])
    else: parent[str(thing)] = parent.pop(at[-1])
    return value

LOOKS = dict(open=lambda s: repr(s), table=lambda s: s.table(), chosen=lambda s: (s.chosen, s.failed, s.prompts()), compare=lambda s: s.compare('style'), report=lambda s: s.report())

@settings(max_examples=100)
@given(st.data())
@pytest.mark.filterwarnings('ignore')
def test_a_changed_file_ends_in_a_sentence_or_a_table(mutable, data):
    file = mutable/data.draw(st.sampled_from(['study.json', 'base/scores.json', 'runs/aux/seed-0/scores.json', 'runs/none/seed-1/scores.json']))
    was = file.read_bytes()
    held = json.loads(was)
    at = data.draw(st.sampled_from(list(places(held))))
    if data.draw(st.integers(0, 5)): new = json.dumps(mutated(held, at, data.draw(st.sampled_from(['replace','remove','double'])), data.draw(st.sampled_from(THINGS)))).encode()
    else:                                                                         # a byte is another, or the end is missing
        i = data.draw(st.integers(0, len(was)-1))
        new = was[:i]+data.draw(st.sampled_from([b'', bytes([data.draw(st.integers(0, 255))])+was[i+1:], b'['*10**5]))
    file.write_bytes(new)
    try:
        for look in LOOKS.values():
            try: look(Results(mutable))
            except StyleboostError as e: assert '\n' not in str(e) and str(e).endswith('.')
    finally: file.write_bytes(was)

@pytest.mark.parametrize('where, new, words', [
    (('arms',), {'../../../etc': {}}, 'cannot be the name of an arm'), (('arms','none'), 3, 'arms.none is 3'), (('seeds',0), 10**400, 'cannot be read'), (('seeds',), [], 'no seeds'),
    (('steps',1), '2', 'steps[1] is "2"'), (('choose',), 'beauty', 'not measured here'), (('sampler','guidance'), None, 'sampler.guidance is null'), (('style','test',0,'people'), 'yes', 'style.test[0].people')])
def test_what_a_study_says_wrongly_is_named(straight, tmp_path, refused, where, new, words):
    (tmp_path/'study.json').write_text(json.dumps(mutated(straight.info, where, 'replace', new)))
    with refused(tmp_path, words): Results(tmp_path)

def test_a_strangers_study_reads_nothing_outside_its_folder(straight, tmp_path, picture, refused):
    folder, mine = shutil.copytree(straight.folder, tmp_path/'s'), tmp_path/'mine.png'
    mine.write_bytes(picture('private').bytes())
    step = straight.chosen['aux']
    rows = folder/'runs'/'aux'/'seed-0'/'samples'/f'test-{step:06d}'/'metadata.jsonl'
    lines = rows.read_text().splitlines()
    for name in (str(mine), '../'*6+'mine.png'):
        rows.write_text('\n'.join([json.dumps(dict(json.loads(lines[0]), file_name=name)), *lines[1:]])+'\n')
        with refused('metadata.jsonl', 'no name of a file in the folder'): Results(folder).images('aux', 0, step)
    for at in (folder/'sets'/'ref'/'0.png', folder/'runs'/'aux'/'seed-1.failed', folder/'more'):
        at.symlink_to(tmp_path if at.name=='more' else mine)
        with refused('leads out of the study', at.name): Results(folder)
        at.unlink()
    (folder/'again').symlink_to(folder/'runs')                                   # within it is its own affair
    assert Results(folder).done

def test_a_pipe_in_place_of_a_file_keeps_nobody_waiting(straight, tmp_path, refused):
    folder = shutil.copytree(straight.folder, tmp_path/'s')
    file = folder/'runs'/'aux'/'seed-0'/'scores.json'
    file.unlink(); os.mkfifo(file)
    with refused('scores.json', 'it is no file'): Results(folder).table()

# what it is about

def test_a_prompt_may_not_choose_and_be_reported(style, refused):
    with refused('both in the validation and in the test prompts', 'red woman'): replace(style, validation=[Prompt('Red  Woman')])
    with refused('no validation prompts'): replace(style, validation=[])

def test_what_is_trained_on_is_not_scored_against(style, ref, aux, quick, make, tmp_path, said, refused):
    assert len(replace(style, reference=style.reference+ref).reference)==10
    assert any(f'{len(ref)} of {10+len(ref)} pictures are also trained on' in m for m in said())
    assert len(make(tmp_path/'s', style=replace(style, reference=style.reference+aux)).style.reference)==10
    with refused('reward copying'): replace(style, reference=ref)

def test_variants_of_what_is_trained_on_are_not_scored_against(ref, picture, said):
    kin = ImageSet([replace(picture('curly', people=True), set='mine', subject='farmer')], 'ref')
    real = ImageSet([replace(picture(f'r{i}', people=True), set=s, subject=t) for i,(s,t) in enumerate([('mine','farmer'),('other','farmer'),('mine','cook'),('','')])], 'real')
    assert [p.name for p in without(real, [kin])]==[p.name for p in real][1:] and any('1 of 4 pictures' in m and 'variants' in m for m in said())

def test_a_style_of_ones_own(tmp_path, ref, picture, said, refused):
    ref.save(tmp_path/'ref')
    ImageSet([picture(f'real{i}', people=i%2==0) for i in range(9)], 'real').save(tmp_path/'real')
    mine = own_style(tmp_path/'ref', tmp_path/'real')
    assert mine.name=='ref' and len(mine.test)+len(mine.validation)==9 and all(p.truth for p in mine.test)
    assert {p.people for p in mine.validation}=={True, False} and any('choose the step' in m for m in said())
    (tmp_path/'p.txt').write_text('a cook\n')
    with refused('cannot both choose'): own_style(tmp_path/'ref', tmp_path/'real', tmp_path/'p.txt')
    (tmp_path/'v.txt').write_text('a cook \n')
    with refused('both in the validation'): own_style(tmp_path/'ref', tmp_path/'real', tmp_path/'p.txt', tmp_path/'v.txt')
    (tmp_path/'p.txt').write_text('a cook\na house\na  Cook\na dog\n')
    with refused("'a  Cook' more than once"): own_style(tmp_path/'ref', tmp_path/'real', tmp_path/'p.txt')
    bare = ImageSet([picture(f'bare{i}', caption='') for i in range(4)], 'bare')
    with refused('No prompts were given'): own_style(ref, bare)

def test_words_make_arms_that_differ_in_the_prior_alone(ref, tmp_path, aux, said, refused, make):
    aux.save(tmp_path/'portraits')
    recipes = {arm_name(w): arm_recipe(w, ref, 5) for w in ('none','generated','generated:a photo of art','world:micah',str(tmp_path/'portraits'),'suggest:world:micah')}
    assert list(recipes)==['none','generated','generated-a-photo-of-art','micah','portraits','suggest-world-micah']
    assert len({with_prior(r, None, name='x').hash for r in recipes.values()})==1
    assert [len(r.bindings) for r in recipes.values()]==[1,2,2,2,2,2] and recipes['generated-a-photo-of-art'].bindings[1].prompt=='a photo of art'
    assert len(recipes['portraits'].bindings[1].images)==4 and any('has 4 pictures, fewer than the 5' in m for m in said())
    assert not any('differ in number' in m for m in said())
    made = make(tmp_path/'n', ['world:micah', str(tmp_path/'portraits')])
    assert [len(b.images) for r in made.recipes.values() for b in r.bindings if b.role=='prior']==[20, 4] and any('(micah 20, portraits 4)' in m for m in said())
    with refused('Two arms are called'): make(tmp_path/'s', ['world:micah','micah:'])
    for name in ('base','a/b','..',''):
        with refused('cannot be the name of an arm'): make(tmp_path/'s', {name: 'none'})
    with refused('needs arms'): make(tmp_path/'s', [])

@pytest.mark.parametrize('kw,words', [(dict(seeds=()), ['seeds']), (dict(seeds=(-1,)), ['seeds']), (dict(steps=()), ['checkpoints']), (dict(steps=(0,2)), ['checkpoints']), (dict(choose='beauty'), ['no metric']), (dict(choose='people_rate'), ['no metric']), (dict(sampler=0), ['0 sampler steps'])])
def test_wrong_calls(make, tmp_path, refused, kw, words):
    with refused(*words): make(tmp_path/'s', **kw)
    assert not (tmp_path/'s').exists()

def test_a_scheduler_that_does_not_exist_spoils_no_folder(make, tmp_path, refused):
    with refused('no scheduler', 'dpmp'): make(tmp_path/'s', scheduler='dpmp').run(progress=False)
    assert not (tmp_path/'s'/'study.json').exists()

@pytest.mark.parametrize('kw,words', [(dict(resolution=63), ['The resolution 63']), (dict(token='two words'), ['is not one word'])])
def test_an_arm_that_cannot_be_trained_spoils_no_folder(make, quick, tmp_path, refused, kw, words):
    with refused('The arm aux cannot be trained', *words): make(tmp_path/'s', dict(none=quick(None), aux=replace(quick(), **kw))).run(progress=False)
    assert not (tmp_path/'s').exists()

def test_no_arm_has_a_method_that_does_not_exist(quick, refused):
    with refused('There is no method', 'nope'): replace(quick(), method='nope')

# arms

def test_anything_that_prepares_and_draws_is_an_arm(style, base, tmp_path):
    "One that trains nothing goes through both halves of a cell, and is asked for equal noise at every step."
    asked = []
    class Copies:
        ref = style.ref
        def prepare(self, folder, seed, tell=None): pass
        def draw(self, prompts, seeds, step=None):
            asked.append((len(prompts), list(seeds)[0], step))
            return [style.reference[0].open() for _ in prompts]
    bench = Bench(style, base, (1,2), tmp_path, device='cpu')
    learn_cell(bench, Copies(), tmp_path/'copies', 3)
    report_cell(bench, Copies(), tmp_path/'copies', 3, 2)
    assert asked==[(4, 7*10**6, 1), (4, 7*10**6, 2), (4, 6*10**6, 2)]
    places = {(r['split'], r['step']) for r in kept_scores(tmp_path/'copies')['rows']}
    assert places=={('validation',1), ('validation',2), ('test',2)}

def test_a_trained_arm_is_trained_once_and_draws_the_same_again(style, base, quick, tmp_path, monkeypatch):
    bench, shares = Bench(style, base, (1,2), tmp_path, draw_steps=1, device='cpu'), []
    def drawn(arm, tell=None):
        arm.prepare(tmp_path/'run', 0, tell)
        return [im.tobytes() for step in (1,2,None) for im in arm.draw(style.test, range(4), step)]
    first = drawn(Trained(bench, quick()), shares.append)
    assert shares[-1]==1 and Run(tmp_path/'run').done and first[4:8]==first[8:]          # the last checkpoint is the end
    monkeypatch.setattr(arms, 'train', lambda *a, **kw: pytest.fail('trained again'))
    assert drawn(Trained(bench, quick()))==first

@pytest.mark.parametrize('kw, own', [({}, 3.), (dict(guidance=7.), 3.), (dict(guidance=0.), 0.), (dict(guidance=5.), 5.), (dict(method='dreamartist'), 5.), (dict(method='dreamartist', guidance=7.), 7.)], ids=str)
def test_an_arm_is_drawn_with_its_own_guidance_where_the_style_is_asked_for(style, base, quick, tmp_path, monkeypatch, kw, own):
    "7 is what a recipe says that was filled in, so it is nobody's choice but where a method has another. Elsewhere all arms keep to the study's."
    bench, seen, draw = Bench(style, base, (1,), tmp_path, draw_steps=1, guidance=3., device='cpu'), [], arms.sample
    monkeypatch.setattr(arms, 'sample', lambda *a, **k: seen.append(a[4]) or draw(*a, **k))
    arm = Trained(bench, quick(**kw))
    arm.prepare(tmp_path/'run', 0)
    there = Ready(bench, FinishedRun(tmp_path/'run'))
    for a in (arm, there): a.draw(style.test[:1], [0]), a.draw(style.test[:1], [0], literal=True)
    assert seen==[own, 3., own, 3.]

def test_the_untouched_base_is_an_arm(style, base, quick, tmp_path):
    bench = Bench(style, base, (1,2), tmp_path, draw_steps=1, device='cpu')
    arm = Untouched(bench, quick(None).method.phrase)
    arm.prepare(tmp_path/'base', 0)
    texts = [f'a photo of zwx style, {p.text}' for p in style.test]
    plain = arms.sample(base, texts, 5, 1, bench.guidance, bench.sampler)
    assert [im.tobytes() for im in arm.draw(style.test, range(5,9))]==[im.tobytes() for im in plain]
    assert not (tmp_path/'base').exists()

# comparison

def table(values, metric='kid', **kw): return [dict(dict(arm=a, seed=s, step=1, split='test', group='all', metric=metric, value=v, low=None, high=None, n=9), **kw) for a,vs in values.items() for s,v in enumerate(vs)]

def test_a_study_without_a_finished_cell_says_so(refused):
    alone = pd.DataFrame(table(dict(base=[1.])))
    for look in (paired, ranked):
        with refused('no arm', 'run the study'): look(alone)

def test_intervals_cover_a_known_difference():
    g = torch.Generator().manual_seed(3)
    hit = 0
    for luck in torch.randn(1000, 3, 3, generator=g).double():
        none, aux = luck[0]+luck[2], luck[1]+luck[2]+.7                    # what both arms share falls out
        r = paired(pd.DataFrame(table(dict(none=none.tolist(), aux=aux.tolist())))).iloc[0]
        hit += r.low<=.7<=r.high
    assert .93<=hit/1000<=.97

def test_the_interval_is_students():
    mean, low, high = t_interval([1., 2., 4.])
    assert mean==pytest.approx(7/3) and high-mean==pytest.approx(4.302653*1.527525/3**.5, rel=1e-3) and low+high==pytest.approx(2*mean)

def test_what_may_be_said():
    found = paired(pd.DataFrame(table(dict(none=[.5,.6,.7], near=[.1,.2,.31], far=[.9,1.,1.12], same=[.4,.7,.7], one=[.1]))))
    assert dict(zip(found.arm, found.verdict))==dict(near='better', far='worse', same='no difference seen', one='too few seeds')
    assert list(found.seeds)==[3,3,3,1] and not found.holds[2] and found.holds[0]
    words = in_words(found)
    assert words[0].startswith('near is better than none') and 'no difference seen' in words[2] and 'an interval needs two' in words[3] and '4 comparisons' in words[-1]
    up = paired(pd.DataFrame(table(dict(none=[.5,.6,.7], near=[.1,.2,.31]), 'style')), 'style')
    assert list(up.verdict)==['worse']

def test_shares_that_agree_by_chance_are_no_certainty():
    "One prompt of 32 against two, three times: no scatter, and still no verdict; a difference of many prompts is one."
    few = paired(pd.DataFrame(table(dict(none=[1/32]*3, aux=[2/32]*3, all=[1.]*3), 'false_people_rate', group='things', n=32)), 'false_people_rate', 'things')
    assert list(few.verdict)==['no difference seen','worse'] and list(few.holds)==[False,True] and (few.low<few.difference).all()
    g, wrong = torch.Generator().manual_seed(0), 0
    for rates in torch.rand(1000, 2, 3, 32, generator=g).lt(.05).double().mean(-1).tolist():
        wrong += paired(pd.DataFrame(table(dict(none=rates[0], aux=rates[1]), 'people_rate', group='people', n=32)), 'people_rate', 'people', confidence=1-.05/3).verdict[0]!='no difference seen'
    assert wrong/1000<.05/3

def test_where_plain_features_disagree_the_table_shows_it():
    t = pd.DataFrame(table(dict(none=[.5,.6,.7], near=[.1,.2,.31], other=[.2,.3,.4])) + table(dict(none=[.5,.6,.7], near=[.9,1.,1.12], other=[.45,.7,.7]), 'plain_kid'))
    found, order = paired(t), ranked(t)
    assert list(found.verdict)==['better','better'] and list(found.plain)==['worse','no difference seen'] and not found.agree.any()
    assert list(order.arm)==['near','other','none'] and list(order.plain_rank)==[3,2,1] and list(order.agree)==[False,True,False]
    assert 'by plain features: worse' in in_words(found)[0]

def test_questions_the_table_cannot_answer(refused):
    t = pd.DataFrame(table(dict(none=[1.,2.], a=[1.,2.])))
    with refused('no arm'): paired(t, against='b')
    with refused('Nothing was measured'): paired(t, 'style')
    with refused('no group'): paired(t, group='people')
    rates = pd.concat([t, pd.DataFrame(table(dict(none=[1.,2.], a=[1.,2.]), 'people_rate', group='people'))])
    with refused("people_rate is not measured for the group 'all'", 'choose people'): paired(rates, 'people_rate')
    with refused('more than one'): paired(pd.concat([t, t.assign(step=2)]))

# elsewhere

@pytest.fixture(scope='module')
def moved(make, tmp_path_factory): return make(tmp_path_factory.mktemp('moved')/'study', drift=12).run(progress=False)

def folders(study, name): return sorted(str(f.relative_to(study.folder)) for f in study.folder.rglob(name))

def test_the_base_draws_elsewhere_once_a_seed_and_each_cell_once(moved):
    assert folders(moved, 'elsewhere*')==sorted([*(f'base/samples/elsewhere-seed-{s}-000000' for s in (0,1)),
        *(f'runs/{a}/seed-{s}/samples/elsewhere-{moved.chosen[a]:06d}' for a,s in moved.cells)])
    assert moved.kept('none', 0)['seconds']['elsewhere']>0 and moved.kept('base')['seconds']['elsewhere']>0

def test_drift_is_of_the_same_prompts_and_noise_without_the_word(moved, base):
    "The pictures are those of the run and of the base for the bare texts, and the numbers those of the pictures."
    few, step = moved.bench.elsewhere, moved.chosen['aux']
    assert [p.text for p in few.prompts]==[f'a photo of style, {p.text}' for p in moved.style.test]+[p.text for p in moved.style.test]
    for s in moved.seeds:
        folder, first = moved.run_folder('aux', s), 2*10**6*s+5*10**5
        was, now = cells.kept_pictures(moved.run_folder('base'), f'elsewhere-seed-{s}', 0), cells.kept_pictures(folder, 'elsewhere', step)
        texts, how = [p.text for p in few.prompts], (1, moved.bench.guidance, moved.bench.sampler)
        for kept,model in ((was, base), (now, Run(folder, step).model('cpu', base))):
            assert [im.tobytes() for im in kept]==[im.tobytes() for im in arms.sample(model, texts, list(range(first, first+len(texts))), *how, raw=True)]
        t = score_elsewhere(now, was, few, moved.style.reference)
        rows = {(r['group'], r['metric']): r['value'] for r in moved.kept('aux', s)['rows'] if r['split']=='test'}
        assert rows['things','drift']==pytest.approx(t.drift['things']) and rows['all','class_leak']==pytest.approx(t.class_leak['all'])
    of_base = moved.table().query('arm=="base" and split=="test"')
    assert of_base[of_base.metric=='drift'].value.abs().max()<1e-6 and (of_base.metric=='diversity_elsewhere').any()

def test_the_report_draws_the_front(moved):
    page = moved.report()
    data = json.loads((page.parent/'report.json').read_text())
    section = next(s for s in data['sections'] if s['head']=='Style against drift')
    assert [r[''] for r in section['rows']]==['untouched base','none','aux']
    assert any(v.startswith(('Most style for least drift','No arm has more')) for v in data['verdict']) and 'aria-label="Style against drift"' in page.read_text('utf-8')

@pytest.mark.parametrize('low', [.1, -.1])
def test_a_report_says_first_whether_style_can_be_trusted(moved, tmp_path, monkeypatch, low):
    rows = moved.at_chosen()
    rows.loc[rows.metric=='style_gap', ['value','low','high']] = [.2, low, .4]
    monkeypatch.setattr(Results, 'at_chosen', lambda self, split='test': rows)
    data = json.loads((moved.report(tmp_path).parent/'report.json').read_text())
    assert list(data['facts'].items())[0]==('style told apart', f'0.20 ({low:.2f} to 0.40)')
    about = next(s['about'] for s in data['sections'] if s['head']=='Style against drift')
    for text in (data['verdict'][0], about): assert ('does not tell this style from others: 0.20' in text)==(low<0)

def test_drift_stands_under_the_pictures_and_on_the_page(moved, tmp_path):
    c = Compare(moved)
    page = json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', c.export(tmp_path/'page.html').read_text('utf-8'), re.S)[1])
    for group in ('all','people','things'):
        c.group = group
        values = {k: numbers_of(c.table, k, 0, moved.chosen.get(k), group) for k in c.columns}
        assert values['aux']['drift'][0]>0
        for label,_,shown in number_rows(c.columns, values, {m: METRICS[m] for m in ('drift','leak')}):
            for html in (c._numbers.value, page['numbers'][f'test|{group}|0|chosen']): assert label in html and [x for x in shown if x not in html]==[]

def test_a_study_that_was_begun_without_drift_goes_on_without_it(make, quick, tmp_path, said):
    "As version 0.1 wrote it: no strengths, no prompts elsewhere, and nothing of them in the scores."
    folder = make(tmp_path/'s', dict(none=quick(None)), seeds=(0,)).run(progress=False).folder
    info = json.loads((folder/'study.json').read_text())
    assert info.pop('strengths')==[1.] and info.pop('elsewhere') is None
    (folder/'study.json').write_text(json.dumps(info))
    assert 'strength' not in (folder/'runs'/'none'/'seed-0'/'scores.json').read_text()
    assert len(Results(folder).done)==1 and 'drift' not in set(Results(folder).table().metric)
    more = make(folder, dict(none=quick(None)), seeds=(0,1), drift=12).run(progress=False)
    assert any('begun without a look at drift' in m for m in said())
    assert len(more.done)==2 and 'drift' not in set(more.table().metric) and folders(more, 'elsewhere*')==[]
    assert 'Style against drift' not in more.report().read_text('utf-8')

def test_too_few_prompts_leave_drift_out_and_who_asks_for_fewer_is_refused(make, style, quick, tmp_path, said, refused):
    few = replace(style, test=style.test[:3])
    assert make(tmp_path/'s', dict(none=quick(None)), style=few, drift=12).bench.elsewhere is None
    assert any('Drift needs 4 prompts' in m and 'It is left out' in m for m in said())
    with refused('Drift needs 4 prompts', 'has 2'): make(tmp_path/'s', drift=1)
    with refused('no metric', 'drift'): make(tmp_path/'s', choose='drift')

def test_stopped_while_it_draws_elsewhere_and_called_again_is_uninterrupted(make, quick, tmp_path, monkeypatch):
    one = dict(arms=dict(aux=quick()), seeds=(0,), steps=(1,), drift=12)
    with monkeypatch.context() as m:
        count, real = [], arms.sample
        def stop(model, texts, *a, **kw):
            count.append(texts)
            if len(count)==6: raise Killed
            return real(model, texts, *a, **kw)
        m.setattr(arms, 'sample', stop)
        with pytest.raises(Killed): make(tmp_path/'s', **one).run(progress=False)
    assert count[0]==count[5] and count[5][0].startswith('a photo of style, ')              # by the base, and by the cell
    same(make(tmp_path/'s', **one).run(progress=False), make(tmp_path/'t', **one).run(progress=False))

# strengths

def test_validation_chooses_step_and_strength_together(make, quick, tmp_path):
    study = make(tmp_path/'s', dict(aux=quick(method='lora')), seeds=(0,), strengths=(.5,1)).run(progress=False)
    assert study.points('aux')==[(1,.5),(1,1.),(2,.5),(2,1.)]
    val = study.table().query('arm=="aux" and split=="validation" and metric=="style" and group=="all"').set_index(['step','strength']).value
    assert len(val)==4 and study.chosen_points['aux']==val.idxmax()
    file = study.run_folder('aux', 0)/'scores.json'
    kept = json.loads(file.read_text())
    for r in kept['rows']:
        if r['metric']=='style' and r['split']=='validation': r['value'] = float((r['step'], r.get('strength', 1))==(1,.5))
    file.write_text(json.dumps(kept))
    study.run(progress=False)
    assert study.chosen_points['aux']==(1,.5) and study.chosen['aux']==1 and len(study.done)==1
    t = study.at_chosen()
    assert set(t[t.arm=='aux'].strength)=={.5}
    assert cells.sheet_folder(study.run_folder('aux', 0), 'test', 1, .5).name=='test-000001-at-0.5' and len(study.images('aux', 0, 1))==4
    assert [im.tobytes() for im in study.images('aux', 0, 1)]==[im.tobytes() for im in arms.sample(Run(study.run_folder('aux', 0), 1, .5).model('cpu', study.bench.loaded), [f'a photo of zwx style, {p.text}' for p in study.style.test], list(range(4)), 1, 7., 'dpmpp', raw=True)]
    assert 'step 1 at a strength of 0.5' in study.report().read_text('utf-8')
    seen = study.seen()
    assert not seen[seen.split=='validation'].duplicated(['arm','seed','step','group','metric']).any()

def test_strengths_that_cannot_be_are_refused(make, quick, tmp_path, refused):
    with refused('The strength is 2'): make(tmp_path/'s', strengths=(1,2))
    with refused('no strengths'): make(tmp_path/'s', strengths=())
    with refused('The arm x cannot be tried at strengths', 'dreamartist'): make(tmp_path/'s', dict(x=quick(method='dreamartist')), strengths=(.5,1))
    make(tmp_path/'s', dict(x=quick(method='dreamartist')))

# what needs no training

@pytest.fixture(scope='module')
def there(straight, base, quick, tmp_path_factory):
    "A finished run, a LoRA file and another base."
    at = tmp_path_factory.mktemp('there')
    run = arms.train(quick(None, method='lora', steps=4, lr=.05), at/'mine', base=base, progress=False, device='cpu')
    export(run, at/'theirs.safetensors', 'kohya', pictures=False)
    base.own().pipeline().save_pretrained(at/'other')
    f = at/'other'/'unet'/'diffusion_pytorch_model.safetensors'
    save_file({k: v*1.01 for k,v in load_file(f).items()}, f, dict(format='pt'))
    return at

def test_what_is_there_is_compared_with_what_is_trained(make, quick, there, tmp_path, said):
    words = dict(none=quick(None), mine=f'run:{there}/mine; strength=0.5', theirs=f'lora:{there}/theirs.safetensors; strength=0.8', other=f'base:{there}/other; token=zwx')
    study = make(tmp_path/'s', words, drift=12).run(progress=False)
    assert len(study.done)==8 and study.failed=={} and study.steps==(1,2)
    assert {a: study.chosen_points[a] for a in ('mine','theirs','other')}==dict(mine=(0,.5), theirs=(0,.8), other=(0,1.))
    t = study.at_chosen()
    drift = t[(t.metric=='drift')&(t.group=='all')].groupby('arm').value.mean()
    assert drift['mine']>1e-5 and drift['theirs']>1e-5 and 'other' not in drift and any('other stands on another base' in m for m in said())
    for arm in ('mine','theirs'): assert study.images(arm, 0, 2)[0].tobytes()!=study.images(arm, 1, 2)[0].tobytes()!=study.images('base')[0].tobytes()
    assert str(there) not in (study.folder/'study.json').read_text()
    data = json.loads((study.report().parent/'report.json').read_text())
    assert {c['name']: c['note'].split(',')[0] for c in data['columns']}|dict(none='')==dict(base='', none='', mine='no training at a strength of 0.5', theirs='no training at a strength of 0.8', other='no training')
    assert study.compare('style').arm.tolist()==['mine','theirs','other']
    again = Study.open(shutil.copytree(study.folder, tmp_path/'t'))
    assert again.chosen==study.chosen and again.is_ready('mine') and not again.is_ready('none')
    make(study.folder, words, drift=12).run(progress=False)                                       # and it is called again
    shown = Compare(study)
    shown.at_chosen, shown.step = False, 1
    assert shown.step_of('mine')==0 and shown.step_of('none')==1 and shown.pictures('mine')[0] is not None
    assert numbers_of(shown.table, 'mine', 0, 0, 'all')['drift'][0]>1e-5
    assert '"ready": ["mine", "theirs", "other"]' in shown.export(tmp_path/'page.html').read_text('utf-8')
    with pytest.raises(StyleboostError, match='mine.strength was 0.5 and is 0.6'): make(study.folder, dict(words, mine=f'run:{there}/mine; strength=0.6'), drift=12)

def test_a_study_may_train_nothing(make, there, tmp_path):
    study = make(tmp_path/'s', [f'run:{there}/mine', f'lora:{there}/theirs.safetensors; strength=1.5'], seeds=(0,)).run(progress=False)
    assert study.arms==['mine','theirs-at-1.5'] and len(study.done)==2 and study.report().exists()
    ours, file = (study.images(a, 0)[0] for a in study.arms)
    assert ours.tobytes()!=file.tobytes()

class Painted:
    "A transfer: the base's pictures of the prompts, turned round."
    of_base = True
    def __init__(self, bench, lose=0, seen=frozenset()): self.bench, self.lose, self.seen = bench, lose, seen
    @property
    def ref(self): return self.bench.style.ref
    def to_dict(self): return dict(lose=self.lose)
    def prepare(self, folder, seed, tell=None): pass
    def draw(self, prompts, seeds, step=None, *, literal=False):
        drawn = self.bench.draw(self.bench.loaded, prompts, seeds)
        return (drawn if literal else [im.rotate(180) for im in drawn])[self.lose:]

def test_anything_that_draws_is_an_arm(make, quick, tmp_path):
    bench = make(tmp_path/'other', dict(none=quick(None))).bench
    study = make(tmp_path/'s', dict(none=quick(None), ours=Painted(bench)), drift=12).run(progress=False)
    assert study.failed=={} and study.chosen_points['ours']==(0,1.) and json.loads((study.folder/'study.json').read_text())['arms']['ours']==dict(lose=0, kind='own', what='Painted', strength=1.)
    t = study.at_chosen()
    assert t[(t.arm=='ours')&(t.metric=='drift')].value.abs().max()<1e-6                            # what is literal did not move
    assert study.images('ours', 0, 0)[0].tobytes()!=study.images('ours', 1, 0)[0].tobytes()
    with pytest.raises(StyleboostError, match='ours.lose was 0 and is 1'): make(study.folder, dict(none=quick(None), ours=Painted(bench, 1)), drift=12)

def test_an_arm_that_draws_too_few_is_told(make, quick, tmp_path):
    bench = make(tmp_path/'other', dict(none=quick(None))).bench
    study = make(tmp_path/'s', dict(ours=Painted(bench, 1)), seeds=(0,)).run(progress=False)
    assert 'Painted drew' in study.failed['ours',0] and 'one each' in study.failed['ours',0]

def test_pictures_that_an_arm_has_seen_are_not_scored_against(make, style, quick, tmp_path):
    bench = make(tmp_path/'other', dict(none=quick(None))).bench
    study = make(tmp_path/'s', dict(none=quick(None), ours=Painted(bench, seen={style.reference[0].sha[:12]})))
    assert len(study.style.reference)==len(style.reference)-1

def test_how_a_file_is_asked(there, picture, said):
    words = lambda word: ready(f'lora:{there}/theirs.safetensors{word}').ask('a dog')
    assert words('')=='a photo of zwx style, a dog'                                          # its header says so
    assert words('; token=artx')=='a photo of artx style, a dog' and words('; phrase={prompt}, art')=='a dog, art'
    assert ready('base:tiny').ask('a dog')=='a photo of style, a dog'

@pytest.mark.parametrize('word, words', [
    ('lora:nowhere.safetensors', ['There is no LoRA', 'nowhere']), ('run:nowhere', ['is no run']), ('base:nowhere', ['nowhere', 'is no base']),
    ('lora:; strength=1', ['says not which']), ('run:x; strength=2', ['The strength is 2']), ('run:x; colour=red', ['no setting', 'colour', 'step, strength']),
    ('lora:x; token=a; phrase=b {prompt}', ['give one of them']), ('lora:x; phrase=b', ['no place for the subject']), ('run:x; step=1; step=2', ['step twice'])])
def test_a_wrong_word_is_one_sentence(make, tmp_path, refused, word, words):
    with refused(*words):
        if 'phrase' in word: ready(word).ask('a dog')
        else: make(tmp_path/'s', dict(x=word))
    assert not (tmp_path/'s').exists()

def test_a_file_that_does_not_fit_spoils_no_folder(make, there, tmp_path, refused):
    (tmp_path/'cut.safetensors').write_bytes((there/'theirs.safetensors').read_bytes()[:500])
    with refused('cut.safetensors', 'is damaged'): make(tmp_path/'s', dict(x=f'lora:{tmp_path}/cut.safetensors; token=a')).run(progress=False)
    save_file({k: v[:,:3].contiguous() if 'lora_down' in k else v for k,v in load_file(there/'theirs.safetensors').items()}, tmp_path/'other.safetensors')
    with refused('The arm x cannot be drawn', 'other.safetensors', 'LoRA for another base'): make(tmp_path/'s', dict(x=f'lora:{tmp_path}/other.safetensors')).run(progress=False)
    assert not (tmp_path/'s').exists()

def test_what_a_finished_run_saw_is_not_scored_against(make, style, quick, base, tmp_path, said):
    seen = ImageSet([style.reference[0], *style.ref], 'seen')
    run = arms.train(quick(None, ref=seen), tmp_path/'run', base=base, progress=False, device='cpu')
    study = make(tmp_path/'s', dict(none=quick(None), x=f'run:{run.folder}'))
    assert len(study.style.reference)==len(style.reference)-1 and any('1 of 10 pictures are also trained on' in m for m in said())

def test_an_arm_of_a_word_may_have_settings_of_its_own(make, tmp_path, refused):
    study = make(tmp_path/'s', dict(plain='none', small='none; method=lora; rank=2'), method='full')
    assert study.recipes['small'].method.rank==2 and study.recipes['small'].method.name=='lora' and study.recipes['plain'].method.name=='full'
    assert make(tmp_path/'t', dict(x='none; token=abc'), method='full').recipes['x'].bindings[0].prompt.startswith('a photo of abc style')
    with refused("its token 'zwx'", 'afterwards'): study.recipes['plain'].set(dict(token='abc'))
    with refused('no setting', 'rank'): make(tmp_path/'s', dict(x='none; rank=2'), method='full')
