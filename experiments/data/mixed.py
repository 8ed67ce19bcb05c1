"""Books, web pages, Wikipedia, children's stories and code: raw files to packed rows in one corpus.

  LLM_JAX_DATA=DIR ./tools/run prepare_data experiments/data/mixed.py
  ./tools/run train experiments/pretrain/tinystories_10m.py --config.data.sources=corpus:corpora/mixed

LLM_JAX_DATA names a directory with books/*.tar.zst (Project Gutenberg), web/*.jsonl.zst and
web/warc/*.warc.gz (pages), wikipedia/*.jsonl.zst (extracts) and tinystories/*.jsonl.gz; each source
can be named by itself as well, --config.sources.books.path=... bench/ holds the benchmarks that
documents must not have; the standard library is the code.

Expected: about ten minutes on two cores, mostly for the pages.
"""

import os

import ml_collections

from llm_jax.config import ConfigError
from llm_jax.corpus import schema

_PROSE = ('normalise', 'urls', 'language', 'gopher', 'repetition', 'fineweb', 'scrub')


def get_config() -> ml_collections.ConfigDict:
    data = os.environ.get('LLM_JAX_DATA', '')
    if not os.path.isdir(data):
        raise ConfigError(
            f'LLM_JAX_DATA = {data!r} is no directory; set it to the one that holds books/, web/, wikipedia/ and '
            'tinystories/ (see the top of this experiment)'
        )
    config = schema.default()
    config.sources = {
        'books': {'path': f'{data}/books/*.tar.zst', 'format': 'gutenberg', 'stages': ('normalise', 'scrub')},
        'code': {'path': 'stdlib', 'stages': ('normalise', 'code', 'scrub')},
        'stories': {'path': f'{data}/tinystories/train.jsonl.gz', 'stages': ('normalise', 'scrub')},
        'warc': {'path': f'{data}/web/warc/*', 'format': 'warc', 'stages': ('normalise', 'refinedweb', *_PROSE[1:])},
        'web': {'path': f'{data}/web/*.jsonl.zst', 'text_field': 'html', 'kind': 'html'},
        'wikipedia': {'path': f'{data}/wikipedia/*.jsonl.zst', 'format': 'wikipedia'},
    }
    config.stages = _PROSE
    config.fineweb.max_repeated_lines = 0.1  # the paper's; that of FineWeb's code costs half of the forum threads
    config.dedup = ('exact', 'near', 'lines', 'substrings')
    config.finish = ('decontaminate',)
    config.decontaminate.benchmarks = {
        'humaneval': f'{data}/bench/HumanEval.jsonl.gz',
        'mbpp': f'{data}/bench/mbpp.jsonl.gz',
        'gsm8k': f'{data}/bench/gsm8k_test.jsonl.gz',
        'math': f'{data}/bench/math_test.jsonl.gz',
        'hellaswag': f'{data}/bench/hellaswag_val_*.jsonl.gz',
        'lambada': f'{data}/bench/lambada_test_openai.jsonl.gz',
        'arc': f'{data}/bench/arc_*_test.jsonl.gz',
        'boolq': f'{data}/bench/boolq_val.jsonl.gz',
    }
    config.mixture = {
        'books': '1 epochs', 'code': '2 epochs', 'stories': '1 epochs', 'warc': '2 epochs', 'web': '2 epochs',
        'wikipedia': '1 epochs',
    }  # fmt: skip
    config.tokenizer.vocab_size = 8192
    config.tokenizer.reserved = ('<|system|>', '<|user|>', '<|assistant|>', '<|end|>')
    config.packing.seq_len = 512
    return config
