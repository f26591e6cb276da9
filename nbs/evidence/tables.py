"""What the notebooks beside this file share: committed tables, and how they are shown."""
import json
from dataclasses import replace

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

def _parts(name):
    "Files of committed tables, without their ending: one, or one a seed."
    one = RESULTS/f'{name}.json'
    return [f.with_suffix('') for f in ([one] if one.exists() else sorted(RESULTS.glob(f'{name}-[0-9].json')))]

def there(names, prefix=''):
    "Which of the names have committed tables, in alphabetical order."
    return [n for n in sorted(names) if _parts(prefix+n)]

def found(name):
    "Committed tables, test scores and validation curves, and what they were measured with."
    parts = _parts(name)
    about = [json.loads(f.with_suffix('.json').read_text()) for f in parts]
    assert len({(i['base']['hash'], i['judge']) for i in about})==1, 'measured with several bases or judges'
    test, curves = (pd.concat([pd.read_csv(f'{f}-{kind}.csv.gz') for f in parts]) for kind in ('test','curves'))
    chosen = {arm:[i['chosen'].get(arm) for i in about] for arm in about[0]['chosen']}
    together = dict(about[0], seeds=[s for i in about for s in i['seeds']], not_done=sum(i['not_done'] for i in about),
                    failed={k:v for i in about for k,v in i['failed'].items()})
    return test, curves, together if len(parts)==1 else dict(together, chosen=chosen)

def of(table, *arms): return table[table.arm.isin(arms)]

def front(table, arms, title, named=None):
    "Style against drift of some arms and the untouched base, means over seeds, with the front; `named` are their titles."
    named = dict(zip(arms, named or arms))
    columns = [Column(a, named.get(a, 'untouched base'), [], mean_scores(table, a)) for a in (BASE, *arms)]
    # crosses of a dozen arms hide each other; the tables have what can be told of differences
    fig = front_figure([replace(p, x_span=None, y_span=None) for p in points_of(columns)])
    fig.suptitle(title, fontsize=11)
    return fig

def _fixed(table, metric, group, arm):
    row = table[(table.arm==arm)&(table.metric==metric)&(table.group==group)]
    return row.value.mean() if len(row) else None

def means(table, arms, asked):
    "A row an arm, after the artist's own pictures and the untouched base; a column each of `asked`, (metric, group)."
    out = {}
    for metric,group in asked:
        trained = by_seed(of(table, *arms), metric, group).mean()
        values = [_fixed(table, metric, group, TRUTH), _fixed(table, metric, group, BASE), *trained.reindex(arms)]
        out[_head(metric, group)] = formatted(values, metric)
    return pd.DataFrame(out, index=['the artist\'s own', 'untouched base', *arms])

def _head(metric, group): return METRICS[metric][0] + ('' if group=='all' else f', {group}')

def _verdict(found, held):
    "Better or worse where it is seen, with a star where it holds."
    if found.verdict not in ('better','worse'): return ''
    return f' {found.verdict}{"*" if held.verdict==found.verdict else ""}'

def differences(table, pairs, asked, spans=False):
    """What one arm has more than another, paired by seed: a row each of `pairs`, name -> (arm, the other); a column each
    of `asked`, (metric, group). A star means that it holds when the 5 % are shared among the rows; `spans` gives the
    95 % intervals too. The other may be the untouched base, which each seed drew anew."""
    drawn = 'base, as each seed drew it'
    table, pairs = table.replace({'arm':{BASE:drawn}}), {k:(a, drawn if b==BASE else b) for k,(a,b) in pairs.items()}
    out = {}
    for metric,group in asked:
        def told(confidence):
            return [paired(of(table, *pair), metric, group, pair[1], confidence).iloc[0] for pair in pairs.values()]
        seen, held = told(.95), told(1-.05/len(pairs))
        numbers = [(d.difference, d.low, d.high) if spans and d.seeds>1 else (d.difference,) for d in seen]
        texts = iter(formatted(sum(numbers, ()), metric))
        spelt = [next(texts)+(f' ({next(texts)} to {next(texts)})' if more else '') for _,*more in numbers]
        out[_head(metric, group)] = [t+_verdict(*v) for t,*v in zip(spelt, seen, held)]
    return pd.DataFrame(out, index=list(pairs))

def joined(studies):
    "Several studies as one table, a pair of style and seed where each has a seed; and what they were measured with."
    about = [i for *_,i in studies.values()]
    assert len({i['base']['hash'] for i in about})==1, 'measured on several bases'
    tables = [test.assign(seed=[f'{style} {s}' for s in test.seed]) for style,(test,*_) in studies.items()]
    return pd.concat(tables, ignore_index=True), about[0]

def measured_with(i):
    said = f'{i["style"]}: base weights {i["base"]["hash"]}, seeds {i["seeds"]}, checkpoints {i["steps"]}'
    said += f', steps chosen {i["chosen"]}'
    if i['failed']: said += f', failed: {i["failed"]}'
    if i['not_done']: said += f', {i["not_done"]} cells not done'
    return said

def show(frame, caption, i, folded=False):
    "A table with its caption and the base that it was measured on; `folded` shows the caption until it is clicked."
    table = frame.to_html(border=0, float_format='{:.4f}'.format, na_rep='–')
    said = f'{caption} (base weights {i["base"]["hash"]})'
    display(HTML(f'<details><summary>{said}</summary>{table}</details>' if folded else f'<p>{said}</p>{table}'))

def compare(studies, pairs, asked, against, spans=False):
    "Shows `differences` of several studies: all their styles together, and each by itself, folded."
    every, i = joined(studies)
    show(differences(every, pairs, asked, spans), f'{" and ".join(studies)}: differences to {against}', i)
    for style,(test,_,i) in studies.items():
        show(differences(test, pairs, asked, spans), f'{style} alone: differences to {against}', i, folded=True)

def meant(metric):
    name, better, *_ = METRICS[metric]
    return f'{name} ({"more" if better=="up" else "less"} is better)'
