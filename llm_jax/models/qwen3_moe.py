"""Qwen 3 with a mixture of experts (arXiv:2505.09388): 128 narrow experts, of which a token goes to eight."""

from typing import Any

from llm_jax.config import parts
from llm_jax.config.schema import Model
from llm_jax.models import llama, qwen3
from llm_jax.models.hf_config import GATED, Keys, activation, pattern, rope, rope_to_hf, sizes, sizes_to_hf
from llm_jax.models.layouts import linear

MODEL_TYPE, ARCHITECTURE = 'qwen3_moe', 'Qwen3MoeForCausalLM'


def _size(*numbers: int, expert: int) -> dict[str, Any]:
    experts = {'n_experts': 128, 'top_k': 8, 'd_ff': expert, 'aux_weight': 0.001}
    return llama.size(*numbers, **qwen3.STYLE) | {'feed_forward': 'moe', 'moe': experts}


SIZES = {
    '30b-a3b': _size(2048, 48, 32, 4, 6144, expert=768),
    '235b-a22b': _size(4096, 94, 64, 4, 12_288, expert=1536),
}

OUTER, LAYERS, BASE, BUFFERS = llama.OUTER, llama.LAYERS, llama.BASE, llama.BUFFERS
EXPERTS = (
    ('feed_forward/router/kernel', 'mlp.gate.weight', linear),
    ('feed_forward/gate/kernel', 'mlp.experts.{expert}.gate_proj.weight', linear),
    ('feed_forward/up/kernel', 'mlp.experts.{expert}.up_proj.weight', linear),
    ('feed_forward/down/kernel', 'mlp.experts.{expert}.down_proj.weight', linear),
)
LAYER = (*llama.NORMS, *llama.ATTENTION, *qwen3.QK_NORMS, *EXPERTS, *llama.FEED_FORWARD)


def from_hf(config: dict[str, Any]) -> dict[str, Any]:
    """The fields of `model`.

    Raises:
      ConfigError: a value that is not supported.
    """
    keys = Keys(config)
    dense, every = keys.get('mlp_only_layers', []), keys.get('decoder_sparse_step', 1)
    n_layers = keys.get('num_hidden_layers')
    kinds = ['dense' if i in dense or (i + 1) % every else 'moe' for i in range(n_layers)]
    act = keys.choose('hidden_act', GATED)
    layers = pattern(kinds, {'dense': {'feed_forward': act}, 'moe': {}})
    window = keys.nullable('sliding_window', 4096) if keys.get('use_sliding_window', False) else None
    keys.get('sliding_window', None)  # without use_sliding_window it means nothing
    out = sizes(keys) | {
        'position': 'rope',
        'rope': rope(keys),
        'qk_norm': 'head',
        'bias': 'attention' if keys.get('attention_bias', False) else False,
        'window': window or 0,
        'feed_forward': 'moe',
        'moe': {
            'n_experts': keys.get('num_experts', keys.get('num_local_experts', 128)),
            'top_k': keys.get('num_experts_per_tok', 8),
            'd_ff': keys.get('moe_intermediate_size', 768),
            'activation': act,
            'normalize': keys.get('norm_topk_prob', False),
            'aux_weight': keys.get('router_aux_loss_coef', 0.001),
        },
        'pattern': layers if any(layers) else (),
        'tie_embeddings': keys.get('tie_word_embeddings', False),
    }
    keys.done('max_window_layers')  # read by nothing
    return out


def to_hf(model: Model) -> dict[str, Any]:
    """config.json."""
    layers = [model.layer(i) for i in range(model.n_layers)]
    mixtures = [parts.feed_forward(layer).is_mixture(layer) for layer in layers]
    moe = next((layer.moe for layer, mixes in zip(layers, mixtures, strict=True) if mixes), model.moe)
    return {
        **sizes_to_hf(model),
        **rope_to_hf(model),
        'attention_bias': model.bias == 'attention',
        'use_sliding_window': bool(model.window),
        'sliding_window': model.window or None,
        'mlp_only_layers': [i for i, mixes in enumerate(mixtures) if not mixes],
        'decoder_sparse_step': 1,
        'num_experts': moe.n_experts,
        'num_experts_per_tok': moe.top_k,
        'moe_intermediate_size': moe.d_ff or model.ff_size,
        'hidden_act': activation(GATED, moe.activation),
        'norm_topk_prob': moe.normalize,
        'router_aux_loss_coef': moe.aux_weight,
    }
