"""What HTTP costs: tokens/s of 8 streams against the engine's own, and CPU per event: bench_serve [--tokens 400]"""

import concurrent.futures
import json
import multiprocessing
import os
import socket
import sys
import threading
import time
import urllib.request

from llm_jax.config import cli

STREAMS = 8
BARS = {'http_over_engine': 0.93, 'cpu_us_per_event': 60}
_ALWAYS = '70'  # the token that every stream draws, so that none ends early


def main(argv: list[str]) -> None:
    parser = cli.Parser('bench_serve', __doc__)
    parser.add_argument('--tokens', type=cli.at_least(16), default=400, help='of each stream (400)')
    parser.add_argument('--width', type=cli.at_least(32), default=512, help='of a model of 8 layers (512, 25 M)')
    parser.add_argument('--rounds', type=cli.at_least(1), default=3, help='of which the best counts (3)')
    args = parser.parse(argv)
    print(json.dumps(measure(args.tokens, args.width, args.rounds), indent=2))


def measure(n_tokens: int, width: int, rounds: int) -> dict:
    """Returns tokens/s of the engine and over HTTP, interleaved in one run, with the bars."""
    import jax
    import uvicorn

    from llm_jax import chat as chat_lib
    from llm_jax import config as config_lib
    from llm_jax import tokenizer as tokenizer_lib
    from llm_jax.config import schema
    from llm_jax.nn.transformer import build, init_params
    from llm_jax.runs import Loaded
    from llm_jax.serve.limits import Limits
    from llm_jax.serve.protocol import parse_completion
    from llm_jax.serve.run import make_server

    kept = schema.Tokenizer(kind='bytes', reserved=chat_lib.FORMATS['llm_jax'].marks)
    tokenizer = tokenizer_lib.train(kept, [], seed=0)
    config = config_lib.default()
    config.model.update(d_model=width, n_layers=8, n_heads=8, vocab_size=tokenizer.vocab_size)
    config.data.seq_len = 512
    config = config_lib.validate(config)
    model = build(config.model, vocab_size=tokenizer.vocab_size, seq_len=512)
    loaded = Loaded(model, init_params(model, jax.random.key(0)), tokenizer, config, 0)
    server = make_server(loaded, 'bench', Limits(slots=STREAMS))
    body = {'prompt': 'a', 'max_tokens': n_tokens, 'logit_bias': {_ALWAYS: 100}, 'temperature': 0}
    open_work = lambda: server.service.open_completion(parse_completion(body)).requests

    def run_engine() -> tuple[float, float]:
        requests = [request for _ in range(STREAMS) for request in open_work()]
        started, cpu = time.perf_counter(), time.process_time()
        rows = server.engine.run(requests)
        assert all(len(row.tokens) == n_tokens for row in rows)
        return time.perf_counter() - started, time.process_time() - cpu

    alone = [run_engine() for _ in range(rounds + 1)][1:]
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    runner = uvicorn.Server(uvicorn.Config(server.app, '127.0.0.1', port, log_level='warning', access_log=False))
    thread = threading.Thread(target=runner.run)
    thread.start()
    while not runner.started:
        time.sleep(0.01)
    over_http, n_events = [], 0
    # The clients are another process, so that this one's CPU time is the server's.
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as clients:
        for _ in range(rounds + 1):
            cpu = time.process_time()
            seconds, n_events = clients.submit(ask_all, port, body | {'stream': True}).result()
            over_http.append((seconds, time.process_time() - cpu))
    runner.should_exit = True
    thread.join()
    engine, http = min(alone), min(over_http[1:])
    cpu = (min(cpu for _, cpu in over_http[1:]) - min(cpu for _, cpu in alone)) / n_events * 1e6
    total = STREAMS * n_tokens
    result = {'engine_tokens_per_s': total / engine[0], 'http_tokens_per_s': total / http[0], 'events': n_events}
    ratios = {'http_over_engine': engine[0] / http[0], 'cpu_us_per_event': cpu}
    return {name: round(value, 3) for name, value in (result | ratios).items()} | {'bars': BARS, 'cpus': os.cpu_count()}


def ask_all(port: int, body: dict) -> tuple[float, int]:
    """Reads the streams to their ends; returns the seconds, and the number of events."""
    started = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(STREAMS) as pool:
        counts = list(pool.map(lambda _: _ask(port, body), range(STREAMS)))
    return time.perf_counter() - started, sum(counts)


def _ask(port: int, body: dict) -> int:
    request = urllib.request.Request(f'http://127.0.0.1:{port}/v1/completions', json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=600) as answer:
        return sum(line.startswith(b'data: ') for line in answer)


if __name__ == '__main__':
    cli.run(main, sys.argv[1:])
