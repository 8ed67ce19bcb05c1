"""A 10M-parameter Llama that tells stories (Eldan & Li 2023, arXiv:2305.07759).

  ./tools/run train experiments/pretrain/tinystories_10m.py --config.data.sources='jsonl:stories/train*.jsonl.gz'

The sources are JSONL with a story in each line's "text", Parquet files ('parquet:...'),
or anything else that data.sources reads. On one GPU an epoch of the whole TinyStories
takes about half an hour; on a laptop give --config.train.duration='500 steps'.
"""

import ml_collections

from llm_jax import config as config_lib


def get_config() -> ml_collections.ConfigDict:
    config = config_lib.default()
    model = config.model
    model.d_model, model.n_layers, model.n_heads = 288, 8, 6
    model.dtype = 'bfloat16'

    config.data.sources = 'jsonl:data/tinystories/*.jsonl.gz'
    config.data.seq_len = 512
    config.data.tokenizer.vocab_size = 4096
    config.data.validation_fraction = config.data.test_fraction = 0.01

    config.train.duration = '1 epochs'
    config.train.batch_size = 64
    config.train.eval_every = '5 %'
    config.train.eval_batches = 50
    config.train.sample_prompts = ('Once upon a time', 'Lily wanted', 'The little dog')
    config.train.sample_tokens = 150
    config.optimizer.learning_rate = 1e-3
    return config
