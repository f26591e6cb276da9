"Bases of all three families, through the real loaders: folders, single files, the hub, and what none of them may be."
import json, types
from dataclasses import replace
from functools import partial
from pathlib import Path

import diffusers, pytest, torch
from huggingface_hub import constants, errors
from safetensors.torch import load_file, save_file

from original import original
from styleboost.bases import files as sources, stable_diffusion
from styleboost.bases.base import Condition
from styleboost.bases.files import TINY, hub_files, weights_hash
from styleboost.bases.load import FAMILIES, blank, load_base
from styleboost.bases.stable_diffusion import STABLE
from styleboost.training.recipes import settled

EACH = pytest.mark.parametrize('family', STABLE)
PROMPTS = ['a woman', 'a dog on a hill', 'a woman']

def edit(file, **changes):
    d = json.loads(file.read_text()); d.update(changes); file.write_text(json.dumps({k:v for k,v in d.items() if v!='gone'}))

def same(a, b): return all(torch.equal(x, y) for x,y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))

# --- the interface

@EACH
def test_a_base_comes_back_from_its_folder(family, family_base, family_folder):
    made, b = family_base(family), load_base(family_folder(family))
    assert b.family.name==family and b.process.default==made.process.default and b.reader.zeros==(family=='sdxl') and b.resolution==64
    assert b.process.schedule.config.prediction_type==('v_prediction' if family=='sd2' else 'epsilon')
    assert list(b.modules)==list(made.modules) and all(same(b.modules[k], made.modules[k]) for k in made.modules)
    assert not any(p.requires_grad or m.training for m in b.modules.values() for p in m.parameters())

@EACH
def test_conditions_are_those_of_the_pipeline(family, family_folder):
    b = load_base(family_folder(family))
    pipe = (diffusers.StableDiffusionXLPipeline if family=='sdxl' else diffusers.StableDiffusionPipeline).from_pretrained(family_folder(family))
    for m in b.reader.encoders.values(): m.double()     # single precision is rounded by where weights lie in memory
    pipe.to(torch.float64)
    theirs, ours = pipe.encode_prompt(PROMPTS, device='cpu', num_images_per_prompt=1, do_classifier_free_guidance=False), b.reader(PROMPTS)
    near = partial(torch.allclose, rtol=0, atol=1e-12)
    assert ours['hidden'].dtype==torch.float64 and near(theirs[0], ours['hidden'])
    assert near(theirs[2], ours['pooled']) if family=='sdxl' else 'pooled' not in ours

@EACH
def test_text_encoders_that_train_get_their_gradient(family, family_base):
    b = family_base(family)
    for m in b.reader.encoders.values(): m.requires_grad_(True)
    c = replace(b.reader, pad='longest')(PROMPTS)
    b.net(torch.randn(3,4,8,8), torch.tensor([1,500,999]), c).sum().backward()
    assert all(m.get_input_embeddings().weight.grad.abs().sum()>0 for m in b.reader.encoders.values())

@EACH
def test_each_distinct_prompt_is_encoded_once(family, family_base):
    b, seen = family_base(family), []
    for m in b.reader.encoders.values(): m.register_forward_pre_hook(lambda m, args: seen.append(len(args[0])))
    assert b.reader(PROMPTS).rows==3 and seen==[2]*len(b.reader.encoders)

@pytest.mark.parametrize('pooled', [True, False])
def test_a_condition_is_indexed_moved_and_joined_like_a_tensor(pooled):
    c = Condition(hidden=torch.randn(4,3,2), **(dict(pooled=torch.randn(4,5)) if pooled else {}))
    for i in ([2,0], slice(1,3), torch.tensor([3,3]), torch.tensor([True,False,True,False])):
        assert c[i].keys()==c.keys() and all(torch.equal(c[i][k], v[i]) for k,v in c.items())
    both = Condition.cat([c[:1], c[1:]])
    assert both.keys()==c.keys() and all(torch.equal(both[k], v) for k,v in c.items()) and both.rows==4
    assert {v.dtype for v in c.to(torch.float16).values()}=={torch.float16}

