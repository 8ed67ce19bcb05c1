"""Mixtral (arXiv:2401.04088): Mistral with eight experts in each layer, of which a token goes to two."""

from typing import Any

from llm_jax.config.schema import Model
from llm_jax.models import llama
from llm_jax.models.hf_config import GATED, Keys, activation, rope, rope_to_hf, sizes, sizes_to_hf
from llm_jax.models.layouts import linear

MODEL_TYPE, ARCHITECTURE = 'mixtral', 'MixtralForCausalLM'

_STYLE = {
    'feed_forward': 'moe', 'moe': {'n_experts': 8, 'top_k': 2, 'aux_weight': 0.02}, 'rope': {'theta': 1_000_000.0},
    'vocab_size': 32_000,
}  # fmt: skip
SIZES = {
    '8x7b': llama.size(4096, 32, 32, 8, 14_336, **_STYLE, max_seq_len=32_768),
    '8x22b': llama.size(6144, 56, 48, 8, 16_384, **_STYLE, max_seq_len=65_536),
}

OUTER, LAYERS, BASE, BUFFERS = llama.OUTER, llama.LAYERS, llama.BASE, llama.BUFFERS
LAYER = (
    *llama.NORMS,
    *llama.ATTENTION,
    ('feed_forward/router/kernel', 'block_sparse_moe.gate.weight', linear),
    ('feed_forward/gate/kernel', 'block_sparse_moe.experts.{expert}.w1.weight', linear),
    ('feed_forward/down/kernel', 'block_sparse_moe.experts.{expert}.w2.weight', linear),
    ('feed_forward/up/kernel', 'block_sparse_moe.experts.{expert}.w3.weight', linear),
)


def from_hf(config: dict[str, Any]) -> dict[str, Any]:
    """The fields of `model`.

    Raises:
      ConfigError: a value that is not supported.
    """
    keys = Keys(config)
    out = sizes(keys) | {
        'position': 'rope',
        'rope': rope(keys, 1_000_000.0),
        'window': keys.nullable('sliding_window', None) or 0,
        'feed_forward': 'moe',
        'moe': {
            'n_experts': keys.get('num_local_experts', 8),
            'top_k': keys.get('num_experts_per_tok', 2),
            'activation': keys.choose('hidden_act', GATED),
            'aux_weight': keys.get('router_aux_loss_coef', 0.001),
        },
        'tie_embeddings': keys.get('tie_word_embeddings', False),
    }
    keys.done('router_jitter_noise')  # of training
    return out


def to_hf(model: Model) -> dict[str, Any]:
    """config.json."""
    return {
        **sizes_to_hf(model),
        **rope_to_hf(model),
        'intermediate_size': model.moe.d_ff or model.ff_size,
        'sliding_window': model.window or None,
        'num_local_experts': model.moe.n_experts,
        'num_experts_per_tok': model.moe.top_k,
        'hidden_act': activation(GATED, model.moe.activation),
        'router_aux_loss_coef': model.moe.aux_weight,
    }
