"""How gradients become updates, and the learning rate over time."""

from collections.abc import Callable
import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import optax

from llm_jax import schema
from llm_jax.parts import resolve_part
from llm_jax.schema import ConfigError

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
    return 1 - (1 - span.floor) * jnp.clip((progress - 1) / max(fall, 1e-9) + 1, 0, 1)


def inverse_sqrt(progress: jax.Array, span: Span) -> jax.Array:
    """√(warmup / step), never below the floor (Vaswani et al. 2017, §5.3)."""
    start = max(span.warmup, 1)
    step = start + progress * (span.total - span.warmup)
    return jnp.maximum(jnp.sqrt(start / step), span.floor)


SCHEDULES = {'constant': constant, 'linear': linear, 'cosine': cosine, 'wsd': wsd, 'inverse_sqrt': inverse_sqrt}


def make_schedule(config: schema.Schedule, peak: float, span: Span) -> Schedule:
    """Step -> learning rate: a linear rise to `peak` over `span.warmup` steps, then the named shape.

    The first step has peak / warmup, not 0. A shape maps progress (0 after the warmup, 1
    at the end) to a fraction of the peak.

    Raises:
      ConfigError: the warmup does not fit into the run.
    """
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


def adamw(config: schema.Optimizer, schedule: Schedule, decays: Any) -> optax.GradientTransformation:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, arXiv:1711.05101)."""
    return optax.adamw(
        schedule, b1=config.b1, b2=config.b2, eps=config.eps, weight_decay=config.weight_decay, mask=decays
    )


OPTIMIZERS = {'adamw': adamw}


def make_optimizer(config: schema.Optimizer, schedule: Schedule, params: Any) -> optax.GradientTransformation:
    """Clipping by global norm, then the named optimizer.

    Args:
      config: name and numbers.
      schedule: step -> learning rate.
      params: the parameters or their shapes, for the weight-decay mask.
    """
    optimizer = resolve_part('optimizer.name', config.name, OPTIMIZERS)
    update = optimizer(config, schedule, decay_mask(config.decay_mask, params))
    return optax.chain(optax.clip_by_global_norm(config.clip), update) if config.clip else update


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
