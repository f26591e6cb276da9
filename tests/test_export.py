"Exports: what another program loads draws what the run draws, whatever the method and the layout, and cannot pass for it by accident."
import copy, json, re, shutil
from dataclasses import replace
from pathlib import Path

import diffusers, huggingface_hub, numpy as np, pytest, torch
from diffusers.loaders import single_file_utils as theirs
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from styleboost.bases.load import blank, load_base
from styleboost.bases.original_names import single_tensors
from styleboost.bases.sampling import sample
from styleboost.bases.stable_diffusion import STABLE, Unet
from styleboost.exporting import export as module
from styleboost.exporting.export import _what, export, merged, push
from styleboost.methods.adapters import kohya_tensors
from styleboost.methods.load import make_method
from styleboost.methods.method import attached, trained
from styleboost.training.loop import train
from styleboost.training.runs import Run

PROMPT = 'a photo of zwx style, a dog'

@pytest.fixture(scope='module')
def runs(base, quick, tmp_path_factory):
    "Makes one run of each kind, with everything that it learnt disturbed."
    made = {}
    def make(method='lora', **kw):
        key = (method, *kw.items())
        if key not in made:
            run = train(quick(method=method, **kw), tmp_path_factory.mktemp('run')/'style', base=base, progress=False, device='cpu')
            g = torch.Generator().manual_seed(1)
            by = .003 if method=='full' else .05
            save_file({k: v+by*torch.randn(v.shape, generator=g) if v.is_floating_point() else v for k,v in load_file(run.weights).items()}, run.weights)
            made[key] = Run(run.folder)
        return made[key]
    return make

def plain(base):
    "The untouched base as diffusers has it."
    fresh = base.own()
    return fresh.pipeline(fresh.process.scheduler('ddim'))

def drawn(pipe):
    pipe.set_progress_bar_config(disable=True)
    return np.asarray(pipe(PROMPT, num_inference_steps=3, guidance_scale=7., generator=torch.Generator().manual_seed(3)).images[0], int)

def ours(run): return np.asarray(sample(run, PROMPT, 3, steps=3, raw=True, device='cpu')[0], int)

def same(a, b): return np.abs(a-b).max()<=2

# diffusers

@pytest.mark.parametrize('method', ['full','lora','dora','lokr','oft','miss','svdiff'])
def test_any_method_as_a_folder_draws_in_diffusers_what_the_run_draws(runs, base, tmp_path, method):
    run = runs(method)
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(export(run, tmp_path/'out', pictures=False), local_files_only=True)
    assert same(drawn(pipe), ours(run)) and not same(ours(run), ours(base))

def test_a_folder_opens_as_a_base_and_the_run_is_as_it_was(runs, tmp_path):
    run = runs('dora'); before = ours(run)
    folder = export(run, tmp_path/'out', pictures=False)
    assert same(ours(load_base(folder)), before) and hasattr(run.model().modules['unet'], 'peft_config') and same(ours(run), before)

def test_the_sampler_is_the_runs(runs, quick, base, tmp_path):
    run = runs('lora', scheduler='euler')
    folder = export(run, tmp_path/'out', pictures=False)
    assert diffusers.DiffusionPipeline.load_config(folder)['scheduler'][1]=='EulerDiscreteScheduler'

def test_half_precision_halves_the_file(runs, tmp_path):
    whole, half = (export(runs(), tmp_path/n, to, half=h) for n,to,h in (('a','kohya',False), ('b','kohya',True)))
    assert half.stat().st_size < .6*whole.stat().st_size and {v.dtype for v in load_file(half).values()}=={torch.float16}
    folder = export(runs(), tmp_path/'c', half=True, pictures=False)
    assert {v.dtype for v in load_file(next((folder/'unet').glob('*.safetensors'))).values()}=={torch.float16}

# LoRA files

LORAS = [('lora','attention',None), ('lora','all',24.), ('rslora','attention',24.), ('dora','attention',24.), ('dora','all',24.)]

