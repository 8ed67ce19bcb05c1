"""Parquet files, such as those of a Hugging Face data set, filtered and deduplicated.

  ./tools/run prepare_data experiments/data/parquet.py --config.sources.web.path='fineweb/*.parquet'
  ./tools/run prepare_data experiments/data/parquet.py --config.sources.web.path='gs://bucket/fineweb/*.parquet' \
      --config.out=gs://bucket/corpus --engine beam --runner=DataflowRunner --project=... --region=... \
      --temp_location=gs://bucket/tmp

`hf download HuggingFaceFW/fineweb --repo-type dataset --include 'sample/10BT/*' --local-dir fineweb` is one way
to get such files. The text is in the column that sources.web.text_field names.
"""

import ml_collections

from llm_jax.corpus import schema


def get_config() -> ml_collections.ConfigDict:
    config = schema.default()
    config.sources = {'web': {'path': 'data/*.parquet', 'text_field': 'text', 'url_field': 'url'}}
    config.stages = ('normalise', 'urls', 'language', 'gopher', 'repetition', 'fineweb', 'scrub')
    config.dedup = ('exact', 'near')
    config.tokenizer.vocab_size = 32_768
    config.packing.seq_len = 2048
    config.splits.validation = config.splits.test = 0.002
    return config
