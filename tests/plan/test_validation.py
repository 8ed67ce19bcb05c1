"""Predictions against what a process measures."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

TOOL = pathlib.Path(__file__).parents[2] / 'tools' / 'bench_plan.py'


@pytest.mark.skipif(not os.access('/proc/self/clear_refs', os.W_OK), reason='the kernel does not let the peak be reset')
def test_peak_memory_on_eight_devices():
    environment = {**os.environ, 'XLA_FLAGS': ''}
    done = subprocess.run([sys.executable, str(TOOL), '--only', 'memory'], capture_output=True, text=True,
                          env=environment, check=True)  # fmt: skip
    found = json.loads(done.stdout)['memory']
    assert found['compiled'] == pytest.approx(found['measured'], rel=0.15)
