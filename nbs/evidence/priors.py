"""The evidence: what does a prior protect? The paper's rows once more on today's base, priors without pictures beside
them, for full fine-tuning and for a LoRA; and where a LoRA learns, by level of noise. Both learn at the rates that the
grid of methods.py chose.

    python nbs/evidence/priors.py --out DIR                      two styles, three seeds; called again, it goes on where it was
    python nbs/evidence/priors.py --out DIR --styles openmoji --ray local

Small tables go to nbs/evidence/results; the runs stay in DIR. The report holds every arm against `full none`."""
import json
from pathlib import Path

from ablation import AUX, command, core, sheet, style
from methods import GRID
from styleboost.methods.load import make_method
from styleboost.pictures.world import pool, style_ref
from styleboost.studies.study import Study
from styleboost.training.recipes import hold, no_prior, styleboost

SETTING = dict(steps=(50,100), sampler=10)
# λ of the squared distance of the weights from where they began; 1 was as good as none
ANCHOR = dict(full=100., lora=5.)
# The paper's rows that a LoRA repeats
LORA = ('none','generated','aux-people','aux-things','random','suggested')

def held(ref, method, **kw):
    "Priors that hold on to the base: without pictures, and with those of `aux-people` as places to hold still."
    kw = dict(kw, method=method)
    return {'hold-class': hold(ref, **kw), 'hold-blank': hold(ref, prompt='', **kw),
            'hold-people': hold(ref, pool('people').sample(AUX), **kw),
            'anchor': no_prior(ref, anchor=ANCHOR[method], **kw)}

def noises(ref, **same):
    "A LoRA with auxiliary people: trained at high noise, with fewer ranks there, both, and the other way round."
    def arm(method, **kw): return styleboost(ref, pool('people'), AUX, **dict(same, method=method, **kw))
    masked, inverse = make_method('tlora'), make_method('tlora', inverse=True)
    return {'high-noise': arm('lora', log_snr=-6.), 'fewer-ranks-there': arm(masked),
            'both': arm(masked, log_snr=-6.), 'more-ranks-there': arm(inverse)}   # neither is `lora aux-people`

def study(name, out, seeds=(0,1,2), **kw):
    "All arms on one style; nothing is trained yet."
    ref, chosen = style_ref(name), json.loads(GRID.read_text())['chosen']
    f, l = (dict(method=m, lr=chosen[m]['lr']) for m in ('full','lora'))
    full, rows = {**core(name, **f), **held(ref, **f)}, core(name, **l)
    lora = {**{k:rows[k] for k in LORA}, **held(ref, **l), **noises(ref, **l)}
    arms = {'full none': full['none']}      # what a report holds the others against
    arms |= {f'full {k}':r for k,r in full.items()} | {f'lora {k}':r for k,r in lora.items()}
    return Study(style(name), arms, Path(out)/f'priors-{name}', seeds, **dict(SETTING, **kw))

SHOWN = [f'{m} {p}' for m in ('full','lora') for p in ('none','generated','aux-people','hold-class','hold-blank',
                                                       'hold-people','anchor')]

def more(found, at): sheet(found, {a:a for a in SHOWN}, at)

if __name__=='__main__': command(__doc__, study, 'priors-', more=more)
