"""Decoding against its limits and its peers: a step, batches, prefixes, guesses, requests that compile nothing."""

from collections.abc import Callable, Iterator
import dataclasses
import functools
import gc
import json
import os
import pathlib
import resource
import sys
import tempfile
import time
from typing import Any

import bench_train

from llm_jax import config as config_lib
from llm_jax.config import cli
from llm_jax.config.schema import ConfigError

# Fields of the model, and the tokens of its context.
LLAMA = {'position': 'rope', 'norm': 'rmsnorm', 'feed_forward': 'swiglu', 'dtype': 'float32'}
SHAPES = {
    '110m': (LLAMA | {'d_model': 768, 'n_layers': 12, 'n_heads': 12, 'd_ff': 2048, 'vocab_size': 32_000}, 256),
    '25m': (LLAMA | {'d_model': 384, 'n_layers': 6, 'n_heads': 6, 'd_ff': 1024, 'vocab_size': 8192}, 2048),
    'tiny': (LLAMA | {'d_model': 64, 'n_layers': 2, 'n_heads': 4, 'd_ff': 128, 'vocab_size': 512}, 512),
}
ROUNDS = 6
# Tokens of the requests whose difference gives the time of a step.
SHORT, LONG = 4, 100
ROOT = pathlib.Path(__file__).resolve().parents[2]


@dataclasses.dataclass(frozen=True)
class Result:
    """A ratio that was measured in one run, and the bar that it is held to.

    Attributes:
      name: row of the table.
      ratio: measured.
      bar: limit of the ratio.
      at_least: whether the ratio is to be at least the bar, or at most.
      note: figures behind the ratio.
    """

    name: str
    ratio: float
    bar: float
    at_least: bool
    note: str = ''

    @property
    def holds(self) -> bool:
        return self.ratio >= self.bar if self.at_least else self.ratio <= self.bar


def make(shape: str) -> tuple[Any, Any]:
    """Returns a Transformer of a shape, and random parameters."""
    import jax

    from llm_jax.nn.transformer import build, init_params

    fields, context = SHAPES[shape]
    config = config_lib.default()
    config.model.update(fields)
    config.data.seq_len = context
    config = config_lib.validate(config)
    model = build(config.model, vocab_size=config.model.vocab_size, seq_len=context)
    return model, jax.jit(lambda key: init_params(model, key))(jax.random.key(0))


def clock() -> float:
    """Seconds of this process's work: of its CPUs where they are the device, else of the wall."""
    import jax

    return time.process_time() if jax.default_backend() == 'cpu' else time.perf_counter()


def fastest(runs: dict[str, Callable[[], Any]], rounds: int = ROUNDS) -> dict[str, float]:
    """Seconds of each, the best of several, in turns."""
    for run in runs.values():
        run()
    best = dict.fromkeys(runs, float('inf'))
    for _ in range(rounds):
        for name, run in runs.items():
            start = clock()
            run()
            best[name] = min(best[name], clock() - start)
    return best


def random_prompt(rng: Any, n: int, vocab_size: int) -> list[int]:
    return rng.integers(2, vocab_size, n).tolist()


def bench_step(shape: str) -> Iterator[Result]:
    """A step against its matrix products alone, at one row and at eight."""
    model, params = make(shape)
    runs = {}
    for rows in (1, 8):
        runs |= _decoding(model, params, rows)
        runs[f'products {rows}'] = _products(model, params, rows)
    best = fastest(runs)
    step = {rows: _step(best, rows) for rows in (1, 8)}
    products = {rows: best[f'products {rows}'] / 16 for rows in (1, 8)}
    for rows, bar in ((1, 1.25), (8, 1.45)):
        note = f'{1e3 * step[rows]:.1f} ms a step, {1e3 * products[rows]:.1f} ms of products'
        yield Result(f'{shape}: step over products, {rows} rows', step[rows] / products[rows], bar, False, note)
    yield Result(f'{shape}: tokens of 8 rows over 1', 8 * step[1] / step[8], 4.2, True)


