"""GPT-2 124M: the model of Radford et al. 2019, on text of your own.

  ./tools/run train experiments/pretrain/gpt2_124m.py \
      --config.data.sources='parquet:gs://my-bucket/fineweb/*.parquet' --config.data.cache_dir=gs://my-bucket/cache

Expected: 10 B tokens of clean web text bring the validation loss to about 3.3 nats per
token of GPT-2's vocabulary. The batch is 0.5 M tokens; on fewer than 32 accelerators,
raise train.grad_accumulation until a micro-batch fits. The embedding has 50,304 rows, a
multiple of 128, for a vocabulary of 50,257.
"""

import ml_collections

from llm_jax import config as config_lib


def get_config() -> ml_collections.ConfigDict:
    config = config_lib.default()
    model = config.model
    model.vocab_size = 50_304
    model.d_model, model.n_layers, model.n_heads = 768, 12, 12
    model.position = 'learned'
    model.norm, model.norm_bias = 'layernorm', True
    model.feed_forward = 'gelu'
    model.bias = True
    model.dtype = 'bfloat16'
    model.remat = 'dots'

    config.data.sources = {'web': 'parquet:data/web/*.parquet'}  # or what there is: --config.data.sources=...
    config.data.seq_len = 1024
    config.data.tokenizer.vocab_size = 50_257
    config.data.validation_fraction = config.data.test_fraction = 0.005

    config.train.duration = '10e9 tokens'
    config.train.batch_size = 512
    config.train.eval_every = '500 steps'
    config.train.eval_batches = 20
    config.train.sample_prompts = ('The ', 'In 1969, ', 'Once upon a time')
    config.optimizer.learning_rate = 6e-4
    config.schedule.warmup = '700 steps'
    config.checkpoint.every = '500 steps'
    return config
