"""Which positions let a model read on beyond the length that it was trained at?

  ./tools/run extrapolate experiments/lab/extrapolation.py

Expected: about ten minutes on two CPU cores. All read equally well within 64 tokens. Beyond, learned positions
fail at once, rotary ones soon after, unless their frequencies are scaled; ALiBi goes on
improving. Figures are in docs/extrapolation.md.
"""

import ml_collections

from llm_jax import config as config_lib


def get_config() -> ml_collections.ConfigDict:
    config = config_lib.default()
    config.model.d_model = 128
    config.model.n_layers = 4
    config.model.n_heads = 4
    config.model.init_std = 0.03
    config.model.scan = False

    config.data.seq_len = 64
    config.data.tokenizer.vocab_size = 1024
    config.data.tokenizer.sample_bytes = 5_000_000

    config.train.duration = '500 steps'
    config.train.batch_size = 32
    config.optimizer.learning_rate = 4e-3
    config.schedule.warmup = '5 %'
    return config