def test_a_row_that_many_share_gathers_its_gradients_in_one_order(two_threads):
    "As indexing does not, where there are several threads and many numbers."
    g = torch.Generator().manual_seed(0)
    x, share = torch.randn(2,77,256, generator=g, requires_grad=True), torch.randn(16,77,256, generator=g)
    def grad(): return torch.autograd.grad((Condition(hidden=x)[[0,1,0,0,0,1,0,0]*2]['hidden']*share).sum(), x)[0]
    first = grad()
    assert all(torch.equal(grad(), first) for _ in range(30))

@EACH
def test_the_autoencoder_stays_in_single_precision(family, family_folder):
    b = load_base(family_folder(family), dtype=torch.bfloat16)
    assert b.codec.vae.dtype==torch.float32 and {m.dtype for k,m in b.modules.items() if k!='vae'}=={torch.bfloat16}
    mean, std = b.codec.keep(torch.rand(1,3,64,64, dtype=torch.bfloat16)).chunk(2, 1)
    assert mean.dtype==std.dtype==b.codec.decode(mean.bfloat16()).dtype==torch.float32

@EACH
def test_latents_are_scaled_as_the_family_does(family, family_base):
    b, x = family_base(family), torch.rand(1,3,64,64)*2-1
    mean, std = b.codec.keep(x).chunk(2, 1)
    q, k = b.codec.vae.encode(x).latent_dist, .13025 if family=='sdxl' else .18215
    assert torch.allclose(mean, q.mean*k) and torch.allclose(std, q.std*k)
    assert torch.allclose(b.codec.decode(mean), b.codec.vae.decode(mean/k).sample.clamp(-1,1))

def test_frames_reach_the_unet_one_a_picture(family_base):
    b, seen = family_base('sdxl'), []
    b.modules['unet'].register_forward_pre_hook(lambda m, a, kw: seen.append(kw['added_cond_kwargs']['time_ids'].tolist()), with_kwargs=True)
    c, z, t = b.reader(['a','b']), torch.randn(2,4,8,16), torch.tensor([1,2])
    for frame in (None, (512,768,0,32,64,128), torch.arange(12).reshape(2,6)): b.net(z, t, c if frame is None else c|Condition(frame=torch.as_tensor(frame)))
    assert seen==[[[64,128,0,0,64,128]]*2, [[512,768,0,32,64,128]]*2, [[0,1,2,3,4,5],[6,7,8,9,10,11]]]

@EACH
def test_a_pipeline_can_be_saved_and_comes_back(family, family_folder, tmp_path):
    b = load_base(family_folder(family))
    b.pipeline().save_pretrained(tmp_path)
    again = load_base(tmp_path)
    assert all(same(again.modules[k], m) for k,m in b.modules.items()) and again.process.default==b.process.default and dict(again.process.schedule.config)==dict(b.process.schedule.config)

# --- folders

def test_the_embedded_base_is_of_the_first_family(base): assert base.family.name=='sd1' and list(base.reader.encoders)==['text_encoder'] and not base.reader.zeros

@EACH
def test_the_hash_sees_every_part(family, own_folder):
    folder = own_folder(family)
    seen = {weights_hash(folder)}
    parts = [d for d in folder.iterdir() if d.is_dir()]
    assert len(parts)==(7 if family=='sdxl' else 5)
    for n,d in enumerate(parts, 2):
        f = [*d.glob('*.safetensors'), *d.glob('*.json')][0]
        f.write_bytes(f.read_bytes()+b' ')
        seen.add(weights_hash(folder)); assert len(seen)==n, d.name

def as_variant(folder, keep=False, parts=('text_encoder','text_encoder_2','unet','vae')):
    for f in [f for p in parts for f in (folder/p).glob('*.safetensors')]:
        save_file({k:v.half() for k,v in load_file(f).items()}, f.with_name(f'{f.stem}.fp16.safetensors'), metadata=dict(format='pt'))
        if not keep: f.unlink()

