"Generated priors: drawn only when asked, kept under what they depend on, and never half there."
import hashlib, json
from dataclasses import replace
from pathlib import Path

import diffusers, pytest, torch
from PIL import Image

from styleboost.training import priors
from styleboost.methods.load import make_method
from styleboost.pictures.images import ImageSet, Picture, png
from styleboost.training.priors import apart, cache_folder, generated, prior_images, prior_key, resolve, with_words
from styleboost.judging.suggest import save_suggestion, suggest
from styleboost.training.recipes import Generated, dreambooth, no_prior, styleboost
from styleboost.pictures.world import pool, style_ref

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
    other = replace(base, process=replace(base.process, schedule=diffusers.DDPMScheduler.from_config(base.process.settings, prediction_type='v_prediction')))
    generated(base, ORDER, tmp_path); generated(other, ORDER, tmp_path)
    assert len(drawn)==2

def test_a_base_by_another_name_shares_its_pictures(base, drawn, tmp_path):
    generated(base, ORDER, tmp_path); generated(replace(base, name='/elsewhere'), ORDER, tmp_path)
    assert len(drawn)==1

def test_the_cache_is_where_the_environment_says(base, drawn, tmp_path, monkeypatch):
    monkeypatch.setenv('STYLEBOOST_CACHE', str(tmp_path/'here'))
    assert cache_folder()==tmp_path/'here' and all(p.path.is_relative_to(tmp_path/'here') for p in generated(base, ORDER))

@pytest.mark.skipif(not Path('/proc').exists(), reason='no disk here refuses the superuser')
def test_a_cache_that_cannot_be_written_is_refused_before_the_drawing(base, drawn, monkeypatch, refused):
    monkeypatch.delenv('STYLEBOOST_CACHE'); monkeypatch.setenv('HOME', '/proc')
    with refused('/proc/.cache/styleboost', 'choose another place'): generated(base, ORDER)
    assert drawn==[]

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
    with refused('zwx', 'untouched'): generated(replace(base, method=make_method('full')), ORDER, tmp_path)
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

def test_unless_asked_a_folder_is_used_whole_and_everything_else_gives_twenty(aux, tmp_path, said):
    folder = ImageSet([replace(aux[0], name=f'{i}.png', data=png(Image.new('RGB', (8,8), (i,0,0)))) for i in range(25)], 'many').save(tmp_path/'many')
    assert len(prior_images(str(folder)))==25 and not said()
    assert prior_images('world:people').hash==pool('people').sample(20, 0).hash and any('600 pictures, and 20 of them' in m and '--aux-count' in m for m in said())
    assert prior_images('generated').n==20 and len(prior_images('world:people', 30))==30
    assert len(prior_images(f'suggest:{folder}', ref=TAUGHT))==20

def test_none_is_no_prior_whatever_the_count(): assert prior_images('none', 5) is None

# words for priors

HELD, AS_DATA = ('prior','base'), ('prior','pictures')

@pytest.mark.parametrize('words, want, anchor', [
    (['none'], [], None), (['hold:class'], [('a photo of style',*HELD)], None), (['hold:blank'], [('',*HELD)], None), (['hold:pics'], [('a photo of style',*HELD)], None),
    (['aux:pics'], [('a photo of style',*AS_DATA)], None), (['hold:generated:a dog'], [('a dog',*HELD)], None), (['anchor:.5'], [], .5), (['none', 'anchor:2'], None, 'none'),
    (['pics+hold:blank','anchor:1e3'], [('a photo of style',*AS_DATA), ('',*HELD)], 1e3), (['hold:none'], None, 'holds nothing'), (['anchor:x'], None, 'no number')], ids=str)
def test_words_become_priors(ref, aux, refused, words, want, anchor):
    def find(word): return aux if word in ('pics','aux:pics') else prior_images(word)
    make = lambda: with_words(styleboost(ref, aux), words, find)
    if want is None:
        with refused(anchor): make()
    else:
        r = make()
        assert [(b.prompt, b.role, b.toward) for b in r.bindings[1:]]==want and r.anchor==anchor and r.bindings[0]==no_prior(ref).bindings[0]

