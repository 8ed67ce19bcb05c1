"""Pages of keys and values on the device, copied out of slots and into them.

Shapes: B slots, S tokens that a slot holds, M = S // PAGE pages of a slot, N pages of the pool, P slots that are
copied to or from, one on each shard of the slots.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from llm_jax.dist import mesh
from llm_jax.generate import decode
from llm_jax.generate.prefix import PAGE
from llm_jax.generate.slots import Slots, map_shards
from llm_jax.nn.transformer import Transformer


@functools.partial(jax.jit, static_argnames=('model', 'draft', 'n_pages', 'cache'))
def make_pool(model: Transformer, draft: Transformer | None, n_pages: int, cache: str = '') -> tuple:
    """Makes a pool: caches of `n_pages` rows of PAGE tokens, of the same kind and sharded as the slots are."""
    models = [model, draft] if draft else [model]
    return sum((decode.empty_caches(one.config, n_pages, PAGE, cache) for one in models), ())


@functools.partial(jax.jit, static_argnames='model', donate_argnames='slots')
def load_pages(
    model: Transformer, slots: Slots, pool: tuple, slots_P: jax.Array, pages_PM: jax.Array, tokens_PS: jax.Array
) -> Slots:
    """Copies pages to the beginnings of slots, with their tokens, which count as seen in the prompt.

    Args:
      model: the Transformer.
      slots: donated.
      pool: of pages.
      slots_P: int32, slot among those of its shard; past them for none.
      pages_PM: int32, pages among those of the shard; -1 leaves what the slot has.
      tokens_PS: int32, tokens of the pages; past the vocabulary for none.
    """
    rows = lambda x: mesh.shard(x, model.config.rules, ('batch', *[None] * (x.ndim - 1)))
    slots_P, pages_PM, tokens_PS = rows(slots_P), rows(pages_PM), rows(tokens_PS)

    def load(caches: tuple, pool: tuple, slots_P: jax.Array, pages_PM: jax.Array) -> tuple:
        def load_one(slots_BGS: jax.Array, pool_NG: jax.Array) -> jax.Array:
            row_PGS = slots_BGS.at[slots_P].get(mode='clip')
            n = pages_PM.shape[1] * PAGE
            pages_PMG = pool_NG.at[pages_PM].get(mode='clip')  # [P, M, G, PAGE, ...]
            loaded_PGS = jnp.moveaxis(pages_PMG, 1, 2).reshape(*row_PGS[:, :, :n].shape)
            takes_PS = jnp.repeat(pages_PM >= 0, PAGE, axis=1)
            takes_PGS = takes_PS[:, None].reshape(len(slots_P), 1, n, *[1] * (row_PGS.ndim - 3))
            row_PGS = row_PGS.at[:, :, :n].set(jnp.where(takes_PGS, loaded_PGS, row_PGS[:, :, :n]))
            return slots_BGS.at[slots_P].set(row_PGS, mode='drop', unique_indices=True)

        return jax.tree.map(load_one, caches, pool)

    def mark(prompt_BV: jax.Array, slots_P: jax.Array, tokens_PS: jax.Array) -> jax.Array:
        return prompt_BV.at[slots_P[:, None], tokens_PS].set(True, mode='drop')

    def write(ids_BS: jax.Array, slots_P: jax.Array, tokens_PS: jax.Array) -> jax.Array:
        return ids_BS.at[slots_P, : tokens_PS.shape[1]].set(tokens_PS, mode='drop')

    prompt_BV = slots.seen.prompt_BV
    return slots.replace(
        caches=map_shards(load, slots.caches, slots.caches, pool, slots_P, pages_PM),
        seen=slots.seen._replace(prompt_BV=map_shards(mark, prompt_BV, prompt_BV, slots_P, tokens_PS)),
        ids=map_shards(write, slots.ids, slots.ids, slots_P, tokens_PS),
    )


@functools.partial(jax.jit, static_argnames='model', donate_argnames='pool')
def store_pages(model: Transformer, pool: tuple, slots: Slots, slots_P: jax.Array, pages_PM: jax.Array) -> tuple:
    """Copies pages out of slots into the pool; returns it. Arguments as those of `load_pages`."""
    rows = lambda x: mesh.shard(x, model.config.rules, ('batch', *[None] * (x.ndim - 1)))

    def store(pool: tuple, caches: tuple, slots_P: jax.Array, pages_PM: jax.Array) -> tuple:
        P, M = pages_PM.shape

        def store_one(pool_NG: jax.Array, slots_BGS: jax.Array) -> jax.Array:
            row_PGS = slots_BGS.at[slots_P, :, : M * PAGE].get(mode='clip')
            pages = row_PGS.reshape(P, row_PGS.shape[1], M, PAGE, *row_PGS.shape[3:])
            flat = jnp.moveaxis(pages, 2, 1).reshape(P * M, *pool_NG.shape[1:])
            # Past the last page is dropped; -1 would be the last.
            where = jnp.where(pages_PM < 0, len(pool_NG), pages_PM).reshape(-1)
            return pool_NG.at[where].set(flat, mode='drop')

        return jax.tree.map(store_one, pool, caches)

    arguments: tuple[Any, ...] = pool, slots.caches, rows(slots_P), rows(pages_PM)
    return map_shards(store, pool, *arguments)
