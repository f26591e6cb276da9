"What a stranger's base may say and hold: no code, no file elsewhere, no number that is none, nothing lost on the way back, one sentence each."
import inspect, json, os, shutil, struct, sys, time, zipfile
from pathlib import Path

import diffusers, numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import load_file, save_file

from styleboost.bases import reading
from styleboost.bases.load import blank, load_base, skeleton
from styleboost.bases.original_names import settings_said, single_tensors
from styleboost.bases.processes import min_snr_weight
from styleboost.bases.reading import SCHEDULERS, read_scheduler
from styleboost.bases.sampling import sample
from styleboost.bases.stable_diffusion import SD1, Latents
from styleboost.core import StyleboostError

def edit(file, **changes):
    d = json.loads(file.read_text()); d.update(changes); file.write_text(json.dumps({k:v for k,v in d.items() if v!='gone'}))

# --- what is read is written

TEXTS = dict(beta_schedule='scaled_linear', timestep_spacing='trailing', final_sigmas_type='sigma_min', time_shift_type='linear', prediction_type='v_prediction', solver_type='heun',
    trained_betas=torch.linspace(.001, .02, 1000).tolist(), algorithm_type='sde-dpmsolver++', variance_type='fixed_large', interpolation_type='log_linear', timestep_type='continuous')

def others(cls):
    "Every setting of a scheduler with a value that is not its default."
    for k,p in inspect.signature(cls.__init__).parameters.items():
        d = p.default
        if k=='thresholding' or d is inspect.Parameter.empty: continue
        v = not d if isinstance(d, bool) else d+1 if isinstance(d, int) else d*.9 if isinstance(d, float) and abs(d)<1e9 else -5. if isinstance(d, float) else TEXTS.get(k)
        if v is not None and v!=d: yield k, v

@pytest.mark.parametrize('name', [n for n in SCHEDULERS if not getattr(getattr(diffusers, n), '_backends', None)])
def test_every_setting_of_a_scheduler_comes_back(name, base, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, '_check_schedule', lambda made: None)
    cls, seen = getattr(diffusers, name), 0
    for k,v in others(cls):
        try: made = cls(**{k:v})
        except (ImportError, NotImplementedError, ValueError): continue     # what the class itself does not take
        made.save_pretrained(tmp_path/'scheduler')
        b = SD1.base('x', '', dict(base.modules, tokenizer=base.reader.tokenizer, scheduler=read_scheduler(tmp_path, cls)))
        want, own = json.loads(made.to_json_string()), b.process.scheduler()
        assert type(own) is cls and json.loads(own.to_json_string())==want, k
        assert json.loads(settings_said(b)['styleboost.scheduler'])==want; seen += 1
    assert seen>=len(list(others(cls)))-2>4

VAE = dict(scaling_factor=.2, shift_factor=.1, latents_mean=[.1,-.2,.3,0.], latents_std=[.9,1.1,1.2,.8], force_upcast=False, act_fn='gelu', sample_size=96, norm_num_groups=4)
NOISE = dict(prediction_type='v_prediction', rescale_betas_zero_snr=True, timestep_spacing='leading', use_karras_sigmas=True, beta_end=.013, steps_offset=1)

@pytest.fixture(scope='module')
def odd(family_folder, tmp_path_factory):
    "A folder of SDXL's kind with settings that are not the usual ones."
    folder = Path(shutil.copytree(family_folder('sdxl'), tmp_path_factory.mktemp('odd')/'base'))
    edit(folder/'vae'/'config.json', **VAE); edit(folder/'scheduler'/'scheduler_config.json', **NOISE); edit(folder/'unet'/'config.json', sample_size=16, act_fn='gelu')
    edit(folder/'text_encoder_2'/'config.json', eos_token_id=2)
    return folder

def pictures(b): return np.asarray(sample(b, ['a cat'], 0, 4, size=64, scheduler='euler')[0]).astype(int)

