"The widgets in JupyterLab, in a real browser: what is clicked changes real pixels and Python's state. Needs Chromium, see .ci/run."

from types import SimpleNamespace

import pandas as pd, pytest

playwright = pytest.importorskip('playwright.sync_api', reason='playwright is not installed; the dev extra brings it')
pytest.importorskip('jupyterlab', reason='JupyterLab is not installed; the lab extra brings it')

from lab import CHROMIUM, Kernel, chromium, eventually, jupyterlab, open_and_run, write_notebook

if not CHROMIUM: pytest.skip('Chromium is not installed; `apt-get install chromium` brings it', allow_module_level=True)

CELLS = ['''
from dataclasses import replace
from pathlib import Path
from styleboost.pictures.images import ImageSet
from styleboost.bases.load import load_base
from styleboost.training.recipes import no_prior
from styleboost.widgets.picker import AuxPicker
from styleboost.widgets.compare import Compare
from styleboost.widgets.monitor import TrainingMonitor
from styleboost.pictures.world import pool, style_ref, prompts
base = load_base('tiny')
style = ImageSet([replace(p, guessed=True) for p in style_ref()])   # the longest that stands under a picture is a guess
picker = AuxPicker(style, pool('people')[:30]+pool('things')[:30], page=24)
picker''', 'picker', '''
recipe = no_prior(style_ref(people=3, things=3), steps=400, batch=1, checkpoint=400)
monitor = TrainingMonitor(recipe, Path('run'), base=base, prompts=['woman farmer'], every=1, steps_sampled=2, lines=1, device='cpu')
monitor''', '''
import io
import numpy as np, pandas as pd
from PIL import Image
from types import SimpleNamespace
from styleboost.pictures.prompts import Prompt
sets = dict(base=pool('planets'), none=pool('open-peeps'), aux=pool('micah'))
study = SimpleNamespace(folder=Path('study'), arms=['none','aux'], seeds=(0,), steps=(10,20), failed={}, chosen={}, ref=None, prompts=lambda split: [Prompt(f'person {i}', i%2==0) for i in range(8)] if split=='test' else [],
    images=lambda arm, seed, step, split: [p.open() for p in sets[arm][(0 if arm=='base' else step):][:8]],
    table=lambda: pd.DataFrame([dict(arm=a, seed=0, step=s, split='test', group='all', metric='kid', value=s/100, low=s/100-.01, high=s/100+.01, n=8) for a in ('none','aux') for s in (10,20)]))
compare = Compare(study, rows=4)
compare''']

@pytest.fixture(scope='module')
def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp('lab')
    write_notebook(folder/'widgets.ipynb', CELLS)
    with jupyterlab(folder) as (url, runtime), chromium(viewport=dict(width=1280, height=800)) as (page, outside):
        open_and_run(page, f'{url}/NB/widgets.ipynb')
        page.locator('.compare .sb-tile').first.wait_for()
        yield page, Kernel(runtime)
        assert outside==[]

PIXELS = '''async e => {
    const css = e.tagName=='IMG' ? null : getComputedStyle(e, '::before').backgroundImage, i = new Image();
    i.src = css ? css.slice(5,-2) : e.src; await i.decode();
    const c = Object.assign(document.createElement('canvas'), {width: i.naturalWidth, height: i.naturalHeight}), x = c.getContext('2d');
    x.drawImage(i, 0, 0); let sum = 0, h = 0; for (const v of x.getImageData(0, 0, c.width, c.height).data) { sum += v; h = (h*31+v)|0 }
    return [i.naturalWidth, sum/(c.width*c.height*4), h]}'''   # how wide, how light, and a hash of every pixel

