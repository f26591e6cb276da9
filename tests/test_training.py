"The loop: nothing is lost, nothing is silent, the same recipe and seed give the same run, and only what is named moves."
import functools, gc, hashlib, json, os, signal, subprocess, sys, threading, time
from dataclasses import replace

import diffusers, pytest, safetensors.torch, torch
from safetensors.torch import load_file
from transformers import CLIPTextModel

from styleboost.training import loop, trainer
from styleboost.bases.load import blank, load_base
from styleboost.pictures.images import ImageSet
from styleboost.core import StyleboostError
from styleboost.training.recipes import Binding, Generated, no_prior, settled, with_prior
from styleboost.bases.sampling import sample
from styleboost.training.batches import Batches
from styleboost.training.objective import Objective
from styleboost.training.runs import Run
from styleboost.training.loop import train

class Killed(BaseException):
    "Ends the process as far as the code can tell: nothing catches it."

pytestmark = pytest.mark.usefixtures('two_threads')

@pytest.fixture
def go(base, tmp_path):
    "Trains into a folder of this test, by name."
    def go(recipe, name='run', **kw): return train(recipe, tmp_path/name, **dict(dict(base=base, progress=False, every=1, device='cpu'), **kw))
    return go

def digests(state): return {k: hashlib.sha256(v.contiguous().numpy().tobytes()).hexdigest()[:8] for k,v in state.items()}

def tuned(run): return digests(load_file(run.weights))

def timeless(run): return [{k:v for k,v in line.items() if k!='seconds'} for line in run.log]

def raiser(error, at):
    "A `watch` that raises at a step."
    def watch(line):
        if line['step']==at: raise error
    return watch

# the same numbers

@pytest.fixture(scope='module')
def straight(base, quick, tmp_path_factory):
    "Four steps without an interruption, a checkpoint after two."
    return train(quick(steps=4, checkpoint=2), tmp_path_factory.mktemp('straight')/'run', base=base, progress=False, every=1, device='cpu')

def test_the_same_recipe_and_seed_give_the_same_weights_and_log(straight, go, quick):
    again = go(quick(steps=4, checkpoint=2))
    assert tuned(again)==tuned(straight)
    assert timeless(again)==timeless(straight)

def test_how_often_is_logged_or_kept_does_not_change_the_weights(straight, go, quick):
    assert tuned(go(quick(steps=4, checkpoint=3), every=3))==tuned(straight)

def test_another_seed_gives_other_weights(straight, go, quick): assert tuned(go(quick(steps=4, checkpoint=2), seed=1))!=tuned(straight)

def test_the_callers_random_numbers_neither_matter_nor_move(straight, go, quick):
    torch.manual_seed(77); want = torch.rand(2); torch.manual_seed(77)
    run = go(quick(steps=4, checkpoint=2))
    assert tuned(run)==tuned(straight) and torch.equal(torch.rand(2), want)

# nothing is lost

def resumed_is_straight(straight, go, quick, **kw):
    run = go(quick(steps=4, checkpoint=2), resume=True, **kw)
    assert run.done
    assert tuned(run)==tuned(straight)
    assert timeless(run)==timeless(straight)

@pytest.mark.parametrize('step', [1, 2, 3])
def test_interrupted_and_resumed_is_uninterrupted(straight, go, quick, said, step):
    with pytest.raises(KeyboardInterrupt): go(quick(steps=4, checkpoint=2), watch=raiser(KeyboardInterrupt, step))
    assert any(f'{step} of 4' in m for m in said())
    resumed_is_straight(straight, go, quick)

@pytest.mark.parametrize('name', ['SIGTERM', 'SIGHUP'])
def test_ended_by_a_batch_system_or_a_closed_terminal_it_keeps_a_checkpoint(straight, go, quick, said, name, request):
    number = getattr(signal, name)
    was = signal.signal(number, signal.SIG_DFL)                 # a test runner or Ray may have set another, or nohup
    request.addfinalizer(lambda: signal.signal(number, was or signal.SIG_DFL))
    def twice(line):
        if line['step']==3: signal.raise_signal(number); signal.raise_signal(number)       # the shell says it again
    with pytest.raises(SystemExit) as e: go(quick(steps=4, checkpoint=2), watch=twice)
    assert e.value.code==128+number and signal.getsignal(number)==signal.SIG_DFL and any('3 of 4' in m for m in said())
    resumed_is_straight(straight, go, quick)

def test_a_signal_that_was_to_be_ignored_still_is(straight, go, quick, monkeypatch):
    was = signal.signal(signal.SIGHUP, signal.SIG_IGN)                                       # as nohup does
    try: assert tuned(go(quick(steps=4, checkpoint=2), watch=lambda line: signal.raise_signal(signal.SIGHUP)))==tuned(straight)
    finally: signal.signal(signal.SIGHUP, was)

