"""styleboost on a GPU, lever by lever, beside diffusers' DreamBooth scripts: the true shapes of Stable Diffusion 1.5 or XL with random weights.

Images a second and the peak that torch's allocator counts, each arm in a process of its own, arms in turn for several rounds.
The peer's scripts (`train_dreambooth.py`, `train_dreambooth_lora.py`, `train_dreambooth_lora_sdxl.py` of one folder) run as they are.
Every finished measurement is written at once and never taken twice.

    python benchmarks/gpu.py PATH/examples/dreambooth                the measurements, then the table
    python benchmarks/gpu.py PATH/examples/dreambooth --smoke        tiny shapes on a processor, to see that everything runs
"""
import argparse, json, os, runpy, shutil, signal, statistics, sys
from importlib.util import find_spec
from pathlib import Path

import torch
from PIL import Image

import peer
from peer import CLASS, Results, STYLE, TOLD, aux, follow, new
from styleboost.bases.load import blank
from styleboost.pictures.images import ImageSet, png
from styleboost.core import write_whole
from styleboost.training.levers import best_precision
from styleboost.training.plan import plan
from styleboost.training.recipes import no_prior, with_prior
from styleboost.training.loop import train
from styleboost.training.runs import versions

SKIPPED = 10  # steps before the clock starts: warm-up

LEVERS = {
    'plain': {}, 'xformers': dict(attention='xformers'), '8-bit AdamW': dict(optimizer='adamw8bit'), 'checkpointing': dict(checkpointing=True), 'fused backward': dict(fused_backward=True, grad_clip=None),
    '8-bit, fused': dict(optimizer='adamw8bit', fused_backward=True, grad_clip=None), '8-bit, fused, bfloat16 weights': dict(optimizer='adamw8bit', fused_backward=True, grad_clip=None, weights='bfloat16'),
    '8-bit, fused, bfloat16 weights, checkpointing': dict(optimizer='adamw8bit', fused_backward=True, grad_clip=None, weights='bfloat16', checkpointing=True)}

def arms(a):
    "Name -> (side, pictures a step, what differs)."
    needs = {'xformers':'xformers', '8-bit':'bitsandbytes'}
    have = lambda name: all(find_spec(pack) for word,pack in needs.items() if word in name)
    out = {}
    for batch in a.batches:
        for text in (False, True) if a.family=='sd1' else ():
            tag = f'{batch} + {batch}, {"U-Net and text encoder" if text else "U-Net"}'
            out[f'{tag}: peer, full'] = ('peer', 2*batch, dict(batch=batch, text=text))
            out[f'{tag}: peer, full, checkpointing'] = ('peer', 2*batch, dict(batch=batch, text=text, flags=['--gradient_checkpointing']))
            if find_spec('bitsandbytes'): out[f'{tag}: peer, full, 8-bit AdamW, checkpointing'] = ('peer', 2*batch, dict(batch=batch, text=text, flags=['--gradient_checkpointing','--use_8bit_adam']))
            for name,kw in LEVERS.items():
                if have(name) and (a.precision=='bf16' or 'bfloat16' not in name): out[f'{tag}: ours, full, {name}'] = ('ours', 2*batch, dict(batch=batch, text_encoder=text, **kw))
        tag = f'{batch} + {batch}, LoRA of rank 16'
        out[f'{tag}: peer'] = ('peer', 2*batch, dict(batch=batch, text=False, lora=True))
        for name in ('plain','checkpointing'): out[f'{tag}: ours, {name}'] = ('ours', 2*batch, dict(batch=batch, text_encoder=False, method='lora', rank=16, **LEVERS[name]))
    return out

def base_folder(a):
    "The base that both train: true shapes, random weights."
    out = a.work/f'{a.family}{"-small" if a.smoke else ""}'
    if not out.exists():
        part = new(out.with_name(out.name+'.part'))
        blank(a.family, full=not a.smoke).pipeline().save_pretrained(part); part.rename(out)
    return out