@pytest.mark.parametrize('method, targets, alpha', LORAS)
def test_a_lora_draws_in_diffusers_what_the_run_draws(runs, base, tmp_path, method, targets, alpha):
    run, pipe = runs(method, targets=targets, alpha=alpha), plain(base)
    assert not same(drawn(pipe), ours(run))
    pipe.load_lora_weights(export(run, tmp_path/'out', 'lora', pictures=False).parent)
    assert same(drawn(pipe), ours(run))

@pytest.mark.parametrize('method, targets, alpha', [l for l in LORAS if l[0]!='dora'])
def test_a_kohya_file_draws_in_diffusers_what_the_run_draws(runs, base, tmp_path, method, targets, alpha):
    run, pipe = runs(method, targets=targets, alpha=alpha), plain(base)
    pipe.load_lora_weights(export(run, tmp_path/'out', 'kohya', pictures=False))
    assert same(drawn(pipe), ours(run))

def test_without_the_text_encoder_the_files_hold_the_unet_alone(runs, base, tmp_path):
    run = runs('lora', text_encoder=False)
    for to, prefix in (('lora','unet.'), ('kohya','lora_unet_')):
        file, pipe = export(run, tmp_path/to, to, pictures=False), plain(base)
        pipe.load_lora_weights(file)
        assert all(k.startswith(prefix) for k in load_file(file)) and same(drawn(pipe), ours(run))

def lycoris(ws, weight):
    "A layer's weight with an adapter applied, by LyCORIS's published formulas."
    alpha = ws.pop('alpha').item()
    if 'lora_up.weight' in ws:
        up, down = ws['lora_up.weight'].flatten(1), ws['lora_down.weight'].flatten(1)
        new = weight+(up@down).view_as(weight)*alpha/len(down)
        if 'dora_scale' in ws:
            assert ws['dora_scale'].shape==(len(weight), *[1]*(weight.ndim-1))
            new = new*ws['dora_scale']/new.flatten(1).norm(dim=1).view_as(ws['dora_scale'])
        return new
    if 'hada_w1_a' in ws: return weight+((ws['hada_w1_a']@ws['hada_w1_b'])*(ws['hada_w2_a']@ws['hada_w2_b'])).view_as(weight)*alpha/len(ws['hada_w1_b'])
    whole = 'lokr_w2' in ws
    w2 = ws['lokr_w2'] if whole else ws['lokr_w2_a']@ws['lokr_w2_b']
    w1 = ws['lokr_w1'][...,None,None] if w2.ndim==4 else ws['lokr_w1']
    return weight+torch.kron(w1, w2).reshape(weight.shape)*(1 if whole else alpha/len(ws['lokr_w2_b']))

@pytest.mark.parametrize('method, rank, alpha', [('lora',16,4.), ('rslora',16,4.), ('dora',16,4.), ('loha',16,4.), ('lokr',16,4.), ('lokr',2,4.), ('lokr',2,None)])
def test_a_kohya_file_makes_the_merged_weights_by_lycoris_formulas(runs, base, method, rank, alpha):
    run = runs(method, targets='all', rank=rank, alpha=alpha)
    tensors, about = kohya_tensors(run.method, run.model())
    layers, model = {}, merged(run)
    for k,v in tensors.items(): layers.setdefault(k.split('.',1)[0], {})[k.split('.',1)[1]] = v
    moved = 0
    for prefix,part in (('lora_unet_','unet'), ('lora_te_','text_encoder')):
        before = base.modules[part].state_dict()
        for k,v in model.modules[part].state_dict().items():
            name = prefix+('text_model.' if part!='unet' and not k.startswith('text_model.') else '').replace('.','_')+k.rpartition('.')[0].replace('.','_')
            if name in layers and k.endswith('.weight'):
                torch.testing.assert_close(lycoris(layers.pop(name), before[k]), v, rtol=1e-4, atol=1e-5); moved += not torch.equal(before[k], v)
            else: assert torch.equal(v, before[k]), k
    assert not layers and moved>100 and about['ss_network_dim']==str(rank)

