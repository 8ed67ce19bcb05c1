"""Several processes as one job: real processes, killed and failing."""

import os
import pathlib
import socket
import subprocess
import sys
import time

import pytest

from llm_jax import config as config_lib
from llm_jax.dist import hosts
from llm_jax.config import schema

# Each process runs this; what it does inside the job is an argument.
SCRIPT = """
import os, signal, sys, time
from llm_jax.config import cli
from llm_jax import config as config_lib
from llm_jax.dist import hosts

def main(argv):
    import jax
    config = config_lib.default()
    config_lib.apply_overrides(config, cli.overrides(argv[1:]))
    with hosts.job(config_lib.validate(config)):
        print('started', flush=True)
        exec(argv[0])
    print('over')

cli.run(main, sys.argv[1:])
"""
WAIT = 'time.sleep(60)'


def job(*actions: str, n: int = 3, devices=lambda i: 2, overrides=lambda i: ()) -> list[subprocess.CompletedProcess]:
    """Runs a job whose process i does `actions[i]`, the last of them if there are fewer."""
    with socket.socket() as server:
        server.bind(('localhost', 0))
        address = f'localhost:{server.getsockname()[1]}'
    started = []
    for i in range(n):
        environment = {
            **os.environ,
            'JAX_PLATFORMS': 'cpu',
            'PYTHONPATH': str(pathlib.Path(__file__).resolve().parents[2]),
            'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices(i)}',
            'JAX_COORDINATOR_ADDRESS': address,
            'JAX_NUM_PROCESSES': str(n),
            'JAX_PROCESS_ID': str(i),
        }
        fields = ('--config.mesh.distributed=True', '--config.mesh.start_timeout=60', *overrides(i))
        command = [sys.executable, '-c', SCRIPT, actions[min(i, len(actions) - 1)], *fields]
        pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
        started.append(subprocess.Popen(command, env=environment, **pipes))
    done = []
    for process in started:
        output, errors = process.communicate(timeout=120)
        done.append(subprocess.CompletedProcess(process.args, process.returncode, output, errors))
    return done


def errors(process: subprocess.CompletedProcess) -> list[str]:
    assert 'Traceback' not in process.stderr
    return [line for line in process.stderr.splitlines() if line.startswith('error:')]


def test_a_job_starts_and_ends_together():
    # Process 0 is the last to leave: those that left before it do not mind.
    for process in job('time.sleep(1)', 'pass'):
        assert process.returncode == 0, process.stderr
        assert process.stdout.split() == ['started', 'over']
        assert not errors(process)


@pytest.mark.parametrize('victim', [0, 2])
def test_a_process_that_is_killed_ends_all_within_seconds(victim):
    kill = 'os.kill(os.getpid(), signal.SIGKILL)'
    began = time.monotonic()
    done = job(*(kill if i == victim else WAIT for i in range(3)))
    assert time.monotonic() - began < 40
    for i, process in enumerate(done):
        if i != victim:
            assert process.returncode == hosts.TRY_AGAIN
            (line,) = errors(process)
            assert line.startswith(f'error: process {victim} on ')
            assert 'has ended without a word' in line


def test_an_error_in_one_process_ends_all_with_its_text():
    done = job(WAIT, 'raise OSError(28, "No space left", "/data/rows")', WAIT)
    assert [process.returncode for process in done] == [2, 2, 2]
    assert errors(done[1]) == ["error: [Errno 28] No space left: '/data/rows'"]
    for i in (0, 2):
        assert errors(done[i]) == ["error: process 1 failed: OSError: [Errno 28] No space left: '/data/rows'"]


def test_a_bug_in_one_process_ends_all_and_keeps_its_traceback():
    done = job('jax.numpy.zeros(3) @ jax.numpy.zeros(4)', WAIT)
    assert [process.returncode for process in done] == [1, 1, 1]
    assert 'Traceback' in done[0].stderr
    assert errors(done[1])[0].startswith('error: process 0 failed: TypeError: ')


def test_processes_that_were_started_differently_are_told_how():
    rate = lambda i: [f'--config.optimizer.learning_rate={(1e-3, 2e-3)[i]}']
    for process in job(WAIT, n=2, overrides=rate):
        assert process.returncode == 2
        (line,) = errors(process)
        assert 'process 1 on' in line
        assert "another config than process 0 (optimizer.learning_rate: '0.001' -> '0.002')" in line


def test_another_number_of_devices_is_named():
    for process in job(WAIT, n=2, devices=lambda i: 2 - i):
        assert process.returncode == 2
        (line,) = errors(process)
        assert 'has 1 device(s), process 0 on' in line


@pytest.mark.parametrize('index', [0, 1])
def test_a_host_that_nobody_joins_says_which_address_and_how_long(index):
    with socket.socket() as server:
        server.bind(('localhost', 0))
        address = f'localhost:{server.getsockname()[1]}'
    environment = {'JAX_COORDINATOR_ADDRESS': address, 'JAX_NUM_PROCESSES': '2', 'JAX_PROCESS_ID': str(index)}
    fields = ('--config.mesh.distributed=True', '--config.mesh.start_timeout=2')
    root = str(pathlib.Path(__file__).resolve().parents[2])
    environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': root, **environment}
    command = [sys.executable, '-c', SCRIPT, 'pass', *fields]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == hosts.TRY_AGAIN
    (line,) = errors(done)
    assert address in line
    assert 'within 2 s' in line


@pytest.mark.parametrize(
    ('environment', 'message'),
    [
        ({'JAX_COORDINATOR_ADDRESS': 'localhost:1'}, "JAX_NUM_PROCESSES = ''"),
        (
            {'JAX_COORDINATOR_ADDRESS': 'localhost:1', 'JAX_NUM_PROCESSES': '2', 'JAX_PROCESS_ID': '2'},
            'indices count from 0',
        ),
        (
            {'JAX_COORDINATOR_ADDRESS': 'localhost', 'JAX_NUM_PROCESSES': '2', 'JAX_PROCESS_ID': '1'},
            'the address is HOST:PORT',
        ),
    ],
)
def test_an_address_that_is_not_complete_is_refused(environment, message, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(schema.ConfigError, match=message):
        hosts.start(schema.Mesh(distributed=True))


def test_a_time_of_nothing_is_refused():
    config = config_lib.default()
    config.mesh.start_timeout = 0
    with pytest.raises(schema.ConfigError, match='mesh.start_timeout = 0'):
        config_lib.validate(config)