def peer_argv(a, out, batch, text, lora=False, flags=()):
    script = a.scripts/('train_dreambooth.py' if not lora else 'train_dreambooth_lora_sdxl.py' if a.family=='sdxl' else 'train_dreambooth_lora.py')
    return script, ['--pretrained_model_name_or_path', a.base, '--instance_data_dir', a.work/'style', '--instance_prompt', TOLD, '--with_prior_preservation', '--prior_loss_weight', 1., '--class_data_dir', a.work/'class',
        '--class_prompt', CLASS, '--num_class_images', a.pictures, '--resolution', a.resolution, '--center_crop', '--train_batch_size', batch, '--max_train_steps', a.steps, '--learning_rate', 1e-6, '--lr_scheduler', 'constant',
        '--lr_warmup_steps', 0, '--mixed_precision', a.precision, '--dataloader_num_workers', 2, '--checkpointing_steps', 10**6, '--seed', 0, '--output_dir', out,
        *(['--train_text_encoder'] if text else []), *(['--rank', 16] if lora else ['--set_grads_to_none']), *flags]

def child(spec):
    "One arm; the peak goes to a file, the steps to the standard error."
    torch.cuda.is_available() and torch.cuda.reset_peak_memory_stats()
    if spec['side']=='peer':
        sys.argv = [spec['script'], *spec['argv']]
        runpy.run_path(spec['script'], run_name='__main__')
    else:
        sets = [ImageSet.from_folder(f) for f in spec['folders']]
        r = with_prior(no_prior(sets[0], base=spec['base'], lr=1e-6, **spec['kw']), sets[1])
        train(r, spec['out'], 0, device='cpu' if spec['cpu'] else None, progress=False, every=SKIPPED, watch=lambda line: print(f'Steps: {line["step"]}/{r.steps} [', file=sys.stderr, flush=True))
    Path(spec['record']).write_text(json.dumps(torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None))

def measured(a, side, images, kw):
    "Images a second after the first steps, and the peak in bytes."
    out, record, log = new(a.work/'run'), a.work/'peak.json', a.work/'run.log'
    if side=='peer':
        script, argv = peer_argv(a, out, **kw)
        spec = dict(side=side, script=str(script), argv=[str(x) for x in argv])
    else: spec = dict(side=side, base=str(a.base), out=str(out), folders=[str(a.work/'style'), str(a.work/'class')], cpu=a.smoke, kw=dict(kw, steps=a.steps, resolution=a.resolution, precision=a.precision, checkpoint=10**6))
    r = follow(a, [sys.executable, __file__, a.scripts, '--child', json.dumps(dict(spec, record=str(record)))], log, side=='peer', numbered=True)
    done = r['at']
    return dict(images_per_second=round(images*(a.steps-SKIPPED)/(done[a.steps]-done[SKIPPED]), 3), peak=json.loads(record.read_text()))