@pytest.mark.parametrize('to', ['folder', 'file'])
def test_every_setting_of_a_base_comes_back(to, odd, family_folder, tmp_path, said):
    b = load_base(odd)
    if to=='folder': b.pipeline().save_pretrained(tmp_path/'out'); again = load_base(tmp_path/'out')
    else:
        tensors, about = single_tensors(b)
        assert {'v_pred','ztsnr'}<=set(tensors) and str(odd) not in str(about)
        save_file({k:v.contiguous() for k,v in tensors.items()}, tmp_path/'one.safetensors', about)
        again = load_base(tmp_path/'one.safetensors', config=family_folder('sdxl'))
        note = next(m for m in said() if 'A single file' in m)
        assert all(f'{k}=' in note for k in ('beta_end','scaling_factor','latents_mean')) and 'rescale' not in note
    vae, noise = again.codec.vae.config, again.process.scheduler().config
    assert {k:list(vae[k]) if isinstance(vae[k], tuple) else vae[k] for k in VAE}==VAE and {k:noise[k] for k in NOISE}==NOISE and again.resolution==128
    assert again.process.default=='EulerDiscreteScheduler' and again.modules['text_encoder_2'].config.eos_token_id==2 and again.modules['unet'].config.act_fn=='gelu'
    assert np.abs(pictures(b)-pictures(again)).max()<=1

def test_a_file_that_others_wrote_says_zero_snr_by_its_markers(family_folder, tmp_path):
    b = blank('sdxl', prediction_type='v_prediction', rescale_betas_zero_snr=True, timestep_spacing='trailing')
    tensors, _ = single_tensors(b)
    save_file({k:v.contiguous() for k,v in tensors.items()}, tmp_path/'one.safetensors')
    noise = load_base(tmp_path/'one.safetensors', config=family_folder('sdxl')).process.schedule
    assert noise.config.rescale_betas_zero_snr and noise.config.timestep_spacing=='trailing' and noise.config.prediction_type=='v_prediction' and noise.alphas_cumprod[-1]<1e-6

def test_a_plain_base_becomes_a_file_without_a_word(said):
    for family in ('sd1','sd2','sdxl'): assert 'ztsnr' not in single_tensors(blank(family))[0]
    assert said()==[]

def test_measured_latents_are_centred_as_the_pipeline_of_sdxl_does(family_base, said):
    b = family_base('sdxl'); vae = b.codec.vae
    vae.register_to_config(latents_mean=VAE['latents_mean'], latents_std=VAE['latents_std'])
    mean, std = (torch.tensor(VAE[k]).view(1,4,1,1) for k in ('latents_mean','latents_std'))
    codec, plain, x = Latents(vae, True), Latents(vae), torch.rand(2,3,64,64)*2-1
    q, (m, s) = vae.encode(x).latent_dist, codec.keep(x).chunk(2, 1)
    torch.testing.assert_close(m, (q.mean-mean)*vae.config.scaling_factor/std); torch.testing.assert_close(s, q.std*vae.config.scaling_factor/std)
    pipe = b.pipeline()
    theirs = pipe(prompt_embeds=(c := b.reader(['a']))['hidden'], pooled_prompt_embeds=c['pooled'], num_inference_steps=1, guidance_scale=1., height=64, width=64, latents=(z := torch.randn(1,4,8,8)), output_type='latent').images
    pipe.set_progress_bar_config(disable=True)
    drawn = pipe(prompt_embeds=c['hidden'], pooled_prompt_embeds=c['pooled'], num_inference_steps=1, guidance_scale=1., height=64, width=64, latents=z, output_type='pt').images
    torch.testing.assert_close((codec.decode(theirs)+1)/2, drawn, atol=1e-5, rtol=1e-4)
    assert codec.hash()!=plain.hash() and not torch.allclose(plain.decode(theirs), codec.decode(theirs))

def test_settings_of_an_autoencoder_that_its_pipeline_leaves_out_are_said(own_folder, said):
    folder = own_folder('sd1'); edit(folder/'vae'/'config.json', shift_factor=.1, latents_mean=[0.,.1,0.,0.], latents_std=[1.,2.,1.,1.])
    b = load_base(folder)
    assert len(said())==1 and 'shift_factor, latents_mean, latents_std' in said()[0] and b.codec.given is None

@pytest.mark.parametrize('change', [dict(scaling_factor=0), dict(scaling_factor=float('nan')), dict(scaling_factor='x'), dict(latents_mean=[1.]), dict(latents_std=[1.,0.,1.,1.])])
def test_an_autoencoder_without_a_scale_is_refused(change, own_folder, refused):
    folder = own_folder('sdxl'); edit(folder/'vae'/'config.json', **change)
    with refused(folder, 'choose another base' if 'x' not in change.values() else ''): load_base(folder)

# --- no code

