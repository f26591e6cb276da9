"""Methods beside others: the first losses of our Textual Inversion and Custom Diffusion beside those of diffusers'
example scripts, given the same draws; and the training speed of every method beside a LoRA's and full fine-tuning's.

The scripts (`textual_inversion/textual_inversion.py` and `custom_diffusion/train_custom_diffusion.py` of one folder)
run as they are, in processes of their own; only where torchvision is missing do they get `transforms.py` in its place.
Every finished measurement is written at once and never taken twice.

    python benchmarks/words.py PATH/examples              every stage, then the tables
    python benchmarks/words.py PATH/examples losses       one stage: losses, speed or table
"""
import argparse, hashlib, json, os, platform, re, runpy, shutil, statistics, subprocess, sys, tempfile, time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader

import peer
from common import Done, processor, witness
from peer import CLASS, STYLE, Results, aux, folder, median, new, rounds, several
from styleboost.bases.base import Condition
from styleboost.bases.files import find_base, weights_hash
from styleboost.bases.load import load_base
from styleboost.core import write_whole
from styleboost.methods.load import METHODS
from styleboost.methods.method import attached
from styleboost.training.batches import Batches
from styleboost.training.loop import train
from styleboost.training.recipes import settled, styleboost
from styleboost.training.runs import versions
from styleboost.training.trainer import accelerator_for, prepared

WORD, STEPS, BATCH = '<zwx-0>', 3, 4
SCRIPTS = dict(textual_inversion='textual_inversion/textual_inversion.py',
               custom_diffusion='custom_diffusion/train_custom_diffusion.py')
RATES = dict(textual_inversion=5e-3, custom_diffusion=1e-3)   # large, so that the second loss shows the first step
# The script adds the channels of a latent up where it takes the mean of a prior's, so there the style weighs as much
WEIGHTS = dict(textual_inversion=lambda base: 1., custom_diffusion=lambda base: float(base.codec.shape((64,64))[0]))

# First losses

def argv(a, name, out, seed):
    "The script's flags. Neither side lets the word decay: a row has no weights that ought to be small."
    flags = ['--pretrained_model_name_or_path', find_base('tiny'), '--resolution', 64, '--train_batch_size', BATCH,
             '--max_train_steps', STEPS, '--learning_rate', RATES[name], '--lr_scheduler', 'constant',
             '--lr_warmup_steps', 0, '--adam_weight_decay', 0, '--seed', seed, '--dataloader_num_workers', 0,
             '--checkpointing_steps', 10**6, '--output_dir', out]
    if name=='textual_inversion':
        flags += ['--train_data_dir', folder(a, 'style', STYLE), '--placeholder_token', WORD, '--initializer_token',
                  'style', '--learnable_property', 'style']
    else:
        flags += ['--instance_data_dir', folder(a, 'style', STYLE), '--instance_prompt', f'a photo of {WORD} style',
                  '--class_data_dir', folder(a, 'aux', aux(20)), '--class_prompt', CLASS, '--num_class_images', 20,
                  '--with_prior_preservation', '--modifier_token', WORD, '--initializer_token', 'style']
    return list(map(str, flags))

def child(spec):
    "A script, unmodified, with what it drew and the losses that it sent backwards written down; then it is stopped."
    got, seen, rows = [], [], DataLoader.__iter__
    def batches(self):
        for b in rows(self):
            seen.append({k:b[k].clone() for k in ('input_ids','mask') if k in b})
            yield b
    DataLoader.__iter__ = batches
    witness(got, STEPS)
    sys.argv = [spec['script'], *spec['argv']]
    try: runpy.run_path(spec['script'], run_name='__main__')
    except Done: pass
    save_file({f'{i}.{k}':v.contiguous() for i,g in enumerate(got) for k,v in (g|seen[i]).items()}, spec['record'])

def drawn_by(a, name, seed):
    "What a script drew in its first steps, and its losses."
    record, out, log = a.work/f'{name}.safetensors', new(a.work/name), a.work/f'{name}.log'
    spec = dict(script=str(a.examples/SCRIPTS[name]), argv=argv(a, name, out, seed), record=str(record))
    cmd = [sys.executable, __file__, str(a.examples), '--child', json.dumps(spec)]
    with log.open('wb') as f: done = subprocess.run(cmd, stdout=f, stderr=f, env=peer.environment(a, True))
    if done.returncode:
        raise SystemExit(f'{SCRIPTS[name]} stopped with status {done.returncode}; its output is in {log}:\n'
                         f'{log.read_text(errors="replace")[-2000:]}')
    return load_file(record)

