"""HumanEval and MBPP: the program in a completion, and its verdict by the sandbox.

The tests of a benchmark run in a process of their own, and ask that of the program for each call. So arguments and
results
must be literals (numbers, text, bytes, None, containers of them; of collections deque, Counter, OrderedDict; Decimal,
Fraction, range), a change that a function makes to its arguments is not seen by the tests, and an object of a class of
the program's own can only be handed back to it. What a program prints is lost.
"""

import ast
import builtins
from collections.abc import Mapping, Sequence
import concurrent.futures
import os
import re
import sys

from llm_jax.evals.sandbox import Limits, Sandbox, Suite, Verdict

Problem = Mapping[str, object]  # a line of HumanEval.jsonl or mbpp.jsonl

# What begins the next definition, or leaves the function, at the start of a line.
STOPS = ('\ndef ', '\nclass ', '\nif ', '\nprint', '\n#', '\n@', '\nassert', '\nasync def ', '\n```', '<|endoftext|>')
_FENCE = re.compile(r'^[ \t]*```[ \t]*(\w*)[^\n]*\n(.*?)(?:^[ \t]*```|\Z)', re.MULTILINE | re.DOTALL)
_STATEMENT = re.compile(r'(?:def|class|async def|import|from|@\w+)\b|@|#|[A-Za-z_]\w*(?:, \w+)* *= *\S')
_CODE = re.compile(
    r'\s|$|[)\]}\'"#@(\[]'
    r'|(?:async )?(?:def|class|import|from|if|elif|else|for|while|try|except|finally|with|assert|raise|return|pass)\b'
    r'(?! the\b| you\b| example\b)'
    r'|[A-Za-z_]\w*(?:, \w+)*(?:\.\w+)* *(?:[-+*/%|&^]?=|[(\[]|: *\w+ *=)'
)
_MAX_CHARS = 200_000
BENCHMARK_LIMITS = Limits(timeout=30)  # a program of MBPP computes for seconds, on a busy machine for many


def cut_at_stops(text: str, stops: Sequence[str] = STOPS) -> str:
    """The text up to the first stop; its indentation is kept."""
    return text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))]


def find_fenced(text: str, name: str = '') -> str | None:
    """The block of code between ``` marks that defines `name`, else the first one in Python; None without one."""
    blocks = [block for language, block in _FENCE.findall(text) if language.lower() in ('', 'python', 'py', 'python3')]
    return next((block for block in blocks if name and _defines(block, name)), blocks[0] if blocks else None)


def keep_code(text: str) -> str:
    """The lines of a text from the first that begins a statement to the first that is no code; by their looks alone.

    Text of a model is not parsed in this process: deep nesting can crash the interpreter that parses it.
    """
    lines = text.splitlines(keepends=True)
    start = next((i for i, line in enumerate(lines) if _STATEMENT.match(line)), 0)
    end = next((i for i in range(start, len(lines)) if not _CODE.match(lines[i])), len(lines))
    return ''.join(lines[start:end])


def _defines(text: str, name: str) -> bool:
    return re.search(rf'^(?:async )?def {re.escape(name)}\b|^{re.escape(name)} *=', text, re.MULTILINE) is not None


def humaneval_program(problem: Problem, completion: str) -> str:
    """The program of a completion of HumanEval's prompt.

    A completion goes on after the prompt, and is cut where another definition begins; or it is, or has between ```
    marks,
    the whole function again (as chat models answer), which then replaces the prompt's, whose imports and helpers stay.
    """
    prompt, name = str(problem['prompt']), str(problem['entry_point'])
    completion = completion[:_MAX_CHARS]
    code = find_fenced(completion, name)
    if code is None:
        first = next((line for line in completion.splitlines() if line.strip()), '')
        code = keep_code(completion) if first[:1].strip() and _defines(completion, name) else None
    elif not _defines(code, name):
        return prompt + code if code[:1].isspace() else prompt + _indent(code)
    if code is not None:
        return f'{_stub(prompt)}\n{code}'
    return prompt + cut_at_stops(completion)


def _indent(code: str) -> str:
    return ''.join(f'    {line}' for line in code.splitlines(keepends=True))


def _stub(prompt: str) -> str:
    """A prompt that ends in a function's head, as a program."""
    try:
        ast.parse(prompt)
    except SyntaxError:
        return f'{prompt.rstrip()}\n    pass\n'
    return prompt


def humaneval_tests(problem: Problem) -> Suite:
    """The tests of a problem; helpers that the prompt defines are run from there, not from the completion."""
    name = str(problem['entry_point'])
    return Suite([name], _stub(str(problem['prompt'])), f'{problem["test"]}\ncheck({name})\n')


def mbpp_program(problem: Problem, completion: str) -> str:
    """The program of a completion of MBPP's prompt: between ``` marks, or up to [DONE]."""
    code = find_fenced(completion[:_MAX_CHARS])
    if code is None:
        code = keep_code(completion[:_MAX_CHARS].removeprefix('[BEGIN]').split('[DONE]')[0])
    return code


def mbpp_tests(problem: Problem) -> Suite:
    """The asserts of a problem, where names that the reference defines are the program's; modules are imported."""
    tests = '\n'.join(problem['test_list'])  # type: ignore[arg-type]
    setup = str(problem.get('test_setup_code') or '')
    used = [node.id for node in ast.walk(ast.parse(tests)) if isinstance(node, ast.Name)]
    reference = ast.parse(str(problem.get('code') or ''))
    defined = {node.name for node in reference.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    names = [name for name in dict.fromkeys(used) if name in defined] or [
        name for name in dict.fromkeys(used) if not hasattr(builtins, name) and name not in sys.stdlib_module_names
    ]
    modules = [name for name in dict.fromkeys(used) if name in sys.stdlib_module_names and name not in names]
    return Suite(names, '\n'.join([*(f'import {name}' for name in modules), setup]), tests)


def check(
    problem: Problem,
    completions: Sequence[str],
    *,
    sandbox: Sandbox | None = None,
    limits: Limits | None = None,
    workers: int | None = None,
) -> list[Verdict]:
    """Verdicts on completions of one problem of HumanEval or MBPP; `check_all` of several."""
    return check_all([(problem, completions)], sandbox=sandbox, limits=limits, workers=workers)[0]


def check_all(
    items: Sequence[tuple[Problem, Sequence[str]]],
    *,
    sandbox: Sandbox | None = None,
    limits: Limits | None = None,
    workers: int | None = None,
) -> list[list[Verdict]]:
    """Verdicts on the completions of each problem, in order.

    Args:
      items: (problem, completions); a problem with 'entry_point' is HumanEval's, one with 'test_list' MBPP's.
      limits: of each program; by default BENCHMARK_LIMITS.
      workers: programs at a time; by default one for each CPU.

    Raises:
      SandboxError: the sandbox does not hold on this machine.
    """
    sandbox = sandbox or Sandbox()
    jobs = []
    for problem, completions in items:
        is_humaneval = 'entry_point' in problem
        program = humaneval_program if is_humaneval else mbpp_program
        tests = humaneval_tests(problem) if is_humaneval else mbpp_tests(problem)
        jobs += [(program(problem, completion), tests) for completion in completions]
    with concurrent.futures.ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        verdicts = iter(list(pool.map(lambda job: sandbox.judge(*job, limits or BENCHMARK_LIMITS), jobs)))
    return [[next(verdicts) for _ in completions] for _, completions in items]
