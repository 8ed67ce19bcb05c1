"""llm_jax: build a large language model from scratch in JAX."""
