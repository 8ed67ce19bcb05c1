"""Beam search: the likeliest continuations of a prompt, rather than drawn ones.

Rules and results are those of Transformers' `generate(num_beams=...)`, so that scores can be compared: a beam's
score is the sum of its tokens' log-probabilities over length ** length_penalty, the stop id included in both.

Shapes: R prompts, N beams of each, B = R * N, K candidates, T new tokens, M stop ids, C tokens of a chunk.
"""

from collections.abc import Iterable, Sequence
import dataclasses
import functools
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.config.schema import ConfigError
from llm_jax.dist import mesh
from llm_jax.generate import decode
from llm_jax.generate.engine import bucket
from llm_jax.generate.requests import NOT_NUMBERS, Finish, Request, check_request
from llm_jax.generate.slots import map_shards, replicate
from llm_jax.nn.transformer import Transformer

# Most beams that are decoded together, and tokens of the prompts that one program prefills.
_MOST_ROWS, _CHUNK = 64, 512
# Is added to the scores of beams that are out, as Transformers does.
_OUT = -1.0e9


@dataclasses.dataclass(frozen=True)
class Beams:
    """How beams are searched and ranked.

    Attributes:
      n_beams: N, beams that are kept at each step.
      length_penalty: exponent of the length in a score; above 0 prefers longer texts, 0 compares sums.
      early_stopping: True ends a search as soon as N beams have ended; False when the best running beam, at its
        length, is behind the worst that has ended; 'never' when no running beam can get ahead at any length.
      n_return: beams to return, the best first; fewer where the vocabulary has not so many texts.
    """

    n_beams: int = 4
    length_penalty: float = 1.0
    early_stopping: bool | Literal['never'] = False
    n_return: int = 1

    def __post_init__(self) -> None:
        if self.n_beams < 2:
            raise ConfigError(f'n_beams = {self.n_beams} must be at least 2; one beam is greedy: temperature = 0')
        if not math.isfinite(self.length_penalty):
            raise ConfigError(f'length_penalty = {self.length_penalty} must be a finite number; 0 is none')
        if self.early_stopping not in (True, False, 'never'):
            raise ConfigError(f"early_stopping = {self.early_stopping!r} must be True, False or 'never'")
        if not 1 <= self.n_return <= self.n_beams:
            raise ConfigError(f'n_return = {self.n_return} must be from 1 to n_beams = {self.n_beams}')


class Hypothesis(NamedTuple):
    """A continuation that was found.

    Attributes:
      tokens: new tokens, without the stop id.
      score: sum of their log-probabilities, and of the stop id's, over length ** length_penalty.
      finish: STOP_ID or LENGTH.
    """

    tokens: list[int]
    score: float
    finish: Finish


class _Search(NamedTuple):
    """State of a search, sharded by rows.

    Attributes:
      scores_RN: float32, sums of the beams that run, the best first.
      ids_RNT: int32, their tokens.
      ended_scores_RN: float32, scores of the best beams that have ended, in order; _OUT where there are fewer.
      ended_ids_RNT: int32, their tokens, the stop id among them.
      ended_lengths_RN: int32, their numbers of tokens; 0 where there are fewer.
      is_open_R: bool, False once no running beam can get ahead.
      is_number_R: bool, False once logits were no numbers.
    """

    scores_RN: jax.Array
    ids_RNT: jax.Array
    ended_scores_RN: jax.Array
    ended_ids_RNT: jax.Array
    ended_lengths_RN: jax.Array
    is_open_R: jax.Array
    is_number_R: jax.Array


