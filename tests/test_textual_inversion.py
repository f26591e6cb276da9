"A style as a word: only rows of the vocabulary move, they come back as they were, and other programs read them."
import re, shutil

import diffusers, numpy as np, pytest, torch
from safetensors.torch import load_file, save_file

from styleboost.bases.load import blank, load_base
from styleboost.bases.sampling import sample
from styleboost.exporting.export import export, merged
from styleboost.methods.load import make_method
from styleboost.methods.method import attached, learnt, restore, state, trained, trained_modules
from styleboost.methods.textual_inversion import NewRows, tables
from styleboost.training.levers import checkpoint_activations
from styleboost.training.loop import train
from styleboost.training.plan import plan
from styleboost.training.recipes import multi, settled
from styleboost.training.runs import Run

PROMPT = 'a photo of zwx style, a dog'

@pytest.fixture
def recipe(quick):
    "Makes a recipe that learns rows for the word."
    return lambda vectors=3, **kw: quick(**dict(dict(method='textual_inversion', vectors=vectors, steps=3, lr=1e-2, resolution=64), **kw))

@pytest.fixture(scope='module')
def runs(quick, family_folder, tmp_path_factory):
    "Makes a run on a small base of a family whose rows are disturbed."
    made = {}
    def make(family='sd1', vectors=3):
        if (family, vectors) not in made:
            r = quick(method='textual_inversion', vectors=vectors, steps=3, lr=1e-2, resolution=64, base=family if family=='tiny' else str(family_folder(family)))
            run = train(r, tmp_path_factory.mktemp('run')/'style', progress=False, device='cpu')
            perturb(run.weights)
            made[family, vectors] = Run(run.folder)
        return made[family, vectors]
    return make

def perturb(file, seed=1):
    "Rows that differ, so that none can pass for another."
    g = torch.Generator().manual_seed(seed)
    save_file({k: v+.3*torch.randn(v.shape, generator=g) for k,v in load_file(file).items()}, file)

def drawn(pipe, prompt=PROMPT):
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return np.asarray(pipe(prompt, height=64, width=64, num_inference_steps=3, guidance_scale=7., generator=torch.Generator().manual_seed(3)).images[0], int)

def ours(model, prompt=PROMPT): return np.asarray(sample(model, prompt, 3, steps=3, size=64, raw=True, device='cpu')[0], int)

def same(a, b): return np.abs(a-b).max()<=2

def equal(a, b): return a.keys()==b.keys() and all(torch.equal(a[k], b[k]) for k in a)

def copied(tensors): return {k: v.detach().clone() for k,v in tensors.items()}

@torch.no_grad()
def seen(b, texts):
    "What a base predicts when it is told texts, as its method spells them."
    z = torch.randn((len(texts), *b.codec.shape((64,64))), generator=torch.Generator().manual_seed(1))
    return b.net(z, torch.tensor([300]*len(texts)), b.reader(texts))

# training

def test_a_run_saves_its_rows_and_nothing_else(base, recipe, tmp_path):
    run = train(recipe(), tmp_path/'run', base=base, progress=False, every=1, device='cpu')
    rows, = load_file(run.weights).values()
    width = base.modules['text_encoder'].get_input_embeddings().embedding_dim
    assert run.done and len(run.log)==3 and rows.shape==(3, width) and run.weights.stat().st_size<1e4+rows.numel()*4
    assert not torch.equal(rows[0], rows[1]) and not torch.equal(rows[1], rows[2])        # they begin alike and stand at different places

def test_only_the_rows_move(base):
    b = attached(base, make_method('textual_inversion', vectors=2))
    mine, (name, rows), = {id(p) for p in trained(b).values()}, *trained(b).items()
    others = {f'{k}.{n}': p for k,m in b.modules.items() for n,p in m.named_parameters() if id(p) not in mine}
    before, still = rows.detach().clone(), copied(others)
    opt = torch.optim.Adam([rows], 1e-2)
    b.net(torch.randn(1, *b.codec.shape((64,64))), torch.tensor([500]), b.reader([b.method.spell(PROMPT)])).square().mean().backward()
    opt.step()
    assert name.endswith('.rows') and {*trained_modules(b)}=={'text_encoder'} and (rows!=before).any(1).all()
    assert equal(copied(others), still) and all(p.grad is None for p in others.values())

def test_the_callers_base_and_tokenizer_are_unchanged_and_still_of_use(base, recipe, tmp_path):
    tok, told = base.reader.tokenizer, lambda: seen(base, [PROMPT])
    before, words, ids = copied(base.modules['text_encoder'].state_dict()), len(tok), tok(PROMPT).input_ids
    was = told()
    run = train(recipe(), tmp_path/'run', base=base, progress=False, device='cpu')
    run.model(base=base)
    assert (len(tok), tok(PROMPT).input_ids)==(words, ids) and equal(before, base.modules['text_encoder'].state_dict()) and torch.equal(told(), was)
    assert base.method is None and not tables(base)
    assert train(recipe(), tmp_path/'again', base=base, progress=False, device='cpu').done

