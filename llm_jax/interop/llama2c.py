"""llama2.c's .bin files, of the first ("legacy") format: seven int32, then float32 tensors in a fixed order."""

import math
import os
import pathlib
from typing import Any

import jax
import numpy as np

from llm_jax.config.schema import Config, ConfigError
from llm_jax.interop import hf, tensors
from llm_jax.models import llama
from llm_jax.models.layouts import Shape

_HEADER = ('dim', 'hidden_dim', 'n_layers', 'n_heads', 'n_kv_heads', 'vocab_size', 'seq_len')


def load(file: str | os.PathLike, mesh: jax.sharding.Mesh | None = None) -> tuple[Config, dict[str, Any]]:
    """The config of an experiment with this model, and its parameters.

    Its rotary pairs are neighbours, which `model.rope.interleaved` says.

    Args:
      file: a .bin file.
      mesh: where to; None means the default device.

    Raises:
      ConfigError: it is no such file, or cut short.
    """
    file = pathlib.Path(file)
    header = np.fromfile(file, '<i4', len(_HEADER))
    if len(header) < len(_HEADER) or min(*header[:5], abs(header[5]), header[6]) < 1:
        raise ConfigError(f'{file} is no llama2.c file: it begins with {header.tolist()}')
    sizes = dict(zip(_HEADER, header.tolist(), strict=True))
    # Any seven numbers, as of a text, may be a header: billions of layers would be counted one by one.
    if 4 * sizes['dim'] * (sizes['n_layers'] + abs(sizes['vocab_size'])) > file.stat().st_size:
        raise ConfigError(
            f'{file} is no llama2.c file, or is cut short: it has {file.stat().st_size} bytes and begins with '
            f'{header.tolist()} ({", ".join(_HEADER)})'
        )
    config = hf.to_config(_fields(sizes), file.stem)
    starts, end = _starts(sizes)
    if file.stat().st_size != end:
        raise ConfigError(f'{file} has {file.stat().st_size} bytes; by its header it should have {end}')

    def fetch(name: str, index: tuple[slice, ...]) -> np.ndarray:
        start, shape = starts[name]
        return np.memmap(file, '<f4', 'r', start, shape)[index]

    wanted = tensors.tensors(config.model, llama)
    tensors.check(wanted, {name: shape for name, (_, shape) in starts.items()}, lambda name: False)
    return config, tensors.load(config.model, wanted, fetch, mesh)


def _fields(sizes: dict[str, int]) -> dict[str, Any]:
    n_kv_heads = sizes['n_kv_heads']
    return llama.STYLE | {
        'vocab_size': abs(sizes['vocab_size']),
        'd_model': sizes['dim'],
        'n_layers': sizes['n_layers'],
        'n_heads': sizes['n_heads'],
        'attention': 'gqa' if n_kv_heads != sizes['n_heads'] else 'mha',
        'n_kv_heads': n_kv_heads if n_kv_heads != sizes['n_heads'] else 0,
        'd_ff': sizes['hidden_dim'],
        'max_seq_len': sizes['seq_len'],
        'norm_eps': 1e-5,
        'rope': {'theta': 10_000.0, 'interleaved': True},
        # A negative vocab_size says that the head follows.
        'tie_embeddings': sizes['vocab_size'] > 0,
    }


def _starts(sizes: dict[str, int]) -> tuple[dict[str, tuple[int, Shape]], int]:
    """First byte and shape of each tensor, by the names of a llama checkpoint; and the size of the file."""
    D, F, N, V = sizes['dim'], sizes['hidden_dim'], sizes['n_layers'], abs(sizes['vocab_size'])
    head = D // sizes['n_heads']
    narrow = head * sizes['n_kv_heads']
    frequencies = (sizes['seq_len'], head // 2)
    each = 'model.layers.{}.'
    order: list[tuple[str, Shape]] = [
        ('model.embed_tokens.weight', (V, D)),
        (each + 'input_layernorm.weight', (D,)),
        (each + 'self_attn.q_proj.weight', (D, D)),
        (each + 'self_attn.k_proj.weight', (narrow, D)),
        (each + 'self_attn.v_proj.weight', (narrow, D)),
        (each + 'self_attn.o_proj.weight', (D, D)),
        (each + 'post_attention_layernorm.weight', (D,)),
        (each + 'mlp.gate_proj.weight', (F, D)),
        (each + 'mlp.down_proj.weight', (D, F)),
        (each + 'mlp.up_proj.weight', (F, D)),
        ('model.norm.weight', (D,)),
        ('', frequencies),  # cosines and sines, which are computed here
        ('', frequencies),
    ]
    if sizes['vocab_size'] < 0:
        order.append(('lm_head.weight', (V, D)))
    at, out = 4 * len(_HEADER), {}
    for name, shape in order:
        for i in range(N if each in name else 1):
            if name:
                out[name.format(i)] = (at, shape)
            at += 4 * math.prod(shape)
    return out, at
