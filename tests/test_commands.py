"""What `./tools/run` offers."""

import pathlib
import subprocess

TOOLS = pathlib.Path(__file__).parents[1] / 'tools'


def run(*arguments):
    return subprocess.run(['bash', str(TOOLS / 'run'), *arguments], capture_output=True, text=True, check=False)


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
