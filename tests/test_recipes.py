"Recipes are plain data, the swap changes one term, and what cannot be trained is refused before it is."
import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from styleboost.methods.load import METHODS
from styleboost.methods.textual_inversion import TextualInversion
from styleboost.pictures.images import ImageSet, Picture
from styleboost.training.recipes import Binding, Generated, Recipe, dreambooth, hold, multi, no_prior, settled, styleboost, with_hold, with_prior
from styleboost.pictures.prompts import read_prompts, style_prompt

def flagged(*flags): return ImageSet([Picture(f'{i}.png', data=bytes([i]), people=p) for i,p in enumerate(flags)], 'mine')

mixed = flagged(True, False)
priors = st.none() | st.builds(Generated, st.text(), st.integers(1, 500), st.integers(0, 9)) | st.lists(st.binary(min_size=1), min_size=1, max_size=3).map(
    lambda bs: ImageSet([Picture(f'{i}.png', data=b) for i,b in enumerate(bs)], 'pool'))
recipes = st.builds(lambda n, token, steps, batch, snr: Recipe('r', tuple(Binding(mixed, f'style {i}', .5) for i in range(n)), token=token, steps=steps, batch=batch, min_snr=snr),
    st.integers(1, 3), st.sampled_from(['zwx','ukj']), st.none()|st.integers(1, 999), st.none()|st.integers(1, 8), st.none()|st.floats(.1, 20))

@given(recipes, priors, priors, st.none()|st.text(min_size=1), st.floats(0, 10))
def test_the_swap_changes_the_prior_term_and_nothing_else(recipe, before, after, prompt, weight):
    one = with_prior(recipe, before, 'something', 3.)
    two = with_prior(one, after, prompt, weight)
    assert all(getattr(two, f.name)==getattr(recipe, f.name) for f in fields(Recipe) if f.name!='bindings')
    assert two.bindings[:len(recipe.bindings)]==recipe.bindings
    assert two.bindings[len(recipe.bindings):]==(() if after is None else (Binding(after, prompt or 'a photo of style', weight, 'prior'),))

@given(recipes, priors, priors)
def test_swapping_there_and_back_gives_the_same_recipe(recipe, a, b):
    one = with_prior(recipe, a)
    assert with_prior(with_prior(one, b, 'other', .1), a).to_dict()==one.to_dict()

@given(recipes, priors)
def test_a_recipe_is_json_and_says_the_same_each_time(recipe, prior):
    r = with_prior(recipe, prior)
    d = json.loads(json.dumps(r.to_dict()))
    assert r.diff(d)==[] and replace(r).hash==r.hash

@pytest.mark.parametrize('change', [dict(steps=3), dict(lr=1e-5), dict(token='ukj'), dict(base='other'), dict(min_snr=5.), dict(pairing='fixed'),
    dict(anchor=1.), dict(ema=.1), dict(log_snr=-6.), dict(optimizer='prodigy'),
    dict(method='lora'),
    dict(bindings=(Binding(mixed, 'x'), Binding(mixed, 'x', 1., 'prior', 'base'))), dict(bindings=(Binding(mixed, 'x', .9),)), dict(bindings=(Binding(mixed, 'y'),)), dict(bindings=(Binding(flagged(True), 'x'),))], ids=lambda c: next(iter(c)))
def test_whatever_changes_the_run_changes_the_hash_and_is_named(change):
    r = Recipe('r', (Binding(mixed, 'x'),))
    other = replace(r, **change)
    assert other.hash!=r.hash and [k for k,*_ in other.diff(r.to_dict())]==[*change]

def test_a_base_may_be_given_as_a_path(ref):
    assert no_prior(ref, base=Path('some/base')).hash==no_prior(ref, base='some/base').hash

def test_a_method_fills_in_what_a_recipe_leaves_open_and_nothing_else(base, ref):
    of = lambda name, **kw: settled(no_prior(ref, method=name, **kw), base)
    assert {name: of(name).guidance for name in METHODS if of(name).guidance!=7}=={'dreamartist': 5.}
    assert (of('dreamartist', scale=3.).guidance, of('dreamartist', guidance=2.).guidance, of('dreamartist', lr=7.).lr)==(3, 2, 7)
    class Deaf(TextualInversion):
        def defaults(self, base): return dict(flip=True)           # which a recipe always says
    with pytest.raises(ValueError, match='flip'): settled(Recipe('r', (), method=Deaf()), base)

# prompts

def test_every_picture_has_its_own_caption_in_its_prompt(ref):
    assert no_prior(ref).bindings[0].prompts()==[f'a photo of zwx style, a picture of {n}' for n in ('anna','bear','cat')]

