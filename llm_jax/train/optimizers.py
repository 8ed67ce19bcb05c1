"""The update rules: what direction each parameter goes in, and how far at a learning rate of 1.

A rule is `(config, weights) -> optax transformation`; learning rate and weight decay
come after it, in `optimizer.py`. `weights` is a tree like that of the parameters, with
the `Weight` of each: from it a rule takes what is summed over (Muon, Adafactor), and
what the update has to be multiplied by for a learning rate to hold at every width
(muP; Yang et al. 2022, "Tensor Programs V", arXiv:2203.03466, table 8).
"""

from collections.abc import Callable
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import optax

from llm_jax.config import schema
from llm_jax.config.schema import ConfigError
from llm_jax.dist.mesh import mesh_axes
from llm_jax.init import Weight, is_weight

Rule = Callable[[schema.Optimizer, Any], optax.GradientTransformation]

# Of a quintic that takes every singular value in (0, 1] to about 1 when it is iterated;
# steeper at 0 than one that converges to 1 exactly (Jordan et al. 2024, "Muon").
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5
# The root mean square of what Adam's updates are in practice (Liu et al. 2025, arXiv:2502.16982, §2.2).
ADAM_RMS = 0.2


def adamw(config: schema.Optimizer, weights: Any) -> optax.GradientTransformation:
    """Adam (Kingma & Ba 2015, arXiv:1412.6980); decay is decoupled (Loshchilov & Hutter 2019, arXiv:1711.05101)."""
    rule = optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps, mu_dtype=config.mu_dtype)
    return scale_by_weight(rule, weights, lambda weight: weight.learning_rate)


def lion(config: schema.Optimizer, weights: Any) -> optax.GradientTransformation:
    """The sign of a momentum (Chen et al. 2023, arXiv:2302.06675). Entries of ±1 as Adam's: the same muP."""
    rule = optax.scale_by_lion(b1=config.b1, b2=config.b2, mu_dtype=config.mu_dtype)
    return scale_by_weight(rule, weights, lambda weight: weight.learning_rate)


def sgd(config: schema.Optimizer, weights: Any) -> optax.GradientTransformation:
    """Gradients, summed up with momentum (Sutskever et al. 2013)."""
    rule = optax.trace(config.momentum, nesterov=config.nesterov, accumulator_dtype=config.mu_dtype)
    return scale_by_weight(rule, weights, lambda weight: weight.sgd_learning_rate)


def adafactor(config: schema.Optimizer, weights: Any) -> optax.GradientTransformation:
    """Adam without a first moment, whose second moment is kept as one vector per side of a matrix.

    Shazeer & Stern 2018, arXiv:1804.04235, algorithm 4, but updates are not multiplied
    by the size of the parameter (as Zhai et al. 2022, arXiv:2106.04560, §3.4): so the
    learning rate is one of Adam's, and so is its table under muP. With that factor a
    hidden matrix would shrink its updates by √m on its own, for as long as its size is
    that of its initial values.
    """
    if config.mu_dtype != 'float32':
        raise ConfigError(
            f'optimizer.mu_dtype = {config.mu_dtype!r}: "adafactor" has no first moment; set it to "float32"'
        )
    return scale_by_weight(_scale_by_factored_moment(config.b2, weights), weights, lambda weight: weight.learning_rate)


def muon(config: schema.Optimizer, weights: Any) -> optax.GradientTransformation:
    """Matrices by orthogonalised momentum (Jordan et al. 2024, "Muon"), all else by Adam.

    All else is embeddings, the output head, routers, vectors and what a part of one's
    own makes without saying what it is. An orthogonalised matrix has entries of
    1/√(longer side). They are brought to the size of Adam's, so that both share one
    learning rate and one weight decay (Liu et al. 2025, arXiv:2502.16982, §2.2): 0.2
    √(longer side). That grows with the width, while what features feel of an update is
    its spectral norm; so under muP the longer side is that at the base width, and the
    spectral norm is the same at every width (Yang et al. 2023, arXiv:2310.17813).
    """

    def size(weight: Weight) -> float:
        return ADAM_RMS * max(weight.fan_in / weight.grow_in, weight.fan_out / weight.grow_out) ** 0.5

    matrices = keep_weights(weights, lambda weight: weight.is_matrix)
    others = keep_weights(weights, lambda weight: not weight.is_matrix)
    orthogonal = optax.chain(
        optax.trace(config.momentum, nesterov=config.nesterov, accumulator_dtype=config.mu_dtype),
        optax.stateless(lambda updates, _: jax.tree.map(orthogonalise, updates, matrices)),
    )
    return optax.partition(
        {'matrix': scale_by_weight(orthogonal, matrices, size), 'other': adamw(config, others)},
        jax.tree.map(lambda weight: 'matrix' if weight.is_matrix else 'other', weights, is_leaf=is_weight),
    )