@EACH
def test_a_variant_that_is_all_there_is_is_read_and_said(family, own_folder, family_folder, said):
    folder = own_folder(family); as_variant(folder)
    b = load_base(folder)
    assert len(said())==1 and 'fp16' in said()[0] and 'unet' in said()[0]
    assert torch.equal(b.modules['unet'].conv_in.weight, load_base(family_folder(family)).modules['unet'].conv_in.weight.half().float()) and b.modules['unet'].dtype==torch.float32

def test_a_variant_is_read_where_it_is_asked_for(own_folder, said):
    folder = own_folder('sd1'); as_variant(folder, keep=True)
    plain, half = load_base(folder), load_base(folder, variant='fp16')
    assert plain.hash!=half.hash and not torch.equal(plain.modules['unet'].conv_in.weight, half.modules['unet'].conv_in.weight) and said()==[]

def test_a_part_without_the_variant_is_said(own_folder, said):
    folder = own_folder('sd1'); as_variant(folder, keep=True, parts=('unet',))
    load_base(folder, variant='fp16')
    assert len(said())==1 and 'text_encoder, vae' in said()[0] and 'unet' not in said()[0]

def test_a_variant_that_is_not_there_is_refused(family_folder, refused):
    with refused('bf16', 'U-Net'): load_base(family_folder('sd1'), variant='bf16')

def test_weights_in_several_files_are_read(family_base, family_folder, tmp_path):
    family_base('sd1').pipeline().save_pretrained(tmp_path, max_shard_size='2MB')
    assert len(list((tmp_path/'unet').glob('*.safetensors')))>1
    assert same(load_base(tmp_path).modules['unet'], load_base(family_folder('sd1')).modules['unet'])

@pytest.fixture
def pickled(family_base, tmp_path):
    family_base('sd1').pipeline().save_pretrained(tmp_path/'bins', safe_serialization=False)
    b = family_base('sd1')
    torch.save(b.modules['text_encoder'].state_dict(), tmp_path/'bins'/'text_encoder'/'pytorch_model.bin')   # transformers no longer writes pickles
    for f in (tmp_path/'bins'/'text_encoder').glob('*.safetensors'): f.unlink()
    return tmp_path/'bins'

def test_pickles_are_refused_unless_allowed(pickled, family_base, refused):
    with refused('text_encoder', '.safetensors', 'allow_pickle'): load_base(pickled)
    b, made = load_base(pickled, allow_pickle=True), family_base('sd1')
    assert all(same(b.modules[k], made.modules[k]) for k in made.modules) and len(b.hash)==16

class Bomb:
    def __reduce__(self): return Path.touch, (Path(Bomb.mark),)

def test_a_pickle_that_would_run_code_is_not_run(pickled, refused, tmp_path):
    Bomb.mark = str(tmp_path/'ran')
    for f in (pickled/'unet'/'diffusion_pytorch_model.bin', tmp_path/'bomb.ckpt'):
        torch.save({'state_dict':Bomb()}, f)
    with refused('unet'): load_base(pickled, allow_pickle=True)
    with refused('bomb.ckpt', 'without running'): load_base(tmp_path/'bomb.ckpt', allow_pickle=True)
    assert not (tmp_path/'ran').exists()

@pytest.mark.parametrize('part', ['text_encoder_2','unet'])
def test_a_part_without_any_weights_is_refused(part, own_folder, refused):
    folder = own_folder('sdxl'); next((folder/part).glob('*.safetensors')).unlink()
    with refused(part, 'no .safetensors weights', 'fetch'): load_base(folder)

@pytest.mark.parametrize('part', ['text_encoder','text_encoder_2','unet','vae'])
def test_a_part_that_lacks_weights_is_refused(part, own_folder, refused):
    folder = own_folder('sdxl'); f = next((folder/part).glob('*.safetensors'))
    w = load_file(f); w.pop(next(k for k in w if 'norm' in k))
    save_file(w, f, metadata=dict(format='pt'))
    with refused(part, 'lacks 1'): load_base(folder)

