"""Tiny config.json of every family, odd on purpose, and weights for them from a seed."""

from collections.abc import Mapping
import json
import pathlib
import re
import zlib

import numpy as np
from safetensors.numpy import save_file

V = 67
_LLAMA = {
    'vocab_size': V, 'hidden_size': 24, 'intermediate_size': 40, 'num_hidden_layers': 3, 'num_attention_heads': 4,
    'num_key_value_heads': 2, 'max_position_embeddings': 64, 'rms_norm_eps': 1e-5,
}  # fmt: skip
_NEOX = {
    'model_type': 'gpt_neox', 'vocab_size': V, 'hidden_size': 24, 'intermediate_size': 56, 'num_hidden_layers': 3,
    'num_attention_heads': 3, 'max_position_embeddings': 64,
}  # fmt: skip
_DEEPSEEK = {
    **_LLAMA, 'num_key_value_heads': 4, 'moe_intermediate_size': 20, 'n_shared_experts': 1, 'q_lora_rank': 14,
    'kv_lora_rank': 12, 'qk_nope_head_dim': 10, 'qk_rope_head_dim': 6, 'v_head_dim': 7,
}  # fmt: skip
_LLAMA3_ROPE = {
    'rope_type': 'llama3', 'factor': 4.0, 'low_freq_factor': 1.0, 'high_freq_factor': 3.0,
    'original_max_position_embeddings': 16,
}  # fmt: skip

