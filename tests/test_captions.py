"What files say beside pictures: every place where people put captions is read, what disagrees is asked about, and no file, however damaged, ends in anything but a sentence."
import json, os, unicodedata
from dataclasses import replace

import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from styleboost.core import StyleboostError
from styleboost.pictures import captions
from styleboost.pictures.images import ImageSet, png
from styleboost.pictures.prompts import read_prompts

PNG = png(Image.new('RGB', (16,16), 'teal'))

def fill(folder, files):
    "Writes files into a folder: bytes, text, or None for a picture."
    folder.mkdir(exist_ok=True)
    for name,data in files.items(): (folder/name).write_bytes(PNG if data is None else data.encode() if isinstance(data, str) else data)
    return folder

@pytest.fixture
def captions_of(tmp_path):
    "The captions in a folder of these files, by picture."
    def read(files): return {p.name: p.caption for p in ImageSet.from_folder(fill(tmp_path/'mine', files))}
    return read

NFC, NFD = (unicodedata.normalize(f, 'café') for f in ('NFC','NFD'))
def row(name, **said): return json.dumps(dict(file_name=name, **said))+'\n'

SOURCES = {
    'text': ('1.png', 'metadata.jsonl', row('1.png', text='a house')),
    'caption': ('1.png', 'metadata.jsonl', row('1.png', caption='a house')),
    'prompt': ('1.png', 'metadata.jsonl', row('1.png', prompt='a house')),
    'two columns that agree': ('1.png', 'metadata.jsonl', row('1.png', text='a house', caption='a house')),
    'an empty column and another': ('1.png', 'metadata.jsonl', row('1.png', text=None, caption='', prompt='a house')),
    'csv': ('1.png', 'metadata.csv', 'file_name,text\r\n1.png,a house\r\n'),
    'csv of a spreadsheet': ('1.png', 'metadata.csv', '\ufeffcaption,file_name\n"a house",1.png\n'),
    'capitals of metadata': ('1.png', 'Metadata.JSONL', row('1.png', text='a house')),
    '.txt': ('1.png', '1.txt', 'a house\n'),
    '.caption': ('1.png', '1.caption', 'a house'),
    'name and ending': ('1.png', '1.png.txt', 'a house'),
    'capitals of a caption': ('IMG_1.JPG', 'img_1.TXT', 'a house'),
    './ before the name': ('1.png', 'metadata.jsonl', row('./1.png', text='a house')),
    '.\\ before the name': ('1.png', 'metadata.jsonl', row('.\\1.png', text='a house')),
    'capitals of a row': ('IMG_1.JPG', 'metadata.jsonl', row('IMG_1.jpg', text='a house')),
    'NFD picture, NFC caption': (NFD+'.png', NFC+'.txt', 'a house'),
    'NFC picture, NFD row': (NFC+'.png', 'metadata.jsonl', row(NFD+'.png', text='a house')),
    'NFD picture, NFC row': (NFD+'.png', 'metadata.csv', f'file_name,text\n{NFC}.png,a house\n')}

@pytest.mark.parametrize('source', SOURCES)
def test_a_caption_is_read_wherever_people_put_it(captions_of, said, source):
    picture, file, text = SOURCES[source]
    assert captions_of({picture: None, file: text})=={picture: 'a house'} and said()==[]

def test_a_name_to_the_letter_goes_before_one_that_is_like_it(captions_of):
    assert captions_of({'a.png': None, 'A.png': None, 'a.txt': 'small', 'A.txt': 'large'})=={'a.png': 'small', 'A.png': 'large'}

def test_people_are_flagged_in_both_kinds_of_metadata(tmp_path):
    found = ImageSet.from_folder(fill(tmp_path/'mine', {'1.png': None, '2.png': None, '3.png': None, 'metadata.csv': 'file_name,people\n1.png,TRUE\n2.png,no\n3.png,\n'}))
    assert found.people==[True, False, None]

@pytest.mark.parametrize('files', [{'1.txt': ' \n\t'}, {'metadata.jsonl': row('1.png', text=None)}, {'metadata.jsonl': row('1.png', text='  ')}])
def test_white_space_and_null_are_no_caption(captions_of, files): assert captions_of({'1.png': None, **files})['1.png'].strip()==''

