"""Mistral 7B (arXiv:2310.06825): Llama with grouped queries and, in version 0.1, a sliding window in every layer."""

from typing import Any

from llm_jax.config.schema import Model
from llm_jax.models import llama
from llm_jax.models.hf_config import GATED, Keys, activation, rope, rope_to_hf, sizes, sizes_to_hf

MODEL_TYPE, ARCHITECTURE = 'mistral', 'MistralForCausalLM'

_7B = llama.size(4096, 32, 32, 8, 14_336)
SIZES = {
    '7b-v0.1': {**_7B, 'vocab_size': 32_000, 'max_seq_len': 32_768, 'window': 4096},
    '7b-v0.3': {**_7B, 'vocab_size': 32_768, 'max_seq_len': 32_768, 'rope': {'theta': 1_000_000.0}},
}

OUTER, LAYERS, LAYER, BASE, BUFFERS = llama.OUTER, llama.LAYERS, llama.LAYER, llama.BASE, llama.BUFFERS


def from_hf(config: dict[str, Any]) -> dict[str, Any]:
    """The fields of `model`.

    Raises:
      ConfigError: a value that is not supported.
    """
    keys = Keys(config)
    out = sizes(keys) | {
        'position': 'rope',
        'rope': rope(keys),
        'window': keys.nullable('sliding_window', 4096) or 0,
        'feed_forward': keys.choose('hidden_act', GATED),
        'tie_embeddings': keys.get('tie_word_embeddings', False),
    }
    keys.done()
    return out


def to_hf(model: Model) -> dict[str, Any]:
    """config.json."""
    return {
        **sizes_to_hf(model),
        **rope_to_hf(model),
        'sliding_window': model.window or None,
        'hidden_act': activation(GATED, model.feed_forward),
    }
