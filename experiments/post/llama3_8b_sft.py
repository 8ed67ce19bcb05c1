"""Llama 3 8B learns to answer: supervised fine-tuning by LoRA on all matrices, bfloat16 base.

./tools/run plan experiments/post/llama3_8b_sft.py --topology v5e:4x4
"""

import ml_collections

from llm_jax import config as config_lib
from llm_jax import models


def get_config() -> ml_collections.ConfigDict:
    config = config_lib.default()
    config.init_from = 'hf:meta-llama/Meta-Llama-3-8B'
    config.model.update(models.preset('llama:3-8b'))
    config.model.dtype = 'bfloat16'
    config.model.remat = 'full'
    config.model.adapter.kind = 'lora'
    config.model.adapter.rank = 16
    config.model.adapter.base = 'bfloat16'

    config.chat.template = 'llama3'
    config.data.sources = {'instructions': 'conversations:hf:allenai/tulu-3-sft-mixture'}
    config.data.tokenizer.path = 'hf:meta-llama/Meta-Llama-3-8B'
    config.data.seq_len = 4096
    config.data.validation_fraction = config.data.test_fraction = 0.002

    config.train.objective = 'sft'
    config.train.duration = '1 epoch'
    config.train.batch_size = 128
    config.train.grad_accumulation = 2
    config.train.sample_prompts = ('Explain why the sky is blue in two sentences.',)
    config.optimizer.learning_rate = 2e-4  # about ten times that of full fine-tuning
    config.optimizer.weight_decay = 0.0
    config.schedule.warmup = '3 %'
    return config