def test_of_a_partly_captioned_folder_each_picture_has_its_caption_or_the_bare_prompt_and_it_is_said(ref, said):
    some = ImageSet([ref[0], replace(ref[1], caption=' '), ref[2]], 'some')
    assert no_prior(some).bindings[0].prompts()==['a photo of zwx style, a picture of anna', 'a photo of zwx style', 'a photo of zwx style, a picture of cat']
    assert len(said())==1 and all(w in said()[0] for w in ('some', 'bear.png', '"a photo of zwx style"', 'other 2')) and 'anna' not in said()[0]

def test_without_any_caption_or_under_the_papers_preset_the_prompt_is_bare_and_needs_no_word(ref, said):
    none = ImageSet([replace(p, caption='') for p in ref], 'none')
    some = ImageSet([ref[0], replace(ref[1], caption='')], 'some')
    assert no_prior(none).bindings[0].prompts()==['a photo of zwx style']*3 and no_prior(some, preset='paper').bindings[0].prompts()==['a photo of zwx style']*2
    assert said()==[]

@pytest.mark.parametrize('prompt, captions', [('x, {caption}', ('', ' ')), ('{caption} in x', ('a dog', ''))])
def test_a_prompt_with_captions_is_refused_where_it_makes_no_sense_without(ref, refused, prompt, captions):
    some = ImageSet([replace(p, caption=c) for p,c in zip(ref, captions)], 'some')
    with refused('some', 'bear.png' if captions[0] else 'anna.png', '.txt'): Binding(some, prompt).prompts()

def test_an_order_for_pictures_has_a_prompt_for_each(): assert Binding(Generated('a dog', 3), 'a dog').prompts()==['a dog']*3

def test_the_style_is_asked_for_in_the_words_it_was_learnt_by(ref):
    assert no_prior(ref, 'ukj', preset='paper').bindings[0].prompts()[0]+', a dog'==style_prompt('a dog', 'ukj')=='a photo of ukj style, a dog'

# presets

def test_the_papers_preset_is_what_the_authors_ran(ref):
    r = no_prior(ref, preset='paper')
    assert (r.batch, r.pad, r.pairing, r.crops, r.grad_clip, r.method.text_encoder, r.min_snr, r.lr_schedule, r.flip)==(1, 'longest', 'fixed', 1, None, True, None, 'constant', False)
    assert r.bindings[0].prompts()==['a photo of zwx style']*3

def test_the_repaired_preset_mends_padding_pairing_and_crops(ref):
    r = no_prior(ref)
    assert (r.pad, r.pairing, r.grad_clip)==('max_length', 'independent', 1.) and r.crops>1 and r.method.text_encoder

def test_what_is_said_goes_before_the_preset(ref): assert no_prior(ref, preset='paper', batch=2).batch==2

def test_an_unknown_preset_is_refused(ref, refused):
    with refused('papre', 'paper', 'repaired'): no_prior(ref, preset='papre')

def test_the_three_arms_differ_in_the_prior_alone(ref, aux):
    arms = [no_prior(ref, preset='paper'), dreambooth(ref, 5, preset='paper'), styleboost(ref, aux, preset='paper')]
    assert len({r.bindings[0] for r in arms})==1 and [len(r.bindings) for r in arms]==[1,2,2]
    assert arms[1].bindings[1].prompt==arms[2].bindings[1].prompt=='a photo of style'
    assert all([k for k,*_ in r.diff(arms[0].to_dict())]==['name','bindings'] for r in arms[1:])

# held to the base

def test_holding_is_a_binding_with_another_answer(ref, aux):
    said = lambda r: [(b.images, b.prompt, b.weight, b.role, b.toward) for b in r.bindings[1:]]
    assert said(hold(ref))==[(ref, 'a photo of style', 1., 'prior', 'base')] and said(hold(ref, prompt=''))==[(ref, '', 1., 'prior', 'base')]
    assert said(hold(ref, aux, prior_weight=.5))==[(aux, 'a photo of style', .5, 'prior', 'base')]
    both = with_hold(styleboost(ref, aux), weight=2., more=True)
    assert said(both)==said(styleboost(ref, aux))+[(ref, 'a photo of style', 2., 'prior', 'base')] and said(with_hold(both))==said(hold(ref))
    two = with_hold(multi(flagged(True), flagged(False), aux))           # each style's own latents
    assert [(b.role, b.held) for b in two.bindings]==[('style',False)]*2+[('prior',True)]*2 and [b.images for b in two.bindings[:2]]==[b.images for b in two.bindings[2:]]

def test_a_binding_that_is_not_held_says_nothing_of_it(ref, aux):
    "So runs and hashes of before are those of now."
    assert [set(b) for b in styleboost(ref, aux).to_dict()['bindings']]==[{'images','prompt','weight','role'}]*2
    assert hold(ref).to_dict()['bindings'][1]['toward']=='base'

