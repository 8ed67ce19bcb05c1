"""A block of decoding: every live row draws up to `limit` tokens, one at a time or with guesses of the next ones.

Shapes: as in slots.py; K tokens of a guess, L = K + 1 tokens that are checked together.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from llm_jax.dist import mesh
from llm_jax.generate import decode, speculate
from llm_jax.generate.slots import ALTERNATIVES, BLOCK, NONE, Drawn, Slots, draw, map_shards, replicate
from llm_jax.generate.speculate import Speculation
from llm_jax.nn.transformer import Transformer


class _State(NamedTuple):
    """Loop state of a block.

    Attributes:
      slots: with caches that are cut to the bound.
      drawn: tokens so far.
      counts_B: int32, their number in each row.
    """

    slots: Slots
    drawn: Drawn
    counts_B: jax.Array


@functools.partial(jax.jit, static_argnames=('model', 'speculation', 'vocab_size', 'bound'), donate_argnames='slots')
def decode_block(
    model: Transformer,
    speculation: Speculation | None,
    vocab_size: int,
    bound: int,
    weights: decode.Weights,
    draft_weights: decode.Weights | None,
    slots: Slots,
    limit: jax.Array,
    allowed_BW: jax.Array,
) -> tuple[Slots, Drawn]:
    """Draws up to `limit` <= BLOCK tokens for each live row.

    The first `bound` slots of the caches are cut out for the block, so that attention reads no more. See
    `slots.prefill_chunk` for the arguments. `allowed_BW` holds for every token of the block.
    """
    rules, whole = model.config.rules, slots.caches
    cut = lambda caches: jax.tree.map(lambda x: x[:, :, :bound], caches)
    slots = slots.replace(caches=map_shards(cut, whole, whole))
    allowed_BW = mesh.shard(allowed_BW, rules, ('batch', None))
    take = functools.partial(_take, allowed_BW, vocab_size)
    active = lambda state: state.slots.live & (state.counts_B < limit)
    is_unfinished = lambda state: replicate(active(state)).any()

    def step(state: _State) -> _State:
        """Draws one token for each row."""
        active_B = active(state)
        logits_BLV, state = _forward(model, weights, bound, state, active_B, state.slots.tokens[:, None])
        return take(state, logits_BLV[:, 0], active_B)

    def check(state: _State, draft_BK: jax.Array, has_draft_B: jax.Array) -> _State:
        """Draws tokens as long as they are those of the draft, and one more."""
        active_B, K = active(state), draft_BK.shape[1]
        tokens_BL = jnp.concatenate([state.slots.tokens[:, None], draft_BK], axis=1)
        logits_BLV, state = _forward(model, weights, bound, state, active_B, tokens_BL)

        def accept(carry: tuple) -> tuple:
            i, state, active_B = carry
            pick = lambda x_BL: jax.lax.dynamic_index_in_dim(x_BL, i, axis=1, keepdims=False)
            state = take(state, pick(logits_BLV), active_B)
            is_right_B = state.slots.tokens == jnp.where(i < K, pick(jnp.pad(draft_BK, ((0, 0), (0, 1)))), NONE)
            return i + 1, state, active_B & has_draft_B & is_right_B & active(state)

        proceeds = lambda carry: (carry[0] <= K) & replicate(carry[2]).any()
        return jax.lax.while_loop(proceeds, accept, (0, state, active_B))[1]

    def check_looked_up(carry: tuple) -> tuple:
        state, draft_BK, found_B = carry
        before_B = state.slots.positions
        state = check(state, draft_BK, found_B)
        return look_up(state._replace(slots=speculate.record(state.slots, found_B, before_B)))

    def look_up(state: _State) -> tuple[_State, jax.Array, jax.Array]:
        return state, *speculate.look_up(state.slots, active(state), speculation.n_draft)

    def check_proposed(state: _State) -> _State:
        n = model.config.n_layers
        caches, active_B = state.slots.caches, active(state)
        draft_BK, draft_caches = speculate.propose(
            speculation.draft, draft_weights, caches[n:], state.slots, active_B, allowed_BW, vocab_size,
            speculation.n_draft,
        )  # fmt: skip
        slots = state.slots.replace(caches=caches[:n] + draft_caches)
        return check(state._replace(slots=slots), draft_BK, active_B)

    state = _State(slots, _blank(len(slots.tokens), rules), jnp.zeros_like(slots.tokens))
    if speculation is None:
        state = jax.lax.while_loop(is_unfinished, step, state)
    elif speculation.draft:
        state = jax.lax.while_loop(is_unfinished, check_proposed, state)
    else:
        # Two loops in turn rather than a branch in one, through which the caches would be copied.
        has_draft = lambda carry: replicate(carry[2]).any()
        goes_on = lambda carry: is_unfinished(carry[0])
        plain = lambda carry: look_up(step(carry[0]))

        def both(carry: tuple) -> tuple:
            carry = jax.lax.while_loop(lambda carry: goes_on(carry) & ~has_draft(carry), plain, carry)
            return jax.lax.while_loop(lambda carry: goes_on(carry) & has_draft(carry), check_looked_up, carry)

        state, *_ = jax.lax.while_loop(goes_on, both, look_up(state))
    put = lambda old, new: jax.tree.map(lambda x, y: x.at[:, :, :bound].set(y), old, new)
    caches = map_shards(put, whole, whole, state.slots.caches)
    return state.slots.replace(caches=caches), jax.tree.map(replicate, state.drawn)


def _forward(
    model: Transformer, weights: decode.Weights, bound: int, state: _State, active_B: jax.Array, tokens_BL: jax.Array
) -> tuple[jax.Array, _State]:
    """Runs tokens, the first of which is the newest of each row, through the model: logits [B, L, V], and the state."""
    slots, n = state.slots, model.config.n_layers
    # Other rows are computed as well, at positions whose keys and values are dropped: one that is being prefilled
    # must not lose what it has.
    positions_BL = jnp.where(active_B, slots.positions, bound)[:, None] + jnp.arange(tokens_BL.shape[1])
    logits_BLV, caches = decode.forward(model, weights, tokens_BL, positions_BL, slots.caches[:n], None)
    logits_BLV = mesh.shard(logits_BLV, model.config.rules, ('batch', None, None))
    return logits_BLV, state._replace(slots=slots.replace(caches=caches + slots.caches[n:]))


def _take(allowed_BW: jax.Array, vocab_size: int, state: _State, logits_BV: jax.Array, active_B: jax.Array) -> _State:
    """Draws a token for the active rows, and adds it to those drawn."""
    slots = state.slots.replace(positions=state.slots.positions + active_B)
    slots, new = draw(slots, logits_BV, active_B, allowed_BW, vocab_size)
    is_place_BN = (jnp.arange(BLOCK) == state.counts_B[:, None]) & active_B[:, None]

    def put(whole: jax.Array, new: jax.Array) -> jax.Array:
        return jnp.where(is_place_BN.reshape(*is_place_BN.shape, *[1] * (new.ndim - 1)), new[:, None], whole)

    return _State(slots, jax.tree.map(put, state.drawn, new), state.counts_B + active_B)


def _blank(n_rows: int, rules: tuple) -> Drawn:
    """Makes a block in which nothing is drawn yet."""

    def blank(*shape: int, fill: float, dtype: jnp.dtype) -> jax.Array:
        filled = jnp.full((n_rows, BLOCK, *shape), fill, dtype)
        return mesh.shard(filled, rules, ('batch', None, *[None] * len(shape)))

    return Drawn(
        blank(fill=NONE, dtype=jnp.int32), blank(fill=0, dtype=jnp.float32), blank(fill=0, dtype=jnp.float32),
        blank(ALTERNATIVES, fill=NONE, dtype=jnp.int32), blank(ALTERNATIVES, fill=0, dtype=jnp.float32),
    )  # fmt: skip
