"""OLMo 2 (arXiv:2501.00656): norms after each branch instead of before, and of all query and key heads together."""

from typing import Any

from llm_jax.config.schema import Model
from llm_jax.models import llama, qwen3
from llm_jax.models.hf_config import GATED, Keys, activation, rope, rope_to_hf, sizes, sizes_to_hf
from llm_jax.models.layouts import vector

MODEL_TYPE, ARCHITECTURE = 'olmo2', 'Olmo2ForCausalLM'

_STYLE = {
    'norm_at': 'output', 'qk_norm': 'whole', 'norm_eps': 1e-6, 'rope': {'theta': 500_000.0}, 'vocab_size': 100_352,
    'max_seq_len': 4096,
}  # fmt: skip
SIZES = {
    '1b': llama.size(2048, 16, 16, 16, 8192, **_STYLE),
    '7b': llama.size(4096, 32, 32, 32, 11_008, **_STYLE),
    '13b': llama.size(5120, 40, 40, 40, 13_824, **_STYLE),
    '32b': llama.size(5120, 64, 40, 8, 27_648, **_STYLE),
}

OUTER, LAYERS, BASE, BUFFERS = llama.OUTER, llama.LAYERS, llama.BASE, llama.BUFFERS
LAYER = (
    *llama.ATTENTION,
    *qwen3.QK_NORMS,
    ('attention_out_norm/scale', 'post_attention_layernorm.weight', vector),
    *llama.FEED_FORWARD,
    ('feed_forward_out_norm/scale', 'post_feedforward_layernorm.weight', vector),
)


def from_hf(config: dict[str, Any]) -> dict[str, Any]:
    """The fields of `model`.

    Raises:
      ConfigError: a value that is not supported.
    """
    keys = Keys(config)
    out = sizes(keys) | {
        'position': 'rope',
        'rope': rope(keys),
        'norm_at': 'output',
        'qk_norm': 'whole',
        'feed_forward': keys.choose('hidden_act', GATED),
        'bias': 'attention' if keys.get('attention_bias', False) else False,
        'tie_embeddings': keys.get('tie_word_embeddings', False),
    }
    keys.done()
    return out


def to_hf(model: Model) -> dict[str, Any]:
    """config.json."""
    return {
        **sizes_to_hf(model),
        **rope_to_hf(model),
        'hidden_act': activation(GATED, model.feed_forward),
        'attention_bias': model.bias == 'attention',
    }
