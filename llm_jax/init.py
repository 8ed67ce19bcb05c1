"""Initialisation: how large each weight starts, from what the weight is; and muP, from the same.

Every weight says what it is in a `Weight`, made of its einsum's axis names. From that
follow its class under maximal update parametrisation (muP; Yang et al. 2022, "Tensor
Programs V", arXiv:2203.03466), and so its variance, its learning rate, its multiplier.
"""

from collections.abc import Callable
import dataclasses
import math
from typing import Any

import jax

from llm_jax.config import parts
from llm_jax.config.schema import Model

# Logical axes that grow with the width of the model. All grow as d_model does, but heads:
# model.mup.base_head tells whether their width or their number does.
WIDTHS = ('d_model', 'residual', 'heads', 'kv_heads', 'd_head', 'd_ff', 'latent', 'rank')


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Weight:
    """Facts of a parameter; a pytree without leaves, so that it passes through `jit` and `scan`.

    Attributes:
      axes_in: logical axes that are summed over; none for a vector (a bias, the scale of a norm).
      axes_out: logical axes of the result.
      fan_in: how many inputs each output sums.
      fan_out: how many outputs there are.
      writes_residual: whether its output is added to the residual stream.
      lookup: whether its rows are looked up and not multiplied.
      active_fraction: of the tokens that are multiplied by it: top_k / n_experts for an expert's.
      trained: whether gradients change it.
      fixed: axes among WIDTHS that nevertheless stay the same in a wider model.
      grow_in: fan_in over that at the base width; 1 without muP.
      grow_out: the same for fan_out.
      dtype: of the product that it is an operand of.
    """

    axes_in: tuple[str, ...]
    axes_out: tuple[str, ...]
    fan_in: int
    fan_out: int
    writes_residual: bool = False
    lookup: bool = False
    active_fraction: float = 1.0
    trained: bool = True
    fixed: tuple[str, ...] = ()
    grow_in: float = 1.0
    grow_out: float = 1.0
    dtype: str = 'float32'

    @property
    def role(self) -> str:
        """'hidden' (width to width), 'readout' (width to a fixed size) or 'embedding' (from a fixed size; vectors)."""
        growing = set(WIDTHS) - set(self.fixed)
        if not growing & set(self.axes_in):
            return 'embedding'
        return 'hidden' if growing & set(self.axes_out) else 'readout'

    @property
    def decays(self) -> bool:
        """True if weight decay shrinks it: matrices and tables, which have inputs; not biases, scales and sinks."""
        return bool(self.axes_in)

    @property
    def is_matrix(self) -> bool:
        """True if it maps features to features: neither tokens, nor positions, nor experts are on one side of it."""
        return bool(set(WIDTHS) & set(self.axes_in) and set(WIDTHS) & set(self.axes_out))

    @property
    def learning_rate(self) -> float:
        """Factor of Adam's learning rate under muP (table 8 of the paper): 1/m for hidden matrices."""
        return 1 / self.grow_in if self.role == 'hidden' else 1.0

    @property
    def sgd_learning_rate(self) -> float:
        """Factor of the learning rate of plain gradients under muP (table 8 of the paper).

        Gradients with respect to activations shrink as 1/m, for the readout divides by m.
        A hidden matrix makes up for that itself: a change by δ xᵀ is read by a sum of m
        equal terms. Embeddings and vectors do not, and get m. The gradient of a readout
        has its 1/m, and its sum of m terms is divided by m again: m as well.
        """
        return {'hidden': self.grow_out / self.grow_in, 'readout': self.grow_in, 'embedding': self.grow_out}[self.role]

    @property
    def forward(self) -> float:
        """Factor of the product under muP: 1/m for readouts."""
        return 1 / self.grow_in if self.role == 'readout' else 1.0


def is_weight(node: Any) -> bool:
    """For `is_leaf`: a Weight is a pytree without leaves of its own."""
    return isinstance(node, Weight)


def describe(config: Model, shape: tuple[int, ...], axes: tuple[str, ...], n_in: int, **known) -> Weight:
    """The Weight of a parameter whose first `n_in` dimensions are summed over."""
    grow = lambda names: math.prod(_growth(config, name) for name in names)
    return Weight(
        axes_in=axes[:n_in],
        axes_out=axes[n_in:],
        fan_in=math.prod(shape[:n_in]),
        fan_out=math.prod(shape[n_in:]),
        grow_in=grow(axes[:n_in]),
        grow_out=grow(axes[n_in:]),
        fixed=tuple(axis for axis in axes if axis in WIDTHS and _stays(config, axis)),
        dtype=config.dtype,
        **known,
    )


def _growth(config: Model, axis: str) -> float:
    mup = config.mup
    if not mup.base_width or axis not in WIDTHS or _stays(config, axis):
        return 1.0
    head = config.head_size / mup.base_head if mup.base_head else 1.0
    width = config.d_model / mup.base_width
    return {'d_head': head, 'heads': width / head, 'kv_heads': width / head}.get(axis, width)