@pytest.mark.parametrize('to, allowed', [('lora', ('lora','dora','rslora')), ('kohya', ('lora','dora','rslora','loha','lokr'))])
@pytest.mark.parametrize('method, own', [('full', []), ('oft', []), ('hira', []), ('loha', ['kohya']), ('lokr', ['kohya'])])
def test_a_layout_without_a_place_for_a_method_is_refused_with_the_way_out(runs, tmp_path, refused, method, own, to, allowed):
    if method in allowed: return
    with refused(method, f'the layout {to} has no place', 'export it to '+' or '.join(['diffusers','single-file',*own])): export(runs(method), tmp_path/'out', to)
    assert not list(tmp_path.iterdir())

def test_dora_for_kohya_says_who_misreads_it(runs, tmp_path, said):
    file = export(runs('dora'), tmp_path/'out', 'kohya', pictures=False)
    assert any('AUTOMATIC1111' in m for m in said()) and 'spoils' in (file.parent/'README.md').read_text()

# single files

_unet = dict(sample_size=8, block_out_channels=(32,64,64,64), layers_per_block=2, norm_num_groups=8, cross_attention_dim=32)
FAMILIES = dict(
    sd1=dict(unet=dict(_unet, attention_head_dim=2), act='quick_gelu'),
    sd2=dict(unet=dict(_unet, attention_head_dim=(1,2,2,2), use_linear_projection=True), act='gelu'),
    sdxl=dict(unet=dict(_unet, block_out_channels=(32,64,64), down_block_types=('DownBlock2D','CrossAttnDownBlock2D','CrossAttnDownBlock2D'), up_block_types=('CrossAttnUpBlock2D','CrossAttnUpBlock2D','UpBlock2D'),
        transformer_layers_per_block=(1,2,3), attention_head_dim=(1,2,2), use_linear_projection=True, addition_embed_type='text_time', addition_time_embed_dim=8, projection_class_embeddings_input_dim=6*8+48, cross_attention_dim=32+48), act='quick_gelu'))

@pytest.fixture(scope='module')
def family(base):
    "Makes a random base of a family's true architecture, small."
    def make(name):
        torch.manual_seed(0)
        f = FAMILIES[name]
        tok = base.reader.tokenizer
        text = lambda act, **kw: CLIPTextConfig(vocab_size=len(tok), max_position_embeddings=77, bos_token_id=3116, eos_token_id=3117, pad_token_id=3117, num_hidden_layers=3,
            **dict(dict(hidden_size=32, intermediate_size=64, num_attention_heads=2, hidden_act=act, projection_dim=32), **kw))
        parts = dict(unet=diffusers.UNet2DConditionModel(**f['unet']), vae=diffusers.AutoencoderKL(block_out_channels=(16,32,32,32), layers_per_block=2, norm_num_groups=8, latent_channels=4,
            down_block_types=('DownEncoderBlock2D',)*4, up_block_types=('UpDecoderBlock2D',)*4, sample_size=64), text_encoder=CLIPTextModel(text(f['act'])),
            text_encoder_2=CLIPTextModelWithProjection(text('gelu', hidden_size=48, projection_dim=48)) if name=='sdxl' else None)
        g = torch.Generator().manual_seed(1)
        for m in parts.values():
            for p in (m.parameters() if m else ()): p.data += .05*torch.randn(p.shape, generator=g)   # norms and biases too, or a swap of two of them would not show
        toks = {k: copy.deepcopy(tok) for k in ('tokenizer','tokenizer_2')}
        return STABLE[name].base(name, '', dict(toks, scheduler=base.process.schedule, **{k: m and m.requires_grad_(False).eval() for k,m in parts.items()}))
    return make