def test_choosing(lab):
    page, kernel = lab
    first, second = (page.locator('.aux-picker').nth(i) for i in (0,1))
    tiles, others = (x.locator('.sb-pool .sb-tile:visible') for x in (first, second))
    playwright.expect(tiles).to_have_count(24)
    assert all(w>=32 and 5<light<255 for w,light,_ in (tiles.nth(i).evaluate(PIXELS) for i in range(24)))
    style = first.locator('.sb-strip .sb-tile:visible')
    assert style.count()==20 and all(5<style.nth(i).evaluate(PIXELS)[1]<255 for i in range(20))
    tiles.nth(2).click(); tiles.nth(5).click()
    playwright.expect(first.locator('.sb-count')).to_contain_text('2 chosen')
    playwright.expect(second.locator('.sb-count')).to_contain_text('2 chosen')             # the second view keeps step
    assert kernel('picker.chosen')==[2,5] and kernel('len(picker.images)')==2
    playwright.expect(second.locator('.sb-pool .sb-tile.mod-active')).to_have_count(2)
    others.nth(2).click()
    playwright.expect(first.locator('.sb-count')).to_contain_text('1 chosen')
    before = tiles.nth(0).evaluate(PIXELS)
    first.get_by_role('button', name='›').click()
    playwright.expect(first.locator('.sb-pager')).to_contain_text('25–48 of 60')
    eventually(lambda: tiles.nth(0).evaluate(PIXELS)!=before)
    assert kernel('picker.chosen')==[5]
    first.get_by_role('button', name='‹').click()
    playwright.expect(first.locator('.sb-pager')).to_contain_text('1–24 of 60')
    where = tiles.nth(9).bounding_box()
    tiles.nth(9).click(); kernel.until('picker.chosen', [5,9])
    tiles.nth(12).click(modifiers=['Shift']); kernel.until('picker.chosen', [5,9,10,11,12])  # Shift takes all from the last one
    flag = first.locator('.sb-pool .sb-flag').first
    said = flag.inner_text(); flag.click(); playwright.expect(flag).not_to_have_text(said)
    assert kernel('picker.flags.said[0]')==(None if 'thing' in said else False)
    flag.click(); flag.click()
    first.locator('.sb-rule select').first.select_option('people'); first.get_by_role('button', name='Choose').click()
    playwright.expect(first.locator('.sb-count')).to_contain_text('20 chosen of 60')
    playwright.expect(first.locator('.sb-count')).to_contain_text('20 with people, 0 without')
    playwright.expect(first.locator('.sb-said.warn').first).to_contain_text('One-sided')
    assert kernel('picker.images.people')==[True]*20 and kernel('picker._filter.value')=='chosen'
    assert tiles.nth(9).bounding_box()==where                                                # a warning moves no picture

HIDDEN = '''e => {
    e.scrollIntoView({block: 'center'});
    const on = x => { const r = x.getBoundingClientRect(); return document.elementFromPoint(r.x+r.width/2, r.y+r.height/2) };
    return [...e.querySelectorAll('.sb-tile, .sb-flag')].filter(x => on(x)!=x || x.matches('.sb-flag') && x.scrollWidth>x.clientWidth).length }'''   # what lies under something else, or is cut
CLIPS = '''e => { for (let n = 0; ; e = e.parentElement) { n += getComputedStyle(e).overflowY!='visible'; if (e.matches('.aux-picker')) return n } }'''

def test_every_picture_of_the_style_is_seen_whatever_follows(lab):
    page, _ = lab
    strip = page.locator('.aux-picker').first.locator('.sb-strip')
    try:
        for width in (1920, 1280, 1000):                                                      # the sheets of the widgets below come after the picker's own
            page.set_viewport_size(dict(width=width, height=800))
            eventually(lambda: strip.evaluate(HIDDEN)==0)
        assert strip.locator('.sb-tile').last.evaluate(CLIPS)==0                             # nothing cuts the large picture off
    finally: page.set_viewport_size(dict(width=1280, height=800))

def test_the_arrow_of_a_choice_can_be_seen_in_every_theme(lab):
    arrow = lab[0].locator('.sb-rule select').first.evaluate('e => getComputedStyle(e).backgroundImage')
    assert '%23808690' in arrow

def test_a_picture_is_large_under_the_mouse_and_by_the_keyboard(lab):
    page, _ = lab
    tile = page.locator('.aux-picker').first.locator('.sb-pool .sb-tile').nth(2)
    large = lambda: tile.evaluate("e => { const s = getComputedStyle(e, '::after'); return [s.visibility, getComputedStyle(e, '::before').backgroundImage.endsWith(s.backgroundImage), parseFloat(s.width)] }")
    assert large()[0]=='hidden'
    tile.hover(); eventually(lambda: large()==['visible', True, 264])
    page.mouse.move(0, 0); eventually(lambda: large()[0]=='hidden')
    tile.focus(); page.keyboard.press('Shift+Tab'); page.keyboard.press('Tab'); eventually(lambda: large()[0]=='visible')

