"""Rows on the device: a request enters a slot, its prompt is prefilled in chunks, and all slots decode together.

Every function is one compiled program for all requests: what differs between them are arrays.

Shapes: B slots, P prompts of a chunk, C tokens of a chunk, S tokens that a cache holds, V vocabulary,
N tokens of a block, A alternatives.
"""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from llm_jax.dist import mesh
from llm_jax.generate import decode, samplers
from llm_jax.generate.samplers import Seen
from llm_jax.generate.settings import Settings
from llm_jax.nn.transformer import Transformer

# Most tokens that one call of `decode_block` draws for a row.
BLOCK = 16
# Likeliest tokens that are reported beside each token, where a request asks for some.
ALTERNATIVES = 20
# Stands where a row draws nothing.
NONE = -1
# Stands where the logits are no numbers; it ends its row.
NOT_FINITE = -2


class Requests(NamedTuple):
    """Constants of the requests in the slots.

    Attributes:
      settings: of the sampler.
      seeds: uint32[B, 2], bits of the random key.
      choices: int32[B], index of a row among those of one seed.
      stop_ids: int32[B, M], tokens that end the row; NONE where there are fewer.
      n_new: int32[B], most tokens to draw.
      alternatives: bool[B], whether the likeliest tokens are reported.
    """

    settings: Settings
    seeds: jax.Array
    choices: jax.Array
    stop_ids: jax.Array
    n_new: jax.Array
    alternatives: jax.Array


class Drafts(NamedTuple):
    """State of the drafts that are looked up in a row's own tokens.

    Attributes:
      next: int32[B], position from which a row drafts again.
      misses: int32[B], drafts in a row of which no token was right.
    """

    next: jax.Array
    misses: jax.Array


@flax.struct.dataclass
class Slots:
    """State of the rows between two programs.

    Attributes:
      caches: one for each layer, arrays [B, G, S, K]; the attention part defines their number and sizes. Those of a
        draft model follow.
      tokens: int32[B], newest token of each row, not yet in the cache.
      positions: int32[B], its position, and where the next key and value are written. Only tokens before it
        are valid: a slot of the cache is overwritten before a token may attend to it.
      remaining: int32[B], tokens that may still be drawn.
      live: bool[B], True for rows that draw a token in each step.
      requests: constants of each row.
      seen: tokens so far, for the penalties.
      ids: int32[B, S], tokens so far by position, for drafts.
      drafts: which rows may draft.
    """

    caches: tuple
    tokens: jax.Array
    positions: jax.Array
    remaining: jax.Array
    live: jax.Array
    requests: Requests
    seen: Seen
    ids: jax.Array
    drafts: Drafts


class Chunk(NamedTuple):
    """Tokens of prompts, some of each.

    Attributes:
      tokens_PC: int32, padded at the end.
      slots_P: int32, slot of each prompt among those of its device's shard; past them for no prompt.
      starts_P: int32, position of the first token.
      lengths_P: int32, number of tokens.
      is_last_P: bool, True where the prompt ends with this chunk, so that a token is drawn.
    """

    tokens_PC: jax.Array
    slots_P: jax.Array
    starts_P: jax.Array
    lengths_P: jax.Array
    is_last_P: jax.Array


class Drawn(NamedTuple):
    """Tokens drawn in a block, on every device.

    Attributes:
      tokens_BN: int32; NONE where a row draws nothing, NOT_FINITE where its logits are no numbers. A stop id is given.
      log_probs_BN: float32, log-probability of each under the model itself, among the ids that can be drawn: before
        bias, penalties, temperature and cuts.
      sampled_log_probs_BN: float32, log-probability of each in the distribution that it was drawn from.
      top_ids_BNA: int32, likeliest tokens, for rows that ask for them.
      top_log_probs_BNA: float32, theirs.
    """

    tokens_BN: jax.Array
    log_probs_BN: jax.Array
    sampled_log_probs_BN: jax.Array
    top_ids_BNA: jax.Array
    top_log_probs_BNA: jax.Array


