"""Next-token cross-entropy, as sums and weights until the very end.

Logits of a whole batch, float32[B, L, V], are the largest array of a training step. So
the loss is taken over slices of the sequence, and each slice's gradients are computed
while its logits are there: the loss is a scalar, hence they are known up to one factor,
and nothing is recomputed in the backward pass.
"""

from collections.abc import Callable
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

# (head parameters, features [B, l, D]) -> logits float32[B, l, V]
Head = Callable[[Any, jax.Array], jax.Array]


@flax.struct.dataclass
class Rows:
    """Packed rows as the model reads them; each field is [B, L].

    Attributes:
      inputs: int, tokens.
      targets: int, the token after each.
      weights: float32, 1 where the target counts, 0 on padding.
      segments: int, the document of each token within its row.
      positions: int, from 0 in each document (or piece of one) of the row.
    """

    inputs: jax.Array
    targets: jax.Array
    weights: jax.Array
    segments: jax.Array
    positions: jax.Array


def unpack(tokens: jax.Array, bos_id: int) -> Rows:
    """Rows of packed documents, int[B, L+1], every document led by BOS, -1 for padding."""
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    weights = ((inputs >= 0) & (targets >= 0)).astype(jnp.float32)
    starts = inputs == bos_id
    index = jnp.broadcast_to(jnp.arange(inputs.shape[1]), inputs.shape)
    positions = index - jax.lax.cummax(jnp.where(starts, index, 0), axis=1)
    segments = jnp.cumsum(starts, axis=1)
    return Rows(jnp.maximum(inputs, 0), jnp.maximum(targets, 0), weights, segments, positions)


def cross_entropy(
    head: Head, params: Any, x_BLD: jax.Array, rows: Rows, *, z_loss: float, chunk: int
) -> tuple[jax.Array, jax.Array]:
    """Summed loss over the targets of a batch.

    Args:
      head: features to logits.
      params: the parameters that `head` reads.
      x_BLD: features, dtype[B, L, D].
      rows: targets and weights.
      z_loss: weight of log(Z)², Z the softmax's denominator (PaLM, arXiv:2204.02311, §5).
      chunk: how many positions of each row are in memory as logits at once; must divide
        L, and the devices that share the length of x_BLD must divide it.

    Returns:
      (objective, nll): weighted sums over tokens, in nats. Gradients flow through the
      objective, which adds the z-loss to the negative log-likelihood; none flow through
      `nll`, which is for reporting, nor to the weights, which are constants.
    """
    return _chunked(head, z_loss, chunk, params, x_BLD, rows.targets, rows.weights)


def _slice_loss(head, z_loss, params, x_BlD, targets_Bl, weights_Bl):
    logits = head(params, x_BlD)
    if not jax.sharding.get_abstract_mesh().empty:
        tokens = jax.P(*jax.typeof(logits).sharding.spec[:2])
        targets_Bl, weights_Bl = (jax.sharding.reshard(a, tokens) for a in (targets_Bl, weights_Bl))
    log_z = jax.nn.logsumexp(logits, axis=-1)
    # A comparison, not a lookup: it stays local when the vocabulary is split over devices.
    picked = jnp.sum(jnp.where(jnp.arange(logits.shape[-1]) == targets_Bl[..., None], logits, 0), -1)
    nll = jnp.sum(weights_Bl * (log_z - picked))
    return nll + z_loss * jnp.sum(weights_Bl * jnp.square(log_z)), nll


def _slices(n, x_BLD, targets_BL, weights_BL):
    """The batch in n slices of the sequence, [n, B, L/n, ...]: where devices share the length, each cuts its part."""

    def cut(a):
        return jnp.moveaxis(a.reshape(a.shape[0], n, -1, *a.shape[2:]), 1, 0)

    if jax.sharding.get_abstract_mesh().empty:
        return cut(x_BLD), cut(targets_BL), cut(weights_BL)
    lies = jax.typeof(x_BLD).sharding.spec
    tokens = jax.P(*lies[:2])
    one = lambda a, spec: jax.shard_map(cut, in_specs=spec, out_specs=jax.P(None, *spec))(jax.sharding.reshard(a, spec))
    return one(x_BLD, lies), one(targets_BL, tokens), one(weights_BL, tokens)


def _joined(slices):
    """The inverse of `_slices`, [n, B, L/n, D] -> [B, L, D]."""

    def join(a):
        return jnp.moveaxis(a, 0, 1).reshape(a.shape[1], -1, *a.shape[3:])

    if jax.sharding.get_abstract_mesh().empty:
        return join(slices)
    lies = jax.typeof(slices).sharding.spec
    return jax.shard_map(join, in_specs=lies, out_specs=jax.P(*lies[1:]))(slices)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _chunked(head, z_loss, chunk, params, x_BLD, targets_BL, weights_BL):
    L = x_BLD.shape[1]

    def body(sums, piece):
        part = _slice_loss(head, z_loss, params, *piece)
        return jax.tree.map(jnp.add, sums, part), None

    if chunk == L:
        return _slice_loss(head, z_loss, params, x_BLD, targets_BL, weights_BL)
    return jax.lax.scan(body, (jnp.zeros(()), jnp.zeros(())), _slices(L // chunk, x_BLD, targets_BL, weights_BL))[0]


def _chunked_forward(head, z_loss, chunk, params, x_BLD, targets_BL, weights_BL):
    L = x_BLD.shape[1]
    slice_grad = jax.value_and_grad(_slice_loss, argnums=(2, 3), has_aux=True)
    if chunk == L:
        (objective, nll), grads = slice_grad(head, z_loss, params, x_BLD, targets_BL, weights_BL)
        return (objective, nll), grads

    def body(carry, piece):
        sums, d_params = carry
        part, (d_params_part, d_x_part) = slice_grad(head, z_loss, params, *piece)
        return (jax.tree.map(jnp.add, sums, part), jax.tree.map(jnp.add, d_params, d_params_part)), d_x_part

    carry = ((jnp.zeros(()), jnp.zeros(())), jax.tree.map(jnp.zeros_like, params))
    pieces = _slices(L // chunk, x_BLD, targets_BL, weights_BL)
    (sums, d_params), d_x = jax.lax.scan(body, carry, pieces)
    return sums, (d_params, _joined(d_x))


def _chunked_backward(head, z_loss, chunk, grads, cotangents):
    d_objective, _ = cotangents  # nll is for reporting
    d_params, d_x = jax.tree.map(lambda g: (d_objective * g).astype(g.dtype), grads)
    return d_params, d_x, None, None


_chunked.defvjp(_chunked_forward, _chunked_backward)


# Where the config leaves it open: so many tokens, but no more than that many logits (512 MiB in float32).
MOST_TOKENS, MOST_LOGITS = 2048, 2**27


def chunk_length(seq_len: int, rows_per_device: int, tokens: int, vocab_per_device: int = 1) -> int:
    """How many positions of each row have logits in memory at once.

    Args:
      seq_len: positions of a row.
      rows_per_device: rows of the batch.
      tokens: the most tokens on a device; 0 decides by the size of their logits.
      vocab_per_device: logits of a token on a device.

    Returns:
      The largest divisor of seq_len that keeps to it, at least 1.
    """
    tokens = tokens or min(MOST_TOKENS, MOST_LOGITS // vocab_per_device)
    most = max(1, tokens // max(1, rows_per_device))
    return max(n for n in range(1, seq_len + 1) if seq_len % n == 0 and n <= most)
