"What the tests share: no network, a cache of their own, one base, a few small pictures, and what a refusal looks like."
import os, tempfile
_cache = tempfile.TemporaryDirectory(prefix='styleboost-tests-')
os.environ |= dict(HF_HUB_OFFLINE='1', STYLEBOOST_CACHE=_cache.name, TOKENIZERS_PARALLELISM='false')   # before any import that reads them
if 'PYTEST_XDIST_WORKER' in os.environ: os.environ['OMP_NUM_THREADS'] = '1'   # workers that share cores wait for each other's threads

import shutil
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest, torch
from hypothesis import HealthCheck, settings
from PIL import Image

from styleboost.bases.load import blank, load_base
from styleboost.pictures.images import ImageSet, Picture, png
from styleboost.core import StyleboostError
from styleboost.methods.adapters import ADAPTERS as CLASSES
from styleboost.training.recipes import no_prior, settled as filled_in, with_prior
from styleboost.bases.files import TINY, weights_hash

settings.register_profile('tests', deadline=None, derandomize=True, database=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
settings.load_profile('tests')

def pytest_collection_modifyitems(items):
    "The walkthroughs come first, then the files with most tests, so that no worker is left alone for long at the end."
    if 'PYTEST_XDIST_WORKER' not in os.environ: return
    many = Counter(i.path for i in items)
    items.sort(key=lambda i: (i.path.name!='test_walkthroughs.py', -many[i.path], i.path))

@pytest.fixture(scope='session')
def base():
    "The embedded base, loaded once; no test may change it."
    return load_base()

@pytest.fixture(scope='module')
def two_threads():
    "Two threads, whatever the tests run with: sums that depend on who comes first show themselves only then."
    was = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(was)

@pytest.fixture(scope='session')
def lively(base):
    "The base with a disturbed U-Net and text encoder, so that pictures depend on prompts and weights whatever it has learnt."
    own, g = base.own(), torch.Generator().manual_seed(0)
    for k in ('unet','text_encoder'):
        for p in own.modules[k].parameters(): p.data += .1*p.data.std().nan_to_num(0)*torch.randn(p.shape, generator=g)
    return replace(own, hash='disturbed', shared=True)

@pytest.fixture(scope='session')
def base_copy():
    "Makes a folder with a copy of the embedded base in it."
    return lambda folder: Path(shutil.copytree(TINY, folder, dirs_exist_ok=True))

@pytest.fixture(scope='session')
def family_base():
    "Makes a small random base of a family, disturbed so that pictures depend on prompts; `noise` are scheduler settings."
    def make(family, seed=0, **noise):
        b, g = blank(family, seed=seed, **noise), torch.Generator().manual_seed(seed)
        for m in (b.modules[k] for k in ('text_encoder','text_encoder_2','unet','vae') if k in b.modules):
            for p in m.parameters(): p.data += .5*p.data.std().nan_to_num(0)*torch.randn(p.shape, generator=g)
        return b
    return make

@pytest.fixture(scope='session')
def family_folder(family_base, tmp_path_factory):
    "The folder of such a base, as diffusers saves it; no test may change it (see `own_folder`)."
    made = {}
    def folder(family, **noise):
        key = (family, *sorted(noise.items()))
        if key not in made:
            made[key] = tmp_path_factory.mktemp(family)/'base'
            family_base(family, **noise).pipeline().save_pretrained(made[key])
        return made[key]
    return folder

@pytest.fixture
def own_folder(family_folder, tmp_path):
    "A copy of such a folder that a test may spoil."
    return lambda family, **noise: Path(shutil.copytree(family_folder(family, **noise), tmp_path/family))

@pytest.fixture(scope='session', autouse=True)
def the_shipped_base_stays_as_it_is():
    before = weights_hash(TINY)
    yield
    assert weights_hash(TINY)==before

def _picture(name, size=(64,64), people=None, caption=None, seed=None):
    g = torch.Generator().manual_seed(sum(map(ord, name)) if seed is None else seed)
    noise = torch.randint(0, 256, (4,4,3), generator=g, dtype=torch.uint8).numpy()
    return Picture(f'{name}.png', data=png(Image.fromarray(noise).resize(size)), caption=f'a picture of {name}' if caption is None else caption, people=people)

@pytest.fixture(scope='session')
def picture():
    "Makes a picture in memory: its name decides its colours and its caption."
    return _picture

@pytest.fixture(scope='session')
def ref(): return ImageSet([_picture(n, people=p) for n,p in (('anna',True),('bear',False),('cat',False))], 'ref')

@pytest.fixture(scope='session')
def aux(): return ImageSet([_picture(n, people=p, caption='') for n,p in (('w',True),('x',False),('y',False),('z',True))], 'aux')

ADAPTERS = {a.name for a in CLASSES}

@pytest.fixture(scope='session')
def quick(ref, aux):
    "Makes a recipe that takes a second: `prior` is what the second binding shows, `weight` its weight."
    def make(prior=aux, prompt=None, weight=1., ref=ref, preset='repaired', **kw):
        if kw.get('method') in ADAPTERS: kw.setdefault('text_encoder', True)     # there is more to go wrong
        return with_prior(no_prior(ref, preset=preset, **dict(dict(steps=2, batch=1, lr=1e-3, steps_sampled=1), **kw)), prior, prompt, weight, 'quick')
    return make

@pytest.fixture
def tracked(monkeypatch):
    "The bytes of a step, in blocks of 512 as on a GPU: what the plan says, and what torch's own counter of tensors does."
    from torch.distributed._tools import mem_tracker
    from styleboost.methods.method import attached, trained_modules
    from styleboost.training.batches import Batches
    from styleboost.training.plan import plan
    from styleboost.training.stepper import Stepper
    from styleboost.training.trainer import Trainer, ready
    class Tracker(mem_tracker.MemTracker):
        "It would hang hooks on weights that have no gradient."
        def _track_module_params_and_buffers(self, module, install_grad_hooks=True): return super()._track_module_params_and_buffers(module, False)
        def _update_peak_stats(self, peak_state):
            "Nobody asks for each module's own peak, and it would look at a thousand modules after every operation."
            modules, self.memory_tracking = self.memory_tracking, {}
            super()._update_peak_stats(peak_state)
            self.memory_tracking = modules
    def both(b, recipe):
        r = filled_in(recipe, b)
        want, batches = plan(b, r, 'cpu').step, Batches(b, r, 0, 'cpu')
        tuned = attached(b, r.method)
        r.method.look(tuned, r.bindings)
        armed = ready(tuned, r, batches.texts, 'cpu')
        stepper = Stepper(r.method.groups(armed), r, 'cpu')
        trainer = Trainer(armed, r, batches, stepper)
        trainer.step()                                                               # the optimiser has its moments
        plainly = mem_tracker._WeakRefInfo._calculate_mem_consumed
        monkeypatch.setattr(mem_tracker._WeakRefInfo, '_calculate_mem_consumed', lambda self: -(-plainly(self)//512)*512)
        tracker = Tracker()
        tracker.track_external(*armed.net.parts.values(), *trained_modules(armed).values(), *(armed.codec.parts.values() if r.method.decodes else ()))
        tracker.track_external(*(v for s in stepper.optimizers[0].state.values() for k,v in s.items() if k!='step'))
        with tracker: trainer.losses(0)
        return want, tracker.get_tracker_snapshot('peak')[torch.device('cpu')]['Total']
    return both

@pytest.fixture
def said(caplog):
    "What the user has been told so far."
    return lambda: [r.getMessage() for r in caplog.records if r.name=='styleboost']

@pytest.fixture(scope='session')
def refused():
    "A block that ends in a refusal: one sentence that holds the given words."
    @contextmanager
    def block(*words):
        with pytest.raises(StyleboostError) as e: yield
        text = str(e.value)
        assert '\n' not in text and text.endswith('.') and [w for w in words if str(w) not in text]==[], text
    return block
