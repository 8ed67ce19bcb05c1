"""Verdicts: solutions pass by what they return alone."""
# ruff: noqa: E501 (programs on one line)

import pytest

from llm_jax.evals.sandbox import Limits, Sandbox, Suite

TESTS = Suite(['add'], '', 'assert add(2, 3) == 5\nassert add([1], [2]) == [1, 2]\nassert add(4, -4) == 0\n')
RIGHT = 'def add(a, b):\n    return a + b\n'


def test_right_and_wrong(sandbox: Sandbox) -> None:
    assert sandbox.judge(RIGHT, TESTS).passed
    verdict = sandbox.judge('def add(a, b):\n    return a - b\n', TESTS)
    assert verdict.status == 'failed' and 'assert add(2, 3) == 5' in verdict.reason
    assert 'ZeroDivisionError' in sandbox.judge('1 / 0', TESTS).reason
    assert 'SyntaxError' in sandbox.judge('def', TESTS).reason
    assert 'KeyError' in sandbox.judge('x = 1', TESTS).reason


def test_the_solution_may_print_and_read_and_fork(sandbox: Sandbox) -> None:
    noisy = "import os, sys\nprint('x' * 100000)\nos.write(1, b'junk')\nsys.stdin.read()\n"
    assert sandbox.judge(noisy + RIGHT.replace('return', "print('y' * 9999); return"), TESTS).passed


FORGED = {
    'exit': 'import os\nos._exit(0)',
    'exit in a call': 'import os\ndef add(a, b): os._exit(0)',
    'system exit': 'def add(a, b): raise SystemExit(0)',
    'equal to everything': 'class Y:\n    __eq__ = lambda s, o: True\n    __ne__ = lambda s, o: False\n    __hash__ = None\ndef add(a, b): return Y()',
    'list equal to everything': 'class Y(list):\n    __eq__ = lambda s, o: True\n    __hash__ = None\ndef add(a, b): return Y()',
    'int equal to everything': 'class Y(int):\n    __eq__ = lambda s, o: True\n    __hash__ = None\ndef add(a, b): return Y(7)',
    'builtins': 'import builtins\nbuiltins.AssertionError = SystemExit\nbuiltins.exec = print\ndef add(a, b): return 0',
    'markers': "import os\nfor fd in range(1, 30):\n    for word in (b'passed', b'True', b'B1:'):\n        try: os.write(fd, word)\n        except OSError: pass\ndef add(a, b): return 0",
    'a whole verdict on every descriptor': "import os\nfor fd in range(1, 60):\n    try: os.write(fd, b'0000000bu2:B1:s0:')\n    except OSError: pass\ndef add(a, b): return 0",
    'answers ahead': "import os\nfor fd in range(3, 60):\n    for _ in range(9):\n        try: os.write(fd, b'0000000du2:s5:valueN0:')\n        except OSError: pass\ndef add(a, b): return 0",
    'tests in frames': 'import sys, gc\ndef add(a, b):\n    text = repr([o for o in gc.get_objects() if isinstance(o, str)])\n    f = sys._getframe(1)\n    while f: text += repr(f.f_locals); f = f.f_back\n    return eval(text.split("== ")[1].split("\\\\n")[0]) if "assert add" in text else 0',
    'tests in files': "import glob\ntext = ''\nfor path in glob.glob('/program/*') + glob.glob('/proc/*/cmdline'):\n    text += open(path, errors='ignore').read()\nassert 'add(2' not in text\ndef add(a, b): return 0",
    'stop iteration': 'def add(a, b): raise StopIteration',
    'if false': 'def add(a, b): return 0\nraise SystemExit(0)\nif False:\n    pass',
    'no answer': 'import threading\ndef add(a, b):\n    import time; time.sleep(60)',
    'too much': "def add(a, b): return 'x' * (1 << 26)",
    'deep': 'def add(a, b):\n    x = []\n    for _ in range(100000): x = [x]\n    return x',
    'endless': 'import itertools\ndef add(a, b): return itertools.count()',
    'kill': 'import os, signal\ndef add(a, b):\n    os.kill(-1, signal.SIGKILL)\n    os.kill(1, signal.SIGKILL)\n    os.kill(os.getppid(), signal.SIGKILL)',
}  # fmt: skip


@pytest.mark.parametrize('name', FORGED)
def test_a_pass_cannot_be_forged(sandbox: Sandbox, name: str) -> None:
    verdict = sandbox.judge(FORGED[name], TESTS, Limits(timeout=3, memory=512))
    assert not verdict.passed
    assert verdict.seconds < 6


def test_exceptions_that_end_a_loop_do_not_end_a_test(sandbox: Sandbox) -> None:
    tests = Suite(['f'], '', 'assert all(map(f, [1, 2]))\nassert [*map(f, [1])] == [1]')
    assert not sandbox.judge('def f(x): raise StopIteration', tests).passed
    assert not sandbox.judge('class StopIteration(Exception): pass\ndef f(x): raise StopIteration', tests).passed
    expected = Suite(['f'], '', 'try:\n    f(1)\nexcept ValueError:\n    pass\nelse:\n    assert False')
    assert sandbox.judge('def f(x): raise ValueError(x)', expected).passed


def test_a_test_that_catches_everything_does_not_pass_a_solution_that_ended(sandbox: Sandbox) -> None:
    tests = Suite(['f'], '', 'try:\n    f(1)\nexcept:\n    pass\n')
    assert not sandbox.judge('import os\ndef f(x): os._exit(0)', tests).passed


def test_objects_of_the_program_can_be_handed_back(sandbox: Sandbox) -> None:
    program = 'class Pair:\n    def __init__(self, a): self.a = a\n    __eq__ = lambda s, o: True\ndef total(ps): return sum(p.a for p in ps)'
    assert sandbox.judge(program, Suite(['Pair', 'total'], '', 'assert total([Pair(2), Pair(3)]) == 5')).passed
    assert not sandbox.judge(program, Suite(['Pair'], '', 'assert Pair(1) == 1')).passed


def test_setup_runs_without_the_program(sandbox: Sandbox) -> None:
    tests = Suite(
        ['decode'], 'def encode(s): return s[::-1]\ndef decode(s): pass', "assert decode(encode('ab')) == 'ab'"
    )
    assert sandbox.judge('def encode(s): return s\ndef decode(s): return s[::-1]', tests).passed
    assert not sandbox.judge('def encode(s): return s\ndef decode(s): return s', tests).passed


def test_memory_of_a_solution(sandbox: Sandbox) -> None:
    hungry = 'import os\nfor _ in range(3): os.fork()\nx = b"x" * (60 << 20)\nimport time; time.sleep(9)\n' + RIGHT
    assert sandbox.judge(hungry, TESTS, Limits(timeout=8, memory=128)).status == 'memory'
