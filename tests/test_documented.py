"""Every command that README, docs, experiments and tools show is started, and every snippet is run.

They start in a directory that has the files they name, in one process. A command runs as it is shown, with what `SMALL`
adds, until it calls one of the functions in `UNTIL`: by then its arguments, its config and its files are right, and the
long part begins. Commands of tools that have no entry there run to their end.
"""

import contextlib
import gzip
import importlib
import importlib.util
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys
import traceback
import types

import documented
from documented import ROOT
import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from llm_jax import config as config_lib
from llm_jax.config.schema import ConfigError
from llm_jax.corpus import schema as corpus_schema

# Tool -> functions at which it counts as started: 'module:name', or ':name' of the tool itself. A tool without any is
# run to its end, with what SMALL adds.
UNTIL = {
    'bench_data': ('bench_data_dedup:first',),
    'bench_data_dedup': (':speeds',),
    'bench_data_extract': (':f1',),
    'bench_data_filter': (':start_peer',),
    'bench_data_read': (':_in_turns',),
    'bench_decode': (':make',),
    'bench_experts': (':measure',),
    'bench_input': ('llm_jax.data.prepare:prepare',),
    'bench_plan': ('subprocess:run', ':worked'),
    'bench_serve': (':measure',),
    'bench_train': (':measure', ':start_peers'),
    'chat': ('llm_jax.generate.respond:Responder',),
    'compare': ('llm_jax.evals.compare:compare_runs',),
    'compare_data': ('llm_jax.lab.compare_data:compare',),
    'convert': tuple(f'llm_jax.interop.convert:{name}' for name in ('from_hf', 'to_hf', 'quantise_run')),
    'coord_check': ('llm_jax.data.prepare:prepare',),
    'evaluate': ('llm_jax.evals.texts:score', 'llm_jax.evals.run:Evaluation'),
    'extrapolate': ('llm_jax.data.prepare:prepare',),
    'launch': (),
    'make_references': (':write',),
    'mup_transfer': ('llm_jax.data.prepare:prepare',),
    'plan': ('llm_jax.plan.topology:compiler', 'llm_jax.plan.topology:no_cuda'),
    'prepare_data': ('llm_jax.corpus.build:build',),
    'profile_run': ('llm_jax.train.profiling:profile_run',),
    'report': (),
    'sample': ('llm_jax.generate.text:stream',),
    'sandbox': (':check', ':run', 'llm_jax.evals.sandbox.attacks:run_command'),
    'serve': ('llm_jax.serve.run:make_server',),
    'show': ('llm_jax.hub:fetch_tokenizer',),
    'train': ('llm_jax.train.loop:train', 'llm_jax.train.restart:supervise'),
    'train_main_text': (':fit',),
    'train_quality': ('llm_jax.corpus.quality:train',),
}
# Checks of the checkout rather than the command; tests/launch has theirs.
NOT_HERE = {'launch': (':_check_tracked',)}
# Of ./tools/run itself; tests/test_commands.py starts what it can of them.
OF_THE_SCRIPT = ('', 'test', 'lock')
# Programs of tools/ that are no tools, with the test that starts each.
PROGRAMS = {'bench_gpu.sh': 'tests/test_bench_gpu.py'}
# A run that takes a second, for all that needs one.
_TINY_RUN = [f'--config.{field}' for field in (
    'model.d_model=32', 'model.n_layers=1', 'model.n_heads=2', 'data.seq_len=16', 'data.sources=text:input.txt',
    'data.split_by=place', 'data.tokenizer.kind=bytes', 'train.duration=1', 'train.eval_every=0',
    'train.sample_every=0',
)]  # fmt: skip
_TEXT = 'The tide clock of the town is slow.\nTwelve boats sleep under the rain, and def f(x): return x.\n'


class Started(BaseException):
    """A tool has called the function at which it counts as started."""