def _stays(config: Model, axis: str) -> bool:
    """Heads of a fixed width, and the one key/value head of multi-query attention."""
    return (axis == 'd_head' and not config.mup.base_head) or (axis == 'kv_heads' and config.kv_heads == 1)


def attention_scale(config: Model, width: int) -> float:
    """1/√K, or what `attention_scale` says; under muP with heads n times as wide as at the base, /√n or /n of that.

    The products of queries and keys that training has aligned grow as K and not as √K,
    so the scale has to fall as 1/K (Tensor Programs V, definition 4.1).
    """
    wider = _growth(config, 'd_head')
    return config.attention_scale / wider if config.attention_scale else (width * wider) ** -0.5


# --- Schemes ---------------------------------------------------------------------------
# A scheme knows nothing of muP: it sees the fans that the weight has at the base width.

Init = Callable[..., jax.Array]


def gpt2(config: Model, weight: Weight) -> Init:
    """Normal of `init_std`; what writes to the residual stream is scaled by 1/√(2·n_layers).

    The scaling keeps the variance of the residual stream independent of depth, since
    2·n_layers branches add to it (Radford et al. 2019, "Language Models are
    Unsupervised Multitask Learners", §2.3).
    """
    return _normal(config.init_std * _by_depth(config, weight))


def normal(config: Model, weight: Weight) -> Init:
    """Normal of `init_std`, whatever the weight."""
    return _normal(config.init_std)


def xavier(config: Model, weight: Weight) -> Init:
    """Variance 2 / (fan_in + fan_out) (Glorot & Bengio 2010), embeddings of `init_std`; scaled by depth as "gpt2"."""
    std = config.init_std if weight.lookup else (2 / (weight.fan_in + weight.fan_out)) ** 0.5
    return _normal(std * _by_depth(config, weight))


def lecun(config: Model, weight: Weight) -> Init:
    """Variance 1 / fan_in (LeCun et al. 1998), embeddings of `init_std`; scaled by depth as "gpt2"."""
    return _normal((config.init_std if weight.lookup else weight.fan_in**-0.5) * _by_depth(config, weight))


def orthogonal(config: Model, weight: Weight) -> Init:
    """Orthogonal rows or columns (Saxe et al. 2014, arXiv:1312.6120); scaled by depth as "gpt2"."""
    if weight.lookup:
        return _normal(config.init_std)
    n_dims = len(weight.axes_in) + len(weight.axes_out)

    def init(key, shape, dtype, out_sharding=None):
        lead, dims = shape[: len(shape) - n_dims], shape[len(shape) - n_dims :]
        rows = math.prod(dims[: len(weight.axes_in)])
        columns = math.prod(dims) // rows
        # Its entries are 1/√(longer side) by themselves: what muP makes of a scheme needs those of the base width.
        longer = max(rows, columns) / max(weight.fan_in, weight.fan_out)
        gain = _by_depth(config, weight) * longer**0.5
        draw = lambda k: jax.nn.initializers.orthogonal(gain)(k, (rows, columns), dtype)
        stack = jax.vmap(draw)(jax.random.split(key, math.prod(lead))).reshape(shape)
        return stack if out_sharding is None else jax.sharding.reshard(stack, out_sharding)

    return init


def zero_residual(config: Model, weight: Weight) -> Init:
    """As "gpt2", but what writes to the residual stream starts at 0: each block starts as the identity
    (Zhang et al. 2019, "Fixup", arXiv:1901.09321)."""
    return _normal(0.0 if weight.writes_residual else config.init_std)


def small_embedding(config: Model, weight: Weight) -> Init:
    """As "gpt2", but embeddings start at 1e-4, which a norm right after them takes to unit size (RWKV's SmallInit)."""
    return _normal(1e-4) if weight.lookup else gpt2(config, weight)


SCHEMES = {
    'gpt2': gpt2,
    'normal': normal,
    'xavier': xavier,
    'lecun': lecun,
    'orthogonal': orthogonal,
    'zero_residual': zero_residual,
    'small_embedding': small_embedding,
}


def initializer(config: Model, weight: Weight) -> Init:
    """`init(key, shape, dtype, out_sharding=...)` of the config's scheme for this weight."""
    base = dataclasses.replace(
        weight, fan_in=round(weight.fan_in / weight.grow_in), fan_out=round(weight.fan_out / weight.grow_out)
    )
    init, factor = parts.named(config, 'init')(config, base, **config.options.init), _mup_std(weight)
    return init if factor == 1.0 else lambda *args, **kwargs: init(*args, **kwargs) * factor


def _mup_std(weight: Weight) -> float:
    return weight.grow_in**-0.5 if weight.role == 'hidden' else 1.0


def _by_depth(config: Model, weight: Weight) -> float:
    return (2 * config.n_layers) ** -0.5 if weight.writes_residual else 1.0


def _normal(std: float) -> Init:
    return jax.nn.initializers.normal(std)
