"""Does the best learning rate of a narrow model hold for a wide one? With muP it should.

  ./tools/run mup_transfer experiments/lab/mup_transfer.py
  ./tools/run coord_check experiments/lab/mup_transfer.py

Expected: about five minutes on one CPU core for the first, two for the second. In the
standard parametrisation the best rate falls by about a third with every doubling of the
width; with muP it stays near 2^-7. Figures are in docs/mup.md.
"""

import ml_collections

from llm_jax import config as config_lib


def get_config() -> ml_collections.ConfigDict:
    config = config_lib.default()
    config.model.d_model = 64
    config.model.n_layers = 2
    config.model.n_heads = 4
    config.model.init_std = 0.06  # about 0.5/√d_model
    config.model.scan = False

    config.data.seq_len = 64
    config.data.max_document_chars = 20_000
    config.data.tokenizer.vocab_size = 512
    config.data.tokenizer.sample_bytes = 2_000_000

    config.train.duration = '120 steps'
    config.train.batch_size = 8
    config.optimizer.learning_rate = 2**-7
    config.schedule.name = 'linear'
    config.schedule.warmup = '10 %'
    config.schedule.final_lr_ratio = 0.0
    return config