def texts_of(ids, base):
    "Texts whose tokens these are; our tokenizer has to read them as the script's did."
    tok = base.reader.tokenizer
    texts = [t.replace('</w>', ' ').strip() for t in tok.batch_decode(ids, skip_special_tokens=True)]
    again = base.reader.tokens(texts, 'text_encoder')
    if not torch.equal(again, ids): raise SystemExit(f'The prompts {texts} are other tokens here than there.')
    return texts

def losses_of_ours(a, name, record, swap=''):
    "The losses of `train`, fed what the script drew; `swap` stands where the word stood."
    kw = dict(batch=BATCH, steps=STEPS, lr=RATES[name], precision='no', weight_decay=0., method=name)
    r = styleboost(STYLE, aux(20), **kw)
    if name=='textual_inversion': r = replace(r, bindings=r.bindings[:1], grad_clip=None)    # the script clips nothing
    base = load_base('tiny')
    weight = WEIGHTS[name](base)
    r = replace(r, bindings=(replace(r.bindings[0], weight=weight), *r.bindings[1:]))
    tokens, losses, call, back = attached(base, r.method), [], Batches.__call__, Accelerator.backward
    def backward(self, loss, **more):
        losses.append(loss.item())
        return back(self, loss, **more)
    def fed(self, step, *_):
        drew = {k:record[f'{step}.{k}'] for k in ('xt','eps','t','input_ids','mask') if f'{step}.{k}' in record}
        texts = [t.replace(WORD, swap or WORD) for t in texts_of(drew['input_ids'], tokens)]
        masks = drew.get('mask', [None]*len(texts))
        told = [Condition(frame=torch.zeros(1,6)) | ({} if m is None else dict(mask=m[None])) for m in masks]
        drew = dict(xt=list(drew['xt']), y=list(drew['eps']), t=drew['t'])
        return replace(call(self, step), **drew, texts=texts, told=told)
    Batches.__call__, Accelerator.backward = fed, backward
    try: train(r, new(a.work/f'{name}-ours'), 0, device='cpu', progress=False)
    finally: Batches.__call__, Accelerator.backward = call, back
    return losses

def first_losses(a, results):
    "Three steps of each script and of ours, seed by seed."
    def take(name, seed):
        record = drawn_by(a, name, seed)
        ours = losses_of_ours(a, name, record)
        return dict(peer=[record[f'{i}.loss'].item() for i in range(STEPS)], ours=ours,
                    swapped=losses_of_ours(a, name, record, 'dog')[0])
    for name in SCRIPTS:
        for s in a.seeds: results(f'losses {name} seed={s}', lambda: take(name, s))

# Speed

def speed(a, results):
    "Pictures a second of the trainer's own step, method by method in turn."
    base, latents, ready = load_base('tiny'), tempfile.TemporaryDirectory(), {}
    def take(name, _):
        if name not in ready:
            r = settled(styleboost(STYLE, aux(20), batch=a.batch, method=name), base)
            r, acc = accelerator_for(replace(r, precision='no'), (), '.', 'cpu')
            ready[name] = prepared(base.own(), r, 0, acc, latents.name)
            for _ in range(2): ready[name].step()
        times = []
        for _ in range(a.steps):
            t0 = time.perf_counter()
            ready[name].step()
            times.append(time.perf_counter()-t0)
        return dict(images_per_second=round(2*a.batch/statistics.median(times), 2),
                    mean_images_per_second=round(2*a.batch/statistics.mean(times), 2), threads=a.threads)
    with latents: rounds(a, results, {f'speed {m} batch={a.batch}': lambda r, m=m: take(m, r) for m in METHODS})

# The tables

def setting(a):
    sources = {name:(a.examples/s).read_bytes() for name,s in SCRIPTS.items()}
    return dict(device=f'{processor() or platform.machine()}, CPU', base=weights_hash(find_base('tiny')),
                python=platform.python_version(), **versions(),
                scripts={name:hashlib.sha256(s).hexdigest()[:16] for name,s in sources.items()},
                torchvision='its own' if find_spec('torchvision') else 'stand-in transforms.py')

def head(a, results):
    s = results.setting
    scripts = ', '.join(f'`{SCRIPTS[k]}` (SHA-256 {v}…)' for k,v in s['scripts'].items())
    yield (f'# Methods beside others\n\nDevice: {s["device"]}, no GPU. Base: weights {s["base"]}. '
           f'torch {s["torch"]}, diffusers {s["diffusers"]}, transformers {s["transformers"]}, accelerate '
           f'{s["accelerate"]}, styleboost {s["styleboost"]} (sources '
           f'{", ".join(sorted({r["code"] for r in results.rows.values()}))}), Python {s["python"]}. '
           f'Scripts of diffusers: {scripts}, run unmodified; torchvision: {s["torchvision"]}.\n')

