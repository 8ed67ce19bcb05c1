"""Tokens of a context and its continuation, cut where lm-eval cuts them; pure, without JAX."""

from collections.abc import Sequence
import dataclasses
import itertools

from llm_jax.config.schema import ConfigError
from llm_jax.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A request as tokens.

    Attributes:
      context: ids before the continuation, BOS among them, whole.
      continuation: ids to score, at least one.
      windows: what the model reads, with the number of ids to score at the end of each: the last ids of both that its
        context holds, one more than it reads; of a continuation longer than that, several, which score each id once.
      is_truncated: True if ids were cut on the left.
      spans_boundary: True if a token spans the boundary, so that the continuation was encoded alone.
    """

    context: tuple[int, ...]
    continuation: tuple[int, ...]
    windows: tuple[tuple[tuple[int, ...], int], ...]
    is_truncated: bool
    spans_boundary: bool


def encode_pair(tokenizer: Tokenizer, context: str, continuation: str, *, bos: bool, max_seq_len: int) -> Encoded:
    """Encodes context and continuation as one text, cut at the length of the encoded context.

    Spaces at the end of the context move to the continuation. Without a context the continuation follows BOS,
    also of models whose texts do not begin with it. What is too long is cut on the left, BOS with it; a continuation
    that is too long by itself (which lm-eval refuses) is read in windows.

    Args:
      tokenizer: of the model.
      context: text that is given.
      continuation: text that is scored.
      bos: whether a text begins with BOS.
      max_seq_len: tokens that the model reads at once.

    Raises:
      ConfigError: a continuation that has no token.
    """
    spans = False
    if not context:
        before, after = [tokenizer.bos_id], tokenizer.encode(continuation)
    else:
        stripped = context.rstrip()
        continuation = context[len(stripped) :] + continuation
        start = [tokenizer.bos_id] * bos
        before = start + tokenizer.encode(stripped)
        whole = start + tokenizer.encode(stripped + continuation)
        after = whole[len(before) :]
        if not after:
            after, spans = tokenizer.encode(continuation), True
        before = before or [tokenizer.bos_id]  # a context of spaces alone, without BOS
    if not after:
        raise ConfigError(f'the continuation {continuation!r} has no token; give it text')
    if len(after) <= max_seq_len:
        kept = (*before, *after)[-(max_seq_len + 1) :]
        return Encoded(tuple(before), tuple(after), ((kept, len(after)),), len(kept) < len(before) + len(after), spans)
    windows = rolling_windows(after, first=before[-1], max_seq_len=max_seq_len)
    return Encoded(tuple(before), tuple(after), tuple((tuple(ids), n) for ids, n in windows), True, spans)


def rolling_windows(tokens: Sequence[int], *, first: int, max_seq_len: int) -> list[tuple[list[int], int]]:
    """Windows of a text in which each token is scored once: (ids, number of scored ids at their end).

    The last ends with the text and reads as much before it as the context holds, as those of lm-eval.

    Args:
      tokens: of the text, without BOS.
      first: id before them, given and never scored: BOS.
      max_seq_len: tokens that the model reads at once.
    """
    windows, done = [], 0
    tokens = list(tokens)
    while done < len(tokens):
        if not done:
            count = min(len(tokens), max_seq_len)
            windows.append(([first, *tokens[:count]], count))
        else:
            count = min(len(tokens) - done, max_seq_len)
            end = done + count
            windows.append((tokens[max(end - max_seq_len - 1, 0) : end], count))
        done += count
    return windows


def encode_alike(
    tokenizer: Tokenizer, requests: Sequence[tuple[str, str]], *, from_end: bool, max_seq_len: int
) -> list[Encoded]:
    """Encodes the prompts of an item whole, and cuts them where their tokens begin to differ, as DCLM CORE does.

    Every prompt begins with BOS. A single prompt is cut after the tokens of its context without the spaces at its end.
    What is too long is cut on the left to the tokens that the model reads.

    Args:
      tokenizer: of the model.
      requests: (context, continuation) of each prompt.
      from_end: True scores the tokens that all prompts end with, False what follows those that all begin with.
      max_seq_len: tokens that the model reads at once.

    Raises:
      ConfigError: a prompt without a scored token, or with more than the model reads.
    """
    rows = [[tokenizer.bos_id, *tokenizer.encode(context + ending)] for context, ending in requests]
    spans = False
    if len(rows) == 1:
        given = [tokenizer.bos_id, *tokenizer.encode(requests[0][0].strip())]
        n_given = _count_alike([given, rows[0]])
        spans = n_given < len(given)
        starts = [n_given]
    elif from_end:
        n_scored = _count_alike([row[::-1] for row in rows])
        starts = [len(row) - n_scored for row in rows]
    else:
        starts = [_count_alike(rows)] * len(rows)
    out = []
    for row, start, (_, ending) in zip(rows, starts, requests, strict=True):
        if not 0 < len(row) - start < min(len(row), max_seq_len):
            raise ConfigError(
                f'the continuation {ending[:60]!r} has {len(row) - start} tokens of its own; it needs from 1 to '
                f'{max_seq_len - 1}: leave the item out, or take a model with a longer context'
            )
        kept = tuple(row[-max_seq_len:])
        n_scored = len(row) - start
        out.append(Encoded(tuple(row[:start]), tuple(row[start:]), ((kept, n_scored),), len(kept) < len(row), spans))
    return out


def _count_alike(rows: Sequence[Sequence[int]]) -> int:
    """Returns how many tokens all rows begin with."""
    alike = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*rows, strict=False))
    return sum(1 for _ in alike)