RULES: dict[str, Rule] = {'adamw': adamw, 'lion': lion, 'adafactor': adafactor, 'sgd': sgd, 'muon': muon}


# --- What rules are made of ------------------------------------------------------------


def keep_weights(weights: Any, keep: Callable[[Weight], bool]) -> Any:
    """Replaces the weights that are not kept by optax's marker, as `optax.partition` passes a tree to its parts."""
    return jax.tree.map(lambda weight: weight if keep(weight) else optax.MaskedNode(), weights, is_leaf=is_weight)


def scale_by_weight(
    rule: optax.GradientTransformation, weights: Any, factor: Callable[[Weight], float]
) -> optax.GradientTransformation:
    """Multiplies a rule's updates by a factor of their weight; the same program where all factors are 1.

    A rule whose updates are of the size of Adam's is muP with `Weight.learning_rate` as
    the factor, one of plain gradients with `Weight.sgd_learning_rate`.

    Args:
      rule: gives the updates.
      weights: tree like the parameters', with the `Weight` of each, or optax's marker for none.
      factor: of a weight.
    """
    factors = [factor(weight) for weight in jax.tree.leaves(weights, is_leaf=is_weight)]
    if all(value == 1 for value in factors):
        return rule
    scale = lambda update, weight: update if factor(weight) == 1 else update * factor(weight)
    return optax.chain(rule, optax.stateless(lambda updates, _: jax.tree.map(scale, updates, weights)))


class FactoredState(NamedTuple):
    """Steps taken, and of each parameter the moments (rows, columns), or (all,) of a vector."""

    count: jax.Array
    moments: Any


def _scale_by_factored_moment(most: float, weights: Any) -> optax.GradientTransformation:
    """Gradients over the root of their second moment, which is kept as its means over either side.

    The decay of the moment rises as 1 - step^-0.8 up to `most`, which needs no
    correction for its start. An update whose root mean square is above 1 is scaled down
    to 1. Stacked layers and experts are matrices of their own.
    """

    def means(squares: jax.Array, weight: Weight) -> tuple[jax.Array, ...]:
        inputs, outputs = _sides(squares, weight)
        if not inputs:
            return (squares,)
        return jnp.mean(squares, outputs, keepdims=True), jnp.mean(squares, inputs, keepdims=True)

    def init(params: Any) -> FactoredState:
        moments = jax.tree.map(lambda p, weight: means(jnp.zeros_like(p), weight), params, weights)
        return FactoredState(jnp.zeros((), jnp.int32), moments)

    def one(grad: jax.Array, old: tuple, weight: Weight, decay: jax.Array) -> tuple[jax.Array, tuple]:
        inputs, outputs = _sides(grad, weight)
        new = means(jnp.square(grad) + 1e-30, weight)
        moments = tuple(decay * a + (1 - decay) * b for a, b in zip(old, new, strict=True))
        update = grad * jax.lax.rsqrt(moments[-1])
        if inputs:
            rows = moments[0]
            update *= jax.lax.rsqrt(rows / jnp.mean(rows, inputs, keepdims=True))
        size = jnp.sqrt(jnp.mean(jnp.square(update), inputs + outputs, keepdims=True))
        return update / jnp.maximum(1.0, size), moments

    def update(grads: Any, state: FactoredState, params: Any = None) -> tuple[Any, FactoredState]:
        count = optax.safe_increment(state.count)
        decay = jnp.minimum(most, 1 - count.astype(jnp.float32) ** -0.8)
        leaves, tree = jax.tree.flatten(grads)
        rest = (tree.flatten_up_to(state.moments), tree.flatten_up_to(weights))
        done = [one(grad, old, weight, decay) for grad, old, weight in zip(leaves, *rest, strict=True)]
        updates, moments = zip(*done, strict=True)
        return tree.unflatten(updates), FactoredState(count, tree.unflatten(moments))

    return optax.GradientTransformation(init, update)


