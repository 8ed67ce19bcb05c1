"""Packing puts every token in the rows, and makes each but the first a target once."""

import numpy as np
import pytest

from llm_jax.data import pack

BOS = 1


def random_documents(rng, n):
    return [rng.integers(4, 1000, rng.integers(0, 40)).tolist() for _ in range(n)]


@pytest.mark.parametrize('seq_len', [1, 2, 7, 16, 500])
@pytest.mark.parametrize('count', [0, 1, 2, 50])
def test_every_token_is_a_target_exactly_once(seq_len, count):
    documents = random_documents(np.random.default_rng(seq_len * 100 + count), count)
    stream = [t for d in documents for t in [BOS, *d]]
    rows = list(pack.pack(documents, seq_len=seq_len, bos_id=BOS, vocab_size=1000, keep_tail=True))
    inputs = [t for row, n in rows for t in row[: n - 1].tolist()]
    targets = [t for row, n in rows for t in row[1:n].tolist()]
    assert targets == stream[1:]
    assert inputs == stream[:-1]
    assert all(row.shape == (seq_len + 1,) and row.dtype == np.uint16 for row, _ in rows)
    assert all(2 <= n <= seq_len + 1 for _, n in rows)
    assert all(n == seq_len + 1 for _, n in rows[:-1])


@pytest.mark.parametrize('seq_len', [3, 8])
def test_training_drops_only_the_incomplete_tail(seq_len):
    documents = random_documents(np.random.default_rng(0), 20)
    options = {'seq_len': seq_len, 'bos_id': BOS, 'vocab_size': 1000}
    kept = list(pack.pack(documents, keep_tail=True, **options))
    dropped = list(pack.pack(documents, keep_tail=False, **options))
    stream = sum(len(d) + 1 for d in documents)
    assert len(dropped) == (stream - 1) // seq_len
    assert 0 <= len(kept) - len(dropped) <= 1
    for (a, n), (b, m) in zip(dropped, kept, strict=False):
        assert n == m == seq_len + 1 and (a == b).all()


def test_a_row_outlives_the_stream():
    rows = [row for row, _ in pack.pack([[5] * 10, [6] * 10], seq_len=4, bos_id=BOS, vocab_size=9, keep_tail=True)]
    assert rows[0].tolist() == [1, 5, 5, 5, 5] and rows[1].tolist() == [5, 5, 5, 5, 5]


def test_the_largest_token_fits():
    assert pack.row_dtype(65536) is np.uint16 and pack.row_dtype(65537) is np.uint32
    for vocab in (65536, 65537, 200_000):
        ((row, n),) = pack.pack([[vocab - 1]], seq_len=1, bos_id=BOS, vocab_size=vocab, keep_tail=False)
        assert row.tolist() == [1, vocab - 1] and n == 2


@pytest.mark.parametrize('seq_len', [1, 2, 7, 16, 500])
@pytest.mark.parametrize('count', [0, 1, 2, 200])
def test_best_fit_keeps_documents_whole(seq_len, count):
    rng = np.random.default_rng(seq_len * 100 + count)
    documents = [[i + 10, *d] for i, d in enumerate(random_documents(rng, count))]  # all different
    rows = list(pack.best_fit(documents, seq_len=seq_len, bos_id=BOS, vocab_size=1000))
    found = []
    for row, n in rows:
        assert row.shape == (seq_len + 1,) and row.dtype == np.uint16 and 2 <= n <= seq_len + 1
        assert row[0] == BOS and (row[n:] == BOS).all()
        starts = [*np.flatnonzero(row[:n] == BOS).tolist(), n]
        found += [tuple(row[a + 1 : b].tolist()) for a, b in zip(starts[:-1], starts[1:], strict=True)]
    pieces = [tuple(d[i : i + seq_len]) for d in documents for i in range(0, len(d), seq_len)]
    assert sorted(found) == sorted(pieces)


def test_best_fit_is_as_tight_as_the_textbook():
    """Against best-fit decreasing by looking at every bin."""
    rng = np.random.default_rng(0)
    sizes = sorted(rng.integers(2, 34, 500).tolist(), reverse=True)
    bins: list[int] = []
    for size in sizes:
        room = [(33 - used, i) for i, used in enumerate(bins) if 33 - used >= size]
        if room:
            bins[min(room)[1]] += size
        else:
            bins.append(size)
    documents = [[7] * (size - 1) for size in rng.permutation(sizes)]
    rows = list(pack.best_fit(documents, seq_len=32, bos_id=BOS, vocab_size=9))
    assert len(rows) == len(bins) and sorted(n for _, n in rows) == sorted(bins)


def test_best_fit_forgets_empty_documents():
    assert list(pack.best_fit([[], []], seq_len=4, bos_id=BOS, vocab_size=9)) == []
    (row,) = pack.best_fit([[], [5]], seq_len=4, bos_id=BOS, vocab_size=9)
    assert row[0].tolist() == [1, 5, 1, 1, 1] and row[1] == 2