def test_a_watcher_that_fails_costs_nothing(straight, go, quick, tmp_path):
    with pytest.raises(ZeroDivisionError, match='mine'): go(quick(steps=4, checkpoint=2), watch=raiser(ZeroDivisionError('mine'), 3))
    assert Run(tmp_path/'run').kept==3
    resumed_is_straight(straight, go, quick)

@pytest.mark.parametrize('step', [1, 2, 3])
def test_killed_and_resumed_is_uninterrupted(straight, go, quick, step):
    with pytest.raises(Killed): go(quick(steps=4, checkpoint=2), watch=raiser(Killed, step))
    resumed_is_straight(straight, go, quick)

@pytest.mark.parametrize('nth', [1, 2, 3])
def test_killed_while_writing_and_resumed_is_uninterrupted(straight, go, quick, monkeypatch, nth):
    "The first two files are the checkpoint's weights and optimiser, the third the run's weights."
    with monkeypatch.context() as m:
        count = []
        def half(tensors, path, *args):
            count.append(path)
            if len(count)==nth: path.write_bytes(b'half'); raise Killed
            return training_save(tensors, path, *args)
        training_save = safetensors.torch.save_file
        m.setattr(safetensors.torch, 'save_file', half)
        with pytest.raises(Killed): go(quick(steps=4, checkpoint=2))
    resumed_is_straight(straight, go, quick)

@pytest.mark.parametrize('nth', [2, 3])
@pytest.mark.parametrize('moment', ['step', 'zero_grad'])
def test_interrupted_in_the_middle_of_a_step_and_resumed_is_uninterrupted(straight, go, quick, monkeypatch, moment, nth):
    with monkeypatch.context() as m:
        count = []
        real = getattr(torch.optim.AdamW, moment)
        @functools.wraps(real)
        def interrupted(self, *args, **kw):
            out = real(self, *args, **kw); count.append(0)
            if len(count)==nth: raise KeyboardInterrupt
            return out
        m.setattr(torch.optim.AdamW, moment, interrupted)
        with pytest.raises(KeyboardInterrupt): go(quick(steps=4, checkpoint=2))
    resumed_is_straight(straight, go, quick)

@pytest.mark.parametrize('error', [KeyboardInterrupt, Killed])
def test_a_line_of_the_log_is_the_same_when_a_checkpoint_falls_inside_it(go, quick, error):
    whole = go(quick(steps=4, checkpoint=1), 'whole', every=4)
    count = []
    def stop(*args, real=Objective.forward):
        count.append(0)
        if len(count)==3: raise error
        return real(*args)
    with pytest.MonkeyPatch.context() as m:
        m.setattr(Objective, 'forward', stop)
        with pytest.raises(error): go(quick(steps=4, checkpoint=1), every=4)
    assert timeless(go(quick(steps=4, checkpoint=1), every=4, resume=True))==timeless(whole)

@pytest.fixture
def rates(monkeypatch):
    "The learning rate of each step that was taken."
    seen, real = [], torch.optim.AdamW.step
    @functools.wraps(real)
    def step(self, *args, **kw): seen.append(self.param_groups[0]['lr']); return real(self, *args, **kw)
    monkeypatch.setattr(torch.optim.AdamW, 'step', step)
    return seen

@pytest.mark.parametrize('schedule, want', [('constant', [1,1,1,1]), ('constant_with_warmup', [0,.5,1,1]), ('linear', [0,.5,1,.5]), ('cosine', [0,.5,1,.5])])
def test_the_rate_follows_the_schedule_and_its_warmup(go, quick, rates, schedule, want):
    go(quick(steps=4, lr=1e-3, lr_schedule=schedule, warmup=2 if schedule!='constant' else 0))
    assert rates==pytest.approx([1e-3*w for w in want])

def test_a_schedule_goes_on_where_it_was(go, quick, rates):
    r = quick(steps=4, checkpoint=2, lr_schedule='linear', warmup=1)
    whole, straight = go(r, 'whole'), rates.copy(); rates.clear()
    with pytest.raises(Killed): go(r, watch=raiser(Killed, 3))
    rates.clear(); resumed = go(r, resume=True)
    assert rates==straight[2:] and tuned(resumed)==tuned(whole)

def test_half_a_line_in_the_log_does_not_stop_a_resume(straight, go, quick):
    run = go(quick(steps=4, checkpoint=100), watch=lambda line: line['step']==2)
    with (run.folder/'log.jsonl').open('a') as f: f.write('{"step": 3, "sec')
    assert timeless(go(quick(steps=4, checkpoint=100), resume=True))==timeless(straight)

