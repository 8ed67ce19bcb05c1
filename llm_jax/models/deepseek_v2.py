"""DeepSeek-V2 (arXiv:2405.04434): V3 with softmax scores, groups that count by their best expert, and a loss."""

from typing import Any

from llm_jax.config.schema import Model
from llm_jax.models import deepseek_v3
from llm_jax.models.deepseek_v3 import MLA, STYLE, YARN
from llm_jax.models.hf_config import Keys

MODEL_TYPE, ARCHITECTURE = 'deepseek_v2', 'DeepseekV2ForCausalLM'

_DENSE = ({'feed_forward': 'swiglu'},)
_EXPERTS = {'n_shared': 2, 'top_k': 6, 'normalize': False, 'aux_weight': 0.001}
SIZES = {
    '236b': {
        **STYLE, 'd_model': 5120, 'n_layers': 60, 'n_heads': 128, 'd_ff': 12_288, 'vocab_size': 102_400,
        'max_seq_len': 163_840, 'mla': MLA, 'rope': {**YARN, 'mscale': 1.0, 'mscale_all_dim': 1.0},
        'first_layers': _DENSE,
        'moe': {**_EXPERTS, 'n_experts': 160, 'd_ff': 1536, 'scale': 16.0, 'n_groups': 8, 'top_groups': 3},
    },
    'lite-16b': {
        **STYLE, 'd_model': 2048, 'n_layers': 27, 'n_heads': 16, 'd_ff': 10_944, 'vocab_size': 102_400,
        'max_seq_len': 163_840, 'mla': {**MLA, 'q_rank': 0},
        'rope': {**YARN, 'mscale': 0.707, 'mscale_all_dim': 0.707},
        'first_layers': _DENSE, 'moe': {**_EXPERTS, 'n_experts': 64, 'd_ff': 1408},
    },
}  # fmt: skip

OUTER, LAYERS, LAYER = deepseek_v3.OUTER, deepseek_v3.LAYERS, deepseek_v3.LAYER
BASE, BUFFERS = deepseek_v3.BASE, deepseek_v3.BUFFERS


def from_hf(config: dict[str, Any]) -> dict[str, Any]:
    """The fields of `model`.

    Raises:
      ConfigError: a value that is not supported.
    """
    keys = Keys(config)
    out = deepseek_v3.decoder(keys)
    keys.only('scoring_func', 'softmax')
    keys.only('norm_topk_prob', False)
    keys.only('mlp_bias', False)
    out['moe'] |= {'normalize': False, 'scale': keys.get('routed_scaling_factor', 1.0)}
    groups = {'n_groups': keys.get('n_group', 1), 'top_groups': keys.get('topk_group', 1), 'group_score': 'max'}
    if keys.only('topk_method', 'greedy', 'group_limited_greedy') == 'group_limited_greedy':
        out['moe'] |= groups
    out['moe']['aux_weight'] = keys.get('aux_loss_alpha', 0.001)
    keys.done('ep_size', 'seq_aux')
    return out


def to_hf(model: Model) -> dict[str, Any]:
    """config.json."""
    return deepseek_v3.decoder_to_hf(model) | {
        'scoring_func': model.moe.score,
        'topk_method': 'group_limited_greedy' if model.moe.n_groups > 1 else 'greedy',
        'aux_loss_alpha': model.moe.aux_weight,
    }
