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

from llm_jax.config.schema import ConfigError, Model
from llm_jax.dist import mesh
from llm_jax.generate import decode
from llm_jax.generate.samplers import Sampler
from llm_jax.nn.transformer import Transformer

# Tokens decoded per dispatch. More would hide the host better, but stream less smoothly.
BLOCK = 16
# Written where a row has no more tokens.
NONE = -1
# Drawn where the logits are no numbers; it ends its row.
NOT_FINITE = -2


@flax.struct.dataclass
class DecodeState:
    """State of decoding between blocks of tokens, row by row.

    Attributes:
      caches: one cache per layer, arrays [B, G, S, K]; the attention part defines their number and sizes.
      tokens: int32[B], newest token of each row, not yet in the cache.
      positions: int32[B], position of that token.
      done: bool[B], True once the row has produced a stop id.
    """

    caches: tuple
    tokens: jax.Array
    positions: jax.Array
    done: jax.Array


@dataclasses.dataclass(frozen=True)
class _Choose:
    """Draws the next token of each row from logits; static, so its fields are compiled in.

    Attributes:
      sampler: distribution to draw from.
      vocab_size: number of ids that may be drawn; logits of higher ids are masked.
      rules: logical-axis table.
    """

    sampler: Sampler
    vocab_size: int
    rules: tuple

    def __call__(self, logits_BV: jax.Array, key: jax.Array, positions_B: jax.Array) -> jax.Array:
        """Returns the token at each row's position, int32[B]: a function of key, row, position and logits.

        It is NOT_FINITE where a logit is NaN or +inf.
        """
        batch, rules = ('batch',), self.rules
        row_ids_B = mesh.shard(jnp.arange(len(logits_BV)), rules, batch)
        logits_BV = mesh.shard(logits_BV, rules, ('batch', None))
        draw = self._draw
        if not jax.sharding.get_abstract_mesh().empty:
            # Rows are independent, so each device draws for its own.
            rows, matrix = mesh.spec(rules, batch), mesh.spec(rules, ('batch', None))
            draw = jax.shard_map(draw, in_specs=(matrix, jax.P(), rows, rows), out_specs=rows)
        return draw(logits_BV, key, row_ids_B, positions_B)

    def _draw(self, logits_BV: jax.Array, key: jax.Array, row_ids_B: jax.Array, positions_B: jax.Array) -> jax.Array:
        allowed_V = jnp.arange(logits_BV.shape[-1]) < self.vocab_size
        logits_BV = jnp.where(allowed_V, logits_BV, -jnp.inf)
        is_number_B = (logits_BV < jnp.inf).all(-1)  # which NaN is not
        row_key = lambda row, position: jax.random.fold_in(jax.random.fold_in(key, row), position)
        tokens_B = self.sampler(logits_BV, jax.vmap(row_key)(row_ids_B, positions_B))
        return jnp.where(is_number_B, tokens_B, NOT_FINITE)


_unstack = jax.jit(decode.unstack, static_argnames='config')