def test_a_caption_file_with_nothing_in_it_is_named(captions_of, said):
    captions_of({'1.png': None, '1.txt': ' \n'})
    assert ['1.txt' in m and 'nothing in it' in m for m in said()]==[True]

ASKED = {
    'two columns': {'metadata.jsonl': row('1.png', text='a house', caption='a dog')},
    'two caption files': {'1.txt': 'a house', '1.caption': 'a dog'},
    'two lines': {'metadata.jsonl': row('1.png', text='a house')+row('1.png', text='a dog')},
    'two lines in two spellings': {'metadata.jsonl': row('1.png', text='a house')+row('1.PNG', text='a dog')}}

@pytest.mark.parametrize('case', ASKED)
def test_where_two_places_disagree_we_ask(captions_of, refused, case):
    with refused('1.png' if case!='two columns' else 'caption'): captions_of({'1.png': None, **ASKED[case]})

def test_a_name_that_may_mean_two_files_is_asked_about(captions_of, refused):
    with refused('A.png', 'a.PNG'): captions_of({'A.png': None, 'a.PNG': None, 'metadata.jsonl': row('a.png', text='a house')})

def test_the_same_said_twice_is_no_reason_to_stop(captions_of):
    assert captions_of({'1.png': None, '1.txt': 'a house', '1.caption': 'a house\n'})=={'1.png': 'a house'}

def test_metadata_without_a_column_for_captions_is_named(captions_of, said):
    captions_of({'1.png': None, 'metadata.jsonl': row('1.png', description='a house')})
    assert len(said())==1 and all(w in said()[0] for w in ('metadata.jsonl', 'description', 'caption'))

def test_of_two_kinds_of_metadata_one_is_read_and_the_other_named(captions_of, said):
    assert captions_of({'1.png': None, 'metadata.csv': 'file_name,text\n1.png,a dog\n', 'metadata.jsonl': row('1.png', text='a house')})=={'1.png': 'a house'}
    assert ['metadata.csv' in m for m in said()]==[True]

@pytest.mark.parametrize('separator', ['\u2028', '\u2029', '\x85', '\v', '\f'])
def test_lines_end_where_an_editor_ends_them(captions_of, tmp_path, ref, separator):
    text = f'a house{separator}by the sea'
    assert captions_of({'1.png': None, 'metadata.jsonl': json.dumps(dict(file_name='1.png', text=text), ensure_ascii=False)})=={'1.png': text}
    assert ImageSet.from_folder(ImageSet([replace(ref[0], caption=text)]).save(tmp_path/'again')).captions==[text]
    (tmp_path/'p.txt').write_bytes(f'{text}\nb\n'.encode())
    assert [p.text for p in read_prompts(tmp_path/'p.txt')]==[text, 'b']

# what a stranger's folder may not do

@pytest.mark.parametrize('name', ['/etc/passwd', '../secret.png', 'a/../../secret.png', '..\\secret.png', 'C:\\secret.png', '\\\\host\\secret.png', '', 'a\0.png'])
@pytest.mark.parametrize('kind', ['jsonl', 'csv'])
def test_a_name_that_leads_out_of_the_folder_is_refused(captions_of, refused, name, kind):
    if kind=='csv' and name=='': return                                   # a blank line
    with refused(f'metadata.{kind}'): captions_of({'1.png': None, f'metadata.{kind}': row(name, text='x') if kind=='jsonl' else f'file_name,text\n{name},x\n'})

def test_a_caption_that_is_a_link_to_elsewhere_is_not_read(tmp_path, said):
    (tmp_path/'letters.txt').write_text('secret')
    folder = fill(tmp_path/'mine', {'1.png': None, '2.png': None, 'b.txt': 'a house'})
    (folder/'1.txt').symlink_to(tmp_path/'letters.txt'); (folder/'2.txt').symlink_to('b.txt')
    found = ImageSet.from_folder(folder)
    assert found.captions==['', 'a house'] and any('1.txt' in m and 'link' in m for m in said()) and not any('secret' in m for m in said())