@pytest.mark.parametrize('name', FAMILIES)
def test_a_single_file_comes_back_through_diffusers_as_it_was(family, tmp_path, name):
    b = family(name)
    save_file({k: v.contiguous() for k,v in single_tensors(b)[0].items()}, tmp_path/'one.safetensors')
    pipe = b.pipeline(b.process.scheduler('ddim')); pipe.save_pretrained(tmp_path/'config')
    for f in (tmp_path/'config').rglob('*.safetensors'): f.unlink()          # only the configuration is left to copy from
    got = type(pipe).from_single_file(tmp_path/'one.safetensors', config=str(tmp_path/'config'), local_files_only=True, **({} if name=='sdxl' else dict(safety_checker=None)))
    for part in ('unet','vae','text_encoder','text_encoder_2'):
        if part not in b.modules: continue
        want, have = b.modules[part].state_dict(), getattr(got, part).state_dict()
        assert want.keys()==have.keys() and [k for k in want if not torch.equal(want[k], have[k])]==[]
    assert same(drawn(got), drawn(pipe))

def test_svdiff_as_a_single_file_draws_what_the_run_draws_and_its_card_says_what_it_is(quick, family_folder, own_folder, tmp_path):
    r = quick(method='svdiff', steps=1, resolution=64, base=str(family_folder('sd1')))
    run, g = train(r, tmp_path/'run', progress=False, device='cpu'), torch.Generator().manual_seed(1)
    save_file({k: v+.05*torch.randn(v.shape, generator=g) for k,v in load_file(run.weights).items()}, run.weights)
    run, config = Run(run.folder), own_folder('sd1')
    file = Path(export(run, tmp_path/'out', 'single-file', pictures=False))
    for f in config.rglob('*.safetensors'): f.unlink()
    pipe = diffusers.StableDiffusionPipeline.from_single_file(file, config=str(config), local_files_only=True, safety_checker=None)
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    got = pipe(PROMPT, num_inference_steps=3, guidance_scale=7., height=64, width=64, generator=torch.Generator().manual_seed(3)).images[0]
    draw = lambda m: np.asarray(sample(m, PROMPT, 3, 3, 7., size=64, raw=True, device='cpu')[0], int)
    assert same(np.asarray(got, int), draw(run)) and not same(draw(run), draw(load_base(family_folder('sd1'))))
    card = (file.parent/'README.md').read_text()
    assert all(w in card for w in ('svdiff', 'a photo of zwx style', run.info['base_hash'], file.name))

def full_size(name):
    "The published architecture, without memory for its weights."
    return blank(name, full=True, device='meta')

@pytest.mark.parametrize('name, parameters, unet', [('sd1', 1_066_235_307, 686), ('sd2', 1_289_952_427, 686), ('sdxl', 3_468_837_867, 1680)])
def test_at_full_size_diffusers_knows_every_name_and_what_it_is(name, parameters, unet):
    b = full_size(name)
    one, parts = single_tensors(b)[0], b.modules
    assert theirs.infer_diffusers_model_type(one)==dict(sd1='v1', sd2='v2', sdxl='xl_base')[name]
    shapes = lambda d: {k: v.shape for k,v in d.items()}
    assert shapes(theirs.convert_ldm_unet_checkpoint(dict(one), parts['unet'].config))==shapes(parts['unet'].state_dict())
    assert shapes(theirs.convert_ldm_vae_checkpoint(dict(one), parts['vae'].config))==shapes(parts['vae'].state_dict())
    assert sum(k.startswith('model.diffusion_model.') for k in one)==unet and sum(v.numel() for v in one.values())==parameters