@functools.partial(jax.jit, static_argnames=('model', 'draft', 'n_slots', 'context', 'cache'))
def make_slots(
    model: Transformer, draft: Transformer | None, n_slots: int, context: int, requests: Requests, cache: str = ''
) -> Slots:
    """Makes free slots, whose caches, also of a draft model, hold `context` tokens each.

    `cache` is their kind, as of `decode.empty_caches`.
    """
    config = model.config
    zeros = lambda dtype: jnp.zeros(n_slots, dtype)
    V = config.vocab_size
    slots = Slots(
        decode.empty_caches(config, n_slots, context, cache)
        + (decode.empty_caches(draft.config, n_slots, context, cache) if draft else ()),
        tokens=zeros(jnp.int32), positions=zeros(jnp.int32), remaining=zeros(jnp.int32), live=zeros(bool),
        requests=requests, seen=Seen(jnp.zeros((n_slots, V), bool), jnp.zeros((n_slots, V), jnp.int32)),
        ids=jnp.zeros((n_slots, context), jnp.int32), drafts=Drafts(zeros(jnp.int32), zeros(jnp.int32)),
    )  # fmt: skip
    return _shard_rows(slots, config.rules)


@functools.partial(jax.jit, static_argnames='model', donate_argnames='slots')
def enter_slots(model: Transformer, slots: Slots, enters_B: jax.Array, requests: Requests) -> Slots:
    """Puts new requests into the slots where `enters_B` is True; whatever was there has ended."""
    rules = model.config.rules
    enters_B, requests = _shard_rows((enters_B, requests), rules)
    take = lambda new, old: jnp.where(enters_B.reshape(-1, *[1] * (new.ndim - 1)), new, old)
    return slots.replace(
        positions=take(jnp.zeros_like(slots.positions), slots.positions),
        remaining=take(requests.n_new, slots.remaining),
        live=slots.live & ~enters_B,
        requests=jax.tree.map(take, requests, slots.requests),
        seen=jax.tree.map(lambda x: take(jnp.zeros_like(x), x), slots.seen),
        drafts=jax.tree.map(lambda x: take(jnp.zeros_like(x), x), slots.drafts),
    )


