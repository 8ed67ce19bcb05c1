"""Training throughput of any experiment, and against the same model in torch or plain Linen."""

import argparse
from collections.abc import Callable
import importlib.util
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
import venv

from llm_jax import config as config_lib
from llm_jax.config import cli
from llm_jax.config.schema import Config, ConfigError, Model

ROOT = pathlib.Path(__file__).resolve().parents[2]
PEERS = ROOT / '.venv-peers'
# Steps of each side that are not timed. The first compiles; and on CPU the heap still grows, by a
# step's memory at a time, in some of the first ten, which costs several seconds in page faults.
WARM_UP = 12
GPT2 = {'position': 'learned', 'norm': 'layernorm', 'norm_bias': True, 'feed_forward': 'gelu', 'bias': True}
# What `tools/run` sets for our users where there is no accelerator, and nobody sets for those of a peer.
MALLOC = ('MALLOC_ARENA_MAX', 'MALLOC_MMAP_MAX_', 'MALLOC_TRIM_THRESHOLD_', 'MALLOC_TOP_PAD_', 'GLIBC_TUNABLES')
# Models to compare without an experiment file: fields of the model, tokens of a row, rows of a batch.
SHAPES = {
    'laptop': (GPT2 | {'d_model': 384, 'n_layers': 6, 'n_heads': 6, 'vocab_size': 4096, 'scan': False}, 256, 16),
    'gpt2_124m': (
        GPT2 | {'d_model': 768, 'n_layers': 12, 'n_heads': 12, 'vocab_size': 50_304, 'scan': False},
        2048,
        16,
    ),
    'llama_1.3b': (
        {'d_model': 2048, 'n_layers': 24, 'n_heads': 16, 'd_ff': 5504, 'vocab_size': 32_000, 'tie_embeddings': False},
        2048,
        8,
    ),
}


def shaped(name: str, overrides: dict[str, str]) -> Config:
    """One of `SHAPES` as an experiment."""
    fields, seq_len, batch_size = SHAPES[name]
    config = config_lib.default()
    config.model.update(fields)
    config.data.seq_len, config.train.batch_size = seq_len, batch_size
    config_lib.apply_overrides(config, overrides)
    return config_lib.validate(config)


def family(model: Model) -> str:
    """What the peers call a model: gpt2, llama, or '' for one that they do not have."""
    plain = not (model.pattern or model.first_layers or model.window or model.attention == 'mla')
    if plain and all(getattr(model, name) == value for name, value in GPT2.items()):
        return 'gpt2'
    llama = {'position': 'rope', 'norm': 'rmsnorm', 'feed_forward': 'swiglu', 'bias': False}
    return 'llama' if plain and all(getattr(model, name) == value for name, value in llama.items()) else ''


class Ours:
    """The training step of an experiment, compiled; `step` takes one and returns its seconds."""

    def __init__(self, config: Config):
        import jax
        import numpy as np

        from llm_jax import metrics
        from llm_jax.data.prepare import model_vocab_size
        from llm_jax.dist import mesh as mesh_lib
        from llm_jax.nn.transformer import weights_of
        from llm_jax.train import setup

        size = model_vocab_size(config)
        plan = setup.plan(config, mesh_lib.make_mesh(config.mesh), rows=10**6, vocab_size=size, bos_id=1)
        jax.set_mesh(plan.mesh)
        self._state, frozen = jax.jit(plan.init)(jax.random.key(0))
        self._frozen = () if frozen is None else (frozen,)
        shape = (config.train.batch_size, config.data.seq_len + 1)
        self._tokens = plan.place(np.random.default_rng(0).integers(2, size, shape, np.int32)[plan.local_rows])
        self._step = plan.compiled_step(self._state)
        counts = metrics.count(plan.config.model, plan.param_shapes, weights_of(plan.model))
        self._flops = metrics.flops_per_token(plan.config.model, counts, config.data.seq_len)
        self._device, self._n = plan.mesh.devices.flat[0], plan.mesh.size
        self._dtype = config.model.dtype

    def step(self) -> float:
        import jax

        start = time.perf_counter()
        self._state, metrics = self._step(self._state, self._tokens, *self._frozen)
        jax.block_until_ready(metrics)
        return time.perf_counter() - start

    def facts(self, tokens_per_second: float) -> dict[str, float | str | None]:
        """The rate as FLOP/s, as shares of the chip's peak and of what a product reaches there, and memory."""
        from llm_jax import metrics

        rate, peak = tokens_per_second * self._flops, metrics.peak_flops(self._device)
        product = matmul_rate(self._device, self._dtype)
        analysis, stats = self._step.memory_analysis(), self._device.memory_stats() or {}
        compiled = analysis.argument_size_in_bytes + analysis.temp_size_in_bytes + analysis.output_size_in_bytes
        used = stats.get('peak_bytes_in_use')
        return {
            'device': self._device.device_kind,
            'devices': self._n,
            'tokens_per_second': tokens_per_second,
            'tflops': rate / 1e12,
            'peak_tflops': peak and peak / 1e12,
            'mfu': peak and rate / self._n / peak,
            'product_tflops': product / 1e12,
            'share_of_product': rate / self._n / product,
            'limit_tokens_per_second': product * self._n / self._flops,
            'memory_gib': (compiled - analysis.alias_size_in_bytes) / 2**30,
            'measured_gib': used and used / 2**30,
        }


