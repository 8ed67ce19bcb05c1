"""The ablation of the pipeline, all of it: filtered, and what is there twice once.

./tools/run prepare_data experiments/data/ablation_deduplicated.py     see ablation_raw.py
"""

import ml_collections

from experiments.data import ablation_filtered


def get_config() -> ml_collections.ConfigDict:
    config = ablation_filtered.get_config()
    config.dedup = ('exact', 'near', 'lines', 'substrings')
    config.tokenizer.path = ''
    config.tokenizer.vocab_size = 2048
    return config
