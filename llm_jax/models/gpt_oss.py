"""gpt-oss (arXiv:2508.10925).

Mixture of experts in every layer, weighed by a softmax of the chosen ones alone; a
clipped SwiGLU; attention sinks; biases everywhere; every second layer sees a window of
128. The checkpoint keeps all experts in one tensor, gates and inputs alternating.
"""

from typing import Any

from llm_jax.config.schema import Model
from llm_jax.models import llama
from llm_jax.models.hf_config import Keys, pattern, rope, rope_to_hf, sizes, sizes_to_hf, windows
from llm_jax.models.layouts import alternating, linear, same, vector

MODEL_TYPE, ARCHITECTURE = 'gpt_oss', 'GptOssForCausalLM'

_YARN = {
    'rope_type': 'yarn', 'factor': 32.0, 'beta_fast': 32.0, 'beta_slow': 1.0, 'truncate': False,
    'original_max_position_embeddings': 4096,
}  # fmt: skip
_ROPE = {'theta': 150_000.0, 'scaling': 'yarn', 'factor': 32.0, 'original_len': 4096, 'round_betas': False}
_EXPERTS = {'top_k': 4, 'activation': 'swiglu_clipped', 'score': 'softmax_top', 'aux_weight': 0.001}
STYLE = {'attention_sinks': True, 'bias': True, 'feed_forward': 'moe'}


def _size(n_layers: int, n_experts: int) -> dict[str, Any]:
    size = {'d_head': 64, 'vocab_size': 201_088, 'max_seq_len': 131_072, 'rope': _ROPE}
    fields = llama.size(2880, n_layers, 64, 8, 2880, **size, pattern=({'window': 128}, {}))
    return fields | STYLE | {'moe': {**_EXPERTS, 'n_experts': n_experts}}


SIZES = {'20b': _size(24, 32), '120b': _size(36, 128)}

OUTER, LAYERS, BASE, BUFFERS = llama.OUTER, llama.LAYERS, llama.BASE, llama.BUFFERS
LAYER = (
    *llama.NORMS,
    *llama.ATTENTION,
    ('attention/sinks', 'self_attn.sinks', vector),
    ('feed_forward/router/kernel', 'mlp.router.weight', linear),
    ('feed_forward/router/bias', 'mlp.router.bias', vector),
    (('feed_forward/gate/kernel', 'feed_forward/up/kernel'), 'mlp.experts.gate_up_proj', alternating(same)),
    (('feed_forward/gate/bias', 'feed_forward/up/bias'), 'mlp.experts.gate_up_proj_bias', alternating(same)),
    ('feed_forward/down/kernel', 'mlp.experts.down_proj', same),
    ('feed_forward/down/bias', 'mlp.experts.down_proj_bias', same),
)


def from_hf(config: dict[str, Any]) -> dict[str, Any]:
    """The fields of `model`.

    Raises:
      ConfigError: a value that is not supported.
    """
    values = dict(config)
    if not values.get('rope_parameters') and not values.get('rope_scaling'):
        values['rope_scaling'] = _YARN
    keys = Keys(values)
    for name, fixed in (
        ('hidden_act', 'silu'),
        ('swiglu_alpha', 1.702),
        ('swiglu_limit', 7.0),
        ('attention_bias', True),
    ):
        keys.only(name, fixed)
    top_k = keys.get('num_experts_per_tok', 4)
    keys.only('experts_per_token', top_k)
    n_layers, window = keys.get('num_hidden_layers'), keys.get('sliding_window', 128)
    kinds = keys.get('layer_types', [('sliding_attention', 'full_attention')[i % 2] for i in range(n_layers)])
    out = sizes(keys) | STYLE | {
        'd_head': keys.get('head_dim', 64),
        'position': 'rope',
        'rope': rope(keys, 150_000.0),
        'moe': {
            **_EXPERTS,
            'n_experts': keys.get('num_local_experts', keys.get('num_experts', 128)),
            'top_k': top_k,
            'aux_weight': keys.get('router_aux_loss_coef', 0.001),
        },
        'pattern': pattern(kinds, {'sliding_attention': {'window': window}, 'full_attention': {}}),
        'tie_embeddings': keys.get('tie_word_embeddings', False),
    }  # fmt: skip
    keys.done('initial_context_length')  # rope_scaling says it again
    return out


def to_hf(model: Model) -> dict[str, Any]:
    """config.json."""
    kinds = windows(model)
    sliding = [model.layer(i).window for i, kind in enumerate(kinds) if kind == 'sliding_attention']
    return {
        **sizes_to_hf(model),
        **rope_to_hf(model),
        'intermediate_size': model.moe.d_ff or model.ff_size,
        'hidden_act': 'silu',
        'swiglu_limit': 7.0,
        'attention_bias': model.bias is True,
        'sliding_window': sliding[0] if sliding else model.max_seq_len,
        'layer_types': kinds,
        'num_local_experts': model.moe.n_experts,
        'num_experts_per_tok': model.moe.top_k,
        'router_aux_loss_coef': model.moe.aux_weight,
    }
