"""HumanEval and MBPP: programs that the model writes, judged in the sandbox."""

from collections.abc import Sequence

from llm_jax.config.schema import ConfigError
from llm_jax.evals.answers import code
from llm_jax.evals.sandbox import Sandbox, SandboxError
from llm_jax.evals.tasks.task import Document, Generation, Grade, Prompt, Shots, Task

_KNOWN = 'problems and solutions are in many corpora: decontaminate before you believe a high score'


def require_sandbox() -> None:
    """Raises: ConfigError: programs cannot be run safely here; nothing has been executed."""
    try:
        Sandbox()
    except SandboxError as error:
        raise ConfigError(
            f'programs of a model are run in the sandbox only, which does not hold here: {error}'
        ) from None


def grade_programs(items: Sequence[tuple[Document, Sequence[str]]]) -> list[list[Grade]]:
    """Verdicts of the sandbox as grades; the limits that ended a program are in the note."""
    verdicts = code.check_all(items)
    return [
        [Grade({'pass@1': float(one.passed)}, note=f'{one.status} {one.reason}'.strip()) for one in several]
        for several in verdicts
    ]


def humaneval(document: Document) -> Prompt:
    return Prompt(document['prompt'], document['canonical_solution'])


def mbpp(document: Document) -> Prompt:
    tests = '\n'.join(document['test_list'][:3])
    text = (
        f'You are an expert Python programmer, and here is your task: {document["text"]} '
        f'Your code should pass these tests:\n\n{tests}\n[BEGIN]\n'
    )
    return Prompt(text, document['code'])


def _with_code(document: Document) -> str:
    return f'{mbpp(document).text}{document["code"]}\n[DONE]\n\n'


HUMANEVAL = Task(
    'humaneval', ['HumanEval.jsonl.gz', 'HumanEval.jsonl'], humaneval, ('pass@1',), 'the prompt, a function\'s head',
    0.0,
    generation=Generation(
        ['\nclass', '\ndef', '\n#', '\nif', '\nprint'], 1024, grade_programs, passing='pass@1', check=require_sandbox
    ),
    note=_KNOWN,
)  # fmt: skip
MBPP = Task(
    'mbpp', ['mbpp.jsonl.gz', 'mbpp.jsonl'], mbpp, ('pass@1',), 'task, three asserts, [BEGIN] (program, [DONE])', 0.0,
    keep=lambda document: 11 <= document['task_id'] <= 510,
    shots=Shots(_with_code, ['mbpp.jsonl.gz', 'mbpp.jsonl'], lambda document: 2 <= document['task_id'] <= 4,
                draw='first', default=3),
    generation=Generation(['[DONE]'], 512, grade_programs, passing='pass@1', check=require_sandbox),
    note=f'problems 11 to 510 after 2, 3 and 4; {_KNOWN}',
)  # fmt: skip
