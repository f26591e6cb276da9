"What every room uses: one sentence for what goes wrong, and files that are whole or not there."
import contextlib, io, json, logging, os, subprocess, sys, time
from contextlib import redirect_stderr
from pathlib import Path

import pytest, torch

from styleboost.core import (
    LOCK, StyleboostError, alone, clear_parts, disk_error, first_line, new_folder, note, on_disk, own_file, printable, progress_bar, quiet,
    read_tensors, save_tensors, whole, writable, write_whole)

ROOT = Path(__file__).resolve().parents[1]
names = lambda folder: sorted(p.name for p in folder.iterdir())

def python(code, *args):
    "Runs code in a Python of its own."
    return subprocess.run([sys.executable, '-c', code, *map(str, args)], cwd=ROOT, capture_output=True, text=True)

# whole files

def test_a_file_appears_when_its_block_ends(tmp_path):
    file = tmp_path/'a.json'; file.write_text('old')
    with whole(file) as part:
        part.write_text('new')
        assert file.read_text()=='old' and part.parent==tmp_path and part.suffix=='.json'
    assert file.read_text()=='new' and names(tmp_path)==['a.json']

@pytest.mark.parametrize('error', [OSError, KeyboardInterrupt])
@pytest.mark.parametrize('folder', [False, True])
def test_a_block_that_fails_leaves_all_as_it_was(tmp_path, folder, error):
    (tmp_path/'a').write_text('old')
    with pytest.raises(error), whole(tmp_path/('b' if folder else 'a')) as part:
        if folder: part.mkdir(); part /= 'within'
        part.write_text('half')
        raise error
    assert names(tmp_path)==['a'] and (tmp_path/'a').read_text()=='old'

def test_a_folder_takes_the_place_of_an_empty_one(tmp_path):
    at = tmp_path/'run'; at.mkdir()
    with whole(at) as part: part.mkdir(); (part/'a').write_text('1')
    assert names(tmp_path)==['run'] and names(at)==['a']

def test_a_folder_never_takes_the_place_of_one_that_holds_something(tmp_path):
    at = tmp_path/'run'; at.mkdir(); (at/'old').write_text('1')
    with pytest.raises(OSError), whole(at) as part: part.mkdir()
    assert names(tmp_path)==['run'] and names(at)==['old']

def test_a_block_that_writes_nothing_fails_and_removes_nothing(tmp_path):
    (tmp_path/'a').write_text('old')
    with pytest.raises(FileNotFoundError), whole(tmp_path/'a'): pass
    assert (tmp_path/'a').read_text()=='old'

def test_a_process_that_is_killed_leaves_the_old_file(tmp_path):
    file = tmp_path/'a.json'; file.write_text('old')
    code = '''import os, sys
from styleboost.core import whole
with whole(sys.argv[1]) as part: part.write_text('half'); os._exit(9)'''
    assert python(code, file).returncode==9 and file.read_text()=='old'

@pytest.mark.parametrize('left', ['a file', 'a folder'])
def test_what_a_killed_process_of_the_same_number_left_is_not_mixed_in(tmp_path, left):
    at = tmp_path/'run'
    with whole(at) as part: part.mkdir()
    at.rmdir()
    if left=='a folder': part.mkdir(); (part/'old').write_text('1')
    else: part.write_text('1')
    with whole(at) as part: part.mkdir(); (part/'new').write_text('2')
    assert names(tmp_path)==['run'] and names(at)==['new']

def test_files_that_belong_together_are_all_written_before_one_is_renamed(tmp_path, monkeypatch):
    files, order = {tmp_path/n: n for n in ('a.txt','b.txt','c.txt')}, []
    def renamed(part, path, real=os.replace): order.append((path.name, len(names(tmp_path)))); real(part, path)
    monkeypatch.setattr(os, 'replace', renamed)
    write_whole(files)
    assert order==[('a.txt',3), ('b.txt',3), ('c.txt',3)] and {p.read_text() for p in files}=={'a.txt','b.txt','c.txt'}