@functools.partial(jax.jit, static_argnames=('model', 'draft', 'vocab_size', 'bound'), donate_argnames='slots')
def prefill_chunk(
    model: Transformer,
    draft: Transformer | None,
    vocab_size: int,
    bound: int,
    weights: decode.Weights,
    draft_weights: decode.Weights | None,
    slots: Slots,
    chunk: Chunk,
    allowed_BW: jax.Array,
) -> tuple[Slots, Drawn]:
    """Runs a chunk of some prompts through the model, and draws the first token of those that end with it.

    Args:
      model: the Transformer.
      draft: a smaller one that guesses tokens, whose caches are filled as well; None for none.
      vocab_size: only ids below it are drawn.
      bound: slots of the caches that are read and written; all tokens of these rows lie before it.
      weights: from `decode.prepare`.
      draft_weights: those of the draft model.
      slots: donated.
      chunk: the tokens; P is the number of prompts, on each device that of its own slots' prompts.
      allowed_BW: uint32, bits of the ids that may be drawn next, 32 in a word.
    """
    rules = model.config.rules
    B, C = len(slots.tokens), chunk.tokens_PC.shape[1]
    chunk = _shard_rows(chunk, rules)
    caches = map_shards(functools.partial(_take_rows, bound=bound), slots.caches, slots.caches, chunk.slots_P)
    positions_PC = mesh.shard(chunk.starts_P[:, None] + jnp.arange(C), rules, mesh.TOKENS)
    tokens_PC = mesh.shard(chunk.tokens_PC, rules, mesh.TOKENS)
    n = model.config.n_layers
    last_P = chunk.lengths_P - 1
    logits_PV, updated = decode.forward(model, weights, tokens_PC, positions_PC, caches[:n], last_P)
    if draft:
        updated += decode.forward(draft, draft_weights, tokens_PC, positions_PC, caches[n:], last_P)[1]

    def put(
        state: tuple, caches: tuple, logits_PV: jax.Array, chunk: Chunk
    ) -> tuple[tuple, jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]:
        old_caches, logits_BV, positions_B, prompt_BV, ids_BS = state
        rows = chunk.slots_P
        update = lambda old, new: old.at[rows, :, : new.shape[2]].set(new, mode='drop', unique_indices=True)
        ends_B = jnp.zeros(len(positions_B), bool).at[rows].set(chunk.is_last_P, mode='drop')
        # Padding is an id past the vocabulary at a position past the last: neither is written.
        is_token_PC = jnp.arange(C) < chunk.lengths_P[:, None]
        ids_PC = jnp.where(is_token_PC, chunk.tokens_PC, prompt_BV.shape[1])
        places_PC = jnp.where(is_token_PC, chunk.starts_P[:, None] + jnp.arange(C), ids_BS.shape[1])
        return (
            jax.tree.map(update, old_caches, caches),
            logits_BV.at[rows].set(logits_PV, mode='drop'),
            positions_B.at[rows].set(chunk.starts_P + chunk.lengths_P, mode='drop'),
            prompt_BV.at[rows[:, None], ids_PC].set(True, mode='drop'),
            ids_BS.at[rows[:, None], places_PC].set(chunk.tokens_PC, mode='drop'),
            ends_B,
        )

    logits_PV = mesh.shard(logits_PV, rules, ('batch', None))
    logits_BV = mesh.shard(jnp.zeros((B, logits_PV.shape[1]), logits_PV.dtype), rules, ('batch', None))
    state = slots.caches, logits_BV, slots.positions, slots.seen.prompt_BV, slots.ids
    out_like = (*state, slots.live)
    caches, logits_BV, positions_B, prompt_BV, ids_BS, ends_B = map_shards(
        put, out_like, state, updated, logits_PV, chunk
    )
    seen = slots.seen._replace(prompt_BV=prompt_BV)
    slots = slots.replace(caches=caches, positions=positions_B, seen=seen, ids=ids_BS)
    allowed_BW = mesh.shard(allowed_BW, rules, ('batch', None))
    slots, drawn = draw(slots, logits_BV, ends_B, allowed_BW, vocab_size)
    return slots, jax.tree.map(lambda x: replicate(x[:, None]), drawn)


def draw(
    slots: Slots, logits_BV: jax.Array, draws_B: jax.Array, allowed_BW: jax.Array, vocab_size: int
) -> tuple[Slots, Drawn]:
    """Draws a token for the rows of `draws_B`; `slots.positions` is already that of the new token.

    A token is a function of its request, position and logits alone: rows are independent, and
    each device draws for its own.
    """
    requests, positions_B = slots.requests, slots.positions
    draw_local = functools.partial(draw_rows, vocab_size)
    one, two = slots.tokens, logits_BV
    drawn = map_shards(
        draw_local, Drawn(one, one, one, two, two), logits_BV, requests, positions_B, slots.seen, allowed_BW
    )
    tokens_B = jnp.where(draws_B, drawn.tokens_BN, NONE)
    remaining_B = slots.remaining - draws_B
    is_stop_B = (tokens_B[:, None] == requests.stop_ids).any(-1) | (tokens_B == NOT_FINITE)
    live_B = jnp.where(draws_B, ~is_stop_B & (remaining_B > 0), slots.live)

    def count(counts_BV: jax.Array, tokens_B: jax.Array) -> jax.Array:
        return counts_BV.at[jnp.arange(len(tokens_B)), jnp.where(tokens_B < 0, counts_BV.shape[1], tokens_B)].add(
            1, mode='drop'
        )

    def write(ids_BS: jax.Array, tokens_B: jax.Array, positions_B: jax.Array) -> jax.Array:
        places_B = jnp.where(tokens_B < 0, ids_BS.shape[1], positions_B)
        return ids_BS.at[jnp.arange(len(tokens_B)), places_B].set(tokens_B, mode='drop')

    counts_BV = map_shards(count, slots.seen.counts_BV, slots.seen.counts_BV, tokens_B)
    slots = slots.replace(
        ids=map_shards(write, slots.ids, slots.ids, tokens_B, positions_B),
        tokens=jnp.where(draws_B & (tokens_B >= 0), tokens_B, slots.tokens), remaining=remaining_B, live=live_B,
        seen=slots.seen._replace(counts_BV=counts_BV),
    )  # fmt: skip
    return slots, drawn._replace(tokens_BN=tokens_B)


