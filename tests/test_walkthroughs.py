"""The walkthroughs run from the first cell to the last, open in Colab, change none of its packages, leave no trace of the
machine they were run on, and link to what is there.

nbdev_test passes them over (nbs/walkthroughs/.notest): it runs no cell that says `eval: false`, and JupyterLab's
*Run All Cells* does."""
import configparser, json, re, tempfile
from pathlib import Path

import nbformat, pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
NAMES = sorted(p.stem for p in (ROOT/'nbs/walkthroughs').glob('[0-9]*.ipynb'))

@pytest.fixture(params=NAMES)
def cells(request):
    "A walkthrough's name, notebook, and cells as (kind, text, outputs)."
    nb = json.loads((ROOT/f'nbs/walkthroughs/{request.param}.ipynb').read_text('utf-8'))
    return request.param, nb, [(c['cell_type'], ''.join(c['source']), c.get('outputs', [])) for c in nb['cells']]

def test_there_are_six(): assert [n[0] for n in NAMES]==list('123456')

def test_it_opens_in_colab_with_a_gpu(cells):
    name, nb, all_ = cells
    ini = configparser.ConfigParser()
    ini.read(ROOT/'settings.ini', 'utf-8')
    cfg = ini['DEFAULT']
    repo = cfg['git_url'].removeprefix('https://github.com/')
    kind, text, _ = all_[0]
    link = f'https://colab.research.google.com/github/{repo}/blob/{cfg["branch"]}/nbs/walkthroughs/{name}.ipynb'
    assert kind=='markdown' and link in text
    assert re.search(r'^# \S', text, re.M) and re.search(r'^> \S', text, re.M)
    assert nb['metadata']['accelerator']=='GPU' and nb['metadata']['colab']['gpuType']=='T4'
    assert set(cfg['allowed_metadata_keys'].split())>={'accelerator','colab'}  # or nbdev_clean would take them away

def test_the_install_cell_changes_nothing_of_colabs(cells):
    _, _, all_ = cells
    first, *others = [t for k,t,_ in all_ if k=='code']
    guard, *install = [l for l in first.splitlines() if l.strip() and not l.startswith('import')]
    assert guard=="if 'google.colab' in sys.modules:" and install
    assert all(l.startswith('    %pip install -q --no-deps ') for l in install)
    pins = dict(l.split('==') for l in (ROOT/'constraints.txt').read_text().split() if '==' in l)
    for package,version in re.findall(r'([\w-]+)==([\d.]+)', ' '.join(install)): assert pins[package]==version
    installing = [t for t in others if re.search(r'(%|!)\s*pip', t)]
    assert all(re.match(r'(install_\w+) = False\nif \1:\n    %pip', t) for t in installing)

def test_drive_is_never_mounted_unasked(cells):
    mounting = [t for k,t,_ in cells[2] if k=='code' and 'google.colab import' in t]
    for t in mounting:
        before, _, block = t.partition('if keep_on_drive:\n')
        assert re.search('^keep_on_drive = False', before, re.M) and 'google.colab' not in before
        inside = re.match('(    .*\n?)*', block)[0]
        assert block.count('drive.mount')==inside.count('drive.mount')==1

@pytest.mark.parametrize('name', NAMES)
def test_every_cell_runs_as_it_stands(name, tmp_path, monkeypatch):
    monkeypatch.setenv('RAY_TMPDIR', tempfile.gettempdir())    # a socket's name has 107 bytes at most
    monkeypatch.setenv('TMPDIR', str(tmp_path))                # what it keeps goes too
    nb = nbformat.read(ROOT/f'nbs/walkthroughs/{name}.ipynb', 4)
    for c in nb.cells:
        if c.cell_type=='code': c.outputs, c.execution_count = [], None
    NotebookClient(nb, timeout=600, kernel_name='python3', resources=dict(metadata=dict(path=str(ROOT/'nbs/walkthroughs')))).execute()
    code = [c for c in nb.cells if c.cell_type=='code' and c.source.strip()]
    assert code and all(c.execution_count for c in code)
    red = [o.text for c in code for o in c.outputs if o.output_type=='stream' and o.name=='stderr']
    assert not [t for t in red if 'Traceback' in t]

def test_nothing_runs_them_twice(): assert (ROOT/'nbs/walkthroughs/.notest').exists()

def test_outputs_hold_pictures_and_no_paths(cells):
    _, _, all_ = cells
    said = json.dumps([o for *_,outputs in all_ for o in outputs])
    assert re.search('image/(png|jpeg)', said) and 'widget-view' not in said
    assert not re.search(r'/(tmp|home|root|work)/|\\\\Users', said)
    assert '"output_type": "error"' not in said

def test_links_lead_somewhere(cells):
    for k,t,_ in cells[2]:
        if k=='markdown':
            for link in re.findall(r'\]\((?!https?://)([^)#]+)\)', t):
                assert (ROOT/'nbs/walkthroughs'/link).exists(), link
