"""GPT-2 (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners").

Learned positions, LayerNorm before each branch, GELU in its tanh form, biases
everywhere, tied embeddings. The checkpoint keeps weights as [in, out], and those of
queries, keys and values in one matrix.
"""

from typing import Any

from llm_jax.config.schema import Model
from llm_jax.models.hf_config import PLAIN, Keys, activation
from llm_jax.models.layouts import conv1d, conv1d_from_heads, joined, linear, same, vector

MODEL_TYPE, ARCHITECTURE = 'gpt2', 'GPT2LMHeadModel'

STYLE = {
    'position': 'learned', 'norm': 'layernorm', 'norm_bias': True, 'norm_eps': 1e-5, 'attention': 'mha',
    'feed_forward': 'gelu', 'bias': True, 'tie_embeddings': True,
}  # fmt: skip


def _size(d_model: int, n_layers: int, n_heads: int) -> dict[str, Any]:
    shape = {'d_model': d_model, 'n_layers': n_layers, 'n_heads': n_heads, 'd_ff': 4 * d_model}
    return {**STYLE, **shape, 'vocab_size': 50257, 'max_seq_len': 1024}


SIZES = {
    '124m': _size(768, 12, 12),
    '355m': _size(1024, 24, 16),
    '774m': _size(1280, 36, 20),
    '1.5b': _size(1600, 48, 25),
}

_QKV = ('attention/q/kernel', 'attention/k/kernel', 'attention/v/kernel')
_QKV_BIAS = ('attention/q/bias', 'attention/k/bias', 'attention/v/bias')
OUTER = (
    ('embed/embedding', 'transformer.wte.weight', same),
    ('position/table/embedding', 'transformer.wpe.weight', same),
    ('final_norm/scale', 'transformer.ln_f.weight', vector),
    ('final_norm/bias', 'transformer.ln_f.bias', vector),
    ('unembed/kernel', 'lm_head.weight', linear),
)
LAYERS = 'transformer.h.{layer}.'
LAYER = (
    ('attention_norm/scale', 'ln_1.weight', vector),
    ('attention_norm/bias', 'ln_1.bias', vector),
    (_QKV, 'attn.c_attn.weight', joined(conv1d, axis=1)),
    (_QKV_BIAS, 'attn.c_attn.bias', joined(vector, axis=0)),
    ('attention/out/kernel', 'attn.c_proj.weight', conv1d_from_heads),
    ('attention/out/bias', 'attn.c_proj.bias', vector),
    ('feed_forward_norm/scale', 'ln_2.weight', vector),
    ('feed_forward_norm/bias', 'ln_2.bias', vector),
    ('feed_forward/up/kernel', 'mlp.c_fc.weight', conv1d),
    ('feed_forward/up/bias', 'mlp.c_fc.bias', vector),
    ('feed_forward/down/kernel', 'mlp.c_proj.weight', conv1d),
    ('feed_forward/down/bias', 'mlp.c_proj.bias', vector),
)
BASE = 'transformer.'
BUFFERS = r'transformer\.h\.\d+\.attn\.(masked_)?bias'


def from_hf(config: dict[str, Any]) -> dict[str, Any]:
    """The fields of `model`.

    Raises:
      ConfigError: a value that is not supported.
    """
    keys = Keys(config)
    keys.only('scale_attn_weights', True)
    keys.only('scale_attn_by_inverse_layer_idx', False)
    d_model = keys.get('n_embd', 768)
    out = STYLE | {
        'vocab_size': keys.get('vocab_size', 50257),
        'max_seq_len': keys.get('n_positions', 1024),
        'd_model': d_model,
        'n_layers': keys.get('n_layer', 12),
        'n_heads': keys.get('n_head', 12),
        'd_ff': keys.get('n_inner', 4 * d_model),
        'feed_forward': keys.choose('activation_function', PLAIN),
        'norm_eps': keys.get('layer_norm_epsilon', 1e-5),
        'tie_embeddings': keys.get('tie_word_embeddings', True),
    }
    keys.only('n_ctx', out['max_seq_len'])
    keys.done('reorder_and_upcast_attn')  # another order of the same float32 arithmetic
    return out


def to_hf(model: Model) -> dict[str, Any]:
    """config.json."""
    return {
        'vocab_size': model.vocab_size,
        'n_positions': model.max_seq_len,
        'n_embd': model.d_model,
        'n_layer': model.n_layers,
        'n_head': model.n_heads,
        'n_inner': model.ff_size,
        'activation_function': activation(PLAIN, model.feed_forward),
        'layer_norm_epsilon': model.norm_eps,
        'tie_word_embeddings': model.tie_embeddings,
    }
