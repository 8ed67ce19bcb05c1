"""Self-attention with its projections, over whole sequences or over a cache."""

import functools
from typing import Any

from flax import linen as nn
import flax.struct
import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

from llm_jax import init
from llm_jax.config import parts
from llm_jax.config.facts import AttentionFacts, Dimension, HeadDims, require
from llm_jax.config.schema import Model
from llm_jax.dist import mesh
from llm_jax.nn import cache as cache_lib
from llm_jax.nn import rope
from llm_jax.nn.einsum import Einsum, vector
from llm_jax.ops import remat
from llm_jax.ops.attend import Scores, attend
from llm_jax.ops.attend.choose import Need, choose_kernel


@flax.struct.dataclass
class Tokens:
    """Facts of the tokens that every block receives besides their vectors.

    Attributes:
      ids_BL: int, the tokens.
      positions_BL: int, from 0 within each document; in cached decoding also the cache slot.
      segments_BL: int, the document of each token; None means one document per row. On a
        mesh that splits the length, ids and positions are in the order of `zigzag.split`,
        while segments are whole rows on every device, in the order of the text.
      tables: of the position part.
      layer: int32 scalar, the index of the layer that reads this, from 0. In a loop over
        layers it is traced: compute with it, do not branch on it.
    """

    ids_BL: jax.Array
    positions_BL: jax.Array
    segments_BL: jax.Array | None
    tables: Any
    layer: jax.Array | int = 0


@flax.struct.dataclass
class Cache:
    """Keys and values of the tokens so far: [B, G, S, K] each."""

    k: jax.Array
    v: jax.Array


class Attention(AttentionFacts, nn.Module):
    """Grouped-query attention: query heads share n_kv_heads key/value heads.

    MHA: Vaswani et al. 2017, arXiv:1706.03762. MQA: Shazeer 2019, arXiv:1911.02150.
    GQA: Ainslie et al. 2023, arXiv:2305.13245. Gate: Qiu et al. 2025, arXiv:2505.06708.
    Norm of queries and keys: Henry et al. 2020, arXiv:2010.04245.
    """

    config: Model

    @staticmethod
    def empty_cache(config: Model, batch_size: int, slots: int) -> Cache:
        """A cache for `slots` tokens of each row."""
        shape = (batch_size, config.kv_heads, slots, config.head_size)
        one = lambda: cache_lib.empty(shape, config.dtype, config.rules, 'kv_heads')
        return Cache(k=one(), v=one())

    @nn.compact
    def __call__(self, x_BLD: jax.Array, tokens: Tokens, cache: Cache | None) -> tuple[jax.Array, Cache | None]:
        """dtype[B, L, D] -> the same, and the cache with these tokens in it."""
        config = self.config
        H, G, K = config.n_heads, config.kv_heads, config.head_size
        position = parts.position(config)
        bias = config.bias in (True, 'qkv', 'attention')
        q_BLHK = _qk_norm(config, 'q_norm', 'heads', self.project(x_BLD, 'q', H, 'heads', bias))
        k_BLGK = _qk_norm(config, 'k_norm', 'kv_heads', self.project(x_BLD, 'k', G, 'kv_heads', bias))
        v_BLGK = self.values(x_BLD, tokens)
        q_BLHK = position.rotate(config, q_BLHK, tokens.tables)
        k_BLGK = position.rotate(config, k_BLGK, tokens.tables)
        if cache is not None:
            put = lambda held, new: cache_lib.write(held, new, tokens.positions_BL, config.rules, 'kv_heads')
            cache = Cache(k=put(cache.k, k_BLGK), v=put(cache.v, v_BLGK))
            k_BLGK, v_BLGK = cache.k.swapaxes(1, 2), cache.v.swapaxes(1, 2)
        y_BLHK = attend_tokens(self, q_BLHK, k_BLGK, v_BLGK, tokens, init.attention_scale(config, K), cache is not None)
        if config.attention_gate:
            y_BLHK *= jax.nn.sigmoid(self.project(x_BLD, 'gate', H, 'heads', False))
        return project_out(config, y_BLHK), cache

    def values(self, x_BLD: jax.Array, tokens: Tokens) -> jax.Array:
        """Values [B, L, G, K]; a subclass may make them of more than the residual stream."""
        return self.project(
            x_BLD, 'v', self.config.kv_heads, 'kv_heads', self.config.bias in (True, 'qkv', 'attention')
        )

    def project(self, x_BLD: jax.Array, name: str, heads: int, axis: str, bias: bool) -> jax.Array:
        """[B, L, D] -> [B, L, heads, K]."""
        config = self.config
        shape, axes = (config.d_model, heads, config.head_size), ('d_model', axis, 'd_head')
        return Einsum('BLD,DHK->BLHK', shape, axes, config, use_bias=bias, name=name)(x_BLD)


class MultiHeadAttention(Attention):
    """A key/value head for each query head."""

    @staticmethod
    def kv_heads(config: Model) -> int:
        return config.n_heads

    @classmethod
    def check(cls, config: Model) -> None:
        super().check(config)
        _check_kv_heads(config, cls.kv_heads(config))


