"""llm_jax: build a large language model from scratch in JAX and Flax.

`llm_jax.load('runs/quickstart')` gives a trained model, its parameters and tokenizer.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    if name == 'load':  # on first use: `import llm_jax.config.schema` should not have to import JAX
        from llm_jax.runs import load

        return load
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
