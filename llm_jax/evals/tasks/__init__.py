"""Benchmarks: a task turns a document into requests or a prompt, and what the model makes of them into metrics."""

from llm_jax.evals.tasks.table import GROUPS, TASKS, find_task
from llm_jax.evals.tasks.task import Generation, Grade, Group, Item, Prompt, Shots, Task, grade_each

__all__ = [
    'GROUPS', 'TASKS', 'Generation', 'Grade', 'Group', 'Item', 'Prompt', 'Shots', 'Task', 'find_task', 'grade_each',
]  # fmt: skip
