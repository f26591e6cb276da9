"A look at pictures before training: what it finds, what it does not, and that it changes nothing."
import gc, hashlib, io, tracemalloc, weakref

import numpy as np, pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from styleboost.judging.check import KINDS, Seen, check, copy_groups, copy_pairs, see
from styleboost.pictures.images import ImageSet, Picture, png
from styleboost.pictures.prompts import Prompt
from styleboost.pictures.world import pictures, pool, style_ref
from styleboost.showing.checkpage import check_page

def made(name, im, **kw): return Picture(f'{name}.png', data=png(im), **kw)

def jpeg(im, quality=60):
    b = io.BytesIO(); im.save(b, 'jpeg', quality=quality)
    return Image.open(io.BytesIO(b.getvalue())).convert('RGB')

def looked(**sets): return check({k: v if isinstance(v, ImageSet) else ImageSet(v) for k,v in sets.items()}, progress=False)

def kinds(told): return {f.kind for f in told.findings}

FACES = pool('people')[:40]
CHANGED = dict(again=lambda im: jpeg(im), smaller=lambda im: im.resize((40,40), Image.LANCZOS), larger=lambda im: im.resize((200,200), Image.BICUBIC),
    lighter=lambda im: ImageEnhance.Brightness(im).enhance(1.15), mirrored=ImageOps.mirror)

@pytest.mark.parametrize('how', CHANGED)
def test_a_changed_copy_is_found(how):
    found = [bool(copy_pairs(see(dict(a=ImageSet([p, made('copy', CHANGED[how](p.open()))])), progress=False))) for p in FACES]
    assert sum(found)>=39, how

def test_different_drawings_are_hardly_ever_taken_for_copies():
    seen = see(dict(a=pictures('twemoji')[:200], b=FACES, c=pool('landscape')[:60]), progress=False)
    rows = {i for i,*_ in copy_pairs(seen)}
    assert len(rows)<=15, [seen.where[i][1].name for i in rows]   # emoji that differ in a detail are copies to the eye, too

def test_empty_pictures_are_not_copies_of_each_other():
    assert not copy_pairs(see(dict(a=ImageSet([made('w', Image.new('RGB', (64,64), 'white')), made('r', Image.new('RGB', (64,64), 'red'))])), progress=False))

@pytest.mark.parametrize('one, other, means', [('ref','reference','reward a copy'), ('ref','aux','hold on to the style itself'), ('aux','reference','no longer unseen'), ('mine','yours','one of them should go')])
def test_a_picture_that_two_sets_share_says_what_that_means(one, other, means):
    p = FACES[0]
    told = looked(**{one: [p, *FACES[1:4]], other: [made('copy', p.open().resize((48,48), Image.LANCZOS)), *pool('things')[:4]]})
    leak = [f for f in told.findings if f.kind=='leak']
    assert len(leak)==1 and means in leak[0].sentence and 'nearly the same' in leak[0].sentence and f'copy.png of {other}' in leak[0].sentence
    assert [name for name,_,_ in leak[0].pictures]==[one, other] and told.lines()[0]==leak[0].sentence

def test_copies_within_a_set_are_one_finding_a_group():
    p = FACES[0]
    told = looked(aux=[p, made('b', jpeg(p.open())), made('c', jpeg(p.open(), 40)), *FACES[1:4]])
    copies = [f for f in told.findings if f.kind=='copies']
    assert len(copies)==1 and len(copies[0].pictures)==3 and 'counts more than once' in copies[0].sentence

def test_blur_size_and_square_are_found_and_good_pictures_are_not():
    p = style_ref('openmoji')[0].open()
    wide = Image.new('RGB', (192,64), 'white'); wide.paste(p, (0,0)); wide.paste(p, (128,0))
    told = looked(aux=[made('blur', p.filter(ImageFilter.GaussianBlur(2.5))), made('small', p.resize((32,32))), made('wide', wide), *style_ref('openmoji')[1:6]])
    of = {f.kind: [p.name for _,p,_ in f.pictures] for f in told.findings}
    assert 'blur.png' in of['blur'] and of['small']==['small.png'] and of['crop']==['wide.png'] and len(of['blur'])<=2
    assert not kinds(looked(ref=style_ref('openmoji'))) and not kinds(looked(aux=pool('things')[:10]))-{'mix','copies'}

def test_what_was_asked_for_and_trained_on_is_a_leak():
    ref = style_ref('openmoji')
    told = check(dict(ref=ref), [Prompt(ref[0].caption.upper()), Prompt('something else')], progress=False)
    assert [f.kind for f in told.findings]==['leak'] and '1 of the prompts' in told.findings[0].sentence

def test_prompts_that_are_there_twice_are_said():
    told = check(dict(aux=FACES[:2]), [Prompt(t) for t in ('a dog', 'A  dog', 'a cat', 'a dog', 'a doge')], progress=False)
    twice, = [f for f in told.findings if f.kind=='copies' and 'prompts' in f.sentence]
    assert "1 of the 5 prompts are there more than once, such as 'a dog'" in twice.sentence and not twice.pictures
    assert twice.sentence in told.lines() and twice.sentence.replace("'", '&#39;') in check_page(told.sets, told.findings, KINDS)
    assert not any('prompts' in line for line in check(dict(aux=FACES[:2]), [Prompt('a dog'), Prompt('a cat')], progress=False).lines())