def test_one_that_cannot_be_written_stops_all(tmp_path):
    (tmp_path/'a.txt').write_text('old')
    with pytest.raises(OSError): write_whole({tmp_path/'a.txt': 'new', tmp_path/'nowhere'/'b.txt': 'new'})
    assert names(tmp_path)==['a.txt'] and (tmp_path/'a.txt').read_text()=='old'

def test_a_pipe_a_device_and_a_link_that_leads_out_are_not_opened(tmp_path, refused):
    folder, other = tmp_path/'a', tmp_path/'b'
    for d in (folder, other): d.mkdir(); (d/'x').write_text('')
    (folder/'in').symlink_to('x'); (folder/'out').symlink_to(other/'x'); (folder/'ring').symlink_to('ring'); os.mkfifo(folder/'pipe')
    assert own_file(folder/'in')==folder/'in' and own_file(folder/'none')==folder/'none' and own_file(folder/'out', tmp_path)==folder/'out'
    for name in ('out','ring','pipe'):
        with refused(folder/name, 'remove it'): own_file(folder/name)
        with refused(folder/name, 'remove it'): read_tensors(folder/name)
    with refused('no plain file'): own_file(folder)

def test_tensors_are_whole_and_a_damaged_file_is_named(tmp_path, refused):
    file = tmp_path/'weights'/'a.safetensors'
    save_tensors(file, dict(a=torch.arange(6.).view(2,3).T))
    assert torch.equal(read_tensors(file)['a'], torch.arange(6.).view(2,3).T) and names(file.parent)==['a.safetensors']
    shared = torch.ones(2)
    with pytest.raises(RuntimeError): save_tensors(file, dict(a=shared, b=shared))
    assert names(file.parent)==['a.safetensors'] and read_tensors(file)
    file.write_bytes(file.read_bytes()[:30])
    with refused(file, 'damaged'): read_tensors(file)

@pytest.mark.skipif(os.name=='nt', reason='Windows has no handle for a folder')
def test_the_disk_has_the_contents_before_the_name_and_the_name_before_we_go_on(tmp_path, monkeypatch):
    done = []
    def synced(handle, real=os.fsync): done.append(Path(os.readlink(f'/proc/self/fd/{handle}')).name); real(handle)
    def renamed(part, path, real=os.replace): done.append(f'{part.name} -> {path.name}'); real(part, path)
    monkeypatch.setattr(os, 'fsync', synced); monkeypatch.setattr(os, 'replace', renamed)
    with whole(tmp_path/'run') as part: (part/'in').mkdir(parents=True); (part/'in'/'a').write_text('1')
    p = part.name
    assert sorted(done[:3])==sorted([p, 'in', 'a']) and done[3:]==[f'{p} -> run', tmp_path.name]

def test_a_disk_that_is_full_when_told_to_keep_it_leaves_the_old_file(tmp_path, monkeypatch):
    (tmp_path/'a').write_text('old')
    def full(handle): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError): write_whole({tmp_path/'a': 'new'})
    assert names(tmp_path)==['a'] and (tmp_path/'a').read_text()=='old'

def test_what_killed_processes_had_begun_is_cleared_and_nothing_else(tmp_path):
    keep = ['.hidden', '.part', 'a.12.part', '.mine.part', '.gitignore']
    for n in ['.tuned.12.part.safetensors', '.log.99.part.jsonl', *keep]: (tmp_path/n).write_text('1')
    (tmp_path/'checkpoints'/'.step-000020.7.part').mkdir(parents=True)
    clear_parts(tmp_path)
    assert names(tmp_path)==sorted([*keep, 'checkpoints']) and names(tmp_path/'checkpoints')==[]

# one at a time

