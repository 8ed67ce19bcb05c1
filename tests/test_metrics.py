import io
import json
import math
import pathlib
import struct
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from llm_jax import metrics
from llm_jax.config.schema import ConfigError, Model, Moe
from llm_jax.metrics import format as fmt
from llm_jax.metrics import writers
from llm_jax.nn.transformer import build, init_params, weights_of
from llm_jax.train import run_log
from llm_jax.train.trainable import split_params

# --- Parameters and FLOPs --------------------------------------------------------------


def shapes(model: Model) -> tuple[list, list, list]:
    """(lookups, matrices, vectors): every weight's shape, written out layer by layer."""
    d, h, k, v = model.d_model, model.n_heads, model.d_head or model.d_model // model.n_heads, model.vocab_size
    g = {'mha': h, 'mqa': 1, 'gqa': model.n_kv_heads}[model.attention]
    gated = model.feed_forward in ('swiglu', 'geglu')
    f = model.d_ff or (64 * math.ceil(8 * d / 3 / 64) if gated else 4 * d)
    lookups, matrices, vectors = [(v, d)], [], []
    if model.position == 'learned':
        lookups.append((model.max_seq_len, d))
    for _ in range(model.n_layers):
        matrices += [(d, h, k), (d, g, k), (d, g, k), (h, k, d), (d, f), (f, d)]
        if gated:
            matrices.append((d, f))
        for _ in range(1 if model.residual == 'parallel' else 2):
            vectors += [(d,)] * (1 + model.norm_bias)
        if model.bias:
            vectors += [(h, k), (g, k), (g, k), (d,), (f,), (d,)]
            if gated:
                vectors.append((f,))
    vectors += [(d,)] * (1 + model.norm_bias)
    if not model.tie_embeddings:
        matrices.append((d, v))
    return lookups, matrices, vectors


MODELS = {
    'llama': Model(vocab_size=4096, d_model=320, n_layers=3, n_heads=5),
    'gpt2': Model(
        vocab_size=50257, d_model=768, n_layers=12, n_heads=12, position='learned', max_seq_len=1024,
        norm='layernorm', norm_bias=True, bias=True, feed_forward='gelu',
    ),
    'grouped': Model(vocab_size=1000, d_model=96, n_heads=6, attention='gqa', n_kv_heads=2, tie_embeddings=False),
    'multi-query': Model(vocab_size=512, d_model=64, n_heads=4, attention='mqa', d_head=24, d_ff=100, bias=True),
    'parallel': Model(vocab_size=777, d_model=128, residual='parallel', feed_forward='relu2', norm_bias=True),
}  # fmt: skip


def total(shape_list: list) -> int:
    return sum(math.prod(shape) for shape in shape_list)


def count(model: Model) -> metrics.Counts:
    transformer = build(model, vocab_size=model.vocab_size, seq_len=128)
    params = jax.eval_shape(lambda: init_params(transformer, jax.random.key(0)))
    return metrics.count(transformer.config, params, weights_of(transformer))


@pytest.mark.parametrize('name', MODELS)
def test_counts_equal_the_shapes_written_out(name):
    lookups, matrices, vectors = shapes(MODELS[name])
    counts = count(MODELS[name])
    assert counts.total == counts.active == total(lookups) + total(matrices) + total(vectors)
    assert counts.embedding == total(lookups)


def test_count_of_the_published_gpt2():
    assert count(MODELS['gpt2']).total == 124_439_808


def test_of_experts_only_those_count_as_active_that_a_token_goes_to():
    moe = Moe(n_experts=8, top_k=2, d_ff=96, n_shared=1)
    model = Model(vocab_size=100, d_model=32, n_layers=3, n_heads=4, feed_forward='moe', moe=moe)
    counts, expert = count(model), 3 * 32 * 96
    assert counts.total - counts.active == 3 * 6 * expert
    assert counts.matmul == 100 * 32 + 3 * (4 * 32 * 32 + 32 * 8 + (2 + 1) * expert)


def test_a_window_bounds_what_attention_costs():
    model = Model(vocab_size=100, d_model=32, n_layers=4, n_heads=4, pattern=((('window', 16),), ()))
    counts = count(model)
    assert metrics.flops_per_token(model, counts, 128) == 6 * counts.matmul + 12 * 32 * (2 * 16 + 2 * 128)


