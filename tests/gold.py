"""What short runs give, number for number, on random blanks that no new weights disturb.

Recorded with version 0.1, before the base had four parts, and compared ever after: weights, losses, pictures, exports,
scores, plans. `python tests/gold.py` says what differs. `python tests/gold.py record` writes gold.json anew, which wants
a line in the change log that says why that is right. Hashes hold on the kind of processor (its maker, and its vector
unit) and the torch that recorded them; elsewhere means are compared.
"""
import hashlib, json, re, sys, tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from styleboost.bases.load import blank
from styleboost.bases.sampling import sample
from styleboost.exporting.export import export
from styleboost.judging.metrics import score
from styleboost.pictures.images import ImageSet, Picture, png
from styleboost.pictures.world import pool, prompts, reference, style_ref
from styleboost.training.loop import train
from styleboost.training.plan import plan
from styleboost.training.recipes import Generated, multi, no_prior, with_prior

GOLD = Path(__file__).with_name('gold.json')
SHORT = dict(steps=4, batch=2, lr=1e-3, steps_sampled=4, checkpoint=2)

def digest(tensors):
    "A hash of tensors by name, and the mean size of their numbers, which other processors agree on to rounding."
    h, total, n = hashlib.sha256(), 0., 0
    for k,v in sorted(tensors.items()):
        v = v.detach().cpu().contiguous()
        raw = (v if v.ndim else v[None]).view(torch.uint8).numpy().tobytes()
        for part in (k.encode(), str(v.dtype).encode(), raw): h.update(part)
        total += v.double().abs().sum().item(); n += v.numel()
    return dict(hash=h.hexdigest()[:16], mean=total/max(n,1), tensors=len(tensors), numbers=n)

def pictures_digest(ims):
    a = [np.asarray(im) for im in ims]
    joined = b''.join(x.tobytes() for x in a)
    return dict(hash=hashlib.sha256(joined).hexdigest()[:16], means=[round(float(x.mean()), 2) for x in a])

def bases(folder):
    "Random blanks, disturbed so that pictures depend on prompts, as folders."
    made = {}
    for name,family in dict(sd1='sd1', sd2v='sd2', sdxl='sdxl').items():
        b, g = blank(family, seed=1), torch.Generator().manual_seed(1)
        for m in (b.modules[k] for k in ('text_encoder','text_encoder_2','unet','vae') if k in b.modules):
            for p in m.parameters(): p.data += .5*p.data.std().nan_to_num(0)*torch.randn(p.shape, generator=g)
        b.pipeline().save_pretrained(folder/name); made[name] = folder/name
    return made

def wide(images):
    "Some of the pictures cut to other proportions."
    out = []
    for i,p in enumerate(images):
        im = p.open()
        if i%2: im = im.crop((0, 8, 64, 40)).resize((160, 80), Image.LANCZOS)
        out.append(Picture(p.name, data=png(im), caption=p.caption, people=p.people))
    return ImageSet(out, 'wide')

def recipes(where):
    ref, aux = style_ref('openmoji')[[0,1,2,10,11,12]], pool('people')[:5]
    def r(prior, base='sd1', ref=ref, **kw):
        return with_prior(no_prior(ref, base=str(where[base]), **dict(SHORT, **kw)), prior)
    lean = dict(fused_backward=True, grad_clip=None, weights='bfloat16', precision='bf16')
    return {
        'none, full': r(None),
        'generated, full': r(Generated('a photo of style', 3, steps=3)),
        'aux, full': r(aux),
        'aux, full, U-Net alone': r(aux, text_encoder=False),
        'aux, full, accumulated': r(aux, accumulate=2),
        'aux, full, buckets, mirrored': r(aux, ref=wide(ref), buckets=True, flip=True),
        'aux, full, min-SNR, warm-up': r(aux, min_snr=5., lr_schedule='cosine', warmup=2),
        'aux, full, paper': r(aux, preset='paper'),
        'aux, full, v-prediction': r(aux, 'sd2v', min_snr=5.),
        'aux, full, SDXL': r(aux, 'sdxl', batch=1),
        'aux, lora': r(aux, method='lora', text_encoder=True),
        'aux, lora, all layers, U-Net alone':
            r(aux, method='lora', text_encoder=False, targets='all', rank=4, alpha=2.),
        'aux, dora': r(aux, method='dora', rank=4, text_encoder=True),
        'aux, lokr': r(aux, method='lokr', rank=4, text_encoder=True),
        'aux, oft': r(aux, method='oft', rank=4, text_encoder=True),
        'aux, lora, SDXL': r(aux, 'sdxl', method='lora', rank=4, text_encoder=True),
        'aux, fused, bfloat16 weights': r(aux, **lean),
        'multi': multi(ref.where(True), ref.where(False), aux, base=str(where['sd1']), **SHORT)}