@pytest.mark.parametrize('kw, words', [(dict(toward='noise'), "'noise'"), (dict(toward='base', role='style'), 'learns nothing')], ids=str)
def test_a_binding_held_to_nothing_is_refused(ref, refused, kw, words):
    with refused(words): Binding(ref, 'x', **dict(dict(role='prior'), **kw))

def test_the_word_that_is_to_change_is_not_held(ref, refused):
    with refused('a photo of zwx style', 'asks for zwx'): hold(ref, prompt='a photo of zwx style')
    assert hold(ref, prompt='a photo of zwxy style')

@pytest.mark.parametrize('kw, words', [
    (dict(ema=.3), 'at most 0.28'), (dict(ema=0.), 'at least'), (dict(anchor=-1.), 'at least'), (dict(anchor=float('inf')), 'finite'), (dict(log_snr=float('nan')), 'finite'),
    (dict(log_snr_std=2.), 'goes with a log_snr'), (dict(anchor=1., weights='bfloat16', precision='bf16'), 'bfloat16'), (dict(optimizer='prodigy', ema=.1), 'averages them itself'),
    (dict(optimizer='prodigy', anchor=1.), 'anchor'), (dict(optimizer='prodigy', fused_backward=True, grad_clip=None), 'fused backward'),
    (dict(method='tlora', buckets=True, checkpointing=True), 'tlora')], ids=str)
def test_recipes_of_2026_that_make_no_sense_are_refused(ref, refused, kw, words):
    with refused(words): no_prior(ref, **kw)

def test_prodigy_is_given_a_factor_for_its_rate(ref, base):
    assert [settled(no_prior(ref, method='lora', **kw), base).lr for kw in (dict(optimizer='prodigy'), dict(optimizer='prodigy', lr=.5), {})]==[1., .5, 2e-3]

# composition

@pytest.mark.parametrize('flags, words', [((True,)*3, 'only people'), ((False,)*3, 'no people')])
def test_a_styleref_of_one_kind_is_warned_of_with_the_papers_reason(flags, words, said):
    no_prior(flagged(*flags))
    assert len(said())==1 and all(w in said()[0] for w in (words, 'mine', 'FID'))

@pytest.mark.parametrize('flags', [(True,False,False), (None,)*3, (True,True,None), (False,None)])
def test_a_mixed_or_unknown_styleref_is_not_warned_of(flags, said):
    no_prior(flagged(*flags))
    assert said()==[]

# what cannot be trained

def test_an_empty_styleref_is_refused(refused):
    with refused(): no_prior(ImageSet([], 'nothing'))

def test_an_empty_auxiliary_set_is_refused(ref, refused):
    with refused('auxiliary'): styleboost(ref, ImageSet([], 'nothing'))

def test_auxiliary_images_are_never_ordered_in_passing(ref, refused):
    with refused('dreambooth'): styleboost(ref, Generated('a photo of style'))

@pytest.mark.parametrize('n', [5, 0, -1])
def test_more_or_fewer_auxiliary_images_than_there_are_is_refused(ref, aux, refused, n):
    with refused(): styleboost(ref, aux, n=n)

@pytest.mark.parametrize('n', [0, -1])
def test_an_order_for_no_pictures_is_refused(ref, refused, n):
    with refused(): dreambooth(ref, n).bindings[1].prompts()

# prompts from files

BAD = {'gone.txt': None, 'empty.txt': b' \n\n', 'latin.txt': 'ein Mädchen'.encode('latin-1'), 'columns.tsv': b'text\tpeople\na dog\tno\n',
       'flag.tsv': b'prompt\tpeople\na dog\tperhaps\n', 'header.tsv': b'prompt\tpeople\n', 'blank.tsv': b'prompt\tpeople\n\tyes\n'}

@pytest.mark.parametrize('name', BAD)
def test_a_prompts_file_that_cannot_be_used_is_refused(tmp_path, refused, name):
    if BAD[name] is not None: (tmp_path/name).write_bytes(BAD[name])
    with refused(name): read_prompts(tmp_path/name)

def test_a_folder_in_place_of_a_prompts_file_is_refused(tmp_path, refused):
    with refused(tmp_path): read_prompts(tmp_path)

@pytest.mark.parametrize('end', ['\n', '\r\n'])
@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig'])
def test_prompts_are_read_whichever_editor_saved_them(tmp_path, end, encoding):
    (tmp_path/'p.tsv').write_bytes(end.join(['people\tprompt', 'TRUE\ta woman', 'no\ta dog', '\ta Mädchen']).encode(encoding))
    (tmp_path/'p.txt').write_bytes(end.join(['  a woman', '', 'a dog']).encode(encoding))
    assert [(p.text, p.people) for p in read_prompts(tmp_path/'p.tsv')]==[('a woman',True), ('a dog',False), ('a Mädchen',None)]
    assert [p.text for p in read_prompts(tmp_path/'p.txt')]==['a woman','a dog']
