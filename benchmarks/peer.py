"""styleboost against its peer, diffusers' `examples/dreambooth/train_dreambooth.py`: one base, the same style pictures,
one machine, CPU.

The peer script runs as it is, in its own process; only where torchvision is missing does it get `transforms.py` in its
place. Every finished measurement is written at once and never taken twice, so a run that was stopped goes on when it is
started again.

    python benchmarks/peer.py PATH/train_dreambooth.py               every stage, then the table
    python benchmarks/peer.py PATH/train_dreambooth.py first-loss    one stage
    python benchmarks/peer.py PATH/train_dreambooth.py --quick --out quick.json
"""
import argparse, hashlib, json, os, platform, re, runpy, shutil, signal, statistics, subprocess, sys, tempfile, time
from dataclasses import replace
from functools import cache, partial
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file

import styleboost as styleboost_
from common import processor, witness
from styleboost.bases.files import find_base, weights_hash
from styleboost.bases.load import load_base
from styleboost.bases.sampling import sample
from styleboost.core import quiet, write_whole
from styleboost.pictures.images import png
from styleboost.pictures.prompts import style_prompt
from styleboost.pictures.world import pool, prompts, style_ref
from styleboost.training.batches import Batches
from styleboost.training.levers import best_precision
from styleboost.training.loop import train
from styleboost.training.recipes import settled as filled_in, styleboost
from styleboost.training.runs import Run, versions

STYLE, TOLD, CLASS = style_ref(), style_prompt(), style_prompt(token='')
RATES = (3e-5, 1e-4, 3e-4, 1e-3)  # learning rates, the same four for both
OURS = dict(batch=8, precision='bf16', min_snr=5., lr_schedule='constant_with_warmup', warmup=10)
NAMES = dict(no='fp32', bf16='bf16')
VALIDATION = 90                   # the seed of runs that only choose a learning rate

# What both are given

def aux(n): return pool('people').sample(n, 0)

def recipe_for(a, kw, plain=False):
    "Our recipe; `plain` takes the captions out of its prompts, as the peer knows one prompt a set."
    r = styleboost(STYLE, aux(a.class_images), base=a.base, **kw)
    if plain: r = replace(r, bindings=tuple(replace(b, prompt=b.prompt.replace(', {caption}','')) for b in r.bindings))
    r = filled_in(r, load_base(a.base))
    return replace(r, precision=r.precision or best_precision('cpu'))

