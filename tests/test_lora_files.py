"Somebody's LoRA: three layouts draw what their maker drew, at any strength, and a wrong file is one sentence."
import json
from dataclasses import replace

import numpy as np, pytest, torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from styleboost.bases.amused import have_amused
from styleboost.bases.load import blank
from styleboost.bases.sampling import sample
from styleboost.methods.adapters import kohya_tensors, lora_tensors
from styleboost.methods.load import make_method
from styleboost.methods.lora_files import lora_file, lora_hash, read_lora, trigger_of, with_lora
from styleboost.methods.method import attached, state, trained

PROMPT = 'a photo of zwx style, a dog'

def tuned(base, name='lora', **kw):
    "A base with an adapter that moved by accident, in the text encoder too unless the test says otherwise."
    b, g = attached(base, make_method(name, **dict(dict(text_encoder=True), **kw))), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in trained(b).values(): p.add_(.05*torch.randn(p.shape, generator=g))
    return b

def peft_layout(b, part, folder):
    "What PeftModel.save_pretrained writes of one part."
    folder.mkdir(parents=True, exist_ok=True)
    side = b.net if part in b.net.parts else b.reader
    config = b.method.peft_config(side.targets[b.method.targets])
    config.save_pretrained(folder)
    save_file({f'base_model.model.{k.split(".",1)[1]}': v for k,v in state(b).items() if k.startswith(f'{part}.')}, folder/'adapter_model.safetensors')
    return folder

@pytest.fixture
def written(tmp_path):
    "Makes the file of a layout."
    def write(b, layout, part='unet'):
        if layout=='peft': return peft_layout(b, part, tmp_path/'peft')
        made, about = dict(diffusers=lora_tensors, kohya=kohya_tensors)[layout](b.method, b)
        file = tmp_path/f'{layout}.safetensors'
        save_file(made, file, about)
        return file
    return write

def drawn(b): return np.asarray(sample(b, PROMPT, 3, 3, raw=True, device='cpu')[0], int)

def far(a, b): return np.abs(drawn(a)-drawn(b)).max()

@pytest.mark.parametrize('layout', ['kohya','diffusers','peft'])
@pytest.mark.parametrize('kw', [dict(rank=4, alpha=8.), dict(rank=4, targets='all')])
def test_every_layout_draws_what_its_maker_drew(lively, written, layout, kw):
    b = tuned(lively, **kw, text_encoder=layout!='peft')
    theirs = with_lora(lively, written(b, layout))
    assert far(theirs, b)<=2 and far(b, lively)>20
    assert theirs.modules['unet'].state_dict().keys()==lively.modules['unet'].state_dict().keys() and theirs.method is None
    assert theirs.hash!=lively.hash and not any(hasattr(m, 'peft_config') for m in theirs.modules.values())

def test_a_text_encoders_adapter_of_peft_finds_its_place(lively, written):
    b = tuned(lively, rank=4)
    theirs = with_lora(lively, written(b, 'peft', 'text_encoder'))
    same = [k for k,v in lively.modules['text_encoder'].state_dict().items() if not torch.equal(v, theirs.modules['text_encoder'].state_dict()[k])]
    assert same and all(torch.equal(v, theirs.modules['unet'].state_dict()[k]) for k,v in lively.modules['unet'].state_dict().items())

def test_dora_keeps_its_lengths_in_diffusers_layout(lively, written):
    b = tuned(lively, 'dora', rank=4)
    assert far(with_lora(lively, written(b, 'diffusers')), b)<=2

@pytest.mark.parametrize('name', ['lora','dora'])
def test_its_strength_is_that_of_a_run(lively, written, name):
    "The same line as for what we train: nothing is the base to the last bit, and DoRA goes straight to where it ends."
    b = tuned(lively, name, rank=4)
    file = written(b, 'diffusers')
    nothing, half, whole = (with_lora(lively, file, s).modules['unet'].state_dict() for s in (0, .5, 1))
    start = lively.modules['unet'].state_dict()
    assert all(torch.equal(nothing[k], v) for k,v in start.items())
    moved = [k for k in start if not torch.equal(whole[k], start[k])]
    assert moved
    for k in moved: torch.testing.assert_close(half[k], (start[k]+whole[k])/2, rtol=1e-5, atol=1e-6)

