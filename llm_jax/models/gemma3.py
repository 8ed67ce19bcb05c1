"""Gemma 3 (arXiv:2503.19786), its text part.

Gemma 2 without soft-caps, with a norm of each query and key head; five layers with a
sliding window and the short base of their own for each one that sees everything.
"""

from typing import Any

from llm_jax.config.schema import ConfigError, Model
from llm_jax.models import gemma2, qwen3
from llm_jax.models.gemma2 import GLOBAL, LOCAL
from llm_jax.models.hf_config import Keys, pattern, rope, rope_to_hf, windows

MODEL_TYPE, ARCHITECTURE = 'gemma3_text', 'Gemma3ForCausalLM'


def _size(
    d_model: int, n_layers: int, n_heads: int, n_kv_heads: int, d_ff: int, *, window: int = 1024, d_head: int = 256,
    scalar: int = 256, factor: float = 8.0, vocab_size: int = 262_208, max_seq_len: int = 131_072,
) -> dict[str, Any]:  # fmt: skip
    shape = {'d_model': d_model, 'n_layers': n_layers, 'n_heads': n_heads, 'n_kv_heads': n_kv_heads, 'd_ff': d_ff}
    heads = {'d_head': d_head, 'attention_scale': scalar**-0.5, 'qk_norm': 'head'}
    size = {'vocab_size': vocab_size, 'max_seq_len': max_seq_len, 'embed_scale': d_model**0.5}
    local = {'window': window, 'rope.theta': 10_000.0}
    wide = {'rope.theta': 1_000_000.0} | ({'rope.scaling': 'linear', 'rope.factor': factor} if factor != 1 else {})
    return {**gemma2.STYLE, **shape, **heads, **size, 'pattern': (*(local,) * 5, wide)}


SIZES = {
    '1b': _size(1152, 26, 4, 1, 6912, window=512, factor=1.0, vocab_size=262_144, max_seq_len=32_768),
    '4b': _size(2560, 34, 8, 4, 10_240),
    '12b': _size(3840, 48, 16, 8, 15_360),
    '27b': _size(5376, 62, 32, 16, 21_504, d_head=128, scalar=168),
}

OUTER, LAYERS, BASE, BUFFERS = gemma2.OUTER, gemma2.LAYERS, gemma2.BASE, gemma2.BUFFERS
LAYER = (*gemma2.LAYER, *qwen3.QK_NORMS)


def from_hf(config: dict[str, Any]) -> dict[str, Any]:
    """The fields of `model`.

    Raises:
      ConfigError: a value that is not supported.
    """
    keys = Keys(config)
    every = keys.get('sliding_window_pattern', keys.get('_sliding_window_pattern', 6))
    n_layers = keys.get('num_hidden_layers')
    kinds = keys.get('layer_types', [LOCAL if (i + 1) % every else GLOBAL for i in range(n_layers)])
    out = gemma2.decoder(keys, window=4096, softcaps=(0.0, 0.0))
    # In the older form, what rope_scaling says is of the global layers alone.
    local = {'theta': keys.get('rope_local_base_freq', 10_000.0)}
    local = rope(keys, 10_000.0, LOCAL) if keys.get('rope_parameters', None) else local
    ropes = {LOCAL: local, GLOBAL: rope(keys, 1_000_000.0, GLOBAL)}
    fields = {kind: {f'rope.{name}': value for name, value in ropes[kind].items()} for kind in ropes}
    fields[LOCAL]['window'] = out['window']
    keys.done('hidden_act')  # hidden_activation is what counts
    return out | {'qk_norm': 'head', 'window': 0, 'pattern': pattern(kinds, fields)}


def to_hf(model: Model) -> dict[str, Any]:
    """config.json, in the older form, which every release reads.

    Raises:
      ConfigError: local layers with scaled rotary positions.
    """
    kinds = windows(model)
    first = {kind: model.layer(kinds.index(kind)) for kind in dict.fromkeys(kinds)}
    local, wide = first.get(LOCAL), first.get(GLOBAL, model)
    if local and local.rope.scaling != 'none':
        raise ConfigError('local layers with model.rope.scaling have no form there')
    theta = {'rope_local_base_freq': local.rope.theta if local else 10_000.0}
    return gemma2.decoder_to_hf(model) | rope_to_hf(wide) | theta