MARK = "import pathlib; pathlib.Path(r'{}').touch()\nfrom diffusers import DiffusionPipeline, DDIMScheduler\nclass Evil(DiffusionPipeline): pass\n"
INDICES = dict(scheduler=['diffusers','DiffusionPipeline'], unet=['diffusers','DiffusionPipeline'], vae=['pipe','Evil'], tokenizer=['transformers','AutoTokenizer'], text_encoder=['transformers','AutoModel'],
    _class_name=['pipe','Evil'], another=['pipe','Evil'], other=['diffusers','DiffusionPipeline'], safety_checker=['os',5])

@pytest.mark.parametrize('part', INDICES)
def test_code_in_a_folder_is_not_run(part, own_folder, refused, tmp_path, monkeypatch):
    folder = own_folder('sd1')
    for where in (folder, *(d for d in folder.iterdir() if d.is_dir())): (where/'pipe.py').write_text(MARK.format(tmp_path/'ran'))
    for d in folder.iterdir():
        if d.is_dir(): (d/'model_index.json').write_text(json.dumps(dict(_class_name=['pipe','Evil'], _diffusers_version='0.36.0')))
    edit(folder/'model_index.json', **{part:INDICES[part]})
    monkeypatch.chdir(folder); monkeypatch.syspath_prepend(folder)
    tensors, about = single_tensors(blank('sd1')); save_file({k:v.contiguous() for k,v in tensors.items()}, tmp_path/'one.safetensors')
    for read in (load_base, skeleton, lambda f: load_base(tmp_path/'one.safetensors', config=f)):
        with refused(folder): read(folder)
    assert not (tmp_path/'ran').exists() and 'pipe' not in sys.modules

def test_a_class_in_a_files_header_is_held_to_the_list_too(family_folder, refused, tmp_path):
    tensors, about = single_tensors(blank('sd1'))
    about['styleboost.scheduler'] = json.dumps(json.loads(about['styleboost.scheduler'])|dict(_class_name='DiffusionPipeline'))
    save_file({k:v.contiguous() for k,v in tensors.items()}, tmp_path/'one.safetensors', about)
    with refused('one.safetensors', 'DiffusionPipeline'): load_base(tmp_path/'one.safetensors', config=family_folder('sd1'))

ELSEWHERE = dict(quantization_config=dict(quant_method='bitsandbytes'), auto_map=dict(AutoModel='pipe.Evil'), attn_implementation='someone/kernel', _attn_implementation='someone/kernel', transformers_weights='../../w.safetensors')

@pytest.mark.parametrize('key', ELSEWHERE)
def test_a_text_encoder_takes_its_sizes_from_its_settings_and_nothing_else(key, own_folder, base, family_base):
    folder = own_folder('sd1'); edit(folder/'text_encoder'/'config.json', **{key:ELSEWHERE[key]})
    try: b = load_base(folder)
    except StyleboostError as e: assert key=='quantization_config' and 'quantised' in str(e)
    else: assert key!='quantization_config' and torch.equal(b.reader(['a cat'])['hidden'], family_base('sd1').reader(['a cat'])['hidden'])

@pytest.mark.parametrize('where', ['', 'text_encoder'])
def test_an_adapter_beside_a_part_is_refused(where, own_folder, refused):
    folder = own_folder('sd1'); (folder/where/'adapter_config.json').write_text(json.dumps(dict(base_model_name_or_path='/elsewhere', peft_type='LORA')))
    with refused('adapter_config.json'): load_base(folder)

def test_a_tokenizer_reads_no_file_elsewhere(own_folder, refused):
    folder = own_folder('sd1'); edit(folder/'tokenizer'/'tokenizer_config.json', vocab_file='/etc/passwd')
    with refused('tokenizer', 'vocab_file'): load_base(folder)

@pytest.mark.parametrize('named', ['../elsewhere.safetensors', '/etc/passwd', 'pytorch_model.bin', 7])
def test_an_index_of_several_files_names_no_others(named, family_base, tmp_path, refused):
    family_base('sd1').pipeline().save_pretrained(tmp_path, max_shard_size='2MB')
    index = next((tmp_path/'unet').glob('*.index.json')); d = json.loads(index.read_text())
    d['weight_map'][next(iter(d['weight_map']))] = named; index.write_text(json.dumps(d))
    with refused(index, named): load_base(tmp_path)

# --- numbers that are none

def spoil(file, value=float('nan')):
    w = load_file(file); k = sorted(w)[-1]; w[k].view(-1)[-1] = value
    save_file(w, file, metadata=dict(format='pt')); return k