def test_resumed_from_rows_that_differ_is_uninterrupted(base, recipe, tmp_path):
    go = lambda name, **kw: train(recipe(steps=4), tmp_path/name, base=base, progress=False, every=1, device='cpu', **kw)
    first = go('whole', watch=lambda line: line['step']==1)
    perturb(first.checkpoint/'weights.safetensors')
    shutil.copytree(tmp_path/'whole', tmp_path/'halves')
    whole = go('whole', resume=True)
    half = go('halves', resume=True, watch=lambda line: line['step']==3)
    assert not half.done and half.checkpoint.name=='step-000003'
    assert equal(load_file(go('halves', resume=True).weights), load_file(whole.weights))

def test_rows_are_not_drawn_towards_nought(base):
    "AdamW's decay is for weights that ought to be small."
    m = make_method('textual_inversion')
    group, = m.groups(attached(base, m))
    assert group['weight_decay']==0

@pytest.mark.parametrize('on', [True, False])
def test_checkpointing_acts_on_the_net_that_the_gradient_passes(base, on):
    b = attached(base, make_method('textual_inversion'))
    passed = b.method.through(b)
    if on: checkpoint_activations(passed)
    assert {*passed}=={'unet','text_encoder'} and b.modules['unet'].is_gradient_checkpointing==on

def test_checkpointing_changes_what_is_held_and_not_what_is_learnt(base, recipe, tmp_path):
    plain, lean = (load_file(train(recipe(checkpointing=c), tmp_path/str(c), base=base, progress=False, device='cpu').weights) for c in (False, True))
    for k in plain: torch.testing.assert_close(plain[k], lean[k], rtol=1e-4, atol=1e-5)
    of = lambda c: plan(blank('sd1'), recipe(batch=4, precision='no', checkpointing=c), 'cpu').step
    assert of(True)<.9*of(False)

@pytest.mark.parametrize('method, kw', [('textual_inversion', dict(vectors=3)), ('controlnet', {})])
def test_the_plan_holds_what_torchs_own_tracker_counts(quick, tracked, method, kw):
    want, got = tracked(blank('sd1'), quick(method=method, batch=2, precision='no', resolution=64, **kw))
    assert got==pytest.approx(want, rel=.005)

def test_planning_for_a_base_leaves_its_tokenizer_alone(recipe):
    b = blank('sdxl')
    words = [len(t) for t in b.reader.tokenizers.values()]
    first, again = (plan(b, recipe(batch=1, precision='no'), 'cpu').step for _ in '12')
    assert [len(t) for t in b.reader.tokenizers.values()]==words and first==again

# what is learnt

def test_handed_over_it_predicts_the_same(base):
    m = make_method('textual_inversion', vectors=2)
    a, b = attached(base, m), attached(base, m)
    with torch.no_grad():
        for p in learnt(a).values(): p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(2)))
    asked = [m.spell(PROMPT), 'a dog']
    apart = (seen(a, asked)-seen(b, asked)).abs().amax((1,2,3))
    restore(b, copied(state(a)))
    assert torch.equal(seen(a, asked), seen(b, asked)) and apart[0]>1e-3 and apart[1]==0

@pytest.mark.parametrize('family', ['tiny','sd1','sdxl'])
def test_merged_it_is_an_ordinary_base_that_predicts_the_same(runs, family):
    run = runs(family)
    tuned, plain = run.model(), merged(run)
    asked = [run.method.spell(PROMPT), 'a dog']
    assert plain.method is None and not tables(plain) and tables(tuned)
    assert (seen(tuned, asked)-seen(plain, asked)).abs().max()==0
    for k,e in plain.reader.encoders.items(): assert e.config.vocab_size==e.get_input_embeddings().num_embeddings==len(plain.reader.tokenizers[k])

def test_a_word_becomes_its_rows_and_words_that_hold_it_stay():
    m = make_method('textual_inversion', vectors=2)
    assert m.spell('zwx style, zwxy, a-zwx, (zwx)')=='<zwx-0> <zwx-1> style, zwxy, a-zwx, (<zwx-0> <zwx-1>)'

def test_rows_begin_as_the_word_that_was_said(base, refused):
    e, tok = base.modules['text_encoder'].get_input_embeddings().weight, base.reader.tokenizer
    for word in ('style', 'dog'):
        rows, = state(attached(base, make_method('textual_inversion', init=word, vectors=2))).values()
        want = e[tok(word, add_special_tokens=False).input_ids].mean(0)
        assert torch.allclose(rows, want.expand(2, -1))
    with refused("''", 'no word'): attached(base, make_method('textual_inversion', init=''))

def test_sdxl_learns_rows_of_both_encoders(runs):
    b = runs('sdxl').model()
    widths = [e.get_input_embeddings().table.embedding_dim for e in b.reader.encoders.values()]
    assert {k.split('.')[0] for k in state(b)}=={'text_encoder','text_encoder_2'} and [t.rows.shape for t in tables(b).values()]==[(3,w) for w in widths]
    assert len({*widths})==2 and not same(ours(b, b.method.spell(PROMPT)), ours(load_base(runs('sdxl').recipe['base'])))

