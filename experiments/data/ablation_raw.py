"""The ablation of the pipeline, without it: all visible text as it was read, duplicates and all.

  ./tools/run prepare_data experiments/data/ablation_deduplicated.py
  ./tools/run prepare_data experiments/data/ablation_filtered.py
  ./tools/run prepare_data experiments/data/ablation_raw.py
  ./tools/run compare_data experiments/lab/ablation.py corpora/ablation_raw corpora/ablation_filtered \
      corpora/ablation_deduplicated --held_out wikitext2=text:test.txt.gz --held_out stories=jsonl:valid.jsonl.gz

with LLM_JAX_DATA as for mixed.py. All three read the same records in the same proportions and have the tokens of one
tokenizer, the one of the first: only the text differs. docs/corpora.md has the outcome.
"""

import os

import ml_collections

from llm_jax.corpus import schema


def get_config() -> ml_collections.ConfigDict:
    data = os.environ.get('LLM_JAX_DATA', 'data')
    config = schema.default()
    config.sources = {
        'books': {'path': f'{data}/books/*.tar.zst', 'limit': 45},
        'code': {'path': 'stdlib'},
        'stories': {'path': f'{data}/tinystories/train.jsonl.gz', 'limit': 4000},
        'warc': {'path': f'{data}/web/warc/*', 'format': 'warc'},
        'web': {'path': f'{data}/web/*.jsonl.zst', 'text_field': 'html', 'kind': 'html', 'limit': 600},
        'wikipedia': {'path': f'{data}/wikipedia/*.jsonl.zst', 'format': 'wikipedia', 'limit': 6000},
    }
    config.mixture = {'books': 0.2, 'code': 0.1, 'stories': 0.1, 'warc': 0.1, 'web': 0.3, 'wikipedia': 0.2}
    config.extract.html = 'visible'
    config.extract.unwrap = False
    config.extract.code.licence_headers = config.extract.code.generated = config.extract.code.minified = True
    config.extract.code.vendored = config.extract.code.data = True
    config.tokenizer.path = 'corpora/ablation_deduplicated/tokenizer'
    config.packing.seq_len = 256
    return config
