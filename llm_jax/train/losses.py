"""Losses of token log-probabilities whose logits are in memory for one slice of the sequence at a time.

Logits of a whole batch, float32[B, L, V], are the largest array of a training step. Two primitives avoid them:

`cross_entropy` is a scalar, so that a slice's gradients are known up to one factor while its logits are there: they
are computed in the forward pass, and nothing is recomputed in the backward pass.

`token_log_probs` gives float32[B, L] for any loss to be made of. Its forward pass keeps no logits; the backward pass
computes those of a slice once more: one more product with the head than `cross_entropy`.

Both run the same code: the gradient of any loss of log-probabilities is that of a weighted cross-entropy. The shards of
the head along the axes of the batch are gathered before the first slice, and their gradient summed after the last,
unless there is no memory for that.

Temporary memory of loss and gradient as XLA compiles it (CPU, B 8, L 1024, D 256, V 32768, float32): 528.1 MiB for
either in slices of 2048 tokens, 144.1 MiB in slices of 512, 2048 MiB with all logits at once.

Shapes: B batch, L length, l length of a slice, D model, V vocabulary, n slices.
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from llm_jax.dist import mesh

# (head parameters, features [B, l, D]) -> logits float32[B, l, V]
Head = Callable[[Any, jax.Array], jax.Array]
Sums = tuple[jax.Array, jax.Array]


def cross_entropy(
    head: Head,
    params: Any,
    x_BLD: jax.Array,
    targets_BL: jax.Array,
    weights_BL: jax.Array,
    *,
    z_loss: float,
    chunk: int,
    gather_once: bool = True,
) -> Sums:
    """Summed loss over the targets of a batch.

    Args:
      head: features to logits.
      params: the parameters that `head` reads.
      x_BLD: features, dtype[B, L, D].
      targets_BL: int[B, L].
      weights_BL: float32[B, L], of any sign.
      z_loss: weight of log(Z)², Z the softmax's denominator (PaLM, arXiv:2204.02311, §5).
      chunk: positions of each row that are in memory as logits at once; must divide L, and the devices that share the
        length of x_BLD must divide it.
      gather_once: True gathers the head once for all slices, False for each.

    Returns:
      (objective, nll): weighted sums over tokens, in nats. Gradients flow through the
      objective, which adds the z-loss to the negative log-likelihood; none flow through
      `nll`, which is for reporting, nor to the weights, which are constants.
    """
    return _cross_entropy(head, z_loss, chunk, gather_once, params, x_BLD, targets_BL, weights_BL)


def token_log_probs(
    head: Head,
    params: Any,
    x_BLD: jax.Array,
    targets_BL: jax.Array,
    *,
    chunk: int,
    gather_once: bool = True,
    temperature: float = 1.0,
    vocab_size: int = 0,
) -> jax.Array:
    """Log-probability of each target, float32[B, L], differentiable in the features and the head.

    They are those of softmax(logits / temperature) with the logits as `head` gives them: a soft-cap is part of the
    head, so it comes before the temperature, as in sampling. A z-loss is no part of a log-probability.

    Args:
      head: features to logits.
      params: the parameters that `head` reads.
      x_BLD: features, dtype[B, L, D].
      targets_BL: int[B, L].
      chunk: as of `cross_entropy`.
      gather_once: as of `cross_entropy`.
      temperature: of the distribution; what was sampled at another than 1 is scored at it.
      vocab_size: tokens that can be drawn; rows of the vocabulary beyond them only pad it. 0 means all.
    """

    def drawn(params: Any, x_BlD: jax.Array) -> jax.Array:
        logits_BlV = head(params, x_BlD)
        if vocab_size:
            logits_BlV = jnp.where(jnp.arange(logits_BlV.shape[-1]) < vocab_size, logits_BlV, -jnp.inf)
        return logits_BlV / temperature

    distribution = head if temperature == 1 and not vocab_size else drawn
    return _token_log_probs(distribution, chunk, gather_once, params, x_BLD, targets_BL)


# --- One slice ---------------------------------------------------------------------------


def _slice_scores(head: Head, params: Any, x_BlD: jax.Array, targets_Bl: jax.Array) -> Sums:
    """(logits of the targets, log Z), each float32[B, l] and sharded as the logits' tokens are."""
    logits_BlV = head(params, x_BlD)
    targets_Bl = as_tokens_of(logits_BlV, targets_Bl)
    log_z_Bl = jax.nn.logsumexp(logits_BlV, axis=-1)
    # A comparison, not a lookup: it stays local when the vocabulary is split over devices.
    is_target_BlV = jnp.arange(logits_BlV.shape[-1]) == targets_Bl[..., None]
    return jnp.sum(jnp.where(is_target_BlV, logits_BlV, 0), -1), log_z_Bl


