"""From logits to a token: temperature, top-k and nucleus sampling."""

import dataclasses

import jax
import jax.numpy as jnp

from llm_jax.config.schema import ConfigError

# The bits of float32 infinity.
INFINITY = 0x7F800000


@dataclasses.dataclass(frozen=True)
class Sampler:
    """Draws from softmax(logits / temperature), cut to the likely tokens.

    top_k is applied first, and top_p to what it left.

    Attributes:
      temperature: 0 always takes the likeliest token; 1 is the model's own distribution.
      top_k: keep the k likeliest tokens (Fan et al. 2018, arXiv:1805.04833); 0 keeps all.
      top_p: keep the likeliest tokens until together they reach this probability, the
        one that crosses it included (Holtzman et al. 2020, arXiv:1904.09751); 1 keeps all.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float('inf'):
            raise ConfigError(f'temperature = {self.temperature} must be 0 (greedy) or a positive number')
        if self.top_k < 0:
            raise ConfigError(f'top_k = {self.top_k} must be 0 (keep all tokens) or a positive number')
        if not 0 < self.top_p <= 1:
            raise ConfigError(f'top_p = {self.top_p} must be above 0 and at most 1 (keep all tokens)')

    def __call__(self, logits_BV: jax.Array, keys_B: jax.Array) -> jax.Array:
        """Draws tokens int32[B] from logits float32[B, V], with one random key per row, key[B]."""
        if self.temperature == 0:
            return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
        logits_BN, ids_BN = self.candidates(logits_BV)
        choice_B1 = jax.vmap(jax.random.categorical)(keys_B, logits_BN)[:, None]
        return (choice_B1 if ids_BN is None else jnp.take_along_axis(ids_BN, choice_B1, axis=-1))[:, 0]

    def candidates(self, logits_BV: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """Scales and cuts the logits to those that are drawn from when the temperature is not 0.

        Returns:
          (logits float32[B, N], ids int32[B, N]): -inf where a token is cut. Without
          top_k the N = V ids are the vocabulary itself, written as None.
        """
        # The largest logit is 0 before the division, so a tiny temperature cannot overflow.
        logits = logits_BV - logits_BV.max(-1, keepdims=True)
        logits /= max(self.temperature, float(jnp.finfo(jnp.float32).tiny))
        ids = None
        if 0 < self.top_k < logits.shape[-1]:
            logits, ids = jax.lax.top_k(logits, self.top_k)
        if self.top_p < 1:
            probs = jax.nn.softmax(logits, axis=-1)
            logits = jnp.where(probs >= _nucleus_edge(probs, self.top_p), logits, -jnp.inf)
        return logits, ids


def _nucleus_edge(probs_BN: jax.Array, top_p: float) -> jax.Array:
    """Finds the largest t for which tokens of probability >= t together reach top_p, float32[B, 1].

    Equally likely tokens stay together, so the cut does not depend on their order.
    Non-negative floats are ordered as their bits are, so bisection over the 31 bits
    finds it exactly, in less time than sorting the vocabulary.
    """
    as_float = lambda bits_B1: jax.lax.bitcast_convert_type(bits_B1, jnp.float32)

    def narrow(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low_B1, high_B1 = bounds  # low keeps enough, high keeps too little
        middle_B1 = low_B1 + (high_B1 - low_B1) // 2
        mass_B1 = jnp.sum(jnp.where(probs_BN >= as_float(middle_B1), probs_BN, 0), -1, keepdims=True)
        enough_B1 = mass_B1 >= top_p
        return jnp.where(enough_B1, middle_B1, low_B1), jnp.where(enough_B1, high_B1, middle_B1)

    low_B1 = jnp.zeros_like(probs_BN[:, :1], jnp.int32)
    low_B1, _ = jax.lax.fori_loop(0, 31, narrow, (low_B1, jnp.full_like(low_B1, INFINITY)))
    return as_float(low_B1)
