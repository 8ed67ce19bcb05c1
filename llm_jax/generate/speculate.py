"""Guesses of the next tokens, which the model then checks together (Leviathan et al. 2023, arXiv:2211.17192).

A guess is kept where it is the very token that the row draws, with its own key, from the model's logits: so the
tokens are those of plain decoding, whatever was guessed.

Shapes: B slots, S tokens that a slot holds, K tokens that are guessed.
"""

import dataclasses

import jax
import jax.numpy as jnp

from llm_jax.config.schema import ConfigError
from llm_jax.dist import mesh
from llm_jax.generate import decode
from llm_jax.generate.slots import Drafts, Slots, draw_rows, map_shards
from llm_jax.nn.transformer import Transformer

# Tokens that must occur again for what followed them to be a guess.
NGRAM = 3
# After so many guesses in a row that were wrong the pause between two no longer doubles.
MOST_MISSES = 6


@dataclasses.dataclass(frozen=True)
class Speculation:
    """How tokens are guessed.

    Attributes:
      n_draft: tokens of a guess.
      draft: a smaller model of the same vocabulary that guesses; None: what followed the last tokens when they
        occurred before in the row (prompt lookup, Saxena 2023).
    """

    n_draft: int = 7
    draft: Transformer | None = None

    def __post_init__(self) -> None:
        if not 0 < self.n_draft < 64:
            raise ConfigError(f'n_draft = {self.n_draft} must be from 1 to 63')


def check_draft(model: Transformer, draft: Transformer, context: int) -> None:
    """Raises: ConfigError: a draft model of another vocabulary, or of a shorter context."""
    sizes = model.config.vocab_size, draft.config.vocab_size
    if sizes[0] != sizes[1]:
        raise ConfigError(
            f'the draft model has a vocabulary of {sizes[1]} and the model one of {sizes[0]}; they need the same '
            'tokenizer'
        )
    if draft.config.max_seq_len < context:
        raise ConfigError(
            f"the draft model's max_seq_len = {draft.config.max_seq_len} is shorter than the context of {context}; "
            'take a smaller context, or another draft model'
        )


def look_up(slots: Slots, active_B: jax.Array, n_draft: int) -> tuple[jax.Array, jax.Array]:
    """Guesses what followed the newest NGRAM tokens of a row when they occurred last.

    Args:
      slots: the rows.
      active_B: bool, rows to guess for.
      n_draft: K.

    Returns:
      (int32[B, K], bool[B]: whether there is a guess)
    """

    def search(ids_BS: jax.Array, positions_B: jax.Array) -> tuple[jax.Array, jax.Array]:
        at_S = jnp.arange(ids_BS.shape[1])
        matches_BS = (at_S >= NGRAM - 1) & (at_S < positions_B[:, None]) & (positions_B[:, None] >= NGRAM)
        for back in range(NGRAM):
            newest_B1 = jnp.take_along_axis(ids_BS, jnp.maximum(positions_B - back, 0)[:, None], axis=1)
            matches_BS &= jnp.roll(ids_BS, back, axis=1) == newest_B1
        last_B = jnp.max(jnp.where(matches_BS, at_S, -1), axis=1)
        # A text that repeats itself is guessed to repeat itself: the guess goes round in what lies between.
        period_B1 = jnp.maximum(positions_B - last_B, 1)[:, None]
        from_BK = last_B[:, None] + 1 + jnp.arange(n_draft) % period_B1
        return jnp.take_along_axis(ids_BS, from_BK, axis=1), last_B >= 0

    like = slots.tokens[:, None], slots.live
    draft_BK, found_B = map_shards(search, like, slots.ids, slots.positions)
    return draft_BK, found_B & active_B & (slots.positions >= slots.drafts.next)


def record(slots: Slots, tried_B: jax.Array, before_B: jax.Array) -> Slots:
    """Notes which guesses were of use; a row whose guesses are wrong pauses ever longer.

    Args:
      slots: after the guess was checked.
      tried_B: bool, rows that had a guess.
      before_B: int, their positions before it was.
    """
    is_hit_B = slots.positions > before_B + 1
    misses_B = jnp.where(is_hit_B, 0, jnp.minimum(slots.drafts.misses + 1, MOST_MISSES))
    next_B = jnp.where(is_hit_B, 0, slots.positions + (1 << misses_B))
    drafts = Drafts(jnp.where(tried_B, next_B, slots.drafts.next), jnp.where(tried_B, misses_B, slots.drafts.misses))
    return slots.replace(drafts=drafts)


def propose(
    draft: Transformer,
    weights: decode.Weights,
    caches: tuple,
    slots: Slots,
    active_B: jax.Array,
    allowed_BW: jax.Array,
    vocab_size: int,
    n_draft: int,
) -> tuple[jax.Array, tuple]:
    """Guesses with a smaller model, which draws with the keys and settings of the row.

    Args:
      draft: the smaller model.
      weights: its weights.
      caches: its caches, with all tokens of a row but the newest.
      slots: the rows.
      active_B: bool, rows to guess for.
      allowed_BW: as of `prefill_chunk`.
      vocab_size: as of `prefill_chunk`.
      n_draft: K.

    Returns:
      (int32[B, K], caches with the newest token and the guesses)
    """
    S = slots.ids.shape[1]

    def guess(i: jax.Array, carry: tuple) -> tuple:
        tokens_B, draft_BK, caches = carry
        positions_B1 = jnp.where(active_B, slots.positions + i, S)[:, None]
        zeros_B = jnp.zeros_like(slots.positions)
        logits_BV, caches = decode.forward(draft, weights, tokens_B[:, None], positions_B1, caches, zeros_B)
        logits_BV = mesh.shard(logits_BV, draft.config.rules, ('batch', None))
        local = lambda *args: draw_rows(vocab_size, *args).tokens_BN
        arguments = logits_BV, slots.requests, slots.positions + i + 1, slots.seen, allowed_BW
        tokens_B = jnp.maximum(map_shards(local, slots.tokens, *arguments), 0)
        return tokens_B, jnp.where(jnp.arange(n_draft) == i, tokens_B[:, None], draft_BK), caches

    draft_BK = jnp.broadcast_to(jnp.zeros_like(slots.tokens)[:, None], (len(slots.tokens), n_draft))
    # Once more than there are guesses, so that the cache has the last one too.
    _, draft_BK, caches = jax.lax.fori_loop(0, n_draft + 1, guess, (slots.tokens, draft_BK, caches))
    return draft_BK, caches