# Name -> config.json. What stands before the dot is the family.
CASES = {
    'gpt2.tied': {
        'model_type': 'gpt2', 'vocab_size': V, 'n_embd': 24, 'n_layer': 3, 'n_head': 3, 'n_positions': 48,
    },
    'gpt2.untied_exact_wide': {
        'model_type': 'gpt2', 'vocab_size': V, 'n_embd': 24, 'n_layer': 2, 'n_head': 4, 'n_positions': 48,
        'n_inner': 40, 'activation_function': 'gelu', 'tie_word_embeddings': False, 'layer_norm_epsilon': 1e-3,
    },
    'llama.grouped_llama3_rope': {
        **_LLAMA, 'model_type': 'llama', 'rope_theta': 5000.0, 'rope_scaling': _LLAMA3_ROPE,
    },
    'llama.tied_biased_narrow_heads': {
        **_LLAMA, 'model_type': 'llama', 'head_dim': 10, 'num_key_value_heads': 1, 'attention_bias': True,
        'mlp_bias': True, 'tie_word_embeddings': True,
    },
    'llama.attention_biased_dynamic_rope': {
        **_LLAMA, 'model_type': 'llama', 'num_key_value_heads': 4, 'attention_bias': True,
        'rope_scaling': {'rope_type': 'dynamic', 'factor': 2.0}, 'hidden_act': 'gelu',
    },
    'llama.yarn': {
        **_LLAMA, 'model_type': 'llama',
        'rope_scaling': {'rope_type': 'yarn', 'factor': 4.0, 'original_max_position_embeddings': 16,
                         'beta_fast': 8.0, 'beta_slow': 2.0},
    },
    'mistral.window': {**_LLAMA, 'model_type': 'mistral', 'sliding_window': 5, 'rope_theta': 1e6},
    'mistral.no_window_narrow_heads': {
        **_LLAMA, 'model_type': 'mistral', 'sliding_window': None, 'head_dim': 10, 'tie_word_embeddings': True,
    },
    'qwen2.tied': {
        **_LLAMA, 'model_type': 'qwen2', 'num_key_value_heads': 1, 'tie_word_embeddings': True, 'rope_theta': 1e6,
    },
    'qwen2.late_windows': {
        **_LLAMA, 'model_type': 'qwen2', 'use_sliding_window': True, 'sliding_window': 6, 'max_window_layers': 2,
        'rope_scaling': {'rope_type': 'yarn', 'factor': 2.0, 'original_max_position_embeddings': 32},
    },
    'qwen3.wide_heads': {**_LLAMA, 'model_type': 'qwen3', 'head_dim': 16, 'rms_norm_eps': 1e-6},
    'qwen3.biased_tied_windows': {
        **_LLAMA, 'model_type': 'qwen3', 'head_dim': 8, 'attention_bias': True, 'tie_word_embeddings': True,
        'num_hidden_layers': 5, 'use_sliding_window': True, 'sliding_window': 6,
        'layer_types': ['sliding_attention', 'full_attention'] * 2 + ['sliding_attention'],
    },
    'gemma2.odd_depth': {
        **_LLAMA, 'model_type': 'gemma2', 'head_dim': 10, 'query_pre_attn_scalar': 7, 'sliding_window': 5,
        'attn_logit_softcapping': 3.0, 'final_logit_softcapping': 2.0, 'rms_norm_eps': 1e-6,
    },
    'gemma2.biased_without_caps': {
        **_LLAMA, 'model_type': 'gemma2', 'num_hidden_layers': 2, 'head_dim': 6, 'attention_bias': True,
        'attn_logit_softcapping': None, 'final_logit_softcapping': None, 'sliding_window': 7,
        'tie_word_embeddings': False,
    },
    'gemma3.scaled': {
        **_LLAMA, 'model_type': 'gemma3_text', 'num_hidden_layers': 7, 'head_dim': 8, 'query_pre_attn_scalar': 9,
        'sliding_window': 5, 'rope_theta': 4000.0, 'rope_local_base_freq': 300.0,
        'rope_scaling': {'rope_type': 'linear', 'factor': 4.0},
    },
    'gemma3.short_pattern': {
        **_LLAMA, 'model_type': 'gemma3_text', 'num_hidden_layers': 3, 'num_key_value_heads': 1, 'head_dim': 12,
        'sliding_window': 6, 'layer_types': ['full_attention', 'sliding_attention', 'full_attention'],
        'final_logit_softcapping': 4.0,
    },
    'olmo2.grouped': {**_LLAMA, 'model_type': 'olmo2', 'rope_theta': 500.0},
    'olmo2.biased_tied': {
        **_LLAMA, 'model_type': 'olmo2', 'num_key_value_heads': 4, 'attention_bias': True, 'tie_word_embeddings': True,
    },
    'phi3.window': {**_LLAMA, 'model_type': 'phi3', 'sliding_window': 7},
    'phi3.partial_tied': {
        **_LLAMA, 'model_type': 'phi3', 'hidden_size': 32, 'partial_rotary_factor': 0.5, 'tie_word_embeddings': True,
    },
    'phi3.long': {
        **_LLAMA, 'model_type': 'phi3', 'original_max_position_embeddings': 6,
        'rope_scaling': {'rope_type': 'longrope', 'short_factor': [1.0, 1.1, 1.2], 'long_factor': [1.5, 3.0, 9.0]},
    },
    'phi3.long_used_short': {
        **_LLAMA, 'model_type': 'phi3', 'original_max_position_embeddings': 32,
        'rope_scaling': {'rope_type': 'longrope', 'short_factor': [1.0, 1.1, 1.2], 'long_factor': [1.5, 3.0, 9.0]},
    },
    'gpt_neox.partial': {**_NEOX, 'rotary_pct': 0.5, 'rotary_emb_base': 500.0},
    'gpt_neox.sequential_tanh_tied': {
        **_NEOX, 'hidden_size': 48, 'use_parallel_residual': False, 'hidden_act': 'gelu_new',
        'tie_word_embeddings': True, 'layer_norm_eps': 1e-3,
    },
    'mixtral.grouped': {**_LLAMA, 'model_type': 'mixtral', 'num_local_experts': 5, 'num_experts_per_tok': 2},
    'mixtral.window_narrow_heads_tied': {
        **_LLAMA, 'model_type': 'mixtral', 'num_local_experts': 4, 'num_experts_per_tok': 3, 'head_dim': 10,
        'sliding_window': 6, 'tie_word_embeddings': True,
    },
    'qwen3_moe.all_layers': {
        **_LLAMA, 'model_type': 'qwen3_moe', 'head_dim': 8, 'num_experts': 6, 'num_experts_per_tok': 3,
        'moe_intermediate_size': 20, 'norm_topk_prob': True,
    },
    'qwen3_moe.some_layers_unnormalised': {
        **_LLAMA, 'model_type': 'qwen3_moe', 'head_dim': 8, 'num_experts': 4, 'num_experts_per_tok': 2,
        'moe_intermediate_size': 20, 'num_hidden_layers': 5, 'decoder_sparse_step': 2, 'mlp_only_layers': [3],
        'attention_bias': True, 'use_sliding_window': True, 'sliding_window': 9, 'tie_word_embeddings': True,
    },
    'gpt_oss.yarn': {
        **_LLAMA, 'model_type': 'gpt_oss', 'head_dim': 16, 'num_local_experts': 5, 'num_experts_per_tok': 3,
        'sliding_window': 5, 'rope_scaling': {
            'rope_type': 'yarn', 'factor': 4.0, 'beta_fast': 8.0, 'beta_slow': 1.0, 'truncate': False,
            'original_max_position_embeddings': 16},
    },
    'gpt_oss.odd_depth_tied': {
        **_LLAMA, 'model_type': 'gpt_oss', 'num_hidden_layers': 2, 'head_dim': 8, 'num_local_experts': 4,
        'num_experts_per_tok': 1, 'sliding_window': 7, 'tie_word_embeddings': True,
        'layer_types': ['full_attention', 'sliding_attention'],
    },
    'deepseek_v3.grouped_yarn': {
        **_DEEPSEEK, 'model_type': 'deepseek_v3', 'n_routed_experts': 8, 'num_experts_per_tok': 3, 'n_group': 4,
        'topk_group': 2, 'first_k_dense_replace': 1, 'routed_scaling_factor': 2.5, 'norm_topk_prob': True,
        'rope_scaling': {
            'rope_type': 'yarn', 'factor': 4.0, 'beta_fast': 8.0, 'beta_slow': 1.0, 'mscale': 1.0,
            'mscale_all_dim': 0.7, 'original_max_position_embeddings': 16},
    },
    'deepseek_v3.biased_without_query_latent': {
        **_DEEPSEEK, 'model_type': 'deepseek_v3', 'n_routed_experts': 4, 'num_experts_per_tok': 2, 'n_group': 1,
        'topk_group': 1, 'first_k_dense_replace': 2, 'q_lora_rank': None, 'attention_bias': True,
        'n_shared_experts': 2, 'norm_topk_prob': False, 'rope_interleave': False, 'rms_norm_eps': 1e-3,
    },
    'deepseek_v2.grouped_yarn': {
        **_DEEPSEEK, 'model_type': 'deepseek_v2', 'n_routed_experts': 6, 'num_experts_per_tok': 2, 'n_group': 3,
        'topk_group': 2, 'first_k_dense_replace': 1, 'routed_scaling_factor': 1.5,
        'topk_method': 'group_limited_greedy', 'rope_scaling': {
            'rope_type': 'yarn', 'factor': 4.0, 'beta_fast': 8.0, 'beta_slow': 1.0, 'mscale': 0.7,
            'mscale_all_dim': 0.7, 'original_max_position_embeddings': 16},
    },
    'deepseek_v2.greedy_without_query_latent': {
        **_DEEPSEEK, 'model_type': 'deepseek_v2', 'n_routed_experts': 5, 'num_experts_per_tok': 3,
        'first_k_dense_replace': 0, 'q_lora_rank': None, 'topk_method': 'greedy', 'n_shared_experts': 2,
    },
}  # fmt: skip
# The context that a model is used at, where it is not that of its config.json.
CONTEXT = {'phi3.long_used_short': 32}


def draw(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    """A value for each tensor, float32: a function of (seed, name, shape) alone.

    Norm scales are about 1 (whatever a family adds to them), biases and matrices about
    0, none of them exactly.
    """
    out = {}
    for name, shape in shapes.items():
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        values = rng.standard_normal(shape)
        if re.search(r'(norm\w*|ln_\w+)\.weight$', name):
            values = 1 + 0.3 * values
        elif len(shape) == 1:
            values = 0.3 * values
        else:
            values = values * (0.5 if 'emb' in name or 'wte' in name else 1.2 / np.sqrt(shape[-1]))
        out[name] = values.astype(np.float32)
    return out


def write_weights(directory: str, values: Mapping[str, object], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """A Hugging Face directory: config.json of these values, and drawn tensors of these shapes."""
    directory = pathlib.Path(directory)
    said = dict.fromkeys(('bos_token_id', 'eos_token_id', 'pad_token_id')) | dict(values)
    (directory / 'config.json').write_text(json.dumps(said))
    save_file(draw(shapes), directory / 'model.safetensors', metadata={'format': 'pt'})
