"""DeepSeek-V3 (arXiv:2412.19437).

Latent attention; after a few dense layers a mixture of many narrow experts and a shared
one, chosen within groups by sigmoid scores, whose load is balanced by a bias instead of
a loss. The extra layer that predicts a second token is passed over.
"""

from typing import Any

from llm_jax.config import parts
from llm_jax.config.schema import Model
from llm_jax.models import llama
from llm_jax.models.hf_config import GATED, Keys, activation, rope, rope_to_hf, sizes, sizes_to_hf
from llm_jax.models.layouts import from_heads, joined, linear, vector
from llm_jax.models.qwen3_moe import EXPERTS

MODEL_TYPE, ARCHITECTURE = 'deepseek_v3', 'DeepseekV3ForCausalLM'

# The norms of the latents have an eps of their own, which config.json does not say.
MLA = {'q_rank': 1536, 'kv_rank': 512, 'd_nope': 128, 'd_rope': 64, 'd_value': 128, 'norm_eps': 1e-6}
YARN = {'theta': 10_000.0, 'interleaved': True, 'scaling': 'yarn', 'factor': 40.0, 'original_len': 4096}
STYLE = {
    'position': 'rope', 'norm': 'rmsnorm', 'norm_eps': 1e-6, 'attention': 'mla', 'feed_forward': 'moe',
    'tie_embeddings': False,
}  # fmt: skip
_EXPERTS = {'score': 'sigmoid', 'group_score': 'top2', 'balance': 'bias'}

SIZES = {
    '671b': {
        **STYLE, 'd_model': 7168, 'n_layers': 61, 'n_heads': 128, 'd_ff': 18_432, 'vocab_size': 129_280,
        'max_seq_len': 163_840, 'mla': MLA, 'rope': {**YARN, 'mscale': 1.0, 'mscale_all_dim': 1.0},
        'first_layers': ({'feed_forward': 'swiglu'},) * 3,
        'moe': {
            **_EXPERTS, 'n_experts': 256, 'top_k': 8, 'd_ff': 2048, 'n_shared': 1, 'scale': 2.5, 'n_groups': 8,
            'top_groups': 4,
        },
    },
}  # fmt: skip

OUTER, LAYERS, BASE = llama.OUTER, llama.LAYERS, llama.BASE
LAYER = (
    *llama.NORMS,
    ('attention/q/kernel', 'self_attn.q_proj.weight', linear),
    ('attention/q_down/kernel', 'self_attn.q_a_proj.weight', linear),
    ('attention/q_down/bias', 'self_attn.q_a_proj.bias', vector),
    ('attention/q_norm/scale', 'self_attn.q_a_layernorm.weight', vector),
    ('attention/q_up/kernel', 'self_attn.q_b_proj.weight', linear),
    (('attention/kv_down/kernel', 'attention/k_rope/kernel'), 'self_attn.kv_a_proj_with_mqa.weight', joined(linear, 0)),
    (('attention/kv_down/bias', 'attention/k_rope/bias'), 'self_attn.kv_a_proj_with_mqa.bias', joined(vector, 0)),
    ('attention/kv_norm/scale', 'self_attn.kv_a_layernorm.weight', vector),
    (('attention/k_up/kernel', 'attention/v_up/kernel'), 'self_attn.kv_b_proj.weight', joined(linear, 1)),
    ('attention/out/kernel', 'self_attn.o_proj.weight', from_heads),
    ('attention/out/bias', 'self_attn.o_proj.bias', vector),
    *EXPERTS,
    ('feed_forward/balance', 'mlp.gate.e_score_correction_bias', vector),
    ('feed_forward/shared/gate/kernel', 'mlp.shared_experts.gate_proj.weight', linear),
    ('feed_forward/shared/up/kernel', 'mlp.shared_experts.up_proj.weight', linear),
    ('feed_forward/shared/down/kernel', 'mlp.shared_experts.down_proj.weight', linear),
    *llama.FEED_FORWARD,
)
BUFFERS = llama.BUFFERS + r'|model\.layers\.{n_layers}\..*'


