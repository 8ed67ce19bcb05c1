"""Tokens in, tokens out: prefill once, then decode blocks of tokens over a cache.

Shapes: B rows, L prompt length, S cache slots, V vocabulary, N tokens of a block.
"""

from collections.abc import Iterable, Iterator, Sequence
import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.config.schema import ConfigError
from llm_jax.dist import mesh
from llm_jax.generate import decode
from llm_jax.generate.samplers import Sampler
from llm_jax.nn.transformer import Transformer

# Tokens decoded per dispatch. More would hide the host better, but stream less smoothly.
BLOCK = 16
# Written where a row has no more tokens.
NONE = -1


@flax.struct.dataclass
class Rows:
    """Where decoding stands, row by row.

    Attributes:
      caches: of each layer; arrays [B, G, S, K], whatever the attention keeps.
      tokens: int32[B], the latest token, not yet in the cache.
      positions: int32[B], its position.
      done: bool[B], whether the row has met a stop id.
    """

    caches: tuple
    tokens: jax.Array
    positions: jax.Array
    done: jax.Array


@dataclasses.dataclass(frozen=True)
class _Choose:
    """How logits become the next token; compiled in."""

    sampler: Sampler
    vocab_size: int
    rules: tuple

    def __call__(self, logits_BV: jax.Array, key: jax.Array, positions_B: jax.Array) -> jax.Array:
        """The token at each row's position, int32[B]: a function of key, row, position and logits."""
        batch, rules = ('batch',), self.rules
        row_ids_B = mesh.shard(jnp.arange(len(logits_BV)), rules, batch)
        logits_BV = mesh.shard(logits_BV, rules, ('batch', None))
        draw = self._draw
        if not jax.sharding.get_abstract_mesh().empty:
            # Rows are independent, so each device draws for its own.
            rows, matrix = mesh.spec(rules, batch), mesh.spec(rules, ('batch', None))
            draw = jax.shard_map(draw, in_specs=(matrix, jax.P(), rows, rows), out_specs=rows)
        return draw(logits_BV, key, row_ids_B, positions_B)

    def _draw(self, logits_BV, key, row_ids_B, positions_B):
        real_V = jnp.arange(logits_BV.shape[-1]) < self.vocab_size
        logits_BV = jnp.where(real_V, logits_BV, -jnp.inf)
        row_key = lambda row, position: jax.random.fold_in(jax.random.fold_in(key, row), position)
        return self.sampler(logits_BV, jax.vmap(row_key)(row_ids_B, positions_B))


_unstack = jax.jit(decode.unstack, static_argnames='config')


@functools.partial(jax.jit, static_argnames=('model', 'choose', 'slots'))
def _prefill(model, choose, slots, weights, prompts_BL, lengths_B, key, stop_ids) -> tuple[Rows, jax.Array]:
    """Reads the prompts. Returns the rows and their first tokens, int32[B, 1] on every device.

    A prompt of length 0 is a row that only fills up the batch. What pads a prompt leaves
    keys in slots after it; each is overwritten before a token may see that slot.
    """
    config = model.config
    B, L = prompts_BL.shape
    tokens_BL = mesh.shard(prompts_BL, config.rules, mesh.TOKENS)
    lengths_B = mesh.shard(lengths_B, config.rules, ('batch',))
    positions_BL = mesh.shard(jnp.broadcast_to(jnp.arange(L), (B, L)), config.rules, mesh.TOKENS)
    logits_BV, caches = decode.forward(
        model, weights, tokens_BL, positions_BL, decode.empty_caches(config, B, L), jnp.maximum(lengths_B - 1, 0)
    )
    caches = jax.tree.map(lambda slot: jnp.pad(slot, ((0, 0), (0, 0), (0, slots - L), (0, 0))), caches)
    tokens_B = choose(logits_BV, key, lengths_B)
    done_B = (lengths_B == 0) | _is_in(tokens_B, stop_ids)
    return Rows(caches, tokens_B, lengths_B, done_B), _everywhere(jnp.where(done_B, NONE, tokens_B)[:, None])


@functools.partial(jax.jit, static_argnames=('model', 'choose'), donate_argnames='rows')
def _decode(model, choose, weights, rows: Rows, key, stop_ids, limit) -> tuple[Rows, jax.Array]:
    """Up to `limit` <= BLOCK more tokens. Returns the rows and the tokens, int32[B, BLOCK] on every device."""
    out_BN = mesh.shard(jnp.full((len(rows.tokens), BLOCK), NONE), model.config.rules, ('batch', None))

    def unfinished(carry):
        step, rows, _ = carry
        return (step < limit) & ~_everywhere(rows.done).all()

    def one_token(carry):
        step, rows, out_BN = carry
        logits_BV, caches = decode.forward(
            model, weights, rows.tokens[:, None], rows.positions[:, None], rows.caches, rows.positions
        )
        positions_B = rows.positions + 1
        tokens_B = choose(logits_BV, key, positions_B)
        done_B = rows.done | _is_in(tokens_B, stop_ids)
        new_B1 = jnp.where(done_B, NONE, tokens_B)[:, None]
        out_BN = jnp.where(jnp.arange(BLOCK) == step, new_B1, out_BN)
        return step + 1, Rows(caches, tokens_B, positions_B, done_B), out_BN

    _, rows, out_BN = jax.lax.while_loop(unfinished, one_token, (0, rows, out_BN))
    return rows, _everywhere(out_BN)


def _is_in(tokens_B: jax.Array, ids: jax.Array) -> jax.Array:
    return (tokens_B[:, None] == ids).any(-1)


