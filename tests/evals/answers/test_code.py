"""Programs in completions of HumanEval and MBPP, and their verdicts."""

import gzip
import itertools
import json
import pathlib

import pytest

from llm_jax.evals.answers import code
from llm_jax.evals.sandbox import Limits, Sandbox

PROBLEM = {
    'task_id': 'own/1',
    'prompt': 'from typing import List\n\ndef double(x: int) -> int:\n    return 2 * x\n\n'
    'def both(xs: List[int]) -> List[int]:\n'
    '    """ Doubles each.\n    """\n',
    'entry_point': 'both',
    'test': 'def check(candidate):\n    assert candidate([1, 2]) == [double(1), double(2)]\n'
    '    assert both([]) == []\n',
}
MBPP = {
    'task_id': 1,
    'code': 'import math\ndef area(r):\r\n  return math.pi * r ** 2',
    'test_setup_code': '',
    'test_list': ['assert math.isclose(area(1), 3.14159, rel_tol=1e-3)', 'assert area(0) == 0'],
}
BODY = '    return [double(x) for x in xs]\n'
WHOLE = 'def both(xs):\n    return [2 * x for x in xs]\n'


@pytest.mark.parametrize(
    ('text', 'cut'),
    [
        ('    return 1\n\ndef g(): ...', '    return 1\n'),
        ('    return 1\nprint(f())', '    return 1'),
        ('    if x:\n        return 1\n', '    if x:\n        return 1\n'),
        ('    return 1\n# ends\n', '    return 1'),
        ('  return 1<|endoftext|>x', '  return 1'),
        ('    defined = 1\n    return defined', '    defined = 1\n    return defined'),
    ],
)
def test_completions_are_cut_where_they_leave_the_function(text: str, cut: str) -> None:
    assert code.cut_at_stops(text) == cut


COMPLETIONS = {
    BODY: True,
    BODY + '\ndef double(x):\n    return 0\n': True,
    BODY + '\nraise ValueError\n'.replace('raise', 'if 1: raise'): True,
    f'Here it is:\n```python\n{WHOLE}```\nIt doubles.': True,
    f'```\n{BODY}```': True,
    '```python\nprint(1)\n```\n```python\n' + WHOLE + '```': True,
    f'```python\n{WHOLE}': True,  # never closed
    WHOLE: True,
    'def double(x): return 0\n' + WHOLE: True,
    'from typing import List\n' + WHOLE: True,
    WHOLE + '\nThis function doubles each of them, for example 1 and 2.\n': True,
    WHOLE + '\n# Examples\nassert both([1]) == [2]\n': True,
    '    return [1]\n': False,
    '    return None\n': False,
    '': False,
    'return xs': False,
    # the helper of the prompt is the test's own, whatever the completion makes of it
    'def double(x): return 0\ndef both(xs): return [double(x) for x in xs]\n': False,
}


def test_verdicts_on_completions_of_humaneval(sandbox: Sandbox) -> None:
    verdicts = code.check(PROBLEM, list(COMPLETIONS), sandbox=sandbox, limits=Limits(timeout=10))
    assert {text: verdict.passed for text, verdict in zip(COMPLETIONS, verdicts, strict=True)} == COMPLETIONS


def test_verdicts_on_completions_of_mbpp(sandbox: Sandbox) -> None:
    right = 'def area(r): return 3.14159 * r * r'
    completions = [
        MBPP['code'],
        right,
        f'Here you are:\n{right}\nIt squares r.',
        f'```python\n{right}\n```',
        f'[BEGIN]\n{right}\n[DONE]\nmore words',
        'def area(r): pass',
    ]
    verdicts = code.check(MBPP, completions, sandbox=sandbox)
    assert [verdict.passed for verdict in verdicts] == [True, True, True, True, True, False]
    assert 'math.isclose' in verdicts[-1].reason


@pytest.mark.parametrize(
    ('text', 'kept'),
    [
        (
            'Sure.\n\nimport math\nX = 3\ndef f(a,\n):\n    return a\n\nHope it helps',
            'import math\nX = 3\ndef f(a,\n):\n    return a\n\n',
        ),
        (
            'def f():\n  return 1\nf.cache = {}\nprint(f())\nNote: fine',
            'def f():\n  return 1\nf.cache = {}\nprint(f())\n',
        ),
        ('a, b = 1, 2\nfor i in a:\n    pass\nFor all a', 'a, b = 1, 2\nfor i in a:\n    pass\n'),
        ('', ''),
    ],
)
def test_code_is_told_from_prose(text: str, kept: str) -> None:
    assert code.keep_code(text) == kept


def test_names_of_mbpp_are_those_that_the_reference_defines() -> None:
    assert list(code.mbpp_tests(MBPP).names) == ['area']
    assert 'import math' in code.mbpp_tests(MBPP).setup
    shadowing = MBPP | {'code': 'def sum(a, b): return a', 'test_list': ['assert sum(1, 2) == max(1, 0)']}
    assert list(code.mbpp_tests(shadowing).names) == ['sum']
    assert list(code.mbpp_tests(MBPP | {'code': ''}).names) == ['area']


def test_the_example_of_humaneval_gives_its_documented_score(sandbox: Sandbox, shared_data: pathlib.Path) -> None:
    bench = shared_data / 'bench'
    problem = json.loads((bench / 'humaneval_example_problem.jsonl').read_text())
    lines = (bench / 'humaneval_example_samples.jsonl').read_text().splitlines()
    verdicts = code.check(
        problem, [json.loads(line)['completion'] for line in lines], sandbox=sandbox, limits=Limits(2)
    )
    assert [verdict.passed for verdict in verdicts] == [False, False, False, True, True, True]
    assert verdicts[1].status == 'timeout'


def _rows(path: pathlib.Path, step: int) -> list[dict]:
    with gzip.open(path, 'rt') as file:
        return [json.loads(line) for line in itertools.islice(file, 0, None, step)]


@pytest.mark.parametrize('step', [16, pytest.param(1, marks=pytest.mark.slow)])
def test_programs_of_humaneval(sandbox: Sandbox, shared_data: pathlib.Path, step: int) -> None:
    rows = _rows(shared_data / 'bench' / 'HumanEval.jsonl.gz', step)
    items = [(row, [row['canonical_solution'], '    return None\n']) for row in rows]
    verdicts = code.check_all(items, sandbox=sandbox, limits=Limits(timeout=60))
    assert [[verdict.passed for verdict in pair] for pair in verdicts] == [[True, False]] * len(rows)


@pytest.mark.parametrize('step', [60, pytest.param(1, marks=pytest.mark.slow)])
def test_programs_of_mbpp(sandbox: Sandbox, shared_data: pathlib.Path, step: int) -> None:
    rows = _rows(shared_data / 'bench' / 'mbpp.jsonl.gz', step)
    verdicts = code.check_all([(row, [row['code']]) for row in rows], sandbox=sandbox, limits=Limits(timeout=60))
    failed = {row['task_id'] for row, (verdict,) in zip(rows, verdicts, strict=True) if not verdict.passed}
    assert failed <= {367, 927}  # whose class Node is in no file of the benchmark
