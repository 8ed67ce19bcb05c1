"""A small Llama on the Python standard library: from nothing to samples on a laptop.

./tools/run train experiments/quickstart.py
"""

import ml_collections

from llm_jax import config as config_lib


def get_config() -> ml_collections.ConfigDict:
    config = config_lib.default()
    config.model.d_model = 256
    config.model.n_layers = 4
    config.model.n_heads = 4
    config.model.dtype = 'float32'

    config.data.seq_len = 256
    config.data.tokenizer.vocab_size = 4096

    config.train.duration = '600 steps'
    config.train.batch_size = 16
    config.optimizer.learning_rate = 3e-3
    config.schedule.warmup = '5 %'
    return config