def _slice_loss(
    head: Head, z_loss: float, params: Any, x_BlD: jax.Array, targets_Bl: jax.Array, weights_Bl: jax.Array
) -> Sums:
    """(objective, nll) of a slice."""
    target_logits_Bl, log_z_Bl = _slice_scores(head, params, x_BlD, targets_Bl)
    weights_Bl = as_tokens_of(log_z_Bl, weights_Bl)
    nll = jnp.sum(weights_Bl * (log_z_Bl - target_logits_Bl))
    return nll + z_loss * jnp.sum(weights_Bl * jnp.square(log_z_Bl)), nll


def _slice_log_probs(head: Head, params: Any, x_BlD: jax.Array, targets_Bl: jax.Array) -> jax.Array:
    """float32[B, l] of a slice, sharded as the targets are."""
    target_logits_Bl, log_z_Bl = _slice_scores(head, params, x_BlD, targets_Bl)
    return as_tokens_of(targets_Bl, target_logits_Bl - log_z_Bl)


# --- All slices --------------------------------------------------------------------------
#
# With the logits z_v of a token, Z = Σ_v exp z_v, p_v = exp(z_v) / Z, target y and weight w,
#
#   log p_y = z_y − log Z          ∂ log p_y / ∂z_v = [v = y] − p_v          ∂ (log Z)² / ∂z_v = 2 log Z · p_v
#
# Cross-entropy with z-loss ζ:     J = Σ_t w_t (−log p_t + ζ (log Z_t)²)
#                                  ∂J / ∂z_tv = w_t (p_tv − [v = y_t] + 2 ζ log Z_t · p_tv)
# It needs nothing from outside but the factor dJ, so the forward pass computes it, slice by slice.
#
# Any loss ℓ(log p_1, log p_2, …) with g_t = ∂ℓ / ∂ log p_t, which the backward pass is given:
#                                  ∂ℓ / ∂z_tv = Σ_t g_t ([v = y_t] − p_tv)
# which is ∂J / ∂z_tv for the weights w_t = −g_t and ζ = 0. So its backward pass is `_loss_and_gradients`, too.


def _scan_loss(
    head: Head, z_loss: float, n: int, params: Any, x_BLD: jax.Array, targets_BL: jax.Array, weights_BL: jax.Array
) -> Sums:
    """(objective, nll) of n slices, one after the other."""

    def add(sums: Sums, piece: Sequence[jax.Array]) -> tuple[Sums, None]:
        return jax.tree.map(jnp.add, sums, _slice_loss(head, z_loss, params, *piece)), None

    zeros = (jnp.zeros(()), jnp.zeros(()))
    return jax.lax.scan(add, zeros, cut_slices(n, x_BLD, targets_BL, weights_BL))[0]


def _scan_gradients(
    head: Head,
    z_loss: float,
    n: int,
    dtypes: Any,
    params: Any,
    x_BLD: jax.Array,
    targets_BL: jax.Array,
    weights_BL: jax.Array,
) -> tuple[Sums, Any, jax.Array]:
    """((objective, nll), gradients of `params` summed in `dtypes`, gradient [B, L, D]) of n slices."""
    slice_grad = jax.value_and_grad(_slice_loss, argnums=(2, 3), has_aux=True)

    def add(carry: Any, piece: Sequence[jax.Array]) -> tuple[Any, jax.Array]:
        part, (d_params, d_x_BlD) = slice_grad(head, z_loss, params, *piece)
        return jax.tree.map(jnp.add, carry, (part, d_params)), d_x_BlD

    zeros = ((jnp.zeros(()), jnp.zeros(())), jax.tree.map(jnp.zeros_like, params, dtypes))
    (sums, d_params), d_x_nBlD = jax.lax.scan(add, zeros, cut_slices(n, x_BLD, targets_BL, weights_BL))
    return sums, d_params, _join_slices(d_x_nBlD)


