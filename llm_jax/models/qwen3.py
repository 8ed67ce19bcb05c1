"""Qwen 3 (arXiv:2505.09388): Qwen 2 with a norm of each query and key head in place of the biases."""

from typing import Any

from llm_jax.config.schema import Model
from llm_jax.models import llama, qwen2
from llm_jax.models.hf_config import Keys
from llm_jax.models.layouts import vector

MODEL_TYPE, ARCHITECTURE = 'qwen3', 'Qwen3ForCausalLM'

STYLE = {
    'd_head': 128, 'qk_norm': 'head', 'norm_eps': 1e-6, 'vocab_size': 151_936, 'max_seq_len': 40_960,
    'rope': {'theta': 1_000_000.0},
}  # fmt: skip
SIZES = {
    '0.6b': llama.size(1024, 28, 16, 8, 3072, **STYLE, tie_embeddings=True),
    '1.7b': llama.size(2048, 28, 16, 8, 6144, **STYLE, tie_embeddings=True),
    '4b': llama.size(2560, 36, 32, 8, 9728, **STYLE, tie_embeddings=True),
    '8b': llama.size(4096, 36, 32, 8, 12_288, **STYLE),
    '14b': llama.size(5120, 40, 40, 8, 17_408, **STYLE),
    '32b': llama.size(5120, 64, 64, 8, 25_600, **STYLE),
}

OUTER, LAYERS, BASE, BUFFERS = llama.OUTER, llama.LAYERS, llama.BASE, llama.BUFFERS
QK_NORMS = (
    ('attention/q_norm/scale', 'self_attn.q_norm.weight', vector),
    ('attention/k_norm/scale', 'self_attn.k_norm.weight', vector),
)
LAYER = (*llama.LAYER, *QK_NORMS)


def from_hf(config: dict[str, Any]) -> dict[str, Any]:
    """The fields of `model`.

    Raises:
      ConfigError: a value that is not supported.
    """
    keys = Keys(config)
    bias = 'attention' if keys.get('attention_bias', False) else False
    out = qwen2.decoder(keys) | {'d_head': keys.get('head_dim', 128), 'qk_norm': 'head', 'bias': bias}
    keys.done()
    return out


def to_hf(model: Model) -> dict[str, Any]:
    """config.json."""
    return {**qwen2.decoder_to_hf(model), 'attention_bias': model.bias == 'attention'}