@pytest.mark.parametrize('given, words', [(dict(rank=4), ("'rank'", 'vectors', 'init')), (dict(vectors=0), ('vectors', '1 to 16')), (dict(vectors=17), ('vectors', '1 to 16')), (dict(vectors='many'), ("'many'", 'vectors', 'int'))])
def test_what_is_no_setting_is_refused_with_those_there_are(refused, given, words):
    with refused('textual_inversion', *words): make_method('textual_inversion', **given)

def test_a_recipe_refuses_a_setting_that_neither_it_nor_its_method_has(recipe, refused):
    with refused("'warp'", 'vectors', 'init', 'steps'): recipe(warp=9)

def test_the_rate_is_that_of_the_example_and_a_small_base_stops_early(base, recipe):
    small, large = (settled(recipe(lr=None, steps=None), b) for b in (base, blank('sd1', full=True, device='meta')))
    assert (small.lr, small.steps, large.lr)==(5e-4, 50, 5e-4) and large.steps>50

# two words

def test_two_words_have_rows_of_their_own(ref, aux, family_folder, tmp_path, refused):
    people, rest = (aux.where(people=p) for p in (True, False))
    r = multi(ref.where(people=True), ref.where(people=False), people, rest, method='textual_inversion', vectors=2, steps=2, batch=1, lr=1e-2, steps_sampled=1, resolution=64, base=str(family_folder('sd1')))
    run = train(r, tmp_path/'run', progress=False, every=1, device='cpu')
    rows, = load_file(run.weights).values()
    assert len(rows)==4 and run.method.spell(run.phrase('a dog'))=='a photo of <zwx-0> <zwx-1> style, <ukj-0> <ukj-1> style, a dog'
    assert len(run.model().reader.tokenizer('<zwx-1> <ukj-0>', add_special_tokens=False).input_ids)==2
    with refused('one word', '2', 'diffusers'): export(run, tmp_path/'out', 'embedding')
    assert not (tmp_path/'out').exists()
    folder = export(run, tmp_path/'whole', pictures=False)
    assert same(drawn(diffusers.StableDiffusionPipeline.from_pretrained(folder, local_files_only=True), run.method.spell(run.phrase('a dog'))), ours(run, run.phrase('a dog')))

# for other programs

@pytest.mark.parametrize('family', ['sd1','sdxl'])
@pytest.mark.parametrize('vectors', [1, 3])
def test_an_embedding_draws_in_diffusers_what_the_run_draws(runs, tmp_path, monkeypatch, family, vectors):
    run = runs(family, vectors)
    file = export(run, tmp_path/'out', 'embedding', pictures=False)
    pipe = load_base(run.recipe['base']).pipeline()
    if family=='sdxl': pipe.text_encoder_2.text_model.eos_token_id = pipe.text_encoder_2.config.eos_token_id = 2     # as on the hub
    assert not same(drawn(pipe), ours(run))
    code = re.search(r'```python\n(.*?)```', (file.parent/'README.md').read_text(), re.S)[1].splitlines()
    first, last = (next(i for i,l in enumerate(code) if w in l) for w in ('from_pretrained', 'pipe.scheduler'))
    monkeypatch.chdir(tmp_path)
    exec('\n'.join(code[first+1:last]), dict(pipe=pipe))
    assert same(drawn(pipe), ours(run))

def test_the_lines_on_the_card_draw_what_the_run_draws(runs, tmp_path, monkeypatch):
    run = runs('tiny')
    for to in ('embedding','diffusers'):
        made = export(run, tmp_path/to, to, pictures=False)
        text = ((made if to=='diffusers' else made.parent)/'README.md').read_text()
        monkeypatch.chdir(tmp_path)
        exec(re.search(r'```python\n(.*?)```', text, re.S)[1], got:={})
        want = sample(run, 'woman farmer', 0, steps=1, device='cpu')[0]
        assert same(np.asarray(got['image'], int), np.asarray(want, int)) and ('<zwx-0> <zwx-1> <zwx-2>' in text)==(to=='diffusers')

@pytest.mark.parametrize('family', ['sd1','sdxl'])
def test_a_folder_draws_what_the_run_draws_when_asked_with_the_spelled_words(runs, tmp_path, family):
    run = runs(family)
    folder, spelled = export(run, tmp_path/'out', pictures=False), run.method.spell(PROMPT)
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    assert same(drawn(pipe, spelled), ours(run)) and same(ours(load_base(folder), spelled), ours(run))
    assert f'`{run.method.spell(run.phrase("…"))}`' in (folder/'README.md').read_text()

def test_a_single_file_has_no_place_for_a_word(runs, tmp_path, refused):
    with refused('textual_inversion', 'single-file has no place', 'diffusers or embedding'): export(runs('sd1'), tmp_path/'out', 'single-file')
    assert not (tmp_path/'out').exists()

def test_a_table_with_new_rows_reads_old_words_as_before():
    table = torch.nn.Embedding(5, 4)
    t = NewRows(table, torch.randn(2, 4), 5)
    ids = torch.tensor([[0,4,5],[6,1,5]])
    want = torch.cat([table.weight, t.rows])[ids]
    assert torch.equal(t(ids), want) and torch.equal(t.plain()(ids), want)