@pytest.mark.parametrize('name', MODELS)
def test_flops_equal_those_of_every_matrix_product(name):
    model, length = MODELS[name], 128
    _, matrices, _ = shapes(model)
    if model.tie_embeddings:
        matrices.append((model.d_model, model.vocab_size))
    forward = sum(2 * math.prod(shape) for shape in matrices)  # multiply and add, per token
    width = model.d_head or model.d_model // model.n_heads
    # Per query token and head: `length` scores of `width` products, and as many to mix the values.
    forward += model.n_layers * model.n_heads * 2 * (2 * length * width)
    assert metrics.flops_per_token(model, count(model), length) == 3 * forward  # the backward pass is two more


@pytest.mark.parametrize('tied', [False, True])
def test_frozen_parts_have_no_gradients_to_compute(tied):
    model = Model(
        vocab_size=100, d_model=32, n_layers=4, n_heads=4, d_ff=64, tie_embeddings=tied,
        first_layers=((('window', 16),),),
    )  # fmt: skip
    length, layer, head = 128, 4 * 32 * 32 + 3 * 32 * 64, 100 * 32
    first_attention, attention = 12 * 32 * 16 / 3, 12 * 32 * length / 3  # in the forward pass
    transformer = build(model, vocab_size=100, seq_len=length)
    params, weights = jax.eval_shape(lambda: init_params(transformer, jax.random.key(0))), weights_of(transformer)
    whole = metrics.flops_per_token(model, count(model), length)
    for trainable, wanted in (
        ('.*', whole),
        # Gradients go down to the stack, and weights of all but its attention have none.
        (
            'layers/attention/.*',
            2 * layer + first_attention
            + 3 * (2 * layer + 2 * layer + 2 * 4 * 32 * 32 + 3 * attention) + 4 * head,
        ),
        ('first_0/.*', whole - 2 * (3 * layer + head)),
        ('final_norm/.*', 4 * 2 * layer + first_attention + 3 * attention + 4 * head),
        *((('unembed/.*', 4 * 2 * layer + first_attention + 3 * attention + 4 * head),) if not tied else ()),
    ):  # fmt: skip
        trained, frozen = split_params(params, trainable)
        saved = metrics.frozen_flops_per_token(model, trained, frozen, weights, length)
        assert whole - saved == wanted, trainable


def test_a_step_that_the_host_saw_late_does_not_have_a_rate_of_its_own():
    throughput = run_log.Throughput()
    assert throughput.measure(1, 10.0, 0.5) is None
    assert throughput.measure(2, 10.1, 0.5) == pytest.approx((10, 0))
    # Steps 3 and 4 were seen to end together.
    assert throughput.measure(3, 10.3, 0.6) == pytest.approx((2 / 0.3, 0.1 / 0.3))
    assert throughput.measure(4, 10.30001, 0.6) == pytest.approx((10, 0.1 / 0.3), rel=1e-3)
    # Long steps are measured one by one.
    assert throughput.measure(5, 12.3, 1.6) == pytest.approx((1 / 2, 1 / 2), rel=1e-3)
    assert throughput.measure(7, 13.3, 1.6) == pytest.approx((2, 0), rel=1e-3)


