"""A data set of TFDS by its name, cleaned and packed; it is downloaded once.

  ./tools/run prepare_data experiments/data/tfds_name.py
  ./tools/run prepare_data experiments/data/tfds_name.py --config.sources.text.path=tfds:wikipedia/20230601.simple

Expected: the works of Shakespeare as one document, so all of it trains; a data set with more
documents has validation and test splits.
"""

import ml_collections

from llm_jax.corpus import schema


def get_config() -> ml_collections.ConfigDict:
    config = schema.default()
    config.sources = {'text': {'path': 'tfds:tiny_shakespeare'}}
    config.stages = ('normalise',)
    config.tokenizer.vocab_size = 1024
    config.packing.seq_len = 256
    config.packing.method = 'concat'
    return config