def from_hf(config: dict[str, Any]) -> dict[str, Any]:
    """The fields of `model`.

    Raises:
      ConfigError: a value that is not supported.
    """
    keys = Keys(config)
    out = decoder(keys)
    keys.only('scoring_func', 'sigmoid')
    keys.only('topk_method', 'noaux_tc')
    out['rope']['interleaved'] = keys.get('rope_interleave', True)
    out['moe'] |= _EXPERTS | {
        'n_groups': keys.get('n_group', 8),
        'top_groups': keys.get('topk_group', 4),
        'normalize': keys.get('norm_topk_prob', True),
        'scale': keys.get('routed_scaling_factor', 2.5),
    }
    keys.done('num_nextn_predict_layers', 'num_mtp_layers', 'ep_size', 'aux_loss_alpha', 'seq_aux')
    return out


def decoder(keys: Keys) -> dict[str, Any]:
    """Fields that DeepSeek-V2 and V3 share."""
    out = sizes(keys)
    nope, turned = keys.get('qk_nope_head_dim', 128), keys.get('qk_rope_head_dim', 64)
    for name, implied in (
        ('num_key_value_heads', out['n_heads']),
        ('head_dim', turned),
        ('qk_head_dim', nope + turned),
    ):
        keys.only(name, implied)
    keys.only('moe_layer_freq', 1)
    act = keys.choose('hidden_act', GATED)
    return STYLE | out | {
        'attention': 'mla',
        'n_kv_heads': 0,
        'd_head': 0,
        'rope': rope(keys) | {'interleaved': True},
        'mla': {
            'q_rank': keys.nullable('q_lora_rank', 1536) or 0,
            'kv_rank': keys.get('kv_lora_rank', 512),
            'd_nope': nope,
            'd_rope': turned,
            'd_value': keys.get('v_head_dim', 128),
            'norm_eps': 1e-6,
        },
        'bias': 'attention' if keys.get('attention_bias', False) else False,
        'moe': {
            'n_experts': keys.get('n_routed_experts', keys.get('num_experts', keys.get('num_local_experts', None))),
            'top_k': keys.get('num_experts_per_tok'),
            'd_ff': keys.get('moe_intermediate_size'),
            'activation': act,
            'n_shared': keys.get('n_shared_experts'),
        },
        'first_layers': ({'feed_forward': act},) * keys.get('first_k_dense_replace', 0),
        'tie_embeddings': keys.get('tie_word_embeddings', False),
    }  # fmt: skip


def to_hf(model: Model) -> dict[str, Any]:
    """config.json."""
    return decoder_to_hf(model) | {
        'scoring_func': model.moe.score,
        'topk_method': 'noaux_tc',
        'rope_interleave': model.rope.interleaved,
        'num_nextn_predict_layers': 0,
    }


def decoder_to_hf(model: Model) -> dict[str, Any]:
    """The inverse of `decoder`."""
    mla, moe = model.mla, model.moe
    layers = [model.layer(i) for i in range(model.n_layers)]
    dense = [not parts.feed_forward(layer).is_mixture(layer) for layer in layers]
    return {
        **sizes_to_hf(model),
        **rope_to_hf(model),
        'head_dim': mla.d_rope,
        'num_key_value_heads': model.n_heads,
        'q_lora_rank': mla.q_rank or None,
        'kv_lora_rank': mla.kv_rank,
        'qk_nope_head_dim': mla.d_nope,
        'qk_rope_head_dim': mla.d_rope,
        'v_head_dim': mla.d_value,
        'attention_bias': model.bias == 'attention',
        'first_k_dense_replace': dense.index(False) if False in dense else model.n_layers,
        'n_routed_experts': moe.n_experts,
        'num_experts_per_tok': moe.top_k,
        'moe_intermediate_size': moe.d_ff or model.ff_size,
        'n_shared_experts': moe.n_shared,
        'n_group': moe.n_groups,
        'topk_group': moe.top_groups,
        'norm_topk_prob': moe.normalize,
        'routed_scaling_factor': moe.scale,
        'hidden_act': activation(GATED, moe.activation),
    }
