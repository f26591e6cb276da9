"""Training images per second of the trainer's own step against the bare loop: the same modules, dtype, batch and
optimiser on random latents."""
import argparse, json, statistics, time
from dataclasses import replace
from pathlib import Path

import torch

from common import device
from styleboost.bases.load import load_base
from styleboost.methods.method import attached, trained
from styleboost.pictures.world import pool, style_ref
from styleboost.training.recipes import settled, styleboost
from styleboost.training.runs import versions
from styleboost.training.trainer import accelerator_for, prepared

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

def ours(base, recipe, steps):
    "Seconds of each step of a `Trainer`, which draws its batches and notes its losses."
    recipe, acc = accelerator_for(recipe, (), '.', 'cpu')
    trainer, out = prepared(base.own(), recipe, 0, acc), []
    for _ in range(steps):
        t0 = time.perf_counter()
        trainer.step()
        out.append(time.perf_counter()-t0)
    trainer.stepper.close()
    return out

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
    for _ in range(a.rounds):  # side by side, so that a busy machine slows both
        x, y = bare(recipe, a.steps)[4:], ours(base, recipe, a.steps)[4:]
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
