"""Tiny config.json of every family, odd on purpose, and weights for them from a seed."""

from collections.abc import Mapping
import re
import zlib

import numpy as np

V = 67
_LLAMA = {
    'vocab_size': V, 'hidden_size': 24, 'intermediate_size': 40, 'num_hidden_layers': 3, 'num_attention_heads': 4,
    'num_key_value_heads': 2, 'max_position_embeddings': 64, 'rms_norm_eps': 1e-5,
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
}  # fmt: skip


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