def _sides(x: jax.Array, weight: Weight) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The dimensions that are summed over, and those of the result; stacks of layers or experts lead."""
    n_out, n = len(weight.axes_out), len(weight.axes_in) + len(weight.axes_out)
    return tuple(range(x.ndim - n, x.ndim - n_out)), tuple(range(x.ndim - n_out, x.ndim))


def orthogonalise(x: jax.Array, weight: Weight) -> jax.Array:
    """Takes the singular values of each matrix to about 1, by Newton-Schulz iterations in float32.

    On a mesh the longer side of a matrix is split over all devices that it lies on, so
    that each multiplies its part, and what is summed over devices is a square of the
    shorter side.

    Args:
      x: [..., in, out], either side of one or more dimensions; layers or experts lead.
      weight: which dimensions are which.

    Returns:
      the same shape, dtype and sharding; singular values within about 0.7 and 1.2.
    """
    inputs, outputs = _sides(x, weight)
    lead = x.shape[: inputs[0]]
    fans = [math.prod(x.shape[i] for i in side) for side in (inputs, outputs)]
    spec = _Spec(x, inputs[0], outputs[0])
    flat = jnp.reshape(spec.put(x, spec.whole), (*lead, *fans), out_sharding=spec.of(spec.rows, spec.columns))
    wide = fans[0] <= fans[1]
    flat = flat if wide else flat.mT
    # Contractions over the longer side, which is split, give whole squares.
    split, square = spec.of(None, spec.longer(*fans)), spec.of(None, None)
    y = spec.put(flat, split).astype(jnp.float32)
    y /= jnp.sqrt(jnp.sum(jnp.square(y), (-2, -1), keepdims=True)) + 1e-20
    a, b, c = NEWTON_SCHULZ
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = jnp.einsum('...rc,...sc->...rs', y, y, out_sharding=square)
        gram = b * gram + c * jnp.einsum('...rs,...st->...rt', gram, gram, out_sharding=square)
        y = a * y + jnp.einsum('...rs,...sc->...rc', gram, y, out_sharding=split)
    y = y if wide else y.mT
    y = spec.put(y.astype(x.dtype), spec.of(spec.rows, spec.columns))
    return spec.put(jnp.reshape(y, x.shape, out_sharding=spec.whole), spec.own)


class _Spec:
    """How a stack of matrices lies on the current mesh; nothing at all without one.

    Attributes:
      own: of the array as it comes.
      whole: the same with only the first dimension of either side split, so that each
        side can be made one dimension where it lies.
      rows, columns: mesh axes of those first dimensions.
    """

    def __init__(self, x: jax.Array, row: int, column: int) -> None:
        self.mesh = jax.sharding.get_abstract_mesh()
        entries = (None,) * x.ndim if self.mesh.empty else tuple(jax.typeof(x).sharding.spec)
        self.lead, self.rows, self.columns = entries[:row], entries[row], entries[column]
        kept = [entry if i <= row or i == column else None for i, entry in enumerate(entries)]
        self.own, self.whole = self._named(entries), self._named(kept)

    def _named(self, entries: Any) -> P | None:
        return None if self.mesh.empty else P(*entries)

    def of(self, rows: Any, columns: Any) -> P | None:
        """Of a stack of matrices with these sides."""
        return self._named((*self.lead, rows, columns))

    def longer(self, fan_in: int, fan_out: int) -> Any:
        """Mesh axes for the longer side: its own, and those of the shorter one if that comes out even."""
        wide = fan_in <= fan_out
        own, other = (mesh_axes(e) for e in ((self.columns, self.rows) if wide else (self.rows, self.columns)))
        n = math.prod(dict(self.mesh.shape)[axis] for axis in own + other)
        return own + other if max(fan_in, fan_out) % n == 0 else own

    def put(self, x: jax.Array, spec: P | None) -> jax.Array:
        """x laid out like this."""
        return x if spec is None else jax.sharding.reshard(x, spec)
