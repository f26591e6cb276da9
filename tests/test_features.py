"Encoders: the judge, and others from local files, through one door; style and plain statistics."
import copy, json, os, shutil, sys, types

import pytest, torch, torch.nn.functional as F
from PIL import Image, ImageChops
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel, CLIPVisionModelWithProjection

from styleboost.bases.load import blank
from styleboost.cli import _judge_of
from styleboost.judging.closeness import cmmd
from styleboost.judging.encoders import ClipEncoder, CsdEncoder, check_apart, load_encoder
from styleboost.judging.introstyle import IntroStyle
from styleboost.judging.metrics import score
from styleboost.judging import judge as judging
from styleboost.judging.judge import JUDGE, in_eight_bits, in_full, load_judge, measure_ordinary, sight_of, units_of
from styleboost.judging.style import plain_statistics, style_similarity, style_statistics, style_vectors
from styleboost.pictures.tensors import to_tensor
from styleboost.pictures.images import ImageSet, Picture, png
from styleboost.pictures.prompts import Prompt
from styleboost.pictures.world import pictures, pool, reference
from styleboost.studies.eyes import eyes
from styleboost.studies.ready import FinishedRun
from styleboost.studies.study import Study
from styleboost.studies.style import Style
from styleboost.training.loop import train

SMALL = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2)

@pytest.fixture(scope='module')
def clip_folder(tmp_path_factory):
    "A small CLIP model that knows nothing, as transformers saves it."
    folder, tok = tmp_path_factory.mktemp('clip')/'small', load_judge().tokenizer
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=dict(SMALL, vocab_size=len(tok), max_position_embeddings=20, eos_token_id=tok.eos_token_id), vision_config=dict(SMALL, image_size=32, patch_size=8, projection_dim=16), projection_dim=16)).save_pretrained(folder)
    tok.save_pretrained(folder)
    return folder

def csd_state(width=64, layers=2, patch=8, side=4, out=24, seed=0):
    "Weights in the names and shapes of the authors' checkpoint."
    g = torch.Generator().manual_seed(seed)
    r = lambda *s: .2*torch.randn(*s, generator=g)
    w = {'class_embedding':r(width), 'positional_embedding':r(side*side+1, width), 'conv1.weight':r(width,3,patch,patch)}
    for n in ('ln_pre','ln_post'): w |= {f'{n}.weight':1+r(width), f'{n}.bias':r(width)}
    for i in range(layers):
        b = f'transformer.resblocks.{i}.'
        w |= {b+'attn.in_proj_weight':r(3*width,width), b+'attn.in_proj_bias':r(3*width), b+'attn.out_proj.weight':r(width,width), b+'attn.out_proj.bias':r(width),
              b+'mlp.c_fc.weight':r(2*width,width), b+'mlp.c_fc.bias':r(2*width), b+'mlp.c_proj.weight':r(width,2*width), b+'mlp.c_proj.bias':r(width)}
        for n in ('ln_1','ln_2'): w |= {f'{b}{n}.weight':1+r(width), f'{b}{n}.bias':r(width)}
    return {**{f'module.backbone.{k}':v for k,v in w.items()}, 'module.last_layer_style':r(width,out), 'module.last_layer_content':r(width,out)}

def openai_tower(w, x, heads=1):
    "What those weights compute, written down from the architecture alone."
    b = {k.removeprefix('module.backbone.'):v for k,v in w.items()}
    norm = lambda x, n: F.layer_norm(x, x.shape[-1:], b[n+'.weight'], b[n+'.bias'])
    h = F.conv2d(x, b['conv1.weight'], stride=b['conv1.weight'].shape[-1]).flatten(2).transpose(1, 2)
    h = norm(torch.cat([b['class_embedding'].expand(len(h),1,-1), h], 1)+b['positional_embedding'], 'ln_pre')
    for i in range(2):
        p = f'transformer.resblocks.{i}.'
        q, k, v = F.linear(norm(h, p+'ln_1'), b[p+'attn.in_proj_weight'], b[p+'attn.in_proj_bias']).chunk(3, -1)
        a = (q@k.transpose(1, 2)/q.shape[-1]**.5).softmax(-1)@v
        h = h+F.linear(a, b[p+'attn.out_proj.weight'], b[p+'attn.out_proj.bias'])
        m = F.linear(norm(h, p+'ln_2'), b[p+'mlp.c_fc.weight'], b[p+'mlp.c_fc.bias'])
        h = h+F.linear(m*torch.sigmoid(1.702*m), b[p+'mlp.c_proj.weight'], b[p+'mlp.c_proj.bias'])
    return F.normalize(norm(h[:,0], 'ln_post')@w['module.last_layer_style'], dim=-1)