class MultiQueryAttention(Attention):
    """One key/value head for all query heads."""

    @staticmethod
    def kv_heads(config: Model) -> int:
        return 1

    @classmethod
    def check(cls, config: Model) -> None:
        super().check(config)
        _check_kv_heads(config, cls.kv_heads(config))


def _check_kv_heads(config: Model, kv_heads: int) -> None:
    require(config.n_kv_heads in (0, kv_heads), 'model.n_kv_heads', config.n_kv_heads,
            f'{config.attention!r} has {kv_heads}; set it to 0, or attention = "gqa"')  # fmt: skip


class LatentAttention(AttentionFacts, nn.Module):
    """Multi-head latent attention: keys and values are made of one narrow vector, which is all that is cached
    (DeepSeek-V2, arXiv:2405.04434, §2.1).

    With a cache, the maps from the latent to keys and values are moved over to queries
    and results (§2.1.2), so that attention reads the latents as they lie: one key of
    width kv_rank + d_rope for all heads.
    """

    config: Model

    @staticmethod
    def head_dims(config: Model) -> HeadDims:
        mla = config.mla
        return HeadDims(mla.d_nope + mla.d_rope, mla.d_value, mla.d_rope)

    @classmethod
    def dimensions(cls, config: Model) -> list[Dimension]:
        ranks = [(f'model.mla.{name}', getattr(config.mla, name), 'rank') for name in ('q_rank', 'kv_rank')]
        return [('model.n_heads', config.n_heads, 'heads'), *(rank for rank in ranks if rank[1])]

    @classmethod
    def check(cls, config: Model) -> None:
        super().check(config)
        require(config.qk_norm == 'none' and not config.attention_gate, 'model.attention', config.attention,
                'it has norms of its own and no gate; set qk_norm = "none", attention_gate = False')  # fmt: skip

    @staticmethod
    def empty_cache(config: Model, batch_size: int, slots: int) -> jax.Array:
        """Latents and rotated keys, [B, 1, S, kv_rank + d_rope]."""
        shape = (batch_size, 1, slots, config.mla.kv_rank + config.mla.d_rope)
        return cache_lib.empty(shape, config.dtype, config.rules, None)

    @nn.compact
    def __call__(self, x_BLD: jax.Array, tokens: Tokens, cache: jax.Array | None) -> tuple[jax.Array, jax.Array | None]:
        """dtype[B, L, D] -> the same, and the cache with these tokens in it."""
        config, mla = self.config, self.config.mla
        D, H, R, N, V = config.d_model, config.n_heads, mla.kv_rank, mla.d_nope, mla.d_value
        position = parts.position(config)
        eps = {'eps': mla.norm_eps} if mla.norm_eps else {}
        norm = lambda name: parts.module(config, 'norm', ('latent',), **eps, name=name)
        rotate = lambda x: position.rotate(config, x, tokens.tables)

        def narrow(name: str, width: int, axis: str, bias: bool = False) -> jax.Array:
            return Einsum('BLD,DR->BLR', (D, width), ('d_model', axis), config, use_bias=bias, name=name)(x_BLD)

        bias = config.bias in (True, 'attention')
        if mla.q_rank:
            latent_BLQ = norm('q_norm')(narrow('q_down', mla.q_rank, 'latent', bias))
            shape, axes = (mla.q_rank, H, N + mla.d_rope), ('rank', 'heads', 'd_head')
            q_BLHK = Einsum('BLR,RHK->BLHK', shape, axes, config, name='q_up')(latent_BLQ)
        else:
            shape, axes = (D, H, N + mla.d_rope), ('d_model', 'heads', 'd_head')
            q_BLHK = Einsum('BLD,DHK->BLHK', shape, axes, config, name='q')(x_BLD)
        q_nope, q_rope = q_BLHK[..., :N], rotate(q_BLHK[..., N:])
        latent_BLR = norm('kv_norm')(narrow('kv_down', R, 'latent', bias))
        k_rope_BL1K = rotate(narrow('k_rope', mla.d_rope, 'd_head', bias)[:, :, None])
        to_heads = ('rank', 'heads', 'd_head')
        up_k = Einsum('BLR,RHK->BLHK', (R, H, N), to_heads, config, name='k_up')
        up_v = Einsum('BLR,RHK->BLHK', (R, H, V), to_heads, config, name='v_up')
        scale = init.attention_scale(config, N + mla.d_rope)
        if config.rope.scaling == 'yarn' and config.rope.mscale_all_dim:
            scale *= rope.yarn_scale(config.rope.factor, config.rope.mscale_all_dim) ** 2
        if cache is None:
            k_nope_BLHN = up_k(latent_BLR)
            k_rope_BLHK = mesh.shard(
                jnp.broadcast_to(k_rope_BL1K, (*k_nope_BLHN.shape[:3], mla.d_rope)),
                config.rules, (*mesh.TOKENS, 'heads', 'd_head'),
            )  # fmt: skip
            q, k = jnp.concatenate([q_nope, q_rope], -1), jnp.concatenate([k_nope_BLHN, k_rope_BLHK], -1)
            y_BLHV = attend_tokens(self, q, k, up_v(latent_BLR), tokens, scale, False, kv_axis='heads')
        else:
            new_BL1K = jnp.concatenate([latent_BLR[:, :, None], k_rope_BL1K], -1)
            cache = cache_lib.write(cache, new_BL1K, tokens.positions_BL, config.rules, None)
            q = jnp.concatenate([up_k.per_head('BLHK,RHK->BLHR', q_nope), q_rope], -1)
            slots_BS1K = cache.swapaxes(1, 2)
            y_BLHR = attend_tokens(self, q, slots_BS1K, slots_BS1K[..., :R], tokens, scale, True, kv_axis=None)
            y_BLHV = up_v.per_head('BLHR,RHV->BLHV', y_BLHR)
        return project_out(config, y_BLHV), cache


