"""Benchmarks: a task turns a document into requests, and their answers into metrics."""

from llm_jax.evals.tasks.table import TASKS, find_task
from llm_jax.evals.tasks.task import Item, Task

__all__ = ['TASKS', 'Item', 'Task', 'find_task']
