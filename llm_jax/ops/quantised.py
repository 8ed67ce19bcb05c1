"""Weights as decoding reads them: their layout, in few bits or in float32, and the one place that multiplies by them.

A weight is stored as [outputs, inputs], in which every backend reads a narrow one fastest, and a CPU a wide one too:

  'int8'  int8 in -127 ... 127, a float32 scale for each output;
  'int4'  two numbers in a byte, and a float32 scale for each group of 32 inputs, after zeros up to a whole group. Byte
          j of a group's 16 has number j in its low and number j + 16 in its high half, both plus 8;
  'float32'  as it is, for the sake of the order.

Vectors of any other array (rows of an embedding, keys of a cache) are stored in the same way along their last
dimension.

Shapes: T tokens, I inputs, O outputs, G groups of inputs; a name that ends in a small i has the inputs of bytes.
"""

from collections.abc import Mapping
import functools
import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from llm_jax.config.parts import nearest
from llm_jax.config.schema import ConfigError
from llm_jax.dist import mesh
from llm_jax.init import Weight

KINDS = ('int8', 'int4')
_KIND_OF = {'int8': 'int8', 'uint8': 'int4', 'float32': 'float32'}
# Inputs that share a scale of 'int4', and the bytes that hold them.
GROUP, _BYTES = 32, 16
# A vector of zeros is scaled by something.
_TINY = 1e-30
# Outputs of 'int4' that a CPU unpacks at a time: few enough to stay in its cache.
_BLOCK = 32


@flax.struct.dataclass
class Quantised:
    """An array of vectors in few bits, in the place of the float array where it stands in a tree of parameters.

    Attributes:
      values: int8[..., O, I], or uint8[..., O, G · 16], or float32[..., O, I].
      scale: float32[..., O, 1], or [..., O, G]; None of float32.
      inputs: dimensions that I had; none for a cache, whose vectors are never padded.
      outputs: dimensions that O had, if the array was [..., *inputs, *outputs]; none if it was [..., O, I].
    """

    values: jax.Array
    scale: jax.Array | None
    inputs: tuple[int, ...] = flax.struct.field(pytree_node=False, default=())
    outputs: tuple[int, ...] = flax.struct.field(pytree_node=False, default=())

    @property
    def kind(self) -> str:
        return _KIND_OF[self.values.dtype.name]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def dtype(self) -> jnp.dtype:
        """Dtype of the numbers that it stands for."""
        return jnp.dtype(jnp.float32)

    def __getitem__(self, index: Any) -> 'Quantised':
        """Indexes leading dimensions, which values and scales have in common."""
        return jax.tree.map(lambda x: x[index], self)

    def transpose(self, *order: int) -> 'Quantised':
        return jax.tree.map(lambda x: x.transpose(*order), self)

    def swapaxes(self, a: int, b: int) -> 'Quantised':
        return jax.tree.map(lambda x: x.swapaxes(a, b), self)

    def __jax_array__(self) -> jax.Array:
        """Float array, for a part that computes with it in its own way."""
        return dequantise(self)


# --- To few bits and back --------------------------------------------------------------


def quantise(w: jax.Array, kind: str, *, n_in: int = 0, n_lead: int = 0) -> Quantised:
    """Rounds an array to few bits; sharded as it was, but inputs of 'int4' only where shards are whole groups.

    Args:
      w: [*lead, *inputs, *outputs], float.
      kind: 'int8', 'int4' or 'float32'.
      n_in: number of dimensions of the inputs; 0: w is [..., O, I] already.
      n_lead: number of leading dimensions, such as the layers of a stack.

    Raises:
      ConfigError: an unknown kind.
    """
    if kind not in (*KINDS, 'float32'):
        raise ConfigError(f'quantise = {kind!r} is not known{nearest(kind, KINDS)} Known: {", ".join(KINDS)}')
    spec = _spec(w)
    inputs, outputs = w.shape[-1:], ()
    if n_in:
        end = n_lead + n_in
        inputs, outputs = w.shape[n_lead:end], w.shape[end:]
        spec = spec and PartitionSpec(*spec[:n_lead], spec[n_lead], spec[end])
        w = _reshape(w, (*w.shape[:n_lead], math.prod(inputs), math.prod(outputs)), spec).swapaxes(-1, -2)
        spec = _spec(w)
    w = w.astype(jnp.float32)
    if kind == 'float32':
        return Quantised(w, None, inputs, outputs)
    if kind == 'int8':
        return Quantised(*_round(w), inputs, outputs)
    if spec and w.shape[-1] % (GROUP * _shards(spec[-1])):
        spec = PartitionSpec(*spec[:-1], None)
        w = jax.sharding.reshard(w, spec)
    w = jnp.pad(w, (*[(0, 0)] * (w.ndim - 1), (0, -w.shape[-1] % GROUP)))
    grouped = _reshape(w, (*w.shape[:-1], -1, GROUP), spec and PartitionSpec(*spec, None))
    # The number that is furthest from 0 becomes -8, of which there is no positive.
    low, high = grouped.min(-1, keepdims=True), grouped.max(-1, keepdims=True)
    furthest = jnp.where(-low > high, low, high)
    scale = jnp.where(jnp.abs(furthest) < _TINY, _TINY, furthest) / -8
    digits = (jnp.clip(jnp.round(grouped / scale), -8, 7) + 8).astype(jnp.uint8)
    packed = digits[..., :_BYTES] | digits[..., _BYTES:] << 4
    return Quantised(_reshape(packed, (*w.shape[:-1], -1), spec), scale[..., 0], inputs, outputs)


