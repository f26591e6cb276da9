"""Training images per second of the trainer's own step against bare loops: the same modules, dtype, batch and optimiser
on random latents, without clipping of gradients and with it. And what a binding that is held to the base costs beside
one with pictures."""
import argparse, json, statistics, time
from dataclasses import replace
from pathlib import Path

import torch

from common import device
from styleboost.bases.load import load_base
from styleboost.methods.load import make_method
from styleboost.methods.method import attached, trained
from styleboost.pictures.world import pool, style_ref
from styleboost.training.recipes import settled, styleboost
from styleboost.training.runs import versions
from styleboost.training.trainer import accelerator_for, prepared

def bare(recipe, clips):
    "A step of what the recipe asks for: forward, backward, AdamW, clipping if it is to be there, and nothing else."
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
        if clips: torch.nn.utils.clip_grad_norm_(params, recipe.grad_clip)
        opt.step()
        opt.zero_grad()
    return step

def seconds(step):
    t0 = time.perf_counter()
    step()
    return time.perf_counter()-t0

def side_by_side(recipe, base, steps):
    """Median seconds of a bare step, of one that clips, and of a `Trainer`'s, which draws its batches and notes its
    losses. They take turns, so that a busy machine slows all."""
    recipe, acc = accelerator_for(recipe, (), '.', 'cpu')
    trainer = prepared(base.own(), recipe, 0, acc)
    took, turns = ([], [], []), (bare(recipe, False), bare(recipe, True), trainer.step)
    for i in range(steps):
        for k in (i%3, (i+1)%3, (i+2)%3): took[k].append(seconds(turns[k]))
    trainer.stepper.close()
    return [statistics.median(t[4:]) for t in took]

def held_beside(recipe, base, steps):
    """Median seconds of a step whose prior has pictures, and of one whose prior holds the same pictures to the base:
    at most one forward of its rows more. They take turns too."""
    style, prior = recipe.bindings
    recipes = [recipe, replace(recipe, bindings=(style, replace(prior, toward='base')))]
    (r, acc), (h, _) = (accelerator_for(x, (), '.', 'cpu') for x in recipes)
    trainers, took = [prepared(base.own(), x, 0, acc) for x in (r, h)], ([], [])
    for i in range(steps):
        for k in (i%2, 1-i%2): took[k].append(seconds(trainers[k].step))
    for t in trainers: t.stepper.close()
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
    bare_, clipping, ours = zip(*[side_by_side(recipe, base, a.steps) for _ in range(a.rounds)])
    kinds = dict(full=recipe, lora=settled(replace(recipe, method=make_method('lora')), base))
    held = {k: [held_beside(r, base, a.steps) for _ in range(a.rounds)] for k,r in kinds.items()}
    held_ratio = {k: statistics.median(h/p for p,h in pairs) for k,pairs in held.items()}
    per_second = lambda seconds: round(2*a.batch/statistics.median(seconds), 1)
    over = lambda them: sorted(round(y/x, 3) for x,y in zip(them, ours))
    result = dict(device=device(), batch=f'{a.batch} + {a.batch}', dtype='float32',
                  bare_images_per_second=per_second(bare_), clipping_images_per_second=per_second(clipping),
                  train_images_per_second=per_second(ours), ratio=statistics.median(over(bare_)), ratios=over(bare_),
                  ratio_to_clipping=statistics.median(over(clipping)), ratios_to_clipping=over(clipping),
                  held_ratio={k: round(v, 3) for k,v in held_ratio.items()}, **versions())
    print(json.dumps(result, indent=1))
    if a.out: a.out.write_text(json.dumps(result, indent=1)+'\n')

if __name__=='__main__': main()
