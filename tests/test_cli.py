"The command: what it offers, what it answers to a wrong call, and one round trip from pictures to scores."
import contextlib, io, json, logging, os, re, signal, subprocess, sys, time, traceback
from dataclasses import fields, replace
from types import SimpleNamespace

import pytest, torch
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.main import get_command
from typer.testing import CliRunner

from styleboost import cli
from styleboost.core import StyleboostError
from styleboost.judging import metrics
from styleboost.judging.drift import EACH
from styleboost.training import priors
from styleboost.cli import app, main
from styleboost.exporting.export import LAYOUTS
from styleboost.methods.load import METHODS, method_class
from styleboost.pictures.images import ImageSet
from styleboost.pictures.world import STYLES, pool, style_ref
from styleboost.studies.arms import DRAW_SAMPLER, DRAW_STEPS
from styleboost.studies.results import Results
from styleboost.training.runs import Run
from styleboost.training.recipes import Recipe

OPTIONS = dict(
    demo='--style --out --quick --seed --aux',
    train='--ref --out --prior --aux --base --recipe --preset --set --method --text-encoder --rank --alpha --targets '
          '--no-text-encoder --token --aux-count --class-prompt --prior-weight --resolution --steps --batch --lr '
          '--min-snr --precision --memory --attention --checkpointing --optimizer --fused-backward --weights '
          '--accumulate --buckets --latents --snapshots --checkpoint --seed --tracker --resume --sample-prompts '
          '--sample-every --no-samples --device',
    sample='--out --prompt --prompts --n --seed --steps --guidance --scheduler --negative --at --size --grid --lora '
           '--strength --mix --ema --literal --device',
    plan='--base --memory --method --rank --targets --text-encoder --no-text-encoder --prior --set --resolution '
         '--batch --precision --checkpointing --optimizer --fused-backward --weights --accumulate --processes --device',
    score='--reference --prompts --ref --untouched --drift --others --encoder --out --literal',     # which `sample` has
    check='--ref --prior --aux --reference --prompts --resolution --encoder --out',
    suggest='--ref --pool --out --k --people --near --general --itself --encoder',
    compare='--out --prior --aux --arm --style --ref --reference --prompts --validation --base --seeds --steps --method '
            '--recipe --set --aux-count --sampler --scheduler --strengths --drift --encoder --ray --gpus --device',
    export='--out --to --at --strength --ema --half --pictures --no-pictures --push',
    env='')

def in_process(*args, encoding='utf-8'):
    "Runs the command here: its exit status, and what it wrote. An error that gets through is a traceback, as it would be in a shell."
    log, out, err, code = logging.getLogger('styleboost'), io.TextIOWrapper(io.BytesIO(), encoding, newline=''), io.StringIO(), 0
    handlers, propagate = log.handlers[:], log.propagate
    metrics._once.cache_clear()                             # a command says everything, whatever this process has said before
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try: main([str(a) for a in args])
        except SystemExit as e: code = e.code or 0
        except BaseException: code = 1; traceback.print_exc(file=err)
        finally: log.handlers[:], log.propagate = handlers, propagate
    out.flush()
    return SimpleNamespace(code=code, out=out.buffer.getvalue().decode(encoding), err=err.getvalue())

@pytest.fixture(scope='module')
def here(tmp_path_factory, ref, aux):
    "A folder with a `ref`, an `aux`, a folder without flags or captions, and settings that take a second."
    f = tmp_path_factory.mktemp('cli')
    ref.save(f/'ref'); aux.save(f/'aux'); (f/'bare').mkdir()
    for p in ref: (f/'bare'/p.name).write_bytes(p.bytes())
    (f/'cheap.json').write_text(json.dumps(dict(steps=2, batch=1, steps_sampled=1)))
    (f/'prompts.tsv').write_text('prompt\tpeople\na woman\ttrue\na dog\tfalse\n')
    return f

@pytest.fixture(scope='module')
def trained(here):
    done = in_process('train', '--ref', here/'ref', '--aux', here/'aux', '--recipe', here/'cheap.json', '--preset', 'paper', '--prior-weight', .5, '--class-prompt', 'a photo of art', '--out', here/'run')
    assert done.code==0, done.err
    return SimpleNamespace(folder=here/'run', **vars(done))

@pytest.fixture(scope='module')
def drawn(here, trained):
    done = in_process('sample', trained.folder, '--prompts', here/'prompts.tsv', '--n', 2, '--steps', 2, '--seed', 5, '--out', here/'pictures')
    assert done.code==0, done.err
    return SimpleNamespace(folder=here/'pictures', **vars(done))

def refusal(done, *words, codes=(1,2)):
    "One sentence on stderr, no traceback, an exit status that says so."
    assert 'Traceback' not in done.err, done.err.splitlines()[-1]
    assert done.code in codes
    said = done.err.strip().splitlines()
    assert done.code==2 or said[-1].startswith('styleboost: ') and said[-1].endswith('.')
    assert [w for w in words if str(w) not in done.err]==[]

# help

@pytest.mark.parametrize('columns', [80, 200])
@pytest.mark.parametrize('command', OPTIONS)
def test_help_lists_every_option(command, columns):
    done = CliRunner(env=dict(COLUMNS=str(columns), TERM='dumb', NO_COLOR='1')).invoke(app, [command, '--help'])
    assert done.exit_code==0 and set(re.findall(r'--[a-z][a-z-]*', done.output))=={*OPTIONS[command].split(), '--help'}

def test_help_lists_every_command():
    done = CliRunner(env=dict(TERM='dumb')).invoke(app, ['--help'])
    assert done.exit_code==0 and {*OPTIONS} <= set(re.findall(r'[a-z]+', done.output)) and '--debug' in done.output
    assert {c.name or c.callback.__name__ for c in app.registered_commands}=={*OPTIONS}

def test_every_option_says_what_it_is_for():
    assert [(n, p.name) for n,c in get_command(app).commands.items() for p in c.params if p.name!='help' and not p.help]==[]

HEAVY = ('torch', 'diffusers', 'transformers', 'peft', 'pandas', 'matplotlib', 'ipywidgets')