def narrow_zeros(zeros: jax.Array) -> Quantised:
    """Makes an empty cache in int8 of one [..., K] in float, sharded likewise."""
    scale = jnp.zeros_like(zeros[..., :1], jnp.float32)
    return Quantised(jnp.zeros_like(zeros, jnp.int8), scale, zeros.shape[-1:])


def dequantise(q: Quantised) -> jax.Array:
    """Returns the float32 array that `q` stands for, in the shape of the one that it was made of."""
    w, spec = _dequantise_vectors(q), _spec(q.values)
    if not q.outputs:
        return w
    spec = spec and PartitionSpec(
        *spec[:-2], _spec(w)[-1], *[None] * (len(q.inputs) - 1), spec[-2], *[None] * (len(q.outputs) - 1)
    )
    return _reshape(w.swapaxes(-1, -2), (*w.shape[:-2], *q.inputs, *q.outputs), spec)


def quantise_params(params: Any, weights: Any, kind: str) -> Any:
    """Quantises the matrices of a model, the embedding and the head; norms, biases and routers stay as they are.

    Args:
      params: nested dict.
      weights: of `transformer.weights_of`; says which arrays are matrices.
      kind: 'int8' or 'int4'; or 'float32', which leaves those in few bits as they are.

    Raises:
      ConfigError: an unknown kind, or weights that are quantised in another way.
    """
    if isinstance(weights, Weight):
        if isinstance(params, Quantised):
            if kind not in (params.kind, 'float32'):
                raise ConfigError(f'quantise = {kind!r}: the weights are {params.kind} already; take those in float32')
            return params
        axes = {*weights.axes_in, *weights.axes_out}
        if 'vocab' not in axes and not weights.is_matrix:
            return params
        n_in = 0 if weights.lookup else len(weights.axes_in)
        return quantise(params, kind, n_in=n_in, n_lead=params.ndim - len(weights.axes_in) - len(weights.axes_out))
    if not isinstance(params, Mapping):
        return params
    return {name: quantise_params(value, (weights or {}).get(name), kind) for name, value in params.items()}


def dequantise_params(params: Any) -> Any:
    """Returns a tree of parameters with quantised arrays as the floats that they stand for."""
    is_narrow = lambda x: isinstance(x, Quantised)
    return jax.tree.map(lambda x: dequantise(x) if is_narrow(x) else x, params, is_leaf=is_narrow)


def cast(tree: Any, dtype: str, gathered: tuple[str, ...] = ()) -> Any:
    """Casts the float arrays of a tree; quantised ones are gathered over some mesh axes instead."""

    def cast_one(x: Any) -> Any:
        if not isinstance(x, Quantised):
            return x.astype(dtype)
        rest = lambda entry: mesh.spec_entry(tuple(axis for axis in mesh.mesh_axes(entry) if axis not in gathered))
        whole = lambda x: jax.sharding.reshard(x, PartitionSpec(*map(rest, _spec(x))))
        return jax.tree.map(whole, x) if gathered else x

    return jax.tree.map(cast_one, tree, is_leaf=lambda x: isinstance(x, Quantised))


def gather(x: jax.Array | Quantised, axes: tuple[str, ...], dim: int) -> jax.Array | Quantised:
    """All-gathers a dimension within `shard_map`; quantised arrays are whole, by `cast`."""
    return x if isinstance(x, Quantised) else jax.lax.all_gather(x, axes, axis=dim, tiled=True)


