"""Llama 2 (arXiv:2307.09288) and 3 (arXiv:2407.21783).

Rotary positions, RMSNorm before each branch, SwiGLU, no biases; grouped queries in the
larger ones and from Llama 3 on, whose 3.1 stretches the rotary positions to 128 K.
"""

from typing import Any

from llm_jax.config.schema import ConfigError, Model
from llm_jax.models.hf_config import GATED, Keys, activation, rope, rope_to_hf, sizes, sizes_to_hf
from llm_jax.models.layouts import from_heads, linear, same, vector

MODEL_TYPE, ARCHITECTURE = 'llama', 'LlamaForCausalLM'

STYLE = {'position': 'rope', 'norm': 'rmsnorm', 'norm_eps': 1e-5, 'feed_forward': 'swiglu', 'tie_embeddings': False}


def size(d_model: int, n_layers: int, n_heads: int, n_kv_heads: int, d_ff: int, **more: Any) -> dict[str, Any]:
    """The fields of a model of this kind."""
    same = n_kv_heads == n_heads
    heads = {'n_heads': n_heads, 'attention': 'mha' if same else 'gqa', 'n_kv_heads': 0 if same else n_kv_heads}
    return {**STYLE, 'd_model': d_model, 'n_layers': n_layers, **heads, 'd_ff': d_ff, **more}


_2 = {'vocab_size': 32_000, 'max_seq_len': 4096}
_3 = {'vocab_size': 128_256, 'max_seq_len': 8192, 'rope': {'theta': 500_000.0}}


def _stretched(factor: float) -> dict[str, Any]:
    scaling = {'scaling': 'llama3', 'factor': factor, 'original_len': 8192}
    return {**_3, 'max_seq_len': 131_072, 'rope': {'theta': 500_000.0, **scaling}}


SIZES = {
    '2-7b': size(4096, 32, 32, 32, 11_008, **_2),
    '2-13b': size(5120, 40, 40, 40, 13_824, **_2),
    '2-70b': size(8192, 80, 64, 8, 28_672, **_2),
    '3-8b': size(4096, 32, 32, 8, 14_336, **_3),
    '3-70b': size(8192, 80, 64, 8, 28_672, **_3),
    '3.1-8b': size(4096, 32, 32, 8, 14_336, **_stretched(8.0)),
    '3.1-70b': size(8192, 80, 64, 8, 28_672, **_stretched(8.0)),
    '3.1-405b': size(16_384, 126, 128, 8, 53_248, **_stretched(8.0)),
    '3.2-1b': size(2048, 16, 32, 8, 8192, **_stretched(32.0), tie_embeddings=True),
    '3.2-3b': size(3072, 28, 24, 8, 8192, **_stretched(32.0), tie_embeddings=True),
}

OUTER = (
    ('embed/embedding', 'model.embed_tokens.weight', same),
    ('final_norm/scale', 'model.norm.weight', vector),
    ('unembed/kernel', 'lm_head.weight', linear),
)
LAYERS = 'model.layers.{layer}.'
ATTENTION = (
    ('attention/q/kernel', 'self_attn.q_proj.weight', linear),
    ('attention/q/bias', 'self_attn.q_proj.bias', vector),
    ('attention/k/kernel', 'self_attn.k_proj.weight', linear),
    ('attention/k/bias', 'self_attn.k_proj.bias', vector),
    ('attention/v/kernel', 'self_attn.v_proj.weight', linear),
    ('attention/v/bias', 'self_attn.v_proj.bias', vector),
    ('attention/out/kernel', 'self_attn.o_proj.weight', from_heads),
    ('attention/out/bias', 'self_attn.o_proj.bias', vector),
)
NORMS = (
    ('attention_norm/scale', 'input_layernorm.weight', vector),
    ('feed_forward_norm/scale', 'post_attention_layernorm.weight', vector),
)
FEED_FORWARD = (
    ('feed_forward/gate/kernel', 'mlp.gate_proj.weight', linear),
    ('feed_forward/gate/bias', 'mlp.gate_proj.bias', vector),
    ('feed_forward/up/kernel', 'mlp.up_proj.weight', linear),
    ('feed_forward/up/bias', 'mlp.up_proj.bias', vector),
    ('feed_forward/down/kernel', 'mlp.down_proj.weight', linear),
    ('feed_forward/down/bias', 'mlp.down_proj.bias', vector),
)
LAYER = (*NORMS, *ATTENTION, *FEED_FORWARD)
BASE = 'model.'
BUFFERS = r'model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq'


def from_hf(config: dict[str, Any]) -> dict[str, Any]:
    """The fields of `model`.

    Raises:
      ConfigError: a value that is not supported.
    """
    keys = Keys(config)
    biases = (keys.get('attention_bias', False), keys.get('mlp_bias', False))
    if biases == (False, True):
        raise ConfigError('config.json: mlp_bias without attention_bias is not supported')
    out = sizes(keys) | {
        'position': 'rope',
        'rope': rope(keys),
        'feed_forward': keys.choose('hidden_act', GATED),
        'bias': {(False, False): False, (True, False): 'attention', (True, True): True}[biases],
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
        'attention_bias': model.bias in (True, 'attention'),
        'mlp_bias': model.bias is True,
    }
