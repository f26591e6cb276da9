"""What the notebooks beside this file share: committed tables, and how they are shown."""
import json, math

import pandas as pd
from IPython.display import HTML, display

from ablation import RESULTS
from styleboost.judging.metrics import METRICS
from styleboost.showing.figures import BASE
from styleboost.showing.front import Point, front_figure
from styleboost.studies.comparison import paired, t_interval

PAPER = pd.DataFrame([    # published distances; less is better
    ('things-only', 'StyleRef of backgrounds only, no prior', 22.804, 24.598, 34.629),
    ('people-only', 'StyleRef of people only, no prior', 21.708, 18.812, 47.588),
    ('none', 'StyleRef of both, no prior', 15.196, 15.449, 22.227),
    ('generated', 'prior generated from "style" (DreamBooth)', 14.297, 14.293, 31.518),
    ('generated-illustration', 'prior generated from "illustration style"', 14.093, 14.466, 28.570),
    ('style-itself', 'auxiliary images of the target style', 15.855, 13.990, 29.450),
    ('aux-things', 'auxiliary images without people', None, None, None),
    ('aux-people', 'auxiliary people in related styles', 13.008, 12.222, 20.718),
    ('random', 'auxiliary images drawn at random from all pools', None, None, None),
    ('suggested', 'auxiliary images that `suggest` chose', None, None, None),
], columns=['arm','what it is','realism','SureB','anime']).set_index('arm')

def published():
    "The place of each row, by the mean of its ranks over the paper's three styles."
    return PAPER[['realism','SureB','anime']].rank().mean(axis=1).rank()

def there(names, prefix=''):
    "Which of the names have committed tables, in alphabetical order."
    return [n for n in sorted(names) if (RESULTS/f'{prefix}{n}.json').exists()]

def found(name):
    "Committed tables, test scores and validation curves, and what they were measured with."
    at = RESULTS/name
    return pd.read_csv(f'{at}-test.csv'), pd.read_csv(f'{at}-curves.csv'), json.loads((RESULTS/f'{name}.json').read_text())

def of(table, *arms): return table[table.arm.isin(arms)]

def measured_with(i):
    said = f'{i["style"]}: base weights {i["base"]["hash"]}, seeds {i["seeds"]}, checkpoints {i["steps"]}'
    said += f', steps chosen {i["chosen"]}'
    if i['failed']: said += f', failed: {i["failed"]}'
    if i['not_done']: said += f', {i["not_done"]} cells not done'
    return said

def show(frame, caption, i):
    "A table with its caption and the base that it was measured on."
    table = frame.to_html(border=0, float_format='{:.4f}'.format, na_rep='–')
    display(HTML(f'<p>{caption} (base weights {i["base"]["hash"]})</p>{table}'))

def meant(metric):
    name, better, *_ = METRICS[metric]
    return f'{name} ({"more" if better=="up" else "less"} is better)'

def beside(test, names, one, other, metric, group='all'):
    "Differences of two arms, for each name that fits into what they are called; paired by seed."
    pairs = {n: (one.format(n), other.format(n)) for n in names}
    rows = [paired(of(test, *p), metric, group, against=p[1]).assign(arm=n) for n,p in pairs.items() if {*p}<={*test.arm}]
    return pd.concat(rows).set_index('arm')[['value','other','difference','low','high','verdict']]

def front(test, arms):
    "Style against drift of arms by their means over seeds, and of the untouched base."
    rows = test[(test.group=='all')&test.metric.isin(['style','drift'])&test.arm.isin([BASE, *arms])]
    spans = {k: t_interval(r.value) for k,r in rows.groupby(['arm','metric'])}
    def point(arm):
        (x,*xs), (y,*ys) = spans.get((arm,'drift'), (0.,)), spans[arm,'style']
        sure = arm!=BASE and all(map(math.isfinite, (*xs,*ys)))
        return Point(arm, arm, x, y, tuple(xs) if sure else None, tuple(ys) if sure else None, arm!=BASE)
    return front_figure([point(a) for a in [BASE, *arms] if (a,'style') in spans])

def means(test, arms, asked):
    "Means over seeds: a row an arm, a column a metric of a group."
    at = test[test.arm.isin(arms)].groupby(['arm','metric','group']).value.mean()
    named = {f'{m}, {g}' if g!='all' else m: (m,g) for m,g in asked}
    return pd.DataFrame({n: {a: at.get((a,*of), math.nan) for a in arms if a in set(test.arm)} for n,of in named.items()})