@functools.partial(jax.jit, static_argnames=('model', 'choose', 'slots'))
def _prefill(
    model: Transformer,
    choose: _Choose,
    slots: int,
    weights: decode.Weights,
    prompts_BL: jax.Array,
    lengths_B: jax.Array,
    drawn_at_B: jax.Array,
    key: jax.Array,
    stop_ids: jax.Array,
) -> tuple[DecodeState, jax.Array]:
    """Runs the prompts through the model; returns the state and the first new tokens, int32[B, 1] on every device.

    `drawn_at_B` is the position that the draw of each new token depends on: the length, where nothing was cut off.
    A prompt of length 0 is padding of the batch. Padding tokens of a prompt leave keys in
    the slots after it; each slot is overwritten before a token may attend to it.
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
    tokens_B = choose(logits_BV, key, mesh.shard(drawn_at_B, config.rules, ('batch',)))
    out_B = _end_row(lengths_B == 0, tokens_B, stop_ids)
    return DecodeState(caches, tokens_B, lengths_B, out_B < 0), _replicate(out_B[:, None])


@functools.partial(jax.jit, static_argnames=('model', 'choose'), donate_argnames='state')
def _decode(
    model: Transformer,
    choose: _Choose,
    weights: decode.Weights,
    state: DecodeState,
    key: jax.Array,
    stop_ids: jax.Array,
    limit: jax.Array,
) -> tuple[DecodeState, jax.Array]:
    """Decodes up to `limit` <= BLOCK tokens; returns the state and the tokens, int32[B, BLOCK] on every device."""
    out_BN = mesh.shard(jnp.full((len(state.tokens), BLOCK), NONE), model.config.rules, ('batch', None))

    def is_unfinished(carry: tuple) -> jax.Array:
        step, state, _ = carry
        return (step < limit) & ~_replicate(state.done).all()

    def decode_token(carry: tuple) -> tuple:
        step, state, out_BN = carry
        logits_BV, caches = decode.forward(
            model, weights, state.tokens[:, None], state.positions[:, None], state.caches, state.positions
        )
        positions_B = state.positions + 1
        tokens_B = choose(logits_BV, key, positions_B)
        out_B = _end_row(state.done, tokens_B, stop_ids)
        out_BN = jnp.where(jnp.arange(BLOCK) == step, out_B[:, None], out_BN)
        return step + 1, DecodeState(caches, tokens_B, positions_B, out_B < 0), out_BN

    _, state, out_BN = jax.lax.while_loop(is_unfinished, decode_token, (0, state, out_BN))
    return state, _replicate(out_BN)


def _end_row(done_B: jax.Array, tokens_B: jax.Array, stop_ids: jax.Array) -> jax.Array:
    """Returns what each row gives, int32[B]: its token, or NONE after its end and at a stop id, or NOT_FINITE."""
    return jnp.where(done_B | (tokens_B[:, None] == stop_ids).any(-1), NONE, tokens_B)


def _replicate(x: jax.Array) -> jax.Array:
    """Replicates `x` on every device, so that every host can read it."""
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
    slide: bool = False,
) -> Iterator[list[list[int]]]:
    """Continues the prompts, and yields new tokens as they are decoded.

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
      sampler: draws the tokens; default: from the model's own distribution.
      seed: seed of the draws.
      stop_ids: tokens that end a row; they are not part of its result. A row that ends
        with fewer than max_new_tokens met one.
      vocab_size: only ids below it are drawn; default: the whole vocabulary of the model.
      slide: whether to go past model.max_seq_len; there each token is drawn from a forward pass
        over the last max_seq_len ones, without a cache, so that it takes many times as long.

    Yields:
      First one new token of each row, then blocks of at most BLOCK; a row that has
      ended gives no more. The blocks, joined, are what `generate` returns.

    Raises:
      ConfigError: an empty or unknown prompt, or, without `slide`, one that max_new_tokens takes
        past model.max_seq_len; raised by the call, not by the first step of the iteration. By
        that: logits that are no numbers.
    """
    model = _by_rows(model)
    config = model.config
    sampler = Sampler() if sampler is None else sampler
    vocab_size = config.vocab_size if vocab_size is None else vocab_size
    if not 0 < vocab_size <= config.vocab_size:
        raise ConfigError(f"vocab_size = {vocab_size} must be between 1 and the model's {config.vocab_size}")
    if max_new_tokens < 1:
        raise ConfigError(f'max_new_tokens = {max_new_tokens} must be at least 1')
    _check_prompts(prompts, config.vocab_size)
    if not slide:
        _check_lengths(prompts, max_new_tokens, config.max_seq_len)
    if not prompts:
        return iter(())
    stop_ids = np.asarray(list(stop_ids), np.int32)
    choose = _Choose(sampler, vocab_size, config.rules)
    decode_rows = _slide_window if slide else _decode_blocks
    return decode_rows(model, params, prompts, max_new_tokens, choose, jax.random.key(seed), stop_ids)


def generate(model: Transformer, params: Any, prompts: Sequence[Sequence[int]], **options: Any) -> list[list[int]]:
    """Returns all new tokens of each prompt. Options and errors are those of `stream`."""
    out = [[] for _ in prompts]
    for block in stream(model, params, prompts, **options):
        for row, new in zip(out, block, strict=True):
            row.extend(new)
    return out


def _by_rows(model: Transformer) -> Transformer:
    """Makes the model with whole rows on each device: mesh axes that split rows in training split the batch instead."""
    rules = model.config.rules
    if mesh.shard_count(rules, 'length') == mesh.shard_count(rules, 'residual_length') == 1:
        return model
    return Transformer(dataclasses.replace(model.config, rules=mesh.whole_rows(rules)))


def _check_prompts(prompts: Sequence[Sequence[int]], vocab_size: int) -> None:
    """Raises ConfigError if a prompt is empty or has an unknown token."""
    for i, prompt in enumerate(prompts):
        if not len(prompt):
            raise ConfigError(f'prompt {i} has no tokens; begin it with the BOS token')
        for token in prompt:
            if not 0 <= token < vocab_size:
                raise ConfigError(f'prompt {i} has token {token}, but the model knows 0 to {vocab_size - 1}')


def _check_lengths(prompts: Sequence[Sequence[int]], max_new_tokens: int, max_seq_len: int) -> None:
    """Raises ConfigError if a prompt leaves no room for the new tokens."""
    for i, prompt in enumerate(prompts):
        if len(prompt) + max_new_tokens > max_seq_len:
            raise ConfigError(
                f'prompt {i} has {len(prompt)} tokens, and with max_new_tokens = {max_new_tokens} that is '
                f'{len(prompt) + max_new_tokens}, past model.max_seq_len = {max_seq_len}; shorten one of them, '
                'or let the window slide (--slide)'
            )


def _decode_blocks(
    model: Transformer,
    params: Any,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    choose: _Choose,
    key: jax.Array,
    stop_ids: np.ndarray,
) -> Iterator[list[list[int]]]:
    """Yields the blocks of `stream`; decodes the next block on the device while the host reads this one."""
    config, B = model.config, len(prompts)
    prompts_BL, lengths_B = _pad_prompts(prompts, config)
    slots = bucket(max(int(lengths_B.max()) + max_new_tokens, prompts_BL.shape[1]), config.max_seq_len)

    weights = _unstack(params, config=config)
    state, tokens_BN = _prefill(model, choose, slots, weights, prompts_BL, lengths_B, lengths_B, key, stop_ids)
    left = max_new_tokens - 1
    while True:
        # The next block is dispatched before the tokens of this one are fetched.
        following = None
        if left > 0:
            state, following = _decode(model, choose, weights, state, key, stop_ids, min(left, BLOCK))
            left -= BLOCK
        new = _fetch(tokens_BN, B)
        if (new != NONE).any():
            yield [[int(token) for token in row[row != NONE]] for row in new]
        if following is None or (new[:, -1] == NONE).all():
            return
        tokens_BN = following


def _fetch(tokens_BN: jax.Array, n_rows: int) -> np.ndarray:
    """Fetches the tokens of the first rows; raises ConfigError where one could not be drawn."""
    tokens = np.asarray(tokens_BN)[:n_rows]
    if (bad := np.flatnonzero((tokens == NOT_FINITE).any(-1))).size:
        raise ConfigError(
            f'the logits after prompt {bad[0]} are not finite, so no token can be drawn: the weights hold NaN or '
            'infinities, or they overflow model.dtype; take another checkpoint, or model.dtype = float32'
        )
    return tokens


def _pad_prompts(prompts: Sequence[Sequence[int]], config: Model) -> tuple[np.ndarray, np.ndarray]:
    """Prompts as (int32[B, L], lengths int32[B]), with rows of length 0 until B divides over the mesh."""
    shards = mesh.batch_shard_count(config.rules)
    lengths_B = np.zeros(-(-len(prompts) // shards) * shards, np.int32)
    lengths_B[: len(prompts)] = [len(prompt) for prompt in prompts]
    prompts_BL = np.zeros((len(lengths_B), bucket(int(lengths_B.max()), config.max_seq_len)), np.int32)
    for row, prompt in zip(prompts_BL, prompts, strict=False):
        row[: len(prompt)] = prompt
    return prompts_BL, lengths_B


def _slide_window(
    model: Transformer,
    params: Any,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    choose: _Choose,
    key: jax.Array,
    stop_ids: np.ndarray,
) -> Iterator[list[list[int]]]:
    """Yields the blocks of `stream` with `slide`: with a cache as far as the longest row fits, then token by token."""
    most, rows = model.config.max_seq_len, [list(prompt) for prompt in prompts]
    cached = min(max_new_tokens, most - max(map(len, rows)))
    if cached > 0:
        for block in _decode_blocks(model, params, prompts, cached, choose, key, stop_ids):
            for row, new in zip(rows, block, strict=True):
                row.extend(new)
            yield block
    cached = max(cached, 0)
    ended = [len(row) < len(prompt) + cached for row, prompt in zip(rows, prompts, strict=True)]
    weights = _unstack(params, config=model.config)
    for _ in range(max_new_tokens - cached):
        if all(ended):
            return
        windows = [[] if end else row[-most:] for row, end in zip(rows, ended, strict=True)]
        windows_BL, lengths_B = _pad_prompts(windows, model.config)
        drawn_at_B = np.zeros_like(lengths_B)
        drawn_at_B[: len(rows)] = [len(row) for row in rows]
        slots = windows_BL.shape[1]
        _, tokens_B1 = _prefill(model, choose, slots, weights, windows_BL, lengths_B, drawn_at_B, key, stop_ids)
        block = [[int(token)] if token != NONE else [] for (token,) in _fetch(tokens_B1, len(rows))]
        ended = [not new for new in block]
        for row, new in zip(rows, block, strict=True):
            row.extend(new)
        if not all(ended):
            yield block


def bucket(n: int, most: int) -> int:
    """Rounds `n` up so that few different lengths are compiled: by at most a quarter, and never past `most`.

    Powers of two from 32 on, and three even steps between each and the next.
    """
    n = max(n, 32)
    step = 1 << ((n - 1).bit_length() - 3)
    return min(-(-n // step) * step, most)
