"""How the widgets answer, on this machine: a click in a grid of 8 by 6 pictures of 256 pixels in JupyterLab, a press on
who shows people, a picture of 512 pixels that is looked at closely, what previews cost a training, what the page of a
study of 12 runs weighs, and how long each walkthrough takes from a fresh kernel.

    python benchmarks/widgets.py                         all of it, into widgets.json
    python benchmarks/widgets.py clicks walkthroughs     some of it"""
import argparse, json, os, statistics, tempfile, time
from pathlib import Path
from types import SimpleNamespace

from common import ROOT, device, from_tests
from styleboost.pictures.prompts import Prompt
from styleboost.pictures.world import pool, style_ref
from styleboost.training.runs import versions
from styleboost.training.recipes import styleboost

GRID = '''
from PIL import Image
from styleboost.pictures.images import ImageSet, Picture, png
from styleboost.widgets.picker import AuxPicker
from styleboost.pictures.world import pool, style_ref
enlarged = lambda p: png(p.open().resize((256,256), Image.LANCZOS))
pictures = pool('people')[:48]+pool('things')[:48]
large = ImageSet([Picture(p.name, data=enlarged(p), people=p.people) for p in pictures], 'large')
picker = AuxPicker(style_ref(), large, page=48)
picker'''

# milliseconds until the picture is marked, and until Python has answered with the count
CLICK = '''async e => {
    const panel = e.closest('.aux-picker'), said = () => panel.querySelector('.sb-count').textContent;
    const before = said(), start = performance.now(), since = () => performance.now()-start;
    const text = new Promise(done => new MutationObserver((_, o) => {
        if (said()!=before) { o.disconnect(); done(since()) }
    }).observe(panel, {subtree:true, childList:true, characterData:true}));
    const marked = () => e.classList.contains('mod-active'), was = marked();
    e.click();
    const mark = await new Promise(done => {
        const look = () => marked()!=was ? done(since()) : requestAnimationFrame(look);
        look();
    });
    return [mark, await text]}'''

# milliseconds until a press on who shows people is answered by Python
PRESS = '''async e => {
    const said = e.textContent, start = performance.now();
    e.click();
    await new Promise(done => {
        const look = () => e.textContent!=said ? done() : requestAnimationFrame(look);
        look();
    });
    return performance.now()-start}'''

LOOK = f'''
import sys
sys.path.insert(0, {str(Path(__file__).resolve().parent)!r})
from widgets import made_up_study
from styleboost.widgets.compare import Compare
compare = Compare(made_up_study(n=8))
compare'''

# milliseconds until a picture that was clicked is on the stage
CLOSE = '''async e => {
    const image = e.closest('.compare').querySelectorAll('.st-layer img')[1], was = image.dataset.uri;
    const start = performance.now();
    e.click();
    await new Promise(done => {
        const look = () => image.dataset.uri!=was && image.complete ? done() : requestAnimationFrame(look);
        look();
    });
    return performance.now()-start}'''

def spread(v): return dict(median=round(statistics.median(v), 1), p95=round(sorted(v)[int(.95*len(v))], 1),
                           worst=round(max(v), 1))

def clicks(n=40):
    "Milliseconds from a click to the mark on the picture, and to what Python sends back."
    lab = from_tests('lab')
    with tempfile.TemporaryDirectory() as d:
        lab.write_notebook(Path(d)/'grid.ipynb', [GRID])
        with lab.jupyterlab(Path(d)) as (url, _), lab.chromium(viewport=dict(width=1920, height=1080)) as (page, _):
            lab.open_and_run(page, f'{url}/NB/grid.ipynb')
            tiles = page.locator('.aux-picker .sb-pool .sb-tile:visible')
            tiles.nth(47).wait_for()
            page.wait_for_timeout(2000)
            times = [tiles.nth(i*7%48).evaluate(CLICK) for i in range(n+5)][5:]
            flags = page.locator('.aux-picker .sb-pool .sb-flag')
            presses = [flags.nth(i*7%48).evaluate(PRESS) for i in range(n+5)][5:]
    return dict(pictures='8 x 6 of 256 px', clicks=n, ms_to_mark=spread([t[0] for t in times]),
                ms_to_count=spread([t[1] for t in times]), ms_to_flag=spread(presses))