@pytest.mark.parametrize('part', ['text_encoder','unet','vae'])
def test_a_file_that_was_cut_short_is_refused(part, own_folder, refused):
    folder = own_folder('sd1'); f = next((folder/part).glob('*.safetensors'))
    f.write_bytes(f.read_bytes()[:-1000])
    with refused(part, 'cannot be read'): load_base(folder)

@pytest.mark.parametrize('kind', ['StableDiffusion3Pipeline','FluxPipeline','LatentConsistencyModelPipeline','StableDiffusionInpaintPipeline', None])
def test_other_kinds_of_models_are_refused(kind, own_folder, refused):
    folder = own_folder('sd1'); edit(folder/'model_index.json', _class_name=kind)
    with refused(kind, 'Stable Diffusion 1.x', 'aMUSEd'): load_base(folder)

def test_a_refiner_is_refused(own_folder, refused):
    folder = own_folder('sdxl'); edit(folder/'model_index.json', _class_name='StableDiffusionXLImg2ImgPipeline', text_encoder=[None,None], tokenizer=[None,None])
    with refused('text_encoder', 'refiner'): load_base(folder)

def test_another_text_encoder_is_refused(own_folder, refused):
    folder = own_folder('sd1'); edit(folder/'model_index.json', text_encoder=['transformers','T5EncoderModel'])
    with refused('T5EncoderModel'): load_base(folder)

def resave(folder, **config):
    unet = diffusers.UNet2DConditionModel.from_config(diffusers.UNet2DConditionModel.load_config(folder/'unet'), **config); unet.save_pretrained(folder/'unet')

def test_a_model_for_inpainting_is_refused(own_folder, refused):
    folder = own_folder('sd1'); resave(folder, in_channels=9)
    with refused('9 channels', 'inpainting'): load_base(folder)

def test_a_model_that_is_told_the_guidance_is_refused(own_folder, refused):
    folder = own_folder('sd1'); resave(folder, time_cond_proj_dim=8)
    with refused('consistency'): load_base(folder)

@pytest.mark.parametrize('kind', ['EDMEulerScheduler','FlowMatchEulerDiscreteScheduler'])
def test_another_noise_process_is_refused(kind, own_folder, refused):
    folder = own_folder('sdxl'); getattr(diffusers, kind)().save_pretrained(folder/'scheduler')
    edit(folder/'model_index.json', scheduler=['diffusers',kind])
    with refused(kind): load_base(folder)

def test_a_folder_that_is_broken_is_refused(own_folder, refused):
    folder = own_folder('sd1'); (folder/'model_index.json').write_text('{')
    with refused('model_index.json'): load_base(folder)

def test_a_missing_part_is_refused(own_folder, refused):
    folder = own_folder('sd1'); (folder/'scheduler'/'scheduler_config.json').unlink()
    with refused('scheduler'): load_base(folder)

# --- old folders

def test_old_scheduler_settings_are_mended_as_diffusers_does_and_said(own_folder, said):
    folder = own_folder('sd1')
    edit(folder/'scheduler'/'scheduler_config.json', steps_offset='gone', clip_sample=True, timestep_spacing='gone', _diffusers_version='0.6.0')
    b, pipe = load_base(folder), diffusers.StableDiffusionPipeline.from_pretrained(folder)
    assert len(said())==1 and 'steps_offset 0 as 1' in said()[0]
    for kind in (diffusers.DDIMScheduler, diffusers.DPMSolverMultistepScheduler, diffusers.PNDMScheduler):
        ours, theirs = (dict(kind.from_config(c).config) for c in (b.process.schedule.config, pipe.scheduler.config))
        assert {k:v for k,v in ours.items() if k!='_use_default_values'}=={k:v for k,v in theirs.items() if k!='_use_default_values'}

def test_an_old_sample_size_is_mended_and_said(own_folder, said):
    folder = own_folder('sd1'); edit(folder/'unet'/'config.json', _diffusers_version='0.6.0')
    assert load_base(folder).resolution==512 and 'sample_size 8 as 64' in said()[0]

