"The report: one file that loads nothing, believes no caption, and is there whole or not at all."
import json, math, os, re
from importlib.resources import files
from html.parser import HTMLParser
from types import SimpleNamespace

import pandas as pd, pytest
from hypothesis import given, strategies as st
from PIL import Image

from styleboost.showing import report
from styleboost.pictures.images import ImageSet, Picture, png
from styleboost.core import StyleboostError
from styleboost.showing.report import Column, best, score_rows, write_report
from styleboost.judging.metrics import METRICS as ALL
from styleboost.studies.results import judge_right, judged, untold
from styleboost.showing.figures import PALETTE, apart, asset, filled, formatted

EVIL = '<script>alert("1")</script> & "a \'quoted\' $x$ <img src=http://evil.example/x.png>'
METRICS = dict(kid=('KID', 'down', 'Distance.'), style=('Style', 'up', 'Likeness.'), people_rate=('People', 'up', 'Share.'))

def picture(colour, caption=''): return Picture(f'{colour}.png', data=png(Image.new('RGB', (64,64), colour)), caption=caption, people=True, set=EVIL, licence='CC0-1.0')

def material():
    ref = ImageSet([picture('teal', EVIL), picture('navy')], name='ref')
    prompts = [SimpleNamespace(text=EVIL, people=True, truth=ref[0]), SimpleNamespace(text='a boat', people=False, truth=None)]
    def column(name, kid, **kw):
        return Column(name, f'{name} {EVIL}', [Image.new('RGB', (64,64), c) for c in ('red','blue')],
                      dict(people=dict(n=1, kid=kid, style=.5, people_rate=1.), things=dict(n=1, kid=kid+.1, style=math.nan)), note=EVIL, **kw)
    losses = {EVIL: [(1,.5),(2,math.nan),(3,.25)], 'prior': [(1,.5),(3,math.inf)]}
    columns = [column('base', .01), column('none', .5, losses=losses), column('aux', .25, losses=losses, aux=ref)]
    return dict(title=EVIL, lead=EVIL, columns=columns, prompts=prompts, ref=ref, verdict=[EVIL], facts={EVIL: EVIL, 'minutes': math.nan}, metrics=METRICS)

class Page(HTMLParser):
    "What a browser would make of the page."
    def __init__(self, text):
        super().__init__()
        self.tags, self.loads, self.marks, self.cell, self.text = [], [], [], -1, ''
        self.feed(text)
    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loads += [v for k,v in attrs if k in ('src','href','xlink:href','srcset','data','poster','action')]
        if tag=='tr': self.cell = -1
        if tag=='td': self.cell += 1
        if tag=='mark': self.marks.append(self.cell)
    def handle_data(self, data): self.text += data

@pytest.fixture
def written(tmp_path):
    path = write_report(tmp_path/'out', **material())
    return path, path.read_text('utf-8'), json.loads((path.parent/'report.json').read_text('utf-8'), parse_constant=lambda c: pytest.fail(f'{c} in report.json'))

def test_loads_nothing(written):
    path, text, _ = written
    page = Page(text)
    assert {p.name for p in path.parent.iterdir()}=={'report.html','report.json'}
    assert page.loads and all(v.startswith(('data:','#')) for v in page.loads)
    assert not re.search(r'url\((?!#)|@import', text)
    assert page.tags.count('img')==2+2+1+6  # two sets, one truth, six drawn

def test_captions_stay_text(written):
    _, text, _ = written
    page = Page(text)
    assert page.tags.count('script')==1 and text.count('<script>')==1
    assert '<img src=http' not in text
    assert page.text.count(EVIL)>10  # read back, every one of them is what it was

def test_json_is_what_was_given(written):
    _, _, data = written
    m = material()
    assert data['title']==EVIL and data['verdict']==[EVIL]
    assert data['columns'][1]['scores']==dict(people=dict(n=1, kid=.5, style=.5, people_rate=1.), things=dict(n=1, kid=.6, style=None))
    assert data['columns'][1]['losses']=={EVIL: [[1,.5],[2,None],[3,.25]], 'prior': [[1,.5],[3,None]]}
    assert data['columns'][0]['losses'] is None and data['columns'][2]['aux']['hash']==m['ref'].hash
    assert [p['text'] for p in data['prompts']]==[EVIL,'a boat'] and data['prompts'][0]['truth']['sha256']==m['ref'][0].sha
    assert data['facts']=={EVIL: EVIL, 'minutes': None} and data['metrics']=={k:list(v) for k,v in METRICS.items()}
    assert len({i['sha256'] for c in data['columns'] for i in c['images']})==2