def test_a_weight_each_or_one_for_all(ref, aux, refused):
    weights = lambda w: [b.weight for b in with_words(no_prior(ref), ['a','hold:class'], lambda word: aux, weights=w).bindings[1:]]
    assert (weights([.5]), weights([.5,2.]))==([.5,.5], [.5,2.])
    with refused('2 priors have 3 weights'): weights([1.,1.,1.])

def test_a_folder_may_have_a_plus_in_its_name(tmp_path):
    (tmp_path/'a+b').mkdir()
    assert apart(f'hold:{tmp_path}/a+b')==[f'hold:{tmp_path}/a+b'] and apart(f'{tmp_path}/a+hold:class')==[f'{tmp_path}/a','hold:class'] and apart('generated:1+1')==['generated:1+1']

# suggestions

TAUGHT = style_ref('openmoji')

def of_sets(*names, n=12): return ImageSet([p for k in names for p in pool(k)[:n]], 'pool')

class Flat:
    "An encoder whose features are given by the pictures' mean colour; it cannot tell people."
    name, people, embed_texts, person_line = 'flat', None, None, None
    def features(self, images): return torch.tensor([p.open().resize((1,1)).getpixel((0,0)) for p in images])/255
    def style_features(self, f): return f if isinstance(f, torch.Tensor) else self.features(f)

def colours(*rgb, people=False): return ImageSet([Picture(f'{i}.png', data=png(Image.new('RGB', (8,8), c)), people=people) for i,c in enumerate(rgb)], 'colours')

GREENS = colours((0,200,0), (0,220,0), (0,240,0), (0,180,0))

@pytest.mark.parametrize('term', ['near','general','itself'])
def test_weights_are_numbers(term, refused):
    for odd in (float('nan'), float('inf')):
        with refused('The weights are', 'give numbers'): suggest(TAUGHT, of_sets('micah', 'planets'), 6, **{term:odd})

def test_the_table_has_a_row_a_picture_in_the_pools_order_and_the_terms_make_the_score():
    p = of_sets('micah', 'sprouts')
    s = suggest(TAUGHT, p, 6, near=2, general=.25, itself=3)
    t = s.table
    assert t.columns.tolist()==['name','near','general','people','style_itself','score','chosen'] and t.name.tolist()==[q.name for q in p]
    assert (t.score-(2*t.near+.25*t.general-3*t.style_itself)).abs().max()<1e-5 and t[['near','general']].stack().between(0, 1).all()
    assert [p[i].name for i in s.rows]==[q.name for q in s.images] and set(t.index[t.chosen])==set(s.rows) and len(s.images)==6

def test_the_same_pictures_give_the_same_suggestion():
    a, b = (suggest(TAUGHT, of_sets('micah', 'planets', 'pixel-art'), 7) for _ in '12')
    assert a.images.hash==b.images.hash and a.table.equals(b.table)

@pytest.mark.parametrize('share, n', [(0, 0), (.25, 2), (.5, 4), (1, 8)])
def test_the_share_of_people_is_kept(share, n):
    assert sum(suggest(TAUGHT, of_sets('micah', 'sprouts'), 8, people=share).images.people)==n

def test_what_the_pool_cannot_give_is_said(said):
    s = suggest(TAUGHT, ImageSet([*pool('micah')[:3], *pool('sprouts')[:9]], 'mine'), 8)
    assert sum(s.images.people)==3 and any('mine has 3 pictures with people and 9 without, so 3 instead of 4' in m for m in said())

def test_pictures_without_a_flag_are_looked_at_and_it_is_said(said):
    blank = ImageSet([replace(p, people=None) for p in of_sets('micah', 'landscape')], 'blank')
    s = suggest(TAUGHT, blank, 8)
    assert s.table.people[s.rows].sum()==4 and sum(s.table.people==[p.set=='micah' for p in blank])>=20 and any('24 of 24' in m and 'world was asked' in m for m in said())

