"""GPT-3 (Brown et al. 2020, arXiv:2005.14165, table 2.1): GPT-2 at eight sizes, with a context of 2048.

Dense attention in every layer; in the paper every second layer is locally banded.
Weights were never published, so there is no form of them to read or write.
"""

from typing import Any

from llm_jax.models import gpt2

MODEL_TYPE, ARCHITECTURE = '', ''


def _size(d_model: int, n_layers: int, n_heads: int) -> dict[str, Any]:
    shape = {'d_model': d_model, 'n_layers': n_layers, 'n_heads': n_heads, 'd_ff': 4 * d_model}
    return {**gpt2.STYLE, **shape, 'vocab_size': 50_257, 'max_seq_len': 2048}


SIZES = {
    '125m': _size(768, 12, 12),
    '350m': _size(1024, 24, 16),
    '760m': _size(1536, 24, 16),
    # The table has 24 heads of 128 here and a width of 5140 at 13b, neither of which
    # multiplies to the width of all heads; these do.
    '1.3b': _size(2048, 24, 16),
    '2.7b': _size(2560, 32, 32),
    '6.7b': _size(4096, 32, 32),
    '13b': _size(5120, 40, 40),
    '175b': _size(12_288, 96, 96),
}
