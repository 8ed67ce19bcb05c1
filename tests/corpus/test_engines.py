"""An exchange in files means what it means in memory, in however many ranges of keys."""

import dataclasses

import numpy as np
import pytest

from llm_jax.corpus.document import Document, Dropped
from llm_jax.corpus.engines.local import Local, _between, _save
from llm_jax.corpus.exchange import KEYED, in_order, run_in_memory
from llm_jax.corpus.shards import Shard
from llm_jax.corpus.storage import Store


@dataclasses.dataclass(frozen=True)
class Count:
    """Tells every document how many have its number, or in the second round, how many were told the same."""

    name: str
    together: bool = False

    def emit(self, shard, documents, received):
        out = np.zeros(len(documents), [*KEYED, ('value', '<f4')])
        values = dict(zip(received['doc'].tolist(), received['n'].tolist(), strict=True)) if self.name == 'b' else {}
        for i, document in enumerate(documents):
            number = values.get(i, int(document.text))
            out[i] = (number * 0x9E3779B97F4A7C15 % 2**64, shard, i, number / 7)
        return out

    def resolve(self, records):
        _, which, counts = np.unique(records['key'], return_inverse=True, return_counts=True)
        out = np.zeros(len(records), [('shard', '<u4'), ('doc', '<u4'), ('n', '<u4')])
        out['shard'], out['doc'], out['n'] = records['shard'], records['doc'], counts[which] if len(records) else 0
        return out[out['doc'] % 5 != 4]


@dataclasses.dataclass(frozen=True)
class Numbers:
    rounds: tuple = (Count('a'), Count('b'), Count('c', True))

    def apply(self, shard, documents, received):
        told = dict(zip(received['doc'].tolist(), received['n'].tolist(), strict=True))
        for i, document in enumerate(documents):
            n = told.get(i, 0)
            yield Dropped(document, 'x', '') if n == 1 else dataclasses.replace(document, text=f'{document.text}:{n}')


@dataclasses.dataclass(frozen=True)
class Step:
    store: Store
    documents_: tuple
    name: str = 'numbers'

    @property
    def shards(self):
        return [Shard('s', '', len(some), 100 * len(some), '') for some in self.documents_]

    def make(self):
        return Numbers()

    def documents(self, index):
        return self.documents_[index]

    def is_applied(self, index):
        return self.store.exists(f'{index}/done')

    def apply(self, index, received):
        results = list(self.make().apply(index, self.documents(index), received))
        self.store.write(f'{index}/done', repr(results).encode())


def shards(counts):
    rng = np.random.default_rng(0)
    make = lambda i, j: Document(f's/{i}/{j}', 's', '', str(rng.integers(0, 400)), 'text')
    return tuple(tuple(make(i, j) for j in range(n)) for i, n in enumerate(counts))


@pytest.mark.parametrize('counts', [(), (0,), (1,), (300, 0, 7, 500, 1)])
@pytest.mark.parametrize('range_bytes', [1 << 30, 300])
def test_local_is_what_it_is_in_memory(tmp_path, counts, range_bytes):
    step = Step(Store(str(tmp_path)), shards(counts))
    if counts:
        Local(1, range_bytes=range_bytes).exchange(step, lambda *_: None)
        expected = run_in_memory(Numbers(), step.documents_)
        found = [step.store.read(f'{i}/done').decode() for i in range(len(counts))]
        assert found == [repr(one) for one in expected]
    assert step.store.names() == [str(i) for i in range(len(counts))]  # the rounds are gone


@pytest.mark.parametrize('counts', [(1,), (300, 0, 7)])
def test_beam_is_what_it_is_in_memory(tmp_path, counts):
    pytest.importorskip('apache_beam', reason='Apache Beam is an extra with an environment of its own')
    from llm_jax.corpus.engines.beam import Beam

    step = Step(Store(str(tmp_path)), shards(counts))
    Beam(['--runner=FnApiRunner'], range_bytes=2000).exchange(step, lambda *_: None)
    expected = run_in_memory(Numbers(), step.documents_)
    assert [step.store.read(f'{i}/done').decode() for i in range(len(counts))] == [repr(one) for one in expected]


def test_what_is_applied_is_not_done_again(tmp_path):
    step = Step(Store(str(tmp_path)), shards((20, 30)))
    step.store.write('0/done', b'before')
    Local(1).exchange(step, lambda *_: None)
    assert step.store.read('0/done') == b'before' and step.store.read('1/done') != b'before'


def test_slices_of_a_file_are_all_of_it(tmp_path):
    store = Store(str(tmp_path))
    rng = np.random.default_rng(0)
    records = np.zeros(1000, KEYED)
    records['key'] = rng.integers(0, 2**64, 1000, np.uint64)
    records['key'][:3] = 0, 2**64 - 1, 2**63
    records = in_order(records)
    _save(store, 'x.npy', records)
    for parts in (1, 2, 64):
        width = 2**64 // parts
        slices = [_between(store, 'x.npy', 'key', i * width, (i + 1) * width) for i in range(parts)]
        assert (np.concatenate(slices) == records).all()
    _save(store, 'empty.npy', records[:0])
    assert len(_between(store, 'empty.npy', 'key', 0, 2**64)) == 0