SOME = pool('micah')[:3]+pool('landscape')[:3]

# one door

def test_a_word_a_folder_or_a_file_names_an_encoder(clip_folder, tmp_path):
    file = tmp_path/'csd.safetensors'; save_file(csd_state(), file)
    assert load_encoder('world') is load_judge() and isinstance(load_encoder(clip_folder), ClipEncoder) and isinstance(load_encoder(str(file)), CsdEncoder)
    assert [load_encoder(e).name for e in ('world', clip_folder, file)]==['world','clip:small','csd:csd']

def test_features_given_back_are_not_looked_at_again(clip_folder):
    for e in (load_judge(), load_encoder(clip_folder)):
        f, seen = e.features(SOME), sight_of(e, SOME)
        assert e.features(f) is f and torch.equal(e.embed_images(seen), e.embed_images(SOME)) and torch.equal(e.people(seen), e.people(SOME))

def test_the_judge_measures_with_one_network_and_recognises_with_another():
    e = load_judge()
    assert e.recogniser is not e.image and e.features(SOME).shape[1]==256 and e.sight(SOME).shape[1]==192
    assert torch.equal(units_of(e, e.features(SOME)), e.units(SOME)) and not torch.allclose(e.units(SOME), e.embed_images(SOME), atol=.1)
    assert {p.data_ptr() for p in e.image.parameters()}.isdisjoint(p.data_ptr() for p in e.recogniser.parameters())

def test_a_judge_that_was_taught_nothing_more_recognises_with_what_it_has(tmp_path):
    "As judges were saved before: one network, in half precision."
    e = load_judge()
    folder = shutil.copytree(JUDGE, tmp_path/'judge')
    (folder/'recogniser.safetensors').unlink()
    cfg = json.loads((folder/'config.json').read_text()); del cfg['recogniser']
    (folder/'config.json').write_text(json.dumps(cfg))
    save_file({k:v.half() for k,v in e.text.state_dict().items()}, folder/'text_encoder'/'model.safetensors')
    old = load_judge(folder)
    assert not any('taught' in k or 'recogniser' in k for k in old.state_dict())     # so that it is known by the hash that it had
    assert old.recogniser is old.image and torch.equal(old.features(SOME), e.features(SOME)) and old.sight(SOME).equal(old.features(SOME))
    assert torch.allclose(old.embed_texts(['a dog']), e.embed_texts(['a dog']), atol=2e-3)

def test_features_of_the_wrong_network_are_refused(refused):
    e = load_judge()
    for ask in (e.people, e.embed_images):
        with refused('192', '256', 'sight_of'): ask(e.features(SOME))
    with refused('256', '192'): e.units(e.sight(SOME))

def test_eight_bits_without_their_steps_are_refused(tmp_path, refused):
    folder = shutil.copytree(JUDGE, tmp_path/'judge')
    tensors = {k:v for k,v in load_file(folder/'recogniser.safetensors').items() if k!='project.weight.step'}
    save_file(tensors, folder/'recogniser.safetensors')
    with refused(folder, 'reinstall'): load_judge(folder)

