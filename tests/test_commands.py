"""What `./tools/run` offers."""

import argparse
import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import documented
import pytest

from llm_jax.config import cli
from llm_jax.config.schema import ConfigError

TOOLS = pathlib.Path(__file__).parents[1] / 'tools'


def run(*arguments, **environment):
    command = ['bash', str(TOOLS / 'run'), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | environment)


def test_every_tool_is_listed_once_with_what_it_does():
    lines = [line.split(maxsplit=1) for line in run().stdout.splitlines() if line.startswith('  ')]
    assert all(len(line) == 2 for line in lines)
    names = [name for name, _ in lines]
    expected = [file.stem for file in (*TOOLS.glob('*.py'), *TOOLS.glob('bench/*.py'))]
    assert sorted(names) == sorted([*expected, 'test', 'lock'])
    assert names[0] == 'prepare_data' and names.index('train') < names.index('sample') < names.index('bench_train')


def test_an_unknown_tool_is_told_the_others():
    done = run('no_such_tool')
    assert done.returncode == 2
    assert "no tool 'no_such_tool'" in done.stderr and 'bench_train' in done.stderr


@pytest.mark.parametrize('python', ['/no/such/python', '/bin/true', '/bin/ls'])
def test_an_interpreter_that_is_none_is_told(python):
    done = run('show', LLM_JAX_PYTHON=python)
    assert done.returncode == 2 and done.stdout == ''
    assert done.stderr.startswith(f'tools/run: LLM_JAX_PYTHON={python} is no Python of 3.11') and 'unset' in done.stderr


def test_an_interpreter_without_packages_is_told(tmp_path):
    bare = tmp_path / 'python'
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S -E "$@"\n')
    bare.chmod(0o755)
    done = run('show', LLM_JAX_PYTHON=str(bare))
    assert done.returncode == 2 and 'lacks the packages jax flax' in done.stderr and 'pip install -r' in done.stderr


def test_help_of_every_tool_is_immediate():
    """It needs no JAX, which takes seconds to import, and no drawing: asked of all tools in one process."""
    ask = """
import contextlib, importlib.util, io, json, pathlib, sys
told = {}
for file in map(pathlib.Path, sys.argv[1:]):
    sys.path.insert(0, str(file.parent))
    spec = importlib.util.spec_from_file_location(file.stem, file)
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out):
            module.main(['--help'])
    except SystemExit as end:
        imported = [name for name in ('jax', 'matplotlib', 'torch') if name in sys.modules]
        told[file.stem] = end.code, out.getvalue(), imported
print(json.dumps(told))
"""
    files = [str(file) for file in (*sorted(TOOLS.glob('*.py')), *sorted(TOOLS.glob('bench/*.py')))]
    done = subprocess.run([sys.executable, '-c', ask, *files], capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)
    assert len(told) == len(files)
    for name, (code, text, imported) in told.items():
        assert (code, imported) == (0, []), name
        assert text.startswith(f'usage: {name} ') and '--debug' in text
        options = text.partition('options:')[2].split('\n  -')[1:]
        assert all(len(option.split(maxsplit=1)) == 2 for option in options), name


@pytest.fixture(scope='module')
def awkward_files(tmp_path_factory):
    directory = tmp_path_factory.mktemp('awkward')
    for name, text in {
        'other.jsonl': '{"a": 1}\n',
        'text.jsonl': 'no JSON\n',
        'empty.jsonl': '',
        'text.txt': 99 * 'ab ',
    }.items():
        (directory / name).write_text(text)
    (directory / 'nothing').mkdir()
    return directory


@pytest.mark.parametrize(
    ('command', 'message'),
    [
        ('bench_data nowhere', 'nowhere/wikipedia/*.jsonl.zst: there is no such file'),
        ('bench_data_dedup nowhere.jsonl', "FILE: no file matches 'nowhere.jsonl'"),
        ('bench_data_dedup nothing', 'it is a directory: write nothing/*'),
        ('bench_data_dedup other.jsonl', "other.jsonl:1 is no object with 'text'"),
        ('bench_data_dedup text.jsonl', 'text.jsonl:1 is not JSON'),
        ('bench_data_dedup empty.jsonl', 'no text in empty.jsonl'),
        ('bench_data_extract nothing', "DIR: no file matches 'nothing/web/wcxb_dev.jsonl.zst'"),
        ('bench_data_filter --texts nowhere', "--texts: no file matches 'nowhere'"),
        ('bench_data_filter --peer nowhere/python', "'nowhere/python'"),
        ('bench_data_read --path nowhere/*', "no file matches 'nowhere/*'"),
        ('bench_input --source text:nowhere', "no file matches 'nowhere'"),
        ('bench_plan --only speed', "there is no 'speed'; there are flops"),
        ('bench_train --experiment nowhere.py', 'there is no file nowhere.py'),
        ('convert --from llama2c:text.txt --to out', 'text.txt is no llama2.c file'),
        ('convert --from llama2c:nowhere --to out', "'nowhere'"),
        ('convert --from nowhere --to hf:out', 'nowhere is not a run directory'),
        ('convert --from a --to b', 'one of them has to be a run directory'),
        ('evaluate nowhere --text a=text:nowhere.txt', "no file matches 'nowhere.txt'"),
        ('profile_run nowhere --steps 5:3', "'5:3' is no span of steps"),
        ('report nothing', 'nothing is not a run directory'),
        ('sample nowhere --seed 99999999999999999999', 'argument --seed: 99999999999999999999 must be below 2^63'),
        ('sample nowhere --prompt_file nothing', "'nothing'"),
        ('train_main_text nowhere', "PAGES: no file matches 'nowhere'"),
        ('train_main_text other.jsonl', "other.jsonl:1 is no object with 'html'"),
        ('train_main_text empty.jsonl', 'give pages of more sites'),
        ('train_quality nowhere --out q', "labelled: no file matches 'nowhere'"),
        ('train_quality text.jsonl --out q', 'text.jsonl:1'),
        ('show nowhere', "'nowhere' is no experiment"),
    ],
)  # fmt: skip
def test_a_wrong_path_or_number_is_one_line(awkward_files, monkeypatch, command, message):
    monkeypatch.chdir(awkward_files)
    name, *arguments = command.split()
    with pytest.raises((ConfigError, OSError)) as error:
        documented.load_tool(name).main(arguments)
    assert message in str(error.value) and '\n' not in str(error.value)