def test_a_folder_is_for_one_at_a_time_and_the_lock_ends_with_its_process(tmp_path, refused):
    hold = 'import sys; from styleboost.core import alone\nwith alone(sys.argv[1]): print("held", flush=True); sys.stdin.read()'
    other = subprocess.Popen([sys.executable, '-c', hold, tmp_path/'a'/'run'], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline()=='held\n'
    with refused('Another process is at work', tmp_path/'a'/'run'), alone(tmp_path/'a'/'run'): pass
    other.kill(); other.wait()
    assert names(tmp_path/'a'/'run')==[LOCK] and new_folder(tmp_path/'a'/'run')          # a file that is left locks nothing
    with alone(tmp_path/'a'/'run'): assert names(tmp_path/'a'/'run')==[LOCK]
    assert names(tmp_path/'a'/'run')==[]

def test_a_folder_into_which_nothing_was_put_goes_again(tmp_path):
    with pytest.raises(KeyError), alone(tmp_path/'a'/'b'): raise KeyError
    assert names(tmp_path)==[]
    with alone(tmp_path/'a'/'b'): (tmp_path/'a'/'b'/'work').write_text('1')
    assert names(tmp_path/'a'/'b')==['work']

def test_a_file_is_nobodys_folder(tmp_path, refused):
    (tmp_path/'a').write_text('1')
    with refused('is a file'), alone(tmp_path/'a'): pass

# how far it is

def lines_of(work):
    with redirect_stderr(io.StringIO()) as told: work()
    return told.getvalue()

def test_where_nobody_watches_progress_is_a_line_now_and_then(monkeypatch):
    now = [0.]
    monkeypatch.setattr(time, 'monotonic', lambda: now[0])
    def work():
        with progress_bar(total=1000, desc='training', unit='step') as bar:
            for _ in range(1000): now[0] += .1; time.sleep(.0002); bar.update(); bar.set_postfix(loss='0.1')
    lines = lines_of(work).splitlines()
    assert 3<=len(lines)<=5 and all(l.startswith('training: ') and '\r' not in l and len(l)<80 for l in lines)
    assert lines[-1].startswith('training: 100% 1000/1000') and 'loss=0.1' in lines[-1]

def test_a_bar_that_is_not_to_stay_or_not_to_show_says_nothing():
    assert lines_of(lambda: list(progress_bar(range(9), leave=False)))==''
    assert lines_of(lambda: list(progress_bar(range(9), disable=True)))==''

def test_work_goes_on_when_nobody_reads_any_more():
    class Gone(io.StringIO):
        def write(self, text): raise BrokenPipeError
    with redirect_stderr(Gone()): assert list(progress_bar(range(9)))==list(range(9))

# folders and sentences

def test_new_work_gets_an_empty_folder_or_none(tmp_path, refused):
    assert new_folder(tmp_path/'a'/'b').is_dir() and new_folder(tmp_path/'a'/'b')==tmp_path/'a'/'b'
    assert not new_folder(tmp_path/'c', make=False).exists()
    (tmp_path/'file').write_text('1')
    with refused(tmp_path, 'not empty'): new_folder(tmp_path)
    with refused('file', 'is a file'): new_folder(tmp_path/'file')

@pytest.mark.parametrize('text, want', [('画像 é\t1\n', '画像 é\t1\n'), ('\x1b[31m', '\\x1b[31m'), ('a\rb\x9bc\x7f', 'a\\rb\\x9bc\\x7f'), ('\u202egnp.exe', '\\u202egnp.exe'), ('\udcff', '\\udcff'), ('\u2028', '\\u2028')])
def test_what_steers_a_terminal_is_written_out(text, want, said):
    assert printable(text)==want and str(StyleboostError(text))==want
    note(text); assert said()==[want]

@pytest.mark.parametrize('place, words', [('new/scores.json', ''), ('x'*255, 'shorter name'), ('é'*125, 'shorter name'), ('x'*100, ''), ('/'.join('x'*200 for _ in range(30)), 'shorter name'), ('file/below', 'Not a directory'), ('file', '')])
def test_a_place_is_tried_and_nothing_stays(tmp_path, refused, place, words):
    (tmp_path/'file').write_text('1')
    with refused(words, tmp_path) if words else contextlib.nullcontext(): assert writable(tmp_path/place)==tmp_path/place
    assert names(tmp_path)==['file']

@pytest.mark.skipif(not Path('/proc').exists(), reason='no disk here refuses the superuser')
def test_a_place_that_refuses_everybody_is_refused(refused):
    for make in (True, False):
        with refused('/proc/run', 'choose another place'): new_folder('/proc/run', make)

def test_a_disks_refusal_says_the_file_and_the_remedy(tmp_path, refused):
    with refused('log.jsonl', 'No space left', 'make room'), on_disk('log.jsonl'): raise OSError(28, 'No space left on device')
    with refused('a.safetensors', 'Permission denied', 'may write to'), on_disk('a.safetensors'): raise RuntimeError('I/O error: Permission denied (os error 13)')
    with pytest.raises(KeyError), on_disk('a'): raise KeyError('mine')
    assert str(disk_error(OSError('odd')))=='A file cannot be used (odd); choose another place.'

def test_one_process_speaks_for_all(said, monkeypatch):
    note('first'); monkeypatch.setenv('RANK', '1'); note('second')
    assert said()==['first']

@pytest.mark.parametrize('e, want', [
    (OSError('Broken.\nat line 3'), 'Broken'), (KeyError(), 'KeyError'),
    (ValueError('x'*300), 'x'*200), (ValueError(' \n'), 'ValueError')])
def test_a_librarys_error_fits_a_sentence(e, want): assert first_line(e)==want

def test_libraries_speak_as_before_after_they_were_quiet():
    import diffusers, transformers
    libraries = transformers.utils.logging, diffusers.utils.logging
    state = lambda: [(l.get_verbosity(), l.is_progress_bar_enabled()) for l in libraries]
    before = state()
    with pytest.raises(StyleboostError), quiet():
        assert state()==[(logging.ERROR, False)]*2
        raise StyleboostError('stop')
    assert state()==before

# what is loaded

@pytest.mark.parametrize('module, heavy', [('core', 'torch diffusers transformers safetensors PIL numpy')]
    + [('pictures.'+m, 'torch diffusers transformers') for m in ('images','sheets','prompts','world')])
def test_a_room_loads_no_library_before_it_needs_it(module, heavy):
    code = f'import json, sys, styleboost.{module}; print(json.dumps([m for m in {heavy.split()} if m in sys.modules]))'
    assert json.loads(python(code).stdout)==[]

# in a notebook

def test_in_a_notebook_a_note_is_a_soft_box_unless_somebody_else_takes_it():
    import nbformat
    from nbclient import NotebookClient
    cells = ['from styleboost.core import log, note\nnote("left out <a>.txt")',
             'import io, logging\nheard = io.StringIO()\nmine = logging.StreamHandler(heard)\nlog.addHandler(mine)\nnote("to mine")\nlog.removeHandler(mine)\nprint(heard.getvalue())',
             'logging.basicConfig()\nnote("as in Colab, whose root has a stream")',
             'log.setLevel("ERROR")\nnote("switched off")']
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    NotebookClient(nb, timeout=60, kernel_name='python3', resources=dict(metadata=dict(path=str(ROOT)))).execute()
    first, second, third, last = ([(o.output_type, o.get('data', {}).get('text/html', o.get('text'))) for o in c.outputs] for c in nb.cells)
    assert len(first)==1 and first[0][0]=='display_data' and 'left out &lt;a&gt;.txt</div>' in first[0][1] and nb.cells[0].outputs[0].data['text/plain']=='left out <a>.txt'
    assert second==[('stream', 'to mine\n\n')] and [kind for kind,_ in third]==['display_data'] and last==[]