@pytest.mark.parametrize('words', [['--help'], ['train', '--help'], ['compare', '--help']])
def test_help_loads_nothing_heavy(words):
    code = f"""import json, sys
from styleboost.cli import main
try: main({words})
except SystemExit: print(json.dumps([m for m in {HEAVY} if m in sys.modules]), file=sys.stderr)"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert json.loads(done.stderr)==[] and 'Usage' in done.stdout

@pytest.mark.parametrize('own, holds', [({}, '1000'), (dict(OMP_WAIT_POLICY='ACTIVE'), 'None'), (dict(GOMP_SPINCOUNT='7'), '7')])
def test_threads_sleep_soon_while_they_wait_unless_somebody_wants_them_to_spin(own, holds):
    code = "import os, sys\nfrom styleboost.cli import main\ntry: main(['--help'])\nexcept SystemExit: print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules, file=sys.stderr)"
    env = {k:v for k,v in os.environ.items() if k not in ('OMP_WAIT_POLICY','GOMP_SPINCOUNT')} | own
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, env=env)
    assert done.stderr.split()==[holds, 'False']

def test_help_names_every_method_layout_style_and_default():
    told = {n: ' '.join(p.help for p in c.params if p.name!='help') for n,c in get_command(app).commands.items()}
    missing = [(command, w) for command,words in dict(train=METHODS, export=LAYOUTS, compare=STYLES, demo=STYLES).items()
               for w in words if w not in told[command]]
    assert missing==[]
    study = {p.name: p.default for p in get_command(app).commands['compare'].params}
    assert (study['sampler'], study['scheduler'], study['drift'])==(DRAW_STEPS, DRAW_SAMPLER, EACH)

def test_an_option_of_the_table_is_a_field_of_the_recipe_or_of_an_adapter():
    recipe, adapter = ({f.name for f in fields(cls)} for cls in (Recipe, method_class('lora')))
    assert {*cli.RECIPE, *cli.MEMORY, 'method'} <= recipe and {*cli.METHOD}-{'method'} <= adapter

# --set

@pytest.mark.parametrize('pairs, words', [(['rank'], 'KEY=VALUE'), (['=3'], 'KEY=VALUE'), (['rank=2', 'rank=3'], 'twice')])
def test_a_setting_that_makes_no_sense_is_a_wrong_call(here, tmp_path, pairs, words):
    pairs = [w for p in pairs for w in ('--set', p)]
    done = in_process('train', '--ref', here/'ref', '--prior', 'none', '--out', tmp_path/'out', *pairs)
    assert done.code==2 and words in done.err and not (tmp_path/'out').exists()

@pytest.mark.parametrize('key', ['base', 'steps', 'scheduler', 'steps_sampled'])
def test_a_setting_that_a_study_would_not_heed_is_a_wrong_call(tmp_path, key):
    done = in_process('compare', '--prior', 'none', '--set', f'{key}=1', '--out', tmp_path/'out')
    assert done.code==2 and f'--set {key}' in done.err and not (tmp_path/'out').exists()

def test_a_setting_reaches_the_recipe_and_its_method_as_an_option_does(here, tmp_path):
    call = ['train', '--ref', here/'ref', '--prior', here/'aux', '--recipe', here/'cheap.json', '--method', 'lora']
    one = in_process(*call, '--rank', 2, '--min-snr', 5, '--token', 'sks', '--out', tmp_path/'one')
    two = in_process(*call, '--set', 'rank=2', '--set', 'min-snr=5', '--set', 'token=sks', '--out', tmp_path/'two')
    assert (one.code, two.code)==(0, 0), one.err+two.err
    assert Run(tmp_path/'one').recipe==Run(tmp_path/'two').recipe and 'sks' in two.out

@pytest.mark.parametrize('said, words', [(['--snapshots', -5], ['--snapshots is -5']), (['--seed', 2**64], [str(2**64), 'below 2**63']), (['--prior-weight', 'inf'], ['weight is inf']),
    (['--lr', 'nan'], ['lr is nan']), (['--set', 'warmup=20'], ['constant_with_warmup']), (['--tracker', 'clearml'], ['pip install clearml'])], ids=lambda v: str(v[0]))
def test_a_number_that_is_none_or_that_nothing_would_read_is_refused(here, tmp_path, said, words):
    refusal(in_process('train', '--ref', here/'ref', '--prior', here/'aux', '--recipe', here/'cheap.json', '--out', tmp_path/'out', *said), *words)
    assert not (tmp_path/'out').exists()

def test_a_finished_run_goes_on_to_more_steps_and_draws_anew(here, tmp_path):
    call = ['train', '--ref', here/'ref', '--prior', 'none', '--recipe', here/'cheap.json', '--out', tmp_path/'out']
    assert in_process(*call).code==0
    more = in_process(*call, '--steps', 3, '--resume')
    run = Run(tmp_path/'out')
    assert more.code==0 and 'begins anew at step 2' in more.err and run.done and run.recipe['steps']==3 and [*run.snapshots]==[2]
    old, new = (ImageSet.from_folder(run.folder/n) for n in ('samples-000002','samples'))
    assert len(old)==len(new)==8 and old.hash!=new.hash
    refusal(in_process(*call, '--resume'), 'has done 3 steps', 'ask for more')
    refusal(in_process('sample', tmp_path/'out', '--prompt', 'a dog', '--seed', 2**64, '--out', tmp_path/'drawn'), str(2**64), 'seed')
    refusal(in_process('plan', '--base', tmp_path/'out', '--device', 'cpu'), 'is a run', 'styleboost export')

STRANGE = [None, True, -1, 10**30, float('nan'), '', 'x', '\0', [], {}, [1], dict(name=3), [dict(role='style')]]

@pytest.mark.parametrize('field', ['recipe','seed','recipe.method','recipe.lr','recipe.steps','recipe.token','recipe.base','recipe.bindings','recipe.bindings.0','recipe.bindings.1.weight','recipe.bindings.1.prompt','recipe.method.name','recipe.method.text_encoder'])
def test_a_recipe_with_something_strange_in_it_is_a_sentence(here, trained, tmp_path, monkeypatch, field):
    "What is strange and can be trained would be: the file is read, and all but the training is done."
    from styleboost.training import loop
    monkeypatch.setattr(loop, 'prepared', lambda *a, **kw: (_ for _ in ()).throw(StyleboostError('Enough.')))
    for i,value in enumerate(STRANGE):
        info = json.loads((trained.folder/'recipe.json').read_text())
        *way, last = field.split('.')
        inner = info
        for k in way: inner = inner[int(k) if k.isdigit() else k]
        inner[int(last) if last.isdigit() else last] = value
        (tmp_path/'r.json').write_text(json.dumps(info))
        done = in_process('train', '--ref', here/'ref', '--prior', here/'aux', '--recipe', tmp_path/'r.json', '--out', tmp_path/f'out{i}')
        assert done.code in (1,2) and 'Traceback' not in done.err and done.err.strip().endswith('.'), (value, done.err[-600:])

@pytest.mark.parametrize('command', ['train', 'compare'])
def test_an_unknown_setting_lists_those_there_are(here, tmp_path, command):
    what = ['--ref', here/'ref'] if command=='train' else []
    refusal(in_process(command, *what, '--prior', 'none', '--set', 'gone=1', '--out', tmp_path/'out'), 'gone', 'warmup')
    assert not (tmp_path/'out').exists()

def test_a_plan_takes_settings_too():
    told = [in_process('plan', '--method', 'lora', '--device', 'cpu', *more).out
            for more in (['--rank', 64], ['--set', 'rank=64'], [])]
    assert told[0]==told[1]!=told[2]

# one round trip

def test_prior_has_another_name(here, tmp_path):
    for name in ('prior', 'aux'):
        done = in_process('train', '--ref', here/'ref', f'--{name}', here/'aux', '--recipe', here/'cheap.json',
                          '--out', tmp_path/name)
        assert done.code==0, done.err
    assert Run(tmp_path/'prior').recipe==Run(tmp_path/'aux').recipe

def test_priors_are_given_together_held_or_not_and_an_average_is_drawn(here, tmp_path):
    call = ['train', '--ref', here/'ref', '--recipe', here/'cheap.json', '--prior', here/'aux', '--prior', 'hold:class+hold:blank', '--set', 'ema=.2', '--set', 'anchor=2', '--lr', 1e-2]
    done = in_process(*call, '--prior-weight', 1, '--prior-weight', .5, '--prior-weight', .25, '--out', tmp_path/'run')
    assert done.code==0, done.err
    r = Run(tmp_path/'run').recipe
    assert [(b['prompt'], b['weight'], b.get('toward')) for b in r['bindings'][1:]]==[('a photo of style',1.,None), ('a photo of style',.5,'base'), ('',.25,'base')]
    assert (r['name'], r['anchor'], r['ema'])==('aux+hold', 2., .2) and done.out.count('held to what the base predicts')==2 and 'pulled to where they began' in done.out
    again = in_process(*[tmp_path/'run'/'recipe.json' if a==here/'cheap.json' else a for a in call], '--out', tmp_path/'again')
    assert again.code==0 and [b['weight'] for b in Run(tmp_path/'again').recipe['bindings']]==[1.,1.,.5,.25], again.err
    for i,ema in enumerate((.2, .1)): assert in_process('sample', tmp_path/'run', '--ema', ema, '--prompt', 'a dog', '--steps', 2, '--out', tmp_path/str(i)).code==0
    assert len({ImageSet.from_folder(tmp_path/n)[0].sha for n in '01'})==2
    refusal(in_process('sample', 'tiny', '--ema', .1, '--prompt', 'a dog', '--out', tmp_path/'x'), '--ema goes with a run')
    refusal(in_process(*call, '--prior', 'none', '--out', tmp_path/'x'), 'none stands beside')
    assert not (tmp_path/'x').exists()

def test_train_says_what_it_binds_and_leaves_a_run(trained):
    run = Run(trained.folder)
    assert run.done and [f'{r}: {n} pictures' in trained.out for r,n in (('style',3),('prior',4))]==[True]*2 and 'weight 0.5' in trained.out and '"a photo of art"' in trained.out
    assert {p.name for p in run.folder.iterdir()}=={'recipe.json','log.jsonl','weights','sheets','samples'} and len(ImageSet.from_folder(run.folder/'samples'))==8

def test_options_go_before_the_recipe_file_and_that_before_the_preset(trained):
    r = Run(trained.folder).recipe
    assert (r['steps'], r['batch'], r['pairing'], r['name'], [b['weight'] for b in r['bindings']])==(2, 1, 'fixed', 'aux', [1.,.5])

def test_sample_draws_each_prompt_n_times_with_its_words_and_flag(drawn):
    found = ImageSet.from_folder(drawn.folder)
    assert found.captions==['a woman']*2+['a dog']*2 and found.people==[True,True,False,False] and len({p.sha for p in found})==4
    assert [p.name[-5] for p in found]==['5','6','7','8'] and '4 pictures' in drawn.out

def test_sample_gives_the_same_pictures_again(here, trained, drawn, tmp_path):
    in_process('sample', trained.folder, '--prompts', here/'prompts.tsv', '--n', 2, '--steps', 2, '--seed', 5, '--out', tmp_path/'again')
    assert ImageSet.from_folder(tmp_path/'again').hash==ImageSet.from_folder(drawn.folder).hash

def test_sample_takes_a_base_or_a_run_or_an_export(here, trained, tmp_path):
    assert in_process('export', trained.folder, '--out', tmp_path/'model').code==0
    for i,(model, prompt) in enumerate([('tiny', 'a dog'), (trained.folder, 'a dog'), (tmp_path/'model', 'a photo of zwx style, a dog')]):
        assert in_process('sample', model, '--prompt', prompt, '--steps', 2, '--out', tmp_path/str(i)).code==0
    run, model = (ImageSet.from_folder(tmp_path/i)[0].sha for i in '12')
    assert run==model

def rows(file):
    "Scores as group -> metric -> value, with the largest n of each group."
    out = {}
    scores = json.loads(file.read_text())
    assert re.fullmatch('world [0-9a-f]{16}', scores['judge'])
    for r in scores['rows']:
        assert {*r}=={'group','metric','value','low','high','n'}
        group = out.setdefault(r['group'], dict(n=0)); group[r['metric']] = r['value']; group['n'] = max(group['n'], r['n'])
    return out

def test_score_writes_people_and_things_apart(here, drawn, tmp_path):
    done = in_process('score', drawn.folder, '--reference', here/'ref', '--out', tmp_path/'scores.json')
    scores = rows(tmp_path/'scores.json')
    assert done.code==0 and [scores[g]['n'] for g in ('people','things','all')]==[2,2,4] and 'people_rate' in scores['people'] and 'NaN' not in (tmp_path/'scores.json').read_text()

def test_score_takes_a_reference_without_flags(here, drawn, tmp_path):
    done = in_process('score', drawn.folder, '--reference', here/'bare', '--out', tmp_path/'scores.json')
    assert 'Traceback' not in done.err and done.code==0 and rows(tmp_path/'scores.json')['all']['n']==4

def test_score_spoils_no_file_that_it_did_not_write(here, drawn, tmp_path):
    mine = tmp_path/'scores.json'
    for theirs in ('{"rows": [], "seconds": {}}', 'precious', '[1]', '3'):
        mine.write_text(theirs)
        done = in_process('score', drawn.folder, '--reference', here/'aux', '--out', mine)
        assert done.code==1 and 'was not written by `styleboost score`' in done.err and mine.read_text()==theirs
    done = in_process('score', drawn.folder, '--reference', here/'aux', '--out', mine/'below.json')
    assert done.code==1 and 'Not a directory' in done.err and 'Traceback' not in done.err
    for _ in range(2): assert in_process('score', drawn.folder, '--reference', here/'aux', '--out', tmp_path/'new'/'scores.json').code==0
    assert in_process('score', drawn.folder, '--reference', here/'aux', '--out', tmp_path).err.startswith(f'styleboost: {tmp_path} is a folder')

def test_score_pairs_a_list_of_prompts_with_pictures_as_people_count_them(here, picture, tmp_path):
    (tmp_path/'p.txt').write_text(''.join(f'a picture of {i}\n' for i in range(1, 13)))
    for name in ('{}.png', '{:02d}.png'):
        folder = tmp_path/name; folder.mkdir()
        for i in range(1, 13): (folder/name.format(i)).write_bytes(picture(str(i)).data)
        done = in_process('score', folder, '--reference', here/'bare', '--prompts', tmp_path/'p.txt', '--out', tmp_path/f'{name}.json')
        assert done.code==0 and ('2.png before 10.png' in done.err)==(name=='{}.png'), done.err
    plain, padded = (rows(tmp_path/f'{name}.json')['all'] for name in ('{}.png', '{:02d}.png'))
    assert plain['text']==padded['text']

def test_score_takes_a_run_prompts_and_style_references(here, trained, tmp_path):
    asked = tmp_path/'asked.tsv'; asked.write_text('prompt\tpeople\n'+''.join(f'thing {i}\t{"true" if i<5 else "false"}\n' for i in range(8)))
    done = in_process('score', trained.folder, '--reference', here/'aux', '--ref', here/'ref', '--prompts', asked, '--out', tmp_path/'scores.json')
    scores = rows(tmp_path/'scores.json')
    assert done.code==0, done.err
    assert [scores[g]['n'] for g in ('people','things','all')]==[5,3,8] and {'copying','text'} <= {*scores['all']} and 'KID needs 8' in done.err
    assert 'text alignment' in done.out and 'copying' in done.out

def test_score_says_first_whether_the_style_is_told_from_others(here, drawn, tmp_path):
    style_ref('openmoji').save(tmp_path/'real'); pool('micah')[:10].save(tmp_path/'micah')
    done = in_process('score', drawn.folder, '--reference', tmp_path/'real', '--out', tmp_path/'scores.json')
    harder = in_process('score', drawn.folder, '--reference', tmp_path/'real', '--others', tmp_path/'micah', '--encoder', 'introstyle:tiny', '--out', tmp_path/'intro.json')
    assert done.code==harder.code==0, done.err+harder.err
    assert done.out.index('tells this style from others') < done.out.index('style similarity  ')
    assert {'style_gap','style_csls'} <= {*rows(tmp_path/'scores.json')['all']} and json.loads((tmp_path/'intro.json').read_text())['judge'].startswith('introstyle:tiny')

def test_check_says_what_is_shared_and_shows_it(here, tmp_path):
    (tmp_path/'asked.txt').write_text('a picture of anna\na house\n')
    done = in_process('check', f'ref={here}/ref', f'reference={here}/bare', f'aux={here}/aux', '--prompts', tmp_path/'asked.txt', '--out', tmp_path/'check.html')
    assert done.code==0, done.err
    page = (tmp_path/'check.html').read_text()
    assert 'anna.png of reference are the same file; what is scored on the reference would reward a copy' in done.out
    assert '1 of the prompts' in done.out and 'ref: 3 pictures' in done.out and '<script' not in page and page.count('<img')>=6
    assert in_process('check', f'{here}/aux', '--out', tmp_path/'check.html').code==0            # an earlier page is replaced

def test_suggest_leaves_a_folder_that_trains_with_reasons_and_a_sheet_beside_it(here, tmp_path):
    done = in_process('suggest', '--ref', here/'ref', '--pool', 'world:micah', '--k', 4, '--people', 1, '--out', tmp_path/'aux')
    assert done.code==0, done.err
    assert len(ImageSet.from_folder(tmp_path/'aux'))==4 and {p.name for p in tmp_path.iterdir()}=={'aux','aux.png','aux.json'} and 'near' in done.out
    row = json.loads((tmp_path/'aux'/'metadata.jsonl').read_text().splitlines()[0])
    assert row['licence']=='CC-BY-4.0' and 'Micah' in row['source'] and {'near','general','style_itself','score'} <= {*row}
    table = json.loads((tmp_path/'aux.json').read_text())['pictures']
    assert len(table)==120 and sum(r['chosen'] for r in table)==4

def test_guesses_about_people_are_said_and_kept_as_guesses(here, tmp_path):
    ImageSet([replace(p, people=None) for p in pool('micah')[:6]], 'unsaid').save(tmp_path/'pool')
    done = in_process('suggest', '--ref', here/'ref', '--pool', tmp_path/'pool', '--k', 4, '--out', tmp_path/'guessed')
    assert done.code==0, done.err
    found = ImageSet.from_folder(tmp_path/'guessed')
    assert found.guessed==[True]*4 and f'{sum(found.people)} of them with people (the judge\'s guess for 4 of the 4' in done.out
    assert all('"guessed": true' in l for l in (tmp_path/'guessed'/'metadata.jsonl').read_text().splitlines())

def test_the_recipe_of_a_run_trains_the_same_run_again(here, trained, tmp_path):
    done = in_process('train', '--ref', here/'ref', '--aux', here/'aux', '--recipe', trained.folder/'recipe.json', '--out', tmp_path/'again')
    assert done.code==0, done.err
    again, first = Run(tmp_path/'again'), Run(trained.folder)
    assert again.recipe==first.recipe
    a, b = load_file(again.weights), load_file(first.weights)
    assert all(torch.equal(a[k], b[k]) for k in b)

def test_resuming_a_finished_run_changes_nothing(here, trained):
    before = {p: p.stat().st_mtime_ns for p in trained.folder.rglob('*')}
    done = in_process('train', '--ref', here/'ref', '--aux', here/'aux', '--recipe', here/'cheap.json', '--preset', 'paper', '--prior-weight', .5, '--class-prompt', 'a photo of art', '--out', trained.folder, '--resume')
    assert done.code==0 and {p: p.stat().st_mtime_ns for p in trained.folder.rglob('*')}==before

# a file of one's own

MINE = """
ref = "ref"
prior = "aux"
aux_count = 2
class_prompt = "a photo of art"
prior_weight = 0.5
seed = 7
token = "sks"
method = "lora"
rank = 2
steps = 2
batch = 1
steps_sampled = 1
grad_clip = "none"
no_samples = true
"""

def test_a_file_of_ones_own_says_what_options_say(here, tmp_path):
    (here/'mine.toml').write_text(MINE)
    table = MINE.replace('method = "lora"\nrank = 2\n', '')+'[method]\nname = "lora"\nrank = 2\n'
    (here/'table.toml').write_text(table)
    for name in ('mine', 'table'):
        done = in_process('train', '--recipe', here/f'{name}.toml', '--out', tmp_path/name)
        assert done.code==0, done.err
    typed = in_process('train', '--ref', here/'ref', '--prior', here/'aux', '--aux-count', 2, '--class-prompt', 'a photo of art', '--prior-weight', .5, '--seed', 7,
        '--token', 'sks', '--method', 'lora', '--rank', 2, '--steps', 2, '--batch', 1, '--set', 'steps_sampled=1', '--set', 'grad_clip=none', '--no-samples', '--out', tmp_path/'typed')
    assert typed.code==0, typed.err
    runs = [Run(tmp_path/n) for n in ('mine','table','typed')]
    assert runs[0].recipe==runs[1].recipe==runs[2].recipe and {r.seed for r in runs}=={7} and runs[0].recipe['grad_clip'] is None
    assert len({r.weights.read_bytes() for r in runs})==1 and not any((r.folder/'samples').exists() for r in runs)

def test_a_files_own_lines_go_before_the_preset_that_it_names(here, said):
    (here/'paper.toml').write_text('preset = "paper"\nbatch = 4\nmethod = "lora"\nrank = 3\n')
    saved, ref = cli._saved(here/'paper.toml'), ImageSet.from_folder(here/'ref')
    r = cli._plain(ref, 'paper', saved, {}, {})
    assert (r.batch, r.pairing, r.crops, r.method.rank)==(4, 'fixed', 1, 3) and cli._plain(ref, 'paper', saved, dict(batch=2), {}).batch==2
    other = cli._plain(ref, 'paper', saved, dict(method='dora'), {})
    assert other.method.rank!=3 and any('says of lora (rank)' in m and 'dora' in m for m in said())

@pytest.mark.parametrize('said, meant', [
    *[(w, [w]) for w in ('none', 'generated', 'generated:a+b', 'world:people', 'suggest:world:people', 'hold:class', 'hold:blank', 'hold:world:people', 'hold:suggest:world:people', 'hold:generated', 'aux:world:people', 'anchor:2')],
    ('mine', ['{x}/mine']), ('aux:mine', ['aux:{x}/mine']), ('suggest:mine', ['suggest:{x}/mine']), ('hold:mine', ['hold:{x}/mine']), ('hold:suggest:mine', ['hold:suggest:{x}/mine']), ('class', ['{x}/class']),
    ('hold:class+mine', ['hold:class','{x}/mine']), ('mine+hold:mine+anchor:2', ['{x}/mine','hold:{x}/mine','anchor:2']), ('a+b', ['{x}/a+b']), ('hold:a+b', ['hold:{x}/a+b']), ('/mine', ['/mine'])])
def test_folders_of_a_prior_are_seen_from_where_the_file_lies(tmp_path, said, meant):
    (tmp_path/'a+b').mkdir()
    for text,more in ((json.dumps(said), []), (json.dumps(['world:things', said]), ['world:things'])):
        (tmp_path/'mine.toml').write_text(f'prior = {text}')
        assert cli._saved(tmp_path/'mine.toml').prior==more+[w.format(x=tmp_path) for w in meant]

def test_an_option_goes_before_the_file(here, tmp_path):
    (here/'mine.toml').write_text(MINE)
    done = in_process('train', '--recipe', here/'mine.toml', '--steps', 1, '--prior', 'none', '--seed', 0, '--set', 'rank=3', '--out', tmp_path/'run')
    assert done.code==0, done.err
    run = Run(tmp_path/'run')
    assert (run.recipe['steps'], len(run.recipe['bindings']), run.seed, run.recipe['method']['rank'])==(1, 1, 0, 3)

@pytest.mark.parametrize('name, text, words', [
    ('a.toml', 'rnk = 2\nmethod = "lora"', ["no setting is called 'rnk'", 'targets', 'warmup', 'aux_count']), ('a.toml', 'rank = 2', ["called 'rank'"]),
    ('a.toml', 'seed = "seven"', ['seed is', 'a whole number']), ('a.toml', 'ref = 3', ['ref is 3', 'a text']), ('a.toml', 'no_samples = 1', ['true or false']),
    ('a.toml', 'steps = "many"', ['steps', 'many']), ('a.toml', 'method = "gone"', ['gone', 'lora']), ('a.toml', 'method = 3', ['a.toml', 'cannot be read']), ('a.toml', 'steps = ', ['a.toml', 'cannot be read']),
    ('a.toml', 'ref = "gone"', ['gone', 'does not exist']), ('a.yaml', 'steps: 2', ['YAML', 'TOML'])])
def test_a_file_with_a_mistake_is_a_sentence(here, tmp_path, name, text, words):
    (tmp_path/name).write_text(text)
    where = [] if text.startswith('ref') else ['--ref', here/'ref']
    refusal(in_process('train', *where, '--prior', 'none', '--recipe', tmp_path/name, '--out', tmp_path/'out'), *words, codes=(1,))
    assert not (tmp_path/'out').exists()

def test_a_study_says_which_lines_of_a_file_it_does_not_read(tmp_path):
    (tmp_path/'mine.toml').write_text('ref = "ref"\nsteps = 2\nbatch = 1\n')
    with pytest.MonkeyPatch.context() as m:
        m.setattr(cli, '_study', lambda about, arms, *a: arms['none'].batch==1 or pytest.fail('the batch was not read'))
        done = in_process('compare', '--prior', 'none', '--recipe', tmp_path/'mine.toml', '--out', tmp_path/'out')
    assert done.code==0 and 'compare does not read ref, steps;' in done.err

# pictures on the way

def test_pictures_on_the_way_are_those_of_the_weights_of_then_and_change_nothing(here, trained, tmp_path):
    call = ['train', '--ref', here/'ref', '--aux', here/'aux', '--recipe', here/'cheap.json', '--preset', 'paper', '--prior-weight', .5, '--class-prompt', 'a photo of art']
    done = in_process(*call, '--sample-prompts', here/'prompts.tsv', '--sample-every', 1, '--snapshots', 1, '--out', tmp_path/'run')
    assert done.code==0, done.err
    run = Run(tmp_path/'run')
    assert run.weights.read_bytes()==Run(trained.folder).weights.read_bytes()
    assert sorted(p.name for p in run.folder.glob('samples*'))==['samples', 'samples-000001']
    then = ImageSet.from_folder(run.folder/'samples-000001')
    assert then.captions==['a woman', 'a dog'] and then.people==[True, False]
    again = in_process('sample', run.folder, '--at', 1, '--prompts', here/'prompts.tsv', '--steps', 1, '--scheduler', run.recipe['scheduler'], '--out', tmp_path/'then')
    assert again.code==0, again.err
    for a,b in zip(then, ImageSet.from_folder(tmp_path/'then')):
        assert max(abs(x-y) for x,y in zip(a.open().tobytes(), b.open().tobytes()))<=1

@pytest.mark.parametrize('said, words', [(['--sample-every', 0], '--sample-every is 0'), (['--no-samples', '--sample-prompts', 'p.txt'], '--no-samples'), (['--device', 'gone'], 'gone')])
def test_pictures_that_make_no_sense_are_refused(here, tmp_path, said, words):
    refusal(in_process('train', '--ref', here/'ref', '--prior', 'none', '--recipe', here/'cheap.json', '--out', tmp_path/'out', *said), words)
    assert not (tmp_path/'out').exists()

def test_a_sheet_has_a_row_a_prompt_and_pictures_have_the_size_that_was_asked(here, tmp_path):
    done = in_process('sample', 'tiny', '--prompts', here/'prompts.tsv', '--n', 2, '--steps', 1, '--size', '48x32', '--device', 'cpu', '--grid', '--out', tmp_path/'p')
    assert done.code==0, done.err
    assert {p.open().size for p in ImageSet.from_folder(tmp_path/'p')}=={(48,32)}
    sheet = Image.open(tmp_path/'p.png')
    first = ImageSet.from_folder(tmp_path/'p')[0].open()
    left = next(x for x in range(128, sheet.width) if sheet.getpixel((x, 12+24))!=(255,255,255))
    assert sheet.height==12+2*(48+6) and sheet.crop((left, 12+8, left+48, 12+40)).tobytes()==first.tobytes()
    refusal(in_process('sample', 'tiny', '--prompt', 'x', '--grid', '--out', tmp_path/'p.png'), 'p.png', codes=(1,))
    (tmp_path/'q.png').write_bytes(b'mine')
    refusal(in_process('sample', 'tiny', '--prompt', 'x', '--grid', '--out', tmp_path/'q'), 'q.png is already there', codes=(1,))
    assert (tmp_path/'q.png').read_bytes()==b'mine' and not (tmp_path/'q').exists()

@pytest.mark.parametrize('word, sizes', [('none', [3]), ('world:sprouts', [3,2]), ('suggest:world:sprouts', [3,2]), ('generated', [3,2])])
def test_every_kind_of_prior_trains(here, tmp_path, monkeypatch, word, sizes):
    monkeypatch.setattr(priors, 'sample', lambda base, prompts, *a, **kw: [Image.new('RGB', (64,64), 'red')]*len(prompts))
    done = in_process('train', '--ref', here/'ref', '--aux', word, '--aux-count', 2, '--steps', 1, '--recipe', here/'cheap.json', '--out', tmp_path/'run')
    assert done.code==0, done.err
    bindings = Run(tmp_path/'run').recipe['bindings']
    assert [len(b['images']['files']) for b in bindings]==sizes

def test_env_names_versions_devices_and_pools():
    done = in_process('env')
    assert done.code==0 and all(w in done.out for w in ('torch', 'cpu', 'openmoji', 'world:people', 'world:micah'))

# screens

@pytest.mark.parametrize('encoding, arrow', [('ascii', '^'), ('cp1252', '^'), ('utf-8', '↑')])
def test_a_screen_that_lacks_a_letter_gets_a_question_mark(here, tmp_path, encoding, arrow):
    ref, out = here/'ref', tmp_path/'画像'
    if not (here/'絵').exists(): ImageSet.from_folder(ref).save(here/'絵')
    done = in_process('train', '--ref', here/'絵', '--prior', 'none', '--recipe', here/'cheap.json', '--method', 'lora', '--out', out, encoding=encoding)
    assert done.code==0 and Run(out).done, done.err
    assert ('3 pictures, ?' if encoding!='utf-8' else '3 pictures, 絵') in done.out
    scored = in_process('score', out, '--reference', here/'aux', '--out', tmp_path/'scores.json', encoding=encoding)
    assert scored.code==0 and arrow in scored.out, scored.err+scored.out

def test_a_name_does_not_steer_the_terminal(tmp_path, here):
    folder = tmp_path/'\x1b[2Jart :fire:'
    ImageSet.from_folder(here/'ref').save(folder)
    (folder/'\x1b]0;mine\x07.txt').write_text('words')
    done = in_process('train', '--ref', folder, '--prior', 'none', '--recipe', here/'cheap.json', '--method', 'lora', '--out', tmp_path/'\x1b[31mrun')
    lost = in_process('sample', tmp_path/'\x1b[32m', '--prompt', 'a', '--out', tmp_path/'out')
    assert done.code==0 and lost.code==1
    for text in (done.out, done.err, lost.err): assert '\\x1b' in text and not re.search('[\x07\x1b]', text.replace('\x1b[A', ''))
    assert 'art :fire:' in done.out

# disks

@pytest.mark.parametrize('call', ['train --ref {here}/ref --prior none', 'train --ref {here}/ref --prior none --out {tmp}/run --latents', 'sample tiny --prompt cat', 'export {here}/run',
    'export {here}/run --to single-file', 'suggest --ref {here}/ref --pool world:micah', 'score {here}/ref --reference {here}/aux', 'check {here}/ref', 'compare --prior none', 'demo --quick'])
@pytest.mark.parametrize('place, words', [('/proc/no/out', 'choose another place'), ('{tmp}/'+'é'*130, 'choose a shorter name'), ('{tmp}/file/out', 'Not a directory')])
def test_a_place_that_cannot_be_written_is_refused_before_the_work(here, trained, tmp_path, monkeypatch, call, place, words):
    for room,work in (('training.loop','prepared'), ('bases.sampling','_draw'), ('judging.metrics','score'), ('judging.suggest','suggest'), ('judging.check','check')):
        monkeypatch.setattr(f'styleboost.{room}.{work}', lambda *a, **kw: pytest.fail('the work was begun'))
    (tmp_path/'file').write_text('1')
    if not place.endswith('.safetensors') and 'single-file' in call: place += '.safetensors'
    fill = lambda text: text.format(here=here, tmp=tmp_path)
    out = [] if call.endswith('--latents') else ['--out']
    refusal(in_process(*[fill(w) for w in call.split()], *out, fill(place)), words, codes=(1,))
    assert [f.name for f in tmp_path.iterdir()]==['file']

@pytest.fixture
def small_disk():
    "A disk that takes files of 60 kB: what is larger fails half-way, as on a full one."
    resource = pytest.importorskip('resource')
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    @contextlib.contextmanager
    def small():
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))
        try: yield
        finally: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    return small

def test_a_disk_that_becomes_full_costs_nothing_that_was_there(here, trained, tmp_path, small_disk):
    call = ['train', '--ref', here/'ref', '--prior', 'none', '--recipe', here/'cheap.json', '--method', 'lora', '--steps', 3, '--checkpoint', 1, '--out']
    with small_disk(): refusal(in_process(*call, tmp_path/'run'), 'weights', 'make room on that disk')
    assert in_process(*call, tmp_path/'run', '--resume').code==0 and in_process(*call, tmp_path/'straight').code==0
    assert Run(tmp_path/'run').weights.read_bytes()==Run(tmp_path/'straight').weights.read_bytes()
    before = sorted(tmp_path.rglob('*'))
    for more in ([tmp_path/'model'], [tmp_path/'model', '--to', 'lora'], [tmp_path/'one.safetensors', '--to', 'lora']):
        with small_disk(): refusal(in_process('export', tmp_path/'run', '--no-pictures', '--out', *more), more[0], 'make room on that disk')
        assert sorted(tmp_path.rglob('*'))==before

# strength, drift and what somebody else made

@pytest.fixture(scope='module')
def strong(here):
    "A run that moved far."
    done = in_process('train', '--ref', here/'ref', '--aux', 'none', '--recipe', here/'cheap.json', '--method', 'lora', '--steps', 4, '--lr', .05, '--out', here/'strong')
    assert done.code==0, done.err
    return here/'strong'

def test_a_strength_of_nought_draws_what_the_base_draws_and_one_what_the_run_draws(here, strong, tmp_path):
    def drew(name, *args):
        done = in_process('sample', *args, '--steps', 2, '--out', tmp_path/name)
        assert done.code==0, done.err
        return next((tmp_path/name).glob('*.png')).read_bytes()
    asked = ['--prompt', 'a dog']
    run = drew('run', strong, *asked)
    assert drew('one', strong, *asked, '--strength', 1)==run!=drew('half', strong, *asked, '--strength', .5)
    assert drew('unmixed', strong, *asked, '--strength', 0, '--mix', f'{strong}=0')==drew('nought', strong, *asked, '--strength', 0)!=drew('mixed', strong, *asked, '--strength', 0, '--mix', f'{strong}=1')
    assert drew('again', strong, *asked, '--strength', 0)==drew('base', 'tiny', '--prompt', 'a photo of zwx style, a dog')
    assert drew('literal', strong, *asked, '--literal')==drew('plain', strong, '--prompt', 'a dog', '--literal')!=run

def test_a_lora_file_is_drawn_with_and_exported_at_a_strength(strong, tmp_path):
    for name,s in (('whole',1), ('half',.5)): assert in_process('export', strong, '--to', 'kohya', '--strength', s, '--out', tmp_path/f'{name}.safetensors').code==0
    def drew(name, file, s):
        done = in_process('sample', 'tiny', '--lora', tmp_path/f'{file}.safetensors', '--strength', s, '--prompt', 'a dog', '--steps', 2, '--out', tmp_path/name)
        assert done.code==0, done.err
        return torch.tensor(list(Image.open(next((tmp_path/name).glob('*.png'))).tobytes()))
    half, baked, whole = drew('a', 'whole', .5), drew('b', 'half', 1), drew('c', 'whole', 1)
    assert (half-baked).abs().max()<=1<(half-whole).abs().max()

def test_drift_of_a_run_and_of_anothers_pictures(here, strong, tmp_path):
    (tmp_path/'p.tsv').write_text('prompt\tpeople\n'+''.join(f'{w} {i}\t{w=="woman"}\n' for w in ('woman','dog') for i in range(3)))
    done = in_process('score', strong, '--reference', here/'bare', '--drift', 4, '--out', tmp_path/'a.json')
    assert done.code==0, done.err
    rows = {(r['group'], r['metric']): r for r in json.loads((tmp_path/'a.json').read_text())['rows']}
    assert rows['all','drift']['value']>0 and rows['all','drift']['n']==8 and rows['all','class_drift']['n']==4 and 'drift' in done.out
    for name,model in (('run',strong), ('base','tiny')):
        assert in_process('sample', model, '--prompts', tmp_path/'p.tsv', '--literal', '--steps', 2, '--out', tmp_path/name).code==0
    for name in ('run','base'):
        done = in_process('score', tmp_path/name, '--reference', here/'bare', '--untouched', tmp_path/'base', '--out', tmp_path/f'{name}.json')
        assert done.code==0, done.err
    value = {n: next(r['value'] for r in json.loads((tmp_path/f'{n}.json').read_text())['rows'] if (r['group'], r['metric'])==('all','drift')) for n in ('run','base')}
    assert value['base']<1e-6<value['run']

def test_arms_of_every_kind_are_compared(here, trained, picture, tmp_path):
    ImageSet([picture(f'real{i}', people=i%2==0) for i in range(12)], 'real').save(tmp_path/'real')
    done = in_process('compare', '--ref', here/'ref', '--reference', tmp_path/'real', '--arm', f'done=run:{trained.folder}; strength=0.5', '--arm', 'other=base:tiny', '--arm', 'small=none; method=lora; rank=2',
                      '--seeds', 1, '--steps', '1', '--sampler', 1, '--recipe', here/'cheap.json', '--drift', 4, '--out', tmp_path/'s')
    assert done.code==0, done.err
    found = Results(tmp_path/'s')
    assert found.arms==['done','other','small'] and len(found.done)==3 and found.info['arms']['small']['method']==dict(name='lora', text_encoder=False, rank=2, targets='attention', alpha=None)
    assert 'Style against drift' in (tmp_path/'s'/'report.html').read_text('utf-8')
    alone = in_process('compare', '--ref', here/'ref', '--reference', tmp_path/'real', '--arm', 'base:tiny', '--seeds', 1, '--sampler', 1, '--out', tmp_path/'t')
    assert alone.code==0 and 'without a prior is added' not in alone.out and Results(tmp_path/'t').arms==['tiny']

# wrong calls

WRONG = {
    'no command': [], 'unknown command': ['paint'], 'unknown option': ['env', '--loud'], 'a missing option': ['train'], 'a missing value': ['sample', 'tiny', '--out'],
    'a word for a number': ['sample', 'tiny', '--prompt', 'a', '--out', 'x', '--n', 'many'], 'no prompt': ['sample', 'tiny', '--out', 'x'],
    'a training without pictures': ['train', '--out', 'x'], 'a size in words': ['sample', 'tiny', '--prompt', 'a', '--out', 'x', '--size', 'big'],
    'no arm': ['compare', '--out', 'x'], 'words for strengths': ['compare', '--arm', 'none', '--strengths', 'many', '--out', 'x'],
    'a share of no cluster': ['compare', '--arm', 'base:tiny', '--gpus', '1', '--out', 'x'],
    'two prompts': ['sample', 'tiny', '--prompt', 'a', '--prompts', 'b', '--out', 'x']}

@pytest.mark.parametrize('call', WRONG)
def test_a_wrong_call_ends_with_two(call):
    done = in_process(*WRONG[call])
    assert done.code==2 and 'Traceback' not in done.err and (done.err+done.out).strip()

TRAIN = ['train', '--ref', '{here}/ref', '--aux', '{here}/aux', '--recipe', '{here}/cheap.json', '--out', '{tmp}/out']
SAMPLE = ['sample', 'tiny', '--prompt', 'a dog', '--steps', '1', '--out', '{tmp}/out']
BAD = {
    'a missing ref': (['train', '--ref', '{tmp}/gone', '--aux', 'none', '--out', '{tmp}/out'], 'gone'),
    'a missing aux': (['train', '--ref', '{here}/ref', '--aux', '{tmp}/gone', '--out', '{tmp}/out'], 'gone'),
    'an unknown pool': (['train', '--ref', '{here}/ref', '--aux', 'world:gone', '--out', '{tmp}/out'], 'gone'),
    'a missing base': ([*TRAIN, '--base', '{tmp}/gone'], 'gone'),
    'an unknown preset': ([*TRAIN, '--preset', 'gone'], 'gone'),
    'an unknown method': ([*TRAIN, '--method', 'gone'], 'gone'),
    'an unknown precision': ([*TRAIN, '--precision', 'gone'], 'gone'),
    'an unknown tracker': ([*TRAIN, '--tracker', 'gone'], 'gone'),
    'a token of two words': ([*TRAIN, '--token', 'two words'], 'two words'),
    'an empty token': ([*TRAIN, '--token', ''], 'token'),
    'too few aux': ([*TRAIN, '--aux-count', '9'], '9'),
    'an aux-count of nought': ([*TRAIN, '--aux-count', '0'], '0'),
    'a generated aux-count of nought': (['train', '--ref', '{here}/ref', '--aux', 'generated', '--aux-count', '0', '--out', '{tmp}/out'], '0'),
    'no steps': ([*TRAIN, '--steps', '0'], '0'),
    'an empty batch': ([*TRAIN, '--batch', '0'], '0'),
    'a negative rate': ([*TRAIN, '--lr', '-1'], '-1'),
    'no steps between checkpoints': ([*TRAIN, '--checkpoint', '0'], '0'),
    'an odd resolution': ([*TRAIN, '--resolution', '63'], '63'),
    'a negative weight': ([*TRAIN, '--prior-weight', '-1'], '-1'),
    'a min-snr of nought': ([*TRAIN, '--min-snr', '0'], '0'),
    'a missing recipe': ([*TRAIN[:-4], '--recipe', '{tmp}/gone.json', '--out', '{tmp}/out'], 'gone.json'),
    'a recipe that is no JSON': ([*TRAIN[:-4], '--recipe', '{tmp}/words.txt', '--out', '{tmp}/out'], 'words.txt'),
    'a recipe that is a list': ([*TRAIN[:-4], '--recipe', '{tmp}/list.json', '--out', '{tmp}/out'], 'list.json'),
    'a recipe with a word for a number': ([*TRAIN[:-4], '--recipe', '{tmp}/typo.json', '--out', '{tmp}/out'], 'steps'),
    'an out that is a file': ([*TRAIN[:-2], '--out', '{tmp}/words.txt'], 'words.txt'),
    'an out that holds something': ([*TRAIN[:-2], '--out', '{here}'], '{here}'),
    'an out that holds a run': ([*TRAIN[:-2], '--out', '{here}/run'], 'run'),
    'no such model': (['sample', '{tmp}/gone', '--prompt', 'a', '--out', '{tmp}/out'], 'gone'),
    'pictures into a full folder': ([*SAMPLE[:-2], '--out', '{here}/ref'], 'ref'),
    'pictures into a file': ([*SAMPLE[:-2], '--out', '{tmp}/words.txt'], 'words.txt'),
    'no pictures': ([*SAMPLE, '--n', '0'], '0'),
    'no sampler steps': ([*SAMPLE, '--steps', '0'], '0'),
    'an unknown scheduler': ([*SAMPLE, '--scheduler', 'gone'], 'gone'),
    'missing prompts': (['sample', 'tiny', '--prompts', '{tmp}/gone.txt', '--out', '{tmp}/out'], 'gone.txt'),
    'prompts without rows': (['sample', 'tiny', '--prompts', '{tmp}/head.tsv', '--out', '{tmp}/out'], 'head.tsv'),
    'scores of nothing': (['score', '{tmp}/gone', '--reference', '{here}/ref'], 'gone'),
    'scores against nothing': (['score', '{here}/ref', '--reference', '{tmp}/gone'], 'gone'),
    'scores through nothing': (['score', '{here}/ref', '--reference', '{here}/aux', '--encoder', '{tmp}/gone'], 'gone'),
    'scores through words': (['score', '{here}/ref', '--reference', '{here}/aux', '--encoder', '{tmp}/words.txt'], 'words.txt'),
    'scores against what was trained on': (['score', '{here}/aux', '--reference', '{here}/ref', '--ref', '{here}/ref'], 'All 3'),
    'scores of a run that has not drawn': (['score', '{tmp}/run', '--reference', '{here}/ref'], 'no samples'),
    'scores with too few prompts': (['score', '{here}/aux', '--reference', '{here}/ref', '--prompts', '{here}/prompts.tsv'], '4 pictures and 2 prompts'),
    'a check of nothing': (['check', '{tmp}/gone', '--out', '{tmp}/check.html'], 'gone'),
    'a check of no folder': (['check', '--out', '{tmp}/check.html'], '--ref DIR'),
    'a check of one set twice': (['check', '--ref', '{here}/ref', 'ref={here}/aux', '--out', '{tmp}/check.html'], 'other='),
    'a check of two folders of one name': (['check', '{here}/ref', 'ref={here}/aux', '--out', '{tmp}/check.html'], 'other='),
    'a check over a file of yours': (['check', '{here}/ref', '--out', '{tmp}/words.txt'], 'words.txt'),
    'a check for no square': (['check', '{here}/ref', '--resolution', '0', '--out', '{tmp}/check.html'], '8 or more'),
    'introstyle through nothing': (['score', '{here}/ref', '--reference', '{here}/aux', '--encoder', 'introstyle', '--out', '{tmp}/out.json'], 'introstyle:tiny'),
    'a suggestion from nowhere': (['suggest', '--ref', '{here}/ref', '--pool', '{tmp}/gone', '--out', '{tmp}/out'], 'gone'),
    'a suggestion of generated ones': (['suggest', '--ref', '{here}/ref', '--pool', 'generated', '--out', '{tmp}/out'], 'generated'),
    'a suggestion of too many': (['suggest', '--ref', '{here}/ref', '--pool', '{here}/aux', '--k', '5', '--out', '{tmp}/out'], '5'),
    'a suggestion over a file': (['suggest', '--ref', '{here}/ref', '--pool', 'world:micah', '--k', '2', '--out', '{tmp}/words.txt'], 'words.txt'),
    'a suggestion over a sheet': (['suggest', '--ref', '{here}/ref', '--pool', 'world:micah', '--k', '2', '--out', '{tmp}/sheet'], 'sheet.png'),
    'a share of people above one': (['suggest', '--ref', '{here}/ref', '--pool', 'world:micah', '--people', '2', '--out', '{tmp}/out'], '2'),
    'training on a suggestion from nowhere': (['train', '--ref', '{here}/ref', '--aux', 'suggest:{tmp}/gone', '--out', '{tmp}/out'], 'gone'),
    'a study of an unknown style': (['compare', '--style', 'gone', '--aux', 'none', '--out', '{tmp}/out'], 'gone'),
    'a study of nothing': (['compare', '--aux', '{tmp}/gone', '--out', '{tmp}/out'], 'gone'),
    'a study without pictures to score against': (['compare', '--ref', '{here}/ref', '--aux', 'none', '--out', '{tmp}/out'], '--reference'),
    'a study scored against what it trains on': (['compare', '--ref', '{here}/ref', '--reference', '{here}/ref', '--aux', 'none', '--out', '{tmp}/out'], 'reward copying'),
    'a study with words for steps': (['compare', '--aux', 'none', '--steps', 'many', '--out', '{tmp}/out'], 'many'),
    'a study without seeds': (['compare', '--aux', 'none', '--seeds', '0', '--out', '{tmp}/out'], '0'),
    'a study with two arms of a name': (['compare', '--aux', 'world:micah', '--aux', 'micah={here}/aux', '--out', '{tmp}/out'], 'micah'),
    'a study among other things': (['compare', '--aux', 'none', '--out', '{here}'], '{here}'),
    'a study of an unknown base': (['compare', '--aux', 'none', '--base', '{tmp}/gone', '--out', '{tmp}/out'], 'gone'),
    'an export of nothing': (['export', '{tmp}/gone', '--out', '{tmp}/out'], 'gone'),
    'an export of a step that was not kept': (['export', '{here}/run', '--at', '1', '--out', '{tmp}/out'], 'step 1'),
    'a base at a step': (['sample', 'tiny', '--at', '1', '--prompt', 'x', '--out', '{tmp}/out'], '--at'),
    'a strength beyond its range': (['sample', '{here}/run', '--strength', '2', '--prompt', 'x', '--out', '{tmp}/out'], 'The strength is 2'),
    'an export at a strength of nought': (['export', '{here}/run', '--strength', '0', '--out', '{tmp}/out'], 'nothing to export'),
    'a mix with a base': ([*SAMPLE, '--mix', '{here}/run=1'], '--mix goes with'),
    'a mix without a strength': (['sample', '{here}/run', '--mix', '{here}/run', '--prompt', 'x', '--out', '{tmp}/out'], 'a run and a strength'),
    'a mix with no run': (['sample', '{here}/run', '--mix', '{tmp}/gone=1', '--prompt', 'x', '--out', '{tmp}/out'], 'is no run'),
    'a strength of a base': ([*SAMPLE, '--strength', '0.5'], '--strength goes with'),
    'a LoRA that is not there': ([*SAMPLE, '--lora', '{tmp}/gone.safetensors'], 'There is no LoRA'),
    'a LoRA on a run': (['sample', '{here}/run', '--lora', '{tmp}/x.safetensors', '--prompt', 'x', '--out', '{tmp}/out'], '--lora goes with a base'),
    'a LoRA that is words': ([*SAMPLE, '--lora', '{tmp}/words.txt'], 'no .safetensors file'),
    'drift of pictures': (['score', '{here}/aux', '--reference', '{here}/bare', '--drift', '4'], '--drift draws with a run'),
    'drift beside other prompts': (['score', '{here}/aux', '--reference', '{here}/bare', '--untouched', '{here}/ref'], 'same prompts in the same order'),
    'an arm that is not there': (['compare', '--arm', 'run:{tmp}/gone', '--out', '{tmp}/out'], 'gone'),
    'an arm with a wrong setting': (['compare', '--arm', 'lora:x.safetensors; weight=2', '--out', '{tmp}/out'], 'weight'),
    'a study at a strength beyond its range': (['compare', '--arm', 'none', '--strengths', '1,2', '--out', '{tmp}/out'], 'The strength is 2'),
    'an export to an unknown layout': (['export', '{here}/run', '--to', 'gone', '--out', '{tmp}/out'], 'gone'),
    'an export into a file': (['export', '{here}/run', '--out', '{tmp}/words.txt'], 'words.txt'),
    'a demo of an unknown style': (['demo', '--style', 'gone', '--out', '{tmp}/out'], 'gone'),
    'a demo with an unknown pool': (['demo', '--aux', 'gone', '--out', '{tmp}/out'], 'gone')}

@pytest.mark.parametrize('what', BAD)
def test_a_mistake_ends_in_one_sentence_and_leaves_no_output(here, trained, tmp_path, monkeypatch, what):
    monkeypatch.setattr(priors, 'sample', lambda *a, **kw: pytest.fail('pictures were generated'))
    (tmp_path/'words.txt').write_text('words'); (tmp_path/'list.json').write_text('[1]'); (tmp_path/'head.tsv').write_text('prompt\tpeople\n')
    (tmp_path/'typo.json').write_text('{"steps": "many"}'); (tmp_path/'sheet.png').write_bytes(b'mine')
    (tmp_path/'run').mkdir(); (tmp_path/'run'/'recipe.json').write_text('{}')
    fill = lambda text: text.format(here=here, tmp=tmp_path)
    args, word = BAD[what]
    refusal(in_process(*map(fill, args)), fill(word))
    assert not (tmp_path/'out').exists() and (tmp_path/'words.txt').read_text()=='words'

# as a process

def process(*args, cwd, **env):
    heard = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)     # a shell's background jobs are deaf to Ctrl-C
    return subprocess.Popen([sys.executable, '-m', 'styleboost.cli', *map(str, args)], cwd=cwd, env=os.environ|env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heard)

def test_a_mistake_is_one_line_and_a_status_from_anywhere_without_a_home(tmp_path):
    p = process('sample', 'nowhere', '--prompt', 'a', '--out', 'x', cwd=tmp_path, HOME='/nowhere')
    out, err = p.communicate(timeout=200)
    assert p.returncode==1 and not out and len(err.splitlines())==1 and err.startswith('styleboost: nowhere') and not list(tmp_path.iterdir())

def test_a_lora_for_another_base_is_one_line(strong, tmp_path):
    file = tmp_path/'other.safetensors'
    assert in_process('export', strong, '--to', 'kohya', '--out', file).code==0
    save_file({k: torch.cat([v, v], 1) if k.endswith('lora_down.weight') else v for k,v in load_file(file).items()}, file)
    p = process('sample', 'tiny', '--lora', file, '--prompt', 'a dog', '--out', 'x', cwd=tmp_path)
    out, err = p.communicate(timeout=200)
    assert p.returncode==1 and not out and len(err.splitlines())==1 and err.startswith(f'styleboost: {file} does not fit') and 'draw with the base' in err

def test_with_debug_a_mistake_shows_where_it_happened():
    done = in_process('--debug', 'sample', 'nowhere', '--prompt', 'a', '--out', 'x')
    assert done.code==1 and 'Traceback' in done.err and 'StyleboostError: nowhere' in done.err

def test_control_c_keeps_the_work_and_says_so(here, tmp_path):
    p = process('train', '--ref', here/'ref', '--aux', 'none', '--recipe', here/'cheap.json', '--steps', 5000, '--checkpoint', 5000, '--out', 'run', cwd=tmp_path)
    end = time.time()+200
    while not (tmp_path/'run'/'log.jsonl').exists() and p.poll() is None and time.time()<end: time.sleep(.05)
    p.send_signal(signal.SIGINT)
    out, err = p.communicate(timeout=60)
    run = Run(tmp_path/'run')
    assert p.returncode in (1, 130) and 'Traceback' not in err
    assert run.checkpoint and json.loads((run.checkpoint/'state.json').read_text())['step']>=10
    assert re.search(r'Stopped after \d+ of 5000 steps; resume to go on\.', err)

def test_a_batch_that_two_processes_cannot_share_is_refused_in_one_sentence(here, tmp_path):
    call = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2', '-m', 'styleboost.cli', 'train', '--ref', here/'ref', '--aux', 'none', '--recipe', here/'cheap.json', '--out', 'run']
    done = subprocess.run([*map(str, call)], cwd=tmp_path, env=os.environ|dict(ACCELERATE_USE_CPU='true', OMP_NUM_THREADS='1'), capture_output=True, text=True, timeout=200)
    assert done.returncode and 'cannot be shared by 2 processes' in done.stderr and not (tmp_path/'run').exists()

def test_a_plan_is_told_without_reading_weights(tmp_path, base_copy):
    folder = base_copy(tmp_path/'base')
    for f in folder.rglob('*.safetensors'): f.write_bytes(b'')
    done = in_process('plan', '--base', folder, '--method', 'lora', '--no-text-encoder', '--device', 'cpu')
    assert done.code==0 and re.search(r'about \d+\.\d+ GB at the peak', done.out), done.err
    refusal(in_process('plan', '--base', folder, '--memory', '0.0001GB', '--batch', 1, '--no-text-encoder', '--device', 'cpu'), 'to prepare the pictures')
    refusal(in_process('plan', '--base', folder, '--device', 'T4'), "'T4' is no device")

def test_a_plan_describes_a_gpu_that_is_not_here(base_copy, tmp_path):
    told = lambda *args: in_process('plan', '--base', base_copy(tmp_path/str(len(args))), '--method', 'lora', *args).out
    assert 'precision bf16' in told() and 'precision fp16' in told('--precision', 'fp16') and 'in 2 processes' in told('--processes', 2, '--prior', 'generated', '--checkpointing')
