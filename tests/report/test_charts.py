"""Charts of awkward data: nothing is cut off, lies on another thing, or is without a scale."""

import functools

import drawn
import numpy as np
import pytest

from llm_jax.report import charts
from llm_jax.report.charts import MAIN, SECOND, Axis, Band, Bar, Dots, Line, Rule, Steps, Value

LONG = 'a corpus whose name is that of a whole path/and/then/some more <of> it & "so" on'
STEPS = Axis('step', whole=True)
CASES = {
    'one point': ([Line([1], [7.6], label='training')], {'x': STEPS}),
    'two steps': ([Line([1, 2], [7.6, 7.5])], {'x': STEPS}),
    'a constant': ([Line([1, 50, 100], [3e-4] * 3)], {'x': STEPS}),
    'huge': ([Line([1, 2, 3], [1e30, 2e30, 3e30])], {'x': STEPS}),
    'tiny': ([Line([0, 1e6, 5e7], [1e-9, 2e-9, 9e-9])], {'x': STEPS}),
    'nearly equal': ([Line([1, 2, 3], [1e6, 1e6 + 1, 1e6 + 2])], {}),
    'a gap': ([Line([1, 2, 3, 4], [1, np.nan, np.inf, 2])], {'x': STEPS}),
    'many lines': ([Line([1, 2], [i, 2 * i], charts.SERIES[i % 7], f'{i} {LONG}') for i in range(9)], {}),
    'logarithmic': ([Line([64, 512], [350, 440])], {'x': Axis('position', log=True), 'y': Axis(log=True)}),
    'narrow logarithmic': ([Band([1, 2], [0.9, 0.8], [1.1, 1.2], 'flat')], {'x': Axis(log=True), 'y': Axis(log=True)}),
    'histogram': ([Steps([0.1, 0.9], [1, 1e3, 1e6], label='kept', filled=True)], {'x': Axis(log=True), 'small': True}),
    'rows': (
        [Dots([1.0, 1.1], [0, 1], error=[0.1, 0.2]), Dots([1.2], [1], SECOND, 'a seed')],
        {'y': Axis(ticks={0: LONG, 1: 'b'}, reverse=True, limits=(-0.6, 1.6)), 'height': 114},
    ),
    'a bar': (
        [Bar(0, 0, 588.8), Value(588.8, 0, '588.8 GiB'), Rule(74.5)],
        {'y': Axis(ticks={0: 'average of parameters'}), 'x': Axis('GiB', limits=(0, 588.8)), 'height': 66},
    ),
    'bars': (
        [mark for i in range(12) for mark in (Bar(i, i, 1, MAIN), Value(i + 1, i, '1,234.5 GiB'))],
        {'y': Axis(ticks={i: f'part {i}' for i in range(12)}, reverse=True), 'x': Axis('GiB'), 'height': 297},
    ),
}  # fmt: skip


@functools.cache
def svg_of(case):
    marks, axes = CASES[case]
    return charts.draw(case, 'a note', marks, **axes).svg


@pytest.mark.parametrize('case', CASES)
def test_everything_is_legible(case):
    _, axes = CASES[case]
    assert drawn.faults(svg_of(case)) == []
    below, beside = drawn.ticks(svg_of(case))
    if case not in ('rows', 'a bar', 'bars'):
        assert len(beside) >= 3, beside
    assert len(below) >= (2 if 'logarithmic' in case or case == 'two steps' else 3), below
    assert all(label.isdigit() for label in below) or axes.get('x') is not STEPS or case == 'tiny'


def test_letters_are_alike_in_all_charts():
    """A chart of one bar has the width of one of many, so that its letters are not blown up."""
    widths = {drawn.size(svg_of(case))[0] for case in CASES}
    assert widths == {charts.WIDTH, charts.SMALL_WIDTH}
    assert f'max-width: {round(charts.ENLARGED * charts.WIDTH)}px' in svg_of('a bar')
    assert 'font-family' not in svg_of('a bar')  # that of the page


def test_names_mean_nothing_to_svg_or_mathematics():
    svg = charts.draw('t', '', [Line([1, 2], [1, 2], label='$x_1$ <b>\x1b[0m')]).svg
    assert '$x_1$ &lt;b&gt;\\x1b[0m' in svg


def test_a_line_of_very_many_points_is_thinned():
    few, many = (len(charts.draw('t', '', [Line(range(n), range(n))]).svg) for n in (800, 50_000))
    assert many < 1.2 * few


def test_values_are_right_of_their_bars():
    values = [text for text in drawn.texts(svg_of('bars')) if text.text == '1,234.5 GiB']
    assert len(values) == 12 and max(text.right for text in values) <= charts.WIDTH
