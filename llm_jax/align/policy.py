"""Losses of policy gradients: what is clipped, how tokens are weighted, what is divided by.

`policy_loss` puts together what the papers differ in: the importance ratio (of tokens, of whole answers), how it is
clipped, the KL term, and how tokens are averaged. All are to be minimised.

On policy the ratio is 1 and the loss says nothing, but its gradient is that of REINFORCE: watch the reward.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from llm_jax.align.kl import Estimator, estimate_kl
from llm_jax.align.targets import LossSum, masked_sum, row_lengths

RatioOf = Literal['token', 'sequence', 'product']
Surrogate = Literal['clip', 'cispo', 'sapo', 'reinforce']
Normalise = Literal['tokens', 'sequence', 'constant']


def importance_ratio(
    log_probs_BL: jax.Array, old_BL: jax.Array, mask_BL: jax.Array, of: RatioOf = 'token'
) -> jax.Array:
    """π / π_old: [B, L] for tokens, [B, 1] for answers.

    Args:
      log_probs_BL: of the tokens by the policy at hand.
      old_BL: by the one that drew them, a constant.
      mask_BL: 1 on the tokens that it wrote.
      of: 'token'; 'sequence', the geometric mean over an answer's tokens (GSPO, arXiv:2507.18071, eq. 7); 'product',
        that of the whole answer as one action (RLOO, arXiv:2402.14740).
    """
    log_ratio_BL = log_probs_BL - jax.lax.stop_gradient(old_BL)
    if of == 'token':
        return jnp.exp(jnp.where(mask_BL > 0, log_ratio_BL, 0))
    log_ratio_B = masked_sum(log_ratio_BL, mask_BL, 1)
    return jnp.exp(log_ratio_B / row_lengths(mask_BL) if of == 'sequence' else log_ratio_B)[:, None]


def clipped_surrogate(
    ratio: jax.Array, advantages: jax.Array, *, clip_low: float, clip_high: float, dual_clip: float = 0.0
) -> jax.Array:
    """−min(ρ A, clip(ρ, 1 − low, 1 + high) A) (PPO, arXiv:1707.06347, eq. 7; high > low: DAPO, arXiv:2503.14476).

    Args:
      ratio: ρ.
      advantages: A.
      clip_low: how far below 1.
      clip_high: how far above 1.
      dual_clip: bound of ρ where A < 0, over 1 + high; 0 is none (arXiv:1912.09729, eq. 5).
    """
    bounded = jnp.minimum(ratio, dual_clip) if dual_clip else ratio
    return -jnp.minimum(bounded * advantages, jnp.clip(ratio, 1 - clip_low, 1 + clip_high) * advantages)


def cispo(log_probs_BL: jax.Array, ratio: jax.Array, advantages: jax.Array, *, cap: float) -> jax.Array:
    """−min(ρ, cap) A log π with ρ a constant: no token loses its gradient (CISPO, arXiv:2506.13585)."""
    return -jax.lax.stop_gradient(jnp.minimum(ratio, cap)) * advantages * log_probs_BL


def sapo(ratio: jax.Array, advantages: jax.Array, *, positive: float = 1.0, negative: float = 1.05) -> jax.Array:
    """−4/τ σ(τ (ρ − 1)) A: a soft gate in place of the clip (SAPO, arXiv:2511.20347).

    Args:
      ratio: ρ.
      advantages: A.
      positive: τ where A > 0.
      negative: τ elsewhere.
    """
    tau = jnp.where(advantages > 0, positive, negative).astype(ratio.dtype)
    return -4 / tau * jax.nn.sigmoid(tau * (ratio - 1)) * advantages


def truncated_weights(log_probs_BL: jax.Array, old_BL: jax.Array, mask_BL: jax.Array, *, cap: float) -> jax.Array:
    """min(π / π_sampler, cap), a constant; 0 without mask: corrects a sampler that is not quite the trainer."""
    ratio_BL = jax.lax.stop_gradient(importance_ratio(log_probs_BL, old_BL, mask_BL))
    return jnp.where(mask_BL > 0, jnp.minimum(ratio_BL, cap), 0)


def average_tokens(losses_BL: jax.Array, mask_BL: jax.Array, normalise: Normalise, *, length: int = 0) -> LossSum:
    """(sum, normaliser) of the losses of tokens; a row without tokens adds 0.

    'tokens' weighs all tokens of the batch alike (DAPO); 'sequence' is the mean over rows of the mean over tokens
    (GRPO), so that tokens of long answers count less; 'constant' divides the sum by rows · length (Dr. GRPO).
    """
    rows = jnp.asarray(len(losses_BL), losses_BL.dtype)
    if normalise == 'tokens':
        return masked_sum(losses_BL, mask_BL), jnp.sum(mask_BL).astype(losses_BL.dtype)
    if normalise == 'sequence':
        return jnp.sum(masked_sum(losses_BL, mask_BL, 1) / row_lengths(mask_BL)), rows
    return masked_sum(losses_BL, mask_BL), rows * length


def policy_loss(
    log_probs_BL: jax.Array,
    old_BL: jax.Array,
    advantages: jax.Array,
    mask_BL: jax.Array,
    *,
    surrogate: Surrogate = 'clip',
    ratio_of: RatioOf = 'token',
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float = 0.0,
    cap: float = 0.0,
    normalise: Normalise = 'tokens',
    length: int = 0,
    reference_BL: jax.Array | None = None,
    kl_coef: float = 0.0,
    kl_kind: Estimator = 'k2',
    kl_by_ratio: bool = False,
    weights_BL: jax.Array | None = None,
) -> tuple[LossSum, dict[str, jax.Array]]:
    """((sum, normaliser), sums of metrics) of the policy's loss.

    Args:
      log_probs_BL: of the completions' tokens by the policy at hand.
      old_BL: by the policy that drew them. On policy give `log_probs_BL`: it is a constant here.
      advantages: [B] or [B, L].
      mask_BL: 1 on the tokens that the policy wrote; 0 on padding, results of tools, and rows that are left out.
      surrogate: 'clip'; 'cispo', 'sapo'; 'reinforce', which has no ratio.
      ratio_of: see `importance_ratio`.
      clip_low: see `clipped_surrogate`.
      clip_high: the same.
      dual_clip: the same.
      cap: of the ratio in 'cispo'.
      normalise: see `average_tokens`.
      length: T of 'constant'.
      reference_BL: log-probabilities by the reference, for the KL term.
      kl_coef: weight of the KL term; 0 is none.
      kl_kind: see `kl`.
      kl_by_ratio: whether the KL term of a token is multiplied by its ratio: unbiased off policy.
      weights_BL: constants that the losses are multiplied by, such as `truncated_weights`.

    Returns:
      metrics are sums over what they are divided by: 'clipped_low' and 'clipped_high' of 'ratios', 'kl' of 'tokens'.
    """
    advantages = advantages[:, None] if advantages.ndim == 1 else advantages
    ratio = importance_ratio(log_probs_BL, old_BL, mask_BL, ratio_of)
    if surrogate == 'clip':
        bounds = {'clip_low': clip_low, 'clip_high': clip_high, 'dual_clip': dual_clip}
        losses_BL = clipped_surrogate(ratio, advantages, **bounds)
    elif surrogate == 'cispo':
        losses_BL = cispo(log_probs_BL, ratio, advantages, cap=cap)
    elif surrogate == 'sapo':
        losses_BL = sapo(ratio, advantages)
    else:
        losses_BL = -log_probs_BL * advantages
    losses_BL = jnp.broadcast_to(losses_BL, log_probs_BL.shape)
    # Of tokens, or of the answers as wholes.
    units = mask_BL if ratio_of == 'token' else jnp.ones_like(ratio)
    low = (ratio < 1 - clip_low) & (advantages < 0)
    high = (ratio > (cap if surrogate == 'cispo' else 1 + clip_high)) & (advantages > 0)
    metrics = {
        'clipped_low': masked_sum(low.astype(ratio.dtype), units),
        'clipped_high': masked_sum(high.astype(ratio.dtype), units),
        'ratios': jnp.sum(units).astype(ratio.dtype),
        'tokens': jnp.sum(mask_BL).astype(ratio.dtype),
    }
    if weights_BL is not None:
        losses_BL *= jax.lax.stop_gradient(weights_BL)
    if kl_coef:
        kl_BL = estimate_kl(kl_kind, log_probs_BL, jax.lax.stop_gradient(reference_BL))
        kl_BL = kl_BL * ratio if kl_by_ratio else kl_BL
        losses_BL += kl_coef * kl_BL
        metrics['kl'] = masked_sum(kl_BL, mask_BL)
    return average_tokens(losses_BL, mask_BL, normalise, length=length), jax.lax.stop_gradient(metrics)


def value_loss(
    values_BL: jax.Array, old_values_BL: jax.Array, returns_BL: jax.Array, mask_BL: jax.Array, *, clip: float = 0.0
) -> LossSum:
    """½ max((V − R)², (clip(V, V_old ± c) − R)²), per token; clip 0 is the plain squared error."""
    losses_BL = jnp.square(values_BL - returns_BL)
    if clip:
        old_BL = jax.lax.stop_gradient(old_values_BL)
        clipped_BL = jnp.clip(values_BL, old_BL - clip, old_BL + clip)
        losses_BL = jnp.maximum(losses_BL, jnp.square(clipped_BL - returns_BL))
    return masked_sum(losses_BL, mask_BL) / 2, jnp.sum(mask_BL).astype(values_BL.dtype)
