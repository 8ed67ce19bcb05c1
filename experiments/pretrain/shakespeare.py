"""A small GPT on the works of Shakespeare, the classic first experiment.

  ./tools/run train experiments/pretrain/shakespeare.py                                    (from TFDS, downloaded once)
  ./tools/run train experiments/pretrain/shakespeare.py --config.data.sources=text:input.txt     (from a text file)

A single file is one document: it is cut at line ends into pieces of 4,000 characters,
of which a hash holds out every tenth for validation and as many for the final test.
"""

import ml_collections

from llm_jax import config as config_lib


def get_config() -> ml_collections.ConfigDict:
    config = config_lib.default()
    config.model.d_model, config.model.n_layers, config.model.n_heads = 192, 4, 4
    config.model.dropout = 0.1

    config.data.sources = 'tfds:tiny_shakespeare'
    config.data.max_document_chars = 4000
    config.data.validation_fraction = config.data.test_fraction = 0.1
    config.data.tokenizer.vocab_size = 1024

    config.train.duration = '8 epochs'
    config.train.batch_size = 16
    config.train.sample_prompts = ('ROMEO:\n', 'First Citizen:\n', 'KING RICHARD III:\n')
    config.optimizer.learning_rate = 3e-3
    config.schedule.warmup = '5 %'
    return config
