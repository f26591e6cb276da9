"JupyterLab in headless Chromium: what the browser tests and benchmarks/widgets.py drive. Needs Chromium and playwright, see .ci/run."
import json, os, shutil, socket, subprocess, sys, time, urllib.request
from contextlib import contextmanager
from pathlib import Path

import nbformat
from playwright.sync_api import expect, sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ('chromium','chromium-browser','google-chrome'))), None)
FLAGS = ['--no-sandbox','--disable-gpu','--disable-quic','--no-first-run','--disable-background-networking','--disable-component-update','--disable-sync','--disable-dev-shm-usage']
ROOT = Path(__file__).resolve().parents[1]

@contextmanager
def jupyterlab(folder, theme='JupyterLab Light'):
    "A JupyterLab of its own over a folder: no settings, no news, no updates; gives its address and where its kernels say how to reach them."
    own = folder/'.jupyter'
    overrides = {'@jupyterlab/notebook-extension:tracker': dict(windowingMode='none'), '@jupyterlab/apputils-extension:notification': dict(fetchNews='false', checkForUpdates=False, doNotDisturbMode=True),
        '@jupyterlab/apputils-extension:themes': dict(theme=theme)}
    (own/'config'/'labconfig').mkdir(parents=True); (own/'config'/'labconfig'/'default_setting_overrides.json').write_text(json.dumps(overrides))
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
    env = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, (str(ROOT), os.environ.get('PYTHONPATH')))), JUPYTER_CONFIG_DIR=str(own/'config'), JUPYTER_DATA_DIR=str(own/'data'), JUPYTER_RUNTIME_DIR=str(own/'runtime'), IPYTHONDIR=str(own/'ipython'))
    with (own/'log.txt').open('w') as log:
        server = subprocess.Popen([sys.executable, '-m', 'jupyterlab', '--no-browser', '--allow-root', '--ip=127.0.0.1', f'--port={port}', '--ServerApp.port_retries=0', '--IdentityProvider.token=', '--ServerApp.disable_check_xsrf=True', f'--ServerApp.root_dir={folder}'], env=env, stdout=log, stderr=log)
    try:
        for _ in range(600):
            try: urllib.request.urlopen(f'http://127.0.0.1:{port}/api', timeout=5); break
            except OSError: assert server.poll() is None, (own/'log.txt').read_text(); time.sleep(.2)
        yield f'http://127.0.0.1:{port}', own/'runtime'
    finally: server.terminate(); server.wait(20)

@contextmanager
def chromium(**kw):
    "A page of a browser that reaches this machine and nothing else; gives it and what it tried to reach."
    outside = []
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(**kw)
        expect.set_options(timeout=120_000); page.set_default_timeout(120_000)
        def only_here(route):
            if route.request.url.startswith(('http://127.0.0.1','data:','blob:')): return route.continue_()
            outside.append(route.request.url); route.abort()
        page.route('**/*', only_here)
        try: yield page, outside
        finally: browser.close()

def open_and_run(page, url, where='/doc/tree/'):
    "Opens a notebook and runs all of it."
    page.goto(url.replace('/NB/', where))
    page.get_by_text('Python 3 (ipykernel) | Idle').wait_for()
    page.get_by_role('menuitem', name='Run', exact=True).click()
    page.get_by_role('menuitem', name='Run All Cells', exact=True).click()

def write_notebook(path, cells):
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells], metadata=dict(kernelspec=dict(name='python3', display_name='Python 3 (ipykernel)', language='python')))
    nbformat.write(nb, path)

class Kernel:
    "The notebook's kernel, asked from outside the browser."
    def __init__(self, runtime):
        from jupyter_client import BlockingKernelClient
        self.client = BlockingKernelClient(connection_file=str(max(runtime.glob('kernel-*.json'), key=os.path.getmtime)))
        self.client.load_connection_file(); self.client.start_channels()
    def __call__(self, expression):
        reply = self.client.execute('', user_expressions=dict(x=expression), reply=True, timeout=60)['content']['user_expressions']['x']
        assert reply['status']=='ok', reply
        return eval(reply['data']['text/plain'])
    def until(self, expression, want=True, seconds=60):
        "Waits until Python says so."
        end = time.time()+seconds
        while (got := self(expression))!=want: assert time.time()<end, f'{expression} is {got!r}'; time.sleep(.1)

def eventually(so, seconds=30):
    end = time.time()+seconds
    while not so(): assert time.time()<end; time.sleep(.05)
