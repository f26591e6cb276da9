"""styleboost on a GPU, lever by lever, beside diffusers' DreamBooth scripts: the true shapes of Stable Diffusion 1.5 or
XL with random weights.

Images a second and the peak that torch's allocator counts, each arm in a process of its own, arms in turn for several
rounds. The peer's scripts (`train_dreambooth.py`, `train_dreambooth_lora.py`, `train_dreambooth_lora_sdxl.py` of one
folder) run as they are. Every finished measurement is written at once and never taken twice.

    python benchmarks/gpu.py PATH/examples/dreambooth            the measurements, then the table
    python benchmarks/gpu.py PATH/examples/dreambooth --arms "plain|peer, full$"    some of them; others can follow
    python benchmarks/gpu.py PATH/examples/dreambooth --table    the table alone, on any machine
    python benchmarks/gpu.py PATH/examples/dreambooth --smoke    tiny shapes on a processor, to see that everything runs
"""
import argparse, json, os, re, runpy, shutil, signal, statistics, sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
from PIL import Image

import peer
from peer import CLASS, STYLE, TOLD, Results, aux, follow, new
from styleboost.bases.load import blank
from styleboost.core import write_whole
from styleboost.pictures.images import ImageSet, png
from styleboost.training.levers import DTYPES, best_precision, head_sizes, xformers_fault
from styleboost.training.loop import train
from styleboost.training.plan import plan
from styleboost.training.recipes import no_prior, with_prior
from styleboost.training.runs import versions

SKIPPED = 10  # steps before the clock starts: warm-up

EIGHT, FUSED, LEAN = dict(optimizer='adamw8bit'), dict(fused_backward=True, grad_clip=None), dict(weights='bfloat16')
AGAIN = dict(checkpointing=True)
LEVERS = {
    'plain': {}, 'xformers': dict(attention='xformers'), '8-bit AdamW': EIGHT, 'checkpointing': AGAIN,
    'fused backward': FUSED, '8-bit, fused': EIGHT|FUSED, '8-bit, fused, bfloat16 weights': EIGHT|FUSED|LEAN,
    '8-bit, fused, bfloat16 weights, checkpointing': EIGHT|FUSED|LEAN|AGAIN}
NEEDS = {'xformers':'xformers', '8-bit':'bitsandbytes'}  # a word of a lever's name -> the package that it needs

@cache
def xformers_works(family, small, precision):
    "Where it does not, training takes PyTorch's attention and says so, and a row would tell of that."
    heads = head_sizes(blank(family, full=not small, device='meta').net)
    return not small and not xformers_fault(heads, DTYPES[precision], 'cuda')

def here(a, name):
    "Whether a lever works on this machine; a table asks about none."
    if a.table: return True
    if not all(find_spec(package) for word,package in NEEDS.items() if word in name): return False
    return 'xformers' not in name or xformers_works(a.family, a.smoke, a.precision)

def full_arms(a, batch, text):
    "Every weight, by the peer and by us lever by lever."
    tag = f'{batch} + {batch}, {"U-Net and text encoder" if text else "U-Net"}'
    def theirs(*flags): return 'peer', 2*batch, dict(batch=batch, text=text, flags=list(flags))
    out = {f'{tag}: peer, full': theirs(), f'{tag}: peer, full, checkpointing': theirs('--gradient_checkpointing')}
    if here(a, '8-bit'):
        both = theirs('--gradient_checkpointing', '--use_8bit_adam')
        out[f'{tag}: peer, full, 8-bit AdamW, checkpointing'] = both
    for name,kw in LEVERS.items():
        if not here(a, name) or a.precision!='bf16' and 'bfloat16' in name: continue
        out[f'{tag}: ours, full, {name}'] = ('ours', 2*batch, dict(batch=batch, text_encoder=text, **kw))
    return out

def lora_arms(batch):
    "A LoRA of the U-Net."
    tag, ours = f'{batch} + {batch}, LoRA of rank 16', dict(batch=batch, text_encoder=False, method='lora', rank=16)
    out = {f'{tag}: peer': ('peer', 2*batch, dict(batch=batch, text=False, lora=True))}
    for name in ('plain','checkpointing'): out[f'{tag}: ours, {name}'] = ('ours', 2*batch, ours|LEVERS[name])
    return out

def arms(a):
    "Name -> (side, pictures a step, what differs), of all that there are."
    out = {}
    for batch in a.batches:
        if a.family=='sd1':
            for text in (False, True): out |= full_arms(a, batch, text)
        out |= lora_arms(batch)
    return out

def base_folder(a):
    "The base that both train: true shapes, random weights."
    out = a.work/f'{a.family}{"-small" if a.smoke else ""}'
    if not out.exists():
        part = new(out.with_name(out.name+'.part'))
        blank(a.family, full=not a.smoke).pipeline().save_pretrained(part)
        part.rename(out)
    return out

