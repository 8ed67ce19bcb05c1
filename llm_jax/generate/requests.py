"""A request to continue tokens, and the row that it becomes: plain Python, without JAX."""

from collections.abc import Sequence
import dataclasses
import enum
from typing import Protocol

import numpy as np

from llm_jax.config.schema import ConfigError
from llm_jax.generate.settings import Sampler

NOT_NUMBERS = (
    'the logits are not finite, so no token can be drawn: the weights hold NaN or infinities, or they overflow '
    'model.dtype; take another checkpoint, or model.dtype = float32'
)


class Finish(enum.StrEnum):
    """Reason why a row ended."""

    STOP_ID = 'stop_id'  # a token of stop_ids
    STOP = 'stop'  # by a watcher, as at a stop string, or a constraint that is complete
    LENGTH = 'length'  # max_new_tokens, or the context is full
    CANCELLED = 'cancelled'
    ERROR = 'error'


class Constraint(Protocol):
    """Tells which tokens may come next."""

    def allowed(self) -> np.ndarray:
        """Returns bits of the ids that may come next, uint32[ceil(V / 32)], least significant bit first.

        V may be less than that of the model: ids past it, which pad its embedding, may not come.
        """
        ...

    def advance(self, token: int) -> None:
        """Takes the next token.

        Raises:
          ConfigError: nothing can follow; it ends the row as an error.
        """
        ...

    def is_complete(self) -> bool:
        """True once no token may follow but an end."""
        ...


class Watcher(Protocol):
    """Sees the tokens of a row as they come, and may end it."""

    def push(self, token: int) -> bool:
        """Takes the next token; True ends the row, with this token as its last."""
        ...


@dataclasses.dataclass(frozen=True)
class Request:
    """Tokens to continue, and how.

    Attributes:
      prompt: token ids, at least one.
      max_new_tokens: most tokens to add; None: what the context has room for.
      sampler: draws the tokens.
      seed: of the draws, from 0 on.
      choice: index among several samples of one seed: each draws otherwise.
      stop_ids: tokens that end the row; they are not part of its result.
      alternatives: number of the likeliest tokens to report beside each.
      constraint: allows tokens one by one; it belongs to this request alone.
      watcher: sees the tokens, stop ids left out, and may end the row; it belongs to this request alone.
    """

    prompt: Sequence[int]
    max_new_tokens: int | None = None
    sampler: Sampler = dataclasses.field(default_factory=Sampler)
    seed: int = 0
    choice: int = 0
    stop_ids: Sequence[int] = ()
    alternatives: int = 0
    constraint: Constraint | None = None
    watcher: Watcher | None = None


@dataclasses.dataclass
class Row:
    """A request under way, and what it has given so far.

    Attributes:
      request: with max_new_tokens filled in.
      tokens: new tokens, without the stop id.
      log_probs: log-probability of each under the model, among the ids that can be drawn: before bias, penalties,
        temperature and cuts.
      sampled_log_probs: log-probability of each in the distribution that it was drawn from.
      top: of each token, the likeliest (id, log-probability) where the request asks for them.
      finish: why it ended; None while it has not.
      error: message of Finish.ERROR.
      end_log_prob: log-probability of the stop id that ended it, if one did.
      slot: where it is; None while it waits and after its end.
      n_prefilled: tokens of the prompt that have been sent to the device.
      n_sent: most tokens that the programs sent so far can have drawn.
      n_reused: tokens of the prompt whose keys and values were there already.
    """

    request: Request
    tokens: list[int] = dataclasses.field(default_factory=list)
    log_probs: list[float] = dataclasses.field(default_factory=list)
    sampled_log_probs: list[float] = dataclasses.field(default_factory=list)
    top: list[list[tuple[int, float]]] = dataclasses.field(default_factory=list)
    finish: Finish | None = None
    error: str = ''
    end_log_prob: float | None = None
    slot: int | None = None
    n_prefilled: int = 0
    n_sent: int = 0
    n_reused: int = 0

    @property
    def is_prefilled(self) -> bool:
        return self.n_prefilled == len(self.request.prompt)

    @property
    def is_sent(self) -> bool:
        """True if all tokens that it may have are drawn by programs sent so far."""
        return self.n_sent >= self.request.max_new_tokens


def check_request(
    request: Request, *, context: int, vocab_size: int, max_stop_ids: int, max_alternatives: int
) -> Request:
    """Fills in max_new_tokens.

    Args:
      request: as it came.
      context: tokens that a row has room for.
      vocab_size: ids that the model knows.
      max_stop_ids: most stop ids of a request.
      max_alternatives: most likeliest tokens to report.

    Raises:
      ConfigError: a prompt that is empty, too long or has an unknown token; another field out of its range.
    """
    prompt = request.prompt
    if not len(prompt):
        raise ConfigError('the prompt has no tokens; begin it with the BOS token')
    unknown = next((token for token in prompt if not 0 <= token < vocab_size), None)
    if unknown is not None:
        raise ConfigError(f'the prompt has token {unknown}, but the model knows 0 to {vocab_size - 1}')
    room = context - len(prompt)
    n = room if request.max_new_tokens is None else request.max_new_tokens
    if request.max_new_tokens is not None and n < 1:
        raise ConfigError(f'max_new_tokens = {n} must be at least 1')
    if n > room or room < 1:
        total = f', and with max_new_tokens = {n} that is {len(prompt) + n},' if n > room else ', which is'
        raise ConfigError(
            f'the prompt has {len(prompt)} tokens{total} past the context of {context}; shorten it, or ask for fewer'
        )
    if not 0 <= request.seed < 1 << 64:
        raise ConfigError(f'seed = {request.seed} must be from 0 to 2^64 - 1')
    if len(request.stop_ids) > max_stop_ids:
        raise ConfigError(f'stop_ids has {len(request.stop_ids)} tokens; {max_stop_ids} are the most')
    if not 0 <= request.alternatives <= max_alternatives:
        raise ConfigError(f'alternatives = {request.alternatives} must be from 0 to {max_alternatives}')
    if request.constraint and (words := len(request.constraint.allowed())) > -(-vocab_size // 32):
        raise ConfigError(
            f'the constraint allows ids up to {words * 32 - 1}, but the model knows 0 to {vocab_size - 1}'
        )
    bias = max(request.sampler.logit_bias, default=0)
    if bias >= vocab_size:
        raise ConfigError(f'logit_bias has token {bias}, but the model knows 0 to {vocab_size - 1}')
    return dataclasses.replace(request, max_new_tokens=n)