def test_watching(lab):
    page, kernel = lab
    box = page.locator('.training-monitor')
    box.get_by_role('button', name='Start').click()
    film = box.locator('.sb-film img')
    film.first.wait_for()
    playwright.expect(box.locator('.sb-film')).to_contain_text('before')                     # what the untouched base draws
    playwright.expect(film).not_to_have_count(1)
    one, two = (film.nth(i).evaluate(PIXELS) for i in (0,1))
    assert one[0]==two[0]==64 and one!=two                                                   # the model has moved between two steps
    playwright.expect(box.locator('.sb-state')).to_contain_text('left')
    box.get_by_role('button', name='Stop').click()
    playwright.expect(box.locator('.sb-state')).to_contain_text('Stopped')
    kernel.until('monitor.state', 'stopped')
    at = kernel('monitor.step')
    assert 2<=at<400 and kernel('monitor.result.checkpoint.name')==f'step-{at:06d}' and box.locator('svg').count()==1
    assert box.get_by_role('button', name='Go on').is_enabled() and box.get_by_role('button', name='Stop').count()==0

def test_comparing(lab):
    page, kernel = lab
    box = page.locator('.compare')
    tile = lambda column, r: box.locator('.sb-tiles').nth(column).locator('.sb-tile').nth(r)
    assert all(tile(c, r).evaluate(PIXELS)[0]>=32 for c in range(3) for r in range(4))
    playwright.expect(box.locator('.sb-numbers')).to_contain_text('0.190–0.210')
    before = [tile(c, 1).evaluate(PIXELS) for c in range(3)]
    kernel('setattr(compare, "step", 10)')
    playwright.expect(box.locator('.sb-numbers')).to_contain_text('0.090–0.110')
    eventually(lambda: all(tile(c, 1).evaluate(PIXELS)!=before[c] for c in (1,2)))
    assert tile(0, 1).evaluate(PIXELS)==before[0]                                            # the base has no steps
    tile(1, 2).click(); kernel.until('compare.pair[1]', 'none')
    tile(2, 2).click(); kernel.until('compare.pair', ('none','aux'))
    kernel.until('compare.stage.alive', True)
    stage = box.locator('.st')
    assert not box.locator('.sb-close .widget-image').is_visible()                            # the plain picture is for where there is no stage
    one, two = (stage.locator('.st-view').first.locator('img').nth(i) for i in (0,1))
    eventually(lambda: [one.evaluate(PIXELS), two.evaluate(PIXELS)]==[tile(1, 2).evaluate(PIXELS), tile(2, 2).evaluate(PIXELS)])
    name = stage.locator('.st-view').first.locator('.st-name').first
    playwright.expect(name).to_have_text('aux')
    stage.get_by_role('button', name='Flip').click(); kernel.until('compare.blend', 0)
    playwright.expect(name).to_have_text('none')
    stage.focus(); page.keyboard.press('Space'); kernel.until('compare.blend', 100)
    assert kernel('compare.prompt')==2
    cells = page.locator('.jp-Cell').count()
    page.keyboard.press('v'); kernel.until('compare.stage.mode', 'swipe')
    box_ = stage.locator('.st-view').first.bounding_box()
    at = lambda x: (box_['x']+box_['width']*x, box_['y']+box_['height']/2)
    page.mouse.move(*at(.9)); page.mouse.down(); page.mouse.move(*at(.5)); page.mouse.move(*at(.3)); page.mouse.up()
    kernel.until('28<=compare.blend<=32', True)                                               # the edge is where the mouse let it go
    assert 67<=stage.locator('.st-layer').nth(1).evaluate('e => parseFloat(e.style.clipPath.split(" ")[1])')<=73
    page.keyboard.press('v'); kernel.until('compare.stage.mode', 'side')
    second = stage.locator('.st-view').nth(1)
    assert second.locator('img').count()==1 and second.locator('img').evaluate(PIXELS)==tile(2, 2).evaluate(PIXELS)   # nothing lies on it
    playwright.expect(stage.locator('.st-name:visible')).to_have_text(['none','aux'])
    page.keyboard.press('+'); kernel.until('compare.stage.view[0]', 1.5)
    moves = stage.locator('.st-view:visible img:visible').evaluate_all('es => es.map(e => e.style.transform)')
    assert len(moves)==2 and moves[0]==moves[1]!='translate(0%, 0%) scale(1)'                  # both at the same zoom
    page.keyboard.press('0'); page.keyboard.press('v'); kernel.until('compare.stage.mode', 'blend')
    assert page.locator('.jp-Cell').count()==cells                                            # its keys are not the notebook's
    kernel("compare.stage.ask([compare.pictures(k)[0] for k in ('none','aux')])")
    playwright.expect(stage.locator('.st-name:visible')).to_have_text(['A','B'])
    assert 'none' not in stage.inner_text() and 'aux' not in stage.inner_text()
    page.keyboard.press('3'); kernel.until('compare.stage.answer', 'B')
    box.get_by_role('button', name='things').click(); kernel.until('compare.group', 'things')
    playwright.expect(box.locator('.sb-labels')).to_contain_text('person 1')

