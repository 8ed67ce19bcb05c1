"""Training throughput against Hugging Face's GPT-2 in torch, step by step in turns."""

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import time
import venv

from llm_jax import cli
from llm_jax import config as config_lib
from llm_jax.schema import Config, ConfigError

ROOT = pathlib.Path(__file__).resolve().parents[1]
PEERS = ROOT / '.venv-peers'
# Steps of each side that are not timed. The first compiles; and on CPU the heap still grows, by a
# step's memory at a time, in some of the first ten, which costs several seconds in page faults.
WARM_UP = 12


def gpt2(args: argparse.Namespace, overrides: dict[str, str]) -> Config:
    """The GPT-2 of this shape, as an experiment."""
    config = config_lib.default()
    model = config.model
    model.d_model, model.n_layers, model.n_heads = args.d_model, args.n_layers, args.n_heads
    model.position, model.norm, model.norm_bias, model.feed_forward = 'learned', 'layernorm', True, 'gelu'
    model.bias, model.dtype, model.scan = True, args.dtype, False
    config.data.seq_len, config.train.batch_size = args.seq_len, args.batch_size
    config_lib.apply_overrides(config, overrides)
    return config_lib.validate(config)


def our_step(config: Config, vocab_size: int):
    """A function that takes one training step and returns its seconds."""
    import jax
    import numpy as np

    from llm_jax import mesh as mesh_lib
    from llm_jax.train import setup
    from llm_jax.train.step import make_train_step

    plan = setup.plan(config, mesh_lib.make_mesh(config.mesh), rows=10**6, vocab_size=vocab_size, bos_id=1)
    jax.set_mesh(plan.mesh)
    state = jax.jit(plan.init)(jax.random.key(0))
    train_step = make_train_step(plan.model, plan.config, plan.optimizer, plan.schedule, bos_id=1)
    train_step = jax.jit(train_step, donate_argnums=0)
    shape = (config.train.batch_size, config.data.seq_len + 1)
    tokens = plan.place(np.random.default_rng(0).integers(2, vocab_size, shape, np.int32)[plan.local_rows])

    def step() -> float:
        nonlocal state
        start = time.perf_counter()
        state, metrics = train_step(state, tokens)
        jax.block_until_ready(metrics)
        return time.perf_counter() - start

    return step


def start_peer(args: argparse.Namespace) -> subprocess.Popen:
    """torch in an environment of its own, waiting to be told to take a step."""
    python = PEERS / 'bin' / 'python'
    requirements = ROOT / 'requirements-parity.txt'
    if not (PEERS / '.installed').exists():
        print(f'setting up {PEERS} with torch (once)', file=sys.stderr)
        venv.create(PEERS, with_pip=True, clear=True)
        subprocess.run([python, '-m', 'pip', 'install', '-q', '-r', requirements], check=True)
        (PEERS / '.installed').touch()
    names = ('n_layers', 'd_model', 'n_heads', 'seq_len', 'vocab_size', 'batch_size', 'threads', 'dtype')
    options = [f'--{name}={getattr(args, name)}' for name in names]
    command = [python, ROOT / 'tools/peers/gpt2_torch.py', *options]
    environment = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
    peer = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    versions = peer.stdout.readline().strip()
    if not versions:
        raise ConfigError('the peer did not start; see its message above')
    print(versions)
    return peer


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog='bench_train', description=__doc__, allow_abbrev=False)
    for name, default in (('n_layers', 6), ('d_model', 384), ('n_heads', 6), ('seq_len', 256), ('vocab_size', 4096),
                          ('batch_size', 16), ('rounds', 12), ('threads', os.cpu_count() or 1)):  # fmt: skip
        parser.add_argument(f'--{name}', type=int, default=default)
    parser.add_argument('--dtype', choices=('float32', 'bfloat16'), default='float32')
    cli.add_debug(parser)
    args, rest = parser.parse_known_args(argv)
    config = gpt2(args, cli.overrides(rest))

    peer = start_peer(args)

    def peer_step() -> float:
        print('step', file=peer.stdin, flush=True)
        return float(peer.stdout.readline())

    import jax

    ours = our_step(config, args.vocab_size)
    print(f'jax {jax.__version__} on {jax.device_count()} {jax.devices()[0].device_kind}, {args.threads} threads')
    for _ in range(WARM_UP):
        ours(), peer_step()

    def rested(step) -> float:
        time.sleep(1.0)  # threads of the other side may spin for a while after its step
        return step()

    times = [(rested(ours), rested(peer_step)) for _ in range(args.rounds)]
    peer.stdin.close()
    peer.wait()

    tokens = args.batch_size * args.seq_len
    print(f'{"tokens/s":>24} {"median":>8} {"best":>8}')
    for name, column in zip(('llm_jax', 'transformers, torch'), zip(*times, strict=True), strict=True):
        print(f'{name:>24} {tokens / statistics.median(column):8.0f} {tokens / min(column):8.0f}')
    ratios = sorted(peer / mine for mine, peer in times)
    low, middle, high = ratios[len(ratios) // 4], statistics.median(ratios), ratios[-1 - len(ratios) // 4]
    print(f'llm_jax / torch, median of {args.rounds} rounds: {middle:.2f} (middle half {low:.2f} to {high:.2f})')


if __name__ == '__main__':
    cli.run(main, sys.argv[1:])
