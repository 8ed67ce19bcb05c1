"""A small Llama for comparing corpora: the same tokens of each, one after the other.

  ./tools/run compare_data experiments/lab/ablation.py corpora/ONE corpora/OTHER --held_out wiki=text:FILE

See experiments/data/ablation_raw.py for three corpora to compare.
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
    config.data.seq_len = 256
    config.mesh.fsdp = 1  # a batch of four rows is for one device
    config.train.duration = '4e5 tokens'
    config.train.batch_size = 4
    config.optimizer.learning_rate = 4e-3
    config.schedule.warmup = '5 %'
    config.schedule.final_lr_ratio = 0.02
    return config
