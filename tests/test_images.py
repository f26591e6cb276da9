"A folder of anything: what can be read is read and upright, the rest is named with its reason, and nothing on disk is touched."
import io, json, os, random, shutil, struct, subprocess, zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st
from PIL import Image, ImageCms

from styleboost.pictures import images
from styleboost.pictures.images import WRITING, ImageSet, Picture, contact_sheet
from styleboost.core import StyleboostError

TEAL, RED = (0,128,128), (255,0,0)

def encoded(im=None, kind='PNG', **kw):
    b = io.BytesIO(); (im or Image.new('RGB', (16,16), TEAL)).save(b, kind, **kw); return b.getvalue()

def opened(folder, name): return {p.name: p for p in ImageSet.from_folder(folder)}[name].open()

def near(a, b, by=6): return all(abs(x-y)<=by for x,y in zip(a, b, strict=True))

def state(folder): return {p.relative_to(folder).as_posix(): (p.lstat().st_mtime_ns, p.read_bytes() if p.is_file() else None) for p in sorted(folder.rglob('*'))}

@pytest.fixture
def folder(tmp_path):
    "A folder with one good picture."
    f = tmp_path/'pictures'; f.mkdir()
    (f/'good.png').write_bytes(encoded())
    return f

@pytest.fixture
def unreadable(monkeypatch):
    "Makes one path unreadable, for root too."
    def make(path):
        for name in ('read_bytes','read_text','iterdir','open'):
            def closed(self, *args, real=getattr(Path, name), **kw):
                if self==path: raise PermissionError(13, 'Permission denied', str(self))
                return real(self, *args, **kw)
            monkeypatch.setattr(Path, name, closed)
    return make

# what cannot be read

noise = Image.effect_noise((64,64), 90)
UNREADABLE = {
    'cut.png': encoded(noise)[:900], 'cut.jpg': encoded(noise, 'JPEG')[:900], 'cut.webp': encoded(noise, 'WEBP')[:500], 'cut.gif': encoded(noise, 'GIF')[:900],
    'empty.jpg': b'', 'words.png': b'these are words, not a picture', 'notes.pdf': b'%PDF-1.7', 'no-ending': b'x', 'Thumbs.db': b'\xd0\xcf\x11\xe0', '.DS_Store': b'\0\0\0\1Bud1'}

@pytest.mark.parametrize('name', UNREADABLE)
def test_an_unreadable_file_is_named_and_left_where_it_is(folder, said, name):
    (folder/name).write_bytes(UNREADABLE[name])
    before = state(folder)
    found = ImageSet.from_folder(folder)
    assert [p.name for p in found]==['good.png'] and [n for n,_ in found.skipped]==[name]
    assert [m for m in said() if name in m and '\n' not in m]==said() and len(said())==1
    assert state(folder)==before

def test_the_folder_that_jupyter_makes_is_named_and_not_entered(folder, said):
    inner = folder/'.ipynb_checkpoints'; inner.mkdir(); (inner/'good-checkpoint.png').write_bytes(encoded())
    assert len(ImageSet.from_folder(folder))==1 and any('.ipynb_checkpoints' in m for m in said())
    assert (inner/'good-checkpoint.png').exists()

@pytest.mark.parametrize('limit', ['ours', 'Pillow\'s'])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(folder, said, monkeypatch, limit):
    (folder/'bomb.png').write_bytes(encoded(Image.new('L', (100,100))))
    if limit=='ours': monkeypatch.setattr(images, 'BOMB', 1000)
    else: monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1000)
    monkeypatch.setattr(Image.Image, 'load', lambda self, real=Image.Image.load: real(self) if self.size==(16,16) else pytest.fail('decoded'))
    assert [n for n,_ in ImageSet.from_folder(folder).skipped]==['bomb.png']
    assert 'bomb.png' in said()[0] and 'smaller' in said()[0]

def test_a_file_that_may_not_be_read_is_named(folder, said, unreadable):
    (folder/'secret.png').write_bytes(encoded()); unreadable(folder/'secret.png')
    assert len(ImageSet.from_folder(folder))==1 and 'secret.png' in said()[0] and 'Permission' in said()[0]

def test_a_link_to_nothing_is_named(folder, said):
    (folder/'moved.png').symlink_to(folder/'elsewhere.png')
    assert len(ImageSet.from_folder(folder))==1 and 'moved.png' in said()[0]

def test_a_missing_folder_is_refused(tmp_path, refused):
    with refused(tmp_path/'nowhere', 'does not exist'): ImageSet.from_folder(tmp_path/'nowhere')

