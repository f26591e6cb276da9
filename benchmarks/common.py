"What the benchmarks share: what they say of the machine, and the test helpers that they drive."
import importlib.util, os, platform
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]

def processor():
    "The processor's name, as far as the system tells it."
    cpus = Path('/proc/cpuinfo')
    if not cpus.exists(): return platform.processor()
    names = (l.split(':',1)[1].strip() for l in cpus.read_text().splitlines() if l.startswith('model name'))
    return next(names, '')

def device():
    "The machine in words, for benchmarks that use no GPU."
    return f'{processor() or platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, no GPU'

def from_tests(name):
    "A module of tests/, which is no package and stays off the path."
    spec = importlib.util.spec_from_file_location(name, ROOT/'tests'/f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

class Done(Exception): "All losses that were wanted are known."

def witness(got, last=None):
    """From here on `got` has what diffusers' scripts draw and the losses that they send backwards, step by step; after
    `last` of them `Done` is raised."""
    from accelerate import Accelerator
    from diffusers import DDPMScheduler
    add, back = DDPMScheduler.add_noise, Accelerator.backward
    def add_noise(self, z, eps, t):
        xt = add(self, z, eps, t)
        got.append(dict(xt=xt.clone(), eps=eps.clone(), t=t.clone()))
        return xt
    def backward(self, loss, **kw):
        got[-1]['loss'] = loss.detach().clone()
        if len(got)==last: raise Done
        return back(self, loss, **kw)
    DDPMScheduler.add_noise, Accelerator.backward = add_noise, backward
