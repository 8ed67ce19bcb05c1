"""Hold the server to its bars: bench_serve [--only engine --only events ...] [--soak 600] [--json FILE]

engine: tokens/s of 8 streams over HTTP against the engine's own. events: the server's CPU time per event, without a
model. overload: 64 requests at once, a queue of 16. drops: 200 clients that connect and go away. soak: 4 clients with
random requests, some of which they abandon, for as many seconds as --soak says.
"""

import asyncio
from collections.abc import Callable, Iterator
import concurrent.futures
import contextlib
import ctypes
import dataclasses
import gc
import json
import multiprocessing
import pathlib
import random
import re
import socket
import sys
import threading
import time
from typing import Any

from bench_decode import Result

from llm_jax.config import cli

STREAMS, ROUNDS = 8, 3
CHAT, COMPLETE = '/v1/chat/completions', '/v1/completions'
_ALWAYS = {'70': 100}  # the token that every stream draws, so that none ends early


def main(argv: list[str]) -> None:
    parser = cli.Parser('bench_serve', __doc__)
    parser.add_argument(
        '--only', action='append', choices=list(BENCHES), help='one of them; may be given several times'
    )
    parser.add_argument('--tokens', type=cli.at_least(16), default=400, help='of each stream (400)')
    parser.add_argument('--width', type=cli.at_least(32), default=512, help='of a model of 8 layers (512, 25 M)')
    parser.add_argument('--soak', type=cli.at_least(1), default=10, help='seconds of the soak (10)')
    parser.add_argument('--json', metavar='FILE', help='write one JSON object a row')
    args = parser.parse(argv)
    results = measure(args.only or list(BENCHES), Options(args.tokens, args.width, args.soak))
    lines = [json.dumps(dataclasses.asdict(one) | {'holds': one.holds}) + '\n' for one in results]
    if args.json:
        pathlib.Path(args.json).write_text(''.join(lines))
    sys.exit(any(not one.holds for one in results))


@dataclasses.dataclass(frozen=True)
class Options:
    """Sizes of the benchmarks."""

    tokens: int
    width: int
    soak: int


def measure(names: list[str], options: Options) -> list[Result]:
    """Runs benchmarks, and prints each row as it is there."""
    results, made = [], []

    def model() -> Any:
        made[:] = made or [load_model(options.width)]
        return made[0]

    # The clients are another process, so that this one's CPU time is the server's.
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as clients:
        for name in names:
            for result in BENCHES[name](model, clients, options):
                sign = '>=' if result.at_least else '<='
                held = 'holds' if result.holds else 'DOES NOT HOLD'
                print(
                    f'{result.name}: {result.ratio:.4g} (bar {sign} {result.bar:g}, {held}) {result.note}', flush=True
                )
                results.append(result)
    return results


def load_model(width: int) -> Any:
    """Returns a model of random weights that can chat, as `runs.load` does."""
    import jax

    from llm_jax import chat as chat_lib
    from llm_jax import config as config_lib
    from llm_jax import tokenizer as tokenizer_lib
    from llm_jax.config import schema
    from llm_jax.nn.transformer import build, init_params
    from llm_jax.runs import Loaded

    marks = chat_lib.FORMATS['llm_jax'].marks
    tokenizer = tokenizer_lib.train(schema.Tokenizer(kind='bytes', reserved=marks), [], seed=0)
    config = config_lib.default()
    config.model.update(d_model=width, n_layers=8, n_heads=8, vocab_size=tokenizer.vocab_size)
    config.data.seq_len = 512
    config = config_lib.validate(config)
    model = build(config.model, vocab_size=tokenizer.vocab_size, seq_len=512)
    return Loaded(model, init_params(model, jax.random.key(0)), tokenizer, config, 0)


def real_server(loaded: Any, **limits: int) -> Any:
    from llm_jax.serve.limits import Limits
    from llm_jax.serve.run import make_server

    return make_server(loaded, 'bench', Limits(slots=STREAMS, **limits), template='llm_jax')


