"""What the notebooks beside this file share: committed tables, and how they are shown."""
import json

import pandas as pd
from IPython.display import HTML, display

from ablation import RESULTS
from styleboost.judging.metrics import METRICS

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
    test, curves = (pd.concat([pd.read_csv(f'{f}-{kind}.csv') for f in parts]) for kind in ('test','curves'))
    chosen = {arm:[i['chosen'].get(arm) for i in about] for arm in about[0]['chosen']}
    together = dict(about[0], seeds=[s for i in about for s in i['seeds']], not_done=sum(i['not_done'] for i in about),
                    failed={k:v for i in about for k,v in i['failed'].items()})
    return test, curves, together if len(parts)==1 else dict(together, chosen=chosen)

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
