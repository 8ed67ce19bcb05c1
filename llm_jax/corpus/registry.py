"""The stages and exchanges that the library offers, by the names that a config uses."""

from llm_jax.corpus.chain import Known

_FILTER = 'llm_jax.corpus.filter'
_DEDUP = 'llm_jax.corpus.dedup'

STAGES: dict[str, Known] = {
    'normalise': Known('llm_jax.corpus.normalise:make', 'normalise'),
    'urls': Known(f'{_FILTER}.urls:make', 'urls'),
    'language': Known(f'{_FILTER}.language:make', 'language'),
    'gopher': Known(f'{_FILTER}.gopher:make', 'gopher'),
    'repetition': Known(f'{_FILTER}.repetition:make', 'repetition'),
    'c4': Known(f'{_FILTER}.c4:make', 'c4'),
    'fineweb': Known(f'{_FILTER}.fineweb:make', 'fineweb'),
    'refinedweb': Known(f'{_FILTER}.refinedweb:make', 'refinedweb'),
    'code': Known(f'{_FILTER}.code:make', 'code'),
    'quality': Known('llm_jax.corpus.quality:make', 'quality'),
    'perplexity': Known('llm_jax.corpus.perplexity:make', 'perplexity'),
    'scrub': Known('llm_jax.corpus.scrub:make', 'scrub'),
    'decontaminate': Known('llm_jax.corpus.decontaminate:make', 'decontaminate'),
}
EXCHANGES: dict[str, Known] = {
    'exact': Known(f'{_DEDUP}.exact:make', 'exact'),
    'near': Known(f'{_DEDUP}.near:make', 'near'),
    'lines': Known(f'{_DEDUP}.lines:make', 'lines'),
    'substrings': Known(f'{_DEDUP}.substrings:make', 'substrings'),
}