def bench_quantised(shape: str) -> Iterator[Result]:
    """Weights in few bits against float32: bytes, steps at one row and at eight, and that no step copies a weight."""
    import jax
    import numpy as np

    from llm_jax.generate import blocks
    from llm_jax.generate.engine import Engine

    model, params = make(shape)
    size = lambda tree: sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
    for kind, most in (('int8', 0.27), ('int4', 0.17)):
        engine = Engine(model, params, n_slots=1, context=64, quantise=kind, cache='int8')
        n_bytes = size(engine._weights)
        yield Result(
            f'{shape}: bytes of {kind} weights', n_bytes / size(params), most, False, f'{n_bytes / 1e6:.0f} MB'
        )
        block = blocks.decode_block.lower(
            engine.model, None, engine.vocab_size, 64, engine._weights, None, engine._slots, np.int32(16),
            engine._all_allowed,
        )  # fmt: skip
        temporary = block.compile().memory_analysis().temp_size_in_bytes
        note = f'{temporary / 1e6:.1f} MB'
        yield Result(f'{shape}: temporaries of {kind} over its weights', temporary / n_bytes, 0.1, False, note)
        del engine
    options = {'float32': {}, 'int8': {'quantise': 'int8'}, 'int4': {'quantise': 'int4'}, 'cache': {'cache': 'int8'}}
    for rows, bars in ((1, (1.35, 0.5, 0.7)), (8, (1.4, 0.5, 0.7))):
        runs = {name: _decoding(model, params, rows, **kinds) for name, kinds in options.items()}
        best = fastest({f'{name} {key}': run for name, pair in runs.items() for key, run in pair.items()})
        step = {name: _step({key: best[f'{name} {key}'] for key in pair}, rows) for name, pair in runs.items()}
        for name, bar in zip(('int8', 'int4', 'cache'), bars, strict=True):
            what = 'int8 cache' if name == 'cache' else f'{name} weights'
            note = f'{1e3 * step[name]:.1f} ms a step, {1e3 * step["float32"]:.1f} ms in float32'
            yield Result(f'{shape}: speed of {what}, {rows} rows', step['float32'] / step[name], bar, True, note)


def _decoding(model: Any, params: Any, rows: int, **options: Any) -> dict[str, Callable[[], None]]:
    """Decodes SHORT and LONG tokens of each row: the difference is what steps take, without prefill."""
    from llm_jax.generate.engine import Engine
    from llm_jax.generate.requests import Request
    from llm_jax.generate.settings import Sampler

    engine = Engine(model, params, n_slots=rows, context=256, **options)
    request = lambda n, i: Request([1, 5, 9], n, Sampler(0), choice=i)
    run = lambda n: engine.run(request(n, i) for i in range(rows))
    return {f'{name} {rows}': functools.partial(run, n) for name, n in (('short', SHORT), ('long', LONG))}


def _step(best: dict[str, float], rows: int) -> float:
    """Seconds of a step, of the best times of `_decoding`."""
    return (best[f'long {rows}'] - best[f'short {rows}']) / (LONG - SHORT)


def _products(model: Any, params: Any, rows: int) -> Callable[[], None]:
    """The products of 16 steps, each of which depends on the one before, over weights laid out as decoding has them."""
    import jax
    import jax.numpy as jnp

    from llm_jax.generate import decode
    from llm_jax.ops.quantised import Quantised

    weights = decode.prepare(decode.decoding_model(model), params)
    D = model.config.d_model

    def times(kernel: Any, x_IB: jax.Array) -> jax.Array:
        if isinstance(kernel, Quantised):
            return kernel.values @ x_IB
        return kernel.reshape(len(x_IB), -1).T @ x_IB

    @jax.jit
    def run(weights: Any, x_DB: jax.Array) -> jax.Array:
        def step(_: int, x_DB: jax.Array) -> jax.Array:
            for layer in weights.layers:
                attention, feed_forward = layer['attention'], layer['feed_forward']
                q, k, v = (times(attention[name]['kernel'], x_DB) for name in 'qkv')
                x_DB = times(attention['out']['kernel'], q + k + v)
                gate, up = (times(feed_forward[name]['kernel'], x_DB) for name in ('gate', 'up'))
                x_DB = 1e-3 * times(feed_forward['down']['kernel'], gate * up)
            table = weights.outer['embed']['embedding']
            logits_VB = table.values @ x_DB if isinstance(table, Quantised) else table @ x_DB
            return x_DB + 1e-6 * logits_VB[:D]

        return jax.lax.fori_loop(0, 16, step, x_DB)

    x_DB = jnp.full((D, rows), 1e-3)
    return lambda: run(weights, x_DB).block_until_ready()


