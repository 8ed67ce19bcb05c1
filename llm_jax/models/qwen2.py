"""Qwen 2 (arXiv:2407.10671) and 2.5 (arXiv:2412.15115): Llama with biases of queries, keys and values."""

from typing import Any

from llm_jax.config.schema import Model
from llm_jax.models import llama
from llm_jax.models.hf_config import (
    GATED,
    Keys,
    activation,
    pattern,
    rope,
    rope_to_hf,
    sizes,
    sizes_to_hf,
    windows,
)  # fmt: skip

MODEL_TYPE, ARCHITECTURE = 'qwen2', 'Qwen2ForCausalLM'


def _size(*numbers: int, eps: float = 1e-6, **more: Any) -> dict[str, Any]:
    fixed = {'bias': 'qkv', 'norm_eps': eps, 'vocab_size': 152_064, 'max_seq_len': 131_072}
    return llama.size(*numbers, **{**fixed, 'rope': {'theta': 1_000_000.0}, **more})


_SMALL = {'vocab_size': 151_936, 'tie_embeddings': True}
SIZES = {
    '2.5-0.5b': _size(896, 24, 14, 2, 4864, **_SMALL, max_seq_len=32_768),
    '2.5-1.5b': _size(1536, 28, 12, 2, 8960, **_SMALL),
    '2.5-3b': _size(2048, 36, 16, 2, 11_008, **_SMALL, max_seq_len=32_768),
    '2.5-7b': _size(3584, 28, 28, 4, 18_944),
    '2.5-14b': _size(5120, 48, 40, 8, 13_824, eps=1e-5),
    '2.5-32b': _size(5120, 64, 40, 8, 27_648, eps=1e-5),
    '2.5-72b': _size(8192, 80, 64, 8, 29_568, eps=1e-5),
}

OUTER, LAYERS, LAYER, BASE, BUFFERS = llama.OUTER, llama.LAYERS, llama.LAYER, llama.BASE, llama.BUFFERS


def from_hf(config: dict[str, Any]) -> dict[str, Any]:
    """The fields of `model`.

    Raises:
      ConfigError: a value that is not supported.
    """
    keys = Keys(config)
    out = decoder(keys) | {'bias': 'qkv'}
    keys.done()
    return out


def decoder(keys: Keys) -> dict[str, Any]:
    """Fields that Qwen 2 and 3 share; windows are in the layers from max_window_layers on."""
    n_layers = keys.get('num_hidden_layers')
    window = keys.nullable('sliding_window', 4096) if keys.get('use_sliding_window', False) else None
    first = keys.get('max_window_layers', 28)
    kinds = ['sliding_attention' if window and i >= first else 'full_attention' for i in range(n_layers)]
    kinds = keys.get('layer_types', kinds)
    layers = pattern(kinds, {'full_attention': {}, **({'sliding_attention': {'window': window}} if window else {})})
    return sizes(keys) | {
        'position': 'rope',
        'rope': rope(keys),
        'feed_forward': keys.choose('hidden_act', GATED),
        'pattern': layers if any(layers) else (),
        'tie_embeddings': keys.get('tie_word_embeddings', False),
    }


def to_hf(model: Model) -> dict[str, Any]:
    """config.json."""
    return decoder_to_hf(model)


def decoder_to_hf(model: Model) -> dict[str, Any]:
    """The inverse of `decoder`."""
    kinds = windows(model)
    sliding = [model.layer(i).window for i, kind in enumerate(kinds) if kind == 'sliding_attention']
    return {
        **sizes_to_hf(model),
        **rope_to_hf(model),
        'hidden_act': activation(GATED, model.feed_forward),
        'use_sliding_window': bool(sliding),
        'sliding_window': sliding[0] if sliding else None,
        'max_window_layers': kinds.index('sliding_attention') if sliding else model.n_layers,
        'layer_types': kinds,
    }
