"""Next-token cross-entropy, as sums and weights until the very end.

Logits of a whole batch, float32[B, L, V], are the largest array of a training step. So
the loss is taken over slices of the sequence, and each slice's gradients are computed
while its logits are there: the loss is a scalar, hence they are known up to one factor,
and nothing is recomputed in the backward pass. What of the head is split over the devices
of the batch is gathered before the first slice, and its gradient summed after the last,
unless there is no memory for that.
"""

from collections.abc import Callable
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from llm_jax.dist import mesh

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
    head: Head, params: Any, x_BLD: jax.Array, rows: Rows, *, z_loss: float, chunk: int, once: bool = True
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
      once: whether the head is gathered once for all slices, rather than for each.

    Returns:
      (objective, nll): weighted sums over tokens, in nats. Gradients flow through the
      objective, which adds the z-loss to the negative log-likelihood; none flow through
      `nll`, which is for reporting, nor to the weights, which are constants.
    """
    return _chunked(head, z_loss, chunk, once, params, x_BLD, rows.targets, rows.weights)


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


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _chunked(head, z_loss, chunk, once, params, x_BLD, targets_BL, weights_BL):
    n, rows = x_BLD.shape[1] // chunk, (x_BLD, targets_BL, weights_BL)
    if n == 1:
        return _slice_loss(head, z_loss, params, *rows)

    def scan(params, *rows):
        add = lambda sums, piece: (jax.tree.map(jnp.add, sums, _slice_loss(head, z_loss, params, *piece)), None)
        return jax.lax.scan(add, (jnp.zeros(()), jnp.zeros(())), _slices(n, *rows))[0]

    if not (batch := _batch_axes(x_BLD) if once else ()):
        return scan(params, *rows)
    own = lambda *args: jax.lax.psum(scan(*args), batch)
    return mesh.map_over_axes(batch, own, (_whole(params, batch, x_BLD.dtype), *rows), (jax.P(), jax.P()))


def _chunked_forward(head, z_loss, chunk, once, params, x_BLD, targets_BL, weights_BL):
    n, rows = x_BLD.shape[1] // chunk, (x_BLD, targets_BL, weights_BL)
    slice_grad = jax.value_and_grad(_slice_loss, argnums=(2, 3), has_aux=True)
    if n == 1:
        return slice_grad(head, z_loss, params, *rows)
    dtypes = jax.tree.map(lambda w: w.dtype, params)

    def scan(params, *rows):
        def body(carry, piece):
            part, (d_params, d_x) = slice_grad(head, z_loss, params, *piece)
            return jax.tree.map(jnp.add, carry, (part, d_params)), d_x

        zeros = jax.tree.map(jnp.zeros_like, params, dtypes)
        (sums, d_params), d_x = jax.lax.scan(body, ((jnp.zeros(()), jnp.zeros(())), zeros), _slices(n, *rows))
        return sums, d_params, _joined(d_x)

    if not (batch := _batch_axes(x_BLD) if once else ()):
        sums, d_params, d_x = scan(params, *rows)
        return sums, (d_params, d_x)

    def own(*args):
        sums, d_params, d_x = scan(*args)
        return jax.lax.psum(sums, batch), jax.tree.map(lambda d: d[None], d_params), d_x

    whole = _whole(params, batch, x_BLD.dtype)
    parts = jax.tree.map(lambda w: jax.P(batch, *_lies(w)), whole)
    sums, d_parts, d_x = mesh.map_over_axes(batch, own, (whole, *rows), ((jax.P(), jax.P()), parts, _lies(x_BLD)))
    return sums, (_summed(d_parts, params, batch), d_x)


def _lies(x):
    return jax.typeof(x).sharding.spec


def _batch_axes(x_BLD):
    """The mesh axes that split the rows of a batch."""
    return () if jax.sharding.get_abstract_mesh().empty else mesh.mesh_axes(_lies(x_BLD)[0])


def _split_by(batch, w):
    """For each dimension of a parameter, the axes of the batch that split it."""
    return [mesh.mesh_axes(mesh.keep_axes(entry, batch)) for entry in _lies(w)]


def _whole(params, batch, dtype):
    """Parameters with what is split over the devices of the batch gathered, in the dtype that it is multiplied in.

    FSDP: Zhao et al. 2023, arXiv:2304.11277. By type alone it would be gathered, and its gradient summed, for each
    slice.
    """

    def one(w):
        splits = _split_by(batch, w)
        if not any(splits):
            return w
        stays = [mesh.keep_axes(entry, set(mesh.mesh_axes(entry)) - {*batch}) for entry in _lies(w)]

        def gather(w):
            for dim, axes in enumerate(splits):
                w = jax.lax.all_gather(w, axes, axis=dim, tiled=True) if axes else w
            return w

        return jax.shard_map(gather, in_specs=_lies(w), out_specs=jax.P(*stays), check_vma=False)(w.astype(dtype))

    return jax.tree.map(one, params)


def _summed(d_parts, params, batch):
    """The gradients that each device of the batch has, [devices, ...], summed and split as the parameters are."""

    def one(d, w):
        splits = _split_by(batch, w)
        rest = tuple(axis for axis in batch if not any(axis in axes for axes in splits))

        def scatter(d):
            d = d[0]
            for dim, axes in enumerate(splits):
                d = jax.lax.psum_scatter(d, axes, scatter_dimension=dim, tiled=True) if axes else d
            return jax.lax.psum(d, rest) if rest else d

        # Types cannot show that the sum is the same on all devices.
        return jax.shard_map(scatter, in_specs=_lies(d), out_specs=_lies(w), check_vma=False)(d)

    return jax.tree.map(one, d_parts, params)


def _chunked_backward(head, z_loss, chunk, once, grads, cotangents):
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
