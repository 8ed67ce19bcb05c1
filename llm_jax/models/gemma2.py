"""Gemma 2 (arXiv:2408.00118).

Norms before and after each branch, whose scales start at 0 and are added to 1;
embeddings times √D; GELU-gated; soft-capped scores and logits; every second layer sees
a sliding window.
"""

from typing import Any

from llm_jax.config.schema import Model
from llm_jax.models import llama
from llm_jax.models.hf_config import (
    GATED,
    Keys,
    activation,
    pattern,
    rope,
    rope_to_hf,
    sizes,
    sizes_to_hf,
    windows,
)  # fmt: skip
from llm_jax.models.layouts import vector

MODEL_TYPE, ARCHITECTURE = 'gemma2', 'Gemma2ForCausalLM'

STYLE = {
    'position': 'rope', 'norm': 'rmsnorm', 'norm_eps': 1e-6, 'norm_offset': True, 'norm_at': 'sandwich',
    'attention': 'gqa', 'feed_forward': 'geglu', 'tie_embeddings': True,
}  # fmt: skip
LOCAL, GLOBAL = 'sliding_attention', 'full_attention'


def _size(d_model: int, n_layers: int, n_heads: int, n_kv_heads: int, d_ff: int, d_head: int, scalar: int):
    shape = {'d_model': d_model, 'n_layers': n_layers, 'n_heads': n_heads, 'n_kv_heads': n_kv_heads, 'd_ff': d_ff}
    heads = {'d_head': d_head, 'attention_scale': scalar**-0.5, 'attention_softcap': 50.0, 'logit_softcap': 30.0}
    size = {'vocab_size': 256_000, 'max_seq_len': 8192, 'embed_scale': d_model**0.5}
    return {**STYLE, **shape, **heads, **size, 'pattern': ({'window': 4096}, {})}


SIZES = {
    '2b': _size(2304, 26, 8, 4, 9216, d_head=256, scalar=256),
    '9b': _size(3584, 42, 16, 8, 14_336, d_head=256, scalar=256),
    '27b': _size(4608, 46, 32, 16, 36_864, d_head=128, scalar=144),
}

OUTER, LAYERS, BASE, BUFFERS = llama.OUTER, llama.LAYERS, llama.BASE, llama.BUFFERS
LAYER = (
    ('attention_norm/scale', 'input_layernorm.weight', vector),
    ('attention_out_norm/scale', 'post_attention_layernorm.weight', vector),
    ('feed_forward_norm/scale', 'pre_feedforward_layernorm.weight', vector),
    ('feed_forward_out_norm/scale', 'post_feedforward_layernorm.weight', vector),
    *llama.ATTENTION,
    *llama.FEED_FORWARD,
)


def from_hf(config: dict[str, Any]) -> dict[str, Any]:
    """The fields of `model`.

    Raises:
      ConfigError: a value that is not supported.
    """
    keys = Keys(config)
    kinds = keys.get('layer_types', [GLOBAL if i % 2 else LOCAL for i in range(keys.get('num_hidden_layers'))])
    out = decoder(keys, window=4096, softcaps=(50.0, 30.0)) | {'rope': rope(keys)}
    layers = pattern(kinds, {LOCAL: {'window': out['window']}, GLOBAL: {}})
    keys.done('hidden_act')  # hidden_activation is what counts
    return out | {'window': 0, 'pattern': layers}


def decoder(keys: Keys, window: int, softcaps: tuple[float, float]) -> dict[str, Any]:
    """Fields that Gemma 2 and 3 share, with the window of the layers that have one."""
    return STYLE | sizes(keys) | {
        'd_head': keys.get('head_dim', 256),
        'attention_scale': keys.get('query_pre_attn_scalar', 256) ** -0.5,
        'attention_softcap': keys.nullable('attn_logit_softcapping', softcaps[0]) or 0.0,
        'logit_softcap': keys.nullable('final_logit_softcapping', softcaps[1]) or 0.0,
        'feed_forward': keys.choose('hidden_activation', GATED, default='gelu_pytorch_tanh'),
        'bias': 'attention' if keys.get('attention_bias', False) else False,
        'tie_embeddings': keys.get('tie_word_embeddings', True),
        'embed_scale': keys.get('hidden_size') ** 0.5,
        'window': keys.get('sliding_window', window),
    }  # fmt: skip


def to_hf(model: Model) -> dict[str, Any]:
    """config.json."""
    return decoder_to_hf(model) | rope_to_hf(model)


def decoder_to_hf(model: Model) -> dict[str, Any]:
    """The inverse of `decoder`."""
    kinds = windows(model)
    sliding = [model.layer(i).window for i, kind in enumerate(kinds) if kind == LOCAL]
    act = activation(GATED, model.feed_forward)
    return {
        **sizes_to_hf(model),
        'query_pre_attn_scalar': round(model.attention_scale**-2) if model.attention_scale else model.head_size,
        'attn_logit_softcapping': model.attention_softcap or None,
        'final_logit_softcapping': model.logit_softcap or None,
        'hidden_activation': act,
        'hidden_act': act,
        'attention_bias': model.bias == 'attention',
        'sliding_window': sliding[0] if sliding else model.max_seq_len,
        'layer_types': kinds,
    }
