"Widgets without a browser: what is chosen, shown and refused, and that nothing is lost by it."
import base64, io, json, os, re, shlex, signal, subprocess, sys, threading, types
from contextlib import contextmanager
from dataclasses import replace
from html import unescape
from pathlib import Path

import numpy as np, pandas as pd, pytest, safetensors.torch, torch
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from styleboost.pictures.images import ImageSet, Picture, png
from styleboost.cli import app
from styleboost.core import StyleboostError, log
from styleboost.judging.suggest import suggest
from styleboost.pictures.prompts import Prompt
from styleboost.pictures.world import pool as world_pool, style_ref
from styleboost.bases.sampling import sample
from styleboost.training.runs import Run
from styleboost.training.loop import train
from styleboost.widgets import monitor, panels
from styleboost.widgets.picker import AuxPicker, far_off
from styleboost.training.recipes import no_prior, styleboost as with_styleboost
from styleboost.widgets.compare import Compare, recipe_rows
from styleboost.widgets.stage import Stage
from styleboost.widgets.monitor import TrainingMonitor
from styleboost.widgets.vote import Vote
from styleboost.studies.votes import QUESTIONS, study_key, vote_standings, votes_of

@pytest.fixture(scope='module')
def pool(picture):
    "Forty pictures: every other shows people, the last two do not say."
    return ImageSet([picture(f'p{i:02d}', people=None if i>=38 else i%2==0, seed=i) for i in range(40)], 'pool')

@pytest.fixture
def on_disk(pool, tmp_path):
    pool[:10].save(tmp_path/'pool')
    return ImageSet.from_folder(tmp_path/'pool')

def changes(widget):
    "What has been sent to the browser about a widget's value since."
    sent = []
    widget.observe(lambda c: sent.append(c.new), 'value')
    return sent

def squeezed(html): return ' '.join(text(html).split())

def text(html): return unescape(re.sub(r'<[^>]+>', ' ', html.value))

def test_choosing_loads_nothing_that_training_needs():
    code = 'import sys, styleboost.widgets; from styleboost.widgets import AuxPicker; assert "torch" not in sys.modules; styleboost.widgets.nothing'
    said = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stderr
    assert "module 'styleboost.widgets' has no attribute 'nothing'" in said

def test_a_panel_has_its_own_style_sheet(ref, pool):
    assert '.sb-strip' in AuxPicker(ref, pool).widget.children[0].value and '.sb-strip' not in Compare(Fake()).widget.children[0].value

# pictures as buttons

def test_a_thumbnail_is_made_once(pool, monkeypatch):
    panels._made.clear()
    made = []
    monkeypatch.setattr(panels, 'png', lambda im: made.append(1) or b'')
    for _ in range(2):
        for p in (*pool, *[Picture(f'again-{p.name}', data=p.data) for p in pool]): panels.thumb(p)
    assert len(made)==40

def test_thumbnails_do_not_fill_the_memory(pool, monkeypatch):
    panels._made.clear(); monkeypatch.setattr(panels, 'MOST', 5)
    for p in pool: panels.thumb(p)
    assert len(panels._made)==5 and panels.thumb(pool[0])

def test_a_thumbnail_is_no_larger_than_asked_and_no_larger_than_the_picture(picture):
    size = lambda uri: Image.open(io.BytesIO(base64.b64decode(uri.split(',')[1]))).size
    assert size(panels.thumb(picture('wide', (400,100)), 200))==(200,50) and size(panels.thumb(picture('small', (40,30)), 200))==(40,30)

def test_a_small_picture_keeps_every_pixel_and_is_enlarged_as_pixels(picture):
    small, large = picture('small', (128,40)), picture('large', (129,40))
    kept, other = panels.thumb(small), panels.thumb(large)
    assert Image.open(io.BytesIO(base64.b64decode(kept.split(',')[1]))).convert('RGB').tobytes()==small.open().tobytes()
    sheet = panels.tile_styles('grid', [kept, other], 2)
    assert other.startswith('data:image/webp') and [('pixelated' in rule) for rule in sheet.split('}')[:2]]==[True,False]

def test_a_panel_shown_twice_is_one_widget(pool, ref, monkeypatch):
    shown = []
    monkeypatch.setattr(panels, 'display', shown.append)
    p = AuxPicker(ref, pool)
    p._ipython_display_(); p._ipython_display_()
    assert shown==[p.widget, p.widget] and 'aux-picker' in p.widget._dom_classes

# choosing

@pytest.fixture
def picker(ref, pool): return AuxPicker(ref, pool, measure=lambda s: dict(near=[i%7 for i in range(len(s))]), page=12)

def click(picker, place): picker.tiles.buttons[place].value = not picker.tiles.buttons[place].value

def test_a_click_chooses_and_another_does_not(picker, pool):
    click(picker, 3); click(picker, 5); click(picker, 3)
    assert picker.chosen==[5] and [p.name for p in picker.images]==[pool[5].name]
    assert list(picker.table.chosen)==[i==5 for i in range(40)]

def test_a_click_sends_one_line_and_no_picture(picker):
    pictures, status = changes(picker.tiles._sheet), changes(picker._status)
    click(picker, 0)
    assert pictures==[] and len(status)==1 and '1 chosen' in status[0] and len(status[0])<1000

def test_how_many_people_is_said(picker):
    picker.chosen = [0, 1, 2, 38]
    assert '4 chosen of 40 2 with people, 1 without, 1 that do not say' in squeezed(picker._status)

@pytest.mark.parametrize('chosen,word', [([0,2,4,6],'all show'), ([1,3,5,7],'none shows'), ([0,1,2,3],''), ([0,2],''), ([0,2,4,6,8,10,1],'6 of 7 show'), ([1,3,5,7,9,11,0],'only 1 of 7')])
def test_a_one_sided_mix_is_said(picker, chosen, word):
    picker.chosen = chosen
    assert (word in picker.mix) if word else picker.mix==''
    assert picker.mix in text(picker._status)

@pytest.mark.parametrize('who,flags', [('people',{True}), ('things',{False}), ('all',{True,False,None})])
def test_a_rule_takes_the_best(picker, who, flags):
    picker.choose(9, who, 'near')
    near = lambda i: picker.known.near[i]
    fits = [i for i in range(40) if picker.pool[i].people in flags]
    assert len(picker.chosen)==9 and set(picker.chosen)<=set(fits)
    assert min(map(near, picker.chosen))>=max(near(i) for i in fits if i not in picker.chosen)

def test_a_choice_is_looked_at_and_nothing_is_taken_out(picker, ref, refused):
    with refused('Nothing is chosen'): picker.check()
    picker.chosen = [1, 3, 5, 6]
    assert {f.kind for f in picker.check()}=={'blur','mix'} and 'remarks.' in picker.sentence                # fields of colour, and 3 references
    same = AuxPicker(ref, ImageSet([*ref, *picker.pool[:3]], 'pool'), chosen=[0, 3])
    found = same.check()
    assert [f.kind for f in found][0]=='leak' and 'hold on to the style itself' in text(same._found) and same.chosen==[0, 3] and '<img' in same._found.value

def test_one_remark_is_no_remarks():
    people, things = world_pool('people'), world_pool('things')
    p = AuxPicker(style_ref('openmoji'), people[:2]+things[:2]+people[:1], chosen=range(5))
    assert [f.kind for f in p.check()]==['copies'] and p.sentence=='1 remark.'

def test_fewer_than_no_pictures_are_refused(picker, refused):
    before = picker.chosen
    with refused('-5 pictures'): picker.choose(-5)
    assert picker.chosen==before

def test_half_is_half_and_too_few_is_said(picker):
    picker.choose(11, 'half')
    assert [picker.images.people.count(f) for f in (True,False)]==[6,5] and picker.sentence==''
    picker.choose(40, 'half')
    assert len(picker.chosen)==38 and '19 instead of 20 people and 19 instead of 20 things' in picker.sentence

def test_what_has_no_score_comes_last(ref, pool):
    p = AuxPicker(ref, pool, measure=lambda s: dict(near=[float('nan')]*30+[1.]*10))
    p.choose(10, by='near')
    assert p.chosen==list(range(30,40))

