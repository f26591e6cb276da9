"The papers' methods: trained, resumed, handed over, and drawn by other programs."
import json, re
from dataclasses import replace
from pathlib import Path

import numpy as np, pytest, torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from styleboost.bases.base import Condition
from styleboost.bases.load import blank, load_base
from styleboost.bases.sampling import sample
from styleboost.exporting.export import export, merged
from styleboost.methods.custom_diffusion import sizes_of
from styleboost.methods.hypernetwork import prompt_layers
from styleboost.methods.load import make_method
from styleboost.methods.method import View, attached, state, trained
from styleboost.methods.textual_inversion import tables
from styleboost.training.batches import Batch, Batches
from styleboost.training.loop import train
from styleboost.training.mix import mixed
from styleboost.training.objective import Objective
from styleboost.training.plan import plan
from styleboost.training.recipes import no_prior, settled, styleboost
from styleboost.training.runs import Run

PAPERS = ('custom_diffusion','dreamstyler','dreamartist','styledrop_port','specialist_reconstruction','inst_port','pivotal')
LEARNT = dict(custom_diffusion=('to_k.weight','to_v.weight','rows'), styledrop_port=('down.weight','up.weight'), inst_port=('weight','bias','faces'),
    specialist_reconstruction=('weight','bias','positional_embedding'), pivotal=('lora_A.weight','lora_B.weight','rows'))   # the others learn rows
SHORT = dict(specialist_reconstruction=dict(every=3, walk=2), pivotal=dict(rank=2), inst_port=dict(pictures=3))   # content loss in steps 1 and 4
papers = pytest.mark.parametrize('name', PAPERS)

@pytest.fixture
def go(quick, base, tmp_path):
    "Trains into a folder by its name."
    def run(name, method, seed=0, watch=None, resume=False, **kw):
        r = quick(**dict(dict(method=method, steps=4, lr=1e-2, checkpoint=2), **SHORT.get(method, {}), **kw))
        return train(r, tmp_path/name, seed, base, progress=False, every=1, device='cpu', watch=watch, resume=resume)
    return run

def equal(a, b): return a.keys()==b.keys() and all(torch.equal(a[k], b[k]) for k in a)

def drawn(model, guidance=5.): return np.asarray(sample(model, 'a dog', 3, 2, guidance, device='cpu')[0], int)

def disturbed(run, by=.05):
    "What a run has learnt, moved at random, so that nothing is equal by accident."
    g = torch.Generator().manual_seed(1)
    save_file({k: v+by*torch.randn(v.shape, generator=g) for k,v in load_file(run.weights).items()}, run.weights)
    return Run(run.folder)

def code_of(card): return re.search(r'```python\n(.*?)```', card.read_text(), re.S)[1]

@papers
def test_resumed_is_uninterrupted_and_what_is_kept_is_what_is_named(go, name):
    whole, half = go('whole', name), go('half', name, watch=lambda line: line['step']==2)
    assert not half.done
    again, other = go('half', name, resume=True), go('other', name, seed=1)
    kept = load_file(whole.weights)
    assert again.done and equal(kept, load_file(again.weights)) and not equal(kept, load_file(other.weights))
    assert all(k.endswith(LEARNT.get(name, ('rows',))) for k in kept)

@papers
def test_a_run_that_is_opened_again_draws_what_was_learnt(go, base, name):
    run = disturbed(go('run', name))
    assert np.array_equal(drawn(run), drawn(run.model())) and not np.array_equal(drawn(run), drawn(base))

@papers
@pytest.mark.parametrize('kw', [dict(checkpointing=True), dict(precision='bf16'), dict(accumulate=2, batch=2)], ids=str)
def test_a_lever_does_not_stop_it_and_is_planned(go, base, quick, name, kw):
    assert go('run', name, steps=2, **kw).done and plan(base, quick(method=name, **SHORT.get(name, {}), **kw), 'cpu').step>0

