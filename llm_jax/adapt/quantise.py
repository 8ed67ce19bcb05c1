"""The frozen base of adapters in few bits (QLoRA, arXiv:2305.14314)."""

from typing import Any

from flax import traverse_util
import jax
import jax.numpy as jnp

from llm_jax.config.schema import ConfigError
from llm_jax.nn.transformer import Transformer, weights_of
from llm_jax.ops.blockwise import quantise


def hold_base(model: Transformer, params: Any) -> Any:
    """Parameters whose matrices within the layers are held as `model.adapter.base` says; nothing else is changed.

    Embedding, head, routers, norms and biases stay float32. Jit it, with the parameters donated.

    Args:
      model: its config says how.
      params: of the base, without adapters.

    Raises:
      ConfigError: a matrix with no dimension that is a multiple of the block.
    """
    adapter = model.config.adapter
    if adapter.base == 'float32':
        return params
    flat, weights = (traverse_util.flatten_dict(tree, sep='/') for tree in (params, weights_of(model)))
    for path, weight in weights.items():
        if not weight.is_matrix or path.startswith(('embed/', 'unembed/')):
            continue
        if adapter.base == 'bfloat16':
            flat[path] = flat[path].astype(jnp.bfloat16)
            continue
        kernel = flat[path]
        first = kernel.ndim - len(weight.axes_in + weight.axes_out)
        axis = block_axis(path, kernel, first, len(weight.axes_in), adapter.block)
        options = {'axis': axis, 'block': adapter.block, 'double': adapter.double_quantise}
        flat[path] = quantise(kernel, adapter.base, **options)
    return traverse_util.unflatten_dict(flat, sep='/')


def block_axis(path: str, kernel: jax.Array, first: int, n_in: int, block: int) -> int:
    """The dimension along which a kernel is cut into blocks: the last of its inputs that is a multiple of the block.

    Args:
      path: of the kernel, for the message.
      kernel: [layers or experts ..., *in, *out].
      first: index of its first input.
      n_in: its inputs.
      block: entries of a block.

    Raises:
      ConfigError: neither an input nor an output is.
    """
    inputs, outputs = range(first, first + n_in), range(first + n_in, kernel.ndim)
    for axis in (*reversed(inputs), *outputs):
        if kernel.shape[axis] % block == 0:
            return axis
    raise ConfigError(
        f'model.adapter.block = {block}: {path}, {list(kernel.shape[first:])}, has no dimension that is a multiple of '
        'it; take a smaller one, or model.adapter.base = "bfloat16"'
    )