def test_a_file_in_place_of_a_folder_is_refused(folder, refused):
    with refused('good.png', 'is a file'): ImageSet.from_folder(folder/'good.png')

def test_a_folder_that_may_not_be_read_is_refused(folder, refused, unreadable):
    unreadable(folder)
    with refused(folder): ImageSet.from_folder(folder)

def test_an_empty_folder_is_refused(tmp_path, refused):
    with refused(tmp_path, 'no readable picture'): ImageSet.from_folder(tmp_path)

def test_a_folder_with_nothing_readable_is_refused_and_each_file_named(tmp_path, refused, said):
    for n in ('a.png','b.jpg'): (tmp_path/n).write_bytes(b'')
    (tmp_path/'more').mkdir(); (tmp_path/'more'/'c.png').write_bytes(encoded())
    with refused(tmp_path, '3 files'): ImageSet.from_folder(tmp_path)
    assert all(any(n in m for m in said()) for n in ('a.png','b.jpg','more'))

def test_a_picture_that_vanishes_later_is_named(folder, refused):
    found = ImageSet.from_folder(folder); (folder/'good.png').unlink()
    with refused('good.png'): found.images()

# what is read in another form

def test_cmyk_becomes_rgb_and_that_is_said(folder, said):
    (folder/'print.jpg').write_bytes(encoded(Image.new('CMYK', (16,16), (0,255,255,0)), 'JPEG', quality=95))
    assert near(opened(folder, 'print.jpg').getpixel((8,8)), RED, 8)
    assert 'CMYK' in said()[0] and 'print.jpg' in said()[0]

@pytest.mark.parametrize('value', [0, 255, 256, 32768, 65535])
def test_sixteen_bits_are_scaled_not_cut(folder, said, value):
    (folder/'scan.png').write_bytes(encoded(Image.new('I;16', (16,16), value)))
    assert near(opened(folder, 'scan.png').getpixel((8,8)), (value/257,)*3, 1)
    assert '16-bit' in said()[0] and 'scan.png' in said()[0]

def test_sixteen_bits_with_a_transparent_grey_are_read(folder):
    (folder/'scan.png').write_bytes(encoded(Image.new('I;16', (16,16), 40000), transparency=40000))
    assert [p.name for p in ImageSet.from_folder(folder)]==['good.png','scan.png']

def test_a_palette_without_transparency_keeps_its_colours_and_needs_no_word(folder, said):
    (folder/'flat.png').write_bytes(encoded(Image.new('RGB', (16,16), RED).quantize(4)))
    assert near(opened(folder, 'flat.png').getpixel((8,8)), RED) and not said()

@pytest.mark.parametrize('kind', ['PNG', 'GIF'])
def test_a_palette_with_transparency_lies_on_white_and_that_is_said(folder, said, kind):
    im = Image.new('RGB', (16,16), RED); im.paste(TEAL, (0,0,8,16)); im = im.quantize(2)
    (folder/f'hole.{kind.lower()}').write_bytes(encoded(im, kind, transparency=im.getpixel((0,0))))
    got = opened(folder, f'hole.{kind.lower()}')
    assert got.getpixel((2,2))==(255,255,255) and near(got.getpixel((12,2)), RED)
    assert 'transparency' in said()[0] and f'hole.{kind.lower()}' in said()[0]

@pytest.mark.parametrize('kind', ['GIF', 'WEBP', 'PNG'])
def test_an_animation_gives_its_first_frame_and_that_is_said(folder, said, kind):
    name = f'moves.{kind.lower()}'
    (folder/name).write_bytes(encoded(Image.new('RGB', (16,16), RED), kind, save_all=True, append_images=[Image.new('RGB', (16,16), c) for c in (TEAL,'white')], lossless=True))
    assert near(opened(folder, name).getpixel((8,8)), RED)
    assert 'first frame' in said()[0] and name in said()[0]

LAID = {1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270}

@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP'])
@pytest.mark.parametrize('orientation', LAID)
def test_exif_orientation_ends_upright(folder, said, orientation, kind):
    im = Image.new('RGB', (64,32), 'white'); im.paste(RED, (0,0,32,16)); im.paste(TEAL, (32,16,64,32))
    exif = Image.Exif(); exif[0x0112] = orientation
    (folder/f'phone.{kind.lower()}').write_bytes(encoded(im if orientation==1 else im.transpose(LAID[orientation]), kind, exif=exif.tobytes(), quality=95))
    got = opened(folder, f'phone.{kind.lower()}')
    assert got.size==(64,32) and near(got.getpixel((4,4)), RED, 12) and near(got.getpixel((60,28)), TEAL, 12) and near(got.getpixel((60,4)), (255,)*3, 12)
    assert [f'phone.{kind.lower()}' in m for m in said()]==[True]*(orientation>1)