def _everywhere(x: jax.Array) -> jax.Array:
    """`x` whole on every device, so that every host can read it."""
    return x if jax.sharding.get_abstract_mesh().empty else jax.sharding.reshard(x, jax.P())


def stream(
    model: Transformer,
    params: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sampler: Sampler | None = None,
    seed: int = 0,
    stop_ids: Iterable[int] = (),
    vocab_size: int | None = None,
) -> Iterator[list[list[int]]]:
    """Continues the prompts, and yields what is new as it comes.

    A row's tokens are a function of (seed, its index, its prompt) alone: not of the
    other rows, nor of the mesh, up to rounding. For several samples of one prompt, give
    it several times. Under `jax.set_mesh` the rows are split over the mesh; every host
    must make the same call. Prompts and seeds do not recompile; lengths do so seldom,
    being rounded up (see `bucket`); a new sampler or number of prompts does.

    Args:
      model: the Transformer.
      params: its parameters, on the current mesh.
      prompts: token ids, at least one each.
      max_new_tokens: most tokens to add to each.
      sampler: how tokens are drawn; default: from the model's own distribution.
      seed: of the draws.
      stop_ids: tokens that end a row; they are not part of its result. A row that ends
        with fewer than max_new_tokens met one.
      vocab_size: only ids below are drawn; default: all that the model has.

    Yields:
      First one new token of each row, then blocks of at most BLOCK; a row that has
      ended gives no more. The blocks, joined, are what `generate` returns.

    Raises:
      ConfigError: an empty or unknown prompt, or one that max_new_tokens takes past
        model.max_seq_len; raised by the call, not by the first step of the iteration.
    """
    model = _by_rows(model)
    config = model.config
    sampler = Sampler() if sampler is None else sampler
    vocab_size = config.vocab_size if vocab_size is None else vocab_size
    if not 0 < vocab_size <= config.vocab_size:
        raise ConfigError(f"vocab_size = {vocab_size} must be between 1 and the model's {config.vocab_size}")
    if max_new_tokens < 1:
        raise ConfigError(f'max_new_tokens = {max_new_tokens} must be at least 1')
    _check_prompts(prompts, max_new_tokens, config.vocab_size, config.max_seq_len)
    if not prompts:
        return iter(())
    stop_ids = np.asarray(list(stop_ids), np.int32)
    choose = _Choose(sampler, vocab_size, config.rules)
    return _blocks(model, params, prompts, max_new_tokens, choose, jax.random.key(seed), stop_ids)


def generate(model: Transformer, params: Any, prompts: Sequence[Sequence[int]], **options: Any) -> list[list[int]]:
    """The new tokens of each prompt, whole. Options and errors are those of `stream`."""
    out = [[] for _ in prompts]
    for block in stream(model, params, prompts, **options):
        for row, new in zip(out, block, strict=True):
            row.extend(new)
    return out


def _by_rows(model: Transformer) -> Transformer:
    """The model with tokens of a row on one device: devices that share a row in training take rows of their own."""
    rules = model.config.rules
    if mesh.shard_count(rules, 'length') == mesh.shard_count(rules, 'residual_length') == 1:
        return model
    return Transformer(dataclasses.replace(model.config, rules=mesh.whole_rows(rules)))


def _check_prompts(prompts, max_new_tokens: int, vocab_size: int, max_seq_len: int) -> None:
    for i, prompt in enumerate(prompts):
        if not len(prompt):
            raise ConfigError(f'prompt {i} has no tokens; begin it with the BOS token')
        for token in prompt:
            if not 0 <= token < vocab_size:
                raise ConfigError(f'prompt {i} has token {token}, but the model knows 0 to {vocab_size - 1}')
        if len(prompt) + max_new_tokens > max_seq_len:
            raise ConfigError(
                f'prompt {i} has {len(prompt)} tokens, and with max_new_tokens = {max_new_tokens} that is '
                f'{len(prompt) + max_new_tokens}, past model.max_seq_len = {max_seq_len}; shorten one of them'
            )


def _blocks(model, params, prompts, max_new_tokens, choose, key, stop_ids) -> Iterator[list[list[int]]]:
    config, B = model.config, len(prompts)
    shards = mesh.batch_shard_count(config.rules)
    lengths_B = np.zeros(-(-B // shards) * shards, np.int32)
    lengths_B[:B] = [len(prompt) for prompt in prompts]
    longest = int(lengths_B.max())
    prompts_BL = np.zeros((len(lengths_B), bucket(longest, config.max_seq_len)), np.int32)
    for row, prompt in zip(prompts_BL, prompts, strict=False):
        row[: len(prompt)] = prompt
    slots = bucket(max(longest + max_new_tokens, prompts_BL.shape[1]), config.max_seq_len)

    weights = _unstack(params, config=config)
    rows, tokens_BN = _prefill(model, choose, slots, weights, prompts_BL, lengths_B, key, stop_ids)
    left = max_new_tokens - 1
    while True:
        # The next block is under way before the tokens of this one are fetched.
        following = None
        if left > 0:
            rows, following = _decode(model, choose, weights, rows, key, stop_ids, min(left, BLOCK))
            left -= BLOCK
        new = np.asarray(tokens_BN)[:B]
        if (new != NONE).any():
            yield [[int(token) for token in row[row != NONE]] for row in new]
        if following is None or (new[:, -1] == NONE).all():
            return
        tokens_BN = following


def bucket(n: int, most: int) -> int:
    """`n` rounded up so that few different lengths are compiled: by at most a quarter, and never past `most`.

    Powers of two from 32 on, and three even steps between each and the next.
    """
    n = max(n, 32)
    step = 1 << ((n - 1).bit_length() - 3)
    return min(-(-n // step) * step, most)
