"A page reads as a page (width, length, a cell that shows each exported cell), and imports only go upwards."
import ast, json, re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
COLUMNS, LINES = 120, 40

# Notebooks that break a rule as yet, and which: width, length, shown, imports, bars, idle. The list only gets shorter.
NOT_YET = {}

# Imports that do not go upwards as yet, (who, whom). The list only gets shorter.
NOT_YET_UP = set()

# Which rooms a room may import; it may also import what those import.
ABOVE = dict(
    core='',
    devices='core',
    pictures='core devices',
    bases='pictures',
    judging='pictures',
    methods='bases',
    training='methods judging',
    transfer='methods judging',
    showing='pictures',
    studies='training transfer showing',
    exporting='training',
    widgets='studies exporting',
    demo='widgets',
    cli='demo',
    workshop='bases judging')

# the page

def cells(path):
    "A notebook's code cells: what nbdev is told of each, and its code without that."
    for cell in json.loads(path.read_text('utf-8'))['cells']:
        if cell['cell_type']!='code': continue
        source = ''.join(cell['source'])
        told = re.findall(r'^#\s*\|\s*(\w+)', source, re.M)
        yield set(told), re.sub(r'^#\s*\|.*\n?', '', source, flags=re.M)

def exported(told): return bool(told & {'export','exports','exporti'})

def lines(code): return [l for l in code.splitlines() if l.strip()]

def parsed(code): return ast.parse(re.sub(r'^\s*[%!].*$', 'pass', code, flags=re.M))

def named(node):
    "The names that a statement gives."
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)): return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else []
    if isinstance(node, ast.AnnAssign): targets = [node.target]
    return [x.id for t in targets for x in ast.walk(t) if isinstance(x, ast.Name)]

def public(code):
    "Names at the top of a cell that others may import."
    return [n for node in parsed(code).body for n in named(node) if not n.startswith('_')]

def unshown(path):
    "Public names whose cell no cell shows before the next exported one."
    waiting, found = [], []
    for told, code in cells(path):
        if exported(told):
            found, waiting = found+waiting, public(code)
        elif 'hide' not in told and lines(code): waiting = []
    return found+waiting

def mixed(path):
    """Cells that import and do something else. nbdev runs every cell of a module's notebook that imports when it builds
    the pages, and nothing that stands between them."""
    pages = list(cells(path))
    if not any(exported(told) for told,_ in pages): return
    for told, code in pages:
        body = parsed(code)
        imports = any(isinstance(n, (ast.Import, ast.ImportFrom)) for n in ast.walk(body))
        if exported(told) or 'eval' in told or 'nbdev_export()' in code or not imports: continue
        if not all(isinstance(n, (ast.Import, ast.ImportFrom)) for n in body.body): yield lines(code)[0]

def bars(path):
    "What progress bars left in outputs; a page shows none of it, and their state outweighs the pictures."
    for cell in json.loads(path.read_text('utf-8'))['cells']:
        for out in cell.get('outputs', []):
            told = ''.join(out.get('data', {}).get('text/plain', []))
            if 'widget-view' in str([*out.get('data', {})]) and '%|' in told: yield told

def idle(path):
    "Refusals that are never asked for: what `expect_fail` is to see stands in its block."
    yield from (l.strip() for _,code in cells(path) for l in lines(code) if 'expect_fail(lambda' in l)

def faults(path):
    "What breaks a rule, by the rule's name."
    wide = [l.strip() for _,code in cells(path) for l in lines(code) if len(l)>COLUMNS]
    long = [f'{len(lines(code))} lines: {", ".join(public(code))}'
            for told,code in cells(path) if exported(told) and len(lines(code))>LINES]
    found = dict(width=wide, length=long, shown=unshown(path), imports=list(mixed(path)),
                 bars=list(bars(path)), idle=list(idle(path)))
    return {k:v for k,v in found.items() if v}

NOTEBOOKS = {p.relative_to(ROOT/'nbs').as_posix(): p for p in sorted((ROOT/'nbs').rglob('*.ipynb'))
             if '.ipynb_checkpoints' not in p.parts}

@pytest.mark.parametrize('name', sorted({*NOTEBOOKS, *NOT_YET}))
def test_a_notebook_reads_as_a_page(name):
    assert name in NOTEBOOKS, f'{name} is gone; strike it off NOT_YET'
    found, known = faults(NOTEBOOKS[name]), set(NOT_YET.get(name, '').split())
    new = '\n'.join(f'{rule}: {what}' for rule in sorted({*found}-known) for what in found[rule])
    assert not new, f'{name}\n{new}'
    assert not known-{*found}, f'{name} keeps the rules {known-{*found}} by now; strike them off NOT_YET'

