"""The evidence: which tuning methods draw people, and which of them learn it from whom? Every method with no prior and
with auxiliary people, on a StyleRef of people and things and on one of things alone.

    python nbs/evidence/methods.py --out DIR --grid      rates and guidance, by validation prompts, one seed a point
    python nbs/evidence/methods.py --out DIR             two styles, three seeds; called again, it goes on where it was
    python nbs/evidence/methods.py --out DIR --styles openmoji --ray local

Small tables and a sheet go to nbs/evidence/results; the runs stay in DIR."""
import json, statistics
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd

from ablation import AUX, RESULTS, command, sheet, style
from styleboost.methods.method import on_bones, trained
from styleboost.pictures.world import pool, style_ref
from styleboost.showing.figures import BASE
from styleboost.studies.study import Study
from styleboost.training.recipes import no_prior, settled, with_prior
from styleboost.training.runs import Run
from styleboost.training.trainer import accelerator_for, prepared

SETTING = dict(steps=(50,100), sampler=10)
GRID, AT = RESULTS/'methods-grid.json', 'openmoji'    # what was chosen, and the style that chose it

# What is tried: rates, and where a word alone learns also the guidance, since 7 is much for a word of a small base
WORDS = ('textual_inversion','dreamstyler','inst_port')
RATES = dict(full=(1e-4,2e-4), lora=(5e-4,1e-3,2e-3,4e-3), svdiff=(5e-3,1e-2,2e-2),
             custom_diffusion=(1e-4,2e-4,5e-4,1e-3,2e-3), hypernetwork=(2e-4,5e-4,1e-3), dreamartist=(1e-4,5e-4,2e-3),
             specialist_reconstruction=(1e-4,2e-4), styledrop_port=(5e-4,2e-3,5e-3,1e-2), pivotal=(2e-4,5e-4,1e-3),
             textual_inversion=(5e-4,1e-3,2e-3), dreamstyler=(5e-4,1e-3,2e-3), inst_port=(3e-5,1e-4,3e-4,1e-3))
GUIDANCE = (3.,7.)
LONGER = dict(rates=(1e-4,3e-4), steps=(200,300,400))    # for a word alone, once more
ONE = ('styledrop_port','dreamartist','dreamstyler','inst_port')   # defined on one picture

def recipe(ref, method, lr, guidance=None, people=False):
    "A method's arm; `people` gives it auxiliary people."
    r = no_prior(ref, method=method, lr=lr, guidance=guidance)
    return with_prior(r, pool('people').sample(AUX)) if people else r

def points(method):
    "Rates and guidances to try."
    return [(lr,g) for lr in RATES[method] for g in (GUIDANCE if method in WORDS else (None,))]

def without_prior(method, points):
    "An arm for each rate and guidance."
    return {f'{method} {lr:g}' + (f' {g:g}' if g else ''): recipe(style_ref(AT), method, lr, g) for lr,g in points}

def tried(arms, out, metrics, ray, **kw):
    "A study of arms without a prior on validation prompts, and its points."
    about = style(AT)
    few = replace(about, test=about.test[::8])        # a study wants some; nobody looks at them
    found = Study(few, arms, out, (90,), drift=0, **dict(SETTING, **kw)).run(ray)
    t = found.table()
    t = t[(t.split=='validation')&(t.group=='all')&t.metric.isin(metrics)]
    return found, t.pivot_table(index=['arm','step'], columns='metric', values='value').reset_index()

def grid(out, ray=None):
    "Every point once, without a prior; the best of each method goes to `GRID`, and a word at smaller rates for longer."
    arms = {k:r for m in RATES for k,r in without_prior(m, points(m)).items()}
    found, t = tried(arms, Path(out)/'methods-grid', ['kid','subject_rate'], ray)
    slow = without_prior('textual_inversion', [(lr,7.) for lr in LONGER['rates']])
    _, longer = tried(slow, Path(out)/'methods-longer', ['kid','style','subject_rate'], ray, steps=LONGER['steps'])
    GRID.write_text(json.dumps(dict(style=AT, base=found.info['base'], chosen={m:best(t, m) for m in RATES},
        points=t.round(4).to_dict('records'), longer=longer.round(4).to_dict('records')), indent=1)+'\n')

def best(t, method):
    """The point with the largest product of two shares: of the way from the base to the style by KID, and of pictures
    whose subject is named. Where no point comes nearer than the base, the nearest."""
    mine, base = t[t.arm.str.startswith(f'{method} ')], t[t.arm==BASE].kid.item()
    near = mine[mine.kid<base]
    row = near.loc[((1-near.kid/base)*near.subject_rate).idxmax()] if len(near) else mine.loc[mine.kid.idxmin()]
    _, lr, *g = row.arm.split()
    return dict(lr=float(lr), guidance=float(g[0]) if g else None, step=int(row.step))

def arms(name):
    "Every method at what the grid chose."
    mixed, things = style_ref(name), style_ref(name, 0, 20)
    chosen, out = json.loads(GRID.read_text())['chosen'], {}
    for m,c in chosen.items():
        for what,ref in (('mixed',mixed), ('things',things)):
            for prior,people in (('none',False), ('aux people',True)):
                out[f'{m} {what} {prior}'] = recipe(ref, m, c['lr'], c['guidance'], people)
        if m in ONE: out[f'{m} one picture none'] = recipe(mixed[:1], m, c['lr'], c['guidance'])
    return out

def study(name, out, seeds=(0,1,2), **kw):
    "All arms on one style; nothing is trained yet."
    return Study(style(name), arms(name), Path(out)/f'methods-{name}', seeds, **dict(SETTING, **kw))

def passes(recipe, base):
    "Pictures that pass the net in a step, for each that is trained on; counted."
    recipe, acc = accelerator_for(replace(settled(recipe, base), precision='no'), (), '.', 'cpu')
    with TemporaryDirectory() as latents:
        trainer, seen = prepared(base.own(), recipe, 0, acc, latents), []
        trainer.base.net.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
        trainer.step()
    return sum(seen)/(recipe.batch*len(recipe.bindings))

def costs(found):
    "What each method trains, how often the net is asked, how long a step takes and how large its file is."
    rows, base = [], found.bench.loaded
    for arm in [f'{m} mixed {prior}' for m in RATES for prior in ('none','aux people')]:
        runs = [found.run_folder(*c) for c in found.done if c[0]==arm]
        if not runs: continue
        recipe, ends = found.recipes[arm], [Run(f).log[-1] for f in runs]
        rows.append(dict(arm=arm, numbers=sum(p.numel() for p in trained(on_bones(base, recipe.method)).values()),
                         passes=passes(recipe, base), seconds=statistics.median(e['seconds']/e['step'] for e in ends),
                         bytes=(runs[0]/'weights'/'tuned.safetensors').stat().st_size))
    return pd.DataFrame(rows).round(4)

def more(found, at):
    sheet(found, {m:f'{m} mixed aux people' for m in RATES}, at)
    costs(found).to_csv(f'{at}-costs.csv', index=False)

if __name__=='__main__': command(__doc__, study, 'methods-', grid, more)
