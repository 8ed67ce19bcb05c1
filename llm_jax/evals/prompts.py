"""Prompts of a task: documents in order, examples before each."""

from collections.abc import Callable, Sequence
import dataclasses
import random

from llm_jax.config.schema import ConfigError
from llm_jax.evals.sources import Sources
from llm_jax.evals.tasks.task import Document, Item, Prompt, Shots, Task

SEED = 1234  # of the draws of examples, as lm-eval's
POOL = 50  # documents after the judged ones that examples are drawn from

Built = tuple[Document, Item | Prompt]


def read_documents(sources: Sources, task: Task) -> tuple[list[Document], str]:
    """The documents of a task in their order, and the SHA-256 of their file.

    Raises:
      ConfigError: the data is not there, or has none of the task.
    """
    documents, digest = sources.read(task.files, task.name)
    documents = [document for document in documents if task.keep(document)]
    if not documents:
        raise ConfigError(f'{" or ".join(task.files)} has no item of {task.name}; check the name of the task')
    if task.shuffle_seed is not None:
        random.Random(task.shuffle_seed).shuffle(documents)
    return documents, digest


def build_prompts(
    task: Task, documents: Sequence[Document], sources: Sources, *, limit: int = 0, n_shots: int = 0
) -> list[Built]:
    """The first documents, each with its requests or prompt, examples before them.

    Examples come from files of their own where the task has such. Else lm-eval's come from the next POOL documents
    that --limit leaves unjudged, where there are enough, and otherwise from the judged ones, one more than asked for,
    less the document itself; those of DCLM CORE from the judged ones. Where these are too few, they come from all.

    Args:
      task: the benchmark.
      documents: of `read_documents`.
      sources: of the examples.
      limit: documents to judge; 0 takes all.
      n_shots: examples before each; 0 of a task that has no examples.

    Raises:
      ConfigError: too few documents for the examples.
    """
    chosen = list(documents)[: limit or None]
    prefix_of = _examples(task, documents, chosen, sources, n_shots) if n_shots else lambda i: ''
    return [
        (document, _put_before(task.item(document), task.heading + prefix_of(i))) for i, document in enumerate(chosen)
    ]


def _examples(
    task: Task, documents: Sequence[Document], chosen: Sequence[Document], sources: Sources, n: int
) -> Callable[[int], str]:
    """A function from the index of a document, in order, to its examples."""
    shots = task.shots
    assert shots is not None
    pool, is_apart = _pool(task, shots, documents, chosen, sources, n)
    if len(pool) < n + (not is_apart):
        raise ConfigError(
            f'--shots {n}: {task.name} has {len(pool)} documents for examples; ask for fewer, or judge more'
        )
    if shots.draw == 'first':
        text = ''.join(map(shots.render, pool[:n]))
        return lambda i: text
    stream = random.Random(SEED)

    def draw(i: int) -> str:
        if shots.draw == 'item':
            others = pool if is_apart else [j for j in range(len(pool)) if j != i]
            drawn = random.Random(SEED + i).sample(others, n)
            return ''.join(shots.render(one if is_apart else pool[one]) for one in drawn)
        drawn = stream.sample(pool, n + (not is_apart))
        return ''.join(map(shots.render, [one for one in drawn if one != chosen[i]][:n]))

    return draw


def _pool(
    task: Task, shots: Shots, documents: Sequence[Document], chosen: Sequence[Document], sources: Sources, n: int
) -> tuple[Sequence[Document], bool]:
    """(documents that examples come from, whether none of them is judged)."""
    if shots.files:
        found, _ = sources.read(shots.files, f'the examples of {task.name}')
        return [document for document in found if shots.keep(document)], True
    left = list(documents)[len(chosen) :][:POOL]
    if shots.draw == 'stream' and len(left) >= n:
        return left, True
    return (chosen if len(chosen) > n else documents), False


def _put_before(item: Item | Prompt, prefix: str) -> Item | Prompt:
    if isinstance(item, Prompt):
        return dataclasses.replace(item, text=prefix + item.text)
    return dataclasses.replace(item, requests=[(prefix + context, ending) for context, ending in item.requests])
