"""How long `styleboost compare` takes with four arms and three seeds on the embedded base, where the time goes, and
what a cheaper sampler changes.

    python benchmarks/compare.py --out DIR --json compare.json

A study that is timed begins in a new folder."""
import argparse, json, os, subprocess, sys, tempfile, time
from pathlib import Path

import pandas as pd

from common import device
from styleboost.bases.load import load_base
from styleboost.bases.sampling import sample
from styleboost.judging.metrics import score
from styleboost.pictures.prompts import style_prompt
from styleboost.studies.cells import first_seed
from styleboost.studies.results import Results
from styleboost.studies.style import embedded
from styleboost.training.runs import Run, versions

ARMS = ('none', 'generated', 'world:people', 'world:things')
SAMPLERS = (('ddim',20), ('dpmpp',10), ('dpmpp',15), ('dpmpp',30))

def command(out, ray):
    "Seconds of the command, with loading and the report."
    cmd = [sys.executable, '-m', 'styleboost.cli', 'compare', '--out', out]
    for arm in ARMS: cmd += ['--aux', arm]
    if ray: cmd += ['--ray', ray]
    t = time.perf_counter()
    with tempfile.TemporaryDirectory() as cache:  # nothing is found that an earlier study drew
        subprocess.run(cmd, env=dict(os.environ, CUDA_VISIBLE_DEVICES='', STYLEBOOST_CACHE=cache), check=True)
    return time.perf_counter()-t

def spent(found):
    """Seconds by kind of work, over all cells and the untouched base: the loops of training; opening models, drawing
    and keeping pictures; scores; both of prompts that do not ask for the style. Setting a run up and the generated prior
    are in none of them."""
    kept = [found.kept('base')['seconds'], *[found.kept(*c)['seconds'] for c in found.cells]]
    training = sum(Run(found.run_folder(*c)).log[-1]['seconds'] for c in found.cells)
    return dict(training=training, drawing=sum(k['draw'] for k in kept), scoring=sum(k['score'] for k in kept),
                elsewhere=sum(k.get('elsewhere', 0.) for k in kept))

def samplers(found, seed=0):
    "KID to the true style of each arm's test prompts, drawn by several samplers from the same noise."
    style, base, rows = embedded(found.info['style']['name']), load_base('tiny'), []
    for arm,step in found.chosen.items():
        run = Run(found.run_folder(arm, seed), step)
        model, asked = run.model('cpu', base), [style_prompt(p.text, run.words) for p in style.test]
        for name,steps in SAMPLERS:
            ims = sample(model, asked, first_seed(seed, 'test'), steps, 7., name, raw=True)
            kid = float(score(ims, style.reference, style.test).kid['all'])
            rows.append(dict(arm=arm, sampler=f'{name} {steps}', kid=round(kid, 4)))
    return rows

def measured(found, wall, ray):
    "What the study took, and what it was."
    i, s, minutes = found.info, spent(found), lambda seconds: round(seconds/60, 1)
    over = None if ray else round(wall/(s['training']+s['drawing']+s['elsewhere']), 3)
    more = round(s['elsewhere']/(sum(s.values())-s['elsewhere']), 3)   # what drift and leak add
    return dict(device=device(), where=f'Ray, {ray}' if ray else 'this process', arms=found.arms,
                seeds=list(found.seeds), checkpoints=list(found.steps), sampler=i['sampler'],
                prompts={k:len(i['style'][k]) for k in ('validation','test')}, minutes=minutes(wall),
                **{f'minutes_{k}':minutes(v) for k,v in s.items()}, over_training_and_drawing=over,
                elsewhere_over_the_rest=more,
                samplers=samplers(found), base=i['base'], **versions())

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--out', type=Path, required=True, help='folder for the study')
    p.add_argument('--json', type=Path)
    p.add_argument('--ray', help='as for styleboost compare')
    a = p.parse_args()
    if a.out.exists() and any(a.out.iterdir()):
        sys.exit(f'{a.out} is not empty; a study that is timed begins in a new folder.')
    wall = command(a.out, a.ray)
    found = Results(a.out)
    if len(found.done)<len(found.cells):
        sys.exit(f'{len(found.done)} of {len(found.cells)} cells are done, so there is nothing to report.')
    result = measured(found, wall, a.ray)
    print(json.dumps(result, indent=1))
    print(pd.DataFrame(result['samplers']).pivot(index='arm', columns='sampler', values='kid'))
    if a.json: a.json.write_text(json.dumps(result, indent=1)+'\n')

if __name__=='__main__': main()
