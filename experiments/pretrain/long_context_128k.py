"""Llama 3.1 8B trained on at a context of 131,072 tokens: each row is shared by the 16 devices of `mesh.context`.

  ./tools/run plan experiments/pretrain/long_context_128k.py --topology v5p:4x4x8
  ./tools/run train experiments/pretrain/long_context_128k.py --config.init_from=runs/llama3_8b

That plan, compiled (in 45 s), on fsdp 8 x context 16:

  memory           50.5 of 95.7 GiB a chip
  step             19.0 s at the roofline, bound by compute: most of it is attention
  20 B tokens      1.05 days, 3,220 chip-hours

Keys and values of a layer are gathered over `context`, which 8 key/value heads make cheap;
`--config.model.context_attention=ring` passes them on instead. Rows are packed, and
attention stays within a document.
"""

import ml_collections

from llm_jax import config as config_lib
from llm_jax import models


def get_config() -> ml_collections.ConfigDict:
    config = config_lib.default()
    config.model.update(models.preset('llama:3.1-8b'))
    config.model.dtype = 'bfloat16'
    config.model.remat = 'full'

    config.data.sources = {'web': 'parquet:data/web/*.parquet'}  # or what there is: --config.data.sources=...
    config.data.seq_len = 131_072
    config.data.tokenizer.vocab_size = 128_256
    config.data.validation_fraction = config.data.test_fraction = 0.0005

    config.train.duration = '20e9 tokens'
    config.train.batch_size = 32  # 4 M tokens
    config.train.eval_every = '500 steps'
    config.train.eval_batches = 4
    config.train.sample_prompts = ('The ', 'In 1969, ', 'def ')
    config.optimizer.learning_rate = 2e-5
    config.schedule.warmup = '100 steps'
    config.checkpoint.every = '250 steps'

    config.mesh.fsdp, config.mesh.context = -1, 16
    return config
