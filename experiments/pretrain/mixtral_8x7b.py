"""Mixtral 8x7B (arXiv:2401.04088): 47 B parameters, 13 B of them for each token, over 64 chips.

  ./tools/run train experiments/pretrain/mixtral_8x7b.py \
      --config.data.sources='parquet:gs://my-bucket/web/*.parquet' --config.data.cache_dir=gs://my-bucket/cache

  ./tools/run plan experiments/pretrain/mixtral_8x7b.py --topology v5p:4x4x4

That plan, compiled, on fsdp 16 × expert 4 (two experts on each device) with 4 micro-batches of two rows a chip:

  memory           34.3 of 95.7 GiB a chip; 9.0 of it are parameters and Adam's moments
  step             13.4 s at the roofline, bound by compute; 157 k tokens/s and 44 % MFU at most
  1 T tokens       74 days, 114 k chip-hours
"""

import ml_collections

from llm_jax import models


def get_config() -> ml_collections.ConfigDict:
    config = models.experiment('mixtral:8x7b')
    config.name = 'mixtral_8x7b'
    config.data.sources = {'web': 'parquet:data/web/*.parquet'}  # or what there is: --config.data.sources=...
    config.model.max_seq_len = config.data.seq_len = 4096
    config.model.dtype = 'bfloat16'
    config.model.remat = 'full'

    config.data.tokenizer.vocab_size = 32_000
    config.data.validation_fraction = config.data.test_fraction = 0.005

    config.train.duration = '1e12 tokens'
    config.train.batch_size = 512
    config.train.grad_accumulation = 4
    config.train.eval_every = '1000 steps'
    config.train.eval_batches = 20
    config.train.sample_prompts = ('The ', 'In 1969, ', 'def ')
    config.optimizer.learning_rate = 2e-4
    config.schedule.warmup = '2000 steps'
    config.checkpoint.every = '500 steps'

    config.mesh.data, config.mesh.fsdp, config.mesh.expert = 1, -1, 4
    config.mesh.distributed = True
    return config
