"""Llama 3 8B learns preferences: DPO by LoRA, with the reference's log-probabilities computed once.

./tools/run plan experiments/post/llama3_8b_dpo.py --topology v5e:4x4
"""

import ml_collections

from llm_jax import config as config_lib
from llm_jax import models


def get_config() -> ml_collections.ConfigDict:
    config = config_lib.default()
    config.init_from = 'runs/llama3_8b_sft'  # also the reference; its adapters are merged
    config.model.update(models.preset('llama:3-8b'))
    config.model.dtype = 'bfloat16'
    config.model.remat = 'full'
    config.model.adapter.kind = 'lora'
    config.model.adapter.rank = 16
    config.model.adapter.base = 'bfloat16'

    config.data.sources = {'pairs': 'pairs:hf:HuggingFaceH4/ultrafeedback_binarized:train_prefs'}
    config.data.tokenizer.path = 'runs/llama3_8b_sft/tokenizer'
    config.data.seq_len = 4096  # of both answers
    config.data.validation_fraction = config.data.test_fraction = 0.01

    config.train.objective = 'preference'
    config.train.objective_options = {'kind': 'dpo', 'beta': 0.1, 'sft_weight': 0.1}
    config.train.duration = '1 epoch'
    config.train.batch_size = 32
    config.train.sample_prompts = ('Explain why the sky is blue in two sentences.',)
    config.optimizer.learning_rate = 5e-6
    config.optimizer.weight_decay = 0.0
    config.schedule.warmup = '10 %'
    return config
