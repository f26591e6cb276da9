"Generated priors: drawn only when asked, kept under what they depend on, and never half there."
import hashlib, json
from dataclasses import replace

import diffusers, pytest
from PIL import Image

from styleboost import priors
from styleboost.images import ImageSet
from styleboost.priors import cache_folder, generated, prior_images, prior_key, resolve
from styleboost.recipes import Generated, dreambooth, styleboost

ORDER = Generated('a photo of style', 3, 7, 2)

@pytest.fixture
def drawn(monkeypatch):
    "A quick stand-in for the sampler: colours by prompt and seed. Holds the prompts it was asked for."
    calls = []
    def sample(base, prompts, seed, *args, **kw):
        calls.append(prompts)
        return [Image.new('RGB', (8,8), tuple(hashlib.sha256(f'{p} {seed+i}'.encode()).digest()[:3])) for i,p in enumerate(prompts)]
    monkeypatch.setattr(priors, 'sample', sample)
    return calls

def complete(cache): return [f.parent for f in cache.glob('priors/*/manifest.json')]

# the cache

def test_the_same_order_is_drawn_once(base, drawn, tmp_path):
    assert generated(base, ORDER, tmp_path).hash==generated(base, ORDER, tmp_path).hash and drawn==[['a photo of style']*3]

CHANGES = [dict(prompt='a photo of art'), dict(n=4), dict(seed=8), dict(steps=3), dict(guidance=1.), dict(scheduler='euler')]

@pytest.mark.parametrize('change', CHANGES, ids=lambda c: next(iter(c)))
def test_a_changed_order_is_drawn_anew(base, drawn, tmp_path, change):
    generated(base, ORDER, tmp_path); generated(base, replace(ORDER, **change), tmp_path)
    assert len(drawn)==len(complete(tmp_path))==2

def test_changed_weights_are_drawn_anew(base, drawn, tmp_path):
    generated(base, ORDER, tmp_path); generated(replace(base, hash='other'), ORDER, tmp_path)
    assert len(drawn)==2

def test_a_changed_noise_schedule_is_drawn_anew(base, drawn, tmp_path):
    other = replace(base, noise=diffusers.DDPMScheduler.from_config(base.noise.config, prediction_type='v_prediction'))
    generated(base, ORDER, tmp_path); generated(other, ORDER, tmp_path)
    assert len(drawn)==2

def test_a_base_by_another_name_shares_its_pictures(base, drawn, tmp_path):
    generated(base, ORDER, tmp_path); generated(replace(base, name='/elsewhere'), ORDER, tmp_path)
    assert len(drawn)==1

def test_the_cache_is_where_the_environment_says(base, drawn, tmp_path, monkeypatch):
    monkeypatch.setenv('STYLEBOOST_CACHE', str(tmp_path/'here'))
    assert cache_folder()==tmp_path/'here' and all(p.path.is_relative_to(tmp_path/'here') for p in generated(base, ORDER))

def test_the_manifest_says_what_was_drawn_by_what(base, drawn, tmp_path):
    found = generated(base, ORDER, tmp_path)
    folder = tmp_path/'priors'/prior_key(base, ORDER)
    assert json.loads((folder/'manifest.json').read_text())==dict(base=base.name, base_hash=base.hash, files={p.name: p.sha for p in found},
        order=dict(prompt='a photo of style', n=3, seed=7, steps=2, guidance=7., scheduler='ddim'))
    assert [p.name for p in found]==['000007.png','000008.png','000009.png'] and {p.name for p in folder.iterdir()}=={*(p.name for p in found), 'manifest.json'}

def test_a_larger_order_begins_with_the_same_pictures(base, drawn, tmp_path):
    few, more = (generated(base, replace(ORDER, n=n), tmp_path) for n in (2,4))
    assert [p.sha for p in more][:2]==[p.sha for p in few]

# what goes wrong on the way

