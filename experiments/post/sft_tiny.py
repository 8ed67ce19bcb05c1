"""Instruction tuning on a laptop: a small base model learns to answer in turns.

  ./tools/run train experiments/quickstart.py --config.chat.template=llm_jax
  ./tools/run train experiments/post/sft_tiny.py --config.data.sources.instructions=conversations:mine.jsonl

The first command trains the base with the marks of the template in its tokenizer. A model of a million parameters
learns the form of an answer, not its truth.
"""

import ml_collections

from llm_jax import config as config_lib


def get_config() -> ml_collections.ConfigDict:
    config = config_lib.default()
    config.init_from = 'runs/quickstart'  # its model and its tokenizer

    config.chat.template = 'llm_jax'
    config.data.sources = {'instructions': 'conversations:data/instructions.jsonl'}
    config.data.seq_len = 256

    config.train.objective = 'sft'
    config.train.duration = '3 epochs'
    config.train.batch_size = 8
    config.train.sample_prompts = ('What is a cat?',)
    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 0.0
    config.schedule.warmup = '5 %'
    return config
