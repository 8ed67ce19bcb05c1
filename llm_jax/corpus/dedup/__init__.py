"""Duplicates: whole documents, nearly equal documents, repeated lines, repeated passages.

Each is an exchange, made from its options: `EXCHANGES['near'](Near(threshold=0.7))`. They
work best in this order, as each finds less to do after the one before.
"""

from llm_jax.corpus.dedup import exact, lines, near, substrings
from llm_jax.corpus.dedup.exact import Exact
from llm_jax.corpus.dedup.lines import Lines
from llm_jax.corpus.dedup.near import Near
from llm_jax.corpus.dedup.substrings import Substrings

# What makes each exchange, and the options that it takes.
EXCHANGES = {'exact': exact.make, 'near': near.make, 'lines': lines.make, 'substrings': substrings.make}
OPTIONS = {'exact': Exact, 'near': Near, 'lines': Lines, 'substrings': Substrings}