@pytest.mark.parametrize('name', ['dreamstyler','dreamartist','inst_port'])
def test_checkpointing_is_worth_it_where_words_alone_learn(quick, name):
    of = lambda on: plan(blank('sd1'), quick(method=name, batch=4, precision='no', resolution=64, checkpointing=on, **SHORT.get(name, {})), 'cpu').step
    assert of(True)<.9*of(False)

@papers
def test_only_what_is_named_moves_and_all_of_it(base, quick, name):
    r = settled(quick(method=name, batch=4, **SHORT.get(name, {})), base)
    b, batches = attached(base, r.method), Batches(base, r, 0, 'cpu')
    r.method.look(b, r.bindings)
    mine = trained(b)
    named = lambda: {f'{k}.{n}': p for k,m in b.modules.items() for n,p in (*m.named_parameters(), *m.named_buffers()) if f'{k}.{n}' not in mine}
    before, still = ({k: p.detach().clone() for k,p in d.items()} for d in (mine, named()))
    opt = torch.optim.Adam(mine.values(), 1e-2)
    for step in range(6):
        sum(Objective(b)(batches(step))).backward()
        opt.step(); opt.zero_grad()
    whole = lambda k: (mine[k]!=before[k]).any(1).all() if k.endswith('rows') else not torch.equal(mine[k], before[k])
    assert all(k.replace('.default', '').endswith(LEARNT.get(name, ('rows',))) for k in mine) and [k for k in mine if not whole(k)]==[]
    assert equal(still, named()) and all(p.grad is None for p in named().values())

@pytest.mark.parametrize('name', PAPERS[:3])
def test_a_word_has_rows_in_both_text_encoders_of_sdxl(quick, family_base, tmp_path, name):
    run = train(quick(method=name), tmp_path/'run', base=family_base('sdxl'), progress=False, device='cpu')
    assert {k.split('.')[0] for k in load_file(run.weights) if k.endswith('rows')}=={'text_encoder','text_encoder_2'}

# other programs

def of_folder(quick, family_folder, tmp_path, name, **kw):
    r = quick(method=name, base=str(family_folder('sd1')), resolution=64, **kw)
    return disturbed(train(r, tmp_path/'run', progress=False, device='cpu'))

def pipe_of(folder):
    pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe

def theirs(pipe, prompt, negative, guidance=5.):
    return np.asarray(pipe(prompt, negative_prompt=negative, num_inference_steps=2, guidance_scale=guidance, height=64, width=64,
                           generator=torch.Generator().manual_seed(3)).images[0], int)

def ours(run, guidance=5.): return np.asarray(sample(run, 'a dog', 3, 2, guidance, size=64, device='cpu')[0], int)

def test_dreamartists_two_files_draw_in_diffusers_what_the_run_draws(quick, family_folder, tmp_path):
    run = of_folder(quick, family_folder, tmp_path, 'dreamartist')
    file = Path(export(run, tmp_path/'out', 'embedding', pictures=False))
    pipe = pipe_of(family_folder('sd1'))
    pipe.load_textual_inversion(str(file), token='zwx')
    pipe.load_textual_inversion(str(file.parent/'not-zwx.safetensors'), token='not-zwx')
    got = theirs(pipe, 'a photo of zwx style, a dog', 'a photo of not-zwx style, a dog')
    assert abs(got-ours(run)).max()<=2
    card = (file.parent/'README.md').read_text()
    assert 'token="not-zwx"' in card and 'negative_prompt="a photo of not-zwx style, woman farmer"' in card

@pytest.mark.parametrize('name', ['custom_diffusion','dreamartist'])
def test_a_merged_folder_draws_in_diffusers_what_the_run_draws(quick, family_folder, tmp_path, name):
    run = of_folder(quick, family_folder, tmp_path, name)
    export(run, tmp_path/'out', 'diffusers', pictures=False)
    m = run.method
    away = m.spell(m.negative(m.phrase('a dog'))) or None
    assert abs(theirs(pipe_of(tmp_path/'out'), m.spell(m.phrase('a dog')), away)-ours(run)).max()<=2
    assert m.spell(m.phrase('…')) in (tmp_path/'out'/'README.md').read_text()

