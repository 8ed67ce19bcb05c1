"""What the page of a plan is given."""

import pathlib
import subprocess

from small import config

from llm_jax.plan import page, search, topology

ROOT = pathlib.Path(__file__).parents[2]
H100 = topology.parse_gpu('h100', 8)


def test_pages_go_where_git_does_not_look():
    assert page.default_path('llama3_8b', topology.parse_tpu('v5p:2x2x2', 1)) == 'plans/llama3_8b-v5p-2x2x2.html'
    assert page.default_path('a b/../c', H100) == 'plans/a-b-..-c-8-h100.html'
    ignored = subprocess.run(['git', 'check-ignore', '-q', 'plans/x.html'], cwd=ROOT, check=False)
    assert ignored.returncode in (0, 128)  # 128: not a clone


def test_all_that_was_planned():
    tried = search.search(config(), H100, None, compile_best=1, progress=lambda text: None)
    best = next(one for one in tried if one.fits)
    plan = page.collect(best.outcome, command='./tools/run plan', budget=None, price=None, tried=tried)
    assert plan.total == best.outcome.memory.total and plan.fits
    lanes = {lane.name: lane for lane in plan.lanes}
    assert {'operations', 'compute', 'HBM', 'NVLink', 'network'} <= lanes.keys()
    end = lanes['operations'].start + lanes['operations'].seconds
    assert end <= plan.seconds * (1 + 1e-9)
    assert sum('best' in point.role for point in plan.tried) == 1
    assert all(len(row) == len(table.header) for table in plan.tables for row in table.rows)
