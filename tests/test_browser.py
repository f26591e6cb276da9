"The widgets in JupyterLab, in a real browser: what is clicked changes real pixels and Python's state. Needs Chromium, see .ci/run."

from types import SimpleNamespace

import pandas as pd, pytest

playwright = pytest.importorskip('playwright.sync_api', reason='playwright is not installed; the dev extra brings it')
pytest.importorskip('jupyterlab', reason='JupyterLab is not installed; the lab extra brings it')

from lab import CHROMIUM, Kernel, chromium, eventually, jupyterlab, open_and_run, write_notebook

if not CHROMIUM: pytest.skip('Chromium is not installed; `apt-get install chromium` brings it', allow_module_level=True)

CELLS = ['''
from pathlib import Path
from styleboost.bases.load import load_base
from styleboost.training.recipes import no_prior
from styleboost.widgets.picker import AuxPicker
from styleboost.widgets.compare import Compare
from styleboost.widgets.monitor import TrainingMonitor
from styleboost.pictures.world import pool, style_ref, prompts
base = load_base('tiny')
picker = AuxPicker(style_ref(people=3, things=3), pool('people')[:30]+pool('things')[:30], page=24)
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
    tiles = first.locator('.sb-tile:visible')
    playwright.expect(tiles).to_have_count(24)
    assert all(w>=32 and 5<light<255 for w,light,_ in (tiles.nth(i).evaluate(PIXELS) for i in range(24)))
    assert first.locator('.sb-strip img').evaluate_all('es => es.map(e => e.naturalWidth > 0)')==[True]*6
    tiles.nth(2).click(); tiles.nth(5).click()
    playwright.expect(first.locator('.sb-count')).to_contain_text('2 chosen')
    playwright.expect(second.locator('.sb-count')).to_contain_text('2 chosen')             # the second view keeps step
    assert kernel('picker.chosen')==[2,5] and kernel('len(picker.images)')==2
    playwright.expect(second.locator('.sb-tile.mod-active')).to_have_count(2)
    second.locator('.sb-tile').nth(2).click()
    playwright.expect(first.locator('.sb-count')).to_contain_text('1 chosen')
    before = tiles.nth(0).evaluate(PIXELS)
    first.get_by_role('button', name='›').click()
    playwright.expect(first.locator('.sb-pager')).to_contain_text('25–48 of 60')
    eventually(lambda: tiles.nth(0).evaluate(PIXELS)!=before)
    assert kernel('picker.chosen')==[5]
    first.locator('.sb-rule select').first.select_option('people'); first.get_by_role('button', name='Choose').click()
    playwright.expect(first.locator('.sb-count')).to_contain_text('20 chosen of 60 20 with people, 0 without')
    playwright.expect(first.locator('.sb-said.warn')).to_contain_text('One-sided')
    assert kernel('picker.images.people')==[True]*20

def test_watching(lab):
    page, kernel = lab
    box = page.locator('.training-monitor')
    box.get_by_role('button', name='Start').click()
    film = box.locator('.sb-film img')
    film.first.wait_for()
    playwright.expect(film).not_to_have_count(1)
    one, two = (film.nth(i).evaluate(PIXELS) for i in (0,1))
    assert one[0]==two[0]==64 and one!=two                                                   # the model has moved between two steps
    playwright.expect(box.locator('.sb-state')).to_contain_text('left')
    box.get_by_role('button', name='Stop').click()
    playwright.expect(box.locator('.sb-state')).to_contain_text('Stopped')
    kernel.until('monitor.state', 'stopped')
    at = kernel('monitor.step')
    assert 2<=at<400 and kernel('monitor.result.checkpoint.name')==f'step-{at:06d}' and box.locator('svg').count()==1
    assert box.get_by_role('button', name='Go on').is_enabled()

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
    close = box.locator('.sb-close img')
    light = 'float(np.asarray(Image.open(io.BytesIO(compare._picture.value)).convert("RGBA")).mean())'
    eventually(lambda: abs(close.evaluate(PIXELS)[1]-kernel(light))<.5)                       # the browser shows what Python has by now
    b = close.evaluate(PIXELS)
    box.get_by_role('button', name='Flip').click(); kernel.until('compare.blend', 0)
    eventually(lambda: close.evaluate(PIXELS)!=b)
    assert close.evaluate(PIXELS)[0]==320 and kernel('compare.prompt')==2
    box.get_by_role('button', name='things').click(); kernel.until('compare.group', 'things')
    playwright.expect(box.locator('.sb-labels')).to_contain_text('person 1')

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
        big = page.locator('#big').evaluate(shown)
        page.keyboard.press('ArrowLeft')
        assert page.locator('#big').evaluate(shown)!=big and faults==[]
    finally: page.close()

def test_a_vote_on_the_page_is_a_file_that_the_study_takes(tmp_path):
    from styleboost.pictures.prompts import Prompt
    from styleboost.pictures.world import pool, style_ref
    from styleboost.studies.votes import add_votes, vote_standings, votes_of
    from styleboost.widgets.compare import Compare
    sets, steps = dict(base=pool('planets'), none=pool('open-peeps'), aux=pool('micah')), dict(none=10, aux=20)
    asked = [Prompt(f'person {i}', i%2==0) for i in range(10)]
    info = dict(style=dict(name='x', test=[dict(text=p.text) for p in asked]), sampler={}, arms=dict(none={}, aux={}), seeds=[0,1], base=dict(hash='1'))
    study = SimpleNamespace(folder=tmp_path/'study', info=info, arms=['none','aux'], seeds=(0,1), steps=(10,20), failed={}, chosen=steps, ref=style_ref(people=3, things=3),
        prompts=lambda split='test': asked if split=='test' else [], table=lambda: pd.DataFrame(),
        images=lambda arm, seed=None, step=None, split='test': [p.open() for p in sets[arm][:10]] if arm=='base' or step==steps[arm] else None)
    path = Compare(study).export(tmp_path/'page.html')
    with chromium(viewport=dict(width=1000, height=900), accept_downloads=True) as (page, outside):
        faults = []
        page.on('pageerror', lambda e: faults.append(str(e)))
        page.unroute('**/*')
        page.goto(path.as_uri())
        page.locator('#blind').click()
        page.locator('#voter').fill('Anna B.'); page.locator('#voter').blur()
        shown = 'e => getComputedStyle(e).backgroundImage+getComputedStyle(e).backgroundPosition'
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
    add_votes(study, next(tmp_path.glob('votes-*.json')))
    votes = votes_of(study)
    assert len(votes)==22 and set(votes.voter)=={'Anna B.'} and (votes[votes.question=='prompt'].answer=='tie').all()
    style = votes[votes.question=='style']
    assert (style.answer==style.left).all() and len(vote_standings(study))==3