@pytest.mark.parametrize('name', ['dreamstyler','styledrop_port'])
def test_what_other_programs_cannot_hold_is_refused_in_a_sentence(go, tmp_path, refused, name):
    run = go('run', name, steps=1)
    for to in ('diffusers','single-file','embedding'):
        with refused(name, f'{to} has no place'): export(run, tmp_path/'out', to)

@pytest.mark.parametrize('name, words', [('dreamstyler', ('level of noise', 'export it to embeddings')), ('styledrop_port', ('GELU', 'draw with the run'))])
def test_what_cannot_be_folded_in_is_refused_with_the_cause_and_the_way_out(go, refused, name, words):
    run = go('run', name, steps=1)
    with refused(name, 'cannot be folded', *words): merged(run)
    with refused(name, 'cannot be folded', *words): mixed([run])

def test_the_lines_on_dreamstylers_card_change_the_word_while_they_draw(go, tmp_path, monkeypatch):
    run = disturbed(go('run', 'dreamstyler', steps_sampled=4, stages=3, vectors=2), .3)
    file = Path(export(run, tmp_path/'out', 'embeddings', pictures=False))
    monkeypatch.chdir(tmp_path)
    exec(code_of(file.parent/'README.md'), got := {})
    want, end = (np.asarray(sample(m, run.phrase('woman farmer'), 0, 4, raw=True, device='cpu')[0], int) for m in (run, of_one_stage(run)))
    assert sorted(f.name for f in file.parent.glob('*.safetensors'))==['T0.safetensors','T1.safetensors','T2.safetensors']
    assert abs(np.asarray(got['image'], int)-want).max()<=2<abs(want-end).max()

def of_one_stage(run):
    "A run's model whose stages are all the last: what a program draws that changes nothing on the way."
    model = Run(run.folder).model()
    rows, = state(model).values()
    rows.copy_(rows[:2].repeat(3, 1))
    return model

@pytest.mark.parametrize('family', ['sd1','sdxl'])
@pytest.mark.parametrize('name, to, beside, kw', [('pivotal', 'lora', 'zwx', dict(rank=2, vectors=2)), ('pivotal', 'kohya', 'zwx', dict(rank=2)), ('dreamartist', 'embedding', 'not-zwx', {})])
def test_the_lines_on_a_card_read_what_lies_beside_too(quick, family_folder, tmp_path, monkeypatch, family, name, to, beside, kw):
    r = quick(method=name, base=str(family_folder(family)), resolution=64, steps_sampled=2, **kw)
    run = disturbed(train(r, tmp_path/'run', progress=False, device='cpu'))
    file = Path(export(run, tmp_path/'out', to, pictures=False))
    assert not any('rows' in k for k in load_file(file)) and (file.parent/f'{beside}.safetensors').exists()
    if to!='lora': assert f'`embedding:{beside}`' in (file.parent/'README.md').read_text()     # a layout of diffusers alone
    lines = code_of(file.parent/'README.md').splitlines()
    first, last = (next(i for i,l in enumerate(lines) if w in l) for w in ('from_pretrained', 'pipe.scheduler'))
    pipe = load_base(family_folder(family)).pipeline(DDIMScheduler.from_config(load_base(family_folder(family)).process.schedule.config))
    pipe.set_progress_bar_config(disable=True)
    if family=='sdxl': pipe.text_encoder_2.text_model.eos_token_id = pipe.text_encoder_2.config.eos_token_id = 2     # as on the hub
    monkeypatch.chdir(tmp_path)
    exec('\n'.join(lines[first+1:last]), dict(pipe=pipe))
    asked = 'a photo of zwx style, a dog'
    assert abs(theirs(pipe, asked, run.method.negative(asked) or None)-ours(run)).max()<=2