def test_same_material_same_files(written, tmp_path):
    path, text, _ = written
    assert write_report(tmp_path/'again', **material()).read_text('utf-8')==text

def test_base_is_never_best(written):
    _, text, _ = written
    assert Page(text).marks==[2,2]  # `aux`, in both rows of KID, though the base is lower; elsewhere the arms are equal

number = st.none() | st.floats(-10, 10) | st.just(math.nan)

@given(st.lists(st.tuples(number, st.booleans()), min_size=1, max_size=6), st.sampled_from(['up','down']), st.sampled_from(['kid','people_rate']))
def test_marks_are_earned(row, way, key):
    values, trained = map(list, zip(*row))
    shown = formatted(values, key)
    win = best(values, shown, trained, way)
    arms = [i for i,(v,t) in enumerate(row) if t and v is not None and not math.isnan(v)]
    assert win <= set(arms) and (not win or win!=set(arms))
    assert len({shown[i] for i in win})<=1
    if win: assert all((values[i]<=max(values[j] for j in win)) if way=='up' else (values[i]>=min(values[j] for j in win)) for i in arms)
    elif arms: assert len({shown[i] for i in arms})==1
    assert all(s=='–' for s,v in zip(shown,values) if v is None or math.isnan(v)) and not any(re.fullmatch(r'−[0.]+%?', s) for s in shown)

def test_arms_whose_intervals_meet_share_the_mark():
    arm = lambda name, v, low, high: Column(name, name, [], dict(all=dict(n=9, kid=v, kid_low=low, kid_high=high)))
    row = lambda *arms: score_rows([arm('base', .01, 0., .02), *arms], {k:v for k,v in METRICS.items() if k=='kid'})[0]['rows'][0]['cells']
    assert row(arm('a', .10, .05, .15), arm('b', .14, .12, .16), arm('c', .30, .25, .35))[1:]==[('0.100',True,'0.050 to 0.150'), ('0.140',True,'0.120 to 0.160'), ('0.300',False,'0.250 to 0.350')]
    assert not any(m for _,m,_ in row(arm('a', .10, .05, .15), arm('b', .14, .12, .16)))
    assert [m for _,m,_ in row(arm('a', .10, math.nan, math.nan), arm('b', .14, .12, .16))]==[False,True,False]

@given(st.lists(st.floats(0,1), min_size=1, max_size=8))
def test_labels_keep_apart(ys):
    gap, ys = .9/len(ys), sorted(ys)
    out = apart(ys, gap)
    assert all(b-a>=gap-1e-9 for a,b in zip(out, out[1:])) and out[0]>=-1e-9 and out[-1]<=1

def test_a_metric_is_listed_where_it_has_a_meaning():
    rows = {m['label']: [r['group'] for r in m['rows']] for m in score_rows(material()['columns'], METRICS)}
    assert rows=={'KID':['people','things'], 'Style':['people','things'], 'People':['people']}

@pytest.mark.parametrize('failing', ['write', 'rename', 'picture'])
def test_whole_or_not_at_all(tmp_path, monkeypatch, failing):
    old = {n: f'the {n} of yesterday' for n in ('report.html','report.json')}
    for n,text in old.items(): (tmp_path/n).write_text(text)
    given = material()
    def full(*args, **kw): raise OSError(28, 'No space left on device')
    if failing=='write':
        real, calls = report.Path.write_bytes, []
        def half(self, data):
            calls.append(self); real(self, data[:10])
            if len(calls)==2: full()
        monkeypatch.setattr(report.Path, 'write_bytes', half)
    if failing=='rename': monkeypatch.setattr(os, 'replace', full)
    if failing=='picture': given['ref'] = ImageSet([Picture('broken.png', data=b'no picture')])
    with pytest.raises(StyleboostError, match='broken.png' if failing=='picture' else 'could not be written.*No space left'): write_report(tmp_path, **given)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()}==old

def test_what_the_caller_got_wrong(tmp_path):
    (tmp_path/'file').write_text('')
    with pytest.raises(StyleboostError, match='could not be written'): write_report(tmp_path/'file', **material())
    given = material(); given['columns'][1].images.pop()
    with pytest.raises(StyleboostError, match='1 pictures for 2 prompts'): write_report(tmp_path, **given)