def test_eight_bits_move_a_weight_by_half_a_step_at_most_and_what_was_rounded_stays():
    g = torch.Generator().manual_seed(0)
    state = dict(w=torch.randn(5,3,2,2, generator=g)*torch.tensor([1.,1e-2,10.,1e-9,0.]).view(-1,1,1,1), b=torch.randn(5, generator=g), ids=torch.arange(4))
    kept = in_eight_bits(state)
    assert kept['w'].dtype==torch.int8 and kept['b'].dtype==torch.half and kept['ids'].dtype==torch.int64
    back = in_full(kept)
    assert back.keys()==state.keys() and back['ids'].equal(state['ids'])
    step = kept['w.step'].float().view(-1,1,1,1)
    assert ((back['w']-state['w']).abs() <= .57*step).all() and all(v.equal(kept[k]) for k,v in in_eight_bits(back).items())

@pytest.mark.parametrize('what, words', [('nothing', ('There is no encoder',)), ('empty folder', ('config.json',)), ('another model', ("'bert'",)), ('words', ('cannot be read as weights',)),
                                         ('other weights', ('neither',)), ('half a csd', ('CSD',)), ('half a clip', ('CLIP',))])
def test_what_is_no_encoder_is_refused_with_its_path(tmp_path, refused, what, words, clip_folder):
    path = tmp_path/'it'
    if what=='empty folder': path.mkdir()
    if what=='another model': path.mkdir(); (path/'config.json').write_text('{"model_type": "bert"}')
    if what=='words': path.write_text('words')
    if what=='other weights': path = path.with_suffix('.safetensors'); save_file(dict(a=torch.zeros(2)), path)
    if what=='half a csd': path = path.with_suffix('.safetensors'); save_file({k:v for k,v in csd_state().items() if 'conv1' not in k}, path)
    if what=='half a clip': path.mkdir(); (path/'config.json').write_bytes((clip_folder/'config.json').read_bytes())
    with refused(path, *words): load_encoder(str(path))

# CLIP

def test_clip_is_what_transformers_computes(clip_folder):
    e, ims = ClipEncoder(clip_folder), [p.open() for p in SOME]
    x = (to_tensor(ims, 32, Image.BICUBIC)+1)/2
    x = (x-torch.tensor([.48145466,.4578275,.40821073])[:,None,None])/torch.tensor([.26862954,.26130258,.27577711])[:,None,None]
    ids = e.tokenizer(['a dog','two cats'], padding='max_length', max_length=20, return_tensors='pt')
    with torch.no_grad(): out = e.model(pixel_values=x, input_ids=ids.input_ids)
    assert torch.allclose(e.embed_images(ims), out.image_embeds, atol=1e-5) and torch.allclose(e.embed_texts(['a dog','two cats']), out.text_embeds, atol=1e-4)
    assert torch.allclose(e.embed_images(ims), F.normalize(e.features(ims), dim=-1))

@pytest.mark.parametrize('who', ['world','clip'])
def test_a_long_prompt_is_read_from_its_beginning_and_it_is_said(clip_folder, said, who):
    e = load_encoder('world' if who=='world' else clip_folder)
    most = e.tokenizer.model_max_length
    short, long = 'dog '*(most-2), 'dog '*(most+9)
    v = e.embed_texts([short.strip(), long, 'cat'])
    assert torch.allclose(v[0], v[1], atol=1e-5) and not torch.allclose(v[0], v[2], atol=1e-3) and any('1 of 3 prompts' in m and str(most) in m for m in said())

# the judge may not train the judged

@pytest.mark.parametrize('what', ['itself','a copy','its half for pictures','other weights','gone'])
def test_a_judge_that_taught_is_known_by_its_weights(clip_folder, tmp_path, refused, what):
    folder = clip_folder if what=='itself' else tmp_path/'elsewhere'
    if what=='a copy': shutil.copytree(clip_folder, folder)
    if what in ('its half for pictures','other weights'):
        half = CLIPVisionModelWithProjection.from_pretrained(clip_folder)
        if what=='other weights': next(half.parameters()).data += 1
        half.save_pretrained(folder)
    judge = load_encoder(clip_folder)
    for other in (None, load_judge()): check_apart(str(folder), other)
    if what in ('other weights','gone'): return check_apart(str(folder), judge)
    with refused('clip:small', str(folder), 'such as world'): check_apart(str(folder), judge)