def bench_transformers(shape: str) -> Iterator[Result]:
    """Transformers' `generate` at the same shape, at one row and at eight, on as many threads."""
    import jax

    model, params = make(shape)
    config = model.config
    sizes = {name: getattr(config, name) for name in ('n_layers', 'd_model', 'n_heads', 'd_ff', 'vocab_size')}
    command = [
        bench_train.torch_python(),
        ROOT / 'tools/bench/peers/transformers_generate.py',
        f'--context={config.max_seq_len}',
    ]
    command += [f'--{name}={value}' for name, value in sizes.items()] + [f'--threads={os.cpu_count()}']
    environment = {name: value for name, value in os.environ.items() if name not in ('PYTHONPATH', *bench_train.MALLOC)}
    peer = bench_train.Peer(command, environment)
    for rows in (1, 8):
        ours, theirs = _in_turns(_decoding(model, params, rows), rows, functools.partial(peer.step, str(rows)))
        note = f'{1e3 * ours:.1f} and {1e3 * theirs:.1f} ms a step on {jax.devices()[0].device_kind}; {peer.name}'
        yield Result(f'{shape}: speed over Transformers, {rows} rows', theirs / ours, 3, True, note)
    peer.close()


def bench_llama2c(shape: str, source: str) -> Iterator[Result]:
    """llama2.c at the same shape, one row."""
    from peers.llama2c import Llama2c

    model, params = make(shape)
    fields, context = SHAPES[shape]
    with tempfile.TemporaryDirectory() as directory:
        peer = Llama2c(pathlib.Path(source).absolute(), fields, context, pathlib.Path(directory))
        ours, theirs = _in_turns(_decoding(model, params, 1), 1, peer.step)
    note = f'{1e3 * ours:.1f} and {1e3 * theirs:.1f} ms of CPU a token; {peer.name}'
    yield Result(f'{shape}: step over llama2.c', ours / theirs, 1.4, False, note)


def _in_turns(runs: dict[str, Callable[[], None]], rows: int, peer: Callable[[], float]) -> tuple[float, float]:
    """Seconds of a step of ours and of a peer's, the best of several, in turns."""
    ours, theirs = dict.fromkeys(runs, float('inf')), float('inf')
    for _ in range(ROUNDS):
        found = fastest(runs, rounds=1)
        ours = {name: min(seconds, found[name]) for name, seconds in ours.items()}
        theirs = min(theirs, peer())
    return _step(ours, rows), theirs


def bench_batching(shape: str) -> Iterator[Result]:
    """64 requests of 8 to 256 tokens over 8 slots, against batches of 8 that end with their longest."""
    import numpy as np

    from llm_jax.generate.engine import Engine
    from llm_jax.generate.requests import Request
    from llm_jax.generate.settings import Sampler

    model, params = make(shape)
    rng = np.random.default_rng(0)
    requests = [
        Request(random_prompt(rng, 20, 500), int(2 ** rng.uniform(3, 8)), Sampler(0), choice=i) for i in range(64)
    ]
    engine = Engine(model, params, n_slots=8, context=512)

    def static() -> None:
        for i in range(0, 64, 8):
            engine.run(requests[i : i + 8])

    best = fastest({'continuous': lambda: engine.run(requests), 'static': static}, rounds=3)
    tokens = sum(request.max_new_tokens for request in requests)
    note = f'{tokens / best["continuous"]:.0f} tokens/s'
    yield Result(f'{shape}: continuous over static batches', best['static'] / best['continuous'], 1.6, True, note)


