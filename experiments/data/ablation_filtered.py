"""The ablation of the pipeline, half of it: main text, normalised, filtered and scrubbed, duplicates and all.

./tools/run prepare_data experiments/data/ablation_filtered.py     see ablation_raw.py
"""

import ml_collections

from experiments.data import ablation_raw
from llm_jax.corpus import schema


def get_config() -> ml_collections.ConfigDict:
    config = ablation_raw.get_config()
    config.extract = schema.default().extract
    config.sources.books.format = 'gutenberg'
    config.sources.books.stages = config.sources.stories.stages = ('normalise', 'scrub')
    config.sources.code.stages = ('normalise', 'code', 'scrub')
    config.stages = ('normalise', 'refinedweb', 'urls', 'language', 'gopher', 'repetition', 'fineweb', 'scrub')
    return config