@contextlib.contextmanager
def listening(server: Any) -> Iterator[int]:
    """Yields the port at which a server listens."""
    import uvicorn

    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    runner = uvicorn.Server(uvicorn.Config(server.app, '127.0.0.1', port, log_level='warning', access_log=False))
    thread = threading.Thread(target=runner.run)
    thread.start()
    while not runner.started:
        time.sleep(0.01)
    try:
        yield port
    finally:
        runner.should_exit = True
        thread.join()


def bench_engine(model: Callable, clients: Any, options: Options) -> Iterator[Result]:
    """Compares tokens/s over HTTP with the engine's own, interleaved with pauses of the other."""
    from llm_jax.serve.protocol import parse_completion

    server, n_tokens = real_server(model()), options.tokens
    body = {'prompt': 'a', 'max_tokens': n_tokens, 'logit_bias': _ALWAYS, 'temperature': 0}

    def run_engine() -> float:
        requests = [
            one for _ in range(STREAMS) for one in server.service.open_completion(parse_completion(body)).requests
        ]
        started = time.perf_counter()
        rows = server.engine.run(requests)
        assert all(len(row.tokens) == n_tokens for row in rows)
        return time.perf_counter() - started

    run_engine()
    alone, over_http = [], []
    for _ in range(ROUNDS):  # the engine belongs to one thread at a time: to this one, then to the server's
        alone.append(run_engine())
        with listening(server) as port:
            clients.submit(ask_all, port, COMPLETE, body | {'max_tokens': 16}).result()
            over_http.append(clients.submit(ask_all, port, COMPLETE, body).result()[0])
    total = STREAMS * n_tokens
    engine, http = total / min(alone), total / min(over_http)
    yield Result('http_over_engine', http / engine, 0.93, True, f'{http:.0f} of {engine:.0f} tokens/s')


def bench_events(model: Callable, clients: Any, options: Options) -> Iterator[Result]:
    """Measures the CPU time of an event, with an engine that takes next to none."""
    from llm_jax.serve.app import Server
    from llm_jax.serve.limits import Limits
    from llm_jax.serve.protocol import parse_completion
    from llm_jax.serve.scripted import ScriptedEngine
    from llm_jax.serve.service import Service

    n_tokens, context, tokenizer = 2000, 4096, model().tokenizer
    from llm_jax import chat as chat_lib

    reply = tokenizer.encode('a' * n_tokens)
    engine = ScriptedEngine(lambda _: reply, context=context, vocab_size=tokenizer.vocab_size, n_slots=STREAMS)
    chat = chat_lib.open_chat(tokenizer, 'llm_jax')
    server = Server(Service('bench', tokenizer, context, chat), engine, Limits(slots=STREAMS))
    ask = parse_completion({'prompt': 'a', 'max_tokens': n_tokens})

    def run_engine() -> float:
        started = time.process_time()
        for _ in range(STREAMS):
            engine.submit(*server.service.open_completion(ask).requests)
        while not engine.is_idle:
            engine.step()
        return (time.process_time() - started) / (STREAMS * n_tokens)

    alone = min(run_engine() for _ in range(ROUNDS))
    messages = [{'role': 'user', 'content': 'a'}]
    for path, body in ((COMPLETE, {'prompt': 'a'}), (CHAT, {'messages': messages})):
        costs = []
        with listening(server) as port:
            for _ in range(ROUNDS + 1):
                cpu = time.process_time()
                _, n_events = clients.submit(ask_all, port, path, body | {'max_tokens': n_tokens}).result()
                costs.append((time.process_time() - cpu) / n_events - alone)
        kind = 'completions' if path == COMPLETE else 'chat'
        yield Result(f'cpu_us_per_event_{kind}', 1e6 * min(costs[1:]), 60, False, f'{n_events} events')


def bench_overload(model: Callable, clients: Any, options: Options) -> Iterator[Result]:
    """Asks 64 times at once of 8 slots and a queue of 16."""
    with listening(real_server(model(), queue=16)) as port:
        body = {'prompt': 'a', 'max_tokens': 64, 'logit_bias': _ALWAYS}
        answers = clients.submit(ask_at_once, port, body, 64).result()
    quick = [seconds for status, seconds, _ in answers if status == 503 and seconds <= 0.05]
    accepted = [tokens for status, _, tokens in answers if status == 200]
    slowest = max(seconds for status, seconds, _ in answers if status == 503)
    note = f'the slowest after {1e3 * slowest:.0f} ms'
    yield Result('refused_within_50_ms', len(quick), 40, True, note)
    whole = sum(tokens == 64 for tokens in accepted) / len(accepted)
    yield Result('accepted_that_finish', whole, 1, True, f'{len(accepted)} accepted of {len(answers)}')