def test_chance_is_the_same_every_time(picker):
    picker.choose(7, by='chance'); one = picker.chosen
    picker.choose(7, by='chance')
    assert picker.chosen==one!=list(range(7))

def test_none_and_invert(picker):
    picker.chosen = [1,2]; picker.invert()
    assert len(picker.chosen)==38 and 1 not in picker.chosen
    picker.clear()
    assert picker.chosen==[] and len(picker.images)==0 and not any(picker.tiles.chosen)

@pytest.fixture
def suggestion(pool):
    people = [None if p.people is None else p.people for p in pool]; people[39] = True
    return types.SimpleNamespace(table=pd.DataFrame(dict(name=[p.name for p in pool], near=np.linspace(0,1,40), general=np.linspace(1,0,40), people=people, score=.5, chosen=[i in (3,4,8) for i in range(40)])))

def test_a_suggestion_is_where_one_begins(ref, pool, suggestion):
    p = AuxPicker(ref, pool, suggestion)
    assert p.chosen==[3,4,8] and p.scores==['near','general','score'] and p.known.people[39] is True and p.known.people[38] is None
    p.invert(); p.suggested()
    assert p.chosen==[3,4,8]
    assert p.tiles.buttons[3].description.split('\n')==['near 0.08', 'general 0.92'] and p.tiles.marks[3].description=='○ thing'

def test_a_suggestion_for_another_pool_is_refused(ref, pool, suggestion, refused):
    with refused('another pool', 'pool'): AuxPicker(ref, pool[:30], suggestion)
    with refused('No suggestion'): AuxPicker(ref, pool).suggested()

@pytest.mark.parametrize('which', [['nobody.png'], [40], [-1]])
def test_what_is_not_in_the_pool_cannot_be_chosen(picker, which, refused):
    picker.chosen = [2]
    with refused('has no picture', which[0]): picker.chosen = which
    assert picker.chosen==[2]

def test_wrong_calls_are_refused(ref, pool, picker, refused):
    with refused('no score', 'near'): picker.choose(3, by='beauty')
    with refused('half'): picker.choose(3, who='dogs')
    with refused('no pictures'): AuxPicker(ref, ImageSet([], 'nothing'))
    with refused('40'): AuxPicker(ref, pool, measure=lambda s: dict(x=[1]))

def test_the_choice_outlives_pages_filters_and_orders(picker):
    click(picker, 2); picker.turn()
    assert picker._shown[0]==12 and not any(picker.tiles.chosen)
    click(picker, 0); picker.turn(9)
    assert picker._shown==[36,37,38,39] and picker._on.disabled and not picker._back.disabled
    picker._filter.value = 'people'
    assert all(picker.pool[i].people for i in picker._shown) and picker._first==0 and picker.tiles.chosen[1]
    picker._sort.value = 'near'
    assert [picker.known.near[i] for i in picker._shown][:3]==[6]*3
    picker._filter.value = 'chosen'
    assert sorted(picker._shown)==[2,12]==picker.chosen
    assert ':nth-child(n+3){display:none' in picker.tiles._sheet.value

def test_a_page_of_nothing_is_no_error(ref, pool):
    p = AuxPicker(ref, pool.where(True)); p._filter.value = 'things'
    assert 'none to show' in text(p._where) and p._shown==[]

def test_every_place_of_a_large_pool_can_be_reached(ref, pool):
    p = AuxPicker(ref, ImageSet([*pool]*3, 'large'), page=48); seen = list(p._shown)
    while not p._on.disabled: p._on.click(); seen += p._shown
    assert seen==list(range(120))

def test_a_choice_is_kept_and_found_again(picker, ref, pool, tmp_path):
    picker.chosen = [1,5,9]
    picker.save(tmp_path/'aux.json')
    renamed = ImageSet([Picture(f'new-{p.name}', data=p.data) for p in reversed(pool)], 'renamed')
    other = AuxPicker(ref, renamed).load(tmp_path/'aux.json')
    assert {p.sha for p in other.images}=={pool[i].sha for i in (1,5,9)} and other.sentence==''

def test_what_was_deleted_or_changed_since_is_said(on_disk, ref, tmp_path, picture):
    p = AuxPicker(ref, on_disk, chosen=[0,1,2,3]); p.save(tmp_path/'aux.json')
    on_disk[1].path.unlink(); on_disk[2].path.write_bytes(picture('other').data)
    again = AuxPicker(ref, ImageSet.from_folder(tmp_path/'pool')).load(tmp_path/'aux.json')
    assert [x.name for x in again.images]==[on_disk[0].name, on_disk[3].name]
    assert again.sentence==f'2 of 4 kept pictures are not chosen: {on_disk[1].name} is no longer there, {on_disk[2].name} has changed.'
    same = AuxPicker(ref, on_disk).load(tmp_path/'aux.json')                       # the pool was read before the file went
    assert len(same.chosen)==2 and f'{on_disk[1].name} is no longer there' in same.sentence

def test_a_picture_that_goes_while_one_chooses_is_said_and_costs_nothing_else(on_disk, ref, tmp_path):
    panels._made.clear()
    p = AuxPicker(ref, on_disk, chosen=[0,9], page=5)
    on_disk[9].path.unlink()
    p.turn()
    assert f'{on_disk[9].name} can no longer be read' in p.sentence and p.chosen==[0,9] and 'repeating-linear-gradient' in p.tiles._sheet.value
    p.save(tmp_path/'aux.json')
    assert f'{on_disk[9].name} can no longer be read' in p.sentence and len(json.loads((tmp_path/'aux.json').read_text())['pictures'])==1
    assert p.static().size[0]>100

@pytest.mark.parametrize('content,words', [('{', 'not a choice'), ('{"version": 9, "pictures": []}', 'newer styleboost'), ('[]', 'not a choice'), ('{"version": 1, "pictures": [{}]}', 'not a choice'), (None, 'cannot be read')])
def test_a_file_that_is_no_choice_is_said_in_the_widget_and_changes_nothing(picker, tmp_path, content, words):
    if content is not None: (tmp_path/'aux.json').write_text(content)
    picker.chosen = [4]; picker._file.value = str(tmp_path/'aux.json')
    next(b for b in buttons(picker.widget) if b.description=='Load').click()
    assert words in picker.sentence and picker.sentence in text(picker._spoke) and picker.chosen==[4]
    row = next(w for w in rows(picker.widget) if picker._file in w.children)      # beside the button that asked for it
    assert picker._spoke in row.children and not text(picker._below)

def test_a_place_that_cannot_be_written_to_is_said(picker, tmp_path):
    picker._file.value = str(tmp_path/'nowhere'/'aux.json')
    next(b for b in buttons(picker.widget) if b.description=='Save').click()
    assert 'could not be written' in picker.sentence

def rows(widget): return [r for c in getattr(widget, 'children', ()) for r in rows(c)] + ([widget] if hasattr(widget, 'children') else [])

def buttons(widget): return [b for c in getattr(widget, 'children', ()) for b in buttons(c)] + ([widget] if type(widget).__name__=='Button' else [])

def test_names_are_shown_as_they_are_written(ref, pool):
    evil = Picture('<b>x</b>.png', data=pool[0].data, caption='<script>alert(1)</script>')
    p = AuxPicker(ImageSet([evil]), ImageSet([evil])); p.say(evil.caption)
    assert not any('<script' in c.value for c in p.widget.children if hasattr(c, 'value'))

@pytest.mark.parametrize('error, words', [(StyleboostError('That cannot be done; do this.'), 'That cannot be done; do this.'), (OSError(28, 'No space left on device'), 'That failed (OSError: [Errno 28] No space left')])
def test_a_click_or_a_choice_that_fails_is_said_and_the_widget_lives_on(pool, ref, error, words):
    p = AuxPicker(ref, pool)
    def fails(*a): raise error
    real, p.tiles.show, p._count = p.tiles.show, fails, fails
    for act in (lambda: setattr(p._filter, 'value', 'people'), lambda: next(b for b in buttons(p.widget) if b.description=='›').click(), lambda: p.tiles.hit(0)):
        p.say()
        try: act()
        except OSError: pass                                                      # what is no refusal is in the log, too
        assert p.sentence.startswith(words)
    p.tiles.show = real; del p._count; p.choose(2); assert len(p.images)==2

