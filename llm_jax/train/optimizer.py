"""The optimizer of a run: the learning rate over time, and the chain from gradients to updates."""

from collections.abc import Callable
from contextlib import nullcontext
import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from llm_jax.config import parts, schema
from llm_jax.config.facts import require
from llm_jax.config.schema import ConfigError
from llm_jax.init import Weight, is_weight
from llm_jax.train import offload

Schedule = Callable[[jax.Array | int], jax.Array]


# --- Learning rate ---------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Span:
    """What a schedule is drawn over, in steps."""

    total: int
    warmup: int
    decay: int
    floor: float  # final value as a fraction of the peak


def constant(progress: jax.Array, span: Span) -> jax.Array:
    """1 throughout."""
    return jnp.ones_like(progress)


def linear(progress: jax.Array, span: Span) -> jax.Array:
    """A straight line from 1 to the floor."""
    return 1 - (1 - span.floor) * progress


def cosine(progress: jax.Array, span: Span) -> jax.Array:
    """Half a cosine from 1 to the floor (Loshchilov & Hutter 2017, arXiv:1608.03983)."""
    return span.floor + (1 - span.floor) * 0.5 * (1 + jnp.cos(jnp.pi * progress))


def wsd(progress: jax.Array, span: Span) -> jax.Array:
    """Stable, then linear over the last `decay` steps (Hu et al. 2024, "MiniCPM", arXiv:2404.06395)."""
    require(span.decay, 'schedule.decay', span.decay, '"wsd" falls over it; "constant" is without a fall')
    fall = span.decay / max(1, span.total - span.warmup)
    return 1 - (1 - span.floor) * jnp.clip((progress - 1) / fall + 1, 0, 1)


def inverse_sqrt(progress: jax.Array, span: Span) -> jax.Array:
    """√(warmup / step), never below the floor (Vaswani et al. 2017, §5.3)."""
    require(span.warmup, 'schedule.warmup', span.warmup, '"inverse_sqrt" falls in proportion to it; set one')
    step = span.warmup + progress * (span.total - span.warmup)
    return jnp.maximum(jnp.sqrt(span.warmup / step), span.floor)


SCHEDULES = {'constant': constant, 'linear': linear, 'cosine': cosine, 'wsd': wsd, 'inverse_sqrt': inverse_sqrt}


def make_schedule(config: schema.Schedule, peak: float, span: Span) -> Schedule:
    """Step -> learning rate: a linear rise to `peak` over `span.warmup` steps, then the named shape.

    The first step has peak / warmup, not 0. A shape maps progress (0 after the warmup, 1
    at the end) to a fraction of the peak; every shape is tried here, so that one that has no
    value over this span is an error before training.

    Raises:
      ConfigError: warmup, and decay where the shape reads it, do not fit into the run; or
        the shape needs a span that is 0.
    """
    shape = functools.partial(parts.named(config, 'name', 'schedule'), **config.options)
    reads_decay = _try_shape(config, shape, span)
    if span.warmup + (span.decay if reads_decay else 0) > span.total:
        raise ConfigError(
            f'schedule.warmup = {config.warmup!r} is {span.warmup} steps'
            + (f' and schedule.decay = {config.decay!r} is {span.decay}' if reads_decay else '')
            + f', but the run has only {span.total}'
        )

    def schedule(step: jax.Array | int) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        rise = (step + 1) / max(span.warmup, 1)
        progress = jnp.clip((step - span.warmup + 1) / max(span.total - span.warmup, 1), 0, 1)
        return peak * jnp.where(step < span.warmup, rise, shape(progress, span))

    return schedule


class _Recorded:
    """A span that remembers in `read` which of its fields were read."""

    def __init__(self, span: Span) -> None:
        self.span, self.read = span, set()

    def __getattr__(self, name: str) -> Any:
        self.read.add(name)
        return getattr(self.span, name)


