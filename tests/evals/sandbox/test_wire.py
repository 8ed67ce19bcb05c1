"""Literals as bytes: what goes through, what does not, and bytes that no writer made."""

import collections
from decimal import Decimal
import enum
from fractions import Fraction
import math
import random

import pytest

from llm_jax.evals.sandbox.inside import wire

VALUES = [
    None,
    True,
    False,
    0,
    -1,
    1 << 4000,
    -(1 << 70),
    0.1,
    -0.0,
    math.inf,
    1 + 2j,
    '',
    'héllo 🙂',
    '\ud800',
    b'\x00\xff',
    [],
    [1, [2, (3,)]],
    (),
    (1, 'a'),
    {1, 2},
    frozenset((1, 2)),
    {},
    {'a': {'b': [1]}, (1, 2): None},
    range(2, 9, 3),
    collections.deque([1, 2]),
    collections.Counter('aab'),
    collections.OrderedDict(a=1),
    Decimal('1.50'),
    Fraction(1, 3),
    int,
    type(None),
    bytearray(b'x'),
    {(1, frozenset({2})): {3}},
]


@pytest.mark.parametrize('value', VALUES, ids=repr)
def test_values_come_back(value: object) -> None:
    back = wire.decode(wire.encode(value))
    assert back == value
    assert type(back) is type(value)


def test_nan_and_subclasses_become_plain() -> None:
    class Yes(list):
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = None

    class Colour(enum.IntEnum):
        RED = 3

    class Name(str, enum.Enum):  # noqa: UP042
        A = 'a'

    assert math.isnan(wire.decode(wire.encode(math.nan)))
    assert wire.decode(wire.encode(Yes([1]))) != [2]
    assert wire.decode(wire.encode([Colour.RED, Name.A])) == [3, 'a']
    assert wire.decode(wire.encode(collections.defaultdict(int, a=1))) == {'a': 1}
    assert list(wire.decode(wire.encode(map(abs, [-1, 2])))) == [1, 2]
    assert wire.decode(wire.encode({1: 2}.items())) == [(1, 2)]


def test_what_is_no_literal_is_refused() -> None:
    class Yes:
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = None

    for value in (Yes(), lambda: 1, wire, [Yes()], iter(int, 1)):
        with pytest.raises(wire.Unsendable):
            wire.encode(value)
    nested: list = []
    for _ in range(wire.MAX_DEPTH + 5):
        nested = [nested]
    with pytest.raises(wire.Unsendable, match='deep'):
        wire.encode(nested)


def test_objects_stay_where_they_are_and_answer_nothing() -> None:
    kept: list[object] = []

    def keep(value: object) -> int:
        kept.append(value)
        return len(kept) - 1

    thing = object()
    handle = wire.decode(wire.encode([thing], keep))[0]
    for use in (
        lambda: handle == 1,
        lambda: handle != 1,
        lambda: bool(handle),
        lambda: handle.real,
        lambda: handle + 1,
        lambda: [*handle],
        lambda: handle < 1,
        lambda: handle(),
        lambda: hash(handle),
        lambda: str(handle),
    ):
        with pytest.raises(wire.Unsendable):
            use()
    assert wire.decode(wire.encode((handle,)), kept) == (thing,)
    with pytest.raises(wire.Malformed):
        wire.decode(b'h1:9', kept)


@pytest.mark.parametrize(
    'data',
    [
        b'',
        b'i',
        b'i1:',
        b'i1:g',
        b's5:abc',
        b'l9999999999:',
        b'l2:i1:1',
        b'd1:l0:i1:1',
        b'x0:',
        b'i1:1i1:1',
        b'i-1:1',
        b't2:os',
        b'f3:xyz',
        b'e1:l0:',
        b'h1:z',
        b'i' + b'9' * 50 + b':1',
        b'l1:' * 5000 + b'N0:',
        b'D3:foo',
        b'F3:1/0',
        b'\xff0:',
        b's1:\xff',
    ],
)
def test_bytes_that_are_no_value(data: bytes) -> None:
    with pytest.raises(wire.Malformed):
        wire.decode(data, [])


def test_random_bytes_are_values_or_malformed() -> None:
    rng = random.Random(0)
    whole = wire.encode(VALUES)
    for _ in range(3000):
        data = bytearray(whole)
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            wire.decode(bytes(data))
        except wire.Malformed:
            continue
