"""Opens damaged and hostile files of every kind that the package reads, each in a process of its own, and counts what
happened: read, refused in a sentence, a traceback, a hang, a byte read outside, a program started."""
import argparse, json, os, random, shutil, signal, sys, tempfile, time, traceback
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from common import device
from styleboost.bases.load import blank, load_base
from styleboost.bases.sampling import sample
from styleboost.core import StyleboostError, progress_bar
from styleboost.judging.judge import JUDGE, load_judge
from styleboost.pictures.images import ImageSet
from styleboost.pictures.prompts import read_prompts
from styleboost.studies.style import own_style
from styleboost.studies.study import Study
from styleboost.training.loop import train
from styleboost.training.recipes import no_prior
from styleboost.training.runs import Run, versions

PATIENCE = 60   # seconds that an opening may take on a busy machine

# 1. A whole example of each kind of folder, and what opens it

def picture_folder(folder, seed=0):
    "Pictures in several formats, with captions of every kind."
    rng = np.random.default_rng(seed)
    for i,end in enumerate(('png','jpg','webp','gif','bmp','tiff')):
        im = Image.fromarray(rng.integers(0, 256, (8,8,3), dtype=np.uint8)).resize((64,64))
        im.save(folder/f'{i}.{end}')
    (folder/'0.txt').write_text('a red cat')
    rows = [dict(file_name=f'{i}.{e}', text=f'a cat {i}', people=i%2==0) for i,e in ((1,'jpg'),(2,'webp'))]
    (folder/'metadata.jsonl').write_text(''.join(json.dumps(r)+'\n' for r in rows))

def open_pictures(folder):
    for p in ImageSet.from_folder(folder): p.open()

def prompt_folder(folder):
    (folder/'p.txt').write_text('a cat\na dog\n')
    (folder/'p.tsv').write_text('prompt\tpeople\na farmer\ttrue\na boat\tfalse\n')

def open_prompts(folder):
    for f in sorted(folder.iterdir()): read_prompts(f)

def run_folder(folder):
    shutil.copytree(MADE/'run', folder, dirs_exist_ok=True)

def open_run(folder):
    run = Run(folder)
    run.log, run.phrase('a cat')
    sample(run, ['a cat'], 0, 1, size=64, device='cpu')

def resume_run(folder):
    run = Run(folder)
    train(no_prior(ImageSet.from_folder(MADE/'ref'), base=str(MADE/'base'), **RECIPE), folder, 0, device='cpu', resume=True,
          progress=False)
    run.weights

def base_folder(folder): shutil.copytree(MADE/'base', folder, dirs_exist_ok=True)

def open_base(folder):
    b = load_base(folder)
    sample(b, ['a cat'], 0, 1, size=64, device='cpu')

def study_folder(folder): shutil.copytree(MADE/'study', folder, dirs_exist_ok=True)

def open_study(folder):
    s = Study.open(folder)
    repr(s), s.table(), s.chosen, s.prompts(), s.report()

def judge_folder(folder): shutil.copytree(JUDGE, folder, dirs_exist_ok=True)

def open_judge(folder):
    load_judge.__wrapped__(folder).embed_texts(['a cat'])

KINDS = dict(pictures=(picture_folder, open_pictures), prompts=(prompt_folder, open_prompts), run=(run_folder, open_run),
    resume=(run_folder, resume_run), base=(base_folder, open_base), study=(study_folder, open_study),
    judge=(judge_folder, open_judge))
RECIPE = dict(steps=2, batch=1, lr=1e-3, method='lora', checkpoint=1)

def make_examples(made):
    "What is expensive to make, once."
    global MADE
    MADE = made
    blank('sd1').pipeline().save_pretrained(made/'base')
    (made/'ref').mkdir()
    picture_folder(made/'ref')
    (made/'real').mkdir()
    picture_folder(made/'real', 1)
    ref = ImageSet.from_folder(made/'ref')
    train(no_prior(ref, base=str(made/'base'), **RECIPE), made/'run', 0, device='cpu', progress=False)
    (made/'p.tsv').write_text('prompt\tpeople\n'+''.join(f'a thing {i}\t{i%2==0}\n' for i in range(6)))
    style = own_style(ref, ImageSet.from_folder(made/'real'), test=made/'p.tsv')
    Study(style, ['none'], made/'study', seeds=(0,), steps=(1,2), base=str(made/'base'), method='lora', choose='style',
          sampler=1, batch=1, lr=1e-3, device='cpu').run(progress=False)

# 2. What is done to one of its files

TEXTS = ['', '\0', '\ufeff', '\ud800'.encode('utf-8', 'surrogatepass'), b'\xff\xfe\x00', '{', '[]', 'null', '"', '{}', '1e999',
         '['*100_000, '{"a":'*5_000+'1'+'}'*5_000, '9'*10_000, 'NaN', '\u2028', '<!--<script>', '\x1b[2J\x1b]0;x\x07']
VALUES = [None, True, -1, 0, 2**64, 1e308, float('nan'), float('inf'), '', '../../outside/secret.txt', '/etc/passwd', 'x'*5000,
          '\x1b[31m', '\u2028', [], {}, [[]], ['']*3, {'a':{'b':1}}, '__import__("os").system("true")']

def spoilt_json(data, rng):
    "JSON with one value somewhere replaced, or one key gone or new."
    places = []
    def walk(x, path):
        places.append(path)
        items = x.items() if isinstance(x, dict) else enumerate(x) if isinstance(x, list) else ()
        for k,v in items: walk(v, (*path, k))
    walk(data, ())
    path = rng.choice(places)
    if not path: return rng.choice(VALUES)
    at = data
    for k in path[:-1]: at = at[k]
    what = rng.random()
    if what<.2: del at[path[-1]]
    elif what<.3 and isinstance(at, dict): at[str(rng.choice(VALUES))[:50]] = rng.choice(VALUES)
    else: at[path[-1]] = rng.choice(VALUES)
    return data