@pytest.mark.parametrize('width', [1280, 760])
def test_what_is_clicked_is_seen_at_once(lab, width):
    page, kernel = lab
    box = page.locator('.compare')
    stage, tile = box.locator('.st'), lambda column: box.locator('.sb-tiles').nth(column).locator('.sb-tile').nth(1)
    page.set_viewport_size(dict(width=width, height=800))
    try:
        box.evaluate("e => e.scrollIntoView({block: 'start'})")
        tile(1).click(); kernel.until('compare.pair[1]', 'none')
        playwright.expect(stage).to_be_in_viewport(ratio=.99)
        at = stage.bounding_box()
        upper = box.locator('.sb-close .widget-dropdown select').nth(1)
        playwright.expect(upper).to_have_value('none')                                        # Python's answer is here
        upper.select_option('aux'); kernel.until('compare.pair[1]', 'aux')
        assert stage.bounding_box()==at                                                       # what is in view stays where it is
        if width==1280: tile(2).click(); assert stage.bounding_box()==at and tile(1).bounding_box()['x']<at['x']
        ends = stage.locator('.st-end')
        assert all(ends.nth(i).evaluate('e => e.scrollWidth<=e.clientWidth && getComputedStyle(e).textOverflow!="ellipsis"') for i in (0,1))
        assert stage.locator('.st-mix input').bounding_box()['width']>=96
    finally: page.set_viewport_size(dict(width=1280, height=800))

def test_the_page_works_without_a_kernel(lab, tmp_path):
    _, kernel = lab
    path = tmp_path/'page.html'
    kernel(f'str(compare.export({str(path)!r}))')
    page = lab[0].context.browser.new_page()
    try:
        faults = []
        page.on('pageerror', lambda e: faults.append(str(e)))
        page.goto(path.as_uri())
        shown = 'e => getComputedStyle(e).backgroundImage'
        cell = page.locator('td[data-k="aux"] button').nth(3)
        late = cell.evaluate(shown)
        assert late.startswith('url("blob:')
        page.locator('#step').fill('0')
        assert cell.evaluate(shown)!=late and page.locator('#at').inner_text()=='10'
        playwright.expect(page.locator('#numbers')).to_contain_text('0.090–0.110')
        page.locator('input[value=things]').check()
        assert page.locator('tbody tr:visible').count()==4
        page.locator('input[name=arm][value=none]').uncheck()
        assert page.locator('td[data-k="none"]:visible').count()==0
        cell.click()
        assert page.locator('dialog').is_visible() and 'person 3' in page.locator('#what').inner_text()
        stage = page.locator('dialog .st')
        top = stage.locator('img').nth(1)
        eventually(lambda: top.evaluate('e => e.complete && e.naturalWidth>0'))
        big = top.evaluate(PIXELS)
        page.keyboard.press('ArrowLeft')                                                      # the base lies on it now, for none is hidden
        playwright.expect(stage.locator('.st-name').first).to_have_text('untouched base')
        eventually(lambda: top.evaluate(PIXELS)!=big)
        assert stage.locator('img').first.evaluate(PIXELS)==big
        page.keyboard.press('Space'); playwright.expect(stage.locator('.st-name').first).to_have_text('aux')
        page.keyboard.press('v'); page.keyboard.press('+')
        assert 'scale(1.5)' in top.get_attribute('style') and stage.get_attribute('data-mode')=='swipe' and faults==[]
    finally: page.close()