@pytest.mark.parametrize('copied', [False, True])
def test_what_learns_through_an_encoder_may_not_learn_through_the_embedded_judge(base, quick, tmp_path, refused, copied):
    folder = shutil.copytree(JUDGE, tmp_path/'mine') if copied else JUDGE
    with refused(str(folder), 'is a judge', 'another encoder'):
        train(quick(method='inst_port', pictures=3, encoder=str(folder)), tmp_path/'run', base=base, progress=False, device='cpu')
    assert not (tmp_path/'run').exists()

def test_a_study_and_score_refuse_the_encoder_that_a_run_learnt_through(base, quick, ref, clip_folder, tmp_path, refused):
    r = quick(None, method='inst_port', pictures=3, encoder=str(clip_folder), width=16)
    run = train(r, tmp_path/'run', base=base, progress=False, device='cpu')
    real = ImageSet(SOME, 'real')
    style = Style('mine', ref, real, [Prompt('a dog')], [Prompt('a cat'), Prompt('a house')])
    def refuse(arms, judge): Study(style, arms, tmp_path/'study', (0,1), (2,), base, judge=judge, device='cpu', drift=0, sampler=1).refuse()
    for arms in (dict(word=r), dict(word=FinishedRun(run.folder))):
        with refused('The arm word', 'clip:small', 'such as world'): refuse(arms, str(clip_folder))
        refuse(arms, None)
    with refused('clip:small', 'such as world'): _judge_of(run.folder, str(clip_folder))
    assert _judge_of(run.folder, 'world') is load_judge() and _judge_of(tmp_path, str(clip_folder)) is load_encoder(str(clip_folder))

def test_asking_for_people_gives_probabilities(clip_folder):
    p = load_encoder(clip_folder).people(SOME)
    assert p.shape==(6,) and ((0<p)&(p<1)).all()

def test_pictures_of_any_size_are_read(clip_folder):
    odd = [Picture('a.png', data=png(Image.new('RGB', s, 'teal'))) for s in ((300,20), (7,9), (64,64))]
    f = load_encoder(clip_folder).features(odd)
    assert f.shape==(3,16) and torch.allclose(f[0], f[2], atol=1e-4)

# CSD

@pytest.mark.parametrize('kind', ['safetensors','pth'])
def test_csd_computes_what_its_weights_say(tmp_path, kind):
    w, file = csd_state(), tmp_path/f'csd.{kind}'
    if kind=='pth': torch.save(dict(model_state_dict=w), file)
    else: save_file(w, file)
    e = load_encoder(file)
    x = ((to_tensor(SOME, 32, Image.BICUBIC)+1)/2-e.mean)/e.std
    assert e.embed_texts is None and e.people is None and torch.allclose(e.features(SOME), openai_tower(w, x), atol=1e-5)

def test_a_pickle_that_runs_code_is_refused(tmp_path, refused):
    import pathlib
    file = tmp_path/'evil.pth'; torch.save(dict(a=pathlib.PurePosixPath('x')), file)
    with refused(file, 'cannot be read'): load_encoder(file)

def test_style_comes_from_an_encoder_that_has_it_else_from_the_judge(tmp_path, clip_folder):
    file = tmp_path/'csd.safetensors'; save_file(csd_state(), file)
    csd, clip = load_encoder(file), load_encoder(clip_folder)
    assert style_vectors(SOME, csd).shape==(6,24) and torch.equal(style_vectors(SOME, clip), style_vectors(SOME))

# Inception