WELCOME = dict(prompts=('fifo','link'))   # you name such a file yourself

def may_lead_out(kind, file):
    "Pictures may be links to elsewhere, which is said, and the hub keeps the files of bases so."
    return kind=='base' or kind=='pictures' and file.suffix in ('.png','.jpg','.webp','.gif','.bmp','.tiff')

def damage(file, rng, outside, welcome=()):
    "Spoils a file; what was done, in words."
    data = file.read_bytes()
    ways = ['cut','bits','bytes','text','gone','folder','fifo','link','long'] + ['json']*8*(file.suffix in ('.json','.jsonl'))
    how = rng.choice([w for w in ways if w not in welcome])
    if how=='cut': file.write_bytes(data[:rng.randrange(len(data)+1)])
    elif how=='bits':
        spoilt = bytearray(data)
        for _ in range(rng.choice((1,8,64))):
            if spoilt: spoilt[rng.randrange(min(len(spoilt), rng.choice((64, len(spoilt)))))] ^= 1<<rng.randrange(8)
        file.write_bytes(spoilt)
    elif how=='bytes': file.write_bytes(rng.randbytes(rng.choice((0,1,7,8,9,4096))))
    elif how=='text':
        text = rng.choice(TEXTS)
        file.write_bytes(text if isinstance(text, bytes) else text.encode('utf-8', 'surrogatepass'))
    elif how=='long': file.write_bytes((2**62).to_bytes(8, 'little')+data)
    elif how=='json':
        lines = data.decode().splitlines() if file.suffix=='.jsonl' else [data.decode()]
        i = rng.randrange(len(lines))
        lines[i] = json.dumps(spoilt_json(json.loads(lines[i]), rng))
        file.write_text('\n'.join(lines)+'\n')
    else:
        file.unlink()
        if how=='folder': file.mkdir()
        elif how=='fifo': os.mkfifo(file)
        elif how=='link': file.symlink_to(rng.choice((outside/'secret.txt', outside, Path('/dev/zero'), file)))
    return how

# 3. One opening, watched

def watched(outside, told):
    "Writes down programs that are started, and files that are opened outside."
    programs = ('subprocess.Popen','os.exec','os.system','os.posix_spawn','os.fork','ctypes.dlopen')
    def hook(event, args):
        if event in programs: told(f'program: {args[0]!r}'[:200])
        elif event=='open' and isinstance(args[0], (str,bytes)):
            path = os.path.realpath(os.fsdecode(args[0]))
            if path.startswith(str(outside)): told(f'outside: {path}')
    sys.addaudithook(hook)

def opening(kind, folder, outside, said):
    "Opens a folder in a process of its own: how it ended, and what was seen."
    pid = os.fork()
    if pid==0:
        os.setpgrp()
        out = open(said, 'w')
        told = lambda text: (out.write(text+'\n'), out.flush())
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        watched(outside, told)
        try: KINDS[kind][1](folder)
        except StyleboostError as e: told(f'sentence: {e}' if '\n' not in str(e) else f'traceback: several lines: {e!r}')
        except BaseException: told('traceback: '+traceback.format_exc())
        os._exit(0)
    until = time.time()+PATIENCE
    while time.time()<until:
        if os.waitpid(pid, os.WNOHANG)[0]: break
        time.sleep(.01)
    else:
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return ['hang']
    return said.read_text().splitlines() if said.exists() else []

def verdict(lines, welcome):
    "One word for what was seen; `welcome` says whether a link may have led outside."
    for word in ('hang','program','outside','traceback'):
        if any(l.startswith(word) for l in lines) and not (welcome and word=='outside'): return word
    return 'sentence' if any(l.startswith('sentence') for l in lines) else 'read'

def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--files', type=int, default=1000, help='in all')
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--kinds', nargs='+', default=list(KINDS))
    p.add_argument('--out', type=Path)
    a = p.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as d:
        d = Path(os.path.realpath(d))
        (d/'made').mkdir()
        make_examples(d/'made')
        outside = d/'outside'
        outside.mkdir()
        (outside/'secret.txt').write_text('nobody may read this')
        counts, faults = Counter(), []
        for i in progress_bar(range(a.files), desc='files'):
            kind, rng = a.kinds[i%len(a.kinds)], random.Random(a.seed*10**6+i)
            folder = d/'one'
            folder.mkdir()
            KINDS[kind][0](folder)
            file = rng.choice(sorted(f for f in folder.rglob('*') if f.is_file()))
            how = damage(file, rng, outside, WELCOME.get(kind, ()))
            lines = opening(kind, folder, outside, d/'said.txt')
            word = verdict(lines, how=='link' and may_lead_out(kind, file))
            counts[kind, word] += 1
            if word not in ('read','sentence'):
                faults.append(dict(number=i, kind=kind, file=str(file.relative_to(folder)), how=how, word=word, seen=lines[-6:]))
                print(json.dumps(faults[-1])[:1500], flush=True)
            shutil.rmtree(folder)
            (d/'said.txt').unlink(missing_ok=True)
    table = {k: {w: counts[k,w] for w in ('read','sentence','traceback','hang','outside','program')} for k in a.kinds}
    print(json.dumps(table, indent=1))
    if a.out: a.out.write_text(json.dumps(dict(device=device(), **versions(), files=a.files, seed=a.seed, seen=table), indent=1)+'\n')
    sys.exit(bool(faults))

if __name__=='__main__': main()