def test_pictures_that_were_not_drawn_and_large_ones(tmp_path):
    given = material()
    given['columns'] = given['columns'][:1]
    given['columns'][0].images = [None, Image.effect_noise((512,384), 90)]
    path = write_report(tmp_path, **given)
    text, data = path.read_text('utf-8'), json.loads((tmp_path/'report.json').read_text('utf-8'))
    assert text.count('data:image/jpeg')==1 and '<svg' not in text
    assert data['columns'][0]['images'][0] is None and data['columns'][0]['images'][1]['size']==[512,384]

FILES = sorted(f'{room}/{f.name}' for room in ('showing','widgets') for f in (files('styleboost')/room).iterdir() if f.name.endswith(('.html','.css','.js')))

@pytest.mark.parametrize('name', FILES)
def test_a_file_of_the_page_is_whole_when_its_lines_are_joined(name):
    text = (files('styleboost')/name).read_text('utf-8')
    got = asset(name)
    squeezed = lambda s: re.sub(r'\s+', '', s)
    assert squeezed(got)==squeezed(text) and not re.search(r'\n {4}', got)
    assert not re.search(r'^\s*//|[;{}]\s*//', text, re.M)                            # such a comment would swallow the lines that are joined to it
    assert not re.search(r'[ \t]$', text, re.M) and text.endswith('\n')               # an editor may take such spaces away
    if not name.endswith('.html'): assert max(map(len, text.split('\n')))<=120 and got.count('{')==got.count('}')

def test_the_light_colours_stand_in_one_place():
    dark = asset('showing/report.css').split('prefers-color-scheme:dark')[1]
    for name in (n for n in FILES if n.startswith('showing/')): assert not [c for c in PALETTE.values() if c in asset(name)]
    assert all(f'--{k}:{v}' in report.STYLE and f'--{k}:' in dark for k,v in PALETTE.items())

def test_what_is_put_into_a_template_is_escaped():
    page = filled('showing/page.html', title=EVIL, splits={}, groups=[], seeds=[], steps=[], columns=[])
    assert EVIL not in page and page.count('<script')==2

def people_rows(**rates):
    "A study's rows: what a judge saw of ten prompts for people and ten others, (people where asked for, where not) an arm."
    rows = [dict(arm=a, group=g, metric=m, value=v, n=10) for a,two in rates.items() for (m,g),v in zip((('people_rate','people'), ('false_people_rate','things')), two)]
    return pd.DataFrame(rows)

def test_beside_a_people_number_stands_how_often_the_judge_is_right():
    rows = people_rows(truth=(.9,.2), base=(.7,.3), none=(.8,.1))
    told = judged(rows)
    assert judge_right(rows)==(17,20) and untold(rows)=={}
    assert told['people_rate'][:2]==('people where asked for (judge right: 17 of 20)', 'up') and told['kid']==ALL['kid']
    assert 'Nobody has checked' in judged(people_rows(none=(.8,.1)))['people_rate'][2]
    assert judged(people_rows(none=(.8,.1)).head(0))['people_rate'][:2]==ALL['people_rate'][:2]

def test_where_the_artist_is_below_the_base_it_cannot_be_told(tmp_path):
    rows = people_rows(truth=(.62,.3), base=(.88,.2), none=(.7,.2))
    assert set(untold(rows))=={'people_rate','false_people_rate'} and set(untold(people_rows(truth=(.62,.1), base=(.88,.2))))=={'people_rate'}
    assert '62% of the artist\'s own' in untold(rows)['people_rate'] and '88% of the untouched base\'s' in untold(rows)['people_rate']
    label, way, meaning = judged(rows)['people_rate']
    assert 'cannot be told' in label and way==''
    columns = [Column(n, n, [None], dict(people=dict(n=1, people_rate=v))) for n,v in (('base',.88), ('none',.7), ('aux',.1))]
    of = lambda way: [marked for _,marked,_ in score_rows(columns, dict(people_rate=(label, way, meaning)))[0]['rows'][0]['cells']]
    assert of('up')==[False,True,False] and of('')==[False]*3
    text = write_report(tmp_path, 't', 'l', columns, [SimpleNamespace(text='a', people=True, truth=None)], ImageSet([picture('teal')], name='ref'), [], {}, dict(people_rate=(label, '', meaning))).read_text('utf-8')
    assert 'cannot be told' in text and '↑' not in text and '↓' not in text and '<mark>' not in text