@pytest.mark.filterwarnings('ignore:Corrupt EXIF')
def test_garbled_exif_does_not_stop_the_folder(folder):
    (folder/'camera.jpg').write_bytes(encoded(Image.new('RGB', (16,16)), 'JPEG', exif=b'Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12\0\x03\xff\xff\xff\xff'))
    assert 'good.png' in [p.name for p in ImageSet.from_folder(folder)]

# colours

def profile(space, tags, kind=b'mntr', pcs=b'XYZ '):
    "An ICC profile of version 2."
    at, table, body = 132+12*len(tags), struct.pack('>I', len(tags)), b''
    for name,data in tags.items():
        table += name+struct.pack('>II', at+len(body), len(data)); body += data+b'\0'*(-len(data)%4)
    head = struct.pack('>I', at+len(body))+b'lcms'+struct.pack('>I', 0x02400000)+kind+space+pcs+struct.pack('>6H',2024,1,1,0,0,0)+b'acsp'+b'\0'*28+struct.pack('>I',0)
    return (head+b''.join(map(fixed, D50))+b'lcms').ljust(128, b'\0')+table+body

D50, D65 = (.9642,1.,.8249), (.9505,1.,1.089)
def fixed(v): return struct.pack('>i', round(v*65536))
def xyz(v): return b'XYZ \0\0\0\0'+b''.join(map(fixed, v))
def curve(gamma): return b'curv\0\0\0\0'+struct.pack('>IH', 1, round(gamma*256))
def named(name): return b'desc\0\0\0\0'+struct.pack('>I', len(name)+1)+name+b'\0'*79

def rgb_profile(name, primaries, gamma):
    "A profile of three primaries and one curve."
    m = np.array([[x/y,1,(1-x-y)/y] for x,y in primaries]).T; m = m*np.linalg.solve(m, np.array(D65))
    b = np.array([[.8951,.2664,-.1614],[-.7502,1.7135,.0367],[.0389,-.0685,1.0296]])             # Bradford's adaptation to D50
    m = np.linalg.inv(b)@np.diag((b@D50)/(b@D65))@b@m
    return profile(b'RGB ', {b'desc':named(name), b'wtpt':xyz(D50), **{t:xyz(m[:,i]) for i,t in enumerate((b'rXYZ',b'gXYZ',b'bXYZ'))}, **{t:curve(gamma) for t in (b'rTRC',b'gTRC',b'bTRC')}})

ADOBE = rgb_profile(b'AdobeRGB', [(.64,.33),(.21,.71),(.15,.06)], 2.2)
P3 = rgb_profile(b'DisplayP3', [(.68,.32),(.265,.69),(.15,.06)], 2.2)
LINEAR_GREY = profile(b'GRAY', {b'desc':named(b'LinearGrey'), b'wtpt':xyz(D50), b'kTRC':curve(1)})
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()

def inks(lab):
    "A profile of a printer: `lab` gives the colour of each corner of (cyan, magenta, yellow, black)."
    corners = bytes(round(v) for i in range(16) for v in encode_lab(lab(*(i>>s&1 for s in (3,2,1,0)))))
    ramp = bytes(range(256))
    lut = b'mft1\0\0\0\0'+bytes((4,3,2,0))+b''.join(fixed(v) for v in (1,0,0,0,1,0,0,0,1))+ramp*4+corners+ramp*3
    return profile(b'CMYK', {b'desc':named(b'Printer'), b'wtpt':xyz(D50), b'A2B0':lut}, b'prtr', b'Lab ')

def encode_lab(lab): return lab[0]*2.55, lab[1]+128, lab[2]+128

def lab_to_srgb(l, a, b):
    "By the formulas, through D50."
    fy = (l+16)/116; f = np.array([fy+a/500, fy, fy-b/200])
    m = np.array([[3.1339,-1.6169,-.4906],[-.9788,1.9161,.0335],[.0719,-.2290,1.4052]])
    v = (m@(np.where(f>6/29, f**3, 3*(6/29)**2*(f-4/29))*D50)).clip(0,1)
    return np.where(v>.0031308, 1.055*v**(1/2.4)-.055, 12.92*v)*255

COLOURS = [(200,60,40),(60,180,75),(40,80,200),(230,200,60),(220,170,140)]

