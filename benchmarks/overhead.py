"""Training images per second of the trainer's own step against the bare loop: the same modules, dtype, batch, clipping
and optimiser on random latents."""
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

def bare(recipe):
    "A step of what the recipe asks for: forward, backward, clipping and AdamW, and nothing else."
    base = attached(load_base(recipe.base), recipe.method)
    unet, text = (base.modules[k] for k in ('unet','text_encoder'))
    params = list(trained(base).values())
    opt = torch.optim.AdamW(params, recipe.lr, weight_decay=recipe.weight_decay, fused=True)
    n = 2*recipe.batch
    z, eps = torch.randn(2, n, *base.codec.shape((recipe.resolution,)*2))
    t, prompts = torch.randint(1000, (n,)), [b.prompts()[0] for b in recipe.bindings]
    ids = base.reader.tokens(prompts, 'text_encoder')
    def step():
        c = text(ids)[0].repeat_interleave(recipe.batch, 0)
        ((unet(z, t, c).sample-eps)**2).mean().backward()
        torch.nn.utils.clip_grad_norm_(params, recipe.grad_clip)
        opt.step()
        opt.zero_grad()
    return step

def seconds(step):
    t0 = time.perf_counter()
    step()
    return time.perf_counter()-t0

def side_by_side(recipe, base, steps):
    """Median seconds of a bare step and of a `Trainer`'s, which draws its batches and notes its losses. They take
    turns, so that a busy machine slows both."""
    recipe, acc = accelerator_for(recipe, (), '.', 'cpu')
    trainer = prepared(base.own(), recipe, 0, acc)
    took, turns = ([], []), (bare(recipe), trainer.step)
    for i in range(steps):
        for k in (i%2, 1-i%2): took[k].append(seconds(turns[k]))
    trainer.stepper.close()
    return [statistics.median(t[4:]) for t in took]

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
    pairs = [side_by_side(recipe, base, a.steps) for _ in range(a.rounds)]
    n, ratios = 2*a.batch, [y/x for x,y in pairs]
    per_second = lambda seconds: round(n/statistics.median(seconds), 1)
    result = dict(device=device(), batch=f'{a.batch} + {a.batch}', dtype='float32',
                  bare_images_per_second=per_second([x for x,_ in pairs]),
                  train_images_per_second=per_second([y for _,y in pairs]),
                  ratio=round(statistics.median(ratios), 3), ratios=[round(r, 3) for r in ratios], **versions())
    print(json.dumps(result, indent=1))
    if a.out: a.out.write_text(json.dumps(result, indent=1)+'\n')

if __name__=='__main__': main()
