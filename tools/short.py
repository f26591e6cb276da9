"""The shortest useful thing, on whatever versions are installed: import, a training of four steps, its samples, an export.
The widgets and pages are imported only. Run it in any folder: python tools/short.py"""
import json, math, os, subprocess, sys, tempfile, warnings
from importlib.metadata import version
from pathlib import Path

os.environ |= dict(HF_HUB_OFFLINE='1')
warnings.simplefilter('ignore')
names = ('torch','diffusers','transformers','accelerate','peft','huggingface_hub','numpy','pillow','pandas')
print(f'Python {sys.version.split()[0]}:', ', '.join(f'{n} {version(n)}' for n in names))

import numpy as np
from diffusers import StableDiffusionPipeline

import styleboost as s
for name in s.__all__: getattr(s, name)
for command in ([], ['train'], ['compare']):
    subprocess.run([sys.executable, '-m', 'styleboost.cli', *command, '--help'], check=True, stdout=subprocess.DEVNULL)

with tempfile.TemporaryDirectory() as d:
    d = Path(d)
    for method,to in (('full','diffusers'), ('lora','lora'), ('dora','kohya'), ('textual_inversion','embedding')):
        how = dict(method=method, steps=4, batch=2, steps_sampled=1)
        recipe = s.styleboost(s.style_ref('openmoji'), s.pool('people'), n=4, **how)
        run = s.train(recipe, d/method, progress=False, device='cpu', every=1)
        lines = [json.loads(line) for line in (d/method/'log.jsonl').read_text('utf-8').splitlines()]
        losses = [line['style'] for line in lines if 'style' in line]
        drawn = s.sample(run, ['woman farmer', 'a rocket'], 0, steps=2, device='cpu')
        assert len(losses)>=4 and all(map(math.isfinite, losses)), losses
        assert all(p.size==(64,64) and np.asarray(p).std()>1 for p in drawn)
        out = s.export(run, d/'out'/method, to, pictures=method=='full')
        if to=='diffusers':
            pipe = StableDiffusionPipeline.from_pretrained(out, local_files_only=True)
            pipe.set_progress_bar_config(disable=True)
            assert pipe('a rocket', num_inference_steps=2).images[0].size==(64,64)
            s.load_base(out)
        print(f'{method}: losses {losses[0]:.3f} to {losses[-1]:.3f}, two pictures, an export to {to}')
print('1 passed, 0 failed')