@pytest.mark.parametrize('prefix', ['text_model.', ''])
def test_text_encoders_are_read_with_and_without_their_old_prefix(prefix, own_folder, family_base, said):
    folder = own_folder('sd1'); f = folder/'text_encoder'/'model.safetensors'
    save_file({prefix+k.removeprefix('text_model.'):v for k,v in load_file(f).items()}, f, metadata=dict(format='pt'))
    assert same(load_base(folder).modules['text_encoder'], family_base('sd1').modules['text_encoder']) and said()==[]

def test_what_old_text_encoders_carry_besides_is_left_alone(own_folder, family_base, said):
    folder = own_folder('sd1'); f = folder/'text_encoder'/'model.safetensors'
    save_file({**load_file(f), 'text_model.embeddings.position_ids':torch.arange(40)[None]}, f, metadata=dict(format='pt'))
    assert same(load_base(folder).modules['text_encoder'], family_base('sd1').modules['text_encoder'])

def test_an_autoencoder_with_its_attention_under_old_names_is_read(own_folder, family_base):
    folder = own_folder('sd1'); f, old = folder/'vae'/'diffusion_pytorch_model.safetensors', dict(to_q='query', to_k='key', to_v='value')
    def rename(k):
        for a,b in {**old, 'to_out.0':'proj_attn'}.items(): k = k.replace(f'attentions.0.{a}.', f'attentions.0.{b}.')
        return k
    w = load_file(f)
    assert sum(rename(k)!=k for k in w)==16
    save_file({rename(k):v for k,v in w.items()}, f, metadata=dict(format='pt'))
    assert same(load_base(folder).modules['vae'], family_base('sd1').modules['vae'])

def test_a_mistyped_file_is_not_asked_of_the_hub(refused):
    with refused('models/gone.safetensors does not exist'): load_base('models/gone.safetensors')

def test_an_old_tokenizer_is_read(own_folder, base):
    folder = own_folder('sd1'); t = folder/'tokenizer'
    model = json.loads((t/'tokenizer.json').read_text('utf-8'))['model']
    (t/'tokenizer.json').unlink()
    (t/'vocab.json').write_text(json.dumps(model['vocab'])); (t/'merges.txt').write_text('#version: 0.2\n'+'\n'.join(' '.join(m) for m in model['merges'])+'\n')
    b = load_base(folder)
    assert torch.equal(b.reader.tokens(['a photo of zwx style, woman farmer'], 'text_encoder'), base.reader.tokens(['a photo of zwx style, woman farmer'], 'text_encoder'))

def test_a_tokenizer_that_does_not_know_how_much_is_read_is_told(own_folder):
    folder = own_folder('sdxl')
    for t in ('tokenizer','tokenizer_2'): edit(folder/t/'tokenizer_config.json', model_max_length='gone')
    assert load_base(folder).reader(['a '*200])['hidden'].shape[1]==40

def test_safety_checkers_are_left_alone(own_folder):
    folder = own_folder('sd1'); edit(folder/'model_index.json', safety_checker=['stable_diffusion','StableDiffusionSafetyChecker'], feature_extractor=['transformers','CLIPImageProcessor'], requires_safety_checker=True)
    assert load_base(folder).family.name=='sd1'

# --- single files

@pytest.fixture
def single(family_base, tmp_path):
    def write(family, name='it.safetensors', drop='', extra=()):
        state = {k:v for k,v in original(family_base(family, seed=5)).items() if not drop or not k.startswith(drop)} | {k:torch.zeros(1) for k in extra}
        save_file(state, tmp_path/name) if name.endswith('.safetensors') else torch.save({'state_dict':state}, tmp_path/name)
        return tmp_path/name
    return write

@EACH
def test_a_single_file_holds_the_same_base(family, single, family_base, family_folder, said):
    made, b = family_base(family, seed=5), load_base(single(family), config=family_folder(family))
    assert b.family.name==family and all(same(b.modules[k], m) for k,m in made.modules.items())
    assert dict(b.process.schedule.config)==dict(load_base(family_folder(family)).process.schedule.config) and b.process.default==made.process.default and b.reader.zeros==made.reader.zeros
    assert len(said())==1 and FAMILIES[family] in said()[0] and b.process.schedule.config.prediction_type in said()[0]
    assert torch.equal(b.reader(PROMPTS)['hidden'], made.reader(PROMPTS)['hidden'])