def test_metadata_that_are_a_link_to_elsewhere_are_refused(tmp_path, refused):
    (tmp_path/'other.jsonl').write_text(row('1.png', text='secret'))
    (fill(tmp_path/'mine', {'1.png': None})/'metadata.jsonl').symlink_to(tmp_path/'other.jsonl')
    with refused('metadata.jsonl', 'link'): ImageSet.from_folder(tmp_path/'mine')

@pytest.mark.parametrize('name', ['1.txt', 'metadata.jsonl'])
def test_a_pipe_is_not_waited_for(tmp_path, said, name):
    os.mkfifo(fill(tmp_path/'mine', {'1.png': None})/name)
    try: ImageSet.from_folder(tmp_path/'mine')
    except StyleboostError as e: assert name in str(e) and 'pipe' in str(e)
    else: assert any(name in m and 'pipe' in m for m in said())

def test_words_without_end_are_not_read(tmp_path, refused, monkeypatch):
    monkeypatch.setattr(captions, 'WORDS', 1000)
    with refused('metadata.jsonl'): ImageSet.from_folder(fill(tmp_path/'mine', {'1.png': None, 'metadata.jsonl': row('1.png', text='x'*1000)}))

LINES = {'half a character': '{"file_name": "1.png", "text": "\\ud800"}', 'half a character in a name': '{"file_name": "1\\udfff.png"}', 'half a character elsewhere': '{"file_name": "1.png", "set": "\\ud800"}',
         'deep': '['*100_000, 'deep within': '{"file_name": "1.png", "text": '+'['*100_000, 'a number without end': '{"file_name": "1.png", "people": '+'9'*5000+'}',
         'a list for a licence': '{"file_name": "1.png", "licence": []}', 'a number for a subject': '{"file_name": "1.png", "subject": 1}'}

@pytest.mark.parametrize('line', LINES)
def test_a_damaged_line_is_named_by_its_number(captions_of, refused, line):
    with refused('metadata.jsonl', 'line 2'): captions_of({'1.png': None, 'metadata.jsonl': '\n'+LINES[line]+'\n'})

# any damage

GOOD = {'metadata.jsonl': row('1.png', text='a house', people=True)+row('2.png', caption='a "red" dog', people=None),
        'metadata.csv': 'file_name,text,people\n1.png,"a house, red",true\n2.png,"a ""big"" dog",\n',
        '1.txt': 'a house\nby the sea\n', 'p.txt': 'a house\n\na dog\n', 'p.csv': 'prompt,people\n"a house, red",true\na dog,\n', 'p.tsv': 'prompt\tpeople\n"a ""big"" dog"\tTRUE\na house\t\n'}
SPOILT = st.sampled_from([b'\\ud800', '\ud800'.encode('utf-8', 'surrogatepass'), b'['*3000, b'{"a":'*3000, b'9'*5000, b'1e999', b'NaN', b'\0', b'\xff', '\u2028'.encode(), '\x85'.encode(), b'"', b'""', b',', b'\t',
    b'\r', b'\n', b'\xef\xbb\xbf', b'../', b'/', b'\\', b'null', b'{}', b'[]', b'text', b'file_name', b'people', b'prompt', b'\x1b[2J']) | st.binary(max_size=4)
DAMAGE = st.lists(st.tuples(st.integers(0, 120), st.integers(0, 6), SPOILT), min_size=1, max_size=3)

@pytest.mark.parametrize('name', GOOD)
@settings(max_examples=150)
@given(damage=DAMAGE)
def test_whatever_is_wrong_with_a_file_it_is_one_sentence_and_what_is_read_can_be_used(tmp_path_factory, name, damage):
    data = GOOD[name].encode()
    for at,gone,new in damage:
        i = at%(len(data)+1); data = data[:i]+new+data[i+gone:]
    folder = fill(tmp_path_factory.mktemp('damaged'), {'1.png': None, '2.png': None, name: data})
    try:
        if name.startswith('p.'):
            for p in read_prompts(folder/name): assert p.text.strip() and p.people in (True, False, None) and p.text.encode()
        else:
            found = ImageSet.from_folder(folder)
            again = ImageSet.from_folder(found.save(folder/'again'))
            assert len(found)==2 and again.hash==ImageSet.from_folder(folder).hash and again.people==found.people
    except StyleboostError as e: assert '\n' not in str(e) and str(e).endswith('.') and name in str(e)