def full(a, kw):
    "As many steps as show the agreed number of training images."
    return dict(kw, steps=a.images//(2*recipe_for(a, kw).batch))

def folder(a, name, pictures):
    "Pictures as a folder of PNG files and nothing else: the peer opens every file that it finds."
    out = a.work/f'{name}-{len(pictures)}'
    if not out.exists():
        part = new(out.with_name(out.name+'.part'))
        part.mkdir()
        for i,p in enumerate(pictures): (part/f'{i:04d}.png').write_bytes(png(p.open()))
        part.rename(out)
    return out

def new(path):
    "The path, free; what an interrupted measurement left there is removed."
    if path.exists(): shutil.rmtree(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path

# Running either side and watching the clock

STAND_IN = '''import sys
from pathlib import Path
sys.path.remove(here := str(Path(__file__).parent))
# The script imports both; they look for torchvision once, and must not take the stand-in for all of it.
import diffusers, transformers.utils.import_utils as u
u.is_torchvision_available()
sys.path.append(here)
'''

@cache
def stand_in():
    "A folder for the peer's PYTHONPATH with as much of torchvision as it uses."
    d = Path(tempfile.mkdtemp(prefix='styleboost-peer-'))
    (d/'torchvision').mkdir()
    (d/'torchvision'/'__init__.py').touch()
    shutil.copy(Path(__file__).with_name('transforms.py'), d/'torchvision'/'transforms.py')
    (d/'sitecustomize.py').write_text(STAND_IN)
    return d

def environment(a, peer):
    path = [str(stand_in())] if peer and not find_spec('torchvision') else []
    if os.environ.get('PYTHONPATH'): path.append(os.environ['PYTHONPATH'])
    return dict(os.environ, OMP_NUM_THREADS=str(a.threads), CUDA_VISIBLE_DEVICES=getattr(a, 'visible', ''),
                HF_HUB_OFFLINE='1', TOKENIZERS_PARALLELISM='false', PYTHONPATH=os.pathsep.join(path))

BAR = re.compile(rb'(Steps|Generating class images):[^\r\n]*?(\d+)/\d+ \[')

def watched(a, cmd, log, peer):
    "Runs a command; the seconds since its start at which its bars first showed each count, and those at its end."
    seen, t0, rest = {b'Steps':{}, b'Generating class images':{}}, time.perf_counter(), b''
    cmd, out = list(map(str,cmd)), dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    with log.open('wb') as f, subprocess.Popen(cmd, **out, env=environment(a, peer)) as p:
        try:
            while chunk:=os.read(p.stdout.fileno(), 1<<16):
                now = round(time.perf_counter()-t0, 3)
                f.write(chunk)
                rest = (rest+chunk)[-len(chunk)-1000:]
                for bar,n in BAR.findall(rest): seen[bar].setdefault(int(n), now)
        except BaseException:
            p.kill()
            raise
    if p.returncode:
        raise SystemExit(f'{"The peer" if peer else "styleboost"} stopped with status {p.returncode}; its output is in '
                         f'{log}:\n{log.read_text(errors="replace")[-2000:]}')
    return seen, round(time.perf_counter()-t0, 3)

def follow(a, cmd, log, peer, numbered=False):
    "Seconds of a command's steps in order, of its class images, and at its end. `numbered` gives the steps by number."
    seen, end = watched(a, cmd, log, peer)
    drawn, steps = seen[b'Generating class images'], seen[b'Steps']
    if numbered: return dict(at=steps)
    class_seconds = round(max(drawn.values())-min(drawn.values()), 3) if drawn else 0.
    return dict(steps=[steps[i] for i in sorted(steps) if i], class_seconds=class_seconds, exit=end)

def peer_args(a, classes, out, steps, batch=4, lr=1e-4, seed=0, checkpoint=10**6, n=None, precision='no', workers=0,
              sample_batch=4, drawn_in='fp32'):
    "The peer's flags."
    return ['--pretrained_model_name_or_path', find_base(a.base), '--instance_data_dir', folder(a, 'style', STYLE),
            '--instance_prompt', TOLD, '--with_prior_preservation', '--prior_loss_weight', 1.,
            '--class_data_dir', classes, '--class_prompt', CLASS, '--num_class_images', n or a.class_images,
            '--sample_batch_size', sample_batch, '--prior_generation_precision', drawn_in, '--train_text_encoder',
            '--resolution', a.resolution, '--center_crop', '--train_batch_size', batch, '--max_train_steps', steps,
            '--learning_rate', lr, '--lr_scheduler', 'constant', '--lr_warmup_steps', 0,
            '--mixed_precision', precision, '--dataloader_num_workers', workers, '--set_grads_to_none',
            '--checkpointing_steps', checkpoint, '--seed', seed, '--output_dir', out]

def peer_run(a, name, classes=None, **kw):
    "One run of the peer; without class images of its own it is given chosen ones."
    out, log = new(a.work/name), a.work/f'{name}.log'
    classes = classes or folder(a, 'aux', aux(a.class_images))
    r = follow(a, [sys.executable, a.script, *peer_args(a, classes, out, **kw)], log, True)
    if len(r['steps'])!=kw['steps']:
        raise SystemExit(f'The peer\'s bar showed {len(r["steps"])} of {kw["steps"]} steps; see {log}.')
    for f in out.glob('checkpoint-*/*.bin'): f.unlink()  # the optimiser's moments, which no score needs
    return r

def ask_child(a, name, numbered=False, peer=False, **spec):
    "This script again, in a process of its own."
    cmd = [sys.executable, __file__, a.script, '--child', json.dumps(spec)]
    return follow(a, cmd, a.work/f'{name}.log', peer, numbered)

def our_run(a, name, kw, seed=0, plain=False, keep=False):
    "One run of ours, in a process of its own like the peer's."
    return ask_child(a, name, do='train', kw=kw, plain=plain, seed=seed, keep=keep, out=str(new(a.work/name)),
                     base=a.base, class_images=a.class_images)

def child_train(spec):
    """Our side of `our_run`. Checkpoints that are to be scored later are linked aside as finished runs, since `train`
    keeps only the last."""
    a, out = argparse.Namespace(**spec), Path(spec['out'])
    r = recipe_for(a, a.kw, a.plain)
    def aside(step, weights):
        d = out.with_name(out.name+'-kept')/f'step-{step:06d}'
        if d.exists(): return
        (d/'weights').mkdir(parents=True)
        os.link(weights, d/'weights'/'tuned.safetensors')
        shutil.copy(out/'recipe.json', d)
    def watch(line):
        print(f'Steps: {line["step"]}/{r.steps} [', file=sys.stderr, flush=True)
        if a.keep:
            for c in (out/'checkpoints').glob('step-*'): aside(int(c.name[5:]), c/'weights.safetensors')
    if a.keep: new(out.with_name(out.name+'-kept'))
    run = train(r, out, a.seed, device='cpu', progress=False, every=1, watch=watch)
    if a.keep: aside(r.steps, run.weights)

# Results that are kept as they come

class Results:
    "Measurements by name, in a JSON file; each is taken once."
    def __init__(self, path, setting):
        self.path, self.rows, self.setting = path, {}, setting
        if not path.exists(): return
        d = json.loads(path.read_text())
        self.rows, self.setting = d['measurements'], setting or d['setting']
        other = [k for k in setting if d['setting'].get(k)!=setting[k]]
        if other: raise SystemExit(f'{path} was measured with another {", ".join(other)}; give another --out.')
    def __call__(self, name, take):
        "The measurement of that name, taken now if it has not been."
        if name in self.rows: return self.rows[name]
        print(time.strftime('%H:%M:%S'), name, flush=True)
        load = round(os.getloadavg()[0], 2)  # of the last minute, before: what else the machine was doing
        self.rows[name] = dict(take(), load_before=load, code=code())
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rows = ',\n  '.join(f'{json.dumps(k)}: {json.dumps(v)}' for k,v in self.rows.items())
        write_whole({self.path: f'{{"setting": {json.dumps(self.setting)},\n "measurements": {{\n  {rows}\n}}}}\n'})
        return self.rows[name]

@cache
def code():
    "A hash of styleboost's modules, kept with each measurement: a table of two versions must say so."
    h = hashlib.sha256()
    for f in sorted(Path(styleboost_.__file__).parent.rglob('*.py')): h.update(f.read_bytes())
    return h.hexdigest()[:8]

def setting(a):
    source = a.script.read_bytes()
    least = re.search(rb'^check_min_version\("(.*?)"\)', source, re.M)
    return dict(device=f'{processor() or platform.machine()}, CPU', threads=a.threads,
                base=weights_hash(find_base(a.base)),
                peer_sha256=hashlib.sha256(source).hexdigest()[:16],
                peer_asks_for_diffusers=least[1].decode() if least else 'any version',
                torchvision='its own' if find_spec('torchvision') else 'stand-in transforms.py',
                python=platform.python_version(), **versions())

# 1. First losses

def child_peer(spec):
    "The peer script, unmodified, with what it drew and the losses that it sent backwards written down."
    got = []
    witness(got)
    sys.argv = [spec['script'], *spec['argv']]
    runpy.run_path(spec['script'], run_name='__main__')
    save_file({f'{i}.{k}':v.contiguous() for i,g in enumerate(got) for k,v in g.items()}, spec['record'])

def losses_of_ours(a, record, order, seed, batch, steps):
    "The losses of `train`, fed what the peer drew; `order` has the prompts of style and prior."
    losses, call, back = [], Batches.__call__, Accelerator.backward
    def backward(self, loss, **kw):
        losses.append(loss.item())
        return back(self, loss, **kw)
    def fed(self, step, *_):
        drew = {k:record[f'{step}.{k}'] for k in ('xt','eps','t')}
        texts = [p for p in order for _ in range(batch)]
        return replace(call(self, step), xt=list(drew['xt']), y=list(drew['eps']), t=drew['t'], texts=texts)
    Batches.__call__, Accelerator.backward = fed, backward
    recipe = recipe_for(a, dict(batch=batch, steps=steps, lr=1e-4), plain=True)
    try: train(recipe, new(a.work/'first-loss-ours'), seed, device='cpu', progress=False)
    finally: Batches.__call__, Accelerator.backward = call, back
    return losses

def first_loss(a, results):
    "The losses of the first steps of `train`, fed what the peer drew, against the peer's own."
    def take(seed, steps=3, batch=4):
        out, file = new(a.work/'first-loss'), a.work/'first-loss.safetensors'
        argv = list(map(str, peer_args(a, folder(a, 'aux', aux(a.class_images)), out, steps, batch, seed=seed)))
        ask_child(a, 'first-loss', peer=True, do='peer', script=str(a.script), argv=argv, record=str(file))
        record = load_file(file)
        return dict(peer=[record[f'{i}.loss'].item() for i in range(steps)],
                    ours=losses_of_ours(a, record, (TOLD,CLASS), seed, batch, steps),
                    exchanged=losses_of_ours(a, record, (CLASS,TOLD), seed, batch, 1)[0])
    for s in a.seeds:
        row = results(f'first-loss seed={s}', lambda: take(s))
        if not len(row['peer'])==len(row['ours'])==3:
            raise SystemExit('The losses of three steps were to be compared, and there are '
                             f'{len(row["peer"])} and {len(row["ours"])}.')

# 2. Speed

def per_second(r, images):
    "Training images a second by the median step, the first ones left out."
    s = r['steps'][2:] if len(r['steps'])<8 else r['steps'][4:]
    step, mean = statistics.median(y-x for x,y in zip(s, s[1:])), (s[-1]-s[0])/(len(s)-1)
    return dict(images_per_second=round(images/step, 3), mean_images_per_second=round(images/mean, 3))

def rounds(a, results, arms):
    "Each arm once a round, in turning order: a machine that becomes busy slows all of them. Arms are name -> function."
    for r in range(a.rounds):
        names = list(arms)
        first = r%len(names)
        for n in names[first:]+names[:first]: results(f'{n} round={r}', lambda: arms[n](r))

def rows_of(results, arm):
    "Measurements of an arm by round."
    found = {k:re.fullmatch(re.escape(arm)+r' round=(\d+)', k) for k in results.rows}
    return {m[1]:results.rows[k] for k,m in found.items() if m}

def median(results, arm, key):
    v = [row[key] for row in rows_of(results, arm).values()]
    return statistics.median(v) if v else None

def flags(a, results):
    """Which of the peer's flags are fastest here: precision and loader processes for training, precision and batch for
    its class images."""
    arms, n = {}, min(a.class_images, 64)
    def training(r, **kw): return per_second(peer_run(a, 'flags', steps=a.steps, **kw), 8)
    def drawing(r, **kw):
        seconds = peer_run(a, 'flags', new(a.work/'flags-classes'), steps=1, n=n, **kw)['class_seconds']
        return dict(class_images_per_second=round(n/seconds, 3))
    for p,w in TRAINING: arms[flag_name(a, p, w)] = partial(training, precision=p, workers=w)
    for d,b in DRAWING: arms[drawn_name(a, d, b)] = partial(drawing, drawn_in=d, sample_batch=b)
    rounds(a, results, arms)

TRAINING = tuple(product(NAMES, (0,2)))            # precision and loader processes
DRAWING = tuple(product(('fp32','bf16'), (4,16)))  # precision and batch of class images

def flag_name(a, precision, workers): return f'flags training steps={a.steps} precision={precision} workers={workers}'
def drawn_name(a, drawn_in, sample_batch):
    return f'flags class-images n={min(a.class_images,64)} precision={drawn_in} batch={sample_batch}'

def best_flags(a, results):
    "The peer's fastest flags; without the stage that finds them, its defaults."
    trained = {k:median(results, flag_name(a, *k), 'images_per_second') for k in TRAINING}
    drawn = {k:median(results, drawn_name(a, *k), 'class_images_per_second') for k in DRAWING}
    if None in trained.values() or None in drawn.values():
        return dict(precision='no', workers=0, drawn_in='fp32', sample_batch=4)
    (p,w), (d,b) = max(trained, key=trained.get), max(drawn, key=drawn.get)
    return dict(precision=p, workers=w, drawn_in=d, sample_batch=b)

def speed_arms(a, results):
    """Name -> (side, images a step, arguments): equal work in both precisions, ours as shipped and as tuned, and the
    peer at that batch."""
    workers, default, tuned = best_flags(a, results)['workers'], recipe_for(a, {}), recipe_for(a, a.ours)
    arms, tag = {}, f'speed steps={a.steps}'
    def beside(batch, p):
        arm = 'peer', 2*batch, dict(batch=batch, precision=p, workers=workers)
        arms.setdefault(f'{tag} peer batch={batch} precision={p}', arm)
    for p in NAMES:
        beside(4, p)
        arms[f'{tag} ours batch=4 precision={p}'] = ('equal', 8, dict(batch=4, precision=p))
    arms[f'{tag} ours default batch={default.batch} precision={default.precision}'] = ('ours', 2*default.batch, {})
    arms[f'{tag} ours tuned {short(a.ours)}'] = ('ours', 2*tuned.batch, a.ours)
    for r in (default, tuned): beside(r.batch, r.precision)
    return arms

def short(kw): return ' '.join(f'{k}={v}' for k,v in sorted(kw.items()))

def speed(a, results):
    def take(side, images, kw, r):
        if side=='peer': row = peer_run(a, 'speed', steps=a.steps, **kw)
        else: row = our_run(a, 'speed-ours', dict(kw, steps=a.steps, checkpoint=10**6), plain=side=='equal')
        return per_second(row, images)
    rounds(a, results, {n: partial(take, *arm) for n,arm in speed_arms(a, results).items()})

# 3. From the start of the process

def clock_arms(a, results):
    """Name -> what runs: the peer whole with class images of its own, and ours as shipped and as tuned. Learning rate
    does not change the clock."""
    f, tuned = best_flags(a, results), full(a, a.ours)
    ours = f'images={a.images} aux={a.class_images}'
    return {f'clock peer images={a.images} class={a.class_images} {short(f)}': ('peer', f),
            f'clock ours default {ours}': ('default', full(a, {})),
            f'clock ours tuned {ours} {short(a.ours)}': ('tuned', dict(tuned, checkpoint=10**6))}

def end_to_end(a, results):
    """Both until the agreed number of training images is seen. The peer draws its class images anew each time; those of
    round r serve seed r later."""
    def take(side, kw, r):
        if side=='peer':
            fresh = new(a.work/'clock-classes')
            row = peer_run(a, 'clock', fresh, steps=a.images//8, seed=r, **kw)
            keep = a.work/f'classes-{a.class_images}-{r}'
            if not keep.exists(): fresh.rename(keep)
        else: row = our_run(a, 'clock-ours', kw, r)
        return dict(row, seconds=row['steps'][-1])
    rounds(a, results, {n: partial(take, *arm) for n,arm in clock_arms(a, results).items()})

# 4. Time to quality

@cache
def asked(split, n, draws): return [(p, d) for d in range(draws) for p in prompts('openmoji', split, n)]

@cache
def truths(split, n):
    from styleboost.judging.judge import load_judge
    from styleboost.pictures.tensors import to_tensor
    return load_judge().features(to_tensor([p.truth for p in prompts('openmoji', split, n)]))

def quality_of(a, model, split):
    "KID of a model's pictures of held-out prompts to the style's own pictures of them."
    from styleboost.judging.judge import load_judge
    from styleboost.pictures.tensors import to_tensor
    from styleboost.judging.metrics import kid
    what = asked(split, a.prompts, a.draws)
    ims = sample(model, [style_prompt(p.text) for p,_ in what], 0, a.sampler, raw=True)
    mean, std = kid(load_judge().features(to_tensor(ims)), truths(split, a.prompts))
    return dict(kid=round(mean,5), kid_std=round(std,5))

def trained(a, results, side, lr, seed, every):
    "The checkpoints of a whole run, step -> folder; trained now if they are not there."
    steps = a.images//8 if side=='peer' else full(a, a.ours)['steps']
    how = f'{settled(a, results, side)} class={a.class_images}' + ('' if side=='peer' else code())
    how = hashlib.sha256(how.encode()).hexdigest()[:6]
    name = f'{side}-lr{lr:g}-seed{seed}-every{every}-steps{steps}-{how}'
    done, kept = a.work/f'{name}.done', a.work/(name if side=='peer' else f'{name}-kept')
    if not done.exists() or not kept.exists():
        print(time.strftime('%H:%M:%S'), 'training', name, flush=True)
        if side=='peer':
            f, classes = best_flags(a, results), a.work/f'classes-{a.class_images}-{seed}'
            if classes.exists() and len(list(classes.iterdir()))<a.class_images: new(classes)
            peer_run(a, name, classes, steps=steps, lr=lr, seed=seed, checkpoint=every, **f)
        else: our_run(a, name, dict(full(a, a.ours), lr=lr, checkpoint=every), seed, keep=True)
        done.touch()
    found = {p:re.fullmatch(r'(checkpoint|step)-(\d+)', p.name) for p in sorted(kept.iterdir())}
    return {int(m[2]):p for p,m in found.items() if m}

def opened(a, side, path):
    "A checkpoint as a model to draw with."
    if side=='ours': return Run(path)
    model = load_base(a.base).own()
    for part in ('unet','text_encoder'):
        with quiet(): tuned = type(model.modules[part]).from_pretrained(path/part)
        model.modules[part].load_state_dict(tuned.state_dict())
    return model

def kid_at(a, results, side, lr, seed, every, step, split):
    "The score of one checkpoint, drawn and scored now if it has not been."
    def take(): return quality_of(a, opened(a, side, trained(a, results, side, lr, seed, every)[step]), split)
    return results(kid_name(a, results, side, lr, seed, step, split), take)['kid']

def settled(a, results, side): return short(best_flags(a, results) if side=='peer' else a.ours)

def drawn_how(a): return f'prompts={a.prompts} draws={a.draws} sampler={a.sampler}'

def kid_name(a, results, side, lr, seed, step, split):
    what = f'images={a.images} class={a.class_images} {side} {settled(a, results, side)}'
    return f'kid {split} {drawn_how(a)} {what} lr={lr:g} seed={seed} step={step}'

def base_name(a): return f'kid test {drawn_how(a)} untouched base'

def crossing(steps, score, target, whole=False):
    """The first step whose score and the next one's are at the target or below; with `whole` the last step counts
    without a next. None if there is none."""
    for s,after in zip(steps, [*steps[1:], None]):
        if score(s)<=target and (whole if after is None else score(after)<=target): return s

def grid(a, side):
    "Checkpoints that are scored: the peer's and ours."
    steps = a.images//8 if side=='peer' else full(a, a.ours)['steps']
    every = max(1, steps//a.checkpoints[side])
    return every, [*range(every, steps, every), steps] if steps%every else [*range(every, steps+1, every)]

def tune(a, results):
    """The learning rate of either side, on validation prompts and a seed of its own: the peer's lowest KID at the end,
    our fewest steps to that KID."""
    steps, (every, ours_at) = a.images//8, grid(a, 'ours')
    def ours(lr, step): return kid_at(a, results, 'ours', lr, VALIDATION, every, step, 'validation')
    peer = {lr: kid_at(a, results, 'peer', lr, VALIDATION, steps, steps, 'validation') for lr in a.rates}
    best = min(peer, key=peer.get)
    reached = {lr: crossing(ours_at, partial(ours, lr), peer[best]) for lr in a.rates}
    in_time = [lr for lr in a.rates if reached[lr]]
    mine = min(in_time, key=reached.get) if in_time else min(a.rates, key=lambda lr: ours(lr, ours_at[-1]))
    for name,lr in (('peer',best),('ours',mine)):
        if lr not in (min(a.rates), max(a.rates)): continue
        print(f'The best learning rate of {name}, {lr:g}, is at the end of those tried; try a wider range with '
              '--rates.')
    named = lambda d: {f'{k:g}':v for k,v in d.items()}
    results(chosen_name(a), lambda: dict(peer=best, ours=mine, peer_kid=named(peer), ours_step=named(reached)))

def chosen_name(a):
    rates = ','.join(f'{r:g}' for r in a.rates)
    return (f'tune rates={rates} images={a.images} class={a.class_images} prompts={a.prompts} draws={a.draws} '
            f'{short(a.ours)}')

def quality(a, results):
    "Steps at which each seed of either side reaches, and keeps, the peer's mean KID after its full run."
    if chosen_name(a) not in results.rows: tune(a, results)
    lr = results.rows[chosen_name(a)]
    score = lambda side, seed: lambda s: kid_at(a, results, side, lr[side], seed, grid(a, side)[0], s, 'test')
    results(base_name(a), lambda: quality_of(a, load_base(a.base), 'test'))
    last = a.images//8
    target = statistics.mean(score('peer', s)(last) for s in a.seeds)
    for side in ('peer','ours'):
        for s in a.seeds: crossing(grid(a, side)[1], score(side, s), target, side=='peer')

def to_quality(a, results):
    "Seconds to the target for each seed, by the median clock; None where a measurement is missing."
    lr, whole, sides = results.rows.get(chosen_name(a)), a.images//8, ('peer','ours')
    if not lr: return None
    def known(side, seed, step): return results.rows[kid_name(a, results, side, lr[side], seed, step, 'test')]['kid']
    try:
        ends = [known('peer', s, whole) for s in a.seeds]
        target, at = statistics.mean(ends), {}
        for side in sides:
            steps = grid(a, side)[1]
            at[side] = [crossing(steps, partial(known, side, s), target, side=='peer') for s in a.seeds]
    except KeyError: return None
    stamps = {side: [] for side in sides}
    for name,(which,_) in clock_arms(a, results).items():
        side = dict(peer='peer', tuned='ours').get(which)
        if side: stamps[side] += [r['steps'] for r in rows_of(results, name).values()]
    if not all(stamps.values()): return None
    def second(side, step): return statistics.median(c[step-1] for c in stamps[side])
    return dict(target=target, ends=ends, steps=at, peer=[second('peer', s or whole) for s in at['peer']],
                peer_late=[s is None for s in at['peer']], ours=[second('ours', s) if s else None for s in at['ours']],
                lr={k:lr[k] for k in sides})

# The table

def paired(results, one, other, key):
    "Ratios of two arms, round by round."
    x, y = rows_of(results, one), rows_of(results, other)
    return [x[k][key]/y[k][key] for k in sorted(x.keys()&y.keys())]

def several(v, form='{:.2f}'):
    return f'{form.format(statistics.median(v))} ({", ".join(form.format(x) for x in v)})' if v else '-'

def shown_flags(a, results):
    "The peer's flags, with words in the place of this machine's folders."
    f = best_flags(a, results)
    args = ' '.join(map(str, peer_args(a, 'CLASSES', 'OUT', 'N', lr='LR', seed='SEED', n=a.class_images, **f)))
    words = {folder(a,'style',STYLE):'STYLE', find_base(a.base):'BASE', TOLD:f'"{TOLD}"', CLASS:f'"{CLASS}"'}
    for what,word in words.items(): args = args.replace(str(what), word)
    return args

def setting_lines(a, results):
    s = results.setting
    loads = [r['load_before'] for k,r in results.rows.items() if k.startswith(('speed','clock'))]
    # flags are tried on the peer alone
    codes = sorted({r['code'] for k,r in results.rows.items() if not k.startswith('flags')})
    several_codes = '' if len(codes)<2 else ': not all measurements are of the same version'
    yield (f'# styleboost and diffusers\' `train_dreambooth.py`\n\nDevice: {s["device"]}, {s["threads"]} threads, '
           f'no GPU; the machine\'s load before a timing was {min(loads, default=0)} to {max(loads, default=0)}. '
           f'Base: weights {s["base"]}. torch {s["torch"]}, diffusers {s["diffusers"]}, '
           f'transformers {s["transformers"]}, accelerate {s["accelerate"]}, styleboost {s["styleboost"]} '
           f'(sources {", ".join(codes)}{several_codes}), '
           f'Python {s["python"]}. Peer: the script with SHA-256 {s["peer_sha256"]}…, which asks for diffusers '
           f'{s["peer_asks_for_diffusers"]} or later, run unmodified; torchvision: {s["torchvision"]}. '
           'Rounds are interleaved; medians, with every round in brackets. '
           f'Style: {len(STYLE)} pictures of '
           f'OpenMoji; prior: {a.class_images} images.\n\nThe peer\'s flags: `{shown_flags(a, results)}`\n')
    if a.quick: yield '**Made with --quick, to see that everything runs: the numbers mean nothing.**\n'

def first_loss_lines(a, results):
    first = {k:r for k,r in results.rows.items() if k.startswith('first-loss')}
    if not first: return
    off = ', '.join(f'{abs(r["exchanged"]/r["peer"][0]-1):.0e}' for r in first.values())
    yield ('## First losses\n\nThe peer\'s own steps (its script unmodified, its draws and losses written down by '
           'wrappers around `DDPMScheduler.add_noise` and `Accelerator.backward`), and those of `train`, fed the '
           'latents, noise, timesteps and prompts that the peer drew; fp32, batch 4 + 4, learning rate 1e-4. That the '
           f'comparison can fail: with the two prompts exchanged, the first loss is off by {off}.\n\n'
           '| seed | step | peer | ours | relative difference |\n|---|---|---|---|---|')
    for k,r in first.items():
        for i,(x,y) in enumerate(zip(r['peer'], r['ours'])):
            yield f'| {k.split("=")[1]} | {i+1} | {x:.8f} | {y:.8f} | {abs(x-y)/x:.1e} |'

def speed_lines(a, results):
    arms = speed_arms(a, results)
    if not any(median(results, n, 'images_per_second') for n in arms): return
    peer_at = lambda batch, p: f'speed steps={a.steps} peer batch={batch} precision={p}'
    fastest = max((peer_at(4, p) for p in NAMES), key=lambda n: median(results, n, 'images_per_second') or 0)
    yield (f'\n## Training images per second\n\n{a.steps} steps a round, the first five left out, by the median step. '
           '"Equal": the same pictures, prompts, batch and precision, text encoder trained. The peer runs with '
           f'{best_flags(a, results)["workers"]} loader processes.\n\n| who | images/s | over the peer at equal '
           'batch and precision | over the peer\'s faster precision at 4 + 4 |\n|---|---|---|---|')
    for n,(side,images,kw) in arms.items():
        m = median(results, n, 'images_per_second')
        if not m: continue
        b, p = images//2, recipe_for(a, kw).precision if side=='ours' else kw['precision']
        ours = f'ours, tuned ({short(kw)})' if kw else 'ours, as shipped'
        who = dict(peer='peer', equal='ours, equal', ours=ours)[side]
        ratios = [several(paired(results, n, other, 'images_per_second')) for other in (peer_at(b, p), fastest)]
        if side=='peer': ratios = ['', '']
        yield f'| {who}, {b} + {b}, {NAMES.get(p,p)} | {m:.1f} | {ratios[0]} | {ratios[1]} |'

def clock_lines(a, results):
    clocks = clock_arms(a, results)
    peer = next(iter(clocks))
    if not median(results, peer, 'seconds'): return
    yield (f'\n## From process start until {a.images:,} training images are seen\n\n| who | seconds | of which its '
           f'{a.class_images} generated class images | times faster |\n|---|---|---|---|')
    for n,(side,kw) in clocks.items():
        m, drawn = median(results, n, 'seconds'), median(results, n, 'class_seconds')
        if not m: continue
        who = dict(peer='peer, 4 + 4', default='ours, as shipped', tuned=f'ours, tuned ({short(a.ours)})')[side]
        faster = '' if side=='peer' else several(paired(results, peer, n, 'seconds'))
        yield f'| {who} | {m:.1f} | {drawn:.1f} | {faster} |'

def quality_head(a, results, q):
    n, base = len(asked('test', a.prompts, a.draws)), results.rows[base_name(a)]['kid']
    ends = ', '.join(f'{e:.4f}' for e in q['ends'])
    whose = {'peer':'the peer\'s', 'ours':'ours'}
    at_end = ' and '.join(w for k,w in whose.items() if q['lr'][k] in (min(a.rates), max(a.rates)))
    if at_end: at_end = f'; at the end of those tried: {at_end}'
    rates = ', '.join(f'{r:g}' for r in a.rates)
    return (f'\n## Time to quality\n\nTarget: the KID that the peer has after its full run of {a.images:,} images, '
            f'mean of seeds {", ".join(map(str,a.seeds))}: **{q["target"]:.4f}** '
            f'({ends}; the untouched base has {base:.4f}). '
            f'KID of {n} pictures ({a.draws} of each held-out test prompt, DDIM, {a.sampler} steps, guidance 7) to the '
            'style\'s own pictures of those prompts, features of the embedded judge. Reached: at or below the target '
            'at two checkpoints in a row; the peer\'s last counts alone. '
            f'Learning rates: the best of {rates} on validation prompts and seed {VALIDATION}, for both: '
            f'peer {q["lr"]["peer"]:g}, ours {q["lr"]["ours"]:g}{at_end}. '
            f'Our recipe: captions, {a.class_images} auxiliary images of `world:people`, {short(a.ours)}. '
            'Clock: the runs of the section above (process start, class images included, no checkpoint saved and none '
            'scored), median of the second at which the step was done; the checkpoints come from runs of their own.\n\n'
            '| seed | peer: step, seconds | ours: step, seconds | times faster |\n|---|---|---|---|')

def quality_lines(a, results):
    q = to_quality(a, results)
    if not q: return
    yield quality_head(a, results, q)
    ratios = []
    rows = zip(a.seeds, q['steps']['peer'], q['steps']['ours'], q['peer'], q['ours'], q['peer_late'])
    for s,peer_step,our_step,x,y,late in rows:
        if y: ratios.append(x/y)
        peer = f'not in its whole run, more than {x:.1f}' if late else f'{peer_step}, {x:.1f}'
        ours, faster = (f'{our_step}, {y:.1f}', f'{x/y:.2f}') if y else ('not reached', '-')
        yield f'| {s} | {peer} | {ours} | {faster} |'
    ours = f'{statistics.median(y for y in q["ours"] if y):.1f}' if ratios else '-'
    some = '' if all(q['ours']) else ' of those that reached it'
    yield f'| median{some} | {statistics.median(q["peer"]):.1f} | {ours} | {several(ratios)} |'
    if q['target']>=results.rows[base_name(a)]['kid']:
        yield ('\n**The peer\'s full run is no nearer to the style than the untouched base, so the seconds to its KID '
               'say nothing.**')

def table(a, results):
    "What was measured, as markdown."
    out = []
    for section in (setting_lines, first_loss_lines, speed_lines, clock_lines, quality_lines):
        out += section(a, results)
    out.append('\n## On a GPU\n\n`benchmarks/gpu.py` measures speed and peak memory of every lever beside the peer\'s '
               'scripts; [what an H100 gave](gpu-sd1.md).')
    path = a.out.with_suffix('.md')
    write_whole({path: '\n'.join(out)+'\n'})
    print(f'{path.name} written')

MEASURE = {'first-loss':first_loss, 'flags':flags, 'speed':speed, 'end-to-end':end_to_end, 'tune':tune,
           'quality':quality, 'table':table}

def parser():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add, out = p.add_argument, Path(__file__).with_name('peer.json')
    add('script', type=Path, help="diffusers' examples/dreambooth/train_dreambooth.py")
    add('stages', nargs='*', metavar='stage', help=f'{", ".join(MEASURE)}; all unless given')
    add('--out', type=Path, default=out, help='measurements; the table goes beside it')
    add('--work', type=Path, default=Path('runs/peer'),
        help='runs and checkpoints, up to 15 GB; goes on with what is there')
    add('--base', default='tiny')
    add('--threads', type=int, default=os.cpu_count())
    add('--rounds', type=int, default=3)
    add('--steps', type=int, default=40, help='steps a round of the speed')
    add('--images', type=int, default=3200, help='training images of a full run')
    add('--class-images', type=int, default=200)
    add('--seeds', type=int, nargs='+', default=[0,1,2])
    add('--rates', type=float, nargs='+', default=list(RATES), help='learning rates to choose from')
    add('--ours', type=json.loads, default=OURS,
        help='our recipe for time to quality, as JSON, without its learning rate')
    add('--prompts', type=int, default=48, help='held-out prompts, half of them people')
    add('--draws', type=int, default=2, help='pictures a prompt')
    add('--sampler', type=int, default=16, help='sampler steps')
    add('--quick', action='store_true', help='tiny sizes, to see that everything runs; the numbers mean nothing')
    add('--child', type=json.loads, help=argparse.SUPPRESS)
    return p

def main():
    p = parser()
    a = p.parse_args()
    if a.child: return dict(train=child_train, peer=child_peer)[a.child['do']](a.child)
    if not a.script.is_file(): p.error(f'{a.script} is no file; give the path of train_dreambooth.py')
    if wrong:=[s for s in a.stages if s not in MEASURE]:
        p.error(f'there is no stage {wrong[0]}; choose from {", ".join(MEASURE)}')
    a.checkpoints = dict(peer=16, ours=20)
    if a.quick:
        vars(a).update(rounds=1, steps=6, images=64, class_images=8, seeds=a.seeds[:1], rates=a.rates[1:3], prompts=8,
                       draws=1, sampler=2, checkpoints=dict(peer=2, ours=4))
    os.environ['CUDA_VISIBLE_DEVICES'] = ''
    a.script, a.resolution = a.script.resolve(), load_base(a.base).resolution
    a.work = a.work/weights_hash(find_base(a.base))
    a.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(a.threads)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the process being measured ends too
    results = Results(a.out, setting(a))
    try:
        for name,stage in MEASURE.items():
            if name in (a.stages or MEASURE): stage(a, results)
    finally:
        if stand_in.cache_info().currsize: shutil.rmtree(stand_in())

if __name__=='__main__': main()
