"""DeepSeek-V2 (arXiv:2405.04434): 236 B parameters, 21 B of them for each token, over a v5p pod.

  ./tools/run train experiments/pretrain/deepseek_moe.py \
      --config.data.sources='parquet:gs://my-bucket/web/*.parquet' --config.data.cache_dir=gs://my-bucket/cache

Latent attention; 160 narrow experts, of which a token goes to six, and two that all go to;
load balanced by a bias (arXiv:2408.15664) instead of V2's loss.

  ./tools/run plan experiments/pretrain/deepseek_moe.py --topology v5p:8x8x8

That plan, compiled (in 2 to 3 minutes), on fsdp 64 × expert 8 (20 experts on each device) with 4 micro-batches of one
row of 4096 tokens a chip:

  memory           34.2 of 95.7 GiB a chip; 7.2 of it are parameters and Adam's moments
  step             18.5 s at the roofline, bound by compute; a third of it are exchanges that nothing hides
                   453 k tokens/s and 36 % MFU at most
  1 T tokens       26 days, 314 k chip-hours
"""

import ml_collections

from llm_jax import models


def get_config() -> ml_collections.ConfigDict:
    config = models.experiment('deepseek_v2:236b')
    config.name = 'deepseek_moe'
    config.data.sources = {'web': 'parquet:data/web/*.parquet'}  # or what there is: --config.data.sources=...
    config.model.max_seq_len = config.data.seq_len = 4096
    config.model.rope.scaling = 'none'
    config.model.moe.balance = 'bias'
    config.model.dtype = 'bfloat16'
    config.model.remat = 'full'

    config.data.tokenizer.vocab_size = 102_400
    config.data.validation_fraction = config.data.test_fraction = 0.005

    config.train.duration = '1e12 tokens'
    config.train.batch_size = 2048
    config.train.grad_accumulation = 4
    config.train.eval_every = '1000 steps'
    config.train.eval_batches = 20
    config.train.sample_prompts = ('The ', 'In 1969, ', 'def ')
    config.optimizer.learning_rate = 2.4e-4
    config.schedule.warmup = '2000 steps'
    config.checkpoint.every = '500 steps'

    config.mesh.data, config.mesh.fsdp, config.mesh.expert = 1, 64, 8
    config.mesh.distributed = True
    return config