@pytest.mark.parametrize('name', ['pivotal','inst_port','specialist_reconstruction'])
def test_folded_in_it_draws_in_diffusers_what_the_run_draws(quick, family_folder, tmp_path, name):
    run = of_folder(quick, family_folder, tmp_path, name, **SHORT[name])
    export(run, tmp_path/'out', 'diffusers', pictures=False)
    assert abs(theirs(pipe_of(tmp_path/'out'), run.method.spell(run.phrase('a dog')), None)-ours(run)).max()<=2

def test_insts_word_draws_in_diffusers_what_the_run_draws(quick, family_folder, tmp_path):
    run = of_folder(quick, family_folder, tmp_path, 'inst_port', **SHORT['inst_port'])
    file, pipe = Path(export(run, tmp_path/'out', 'embedding', pictures=False)), pipe_of(family_folder('sd1'))
    pipe.load_textual_inversion(str(file), token='zwx')
    assert [len(v) for v in load_file(file).values()]==[1] and abs(theirs(pipe, 'a photo of zwx style, a dog', None)-ours(run)).max()<=2

def test_insts_two_encoders_of_sdxl_have_a_map_each_and_one_file_for_diffusers(quick, family_folder, tmp_path):
    r = quick(method='inst_port', base=str(family_folder('sdxl')), resolution=64, steps_sampled=2, **SHORT['inst_port'])
    run = disturbed(train(r, tmp_path/'run', progress=False, device='cpu'))
    kept, rows = load_file(run.weights), load_file(Path(export(run, tmp_path/'out', 'embedding', pictures=False)))
    assert {k.split('.')[0] for k in kept}=={'text_encoder','text_encoder_2'} and [*rows]==['clip_g','clip_l'] and [len(v) for v in rows.values()]==[1,1]
    want = [t.rows[:1] for t in tables(run.model()).values()]
    assert torch.equal(rows['clip_l'], want[0]) and torch.equal(rows['clip_g'], want[1])

def test_insts_map_has_the_numbers_of_the_paper_that_learn():
    with torch.device('meta'): b = attached(blank('sd1', full=True, device='meta'), make_method('inst_port', width=768))
    assert sum(p.numel() for p in trained(b).values())==1_377_792

# what losses see

HELD = [('dreamartist', dict(pixels=1.)), ('inst_port', dict(pictures=3)), ('pivotal', dict(rank=2)), ('specialist_reconstruction', dict(every=1, walk=2)),
        *((name, {}) for name in ('custom_diffusion','dreamartist','dreamstyler','hypernetwork','styledrop_port','svdiff'))]

@pytest.mark.parametrize('name, kw', HELD, ids=str)
def test_the_plan_holds_what_torchs_own_tracker_counts(quick, tracked, name, kw):
    want, got = tracked(blank('sd1'), quick(method=name, batch=2, precision='no', resolution=64, **kw))
    assert got==pytest.approx(want, rel=.005)

def test_a_loss_on_pixels_is_planned_with_the_autoencoder_and_resumed_from_kept_pictures(go, quick, base, tmp_path):
    of = lambda pixels: plan(base, quick(method='dreamartist', pixels=pixels), 'cpu')
    vae = sum(p.numel()*4 for p in base.codec.vae.parameters())
    assert of(1.).weights-of(0.).weights>=vae and of(1.).step-of(0.).step>vae
    whole = go('whole', 'dreamartist', pixels=1.)
    assert not go('half', 'dreamartist', pixels=1., watch=lambda line: line['step']==2).done
    again, plain = go('half', 'dreamartist', pixels=1., resume=True), go('plain', 'dreamartist')
    assert equal(load_file(whole.weights), load_file(again.weights)) and not equal(load_file(whole.weights), load_file(plain.weights))

