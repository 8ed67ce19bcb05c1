"""Phi-3 (arXiv:2404.14219): Llama with fused projections; the 128 K models stretch rotary positions by LongRoPE."""

from typing import Any

from llm_jax.config.schema import Model
from llm_jax.models import llama
from llm_jax.models.hf_config import (
    GATED,
    Keys,
    activation,
    original_len,
    rope,
    rope_to_hf,
    sizes,
    sizes_to_hf,
)  # fmt: skip
from llm_jax.models.layouts import from_heads, joined, linear, vector

MODEL_TYPE, ARCHITECTURE = 'phi3', 'Phi3ForCausalLM'

_STYLE = {'vocab_size': 32_064, 'max_seq_len': 4096, 'window': 2047}
SIZES = {
    'mini-4k': llama.size(3072, 32, 32, 32, 8192, **_STYLE),
    'medium-4k': llama.size(5120, 40, 40, 10, 17_920, **_STYLE),
}

OUTER, LAYERS, BASE, BUFFERS = llama.OUTER, llama.LAYERS, llama.BASE, llama.BUFFERS
_QKV = ('attention/q/kernel', 'attention/k/kernel', 'attention/v/kernel')
_GATE_UP = ('feed_forward/gate/kernel', 'feed_forward/up/kernel')
LAYER = (
    ('attention_norm/scale', 'input_layernorm.weight', vector),
    (_QKV, 'self_attn.qkv_proj.weight', joined(linear, axis=0)),
    ('attention/out/kernel', 'self_attn.o_proj.weight', from_heads),
    ('feed_forward_norm/scale', 'post_attention_layernorm.weight', vector),
    (_GATE_UP, 'mlp.gate_up_proj.weight', joined(linear, axis=0)),
    ('feed_forward/down/kernel', 'mlp.down_proj.weight', linear),
)


def from_hf(config: dict[str, Any]) -> dict[str, Any]:
    """The fields of `model`.

    Raises:
      ConfigError: a value that is not supported.
    """
    values = dict(config)
    scaling = values.get('rope_scaling')
    if scaling and scaling.get('type') == 'yarn':  # what the first release called its LongRoPE
        values['rope_scaling'] = scaling | {'type': 'longrope'}
    keys = Keys(values)
    out = sizes(keys) | {
        'position': 'rope',
        'rope': rope(keys),
        'window': keys.nullable('sliding_window', None) or 0,
        'feed_forward': keys.choose('hidden_act', GATED),
        'tie_embeddings': keys.get('tie_word_embeddings', False),
    }
    keys.done('original_max_position_embeddings')  # read where the positions are scaled
    return out


def to_hf(model: Model) -> dict[str, Any]:
    """config.json."""
    scaled = {'original_max_position_embeddings': original_len(model)} if model.rope.scaling != 'none' else {}
    return {
        **sizes_to_hf(model),
        **rope_to_hf(model),
        **scaled,
        'partial_rotary_factor': model.rope.fraction,
        'sliding_window': model.window or None,
        'hidden_act': activation(GATED, model.feed_forward),
    }