def table(a, results):
    s = results.setting
    out = [f'# On a GPU: styleboost beside diffusers\' DreamBooth scripts\n\nDevice: {s["device"]}. {s["family"]} shapes, random weights, {s["resolution"]} pixels, precision {s["precision"]}, {s["steps"]} steps of which the first {SKIPPED} are left out; {a.rounds} rounds in turn, medians. '
           f'torch {s["torch"]}, diffusers {s["diffusers"]}.\n']
    if a.smoke: out.append('**Made with --smoke, on a processor and at tiny shapes, to see that everything runs: the numbers mean nothing, and there is no peak.**\n')
    out += ['| arm | images/s | over the peer | peak, GB | of the peer\'s | planned, GB |\n|---|---|---|---|---|---|']
    rows = {n:[r for k,r in results.rows.items() if k.rpartition(' round=')[0]==n] for n in arms(a)}
    mid = lambda n, k: statistics.median(v) if (v := [r[k] for r in rows[n] if r[k] is not None]) else None
    for n,(side,_,kw) in arms(a).items():
        rival = next(m for m in rows if m.startswith(n.partition(':')[0]+': peer'))
        speed, peak, other, held = mid(n, 'images_per_second'), mid(n, 'peak'), mid(rival, 'images_per_second'), mid(rival, 'peak')
        if speed is None: out.append(f'| {n} | not measured | | | | |'); continue
        planned = plan(str(a.base), with_prior(no_prior(STYLE, base=str(a.base), resolution=a.resolution, precision=a.precision, lr=1e-6, **kw), aux(a.pictures)), 'cpu' if a.smoke else 'cuda').peak if side=='ours' else None
        cell = lambda x, form: '' if x is None else f'{x:{form}}'
        out.append(f'| {n} | {speed:.2f} | {cell(speed/other if side=="ours" and other else None, ".2f")} | {cell(peak and peak/1e9, ".2f")} | {cell(peak/held if side=="ours" and peak and held else None, ".0%")} | {cell(planned and planned/1e9, ".2f")} |')
    write_whole({a.out.with_suffix('.md'): '\n'.join(out)+'\n'}); print(f'{a.out.with_suffix(".md").name} written')

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('scripts', type=Path, help="diffusers' examples/dreambooth")
    p.add_argument('--family', default='sd1', choices=('sd1','sdxl'))
    p.add_argument('--batches', type=int, nargs='+', default=[1,8], help='pictures per binding')
    p.add_argument('--precision', help='bf16 or fp16; the GPU\'s best unless given')
    p.add_argument('--steps', type=int, default=40)
    p.add_argument('--rounds', type=int, default=3)
    p.add_argument('--pictures', type=int, default=20, help='of the style, and class images')
    p.add_argument('--out', type=Path, help='measurements; gpu-FAMILY.json beside this script unless given')
    p.add_argument('--work', type=Path, default=Path('runs/gpu'), help='the base, the pictures and the runs')
    p.add_argument('--smoke', action='store_true', help='tiny shapes on a processor')
    p.add_argument('--child', type=json.loads, help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.child: return child(a.child)
    if not (a.scripts/'train_dreambooth.py').is_file(): p.error(f'{a.scripts} has no train_dreambooth.py; give the folder examples/dreambooth of diffusers')
    if not a.smoke and not torch.cuda.is_available(): p.error('there is no GPU here; --smoke runs tiny shapes on the processor')
    a.out = a.out or Path(__file__).with_name(f'gpu-{a.family}.json')
    if a.smoke: a.batches, a.steps, a.rounds, a.precision = a.batches[:1], 12, 1, 'no'
    a.precision = a.precision or best_precision('cuda')
    a.scripts, a.resolution, a.threads, a.visible = a.scripts.resolve(), 64 if a.smoke else 512 if a.family=='sd1' else 1024, os.cpu_count(), '' if a.smoke else os.environ.get('CUDA_VISIBLE_DEVICES', '0')
    a.work = a.work.resolve(); a.work.mkdir(parents=True, exist_ok=True)
    a.base = base_folder(a)
    for name,pics in dict(style=STYLE[:a.pictures], **{'class':aux(a.pictures)}).items():
        folder = new(a.work/name); folder.mkdir()
        for i,x in enumerate(pics): (folder/f'{i:04d}.png').write_bytes(png(x.open().resize((a.resolution,a.resolution), Image.LANCZOS)))   # and nothing else: the peer opens every file that it finds
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() and not a.smoke else 'CPU'
    results = Results(a.out, dict(device=device, family=a.family, resolution=a.resolution, precision=a.precision, steps=a.steps, smoke=a.smoke, **versions()))
    try:
        peer.rounds(a, results, {n: lambda r, v=v: measured(a, *v) for n,v in arms(a).items()})
        table(a, results)
    finally:
        if peer.stand_in.cache_info().currsize: shutil.rmtree(peer.stand_in())

if __name__=='__main__': main()