def start(name, arguments, until=None):
    """Starts a tool with arguments; returns what went wrong, or None.

    Args:
      name: of the tool.
      arguments: of the command.
      until: functions at which it counts as started; by default those of `UNTIL`.
    """

    def stop(*args, **kwargs):
        raise Started

    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        patch.setattr(sys, 'argv', [name, *arguments])
        try:
            module = documented.load_tool(name)
            replaced = dict.fromkeys(UNTIL[name] if until is None else until, stop)
            for place, function in (replaced | dict.fromkeys(NOT_HERE.get(name, ()), lambda *args: None)).items():
                where, _, attribute = place.partition(':')
                patch.setattr(importlib.import_module(where) if where else module, attribute, function)
            module.main(arguments)
        except Started:
            return None
        except SystemExit as end:
            return None if not end.code else f'ends with {end.code}: {out.getvalue()[-500:]}'
        except (ConfigError, OSError) as error:
            return f'{type(error).__name__}: {error}'
        except Exception:
            return traceback.format_exc()
    if until is None and UNTIL[name] and not whole(name, arguments):
        return (
            f'it came to its end without calling one of {UNTIL[name]}: correct UNTIL in {pathlib.Path(__file__).name}'
        )
    return None


def whole(name, arguments):
    """True for commands that are short enough to end, though others of their tool are not."""
    return name == 'show' or (name == 'plan' and '--analytic' in arguments)


def fill(directory):
    """Files of the names that documents use, small."""
    for name in ('X', 'SMALLER'):
        shutil.copytree(directory / 'runs/NAME', directory / 'runs' / name)
    (directory / 'experiments/X.py').symlink_to(ROOT / 'experiments/quickstart.py')
    (directory / 'X.py').symlink_to(ROOT / 'experiments/data/stdlib.py')
    lines = lambda *rows: ''.join(json.dumps(row) + '\n' for row in rows).encode()
    text = lines(*({'text': f'{i}. {_TEXT}'} for i in range(20)))
    labelled = lines(*({'text': f'{i}. {_TEXT}', 'label': i % 2} for i in range(20)))
    page = lines({'html': f'<p>{_TEXT}</p>', 'url': 'http://a.b/c', 'page_type': 'article', 'main_content': _TEXT})
    gz, zst = gzip.compress, zstandard.compress
    for name, content in {
        'books/a.txt': _TEXT.encode(), 'wiki.txt': _TEXT.encode(), 'FILE': text,
        'web/a.jsonl.zst': zst(text), 'web.jsonl.gz': gz(text), 'labelled.jsonl.gz': gz(labelled),
        'pages.jsonl.gz': gz(labelled), 'wiki/a.zst': zst(text), 'crawl/a.zst': zst(text), 'quality.safetensors': b'',
        'wikitext2/test.txt.gz': gz(_TEXT.encode()), 'test.txt.gz': gz(_TEXT.encode()), 'FILE.jsonl': text,
        'PAIRS.jsonl': text,
        'FILE.jsonl.gz': gz(text), 'tinystories/valid.jsonl.gz': gz(text), 'valid.jsonl.gz': gz(text),
        '.venv/lib/python3.13/site-packages/flax/linen/a.py': b'x = 1\n', 'DIR/web/wcxb_dev.jsonl.zst': zst(page),
        'DIR/wikipedia/a.jsonl.zst': zst(text), 'stories/train1.jsonl.gz': gz(text),
    }.items():  # fmt: skip
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)
    (directory / 'fineweb').mkdir()
    pyarrow.parquet.write_table(
        pyarrow.table({'text': [_TEXT], 'url': ['http://a.b']}), directory / 'fineweb/a.parquet'
    )


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    """A directory as a user has it after the first commands: input files, a run, and it as a Hugging Face directory."""
    directory = tmp_path_factory.mktemp('home')
    (directory / 'experiments').mkdir()
    for path in (ROOT / 'experiments').iterdir():
        (directory / 'experiments' / path.name).symlink_to(path)
    with contextlib.chdir(directory):
        pathlib.Path('input.txt').write_text(40 * _TEXT)
        assert start('train', ['experiments/quickstart.py', *_TINY_RUN], ()) is None
        assert start('convert', ['--from', 'runs/quickstart', '--to', 'hf:DIR'], ()) is None
        assert start('convert', ['--from', 'hf:DIR', '--to', 'runs/NAME'], ()) is None
        fill(directory)
        yield directory


