"""Steps that have to see the whole corpus at once: duplicates, repeated lines, repeated passages.

An exchange is one or more rounds of the same three moves, on arrays rather than on
single documents:

    emit      each shard says what it has, as records with a 64-bit key
    resolve   all records of a range of keys, whichever shard they are from, are looked at together;
              what follows from them is addressed to shards
    apply     after the last round, each shard changes or drops documents by what it received

`emit` and `resolve` are pure functions of arrays, so a pool of processes, a distributed
engine and a loop in one process give the same bytes. Arrays without records have their
fields, too: `resolve` is called even if there are none. Memory is one shard, or the
records of one range of keys; the number of ranges grows with the corpus.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from llm_jax.corpus.document import Document, Dropped

# Fields that every record begins with; a round appends its own.
#   key: what records are brought together by; spread evenly over 64 bits (a hash).
#   shard, doc: the document the record is about, as the shard's number and its place in the shard.
KEYED = [('key', '<u8'), ('shard', '<u4'), ('doc', '<u4')]
# Fields that every message to a shard begins with: the shard, and the document in it.
ADDRESSED = [('shard', '<u4'), ('doc', '<u4')]


class Round(Protocol):
    """One round of an exchange.

    Attributes:
      name: for progress and for file names; unique within the exchange.
      together: whether all records have to be resolved in one place, not by ranges of keys.
    """

    name: str
    together: bool

    def emit(self, shard: int, documents: Sequence[Document], received: np.ndarray) -> np.ndarray:
        """Records (fields of KEYED, then the round's own) of one shard.

        Args:
          shard: number of the shard.
          documents: all documents of the shard, in order.
          received: messages of the previous round to this shard, in canonical order; of the
            first round an empty array of the fields of ADDRESSED.
        """

    def resolve(self, records: np.ndarray) -> np.ndarray:
        """Messages (fields of ADDRESSED, then the round's own) that follow from some records.

        Args:
          records: in canonical order: sorted by all their fields, the key first. All records
            with the same key are among them.
        """


class Exchange(Protocol):
    """A step of the pipeline that sees the whole corpus."""

    rounds: Sequence[Round]

    def apply(self, shard: int, documents: Sequence[Document], received: np.ndarray) -> Iterator[Document | Dropped]:
        """What becomes of each document of a shard, in order, given the messages of the last round."""


def in_order(records: np.ndarray) -> np.ndarray:
    """Records or messages sorted by all their fields, the first one first: the canonical order."""
    columns = [column for name in records.dtype.names for column in np.atleast_2d(records[name].T)]
    # Numpy's sort by fields takes microseconds per record; one sort by 64 bits, and then of what these leave open, is
    # fifty times as fast.
    whole = columns[0].itemsize == 8
    leading = columns[0] if whole else columns[0].astype(np.uint64) << np.uint64(32) | columns[1]
    order = np.argsort(leading)
    equal = leading[order[1:]] == leading[order[:-1]]
    tied = np.flatnonzero(np.append(False, equal) | np.append(equal, False))
    order[tied] = order[tied][np.lexsort([column[order[tied]] for column in reversed(columns)])]
    return records[order]


def run_in_memory(exchange: Exchange, shards: Sequence[Sequence[Document]]) -> list[list[Document | Dropped]]:
    """The exchange over shards that are all in memory, without any engine: what it means.

    Returns:
      what became of each document, shard by shard.
    """
    received = [np.empty(0, ADDRESSED) for _ in shards]
    for step in exchange.rounds:
        emitted = [step.emit(i, documents, received[i]) for i, documents in enumerate(shards)]
        messages = in_order(step.resolve(in_order(np.concatenate(emitted))))
        received = [messages[messages['shard'] == i] for i in range(len(shards))]
    return [list(exchange.apply(i, documents, received[i])) for i, documents in enumerate(shards)]
