"""Contract 7 where the layers are split over the hosts: a pipeline whose last stage is killed."""

import shutil
import signal

from jobs import PLAIN, finish, losses, parameters, start, start_several, wait_for_step, write_experiment
import numpy as np
import pytest

from llm_jax.dist import hosts

STEPS = 20
FIELDS = (*PLAIN, f'--config.train.duration={STEPS}', '--config.schedule.warmup=2', '--config.checkpoint.every=4')
# The first process has the first stage, the second the last.
STAGES = (*FIELDS, '--config.mesh.stage=2', '--config.mesh.fsdp=4')


@pytest.mark.slow
def test_a_pipeline_over_two_hosts_that_loses_one_goes_on_as_if_nothing_had_been(tmp_path):
    experiment = write_experiment(tmp_path)
    undisturbed, killed, moved = (tmp_path / name for name in ('undisturbed', 'killed', 'moved'))
    for process in start_several(experiment, undisturbed, *STAGES, devices=4):
        finish(process)

    first, last = start_several(experiment, killed, *STAGES, devices=4)
    wait_for_step(first, killed, 10)  # the save of step 8 waited for that of step 4
    last.kill()
    assert 'error: process 1 on' in finish(first, code=hosts.TRY_AGAIN)
    finish(last, code=-signal.SIGKILL)
    shutil.copytree(killed, moved)

    outputs = [finish(process) for process in start_several(experiment, killed, *STAGES, devices=4)]
    assert 'resumed at step' in outputs[0]
    assert losses(killed, STEPS) == losses(undisturbed, STEPS)
    for ours, theirs in zip(parameters(killed), parameters(undisturbed), strict=True):
        np.testing.assert_array_equal(ours, theirs)

    # On one host, without stages: the same rows, so the same run but for rounding.
    assert 'resumed at step' in finish(start(experiment, moved, *FIELDS, '--config.mesh.fsdp=8', devices=8))
    ours, theirs = (list(losses(run, STEPS).values()) for run in (moved, undisturbed))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