def test_the_base_stays_as_it_was(lively, written):
    before = {k: v.clone() for k,v in lively.modules['unet'].state_dict().items()}
    with_lora(replace(lively, shared=False), written(tuned(lively, rank=4), 'kohya'))
    assert all(torch.equal(v, before[k]) for k,v in lively.modules['unet'].state_dict().items())

def test_a_model_with_it_is_saved_as_an_ordinary_one(lively, written, tmp_path):
    theirs = with_lora(lively, written(tuned(lively, rank=4), 'kohya'))
    theirs.pipeline().save_pretrained(tmp_path/'out')
    assert not list((tmp_path/'out').rglob('adapter*'))
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path/'out', local_files_only=True)
    assert all(torch.equal(v, theirs.modules['unet'].state_dict()[k]) for k,v in pipe.unet.state_dict().items())

def test_a_kohya_file_of_sdxl_goes_into_sdxl(family_base, tmp_path):
    base = family_base('sdxl')
    b = tuned(base, rank=4)
    made, about = kohya_tensors(b.method, b)
    save_file(made, tmp_path/'xl.safetensors', about)
    assert any('input_blocks' in k for k in made) and any('lora_te2' in k for k in made)
    assert far(with_lora(base, tmp_path/'xl.safetensors'), b)<=2

def test_the_words_of_a_file(lively, written):
    file = written(tuned(lively, rank=4), 'kohya')
    assert trigger_of(read_lora(file)[1])=='a photo of zwx style' and lora_file(file.parent)==file and len(lora_hash(file))==16

# wrong files

def spoilt(file, change, **about):
    "The file with its tensors changed."
    tensors = change(load_file(file))
    save_file(tensors, file, about or None)
    return file

def test_a_lora_for_another_base_is_one_sentence(lively, written, refused, capfd):
    kohya = written(tuned(lively, rank=4), 'kohya')
    for other in ('sd1','sdxl'):
        with refused(kohya, f'does not fit blank {other} (down_blocks', 'is a LoRA for another base', 'draw with the base that it was made for'): with_lora(blank(other), kohya)
        assert capfd.readouterr().err==''
    with refused(kohya, 'for another base'): with_lora(lively, spoilt(kohya, lambda t: {k.replace('down_blocks_1', 'down_blocks_9'): v for k,v in t.items()}))

def test_a_peft_adapter_for_another_base_is_one_sentence(lively, written, refused):
    folder = written(tuned(lively, rank=4), 'peft')
    with refused(folder, 'for another base'): with_lora(blank('sdxl'), folder)

@pytest.mark.parametrize('change, words', [
    (lambda t: {'conv_in.weight': torch.zeros(2)}, ['is no LoRA', 'conv_in.weight']),
    (lambda t: {'lora_unet_a.hada_w1_a': torch.zeros(2)}, ['one of its relatives']),
    (lambda t: t|{'lora_unet_x.dora_scale': torch.zeros(2)}, ['DoRA', 'leave its lengths out']),
    (lambda t: {k: v*float('nan') for k,v in t.items()}, ['is damaged', 'numbers that are none']),
    (lambda t: {}, ['is no LoRA', 'nothing'])])
def test_what_is_no_lora_is_one_sentence(lively, written, refused, change, words):
    file = spoilt(written(tuned(lively, rank=4), 'kohya'), change)
    with refused(file, *words): with_lora(lively, file)

