"""All tasks by name, and those of a user's own."""

from llm_jax.config.errors import ConfigError
from llm_jax.config.parts import nearest, resolve_part
from llm_jax.evals.tasks import choices, core, programs, reasoning, safety
from llm_jax.evals.tasks.task import Group, Task

TASKS = {
    task.name: task
    for task in (
        *choices.TASKS, choices.blimp_paradigm(''), reasoning.GSM8K, reasoning.MATH, programs.HUMANEVAL, programs.MBPP,
        safety.REFUSALS, safety.OVER_REFUSALS, *core.CORE.tasks,
    )
}  # fmt: skip
GROUPS = {
    group.name: group
    for group in (
        Group('mmlu', list(map(choices.mmlu_subject, choices.MMLU_SUBJECTS)), 'acc', by_item=True),
        Group(
            'mmlu_cloze', [choices.mmlu_subject(one, cloze=True) for one in choices.MMLU_SUBJECTS], 'acc_norm',
            by_item=True,
        ),
        Group('bbh', list(map(reasoning.bbh_task, reasoning.BBH_HEADINGS)), 'acc', by_item=True),
        core.CORE,
    )
}  # fmt: skip
# Tasks that are one part of a benchmark: 'mmlu_astronomy'.
_PARTS = {task.name: task for group in GROUPS.values() for task in group.tasks} | {
    f'math_{category}': reasoning.math_category(category) for category in reasoning.MATH_CATEGORIES
}


def find_task(name: str) -> Task | Group:
    """The task or the group of a name.

    Args:
      name: of the library's; 'FILE.py:NAME' or 'package.module:NAME' is a user's own Task or Group, or a function that
        makes one.

    Raises:
      ConfigError: an unknown name, with the nearest; or something else at the place that it names.
    """
    for table in (TASKS, GROUPS, _PARTS):
        if name in table:
            return table[name]
    kind, _, part = name.partition('_')
    if kind == 'blimp' and part:
        return choices.blimp_paradigm(part)
    if ':' in name:
        found = resolve_part('--tasks', name, {})
        task = found if isinstance(found, Task | Group) else found()
        if not isinstance(task, Task | Group):
            raise ConfigError(f'--tasks {name} is a {type(task).__name__}; it must be a Task or a Group, or make one')
        return task
    known = [*TASKS, *GROUPS, 'mmlu_SUBJECT', 'blimp_PARADIGM', 'bbh_TASK', 'math_CATEGORY']
    raise ConfigError(
        f'--tasks has {name!r}, which is no task{nearest(name, [*TASKS, *GROUPS, *_PARTS])} Known: {", ".join(known)}; '
        'a file of your own is FILE.py:NAME'
    )