def test_a_page_that_breaks_a_rule_is_seen(tmp_path):
    def faults_of(*sources):
        path = tmp_path/'page.ipynb'
        path.write_text(json.dumps(dict(cells=[dict(cell_type='code', source=[s]) for s in sources])))
        return faults(path)
    one = '#| export\ndef one(): pass'
    assert not faults_of(one, 'one()')
    assert faults_of('a = '+'1+'*60+'1')['width'] and faults_of('expect_fail(lambda: one())')['idle']
    assert faults_of('#| export\n'+'_a = 1\n'*41)['length'] and not faults_of('#| export\n'+'_a = 1\n\n'*40)
    assert faults_of(one, '#| hide\none()', '#| export\nTWO = 2', 'TWO')['shown']==['one']
    assert faults_of(one, 'import os\none(os)')['imports']==['import os'] and not faults_of('import os\none(os)')
    bar = {'data': {'application/vnd.jupyter.widget-view+json': {}, 'text/plain': ['drawing:   0%|   | 0/7']}}
    path = tmp_path/'bar.ipynb'
    path.write_text(json.dumps(dict(cells=[dict(cell_type='code', source=['one()'], outputs=[bar])])))
    assert faults(path)=={'bars': ['drawing:   0%|   | 0/7']}
    assert faults_of(one)['shown']==['one'] and not faults_of('#| export\nimport os', '#| export\n_a = 1')

# the house

def modules():
    "The package's modules by dotted name, apart from nbdev's index and the door."
    found = {}
    for path in sorted((ROOT/'styleboost').rglob('*.py')):
        parts = path.relative_to(ROOT/'styleboost').with_suffix('').parts
        if path.name not in ('_modidx.py',): found['.'.join(p for p in parts if p!='__init__')] = path
    return found

def absolute(node, path):
    "The dotted name, seen from the package, that an import starts from; None for other libraries."
    if node.level:
        folders = path.relative_to(ROOT/'styleboost').parent.parts
        return '.'.join([*folders[:len(folders)-node.level+1], *([node.module] if node.module else [])])
    return own(node.module)

def own(name):
    "A dotted name seen from the package; None for other libraries."
    if name=='styleboost': return ''
    return name.removeprefix('styleboost.') if name.startswith('styleboost.') else None

def imports(path, known):
    "The modules that a module imports, wherever in it."
    for node in ast.walk(ast.parse(path.read_text('utf-8'))):
        if isinstance(node, ast.Import): names = [own(a.name) for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = absolute(node, path)
            # Everybody may say the version; that loads nothing.
            below = [f'{start}.{a.name}'.lstrip('.') for a in node.names if start is not None and a.name!='__version__']
            names = [b if b in known else start for b in below]
        else: continue
        yield from (n for n in names if n in known)

def arrows():
    known = modules()
    return {(who, whom) for who,path in known.items() for whom in imports(path, known) if who!=whom}

def room(module): return module.partition('.')[0] or 'styleboost'

def allowed(name):
    "The rooms above a room."
    found = set(ABOVE[name].split())
    return found.union(*map(allowed, found))

def circle(graph):
    "Some circle in a graph of arrows, or an empty list."
    after, done = {}, set()
    for who,whom in sorted(graph): after.setdefault(who, []).append(whom)
    def walk(node, path):
        if node in path: return path[path.index(node):]
        if node in done: return []
        found = next(filter(None, (walk(n, path+[node]) for n in after.get(node, []))), [])
        done.add(node)
        return found
    return next(filter(None, (walk(n, []) for n in sorted(after))), [])

def test_every_room_has_its_place():
    rooms = {room(m) for m in modules()} - {'styleboost'}
    assert rooms<=ABOVE.keys(), f'give {rooms-ABOVE.keys()} a place in ABOVE'
    assert not circle({(a, b) for a in ABOVE for b in ABOVE[a].split()})

def test_a_room_imports_only_rooms_above_it():
    between = {(a, b) for a,b in arrows() if room(a) not in (room(b), 'styleboost')}
    wrong = {(a, b) for a,b in between if room(b) not in allowed(room(a))}
    assert not wrong-NOT_YET_UP
    assert not NOT_YET_UP-wrong, 'these are mended; strike them off NOT_YET_UP'

def test_no_circle_of_imports():
    assert not circle(arrows()-NOT_YET_UP)

def test_a_circle_is_seen():
    assert circle({('a','b'), ('b','c'), ('c','b')})==['b','c'] and not circle({('a','b'), ('a','c'), ('b','c')})

if __name__=='__main__':
    # What NOT_YET should say by now.
    for name,path in NOTEBOOKS.items():
        if found := faults(path): print(f"    {name!r}: {' '.join(found)!r},")
