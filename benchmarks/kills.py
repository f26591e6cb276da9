"""Interrupts trainings and studies at random moments, by SIGKILL, by SIGTERM and by a full disk, goes on with each, and
says what was lost. Each trial is a forked process, so that nothing has to be imported again."""
import argparse, errno, hashlib, json, os, random, signal, subprocess, sys, tempfile, time, traceback
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from common import device
from styleboost.bases.load import blank, load_base
from styleboost.core import StyleboostError, progress_bar
from styleboost.pictures.images import ImageSet, Picture, png
from styleboost.pictures.prompts import Prompt
from styleboost.studies.study import Study
from styleboost.studies.style import Style
from styleboost.training.loop import train
from styleboost.training.recipes import no_prior, with_prior
from styleboost.training.runs import versions

STEPS, EVERY = 24, 4     # of a training, and between its checkpoints
METHODS = ('full', 'lora', 'textual_inversion')

def pictures(n, name, people=None):
    "Small random pictures."
    rng = np.random.default_rng(sum(map(ord, name)))
    def one(i):
        im = Image.fromarray(rng.integers(0, 256, (4,4,3), dtype=np.uint8)).resize((64,64))
        return Picture(f'{name}{i}.png', data=png(im), caption=f'a {name} {i}', people=i%2==0 if people is None else people)
    return ImageSet([one(i) for i in range(n)], name)

def subjects(base):
    "What is interrupted: name -> function of a folder that begins it or goes on with it."
    ref, aux = pictures(4, 'ref'), pictures(6, 'aux')
    def training(method):
        recipe = with_prior(no_prior(ref, method=method, steps=STEPS, batch=1, lr=1e-3, checkpoint=EVERY, base=base.name), aux)
        def go(folder):
            begun = (folder/'recipe.json').exists()
            train(recipe, folder, 0, base=base, device='cpu', resume=begun, every=1, progress=False)
        return go
    def study(folder):
        asked = [Prompt(p.caption, p.people, p) for p in pictures(12, 'asked')]
        style = Style('random', ref, pictures(12, 'real'), asked[:4], asked[4:])
        Study(style, ['none'], folder, seeds=(0,1), steps=(2,4), base=base, method='lora', choose='style', sampler=2, batch=1,
              lr=1e-3, device='cpu').run(progress=False)
    return {**{m: training(m) for m in METHODS}, 'study': study}

def outcome(folder):
    "A hash of all that a subject made: weights, pictures and scores, without what tells the time."
    h = hashlib.sha256()
    for f in sorted(folder.rglob('*')):
        if f.suffix in ('.safetensors','.png') and 'checkpoints' not in f.parts: h.update(f.name.encode()+f.read_bytes())
        if f.name=='scores.json': h.update(json.dumps(json.loads(f.read_text())['rows'], sort_keys=True).encode())
    return h.hexdigest()[:16]

def logged(folder):
    "The last step that a training's log has."
    lines = (folder/'log.jsonl').read_text().splitlines() if (folder/'log.jsonl').exists() else []
    steps = [json.loads(l)['step'] for l in lines if l.endswith('}')]
    return max(steps, default=0)

def checkpoint(folder):
    "The step that a training would go on from."
    kept = [int(p.name.split('-')[-1]) for p in (folder/'checkpoints').glob('*') if (p/'state.json').exists()]
    return max(kept, default=0)

def child(go, folder, said):
    "Carries out a subject in a process of its own; what went wrong goes into the file `said`."
    pid = os.fork()
    if pid: return pid
    try:
        torch.set_num_threads(1)
        with open(os.devnull, 'w') as nowhere:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
            go(folder)
        os._exit(0)
    except StyleboostError as e: said.write_text(str(e))
    except (KeyboardInterrupt, SystemExit): said.write_text('interrupted')
    except BaseException: said.write_text(traceback.format_exc())
    finally: os._exit(1)     # whatever happens: the rest of the program is the parent's

def ended(pid):
    "How a child ended: 0, 1, or the negative number of a signal."
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

@contextmanager
def small_disk(size='512m'):
    "A folder on a disk of its own, or None where none can be had."
    with tempfile.TemporaryDirectory() as d:
        made = subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={size}', 'tmpfs', d], capture_output=True).returncode==0
        try: yield Path(d) if made else None
        finally:
            if made: subprocess.run(['umount', '-l', d], check=False)