def test_kept_pictures_are_the_bytes_that_a_view_shows_and_have_files_of_their_own(quick, base, tmp_path):
    def kept(name, **kw):
        r = settled(quick(method=name, **kw), base)
        b = Batches(base, r, 0, 'cpu', tmp_path/'latents')
        return r, b, len(list((tmp_path/'latents').iterdir()))
    _, plain, files = kept('lora')
    r, again, more = kept('dreamartist', pixels=1.)
    picture = r.bindings[0].images[0].open()
    assert (files, more)==(7, 14) and 'shown' not in plain.kept[0][0][0].told
    assert np.array_equal(again.kept[0][0][0].told['shown'][0].permute(1,2,0).numpy(), np.asarray(picture)) and torch.equal(again.kept[0][0][0].x, plain.kept[0][0][0].x)
    assert torch.equal(Batches(base, r, 0, 'cpu', tmp_path/'latents').kept[0][0][0].told['shown'], again.kept[0][0][0].told['shown'])   # of the file

def test_a_base_of_tokens_is_refused_by_what_needs_pixels(refused):
    for name,kw,words in (('dreamartist', dict(pixels=1.), ('tokens', 'pixels')), ('specialist_reconstruction', {}, ('levels', 'content to 0'))):
        with refused(*words): attached(blank('amused'), make_method(name, **kw))
    assert attached(blank('amused'), make_method('specialist_reconstruction', content=0., grid=0)).learnt

# Specialist Diffusion

def test_specialist_shows_every_second_picture_changed_and_trains_at_the_levels_of_a_drawing(quick, base):
    r = settled(quick(method='specialist_reconstruction', batch=4), base)
    batches = Batches(base, r, 0, 'cpu')
    style, prior = batches.kept
    assert [{len(v) for v in pictures} for pictures in batches.kept]==[{16}, {1}]
    assert len({k.x.data_ptr() for k in style[0]})==9                     # eight of sixteen are the picture itself, kept once
    seen = [batches(s) for s in range(40)]
    assert all((b.t%10==0).all() for b in seen) and seen[7].step==7
    changed = [text.endswith('transformation') for b in seen for text in b.texts[:4]]
    assert .35<sum(changed)/len(changed)<.65 and not any(t.endswith('transformation') for b in seen for t in b.texts[4:])

def test_other_words_come_from_a_file_stand_in_the_recipe_and_are_trained_on(quick, base, tmp_path, go, refused):
    file = tmp_path/'words.json'
    file.write_text(json.dumps(dict(picture=['drawing','sketch'])))
    r = quick(method='specialist_reconstruction', synonyms=str(file), doubled=False, steps=1)
    texts = Batches(base, settled(r, base), 0, 'cpu').texts
    assert {'a photo of zwx style, a picture of anna', 'a photo of zwx style, a drawing of anna', 'a photo of zwx style, a sketch of anna'}<={*texts}
    run = train(r, tmp_path/'run', base=base, progress=False, device='cpu')
    file.unlink()
    assert run.done and Run(run.folder).method.synonyms==dict(picture=['drawing','sketch'])
    with refused('synonyms.picture differs' , 'another run'):
        train(quick(method='specialist_reconstruction', synonyms=dict(picture=['work','sketch']), doubled=False, steps=1), tmp_path/'run', base=base, progress=False, device='cpu', resume=True)

def test_a_strangers_recipe_opens_no_file(tmp_path, refused):
    (tmp_path/'words.json').write_text('{"dog": ["hound"]}')
    with refused('synonyms', 'dict'): make_method('specialist_reconstruction', synonyms=str(tmp_path/'words.json'))

@pytest.mark.parametrize('text, words', [('{"dog": "hound"}', ('synonyms', 'lists')), ('no json', ('words.json', 'JSON')), (None, ('words.json', 'JSON'))])
def test_a_file_of_words_that_is_none_is_refused(quick, tmp_path, refused, text, words):
    if text: (tmp_path/'words.json').write_text(text)
    with refused(*words): quick(method='specialist_reconstruction', synonyms=str(tmp_path/'words.json'))

def test_other_words_need_captions(quick, base, ref, tmp_path, refused, said, picture):
    bare = type(ref)([*ref.pictures, picture('bare', caption='')], 'ref')
    with refused('bare.png', 'no caption'): train(quick(ref=bare, method='specialist_reconstruction', synonyms=dict(a=['b'])), tmp_path/'run', base=base, progress=False, device='cpu')
    make_method('specialist_reconstruction', similar={'a picture of anna': ['anna']}).check(quick().bindings)
    assert 'bear.png, cat.png' in said()[-1]