def attend_tokens(
    module: nn.Module, q: jax.Array, k: jax.Array, v: jax.Array, tokens: Tokens, scale: float, cached: bool,
    kv_axis: str | None = 'kv_heads', *, window: int | None = None, softcap: float | None = None,
    sinks: bool | None = None,
) -> jax.Array:  # fmt: skip
    """Attention of a part's queries, keys and values: by position and document, with sinks and dropout.

    Widths, head counts and the kernel follow from the arrays; call it from a compact method.

    Args:
      module: the part; its config says the kernel, the position part, dropout and the rest.
      q: queries [B, L, H, K].
      k: keys [B, S, G, K], G dividing H; with a cache S is its slots.
      v: values [B, S, G, V].
      tokens: as every part gets them.
      scale: factor of the scores.
      cached: whether keys and values are those of a cache.
      kv_axis: logical axis of G; None for one that is whole on every device.
      window: tokens that a query sees, itself included, 0 for all; None takes model.window.
      softcap: scores s become c tanh(s / c), 0 for none; None takes model.attention_softcap.
      sinks: whether each head has a learned score without a value; None takes model.attention_sinks.

    Returns:
      [B, L, H, V]
    """
    config, H = module.config, q.shape[2]
    window = config.window if window is None else window
    softcap = config.attention_softcap if softcap is None else softcap
    slopes_H = parts.position(config).slopes(config, H)
    sinks_H = None
    if config.attention_sinks if sinks is None else sinks:
        sinks_H = vector(module, 'sinks', nn.initializers.zeros, (H,), ('heads',))
    rate = config.dropout if module.has_rng('dropout') else 0.0
    # Kept only where somebody asks for the intermediates, as the coordinate check does.
    module.sow('intermediates', 'queries_keys', (q, k, scale))
    table = dict(config.rules)
    if kv_axis != 'kv_heads' and table:
        table['kv_heads'] = table[kv_axis] if kv_axis else None
    kernel, _ = choose_kernel(
        config, platform=mesh.platform(), length=q.shape[1], context=mesh.shard_count(config.rules, 'length'),
        cached=cached, dropout=bool(rate),
        need=Need(q.shape[-1], v.shape[-1], softcap, sinks_H is not None, slopes_H is not None),
    )  # fmt: skip
    settings = {
        'rules': tuple(table.items()),
        'scores': Scores(scale, softcap, window, rate),
        'slopes_H': slopes_H,
        'kernel': kernel,
        'context': config.context_attention,
    }
    core = remat.attention_core(config, functools.partial(attend, **settings))
    y_BLHK = core(
        q, k, v,
        segments_BL=tokens.segments_BL,
        slots_BL=tokens.positions_BL if cached else None,
        sinks_H=sinks_H,
        dropout_key=module.make_rng('dropout') if rate else None,
    )  # fmt: skip
    return checkpoint_name(y_BLHK, 'attention')


def project_out(config: Model, y_BLHK: jax.Array) -> jax.Array:
    """[B, L, H, K] -> the residual stream's [B, L, D]; call it from a compact method."""
    _, _, H, K = y_BLHK.shape
    out = Einsum(
        'BLHK,HKD->BLD', (H, K, config.d_model), ('heads', 'd_head', 'd_model'), config,
        use_bias=config.bias in (True, 'attention'), writes_residual=True, name='out',
    )  # fmt: skip
    return out(y_BLHK)


def _qk_norm(config: Model, name: str, axis: str, x_BLHK: jax.Array) -> jax.Array:
    if config.qk_norm == 'none':
        return x_BLHK
    axes = (axis, 'd_head') if config.qk_norm == 'whole' else ('d_head',)
    return parts.module(config, 'norm', axes, name=name)(x_BLHK)


ATTENTIONS = {'mha': MultiHeadAttention, 'gqa': Attention, 'mqa': MultiQueryAttention, 'mla': LatentAttention}
# Those that differ in the number of key/value heads alone.
GROUPED = (Attention, MultiHeadAttention, MultiQueryAttention)
