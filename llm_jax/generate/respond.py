"""One answer at a time, for somebody who waits for it: text as it comes, from an engine that stays."""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import time
from typing import Any

from llm_jax.config.parts import nearest
from llm_jax.config.schema import ConfigError
from llm_jax.generate.engine import WHOLE, Engine
from llm_jax.generate.requests import Finish, Request
from llm_jax.generate.schedule import BLOCK
from llm_jax.generate.settings import NUMBERS, Sampler
from llm_jax.generate.stops import StopText
from llm_jax.nn.transformer import Transformer
from llm_jax.tokenizer import StreamDecoder, Tokenizer

# Time between two pieces of text; blocks of tokens are as long as fit in it.
_PIECE_SECONDS = 0.05
_INTEGERS = ('top_k', 'max_new_tokens', 'seed')


class Answer:
    """An answer under way: iterating over it decodes, and gives its text as it comes.

    Attributes:
      n_prompt: tokens of the prompt.
      n_reused: those whose keys and values were there already.
      n_tokens: of the answer so far, the one that ended it left out.
      first_seconds: from the prompt to the first token.
      speed: tokens per second after the first piece; 0 where it was all.
      is_cut: whether the answer ended as it had no more room.
    """

    def __init__(self, engine: Engine, request: Request, text: StopText) -> None:
        self._engine, self._text = engine, text
        self._row = engine.submit(request)
        self._started = time.monotonic()
        # (tokens, seconds) at the first piece and at the last one.
        self._first = self._last = (0, 0.0)

    @property
    def n_prompt(self) -> int:
        return len(self._row.request.prompt)

    @property
    def n_reused(self) -> int:
        return self._row.n_reused

    @property
    def n_tokens(self) -> int:
        return len(self._row.tokens)

    @property
    def first_seconds(self) -> float:
        return self._first[1]

    @property
    def speed(self) -> float:
        tokens, seconds = (last - first for first, last in zip(self._first, self._last, strict=True))
        return tokens / seconds if seconds else 0.0

    @property
    def is_cut(self) -> bool:
        return self._row.finish == Finish.LENGTH

    def stop(self) -> None:
        """Ends the answer with what has come of it."""
        self._engine.cancel(self._row)

    def __iter__(self) -> Iterator[str]:
        """Yields text after each step of the engine, '' where none was completed; the last has what was held back.

        Raises:
          ConfigError: the model's logits are no numbers.
        """
        row, block = self._row, 1
        try:
            while row.finish is None:
                n_before, before = self.n_tokens, time.monotonic()
                self._engine.step(block)
                if n_new := self.n_tokens - n_before:
                    now = time.monotonic()
                    self._last = self.n_tokens, now - self._started
                    if not n_before:
                        self._first = self._last
                    block = min(BLOCK, max(1, int(_PIECE_SECONDS * n_new / max(now - before, 1e-9))))
                yield self._text.take()
            yield self._text.close()
        finally:
            self._engine.cancel(row)
            # Keeps the prefix, and frees the slot.
            while not self._engine.is_idle:
                self._engine.step(1)
        if row.finish == Finish.ERROR:
            raise ConfigError(row.error)


class Responder:
    """Answers prompts, one after another. A prompt that begins as earlier ones did has only the rest prefilled.

    Answer number k is drawn with (seed, k), so that the same prompts in the same order get the same answers. Decoding
    is paced by the clock of this process, so it is for one host.

    Attributes:
      context: tokens that a prompt and its answer have room for.
    """

    def __init__(
        self,
        model: Transformer,
        params: Any,
        tokenizer: Tokenizer,
        *,
        stop_ids: Sequence[int],
        stops: Sequence[str] = (),
        context: int | None = None,
        sampler: Sampler | None = None,
        max_new_tokens: int | None = None,
        seed: int = 0,
        quantise: str = '',
        cache: str = '',
    ) -> None:
        """Args:
          model: the Transformer.
          params: its parameters.
          tokenizer: of the model.
          stop_ids: tokens that end an answer.
          stops: strings that end it.
          context: tokens of a prompt and its answer; None: the model's max_seq_len.
          sampler: draws the tokens; None: from the model's own distribution.
          max_new_tokens: most tokens of an answer; None: what the context has room for.
          seed: of the draws.
          quantise: as of `Engine`.
          cache: as of `Engine`.

        Raises:
          ConfigError: as `Engine`, or an empty stop string.
        """
        self.context = context = model.config.max_seq_len if context is None else context
        self._tokenizer, self._stop_ids, self._stops = tokenizer, tuple(stop_ids), tuple(stops)
        self._watch()  # stops are checked first, at once
        self._engine = Engine(
            model, params, n_slots=1, context=context, vocab_size=tokenizer.vocab_size, chunk=WHOLE,
            prefix_tokens=context, quantise=quantise, cache=cache,
        )  # fmt: skip
        self._sampler, self._max_new_tokens = sampler or Sampler(), max_new_tokens
        self._seed, self._n_answers = seed, 0

    def warm_up(self) -> None:
        """Compiles every program, so that no answer waits for one."""
        self._engine.warm_up()

    @property
    def reserve(self) -> int:
        """Tokens of the context to leave for an answer: its most, but a quarter of the context is enough."""
        quarter = max(1, self.context // 4)
        return min(self._max_new_tokens or quarter, quarter)

    @property
    def settings(self) -> Mapping[str, Any]:
        """The values of what `change` sets, by name."""
        sampler = {name: getattr(self._sampler, name) for name in NUMBERS}
        return sampler | {'max_new_tokens': self._max_new_tokens, 'seed': self._seed}

    def change(self, name: str, text: str) -> None:
        """Changes a setting of the answers to come; a seed begins their numbers anew.

        Args:
          name: one of `settings`.
          text: the value as it is typed; 'none' for max_new_tokens is what the context has room for.

        Raises:
          ConfigError: no such setting, or a value out of its range, as `Sampler` has it.
        """
        if name not in self.settings:
            raise ConfigError(
                f'{name} is no setting{nearest(name, self.settings)} There are {", ".join(self.settings)}'
            )
        value = None if (name, text) == ('max_new_tokens', 'none') else _parse(name, text)
        if name == 'max_new_tokens':
            if value is not None and value < 1:
                raise ConfigError(f'max_new_tokens = {value} must be at least 1, or none')
            self._max_new_tokens = value
        elif name == 'seed':
            if not 0 <= value < 1 << 64:
                raise ConfigError(f'seed = {value} must be from 0 to 2^64 - 1')
            self._seed, self._n_answers = value, 0
        else:
            self._sampler = dataclasses.replace(self._sampler, **{name: value})

    def answer(self, prompt: Sequence[int]) -> Answer:
        """Begins the answer to a prompt; end the one before first.

        Args:
          prompt: token ids, at least one.

        Raises:
          ConfigError: the prompt leaves no room for an answer.
        """
        room = self.context - len(prompt)
        text = self._watch()
        most = None if self._max_new_tokens is None or room < 1 else min(self._max_new_tokens, room)
        request = Request(
            prompt, most, self._sampler, self._seed, self._n_answers, stop_ids=self._stop_ids, watcher=text
        )
        answer = Answer(self._engine, request, text)
        self._n_answers += 1
        return answer

    def _watch(self) -> StopText:
        return StopText(StreamDecoder(self._tokenizer, continues=True), self._stops)


def _parse(name: str, text: str) -> int | float:
    kind, need = (int, 'an integer') if name in _INTEGERS else (float, 'a number')
    try:
        return kind(text)
    except ValueError:
        raise ConfigError(f'{name} = {text!r} must be {need}') from None