@pytest.mark.parametrize('icc, name', [(ADOBE,'AdobeRGB'), (P3,'DisplayP3')])
@pytest.mark.parametrize('kind', ['PNG', 'TIFF', 'WEBP', 'PNG with a palette', 'PNG with transparency'])
def test_colours_of_another_space_look_as_they_were_meant_and_that_is_said(folder, said, icc, name, kind):
    im = Image.new('RGB', (100,20))
    for i,c in enumerate(COLOURS): im.paste(c, (i*20,0,i*20+20,20))
    theirs = ImageCms.profileToProfile(im, ImageCms.createProfile('sRGB'), ImageCms.ImageCmsProfile(io.BytesIO(icc)), outputMode='RGB', renderingIntent=1)
    if 'palette' in kind: theirs = theirs.quantize(8)
    if 'transparency' in kind: theirs.putalpha(255); theirs.putpixel((0,0), (0,0,0,0))
    (folder/'photo.png').write_bytes(encoded(theirs, kind.split()[0], icc_profile=icc, lossless=True))
    got = opened(folder, 'photo.png')
    assert all(near(got.getpixel((i*20+10,10)), c, 2) for i,c in enumerate(COLOURS))
    assert name in said()[0] and 'sRGB' in said()[0] and 'photo.png' in said()[0]
    if 'transparency' in kind: assert got.getpixel((0,0))==(255,255,255)

def test_a_profile_that_is_srgb_changes_no_bit_and_needs_no_word(folder, said):
    for mode,name in (('RGB','a.png'), ('L','b.png'), ('RGBA','c.png')):
        im = Image.effect_noise((64,64), 90).convert(mode); (folder/name).write_bytes(encoded(im, icc_profile=SRGB))
        assert opened(folder, name).tobytes()==im.convert('RGB').tobytes()
    assert said()==[]

def test_a_grey_profile_is_followed(folder, said):
    (folder/'scan.png').write_bytes(encoded(Image.new('L', (16,16), 55), icc_profile=LINEAR_GREY))
    assert near(opened(folder, 'scan.png').getpixel((8,8)), (128,128,128), 1) and 'LinearGrey' in said()[0]     # 55/255 of the light is half of sRGB's numbers

@pytest.mark.parametrize('kind', ['TIFF', 'JPEG'])
def test_inks_are_mixed_as_their_profile_says(folder, said, kind):
    icc = inks(lambda c,m,y,k: (0,0,0) if k else (100-20*c-25*m-5*y, 40*m-30*c, 60*y-20*c-10*m))
    (folder/'print.tif').write_bytes(encoded(Image.new('CMYK', (16,16), (0,255,255,0)), kind, icc_profile=icc, **(dict(quality=100) if kind=='JPEG' else {})))
    got, meant = opened(folder, 'print.tif').getpixel((8,8)), lab_to_srgb(70, 40, 50)
    assert near(got, meant, 4) and not near(got, RED, 20) and 'Printer' in said()[0]

@pytest.mark.parametrize('icc', [b'junk', SRGB[:300], LINEAR_GREY, inks(lambda *_: (50,0,0)), profile(b'RGB ', {b'desc':named(b'x')}), profile(b'RGB ', {}, b'link')], ids=['junk','cut','grey','inks','without tables','link'])
def test_a_profile_that_cannot_be_used_is_said_and_the_colours_stay(folder, said, icc):
    (folder/'photo.png').write_bytes(encoded(Image.new('RGB', (16,16), TEAL), icc_profile=icc))
    assert opened(folder, 'photo.png').getpixel((8,8))==TEAL and ['photo.png' in m and 'profile' in m and 'sRGB' in m for m in said()]==[True]

def test_a_gamma_that_is_not_followed_is_said(folder, said):
    data = encoded(); gamma = b'gAMA'+struct.pack('>I', 100000)
    (folder/'linear.png').write_bytes(data[:33]+struct.pack('>I', 4)+gamma+struct.pack('>I', zlib.crc32(gamma))+data[33:])
    assert opened(folder, 'linear.png').getpixel((8,8))==TEAL and ['linear.png' in m and 'gamma' in m for m in said()]==[True]

# greys of more than 8 bits

def ramp(kind, most): return Image.fromarray((np.linspace(0, 1, 256).reshape(16,16)*most).astype(kind))

@pytest.mark.parametrize('kind, most', [('int32',255), ('int32',65535), ('float32',1), ('float32',255), ('float32',65535)])
def test_numbers_of_32_bits_are_scaled_and_that_is_said(folder, said, kind, most):
    (folder/'scan.tif').write_bytes(encoded(ramp(kind, most), 'TIFF'))
    got = np.asarray(opened(folder, 'scan.tif'))[...,0].astype(int)
    assert abs(got.ravel()-np.arange(256)).max()<=1 and 'scan.tif' in said()[0] and f'up to {most}' in said()[0]