@pytest.mark.parametrize('where', ['sample', 'png', 'json'])
def test_interrupted_it_leaves_nothing_that_looks_complete(base, drawn, tmp_path, monkeypatch, where):
    def stop(*args, **kw): raise KeyboardInterrupt
    with monkeypatch.context() as m:
        if where=='json': m.setattr(priors.json, 'dumps', lambda *a, real=json.dumps, **kw: stop() if 'indent' in kw else real(*a, **kw))
        else: m.setattr(priors, where, stop)
        with pytest.raises(KeyboardInterrupt): generated(base, ORDER, tmp_path)
    assert complete(tmp_path)==[] and not (tmp_path/'priors'/prior_key(base, ORDER)).exists()
    assert len(generated(base, ORDER, tmp_path))==3 and len(complete(tmp_path))==1

def test_what_a_killed_process_left_is_not_used(base, drawn, tmp_path):
    left = tmp_path/'priors'/'tmp8aa'/'images'; left.mkdir(parents=True); (left/'000007.png').write_bytes(b'half')
    assert len(generated(base, ORDER, tmp_path))==3 and len(drawn)==1

def test_two_processes_with_one_order_end_with_one_folder(base, drawn, tmp_path, monkeypatch):
    first = priors.sample
    def beaten(*args, **kw):                                              # the other process finishes while this one draws
        monkeypatch.setattr(priors, 'sample', first); generated(base, ORDER, tmp_path)
        return first(*args, **kw)
    monkeypatch.setattr(priors, 'sample', beaten)
    assert len(generated(base, ORDER, tmp_path))==3 and len(complete(tmp_path))==1 and {p.name for p in (tmp_path/'priors').iterdir()}=={prior_key(base, ORDER)}

@pytest.mark.parametrize('damage', ['changed', 'missing', 'no manifest', 'garbled manifest'])
def test_a_damaged_cache_is_refused_with_its_folder_and_kept(base, drawn, tmp_path, refused, damage):
    p = generated(base, ORDER, tmp_path)[1].path
    manifest = p.with_name('manifest.json')
    if damage=='changed': p.write_bytes(p.read_bytes()+b'\0')
    if damage=='missing': p.unlink()
    if damage=='no manifest': manifest.unlink()
    if damage=='garbled manifest': manifest.write_text(manifest.read_text()[:50])
    before = sorted(p.parent.iterdir())
    with refused(p.parent): generated(base, ORDER, tmp_path)
    assert sorted(p.parent.iterdir())==before and len(drawn)==1

def test_a_tuned_base_is_refused(base, drawn, tmp_path, refused):
    with refused('zwx', 'untouched'): generated(replace(base, token='zwx'), ORDER, tmp_path)
    assert not drawn

# recipes

def test_an_order_becomes_its_pictures_and_nothing_else_changes(base, drawn, ref, tmp_path):
    r = dreambooth(ref, 3)
    done = resolve(r, base, tmp_path)
    assert len(done.bindings[1].images)==3 and done.bindings[1].prompts()==['a photo of style']*3
    assert replace(done, bindings=r.bindings)==r and done.bindings[0]==r.bindings[0]

def test_chosen_pictures_are_never_drawn(base, drawn, ref, aux, tmp_path):
    r = styleboost(ref, aux)
    assert resolve(r, base, tmp_path)==r and not drawn and not list(tmp_path.iterdir())

# words for pictures

def test_a_folder_gives_all_it_has_or_as_many_as_asked(aux, tmp_path):
    folder = aux.save(tmp_path/'aux')
    assert len(prior_images(str(folder)))==4 and len(prior_images(str(folder), 2))==2 and isinstance(prior_images(str(folder)), ImageSet)

@pytest.mark.parametrize('n', [5, 0, -1])
def test_fewer_than_asked_or_none_asked_is_refused(aux, tmp_path, refused, n):
    folder = aux.save(tmp_path/'aux')
    with refused(): prior_images(str(folder), n)

@pytest.mark.parametrize('n', [0, -1])
def test_generating_none_is_refused_not_replaced(refused, n):
    with refused(): prior_images('generated', n)

@pytest.mark.parametrize('word', ['world:nowhere', 'world:', 'nowhere'])
def test_an_unknown_word_is_refused(refused, word):
    with refused(word.removeprefix('world:')): prior_images(word)

def test_none_is_no_prior_whatever_the_count(): assert prior_images('none', 5) is None