def draw_rows(
    vocab_size: int, logits_BV: jax.Array, requests: Requests, positions_B: jax.Array, seen: Seen, allowed_BW: jax.Array
) -> Drawn:
    """Draws for local rows; the fields of the result are without the dimension N."""
    ids_V = jnp.arange(logits_BV.shape[-1])
    is_drawable_V = ids_V < vocab_size
    log_probs_BV = jax.nn.log_softmax(jnp.where(is_drawable_V, logits_BV, -jnp.inf))
    is_number_B = (logits_BV < jnp.inf).all(-1)  # which NaN is not
    bits_BV = allowed_BW[:, ids_V // 32] >> (ids_V % 32).astype(jnp.uint32)
    allowed_BV = is_drawable_V & (bits_BV & 1 == 1)
    row_key = lambda bits, choice, position: jax.random.fold_in(
        jax.random.fold_in(jax.random.wrap_key_data(bits, impl='threefry2x32'), choice), position
    )
    keys_B = jax.vmap(row_key)(requests.seeds, requests.choices, positions_B)
    allowed_logits_BV = jnp.where(allowed_BV, logits_BV, -jnp.inf)
    tokens_B, sampled_B = samplers.sample(allowed_logits_BV, requests.settings, keys_B, seen)
    tokens_B = jnp.where(is_number_B, tokens_B, NOT_FINITE)
    log_probs_B = jnp.take_along_axis(log_probs_BV, jnp.maximum(tokens_B, 0)[:, None], axis=-1)[:, 0]
    n = min(ALTERNATIVES, logits_BV.shape[-1])
    fill = ((0, 0), (0, ALTERNATIVES - n))

    def likeliest() -> tuple[jax.Array, jax.Array]:
        top_BA, ids_BA = jax.lax.top_k(log_probs_BV, n)
        return jnp.pad(ids_BA, fill, constant_values=NONE), jnp.pad(top_BA, fill)

    shape = (len(tokens_B), ALTERNATIVES)
    nothing = lambda: (jnp.full(shape, NONE, jnp.int32), jnp.zeros(shape, jnp.float32))
    ids_BA, top_BA = jax.lax.cond(requests.alternatives.any(), likeliest, nothing)
    return Drawn(tokens_B, log_probs_B, sampled_B, ids_BA, top_BA)


def _take_rows(caches: tuple, slots_P: jax.Array, bound: int) -> tuple:
    """Cuts the first `bound` tokens of some slots out of local caches; slots past the last give the last."""
    return jax.tree.map(lambda x: x.at[slots_P, :, :bound].get(mode='clip'), caches)


def map_shards(function: Callable[..., Any], out_like: Any, *args: Any) -> Any:
    """Applies a function to each device's rows of the arguments.

    Args:
      function: of local arrays.
      out_like: tree of arrays, whose shardings are those of the results.
      *args: trees of arrays, sharded by rows; only caches may be split in another dimension too.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return function(*args)
    specs = lambda tree: jax.tree.map(lambda x: jax.typeof(x).sharding.spec, tree)
    return jax.shard_map(function, in_specs=specs(args), out_specs=specs(out_like), check_vma=False)(*args)


def replicate(x: jax.Array) -> jax.Array:
    """Replicates `x` on every device, so that every host can read it."""
    return x if jax.sharding.get_abstract_mesh().empty else jax.sharding.reshard(x, jax.P())


def _shard_rows(tree: Any, rules: tuple) -> Any:
    """Shards arrays [B, ...] by rows; caches [B, G, S, K] are sharded where they are made."""
    return jax.tree.map(
        lambda x: x if jnp.ndim(x) == 4 else mesh.shard(x, rules, ('batch', *[None] * (jnp.ndim(x) - 1))), tree
    )