def _try_shape(config: schema.Schedule, shape: Callable, span: Span) -> bool:
    """True if the shape reads `span.decay`; its values have to be finite from the warmup to the end."""
    recorded = _Recorded(span)
    # Its values are computed here and now; where the mesh at hand is abstract alone, outside of it.
    no_devices = jax.sharding.get_mesh().empty
    outside = jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())) if no_devices else nullcontext()
    with jax.ensure_compile_time_eval(), outside:
        try:
            values = np.asarray(shape(jnp.linspace(1 / max(span.total - span.warmup, 1), 1, 9), recorded))
        except ZeroDivisionError:
            values = np.asarray(np.nan)
    fields = {name for name in ('warmup', 'decay') if name in recorded.read}
    if not np.all(np.isfinite(values)):
        said = ' and '.join(f'schedule.{name} = {getattr(config, name)!r}' for name in sorted(fields))
        raise ConfigError(
            f'schedule.name = {config.name!r} has no finite value everywhere over this run'
            + (f' with {said}; a span of 0 steps cannot be divided by' if said else '')
        )
    return 'decay' in fields


# --- Updates ---------------------------------------------------------------------------


def make_optimizer(
    config: schema.Optimizer, schedule: Schedule, params: Any, weights: Any
) -> optax.GradientTransformation:
    """Clipping by global norm, the named rule, decoupled weight decay, the learning rate.

    Decay comes after the rule, so that muP, which is part of a rule, does not touch it:
    a step takes the share learning rate · weight_decay off a parameter at every width
    (in Adam's own terms: its decay is multiplied by m where its learning rate is divided).

    Args:
      config: name and numbers.
      schedule: step -> learning rate.
      params: the parameters or their shapes.
      weights: the `Weight` of each, from `nn.transformer.parameters_of`. A parameter
        that is missing there is taken for one that is the same at every width.

    Raises:
      ConfigError: an unknown name, or a mask that does not cover all parameters.
    """
    mask, weights = decay_mask(config.decay_mask, params, weights), _for_all(weights, params)
    rule = parts.named(config, 'name', 'optimizer')(config, weights, **config.options)
    decay = optax.add_decayed_weights(config.weight_decay, mask)
    update = optax.chain(rule, decay, optax.scale_by_learning_rate(schedule))
    fixed = jax.tree.map(lambda weight: not weight.trained, weights, is_leaf=is_weight)
    if any(jax.tree.leaves(fixed)):
        update = optax.chain(update, optax.masked(optax.set_to_zero(), fixed))
    update = optax.chain(optax.clip_by_global_norm(config.clip), update) if config.clip else update
    return offload.offloaded(update) if config.offload else update


def _for_all(weights: Any, params: Any) -> Any:
    """A tree like `params`, with a Weight for each."""
    known = _known(weights)
    unknown = lambda leaf: Weight((), ('',) * leaf.ndim, fan_in=1, fan_out=leaf.size)
    return jax.tree_util.tree_map_with_path(lambda path, leaf: known.get(path) or unknown(leaf), params)


def _known(weights: Any) -> dict[tuple, Weight]:
    return dict(jax.tree_util.tree_leaves_with_path(weights, is_leaf=is_weight))


def decay_mask(patterns: tuple, params: Any, weights: Any) -> Any:
    """A tree of booleans: which parameters decay.

    Args:
      patterns: (regex, decays) pairs; the first that matches the whole path
        ('layers/attention/q/kernel') decides. Without any, what has inputs decays.
      params: a tree with the same structure.
      weights: the `Weight` of each. Parameters that are missing there have inputs if they
        are called as those of Linen's own Dense and Embed.

    Raises:
      ConfigError: parameters that none of the patterns matches.
    """
    if not patterns:
        known = _known(weights)
        by_name = lambda path: path[-1].key in ('kernel', 'embedding')
        decays = lambda path, _: known[path].decays if path in known else by_name(path)
        return jax.tree_util.tree_map_with_path(decays, params)
    compiled = [(re.compile(regex), bool(decays)) for regex, decays in patterns]
    uncovered = []

    def decide(path: tuple, _: Any) -> bool | None:
        name = jax.tree_util.keystr(path, simple=True, separator='/')
        for regex, decays in compiled:
            if regex.fullmatch(name):
                return decays
        uncovered.append(name)
        return None

    mask = jax.tree_util.tree_map_with_path(decide, params)
    if uncovered:
        raise ConfigError(
            f'optimizer.decay_mask does not cover {", ".join(uncovered)}: add a (regex, bool) pair for each'
        )
    return mask