def test_a_single_file_takes_the_dtype(single, family_folder):
    b = load_base(single('sdxl'), config=family_folder('sdxl'), dtype=torch.bfloat16)
    assert b.modules['unet'].dtype==b.modules['text_encoder'].dtype==b.modules['text_encoder_2'].dtype==torch.bfloat16 and b.codec.vae.dtype==torch.float32

def test_a_single_file_and_its_configuration_are_named_in_one_word(single, family_folder):
    b = load_base(single('sd1'), config=family_folder('sd1'))
    again = load_base(b.name)
    assert again.hash==b.hash and again.name==b.name and str(family_folder('sd1')) in b.name

def test_the_hash_of_a_single_file_sees_its_configuration(single, family_folder):
    f = single('sd2')
    assert load_base(f, config=family_folder('sd2')).hash!=load_base(f, config=family_folder('sd2', prediction_type='epsilon')).hash

def test_a_file_says_that_it_predicts_velocity(single, family_folder):
    b = load_base(single('sdxl', extra=('v_pred','ztsnr')), config=family_folder('sdxl'))
    assert (b.process.schedule.config.prediction_type, b.process.schedule.config.rescale_betas_zero_snr, b.process.schedule.config.timestep_spacing)==('v_prediction', True, 'trailing')
    assert b.process.schedule.alphas_cumprod[-1]<1e-6

def test_a_configuration_that_cannot_be_had_is_named(single, refused):
    with refused('it.safetensors', 'SDXL', 'stable-diffusion-xl-base-1.0', 'config='): load_base(single('sdxl'))

def test_a_configuration_of_another_family_is_refused(single, family_folder, refused):
    with refused(FAMILIES['sd2'], FAMILIES['sd1']): load_base(single('sd2'), config=family_folder('sd1'))

def test_a_configuration_of_another_size_is_refused(single, refused):
    with refused('it.safetensors', 'does not fit'): load_base(single('sd1'), config='tiny')

@pytest.mark.parametrize('drop', ['first_stage_model', 'cond_stage_model', 'model.diffusion_model'])
def test_a_file_without_a_part_is_refused(drop, single, family_folder, refused):
    with refused('no whole checkpoint'): load_base(single('sd1', drop=drop), config=family_folder('sd1'))

@pytest.mark.parametrize('drop', ['model.diffusion_model.middle_block.0.in_layers.0', 'cond_stage_model.transformer.text_model.final_layer_norm', 'first_stage_model.decoder.norm_out'])
def test_a_file_that_lacks_a_weight_is_refused(drop, single, family_folder, refused):
    with refused('it.safetensors'): load_base(single('sd1', drop=drop), config=family_folder('sd1'))

def test_a_lora_is_refused_as_what_it_is(tmp_path, refused):
    save_file({'lora_unet_down.lora_up.weight':torch.zeros(1)}, tmp_path/'l.safetensors')
    with refused('a LoRA'): load_base(tmp_path/'l.safetensors')

@pytest.mark.parametrize('name', ['a.safetensors', 'a.txt'])
def test_a_file_of_something_else_is_refused(name, tmp_path, refused):
    (tmp_path/name).write_text('no weights')
    with refused(name): load_base(tmp_path/name)

def test_a_ckpt_is_refused_unless_allowed(single, family_base, family_folder, refused):
    f = single('sd1', 'it.ckpt')
    with refused('it.ckpt', 'pickle', 'allow_pickle'): load_base(f, config=family_folder('sd1'))
    assert same(load_base(f, config=family_folder('sd1'), allow_pickle=True).modules['unet'], family_base('sd1', seed=5).modules['unet'])

# --- the hub