@pytest.mark.parametrize('kind, value', [('float32',np.nan), ('float32',np.inf), ('float32',-1.), ('float32',1e6), ('int32',-5), ('int32',2**30)])
def test_numbers_that_nobody_can_scale_are_refused(folder, said, kind, value):
    a = np.zeros((16,16), kind); a[3,3] = value
    (folder/'scan.tif').write_bytes(encoded(Image.fromarray(a), 'TIFF'))
    assert [n for n,_ in ImageSet.from_folder(folder).skipped]==['scan.tif'] and '8 or 16 bits' in said()[0]

# what a stranger's folder may not do

@pytest.mark.parametrize('kind', ['EPS', 'PDF', 'ICNS', 'SGI', 'PCX', 'MSP'])
def test_only_formats_of_the_list_are_opened_and_no_program_is_started(folder, said, monkeypatch, kind):
    for name in ('Popen','run','call','check_call','check_output'): monkeypatch.setattr(subprocess, name, lambda *args, **kw: pytest.fail('a program was started'))
    (folder/'photo.png').write_bytes(encoded(Image.new('1' if kind=='MSP' else 'RGB', (128,128)), kind))
    assert [n for n,_ in ImageSet.from_folder(folder).skipped]==['photo.png'] and 'of another kind' in said()[0]

@pytest.mark.parametrize('kind', ['PNG', 'JPEG', 'WEBP', 'GIF', 'BMP', 'TIFF', 'JPEG2000', 'PPM', 'TGA', 'AVIF'])
@pytest.mark.filterwarnings('ignore')
def test_whatever_is_wrong_with_a_picture_it_is_one_sentence(kind):
    if kind not in images.FORMATS: pytest.skip(f'this Pillow does not read {kind}')
    r, good = random.Random(kind), [encoded(noise.convert(m), kind, icc_profile=icc) for m in ('RGB','L') for icc in (None, ADOBE)]
    for _ in range(400):
        data = bytearray(r.choice(good))
        for _ in range(r.randint(1, 5)):
            at = r.randrange(min(len(data), r.choice((64, len(data)))))
            data[at:at+r.choice((0,1,1,4,40))] = r.choice((b'', b'\0\0\0\0', b'\xff\xff\xff\xff', b'\x7f\xff\xff\xff', r.randbytes(r.randint(1, 4))))
            if not data: break
        try: im, _ = images.decode(bytes(data), 'damaged.png')
        except StyleboostError as e: assert str(e).isprintable() and str(e).endswith('.') and 'damaged.png' in str(e)
        else: assert im.mode=='RGB'

def test_a_pipe_and_a_device_are_named_and_not_waited_for(folder, said):
    os.mkfifo(folder/'pipe.png'); (folder/'zero.png').symlink_to('/dev/zero')
    assert [n for n,_ in ImageSet.from_folder(folder).skipped]==['pipe.png','zero.png'] and all('regular' in m for m in said())

def test_a_file_that_is_too_large_is_named_and_not_read_whole(folder, said, monkeypatch):
    with (folder/'disk.png').open('wb') as f: f.truncate(10**6)
    monkeypatch.setattr(images, 'LARGEST', 10**5)
    assert [n for n,_ in ImageSet.from_folder(folder).skipped]==['disk.png'] and '0.1 MB' in said()[0]

def test_a_picture_that_becomes_a_pipe_later_is_not_waited_for(folder, refused):
    found = ImageSet.from_folder(folder); (folder/'good.png').unlink(); os.mkfifo(folder/'good.png')
    with refused('good.png', 'pipe'): found.images()

def test_a_picture_that_is_a_link_to_elsewhere_is_read_and_said(folder, tmp_path, said):
    (tmp_path/'far.png').write_bytes(encoded()); (folder/'far.png').symlink_to(tmp_path/'far.png'); (folder/'near.png').symlink_to('good.png')
    assert len(ImageSet.from_folder(folder))==3 and len(said())==1 and 'far.png' in said()[0] and 'link' in said()[0] and 'near.png' not in said()[0]

def test_a_name_that_is_not_unicode_is_left_out_and_said(folder, said):
    (folder/os.fsdecode(b'caf\xe9.png')).write_bytes(encoded())
    assert len(ImageSet.from_folder(folder))==1 and len(said())==1 and 'not Unicode' in said()[0] and said()[0].encode()

# captions

def test_a_caption_for_no_picture_is_named(folder, said):
    (folder/'good.txt').write_text('kept'); (folder/'gone.txt').write_text('a ghost')
    assert ImageSet.from_folder(folder).captions==['kept'] and ['gone.txt' in m for m in said()]==[True]

