"""Documents that are the same but for case, spaces and punctuation: the first one stays.

Two documents are the same if what counts of them is (`words.folded`). Code is the same if its
lines are, but for spaces at their ends and blank lines around: in code, case, spaces and
punctuation have a meaning. The first document in the order of the corpus stays: of the
source that stands first in the config, and within a source the earliest record.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import hashlib

import numpy as np

from llm_jax.config.schema import field
from llm_jax.corpus.dedup import names, words
from llm_jax.corpus.document import Document, Dropped
from llm_jax.corpus.exchange import KEYED, Round

# Kinds of documents in which every sign has a meaning.
_CODE = ('code', 'notebook')


@dataclasses.dataclass(frozen=True)
class Exact:
    """How exact duplicates are told."""

    fold: bool = field(True, 'whether case, spaces and punctuation are ignored (in code: spaces at ends of lines)')


def make(options: Exact) -> 'ExactExchange':
    """The exchange that drops exact duplicates."""
    return ExactExchange((_Digests(options), names.Names()))


@dataclasses.dataclass(frozen=True)
class ExactExchange:
    """Drops all but the first of each set of equal documents, as 'exact.duplicate'."""

    rounds: Sequence[Round]

    def apply(self, shard: int, documents: Sequence[Document], received: np.ndarray) -> Iterator[Document | Dropped]:
        kept = {answer['doc']: names.text_of(answer) for answer in received}
        for i, document in enumerate(documents):
            yield Dropped(document, 'exact.duplicate', f'of {kept[i]}') if i in kept else document


def digest(document: Document, fold: bool) -> bytes:
    """16 bytes of BLAKE2b, so that texts that differ never share them by chance or by design."""
    text = document.text
    if fold and document.kind in _CODE:
        lines = '\n'.join(line.rstrip() for line in text.split('\n'))
        content = lines.strip('\n').encode('utf-8', 'surrogatepass')
    else:
        content = words.folded(text) if fold else text.encode('utf-8', 'surrogatepass')
    return hashlib.blake2b(content, digest_size=16).digest()


@dataclasses.dataclass(frozen=True)
class _Digests:
    """Round 1: 24 bytes a document."""

    options: Exact
    name: str = 'digests'
    together: bool = False

    def emit(self, shard: int, documents: Sequence[Document], received: np.ndarray) -> np.ndarray:
        digests = b''.join(digest(document, self.options.fold) for document in documents)
        records = np.zeros(len(documents), [*KEYED, ('check', '<u8')])
        records['key'], records['check'] = np.frombuffer(digests, '<u8').reshape(-1, 2).T
        records['shard'], records['doc'] = shard, np.arange(len(documents))
        return records

    def resolve(self, records: np.ndarray) -> np.ndarray:
        # In order of (key, check, document), without moving what has a key of its own.
        repeated = records['key'][1:] == records['key'][:-1]
        some = records[(np.append(False, repeated) | np.append(repeated, False))[: len(records)]]  # of nothing, nothing
        some = some[np.lexsort((some['doc'], some['shard'], some['check'], some['key']))]
        new = np.ones(len(some), bool)
        new[1:] = (some['key'][1:] != some['key'][:-1]) | (some['check'][1:] != some['check'][:-1])
        kept = some[np.maximum.accumulate(np.where(new, np.arange(len(some)), 0))]
        requests = np.zeros(len(some), names.REQUEST)
        requests['shard'], requests['doc'] = kept['shard'], kept['doc']
        requests['for_shard'], requests['for_doc'] = some['shard'], some['doc']
        requests['similarity'] = 1
        return requests[~new]
