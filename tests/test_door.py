"What the package offers at the top, and what that costs."
import importlib, inspect, json, re, subprocess, sys
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

def test_opening_the_door_loads_nothing():
    assert alone(f'import json, sys, styleboost; print(json.dumps([m for m in {HEAVY} if m in sys.modules]))')==[]

def test_everything_comes_with_a_star():
    assert alone('from styleboost import *; import json; print(json.dumps([__version__, callable(train)]))')[1]

# what Shift-Tab shows

def told(thing):
    "What the documentation says of each parameter."
    _, _, below = (inspect.getdoc(thing) or '').partition('Parameters\n')
    return dict(re.findall(r'^  (\w+) +(\S.*)$', below.partition('\nReturns\n')[0], re.M))

@pytest.mark.parametrize('name', NAMES)
def test_help_says_what_each_parameter_is(name):
    found = getattr(styleboost, name)
    silent = {p for p in inspect.signature(found).parameters if p!='self'}-told(found).keys()
    assert not silent and not inspect.getdoc(found).startswith('Parameters')

@pytest.mark.parametrize('name', ['ImageSet', 'Recipe', 'Run', 'Study'])
def test_help_says_it_of_a_class_s_methods_too(name):
    for n,m in inspect.getmembers(getattr(styleboost, name), inspect.isroutine):
        if n.startswith('_') or not m.__module__.startswith('styleboost.'): continue
        asked = [p for p in inspect.signature(m).parameters if p not in ('self','cls')]
        assert [f'{name}.{n}({p})' for p in asked if p not in told(m)]==[]

@pytest.mark.parametrize('name', ['no_prior', 'dreambooth', 'styleboost', 'multi'])
def test_a_preset_names_what_its_further_settings_may_be(name):
    from dataclasses import fields
    known = {f.name for f in fields(styleboost.Recipe)}-{'bindings'}
    assert known|{'preset','rank'} <= {*re.findall(r'\w+', told(getattr(styleboost, name))['kw'])}

def test_help_is_written_once_and_says_what_comes_back():
    before = styleboost.sample.__doc__
    assert styleboost.__getattr__('sample').__doc__==before and before.count('Parameters')==1
    assert before.startswith('Draws one picture a prompt.') and before.endswith('Returns\n  PIL pictures, in the order of the prompts')
