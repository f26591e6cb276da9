"""The evidence: which auxiliary images? The paper's ablation row by row, on two styles and three seeds, and what it
leaves open.

    python nbs/evidence/ablation.py --out DIR                      everything; called again, it goes on where it was
    python nbs/evidence/ablation.py --out DIR --styles openmoji    on one style

Small tables go to nbs/evidence/results, where the notebook beside this file reads them; the runs stay in DIR."""
import argparse, json
from itertools import product
from pathlib import Path

from styleboost.judging.metrics import SHOWN
from styleboost.judging.suggest import suggest
from styleboost.pictures.images import ImageSet
from styleboost.pictures.sheets import gridded
from styleboost.pictures.world import STYLES, pool, prompts_up_to, reference, style_ref
from styleboost.showing.figures import BASE, TRUTH
from styleboost.studies.study import Study
from styleboost.studies.style import Style
from styleboost.training.recipes import dreambooth, multi, no_prior, styleboost

RESULTS = Path(__file__).resolve().parent/'results'
SETTING = dict(steps=(50,100,200), sampler=10, scheduler='dpmpp')  # a cell takes some 90 seconds on two cores
AUX = 20                       # prior images of every arm that has a prior
SAME = dict(batch=4, lr=1e-4)  # of every arm, so that a table stays comparable when defaults move

def style(name):
    """What a study is about. Nothing of the split that StyleRef and every other picture to train on come from is scored
    against."""
    real = ImageSet([p for p in reference(name) if p.split!='ref'], f'world:{name}:reference')
    return Style(name, style_ref(name), real, prompts_up_to(32, name, 'validation'), prompts_up_to(64, name))

def own(name, ref):
    "Other pictures of the style itself: of the split that StyleRef comes from, of subjects that are not in it."
    taken = {p.subject for p in ref}
    return ImageSet([p for p in style_ref(name, 40, 40) if p.subject not in taken], f'world:{name}:more').sample(AUX)

def core(name, **same):
    "The paper's rows: what StyleRef shows, and where the prior's images come from."
    same = same or SAME
    ref = style_ref(name)
    kind = min(AUX, len(style_ref(name, 40, 0)))  # as many people as there are, and as many things
    both = pool('people')+pool('things')
    return {'people-only': no_prior(style_ref(name, kind, 0), **same),
            'things-only': no_prior(style_ref(name, 0, kind), **same),
            'none': no_prior(ref, **same),
            'generated': dreambooth(ref, AUX, **same),
            'generated-illustration': dreambooth(ref, AUX, 'a photo of illustration style', **same),
            'style-itself': styleboost(ref, own(name, ref), **same),
            'aux-things': styleboost(ref, pool('things'), AUX, **same),
            'aux-people': styleboost(ref, pool('people'), AUX, **same),
            'random': styleboost(ref, both, AUX, **same),
            'suggested': styleboost(ref, suggest(ref, both, AUX).images, **same)}

def draws_and_amounts(ref):
    """Other draws of the sets that were drawn at random (what a set does is one thing, what a rule for drawing does
    another), how many images, and how much they weigh."""
    people, both = pool('people'), pool('people')+pool('things')
    arms = {}
    for rule,pics in (('random',both), ('aux-people',people)):
        for i in (1,2): arms[f'{rule}-{i}'] = styleboost(ref, pics, AUX, seed=i, **SAME)
    for n in (5,80): arms[f'aux-{n}'] = styleboost(ref, people, n, **SAME)
    for w in (0,.5,2): arms[f'weight-{w:g}'] = styleboost(ref, people, AUX, prior_weight=w, **SAME)
    return arms

def words(ref):
    """One word for the style's people and one for the rest; beside them one word for all the pictures that two words
    see, as many a step."""
    people, things = pool('people').sample(AUX), pool('things').sample(AUX)
    return {'one-word-both': styleboost(ref, people+things, **dict(SAME, batch=8)),
            'two-words': multi(ref.where(True), ref.where(False), people, things, **SAME)}

def more(name):
    "What the paper leaves open: draws and amounts on the first style, words on both."
    ref = style_ref(name)
    return {**(draws_and_amounts(ref) if name==STYLES[0] else {}), **words(ref)}

def study(name, out, seeds=(0,1,2), **kw):
    "All arms on one style; nothing is trained yet."
    return Study(style(name), {**core(name), **more(name)}, Path(out)/name, seeds, **dict(SETTING, **kw))

def keep(found, name):
    "What is committed of a study: test scores at the chosen steps, validation curves, and what it was."
    RESULTS.mkdir(parents=True, exist_ok=True)
    t, i, at = found.table(), found.info, RESULTS/name
    packed = dict(index=False, compression=dict(method='gzip', mtime=0))    # a quarter of a megabyte each otherwise
    found.at_chosen().round(5).to_csv(f'{at}-test.csv.gz', **packed)
    curves = t[(t.split=='validation')&t.metric.isin([*SHOWN, 'plain_kid'])].drop(columns=['low','high'])
    curves.round(5).to_csv(f'{at}-curves.csv.gz', **packed)
    spent = [found.kept(*c)['seconds'] for c in found.done]
    about = dict(style=i['style']['name'], base=i['base'], seeds=i['seeds'], steps=i['steps'], sampler=i['sampler'],
                 judge=i['judge'], chosen=found.chosen, not_done=len(found.cells)-len(found.done),
                 failed={f'{a}, seed {s}':w for (a,s),w in found.failed.items()},
                 seconds_drawing=round(sum(s.get('draw',0) for s in spent)),
                 seconds_scoring=round(sum(s.get('score',0) for s in spent)), versions=i['versions'])
    Path(f'{at}.json').write_text(json.dumps(about, indent=1)+'\n')

def sheet(found, rows, at, each=8):
    """Keeps pictures of some people and things among the test prompts: the artist's, the base's, and of `rows`, which
    are arms by name; those of the study's first seed."""
    asked, seed = found.prompts('test'), found.seeds[0]
    places = sum(([i for i,p in enumerate(asked) if p.people is kind][:each] for kind in (True,False)), [])
    drawn = [('the artist', found.images(TRUTH)), ('untouched base', found.images(BASE))]
    drawn += [(n, found.images(a, seed, found.chosen[a])) for n,a in rows.items() if (a,seed) in found.done]
    image = gridded([asked[i].text for i in places], [(n, [ims[i] for i in places]) for n,ims in drawn if ims])
    image.quantize(64).save(f'{at}.png', optimize=True)

def command(about, study, prefix='', grid=None, more=None):
    """The command of a page of evidence. A seed is a study of its own, so that what is done can be kept seed by seed;
    it chooses its own steps. `grid` comes before its studies, `more` keeps what else a page shows of the first
    seed."""
    p = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--out', type=Path, required=True)
    p.add_argument('--styles', nargs='+', choices=STYLES, default=STYLES[:2])
    p.add_argument('--seeds', nargs='+', type=int, default=[0,1,2])
    p.add_argument('--ray')
    if grid: p.add_argument('--grid', action='store_true')
    a = p.parse_args()
    if grid and a.grid: return grid(a.out, a.ray)
    for seed,name in product(a.seeds, a.styles):
        found = study(name, a.out/f'seed-{seed}', (seed,)).run(a.ray)
        if not found.done: continue
        keep(found, f'{prefix}{name}-{seed}')
        if more and seed==0: more(found, RESULTS/f'{prefix}{name}')
        found.report()

if __name__=='__main__': command(__doc__, study)