# InST

def test_inst_looks_once_and_opens_without_its_pictures(go, base, quick):
    run = go('run', 'inst_port')
    kept, = (v for k,v in load_file(run.weights).items() if k.endswith('faces'))
    assert kept.shape==(4,224) and torch.allclose(kept[0], kept[1:].mean(0), atol=1e-6) and torch.allclose(kept[1:].norm(dim=1), torch.ones(3))
    faces, = (v for k,v in state(run.model()).items() if k.endswith('faces'))
    assert torch.equal(faces, kept)
    batches = Batches(base, settled(quick(method='inst_port', batch=2), base), 0, 'cpu')
    rows, texts = batches.rows(0), batches(0).texts
    assert [re.findall(r'<zwx-p(\d)>', t) for t in texts]==[[str(i)] for b,i in rows if b==0]+[[],[]]

def test_inst_refuses_more_pictures_than_it_has_words_for(quick, base, tmp_path, refused):
    with refused('3 pictures', 'set pictures to 3'): train(quick(method='inst_port', pictures=2), tmp_path/'run', base=base, progress=False, device='cpu')
    assert not (tmp_path/'run').exists()

def test_inst_asks_clip_where_it_is_given_one(ref, base, tmp_path):
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
    torch.manual_seed(0)
    clip = CLIPVisionModelWithProjection(CLIPVisionConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8, projection_dim=12)).eval()
    clip.save_pretrained(tmp_path/'clip')
    m = make_method('inst_port', pictures=3, encoder=str(tmp_path/'clip'), width=12)
    b = attached(base, m)
    m.look(b, no_prior(ref, method='lora').bindings)
    kept, = (v for k,v in state(b).items() if k.endswith('faces'))
    x = torch.from_numpy(np.stack([np.asarray(p.open().resize((32,32), 3)) for p in ref])).permute(0,3,1,2)/255
    assert .2<x.mean()<.8                                                         # a picture, and no bytes of -1 to 1
    mean, std = (torch.tensor(v).view(3,1,1) for v in ((.48145466,.4578275,.40821073), (.26862954,.26130258,.27577711)))
    with torch.no_grad(): want = clip(pixel_values=(x-mean)/std).image_embeds
    assert torch.allclose(kept[1:], want, atol=1e-3)

# Custom Diffusion

def test_a_smaller_pictures_border_teaches_nothing(base):
    m = make_method('custom_diffusion')
    b, (small, *_) = attached(base, m), sizes_of(View())
    g = torch.Generator().manual_seed(0)
    xt, y, mask = torch.randn(1,8,16,16, generator=g), torch.randn(1,8,16,16, generator=g), small.mask(16, 16)[None]
    def loss(y): return m.losses(b, Batch(xt, torch.tensor([300]), y, [m.spell('a photo of zwx style')], [1], Condition(mask=mask, frame=torch.zeros(1,6))))
    with torch.no_grad():
        one, other = loss(y), loss(torch.where(mask>0, y, y+9))
        pred = b.net(xt, torch.tensor([300]), b.reader([m.spell('a photo of zwx style')]))
        want = ((pred-y)**2*mask).sum()/(8*mask.sum())
    assert torch.equal(one, other) and torch.allclose(one, want, rtol=1e-4)

def test_pictures_of_a_prior_are_shown_as_they_are_and_those_of_the_style_in_six_sizes(quick, base):
    r = settled(quick(method='custom_diffusion'), base)
    batches = Batches(base, r, 0, 'cpu')
    assert [{len(v) for v in pictures} for pictures in batches.kept]==[{6}, {1}]
    assert any(t.startswith('very small') for t in batches.texts) and 'a photo of style' in batches.texts
    assert all(k.told['mask'].shape==(1,1,16,16) for k in batches.views())