def test_every_command_starts(home, monkeypatch):
    monkeypatch.setenv('LLM_JAX_DATA', str(home / 'DIR'))
    if not importlib.util.find_spec('apache_beam'):  # an environment of its own has it
        engine = types.SimpleNamespace(close=lambda: None)
        beam = types.SimpleNamespace(Beam=lambda options: engine)
        monkeypatch.setitem(sys.modules, 'llm_jax.corpus.engines.beam', beam)
    blocks = [block for block in documented.fenced() if block.language == 'bash'] + documented.own_commands()
    wrong, started = [], set()
    for block in blocks:
        for program, *arguments in documented.record(block, home, ['run', *PROGRAMS]):
            if program != 'run' or (arguments[0] if arguments else '') in OF_THE_SCRIPT or tuple(arguments) in started:
                continue
            name, *rest = ['experiments/quickstart.py' if argument == '...' else argument for argument in arguments]
            started.add(tuple(arguments))
            command = f'{block.where}: ./tools/run {" ".join(arguments)}'
            if name not in UNTIL:
                wrong.append(f'{command}\n  tool {name!r} has no entry in UNTIL of {pathlib.Path(__file__).name}')
            elif reason := start(name, rest):
                wrong.append(f'{command}\n  {reason}')
    assert not wrong, '\n'.join(wrong)
    # What plans write belongs to their experiments, in a directory that git ignores.
    assert list(home.glob('plans/llama3_8b-*.html')) and not list(home.glob('*.html'))
    assert len(started) > 60  # that many there are: the search for them works


def test_every_experiment_shows_its_command():
    shown = {block.where.partition(':')[0] for block in documented.own_commands()}
    files = {str(file.relative_to(ROOT)) for file in (ROOT / 'experiments').rglob('*.py')}
    assert not files - shown


def test_every_tool_has_an_entry():
    names = {file.stem for file in (*(ROOT / 'tools').glob('*.py'), *(ROOT / 'tools/bench').glob('*.py'))}
    assert names == set(UNTIL)
    scripts = {file.name for file in (ROOT / 'tools').glob('*.sh')}
    assert scripts == set(PROGRAMS) and all((ROOT / test).exists() for test in PROGRAMS.values())


def test_every_snippet_runs(home, tmp_path, monkeypatch):
    """An experiment or a part is loaded as a file, anything else is executed beside the run and the directory."""
    monkeypatch.chdir(home)
    monkeypatch.setenv('LLM_JAX_DATA', str(home / 'DIR'))
    snippets = [block for block in documented.fenced() if block.language == 'python']
    wrong = []
    for i, block in enumerate(snippets):
        if 'evals.answers import code' in block.text and not shutil.which('bwrap'):
            continue  # it runs a program in the sandbox, which needs bubblewrap
        file = tmp_path / f'snippet_{i}.py'
        file.write_text(block.text)
        try:
            values = {'__name__': f'snippet_{i}', '__file__': str(file)}
            exec(compile(block.text, str(file), 'exec'), values)
            if 'get_config' in values:
                if 'stages' in values['get_config']():
                    corpus_schema.load(str(file), {})
                else:
                    config_lib.validate(config_lib.load_experiment(file))
        except Exception:
            wrong.append(f'{block.where}: {traceback.format_exc()}')
    assert not wrong, '\n'.join(wrong)
    assert len(snippets) >= 5


def test_other_blocks_are_drawings_or_known_languages():
    """A block without a language is text; commands in it would be started by nothing."""
    for block in documented.fenced():
        assert block.language in ('', 'bash', 'python'), f'{block.where}: give it a language that a test starts'
        if not block.language:
            assert './tools/' not in block.text, f'{block.where}: begin the block with ```bash'


def test_a_block_that_bash_refuses_is_found(tmp_path):
    block = documented.Block('x.md:1', 'bash', "./tools/run train 'a b' $HOME_OF_NOBODY\n")
    with pytest.raises(AssertionError, match='x.md:1: bash says .*HOME_OF_NOBODY'):
        documented.record(block, tmp_path, ['run'])
    block = documented.Block('x.md:1', 'bash', "web='a b'\nA=1 ./tools/run train \"$web\" --b='' # no\n./tools/run\n")
    assert documented.record(block, tmp_path, ['run']) == [['run', 'train', 'a b', '--b='], ['run']]


def test_the_library_is_found_outside_of_its_directory(tmp_path):
    """As README says: by PYTHONPATH."""
    environment = {'PATH': os.environ['PATH'], 'PYTHONPATH': str(ROOT)}
    command = [sys.executable, '-c', 'import llm_jax.config, sys; print("jax" in sys.modules)']
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == 'False\n'
