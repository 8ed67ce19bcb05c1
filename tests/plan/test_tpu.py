"""Plans by the real TPU compiler; without it these are skipped."""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

LIBTPU = os.environ.get('LLM_JAX_LIBTPU', '')
needs_libtpu = pytest.mark.skipif(
    not os.path.isfile(LIBTPU), reason='no TPU compiler: LLM_JAX_LIBTPU names no file (./tools/run test fetches it)'
)
TOOL = pathlib.Path(__file__).parents[2] / 'tools' / 'plan.py'
EXPERIMENT = """
from llm_jax import config as config_lib

def get_config():
    config = config_lib.default()
    config.model.update(vocab_size=2048, d_model=512, n_layers=2, n_heads=8, dtype='bfloat16')
    config.data.seq_len, config.train.batch_size, config.mesh.tensor = 256, 16, 2
    return config
"""


def plan(tmp_path, *arguments):
    """Runs the tool on a small experiment in a process of its own, as libtpu wants it."""
    path = tmp_path / 'small.py'
    path.write_text(EXPERIMENT)
    environment = {**os.environ, 'COLUMNS': '160', 'XLA_FLAGS': ''}
    return subprocess.run(
        [sys.executable, str(TOOL), str(path), *arguments, '--out', str(tmp_path / 'plan.html')],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip


@needs_libtpu
def test_a_plan_is_printed_and_drawn(tmp_path):
    done = plan(tmp_path, '--topology', 'v5e:2x4', '--price', '1.2', '--tokens', '1e9')
    assert done.returncode == 0, done.stderr
    assert 'fits' in done.stdout
    for text in ('compiled', 'chip-hours', 'at 1.2 a chip-hour', 'KV cache', 'tensor', 'bound by'):
        assert text in done.stdout
    page = (tmp_path / 'plan.html').read_text()
    assert page.count('<svg') == 2
    assert 'http' not in page.replace('http-equiv', '')


@needs_libtpu
def test_what_does_not_fit_says_what_would(tmp_path):
    large = ('--config.model.d_model=4096', '--config.model.n_layers=8', '--config.train.batch_size=256',
             '--config.data.seq_len=1024')  # fmt: skip
    done = plan(tmp_path, '--topology', 'v5e:2x4', *large)
    assert done.returncode == 2
    assert 'does not fit' in done.stderr
    assert 'too much' in done.stderr
    assert 'The cheapest change that would fit' in done.stderr
    assert '--config.' in done.stderr.partition('cheapest')[2]


@needs_libtpu
def test_slices_are_joined_by_the_axis_data(tmp_path):
    done = plan(tmp_path, '--topology', 'v5e:2x2', '--slices', '2', '--config.mesh.data=2')
    assert done.returncode == 0, done.stderr
    assert 'v5e:2x2 × 2 slices' in done.stdout
    crossing = [line.split() for line in done.stdout.splitlines() if line.strip().startswith('all-reduce')]
    assert any('data' in line for line in crossing)


@needs_libtpu
def test_topologies_of_every_generation_exist_for_the_compiler():
    code = """
import json
from llm_jax.plan import topology
with topology.compiler():
    print(json.dumps({name: len(topology.tpu_devices(topology.parse_tpu(name)))
                      for name in ('v4:2x2x2', 'v5e:1x1', 'v5e:4x8', 'v5p:2x2x4', 'v6e:16x16', '7x:4x4x4')}))
"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == {
        'v4:2x2x2': 8, 'v5e:1x1': 1, 'v5e:4x8': 32, 'v5p:2x2x4': 16, 'v6e:16x16': 256, '7x:4x4x4': 128,
    }  # fmt: skip


def test_gpus_are_planned_by_numbers(tmp_path):
    # As it stands each layer waits for eight devices four times, which is far from the best.
    done = plan(tmp_path, '--gpu', 'h100', '--devices', '16', '--search', '--analytic', '--config.mesh.tensor=8',
                '--config.mesh.fsdp=2')  # fmt: skip
    assert done.returncode == 0, done.stderr
    best = re.search(r'^the best: (.*)', done.stdout, re.M)[1]
    assert re.search(r'--config\.mesh\.tensor=[124]\b', best)
    assert 'analytic' in done.stdout
    assert (tmp_path / 'plan.html').read_text().count('<svg') == 3


@pytest.mark.parametrize(
    ('arguments', 'says'),
    [
        ((), 'give either --topology'),
        (('--topology', 'v5p:2x2x1', '--analytic'), '--analytic is for --gpu'),
        (('--topology', 'v5p:8x8'), 'there are, for example, v5p:2x2x1'),
        (('--gpu', 'h100', '--price', 'cheap'), "--price = 'cheap' is not a number"),
        (('--gpu', 'h100', '--devices', '8', '--config.mesh.tensor=16'), 'does not fit 8 device'),
    ],
)
def test_mistakes_are_one_line(tmp_path, arguments, says):
    done = plan(tmp_path, *arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert 'Traceback' not in done.stderr