@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
@pytest.mark.parametrize('part', ['text_encoder','text_encoder_2','unet','vae'])
def test_weights_that_are_no_numbers_are_refused_by_file(part, value, own_folder, refused):
    folder = own_folder('sdxl'); file = next((folder/part).glob('*.safetensors')); k = spoil(file, value)
    with refused(file, k, 'NaN or infinity'): load_base(folder)

def test_the_one_of_several_files_that_holds_them_is_named(family_base, tmp_path, refused):
    family_base('sd1').pipeline().save_pretrained(tmp_path, max_shard_size='2MB')
    file = sorted((tmp_path/'unet').glob('*.safetensors'))[-1]; spoil(file)
    with refused(file): load_base(tmp_path)

def test_a_single_file_with_them_is_refused(family_folder, tmp_path, refused):
    tensors, about = single_tensors(blank('sd1')); save_file({k:v.contiguous() for k,v in tensors.items()}, tmp_path/'one.safetensors', about); k = spoil(tmp_path/'one.safetensors')
    with refused('one.safetensors', k, 'NaN'): load_base(tmp_path/'one.safetensors', config=family_folder('sd1'))

def test_what_is_too_large_for_half_precision_alone_is_refused_as_that(own_folder, refused):
    folder = own_folder('sd1'); spoil(next((folder/'unet').glob('*.safetensors')), 1e6)
    with refused('unet', 'half precision', 'bfloat16'): load_base(folder, dtype=torch.float16)
    assert load_base(folder, dtype=torch.bfloat16).modules['unet'].dtype==torch.bfloat16

def test_min_snr_weighs_the_level_without_signal_by_a_number():
    s = diffusers.DDPMScheduler(rescale_betas_zero_snr=True)
    w = min_snr_weight(s, torch.arange(1000), 5.)
    assert torch.isfinite(w).all() and w[-1]==1 and w[-2]==1

# --- files

def header(file, text, size=None): file.write_bytes(struct.pack('<Q', len(text) if size is None else size)+text)

def cut(f): f.write_bytes(f.read_bytes()[:-1000])
def empty(f): f.write_bytes(b'')
def huge(f): header(f, b'{}', 2**62)
def bomb(f):
    with zipfile.ZipFile(f, 'w', zipfile.ZIP_DEFLATED) as z: z.writestr('weights', bytes(50_000_000))
def pickled(f): torch.save(dict(a=torch.zeros(1)), f)
def claims(f): header(f, json.dumps(dict(w=dict(dtype='F32', shape=[2**40], data_offsets=[0,2**42]))).encode())
def overflow(f): header(f, json.dumps(dict(w=dict(dtype='F32', shape=[2**33,2**33], data_offsets=[0,4]))).encode()+b'\0'*4)
def deep(f): header(f, b'['*100_000)
def shapes(f): save_file({k:v.T.contiguous() if v.ndim==2 else v for k,v in load_file(f).items()}, f, metadata=dict(format='pt'))
def flat(f): save_file({k:v.reshape(-1) for k,v in load_file(f).items()}, f, metadata=dict(format='pt'))
def few(f): save_file({'conv_in.weight':torch.zeros(1)}, f, metadata=dict(format='pt'))
def others_names(f): save_file({k+'x':v for k,v in load_file(f).items()}, f, metadata=dict(format='pt'))
def folder_of(f): f.unlink(); f.mkdir()
def lost(f): f.unlink(); f.symlink_to('nowhere')
def circle(f): f.unlink(); f.symlink_to(f.name)
def device(f): f.unlink(); f.symlink_to('/dev/zero')
def pipe(f): f.unlink(); os.mkfifo(f)

@pytest.mark.parametrize('spoil', [cut, empty, huge, bomb, pickled, claims, overflow, deep, shapes, flat, few, others_names, folder_of, lost, circle, device, pipe])
@pytest.mark.parametrize('part', ['text_encoder', 'unet'])
def test_a_damaged_file_of_weights_is_one_sentence_at_once(part, spoil, own_folder, refused):
    folder, start = own_folder('sd1'), time.process_time(); spoil(next((folder/part).glob('*.safetensors')))
    with refused(folder/part): load_base(folder)
    assert time.process_time()-start<20

@pytest.mark.parametrize('spoil', [cut, empty, huge, bomb, pickled, claims, overflow, deep, few, folder_of, lost, circle, device, pipe])
def test_a_damaged_single_file_is_one_sentence_at_once(spoil, family_folder, tmp_path, refused):
    tensors, about = single_tensors(blank('sd1')); f = tmp_path/'one.safetensors'; save_file({k:v.contiguous() for k,v in tensors.items()}, f, about); spoil(f)
    for read in (lambda: load_base(f, config=family_folder('sd1')), lambda: skeleton(str(f))):
        with refused('one.safetensors'): read()