def loss_lines(a, results):
    rows = {k:r for k,r in results.rows.items() if k.startswith('losses')}
    if not rows: return
    off = ', '.join(f'{abs(r["swapped"]/r["ours"][0]-1):.0e}' for r in rows.values())
    yield ('## First losses\n\nThe scripts\' own steps, written down by wrappers around `DDPMScheduler.add_noise`, '
           '`Accelerator.backward` and the loader of their batches, and those of `train`, fed the latents, noise, '
           f'timesteps, prompts and masks that they drew; fp32, batch {BATCH}, no weight decay on either side. Custom '
           'Diffusion\'s script adds the channels of a latent up where it takes the mean of the prior\'s, so our style '
           'binding has the number of channels as its weight. That the comparison can fail: with "dog" in the place of '
           f'the word, our first losses change by {off}.\n\n'
           '| method | seed | step | script | ours | relative difference |\n|---|---|---|---|---|---|')
    for k,r in rows.items():
        name, seed = re.fullmatch(r'losses (\w+) seed=(\d+)', k).groups()
        for i,(x,y) in enumerate(zip(r['peer'], r['ours'])):
            yield f'| {name} | {seed} | {i+1} | {x:.8f} | {y:.8f} | {abs(x-y)/x:.1e} |'

def speed_lines(a, results):
    arms = {m:f'speed {m} batch={a.batch}' for m in METHODS}
    found = {m:median(results, n, 'images_per_second') for m,n in arms.items()}
    if not any(found.values()): return
    timed = [r for k,r in results.rows.items() if k.startswith('speed')]
    loads, threads = [r['load_before'] for r in timed], ' and '.join(sorted({str(r['threads']) for r in timed}))
    yield (f'\n## Training pictures a second\n\nThe trainer\'s own step, {threads} threads, batch {a.batch} + '
           f'{a.batch}, fp32, each method\'s own settings, {a.steps} steps a round by the median step; {a.rounds} '
           'rounds in turn, every ratio in brackets. The machine\'s load before a timing was '
           f'{min(loads)} to {max(loads)}.\n\n'
           '| method | pictures/s | over lora | over full |\n|---|---|---|---|')
    for m,n in sorted(arms.items(), key=lambda arm: -(found[arm[0]] or 0)):
        if not found[m]: continue
        ratios = [several(peer.paired(results, n, arms[o], 'images_per_second')) for o in ('lora','full')]
        yield f'| {m} | {found[m]:.1f} | {ratios[0]} | {ratios[1]} |'

def table(a, results):
    "What was measured, as markdown."
    path = a.out.with_suffix('.md')
    lines = [line for section in (head, loss_lines, speed_lines) for line in section(a, results)]
    write_whole({path: '\n'.join(lines)+'\n'})
    print(f'{path.name} written')

STAGES = dict(losses=first_losses, speed=speed, table=table)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = p.add_argument
    add('examples', type=Path, help="diffusers' folder `examples`, or one with those two scripts")
    add('stages', nargs='*', metavar='stage', help=f'{", ".join(STAGES)}; all unless given')
    out = Path(__file__).with_name('words.json')
    add('--out', type=Path, default=out, help='measurements; the tables go beside it')
    add('--work', type=Path, default=Path('runs/words'))
    add('--threads', type=int, default=os.cpu_count())
    add('--seeds', type=int, nargs='+', default=[0,1,2])
    add('--rounds', type=int, default=5)
    add('--steps', type=int, default=12, help='steps a round of the speed')
    add('--batch', type=int, default=8)
    add('--child', type=json.loads, help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.child: return child(a.child)
    missing = [s for s in SCRIPTS.values() if not (a.examples/s).is_file()]
    if missing: p.error(f'{a.examples} has no {missing[0]}; give the folder examples of diffusers')
    if wrong:=[s for s in a.stages if s not in STAGES]:
        p.error(f'there is no stage {wrong[0]}; choose from {", ".join(STAGES)}')
    os.environ['CUDA_VISIBLE_DEVICES'] = ''
    a.examples = a.examples.resolve()
    a.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(a.threads)
    results = Results(a.out, setting(a))
    try:
        for name,stage in STAGES.items():
            if name in (a.stages or STAGES): stage(a, results)
    finally:
        if peer.stand_in.cache_info().currsize: shutil.rmtree(peer.stand_in())

if __name__=='__main__': main()
