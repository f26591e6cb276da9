"""What the notebooks beside this file share: committed tables, and how they are shown."""
import json

import pandas as pd
from IPython.display import HTML, display

from ablation import RESULTS
from styleboost.judging.metrics import METRICS
from styleboost.showing.figures import BASE, TRUTH, formatted
from styleboost.showing.front import front_figure, points_of
from styleboost.showing.report import Column
from styleboost.studies.comparison import by_seed, paired
from styleboost.studies.results import mean_scores

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
    test, curves = (pd.read_csv(RESULTS/f'{name}-{kind}.csv') for kind in ('test','curves'))
    return test, curves, json.loads((RESULTS/f'{name}.json').read_text())

def of(table, *arms): return table[table.arm.isin(arms)]

def front(table, arms, titles=None):
    "Style against drift of some arms and the untouched base."
    named = dict(zip(arms, titles or arms))
    columns = [Column(a, named.get(a, 'untouched base'), [], mean_scores(table, a)) for a in (BASE, *arms)]
    return front_figure(points_of(columns), height=520)

def _fixed(table, metric, group, arm):
    row = table[(table.arm==arm)&(table.metric==metric)&(table.group==group)]
    return row.value.mean() if len(row) else None

def means(table, arms, asked):
    "A row an arm, after the artist's own pictures and the untouched base; a column each of `asked`, (metric, group)."
    out = {}
    for metric,group in asked:
        trained = by_seed(of(table, *arms), metric, group).mean()
        values = [_fixed(table, metric, group, TRUTH), _fixed(table, metric, group, BASE), *trained.reindex(arms)]
        out[METRICS[metric][0] if group=='all' else f'{METRICS[metric][0]}, {group}'] = formatted(values, metric)
    return pd.DataFrame(out, index=['the artist\'s own', 'untouched base', *arms])

def _said(row, text):
    "A difference in few words: better or worse where it is seen, with a star where it holds."
    word = row.verdict if row.verdict in ('better','worse') else ''
    return f'{text} {word}{"*" if row.holds else ""}'.strip()

def differences(table, against, arms, asked):
    "What each arm has more or less than another, paired by seed; a column each of `asked`, (metric, group)."
    out = {}
    for metric,group in asked:
        seen = paired(of(table, against, *arms), metric, group, against=against).set_index('arm').loc[list(arms)]
        texts = formatted(list(seen.difference), metric)
        head = METRICS[metric][0] if group=='all' else f'{METRICS[metric][0]}, {group}'
        out[head] = [_said(row, text) for row,text in zip(seen.itertuples(), texts)]
    return pd.DataFrame(out, index=list(arms))

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