def test_nearness_alone_takes_the_nearest():
    p = colours((200,0,0), (0,0,200), (40,200,0), (0,140,0))
    s = suggest(GREENS, p, 1, people=0, general=0, itself=0, judge=Flat())
    assert s.rows==[3] and s.table.near.tolist()==pytest.approx([20/(180**2+200**2)**.5, 20/(180**2+200**2)**.5, .5, .5], abs=.01)

def test_the_style_itself_is_passed_over_for_what_is_just_outside_it():
    p = colours((0,210,0), (0,205,0), (45,180,0), (255,0,255))
    pick = lambda w: suggest(GREENS, p, 1, people=0, general=0, itself=w, judge=Flat())
    assert pick(0).rows[0] in (0,1) and pick(1).rows==[2] and pick(1).table.style_itself.tolist()[:2]==[1,1] and pick(1).table.style_itself[3]==0

def test_general_takes_one_of_each_kind_before_a_second():
    p = colours(*[(250,10*i,0) for i in range(4)], *[(0,10*i,250) for i in range(4)], *[(250,250,10*i) for i in range(4)])
    rows = suggest(GREENS, p, 3, people=0, near=0, itself=0, general=1, judge=Flat()).rows
    assert {r//4 for r in rows}=={0,1,2}

def test_style_references_are_never_suggested(said):
    s = suggest(TAUGHT, of_sets('micah')+TAUGHT[:5], 12, itself=0, general=0)
    assert not {p.sha for p in TAUGHT} & {p.sha for p in s.images} and any('5 of 17' in m for m in said())

def test_all_of_a_pool_may_be_asked_for(): assert len(suggest(TAUGHT, of_sets('micah', 'sprouts', n=3), 6).images)==6

@pytest.mark.parametrize('ask, words', [(dict(k=13), ('12 pictures', '13')), (dict(k=0), ('0 were asked',)), (dict(people=1.5), ('1.5',)), (dict(judge='gone'), ('gone',))], ids=['k','none','people','judge'])
def test_what_cannot_be_suggested_is_refused(refused, ask, words):
    with refused(*words): suggest(TAUGHT, of_sets('micah'), **dict(dict(k=3), **ask))

def test_too_few_references_or_copies_of_one_are_refused(refused):
    with refused('fewer than 3'): suggest(TAUGHT[:2], of_sets('micah'), 3)
    with refused('there twice'): suggest(ImageSet([TAUGHT[0]]*4, 'same'), of_sets('micah'), 3)

def test_a_larger_pool_is_stood_for_by_some_of_it():
    few, all_ = (suggest(TAUGHT, of_sets('micah', 'sprouts'), 4, most=m) for m in (6, 100))
    assert len(few.images)==4 and few.table.near.equals(all_.table.near)

def test_a_suggestion_is_saved_with_licence_and_reasons_and_nothing_is_overwritten(tmp_path, refused):
    s = suggest(TAUGHT, of_sets('micah', 'sprouts'), 4)
    folder = save_suggestion(s, tmp_path/'aux')
    rows = [json.loads(l) for l in (folder/'metadata.jsonl').read_text().splitlines()]
    assert ImageSet.from_folder(folder).captions==s.images.captions and ImageSet.from_folder(folder).people==s.images.people
    assert [r['near'] for r in rows]==pytest.approx(s.table.near[s.rows].tolist(), abs=1e-3) and all(r['licence'] and r['source'] for r in rows)
    assert json.loads((tmp_path/'aux.json').read_text())['settings']['ref_hash']==TAUGHT.hash and Image.open(tmp_path/'aux.png').size[0]>200
    with refused('aux.png'): save_suggestion(s, tmp_path/'aux')
    assert {p.name for p in tmp_path.iterdir()}=={'aux','aux.png','aux.json'}

def test_a_suggestion_has_a_word(refused):
    assert prior_images('suggest:world:micah', 3, ref=TAUGHT).hash==suggest(TAUGHT, pool('micah'), 3).images.hash
    with refused('references'): prior_images('suggest:world:micah', 3)
    with refused('suggest:none'): prior_images('suggest:none', 3, ref=TAUGHT)