def bench_compilations(shape: str) -> Iterator[Result]:
    """300 random requests after a warm-up of all lengths."""
    import jax
    import numpy as np

    from llm_jax.generate.engine import Engine
    from llm_jax.generate.requests import Request
    from llm_jax.generate.settings import Sampler

    model, params = make(shape)
    context, V = 512, model.config.vocab_size
    engine = Engine(model, params, n_slots=4, context=context, prefix_tokens=4096)
    rng = np.random.default_rng(0)

    def sampler() -> Sampler:
        return Sampler(
            float(rng.uniform(0, 2)), int(rng.integers(0, 100)), float(rng.uniform(0.1, 1)), float(rng.uniform(0, 0.5)),
            float(rng.uniform(0.1, 1)), float(rng.uniform(0.8, 1.5)), float(rng.normal()), float(rng.normal()),
            {int(i): float(rng.normal()) for i in rng.integers(0, V, rng.integers(0, 20))},
        )  # fmt: skip

    def request(n: int) -> Request:
        return Request(
            random_prompt(rng, n, V), int(min(context - n, rng.integers(1, 120))), sampler(),
            seed=int(rng.integers(2**32)),
            alternatives=int(rng.integers(0, 20)), stop_ids=rng.integers(0, V, 3).tolist(),
        )  # fmt: skip

    start = clock()
    engine.warm_up()
    warm = clock() - start
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(event) if event.endswith('backend_compile_duration') else None
    )
    rows = [engine.submit(request(int(rng.integers(1, context)))) for _ in range(300)]
    while not engine.is_idle:
        engine.step()
        if rng.random() < 0.1:
            engine.cancel(rows[rng.integers(len(rows))])
    note = f'warm-up {warm:.0f} s of CPU'
    yield Result(f'{shape}: compilations of 300 random requests', len(compiled), 0, False, note)