def script_of(a, lora):
    if not lora: return a.scripts/'train_dreambooth.py'
    return a.scripts/('train_dreambooth_lora_sdxl.py' if a.family=='sdxl' else 'train_dreambooth_lora.py')

def peer_argv(a, out, batch, text, lora=False, flags=()):
    "The peer's script and its flags."
    args = ['--pretrained_model_name_or_path', a.base, '--instance_data_dir', a.work/'style', '--instance_prompt', TOLD,
            '--with_prior_preservation', '--prior_loss_weight', 1., '--class_data_dir', a.work/'class',
            '--class_prompt', CLASS, '--num_class_images', a.pictures, '--resolution', a.resolution, '--center_crop',
            '--train_batch_size', batch, '--max_train_steps', a.steps, '--learning_rate', 1e-6,
            '--lr_scheduler', 'constant', '--lr_warmup_steps', 0, '--mixed_precision', a.precision,
            '--dataloader_num_workers', 2, '--checkpointing_steps', 10**6, '--seed', 0, '--output_dir', out]
    if text: args.append('--train_text_encoder')
    args += ['--rank', 16] if lora else ['--set_grads_to_none']
    return script_of(a, lora), [*args, *flags]

def child_ours(spec):
    "One training of ours, its steps on the standard error."
    style, prior = (ImageSet.from_folder(f) for f in spec['folders'])
    r = with_prior(no_prior(style, base=spec['base'], lr=1e-6, **spec['kw']), prior)
    def watch(line): print(f'Steps: {line["step"]}/{r.steps} [', file=sys.stderr, flush=True)
    train(r, spec['out'], 0, device='cpu' if spec['cpu'] else None, progress=False, every=SKIPPED, watch=watch)

def child(spec):
    "One arm; the peak goes to a file, the steps to the standard error."
    gpu = torch.cuda.is_available()
    if gpu: torch.cuda.reset_peak_memory_stats()
    if spec['side']=='peer':
        sys.argv = [spec['script'], *spec['argv']]
        runpy.run_path(spec['script'], run_name='__main__')
    else: child_ours(spec)
    Path(spec['record']).write_text(json.dumps(torch.cuda.max_memory_allocated() if gpu else None))

def measured(a, side, images, kw):
    "Images a second after the first steps, and the peak in bytes."
    out, record, log = new(a.work/'run'), a.work/'peak.json', a.work/'run.log'
    if side=='peer':
        script, argv = peer_argv(a, out, **kw)
        spec = dict(script=str(script), argv=[str(x) for x in argv])
    else:
        kw = dict(kw, steps=a.steps, resolution=a.resolution, precision=a.precision, checkpoint=10**6)
        folders = [str(a.work/'style'), str(a.work/'class')]
        spec = dict(base=str(a.base), out=str(out), folders=folders, cpu=a.smoke, kw=kw)
    spec = json.dumps(dict(spec, side=side, record=str(record)))
    r = follow(a, [sys.executable, __file__, a.scripts, '--child', spec], log, side=='peer', numbered=True)
    seconds = r['at'][a.steps]-r['at'][SKIPPED]
    return dict(images_per_second=round(images*(a.steps-SKIPPED)/seconds, 3), peak=json.loads(record.read_text()))

def planned(a, kw):
    "The peak that `plan` expects, of shapes alone."
    base = blank(a.family, full=not a.smoke, device='meta')
    style = no_prior(STYLE, base=base.name, resolution=a.resolution, precision=a.precision, lr=1e-6, **kw)
    return plan(base, with_prior(style, aux(a.pictures)), 'cpu' if a.smoke else 'cuda').peak

def cell(x, form): return '' if x is None else f'{x:{form}}'

def over(x, y): return x/y if x and y else None

def table_lines(a, results):
    "A row an arm, beside the peer's first of the same tag."
    rows = {n:list(peer.rows_of(results, n).values()) for n in arms(a)}
    def mid(n, key):
        v = [r[key] for r in rows[n] if r[key] is not None]
        return statistics.median(v) if v else None
    yield '| arm | rounds | images/s | over the peer | peak, GB | of the peer\'s | planned, GB |'
    yield '|---|---|---|---|---|---|---|'
    for n,(side,_,kw) in arms(a).items():
        rival = next(m for m in rows if m.startswith(n.partition(':')[0]+': peer'))
        speed, peak, ours = mid(n, 'images_per_second'), mid(n, 'peak'), side=='ours'
        if speed is None: continue
        faster = over(speed, mid(rival, 'images_per_second')) if ours else None
        smaller = over(peak, mid(rival, 'peak')) if ours else None
        expected = planned(a, kw)/1e9 if ours else None
        yield (f'| {n} | {len(rows[n])} | {speed:.2f} | {cell(faster, ".2f")} | {cell(over(peak, 1e9), ".2f")} | '
               f'{cell(smaller, ".0%")} | {cell(expected, ".2f")} |')
    lacking = sum(not r for r in rows.values())
    if lacking: yield f'\n{lacking} of {len(rows)} arms were not measured.'