@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16, torch.float8_e4m3fn])
def test_weights_of_another_kind_of_float_are_read(dtype, own_folder, family_base):
    folder = own_folder('sd1'); f = next((folder/'unet').glob('*.safetensors')); w = {k:v.to(dtype) for k,v in load_file(f).items()}
    save_file(w, f, metadata=dict(format='pt'))
    b = load_base(folder)
    assert b.modules['unet'].dtype==torch.float32 and torch.equal(b.modules['unet'].conv_in.weight, w['conv_in.weight'].float())

@pytest.mark.parametrize('spoil', [lost, circle, device, pipe, folder_of])
@pytest.mark.parametrize('file', ['model_index.json','unet/config.json','scheduler/scheduler_config.json','tokenizer/tokenizer_config.json','tokenizer/tokenizer.json'])
def test_settings_that_are_no_plain_file_are_refused(file, spoil, own_folder, refused):
    folder = own_folder('sd1'); spoil(folder/file)
    with refused(folder): load_base(folder)

@pytest.mark.parametrize('name', ['x'*5000, 'a\0b', '~nobody-here/base'])
def test_a_name_that_cannot_be_one_is_refused(name, refused):
    with refused('is no base'): load_base(name)

def test_links_of_the_hubs_cache_are_followed(own_folder, family_folder, tmp_path):
    folder, blobs = own_folder('sd1'), tmp_path/'blobs'; blobs.mkdir()
    for n,f in enumerate([f for f in folder.rglob('*') if f.is_file()]): f.rename(blobs/str(n)); f.symlink_to(blobs/str(n))
    assert load_base(folder).hash==load_base(family_folder('sd1')).hash

# --- settings, mutated

SETTINGS = ('model_index.json','unet/config.json','vae/config.json','text_encoder/config.json','text_encoder_2/config.json','scheduler/scheduler_config.json','tokenizer/tokenizer_config.json','tokenizer_2/tokenizer.json')
scalars = st.one_of(st.none(), st.booleans(), st.integers(-3, 9), st.sampled_from([10**9, 2**63, -2**70, 10**400, 1e308, float('nan'), float('inf'), 0., .5, '', 'x', 'relu', 'pipe', '../..', '\ud800', 'DownBlock2D', '\0']))
values = st.recursive(scalars, lambda v: st.lists(v, max_size=4) | st.dictionaries(st.text(max_size=3), v, max_size=3), max_leaves=6)

@pytest.fixture(scope='module')
def victims(family_folder, tmp_path_factory): return {f:Path(shutil.copytree(family_folder(f), tmp_path_factory.mktemp('victim')/f)) for f in ('sd1','sdxl')}

@pytest.mark.parametrize('file', SETTINGS)
@settings(max_examples=12)
@given(data=st.data())
def test_mutated_settings_draw_or_are_one_sentence(file, victims, data):
    folder = victims['sdxl']
    was = (folder/file).read_bytes(); d = json.loads(was)
    for k in data.draw(st.lists(st.sampled_from(sorted(d)), min_size=1, max_size=2)):
        if data.draw(st.booleans()) or not isinstance(d.get(k), list): d[k] = data.draw(values)
        elif d[k]: d[k][data.draw(st.integers(0, len(d[k])-1))] = data.draw(scalars)
    text = data.draw(st.sampled_from([json.dumps(d)]*6+[json.dumps(d)[:-9], json.dumps([d]), '['*9999, '', 'null']))
    (folder/file).write_bytes(text.encode('utf-8', 'surrogatepass'))
    try:
        b = load_base(folder)
        sample(b, ['a cat'], 0, 2, size=64)
    except StyleboostError as e: assert '\n' not in str(e) and str(e).endswith('.')
    finally: (folder/file).write_bytes(was)

# --- drawing

def test_pictures_of_numbers_that_are_none_are_said(base, said):
    own = base.own(); own.net.unet.conv_out.bias.data[0] = float('nan')
    sample(own, ['a','b'], 0, 1)
    assert len(said())==1 and said()[0].startswith('2 of 2 pictures are black')

def test_a_number_of_steps_that_cannot_be_had_is_refused(base, refused):
    with refused('DDPMScheduler', '2000 steps'): sample(base, ['a'], 0, steps=2000, scheduler='ddpm')
