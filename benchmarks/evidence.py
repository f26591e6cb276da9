"""The evidence: which auxiliary images? The paper's ablation row by row, on two styles and three seeds, and what it leaves open.

    python benchmarks/evidence.py --out DIR                 everything; called again, it goes on where it was
    python benchmarks/evidence.py --out DIR --parts core    one part
Small tables go to nbs/evidence/results, where the notebooks of evidence read them; the runs stay in DIR."""
import argparse, json
from pathlib import Path

from styleboost.cells import Style
from styleboost.images import ImageSet
from styleboost.metrics import SHOWN
from styleboost.priors import suggest
from styleboost.recipes import dreambooth, multi, no_prior, styleboost
from styleboost.study import Study
from styleboost.world.pictures import STYLES, pool, prompts, reference, style_ref

RESULTS = Path(__file__).resolve().parents[1]/'nbs'/'evidence'/'results'
SETTING = dict(steps=(50,100,200), sampler=10, scheduler='dpmpp')   # one cell takes about a minute and a half on two cores
AUX = 20                                                            # prior images of every arm that has a prior
SAME = dict(batch=4, lr=1e-4)                                       # of every arm, so that a table stays comparable when defaults move

def style(name):
    "What a study is about. Nothing of the split that StyleRef and every other picture to train on come from is scored against."
    real = ImageSet([p for p in reference(name) if p.split!='ref'], f'world:{name}:reference')
    return Style(name, style_ref(name), real, prompts(name, 'validation', 32), prompts(name, 'test', 64))

def own(name, ref):
    "Other pictures of the style itself: of the split that StyleRef comes from, of subjects that are not in it."
    taken = {p.subject for p in ref}
    return ImageSet([p for p in style_ref(name, 40, 40) if p.subject not in taken], f'world:{name}:more').sample(AUX)

def core(name):
    "The paper's rows: what StyleRef shows, and where the prior's images come from."
    ref = style_ref(name)
    kind = min(AUX, len(style_ref(name, 40, 0)))                    # as many people as there are, and as many things
    both = pool('people')+pool('things')
    return {'people-only': no_prior(style_ref(name, kind, 0), **SAME),
            'things-only': no_prior(style_ref(name, 0, kind), **SAME),
            'none': no_prior(ref, **SAME),
            'generated': dreambooth(ref, AUX, **SAME),
            'generated-illustration': dreambooth(ref, AUX, 'a photo of illustration style', **SAME),
            'style-itself': styleboost(ref, own(name, ref), **SAME),
            'aux-things': styleboost(ref, pool('things'), AUX, **SAME),
            'aux-people': styleboost(ref, pool('people'), AUX, **SAME),
            'random': styleboost(ref, both, AUX, **SAME),
            'suggested': styleboost(ref, suggest(ref, both, AUX).images, **SAME)}

def counts(name):
    "How many auxiliary images."
    ref = style_ref(name)
    return {'aux-0': no_prior(ref, **SAME), **{f'aux-{n}': styleboost(ref, pool('people'), n, **SAME) for n in (5,20,80)}}

def weights(name):
    "How much they weigh in the loss."
    ref = style_ref(name)
    return {f'weight-{w:g}': styleboost(ref, pool('people'), AUX, prior_weight=w, **SAME) for w in (0,.5,1,2)}

def two_words(name):
    "One word for the style, or one for its people and one for the rest."
    ref, who, what = style_ref(name), pool('people').sample(AUX), pool('things').sample(AUX)
    return {'single': styleboost(ref, who, **SAME), 'multi': multi(ref.where(True), ref.where(False), who, what, **SAME)}

PARTS = dict(core=(core, STYLES), counts=(counts, STYLES[:1]), weights=(weights, STYLES[:1]), two_words=(two_words, STYLES))   # arms, and the styles they are asked of

def study(part, name, out, seeds=(0,1,2), **kw):
    "One part on one style; nothing is trained yet."
    return Study(style(name), PARTS[part][0](name), Path(out)/f'{part}-{name}', seeds, **dict(SETTING, **kw))

def keep(found, part, name):
    "What is committed of a study: test scores at the chosen steps, validation curves, and what it was."
    RESULTS.mkdir(parents=True, exist_ok=True)
    t, at = found.table(), RESULTS/f'{part}-{name}'
    found.at_chosen().round(5).to_csv(f'{at}-test.csv', index=False)
    t[(t.split=='validation')&t.metric.isin([*SHOWN, 'plain_kid'])].drop(columns=['low','high']).round(5).to_csv(f'{at}-curves.csv', index=False)
    spent = [found.kept(*c)['seconds'] for c in found.done]
    i = found.info
    about = dict(style=name, base=i['base'], seeds=i['seeds'], steps=i['steps'], sampler=i['sampler'], chosen=found.chosen, failed={f'{a}, seed {s}':w for (a,s),w in found.failed.items()},
                 seconds_drawing=round(sum(s.get('draw',0) for s in spent)), seconds_scoring=round(sum(s.get('score',0) for s in spent)), versions=i['versions'])
    Path(f'{at}.json').write_text(json.dumps(about, indent=1)+'\n')

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--out', type=Path, required=True); p.add_argument('--parts', nargs='+', choices=PARTS, default=list(PARTS))
    p.add_argument('--styles', nargs='+', choices=STYLES); p.add_argument('--seeds', type=int, default=3); p.add_argument('--ray')
    a = p.parse_args()
    for part in a.parts:
        for name in a.styles or PARTS[part][1]:
            found = study(part, name, a.out, range(a.seeds)).run(a.ray)
            if found.done: found.report(); keep(found, part, name)

if __name__=='__main__': main()