HELD = ['.gitattributes', 'README.md', 'model_index.json', 'v1-5.ckpt', 'v1-5.safetensors', 'feature_extractor/preprocessor_config.json', 'safety_checker/config.json', 'safety_checker/model.safetensors',
    'scheduler/scheduler_config.json', 'text_encoder/config.json', 'text_encoder/model.safetensors', 'text_encoder/model.fp16.safetensors', 'text_encoder/pytorch_model.bin', 'text_encoder/flax_model.msgpack',
    'tokenizer/merges.txt', 'tokenizer/vocab.json', 'unet/config.json', 'unet/diffusion_pytorch_model.safetensors', 'unet/diffusion_pytorch_model.fp16.safetensors', 'unet/diffusion_pytorch_model.non_ema.safetensors',
    'unet/model.onnx', 'unet/openvino/openvino_model.xml', 'vae/config.json', 'vae/diffusion_pytorch_model-00001-of-00002.safetensors', 'vae/diffusion_pytorch_model-00002-of-00002.safetensors', 'vae/diffusion_pytorch_model.safetensors.index.json']
SMALL = {'model_index.json','scheduler/scheduler_config.json','text_encoder/config.json','tokenizer/merges.txt','tokenizer/vocab.json','unet/config.json','vae/config.json','vae/diffusion_pytorch_model.safetensors.index.json'}
VAE = {'vae/diffusion_pytorch_model-00001-of-00002.safetensors','vae/diffusion_pytorch_model-00002-of-00002.safetensors'}

@pytest.mark.parametrize('half, mid', [(False,''), (True,'.fp16')])
def test_only_what_a_base_is_made_of_is_fetched(half, mid):
    got = hub_files(HELD, half)
    assert len(got)==len(set(got)) and set(got)==SMALL | VAE | {f'text_encoder/model{mid}.safetensors', f'unet/diffusion_pytorch_model{mid}.safetensors'}

def test_a_configuration_is_fetched_without_weights(): assert set(hub_files(HELD, weights=False))==SMALL

@pytest.fixture
def hub(monkeypatch, family_folder, tmp_path):
    "A hub that holds one base, and records what is fetched; `broken` is what it answers instead."
    state = types.SimpleNamespace(broken=None, asked=[], revision=None)
    folder = family_folder('sd1')
    names = [f.relative_to(folder).as_posix() for f in folder.rglob('*') if f.is_file()]
    def info(self, repo, revision=None):
        if state.broken: raise state.broken
        state.revision = revision
        return types.SimpleNamespace(siblings=[types.SimpleNamespace(rfilename=n) for n in names])
    def snapshot(repo, revision=None, allow_patterns=None):
        assert revision==state.revision
        state.asked = sorted(allow_patterns); return str(folder)
    monkeypatch.setattr(sources.HfApi, 'model_info', info)
    monkeypatch.setattr(sources, 'snapshot_download', snapshot)
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path/'hub'))
    state.names = names
    return state

def test_a_hub_id_is_fetched_and_keeps_its_name(hub, family_folder):
    b = load_base('someone/some-base@v2')
    assert b.name=='someone/some-base@v2' and hub.revision=='v2' and b.hash==load_base(family_folder('sd1')).hash
    assert 'unet/diffusion_pytorch_model.safetensors' in hub.asked and 'model_index.json' in hub.asked

def test_a_repository_in_another_layout_is_refused(hub, refused):
    hub.names[:] = ['README.md', 'great.safetensors']
    with refused('someone/some-base', 'great.safetensors', 'path'): load_base('someone/some-base')

def answer(status): return types.SimpleNamespace(status_code=status, headers={}, request=None)

def failing(kind, status=None):
    e = kind.__new__(kind); Exception.__init__(e, 'no')
    if status: e.response = answer(status)
    return e

@pytest.mark.parametrize('broken, words', [(failing(errors.GatedRepoError, 403), ['terms','hf auth login']), (failing(errors.RepositoryNotFoundError, 401), ['private','hf auth login']),
    (failing(errors.HfHubHTTPError, 403), ['does not let you','hf auth login']), (failing(errors.HfHubHTTPError, 500), ['cannot be reached']), (errors.OfflineModeIsEnabled('off'), ['cannot be reached']), (ConnectionError('no'), ['cannot be reached'])])