# names that are in the published files, as their documentation and diffusers' tables have them
KNOWN = dict(
    sd1=['model.diffusion_model.output_blocks.11.0.skip_connection.weight', 'model.diffusion_model.output_blocks.2.1.conv.weight', 'model.diffusion_model.output_blocks.5.2.conv.weight', 'model.diffusion_model.input_blocks.3.0.op.weight',
         'model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_out.0.weight', 'first_stage_model.encoder.mid.attn_1.proj_out.weight', 'first_stage_model.decoder.up.3.upsample.conv.weight', 'first_stage_model.decoder.up.1.block.0.nin_shortcut.weight',
         'first_stage_model.quant_conv.weight', 'cond_stage_model.transformer.text_model.encoder.layers.11.mlp.fc2.bias', 'cond_stage_model.transformer.text_model.final_layer_norm.weight'],
    sd2=['model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight', 'cond_stage_model.model.positional_embedding', 'cond_stage_model.model.token_embedding.weight', 'cond_stage_model.model.transformer.resblocks.22.attn.in_proj_weight',
         'cond_stage_model.model.transformer.resblocks.0.attn.out_proj.bias', 'cond_stage_model.model.transformer.resblocks.0.mlp.c_fc.weight', 'cond_stage_model.model.ln_final.bias'],
    sdxl=['model.diffusion_model.label_emb.0.2.bias', 'model.diffusion_model.input_blocks.8.1.transformer_blocks.9.ff.net.0.proj.weight', 'model.diffusion_model.output_blocks.8.0.skip_connection.weight', 'model.diffusion_model.output_blocks.5.2.conv.bias',
          'conditioner.embedders.0.transformer.text_model.embeddings.position_embedding.weight', 'conditioner.embedders.1.model.transformer.resblocks.31.mlp.c_proj.bias', 'conditioner.embedders.1.model.text_projection', 'conditioner.embedders.1.model.positional_embedding'])

@pytest.mark.parametrize('name', FAMILIES)
def test_names_that_are_known_from_the_published_files_are_there(name):
    one, _ = single_tensors(full_size(name))
    assert [k for k in KNOWN[name] if k not in one]==[]
    assert one['first_stage_model.decoder.mid.attn_1.q.weight'].shape==(512,512,1,1)

@pytest.mark.parametrize('kind', ['epsilon','v_prediction'])
def test_an_sdxl_that_predicts_velocity_says_so(family, kind):
    b = family('sdxl'); b = replace(b, process=replace(b.process, schedule=diffusers.DDPMScheduler(prediction_type=kind)))
    assert ('v_pred' in single_tensors(b)[0])==(kind=='v_prediction')

@pytest.mark.parametrize('change', [dict(addition_embed_type='text', addition_embed_type_num_heads=2), dict(class_embed_type='timestep')])
def test_a_unet_that_does_not_fit_the_layout_is_refused(family, refused, change):
    unet = diffusers.UNet2DConditionModel(**dict(FAMILIES['sd1']['unet'], **change))
    b = replace(family('sd1'), name='odd', net=Unet(unet))
    with refused('odd', 'diffusers'): single_tensors(b)

def test_the_tiny_base_is_refused_as_a_single_file_and_nothing_is_written(runs, tmp_path, refused):
    with refused('add_embedding', 'diffusers'): export(runs(), tmp_path/'out', 'single-file')
    assert not list(tmp_path.iterdir())

def test_sdxl_loras_for_kohya_are_named_as_kohya_names_them_and_diffusers_reads_them(family, tmp_path):
    b = family('sdxl')
    pipe = b.pipeline(b.process.scheduler('ddim')); before = drawn(pipe)
    m = make_method('lora', targets='all', rank=4, alpha=6., text_encoder=True)
    tuned, g = attached(b, m), torch.Generator().manual_seed(0)
    for p in trained(tuned).values(): p.data += .1*torch.randn(p.shape, generator=g)
    tensors, about = kohya_tensors(m, tuned)
    assert {k.split('_')[1] for k in tensors}=={'unet','te1','te2'} and 'lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.lora_down.weight' in tensors and about['ss_base_model_version'].startswith('sdxl')
    assert not any('down_blocks' in k for k in tensors)
    after = drawn(m.merge(tuned).pipeline(b.process.scheduler('ddim')))
    assert not same(before, after)
    save_file(tensors, tmp_path/'k.safetensors')
    pipe.load_lora_weights(tmp_path/'k.safetensors')
    assert same(drawn(pipe), after)

def test_what_was_learnt_by_a_step_that_was_kept_is_exported_as_it_was(quick, base, tmp_path):
    run = train(quick(steps=4, lr=1e-2), tmp_path/'run', base=base, progress=False, device='cpu', snapshots=(2,))
    out = export(Run(run.folder, 2), tmp_path/'out', pictures=False)
    early, late = ours(Run(run.folder, 2)), ours(run)
    assert same(ours(load_base(out)), early) and not same(early, late)
    assert '2 of 4 steps' in (out/'README.md').read_text()