def table(a, results):
    "What was measured, as markdown."
    s = results.setting
    out = [f'# On a GPU: styleboost beside diffusers\' DreamBooth scripts\n\nDevice: {s["device"]}. '
           f'{s["family"]} shapes, random weights, {s["resolution"]} pixels, precision {s["precision"]}, {s["steps"]} '
           f'steps of which the first {SKIPPED} are left out; medians of the rounds, in which the arms of a call take '
           f'turns. torch {s["torch"]}, diffusers {s["diffusers"]}.\n']
    if a.smoke:
        out.append('**Made with --smoke, on a processor and at tiny shapes, to see that everything runs: the numbers '
                   'mean nothing, and there is no peak.**\n')
    out += table_lines(a, results)
    path = a.out.with_suffix('.md')
    write_whole({path: '\n'.join(out)+'\n'})
    print(f'{path.name} written')

def parser():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = p.add_argument
    add('scripts', type=Path, help="diffusers' examples/dreambooth")
    add('--family', default='sd1', choices=('sd1','sdxl'))
    add('--batches', type=int, nargs='+', default=[1,8], help='pictures per binding')
    add('--precision', help='bf16 or fp16; the GPU\'s best unless given')
    add('--steps', type=int, default=40)
    add('--rounds', type=int, default=3)
    add('--pictures', type=int, default=20, help='of the style, and class images')
    add('--out', type=Path, help='measurements; gpu-FAMILY.json beside this script unless given')
    add('--work', type=Path, default=Path('runs/gpu'), help='the base, the pictures and the runs')
    add('--arms', default='', help='a regular expression; only arms in whose name it is found')
    add('--table', action='store_true', help='write the table of what was measured, and measure nothing')
    add('--smoke', action='store_true', help='tiny shapes on a processor')
    add('--child', type=json.loads, help=argparse.SUPPRESS)
    return p

def settled(a):
    "The settings that follow from the others."
    a.out = a.out or Path(__file__).with_name(f'gpu-{a.family}.json')
    if a.table:
        if not a.out.is_file(): raise SystemExit(f'{a.out} is not there, so nothing was measured; measure first.')
        vars(a).update({k:v for k,v in json.loads(a.out.read_text())['setting'].items() if k in vars(a)})
    if a.smoke: a.batches, a.steps, a.rounds, a.precision = a.batches[:1], 12, 1, 'no'
    a.precision = a.precision or best_precision('cuda')
    a.resolution = 64 if a.smoke else dict(sd1=512, sdxl=1024)[a.family]
    return a

def prepared(a):
    "The folders that both sides read."
    a.threads, a.visible = os.cpu_count(), '' if a.smoke else os.environ.get('CUDA_VISIBLE_DEVICES', '0')
    a.scripts, a.work = a.scripts.resolve(), a.work.resolve()
    a.work.mkdir(parents=True, exist_ok=True)
    a.base = base_folder(a)
    for name,pictures in {'style':STYLE[:a.pictures], 'class':aux(a.pictures)}.items():
        folder = new(a.work/name)
        folder.mkdir()
        for i,x in enumerate(pictures):  # and nothing else: the peer opens every file that it finds
            (folder/f'{i:04d}.png').write_bytes(png(x.open().resize((a.resolution,a.resolution), Image.LANCZOS)))
    return a

def measure(a, results):
    "Every arm that was asked for, once a round."
    chosen = {n:v for n,v in arms(a).items() if re.search(a.arms, n)}
    peer.rounds(a, results, {n: lambda r, v=v: measured(a, *v) for n,v in chosen.items()})

def main():
    p = parser()
    a = p.parse_args()
    if a.child: return child(a.child)
    if not a.table and not (a.scripts/'train_dreambooth.py').is_file():
        p.error(f'{a.scripts} has no train_dreambooth.py; give the folder examples/dreambooth of diffusers')
    if not (a.table or a.smoke or torch.cuda.is_available()):
        p.error('there is no GPU here; --smoke runs tiny shapes on the processor')
    a = settled(a)
    if a.table: return table(a, Results(a.out, {}))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() and not a.smoke else 'CPU'
    results = Results(a.out, dict(device=device, family=a.family, resolution=a.resolution, precision=a.precision,
                                  steps=a.steps, smoke=a.smoke, batches=a.batches, pictures=a.pictures, **versions()))
    try:
        measure(prepared(a), results)
        table(a, results)
    finally:
        if peer.stand_in.cache_info().currsize: shutil.rmtree(peer.stand_in())

if __name__=='__main__': main()