def test_two_pictures_of_one_stem_share_their_caption(folder):
    (folder/'good.jpg').write_bytes(encoded(kind='JPEG')); (folder/'good.txt').write_text('both')
    found = ImageSet.from_folder(folder)
    assert [(p.name, p.caption) for p in found]==[('good.jpg','both'), ('good.png','both')]

def test_endings_in_capitals_are_pictures_too(folder):
    (folder/'HOLIDAY.JPG').write_bytes(encoded(kind='JPEG')); (folder/'Scan.Png').write_bytes(encoded())
    assert [p.name for p in ImageSet.from_folder(folder)]==['HOLIDAY.JPG','Scan.Png','good.png']

def test_a_caption_with_its_ending_in_capitals_is_read_or_named(folder, said):
    (folder/'good.TXT').write_text('a caption')
    assert ImageSet.from_folder(folder).captions==['a caption'] or any('good.TXT' in m for m in said())

def test_metadata_goes_before_a_caption_file(folder):
    (folder/'good.txt').write_text('old'); (folder/'metadata.jsonl').write_text(json.dumps(dict(file_name='good.png', text='new', people=False))+'\n\n')
    p, = ImageSet.from_folder(folder)
    assert (p.caption, p.people)==('new', False)

@pytest.mark.parametrize('line', ['{"file_name": "good.png"', '["good.png"]', '"good.png"', '7', 'null', '{"text": "no name"}', '{"file_name": ["good.png"]}'])
def test_a_broken_line_of_metadata_is_named_by_its_number(folder, refused, line):
    (folder/'metadata.jsonl').write_text('{"file_name": "good.png", "text": "fine"}\n'+line+'\n')
    with refused('metadata.jsonl', 'line 2'): ImageSet.from_folder(folder)

def test_metadata_in_another_encoding_is_refused(folder, refused):
    (folder/'metadata.jsonl').write_bytes('{"file_name": "good.png", "text": "café"}'.encode('latin-1'))
    with refused('metadata.jsonl'): ImageSet.from_folder(folder)

@pytest.mark.parametrize('row', [dict(text=5), dict(text=['a','b']), dict(people='yes'), dict(people=1)])
def test_metadata_of_a_wrong_type_is_refused_or_understood(folder, row):
    (folder/'metadata.jsonl').write_text(json.dumps(dict(row, file_name='good.png')))
    try: p, = ImageSet.from_folder(folder)
    except StyleboostError as e: assert 'metadata.jsonl' in str(e)
    else: assert isinstance(p.caption, str) and (p.people is None or isinstance(p.people, bool))

def test_metadata_for_a_missing_picture_is_named(folder, said):
    (folder/'metadata.jsonl').write_text('{"file_name": "gone.png", "text": "a ghost"}\n')
    assert ImageSet.from_folder(folder).captions==[''] and ['gone.png' in m for m in said()]==[True]

def test_a_caption_in_another_encoding_is_left_out_and_said(folder, said):
    (folder/'good.txt').write_bytes('ein Mädchen'.encode('latin-1'))
    assert ImageSet.from_folder(folder)[0].caption=='' and any('good.txt' in m and 'UTF-8' in m for m in said())

def test_a_byte_order_mark_is_no_part_of_a_caption(folder):
    (folder/'good.txt').write_text('a teal square', 'utf-8-sig')
    assert ImageSet.from_folder(folder).captions==['a teal square']

def test_a_caption_that_may_not_be_read_is_named(folder, said, unreadable):
    (folder/'good.txt').write_text('secret'); unreadable(folder/'good.txt')
    try: ImageSet.from_folder(folder)
    except StyleboostError as e: assert 'good.txt' in str(e)
    else: assert any('good.txt' in m for m in said())

# sets

@given(st.lists(st.from_regex(r'[A-Za-z0-9_-]{1,8}\.(png|PNG)', fullmatch=True), min_size=1, max_size=6, unique=True))
def test_pictures_come_in_sorted_order(tmp_path_factory, names):
    folder = tmp_path_factory.mktemp('order')
    for n in names: (folder/n).write_bytes(encoded())
    assert [p.name for p in ImageSet.from_folder(folder)]==sorted(names)