def inception_library(monkeypatch):
    "A stand-in for torch-fidelity with its interface: one weight, and it unpickles whatever it is given."
    class Extractor(torch.nn.Module):
        def __init__(self, name, features_list, feature_extractor_weights_path):
            super().__init__()
            self.Mixed_7c = torch.nn.Linear(1, 1)
            self.load_state_dict(torch.load(feature_extractor_weights_path, weights_only=False))
        def forward(self, x):
            assert x.dtype==torch.uint8 and x.shape[1:]==(3,299,299)
            return (x.float().mean((2,3))*self.Mixed_7c.weight[0,0],)
    for name in ('torch_fidelity','torch_fidelity.feature_extractor_inceptionv3'): monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(FeatureExtractorInceptionV3=Extractor, __path__=[]))

@pytest.mark.parametrize('kind', ['safetensors','pth'])
def test_inception_gets_bytes_at_299_pixels_and_the_weights_of_the_file(tmp_path, monkeypatch, kind):
    inception_library(monkeypatch)
    w, file = {'Mixed_7c.weight':torch.full((1,1), 3.), 'Mixed_7c.bias':torch.zeros(1)}, tmp_path/f'inception.{kind}'
    save_file(w, file) if kind=='safetensors' else torch.save(w, file)
    e = load_encoder(file)
    assert e.features([Image.new('RGB', (20,20), (10,20,30))]).tolist()==[[30,60,90]] and e.people is None and e.name=='inception:inception'

def test_without_its_library_inception_is_refused_with_what_to_install(tmp_path, monkeypatch, refused):
    monkeypatch.setitem(sys.modules, 'torch_fidelity', None)
    save_file({'Mixed_7c.weight':torch.zeros(1)}, tmp_path/'i.safetensors')
    with refused('pip install torch-fidelity'): load_encoder(tmp_path/'i.safetensors')

def test_other_weights_with_its_names_are_refused(tmp_path, monkeypatch, refused):
    inception_library(monkeypatch)
    save_file({'Mixed_7c.other':torch.zeros(1)}, tmp_path/'i.safetensors')
    with refused('i.safetensors', 'Inception'): load_encoder(tmp_path/'i.safetensors')

# style and plain statistics

def test_style_statistics_do_not_depend_on_company():
    assert torch.allclose(style_statistics(SOME)[4:], style_statistics(SOME[4:]), atol=1e-5) and torch.allclose(plain_statistics(SOME)[4:], plain_statistics(SOME[4:]), atol=1e-5)

@pytest.fixture
def measured(monkeypatch):
    "Image encoders for which what is ordinary was measured; that takes no time."
    calls, kept = [], load_judge().ordinary
    monkeypatch.setattr(judging, 'measure_ordinary', lambda image: calls.append(image) or {k: 2*v for k,v in kept.items()})
    return calls

def test_what_is_kept_as_ordinary_is_what_the_shipped_pictures_give():
    kept, fresh = load_judge().ordinary, measure_ordinary(load_judge().image)
    assert kept.keys()==fresh.keys() and sum(v.numel() for v in kept.values())==508
    for k,v in fresh.items():
        bins = k.startswith('plain')     # a pixel on the edge of a bin falls to either side, as a processor rounds
        assert torch.allclose(kept[k], v, atol=1e-4 if bins else 1e-5), k

def test_the_shipped_judge_opens_no_pack(measured, said):
    assert load_judge.__wrapped__(JUDGE).ordinary.keys()==load_judge().ordinary.keys() and measured==[] and said()==[]

def test_a_judge_with_other_weights_is_measured_once_and_it_is_said(measured, said):
    other = copy.deepcopy(load_judge.__wrapped__(JUDGE))
    other.image.trunk[0][0].bias.data += .1
    a, b = style_vectors(SOME, other), style_vectors(SOME, other)
    assert torch.equal(a, b) and measured==[other.image]
    assert torch.equal(a, (style_statistics(SOME, other)-other.ordinary['style.mean'])/other.ordinary['style.std'])
    assert [m for m in said() if str(JUDGE) in m and 'few seconds' in m]==said()

