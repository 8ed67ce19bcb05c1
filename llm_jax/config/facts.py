"""Facts of parts: methods of a part's class that the rest of the library asks, each with its default.

A part overrides those that differ. A class of a user's own need not inherit from these:
`parts.attention(config)` and the like give every fact that it lacks its default. All are
functions of the layer's config alone, called on the class, and import no JAX.
"""

from collections.abc import Callable
import dataclasses
from typing import TYPE_CHECKING, Any

from llm_jax.config.errors import ConfigError

if TYPE_CHECKING:
    from llm_jax.config.schema import Model

# (config field, size, logical axis) of an array's dimension: it has to divide by the devices that split the axis.
Dimension = tuple[str, int, str]


@dataclasses.dataclass(frozen=True)
class HeadDims:
    """Widths of one attention head.

    Attributes:
      key: width of queries and keys.
      value: width of values.
      rotary: width of the part of queries and keys that rotary positions turn.
    """

    key: int
    value: int
    rotary: int


class AttentionFacts:
    """Facts of an attention part. `empty_cache(config, rows, slots)` is one, too: without it there is no decoding."""

    @staticmethod
    def kv_heads(config: 'Model') -> int:
        """Key/value heads G."""
        return config.n_kv_heads or config.n_heads

    @staticmethod
    def head_dims(config: 'Model') -> HeadDims:
        """Widths of a head; they size the rotation, the kernel's choice and the count of FLOPs."""
        return HeadDims(config.head_size, config.head_size, int(config.head_size * config.rope.fraction))

    @classmethod
    def attention_products(cls, config: 'Model', length: int) -> float:
        """Multiplications of one token with `length` others: the scores, and the mixture of values."""
        dims = cls.head_dims(config)
        return config.n_heads * (dims.key + dims.value) * (min(config.window, length) if config.window else length)

    @classmethod
    def dimensions(cls, config: 'Model') -> list[Dimension]:
        """Dimensions of its arrays that a mesh may split."""
        heads = ('model.n_heads', config.n_heads, 'heads')
        return [heads, ('model.n_kv_heads', cls.kv_heads(config), 'kv_heads')]

    @classmethod
    def check(cls, config: 'Model') -> None:
        """Raises: ConfigError: the layer's config cannot work."""
        groups = cls.kv_heads(config)
        require(config.d_head or config.d_model % config.n_heads == 0, 'model.n_heads', config.n_heads,
                f'it must divide model.d_model = {config.d_model}, or set model.d_head')  # fmt: skip
        require(config.n_heads % groups == 0, 'model.n_kv_heads', groups,
                f'it must divide model.n_heads = {config.n_heads}')  # fmt: skip


class FeedForwardFacts:
    """Facts of a feed-forward part."""

    @classmethod
    def is_gated(cls, config: 'Model') -> bool:
        """True if a second projection gates the first: three matrices, so F is 8/3 D by default and not 4 D."""
        return False

    @staticmethod
    def is_mixture(config: 'Model') -> bool:
        """True if `model.moe` describes it: experts that tokens go to, and routers that report."""
        return False

    @staticmethod
    def hidden_units(config: 'Model') -> int:
        """Hidden units that one token meets."""
        return config.ff_size

    @staticmethod
    def dimensions(config: 'Model') -> list[Dimension]:
        """Dimensions of its arrays that a mesh may split."""
        return [('model.d_ff', config.ff_size, 'd_ff')]

    @staticmethod
    def check(config: 'Model') -> None:
        """Raises: ConfigError: the layer's config cannot work."""


class PositionFacts:
    """Facts of a position part."""

    @staticmethod
    def rotates(config: 'Model') -> bool:
        """True if `model.rope` describes it."""
        return False

    @staticmethod
    def has_table(config: 'Model') -> bool:
        """True if it has parameters for each of max_seq_len positions, so that the context cannot change."""
        return False

    @staticmethod
    def slopes(config: 'Model', n_heads: int) -> Any:
        """Amount that each head takes off a score per token of distance, float32[n_heads]; None for nothing."""
        return None

    @staticmethod
    def check(config: 'Model', dims: HeadDims) -> None:
        """Raises: ConfigError: the layer's config, with heads of these widths, cannot work."""


class BlockFacts:
    """Facts of a residual part."""

    @staticmethod
    def check(config: 'Model') -> None:
        """Raises: ConfigError: the layer's config cannot work."""


class WithDefaults:
    """A part that lacks some facts of its kind: what it has not is the default.

    Attributes:
      part: class or other callable.
      facts: the class above of its kind.
    """

    def __init__(self, part: Callable, facts: type):
        self.part = part
        # Defaults that ask for other facts must see those of the part.
        own = {name: _static(part, name) for name in dir(facts) if not name.startswith('_') and hasattr(part, name)}
        self._facts = type(facts.__name__, (facts,), own)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.part(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._facts, name) if hasattr(self._facts, name) else getattr(self.part, name)


def _static(part: Callable, name: str) -> Any:
    """A fact of the part as an attribute of another class: functions bind to nothing there."""
    value = getattr(part, name)
    return staticmethod(value) if callable(value) else value


def require(condition: Any, field: str, value: Any, fix: str) -> None:
    """Raises: ConfigError: the condition does not hold; with the field, its value and what would be right."""
    if not condition:
        raise ConfigError(f'{field} = {value!r}: {fix}')