# who shows people

def test_a_press_corrects_a_guess_then_confirms_it_then_takes_it_back(ref, pool, suggestion):
    p = AuxPicker(ref, pool, suggestion, page=40)
    seen = [(p.known.people[39], p.known.guessed[39], p.tiles.marks[39].description)]
    for _ in range(3):
        p.tiles.marks[39].click()
        seen.append((p.known.people[39], p.known.guessed[39], p.tiles.marks[39].description))
    assert seen==[(True,True,'● person?'), (False,False,'○ thing'), (True,False,'● person'), (True,True,'● person?')]
    assert p.chosen==[3,4,8]                                                       # it is no choice
    p.chosen = [39]; assert '1 with people, 0 without (1 of them guessed)' in squeezed(p._status) and (p.images.people, p.images.guessed)==([True],[True])
    for _ in range(2): p.tiles.marks[39].click()
    assert (p.images.people, p.images.guessed)==([True],[False]) and 'guessed' not in text(p._status)
    p.tiles.marks[38].click(); p.tiles.marks[38].click(); p.tiles.marks[38].click()
    assert p.tiles.marks[38].description=='?' and 'Nobody has said' in p.tiles.marks[38].tooltip

def test_what_somebody_said_can_be_changed_too(picker, ref):
    picker.tiles.marks[0].click()
    assert picker.known.people[0] is False and picker.pool[0].people is True       # the pool itself stays
    before, then = picker.ref.people, {True:False, False:None, None:True}
    picker.strip.buttons[0].value = True; picker.strip.marks[1].click()
    assert picker.ref.people==[then[before[0]], then[before[1]], *before[2:]]
    assert not any(picker.strip.chosen) and picker.ref.hash==ref.hash

def test_flags_are_kept_beside_the_pictures_and_everything_else_stays(on_disk, ref, refused):
    folder = on_disk[0].path.parent; file = folder/'metadata.jsonl'
    with file.open('a') as f: f.write('{"file_name": "gone.png", "text": "left alone", "mood": 7}\n')
    was = [json.loads(l) for l in file.read_text().splitlines()]
    p = AuxPicker(ref, on_disk, page=10)
    p.keep(); assert 'changed nothing' in p.sentence
    p.tiles.marks[0].click(); p.tiles.marks[1].click()                             # a person less, and one of whom nothing is said
    p.keep(); assert str(file) in p.sentence
    now = [json.loads(l) for l in file.read_text().splitlines()]
    assert now[0]==dict(was[0], people=False) and now[1]=={k:v for k,v in was[1].items() if k!='people'} and now[2:]==was[2:]
    assert ImageSet.from_folder(folder).people[:3]==[False,None,True]
    p.keep(); assert 'changed nothing' in p.sentence
    p.strip.marks[0].click(); p.keep(); assert 'no folder of their own' in p.sentence
    file.rename(folder/'Metadata.JSONL'); p.tiles.marks[2].click(); p.keep()           # no second file hides the first
    assert not file.exists() and ImageSet.from_folder(folder).people[2] is False
    (folder/'Metadata.JSONL').rename(folder/'metadata.csv'); p.tiles.marks[2].click()
    with refused('metadata.csv', 'people'): p.keep()
    assert not file.exists()

def test_guesses_are_kept_as_guesses_and_corrections_are_none(pool, picture, tmp_path):
    for name,set_ in (('pool', pool[:4]), ('style', pool[10:13])): ImageSet([replace(p, people=None) for p in set_], name).save(tmp_path/name)
    read = lambda name: ImageSet.from_folder(tmp_path/name)
    p = AuxPicker(read('style'), read('pool'))
    p.guess()
    assert '(3 of them guessed)' in squeezed(p._about)
    right = list(p.known.people)
    p.tiles.marks[0].click()                                                       # this guess was wrong
    p.chosen = [0, 1]; p.save_folder(tmp_path/'aux'); p.save(tmp_path/'aux.json')
    saved = read('aux')
    assert (saved.people, saved.guessed)==([not right[0], right[1]], [False, True]) and [bool(r.get('guessed')) for r in json.loads((tmp_path/'aux.json').read_text())['pictures']]==[False, True]
    p.keep(); assert ': 7 flags, 6 of them guessed' in p.sentence
    kept = read('pool')
    assert (kept.people, kept.guessed)==([not right[0], *right[1:]], [False, True, True, True]) and read('style').guessed==[True]*3
    p.keep(); assert 'changed nothing' in p.sentence
    q = AuxPicker(read('style'), kept)                                             # they are still guesses when they are read again
    assert q.known.guessed.tolist()==[False, True, True, True] and q.tiles.marks[1].description.endswith('?') and '(3 of them guessed)' in squeezed(q._about)
    q.tiles.marks[1].click(); q.keep()
    assert (read('pool').people[1], read('pool').guessed)==(not right[1], [False, False, True, True])

class Colours:
    "An encoder whose features are a picture's mean colour; it cannot tell people."
    name, people, embed_texts, person_line = 'colours', None, None, None
    def features(self, images): return torch.tensor([p.open().resize((1,1)).getpixel((0,0)) for p in images])/255
    def style_features(self, f): return f if isinstance(f, torch.Tensor) else self.features(f)

def test_an_encoder_that_cannot_tell_people_guesses_nothing(ref, pool):
    some = ImageSet([replace(p, people=None) for p in pool[:6]], 'pool')
    p = AuxPicker(ref, some, suggest(ref, some, 2, judge=Colours()))
    assert p.known.people.tolist()==[None]*6 and not any(p.known.guessed) and p.images.people==[None]*2

def test_flags_that_cannot_be_written_are_said(on_disk, ref, refused):
    file = on_disk[0].path.parent/'metadata.jsonl'
    p = AuxPicker(ref, on_disk, page=10); p.tiles.marks[0].click()
    file.write_text('{"file_name":\n')
    with refused('not a JSON object', 'metadata.jsonl'): p.keep()
    assert file.read_text()=='{"file_name":\n' and p.flags.known()!=p.flags.kept       # and nothing is lost

def test_the_judge_guesses_where_nobody_has_spoken_and_nowhere_else(ref, pool):
    p = AuxPicker(ref, pool, page=40)
    next(b for b in buttons(p.widget) if b.description=='Guess').click()
    assert p.known.guessed.tolist()==[False]*38+[True]*2 and p.known.people[:38].tolist()==pool.people[:38]
    assert 'a guess' in p.sentence and p.tiles.marks[39].description in ('● person?','○ thing?')
    assert not any(b.description=='Guess' for b in buttons(AuxPicker(ref.where(True), pool.where(True)).widget))

# more than a click

def test_shift_takes_all_from_the_last_click_to_this_one(picker):
    picker._sort.value = 'near'
    click(picker, 2); picker.shift.held = True; click(picker, 6)
    assert picker._chosen==set(picker._order[2:7]) and picker.tiles.chosen[:8]==[False]*2+[True]*5+[False]
    picker.turn(); click(picker, 1)
    assert picker._chosen==set(picker._order[2:14])                                 # over the edge of a page, too
    click(picker, 0)
    assert picker._chosen==set(picker._order[2:12])                                 # what is taken away goes as a range as well
    picker.shift.held = False; click(picker, 5)
    assert len(picker.chosen)==11

def test_a_choice_can_be_undone(picker, refused):
    click(picker, 1); picker.choose(9, 'half'); picker.clear()
    undo = next(b for b in buttons(picker.widget) if b.description=='Undo')
    undo.click(); assert len(picker.chosen)==9 and sum(picker.tiles.chosen)==9
    undo.click(); undo.click(); assert picker.chosen==[] and undo.disabled
    with refused('no earlier choice'): picker.undo()

def test_after_choosing_by_a_rule_one_sees_what_it_chose(picker):
    picker._n.value, picker._who.value, picker._by.value = 4, 'people', 'near'
    next(b for b in buttons(picker.widget) if b.description=='Choose').click()
    assert picker._filter.value=='chosen' and sorted(picker._shown)==picker.chosen and len(picker.chosen)==4

