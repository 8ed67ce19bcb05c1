"""Distillation: divergences of a student's distribution over the vocabulary from a teacher's.

  forward        KL(teacher ‖ student), in which the student covers all that the teacher does
  reverse        KL(student ‖ teacher), in which it keeps to what the teacher finds likely
  generalised    β KL(teacher ‖ m) + (1 − β) KL(student ‖ m) with m = β teacher + (1 − β) student (GKD,
  JSD            arXiv:2306.13649, eq. 1), of which β = 0 and 1 are taken as forward and reverse

The teacher is a constant. With a temperature T, both distributions are at T, and gradients are T² smaller; Hinton's
factor T² (arXiv:1503.02531) is not in here.

`divergences` takes logits of a slice; `sum_divergence` never has those of more than one slice of the sequence.
"""

from typing import Any

import jax
import jax.numpy as jnp

from llm_jax.align.targets import LossSum, masked_sum
from llm_jax.train.losses import Head, as_tokens_of, cut_slices


def divergences(
    student_BLV: jax.Array, teacher_BLV: jax.Array, *, beta: float, temperature: float = 1.0, vocab_size: int = 0
) -> jax.Array:
    """The divergence of each token, [B, L].

    Args:
      student_BLV: logits.
      teacher_BLV: logits of a model with the same vocabulary.
      beta: 0 forward, 1 reverse, between them the generalised JSD.
      temperature: of both.
      vocab_size: tokens that can be drawn; rows of the vocabulary beyond them only pad it. 0 means all.
    """
    log_q = _log_probs(student_BLV, temperature, vocab_size)
    log_p = jax.lax.stop_gradient(_log_probs(teacher_BLV, temperature, vocab_size))
    if beta == 0:
        return _kl(log_p, log_q)
    if beta == 1:
        return _kl(log_q, log_p)
    log_m = jnp.logaddexp(log_p + jnp.log(beta), log_q + jnp.log1p(-beta))
    return beta * _kl(log_p, log_m) + (1 - beta) * _kl(log_q, log_m)


def sum_divergence(
    student_head: Head,
    student_params: Any,
    student_BLD: jax.Array,
    teacher_head: Head,
    teacher_params: Any,
    teacher_BLD: jax.Array,
    weights_BL: jax.Array,
    *,
    chunk: int,
    beta: float,
    temperature: float = 1.0,
    vocab_size: int = 0,
) -> LossSum:
    """Divergences of the weighted targets summed, per target, with the logits of one slice in memory at a time.

    The backward pass computes the logits of a slice again. Gradients flow to the student.

    Args:
      student_head: features to logits.
      student_params: the parameters that it reads.
      student_BLD: its features, dtype[B, L, D].
      teacher_head: the teacher's.
      teacher_params: the parameters that it reads.
      teacher_BLD: its features; its width may be another.
      weights_BL: float32[B, L], of the targets.
      chunk: positions of each row with logits in memory at once; must divide L.
      beta: see `divergences`.
      temperature: the same.
      vocab_size: the same.
    """
    n = student_BLD.shape[1] // chunk
    teacher_params, teacher_BLD = jax.lax.stop_gradient((teacher_params, teacher_BLD))

    @jax.checkpoint
    def slice_sum(params: Any, student_BlD: jax.Array, teacher_BlD: jax.Array, weights_Bl: jax.Array) -> jax.Array:
        logits = student_head(params, student_BlD), teacher_head(teacher_params, teacher_BlD)
        values_Bl = divergences(*logits, beta=beta, temperature=temperature, vocab_size=vocab_size)
        return masked_sum(values_Bl, as_tokens_of(values_Bl, weights_Bl))

    def add(total: jax.Array, piece: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        return total + slice_sum(student_params, *piece), None

    weights_BL = weights_BL.astype(jnp.float32)
    pieces = cut_slices(n, student_BLD, weights_BL)
    teacher_pieces = cut_slices(n, teacher_BLD)[0]
    total, _ = jax.lax.scan(add, jnp.zeros(()), (pieces[0], teacher_pieces, pieces[1]))
    return total, jnp.sum(weights_BL)


def _log_probs(logits: jax.Array, temperature: float, vocab_size: int) -> jax.Array:
    if vocab_size:
        # Finite, so that the product with a probability of 0 is 0 and not NaN.
        logits = jnp.where(jnp.arange(logits.shape[-1]) < vocab_size, logits, jnp.finfo(logits.dtype).min / 4)
    return jax.nn.log_softmax(logits / temperature)


def _kl(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), -1)
