"""A run directory as training leaves it, without training."""

import dataclasses
import json
import math
import pathlib

from llm_jax import config
from llm_jax.config import schema
from llm_jax.metrics import JsonlWriter

HOSTILE = '<script>alert(1)</script> & "quotes" ``` \x1b[31m\x00'
INFO = {
    'command': './tools/run train experiments/tiny.py --config.model.n_layers=3',
    'started': '2026-03-01T10:00:00+00:00',
    'finished': '2026-03-01T10:05:00+00:00',
    'status': 'finished',
    'devices': ['cpu'],
    'platform': 'cpu',
    'n_devices': 2,
    'n_processes': 1,
    'mesh': {'data': 1, 'fsdp': 2, 'tensor': 1},
    'versions': {'jax': '0.10.2'},
    'parameters': 8_692_160,
    'parameters_embedding': 1_310_720,
    'total_steps': 200,
    'data': {
        'splits': {
            'train': {
                'code': {'documents': 1502, 'bytes': 22_314_000, 'tokens': 400_000, 'rows': 1563},
                'books': {'documents': 8, 'bytes': 1_000_000, 'tokens': 100_000, 'rows': 391},
            },
            'validation': {'code': {'documents': 83, 'bytes': 1_200_300, 'tokens': 347_000, 'rows': 1355}},
        },
        'vocab_size': 4096,
        'bytes_per_token': 3.46,
        'gzip_bits_per_byte': 2.0,
    },
}


def write_run(directory: pathlib.Path) -> pathlib.Path:
    """Makes a directory that a finished run of 200 steps could have left, its samples hostile."""
    directory.mkdir()
    default = schema.Config(name='tiny run')
    resolved = dataclasses.replace(default, model=dataclasses.replace(default.model, n_layers=3, vocab_size=4096))
    (directory / 'config.json').write_text(json.dumps(config.to_dict(resolved)))
    (directory / 'run.json').write_text(json.dumps(INFO))
    writer = JsonlWriter(directory / 'metrics.jsonl')
    for step in range(1, 201):
        loss = 2 + 6 * math.exp(-step / 30)
        writer.write(step, {
            'tokens': step * 4096, 'loss': loss, 'grad_norm': 1.0, 'param_norm': 90.0, 'learning_rate': 3e-4,
            'tokens_per_second': 14_200.0 if step > 1 else 100.0, 'mfu': 0.413, 'input_wait': 0.002,
            'seconds': 0.5 * step,
        })  # fmt: skip
        if step % 50 == 0:
            writer.write(step, {'val/loss': loss, 'val/perplexity': math.exp(loss), 'val/bits_per_byte': loss / 2})
    writer.close()
    samples = JsonlWriter(directory / 'samples.jsonl')
    for step in (50, 100, 200):
        samples.write(step, {'prompt': 'def ', 'text': f'at_{step} {HOSTILE}'})
    samples.close()
    return directory
