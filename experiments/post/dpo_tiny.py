"""Preferences on a laptop: the run of sft_tiny.py learns which of two answers is better, by DPO with an SFT term.

  ./tools/run train experiments/post/dpo_tiny.py --config.data.sources.pairs=pairs:mine.jsonl

Without the SFT term (--config.train.objective_options.sft_weight=0) the log-probabilities of the chosen answers may
fall with those of the rejected ones: look at the chart of log-probabilities and at the samples, not at the accuracy.
"""

import ml_collections

from llm_jax import config as config_lib


def get_config() -> ml_collections.ConfigDict:
    config = config_lib.default()
    config.init_from = 'runs/sft_tiny'  # also the reference

    config.data.sources = {'pairs': 'pairs:data/pairs.jsonl'}
    config.data.seq_len = 512  # a row holds both answers, each with its prompt
    config.model.max_seq_len = 512

    config.train.objective = 'preference'
    config.train.objective_options = {'kind': 'dpo', 'beta': 0.1, 'sft_weight': 1.0}
    config.train.duration = '1 epoch'
    config.train.batch_size = 8
    config.train.sample_prompts = ('What is a cat?',)
    config.optimizer.learning_rate = 5e-5
    config.optimizer.weight_decay = 0.0
    config.schedule.warmup = '10 %'
    return config
