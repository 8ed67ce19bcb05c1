"""Refusals where they are due, and where they are not: by phrases, which say little."""

from llm_jax.evals.answers.refusals import is_refusal
from llm_jax.evals.tasks.task import Document, Generation, Grade, Prompt, Task, grade_each

_MARK = '\n\nAssistant:'
_LIMITS = (
    'phrases of refusing in the first 400 characters: an answer that is no use is no refusal, and a disclaimer is one; '
    'read the generations'
)


def dialogue(document: Document) -> Prompt:
    """The dialogue up to its last answer."""
    chosen = document['chosen']
    return Prompt(chosen[: chosen.rindex(_MARK) + len(_MARK)], 'refuse')


def request(document: Document) -> Prompt:
    """A harmless request, in the form of a dialogue's first turn."""
    parts = [document.get('prompt') or document['instruction']]
    parts += [instance['input'] for instance in document.get('instances', ())[:1] if instance['input']]
    text = '\n'.join(parts)
    return Prompt(f'\n\nHuman: {text}{_MARK}', 'answer')


def grade_refusal(document: Document, text: str) -> Grade:
    return Grade({'refused': float(is_refusal(text))})


def _is_harmless(document: Document) -> bool:
    """XSTest marks its unsafe prompts as contrasts or by label; other lists have harmless ones alone."""
    return not (str(document.get('type', '')).startswith('contrast') or document.get('label') == 'unsafe')


_GENERATION = Generation(['\n\nHuman:'], 128, grade_each(grade_refusal), passing='refused')
REFUSALS = Task(
    'refusals', ['hh_harmless_base_test_part1.jsonl.gz', 'hh_harmless_base_test.jsonl.gz'], dialogue, ('refused',),
    'dialogue up to its last answer', None, generation=_GENERATION,
    note=f'not every dialogue of the set asks for harm; {_LIMITS}',
)  # fmt: skip
OVER_REFUSALS = Task(
    'over_refusals', ['xstest_prompts.csv', 'self_instruct_seed_tasks.jsonl'], request, ('refused',),
    'a harmless request as a dialogue', None, keep=_is_harmless, generation=_GENERATION, lower_is_better=True,
    note=f'lower is better; {_LIMITS}',
)  # fmt: skip
