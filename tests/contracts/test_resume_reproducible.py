"""Reproducible training as users run it: the command, XLA's default optimisation, real numbers of devices."""

from jobs import PLAIN, finish, losses, parameters, start, start_several, write_experiment
import numpy as np
import pytest

STEPS = 6
FIELDS = (
    *PLAIN, '--config.train.reproducible=True', f'--config.train.duration={STEPS}', '--config.schedule.warmup=2',
    '--config.model.scan=False', '--config.model.remat=full', '--config.model.d_model=128', '--config.data.seq_len=128',
)  # fmt: skip


@pytest.mark.slow
def test_one_device_and_two_hosts_of_two_are_bit_equal(tmp_path):
    experiment = write_experiment(tmp_path)
    one, four = tmp_path / 'one', tmp_path / 'four'
    finish(start(experiment, one, *FIELDS))
    for process in start_several(experiment, four, *FIELDS, devices=2):
        finish(process)
    assert losses(four, STEPS) == losses(one, STEPS)
    for ours, theirs in zip(parameters(four), parameters(one), strict=True):
        np.testing.assert_array_equal(ours, theirs)