def test_a_place_without_a_lora_is_one_sentence(lively, tmp_path, refused):
    with refused('There is no LoRA', 'nowhere'): with_lora(lively, tmp_path/'nowhere.safetensors')
    with refused(tmp_path, 'holds no .safetensors files'): with_lora(lively, tmp_path)
    for name in ('a','b'): (tmp_path/f'{name}.safetensors').write_bytes(b'short')
    with refused(tmp_path, 'holds 2 .safetensors files'): with_lora(lively, tmp_path)
    with refused('a.safetensors', 'is damaged', 'fetch it again'): with_lora(lively, tmp_path/'a.safetensors')
    (tmp_path/'c.ckpt').write_bytes(b'pickle')
    with refused('c.ckpt', 'runs no code'): with_lora(lively, tmp_path/'c.ckpt')
    with refused('The strength is 2'): with_lora(lively, tmp_path/'a.safetensors', 2)

def test_pefts_layout_needs_its_settings(lively, written, refused):
    folder = written(tuned(lively, rank=4), 'peft')
    (folder/'adapter_config.json').unlink()
    with refused('adapter_config.json', 'is not beside it'): with_lora(lively, folder)

@pytest.mark.parametrize('spoil', [lambda text: text[:20], lambda text: json.dumps(dict(json.loads(text), r='four')), lambda text: json.dumps(dict(json.loads(text), rank_pattern=4))])
def test_damaged_settings_are_no_sign_of_another_base(lively, written, refused, spoil):
    b = tuned(lively, rank=4)
    beside = written(b, 'peft')/'adapter_config.json'
    beside.write_text(spoil(beside.read_text()))
    with refused(beside, 'damaged', 'fetch it again'): with_lora(lively, beside.parent)
    made, about = lora_tensors(b.method, b)
    bad = {k.removeprefix('unet.'): v for k,v in json.loads(about['lora_adapter_metadata']).items()}
    text = spoil(json.dumps(bad))
    if text.endswith('}'): text = json.dumps({f'unet.{k}': v for k,v in json.loads(text).items()})
    save_file(made, beside.parent/'x.safetensors', dict(about, lora_adapter_metadata=text))
    with refused('x.safetensors', 'damaged', 'fetch it again'): with_lora(lively, beside.parent/'x.safetensors')

@pytest.mark.parametrize('more, word', [(dict(megatron_config={'a': 1}), 'megatron_config'), (dict(init_lora_weights='pissa'), 'init_lora_weights'), (dict(rank_pattern={'(a+)+$': 2}), '(a+)+$'), (dict(peft_type='LOHA'), 'LOHA'), ([1], 'no table')])
def test_a_file_that_asks_for_more_than_a_strength_is_refused(lively, written, refused, more, word):
    "Such settings name a module to import, change the base's own weights, or are matched for ever."
    b = tuned(lively, rank=4)
    beside = written(b, 'peft')/'adapter_config.json'
    beside.write_text(json.dumps(json.loads(beside.read_text())|more if isinstance(more, dict) else more))
    with refused(word): with_lora(lively, beside.parent)
    if 'peft_type' in more or not isinstance(more, dict): return
    made, about = lora_tensors(b.method, b)
    said = json.loads(about['lora_adapter_metadata'])|{f'unet.{k}': v for k,v in more.items()}
    save_file(made, beside.parent/'x.safetensors', dict(about, lora_adapter_metadata=json.dumps(said)))
    with refused('x.safetensors', word): with_lora(lively, beside.parent/'x.safetensors')

def test_a_pattern_for_layers_is_not_matched(lively, written):
    "The names of layers come from the tensors, whatever pattern the settings bring."
    folder = written(tuned(lively, rank=4), 'peft')
    beside = folder/'adapter_config.json'
    whole = with_lora(lively, folder).modules['unet'].state_dict()
    beside.write_text(json.dumps(json.loads(beside.read_text())|dict(target_modules='(.*)*x')))
    assert all(torch.equal(v, whole[k]) for k,v in with_lora(lively, folder).modules['unet'].state_dict().items())

@pytest.mark.skipif(not have_amused(), reason='this diffusers has no aMUSEd')
def test_a_base_for_which_diffusers_reads_none_says_so(lively, written, refused):
    with refused('diffusers reads no LoRA for aMUSEd'): with_lora(blank('amused'), written(tuned(lively, rank=4), 'kohya'))