def test_what_another_program_fails_at_is_one_line(capsys):
    def main(argv):
        subprocess.run([sys.executable, '-c', 'raise SystemExit(3)'], check=True)

    with pytest.raises(SystemExit) as end:
        cli.run(main, [])
    told = capsys.readouterr().err
    assert end.value.code == 2 and told.startswith('error: ') and 'exit status 3' in told


@pytest.mark.skipif(importlib.util.find_spec('torch') is not None, reason='torch is installed')
def test_references_need_torch():
    with pytest.raises(ConfigError, match=r'needs torch and transformers .*test parity.* sets up .venv-parity'):
        documented.load_tool('make_references').main([])


class TestParser:
    @staticmethod
    def parser():
        parser = cli.Parser('tool', 'A tool.')
        parser.add_argument('experiment')
        parser.add_argument('--workdir')
        parser.add_argument('--rows', type=cli.at_least(1), default=4)
        parser.add_argument('--text', action='append')
        return parser

    @pytest.mark.parametrize(
        ('arguments', 'message'),
        [
            (['--wrkdir', 'x'], "unknown option '--wrkdir'; did you mean '--workdir'?"),  # not the missing experiment
            (['x.py', '--rowss=3'], "unknown option '--rowss'; did you mean '--rows'?"),
            (['x.py', '--zzz'], "unknown option '--zzz'; `./tools/run tool --help` says what there is"),
            (
                ['x.py', '--train.batch_size=8'],
                "'--train.batch_size'; fields of the config are set as --config.a.b=value",
            ),
            (['x.py', '--work', 'd'], "unknown option '--work'"),  # no abbreviations
            (['x.py', 'y.py'], "unknown argument 'y.py'"),
            ([], 'the following arguments are required: experiment'),
            (['x.py', '--rows', '0'], 'argument --rows: 0 must be at least 1'),
            (['x.py', '--rows=-3'], 'argument --rows: -3 must be at least 1'),
            (['x.py', '--rows', 'many'], "argument --rows: 'many' is no integer"),
            (['x.py', '--config.a.b'], '--config.a.b has no value; write --config.a.b=value'),
            (['x.py', '--config.a.b', '--rows=3'], '--config.a.b has no value'),
        ],
    )
    def test_mistakes(self, arguments, message):
        with pytest.raises(ConfigError) as error:
            self.parser().parse_with_config(arguments)
        assert message in str(error.value) and '\n' not in str(error.value)

    def test_fields_of_the_config_may_stand_anywhere(self):
        arguments = ['--config.a.b=1', '--config.mesh.fsdp', '-1', 'x.py', '--rows', '2', '--config.c= two words']
        args, fields = self.parser().parse_with_config(arguments)
        assert (args.experiment, args.rows) == ('x.py', 2)
        assert cli.overrides(fields) == {'a.b': '1', 'mesh.fsdp': '-1', 'c': ' two words'}

    def test_a_value_may_begin_with_dashes(self):
        args = self.parser().parse(['x.py', '--text', '-- he said', '--text=--rows'])
        assert args.text == ['-- he said', '--rows']

    def test_options_of_another_program(self):
        ours, others = self.parser().split_known(['x.py', '--rows', '2', '--runner', 'R', '--zone=z', 'y', '--debug'])
        assert (ours, others) == (['x.py', '--rows', '2', 'y', '--debug'], ['--runner', 'R', '--zone=z'])


def test_lists_of_sizes():
    assert cli.sizes('256,64') == [64, 256]
    for text in ('0,64', '64,64', '64,', 'a'):
        with pytest.raises(argparse.ArgumentTypeError, match='integers'):
            cli.sizes(text)
