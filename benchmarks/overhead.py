"""Training images per second of `train` against the bare loop: the same modules, dtype, batch and optimiser on random
latents."""
import argparse, json, statistics, tempfile, time
from dataclasses import replace
from pathlib import Path

import torch

from common import device
from styleboost.bases.load import load_base
from styleboost.methods.method import attached, trained
from styleboost.pictures.world import pool, style_ref
from styleboost.training.loop import train
from styleboost.training.recipes import settled, styleboost
from styleboost.training.runs import versions

def bare(recipe, steps):
    "Seconds of each step of forward, backward and AdamW, and nothing else."
    base = attached(load_base(recipe.base), recipe.method)
    unet, text = (base.modules[k] for k in ('unet','text_encoder'))
    opt = torch.optim.AdamW(trained(base).values(), recipe.lr, weight_decay=recipe.weight_decay, fused=True)
    n, out = 2*recipe.batch, []
    z, eps = torch.randn(2, n, *base.codec.shape((recipe.resolution,)*2))
    t, prompts = torch.randint(1000, (n,)), [b.prompts()[0] for b in recipe.bindings]
    ids = base.reader.tokens(prompts, 'text_encoder')
    for _ in range(steps):
        t0 = time.perf_counter()
        c = text(ids)[0].repeat_interleave(recipe.batch, 0)
        ((unet(z, t, c).sample-eps)**2).mean().backward()
        opt.step()
        opt.zero_grad()
        out.append(time.perf_counter()-t0)
    return out

def ours(base, recipe, steps, folder):
    "Seconds of each step of `train`, by its own log."
    run = train(replace(recipe, steps=steps), folder, base=base, device='cpu', progress=False, every=1)
    s = [0]+[r['seconds'] for r in run.log]
    return [b-a for a,b in zip(s, s[1:])]

def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--rounds', type=int, default=9)
    p.add_argument('--steps', type=int, default=24)
    p.add_argument('--batch', type=int, default=8)
    p.add_argument('--out', type=Path)
    a = p.parse_args()
    base = load_base('tiny')
    plain = styleboost(style_ref(), pool('people'), n=20, batch=a.batch)
    bindings = tuple(replace(b, prompt=b.prompt.replace(', {caption}','')) for b in plain.bindings)
    recipe = settled(replace(plain, bindings=bindings), base)
    pairs = []
    with tempfile.TemporaryDirectory() as d:
        for r in range(a.rounds):  # side by side, so that a busy machine slows both
            x, y = bare(recipe, a.steps)[4:], ours(base, recipe, a.steps, f'{d}/{r}')[4:]
            pairs.append((statistics.median(x), statistics.median(y)))
    n, ratios = 2*a.batch, [y/x for x,y in pairs]
    per_second = lambda seconds: round(n/statistics.median(seconds), 1)
    result = dict(device=device(), batch=f'{a.batch} + {a.batch}', dtype='float32',
                  bare_images_per_second=per_second([x for x,_ in pairs]),
                  train_images_per_second=per_second([y for _,y in pairs]),
                  ratio=round(statistics.median(ratios), 3), ratios=[round(r, 3) for r in ratios], **versions())
    print(json.dumps(result, indent=1))
    if a.out: a.out.write_text(json.dumps(result, indent=1)+'\n')

if __name__=='__main__': main()
