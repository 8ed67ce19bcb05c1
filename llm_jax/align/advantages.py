"""Advantages: from the rewards of a whole batch, taken before micro-batches and over all devices.

Rewards of groups are [N, G]: G answers to each of N prompts. Standard deviations are those of a sample, over n − 1.
"""

import jax
import jax.numpy as jnp

from llm_jax.align.kl import Estimator, estimate_kl
from llm_jax.align.targets import masked_sum

# --- From the rewards of groups ------------------------------------------------------------


def flat_groups(rewards_NG: jax.Array) -> jax.Array:
    """Which groups have one reward only, bool[N]: they teach nothing."""
    return jnp.max(rewards_NG, 1) == jnp.min(rewards_NG, 1)


def grpo(rewards_NG: jax.Array, *, eps: float = 1e-4, ddof: int = 1) -> jax.Array:
    """(r − mean) / (std + eps) within each group; 0 in a flat one (DeepSeekMath, arXiv:2402.03300, §4.1.2).

    Args:
      rewards_NG: as above.
      eps: added to the standard deviation.
      ddof: 1 divides by G − 1, 0 by G.
    """
    return _scale(rewards_NG, _std(rewards_NG, ddof, axis=1) + eps)


def dr_grpo(rewards_NG: jax.Array) -> jax.Array:
    """r − mean within each group: close rewards make no prompt count for more (Dr. GRPO, arXiv:2503.20783)."""
    return _scale(rewards_NG, jnp.ones_like(rewards_NG[:, :1]))


def grpo_batch_std(rewards_NG: jax.Array, *, eps: float = 1e-4) -> jax.Array:
    """r − mean within each group, over the standard deviation of the rewards of the whole batch (arXiv:2508.08221)."""
    return _scale(rewards_NG, _std(rewards_NG.reshape(1, -1), 1, axis=1) + eps)


def rloo(rewards_NG: jax.Array) -> jax.Array:
    """r minus the mean of the group's others (RLOO, arXiv:2402.14740, eq. 8): `dr_grpo` times G / (G − 1)."""
    size = rewards_NG.shape[1]
    return dr_grpo(rewards_NG) * (size / (size - 1))


def reinforce(rewards_NG: jax.Array) -> jax.Array:
    """r minus the mean of the whole batch."""
    return rewards_NG - jnp.mean(rewards_NG)


def gdpo(rewards_KNG: jax.Array, weights_K: jax.Array, *, eps: float = 1e-4) -> jax.Array:
    """Several rewards, each normalised within its groups, then summed and whitened (GDPO, arXiv:2601.05242).

    A reward of a large scale does not drown the others as it does in a sum that is normalised.
    """
    summed_NG = jnp.tensordot(jnp.asarray(weights_K), jax.vmap(lambda r: grpo(r, eps=eps))(rewards_KNG), 1)
    flat = summed_NG.reshape(1, -1)
    return ((flat - jnp.mean(flat)) / (_std(flat, 1, axis=1) + eps)).reshape(summed_NG.shape)


GROUP_ADVANTAGES = {
    'grpo': grpo,
    'dr_grpo': dr_grpo,
    'grpo_batch_std': grpo_batch_std,
    'rloo': rloo,
    'reinforce': reinforce,
}


def _scale(rewards_NG: jax.Array, divisor: jax.Array) -> jax.Array:
    centred = rewards_NG - jnp.mean(rewards_NG, 1, keepdims=True)
    # Exactly 0 in a flat group: the rounding of its mean is not divided by eps.
    flat = flat_groups(rewards_NG)[:, None]
    return jnp.where(flat, 0, centred / jnp.where(divisor == 0, 1, divisor))


def _std(x: jax.Array, ddof: int, axis: int) -> jax.Array:
    return jnp.std(x, axis=axis, ddof=ddof, keepdims=True)


# --- From values: PPO ----------------------------------------------------------------------


def token_rewards(
    score_B: jax.Array,
    log_probs_BL: jax.Array,
    reference_BL: jax.Array,
    mask_BL: jax.Array,
    *,
    kl_coef: float,
    kind: Estimator = 'k1',
) -> jax.Array:
    """Rewards of tokens, [B, L]: −kl_coef · KL at each, and the score at the last real one (InstructGPT, eq. 2).

    Args:
      score_B: of each completion.
      log_probs_BL: of its tokens by the policy that drew them.
      reference_BL: by the reference.
      mask_BL: 1 on the tokens that it wrote, the end included.
      kl_coef: β.
      kind: k1 is unbiased here, where it is a constant.
    """
    mask_BL = jnp.asarray(mask_BL) > 0
    index = jnp.arange(mask_BL.shape[1])
    last_B = jnp.max(jnp.where(mask_BL, index, -1), 1)
    kl_BL = jnp.where(mask_BL, estimate_kl(kind, log_probs_BL, reference_BL), 0)
    return jnp.where(index == last_B[:, None], score_B[:, None], 0) - kl_coef * kl_BL


def gae(
    rewards_BL: jax.Array,
    values_BL: jax.Array,
    mask_BL: jax.Array,
    *,
    gamma: float,
    lam: float,
    bootstrap_B: jax.Array | float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """(advantages, returns), each [B, L] (Schulman et al. 2015, arXiv:1506.02438, eq. 16).

      δ_t = r_t + γ V_{t+1} − V_t        A_t = δ_t + γ λ A_{t+1}        returns = A + V

    Tokens without mask are passed over: neither padding nor results of tools have a value.

    Args:
      rewards_BL: from `token_rewards`.
      values_BL: of each token.
      mask_BL: 1 on the tokens that the policy wrote.
      gamma: γ.
      lam: λ.
      bootstrap_B: the value after the last token: 0 after an answer that ended, its value where it was cut off.
    """
    mask_BL = jnp.asarray(mask_BL) > 0
    start = (
        jnp.zeros_like(values_BL[:, 0]),
        jnp.broadcast_to(bootstrap_B, values_BL[:, 0].shape).astype(values_BL.dtype),
    )

    def back(carry: tuple[jax.Array, jax.Array], token: tuple) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        next_advantage_B, next_value_B = carry
        reward_B, value_B, counts_B = token
        advantage_B = reward_B + gamma * next_value_B - value_B + gamma * lam * next_advantage_B
        carry = jnp.where(counts_B, advantage_B, next_advantage_B), jnp.where(counts_B, value_B, next_value_B)
        return carry, jnp.where(counts_B, advantage_B, 0)

    tokens = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), (rewards_BL, values_BL, mask_BL))
    advantages_BL = jnp.swapaxes(jax.lax.scan(back, start, tokens, reverse=True)[1], 0, 1)
    return advantages_BL, jnp.where(mask_BL, advantages_BL + values_BL, 0)


def whiten(values_BL: jax.Array, mask_BL: jax.Array, *, eps: float = 1e-8) -> jax.Array:
    """(x − mean) / √(variance + eps) over the masked entries of the whole batch, variance over n − 1; 0 elsewhere."""
    n = jnp.sum(mask_BL)
    mean = masked_sum(values_BL, mask_BL) / jnp.maximum(n, 1)
    variance = masked_sum(jnp.square(values_BL - mean), mask_BL) / jnp.maximum(n - 1, 1)
    return jnp.where(mask_BL > 0, (values_BL - mean) * jax.lax.rsqrt(variance + eps), 0)
