"""Stages that are faster on many documents at a time."""

from collections.abc import Callable, Sequence

from llm_jax.corpus.document import Document, Dropped, Stage

# What becomes of each document, in order: the same as of each alone.
Many = Callable[[Sequence[Document]], list[Document | Dropped]]


def stage_of(many: Many) -> Stage:
    """The stage that does with one document what `many` does with each of several.

    A runner that has several documents at hand calls `stage.many(documents)` where a stage
    has this attribute: a model then sees full batches, and array operations pay.
    """

    def stage(document: Document) -> Document | Dropped:
        return many([document])[0]

    stage.many = many
    return stage


def through(stage: Stage, documents: Sequence[Document]) -> list[Document | Dropped]:
    """What a stage makes of some documents, all at a time if it can."""
    many = getattr(stage, 'many', None)
    return many(documents) if many else [stage(document) for document in documents]