def _loss_and_gradients(
    head: Head,
    z_loss: float,
    chunk: int,
    gather_once: bool,
    params: Any,
    x_BLD: jax.Array,
    targets_BL: jax.Array,
    weights_BL: jax.Array,
) -> tuple[Sums, tuple[Any, jax.Array]]:
    """((objective, nll), the objective's gradients of `params` and `x_BLD`)."""
    n, rows = x_BLD.shape[1] // chunk, (x_BLD, targets_BL, weights_BL)
    if n == 1:
        return jax.value_and_grad(_slice_loss, argnums=(2, 3), has_aux=True)(head, z_loss, params, *rows)
    dtypes = jax.tree.map(lambda w: w.dtype, params)
    scan = functools.partial(_scan_gradients, head, z_loss, n, dtypes)
    if not (batch := _batch_axes(x_BLD) if gather_once else ()):
        sums, d_params, d_x_BLD = scan(params, *rows)
        return sums, (d_params, d_x_BLD)

    def on_each(*args: Any) -> tuple[Sums, Any, jax.Array]:
        sums, d_params, d_x_BLD = scan(*args)
        return jax.lax.psum(sums, batch), jax.tree.map(lambda d: d[None], d_params), d_x_BLD

    whole = _gather_over(batch, params, x_BLD.dtype)
    parts = jax.tree.map(lambda w: jax.P(batch, *_spec(w)), whole)
    sums, d_parts, d_x_BLD = mesh.map_over_axes(
        batch, on_each, (whole, *rows), ((jax.P(), jax.P()), parts, _spec(x_BLD))
    )
    return sums, (_sum_over(batch, d_parts, params), d_x_BLD)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _cross_entropy(
    head: Head,
    z_loss: float,
    chunk: int,
    gather_once: bool,
    params: Any,
    x_BLD: jax.Array,
    targets_BL: jax.Array,
    weights_BL: jax.Array,
) -> Sums:
    n, rows = x_BLD.shape[1] // chunk, (x_BLD, targets_BL, weights_BL)
    if n == 1:
        return _slice_loss(head, z_loss, params, *rows)
    scan = functools.partial(_scan_loss, head, z_loss, n)
    if not (batch := _batch_axes(x_BLD) if gather_once else ()):
        return scan(params, *rows)
    on_each = lambda *args: jax.lax.psum(scan(*args), batch)
    return mesh.map_over_axes(batch, on_each, (_gather_over(batch, params, x_BLD.dtype), *rows), (jax.P(), jax.P()))


def _cross_entropy_backward(
    head: Head, z_loss: float, chunk: int, gather_once: bool, grads: tuple[Any, jax.Array], cotangents: Sums
) -> tuple[Any, jax.Array, None, None]:
    del head, z_loss, chunk, gather_once
    d_objective, _ = cotangents  # nll is for reporting
    d_params, d_x_BLD = jax.tree.map(lambda g: (d_objective * g).astype(g.dtype), grads)
    return d_params, d_x_BLD, None, None


