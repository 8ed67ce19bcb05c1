"""Predictions against what a process measures."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

TOOL = pathlib.Path(__file__).parents[2] / 'tools' / 'bench' / 'bench_plan.py'


def measured(part, shape):
    environment = {**os.environ, 'XLA_FLAGS': ''}
    command = [sys.executable, str(TOOL), '--only', part, '--shape', shape]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    return json.loads(done.stdout)[part][shape]


@pytest.mark.skipif(not os.access('/proc/self/clear_refs', os.W_OK), reason='the kernel does not let the peak be reset')
def test_peak_memory_on_eight_devices():
    found = measured('memory', 'plain')
    assert found['compiled'] == pytest.approx(found['measured'], rel=0.15)


@pytest.mark.parametrize('shape', ['latent attention', 'window of 16'])
def test_flops_of_other_layers(shape):
    found = measured('flops', shape)
    assert found['analytic'] == pytest.approx(found['xla'], rel=0.02)
    assert found['text'] == pytest.approx(found['xla'], rel=0.02)


def test_flops_of_experts():
    """Each row meets its own experts alone, and rows that pad a turn are few."""
    found = measured('flops', 'experts, 2 of 4')
    assert found['text'] == pytest.approx(found['analytic'], rel=0.02)