def _round(x: jax.Array, summed: tuple[str, ...] = ()) -> tuple[jax.Array, jax.Array]:
    """Returns each vector / scale, rounded to int8 in -127 ... 127, and the scales [..., 1]."""
    largest = jnp.abs(x).max(-1, keepdims=True)
    largest = jax.lax.pmax(largest, summed) if summed else largest
    scale = jnp.maximum(largest, _TINY) / 127
    return jnp.round(x / scale).astype(jnp.int8), scale


def _halves(values: jax.Array, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """Returns the numbers in the low and in the high halves of the bytes."""
    return (values & 15).astype(dtype) - 8, (values >> 4).astype(dtype) - 8


def _dequantise_vectors(q: Quantised) -> jax.Array:
    """float32[..., O, I]."""
    if q.kind == 'float32':
        return q.values
    if q.kind == 'int8':
        return q.values.astype(jnp.float32) * q.scale
    spec = _spec(q.values)
    grouped = _reshape(q.values, (*q.scale.shape, _BYTES), spec and PartitionSpec(*spec, None))
    w = jnp.concatenate(_halves(grouped, jnp.float32), -1) * q.scale[..., None]
    w = _reshape(w, (*q.scale.shape[:-1], -1), spec)
    n_inputs = math.prod(q.inputs)
    return w[..., :n_inputs] if w.shape[-1] > n_inputs else w


# --- Products --------------------------------------------------------------------------


@flax.struct.dataclass
class Rows:
    """Activations as a product with quantised weights takes them.

    Attributes:
      x_TI: int8, or float.
      scale_T1: float32, of the integers; None for floats.
    """

    x_TI: jax.Array
    scale_T1: jax.Array | None


def multiply(
    x_TI: jax.Array, q: Quantised, *, out_dtype: str = '', out_sharding: PartitionSpec | None = None
) -> jax.Array:
    """x · w, [T, O]; the result is summed in int32 or float32.

    Args:
      x_TI: activations, float.
      q: a weight [O, I].
      out_dtype: of the result; empty means that of x.
      out_sharding: of the result, on the current mesh.
    """
    return multiply_rows(encode_rows(x_TI, q), q, out_sharding).astype(out_dtype or x_TI.dtype)


def encode_rows(x_TI: jax.Array, q: Quantised, summed: tuple[str, ...] = ()) -> Rows:
    """Makes the left operand of `multiply_rows`.

    XLA's CPU backend copies a narrow weight to a wide one, at every execution, unless both operands are int8 and
    there are two rows at least. So there each token is rounded to int8 with a scale of its own. Elsewhere the units
    of multiplication take bfloat16, and the weight is cast on its way into them.

    Args:
      x_TI: activations.
      q: weight that they are to be multiplied by.
      summed: within `shard_map`, mesh axes over which the inputs are split.
    """
    if q.kind == 'float32':
        return Rows(x_TI.astype(jnp.float32), None)
    n_inputs = math.prod(q.inputs)
    if summed and x_TI.shape[-1] < n_inputs <= q.scale.shape[-1] * GROUP and q.kind == 'int4':
        # A weight whose groups could not be split has all inputs: those of other devices are 0 here.
        start = jax.lax.axis_index(summed) * x_TI.shape[-1]
        zeros = mesh.mark_varying(jnp.zeros((len(x_TI), n_inputs), x_TI.dtype), mesh.varying_axes(x_TI))
        x_TI = jax.lax.dynamic_update_slice_in_dim(zeros, x_TI, start, 1)
    if mesh.platform() != 'cpu':
        return Rows(x_TI.astype(jnp.bfloat16), None)
    if q.kind == 'int4':
        return Rows(x_TI.astype(jnp.float32), None)
    return Rows(*_round(x_TI.astype(jnp.float32), summed))


def multiply_rows(rows: Rows, q: Quantised, out_sharding: PartitionSpec | None = None) -> jax.Array:
    """Returns x · w, float32[T, O]."""
    if q.kind == 'float32':
        return _multiply_columns(rows.x_TI, q.values, out_sharding)
    if q.kind == 'int4':
        if mesh.platform() == 'cpu' and _spec(q.values) is None:
            return _multiply_blocks(rows.x_TI, q)
        scale_Oi = jnp.repeat(q.scale, _BYTES, axis=1, out_sharding=_spec(q.values)).astype(rows.x_TI.dtype)
        return sum(
            _contract(x_Ti, half_Oi * scale_Oi, jnp.float32, out_sharding)
            for x_Ti, half_Oi in zip(_split_inputs(rows.x_TI, q), _halves(q.values, rows.x_TI.dtype), strict=True)
        )
    if rows.scale_T1 is None:
        y_TO = _contract(rows.x_TI, q.values.astype(rows.x_TI.dtype), jnp.float32, out_sharding)
        scale_T1 = 1.0
    else:
        y_TO = _contract(_two_rows(rows.x_TI), q.values, jnp.int32, out_sharding)[: len(rows.x_TI)].astype(jnp.float32)
        scale_T1 = rows.scale_T1
    scale_1O = q.scale.T
    if out_sharding is not None:  # a weight's outputs may be split over more than those of the result
        scale_1O = jax.sharding.reshard(scale_1O, PartitionSpec(None, out_sharding[1]))
        if rows.scale_T1 is not None:
            scale_T1 = jax.sharding.reshard(scale_T1, PartitionSpec(out_sharding[0], None))
    return y_TO * scale_T1 * scale_1O


def multiply_heads(equation: str, x_BLHX: jax.Array, q: Quantised, out_sharding: PartitionSpec | None) -> jax.Array:
    """Product by head with a weight [R, H, K], as 'BLHK,RHK->BLHR' or 'BLHR,RHK->BLHK'; float32.

    Args:
      equation: as above.
      x_BLHX: activations.
      q: the weight, stored as [H · K, R].
      out_sharding: of the result, on the current mesh.
    """
    left, right, output = equation.replace('->', ',').split(',')
    sums_outputs = left[-1] != right[0]  # K is contracted, which the scales belong to
    if q.kind != 'int8':
        # Without the barrier XLA would unpack the weight before a loop over tokens, and keep it.
        x_BLHX, q = jax.lax.optimization_barrier((x_BLHX, q))
        w = _dequantise_vectors(q)
        q = Quantised(w, jnp.ones_like(w[:, :1]), q.inputs, q.outputs)
    heads = out_sharding and out_sharding[2]

    def by_head(x: jax.Array) -> jax.Array:
        if out_sharding is None:
            return x.reshape(*q.outputs, -1)
        return _reshape(
            jax.sharding.reshard(x, PartitionSpec(heads, None)),
            (*q.outputs, x.shape[-1]),
            PartitionSpec(heads, None, None),
        )

    w_HKR, scale_HK = by_head(q.values), by_head(q.scale)[..., 0]
    x_BLHX = x_BLHX.astype(jnp.float32) * scale_HK if sums_outputs else x_BLHX
    y_BLHX = _multiply_grouped(f'{left},{right[1:]}{right[0]}->{output}', x_BLHX, w_HKR, out_sharding)
    return y_BLHX if sums_outputs else y_BLHX * scale_HK


def _multiply_grouped(
    equation: str, x: jax.Array, values: jax.Array, out_sharding: PartitionSpec | None = None
) -> jax.Array:
    """Batched product of activations and unscaled values, float32; the last dimension of x is contracted."""
    product = functools.partial(jnp.einsum, equation, out_sharding=out_sharding)
    if mesh.platform() != 'cpu':
        narrow = jnp.bfloat16
        return product(x.astype(narrow), values.astype(narrow), preferred_element_type=jnp.float32)
    if values.dtype != jnp.int8:
        return product(x.astype(jnp.float32), values)
    x, scale = _round(x.astype(jnp.float32))
    return product(x, values, preferred_element_type=jnp.int32).astype(jnp.float32) * scale


def multiply_vectors(x_BGxk: jax.Array, q_BGsk: Quantised, *, sums_width: bool) -> jax.Array:
    """Product with the keys or values of a cache, float32; their scales leave it, so that no float of them is stored.

    Args:
      x_BGxk: queries [B, G, x, K], or weights [B, G, x, S].
      q_BGsk: int8 vectors [B, G, S, K].
      sums_width: whether K is contracted, [B, G, x, S]; otherwise S is, [B, G, x, K].
    """
    scale_BG1s = q_BGsk.scale.swapaxes(-1, -2)
    n, x_BGxk = x_BGxk.shape[2], x_BGxk.astype(jnp.float32)
    if n == 1 and mesh.platform() == 'cpu':  # as in `encode_rows`: a second row, or the cache is copied
        x_BGxk = jnp.pad(x_BGxk, ((0, 0), (0, 0), (0, 1), (0, 0)))
    if sums_width:
        return (_multiply_grouped('bgxk,bgsk->bgxs', x_BGxk, q_BGsk.values) * scale_BG1s)[:, :, :n]
    # Weights of a softmax are too uneven for integers: they meet floats here.
    values = q_BGsk.values.astype(jnp.float32)
    return _multiply_grouped('bgxs,bgsk->bgxk', x_BGxk * scale_BG1s, values)[:, :, :n]


def look_up(q: Quantised, ids: jax.Array, out_sharding: PartitionSpec | None) -> jax.Array:
    """Returns the vectors with these indices, float32[*ids, I]; their width is whole on each device."""
    return dequantise(jax.tree.map(lambda table: table.at[ids].get(out_sharding=out_sharding), q))


def _two_rows(x_TI: jax.Array) -> jax.Array:
    """Appends a row of zeros to a single one."""
    return jnp.pad(x_TI, ((0, 1), (0, 0))) if len(x_TI) == 1 else x_TI


def _multiply_blocks(x_TI: jax.Array, q: Quantised) -> jax.Array:
    """Product with an 'int4' weight that is unpacked a few outputs at a time, and never stored."""
    n_outputs, n = len(q.values), min(_BLOCK, len(q.values))
    halves = _split_inputs(x_TI, q)

    def add_block(i: jax.Array, y_TO: jax.Array) -> jax.Array:
        start = jnp.minimum(i * n, n_outputs - n)  # the last block may overlap the one before
        cut = lambda x: jax.lax.dynamic_slice_in_dim(x, start, n, 0)
        values_ni, scale_ni = cut(q.values), jnp.repeat(cut(q.scale), _BYTES, axis=1)
        weights = [half_ni * scale_ni for half_ni in _halves(values_ni, jnp.float32)]
        y_Tn = sum(_contract(x, w, jnp.float32) for x, w in zip(halves, weights, strict=True))
        return jax.lax.dynamic_update_slice_in_dim(y_TO, y_Tn, start, 1)

    axes = mesh.varying_axes(x_TI) | mesh.varying_axes(q.values)
    y_TO = mesh.mark_varying(jnp.zeros((len(x_TI), n_outputs)), axes)
    return jax.lax.fori_loop(0, -(-n_outputs // n), add_block, y_TO)


def _split_inputs(x_TI: jax.Array, q: Quantised) -> tuple[jax.Array, jax.Array]:
    """Splits activations into the inputs of the low halves of bytes and those of the high ones, [T, G · 16] each."""
    spec, T, G = _spec(x_TI), len(x_TI), q.scale.shape[-1]
    if spec and x_TI.shape[-1] % (GROUP * _shards(spec[1])):
        spec = PartitionSpec(spec[0], None)
        x_TI = jax.sharding.reshard(x_TI, spec)
    x_TI = jnp.pad(x_TI, ((0, 0), (0, GROUP * G - x_TI.shape[-1])))
    x_TGI = _reshape(x_TI, (T, G, GROUP), spec and PartitionSpec(*spec, None))
    return tuple(_reshape(half, (T, G * _BYTES), spec) for half in (x_TGI[..., :_BYTES], x_TGI[..., _BYTES:]))


def _multiply_columns(x_TI: jax.Array, w_OI: jax.Array, out_sharding: PartitionSpec | None) -> jax.Array:
    """Returns x · w as (w · xᵀ)ᵀ, [T, O].

    XLA's CPU backend then reads the weight once for all tokens: at 2 to 64 of them it takes half as long as x · wᵀ.
    Left to itself, it would move the transposes into the product, and gather the operands entry by entry.
    """
    turned = out_sharding and PartitionSpec(out_sharding[1], out_sharding[0])
    x_IT = jax.lax.optimization_barrier(x_TI.T)
    y_OT = jax.lax.dot_general(w_OI, x_IT, (((1,), (0,)), ((), ())), out_sharding=turned)
    return jax.lax.optimization_barrier(y_OT).T


def _contract(x_TI: jax.Array, w_OI: jax.Array, dtype: Any, out_sharding: PartitionSpec | None = None) -> jax.Array:
    dimensions = (((1,), (1,)), ((), ()))
    return jax.lax.dot_general(x_TI, w_OI, dimensions, preferred_element_type=dtype, out_sharding=out_sharding)


# --- Shardings -------------------------------------------------------------------------


def _spec(x: jax.Array) -> PartitionSpec | None:
    """Sharding of an array on the current mesh; None without a mesh, and within `shard_map`."""
    current = jax.sharding.get_abstract_mesh()
    if current.empty or current.are_all_axes_manual:
        return None
    return jax.typeof(x).sharding.spec


def _reshape(x: jax.Array, shape: tuple[int, ...], spec: PartitionSpec | None) -> jax.Array:
    return jnp.reshape(x, shape, out_sharding=spec)


def _shards(entry: Any) -> int:
    sizes = dict(jax.sharding.get_abstract_mesh().shape)
    return math.prod(sizes[axis] for axis in mesh.mesh_axes(entry))
