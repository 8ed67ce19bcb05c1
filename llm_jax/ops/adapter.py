"""Products with a frozen kernel and a trained low-rank change of it.

  LoRA    y = x W + s (x A) B                                (arXiv:2106.09685, §4.1)
  DoRA    y = m / ‖W + s A B‖ · (x W + s (x A) B)            (arXiv:2402.09353, eq. 5 and §4.3)

with s = α / r, or α / √r in rsLoRA (arXiv:2312.03732). Norms are of all inputs of each output; no gradient flows
through them. An adapter is a dict beside the kernel: a [*in, r], b [r, *out] and, in DoRA, magnitude [*out]. A is
sharded as the inputs of the kernel, B as its outputs.
"""

from collections.abc import Mapping
import dataclasses

import jax
import jax.numpy as jnp

from llm_jax.config.schema import Model
from llm_jax.dist import mesh
from llm_jax.init import Weight
from llm_jax.ops.blockwise import Blockwise, Kernel
from llm_jax.ops.product import activation_axes, product

# The logical axis of the rank, which is whole on every device.
RANK = 'latent'
Adapter = Mapping[str, jax.Array]


def multiply(
    x: jax.Array,
    kernel: Kernel,
    adapter: Adapter | None,
    dropout_key: jax.Array | None,
    weight: Weight,
    config: Model,
    out_dtype: str = '',
) -> jax.Array:
    """`product` with a kernel that may be held in few bits, and with its adapter, if there is one.

    Args:
      x: activations.
      kernel: [*in, *out].
      adapter: as above; None multiplies by the kernel alone.
      dropout_key: decides which entries of x the adapter does not see; None means that it sees all.
      weight: what the kernel is.
      config: provides dtype, rules, matmul, and the adapter's numbers.
      out_dtype: as of `product`.
    """
    axes, n_in = weight.axes_in + weight.axes_out, len(weight.axes_in)
    x = x.astype(config.dtype)
    run = lambda x, kernel: product(x, kernel, axes, n_in, config, out_dtype=out_dtype)
    if isinstance(kernel, Blockwise):
        # The backward pass dequantises again: it would otherwise keep all kernels in the dtype of the computation.
        run = jax.checkpoint(run, prevent_cse=not config.scan)
    y = run(x, kernel)
    if weight.forward != 1:
        y *= weight.forward
    if adapter is None:
        return y
    plain = dataclasses.replace(config, matmul='default')
    a, b = adapter['a'].astype(config.dtype), adapter['b'].astype(config.dtype)
    if dropout_key is not None:
        x = _drop(x, config.adapter.dropout, dropout_key)
    narrow = product(x, a, (*axes[:n_in], RANK), n_in, plain)
    y += config.adapter.scale * product(narrow, b, (RANK, *axes[n_in:]), 1, plain, out_dtype=out_dtype)
    if 'magnitude' not in adapter:
        return y
    norms = jax.lax.stop_gradient(output_norms(_changed(kernel, adapter, weight, config), n_in))
    norms = mesh.shard(norms, config.rules, activation_axes(axes[n_in:]))
    return y * (adapter['magnitude'] / norms).astype(y.dtype)


def add_rows(x_BLD: jax.Array, ids_BL: jax.Array, adapter: Adapter | None, config: Model) -> jax.Array:
    """The rows of a table, dtype[B, L, D], with what its adapter adds to those of these ids."""
    if adapter is None:
        return x_BLD
    a_VR, b_RD = adapter['a'].astype(config.dtype), adapter['b'].astype(config.dtype)
    rows_BLR = a_VR.at[ids_BL].get(out_sharding=mesh.spec(config.rules, (*mesh.TOKENS, None)))
    plain = dataclasses.replace(config, matmul='default')
    return x_BLD + config.adapter.scale * product(rows_BLR, b_RD, (RANK, 'd_model'), 1, plain)


def output_norms(kernel: jax.Array, n_in: int) -> jax.Array:
    """Norm of all inputs of each output, [*out]."""
    return jnp.sqrt(jnp.sum(jnp.square(kernel), tuple(range(n_in))))


def merge(kernel: Kernel, adapter: Adapter | None, weight: Weight, config: Model) -> Kernel:
    """The kernel or table that does what this one does with its adapter, float32; without one, itself."""
    if adapter is None:
        return kernel
    merged = _changed(kernel, adapter, weight, config)
    if 'magnitude' in adapter:
        scale = mesh.shard(adapter['magnitude'], config.rules, weight.axes_out)
        merged *= scale / output_norms(merged, len(weight.axes_in))
    return merged / _factor(weight)


def _changed(kernel: Kernel, adapter: Adapter, weight: Weight, config: Model) -> jax.Array:
    """W + s A B, without the magnitude; W is what is multiplied by, muP's factor included."""
    contract = (((adapter['a'].ndim - 1,), (0,)), ((), ()))
    spec = mesh.spec(config.rules, weight.axes_in + weight.axes_out)
    change = jax.lax.dot_general(adapter['a'], adapter['b'], contract, precision='highest', out_sharding=spec)
    return _factor(weight) * kernel.astype(change.dtype) + config.adapter.scale * change


def _factor(weight: Weight) -> float:
    """Of a product; rows of a table are looked up as they are."""
    return 1.0 if weight.lookup else weight.forward


def _drop(x: jax.Array, rate: float, key: jax.Array) -> jax.Array:
    keep = jax.random.bernoulli(key, 1 - rate, x.shape)
    if not jax.sharding.get_abstract_mesh().empty:
        keep = jax.sharding.reshard(keep, jax.typeof(x).sharding.spec)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)