def matmul_rate(device, dtype: str, seconds: float = 2.0) -> float:
    """FLOP/s of large matrix products on a device, the best of several."""
    import jax
    import jax.numpy as jnp

    n = 2048 if device.platform == 'cpu' else 8192
    with jax.set_mesh(jax.sharding.Mesh([device], ('one',))):
        x = jnp.full((n, n), 1 / n, dtype)
        chain = jax.jit(lambda a, b: jax.lax.fori_loop(0, 4, lambda _, y: b @ y, a))
        chain(x, x).block_until_ready()
        best, end = float('inf'), time.perf_counter() + seconds
        while (start := time.perf_counter()) < end:
            chain(x, x).block_until_ready()
            best = min(best, time.perf_counter() - start)
    return 4 * 2 * n**3 / best


class Peer:
    """Another implementation in a process of its own, which takes a step per line."""

    def __init__(self, command: list, environment: dict[str, str], how: str = ''):
        self._process = subprocess.Popen(
            list(map(str, command)), env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.name = self._process.stdout.readline().strip()
        if not self.name:
            raise ConfigError('the peer did not start; see its message above')
        self.name += how

    def step(self, request: str = 'step') -> float:
        print(request, file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise ConfigError(f'{self.name} ended; see its message above')
        return float(line)

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def start_peers(kind: str, config: Config, threads: int) -> list[Peer]:
    """Starts 'torch' or 'linen' with the shape of this experiment: on CPU with the settings of malloc that its own
    users have, which is none, and with those that `tools/run` has for ours.

    Raises:
      ConfigError: it has no such model.
    """
    model, name = config.model, family(config.model)
    if not name or (kind == 'linen' and name != 'gpt2'):
        raise ConfigError(f'--peer {kind} has no model like this one; compare with --peer none')
    shape = {
        'n_layers': model.n_layers, 'd_model': model.d_model, 'n_heads': model.n_heads, 'd_ff': model.ff_size,
        'vocab_size': model.vocab_size, 'seq_len': config.data.seq_len, 'batch_size': config.train.batch_size,
        'dtype': model.dtype,
    }  # fmt: skip
    environment = dict(os.environ)
    if kind == 'linen':
        command = [sys.executable, ROOT / 'tools/bench/peers/nanodo_linen.py']
    else:
        shape |= {'n_kv_heads': model.kv_heads, 'threads': threads, 'family': name}
        command = [torch_python(), ROOT / 'tools/bench/peers/transformers_torch.py']
        environment.pop('PYTHONPATH', None)
    command += [f'--{key}={value}' for key, value in shape.items()]
    plain = {key: value for key, value in environment.items() if key not in MALLOC}
    if plain == environment:
        return [Peer(command, plain)]
    return [Peer(command, plain, ', as its users run it'), Peer(command, environment, ', malloc as ours')]


def torch_python() -> pathlib.Path:
    """An interpreter that has torch and transformers: this one, else that of an environment of its own."""
    if importlib.util.find_spec('torch') and importlib.util.find_spec('transformers'):
        return pathlib.Path(sys.executable)
    python = PEERS / 'bin' / 'python'
    if not (PEERS / '.installed').exists():
        print(f'setting up {PEERS} with torch (once)', file=sys.stderr)
        venv.create(PEERS, with_pip=True, clear=True)
        requirements = ROOT / 'tools/requirements/parity.txt'
        subprocess.run([python, '-m', 'pip', 'install', '-q', '-r', requirements], check=True)
        (PEERS / '.installed').touch()
    return python


def rested(step: Callable[[], float], seconds: float) -> float:
    """A step after a rest: threads of the other side may spin for a while after its own."""
    time.sleep(seconds)
    return step()


def measure(
    ours: Callable[[], Ours], peers: list[Peer], rounds: int, warm_up: int, apart: bool
) -> tuple[Ours, list[float], list[list[float]]]:
    """Seconds of each step of all sides: in turns, or all of the peers' first, whose memory is then free."""
    theirs = [[] for _ in peers]
    if apart:
        for peer, column in zip(peers, theirs, strict=True):
            column += [peer.step() for _ in range(warm_up + rounds)][warm_up:]
            peer.close()
        peers = []
    mine, times = ours(), []
    for _ in range(warm_up):
        mine.step()
        for peer in peers:
            peer.step()
    for _ in range(rounds):
        times.append(rested(mine.step, float(bool(peers))))
        for peer, column in zip(peers, theirs, strict=False):
            column.append(rested(peer.step, 1.0))
    for peer in peers:
        peer.close()
    return mine, times, theirs


def ratios(times: list[float], column: list[float], apart: bool) -> list[float]:
    """How many times as fast as a peer, ascending: round by round, or against our median."""
    if apart:
        return sorted(their / statistics.median(times) for their in column)
    return sorted(their / our for our, their in zip(times, column, strict=True))


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog='bench_train', description=__doc__, allow_abbrev=False)
    parser.add_argument('--experiment', help='measure this experiment file')
    parser.add_argument('--shape', choices=SHAPES, default='laptop', help='or one of these models')
    parser.add_argument('--peer', choices=('torch', 'linen', 'none'), help='compare with; torch, or none of a file')
    parser.add_argument('--apart', action='store_true', help='first all steps of the peer, then all of ours (a GPU)')
    parser.add_argument('--rounds', type=int, default=12, help='timed steps of each side')
    parser.add_argument('--warm_up', type=int, default=WARM_UP, help='steps before them')
    parser.add_argument('--threads', type=int, default=os.cpu_count() or 1, help='of torch')
    parser.add_argument('--json', help='a file to which the result is added, as a line of JSON')
    parser.add_argument('--note', default='', help='goes into that line')
    cli.add_debug(parser)
    args, rest = parser.parse_known_args(argv)
    config = cli.experiment(args.experiment, rest) if args.experiment else shaped(args.shape, cli.overrides(rest))
    kind = args.peer or ('none' if args.experiment else 'torch')
    peers = [] if kind == 'none' else start_peers(kind, config, args.threads)
    import jax

    try:
        ours, times, theirs = measure(lambda: Ours(config), peers, args.rounds, args.warm_up, args.apart)
    except jax.errors.JaxRuntimeError as error:
        if 'RESOURCE_EXHAUSTED' not in str(error):
            raise
        raise ConfigError(
            f'out of memory on {jax.devices()[0].device_kind}: {str(error).partition(chr(10))[0][:200]}. '
            'A smaller train.batch_size or another model.remat needs less'
        ) from error
    tokens = config.train.batch_size * config.data.seq_len
    facts = ours.facts(tokens / statistics.median(times))
    limit = facts['limit_tokens_per_second']
    print(f'jax {jax.__version__} on {jax.device_count()} {facts["device"]}, {config.model.dtype}')
    print(f'{"tokens/s":>60} {"median":>9} {"best":>9} {"of the limit":>13}')
    sides = {'llm_jax': times} | {peer.name: column for peer, column in zip(peers, theirs, strict=True)}
    for name, column in sides.items():
        rate = tokens / statistics.median(column)
        print(f'{name:>60} {rate:9.0f} {tokens / min(column):9.0f} {rate / limit:13.1%}')
    print(f'{"the limit: large products alone":>60} {limit:9.0f} {"":9} {1:13.1%}')
    mfu = '' if facts['mfu'] is None else f', MFU {facts["mfu"]:.1%} of {facts["peak_tflops"]:.3g}'
    print(f'{facts["tflops"]:.3f} TFLOP/s{mfu}; a large {config.model.dtype} product reaches '
          f'{facts["product_tflops"]:.3g}')  # fmt: skip
    measured = '' if facts['measured_gib'] is None else f', {facts["measured_gib"]:.2f} GiB measured'
    print(f'memory of a device at its peak: {facts["memory_gib"]:.2f} GiB by the compiler{measured}')
    facts['peers'] = {}
    for peer, column in zip(peers, theirs, strict=True):
        ratio = ratios(times, column, args.apart)
        low, middle, high = ratio[len(ratio) // 4], statistics.median(ratio), ratio[-1 - len(ratio) // 4]
        most = limit * statistics.median(column) / tokens
        print(f'llm_jax / {peer.name}, median of {len(ratio)} rounds: {middle:.2f} (middle half {low:.2f} to '
              f'{high:.2f}); the limit is {most:.2f}')  # fmt: skip
        facts['peers'][peer.name] = {'tokens_per_second': tokens / statistics.median(column), 'ratio': middle}
    if args.json:
        with open(args.json, 'a') as file:
            about = {'model': args.experiment or args.shape, 'overrides': rest, 'note': args.note}
            print(json.dumps(about | {'xla_flags': os.environ.get('XLA_FLAGS', '')} | facts), file=file)


if __name__ == '__main__':
    cli.run(main, sys.argv[1:])
