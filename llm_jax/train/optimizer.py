"""The optimizer of a run: the learning rate over time, and the chain from gradients to updates."""

from collections.abc import Callable
import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import optax

from llm_jax.config import schema
from llm_jax.config.parts import resolve_part
from llm_jax.config.schema import ConfigError
from llm_jax.init import Weight, is_weight
from llm_jax.train import offload
from llm_jax.train.optimizers import RULES

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
    fall = span.decay / max(1, span.total - span.warmup)
    return 1 - (1 - span.floor) * jnp.clip((progress - 1) / fall + 1, 0, 1)


def inverse_sqrt(progress: jax.Array, span: Span) -> jax.Array:
    """√(warmup / step), never below the floor (Vaswani et al. 2017, §5.3)."""
    step = span.warmup + progress * (span.total - span.warmup)
    return jnp.maximum(jnp.sqrt(span.warmup / step), span.floor)


SCHEDULES = {'constant': constant, 'linear': linear, 'cosine': cosine, 'wsd': wsd, 'inverse_sqrt': inverse_sqrt}


def make_schedule(config: schema.Schedule, peak: float, span: Span) -> Schedule:
    """Step -> learning rate: a linear rise to `peak` over `span.warmup` steps, then the named shape.

    The first step has peak / warmup, not 0. A shape maps progress (0 after the warmup, 1
    at the end) to a fraction of the peak.

    Raises:
      ConfigError: the warmup does not fit into the run, or the shape needs a span that is 0.
    """
    if config.name == 'wsd' and not span.decay:
        raise ConfigError(f'schedule.decay = {config.decay!r}: "wsd" falls over it; "constant" is without a fall')
    if config.name == 'inverse_sqrt' and not span.warmup:
        raise ConfigError(f'schedule.warmup = {config.warmup!r}: "inverse_sqrt" falls in proportion to it; set one')
    if span.warmup + (span.decay if config.name == 'wsd' else 0) > span.total:
        raise ConfigError(
            f'schedule.warmup = {config.warmup!r} is {span.warmup} steps'
            + (f' and schedule.decay = {config.decay!r} is {span.decay}' if config.name == 'wsd' else '')
            + f', but the run has only {span.total}'
        )
    shape = resolve_part('schedule.name', config.name, SCHEDULES)

    def schedule(step: jax.Array | int) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        rise = (step + 1) / max(span.warmup, 1)
        progress = jnp.clip((step - span.warmup + 1) / max(span.total - span.warmup, 1), 0, 1)
        return peak * jnp.where(step < span.warmup, rise, shape(progress, span))

    return schedule


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
        that is missing there is taken for a vector that is the same at every width.

    Raises:
      ConfigError: an unknown name, or a mask that does not cover all parameters.
    """
    weights = _for_all(weights, params)
    rule = resolve_part('optimizer.name', config.name, RULES)(config, weights)
    decay = optax.add_decayed_weights(config.weight_decay, decay_mask(config.decay_mask, params))
    update = optax.chain(rule, decay, optax.scale_by_learning_rate(schedule))
    fixed = jax.tree.map(lambda weight: not weight.trained, weights, is_leaf=is_weight)
    if any(jax.tree.leaves(fixed)):
        update = optax.chain(update, optax.masked(optax.set_to_zero(), fixed))
    update = optax.chain(optax.clip_by_global_norm(config.clip), update) if config.clip else update
    return offload.offloaded(update) if config.offload else update


def _for_all(weights: Any, params: Any) -> Any:
    """A tree like `params`, with a Weight for each."""
    known = dict(jax.tree_util.tree_leaves_with_path(weights, is_leaf=is_weight))
    unknown = lambda leaf: Weight((), ('',) * leaf.ndim, fan_in=1, fan_out=leaf.size)
    return jax.tree_util.tree_map_with_path(lambda path, leaf: known.get(path) or unknown(leaf), params)


def decay_mask(patterns: tuple, params: Any) -> Any:
    """A tree of booleans: which parameters decay.

    Args:
      patterns: (regex, decays) pairs; the first that matches the whole path
        ('layers/attention/q/kernel') decides.
      params: a tree with the same structure.

    Raises:
      ConfigError: parameters that no pattern matches.
    """
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