def test_what_the_hub_does_not_hand_out_is_one_sentence_with_the_alternatives(hub, refused, broken, words):
    hub.broken = broken
    with refused('someone/some-base', '"tiny"', 'folder', '.safetensors', *words): load_base('someone/some-base')

def test_a_revision_that_is_not_there_is_named(hub, refused):
    hub.broken = failing(errors.RevisionNotFoundError, 404)
    with refused('someone/some-base', 'v9'): load_base('someone/some-base@v9')

@pytest.fixture
def cached(hub, family_folder, tmp_path):
    "The base as the hub's library leaves it in its cache."
    at = tmp_path/'hub'/'models--someone--some-base'
    (at/'refs').mkdir(parents=True); (at/'refs'/'main').write_text('a'*40)
    (at/'snapshots').mkdir(); (at/'snapshots'/('a'*40)).symlink_to(family_folder('sd1'), target_is_directory=True)

def test_what_is_in_the_cache_is_used_offline(hub, cached, family_folder, said):
    hub.broken = errors.OfflineModeIsEnabled('off')
    assert load_base('someone/some-base').hash==load_base(family_folder('sd1')).hash and said()==[]

def test_a_cache_that_stands_in_for_the_hub_is_said(hub, cached, said):
    hub.broken = ConnectionError('no')
    load_base('someone/some-base')
    assert len(said())==1 and 'cache' in said()[0]

def test_a_configuration_comes_from_the_cache(hub, cached, single, monkeypatch):
    hub.broken = errors.OfflineModeIsEnabled('off')
    monkeypatch.setitem(stable_diffusion.CONFIGS, 'sd1', 'someone/some-base')
    assert load_base(single('sd1')).family.name=='sd1'

@pytest.mark.parametrize('name', ['nowhere', './no/where', '/no/where', '~/no/where', 'a/b/c', Path('some/one')])
def test_what_is_no_hub_id_never_asks_the_hub(name, hub, refused):
    hub.broken = AssertionError('asked')
    with refused(name, 'is no base', '"tiny"', 'hub id'): load_base(name)

def test_a_hub_that_holds_only_the_configuration_is_named(hub, cached, own_folder, refused, tmp_path):
    "What is left in the cache after the configuration of a single file was fetched."
    folder, at = own_folder('sd1'), tmp_path/'hub'/'models--someone--some-base'/'snapshots'/('a'*40)
    for f in folder.rglob('*.safetensors'): f.unlink()
    at.unlink(); at.symlink_to(folder, target_is_directory=True)
    hub.broken = errors.OfflineModeIsEnabled('off')
    with refused('no .safetensors weights'): load_base('someone/some-base')

# --- what a base suggests

@pytest.mark.parametrize('family, want', [('sd1',dict(resolution=512, batch=4, steps=800, lr=2e-6)), ('sd2',dict(resolution=768, batch=4, steps=800, lr=2e-6)), ('sdxl',dict(resolution=1024, batch=1, steps=800, lr=1e-6))])
def test_a_real_base_suggests_what_suits_its_size(family, want, quick):
    b = blank(family, full=True, device='meta')
    assert b.family.defaults(b)==want and b.family.defaults(b, 1)['lr']==1e-6
    assert settled(quick(resolution=None, lr=None), b).resolution==want['resolution']

def test_the_embedded_base_suggests_what_suits_it(base): assert base.family.defaults(base)==dict(resolution=64, batch=8, steps=200, lr=2e-4)

@pytest.mark.parametrize('device', ['cuda', 'gpu'])
def test_a_device_that_is_not_there_is_refused(device, refused, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with refused(device): load_base(TINY, device)

def test_what_a_device_is_slow_at_is_said(said):
    load_base('tiny', 'cpu', torch.bfloat16)
    assert len(said())==1 and 'bfloat16' in said()[0]