def test_nothing_is_learnt_through_the_first_token(base):
    b = attached(base, make_method('custom_diffusion'))
    layer, c = next(iter(prompt_layers(b.net.unet).values())), torch.randn(1,5,192)
    layer(c).square().sum().backward()
    got = layer.weight.grad.clone()
    layer.weight.grad = None
    torch.nn.functional.linear(c[:,1:], layer.weight).square().sum().backward()
    assert torch.allclose(got, layer.weight.grad, rtol=1e-4, atol=1e-5)

# what a paper was written for

BARE = 'leaves to captions'
@pytest.mark.parametrize('name', ['dreamstyler','styledrop_port','lora'])
@pytest.mark.parametrize('captioned', [True, False])
def test_a_method_that_leaves_the_content_to_captions_says_where_there_are_none(base, quick, ref, tmp_path, said, name, captioned):
    bare = type(ref)([replace(p, caption=p.caption if captioned else '') for p in ref], 'mine')
    train(quick(ref=bare, method=name, steps=1), tmp_path/'run', base=base, progress=False, device='cpu')
    told = [t for t in said() if BARE in t]
    assert len(told)==(name!='lora' and not captioned) and all(t.startswith(f'mine: {name}') and '.txt' in t and t.endswith('.') for t in told)

def test_a_picture_without_a_caption_among_others_is_named(quick, ref, picture, refused, said):
    some = type(ref)([*ref, picture('bare', caption='')], 'mine')
    with refused('mine', 'bare.png', '.txt'): quick(ref=some, method='styledrop_port').bindings[0].prompts()
    quick(ref=some, method='dreamstyler')
    assert 'bare.png' in said()[-1]

ONE = ('styledrop_port','dreamartist','dreamstyler','inst_port')
@pytest.mark.parametrize('name', sorted({*PAPERS, 'full','lora','textual_inversion','hypernetwork','svdiff'}))
@pytest.mark.parametrize('n', [1, 3])
def test_one_picture_where_a_paper_has_several_and_the_reverse_is_said(ref, said, name, n):
    mine = type(ref)(ref.pictures[:n], 'mine')
    recipe = no_prior(mine, method=name, **SHORT.get(name, {}))
    recipe.method.check(recipe.bindings)
    want = {(True,3): 'has 3 pictures', (False,1): 'has one picture'}.get((name in ONE, n))
    told = [t for t in said() if t.startswith('mine has')]
    assert (want is None and told==[]) or (len(told)==1 and want in told[0] and name in told[0])

@pytest.mark.parametrize('name', ['textual_inversion','custom_diffusion','dreamartist','inst_port','pivotal'])
def test_a_word_that_the_base_knows_already_is_refused(go, name, refused):
    "As of a folder into which the same word was folded before."
    tuned = merged(go('run', name, steps=1))
    with refused('knows one of', 'zwx', 'choose another word'): attached(tuned, Run(go('run', name, resume=True).folder).method)

@pytest.mark.parametrize('name', ['hypernetwork','styledrop_port'])
def test_a_base_that_looks_at_no_prompt_is_refused(base, name, refused):
    own = base.own()
    for m in own.net.unet.modules():
        if hasattr(m, 'attn2'): del m.attn2, m.ff
    with refused(base.name, 'attention', 'choose lora'): attached(own, make_method(name))

@pytest.mark.parametrize('k', ['style','context'])
@pytest.mark.parametrize('v', [-1., 21., float('nan'), float('inf')])
def test_dreamstylers_guidance_is_bounded_field_by_field(refused, k, v):
    with refused(f'The {k} of dreamstyler is {v}', '0 to 20'): make_method('dreamstyler', **{k: v})

# StyleDrop

def test_a_method_that_asks_in_words_of_its_own_is_trained_on_them(ref, aux):
    assert no_prior(ref, method='styledrop_port').bindings[0].prompt=='{caption} in zwx style'
    assert [b.prompt for b in styleboost(ref, aux, method='styledrop_port').bindings]==['{caption} in zwx style', 'a photo of style']
    assert no_prior(ref, preset='paper', method='styledrop_port').bindings[0].prompt=='zwx style'