EXPORTS = {'aux, full':('single-file','diffusers'), 'aux, full, SDXL':('single-file',),
    'aux, full, v-prediction':('single-file',), 'aux, lora':('lora','kohya','diffusers'), 'aux, dora':('lora','kohya'),
    'aux, lokr':('kohya',), 'aux, lora, SDXL':('lora','kohya')}
DRAWN = {'none, full':{}, 'aux, full, v-prediction':dict(scheduler='dpmpp'), 'aux, full, SDXL':{},
    'aux, lora':dict(scheduler='euler_a', negative='dog'), 'multi':dict(guidance=1.),
    'aux, lora, SDXL':dict(scheduler='euler')}
PLANNED = ('none, full', 'aux, full', 'aux, lora', 'aux, full, SDXL', 'aux, full, accumulated',
    'aux, fused, bfloat16 weights', 'generated, full')

def as_run(run):
    log = [{k:v for k,v in r.items() if k!='seconds'} for r in run.log]
    return dict(weights=digest(load_file(run.weights)), log=log)

def as_export(made):
    "All tensors of an exported file or folder."
    if made.is_file(): return digest(load_file(made))
    files = sorted(made.rglob('*.safetensors'))
    return digest({f'{f.parent.name}.{k}':v for f in files for k,v in load_file(f).items()})

def scores():
    ref, real, asked = style_ref('openmoji'), reference('openmoji', n=60), prompts('openmoji', 'test', 16)
    out = {}
    for name,ims in dict(artist=[p.truth.open() for p in asked], other=[p.open() for p in pool('people')[:16]]).items():
        table = score(ims, real, asked, ref=ref)
        out[name] = {g:{k:float(v) for k,v in row.items() if v==v} for g,row in table.T.to_dict().items()}
    return out

def processor():
    "The kind of processor: libraries choose their kernels, and so their rounding, by its maker too."
    info = Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.exists() else ()
    maker = next((l.split(':')[1].strip() for l in lines if l.startswith('vendor_id')), 'unknown')
    return f'{torch.backends.cpu.get_cpu_capability()}, {maker}'

def measure():
    "Everything, in a minute on one core."
    out = dict(torch=torch.__version__, processor=processor())
    out |= dict(runs={}, drawn={}, exported={}, planned={})
    threads = torch.get_num_threads(); torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        made = recipes(bases(tmp/'bases'))
        for i,(name,r) in enumerate(made.items()):
            run = train(r, tmp/f'run-{i}', 3, device='cpu', progress=False, every=1, cache=tmp/'cache')
            out['runs'][name] = as_run(run)
            if name in DRAWN:
                ims = sample(run, ['woman farmer','house'], 5, 4, device='cpu', **DRAWN[name])
                out['drawn'][name] = pictures_digest(ims)
            for to in EXPORTS.get(name, ()):
                file = export(run, tmp/f'export-{len(out["exported"])}', to, pictures=False)
                out['exported'][f'{name}: {to}'] = as_export(file)
        for name in PLANNED:
            p = plan(made[name].base, made[name], 'cpu', bf16=True)
            out['planned'][name] = dict(step=p.step, weights=p.weights, moments=p.moments, before=p.before)
    out['scored'] = scores()
    torch.set_num_threads(threads)
    return json.loads(json.dumps(out))

def differences(was, now, exact, at=''):
    """Where two measurements differ. Without `exact` hashes are passed over, and numbers may differ by a thousandth;
    losses after the first step by a twentieth, since Adam's first steps make whole ones of gradients that are rounding."""
    said = [f'{at}: {was} became {now}']
    if type(was) is not type(now): return said
    if isinstance(was, dict):
        return sum((differences(was[k], now.get(k), exact, f'{at}/{k}') for k in was), [])   # more may be measured now
    if isinstance(was, list):
        rows = zip(was, now)
        return sum((differences(a, b, exact, f'{at}[{i}]') for i,(a,b) in enumerate(rows)), said*(len(was)!=len(now)))
    if exact: return said*(was!=now)
    if isinstance(was, str): return said*(was!=now and not at.endswith('/hash'))
    near = 5e-2 if re.search(r'/log\[[1-9]', at) else 1e-3
    return said*(abs(was-now)>near*max(1, abs(was)))

def compared():
    was, now = json.loads(GOLD.read_text()), measure()
    exact = all([was.pop(k)==now.pop(k) for k in ('torch','processor')])
    return differences(was, now, exact), exact

if __name__=='__main__':
    if sys.argv[1:]==['record']: GOLD.write_text(json.dumps(measure(), indent=1)+'\n')
    else:
        other, exact = compared()
        print('\n'.join(other) or f'all equal, {"bit for bit" if exact else "to a thousandth"}')
