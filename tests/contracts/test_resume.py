"""Contract 7: save, kill, resume equals never stopping.

Real processes of the real command, killed with real signals.
"""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import jax
from jobs import (
    PLAIN,
    ROOT,
    STEPS,
    children,
    finish,
    losses,
    parameters,
    start,
    start_several,
    wait_for_step,
    write_experiment,
)  # fmt: skip
import numpy as np
import pytest

from llm_jax.metrics import profile, read_jsonl


@pytest.fixture(scope='module')
def experiment(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return write_experiment(tmp_path_factory.mktemp('resume'))


@pytest.fixture(scope='module')
def undisturbed(experiment: pathlib.Path) -> pathlib.Path:
    run_dir = experiment.parent / 'undisturbed'
    finish(start(experiment, run_dir))
    return run_dir


def test_kill_and_terminate_at_several_points_equal_never_stopping(experiment, undisturbed, tmp_path):
    run_dir = tmp_path / 'disturbed'
    for step, how in ((3, signal.SIGKILL), (9, signal.SIGKILL), (16, signal.SIGTERM), (30, signal.SIGKILL)):
        process = start(experiment, run_dir)
        wait_for_step(process, run_dir, step)
        process.send_signal(how)
        output = finish(process, code=0 if how == signal.SIGTERM else -signal.SIGKILL)
        if how == signal.SIGTERM:
            assert 'SIGTERM: saved at step' in output
        if step == 9:
            # What a kill in the middle of a save leaves: a directory that never got its final name.
            (run_dir / 'checkpoints' / '12.orbax-checkpoint-tmp' / 'params').mkdir(parents=True)
    output = finish(start(experiment, run_dir))
    assert 'resumed at step' in output
    assert losses(run_dir) == losses(undisturbed)
    for ours, theirs in zip(parameters(run_dir), parameters(undisturbed), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert not list((run_dir / 'checkpoints').glob('*tmp*')), 'half-written checkpoints are removed, and never loaded'


def test_a_finished_run_says_that_it_is_done(experiment, undisturbed):
    before = (undisturbed / 'metrics.jsonl').read_text()
    output = finish(start(experiment, undisturbed))
    assert f'is done: {STEPS} of {STEPS} steps' in output
    assert (undisturbed / 'metrics.jsonl').read_text() == before
    assert json.loads((undisturbed / 'run.json').read_text())['status'] == 'finished'


def test_resume_on_another_mesh_is_the_same_run_within_rounding(experiment, undisturbed, tmp_path):
    run_dir = tmp_path / 'moved'
    process = start(experiment, run_dir)
    wait_for_step(process, run_dir, 10)
    process.send_signal(signal.SIGTERM)
    finish(process)
    finish(start(experiment, run_dir, '--config.mesh.tensor=2', '--config.model.dropout=0.1', devices=8))
    ours, theirs = losses(run_dir), losses(undisturbed)
    # Dropout draws other masks on another mesh, so only the steps before the move are equal.
    assert all(ours[step] == theirs[step] for step in range(1, 11))
    assert abs(ours[STEPS] - theirs[STEPS]) < 0.15


def test_a_changed_model_is_refused_with_the_difference(experiment, undisturbed):
    before = (undisturbed / 'config.json').read_text()
    output = finish(start(experiment, undisturbed, '--config.model.n_layers=3'), code=2)
    assert 'model.n_layers: 2 -> 3' in output
    assert 'Traceback' not in output
    assert (undisturbed / 'config.json').read_text() == before


def test_a_non_finite_loss_stops_the_run_and_keeps_the_evidence(experiment, tmp_path):
    run_dir = tmp_path / 'diverged'
    explode = ('--config.optimizer.learning_rate=1e30', '--config.optimizer.clip=0', '--config.checkpoint.every=1')
    output = finish(start(experiment, run_dir, *explode), code=2)
    assert 'Traceback' not in output
    (batch,) = run_dir.glob('nonfinite_step_*_process_0.npz')
    step = int(batch.stem.split('_')[2])
    assert f'step {step} has loss' in output
    assert sum(len(rows) for rows in np.load(batch).values()) == 8
    steps = [int(p.name) for p in (run_dir / 'checkpoints').iterdir() if p.name.isdigit()]
    assert steps
    assert max(steps) < step


def test_init_from_starts_from_the_parameters_of_another_run(experiment, undisturbed, tmp_path):
    run_dir = tmp_path / 'second'
    overrides = (f'--config.init_from={undisturbed}', '--config.train.duration=2', '--config.schedule.warmup=0')
    output = finish(start(experiment, run_dir, *overrides))
    assert f'started from {undisturbed} at step {STEPS}' in output
    first = read_jsonl(run_dir / 'metrics.jsonl')[0]
    assert first['step'] == 1
    assert first['loss'] < losses(undisturbed)[5]


def test_two_processes_of_four_devices_equal_one_of_eight(experiment, tmp_path):
    one, two = tmp_path / 'one', tmp_path / 'two'
    overrides = ('--config.model.dropout=0.0', '--config.train.duration=6', '--config.schedule.warmup=2')
    finish(start(experiment, one, *overrides, devices=8))
    address = {'JAX_COORDINATOR_ADDRESS': 'localhost:47551', 'JAX_NUM_PROCESSES': '2'}
    processes = [
        start(
            experiment, two, *overrides, '--config.mesh.distributed=True', devices=4, JAX_PROCESS_ID=str(i), **address
        )
        for i in range(2)
    ]
    outputs = [finish(process) for process in processes]
    assert 'step 6/6' in outputs[0]
    assert 'step 6/6' not in outputs[1], 'only the first process prints'
    values = [[line['loss'] for line in read_jsonl(d / 'metrics.jsonl') if 'loss' in line] for d in (one, two)]
    np.testing.assert_allclose(*values, rtol=2e-5)


@pytest.fixture(scope='module')
def undisturbed_pair(experiment: pathlib.Path) -> pathlib.Path:
    run_dir = experiment.parent / 'undisturbed_pair'
    for process in start_several(experiment, run_dir, *PLAIN):
        finish(process)
    return run_dir


def test_killed_processes_end_their_job_at_once_and_restarts_make_it_the_same_run(
    experiment, undisturbed_pair, tmp_path
):
    run_dir = tmp_path / 'killed'
    processes = start_several(experiment, run_dir, *PLAIN, '--restart=4')
    for victim, step in ((1, 10), (0, 25)):  # the second holds the coordination service
        wait_for_step(processes[0], run_dir, step)
        (other,) = children(processes[1 - victim].pid)
        os.kill(children(processes[victim].pid)[0], signal.SIGKILL)
        for _ in range(100):
            if other not in children(processes[1 - victim].pid):
                break
            time.sleep(0.1)
        assert other not in children(processes[1 - victim].pid), 'it outlived its peer by 10 s'
    outputs = [finish(process) for process in processes]
    for i in (0, 1):
        assert 'ended with SIGKILL; starting again' in outputs[i]
        assert 'ended with exit code 75; starting again' in outputs[i]
        gone = f'error: process {1 - i} on {(socket.gethostname(), "localhost")[i]} has ended without a word'
        assert outputs[i].count('error:') == outputs[i].count(gone) == 1
    assert losses(run_dir) == losses(undisturbed_pair)
    for ours, theirs in zip(parameters(run_dir), parameters(undisturbed_pair), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_terminating_one_host_saves_on_all_and_other_host_counts_go_on(experiment, undisturbed_pair, tmp_path):
    run_dir = tmp_path / 'elastic'
    processes = start_several(experiment, run_dir, *PLAIN)
    wait_for_step(processes[0], run_dir, 5)
    processes[1].send_signal(signal.SIGTERM)  # one host is preempted, not the first
    outputs = [finish(process) for process in processes]
    assert 'SIGTERM: saved at step' in outputs[0]
    # Two processes of two devices, one of four, two of one: the same order of rows on each.
    process = start(experiment, run_dir, *PLAIN, '--config.mesh.tensor=2', devices=4)
    wait_for_step(process, run_dir, 20)
    process.send_signal(signal.SIGTERM)
    assert 'resumed at step' in finish(process)
    outputs = [finish(process) for process in start_several(experiment, run_dir, *PLAIN, devices=1)]
    assert 'resumed at step' in outputs[0]
    ours, theirs = losses(run_dir), losses(undisturbed_pair)
    np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=1e-4)


def test_traces_of_a_run_and_what_starting_it_took(experiment, undisturbed, tmp_path):
    run_dir = tmp_path / 'traced'
    cache = tmp_path / 'programs'
    arguments = ('--profile=3:4', '--config.train.duration=5', '--config.schedule.warmup=1')
    no_cache = {'JAX_COMPILATION_CACHE_DIR': ''}
    output = finish(start(experiment, run_dir, *arguments, f'--config.train.compile_cache={cache}', **no_cache))
    assert 'the first step is done after' in output
    laps = json.loads((run_dir / 'run.json').read_text())['startup_seconds']
    assert list(laps) == ['import', 'start', 'prepare', 'state', 'compile', 'first step']
    assert all(seconds >= 0 for seconds in laps.values())
    assert list(cache.iterdir()), 'compiled programs are kept'
    assert [line['loss'] for line in read_jsonl(run_dir / 'metrics.jsonl') if 'loss' in line], 'it trained as well'
    runs_of = {op.name: op.runs for op in profile.top_ops(run_dir / 'profile')}
    # The embedding's gradient is one scatter a step, so two steps were traced, not one and not five.
    assert runs_of['while'] % 2 == 0

    before = sorted((undisturbed / 'checkpoints').iterdir()), (undisturbed / 'metrics.jsonl').read_bytes()
    command = [sys.executable, str(ROOT / 'tools/profile_run.py'), str(undisturbed), '--steps=2:3']
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'XLA_FLAGS': ''}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert 'steps 2 to 3' in done.stdout
    assert 'while' in done.stdout
    assert (sorted((undisturbed / 'checkpoints').iterdir()), (undisturbed / 'metrics.jsonl').read_bytes()) == before


def test_a_hidden_transfer_in_a_step_is_an_error(experiment, monkeypatch, tmp_path):
    from llm_jax import config as config_lib
    from llm_jax.train import loop

    config = config_lib.load_experiment(str(experiment))
    config_lib.apply_overrides(config, {'train.duration': '2', 'schedule.warmup': '0', 'mesh.fsdp': '8'})
    jit = jax.jit

    class Leaky:
        """A compiled step whose caller gives it something from the host."""

        def __init__(self, step):
            self.step = step

        def lower(self, *args):
            return Leaky(self.step.lower(*args))

        def compile(self, compiler_options):
            compiled = self.step.compile(compiler_options)
            return lambda state, tokens: compiled(state, tokens + np.zeros((), np.int32))

    def leaky(function, **options):
        compiled = jit(function, **options)
        return Leaky(compiled) if options.get('donate_argnums') == 0 else compiled

    monkeypatch.setattr(loop.jax, 'jit', leaky)
    with pytest.raises(jax.errors.JaxRuntimeError, match='Disallowed host-to-device transfer'):
        loop.train(config_lib.validate(config), tmp_path / 'leaky')
