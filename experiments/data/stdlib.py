"""Python's standard library and installed packages as a corpus of code: needs no data and no network.

  ./tools/run prepare_data experiments/data/stdlib.py
  ./tools/run train experiments/quickstart.py --config.data.sources=corpus:corpora/stdlib

Expected: a minute or two on two cores; report.html shows what was dropped and why.
"""

import ml_collections

from llm_jax.corpus import schema


def get_config() -> ml_collections.ConfigDict:
    config = schema.default()
    config.sources = {'stdlib': 'stdlib', 'packages': 'site-packages'}
    config.stages = ('normalise', 'code', 'scrub')
    config.dedup = ('exact', 'near')
    config.tokenizer.vocab_size = 2048
    config.packing.seq_len = 256
    config.splits.validation = config.splits.test = 0.05
    return config
