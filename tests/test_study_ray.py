"A study on a Ray cluster of two workers, one of which is killed, is the study that ran here."
import os, signal, subprocess, sys, threading, time
from pathlib import Path

import pandas as pd, pytest

ray = pytest.importorskip('ray')

from styleboost.studies.style import Style
from styleboost.studies.jobs import on_ray
from styleboost.pictures.images import ImageSet
from styleboost.core import StyleboostError, note
from styleboost.pictures.prompts import Prompt
from styleboost.studies.study import Study

def workers(name):
    "Processes of this test's cluster that work on a job of that name."
    parents, found = {}, []
    for p in Path('/proc').iterdir():
        if not p.name.isdigit(): continue
        try: parents[int(p.name)] = int((p/'stat').read_text().rsplit(')', 1)[1].split()[1]); title = (p/'cmdline').read_text()
        except OSError: continue
        if title.startswith(f'ray::{name}'): found.append(int(p.name))
    def mine(pid):
        while pid>1:
            if pid==os.getpid(): return True
            pid = parents.get(pid, 0)
    return [pid for pid in found if mine(pid)]

@pytest.fixture(scope='module')
def two_workers():
    os.environ |= dict(RAY_USAGE_STATS_ENABLED='0')
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=2*10**8)
    yield
    ray.shutdown()

@pytest.fixture(scope='module')
def make(ref, picture, quick):
    asked = [Prompt(f'a {k}', k!='dog') for k in ('woman','dog')]
    real = ImageSet([picture(f'real{i}', people=i%2==0) for i in range(8)], 'real')
    style = Style('mine', ref, real, [Prompt('an owl', False), Prompt('a cook', True)], asked)
    return lambda out: Study(style, dict(none=quick(None, checkpoint=2), aux=quick(checkpoint=2)), out, seeds=(0,1), steps=(2,16), sampler=1, device='cpu')

def test_a_killed_workers_cell_is_done_by_another_and_nothing_differs(two_workers, make, tmp_path):
    here, there, killed = make(tmp_path/'here').run(progress=False), make(tmp_path/'there'), []
    def kill():
        "As soon as the cell has kept a checkpoint."
        until = time.monotonic()+240
        while time.monotonic()<until and not killed:
            if list(there.run_folder('aux', 1).glob('checkpoints/step-*')):
                for pid in workers('aux 1'): os.kill(pid, signal.SIGKILL); killed.append(pid)
            time.sleep(.005)
    t = threading.Thread(target=kill, daemon=True); t.start()
    there.run(ray='auto', progress=False); t.join(1)
    assert killed and there.failed=={} and len(there.done)==4
    tables = [s.table().sort_values(['arm','seed','split','step','group','metric']).reset_index(drop=True) for s in (here, there)]
    pd.testing.assert_frame_equal(*tables, check_exact=True)
    for arm,seed in here.cells: assert (here.run_folder(arm, seed)/'weights'/'tuned.safetensors').read_bytes()==(there.run_folder(arm, seed)/'weights'/'tuned.safetensors').read_bytes()

def test_a_job_that_fails_or_speaks_is_heard(two_workers, said):
    def work(n):
        note(f'{n} is looked at')
        if n==2: raise StyleboostError('2 is too many; give fewer.')
        if n==3: os._exit(1)
    ended = {job[0]:sentence for job,sentence,_ in on_ray(work, [(1,),(2,),(3,)], retries=1)}
    assert ended[1]=='' and ended[2]=='2 is too many; give fewer.' and 'was lost 2 times' in ended[3]
    assert '1 is looked at' in said()

def test_what_a_cluster_does_not_have_is_refused(two_workers, refused):
    with refused('asks for 0.5 GPUs'): list(on_ray(print, [(1,)], gpus=.5))

LOST = """
import sys, threading, time
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from styleboost.studies.jobs import on_ray
where = Path(sys.argv[1]); where.touch()
cluster = Cluster(initialize_head=True, head_node_args=dict(num_cpus=1, include_dashboard=False, object_store_memory=10**8))
other = cluster.add_node(num_cpus=1, object_store_memory=10**8)
ray.init(address=cluster.address, log_to_driver=False)
def work(n):
    import time, ray
    with where.open('a') as f: f.write(f'{n} {ray.get_runtime_context().get_node_id()}\\n')
    if len(where.read_text().split())<6: time.sleep(6)
def kill():
    while len(where.read_text().split())<4: time.sleep(.05)
    cluster.remove_node(other, allow_graceful=False)
threading.Thread(target=kill, daemon=True).start()
for job,sentence,_ in on_ray(work, [(1,),(2,)], retries=2): print('ended', job[0], repr(sentence), flush=True)
ray.shutdown(); cluster.shutdown()
"""

def test_a_machine_that_is_lost_gives_its_job_to_another(tmp_path):
    "Ray is killed on one of two machines while both work; in a process of its own, since Ray ends one whose machine it loses."
    done = subprocess.run([sys.executable, '-c', LOST, tmp_path/'where'], capture_output=True, text=True, timeout=300, env=dict(os.environ, RAY_USAGE_STATS_ENABLED='0'))
    assert sorted(l for l in done.stdout.splitlines() if l.startswith('ended'))==["ended 1 ''", "ended 2 ''"], done.stderr[-2000:]
    began = [l.split() for l in (tmp_path/'where').read_text().splitlines()]
    assert len(began)==3 and len({node for _,node in began[:2]})==2 and began[2][0] in (began[0][0], began[1][0])

def test_without_ray_one_sentence(monkeypatch, refused):
    import sys
    monkeypatch.setitem(sys.modules, 'ray', None)
    with refused('Ray is not installed', 'pip install "styleboost[ray]"'): list(on_ray(print, [(1,)]))