def fill(disk):
    "Leaves no room on a disk; the file that takes it."
    file = disk/'filler'
    with file.open('wb', buffering=0) as f:
        for size in (1<<20, 1<<12, 1):
            try:
                while True: f.write(b'\0'*size)
            except OSError as e:
                if e.errno!=errno.ENOSPC: raise
    return file

def trial(name, go, how, wait, disk, said):
    """One interruption, and going on until the end: what was found. `said` lies elsewhere: a full disk has no room for
    what the child has to say."""
    folder = disk/name
    said.unlink(missing_ok=True)
    pid = child(go, folder, said)
    time.sleep(wait)
    if how=='full disk':
        file = fill(disk)
        status = ended(pid)
        file.unlink()
    else:
        os.kill(pid, signal.SIGKILL if how=='SIGKILL' else signal.SIGTERM)
        status = ended(pid)
    text = said.read_text() if said.exists() else ''
    row = dict(subject=name, how=how, seconds=round(wait, 2), status=status, said=text[:2000], finished=status==0)
    if name!='study': row |= dict(logged=logged(folder), kept=checkpoint(folder))
    said.unlink(missing_ok=True)
    again = ended(child(go, folder, said))
    row |= dict(again=again, said_again=said.read_text()[:2000] if said.exists() else '', outcome=outcome(folder))
    left = [str(f.relative_to(folder)) for f in folder.rglob('*') if f.name.startswith('.tmp') or f.suffix in ('.tmp','.part')]
    return dict(row, left=left)

def faults(row, truth):
    "What is wrong with a trial, in words."
    out = []
    if 'Traceback' in row['said']+row['said_again']: out.append('a traceback')
    if row['again']!=0: out.append('did not go on')
    elif row['outcome']!=truth: out.append('another result')
    if row['left']: out.append('half-written files are left')
    if 'logged' in row and not row['finished'] and row['logged']<STEPS:
        due = (row['logged']-1)//EVERY*EVERY     # a checkpoint is kept after its own step's line, before the next
        if row['how']=='SIGTERM' and row['said']=='interrupted': due = row['logged']
        if row['kept']<due: out.append(f'lost {due-row["kept"]} steps beyond the checkpoint')
    return out

def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--trials', type=int, default=100, help='in all')
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--out', type=Path)
    a = p.parse_args()
    torch.set_num_threads(1)
    rng, rows, truths, took = random.Random(a.seed), [], {}, {}
    with tempfile.TemporaryDirectory() as d, small_disk() as disk:
        blank('sd1').pipeline().save_pretrained(Path(d)/'base')
        what = subjects(load_base(Path(d)/'base'))
        for name,go in what.items():
            began, said = time.time(), Path(d)/'said.txt'
            if ended(child(go, Path(d)/name, said)): sys.exit(f'{name} does not even run: {said.read_text()}')
            truths[name], took[name] = outcome(Path(d)/name), time.time()-began
        hows = ['SIGKILL','SIGTERM'] + (['full disk'] if disk else [])
        for i in progress_bar(range(a.trials), desc='trials'):
            name, how = list(what)[i%len(what)], hows[i//len(what)%len(hows)]
            with tempfile.TemporaryDirectory(dir=disk or d) as own:
                where, wait = disk if how=='full disk' else Path(own), rng.random()*took[name]*1.05
                row = trial(name, what[name], how, wait, where, Path(d)/'said.txt')
            rows.append(dict(row, faults=faults(row, truths[name])))
            if rows[-1]['faults']: print(json.dumps(rows[-1]), flush=True)
            if disk: subprocess.run(['sh', '-c', f'rm -rf {disk}/*'], check=True)
    counts = Counter((r['subject'], r['how']) for r in rows)
    interrupted = sum(not r['finished'] for r in rows)
    said = Counter(f for r in rows for f in r['faults'])
    print(f'{len(rows)} trials, {interrupted} of them interrupted before their end; faults: {dict(said) or "none"}')
    if a.out: a.out.write_text(json.dumps(dict(device=device(), **versions(), steps=STEPS, checkpoint_every=EVERY,
        trials={f'{s}, {h}':n for (s,h),n in sorted(counts.items())}, interrupted=interrupted, faults=dict(said)), indent=1)+'\n')
    sys.exit(bool(said))

if __name__=='__main__': main()
