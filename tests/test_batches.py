"Pictures as latents: kept once and never stale, shown once an epoch, drawn as a function of seed and step."
import pytest, torch
from hypothesis import given, strategies as st
from PIL import Image

from styleboost.bases.load import blank
from styleboost.bases.stable_diffusion import Latents
from styleboost.pictures.images import ImageSet, Picture, png
from styleboost.training.batches import Batches, bucket_sizes, keep_views, places, size_of
from styleboost.training.recipes import Binding

# the order of pictures

@given(st.integers(1, 30), st.integers(1, 8), st.integers(0, 2**32), st.integers(0, 9), st.integers(0, 3))
def test_each_epoch_shows_each_picture_once(n, batch, seed, epoch, stream):
    row = [i for step in range(epoch*n//batch, ((epoch+1)*n-1)//batch+1) for i in places(n, batch, seed, step, stream)]
    start = epoch*n-epoch*n//batch*batch
    assert sorted(row[start:start+n])==list(range(n))

@given(st.integers(1, 30), st.integers(1, 8), st.integers(0, 2**32), st.integers(0, 3))
def test_the_row_of_pictures_does_not_depend_on_the_batch(n, batch, seed, stream):
    assert [i for s in range(8) for i in places(n, batch, seed, s, stream)]==[places(n, 1, seed, p, stream)[0] for p in range(8*batch)]

@given(st.integers(0, 2**32), st.integers(0, 5), st.integers(0, 5))
def test_seeds_streams_and_epochs_are_shuffled_apart(seed, stream, epoch):
    at = lambda seed, stream, epoch: tuple(places(30, 30, seed, epoch, stream))
    assert len({at(seed, stream, epoch), at(seed+1, stream, epoch), at(seed, stream+1, epoch), at(seed, stream, epoch+1)})==4

def test_fixed_pairs_stay_together(base, quick, aux):
    b = Batches(base, quick(pairing='fixed', batch=1, resolution=64, ref=aux, prior=aux[:3]), 0, 'cpu')
    pairs = {tuple(i[0] for i in b.pictures(s)) for s in range(24)}
    assert pairs=={(0,0),(1,1),(2,2),(3,0)}

def test_fixed_pairs_leave_no_auxiliary_picture_out(base, quick):
    "With more auxiliary pictures than references, as in the paper, the references repeat."
    b = Batches(base, quick(pairing='fixed', batch=1, resolution=64), 0, 'cpu')
    pairs = {tuple(i[0] for i in b.pictures(s)) for s in range(24)}
    assert {a for _,a in pairs}=={0,1,2,3} and len(pairs)==4

def test_fixed_pairs_of_two_equal_sets_are_i_with_i(base, quick, ref):
    b = Batches(base, quick(ref, pairing='fixed', batch=2, resolution=64), 0, 'cpu')
    assert all(r==a for s in range(6) for r,a in [b.pictures(s)])

def test_independent_pairs_change_from_epoch_to_epoch(base, quick):
    b = Batches(base, quick(batch=1, resolution=64), 0, 'cpu')
    assert len({tuple(i[0] for i in b.pictures(s)) for s in range(36)})>6

def test_the_first_binding_sees_the_same_pictures_whatever_the_prior(base, quick, ref):
    with_, without = (Batches(base, quick(p, batch=2, resolution=64), 5, 'cpu') for p in (ref, None))
    assert all(with_.pictures(s)[0]==without.pictures(s)[0] for s in range(6))

def test_each_picture_keeps_its_own_caption(base, quick, ref):
    b = Batches(base, quick(batch=3, resolution=64), 0, 'cpu')
    for s in range(4):
        names, batch = b.files(s), b(s)
        assert batch.texts==[f'a photo of zwx style, a picture of {n.removesuffix(".png")}' for n in names[:3]]+['a photo of style']*3

# crops and samples

@pytest.mark.parametrize('size, cuts', [((128,64),4), ((64,128),4), ((96,96),1)])
@pytest.mark.parametrize('flip', [False, True])
def test_a_picture_that_is_not_square_gives_several_crops(base, quick, picture, size, cuts, flip):
    r = quick(crops=4, flip=flip, resolution=64)
    (m,) = keep_views(base, Binding(ImageSet([picture('long', size)]), 'x'), r)
    assert len(m)==cuts*(1+flip) and len({v.x.numpy().tobytes() for v in m})==len(m)

def test_crops_reach_both_ends_of_a_long_picture(base, quick):
    im = Image.new('RGB', (192,64), 'white'); im.paste('red', (0,0,64,64)); im.paste('blue', (128,0,192,64))
    (m,) = keep_views(base, Binding(ImageSet([Picture('flag.png', data=png(im))]), 'x'), quick(crops=3, resolution=64))
    alone = [keep_views(base, Binding(ImageSet([Picture('c.png', data=png(Image.new('RGB', (64,64), c)))]), 'x'), quick(resolution=64))[0][0].x for c in ('red','white','blue')]
    for got,want in zip(m, alone): torch.testing.assert_close(got.x, want, rtol=1e-3, atol=1e-3)

def unspoilt(batch, schedule):
    "The latents before noise was added, by the noise that the net is asked for."
    a = schedule.alphas_cumprod[batch.t].sqrt().view(-1,1,1,1)
    return (torch.stack(batch.xt)-(1-a**2).sqrt()*torch.stack(batch.y))/a

def test_the_latents_are_sampled_anew_each_step(base, quick, ref):
    b = Batches(base, quick(None, ref=ref[:1], resolution=64), 0, 'cpu')
    for v in b.kept[0][0]: v.x = v.x*0+1
    clean = lambda step: unspoilt(b(step), base.process.schedule)[0]
    assert not torch.equal(clean(0), clean(1)) and torch.equal(clean(1), clean(1))

# parts of a step

@given(st.integers(0, 50), st.sampled_from([1, 2, 3, 6]))
def test_the_parts_of_a_step_are_the_step(base, quick, step, parts):
    b = Batches(base, quick(batch=6, resolution=64), 0, 'cpu')
    whole, split = b(step), [b(step, k, parts) for k in range(parts)]
    rows = lambda batch: sorted((t, p, x.sum().item(), y.sum().item()) for t,p,x,y in zip(batch.t.tolist(), batch.texts, batch.xt, batch.y))
    assert rows(whole)==sorted(r for s in split for r in rows(s)) and all(s.sizes==[6//parts]*2 for s in split)
    assert all(p.startswith('a photo of zwx') for s in split for p in s.texts[:s.sizes[0]])

# buckets

@given(st.sampled_from([256, 512, 768, 1024]), st.sampled_from([32, 64]))
def test_buckets_hold_no_more_pixels_than_the_square(resolution, step):
    sizes = bucket_sizes(resolution, step)
    assert (resolution,resolution) in sizes and {(h,w) for w,h in sizes}==set(sizes)
    assert all(w%step==0==h%step and w*h<=resolution**2 and max(w,h)<=2.5*min(w,h) for w,h in sizes)

@pytest.mark.parametrize('size, want', [((512,512),(512,512)), ((3000,2000),(640,384)), ((2000,3000),(384,640)), ((4000,1000),(768,320)), ((1300,1000),(576,448))])
def test_a_picture_goes_where_least_is_cut_off(quick, size, want):
    assert size_of(Image.new('RGB', size), quick(resolution=512, buckets=True), 64)==want
    assert size_of(Image.new('RGB', size), quick(resolution=512), 64)==(512,512)

def mixed(picture): return ImageSet([picture(f'w{i}', (192,96)) for i in range(5)]+[picture(f't{i}', (96,192)) for i in range(4)]+[picture('s', (128,128))], 'mixed')

def test_pictures_in_buckets_keep_their_proportions_and_train_together(base, quick, picture):
    images = mixed(picture)
    b = Batches(base, quick(None, ref=images, buckets=True, resolution=64, batch=2), 0, 'cpu')
    assert len(set(b.shapes[0]))==3
    shown = [i for s in range(5) for i in b.pictures(s)[0]]
    assert sorted(shown)==list(range(10))
    assert sum(len({b.shapes[0][i] for i in b.pictures(s)[0]})==1 for s in range(5))>=4

@given(st.lists(st.sampled_from('abc'), min_size=1, max_size=20), st.integers(1, 5), st.integers(0, 99), st.integers(0, 4))
def test_each_epoch_shows_each_picture_once_in_buckets_too(shapes, batch, seed, epoch):
    n, shapes = len(shapes), tuple(shapes)
    row = [i for s in range(epoch*n//batch, ((epoch+1)*n-1)//batch+1) for i in places(n, batch, seed, s, 0, shapes)]
    start = epoch*n-epoch*n//batch*batch
    assert sorted(row[start:start+n])==list(range(n))

# how a picture was cut

def test_frames_say_where_a_picture_was_cut(quick, picture):
    xl, images = blank('sdxl'), ImageSet([picture('wide', (128,64))])
    (m,) = keep_views(xl, Binding(images, 'x'), quick(crops=3, resolution=64))
    assert [v.told['frame'][0].tolist() for v in m]==[[64,128,0,x,64,64] for x in (0,32,64)]
    (m,) = keep_views(xl, Binding(ImageSet([picture('big', (256,128))]), 'x'), quick(crops=2, resolution=64))
    assert [v.told['frame'][0].tolist() for v in m]==[[128,256,0,x,64,64] for x in (0,64)]

# kept on disk

@pytest.mark.parametrize('change', ['picture', 'resolution', 'flip', 'crops', 'autoencoder'])
def test_kept_latents_are_never_stale(base, quick, picture, tmp_path, monkeypatch, change):
    wide = picture('wide', (128,64))
    r, images = quick(resolution=64, crops=2), ImageSet([wide])
    first = keep_views(base, Binding(images, 'x'), r, keep=tmp_path)
    seen = []
    monkeypatch.setattr(Latents, 'keep', lambda self, x, real=Latents.keep: seen.append(len(x)) or real(self, x))
    again = keep_views(base, Binding(images, 'x'), r, keep=tmp_path)
    assert not seen and all(torch.equal(a.x, b.x) and torch.equal(a.told['frame'], b.told['frame']) for a,b in zip(first[0], again[0]))
    if change=='picture': images = ImageSet([Picture(wide.name, data=png(Image.new('RGB', (128,64), 'teal')))])
    if change in ('resolution','flip','crops'): r = quick(resolution=48 if change=='resolution' else 64, flip=change=='flip', crops=3 if change=='crops' else 2)
    b = blank('sd1') if change=='autoencoder' else base
    got, plain = (keep_views(b, Binding(images, 'x'), r, keep=k) for k in (tmp_path, None))
    assert seen
    for a,b in zip(got[0], plain[0], strict=True): torch.testing.assert_close(a.x, b.x, rtol=1e-4, atol=1e-4)

def test_a_damaged_file_of_latents_is_named(base, quick, picture, tmp_path, refused):
    keep_views(base, Binding(ImageSet([picture('a')]), 'x'), quick(resolution=64), keep=tmp_path)
    f, = tmp_path.iterdir(); f.write_bytes(b'half')
    with refused(f): keep_views(base, Binding(ImageSet([picture('a')]), 'x'), quick(resolution=64), keep=tmp_path)

# which levels of noise

def test_a_run_sees_the_levels_that_its_recipe_asks_for(base, quick):
    levels = lambda **kw: torch.cat([b(s).t for b in [Batches(base, quick(batch=4, resolution=64, **kw), 3, 'cpu')] for s in range(8)])
    known = base.process.schedule.alphas_cumprod.double()
    log_snr = lambda t: (known[t]/(1-known[t])).log()
    narrow, friendly, plain = log_snr(levels(log_snr=2., log_snr_std=.1)), log_snr(levels(log_snr=-6.)), log_snr(levels())
    assert ((narrow-2).abs()<.5).all() and friendly.mean()<plain.mean()-1 and friendly.min()>=log_snr(torch.tensor(len(known)-1))
