"What the package offers at the top, and what that costs."
import importlib, json, subprocess, sys
from pathlib import Path

import pytest

import styleboost

ROOT = Path(__file__).resolve().parents[1]
NAMES = [n for n in styleboost.__all__ if n!='__version__']
HEAVY = ('torch', 'diffusers', 'transformers', 'pandas', 'numpy', 'PIL')

def alone(code):
    "What a fresh Python prints for some code, as JSON."
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)

@pytest.mark.parametrize('name', NAMES)
def test_a_name_is_what_its_room_holds(name):
    found = getattr(styleboost, name)
    assert found is getattr(importlib.import_module(found.__module__), name) and styleboost.__dict__[name] is found

def test_no_name_hides_a_room():
    rooms = {p.stem for p in (ROOT/'styleboost').iterdir()}
    assert not rooms & {*NAMES}

def test_the_page_tells_of_every_name():
    prose = (ROOT/'nbs/92_door.ipynb').read_text('utf-8')
    assert [n for n in NAMES if f'`{n}`' not in prose]==[]

def test_opening_the_door_loads_nothing_and_takes_no_time():
    seconds, loaded = alone(
        'import json, sys, time; t = time.process_time(); import styleboost; t = time.process_time()-t; '
        f'print(json.dumps([t, [m for m in {HEAVY} if m in sys.modules]]))')
    assert seconds<=.1 and loaded==[]

def test_everything_comes_with_a_star():
    assert alone('from styleboost import *; import json; print(json.dumps([__version__, callable(train)]))')[1]