def test_mix_and_captions():
    told = looked(ref=[*style_ref('openmoji').where(True)[:8]], aux=[made('a', FACES[0].open(), caption='a face'), made('b', FACES[1].open()), made('c', FACES[2].open(), caption='word '*80)])
    said = ' '.join(told.lines())
    assert '8 of 8 pictures show people' in said and 'do not say whether' in said and 'no caption' in said and 'more than 60 words' in said and '8 pictures are few' in said

def test_nothing_is_changed(tmp_path):
    style_ref('openmoji')[:4].save(tmp_path/'a')
    before = {f: hashlib.sha256(f.read_bytes()).hexdigest() for f in tmp_path.rglob('*') if f.is_file()}
    check(dict(ref=ImageSet.from_folder(tmp_path/'a')), progress=False)
    assert before=={f: hashlib.sha256(f.read_bytes()).hexdigest() for f in tmp_path.rglob('*') if f.is_file()}

class Fleeting:
    "A picture that knows how many of its kind are open."
    alive, most = 0, 0
    def __init__(self, i): self.name, self.i, self.caption, self.people, self.subject = f'{i}.png', i, '', None, ''
    sha = property(lambda self: str(self.i))
    def open(self):
        im = Image.fromarray(np.random.default_rng(self.i).integers(0, 256, (8,8,3), dtype=np.uint8)).resize((64,64))
        Fleeting.alive += 1; Fleeting.most = max(Fleeting.most, Fleeting.alive)
        weakref.finalize(im, self.gone)
        return im
    @staticmethod
    def gone(): Fleeting.alive -= 1

def test_pictures_are_looked_at_one_at_a_time():
    gc.collect(); Fleeting.most = 0
    see(dict(a=[Fleeting(i) for i in range(200)]), progress=False)
    assert Fleeting.most<=2

def test_five_thousand_pictures_are_looked_at_with_a_line_of_progress_and_little_memory(monkeypatch, capsys):
    "Tracing slows, so only the last thousand are traced."
    rng, n, alive, opened = np.random.default_rng(0), 5000, [0, 0], Picture.open
    pics = ImageSet([made(i, Image.fromarray(rng.integers(0, 256, (16,16,3), dtype=np.uint8))) for i in range(n)], 'a')
    seen_before = []
    def watched(self):
        seen_before.append(self.name)
        if len(seen_before)==4000: tracemalloc.start()
        im = opened(self)
        alive[0] += 1; alive[1] = max(alive)
        weakref.finalize(im, lambda: alive.__setitem__(0, alive[0]-1))
        return im
    monkeypatch.setattr(Picture, 'open', watched)
    try: seen = see(dict(a=pics)); peak = tracemalloc.get_traced_memory()[1]
    finally: tracemalloc.stop()
    told = capsys.readouterr().err
    assert len(seen.where)==len(seen.table)==len(seen_before)==n and alive[1]<=2 and peak<16e6
    assert 'looking at pictures: 100% 5000/5000' in told and '\r' not in told and len(told.splitlines())<10

def test_memory_stays_flat_with_five_thousand_pictures():
    rng, n = np.random.default_rng(0), 5000
    hashes, tiny = rng.choice([-1,1], (n,64)).astype(np.int8), rng.normal(size=(n,256)).astype(np.float32)
    for i in range(0, n, 100): hashes[i+1], tiny[i+1] = hashes[i], tiny[i]
    tiny = (tiny-tiny.mean(1, keepdims=True))/tiny.std(1, keepdims=True)
    seen = Seen([('a' if i%2 else 'b', None) for i in range(n)], hashes, hashes, tiny, [str(i) for i in range(n)])
    tracemalloc.start()
    groups = copy_groups(copy_pairs(seen))
    peak = tracemalloc.get_traced_memory()[1]; tracemalloc.stop()
    assert [g for g,_ in groups]==[[i, i+1] for i in range(0, n, 100)] and peak<120e6

def test_five_thousand_copies_of_one_picture_are_one_finding():
    n = 5000
    seen = Seen([('a', None)]*n, np.ones((n,64), np.int8), -np.ones((n,64), np.int8), np.ones((n,256), np.float32), ['same']*n)
    assert [len(g) for g,_ in copy_groups(copy_pairs(seen))]==[n]

def test_what_a_page_shows_is_limited_and_said():
    told = looked(aux=[made(f'{i}', FACES[i].open().resize((32,32))) for i in range(40)])
    page = check_page(told.sets, told.findings, KINDS)
    assert '16 more are not shown' in page and page.count('<img')<=24*len(told.findings) and 'http' not in page.split('</style>')[1]

def test_an_encoder_finds_what_the_hash_does_not():
    class Same:
        def embed_images(self, ims): return np.tile([1.,0.], (len(ims), 1))
    sets = dict(a=ImageSet(list(FACES[:3])))
    assert not copy_pairs(see(sets, progress=False)) and len(copy_pairs(see(sets, encoder=Same(), progress=False)))==2

def test_nothing_to_check_is_refused(refused):
    with refused('no pictures'): check({})
    with refused('8 or more'): check(dict(a=FACES), size=4)
