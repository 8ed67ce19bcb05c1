"""Training order is a function of (seed, step): complete, reshuffled, exact to resume and to share out."""

import collections
import time

import numpy as np
import pytest

from llm_jax.config import schema
from llm_jax.config.schema import ConfigError
from llm_jax.data import array_record, prepare
from llm_jax.data import batches as batches_lib

L = 7
SIZES = {'a': 50, 'b': 23}


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
    """Rows that say who they are: source k, row i is [1000 k + i, ...]."""
    directory = tmp_path_factory.mktemp('rows')
    splits = {'train': {}, 'validation': {}, 'test': {}}
    for k, (name, size) in enumerate(SIZES.items()):
        rows = [(np.full(L + 1, 1000 * k + i, np.uint16), L + 1) for i in range(size)]
        tail = [(np.full(L + 1, 1000 * k + size - 1, np.uint16), 3)]
        held = rows[: size // 3] + tail
        array_record.write(directory / name, {'train': rows, 'validation': held}, seq_len=L, dtype=np.uint16)
        splits['train'][name] = {'rows': size, 'directory': name}
        splits['validation'][name] = {'rows': len(held), 'directory': name}
    return prepare.Prepared(directory, None, {'seq_len': L, 'splits': splits})


def ids(batch):
    return batch[:, 0].tolist()


def stream(rows, steps):
    return [i for step in range(steps) for i in ids(rows[step])]


EVERY = [*range(50), *range(1000, 1023)]


def test_each_epoch_has_every_row_once_in_an_order_of_its_own(prepared):
    rows = batches_lib.TrainRows(prepared, {}, seed=0, batch_size=8)
    assert rows.rows_per_epoch == 73 and rows[0].shape == (8, L + 1) and rows[0].dtype == np.int32
    order = stream(rows, 40)
    epochs = [order[i * 73 : (i + 1) * 73] for i in range(4)]
    for epoch in epochs:
        assert sorted(epoch) == EVERY and epoch != EVERY
    assert len({tuple(epoch) for epoch in epochs}) == 4
    other = stream(batches_lib.TrainRows(prepared, {}, seed=1, batch_size=8), 9)
    assert order[:72] != other


def test_the_order_does_not_depend_on_the_batch_size(prepared):
    small, large = (batches_lib.TrainRows(prepared, {}, seed=3, batch_size=b) for b in (4, 12))
    assert stream(small, 30) == stream(large, 10)


@pytest.mark.parametrize('mixture', [{}, {'a': 0.3, 'b': 0.7}])
@pytest.mark.parametrize('hosts', [1, 2, 4])
def test_hosts_share_the_same_global_batch(prepared, mixture, hosts):
    whole = batches_lib.TrainRows(prepared, mixture, seed=0, batch_size=8)
    for make in (lambda h: range(h * 8 // hosts, (h + 1) * 8 // hosts), lambda h: range(h, 8, hosts)):
        shares = [make(h) for h in range(hosts)]
        parts = [batches_lib.TrainRows(prepared, mixture, 0, 8, rows=share) for share in shares]
        for step in (0, 5, 9, 1000):
            joined = np.empty((8, L + 1), np.int32)
            for part, share in zip(parts, shares, strict=True):
                joined[list(share)] = part[step]
            assert (joined == whole[step]).all()


@pytest.mark.parametrize('weights', [{'a': 0.7, 'b': 0.3}, {'a': 1.0, 'b': 2.0}, {'a': 0.0, 'b': 5.0}])
def test_mixture_proportions_are_exact_and_even(prepared, weights):
    rows = batches_lib.TrainRows(prepared, weights, seed=0, batch_size=100)
    share = weights['a'] / sum(weights.values())
    order = np.array(stream(rows, 100)) < 1000
    assert order.sum() == round(10_000 * share)
    # Even over any stretch, not only over the period.
    drawn, at = np.cumsum(order), np.arange(1, 10_001)
    assert np.abs(drawn - share * at).max() <= 1.5


def test_each_source_of_a_mixture_gives_all_its_rows_before_it_repeats(prepared):
    rows = batches_lib.TrainRows(prepared, {'a': 0.5, 'b': 0.5}, seed=0, batch_size=10)
    order = stream(rows, 1100)  # beyond one period of the pattern
    for low, size in ((0, 50), (1000, 23)):
        mine = [i for i in order if low <= i < low + 1000]
        epochs = [tuple(mine[i : i + size]) for i in range(0, len(mine) - size, size)]
        assert all(sorted(epoch) == list(range(low, low + size)) for epoch in epochs)
        assert len(set(epochs)) == len(epochs) > 100


@pytest.mark.parametrize('size', [1, 2, 100, 1024, 1025, 3000])
def test_shuffles_are_permutations(size):
    epochs = batches_lib._shuffled(np.arange(3 * size), size, seed=0, name='x').reshape(3, size)
    assert (np.sort(epochs) == np.arange(size)).all()
    if size >= 100:
        assert len({tuple(epoch) for epoch in epochs.tolist()}) == 3
        assert abs(np.corrcoef(epochs[0], np.arange(size))[0, 1]) < 0.3
    one = [batches_lib._shuffled(np.array([i]), size, 0, 'x')[0] for i in range(size)]
    assert one == epochs[0].tolist()  # an index alone is what it is among others


def test_the_order_is_pinned():
    """A change here would change what a resumed run sees."""
    assert batches_lib._shuffled(np.arange(6), 6, seed=0, name='rows').tolist() == [3, 2, 4, 0, 5, 1]
    of_many = batches_lib._shuffled(np.arange(6), 5000, seed=0, name='rows').tolist()
    assert of_many == [2480, 1423, 3894, 418, 2796, 4805]


def test_quotas_sum_and_pattern_covers():
    for shares in ([0.5, 0.5], [1 / 3] * 3, [0.9999, 0.0001], [0.123456, 0.876544]):
        counts = batches_lib._quotas(np.array(shares), 10_000)
        assert counts.sum() == 10_000 and np.abs(counts - np.array(shares) * 10_000).max() < 1
        assert collections.Counter(batches_lib._pattern(counts).tolist()) == dict(enumerate(counts.tolist()))


@pytest.mark.parametrize('weights, says', [
    ({'a': 1.0, 'c': 1.0}, r"gives a weight to \['c'\], whose training split has no row"),
    ({'a': -1.0, 'b': 2.0}, 'at least 0'),
    ({'a': 0.0, 'b': 0.0}, 'one is above 0'),
    ({'a': 1.0, 'b': 1e-6}, r"raise the weight of \['b'\]"),
])  # fmt: skip
def test_mixtures_that_are_wrong(prepared, weights, says):
    with pytest.raises(ConfigError, match=says):
        batches_lib.TrainRows(prepared, weights, seed=0, batch_size=8)


@pytest.mark.parametrize('mixture', [{}, {'a': 0.3, 'b': 0.7}])
def test_resume_at_every_step_is_exact(prepared, mixture, monkeypatch):
    monkeypatch.setattr(batches_lib, '_READ_ROWS', 20)  # several reads
    rows = batches_lib.TrainRows(prepared, mixture, seed=0, batch_size=6)
    straight = list(batches_lib.loader(rows, 0, 25, prefetch=4))
    assert len(straight) == 25 and rows.steps_per_read == 4
    assert all((batch == rows[step]).all() for step, batch in enumerate(straight))
    for start in range(26):
        again = batches_lib.TrainRows(prepared, mixture, seed=0, batch_size=6)
        rest = list(batches_lib.loader(again, start, 25, prefetch=4))
        assert len(rest) == 25 - start
        assert all((x == y).all() for x, y in zip(rest, straight[start:], strict=True))


def test_loader_counts_the_wait():
    class Slow:
        steps_per_read = 1

        def read(self, start, stop):
            time.sleep(0.02)
            return np.arange(start, stop).reshape(-1, 1, 1)

    batches = batches_lib.loader(Slow(), 0, 20, prefetch=2)
    for _ in range(10):
        next(batches)
    waited = batches.wait_seconds()
    assert 0.05 < waited < 2 and batches.wait_seconds() == 0
    time.sleep(0.2)  # time to read ahead
    next(batches)
    assert batches.wait_seconds() < 0.02
    assert [int(b[0, 0]) for b in batches] == list(range(11, 20))


def test_errors_of_the_reader_reach_the_consumer():
    broken = type('Broken', (), {'steps_per_read': 1, 'read': lambda self, start, stop: 1 // 0})()
    with pytest.raises(ZeroDivisionError):
        next(batches_lib.loader(broken, 0, 2, prefetch=1))


def reference_validation():
    out = []
    for k, size in enumerate(SIZES.values()):
        out += [[1000 * k + i] * (L + 1) for i in range(size // 3)]
        out.append([1000 * k + size - 1] * 3 + [-1] * (L - 2))
    return np.array(out)


@pytest.mark.parametrize('batch_size', [1, 4, 5, 25, 64])
def test_evaluation_sees_every_row_once(prepared, batch_size):
    expected = reference_validation()
    batches = list(batches_lib.eval_batches(prepared, 'validation', batch_size))
    assert all(b.shape == (batch_size, L + 1) and b.dtype == np.int32 for b in batches)
    assert len(batches) == -(-len(expected) // batch_size)
    joined = np.concatenate(batches)
    assert (joined[: len(expected)] == expected).all() and (joined[len(expected) :] == -1).all()


@pytest.mark.parametrize('hosts', [2, 4])
def test_evaluation_shares(prepared, hosts):
    whole = list(batches_lib.eval_batches(prepared, 'validation', 8))
    parts = [
        list(batches_lib.eval_batches(prepared, 'validation', 8, rows=range(h * 8 // hosts, (h + 1) * 8 // hosts)))
        for h in range(hosts)
    ]
    assert all((np.concatenate(share) == b).all() for *share, b in zip(*parts, whole, strict=True))


def test_evaluation_of_a_part_is_spread_over_the_split(prepared):
    batches = list(batches_lib.eval_batches(prepared, 'validation', 4, max_batches=2))
    got = np.concatenate(batches)
    every = {tuple(row) for row in reference_validation()}
    assert len(batches) == 2 and len({tuple(r) for r in got}) == 8 and {tuple(r) for r in got} <= every
    assert (got[:, 0] >= 1000).any()
    assert len(list(batches_lib.eval_batches(prepared, 'validation', 4, max_batches=99))) == 7
    assert list(batches_lib.eval_batches(prepared, 'test', 4)) == []


def test_from_text_to_batches(tmp_path):
    """Every byte of every training document is a target in an epoch, but for the dropped tail."""
    for i in range(30):
        (tmp_path / f'{i}.txt').write_text(f'text number {i}\n' * 20)
    config = schema.Data(
        sources={'t': f'text:{tmp_path}/*.txt'},
        validation_fraction=0.2,
        seq_len=16,
        tokenizer=schema.Tokenizer(vocab_size=280),
        cache_dir=str(tmp_path / 'cache'),
    )
    prepared = prepare.prepare(config, seed=0)
    rows = batches_lib.TrainRows(prepared, {}, seed=0, batch_size=1)
    targets = np.concatenate([rows[step][:, 1:] for step in range(rows.rows_per_epoch)])
    seen = prepared.tokenizer.token_bytes[targets].sum()
    total = prepared.count('train', 'bytes')
    assert 0 <= total - seen <= 16 * prepared.tokenizer.token_bytes.max()
