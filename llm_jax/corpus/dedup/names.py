"""The last round of an exchange: documents learn the name of the one that speaks for them.

It makes a report readable: 'duplicate of web/page.html#3', whichever shard that one is in.
"""

from collections.abc import Sequence
import dataclasses

import numpy as np

from llm_jax.corpus.dedup import words
from llm_jax.corpus.document import Document
from llm_jax.corpus.exchange import ADDRESSED, KEYED

# What is asked of a document: for whom, and how alike the two are (0: they are only of the same cluster).
REQUEST = [*ADDRESSED, ('for_shard', '<u4'), ('for_doc', '<u4'), ('similarity', '<f4')]
_WIDTH = 120
ANSWER = [*ADDRESSED, ('similarity', '<f4'), ('name', f'S{_WIDTH}')]


@dataclasses.dataclass(frozen=True)
class Names:
    """Round that answers requests with names: a duplicate gets the id of what stays in its place,
    a member of a cluster the label of the cluster."""

    name: str = 'names'
    together: bool = False

    def emit(self, shard: int, documents: Sequence[Document], received: np.ndarray) -> np.ndarray:
        records = np.zeros(len(received), KEYED + REQUEST[2:] + ANSWER[3:])
        for field in received.dtype.names:
            records[field] = received[field]
        records['key'] = words.mix(node(received['for_shard'], received['for_doc']))
        for i, (doc, similarity) in enumerate(zip(received['doc'], received['similarity'], strict=True)):
            document = documents[doc]
            records['name'][i] = _short(document.id if similarity else document.cluster or document.id)
        return records

    def resolve(self, records: np.ndarray) -> np.ndarray:
        messages = np.zeros(len(records), ANSWER)
        messages['shard'], messages['doc'] = records['for_shard'], records['for_doc']
        messages['similarity'], messages['name'] = records['similarity'], records['name']
        return messages


def node(shard: np.ndarray, doc: np.ndarray) -> np.ndarray:
    """uint64, one number for a document; in the order of the corpus."""
    return shard.astype(np.uint64) << np.uint64(32) | doc


def _short(name: str) -> bytes:
    """At most _WIDTH bytes: of a longer name both ends, which say the source and the record."""
    full = name.encode('utf-8', 'surrogatepass')
    if len(full) <= _WIDTH:
        return full
    half = (_WIDTH - 3) // 2
    return full[:half] + b'...' + full[-half:]


def text_of(answer: np.void) -> str:
    """The name in an answer."""
    return answer['name'].decode('utf-8', 'replace')