def bench_drops(model: Callable, clients: Any, options: Options) -> Iterator[Result]:
    """Connects and goes away 200 times, at random moments."""
    server = real_server(model())
    with listening(server) as port:
        clients.submit(drop, port, 100).result()
        wait_until_idle(server)
        before = allocated()
        clients.submit(drop, port, 200).result()
        wait_until_idle(server)
        grown = (allocated() - before) / 1e6
    yield Result('rows_left_by_200_drops', server.gate.rows + server.gate.tokens, 0, False)
    yield Result('mb_grown_by_200_drops', grown, 2, False, f'{before / 1e6:.0f} MB before')


def bench_soak(model: Callable, clients: Any, options: Options) -> Iterator[Result]:
    """Sums what random clients were told, and compares with the counters."""
    server = real_server(model(), queue=64)
    with listening(server) as port:
        first = clients.submit(soak, port, max(1, options.soak // 10), 0).result()
        before = allocated()
        second = clients.submit(soak, port, options.soak, 1).result()
        wait_until_idle(server)
        time.sleep(0.5)  # a request is counted when it is over, which is after its client has read the end
        after = allocated()
        counters = clients.submit(read_counters, port).result()
    told = {name: first[name] + second[name] for name in first}
    wrong = [name for name in ('prompt_tokens', 'completion_tokens', 'answers') if told[name] != counters[name]]
    note = ', '.join(f'{count:.0f} {name.replace("_", " ")}' for name, count in told.items())
    yield Result('soak_counters_that_differ', len(wrong), 0, False, note)
    yield Result('soak_errors', told['errors'], 0, False)
    yield Result('soak_memory', after / before, 1.01, False, f'{before / 1e6:.0f} MB before, {options.soak} s')


BENCHES = {
    'engine': bench_engine,
    'events': bench_events,
    'overload': bench_overload,
    'drops': bench_drops,
    'soak': bench_soak,
}


class _Mallinfo(ctypes.Structure):
    """glibc's count of what malloc has given out."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            'arena', 'ordblks', 'smblks', 'hblks', 'hblkhd', 'usmblks', 'fsmblks', 'uordblks', 'fordblks', 'keepcost',
        )
    ]  # fmt: skip


def allocated() -> int:
    """Returns the bytes in use: of malloc, without what it keeps for later, and of Python's objects, 64 for each."""
    gc.collect()
    count = ctypes.CDLL(None).mallinfo2
    count.restype = _Mallinfo
    held = count()
    return held.uordblks + held.hblkhd + 64 * sys.getallocatedblocks()


def wait_until_idle(server: Any) -> None:
    end = time.monotonic() + 60
    while server.gate.rows or not server.engine.is_idle:
        if time.monotonic() > end:
            return
        time.sleep(0.01)


# --- Clients ---


def _request(path: str, body: dict) -> bytes:
    data = json.dumps(body).encode()
    head = f'POST {path} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\nContent-Length: {len(data)}\r\n\r\n'
    return head.encode() + data


def ask_all(port: int, path: str, body: dict) -> tuple[float, int]:
    """Reads 8 streams to their ends; returns the seconds, and the number of events."""
    request = _request(path, body | {'stream': True})

    def ask(_: int) -> int:
        n_events = 0
        with socket.create_connection(('127.0.0.1', port)) as one:
            one.sendall(request)
            while data := one.recv(1 << 16):
                n_events += data.count(b'data: ')
        return n_events

    started = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(STREAMS) as pool:
        counts = list(pool.map(ask, range(STREAMS)))
    return time.perf_counter() - started, sum(counts)


def ask_at_once(port: int, body: dict, n: int) -> list[tuple[int, float, int]]:
    """Sends n requests over connections that are open; returns status, seconds and new tokens of each."""

    async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[int, float, int]:
        started = time.perf_counter()
        writer.write(_request(COMPLETE, body))
        status = int((await reader.readline()).split()[1])
        seconds = time.perf_counter() - started
        found = re.search(rb'"completion_tokens":(\d+)', await reader.read())
        writer.close()
        return status, seconds, int(found[1]) if found else 0

    async def ask_all_of_them() -> list[tuple[int, float, int]]:
        open_ones = [await asyncio.open_connection('127.0.0.1', port) for _ in range(n)]
        return await asyncio.gather(*(ask(*one) for one in open_ones))

    return asyncio.run(ask_all_of_them())


def drop(port: int, n: int) -> None:
    """Connects n times and goes away, before the request, within it, or within the answer."""
    chance = random.Random(0)
    for i in range(n):
        body = {'prompt': 'a', 'max_tokens': 400, 'logit_bias': _ALWAYS, 'stream': i % 2 == 0}
        request = _request(COMPLETE, body)
        with socket.create_connection(('127.0.0.1', port)) as one:
            one.sendall(request[: chance.choice([0, 20, len(request) - 1, *[len(request)] * 9])])
            time.sleep(chance.choice([0, 0.005, 0.03]))


def soak(port: int, seconds: float, seed: int) -> dict[str, float]:
    """Lets 4 clients ask for a while; returns the sums of what they were told."""
    sums = dict.fromkeys(('prompt_tokens', 'completion_tokens', 'answers', 'abandoned', 'errors'), 0)
    end = time.monotonic() + seconds

    async def ask(chance: random.Random) -> None:
        body: dict[str, Any] = {
            'messages': [{'role': 'user', 'content': 'word ' * chance.randint(1, 40)}],
            'max_tokens': chance.randint(1, 64),
            'temperature': chance.choice([0, 0.7, 1, 2]),
            'top_p': chance.choice([0.5, 1]),
            'seed': chance.randrange(1000),
            'n': chance.choice([1, 1, 3]),
            'stream': (streams := chance.random() < 0.5),
        }
        leaves = chance.random() < 0.25
        if streams:
            body['stream_options'] = {'include_usage': True}
        if leaves:
            body |= {'max_tokens': 250, 'logit_bias': _ALWAYS}
        reader, writer = await asyncio.open_connection('127.0.0.1', port)
        writer.write(_request(CHAT, body))
        if leaves:
            await asyncio.sleep(chance.random() * 0.1)
            writer.close()
            sums['abandoned'] += 1
            return
        answer = await reader.read()
        writer.close()
        usage = re.findall(rb'"usage": ?\{"prompt_tokens": ?(\d+), ?"completion_tokens": ?(\d+)', answer)
        if not answer.startswith(b'HTTP/1.1 200') or len(usage) != 1:
            sums['errors'] += 1
            return
        sums['answers'] += 1
        sums['prompt_tokens'] += int(usage[0][0])
        sums['completion_tokens'] += int(usage[0][1])

    async def ask_on(client: int) -> None:
        chance = random.Random(1000 * seed + client)
        while time.monotonic() < end:
            await ask(chance)

    async def run() -> None:
        await asyncio.gather(*map(ask_on, range(4)))

    asyncio.run(run())
    return sums


def read_counters(port: int) -> dict[str, float]:
    """Returns the server's own sums, named as those of `soak`."""
    with socket.create_connection(('127.0.0.1', port)) as one:
        one.sendall(b'GET /metrics HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n')
        text = b''.join(iter(lambda: one.recv(1 << 16), b'')).decode()
    names = {
        'prompt_tokens': 'prompt_tokens_total',
        'completion_tokens': 'completion_tokens_total',
        'answers': f'requests_total{{path="{CHAT}",status="200"}}',
    }
    find = lambda name: re.search(rf'^llm_jax_{re.escape(name)} (.*)$', text, re.MULTILINE)
    return {key: float(found[1]) if (found := find(name)) else 0.0 for key, name in names.items()}


if __name__ == '__main__':
    cli.run(main, sys.argv[1:])