def test_in_the_order_of_a_list_names_are_counted_as_people_count(folder, said):
    (folder/'good.png').unlink()
    for i in range(1, 13): (folder/f'{i}.png').write_bytes(encoded())
    found = ImageSet.from_folder(folder)
    assert [p.name for p in found.counted()]==[f'{i}.png' for i in range(1, 13)] and len(said())==1 and '2.png before 10.png' in said()[0]
    assert found.hash==ImageSet([Picture(n, path=folder/n) for n in sorted(f'{i}.png' for i in range(1, 13))]).hash
    padded = ImageSet([replace(p, name=f'a-{i:04d}-2b.png') for i,p in enumerate(found)])
    assert padded.counted() is padded and len(said())==1

def test_more_than_ten_thousand_pictures_are_saved_in_their_order(picture):
    a = picture('a')
    names = [images._saved_name(a, i, 10_001) for i in range(10_001)]
    assert names==sorted(names) and images._saved_name(a, 3, 10_000)=='0003-a.png'

@given(st.lists(st.binary(min_size=1, max_size=30), min_size=1, max_size=4), st.data())
def test_one_changed_byte_changes_the_hash(contents, data):
    found = ImageSet([Picture(f'{i}.png', data=b) for i,b in enumerate(contents)])
    which = data.draw(st.integers(0, len(contents)-1)); at = data.draw(st.integers(0, len(contents[which])-1))
    other = bytearray(contents[which]); other[at] ^= data.draw(st.integers(1, 255))
    assert ImageSet([replace(p, data=bytes(other)) if i==which else p for i,p in enumerate(found)]).hash!=found.hash

def test_a_file_changed_on_disk_changes_the_hash_of_the_folder_and_is_not_taken_for_the_one_that_was_read(folder, refused):
    found = ImageSet.from_folder(folder); before = found.hash
    (folder/'good.png').write_bytes(encoded(compress_level=1)+b'\0')
    assert ImageSet.from_folder(folder).hash!=before
    for use in (found.images, lambda: found.hash):
        with refused('good.png', 'has changed', 'read the folder again'): use()

def test_a_changed_caption_or_order_changes_the_hash(ref):
    assert len({ref.hash, ref[::-1].hash, ImageSet([replace(p, caption=p.caption+'.') for p in ref]).hash})==3

def test_saving_does_not_write_into_a_folder_that_holds_something(folder, ref, refused):
    before = state(folder)
    with refused(folder, 'not empty'): ref.save(folder)
    assert state(folder)==before

def test_saving_over_a_file_is_refused(folder, ref, refused):
    with refused('good.png'): ref.save(folder/'good.png')

def test_a_set_that_cannot_be_saved_whole_leaves_nothing_behind(folder, ref, tmp_path, refused):
    gone = ImageSet([*ref, *ImageSet.from_folder(folder)]); (folder/'good.png').unlink()
    with refused('good.png'): gone.save(tmp_path/'copy')
    assert {p.name: state(p) for p in tmp_path.iterdir()}=={'pictures': {}}

def test_saved_and_read_again_a_set_is_the_same(folder, tmp_path):
    for i in range(12): (folder/f'{i}.jpg').write_bytes(encoded(kind='JPEG', quality=30+i)); (folder/f'{i}.txt').write_text(f'no. {i}')
    found = ImageSet.from_folder(folder)
    again = ImageSet.from_folder(found.save(tmp_path/'copy'))
    assert (again.hash, again.skipped)==(found.hash, ())

def test_a_draw_gives_different_pictures_and_the_same_ones_again(aux):
    for seed in range(5):
        drawn = aux.sample(3, seed)
        assert len({p.name for p in drawn})==3 and drawn.hash==aux.sample(3, seed).hash

@pytest.mark.parametrize('k', [5, -1])
def test_a_draw_of_more_than_there_are_or_less_than_none_is_refused(aux, refused, k):
    with refused('aux', k): aux.sample(k)

def test_a_name_that_is_long_in_bytes_is_cut_at_a_character_and_said(tmp_path, picture, said):
    "248 letters and a number before them are one name too long; so are 120 letters of two bytes."
    long = [replace(picture('x'*248), path=None), replace(picture('é'*125), path=None), picture('short')]
    back = ImageSet.from_folder(ImageSet(long).save(tmp_path/'copy'))
    assert [p.name for p in back]==['0000-'+'x'*246+'.png', '0001-'+'é'*123+'.png', '0002-short.png'] and back.captions==[p.caption for p in long]
    assert sum('255 bytes' in m for m in said())==2

def test_a_folder_that_cannot_be_saved_leaves_nothing(tmp_path, picture, refused, monkeypatch):
    def full(self, data): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(Path, 'write_bytes', full)
    with refused(tmp_path/'new'/'copy', 'No space left', 'make room'): ImageSet([picture('a')]).save(tmp_path/'new'/'copy')
    assert [p.name for p in tmp_path.iterdir()]==['new'] and list((tmp_path/'new').iterdir())==[]