def test_stopped_by_the_watcher_it_keeps_its_work(straight, go, quick):
    run = go(quick(steps=4, checkpoint=100), watch=lambda line: line['step']==3)
    assert not run.done and run.checkpoint.name=='step-000003' and len(run.log)==3
    assert tuned(go(quick(steps=4, checkpoint=100), resume=True))==tuned(straight)

def test_a_finished_run_is_opened_not_trained_again(straight, base, quick):
    before = straight.weights.stat().st_mtime_ns
    again = train(quick(steps=4, checkpoint=2), straight.folder, base=base, resume=True, progress=False, watch=raiser(Killed, 1))
    assert again.done and again.weights.stat().st_mtime_ns==before

def test_killed_for_good_and_resumed_by_the_command_is_uninterrupted(tmp_path, ref, aux):
    ref.save(tmp_path/'ref'); aux.save(tmp_path/'aux')
    (tmp_path/'cheap.json').write_text(json.dumps(dict(steps=20, checkpoint=10, batch=1, steps_sampled=1)))
    call = lambda *more: subprocess.Popen([sys.executable, '-m', 'styleboost.cli', 'train', '--ref', 'ref', '--aux', 'aux', '--recipe', 'cheap.json', '--out', 'killed', *more],
        cwd=tmp_path, env=dict(os.environ, OMP_NUM_THREADS=str(torch.get_num_threads())), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    p, end = call(), time.time()+200
    while not any((tmp_path/'killed').glob('checkpoints/step-*')) and p.poll() is None and time.time()<end: time.sleep(.02)
    p.kill()
    assert p.wait()==-signal.SIGKILL and not Run(tmp_path/'killed').done
    assert call('--resume').wait(200)==0
    r = with_prior(no_prior(ImageSet.from_folder(tmp_path/'ref'), steps=20, checkpoint=10, batch=1, steps_sampled=1), ImageSet.from_folder(tmp_path/'aux'), name='aux')
    whole, killed = train(r, tmp_path/'whole', progress=False, device='cpu'), Run(tmp_path/'killed')
    assert killed.recipe==whole.recipe
    assert tuned(killed)==tuned(whole)
    assert timeless(killed)==timeless(whole)

@pytest.mark.parametrize('what', ['gone', 'changed', 'folder gone'])
def test_pictures_that_went_or_changed_since_they_were_read_are_not_trained_on(go, quick, ref, tmp_path, refused, what):
    found = ImageSet.from_folder(ref.save(tmp_path/'ref')); r = quick(ref=found); path = found[1].path
    if what=='gone': path.unlink()
    if what=='changed': path.write_bytes(found[0].bytes())
    if what=='folder gone': path.parent.rename(tmp_path/'elsewhere')
    with refused(path.parent if what=='folder gone' else path): go(r)
    assert not (tmp_path/'run').exists()

def test_pictures_that_change_while_a_training_begins_are_not_trained_on(go, quick, ref, tmp_path, refused, monkeypatch):
    found = ImageSet.from_folder(ref.save(tmp_path/'ref'))
    def late(*args, **kw): found[1].path.write_bytes(found[0].bytes()); return trainer.prepared(*args, **kw)
    monkeypatch.setattr(loop, 'prepared', late)
    with refused(found[1].path, 'has changed'): go(quick(ref=found))

def test_the_older_checkpoint_goes_when_the_disk_has_the_newer(go, quick, monkeypatch):
    done = []
    def removed(path, *args, real=loop.shutil.rmtree, **kw): done.append(f'-{path.name}'); real(path, *args, **kw)
    def renamed(part, path, real=os.replace): done.append(f'+{path.name}'); real(part, path)
    def synced(handle, real=os.fsync): done.append(f'={os.path.basename(os.readlink(f"/proc/self/fd/{handle}"))}'); real(handle)
    for module,name,f in ((loop.shutil,'rmtree',removed), (os,'replace',renamed), (os,'fsync',synced)): monkeypatch.setattr(module, name, f)
    go(quick(steps=3, checkpoint=1))
    new, old = done.index('+step-000002'), done.index('-step-000001')
    assert new<old and '=checkpoints' in done[new:old] and '=log.jsonl' in done[:new]
    end, old = done.index('+tuned.safetensors'), done.index('-checkpoints')
    assert end<old and '=weights' in done[end:old]

def test_a_log_that_cannot_be_written_is_said(go, quick, tmp_path, refused):
    log = tmp_path/'run'/'log.jsonl'
    def spoilt(line): log.unlink(); log.mkdir()
    with refused(log, 'choose another place'): go(quick(steps=3), watch=spoilt)

def test_a_clock_that_is_set_back_is_not_seen(go, quick, monkeypatch):
    past = iter(range(10**9, 0, -1000))
    monkeypatch.setattr(time, 'time', lambda: float(next(past)))
    seconds = [line['seconds'] for line in go(quick(steps=3)).log]
    assert 0<=seconds[0]<=seconds[1]<=seconds[2]<600

# one writer, and many trainings

def test_a_second_training_of_a_folder_is_sent_away_from_the_first_moment_on(go, quick, base, refused, tmp_path, monkeypatch):
    def second(*args, **kw):
        for resume in (True, False):
            with refused('Another process is at work', tmp_path/'run'): go(quick(), resume=resume)
        seen.append(1); return base.own()
    seen = []
    monkeypatch.setattr(loop, 'load_base', second)                                           # before anything is loaded
    go(quick(), base=None, watch=lambda line: second() and None)
    assert len(seen)==3 and not (tmp_path/'run'/'.lock').exists()

def test_training_in_a_thread_is_training(straight, go, quick):
    runs = []
    t = threading.Thread(target=lambda: runs.append(go(quick(steps=4, checkpoint=2))))
    t.start(); t.join()
    assert tuned(runs[0])==tuned(straight)

def test_two_trainings_at_once_are_each_its_own(go, quick):
    "What a LoRA starts as is drawn by torch's own chance, which threads share."
    recipe, made = quick(None, steps=2, resolution=32, method='lora', rank=4), {}
    ts = [threading.Thread(target=lambda n=n: made.update({n: go(recipe, f'at-once{n}', seed=n)})) for n in (0,1)]
    for t in ts: t.start()
    for t in ts: t.join()
    assert [tuned(made[n]) for n in (0,1)]==[tuned(go(recipe, f'alone{n}', seed=n)) for n in (0,1)]

def test_many_trainings_in_one_process_leave_nothing_behind(go, quick, tmp_path):
    def left():
        gc.collect()
        return len(os.listdir('/proc/self/fd')), threading.active_count(), sum(isinstance(o, torch.Tensor) for o in gc.get_objects())
    recipe = quick(None, steps=1, resolution=32)
    for i in range(2): go(recipe, f'warm{i}')
    before = left()
    for i in range(4): go(recipe, f'run{i}')
    assert left()==before

# only what is named moves

def test_the_base_that_was_given_is_unchanged(go, quick, base):
    state = lambda: {k: digests(m.state_dict()) for k,m in base.modules.items()}
    before = state(); go(quick())
    assert state()==before and not any(p.requires_grad for m in base.modules.values() for p in m.parameters())

@pytest.mark.parametrize('text', [True, False])
def test_only_the_named_parts_move(go, quick, base, text):
    run = go(quick(text_encoder=text)); model = run.model()
    moved = {k: digests(model.modules[k].state_dict())!=digests(m.state_dict()) for k,m in base.modules.items()}
    assert moved==dict(unet=True, text_encoder=text, vae=False) and {k.split('.')[0] for k in tuned(run)}=={'unet', *['text_encoder']*text}

def test_a_prior_of_weight_nought_leaves_no_trace(go, quick, ref):
    "Two priors of different pictures that weigh nothing leave the same weights."
    a, b = (go(quick(p, weight=0.), n) for n,p in (('a',ref), ('b',ref[::-1])))
    assert tuned(a)==tuned(b)

def test_a_run_holds_no_file_that_can_run_code(straight):
    files = {p.relative_to(straight.folder).as_posix() for p in straight.folder.rglob('*') if p.is_file()}
    assert files=={'recipe.json','log.jsonl','weights/tuned.safetensors','sheets/0-style.jpg','sheets/1-prior.jpg'}

# what a run says of itself

def test_the_log_holds_each_binding_apart(go, quick, ref, aux, base):
    r = quick(batch=2, resolution=64)
    r = replace(r, bindings=(r.bindings[0], Binding(aux, 'a photo of ukj style'), *r.bindings[1:]))
    run = go(r)
    with torch.no_grad(): want = [l.item() for l in Objective(replace(base, method=r.method))(Batches(base, r, 0, 'cpu')(0))]
    line = {k:v for k,v in run.log[0].items() if k not in ('step','seconds')}
    assert len(line)==3 and len(set(want))==3 and [*line.values()]==pytest.approx(want, abs=2e-5)

def test_the_recipe_beside_the_weights_is_the_one_that_ran(straight, quick, base):
    assert straight.recipe==json.loads(json.dumps(replace(quick(steps=4, checkpoint=2), resolution=64, guidance=7., precision='no').to_dict())) and (straight.seed, straight.info['base_hash'])==(0, base.hash)

def test_tensorboard_gets_its_events(go, quick, tmp_path):
    go(quick(), trackers=['tensorboard'])
    assert any(f.stat().st_size for f in (tmp_path/'run').rglob('events.out.tfevents*'))

def test_an_unknown_tracker_is_refused(go, quick, refused):
    with refused('nonsense'): go(quick(), trackers=['nonsense'])

def test_a_tracker_whose_package_is_missing_is_refused_by_its_name(go, quick, refused, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, 'get_available_trackers', lambda: [])
    with refused('wandb', 'pip install wandb'): go(quick(), trackers='wandb')
    assert not (tmp_path/'run').exists()

# pictures

def test_small_pictures_are_named_once_where_they_are_enlarged(go, quick, picture, said):
    small = ImageSet([picture('tiny', (40,64)), picture('fine'), picture('wee', (32,32))], 'mine')
    go(quick(ref=small, steps=3))
    told = [m for m in said() if 'enlarged' in m]
    assert len(told)==1 and all(w in told[0] for w in ('mine','tiny.png','wee.png','2 ')) and 'fine.png' not in told[0]

@pytest.mark.parametrize('steps', [1, 4])
def test_the_autoencoder_sees_each_picture_once_however_long_it_trains(go, quick, base, monkeypatch, steps):
    rows = []
    monkeypatch.setattr(diffusers.AutoencoderKL, 'encode', lambda self, x, *a, real=diffusers.AutoencoderKL.encode, **kw: rows.append(len(x)) or real(self, x, *a, **kw))
    go(quick(steps=steps))
    assert sum(rows)==3+4

@pytest.mark.parametrize('text, rows', [(True,[2]*3), (False,[4])])
def test_each_distinct_prompt_is_encoded_once_a_step_or_once_in_all(go, quick, ref, monkeypatch, text, rows):
    seen = []
    monkeypatch.setattr(CLIPTextModel, 'forward', lambda self, input_ids=None, *a, real=CLIPTextModel.forward, **kw: seen.append(len(input_ids)) or real(self, input_ids, *a, **kw))
    same = ImageSet([replace(p, caption='a pet') for p in ref]) if text else ref
    go(quick(ref=same, batch=3, steps=3, text_encoder=text))
    assert seen==rows

def test_a_caption_that_is_too_long_is_said_once(go, quick, picture, said):
    go(quick(ref=ImageSet([picture('novel', caption='word '*200)]), steps=3))
    assert len([m for m in said() if 'text encoder reads' in m])==1

# words

def test_a_known_word_is_noted_with_what_it_is_near(go, quick, said, base):
    go(quick(token='dog'))
    told = [m for m in said() if "'dog'" in m]
    near = told[0].split('close to ')[1].split(';')[0].split(', ')
    assert len(told)==1 and len(near)==3 and 'dog' not in near and all(f'{w}</w>' in base.reader.tokenizer.get_vocab() for w in near)

@pytest.mark.parametrize('method, becomes', [('full', 'will mix with the style'), ('lora', 'will mix with the style'),
    ('textual_inversion', 'mean the style alone'), ('pivotal', 'mean the style alone'), ('dreamartist', 'mean the style alone')])
def test_what_becomes_of_a_known_word_is_said_by_method(quick, base, said, method, becomes):
    trainer.check(settled(quick(token='dog', method=method), base), base)
    told = [m for m in said() if "'dog'" in m]
    assert len(told)==1 and becomes in told[0]

def test_a_snapshot_after_the_end_is_said(go, quick, said):
    run = go(quick(steps=2), snapshots=(1, 9))
    assert list(run.snapshots)==[1] and any('no snapshot of 9' in m and 'step 2' in m for m in said())

def test_a_rare_word_needs_no_note(go, quick, said):
    go(quick(token='zwx'))
    assert not [m for m in said() if 'token' in m]

@pytest.mark.parametrize('token', ['two words', '', ' zwx', 'zwx\n'])
def test_a_token_that_is_not_one_word_is_refused_before_anything_is_written(go, quick, refused, tmp_path, token):
    with refused(repr(token)): go(quick(token=token))
    assert not (tmp_path/'run').exists()

# folders

def test_a_folder_with_another_run_is_refused_and_left_alone(straight, base, quick, refused):
    before = {p: p.stat().st_mtime_ns for p in straight.folder.rglob('*')}
    with refused(straight.folder, 'quick', 'seed 0', 'resume'): train(quick(steps=1), straight.folder, 3, base, progress=False)
    assert {p: p.stat().st_mtime_ns for p in straight.folder.rglob('*')}==before

@pytest.mark.parametrize('resume', [True, False])
def test_a_folder_with_other_files_is_refused_and_left_alone(go, quick, refused, tmp_path, resume):
    (tmp_path/'run').mkdir(); (tmp_path/'run'/'thesis.tex').write_text('years')
    with refused(tmp_path/'run', 'not empty'): go(quick(), resume=resume)
    assert [p.name for p in (tmp_path/'run').iterdir()]==['thesis.tex']

@pytest.mark.parametrize('resume', [True, False])
def test_a_file_in_place_of_a_folder_is_refused(go, quick, refused, tmp_path, resume):
    (tmp_path/'run').write_text('mine')
    with refused(tmp_path/'run', 'is a file'): go(quick(), resume=resume)
    assert (tmp_path/'run').read_text()=='mine'

def test_an_occupied_folder_is_refused_before_a_prior_is_generated(go, quick, refused, tmp_path, monkeypatch):
    (tmp_path/'run').mkdir(); (tmp_path/'run'/'thesis.tex').write_text('years')
    monkeypatch.setattr(loop, 'resolve', lambda *a, **kw: pytest.fail('generated'))
    with refused(tmp_path/'run'): go(quick(Generated('a photo of style', 2)))

@pytest.mark.parametrize('text', ['{"recipe": ', '{}', '[]', '{"_name_or_path": "someone else\'s"}'])
def test_a_recipe_that_is_not_ours_is_refused(go, quick, refused, tmp_path, text):
    (tmp_path/'run').mkdir(); (tmp_path/'run'/'recipe.json').write_text(text)
    for resume in (True, False):
        with refused(tmp_path/'run'): go(quick(), resume=resume)
    with refused(tmp_path/'run'): Run(tmp_path/'run')
    assert (tmp_path/'run'/'recipe.json').read_text()==text

def test_a_run_that_goes_on_with_other_levers_says_so(base, quick, tmp_path, caplog):
    go = lambda **kw: train(quick(steps=4, batch=2, **kw), tmp_path/'run', base=base, device='cpu', resume=True, progress=False, every=1, watch=lambda line: line['step']<4)
    go(); go(accumulate=2); go(accumulate=2); run = go()
    assert run.info['resumed']==[dict(accumulate=2), dict(accumulate=1)] and run.recipe['accumulate']==1
    assert [r['step'] for r in run.log]==[1,2,3,4] and caplog.text.count('another setting of accumulate')==2

@pytest.mark.parametrize('words, change, seed', [('min_snr was null and is 5.0', dict(min_snr=5.), 0), ('prior: the weight was 1.0 and is 0.5', dict(weight=.5), 0),
    ('method.text_encoder was true and is false', dict(text_encoder=False), 0), ('seed was 0 and is 1', {}, 1)])
def test_resuming_as_another_run_names_the_difference(straight, base, quick, refused, words, change, seed):
    with refused(straight.folder, words): train(quick(steps=4, checkpoint=2, **change), straight.folder, seed, base, resume=True, progress=False)

def test_an_unfinished_run_is_no_model_and_says_how_to_finish(go, quick, refused):
    run = go(quick(), watch=lambda line: True)
    with refused(run.folder, '--resume'): run.model()

def test_a_folder_without_a_recipe_is_no_run(refused, tmp_path):
    with refused(tmp_path, 'recipe.json'): Run(tmp_path)

def test_a_damaged_checkpoint_is_refused_and_kept(go, quick, refused):
    run = go(quick(steps=4), watch=lambda line: line['step']==2)
    f = run.checkpoint/'optimizer.safetensors'; f.write_bytes(f.read_bytes()[:100])
    with refused(run.checkpoint): go(quick(steps=4), resume=True)
    assert f.exists()

# numbers that are no numbers

@pytest.fixture
def poisoned(monkeypatch):
    "The loss of one picture is not a number."
    def poison(name):
        def batch(self, step, *args, real=Batches.__call__):
            b = real(self, step, *args)
            return replace(b, y=[y*float('nan') for y in b.y]) if name in self.files(step) else b
        monkeypatch.setattr(Batches, '__call__', batch)
    return poison

def first_at(quick, base, position, **kw):
    "The name of the picture that a run sees first at a step."
    return Batches(base, quick(resolution=64, **kw), 0, 'cpu').files(position)[0]

@pytest.mark.parametrize('every', [1, 3])
@pytest.mark.parametrize('step', [0, 1, 2])
def test_a_loss_that_is_no_number_stops_with_the_picture_that_caused_it(go, quick, base, poisoned, refused, every, step):
    name = first_at(quick, base, step); poisoned(name)
    with refused('not a number', name, f'step {step+1}'): go(quick(steps=3), every=every)

def test_a_loss_that_is_no_number_never_replaces_a_good_checkpoint(go, quick, base, poisoned, refused, tmp_path):
    poisoned(first_at(quick, base, 1))
    with refused('checkpoint'): go(quick(steps=3, checkpoint=1), every=3)
    kept = Run(tmp_path/'run').checkpoint
    assert kept.name=='step-000001' and all(v.isfinite().all() for v in load_file(kept/'weights.safetensors').values())

def test_a_rate_that_is_far_too_large_ends_in_a_refusal_not_in_a_finished_run(go, quick, refused, tmp_path):
    with refused('learning rate'): go(quick(lr=1e30, steps=4, grad_clip=None))
    assert not Run(tmp_path/'run').done

def spoilt_at(step, value, monkeypatch):
    "The update of a step makes a weight of a value, which its loss cannot have seen."
    count, real = [], torch.optim.AdamW.step
    @functools.wraps(real)
    def spoil(self, *args, **kw):
        out = real(self, *args, **kw); count.append(0)
        if len(count)==step: p = self.param_groups[0]['params'][0]; p.data[(0,)*p.dim()] = value
        return out
    monkeypatch.setattr(torch.optim.AdamW, 'step', spoil)

@pytest.mark.parametrize('value', [float('inf'), float('nan')])
@pytest.mark.parametrize('step, kept', [(4, 2), (2, 0)])
def test_weights_that_are_not_finite_are_never_kept(go, quick, refused, tmp_path, monkeypatch, step, kept, value):
    spoilt_at(step, value, monkeypatch)
    words = f'checkpoint of step {kept} is kept' if kept else 'no checkpoint before'
    with refused(f'not finite after step {step}', words): go(quick(steps=4, checkpoint=2), every=100)
    run = Run(tmp_path/'run')
    assert run.kept==kept and not run.done and not list(run.folder.rglob('.*.part*'))

def test_the_advice_works(go, quick, refused, tmp_path, monkeypatch, said):
    "A smaller learning rate goes on from the checkpoint that is kept, and the folder says from where."
    with monkeypatch.context() as m:
        spoilt_at(4, float('nan'), m)
        with refused('not finite after step 4', 'Resume the run with a smaller learning rate than 0.001'): go(quick(steps=4, checkpoint=2))
    first = load_file(Run(tmp_path/'run').checkpoint/'weights.safetensors')
    run = go(quick(steps=4, checkpoint=2, lr=1e-6), resume=True)
    assert run.done and run.recipe['lr']==1e-6 and run.info['went_on']==[dict(step=2, lr=1e-3)] and [l['step'] for l in run.log]==[1,2,3,4]
    assert any('goes on from step 2 with lr 1e-06 instead of 0.001' in m for m in said())
    moved = max((v-first[k]).abs().max().item() for k,v in load_file(run.weights).items())
    assert 0<moved<1e-5

@pytest.mark.parametrize('change', [dict(lr=float('inf')), dict(lr=float('nan')), dict(grad_clip=float('inf')), dict(weight_decay=float('nan')), dict(guidance=float('inf')),
    dict(weight=float('inf')), dict(weight=float('nan')), dict(steps=2.5), dict(batch=True), dict(flip='yes'), dict(token='zw\0x'), dict(method='lora', alpha=float('nan')), dict(method='lora', rank=2.5),
    dict(scheduler='magic')], ids=lambda c: ' '.join(map(repr, c.items())))
def test_a_setting_of_the_wrong_kind_is_refused_before_anything_is_written(go, quick, refused, tmp_path, change):
    with refused(): go(replace(quick(), **change) if 'flip' in change else quick(**change))
    assert not (tmp_path/'run').exists()

@pytest.mark.parametrize('seed', [-1, 2**63, 2**64, 1.5, True])
def test_a_seed_that_is_none_is_refused(go, quick, refused, tmp_path, seed):
    with refused(f'The seed is {seed}'): go(quick(), seed=seed)
    assert not (tmp_path/'run').exists()

# what cannot be trained

def test_a_method_that_does_not_fit_is_refused_before_anything_is_written_or_drawn(go, quick, refused, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, 'resolve', lambda *a, **kw: pytest.fail('generated'))
    with refused('no U-Net'): go(quick(Generated('a photo of style', 2), method='controlnet'), base=blank('amused'))
    assert not (tmp_path/'run').exists()

def test_a_base_without_safetensors_is_refused(go, quick, refused, base_copy, tmp_path):
    folder = base_copy(tmp_path/'base')
    for f in folder.rglob('*.safetensors'): f.rename(f.with_suffix('.bin'))
    with refused(folder, 'safetensors'): go(quick(base=str(folder)), base=None)

def test_a_base_with_one_part_without_safetensors_is_refused(go, quick, refused, base_copy, tmp_path):
    folder = base_copy(tmp_path/'base')
    f, = (folder/'unet').glob('*.safetensors'); f.rename(f.with_suffix('.bin'))
    with refused(folder): go(quick(base=str(folder)), base=None)

def test_a_run_opens_on_the_base_it_was_given(go, quick, base_copy, tmp_path):
    "A base that is handed over is the run's base, even where the recipe still says `tiny`; or the two are refused together."
    folder = base_copy(tmp_path/'base')
    b = load_base(folder); unet = b.modules['unet']; unet.conv_out.weight.data += .01
    (folder/'unet'/'diffusion_pytorch_model.safetensors').unlink(); unet.save_pretrained(folder/'unet')
    other = load_base(folder)
    try: run = go(quick(), base=other)
    except StyleboostError: return
    assert run.model().hash==other.hash

def test_a_changed_base_is_not_taken_for_the_old_one(straight, refused, monkeypatch):
    run = Run(straight.folder); run.info = dict(run.info, base_hash='0'*16)
    with refused('0'*16): run.model()

def test_a_tuned_model_is_no_base(go, quick, base, refused):
    with refused('ukj'): go(quick(), base=replace(base, method=quick(token='ukj').method))

@pytest.mark.parametrize('change', [dict(resolution=62), dict(resolution=0), dict(steps=0), dict(steps=-1), dict(batch=0), dict(lr=-1.), dict(checkpoint=0), dict(crops=0), dict(method='magic'),
    dict(precision='bf32'), dict(lr_schedule='wavy'), dict(pad='short'), dict(pairing='sometimes')], ids=lambda c: '{}={}'.format(*next(iter(c.items()))))
def test_a_setting_that_makes_no_sense_is_refused_before_anything_is_written(go, quick, refused, tmp_path, change):
    with refused(*change.values()): go(quick(**change))
    assert not (tmp_path/'run').exists()

def test_an_empty_binding_is_refused_before_anything_is_written(go, quick, refused, tmp_path):
    with refused('nothing'): go(quick(ImageSet([], 'nothing')))
    assert not (tmp_path/'run').exists()

def test_a_missing_caption_is_refused_before_anything_is_written(go, quick, refused, tmp_path):
    with refused('w.png', '.txt'): go(quick(prompt='style, {caption}'))
    assert not (tmp_path/'run').exists()

# looking at it while it learns

@pytest.mark.parametrize('kw', [dict(), dict(text_encoder=False), dict(method='lora', text_encoder=False)], ids=['full','unet','lora'])
def test_looking_changes_nothing_that_is_learnt(go, quick, kw):
    def preview(line, look):
        with look() as model:
            assert not any(m.training for m in model.modules.values()) and model.method.words==('zwx',) and not torch.is_grad_enabled()
            seen[line['step']] = sample(model, ['woman','tree'], steps=2)
            torch.manual_seed(line['step']); torch.rand(9)                       # a preview may be careless with chance
    seen, recipe = {}, quick(steps=4, checkpoint=2, **kw)
    before = torch.get_rng_state()
    looked = go(recipe, preview=preview)
    assert torch.equal(torch.get_rng_state(), before)
    plain = go(recipe, 'plain')
    assert tuned(looked)==tuned(plain) and timeless(looked)==timeless(plain)
    assert list(seen)==[1,2,3,4] and len({ims[0].tobytes() for ims in seen.values()})==4

def test_the_last_look_shows_what_the_run_draws(go, quick):
    def preview(line, look):
        with look() as model: seen.append(sample(model, ['woman'], steps=2)[0].tobytes())
    seen = []
    run = go(quick(steps=3), preview=preview)
    assert sample(run, ['woman'], steps=2)[0].tobytes()==seen[-1]

def test_a_look_that_fails_leaves_the_model_training(straight, go, quick):
    def preview(line, look):
        try:
            with look(): raise RuntimeError
        except RuntimeError: pass
    assert tuned(go(quick(steps=4, checkpoint=2), preview=preview))==tuned(straight)

def test_looking_is_not_counted_as_training(go, quick, monkeypatch):
    class clock:
        now = 0.
        monotonic = lambda: clock.now
    def preview(line, look):
        with look(): clock.now += 100
    def watch(line): clock.now += 1
    for room in (loop, trainer): monkeypatch.setattr(room, 'time', clock)
    assert [l['seconds'] for l in go(quick(steps=3), watch=watch, preview=preview).log]==[0,1,2]

def test_a_run_of_a_newer_version_is_refused_in_a_sentence(straight, tmp_path, refused):
    info = json.loads((straight.folder/'recipe.json').read_text())
    (tmp_path/'recipe.json').write_text(json.dumps(dict(info, recipe=dict(info['recipe'], warp=9), versions=dict(styleboost='9.1.0'))))
    with refused('newer styleboost', '9.1.0', 'warp', str(tmp_path)): Run(tmp_path).method