def bench_prefix(shape: str) -> Iterator[Result]:
    """Time to the first token of the second turn of a chat, of 1,024 tokens where they fit, against a cold start."""
    import numpy as np

    from llm_jax.generate.engine import Engine
    from llm_jax.generate.requests import Request
    from llm_jax.generate.settings import Sampler

    model, params = make(shape)
    rng, V = np.random.default_rng(0), model.config.vocab_size
    engine = Engine(model, params, n_slots=1, prefix_tokens=65_536)
    n = min(964, model.config.max_seq_len // 2)
    times, computed = {'cold': float('inf'), 'warm': float('inf')}, 0

    def first_token(prompt: list[int]) -> tuple[float, Any]:
        start, row = clock(), engine.submit(Request(prompt, 60, Sampler(0)))
        while not row.tokens:
            engine.step()
        seconds = clock() - start
        while not engine.is_idle:
            engine.step()
        return seconds, row

    for turn in range(ROUNDS):
        prompt = random_prompt(rng, n, V)
        cold, row = first_token(prompt)
        again = [*prompt, *row.tokens, *random_prompt(rng, 20, V)]
        warm, second = first_token(again)
        computed = max(computed, len(again) - second.n_reused)
        if turn:
            times = {'cold': min(times['cold'], cold), 'warm': min(times['warm'], warm)}
    note = f'{computed} tokens computed of {len(again)}'
    yield Result(f'{shape}: first token of a second turn over cold', times['warm'] / times['cold'], 0.25, False, note)
    yield Result(f'{shape}: tokens computed past the new ones', computed - 20, 64, False)


def bench_guesses(shape: str) -> Iterator[Result]:
    """Looked up guesses on a text that repeats itself, and on one that does not."""
    from llm_jax.generate.engine import Engine
    from llm_jax.generate.requests import Request
    from llm_jax.generate.settings import Sampler
    from llm_jax.generate.speculate import Speculation

    model, params = make(shape)
    context = min(512, model.config.max_seq_len)
    samplers = {'repeats': Sampler(0, frequency_penalty=-5.0), 'does not': Sampler(1.0)}
    for name, bar in (('repeats', 1.4), ('does not', 0.95)):
        requests = [Request([5, 6, 7, 8] * 8, 200, samplers[name], seed=3)]
        engines = {
            kind: Engine(model, params, n_slots=1, context=context, speculation=speculation)
            for kind, speculation in (('plain', None), ('guesses', Speculation()))
        }
        tokens = {kind: engine.run(requests)[0].tokens for kind, engine in engines.items()}
        if tokens['plain'] != tokens['guesses']:
            raise ConfigError('guesses changed the tokens; please report this')
        best = fastest({kind: functools.partial(engine.run, requests) for kind, engine in engines.items()}, rounds=4)
        yield Result(f'{shape}: guesses where text {name}', best['plain'] / best['guesses'], bar, True)


def bench_memory(shape: str, n: int = 10_000) -> Iterator[Result]:
    """Memory of the process over many requests."""
    import numpy as np

    from llm_jax.generate.engine import Engine
    from llm_jax.generate.requests import Request

    model, params = make(shape)
    engine = Engine(model, params, n_slots=16, context=128, prefix_tokens=2048)
    rng = np.random.default_rng(0)

    def some(count: int) -> None:
        for _ in range(0, count, 100):
            engine.run(Request(random_prompt(rng, 8, 500), 8, seed=int(rng.integers(2**32))) for _ in range(100))

    some(n // 5)
    gc.collect()
    before = _resident()
    some(n - n // 5)
    gc.collect()
    after = _resident()
    note = f'{before / 2**20:.0f} MiB after {n // 5} requests, {after / 2**20:.0f} after {n}'
    yield Result(f'{shape}: memory after {n} requests over before', after / before, 1.02, False, note)


def _resident() -> int:
    """Bytes of memory of this process."""
    status = pathlib.Path('/proc/self/statm')
    if status.exists():
        return int(status.read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


BENCHES = {
    'step': (bench_step, '110m'),
    'quantised': (bench_quantised, '110m'),
    'batching': (bench_batching, '25m'),
    'compilations': (bench_compilations, '25m'),
    'prefix': (bench_prefix, '25m'),
    'guesses': (bench_guesses, '25m'),
    'memory': (bench_memory, 'tiny'),
}


def main(argv: list[str]) -> None:
    parser = cli.Parser('bench_decode', __doc__)
    parser.add_argument(
        '--only', action='append', choices=list(BENCHES), help='one of them; may be given several times'
    )
    parser.add_argument('--shape', choices=list(SHAPES), help='of the model; default: that of each benchmark')
    parser.add_argument(
        '--peer', choices=('none', 'transformers', 'llama2c'), default='none', help='compare a step with'
    )
    parser.add_argument('--llama2c', metavar='FILE', help='run.c of llama2.c, for --peer llama2c')
    parser.add_argument('--json', metavar='FILE', help='write one JSON object a row')
    args = parser.parse(argv)

    from rich.console import Console
    from rich.table import Table

    table = Table('', 'ratio', 'bar', 'holds', 'figures')
    results = []
    runs = [(bench, args.shape or shape) for bench, shape in map(BENCHES.get, args.only or BENCHES)]
    if args.peer != 'none':
        runs = runs if args.only else []
        if args.peer == 'llama2c' and not (args.llama2c and pathlib.Path(args.llama2c).is_file()):
            raise ConfigError(f'--peer llama2c needs its run.c: --llama2c {args.llama2c} is no file')
        against = (
            functools.partial(bench_llama2c, source=args.llama2c) if args.peer == 'llama2c' else bench_transformers
        )
        runs.append((against, args.shape or '110m'))
    for bench, shape in runs:
        for result in bench(shape):
            sign = '≥' if result.at_least else '≤'
            table.add_row(
                result.name,
                f'{result.ratio:.3g}',
                f'{sign} {result.bar:g}',
                'yes' if result.holds else 'no',
                result.note,
            )
            results.append(result)
            print(f'{result.name}: {result.ratio:.3g}', file=sys.stderr, flush=True)
    Console().print(table)
    if args.json:
        lines = [json.dumps(dataclasses.asdict(one) | {'holds': one.holds}) + '\n' for one in results]
        pathlib.Path(args.json).write_text(''.join(lines))


if __name__ == '__main__':
    cli.run(main, sys.argv[1:])
