"""GPT-NeoX (arXiv:2204.06745) and Pythia (arXiv:2304.01373).

Attention and feed-forward side by side, each with a LayerNorm; a quarter of each head is
rotated; exact GELU; biases everywhere. The checkpoint keeps queries, keys and values of
a head together.
"""

from typing import Any

from llm_jax.config.schema import Model
from llm_jax.models.hf_config import PLAIN, Keys, activation, rope, rope_to_hf
from llm_jax.models.layouts import from_heads, joined, linear, same, vector

MODEL_TYPE, ARCHITECTURE = 'gpt_neox', 'GPTNeoXForCausalLM'

STYLE = {
    'position': 'rope', 'norm': 'layernorm', 'norm_bias': True, 'norm_eps': 1e-5, 'attention': 'mha',
    'residual': 'parallel_two_norms', 'feed_forward': 'gelu_exact', 'bias': True, 'tie_embeddings': False,
}  # fmt: skip


def _size(d_model: int, n_layers: int, n_heads: int, vocab_size: int = 50_304) -> dict[str, Any]:
    shape = {'d_model': d_model, 'n_layers': n_layers, 'n_heads': n_heads, 'd_ff': 4 * d_model}
    return {**STYLE, **shape, 'rope': {'fraction': 0.25}, 'vocab_size': vocab_size, 'max_seq_len': 2048}


SIZES = {
    '70m': _size(512, 6, 8),
    '160m': _size(768, 12, 12),
    '410m': _size(1024, 24, 16),
    '1b': _size(2048, 16, 8),
    '1.4b': _size(2048, 24, 16),
    '2.8b': _size(2560, 32, 32),
    '6.9b': _size(4096, 32, 32, 50_432),
    '12b': _size(5120, 36, 40, 50_688),
    '20b': _size(6144, 44, 64, 50_432),
}

_QKV = ('attention/q/kernel', 'attention/k/kernel', 'attention/v/kernel')
_QKV_BIAS = ('attention/q/bias', 'attention/k/bias', 'attention/v/bias')
OUTER = (
    ('embed/embedding', 'gpt_neox.embed_in.weight', same),
    ('final_norm/scale', 'gpt_neox.final_layer_norm.weight', vector),
    ('final_norm/bias', 'gpt_neox.final_layer_norm.bias', vector),
    ('unembed/kernel', 'embed_out.weight', linear),
)
LAYERS = 'gpt_neox.layers.{layer}.'
LAYER = (
    ('attention_norm/scale', 'input_layernorm.weight', vector),
    ('attention_norm/bias', 'input_layernorm.bias', vector),
    (_QKV, 'attention.query_key_value.weight', joined(linear, axis=1)),
    (_QKV_BIAS, 'attention.query_key_value.bias', joined(vector, axis=1)),
    ('attention/out/kernel', 'attention.dense.weight', from_heads),
    ('attention/out/bias', 'attention.dense.bias', vector),
    ('feed_forward_norm/scale', 'post_attention_layernorm.weight', vector),
    ('feed_forward_norm/bias', 'post_attention_layernorm.bias', vector),
    ('feed_forward/up/kernel', 'mlp.dense_h_to_4h.weight', linear),
    ('feed_forward/up/bias', 'mlp.dense_h_to_4h.bias', vector),
    ('feed_forward/down/kernel', 'mlp.dense_4h_to_h.weight', linear),
    ('feed_forward/down/bias', 'mlp.dense_4h_to_h.bias', vector),
)
BASE = 'gpt_neox.'
BUFFERS = r'gpt_neox\.layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)'


def from_hf(config: dict[str, Any]) -> dict[str, Any]:
    """The fields of `model`.

    Raises:
      ConfigError: a value that is not supported.
    """
    values = dict(config)
    values.setdefault('partial_rotary_factor', values.pop('rotary_pct', 0.25))
    values.setdefault('rope_theta', values.pop('rotary_emb_base', 10_000.0))
    keys = Keys(values)
    keys.only('attention_bias', True)
    out = STYLE | {
        'vocab_size': keys.get('vocab_size'),
        'max_seq_len': keys.get('max_position_embeddings'),
        'd_model': keys.get('hidden_size'),
        'n_layers': keys.get('num_hidden_layers'),
        'n_heads': keys.get('num_attention_heads'),
        'd_ff': keys.get('intermediate_size'),
        'rope': rope(keys),
        'norm_eps': keys.get('layer_norm_eps', 1e-5),
        'residual': 'parallel_two_norms' if keys.get('use_parallel_residual', True) else 'sequential',
        'feed_forward': keys.choose('hidden_act', PLAIN, default='gelu'),
        'tie_embeddings': keys.get('tie_word_embeddings', False),
    }
    keys.done()
    return out


def to_hf(model: Model) -> dict[str, Any]:
    """config.json."""
    positions = rope_to_hf(model)
    return {
        'vocab_size': model.vocab_size,
        'max_position_embeddings': model.max_seq_len,
        'hidden_size': model.d_model,
        'num_hidden_layers': model.n_layers,
        'num_attention_heads': model.n_heads,
        'intermediate_size': model.ff_size,
        'rotary_emb_base': positions['rope_theta'],
        'rotary_pct': model.rope.fraction,
        'rope_scaling': positions['rope_scaling'],
        'layer_norm_eps': model.norm_eps,
        'use_parallel_residual': model.residual != 'sequential',
        'hidden_act': activation(PLAIN, model.feed_forward),
        'attention_bias': model.bias is True,
        'tie_word_embeddings': model.tie_embeddings,
    }