def looks(n=16):
    "Milliseconds from a click on a picture of 512 pixels to the same on the stage, each seen for the first time."
    lab = from_tests('lab')
    with tempfile.TemporaryDirectory() as d:
        lab.write_notebook(Path(d)/'close.ipynb', [LOOK])
        with lab.jupyterlab(Path(d)) as (url, _), lab.chromium(viewport=dict(width=1920, height=1080)) as (page, _):
            lab.open_and_run(page, f'{url}/NB/close.ipynb')
            page.locator('.compare .st-layer img').first.wait_for()
            page.wait_for_timeout(2000)
            columns = page.locator('.compare .sb-tiles')
            def tile(i): return columns.nth(1+i%4).locator('.sb-tile').nth(i//4%4)   # the four arms, row by row
            times = [tile(i).evaluate(CLOSE) for i in range(n)]
    return dict(picture_pixels=512, looks=len(times), ms_to_stage=spread(times))

def previews(steps=200):
    "What previews at the default interval add to the training of a default recipe."
    from styleboost.widgets.monitor import TrainingMonitor
    with tempfile.TemporaryDirectory() as d:
        recipe = styleboost(style_ref(), pool('people'), n=20, steps=steps)
        m = TrainingMonitor(recipe, Path(d)/'run', device='cpu')
        t0 = time.perf_counter()
        m.run()
        whole = time.perf_counter()-t0
    training = m.lines[-1]['seconds']
    return dict(steps=steps, at=list(m.previews),
                training_seconds=round(training, 1), preview_seconds=round(m.spent, 1),
                share=round(m.spent/training, 3), wall_seconds=round(whole, 1))

def made_up_study(arms='abcd', seeds=(0,1,2), steps=(50,100,150,200), n=40):
    "What `Compare` asks of a study, with pictures of 512 pixels that nothing drew."
    import pandas as pd
    from PIL import Image
    pictures = pool('people')[:300]+pool('things')[:300]
    drawn = [p.open().resize((512,512), Image.LANCZOS) for p in pictures]
    cells = [(a,s,t) for a in arms for s in seeds for t in steps]
    def images(arm, seed=0, step=None, split='test'):
        at = 0 if arm=='base' else n*(1+cells.index((arm,seed,step)))
        return [drawn[(at+i)%len(drawn)] for i in range(n)]
    def prompts(split='test'):
        return [Prompt(f'a subject of some length {i}', i%2==0) for i in range(n)] if split=='test' else []
    same = dict(split='test', metric='kid', value=.1, low=.09, high=.11, n=n)
    groups = ('people','things','all')
    table = pd.DataFrame([dict(arm=a, seed=s, step=t, group=g, **same) for a,s,t in cells for g in groups])
    return SimpleNamespace(folder=Path('study'), arms=list(arms), seeds=seeds, steps=steps, failed={}, chosen={},
                           ref=style_ref(), images=images, table=lambda: table, prompts=prompts)

def page():
    "The page of a study of 12 runs, 40 prompts and 4 checkpoints, with pictures of 512 pixels."
    from styleboost.widgets.compare import Compare
    with tempfile.TemporaryDirectory() as d:
        size = Path(Compare(made_up_study()).export(Path(d)/'page.html')).stat().st_size
    return dict(runs=12, prompts=40, checkpoints=4, picture_pixels=512, megabytes=round(size/1e6, 2))

def walkthroughs():
    "Seconds of each walkthrough, all cells that a test runs, from a fresh kernel, two threads, offline."
    import nbformat
    from nbclient import NotebookClient
    out, env = {}, dict(os.environ, OMP_NUM_THREADS='2', OMP_WAIT_POLICY='PASSIVE', HF_HUB_OFFLINE='1')
    for file in sorted((ROOT/'nbs'/'walkthroughs').glob('*.ipynb')):
        nb = nbformat.read(file, 4)
        nb.cells = [c for c in nb.cells if '#| eval: false' not in c.source]
        where = dict(metadata=dict(path=str(file.parent)))
        t0 = time.perf_counter()
        NotebookClient(nb, timeout=600, kernel_name='python3', resources=where).execute(env=env)
        out[file.stem] = round(time.perf_counter()-t0, 1)
        print(file.stem, out[file.stem], flush=True)
    return out

PARTS = dict(clicks=clicks, looks=looks, previews=previews, page=page, walkthroughs=walkthroughs)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('parts', nargs='*', metavar='part', help=f'{", ".join(PARTS)}; all unless given')
    p.add_argument('--out', type=Path, default=Path(__file__).with_suffix('.json'))
    a = p.parse_args()
    if wrong:=[x for x in a.parts if x not in PARTS]:
        p.error(f'there is no part {wrong[0]}; choose from {", ".join(PARTS)}')
    kept = json.loads(a.out.read_text()) if a.out.exists() else {}
    for name in a.parts or PARTS:
        kept[name] = PARTS[name]()
        print(json.dumps({name:kept[name]}, indent=1), flush=True)
        a.out.write_text(json.dumps(dict(kept, device=device(), **versions()), indent=1)+'\n')

if __name__=='__main__': main()