_cross_entropy.defvjp(_loss_and_gradients, _cross_entropy_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _token_log_probs(
    head: Head, chunk: int, gather_once: bool, params: Any, x_BLD: jax.Array, targets_BL: jax.Array
) -> jax.Array:
    n = x_BLD.shape[1] // chunk
    if n == 1:
        return _slice_log_probs(head, params, x_BLD, targets_BL)

    def scan(params: Any, x_BLD: jax.Array, targets_BL: jax.Array) -> jax.Array:
        score = lambda _, piece: (None, _slice_log_probs(head, params, *piece))
        return _join_slices(jax.lax.scan(score, None, cut_slices(n, x_BLD, targets_BL))[1])

    if not (batch := _batch_axes(x_BLD) if gather_once else ()):
        return as_tokens_of(targets_BL, scan(params, x_BLD, targets_BL))
    args = (_gather_over(batch, params, x_BLD.dtype), x_BLD, targets_BL)
    return as_tokens_of(targets_BL, mesh.map_over_axes(batch, scan, args, jax.P(*_spec(x_BLD)[:2])))


def _token_log_probs_forward(
    head: Head, chunk: int, gather_once: bool, params: Any, x_BLD: jax.Array, targets_BL: jax.Array
) -> tuple[jax.Array, tuple[Any, jax.Array, jax.Array]]:
    return _token_log_probs(head, chunk, gather_once, params, x_BLD, targets_BL), (params, x_BLD, targets_BL)


def _token_log_probs_backward(
    head: Head, chunk: int, gather_once: bool, kept: tuple[Any, jax.Array, jax.Array], d_log_probs_BL: jax.Array
) -> tuple[Any, jax.Array, None]:
    _, (d_params, d_x_BLD) = _loss_and_gradients(head, 0.0, chunk, gather_once, *kept, -d_log_probs_BL)
    return d_params, d_x_BLD, None


_token_log_probs.defvjp(_token_log_probs_forward, _token_log_probs_backward)


# --- Slices and shards -------------------------------------------------------------------


def cut_slices(n: int, x_BLD: jax.Array, *per_token: jax.Array) -> tuple[jax.Array, ...]:
    """The batch in n slices of the sequence, [n, B, L/n, ...]: devices that share the length each cut their part."""

    def cut(a: jax.Array) -> jax.Array:
        return jnp.moveaxis(a.reshape(a.shape[0], n, -1, *a.shape[2:]), 1, 0)

    if jax.sharding.get_abstract_mesh().empty:
        return cut(x_BLD), *(cut(a) for a in per_token)

    def cut_parts(a: jax.Array, spec: PartitionSpec) -> jax.Array:
        return jax.shard_map(cut, in_specs=spec, out_specs=jax.P(None, *spec))(jax.sharding.reshard(a, spec))

    tokens = jax.P(*_spec(x_BLD)[:2])
    return cut_parts(x_BLD, _spec(x_BLD)), *(cut_parts(a, tokens) for a in per_token)


def _join_slices(slices: jax.Array) -> jax.Array:
    """The inverse of `cut_slices`, [n, B, L/n, ...] -> [B, L, ...]."""

    def join(a: jax.Array) -> jax.Array:
        return jnp.moveaxis(a, 0, 1).reshape(a.shape[1], -1, *a.shape[3:])

    if jax.sharding.get_abstract_mesh().empty:
        return join(slices)
    spec = _spec(slices)
    return jax.shard_map(join, in_specs=spec, out_specs=jax.P(*spec[1:]))(slices)


def _spec(x: jax.Array) -> PartitionSpec:
    return jax.typeof(x).sharding.spec


def as_tokens_of(like: jax.Array, x_BL: jax.Array) -> jax.Array:
    """`x_BL`, sharded as the first two dimensions of `like` are."""
    if jax.sharding.get_abstract_mesh().empty:
        return x_BL
    return jax.sharding.reshard(x_BL, jax.P(*_spec(like)[:2]))


def _batch_axes(x_BLD: jax.Array) -> tuple[str, ...]:
    """The mesh axes that split the rows of a batch."""
    return () if jax.sharding.get_abstract_mesh().empty else mesh.mesh_axes(_spec(x_BLD)[0])


def _axes_shared_with(batch: tuple[str, ...], w: jax.Array) -> list[tuple[str, ...]]:
    """For each dimension of a parameter, the axes of the batch that split it."""
    return [mesh.mesh_axes(mesh.keep_axes(entry, batch)) for entry in _spec(w)]


def _gather_over(batch: tuple[str, ...], params: Any, dtype: jnp.dtype) -> Any:
    """Parameters whose shards along the axes of the batch are gathered, in the dtype of their product.

    FSDP: Zhao et al. 2023, arXiv:2304.11277. By type alone they would be gathered, and their gradient summed, for each
    slice.
    """

    def gather_one(w: jax.Array) -> jax.Array:
        splits = _axes_shared_with(batch, w)
        if not any(splits):
            return w
        stays = [mesh.keep_axes(entry, set(mesh.mesh_axes(entry)) - {*batch}) for entry in _spec(w)]

        def gather(w: jax.Array) -> jax.Array:
            for dim, axes in enumerate(splits):
                w = jax.lax.all_gather(w, axes, axis=dim, tiled=True) if axes else w
            return w

        return jax.shard_map(gather, in_specs=_spec(w), out_specs=jax.P(*stays), check_vma=False)(w.astype(dtype))

    return jax.tree.map(gather_one, params)


def _sum_over(batch: tuple[str, ...], d_parts: Any, params: Any) -> Any:
    """The gradients of each device of the batch, [devices, ...], summed and sharded as the parameters are."""

    def sum_one(d: jax.Array, w: jax.Array) -> jax.Array:
        splits = _axes_shared_with(batch, w)
        rest = tuple(axis for axis in batch if not any(axis in axes for axes in splits))

        def scatter(d: jax.Array) -> jax.Array:
            d = d[0]
            for dim, axes in enumerate(splits):
                d = jax.lax.psum_scatter(d, axes, scatter_dimension=dim, tiled=True) if axes else d
            return jax.lax.psum(d, rest) if rest else d

        # Types cannot show that the sum is the same on all devices.
        return jax.shard_map(scatter, in_specs=_spec(d), out_specs=_spec(w), check_vma=False)(d)

    return jax.tree.map(sum_one, d_parts, params)


# Where the config leaves it open: so many tokens, but no more than that many logits (512 MiB in float32).
MOST_TOKENS, MOST_LOGITS = 2048, 2**27


def chunk_length(seq_len: int, rows_per_device: int, tokens: int, vocab_per_device: int = 1) -> int:
    """The number of positions of each row that have logits in memory at once.

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
