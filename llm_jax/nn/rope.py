"""Rotary frequencies, and how each scaling stretches them to longer contexts."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.config.parts import nearest
from llm_jax.config.schema import ConfigError, Rope


def angles(rope: Rope, positions_BL: jax.Array, width: int, max_seq_len: int) -> tuple[jax.Array, jax.Array]:
    """cos and sin, float32[B, L, width/2], of position · frequency, both times the attention factor.

    Args:
      rope: the config.
      positions_BL: int, from 0 in each document.
      width: of what is rotated; even.
      max_seq_len: the context the model is used at. What grows with the context
        ("dynamic", "longrope") follows this and not the length of the text, so that
        a token's vector never depends on what comes after it, nor on the cache.
    """
    frequencies, factor = frequencies_of(rope, width, max_seq_len)
    angle = positions_BL[..., None].astype(jnp.float32) * jnp.asarray(frequencies, jnp.float32)
    return jnp.cos(angle) * factor, jnp.sin(angle) * factor


def frequencies_of(rope: Rope, width: int, max_seq_len: int) -> tuple[np.ndarray, float]:
    """Radians per token of each pair, float64[width/2], and what queries and keys are multiplied by.

    Raises:
      ConfigError: an unknown scaling, or a table of factors of the wrong length.
    """
    if rope.scaling not in SCALINGS:
        known = ', '.join(SCALINGS)
        raise ConfigError(
            f'model.rope.scaling = {rope.scaling!r} is not known{nearest(rope.scaling, SCALINGS)} Known: {known}'
        )
    original_len = rope.original_len or max(1, round(max_seq_len / max(rope.factor, 1.0)))
    return SCALINGS[rope.scaling](rope, width, original_len, max_seq_len)


def _powers(theta: float, width: int) -> np.ndarray:
    """theta^(-2i/width) (Su et al. 2021, arXiv:2104.09864)."""
    return theta ** (-np.arange(0, width, 2, dtype=np.float64) / width)


def _none(rope: Rope, width: int, original_len: int, max_seq_len: int) -> tuple[np.ndarray, float]:
    return _powers(rope.theta, width), 1.0


def _linear(rope: Rope, width: int, original_len: int, max_seq_len: int) -> tuple[np.ndarray, float]:
    """Position interpolation (Chen et al. 2023, arXiv:2306.15595)."""
    return _powers(rope.theta, width) / rope.factor, 1.0


def _ntk(rope: Rope, width: int, original_len: int, max_seq_len: int) -> tuple[np.ndarray, float]:
    """ "NTK-aware": the base grows so that the slowest pair is stretched by `factor`, the fastest not at all."""
    return _powers(rope.theta * rope.factor ** (width / (width - 2)), width), 1.0


def _dynamic(rope: Rope, width: int, original_len: int, max_seq_len: int) -> tuple[np.ndarray, float]:
    """ "Dynamic NTK": as "ntk", with a factor that grows with the context beyond original_len."""
    longer = max(max_seq_len, original_len) / original_len
    growth = rope.factor * longer - (rope.factor - 1)
    return _powers(rope.theta * growth ** (width / (width - 2)), width), 1.0


def _yarn(rope: Rope, width: int, original_len: int, max_seq_len: int) -> tuple[np.ndarray, float]:
    """YaRN (Peng et al. 2023, arXiv:2309.00071): fast pairs are kept, slow ones stretched, a ramp between."""

    def pair_of(turns: float) -> float:
        """Index of the pair that turns so often within original_len."""
        return width * math.log(original_len / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = pair_of(rope.beta_fast), pair_of(rope.beta_slow)
    if rope.round_betas:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    ramp = np.clip((np.arange(width // 2) - low) / max(high - low, 1e-3), 0, 1)
    frequencies = _powers(rope.theta, width)
    frequencies = frequencies / rope.factor * ramp + frequencies * (1 - ramp)
    if rope.attention_factor:
        return frequencies, rope.attention_factor
    if rope.mscale and rope.mscale_all_dim:
        return frequencies, yarn_scale(rope.factor, rope.mscale) / yarn_scale(rope.factor, rope.mscale_all_dim)
    return frequencies, yarn_scale(rope.factor, 1.0)


def yarn_scale(factor: float, mscale: float) -> float:
    """0.1 m ln(factor) + 1: by how much YaRN sharpens attention (§3.4; with m, DeepSeek-V2)."""
    return 0.1 * mscale * math.log(factor) + 1 if factor > 1 else 1.0


def _llama3(rope: Rope, width: int, original_len: int, max_seq_len: int) -> tuple[np.ndarray, float]:
    """Llama 3.1 (arXiv:2407.21783): as YaRN, but the ramp is over wavelengths."""
    frequencies = _powers(rope.theta, width)
    turns = original_len * frequencies / (2 * math.pi)
    keep = np.clip((turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor), 0, 1)
    return frequencies * keep + frequencies / rope.factor * (1 - keep), 1.0


def _longrope(rope: Rope, width: int, original_len: int, max_seq_len: int) -> tuple[np.ndarray, float]:
    """LongRoPE (Ding et al. 2024, arXiv:2402.13753): a searched divisor for each pair (Phi-3)."""
    name = 'long_factors' if max_seq_len > original_len else 'short_factors'
    divisors = np.asarray(getattr(rope, name), np.float64)
    if divisors.shape != (width // 2,):
        raise ConfigError(
            f'model.rope.{name} has {divisors.size} numbers; the {width} rotated dimensions of a head need {width // 2}'
        )
    factor = rope.attention_factor or (
        math.sqrt(1 + math.log(rope.factor) / math.log(original_len)) if rope.factor > 1 else 1.0
    )
    return _powers(rope.theta, width) / divisors, factor


SCALINGS = {
    'none': _none,
    'linear': _linear,
    'ntk': _ntk,
    'dynamic': _dynamic,
    'yarn': _yarn,
    'llama3': _llama3,
    'longrope': _longrope,
}


def rotate(x_BLHK: jax.Array, cos_BLR: jax.Array, sin_BLR: jax.Array, *, interleaved: bool) -> jax.Array:
    """Turns the first 2R entries of each head; the rest pass (partial rotary, GPT-NeoX)."""
    cos, sin = cos_BLR[:, :, None], sin_BLR[:, :, None]
    width = 2 * cos.shape[-1]
    turned, rest = x_BLHK[..., :width].astype(jnp.float32), x_BLHK[..., width:]
    if interleaved:
        # Not by strides, whose gradients are padded arrays of their own on TPU.
        first, second = jnp.unstack(turned.reshape(*turned.shape[:-1], -1, 2), axis=-1)
    else:
        first, second = jnp.split(turned, 2, axis=-1)
    first, second = first * cos - second * sin, second * cos + first * sin
    if interleaved:
        turned = jnp.stack([first, second], -1).reshape(turned.shape)
    else:
        turned = jnp.concatenate([first, second], -1)
    return jnp.concatenate([turned.astype(x_BLHK.dtype), rest], -1) if rest.shape[-1] else turned.astype(x_BLHK.dtype)
