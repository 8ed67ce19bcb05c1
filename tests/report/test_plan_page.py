"""The page of a plan: bars, the front of a search, and numbers for a phone."""

import itertools
import re

import drawn
import numpy as np
import pytest

from llm_jax.report import plan as report
from llm_jax.report.page import Card
from llm_jax.report.plan import Fact, Lane, Part, Plan, Point, stairs
from llm_jax.report.tables import Table

GIB = 2**30
POINTS = [
    Point(x * GIB, y, fits, source, role)
    for x, y, fits, source, role in [
        (40, 0.50, True, 'compiled', 'best'), (30, 0.55, True, 'analytic', ''), (35, 0.60, True, 'analytic', ''),
        (20, 0.70, True, 'analytic', 'as it stands'), (20, 0.80, True, 'analytic', ''),
        (90, 0.45, False, 'analytic', ''),
    ]
]  # fmt: skip


def plan(**fields):
    values = {
        'name': 'small', 'machine': '8 × h100', 'verdict': 'fits: 40.0 GiB of 74.5 GiB a chip',
        'cards': [Card('step', '90.3 ms', 'bound by compute')],
        'parts': [Part('parameters', 10 * GIB, True), Part('activations', 30 * GIB, False)],
        'limit': 74.5 * GIB, 'source': 'analytic',
        'lanes': [Lane('operations', 0.1, 0.4, 0.4), Lane('NVLink', 0, 0.2, 0.1, True), Lane('network', 0, 0, 0, True)],
        'seconds': 0.5, 'bound': 'compute', 'tried': POINTS,
        'facts': [('Step', [Fact('step at the roofline', '90.3 ms', 'analytic')])],
        'tables': [Table('Tried', ('configuration', *'abcdef'), [('fsdp 8, remat none', *6 * ('1,234.5 GiB',))])],
        'notes': [], 'command': "./tools/run plan 'x y.py' --gpu h100",
    }  # fmt: skip
    return Plan(**{**values, **fields})


def svgs(tmp_path, made):
    report.write(tmp_path / 'new' / 'plan.html', made)
    return re.findall(r'<svg.*?</svg>', (tmp_path / 'new' / 'plan.html').read_text(), re.DOTALL)


def test_every_chart_is_legible(tmp_path):
    for made in (plan(), plan(limit=5 * GIB), plan(tried=POINTS[:1]), plan(tried=POINTS[-1:]), plan(tried=[])):
        found = svgs(tmp_path, made)
        assert len(found) == 2 + bool(made.tried)
        for svg in found:
            assert drawn.faults(svg) == []
            assert len(drawn.ticks(svg)[0]) >= 3


def test_stairs_go_down_where_memory_grows():
    x, y = stairs([point for point in POINTS if point.fits], 74.5 * GIB)
    assert [value / GIB for value in x] == [20, 30, 30, 40, 40, 74.5] and y == [0.7, 0.7, 0.55, 0.55, 0.5, 0.5]
    assert stairs([], GIB) == ([], [])


def test_what_matters_is_shown_however_slow(tmp_path):
    slow = [Point(9 * GIB, seconds, True, 'analytic') for seconds in (0.1, 3.0)]
    slow.append(Point(10 * GIB, 5.0, True, 'compiled', 'best'))
    text = svgs(tmp_path, plan(tried=slow))[2]
    assert '>best<' in text and '>fits, compiled<' in text
    assert '2 of 3 configurations' in (tmp_path / 'new' / 'plan.html').read_text().replace('\xa0', ' ')


def test_no_point_is_below_the_stairs():
    rng = np.random.default_rng(0)
    points = [Point(*values, True, 'analytic') for values in rng.uniform(1, 2, (200, 2))]
    x, y = stairs(points, 3.0)
    assert all(b >= a for a, b in itertools.pairwise(x)) and all(b <= a for a, b in itertools.pairwise(y))
    for point in points:  # the lowest of the stairs at its memory
        assert point.seconds >= min(t for m, t in zip(x, y, strict=True) if m <= point.bytes)
    assert (min(p.bytes for p in points), min(p.seconds for p in points)) == (x[0], y[-1])


def test_the_front_is_drawn_so(tmp_path):
    corners = drawn.corners(svgs(tmp_path, plan())[2], 'var(--third)')
    front = corners[:6]  # then the line of the legend
    assert [a[0] <= b[0] and a[1] >= b[1] for a, b in itertools.pairwise(front)] == [True] * 5


@pytest.mark.parametrize('limit', [5, 74.5])
def test_what_the_page_says(tmp_path, limit):
    report.write(tmp_path / 'plan.html', plan(limit=limit * GIB, tried=[]))
    text = (tmp_path / 'plan.html').read_text()
    assert ('does not fit' in text) == (limit < 40) and f'>{round(4000 / limit)}</b>' in text
    for shown in ('10.0 GiB', '30.0 GiB', '40.0 GiB', 'idle'):
        assert shown in text
    assert '&#39;x y.py&#39;' in re.sub(r'</?span[^>]*>', '', text)