def test_a_cell_of_a_study_keeps_its_samples_in_folders_and_is_exported_all_the_same(runs, tmp_path):
    run = runs()
    (run.folder/'samples'/'test-000002').mkdir(parents=True)
    try: out = export(run, tmp_path/'out', 'lora')
    finally: shutil.rmtree(run.folder/'samples')
    assert 'Drawn by this model: woman farmer' in (out.parent/'README.md').read_text()

# the folder and the card

@pytest.mark.parametrize('binding, what', [(dict(role='style'), 'StyleRef'), (dict(role='prior', toward='base'), 'held to the base'),
    (dict(role='prior', images=dict(name='generated: a photo of style')), 'Drawn by the base'), (dict(role='prior', images=dict(name='world:people')), 'Auxiliary')])
def test_a_card_says_what_pictures_were_to_the_model(binding, what): assert what in _what(binding)

def test_a_card_shows_what_was_shown_what_is_drawn_and_how_it_scored(runs, ref, aux, tmp_path):
    run = runs()
    (run.folder/'scores.json').write_text(json.dumps(dict(rows=[dict(group='people', metric='kid', value=.0123, low=.004, high=.02, n=4), dict(group='people', metric='text', value=.3, low=None, high=None, n=8)])))
    try: file = export(run, tmp_path/'out', 'lora')
    finally: (run.folder/'scores.json').unlink()
    text = (file.parent/'README.md').read_text()
    pics = re.findall(r'!\[[^]]*\]\(([^)]+)\)', text)
    assert {*pics}=={'samples.jpg','0-style.jpg','1-prior.jpg'}
    for p in pics:
        with Image.open(file.parent/p) as im: assert max(im.size)<=1024 and (file.parent/p).stat().st_size<3e5
    assert all(w in text for w in ('| people | 8 | 0.0123 (0.004 to 0.02) | 0.3 |', 'a photo of zwx style', ref.hash, aux.hash, 'lora', run.info['base_hash'], run.info['recipe_hash'], 'Licence', 'consent', 'instance_prompt'))
    assert {p.name for p in file.parent.iterdir()}=={'README.md','pytorch_lora_weights.safetensors',*pics}
    assert text.startswith('---\n') and str(tmp_path) not in text and str(run.folder) not in text

@pytest.mark.parametrize('to', ['diffusers','lora','kohya'])
def test_the_lines_on_the_card_draw_what_the_run_draws(runs, tmp_path, monkeypatch, to):
    run = runs(steps_sampled=3)
    made = export(run, tmp_path/'my model', to, pictures=False)
    folder = made if to=='diffusers' else made.parent
    code = re.search(r'```python\n(.*?)```', (folder/'README.md').read_text(), re.S)[1]
    monkeypatch.chdir(tmp_path)
    exec(code, got:={})
    want = sample(run, 'woman farmer', 0, steps=3, device='cpu')[0]
    assert same(np.asarray(got['image'], int), np.asarray(want, int))

def test_a_base_on_this_machine_is_named_without_its_path(base, base_copy, quick, tmp_path, monkeypatch):
    here = base_copy(tmp_path/'secret'/'mybase')
    run = train(quick(method='lora'), tmp_path/'run', base=load_base(here), progress=False, device='cpu')
    text = (export(run, tmp_path/'out', 'lora', pictures=False).parent/'README.md').read_text()
    assert 'path/to/mybase' in text and 'secret' not in text

def test_samples_that_are_there_are_shown_and_not_drawn_again(runs, ref, tmp_path, monkeypatch):
    run = runs(steps_sampled=2); ref.save(run.folder/'samples')
    monkeypatch.setattr(module, 'sample', lambda *a, **kw: pytest.fail('drawn again'))
    file = export(run, tmp_path/'out', 'lora')
    assert 'a picture of anna' in (file.parent/'README.md').read_text()