def test_the_pages_slider_rests_where_each_arm_has_one_step(lab, tmp_path):
    from styleboost.pictures.prompts import Prompt
    from styleboost.pictures.world import pool
    from styleboost.studies.results import COLUMNS
    from styleboost.widgets.compare import Compare
    sets, steps = dict(base=pool('planets'), none=pool('open-peeps'), aux=pool('micah')), dict(none=10, aux=20)
    study = SimpleNamespace(folder=tmp_path/'study', arms=['none','aux'], seeds=(0,), steps=(10,20), failed={}, chosen=steps, ref=None,
        prompts=lambda split: [Prompt(f'{split} {i}') for i in range(8)], table=lambda: pd.DataFrame(columns=COLUMNS),
        images=lambda arm, seed=None, step=None, split='test': [p.open() for p in sets[arm][:8]] if arm=='base' or split=='validation' or step==steps[arm] else None)
    path = Compare(study).export(tmp_path/'page.html')
    page = lab[0].context.browser.new_page()
    try:
        page.goto(path.as_uri())
        slider, best, why, gaps = (page.locator(q) for q in ('#step', '#best', '#why', 'tbody tr:visible button.no'))
        assert slider.is_disabled() and best.is_disabled() and best.is_checked()
        playwright.expect(why).to_have_text('test prompts are drawn at the chosen steps alone; show validation to move it')
        page.locator('input[value=validation]').check()
        playwright.expect(why).to_contain_text('each arm at its own step')
        slider.fill('0'); assert not best.is_checked() and why.inner_text()=='' and page.locator('#at').inner_text()=='10'
        page.locator('input[value=test]').check()
        assert slider.is_disabled() and best.is_checked() and gaps.count()==0                 # back where there is one step, nothing is hatched
    finally: page.close()

def test_a_vote_on_the_page_is_a_file_that_the_study_takes(lab, tmp_path):
    from styleboost.pictures.prompts import Prompt
    from styleboost.pictures.world import pool, style_ref
    from styleboost.studies.results import COLUMNS
    from styleboost.studies.votes import add_votes, vote_standings, votes_of
    from styleboost.widgets.compare import Compare
    sets, steps = dict(base=pool('planets'), none=pool('open-peeps'), aux=pool('micah')), dict(none=10, aux=20)
    asked = [Prompt(f'person {i}', i%2==0) for i in range(10)]
    info = dict(style=dict(name='x', test=[dict(text=p.text) for p in asked]), sampler={}, arms=dict(none={}, aux={}), seeds=[0,1], base=dict(hash='1'))
    study = SimpleNamespace(folder=tmp_path/'study', info=info, arms=['none','aux'], seeds=(0,1), steps=(10,20), failed={}, chosen=steps, ref=style_ref(people=3, things=3),
        prompts=lambda split='test': asked if split=='test' else [], table=lambda: pd.DataFrame(columns=COLUMNS),
        images=lambda arm, seed=None, step=None, split='test': [p.open() for p in sets[arm][:10]] if arm=='base' or step==steps[arm] else None)
    path = Compare(study).export(tmp_path/'page.html')
    page = lab[0].context.browser.new_page(viewport=dict(width=1000, height=900), accept_downloads=True)
    try:
        faults = []
        page.on('pageerror', lambda e: faults.append(str(e)))
        page.goto(path.as_uri())
        page.locator('#blind').click()
        page.locator('#voter').fill('Anna B.'); page.locator('#voter').blur()
        shown = 'e => getComputedStyle(e).backgroundImage+getComputedStyle(e).backgroundPosition'
        middle = lambda e: e.bounding_box()['x']+e.bounding_box()['width']/2
        (a, b), answers = map(middle, page.locator('#vote .one').all()), page.locator('fieldset[data-q=style] button').all()
        assert [middle(e) for e in answers]==pytest.approx([a, (a+b)/2, b], abs=2)              # under the picture that each is about
        seen = set()
        for _ in range(12):
            left, right = (page.locator('#vote .one').nth(i).evaluate(shown) for i in (0,1))
            seen |= {left, right}
            assert left!=right and left.startswith('url("blob:')
            page.locator('fieldset[data-q=style] button[data-side=left]').click()
            page.locator('fieldset[data-q=prompt] button[data-side=tie]').click()
        assert len(seen)>12 and page.locator('#judged').inner_text()=='12 pairs judged'
        page.locator('#undo').click(); assert page.locator('#judged').inner_text()=='11 pairs judged'
        with page.expect_download() as got: page.locator('#save').click()
        got.value.save_as(tmp_path/got.value.suggested_filename)
        page.reload(); page.locator('#blind').click()
        assert page.locator('#judged').inner_text()=='11 pairs judged' and page.locator('#voter').input_value()=='Anna B.' and faults==[]
    finally: page.close()
    add_votes(study, next(tmp_path.glob('votes-*.json')))
    votes = votes_of(study)
    assert len(votes)==22 and set(votes.voter)=={'Anna B.'} and (votes[votes.question=='prompt'].answer=='tie').all()
    style = votes[votes.question=='style']
    assert (style.answer==style.left).all() and len(vote_standings(study))==3
