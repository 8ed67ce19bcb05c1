"""Llama 3 70B (arXiv:2407.21783) on 15 T tokens at a context of 8192.

./tools/run plan experiments/pretrain/llama3_70b.py --topology v5p:8x8x8

That plan, compiled, on fsdp 128 × tensor 4 with 2 micro-batches:

  memory           33.2 of 95.7 GiB a chip
  step             15.1 s at the roofline, bound by compute; a quarter of it are sums that nothing hides
                   278 k tokens/s and 57 % MFU at most
  15 T tokens      625 days, 7.7 M chip-hours
"""

import ml_collections

from llm_jax import config as config_lib
from llm_jax import models


def get_config() -> ml_collections.ConfigDict:
    config = config_lib.default()
    config.model.update(models.preset('llama:3-70b'))
    config.model.dtype = 'bfloat16'
    config.model.remat = 'full'

    config.data.sources = {'web': 'parquet:data/web/*.parquet'}  # or what there is: --config.data.sources=...
    config.data.seq_len = 8192
    config.data.tokenizer.vocab_size = 128_256
    config.data.validation_fraction = config.data.test_fraction = 0.0005

    config.train.duration = '15e12 tokens'
    config.train.batch_size = 512  # 4 M tokens
    config.train.grad_accumulation = 2
    config.mesh.tensor = 4
    config.train.eval_every = '2000 steps'
    config.train.eval_batches = 20
    config.train.sample_prompts = ('The ', 'In 1969, ', 'def ')
    config.optimizer.learning_rate = 1.5e-4
    config.schedule.warmup = '2000 steps'
    config.schedule.final_lr_ratio = 0.01
    config.checkpoint.every = '500 steps'
    return config
