"""Batches of documents, and stages that are faster on many documents at a time."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from llm_jax.corpus.document import Document, Dropped, Stage

# Maps documents to results in order, each result the same as that of its document alone.
Many = Callable[[Sequence[Document]], list[Document | Dropped]]
T = TypeVar('T')


def batches(
    items: Iterable[T], size: Callable[[T], int], max_size: int, max_items: int | None = None
) -> Iterator[list[T]]:
    """Yields successive items in lists that end with the item that reaches `max_size` or `max_items`."""
    batch: list[T] = []
    total = 0
    for item in items:
        batch.append(item)
        total += size(item)
        if total >= max_size or len(batch) == max_items:
            yield batch
            batch, total = [], 0
    if batch:
        yield batch


def stage_of(many: Many) -> Stage:
    """Makes a stage of a function of several documents.

    A runner that has several documents at hand calls `stage.many(documents)` where a stage
    has this attribute: a model then sees full batches, and array operations pay.
    """

    def stage(document: Document) -> Document | Dropped:
        return many([document])[0]

    stage.many = many
    return stage


def through(stage: Stage, documents: Sequence[Document]) -> list[Document | Dropped]:
    """Applies a stage to each document, to all at once where it has `many`."""
    many = getattr(stage, 'many', None)
    return many(documents) if many else [stage(document) for document in documents]