def test_captions_are_searched(picker):
    picker._search.value = 'P1 picture'
    assert [picker.pool[i].name for i in picker._shown]==[f'p{i}.png' for i in range(10, 20)]
    picker._search.value = 'submarine'; assert picker._shown==[]

def test_the_size_of_tiles_is_one_short_message(picker):
    sheets = changes(picker.tiles._sheet); picker._large.value = 192
    assert '--tile:192px' in picker.tiles._size.value and sheets==[]

def test_a_folder_is_what_training_takes_and_the_line_is_told(picker, tmp_path, refused):
    with refused('Nothing is chosen'): picker.save_folder(tmp_path/'aux')
    picker.chosen = [0,1,38]; picker.tiles.marks[0].click()
    picker.save_folder(tmp_path/'aux')
    again = ImageSet.from_folder(tmp_path/'aux')
    assert again.people==[False,False,None] and [p.sha for p in again]==[p.sha for p in picker.images]
    assert picker.sentence.endswith(f'my-style:  styleboost train --ref my-style --prior {tmp_path/"aux"} --out {tmp_path/"aux"}-run')
    with refused('is not empty'): picker.save_folder(tmp_path/'aux')

def test_the_line_that_is_told_trains(ref, pool, tmp_path):
    style = tmp_path/'the style'                                                   # a space, and folders that say what they hold
    for name,flag in (('people', True), ('things', False)): ref.where(flag).save(style/name)
    p = AuxPicker(ImageSet.from_folder(style), pool, chosen=[0, 1])
    p.save_folder(tmp_path/'my aux')
    command, *words = shlex.split(p.sentence.split(':  ')[1])
    assert command=='styleboost' and words[:3]==['train', '--ref', str(style)] and 'my-style' not in p.sentence
    done = CliRunner().invoke(app, [*words, '--steps', '1', '--batch', '1', '--no-samples', '--device', 'cpu'])
    assert done.exit_code==0, done.output
    assert Run(tmp_path/'my aux-run').recipe

@pytest.mark.parametrize('nearest, said', [(.8,''), (.5,''), (.25,'4.0 times as far'), (0,'')])
def test_a_pool_that_is_far_from_the_style_is_said(ref, pool, nearest, said):
    p = AuxPicker(ref, pool, measure=lambda s: dict(near=np.linspace(0, nearest, len(s))))
    assert (said in far_off(p.known)) if said else far_off(p.known)==''

# the stage

def test_the_stage_hides_names_and_takes_an_answer(pool):
    stage, a, b, heard = Stage(), pool[0].open(), pool[1].open(), []
    stage.observe(lambda c: heard.append(c.new), 'answer')
    stage.show([a, None], ['left','right'])
    assert stage.names==['left','right'] and stage.pictures[1]=='' and not stage.hidden
    stage.ask([a, b], ['A','B'])
    assert stage.hidden and stage.names==['A','B'] and stage.choices==['A','B']
    stage.answer = 'B'; stage.ask([b, a], ['A','B']); stage.answer = 'B'
    assert heard==['B','','B']                                                      # the same answer twice is heard twice
    assert Image.open(io.BytesIO(base64.b64decode(stage.pictures[0].split(',')[1]))).convert('RGB').tobytes()==b.tobytes()