def search(
    model: Transformer,
    params: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    beams: Beams | None = None,
    stop_ids: Iterable[int] = (),
    vocab_size: int | None = None,
) -> list[list[Hypothesis]]:
    """Finds the likeliest continuations of each prompt, the best first.

    A prompt's results do not depend on the others. Under `jax.set_mesh` the prompts are split over the mesh; every
    host must make the same call.

    Args:
      model: the Transformer.
      params: its parameters, on the current mesh.
      prompts: token ids, at least one each.
      max_new_tokens: most tokens to add to each; a beam that has them has ended.
      beams: how to search.
      stop_ids: tokens that end a beam.
      vocab_size: only ids below it may come; default: the whole vocabulary of the model.

    Raises:
      ConfigError: an empty or unknown prompt, or one that max_new_tokens takes past model.max_seq_len; logits that
        are no numbers.
    """
    beams, stop_ids = beams or Beams(), tuple(dict.fromkeys(stop_ids))
    most, vocab_size = model.config.max_seq_len, vocab_size or model.config.vocab_size
    limits = {'context': most, 'vocab_size': model.config.vocab_size, 'max_stop_ids': len(stop_ids)}
    for i, prompt in enumerate(prompts):
        try:
            check_request(Request(prompt, max_new_tokens, stop_ids=stop_ids), max_alternatives=0, **limits)
        except ConfigError as error:
            raise ConfigError(f'prompt {i}: {error}') from error
    model = decode.decoding_model(model)
    weights = decode.prepare(model, params)
    n_shards = mesh.batch_shard_count(model.config.rules)
    n_rows = -(-max(1, min(len(prompts), _MOST_ROWS // beams.n_beams)) // n_shards) * n_shards
    found = []
    for first in range(0, len(prompts), n_rows):
        group = prompts[first : first + n_rows]
        found += _search_rows(model, weights, group, n_rows, max_new_tokens, beams, stop_ids, vocab_size, first)
    return found


def _search_rows(
    model: Transformer,
    weights: decode.Weights,
    prompts: Sequence[Sequence[int]],
    n_rows: int,
    max_new_tokens: int,
    beams: Beams,
    stop_ids: tuple[int, ...],
    vocab_size: int,
    first: int,
) -> list[list[Hypothesis]]:
    """Searches for prompts that fit together; `first` is the number of the first, for errors."""
    longest = max(map(len, prompts))
    context = bucket(longest + max_new_tokens, model.config.max_seq_len)
    T = min(bucket(max_new_tokens, context), context)
    n_chunk = min(bucket(longest, context), _CHUNK)
    tokens_RL = np.zeros((n_rows, -(-longest // n_chunk) * n_chunk), np.int32)
    lengths_R = np.zeros(n_rows, np.int32)
    for i, prompt in enumerate(prompts):
        tokens_RL[i, : len(prompt)], lengths_R[i] = prompt, len(prompt)
    caches, logits_RV = _start(model, n_rows, context)
    for start in range(0, tokens_RL.shape[1], n_chunk):
        chunk_RC = tokens_RL[:, start : start + n_chunk]
        caches, logits_RV = _prefill(model, weights, caches, logits_RV, chunk_RC, np.int32(start), lengths_R)
    # As in Transformers, the power is taken in double precision.
    powers_T = (np.arange(1, T + 1, dtype=np.float64) ** beams.length_penalty).astype(np.float32)
    ids, scores, lengths, is_number = map(
        np.asarray,
        _decode(
            model, beams.n_beams, beams.early_stopping, beams.length_penalty > 0, vocab_size, weights, caches,
            logits_RV, lengths_R, powers_T, np.int32(max_new_tokens), np.array(stop_ids, np.int32),
        ),
    )  # fmt: skip
    found = []
    for i in range(len(prompts)):
        if not is_number[i]:
            raise ConfigError(f'prompt {first + i}: {NOT_NUMBERS}')
        found.append([])
        for n in range(beams.n_return):
            tokens = ids[i, n, : lengths[i, n]].tolist()
            # Fewer texts are possible than there are beams.
            if not tokens or scores[i, n] * powers_T[len(tokens) - 1] < _OUT / 2:
                break
            is_stopped = tokens[-1] in stop_ids
            finish = Finish.STOP_ID if is_stopped else Finish.LENGTH
            found[-1].append(Hypothesis(tokens[:-1] if is_stopped else tokens, float(scores[i, n]), finish))
    return found


@functools.partial(jax.jit, static_argnames=('model', 'n_rows', 'context'))
def _start(model: Transformer, n_rows: int, context: int) -> tuple[tuple, jax.Array]:
    """Makes empty caches of the prompts, and a place for the logits after them."""
    logits_RV = _shard_rows(jnp.zeros((n_rows, model.config.vocab_size)), model.config.rules)
    return decode.empty_caches(model.config, n_rows, context), logits_RV


@functools.partial(jax.jit, static_argnames='model', donate_argnames=('caches', 'logits_RV'))
def _prefill(
    model: Transformer,
    weights: decode.Weights,
    caches: tuple,
    logits_RV: jax.Array,
    tokens_RC: jax.Array,
    start: jax.Array,
    lengths_R: jax.Array,
) -> tuple[tuple, jax.Array]:
    """Runs a chunk of all prompts through the model.

    What is past the end of a shorter prompt is overwritten before a token may attend to it.

    Args:
      model: the Transformer.
      weights: from `decode.prepare`.
      caches: of the prompts.
      logits_RV: after the last token of the prompts that ended in an earlier chunk.
      tokens_RC: the chunk, padded.
      start: position of its first token.
      lengths_R: of the prompts.

    Returns:
      (caches, logits_RV)
    """
    rules, (R, C) = model.config.rules, tokens_RC.shape
    last_R = _shard_rows(lengths_R - 1 - start, rules)
    positions_RC = mesh.shard(jnp.broadcast_to(start + jnp.arange(C), (R, C)), rules, mesh.TOKENS)
    tokens_RC = mesh.shard(tokens_RC, rules, mesh.TOKENS)
    new_RV, caches = decode.forward(model, weights, tokens_RC, positions_RC, caches, jnp.clip(last_R, 0, C - 1))
    is_last_R1 = ((last_R >= 0) & (last_R < C))[:, None]
    return caches, jnp.where(is_last_R1, _shard_rows(new_RV, rules), logits_RV)


@functools.partial(
    jax.jit,
    static_argnames=('model', 'n_beams', 'early_stopping', 'prefers_long', 'vocab_size'),
)
def _decode(
    model: Transformer,
    n_beams: int,
    early_stopping: bool | Literal['never'],
    prefers_long: bool,
    vocab_size: int,
    weights: decode.Weights,
    caches: tuple,
    logits_RV: jax.Array,
    lengths_R: jax.Array,
    powers_T: jax.Array,
    n_new: jax.Array,
    stop_ids_M: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Decodes to the end of every search.

    Args:
      model: the Transformer.
      n_beams: N.
      early_stopping: as in `Beams`.
      prefers_long: whether the length penalty is above 0.
      vocab_size: only ids below it may come.
      weights: from `decode.prepare`.
      caches: of the R prompts.
      logits_RV: after them.
      lengths_R: their lengths; 0 for no prompt.
      powers_T: float32, t ** length_penalty for t = 1 ... T.
      n_new: most new tokens, at most T.
      stop_ids_M: tokens that end a beam.

    Returns:
      (ended_ids_RNT, ended_scores_RN, ended_lengths_RN, is_number_R) of `_Search`, on every device
    """
    rules, R, T = model.config.rules, logits_RV.shape[0], len(powers_T)
    full = lambda *shape, fill, dtype: _shard_rows(jnp.full((R, *shape), fill, dtype), rules)
    state = _Search(
        # Only the first beam counts in the first step, or all would be the same.
        scores_RN=full(n_beams, fill=0, dtype=jnp.float32) + jnp.where(jnp.arange(n_beams) == 0, 0, _OUT),
        ids_RNT=full(n_beams, T, fill=0, dtype=jnp.int32),
        ended_scores_RN=full(n_beams, fill=_OUT, dtype=jnp.float32),
        ended_ids_RNT=full(n_beams, T, fill=0, dtype=jnp.int32),
        ended_lengths_RN=full(n_beams, fill=0, dtype=jnp.int32),
        is_open_R=_shard_rows(lengths_R > 0, rules), is_number_R=full(fill=True, dtype=bool),
    )  # fmt: skip
    select_local = functools.partial(_select, early_stopping, prefers_long, vocab_size)
    widen = lambda tree: jax.tree.map(lambda x: jnp.repeat(x, n_beams, axis=0), tree)
    spread = lambda tree: map_shards(widen, tree, tree)

    def select(step: jax.Array, state: _Search, logits_BV: jax.Array, caches: tuple) -> tuple:
        """Chooses the beams after one more token, and gives each the cache of its parent."""
        tokens_B = logits_BV[:, 0].astype(jnp.int32)
        state, tokens_B, parents_B = map_shards(
            select_local, (state, tokens_B, tokens_B), state, logits_BV, step, n_new, powers_T, stop_ids_M
        )
        take = lambda caches, parents_B: jax.tree.map(lambda x: x[parents_B], caches)
        return step + 1, state, tokens_B, map_shards(take, caches, caches, parents_B)

    def is_unfinished(carry: tuple) -> jax.Array:
        step, state, _, _ = carry
        return (step < n_new) & replicate(state.is_open_R).any()

    def extend(carry: tuple) -> tuple:
        step, state, tokens_B, caches = carry
        positions_B1 = (starts_B + step - 1)[:, None]
        zeros_B = jnp.zeros_like(tokens_B)
        logits_BV, caches = decode.forward(model, weights, tokens_B[:, None], positions_B1, caches, zeros_B)
        return select(step, state, _shard_rows(logits_BV, rules), caches)

    starts_B = spread(_shard_rows(lengths_R, rules))
    carry = select(jnp.zeros_like(n_new), state, spread(logits_RV), spread(caches))
    _, state, _, _ = jax.lax.while_loop(is_unfinished, extend, carry)
    found = state.ended_ids_RNT, state.ended_scores_RN, state.ended_lengths_RN, state.is_number_R
    return jax.tree.map(replicate, found)


def _select(
    early_stopping: bool | Literal['never'],
    prefers_long: bool,
    vocab_size: int,
    state: _Search,
    logits_BV: jax.Array,
    step: jax.Array,
    n_new: jax.Array,
    powers_T: jax.Array,
    stop_ids_M: jax.Array,
) -> tuple[_Search, jax.Array, jax.Array]:
    """Chooses the best beams among all continuations by one token, for local rows.

    Args:
      early_stopping, prefers_long, vocab_size, n_new, powers_T, stop_ids_M: of `_decode`.
      state: of the local rows.
      logits_BV: after the newest token of each running beam.
      step: tokens that the beams have.

    Returns:
      (state, newest token of each running beam int32[B], index of its parent among the local beams int32[B])
    """
    (R, N), V = state.scores_RN.shape, logits_BV.shape[-1]
    logits_BV = jnp.where(jnp.arange(V) < vocab_size, logits_BV, -jnp.inf)
    is_number_R = (logits_BV < jnp.inf).all(-1).reshape(R, N).all(-1)  # which NaN is not
    sums_RNV = state.scores_RN[:, :, None] + jax.nn.log_softmax(logits_BV).reshape(R, N, V)
    # So many that N are left to run, should every stop id of the best beams be among them.
    K = min(max(2, 1 + len(stop_ids_M)) * N, N * V)
    sums_RK, flat_RK = jax.lax.top_k(sums_RNV.reshape(R, N * V), K)
    parents_RK, tokens_RK = flat_RK // V, flat_RK % V
    gather = lambda x, index: jnp.take_along_axis(x, index.reshape(*index.shape, *[1] * (x.ndim - 2)), axis=1)
    is_newest_T = jnp.arange(len(powers_T)) == step
    ids_RKT = jnp.where(is_newest_T, tokens_RK[:, :, None], gather(state.ids_RNT, parents_RK))
    ends_RK = (tokens_RK[:, :, None] == stop_ids_M).any(-1) | (step + 1 == n_new)

    running_RK = sums_RK + ends_RK * _OUT
    scores_RN, best_RN = jax.lax.top_k(running_RK, N)
    parents_RN, tokens_RN = gather(parents_RK, best_RN), gather(tokens_RK, best_RN)

    # A beam that ends counts if it is among the N best, and the search is not over.
    is_ended_RN = state.ended_lengths_RN > 0
    is_full_R = is_ended_RN.all(-1) & (early_stopping is True)
    counts_RK = ends_RK & (jnp.arange(K) < N) & (state.is_open_R & ~is_full_R)[:, None]
    ended_RK = jnp.where(counts_RK, sums_RK / powers_T[step], _OUT)
    merge = lambda old, new: jnp.concatenate([old, new], axis=1)
    ended_scores_RN, kept_RN = jax.lax.top_k(merge(state.ended_scores_RN, ended_RK), N)
    lengths_RN = gather(merge(state.ended_lengths_RN, jnp.where(counts_RK, step + 1, 0)), kept_RN)

    # The most that the best running beam can come to, against the worst that has ended.
    reach = powers_T[n_new - 1] if early_stopping == 'never' and prefers_long else powers_T[step]
    worst_R = jnp.where((lengths_RN > 0).all(-1), ended_scores_RN[:, -1], _OUT)
    is_better_R = scores_RN[:, 0] / reach > worst_R
    is_done_R = (lengths_RN > 0).all(-1) & (early_stopping is True)
    state = _Search(
        scores_RN, gather(ids_RKT, best_RN), ended_scores_RN, gather(merge(state.ended_ids_RNT, ids_RKT), kept_RN),
        lengths_RN, state.is_open_R & is_better_R & ~is_done_R,
        state.is_number_R & (is_number_R | ~state.is_open_R),
    )  # fmt: skip
    local_B = (jnp.arange(R)[:, None] * N + parents_RN).reshape(R * N)
    return state, tokens_RN.reshape(R * N), local_B


def _shard_rows(x: jax.Array, rules: tuple) -> jax.Array:
    """Shards an array whose first dimension is that of rows or beams."""
    return mesh.shard(x, rules, ('batch', *[None] * (jnp.ndim(x) - 1)))
