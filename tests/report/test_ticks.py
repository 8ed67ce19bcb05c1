"""Ticks are round, at least three, and their labels are distinct and apart."""

import itertools

import pytest

from llm_jax.report.ticks import place_ticks, spread_apart, tick_labels

RANGES = [
    (0, 1),
    (0.0123, 0.0125),
    (6.4, 7.1),
    (-3, 63),
    (1e6, 3.7e7),
    (2.0, 2.0001),
    (-1e-5, 8e-5),
    (0, 588.8),
    (0, 1e30),
]


@pytest.mark.parametrize(('low', 'high'), RANGES)
def test_a_plain_axis(low, high):
    ticks = place_ticks(low, high)
    assert 3 <= len(ticks) <= 7 and low <= ticks[0] and ticks[-1] <= high * (1 + 1e-9)
    steps = [b - a for a, b in itertools.pairwise(ticks)]
    assert max(steps) == pytest.approx(min(steps), rel=1e-3)
    labels = tick_labels(ticks)
    assert len(set(labels)) == len(labels) and max(map(len, labels)) <= 8


@pytest.mark.parametrize(('low', 'high'), [(1, 1.5), (0.03, 30), (64, 512), (1e-9, 1), (3, 4e6), (350, 480), (5, 5.2)])
def test_a_logarithmic_axis(low, high):
    ticks = place_ticks(low, high, log=True)
    assert 3 <= len(ticks) <= 14 and all(low <= tick <= high for tick in ticks)
    labels = tick_labels(ticks, even=False)
    assert len(set(labels)) == len(labels)


def test_steps_are_whole():
    for high in (1, 2, 3, 7, 60, 123_456):
        assert all(tick == int(tick) for tick in place_ticks(0, high, whole=True))


def test_labels():
    assert tick_labels([0, 0.5, 1]) == ['0.0', '0.5', '1.0']
    assert tick_labels([0, 10_000, 20_000]) == ['0', '10 k', '20 k']
    assert tick_labels([0, 1e-5, 2e-5]) == ['0', '1e-5', '2e-5']
    assert tick_labels([0.01, 1, 100], even=False) == ['0.01', '1', '100']
    assert tick_labels([9e29, 1e30]) == ['9e29', '1e30']


def test_what_would_touch_is_left_out():
    at, sizes = [0, 10, 20, 30, 40], [8] * 5
    assert spread_apart(at, sizes, gap=1) == [True] * 5
    assert spread_apart(at, sizes, gap=4) == [True, False, True, False, True]
    assert spread_apart(at, [100] * 5, gap=1) == [True, False, False, False, False]
    assert spread_apart([], [], gap=1) == []