def test_everything_works_without_anywidget():
    code = """import sys; sys.modules['anywidget'] = None
from styleboost.pictures.world import pool, style_ref
from styleboost.widgets.picker import AuxPicker
from styleboost.widgets.stage import Stage
p = AuxPicker(style_ref(people=2, things=2), pool('people')[:5]); p.tiles.buttons[1].value = True
s = Stage(); s.ask([None, None]); s.answer = 'A'
assert p.chosen==[1] and not s.alive and s.shown==p.shift.shown==[] and s.choices"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode==0, done.stderr

# watching

class Job:
    "Stands in for a training: writes a run's folder, a line every ten steps."
    def __init__(self, out, steps=40, fail=None, at=None): self.out, self.steps, self.fail, self.at, self.go, self.seconds, self.looks = Path(out), steps, fail, at, threading.Event(), 1., 0; self.go.set()
    def __call__(self, watch, preview):
        self.out.mkdir(exist_ok=True)
        binding = lambda role: dict(images=dict(name=role, hash='', files=['a.png']), prompt='a photo', weight=1., role=role)
        recipe = dict(name='job', base='tiny', method='full', steps=self.steps, batch=4, lr=1e-5, resolution=64, guidance=7., bindings=[binding('style'), binding('prior')], token='zwx')
        (self.out/'recipe.json').write_text(json.dumps(dict(seed=0, base_hash='', recipe=recipe)))
        run = Run(self.out)
        @contextmanager
        def look(): self.looks += 1; yield 'the model'
        for step in range(len(run.log)*10+10, self.steps+1, 10):
            assert self.go.wait(20)
            if step==self.at: raise self.fail
            line = dict(step=step, seconds=self.seconds*step, style=1/step, prior=2/step)
            with (self.out/'log.jsonl').open('a') as f: f.write(json.dumps(line)+'\n')
            stop = watch(line)
            if stop: return run
            preview(line, look)
        run.weights.parent.mkdir(exist_ok=True); run.weights.touch()
        return run

@pytest.fixture
def clock(monkeypatch):
    "A preview takes as many seconds as this says."
    c = types.SimpleNamespace(cost=0., now=0., time=lambda: c.now)
    def perf_counter(): c.now += c.cost/2; return c.now
    monkeypatch.setattr(monitor, 'sample', lambda model, prompts, seed, steps: [Image.new('RGB', (64,64), (len(prompts),seed,steps))]*len(prompts))
    c.perf_counter = lambda: perf_counter()
    return c

@pytest.fixture
def watched(tmp_path, clock):
    def make(name='run', every=10, **kw):
        job = Job(tmp_path/name, **kw)
        return TrainingMonitor(job, tmp_path/name, every=every), job
    return make

def test_previews_every_no_step_are_refused(watched, refused):
    with refused('every 0 steps'): watched(every=0)

def test_in_the_foreground(watched):
    m, job = watched()
    assert m.state=='ready' and 'Ready' in text(m._text)
    assert m.run() is m.result and m.state=='done' and (m.step, m.steps, m._bar.value, m._bar.max)==(40,40,40,40)
    assert list(m.previews)==[10,20,30,40] and m.losses['prior'][1]==(20,.1) and list(m.table().step)==[10,20,30,40]
    assert m.static().size[0]>4*64 and 'Done: 40 of 40 steps' in text(m._text) and m._curves.value.count('<svg')==2 and m._film.value.count('<img')==16

def test_stopped_in_the_background_it_keeps_its_work_and_goes_on(watched):
    m, job = watched()
    job.go.clear()
    assert m.start() is m and m.running and m._start.disabled and not m._halt.disabled
    m.stop(); m.stop()
    assert 'Stopping' in text(m._text)
    job.go.set()
    assert not m.wait().done and m.state=='stopped' and m.step==10 and m._start.description=='Go on'
    m.stop()
    assert m.state=='stopped' and 'Nothing is being trained' in m.sentence
    m._start.click(); m.wait()
    assert m.state=='done' and [l['step'] for l in m.lines]==[10,20,30,40]

def test_there_is_no_button_that_could_do_nothing(watched):
    m, job = watched()
    shown = lambda: [b.description for b in (m._start, m._halt) if b.layout.display!='none']
    assert shown()==['Start']
    seen = []
    m._film_now = lambda: seen.append(shown())
    m.run()
    assert seen==[[]]*4 and shown()==[]                                             # in the foreground, and when it is done
    m, job = watched('other'); job.go.clear(); m.start(); assert shown()==['Stop'] and 'sb-prepares' in m.widget._dom_classes
    m.stop(); assert shown()==[]
    job.go.set(); m.wait(); assert shown()==['Go on'] and 'sb-busy' not in m.widget._dom_classes

def test_a_curve_has_axes(watched):
    m, _ = watched(); m.run()
    labels = re.findall(r'<text[^>]*>([^<]*)</text>', m._curves.value)
    assert labels[-2:]==['10','40'] and float(labels[0])<float(labels[1]) and m._curves.value.count('<path')==2
    m.lines = [dict(step=i, seconds=i, style=1/i) for i in range(1, 5001)]; m._losses_now()
    assert len(m._curves.value)<6000                                                # however long the log is

def test_two_at_once_are_refused_and_the_first_goes_on(watched, refused):
    (m, job), (other, _) = watched(), watched('other')
    job.go.clear(); m.start()
    with refused('Another run is being trained'): other.run()
    with refused('Another run is being trained'): other.start()
    with refused('is being trained already'): m.start()
    assert other.state=='ready' and 'Another run' in text(other._below) and m.running
    job.go.set(); m.wait(); other.run()
    assert m.state==other.state=='done'

def test_colab_trains_in_the_foreground_only(watched, monkeypatch, refused):
    monkeypatch.setitem(sys.modules, 'google.colab', types.ModuleType('google.colab'))
    m, _ = watched()
    assert m._start.disabled
    with refused('Colab', 'run()'): m.start()
    assert m.run().done

@pytest.mark.parametrize('error', [StyleboostError('The loss is not a number; lower it.'), RuntimeError('out of cheese')])
def test_a_failure_is_said_and_raised_and_the_next_can_start(watched, error):
    m, _ = watched(fail=error, at=30)
    with pytest.raises(type(error)): m.run()
    assert m.state=='failed' and m.step==20 and str(error) in text(m._text)
    m.recipe.fail, m.recipe.at = None, None
    assert m.start().wait().done and m.state=='done' and m.error is None

def test_a_failure_in_the_background_is_raised_where_one_waits(watched):
    m, _ = watched(fail=RuntimeError('out of cheese'), at=10); m.start()
    with pytest.raises(RuntimeError): m.wait()

def test_interrupted_it_keeps_what_there_is(watched):
    m, _ = watched(fail=KeyboardInterrupt(), at=30)
    assert not m.run().done and m.state=='stopped' and 'Stopped: 20 of 40 steps' in text(m._text)

def test_interrupting_the_wait_stops_the_training(watched):
    m, job = watched(); job.go.clear(); m.start()
    join = m._thread.join
    def interrupted(seconds): m._thread.join = join; job.go.set(); raise KeyboardInterrupt
    m._thread.join = interrupted
    assert not m.wait().done and m.state=='stopped' and m.step==10

def test_what_is_noted_is_shown(watched, monkeypatch):
    m, job = watched()
    work = job.__call__
    m.recipe = lambda **kw: log.warning('Attention: <sdpa>') or work(**kw)
    m.run()
    assert m.notes==['Attention: <sdpa>'] and not any(isinstance(h, monitor.Notes) for h in log.handlers)

@pytest.mark.parametrize('cost', [.5, 5, 50, 1e6])
def test_previews_take_a_tenth_of_the_time_at_most(watched, clock, monkeypatch, cost):
    m, job = watched(every=None, steps=2000)
    clock.cost = cost*2
    monkeypatch.setattr(monitor, 'time', clock)
    shares = []
    watch = m._watch
    m._watch = lambda line: shares.append(m.spent/line['seconds']) or watch(line)
    m._due = lambda line, due=m._due: line['step']<m.steps and due(line)            # the last is drawn in any case
    m._cost = cost                                                                # as if one had been measured
    m.run()
    assert max(shares)<=.1 and len(m.previews)<=16 and (len(m.previews)>1)==(cost<=50)

def test_the_first_preview_waits_until_its_estimate_can_be_afforded(watched):
    m, _ = watched(every=None, steps=400); m.run()
    guess = 2*4*13/(3*8)                                                          # in steps: 4 prompts, 12 sampler steps and the decoder, 8 pictures a step
    assert min(m.previews)>=guess/.1 and min(m.previews)<=guess/.1+10+400/16

def test_a_preview_that_fails_does_not_stop_the_training(watched, monkeypatch):
    m, _ = watched()
    def sample(*a): raise RuntimeError('CUDA out of memory\nand more')
    monkeypatch.setattr(monitor, 'sample', sample)
    assert m.run().done and m.previews=={} and 'CUDA out of memory' in m.sentence and 'and more' not in m.sentence
    with pytest.raises(StyleboostError): m.static()

@pytest.mark.parametrize('error', [OSError('the disk is gone'), ValueError('no such size'), KeyError('a')])
def test_nothing_that_shows_a_training_ends_it(watched, monkeypatch, said, error):
    "A preview, the curves, the notes: each raises once the training runs."
    def fails(*a, **kw): raise error
    m, job = watched()
    monkeypatch.setattr(monitor, 'sample', fails)
    monkeypatch.setattr(monitor, 'spark', fails)
    m._noted = fails
    assert m.run().done and m.state=='done' and m.error is None and m.step==40
    assert 'No more previews' in m.sentence and any('no longer shown' in s and type(error).__name__ in s for s in said())

def test_time_left_counts_from_where_it_went_on(watched):
    m, job = watched(); job.go.clear(); m.start(); m.stop(); job.go.set(); m.wait()
    job.seconds = 2.                                                              # slower now: 20 s for ten steps and 20 more before
    left, m._told = [], 0
    m._tell = lambda tell=m._tell: left.append(m._left()) or tell()
    m.run()
    assert [x for x in left if x is not None and x>0][0]==pytest.approx((40-10)/10*20)

def digests(run): return {k:v.numpy().tobytes() for k,v in load_file(run.weights).items()}

def test_a_real_run_in_the_background_stopped_and_gone_on_with_is_the_straight_run(base, quick, tmp_path):
    recipe = quick(steps=4, checkpoint=100)
    straight = train(recipe, tmp_path/'straight', base=base, progress=False, every=1, device='cpu')
    m = TrainingMonitor(recipe, tmp_path/'run', base=base, prompts=['woman'], every=1, steps_sampled=2, lines=1, device='cpu')
    m._watch = lambda line, watch=m._watch: (line['step']==2 and m.stop(), watch(line))[1]
    assert not m.start().wait().done and m.step==2 and m.result.checkpoint.name=='step-000002'
    assert m.start().wait().done and digests(m.result)==digests(straight) and list(m.previews)==[0,1,3,4]
    drawn = sample(base, ['woman'], 0, 2)[0]
    assert m.previews[0][0].tobytes()==drawn.tobytes() and '<b>before</b>' in m._film.value    # what the untouched base draws

def test_interrupted_in_the_middle_of_a_checkpoint_nothing_is_lost(base, quick, tmp_path, monkeypatch):
    recipe = quick(steps=4, checkpoint=2)
    straight = train(recipe, tmp_path/'straight', base=base, progress=False, every=1, device='cpu')
    save, calls = safetensors.torch.save_file, []
    def interrupted(*args, **kw):
        if not calls: calls.append(os.kill(os.getpid(), signal.SIGINT))
        return save(*args, **kw)
    monkeypatch.setattr(safetensors.torch, 'save_file', interrupted)
    m = TrainingMonitor(recipe, tmp_path/'run', base=base, prompts=(), device='cpu')
    was = signal.signal(signal.SIGINT, signal.default_int_handler)          # a shell's background jobs are deaf to Ctrl-C
    try: m.run()
    finally: signal.signal(signal.SIGINT, was)
    assert calls and m.state=='stopped' and {f.name for f in m.result.checkpoint.iterdir()}=={'weights.safetensors','optimizer.safetensors','state.json'}
    assert m.run().done and digests(m.result)==digests(straight)

# comparing

class Fake:
    "A study as a viewer sees it."
    folder, arms, seeds, steps, ref, chosen = Path('study'), ['none','generated','aux'], (0,1), (50,100,200), None, {}
    def __init__(self, n=10, size=64, picture=None): self.failed, self.lost, self.n, self.size, self.asked = {}, {}, n, size, []
    def prompts(self, split='test'): return [] if split!='test' else [Prompt(f'person {i}', True, Picture(f't{i}', data=png(self.draw('truth',0,0,i)))) if i<self.n//2 else Prompt(f'thing {i}', False) for i in range(self.n)]
    def draw(self, arm, seed, step, i):
        rng = np.random.default_rng([sum(map(ord, arm)), seed, step, i])
        return Image.fromarray(rng.integers(0, 256, (4,4,3), dtype=np.uint8)).resize((self.size,self.size), Image.BICUBIC)
    def images(self, arm, seed, step, split='test'):
        self.asked.append((arm, seed, step))
        if arm=='base': seed = step = 0
        if (arm, seed) in self.failed: return None
        what = self.lost.get((arm, seed, step), self.lost.get(arm, ()))
        if isinstance(what, Exception): raise what
        if what is None: return None
        return [None if i in what else self.draw(arm, seed, step, i) for i in range(self.n)]
    def table(self):
        rows = [dict(arm=a, seed=s, step=t, split='test', group=g, metric=m, value=.1*len(a)+t/1000, low=.1*len(a)+t/1000-.02, high=.1*len(a)+t/1000+.02, n=self.n) for a in self.arms for s in self.seeds for t in self.steps for g in ('all','people','things') for m in ('kid','style')]
        return pd.DataFrame(rows+[dict(arm='base', seed=None, step=None, split='test', group='all', metric='kid', value=.9, low=None, high=None, n=self.n)])

@pytest.fixture
def study(): return Fake()

def test_columns_rows_and_what_is_shown_first(study):
    c = Compare(study, rows=6)
    assert c.columns==['truth','base','none','generated','aux']==c.arms and (c.seed, c.step, c.group)==(0, 200, 'all')
    assert c._at==list(range(6)) and 'compare' in c.widget._dom_classes
    c.turn()
    assert c._at==[6,7,8,9] and c._on.disabled and '7–10 of 10' in text(c._where)

@pytest.mark.parametrize('group,at', [('people',[0,1,2,3,4]), ('things',[5,6,7,8,9])])
def test_prompts_with_and_without_people(study, group, at):
    c = Compare(study, rows=6); c.turn(); c.group = group
    assert c._at==at and c.prompt in at and f'person {at[0]}' in text(c._labels) or group=='things'

def test_a_step_changes_the_arms_and_leaves_the_base_alone(study):
    c = Compare(study)
    sent = {k: changes(t._sheet) for k,t in c._tiles.items()}
    c.step = 50
    assert {k:len(v) for k,v in sent.items()}==dict(truth=0, base=0, none=1, generated=1, aux=1)
    assert c.pictures('aux')[3].tobytes()==study.draw('aux',0,50,3).tobytes()

def test_seed_arms_and_chosen_steps(study):
    study.chosen = dict(none=50, generated=100, aux=200)
    c = Compare(study, arms=['base','aux'])
    assert c.at_chosen and c.arms==['base','aux'] and c._columns['none'].layout.display=='none'
    c.seed = 1
    assert c.pictures('aux')[0].tobytes()==study.draw('aux',1,200,0).tobytes()
    c.arms = ['none','generated','aux']
    assert [c.step_of(a) for a in c.arms]==[50,100,200] and 'step 100' in text(c._heads['generated'])
    assert c.pictures('none')[0].tobytes()==study.draw('none',1,50,0).tobytes()
    c.step = 100
    assert not c.at_chosen and c.pictures('none')[0].tobytes()==study.draw('none',1,100,0).tobytes()

def test_validation_prompts_have_every_step_and_test_prompts_the_chosen_one(study, tmp_path):
    everything, study.chosen = study.images, dict(none=50, generated=100, aux=200)
    study.prompts = lambda split: [Prompt(f'{split} {i}', i%2==0) for i in range(dict(test=10, validation=4)[split])]
    def images(arm, seed, step, split='test'):
        if arm!='base' and split=='test' and step!=study.chosen[arm]: return None
        ims = everything(arm, seed, step); return ims if split=='test' else ims[::-1][:4]
    study.images = images
    c = Compare(study)
    assert c.split=='test' and c.sentence=='' and c.pictures('none')[0].tobytes()==study.draw('none',0,50,0).tobytes()
    c.step = 50
    assert c.sentence=='Not drawn at this step: generated, aux. Test prompts are drawn at the chosen steps alone; the validation prompts have all.'
    c.split = 'validation'
    assert c.sentence=='' and len(c.prompts)==4 and 'validation 0' in text(c._labels) and c.pictures('aux')[0].tobytes()==study.draw('aux',0,50,9).tobytes()
    assert '0.350' not in text(c._numbers)                                          # those are of the test prompts
    d = cells(c.export(tmp_path/'page.html'))
    assert 'test|none|0|50' in d['sheets'] and 'test|none|0|100' not in d['sheets'] and 'validation|none|0|100' in d['sheets'] and d['splits']==['test','validation']

def test_pictures_are_asked_for_once(study):
    c = Compare(study); n = len(study.asked)
    c.turn(); c.turn(-1); c.group = 'people'; c.step = 50; c.step = 200
    assert len(study.asked)==n+3
    c.refresh()
    assert len(study.asked)>n+3

def test_the_last_two_that_were_clicked_lie_on_each_other(study):
    c = Compare(study)
    for k in ('none','aux'): c._tiles[k].buttons[2].value = not c._tiles[k].buttons[2].value
    assert c.prompt==2 and c.pair==('none','aux') and c.blend==100
    near = lambda a, b: np.abs(np.asarray(a, int)-np.asarray(b, int)).max()<=1
    a, b = (study.draw(k,0,200,2).resize((320,320), Image.NEAREST) for k in ('none','aux'))
    assert near(c.blended(), b)
    c.flip(); assert c.blend==0 and near(c.blended(), a)
    c.flip(); c.blend = 50; assert near(c.blended(), Image.blend(a, b, .5))
    assert c._tiles['aux'].chosen[2] and c._tiles['none'].chosen[2] and not c._tiles['base'].chosen[2]
    before = c._picture.value; c.blend = 0
    assert c._picture.value!=before and near(Image.open(io.BytesIO(c._picture.value)), a)

def test_the_large_picture_names_its_arm_and_the_slider_its_ends(study):
    c = Compare(study); c.look(1, 'none'); c.look(1, 'aux')
    assert [text(e).strip() for e in c._ends]==['none','aux'] and text(c._whose).strip()=='aux' and c.stage.names==['none','aux']
    c.flip(); assert text(c._whose).strip()=='none' and c.stage.blend==0
    c.stage.blend = 30; assert text(c._whose).strip()=='none 70 %, aux 30 %' and c.blend==30   # as the browser's slider does

def test_where_the_stage_is_shown_no_plain_picture_is_made(study):
    c = Compare(study)
    assert c._live.layout.display=='none' and c._plain.layout.display!='none'
    c.stage.alive = True
    assert c._live.layout.display!='none' and c._plain.layout.display=='none'
    sent, staged = changes(c._picture), []
    c.stage.observe(lambda change: staged.append(change.new), 'pictures')
    c.look(2, 'none'); c.look(2, 'aux'); c.blend = 40; c.flip()
    assert sent==[] and len(staged)==2
    pixels = [Image.open(io.BytesIO(base64.b64decode(u.split(',')[1]))).convert('RGB').tobytes() for u in c.stage.pictures]
    assert pixels==[study.draw(k,0,200,2).tobytes() for k in ('none','aux')]

def test_one_prompt_by_every_seed(study):
    c = Compare(study); c.look(3, 'base'); c.look(3, 'aux')
    assert c._seeds.value==''
    c._all_seeds.value = True
    assert re.findall('seed ([01])<', c._seeds.value)==['0','1'] and 'untouched' not in text(c._seeds)
    c.look(3, 'none'); assert c._seeds.value.count('<img')==4
    c._all_seeds.value = False; assert c._seeds.value==''

def test_a_step_slider_that_does_nothing_says_why(study):
    c = Compare(study); assert not c._step.disabled and text(c._why_step).strip()==''
    study.chosen = dict(none=50, generated=100, aux=200)
    c = Compare(study); assert not c._step.disabled and 'each arm at its own step' in text(c._why_step)
    study.prompts = lambda split: [Prompt(f'{split} {i}') for i in range(10)]
    c = Compare(study); assert c._step.disabled and 'show validation' in text(c._why_step)
    c.split = 'validation'; assert not c._step.disabled
    study.steps = (50,); assert 'the only one' in text(Compare(study)._why_step)

def test_what_two_recipes_say_differently_stands_below_their_pictures(study, ref, pool):
    recipes = dict(none=no_prior(ref, steps=100), aux=with_styleboost(ref, pool, n=7, steps=200))
    study.info = dict(arms={k:json.loads(json.dumps(r.to_dict())) for k,r in recipes.items()})
    c = Compare(study); c.look(0, 'none'); c.look(0, 'aux')
    rows = dict((k, (a, b)) for k,a,b in recipe_rows(*[study.info['arms'][k] for k in ('none','aux')]))
    assert rows['steps']==('100','200') and rows['prior pictures'][0]=='–' and '7 pictures' in rows['prior pictures'][1] and 'lr' not in rows
    assert 'steps 100 200' in squeezed(c._differs)
    c.look(0, 'base'); assert c._differs.value==''                                  # nobody trained it
    close = c._sides.children[1].children
    assert close.index(c._live)<close.index(c._plain)<close.index(c._differs)        # the table comes and goes, and the pair keeps its place

def test_the_close_up_hangs_beside_the_columns_where_both_have_room_and_right_below_them_elsewhere(study):
    c, other = Compare(study), Compare(study)
    room = lambda c: int(re.search(r'min-width:(\d+)px', c._sizes.value)[1])
    wide, other.arms = room(c), ['none','aux']
    assert wide<=848 and room(other)<wide and '--n:5' in c._sizes.value             # 848: JupyterLab in a window of 1280 pixels
    assert c._own!=other._own and c._own in c.widget._dom_classes and f'.sb.{c._own}' in c._sizes.value
    assert ['sb-pictures' in w._dom_classes for w in c._sides.children]==[True, False, False] and 'sb-close' in c._sides.children[1]._dom_classes

def test_a_blend_sends_one_picture(study):
    c = Compare(study)
    sheets = [changes(t._sheet) for t in c._tiles.values()]
    for v in range(0, 101, 20): c.blend = v
    assert not any(sheets)

def test_numbers_are_those_of_the_pictures_above_with_intervals(study):
    c = Compare(study)
    assert '0.50 0.48–0.52' in squeezed(c._numbers) and 'KID' in text(c._numbers)          # aux at 200
    c.step = 50
    assert '0.350 0.330–0.370' in squeezed(c._numbers) and '0.48' not in text(c._numbers)
    assert '0.900 no interval' in squeezed(c._numbers)
    c.group = 'people'
    assert '0.900' not in text(c._numbers)

def test_a_style_that_is_not_told_from_others_is_said(study, tmp_path):
    plain = study.table()
    for low,said in ((.1, False), (-.1, True)):
        gap = dict(arm='base', seed=None, step=None, split='test', group='all', metric='style_gap', value=.2, low=low, high=.4, n=study.n)
        study.table = lambda: pd.DataFrame([*plain.to_dict('records'), gap])
        c = Compare(study)
        page = c.export(tmp_path/'page.html').read_text('utf-8')
        assert all(('does not tell this style from others: 0.20' in where)==said for where in (c.sentence, page))

def test_a_study_without_pictures_says_so_and_shows_them_when_they_come(study):
    study.lost = dict.fromkeys(('base', *study.arms))
    c = Compare(study)
    assert 'run the study first' in c.sentence and c.blended() is None or c.pair
    with pytest.raises(StyleboostError): Compare(types.SimpleNamespace(**{**vars(Fake), 'failed':{}, 'prompts':lambda split: [], 'table': study.table, 'folder': study.folder}))
    study.lost = {}; c.refresh()
    assert c.sentence=='' and c.pictures('aux')[0]

def test_an_arm_that_failed_says_why_and_the_others_are_shown(study):
    study.failed['generated',0] = 'The device ran out of memory.'
    c = Compare(study); c.look(0, 'generated')
    assert c.sentence=='generated, seed 0: The device ran out of memory.' and 'failed' in text(c._heads['generated']) and c.pictures('aux')[0]
    c.seed = 1
    assert c.sentence=='' and 'failed' not in text(c._heads['generated'])

def test_a_picture_deleted_since_is_a_gap_with_a_sentence(study):
    study.lost['aux',0,200] = (1,3)
    c = Compare(study)
    assert 'aux lacks 2 of its 10 pictures.' in c.sentence and 'repeating-linear-gradient' in c._tiles['aux']._sheet.value
    c.look(1, 'none'); c.look(1, 'aux')
    assert c.blended() is not None
    assert c.static().size[0]>5*64
    study.lost['aux',0,100] = StyleboostError('aux/0003.png can no longer be read; put it back.'); c.step = 100
    assert 'aux/0003.png can no longer be read' in c.sentence and c.pictures('none')[0]
    study.lost = {}; c.refresh(); assert c.sentence==''

def test_unknown_arms_are_refused(study, refused):
    c = Compare(study)
    with refused('no arm', 'generated'): c.arms = ['nobody']
    assert len(c.arms)==5

def cells(path):
    "What a page holds."
    return json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', path.read_text('utf-8'), re.S)[1])

# voting

@pytest.fixture
def voted(tmp_path, ref):
    "A study with a folder and chosen steps, as a voter sees it."
    study = Fake(8)
    study.folder, study.ref, study.chosen = tmp_path/'study', ref, dict(none=50, generated=100, aux=200)
    study.info = dict(style=dict(name='x', test=[dict(text=p.text, people=p.people) for p in study.prompts()]), sampler={}, arms={a: {} for a in study.arms}, seeds=[0,1], base=dict(hash='1'))
    study.at_chosen = lambda split: study.table()[lambda t: t.arm.ne('base')&t.step.eq(t.arm.map(study.chosen))]
    return study

def prefer(vote, arm, n):
    "Gives an arm every vote."
    for _ in range(n):
        b = vote.ballot
        side = {b.left: 'left', 'b' if b.left=='a' else 'a': 'right'}
        for q in QUESTIONS: vote.answer(q, side['a'] if b.a==arm else side['b'] if b.b==arm else 'tie')

def test_a_vote_shows_two_pictures_on_the_sides_of_the_ballot_and_no_name(voted):
    v = Vote(voted, 'anna', size=64)
    for _ in range(4):
        b = v.ballot
        left, right = (b.a, b.b) if b.left=='a' else (b.b, b.a)
        for shown,arm in ((v._left, left), (v._right, right)):
            drawn = voted.draw(arm, b.seed, v.arms[arm], b.prompt) if arm!='base' else voted.draw('base', 0, 0, b.prompt)
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(shown.value))), np.asarray(drawn))
        said = ' '.join(w.value for w in v._pair.children if hasattr(w, 'value'))
        assert not any(a in said for a in ('none','generated','aux'))
        v.next()

def test_answers_are_kept_at_once_and_go_on_where_they_were(voted):
    v = Vote(voted, 'anna')
    prefer(v, 'aux', 30)
    assert v.count==30 and list(voted.folder.rglob('*.json'))==[voted.folder/'votes'/'anna.json'] and len(votes_of(voted))==60
    again = Vote(voted, 'anna')
    assert again.count==30 and again.ballot==v.ballot
    again.undo(); assert again.count==29 and len(votes_of(voted))==58
    assert vote_standings(voted).arm[0]=='aux' and 'aux' in again.result()
    other = Vote(voted)
    assert other.voter.startswith('anonymous-') and other.count==0
    other._name.value = 'anna'; assert other.count==29

def test_both_questions_are_answered_before_the_next_pair(voted, refused):
    v = Vote(voted, 'anna'); b = v.ballot
    v.answer('style', 'left'); assert v.ballot==b and not voted.folder.exists()
    v.answer('style', 'right'); v.answer('prompt', 'tie')
    assert v.ballot!=b and dict(zip(votes_of(voted).question, votes_of(voted).answer))==dict(style='b' if b.left=='a' else 'a', prompt='tie')
    with refused('left, tie, right'): v.answer('style', 'up')

def test_a_pair_with_a_picture_that_is_gone_is_not_asked(voted):
    voted.lost['aux'] = tuple(range(1, 8))
    v, seen = Vote(voted, 'anna'), []
    while v.ballot: seen.append(v.ballot); v.next()
    assert {b.prompt for b in seen if 'aux' in (b.a, b.b)}=={0} and 'every pair' in v.sentence

def test_compare_opens_a_vote_in_place_of_the_columns_and_shows_it_below_the_metrics(voted):
    c = Compare(voted)
    assert not any(c.voted.values()) and 'by vote' not in text(c._numbers)
    panel = c.vote('anna')
    assert c._sides.layout.display=='none' and c._booth.children==(panel.widget,)
    assert {w.layout.display for w in c._choices}=={'none'} and c._voting.description=='Back to the pictures'   # a vote has its own prompts
    prefer(panel, 'aux', 30)
    c._voting.click()
    assert c._sides.layout.display is None and c._booth.children==() and c._voting.description=='Vote without names'
    assert {w.layout.display for w in c._choices}=={None}
    assert 'more in the style, by vote' in text(c._numbers) and set(c.voted['all'])=={'base', *voted.arms}
    share = c.voted['people']['aux']['vote_style_rate']
    c.group = 'people'; assert f'{share[0]:.0%}' in text(c._numbers) and share[1]<=share[0]<=share[2]
    c.step = 100; assert 'by vote' not in text(c._numbers)                        # votes are about the chosen steps

def test_the_result_stands_beside_its_button_and_so_does_why_there_is_none(voted):
    v = Vote(voted, 'anna')
    name = v.widget.children[1]
    press = next(b for b in name.children if getattr(b, 'description', '')=='Result')
    press.click(); assert 'vote' in v.sentence and v.sentence in text(name.children[-1]) and v._below.value==''
    prefer(v, 'aux', 12)
    press.click(); assert 'aux' in text(v._result) and v.widget.children.index(v._result)<v.widget.children.index(v._pair)
    press.click(); assert v._result.value==''

def test_votes_of_another_study_are_said_and_the_rest_is_shown(voted):
    prefer(Vote(voted, 'anna'), 'aux', 12)
    voted.info['sampler'] = dict(steps=9)
    c = Compare(voted)
    assert 'votes of another study' in c.sentence and c.voted=={} and 'anna.json' in c.sentence and c.pictures('aux')[0] is not None

def test_runs_have_no_folder_for_votes(study, refused, tmp_path):
    assert not Compare(study).votable
    with refused('folder of a study'): Vote(study)

def test_the_page_asks_when_there_is_a_study(voted, study, tmp_path):
    path = Compare(voted).export(tmp_path/'page.html')
    d, html = cells(path), path.read_text('utf-8')
    assert d['vote']['study']==study_key(voted.info) and 'ref' in d['sheets'] and 'id="blind"' in html and html.count('<script')==2
    plain = Compare(study).export(tmp_path/'plain.html')
    assert cells(plain)['vote'] is None and 'id="blind"' not in plain.read_text('utf-8') and 'class Voting' not in plain.read_text('utf-8')

EVIL = 'It </script> broke <!--<script> and <SCRIPT/x.'

def test_the_page_holds_every_picture_and_number(study, tmp_path):
    study.chosen = dict(none=50, generated=100, aux=200)
    study.lost['aux',1,50] = (2,); study.failed['none',1] = EVIL
    path = Compare(study).export(tmp_path/'page.html')
    d, html = cells(path), path.read_text('utf-8')
    assert len(re.findall('<script', html, re.I))==2 and '<!--' not in html       # what is inside neither ends a script nor keeps it open
    assert set(d['sheets'])=={'test|truth','test|base', *(f'test|{a}|{s}|{t}' for a in study.arms for s in (0,1) for t in study.steps if (a,s)!=('none',1))}
    assert d['missing']['test|aux|1|50']==[2] and d['missing']['test|truth']==[5,6,7,8,9] and d['failed']=={'none|1':EVIL} and d['chosen']==study.chosen
    sheet = Image.open(io.BytesIO(base64.b64decode(d['sheets']['test|aux|1|200'].split(',')[1]))).convert('RGB')
    got = sheet.crop((64,64,128,128))                                             # the ninth: second row, second column
    assert np.abs(np.asarray(got, float)-np.asarray(study.draw('aux',1,200,9), float)).mean()<12
    assert '0.48–0.52' in d['numbers']['test|all|0|200'] and '0.43–0.47' in d['numbers']['test|all|0|chosen'] and not re.search(r'(src|href)="(?!data:)', html)

def test_a_large_study_fits_on_a_page(tmp_path):
    study = Fake(40); study.arms, study.seeds, study.steps, study.chosen = list('abcd'), (0,1,2), (50,100,200,400), {}
    path = Compare(study).export(tmp_path/'page.html')
    assert path.stat().st_size<=5e6 and len(cells(path)['sheets'])==2+4*3*4

def test_a_page_that_would_be_too_heavy_gets_smaller_pictures_and_says_so(study, tmp_path, said, refused):
    study.size = 128; c = Compare(study)
    path = c.export(tmp_path/'page.html', limit=150_000)
    assert path.stat().st_size<=150_000 and 'pixels wide' in said()[-1]
    with refused('do not fit'): c.export(tmp_path/'none.html', limit=40_000)
    assert not (tmp_path/'none.html').exists()

def test_pages_of_nothing_or_to_nowhere_are_refused(study, tmp_path, refused):
    with refused('could not be written'): Compare(study).export(tmp_path/'no'/'page.html')
    study.lost = dict.fromkeys(('base', *study.arms)); study.prompts = lambda split: [Prompt('a')]*10 if split=='test' else []
    with refused('no pictures to export'): Compare(study).export(tmp_path/'page.html')

def test_a_run_that_is_unfinished_or_gone_is_an_arm_that_failed(tmp_path):
    Job(tmp_path/'half')(lambda line: True, lambda *a: None)
    c = Compare.of_runs([tmp_path/'half', tmp_path/'nowhere'], ['a woman'], steps_sampled=1)
    assert 'is no run' in c.study.failed['nowhere',0] and 'not finished' in c.study.failed['job',0]

def test_runs_of_one_name_stand_beside_each_other(tmp_path, refused):
    for n in 'abc': (tmp_path/n).mkdir(); Job(tmp_path/n/'job')(lambda line: True, lambda *a: None)
    c = Compare.of_runs([tmp_path/n/'job' for n in 'abc'], ['a woman'], steps_sampled=1)
    assert len(c.study.arms)==3 and str(tmp_path/'b'/'job') in c.study.arms
    with refused('no runs'): Compare.of_runs([], ['a woman'])

def test_drift_of_runs_is_drawn_where_it_is_asked_for(ref, base, tmp_path, refused):
    run = train(no_prior(ref, method='lora', steps=2, batch=1, lr=.05), tmp_path/'one', base=base, progress=False, device='cpu')
    asked = [Prompt(f'{w} {i}', people=w=='woman') for w in ('woman','dog') for i in range(2)]
    kw = dict(reference=ref, steps_sampled=1, device='cpu')
    with refused('Drift needs 4 prompts', 'has 2'): Compare.of_runs([run], asked, **kw, drift=1)
    with refused('give them as reference'): Compare.of_runs([run], asked, drift=2)
    plain, c = (Compare.of_runs([run], asked, **kw, drift=n) for n in (0, 2))
    of = lambda c, arm: {r.metric: r.value for r in c.table[(c.table.arm==arm)&(c.table.group=='all')].itertuples()}
    assert of(c, 'none')['drift']>0 and {'leak','class_drift'}<=of(c, 'none').keys() and 'drift' not in of(c, 'base') and 'drift' not in of(plain, 'none')
    assert 'drift' in text(c._numbers) and 'leak' in text(c._numbers) and 'drift' not in text(plain._numbers) and 'style' in text(plain._numbers)
    assert 'drift' in cells(c.export(tmp_path/'page.html'))['numbers']['test|all|0|2']