def test_flops_agree_with_what_xla_counts():
    # One layer, written in matrix products only, so that the compiler counts what we count.
    v, d, h, f, length = 256, 64, 4, 128, 32
    model = Model(vocab_size=v, d_model=d, n_layers=1, n_heads=h, d_ff=f, feed_forward='gelu')

    def forward(weights, x):
        q, k, u, o, up, down, head = weights
        split = lambda y: y.reshape(length, h, d // h)
        scores = jnp.einsum('qhk,shk->hqs', split(x @ q), split(x @ k))
        x = jnp.einsum('hqs,shk->qhk', scores, split(x @ u)).reshape(length, d) @ o
        return jnp.square(x @ up @ down @ head).sum()

    sizes = [(d, d)] * 4 + [(d, f), (f, d), (d, v)]
    weights = [jax.ShapeDtypeStruct(s, jnp.float32) for s in sizes]
    x = jax.ShapeDtypeStruct((length, d), jnp.float32)
    cost = jax.jit(jax.grad(forward, argnums=(0, 1))).lower(weights, x).compile().cost_analysis()
    assert cost['flops'] / length == pytest.approx(metrics.flops_per_token(model, count(model), length), rel=0.05)


def test_feed_forward_width_rule():
    assert Model(d_model=256, feed_forward='swiglu').ff_size == 704  # 682.7 up to 11 * 64
    assert Model(d_model=384, feed_forward='geglu').ff_size == 1024  # exactly 8/3
    assert Model(d_model=384, feed_forward='gelu').ff_size == 1536
    assert Model(d_model=384, feed_forward=lambda: None).ff_size == 1536
    assert Model(d_model=384, feed_forward='swiglu', d_ff=5).ff_size == 5


# --- Chips -----------------------------------------------------------------------------


def test_peak_of_known_and_unknown_devices(caplog):
    device = lambda kind: SimpleNamespace(platform='tpu', device_kind=kind)
    assert metrics.peak_flops(device('TPU v5 lite')) == 197e12
    assert metrics.peak_flops(device('TPU v5')) == 459e12
    assert not caplog.records
    assert metrics.peak_flops(device('TPU v99')) is None
    assert 'TPU v99' in caplog.text and 'MFU' in caplog.text


def test_cpu_peak_is_measured():
    device = jax.devices('cpu')[0]
    peak = metrics.peak_flops(device) * len(jax.local_devices(backend='cpu'))
    x = np.ones((512, 512), np.float32)
    start = time.perf_counter()
    x @ x
    once = 2 * 512**3 / (time.perf_counter() - start)
    # NumPy's product, run once and cold, is of the same order.
    assert 1e9 < peak < 1e14 and peak > once / 10


def test_mfu():
    assert metrics.mfu(1000, 6e9, 4, 3e12) == pytest.approx(0.5)
    assert metrics.mfu(1000, 6e9, 4, None) is None


# --- JSON lines ------------------------------------------------------------------------


def test_jsonl_lines_are_there_before_close_and_are_valid_json(tmp_path):
    path = tmp_path / 'run' / 'metrics.jsonl'
    writer = metrics.JsonlWriter(path)
    writer.write(1, {'loss': jnp.float32(2.5), 'tokens': np.int64(64), 'mfu': None})
    writer.write(2, {'loss': float('nan'), 'grad_norm': float('inf'), 'text': 'é\n\x1b'})
    lines = path.read_text().split('\n')
    forbid = lambda constant: pytest.fail(f'{constant} is not JSON')
    first, second = (json.loads(line, parse_constant=forbid) for line in lines[:2])
    assert first == {'step': 1, 'loss': 2.5, 'tokens': 64, 'mfu': None} and lines[2] == ''
    assert second == {'step': 2, 'loss': 'NaN', 'grad_norm': 'Infinity', 'text': 'é\n\x1b'}
    back = metrics.read_jsonl(path)[1]
    assert math.isnan(back['loss']) and back['grad_norm'] == math.inf
    writer.close()


def test_jsonl_resume_drops_later_steps_and_a_half_line(tmp_path):
    path = tmp_path / 'metrics.jsonl'
    writer = metrics.JsonlWriter(path)
    for step in (10, 20, 30):
        writer.write(step, {'loss': 1 / step})
    writer.close()
    whole = path.read_text()
    path.write_text(whole + '{"step": 40, "lo')
    assert [line['step'] for line in metrics.read_jsonl(path)] == [10, 20, 30]

    writer = metrics.JsonlWriter(path, resume_step=20)
    assert path.read_text() == ''.join(whole.splitlines(keepends=True)[:2])  # before anything is written
    writer.write(30, {'loss': 7.0})
    writer.close()
    assert [line['step'] for line in metrics.read_jsonl(path)] == [10, 20, 30]
    assert metrics.read_jsonl(path)[2]['loss'] == 7.0
    assert list(tmp_path.iterdir()) == [path]  # no temporary file stays

    metrics.JsonlWriter(path).close()  # a new run
    assert path.read_text() == ''


def test_jsonl_broken_in_the_middle_is_an_error(tmp_path):
    path = tmp_path / 'metrics.jsonl'
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(ConfigError, match='line 2'):
        metrics.JsonlWriter(path, resume_step=3)
    path.write_text('{"loss": 1}\n')
    with pytest.raises(ConfigError, match='"step"'):
        metrics.read_jsonl(path)


def test_remote_file_is_rewritten_whole_and_rarely(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(writers.time, 'monotonic', lambda: now[0])
    path = writers.epath.Path(tmp_path / 'metrics.jsonl')
    file = writers._RewrittenFile(path, 'old\n')
    for i in range(5):
        file.write(f'{i}\n')
        file.flush()
    assert path.read_text() == 'old\n0\n'
    now[0] = 31.0
    file.write('5\n')
    file.flush()
    assert path.read_text() == 'old\n0\n1\n2\n3\n4\n5\n'
    file.write('6\n')
    file.close()
    assert path.read_text().endswith('5\n6\n')


@pytest.mark.skipif(not pathlib.Path('/dev/full').exists(), reason='needs /dev/full')
def test_a_full_disk_names_the_file(tmp_path):
    writer = metrics.JsonlWriter(tmp_path / 'metrics.jsonl')
    writer.close()
    full = open('/dev/full', 'wb', buffering=0)  # noqa: SIM115
    writer._file = io.TextIOWrapper(full, write_through=True)
    with pytest.raises(OSError, match='No space left.*metrics.jsonl'):
        writer.write(1, {'loss': 1.0})


def test_multi_writer_reaches_all():
    calls = []
    spy = lambda name: SimpleNamespace(
        write=lambda step, values: calls.append((name, step, dict(values))),
        flush=lambda: calls.append((name, 'flush')),
        close=lambda: calls.append((name, 'close')),
    )
    writer = metrics.MultiWriter([spy('a'), spy('b')])
    writer.write(3, {'loss': 1.0})
    writer.close()
    assert calls == [('a', 3, {'loss': 1.0}), ('b', 3, {'loss': 1.0}), ('a', 'close'), ('b', 'close')]


# --- TensorBoard -----------------------------------------------------------------------


def events(directory: pathlib.Path) -> list[event_pb2.Event]:
    """Reads event files by the TFRecord layout: length u64, crc u32, bytes, crc u32."""
    out = []
    for path in sorted(directory.iterdir(), key=lambda p: p.stat().st_mtime_ns):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from('<Q', data, at)
            out.append(event_pb2.Event.FromString(data[at + 12 : at + 12 + length]))
            at += 16 + length
    return out


def scalars(directory: pathlib.Path) -> list[tuple]:
    return [(e.step, v.tag, v.simple_value) for e in events(directory) for v in e.summary.value]


def test_tensorboard_files_read_back(tmp_path):
    writer = metrics.TensorBoardWriter(tmp_path)
    writer.write(1, {'loss': jnp.float32(2.5), 'val/loss': 3.0, 'mfu': None, 'text': 'no number'})
    writer.write(2, {'loss': 1.5})
    writer.close()
    assert scalars(tmp_path) == [(1, 'loss', 2.5), (1, 'val/loss', 3.0), (2, 'loss', 1.5)]

    writer = metrics.TensorBoardWriter(tmp_path, resume_step=1)
    writer.write(2, {'loss': 1.25})
    writer.close()
    assert len(list(tmp_path.iterdir())) == 2
    starts = [e.step for e in events(tmp_path) if e.HasField('session_log')]
    assert starts == [0, 2]  # TensorBoard hides earlier events from these steps on
    assert scalars(tmp_path)[-1] == (2, 'loss', 1.25)


@pytest.mark.skipif(not pathlib.Path('/dev/full').exists(), reason='needs /dev/full')
def test_tensorboard_on_a_full_disk_is_an_error_and_never_waits(tmp_path):
    writer = metrics.TensorBoardWriter(tmp_path)
    record = writer._events._py_recordio_writer
    record._writer = open('/dev/full', 'wb', buffering=0)  # noqa: SIM115
    with pytest.raises(OSError, match=f'No space left on device; make room.*{tmp_path}'):
        for step in range(100):
            writer.write(step, {'loss': 1.0})


def test_tensorboard_refuses_a_path_it_would_take_for_local():
    with pytest.raises(ConfigError, match='az://bucket/run'):
        metrics.TensorBoardWriter('az://bucket/run')


# --- Console ---------------------------------------------------------------------------


def test_console_without_a_terminal_is_plain_and_rare():
    out = io.StringIO()
    console = metrics.Console(1000, file=out)
    start = time.perf_counter()
    for step in range(1, 501):
        console.write(step, {'loss': 3.0, 'tokens_per_second': 45_200.0, 'mfu': 0.413, 'learning_rate': 3e-4})
    assert (time.perf_counter() - start) / 500 < 1e-3
    assert out.getvalue().count('\n') == 1  # all within a few seconds
    console.write(500, {'val/loss': 3.25, 'val/bits_per_byte': 1.5})
    console.event('saved [a] checkpoint')
    console.sample(500, 'def ', '[bold]f[/bold]\x1b[31m\x07(\r):\n\tpass')
    console.table('Results', {'loss': '3.0'})
    console.close()
    text = out.getvalue()
    assert not [c for c in text if ord(c) < 32 and c != '\n' or 127 <= ord(c) < 160]
    for shown in ('step 500/1000', '45.2 k tok/s', 'MFU 41.3 %', 'lr 3.0e-04', 'val 3.250 (1.500 bits/byte)', 'ETA',
                  'saved [a] checkpoint', r'def [bold]f[/bold]\x1b[31m\x07(\r):', 'Results'):  # fmt: skip
        assert shown in text


def test_console_shows_the_last_step_and_survives_nan():
    out = io.StringIO()
    console = metrics.Console(2, file=out)
    console.write(1, {'loss': float('nan')})
    console.write(2, {'loss': float('inf')})
    assert out.getvalue().splitlines()[0] == 'step 1/2 · loss –'
    assert out.getvalue().splitlines()[1].startswith('step 2/2 · loss ∞')


def test_console_speaks_the_encoding_of_its_output():
    raw = io.BytesIO()
    console = metrics.Console(2, file=io.TextIOWrapper(raw, encoding='ascii'))
    console.write(2, {'loss': 1.0, 'learning_rate': 0.1})
    console.sample(2, 'é', '😀')
    console.table('Done', {'a': 'é'})
    console.flush()
    assert r'\xe9\U0001f600' in raw.getvalue().decode('ascii')


def test_console_is_silent_on_other_processes():
    out = io.StringIO()
    with metrics.Console(2, enabled=False, file=out) as console:
        console.write(2, {'loss': 1.0})
        console.event('x')
        console.sample(1, 'a', 'b')
        console.table('t', {})
        console.flush()
    assert out.getvalue() == ''


def test_console_on_a_terminal_redraws_one_line():
    class Terminal(io.StringIO):
        isatty = lambda self: True

    out = Terminal()
    with metrics.Console(10, file=out) as console:
        console.write(5, {'loss': 1.25})
        console.event('saved a checkpoint')
    assert '\x1b[' in out.getvalue() and 'saved a checkpoint\n' in out.getvalue() and 'loss 1.250' in out.getvalue()


# --- Numbers for people ----------------------------------------------------------------


@pytest.mark.parametrize(
    ('function', 'number', 'text'),
    [
        (fmt.count, 0, '0'), (fmt.count, 950, '950'), (fmt.count, 999.7, '1.00 k'), (fmt.count, 12_345, '12.3 k'),
        (fmt.count, 124_439_808, '124 M'), (fmt.count, 7e15, '7000 T'), (fmt.count, None, '–'),
        (fmt.size, 1_115_394, '1.12 MB'), (fmt.flops, 989e12, '989 TFLOP/s'), (fmt.percent, 0.4126, '41.3 %'),
        (fmt.decimal, 3.14159, '3.142'), (fmt.decimal, 2e-5, '2.00e-05'), (fmt.decimal, float('nan'), '–'),
        (fmt.duration, 12.34, '12.3 s'), (fmt.duration, 200, '3 min 20 s'), (fmt.duration, 7500, '2 h 05 min'),
        (fmt.duration, 273_600, '3 d 04 h'), (fmt.clock, 42, '0:42'), (fmt.clock, 7500, '2:05:00'),
        (fmt.learning_rate, 3e-4, '3.0e-04'),
    ],
)  # fmt: skip
def test_numbers_for_people(function, number, text):
    assert function(number) == text
