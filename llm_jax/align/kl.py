"""Estimators of KL(policy ‖ reference) from samples of the policy (Schulman 2020, "Approximating KL Divergence").

With log r = log ρ − log π of a token that the policy π drew, all are means of it:

  k1 = −log r            unbiased, of either sign. As a reward, a constant, it is right. As a loss its gradient is 0 in
                         expectation: Σ π ∇log π = 0.
  k2 = (log r)² / 2      biased; as a loss its gradient is that of KL(π ‖ ρ), which k1 is wanted for.
  k3 = r − 1 − log r     unbiased, never negative; as a loss its gradient is that of the other, KL(ρ ‖ π), and it is
                         large where r is: a token that the reference likes and the policy does not.

All hold for samples of the policy at hand. Those of an older one need the importance ratio as a weight.
"""

from typing import Literal

import jax
import jax.numpy as jnp

Estimator = Literal['k1', 'k2', 'k3']


def estimate_kl(kind: Estimator, log_probs: jax.Array, reference: jax.Array) -> jax.Array:
    """The estimate of each token, of the shape of its arguments.

    Args:
      kind: k1 for a reward, k2 for a loss; k3 for a metric, and for a loss where others are to be repeated.
      log_probs: log-probabilities of the tokens that were drawn, by the policy.
      reference: by the reference.
    """
    log_r = reference - log_probs
    if kind == 'k1':
        return -log_r
    if kind == 'k2':
        return jnp.square(log_r) / 2
    return jnp.expm1(log_r) - log_r