def test_lost_sheets_are_said(runs, tmp_path, said):
    run = runs(rank=3)
    for f in (run.folder/'sheets').iterdir(): f.unlink()
    assert (export(run, tmp_path/'out', 'lora').parent/'samples.jpg').exists() and any('sheets' in m for m in said())

def test_a_path_to_a_file_gets_the_file_alone(runs, tmp_path, said):
    (tmp_path/'mine').write_text('mine')
    assert export(runs(), tmp_path/'style.safetensors', 'kohya')==tmp_path/'style.safetensors'
    assert {p.name for p in tmp_path.iterdir()}=={'mine','style.safetensors'} and any('alone' in m for m in said())
    with safe_open(tmp_path/'style.safetensors', 'pt') as f: assert f.metadata()['ss_network_module']=='networks.lora' and 'zwx' in f.metadata()['modelspec.trigger_phrase']

@pytest.mark.parametrize('there', ['file', 'folder', 'safetensors'])
@pytest.mark.parametrize('to', ['diffusers','lora'])
def test_an_export_over_something_is_refused(runs, tmp_path, refused, there, to):
    out = tmp_path/('out.safetensors' if there=='safetensors' else 'out')
    if there=='folder': out.mkdir(); (out/'mine').write_text('mine')
    else: out.write_text('mine')
    with refused(out): export(runs(), out, to)
    assert (out/'mine' if there=='folder' else out).read_text()=='mine'

def test_interrupted_it_leaves_nothing(runs, tmp_path, monkeypatch):
    def stop(*args): raise KeyboardInterrupt
    monkeypatch.setattr(module, 'card', stop)
    with pytest.raises(KeyboardInterrupt): export(runs(), tmp_path/'out', 'lora', pictures=False)
    assert not list(tmp_path.iterdir())

def test_an_unknown_layout_and_an_unfinished_run_are_refused(runs, base, quick, tmp_path, refused):
    with refused("'onnx'", 'diffusers', 'single-file', 'lora', 'kohya'): export(runs(), tmp_path/'out', 'onnx')
    half = train(quick(method='lora', steps=4), tmp_path/'run', base=base, progress=False, device='cpu', every=1, watch=lambda line: line['step']==2)
    with refused('not finished'): export(half, tmp_path/'out')

# the hub

@pytest.fixture
def hub(monkeypatch):
    "A hub that only remembers."
    calls = []
    monkeypatch.setattr(huggingface_hub, 'get_token', lambda: 'a word')
    monkeypatch.setattr(huggingface_hub, 'create_repo', lambda repo, **kw: calls.append(('create', repo, kw)) or f'https://hub/{repo}')
    monkeypatch.setattr(huggingface_hub, 'upload_folder', lambda **kw: calls.append(('upload', kw['repo_id'], Path(kw['folder_path']))))
    return calls

@pytest.fixture
def folder(tmp_path): (tmp_path/'README.md').write_text('# a card'); return tmp_path

def test_a_push_makes_a_private_repository_and_sends_the_folder(hub, folder):
    assert push(folder, 'me/style')=='https://hub/me/style'
    assert hub==[('create', 'me/style', dict(private=True, exist_ok=True)), ('upload', 'me/style', folder)]

def test_without_a_login_nothing_is_sent(hub, folder, monkeypatch, refused):
    monkeypatch.setattr(huggingface_hub, 'get_token', lambda: None)
    with refused('logged in', 'hf auth login'): push(folder, 'me/style')
    assert hub==[]

def test_what_the_hub_answers_is_one_sentence(hub, folder, monkeypatch, refused):
    def fail(**kw): raise OSError('no\nroute.')
    monkeypatch.setattr(huggingface_hub, 'upload_folder', fail)
    with refused('me/style', 'no route'): push(folder, 'me/style')

def test_a_folder_without_a_card_is_not_pushed(hub, tmp_path, refused):
    with refused('README.md'): push(tmp_path, 'me/style')
    assert hub==[]
