"""The canonical order of records, against numpy's own sort by fields."""

import numpy as np
import pytest

from llm_jax.corpus.exchange import ADDRESSED, KEYED, in_order


@pytest.mark.parametrize('spread', [2, 50, 2**31])
@pytest.mark.parametrize('head', [KEYED, ADDRESSED])
def test_in_order_is_by_all_fields(spread, head):
    rng = np.random.default_rng(0)
    records = np.zeros(2000, [*head, ('similarity', '<f4'), ('name', 'S3')])
    for name in records.dtype.names[:-1]:
        records[name] = rng.integers(0, spread, len(records))
    records['name'] = rng.choice([b'', b'a', b'ab', b'b'], len(records))
    expected = np.sort(records, order=records.dtype.names)
    assert in_order(records).tobytes() == expected.tobytes()
    assert in_order(rng.permutation(records)).tobytes() == expected.tobytes()


def test_in_order_of_fields_with_several_values():
    rng = np.random.default_rng(0)
    records = np.zeros(500, [*KEYED, ('values', '<u4', 3)])
    records['values'] = rng.integers(0, 3, (500, 3))
    expected = np.array(sorted(map(tuple, records['values'].tolist())))
    np.testing.assert_array_equal(in_order(records)['values'], expected)


@pytest.mark.parametrize('head', [KEYED, ADDRESSED])
def test_in_order_of_none_and_one(head):
    assert len(in_order(np.zeros(0, head))) == 0
    assert len(in_order(np.zeros(1, head))) == 1