@pytest.mark.parametrize('how', ['gone','damaged'])
def test_a_folder_without_its_constants_is_measured_and_a_damaged_file_refused(tmp_path, measured, said, refused, how):
    folder = shutil.copytree(JUDGE, tmp_path/'judge')
    file = folder/'ordinary.safetensors'
    if how=='gone':
        file.unlink()
        assert load_judge(folder).ordinary and len(measured)==1 and any(str(folder) in m for m in said())
    else:
        file.write_bytes(b'words')
        with refused(file, 'is damaged', 'measured again'): load_judge(folder).ordinary

def test_other_pictures_of_a_style_are_at_one_however_few_the_reference_has():
    v = .6+torch.randn(2000, 100, generator=torch.Generator().manual_seed(0))
    for n in (5, 50): assert abs(style_similarity(v[n:], v[:n]).mean()-1)<.12

def test_a_reference_without_a_style_in_common_is_refused(refused):
    with refused('nothing in common'): style_similarity(torch.ones(2,4), torch.tensor([[1.,0,0,0],[-1,0,0,0]]))

def test_similarity_to_one_picture_is_refused(refused):
    with refused('needs two'): style_similarity(SOME, SOME[:1])

def picture(paint): im = Image.new('RGB', (64,64)); im.putdata([paint(i%64, i//64) for i in range(4096)]); return im

def test_plain_statistics_see_colour_lightness_edges_and_their_direction():
    grey, light, red, blue = (Image.new('RGB', (64,64), c) for c in ((128,)*3, (220,)*3, (200,40,40), (40,40,200)))
    across, down = picture(lambda x,y: (255*(x//8%2),)*3), picture(lambda x,y: (255*(y//8%2),)*3)
    s = plain_statistics([grey, light, red, blue, across, down, grey])
    d = torch.cdist(s, s).fill_diagonal_(9)
    d[0,6] = d[6,0] = 9
    assert torch.equal(s[0], s[6]) and d.min()>1 and s.isfinite().all()

def test_plain_statistics_hardly_change_when_a_picture_moves_by_a_pixel():
    ims = [p.open() for p in pictures('openmoji')[:8]]
    still, moved = plain_statistics(ims), plain_statistics([ImageChops.offset(im, 1, 1) for im in ims])
    assert ((still-moved).norm(dim=1) < .5*torch.cdist(still, still).fill_diagonal_(99).min(1).values).all()

def test_plain_statistics_tell_styles_apart():
    near = lambda a, b: (plain_statistics(a).mean(0)-plain_statistics(b).mean(0)).norm()
    one, two = pictures('openmoji')[:150], pictures('openmoji')[150:300]
    assert near(one, two) < .5*near(one, pictures('fluent-emoji')[:150])

@pytest.mark.parametrize('spoil', [
    lambda f: (f/'config.json').write_text('{"styles": 3}'), lambda f: (f/'image_encoder.safetensors').write_bytes(b'x'), lambda f: (f/'recogniser.safetensors').unlink(),
    lambda f: (f/'text_encoder'/'model.safetensors').unlink(), lambda f: (f/'tokenizer'/'tokenizer.json').write_text('{')])
def test_a_damaged_judge_is_told_in_one_sentence(tmp_path, refused, spoil):
    folder = shutil.copytree(JUDGE, tmp_path/'judge')
    spoil(folder)
    with refused(str(folder), 'cannot be read'): load_judge(folder)

def test_a_judge_whose_weights_are_no_numbers_is_refused(tmp_path, refused):
    folder = shutil.copytree(JUDGE, tmp_path/'judge')
    tensors = load_file(folder/'image_encoder.safetensors')
    tensors['person.bias'][0] = float('nan')
    save_file(tensors, folder/'image_encoder.safetensors')
    with refused(str(folder), 'no numbers', 'person.bias'): load_judge(folder)

@pytest.mark.parametrize('file', ['config.json', 'image_encoder.safetensors', 'recogniser.safetensors', 'tokenizer/tokenizer_config.json', 'text_encoder/model.safetensors'])
def test_a_judge_with_a_pipe_in_it_is_not_waited_for(tmp_path, refused, file):
    folder = shutil.copytree(JUDGE, tmp_path/'judge')
    (folder/file).unlink(); os.mkfifo(folder/file)
    with refused(folder/file, 'no plain file'): load_judge(folder)

@pytest.mark.parametrize('key, value', [('num_attention_heads', -1), ('vocab_size', 40), ('hidden_act', 'none such'), ('max_position_embeddings', 39), ('projection_dim', 8), ('num_hidden_layers', 10**6), ('intermediate_size', 10**9)])
def test_a_judge_whose_parts_do_not_go_together_is_refused(tmp_path, refused, key, value):
    folder = shutil.copytree(JUDGE, tmp_path/'judge')
    file = folder/'text_encoder/config.json'
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    with refused(folder, 'reinstall'): load_judge(folder)

def test_a_judge_whose_tokenizer_knows_more_words_than_are_read_is_refused(tmp_path, refused):
    folder = shutil.copytree(JUDGE, tmp_path/'judge')
    file = folder/'tokenizer/tokenizer.json'
    said = json.loads(file.read_text())
    said['added_tokens'].append(dict(said['added_tokens'][0], id=5000, content='<new>'))
    file.write_text(json.dumps(said))
    with refused(folder, 'reinstall'): load_judge(folder)

@pytest.mark.parametrize('most', [-1, 10**30, 2, 'many', None])
def test_a_judge_whose_tokenizer_gives_more_than_is_read_is_refused(tmp_path, refused, most):
    folder = shutil.copytree(JUDGE, tmp_path/'judge')
    file = folder/'tokenizer/tokenizer_config.json'
    file.write_text(json.dumps(json.loads(file.read_text()) | dict(model_max_length=most)))
    with refused(folder, 'reinstall'): load_judge(folder)

# CMMD and IntroStyle

def test_a_clip_brings_cmmd_and_no_other_encoder_does(clip_folder):
    e, real, drawn = load_encoder(clip_folder), reference('openmoji'), pool('micah')[:20]
    real = ImageSet([p for p in real if p.people][:12]+[p for p in real if not p.people][:28])
    asked = [Prompt(p.caption or 'a face', True) for p in drawn]
    t = score(list(drawn), real, asked, e)
    like = [i for i,p in enumerate(real) if p.people]
    assert t.cmmd['all']==pytest.approx(cmmd(e.embed_images(drawn), e.embed_images(real))[0], abs=1e-6)
    assert t.cmmd['people']==pytest.approx(cmmd(e.embed_images(drawn), e.embed_images([real[i] for i in like]))[0], abs=1e-6)
    assert (t.cmmd_low<t.cmmd).all() and 'cmmd' not in score(list(drawn), real, asked)

def test_introstyle_does_not_depend_on_company_and_leaves_the_base_alone(base):
    e, before = IntroStyle(base, batch=3), {k: v.clone() for k,v in base.net.state_dict().items()}
    f = e.features(SOME)
    assert f.shape[0]==6 and torch.allclose(f[4:5], e.features([SOME[4]]), atol=1e-4) and e.features(f) is f
    assert not base.net.parts['unet'].up_blocks[1]._forward_hooks and all(torch.equal(v, before[k]) for k,v in base.net.state_dict().items())

def test_introstyle_is_a_word_for_the_studys_own_base(base, refused):
    e = eyes('introstyle', lambda: base)
    assert isinstance(e, IntroStyle) and base.hash in e.name and eyes('introstyle', lambda: base) is e and eyes(e) is e
    with refused('introstyle:tiny'): eyes('introstyle')

@pytest.mark.parametrize('family', ['sd1','sd2','sdxl'])
def test_introstyle_looks_through_every_stable_diffusion(family):
    f = IntroStyle(blank(family)).features(SOME[:2])
    assert f.shape[0]==2 and f.isfinite().all() and not torch.equal(f[0], f[1])

def test_introstyle_refuses_a_base_without_up_blocks(refused):
    with refused('up-block'): IntroStyle(blank('amused'))
    with refused('0 to 999'): IntroStyle(blank('sd1'), step=1000)
