"""Losses of preferences: of pairs (DPO and its family) and of single rows (KTO).

With log-probabilities π of the policy and ρ of the reference, summed over the targets of an answer, and the log-ratios
h = π − ρ, the losses of a pair of a chosen answer w and a rejected answer l are functions of π, ρ and the lengths. All
are sums over targets but where an average is said.

Preference accuracy does not tell whether a model still answers: DPO may lower the log-probabilities of the chosen
answers as well, which `sft_term` prevents.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from llm_jax.align.targets import LossSum, masked_sum, row_lengths, row_sums

Losses = Callable[..., jax.Array]


@flax.struct.dataclass
class Pairs:
    """Pairs of answers to one prompt each, all [P].

    Attributes:
      chosen: log-probability of the chosen answer by the policy, summed over its targets.
      rejected: that of the rejected answer.
      reference_chosen: the same by the reference, a constant.
      reference_rejected: the same.
      chosen_length: targets of the chosen answer.
      rejected_length: targets of the rejected answer.
    """

    chosen: jax.Array
    rejected: jax.Array
    reference_chosen: jax.Array
    reference_rejected: jax.Array
    chosen_length: jax.Array
    rejected_length: jax.Array

    @property
    def chosen_ratio(self) -> jax.Array:
        """h of the chosen answers, [P]."""
        return self.chosen - self.reference_chosen

    @property
    def rejected_ratio(self) -> jax.Array:
        """h of the rejected answers, [P]."""
        return self.rejected - self.reference_rejected

    @property
    def delta(self) -> jax.Array:
        """h of the chosen answers minus h of the rejected, [P]."""
        return self.chosen_ratio - self.rejected_ratio

    @property
    def mean_delta(self) -> jax.Array:
        """`delta` with each h divided by the targets of its answer, [P]."""
        return self.chosen_ratio / self.chosen_length - self.rejected_ratio / self.rejected_length

    @property
    def mean_chosen(self) -> jax.Array:
        """Mean log-probability of a target of the chosen answer by the policy, [P]."""
        return self.chosen / self.chosen_length

    @property
    def mean_rejected(self) -> jax.Array:
        """Mean log-probability of a target of the rejected answer by the policy, [P]."""
        return self.rejected / self.rejected_length


class LossFacts(NamedTuple):
    """What an objective must know of a loss of pairs: the attribute `facts` of the function.

    Attributes:
      needs_reference: whether it reads the log-probabilities of a reference.
      sft_weight: of the term of supervised fine-tuning that belongs to it.
    """

    needs_reference: bool = True
    sft_weight: float = 0.0


def with_facts(**facts: bool | float) -> Callable[[Losses], Losses]:
    """Gives a loss of pairs its `LossFacts`; one without has the defaults."""

    def mark(loss: Losses) -> Losses:
        loss.facts = LossFacts(**facts)
        return loss

    return mark


def make_pairs(
    log_probs_BL: jax.Array, reference_BL: jax.Array, weights_BL: jax.Array, *, n_pairs: int | None = None
) -> Pairs:
    """Pairs of rows: the first half chosen, the second half rejected, in the same order.

    Args:
      log_probs_BL: of the targets by the policy.
      reference_BL: by the reference.
      weights_BL: 1 on the targets of the answers, 0 on prompts and padding.
      n_pairs: P; None means B / 2.
    """
    n = len(log_probs_BL) // 2 if n_pairs is None else n_pairs
    policy_B, reference_B = row_sums(log_probs_BL, weights_BL), row_sums(reference_BL, weights_BL)
    reference_B, length_B = jax.lax.stop_gradient(reference_B), row_lengths(weights_BL)
    return Pairs(policy_B[:n], policy_B[n:], reference_B[:n], reference_B[n:], length_B[:n], length_B[n:])


# --- Losses of pairs, [P] -----------------------------------------------------------------


def dpo(pairs: Pairs, *, beta: float, smoothing: float = 0.0) -> jax.Array:
    """−(1 − ε) log σ(β Δ) − ε log σ(−β Δ): DPO (arXiv:2305.18290, eq. 7); with labels wrong at the rate ε, cDPO."""
    return _smoothed(beta * pairs.delta, smoothing)


def cdpo(pairs: Pairs, *, beta: float, smoothing: float) -> jax.Array:
    """DPO whose labels are wrong at the rate ε > 0 (Mitchell 2023): `dpo` with `smoothing`."""
    return dpo(pairs, beta=beta, smoothing=smoothing)


def dpo_mean(pairs: Pairs, *, beta: float, smoothing: float = 0.0) -> jax.Array:
    """DPO of mean log-ratios: each h over the length of its answer (Tülu 3, arXiv:2411.15124)."""
    return _smoothed(beta * pairs.mean_delta, smoothing)


def robust(pairs: Pairs, *, beta: float, smoothing: float) -> jax.Array:
    """(−(1 − ε) log σ(β Δ) + ε log σ(−β Δ)) / (1 − 2 ε): unbiased for labels wrong at the rate ε (arXiv:2403.00409)."""
    z = beta * pairs.delta
    return (-(1 - smoothing) * jax.nn.log_sigmoid(z) + smoothing * jax.nn.log_sigmoid(-z)) / (1 - 2 * smoothing)


def ipo(pairs: Pairs, *, beta: float, average: Literal['mean', 'sum'] = 'mean') -> jax.Array:
    """(Δ − 1 / (2 β))²: IPO (arXiv:2310.12036, eq. 17).

    Args:
      pairs: as above.
      beta: β.
      average: 'mean' takes mean log-ratios, as the authors do and TRL; 'sum' reads eq. 17 literally.
    """
    delta = {'mean': pairs.mean_delta, 'sum': pairs.delta}[average]
    return jnp.square(delta - 1 / (2 * beta))


def hinge(pairs: Pairs, *, beta: float) -> jax.Array:
    """max(0, 1 − β Δ): SLiC (arXiv:2305.10425) on log-ratios (RSO, arXiv:2309.06657)."""
    return jax.nn.relu(1 - beta * pairs.delta)


def exo_pair(pairs: Pairs, *, beta: float, smoothing: float = 1e-3) -> jax.Array:
    """KL of the policy's preference σ(β Δ) to the label's (1 − ε, ε): EXO (arXiv:2402.00856, eq. 16)."""
    z = beta * pairs.delta
    log_q, log_not_q = jax.nn.log_sigmoid(z), jax.nn.log_sigmoid(-z)
    return jnp.exp(log_q) * (log_q - jnp.log1p(-smoothing)) + jnp.exp(log_not_q) * (log_not_q - jnp.log(smoothing))


def apo_zero(pairs: Pairs, *, beta: float) -> jax.Array:
    """1 − σ(β h_w) + σ(β h_l): chosen up, rejected down, for a policy worse than the chosen (APO, arXiv:2408.06266)."""
    return jax.nn.sigmoid(-beta * pairs.chosen_ratio) + jax.nn.sigmoid(beta * pairs.rejected_ratio)


def apo_down(pairs: Pairs, *, beta: float) -> jax.Array:
    """σ(β h_w) + 1 − σ(β Δ): both down, for a policy better than the chosen answers (APO, arXiv:2408.06266)."""
    return jax.nn.sigmoid(beta * pairs.chosen_ratio) + jax.nn.sigmoid(-beta * pairs.delta)


@with_facts(needs_reference=False)
def simpo(pairs: Pairs, *, beta: float, gamma: float, smoothing: float = 0.0) -> jax.Array:
    """−log σ(β (mean π_w − mean π_l) − γ): SimPO (arXiv:2405.14734, eq. 6). No reference; γ is not over β."""
    return _smoothed(beta * (pairs.mean_chosen - pairs.mean_rejected) - gamma, smoothing)


@with_facts(needs_reference=False, sft_weight=1.0)
def cpo(pairs: Pairs, *, beta: float, smoothing: float = 0.0) -> jax.Array:
    """−log σ(β (π_w − π_l)): the preference term of CPO (arXiv:2401.08417); `sft_term` is its other. No reference."""
    return _smoothed(beta * (pairs.chosen - pairs.rejected), smoothing)


@with_facts(needs_reference=False, sft_weight=1.0)
def orpo(pairs: Pairs, *, beta: float) -> jax.Array:
    """−β log σ(log odds_w − log odds_l): the odds term of ORPO (arXiv:2403.07691, eq. 6), of mean log-probabilities.

    No reference; `sft_term` with weight 1 is its other term. β is the λ of the paper.
    """
    return -beta * jax.nn.log_sigmoid(log_odds(pairs.mean_chosen) - log_odds(pairs.mean_rejected))


PAIR_LOSSES: dict[str, Losses] = {
    'dpo': dpo,
    'cdpo': cdpo,
    'dpo_mean': dpo_mean,
    'robust': robust,
    'ipo': ipo,
    'hinge': hinge,
    'exo_pair': exo_pair,
    'apo_zero': apo_zero,
    'apo_down': apo_down,
    'simpo': simpo,
    'cpo': cpo,
    'orpo': orpo,
}


def sum_pairs(losses_P: jax.Array, weights_P: jax.Array | None = None) -> LossSum:
    """Losses of pairs summed, and the pairs."""
    weights_P = jnp.ones_like(losses_P) if weights_P is None else weights_P
    return jnp.sum(losses_P * weights_P), jnp.sum(weights_P)


def sft_term(chosen_log_probs_PL: jax.Array, weights_PL: jax.Array, pairs_per_token: jax.Array | float) -> jax.Array:
    """Negative log-likelihood of the chosen answers, summed so that it is a mean over targets after division by pairs.

    Args:
      chosen_log_probs_PL: of the chosen answers by the policy.
      weights_PL: 1 on their targets.
      pairs_per_token: pairs over targets of chosen answers, of the whole batch: micro-batches differ in it.
    """
    return -pairs_per_token * masked_sum(chosen_log_probs_PL, weights_PL)


def pair_metrics(pairs: Pairs, weights_P: jax.Array | float = 1.0, *, beta: float) -> dict[str, jax.Array]:
    """Weighted sums over pairs: rewards β h, margins, pairs in the right order (equal is wrong), log-probabilities."""
    chosen, rejected = beta * pairs.chosen_ratio, beta * pairs.rejected_ratio
    values = {
        'rewards_chosen': chosen,
        'rewards_rejected': rejected,
        'margin': chosen - rejected,
        'accuracy': (chosen > rejected).astype(chosen.dtype),
        'log_prob_chosen': pairs.chosen,
        'log_prob_rejected': pairs.rejected,
    }
    return {name: jnp.sum(value * weights_P) for name, value in values.items()}


# --- Single rows: KTO ----------------------------------------------------------------------


def kto_reference_point(policy_B: jax.Array, reference_B: jax.Array, weights_B: jax.Array | None = None) -> jax.Array:
    """z0 = max(0, mean(π − ρ)) over prompts with the answers of others: a constant (KTO, arXiv:2402.01306, §4.1).

    Args:
      policy_B: log-probabilities of the mismatched answers of the whole batch, before it is split into micro-batches.
      reference_B: the same by the reference.
      weights_B: 0 for rows that only pad the batch.
    """
    ratio_B = jax.lax.stop_gradient(policy_B - reference_B)
    weights_B = jnp.ones_like(ratio_B) if weights_B is None else weights_B
    return jnp.maximum(jnp.sum(ratio_B * weights_B) / jnp.maximum(jnp.sum(weights_B), 1), 0)


def kto(
    log_ratio_B: jax.Array,
    desirable_B: jax.Array,
    reference_point: jax.Array | float,
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> jax.Array:
    """w (1 − σ(± β (h − z0))), + for desirable answers, [B]: KTO (arXiv:2402.01306, eq. 7 and 8).

    With the reference point 0 it is the unpaired form of APO-zero.

    Args:
      log_ratio_B: h of each answer.
      desirable_B: which are desirable.
      reference_point: z0, from `kto_reference_point`; a number, or one that is repeated over the rows.
      beta: β.
      desirable_weight: w of desirable answers.
      undesirable_weight: w of the others.
    """
    desirable_B = jnp.asarray(desirable_B, bool)
    z_B = beta * (log_ratio_B - jax.lax.stop_gradient(reference_point))
    weights_B = jnp.where(desirable_B, desirable_weight, undesirable_weight).astype(z_B.dtype)
    return weights_B * jax.nn.sigmoid(jnp.where(desirable_B, -z_B, z_B))


# --- Numbers -------------------------------------------------------------------------------


def log1mexp(x: jax.Array) -> jax.Array:
    """log(1 − exp x) for x < 0, exact at both ends; finite with a finite gradient at 0 (Mächler 2012)."""
    x = jnp.minimum(x, -(jnp.finfo(x.dtype).eps ** 2))
    near = x > -jnp.log(2.0)
    # Each branch gets values of its own side: the gradient of a branch that is not taken must be finite, too.
    by_expm1 = jnp.log(-jnp.expm1(jnp.where(near, x, -1.0)))
    by_log1p = jnp.log1p(-jnp.exp(jnp.where(near, -1.0, x)))
    return jnp.where(near, by_expm1, by_log1p)


def log_odds(log_p: jax.Array) -> jax.Array:
    """log(p / (1 − p))."""
    return log_p - log1mexp(log_p)


def _smoothed(z: jax.Array, smoothing: float) -> jax.Array:
    """−(1 − ε) log σ(z) − ε log σ(−z)."""
    losses = -jax.nn.log_sigmoid(z)
    return losses if not smoothing else (1 - smoothing) * losses - smoothing * jax.nn.log_sigmoid(-z)