# people and things

@pytest.fixture
def sorted_folder(tmp_path):
    "A folder with two pictures of its own, and two shelves with one each."
    for name in ('a.png', 'z.png', 'people/anna.png', 'things/harbour.png'):
        (tmp_path/'style'/name).parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (8,8), (len(name),0,0)).save(tmp_path/'style'/name)
    return tmp_path/'style'

def test_folders_called_people_and_things_say_what_they_hold(sorted_folder, said):
    found = ImageSet.from_folder(sorted_folder)
    assert [(p.name, p.people) for p in found]==[('a.png',None), ('people/anna.png',True), ('things/harbour.png',False), ('z.png',None)] and not said()
    (sorted_folder/'people').rename(sorted_folder/'People')
    assert [p.people for p in ImageSet.from_folder(sorted_folder) if p.name=='People/anna.png']==[True]

def test_words_about_them_may_lie_inside_or_outside(sorted_folder, said, refused):
    (sorted_folder/'metadata.jsonl').write_text('{"file_name": "people/anna.png", "text": "Anna"}\n{"file_name": "a.png", "text": "A", "people": false}\n')
    (sorted_folder/'things'/'harbour.txt').write_text('a harbour'); (sorted_folder/'things'/'notes.pdf').write_text('x')
    found = ImageSet.from_folder(sorted_folder)
    assert [(p.caption, p.people) for p in found]==[('A',False), ('Anna',True), ('a harbour',False), ('',None)]
    assert found.skipped==(('things/notes.pdf', 'not a picture by its ending'),) and said()==['style: left out things/notes.pdf: not a picture by its ending']
    (sorted_folder/'people'/'metadata.csv').write_text('file_name,caption\nanna.png,Anne\n')
    with refused('people/anna.png', 'two different lines'): ImageSet.from_folder(sorted_folder)

def test_a_picture_that_lies_in_one_folder_and_is_said_to_belong_in_the_other_is_asked_about(sorted_folder, refused):
    line = '{"file_name": "people/anna.png", "people": false%s}\n'
    (sorted_folder/'metadata.jsonl').write_text(line%'')
    with refused('people/anna.png lies in people', 'shows no people', 'move it'): ImageSet.from_folder(sorted_folder)
    (sorted_folder/'metadata.jsonl').write_text(line%', "guessed": true')          # you have corrected a guess by moving the file
    anna = ImageSet.from_folder(sorted_folder)[1]
    assert (anna.people, anna.guessed)==(True, False)

@pytest.mark.skipif(os.name=='nt', reason='Windows makes no links unasked')
def test_other_folders_and_links_to_folders_elsewhere_are_not_entered(sorted_folder, tmp_path, said):
    (sorted_folder/'people'/'people').mkdir(); (sorted_folder/'animals').mkdir()
    (tmp_path/'letters').mkdir(); Image.new('RGB', (8,8)).save(tmp_path/'letters'/'secret.png')
    shutil.rmtree(sorted_folder/'things'); (sorted_folder/'things').symlink_to(tmp_path/'letters')
    found = ImageSet.from_folder(sorted_folder)
    assert [p.name for p in found]==['a.png', 'people/anna.png', 'z.png'] and {n for n,_ in found.skipped}=={'animals', 'people/people', 'things'}

def test_a_guess_is_marked_and_stays_one_when_saved_and_read(aux, tmp_path):
    unsure = ImageSet([replace(aux[0], guessed=True), aux[1]], 'unsure')
    again = ImageSet.from_folder(unsure.save(tmp_path/'kept'))
    assert again.guessed==[True, False] and again.people==unsure.people and '1 of them guessed' in repr(again) and 'guessed' not in repr(aux)

# sheets

def test_a_sheet_has_words_below_where_there_are_any():
    red = [Image.new('RGB', (20,20), 'red')]*3
    bare, worded = contact_sheet(red, 2, 40), contact_sheet(red, 2, 40, words=['', 'a very long caption of many words', 'x'])
    assert contact_sheet(red, 2, 40, words=['','','']).tobytes()==bare.tobytes()
    assert worded.size==(bare.width, bare.height+2*2*WRITING) and worded.crop((0,0,40,40)).tobytes()==bare.crop((0,0,40,40)).tobytes()
    def ink(box): return min(low for low,_ in worded.crop(box).getextrema())<255
    assert not ink((0,40,40,64)) and ink((42,40,82,52)) and ink((42,52,82,64)) and ink((0,106,40,118)) and not ink((42,106,82,118))
