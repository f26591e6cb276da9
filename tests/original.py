"Writes a base as a single file in the layout of the original code, for the tests that read such files."
import re

import torch

RESNET = dict(norm1='in_layers.0', conv1='in_layers.2', time_emb_proj='emb_layers.1', norm2='out_layers.0', conv2='out_layers.3', conv_shortcut='skip_connection')
TOP = {'time_embedding.linear_1':'time_embed.0', 'time_embedding.linear_2':'time_embed.2', 'add_embedding.linear_1':'label_emb.0.0', 'add_embedding.linear_2':'label_emb.0.2',
    'conv_in':'input_blocks.0.0', 'conv_norm_out':'out.0', 'conv_out':'out.2'}
VAE = [('conv_shortcut','nin_shortcut'), ('conv_norm_out','norm_out'), ('mid_block.attentions.0.group_norm','mid.attn_1.norm'), ('mid_block.attentions.0.to_out.0','mid.attn_1.proj_out'),
    ('mid_block.attentions.0.to_','mid.attn_1.'), ('mid_block.resnets.0','mid.block_1'), ('mid_block.resnets.1','mid.block_2')]
CLIP = [('final_layer_norm','ln_final'), ('encoder.layers','transformer.resblocks'), ('layer_norm','ln_'), ('mlp.fc1','mlp.c_fc'), ('mlp.fc2','mlp.c_proj'), ('self_attn.out_proj','attn.out_proj'),
    ('embeddings.token_embedding','token_embedding'), ('embeddings.position_embedding.weight','positional_embedding')]

def _unet(k, attends):
    for a,b in TOP.items():
        if k.startswith(a+'.'): return b+k.removeprefix(a)
    side, kind, i, part, j, rest = re.fullmatch(r'(down|mid|up)_(blocks|block)\.?(\d*)\.(\w+)\.(\d)\.(.*)', k).groups()
    j = int(j)
    if part=='resnets': rest = re.sub(r'^\w+', lambda m: RESNET[m[0]], rest)
    if side=='mid': return f'middle_block.{1 if part=="attentions" else 2*j}.{rest}'
    i = int(i)
    if part=='downsamplers': return f'input_blocks.{3*(i+1)}.0.op.{rest.removeprefix("conv.")}'
    if part=='upsamplers': return f'output_blocks.{3*i+2}.{1+attends(i)}.{rest}'
    at = 0 if part=='resnets' else 1
    return f'input_blocks.{3*i+j+1}.{at}.{rest}' if side=='down' else f'output_blocks.{3*i+j}.{at}.{rest}'

def _vae(k):
    for a,b in VAE: k = k.replace(a, b)
    k = re.sub(r'(down|up)_blocks\.(\d)\.resnets', lambda m: f'{m[1]}.{m[2] if m[1]=="down" else 3-int(m[2])}.block', k)
    return re.sub(r'(down|up)_blocks\.(\d)\.\w+samplers\.0', lambda m: f'{m[1]}.{m[2] if m[1]=="down" else 3-int(m[2])}.{m[1]}sample', k)

def _open_clip(state):
    out = {}
    for k,v in state.items():
        k = k.removeprefix('text_model.')
        if k=='text_projection.weight': out['text_projection'] = v.T; continue
        if '.self_attn.' in k and 'out_proj' not in k: continue
        for a,b in CLIP: k = k.replace(a, b)
        out[k] = v
    layer = {re.match(r'.*layers\.(\d+)', k)[0].removeprefix('text_model.'):re.match(r'.*layers\.(\d+)', k)[0] for k in state if 'layers.' in k}
    for short,long in layer.items():
        for w in ('weight','bias'): out[f'{short.replace("encoder.layers","transformer.resblocks")}.attn.in_proj_{w}'] = torch.cat([state[f'{long}.self_attn.{q}_proj.{w}'] for q in 'qkv'])
    return out

def original(
    base,  # a `Base`
)->dict:
    "The tensors of a base under their original names."
    unet, vae, (text, *second) = base.modules['unet'], base.modules['vae'], base.reader.encoders.values()
    ups = unet.up_blocks
    out = {'model.diffusion_model.'+_unet(k, lambda i: hasattr(ups[i], 'attentions')):v for k,v in unet.state_dict().items()}
    for k,v in vae.state_dict().items():
        n = _vae(k)
        out['first_stage_model.'+n] = v[:,:,None,None] if 'attn_1' in n and v.ndim==2 else v
    clip = {k.removeprefix('text_model.'):v for k,v in text.state_dict().items()}
    where = dict(sd1='cond_stage_model.transformer.text_model.', sd2='cond_stage_model.model.', sdxl='conditioner.embedders.0.transformer.text_model.')[base.family.name]
    out |= {where+k:v for k,v in (_open_clip(clip) if base.family.name=='sd2' else clip).items()}
    for m in second: out |= {'conditioner.embedders.1.model.'+k:v for k,v in _open_clip(m.state_dict()).items()}
    return {k:v.contiguous().clone() for k,v in out.items()}
