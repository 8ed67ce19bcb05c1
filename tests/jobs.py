"""Real processes of the real command, for tests that kill them."""

import json
import os
import pathlib
import random
import socket
import subprocess
import sys
import time

import jax
import numpy as np

import llm_jax
from llm_jax.metrics import read_jsonl

ROOT = pathlib.Path(__file__).resolve().parents[1]
STEPS = 40

EXPERIMENT = """
from llm_jax import config as config_lib

def get_config():
    config = config_lib.default()
    config.model.d_model, config.model.n_layers, config.model.n_heads = 64, 2, 2
    config.model.dropout = 0.1
    config.data.sources = 'jsonl:{corpus}'
    config.data.seq_len = 64
    config.data.tokenizer.vocab_size = 300
    config.data.cache_dir = '{cache}'
    config.train.duration = {steps}
    config.train.batch_size = 8
    config.train.log_every = 1
    config.train.eval_every = 20
    config.train.sample_every = 0
    config.train.sample_tokens = 4
    config.train.sample_prompts = ('a',)
    config.train.ema_decay = 0.9
    config.checkpoint.every = 7
    config.optimizer.learning_rate = 1e-2
    return config
"""


PLAIN = ('--config.model.dropout=0.0', '--config.train.eval_every=0', '--config.train.ema_decay=0')


def write_experiment(root: pathlib.Path) -> pathlib.Path:
    """A small corpus, and an experiment of `STEPS` steps on it."""
    rng = random.Random(0)
    words = ['the', 'cat', 'sat', 'on', 'a', 'mat', 'and', 'dogs', 'ran', 'far', 'away', '42', 'naïve']
    with (root / 'corpus.jsonl').open('w') as out:
        for _ in range(400):
            out.write(json.dumps({'text': ' '.join(rng.choices(words, k=rng.randint(5, 120)))}) + '\n')
    file = root / 'resumable.py'
    file.write_text(EXPERIMENT.format(corpus=root / 'corpus.jsonl', cache=root / 'cache', steps=STEPS))
    return file


def start(
    experiment: pathlib.Path, run_dir: pathlib.Path, *overrides: str, devices: int = 1, **environment: str
) -> subprocess.Popen:
    environment = {
        **os.environ,
        'JAX_PLATFORMS': 'cpu',
        'PYTHONPATH': str(ROOT),
        'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}',
        **environment,
    }
    command = [sys.executable, str(ROOT / 'tools/train.py'), str(experiment), '--workdir', str(run_dir), *overrides]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen, code: int = 0) -> str:
    output, _ = process.communicate(timeout=900)
    assert process.returncode == code, output
    return output


def wait_for_step(process: subprocess.Popen, run_dir: pathlib.Path, step: int) -> None:
    """Returns as soon as metrics.jsonl has this step."""
    for _ in range(30_000):
        lines = read_jsonl(run_dir / 'metrics.jsonl') if (run_dir / 'metrics.jsonl').exists() else []
        if any(line['step'] >= step for line in lines):
            return
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    raise AssertionError(f'step {step} was never logged')


def losses(run_dir: pathlib.Path, n: int = STEPS) -> dict[int, float]:
    lines = [line for line in read_jsonl(run_dir / 'metrics.jsonl') if 'loss' in line]
    steps = [line['step'] for line in lines]
    assert steps == list(range(1, n + 1)), 'every step is logged exactly once, in order'
    return {line['step']: line['loss'] for line in lines}


def parameters(run_dir: pathlib.Path) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(llm_jax.load(run_dir).params)]


def free_port() -> int:
    with socket.socket() as server:
        server.bind(('localhost', 0))
        return server.getsockname()[1]


def start_several(
    experiment: pathlib.Path, run_dir: pathlib.Path, *arguments: str, n: int = 2, devices: int = 2
) -> list[subprocess.Popen]:
    """One job of `n` processes."""
    address = {'JAX_COORDINATOR_ADDRESS': f'localhost:{free_port()}', 'JAX_NUM_PROCESSES': str(n)}
    arguments = (*arguments, '--config.mesh.distributed=True', '--config.mesh.start_timeout=60')
    return [
        start(
            experiment,
            run_dir,
            *arguments,
            devices=devices,
            JAX_PROCESS_ID=str(i),
            **address,
        )
        for i in range(n)
    ]


def children(pid: int) -> list[int]:
    return [int(child) for child in pathlib.Path(f'/proc/{pid}/task/{pid}/children').read_text().split()]
