"""Texts that a model writes: prompts through the decoding engine, up to a stop string."""

from collections.abc import Sequence
import dataclasses

from llm_jax.config.schema import ConfigError
from llm_jax.generate import engine
from llm_jax.generate.requests import Finish, Request
from llm_jax.generate.settings import Sampler
from llm_jax.generate.stops import StopText
from llm_jax.runs import Loaded
from llm_jax.tokenizer import StreamDecoder

GREEDY, DRAWN = Sampler(temperature=0.0), Sampler(temperature=0.8, top_p=0.95)


@dataclasses.dataclass(frozen=True)
class Ask:
    """A prompt and how it is continued.

    Attributes:
      text: what the model reads.
      number: of the item, which with the seed decides the draws.
      name: for errors.
    """

    text: str
    number: int
    name: str


@dataclasses.dataclass(frozen=True)
class Texts:
    """What became of a prompt.

    Attributes:
      samples: the texts, without the stop string and what follows it.
      finishes: why each ended: 'stop', 'stop_id' (BOS or EOS) or 'length'.
      is_truncated: True if the prompt was cut on the left.
    """

    samples: list[str]
    finishes: list[str]
    is_truncated: bool


class Generator:
    """Continues prompts; a text depends on its prompt, its item's number, its sample's number and the seed alone."""

    def __init__(self, loaded: Loaded, *, bos: bool) -> None:
        """Args:
        loaded: the model with its tokenizer.
        bos: whether a text begins with BOS.
        """
        self._loaded, self._bos = loaded, bos
        self._engine: engine.Engine | None = None

    def room(self, max_new_tokens: int) -> int:
        """Returns how many tokens may be added: at most half of the context, so that the prompt has the other."""
        return min(max_new_tokens, self._loaded.model.config.max_seq_len // 2)

    def complete(
        self, asks: Sequence[Ask], *, stops: Sequence[str], max_new_tokens: int, n_samples: int, sampler: Sampler,
        seed: int,
    ) -> list[Texts]:  # fmt: skip
        """Continues each prompt `n_samples` times.

        Args:
          asks: the prompts; what is too long is cut on the left, BOS with it.
          stops: strings that end a text.
          max_new_tokens: most tokens of a text; see `room`.
          n_samples: texts of each prompt.
          sampler: draws the tokens.
          seed: from 0 on, below 2^32.

        Raises:
          ConfigError: logits that are no numbers; it names the item.
        """
        tokenizer, most = self._loaded.tokenizer, self._loaded.model.config.max_seq_len
        n_new = self.room(max_new_tokens)
        encoded = []
        for ask in asks:
            ids = [tokenizer.bos_id] * self._bos + tokenizer.encode(ask.text) or [tokenizer.bos_id]
            encoded.append((ids[-(most - n_new) :], len(ids) > most - n_new))
        requests = [
            Request(
                ids, n_new, sampler, seed=seed << 32 | ask.number, choice=choice,
                stop_ids=tuple(dict.fromkeys([tokenizer.bos_id, *tokenizer.eos_ids]))[: engine.MAX_STOP_IDS],
                watcher=StopText(StreamDecoder(tokenizer, continues=True), stops),
            )
            for ask, (ids, _) in zip(asks, encoded, strict=True)
            for choice in range(n_samples)
        ]  # fmt: skip
        rows = iter(self._engine_for(max(len(ids) for ids, _ in encoded) + n_new).run(requests))
        out = []
        for ask, (_, is_truncated) in zip(asks, encoded, strict=True):
            own = [next(rows) for _ in range(n_samples)]
            for row in own:
                if row.finish is Finish.ERROR:
                    raise ConfigError(f'{ask.name}: {row.error}')
            texts = [row.request.watcher.close() for row in own]
            out.append(Texts(texts, [str(row.finish) for row in own], is_truncated))
        return out

    def _engine_for(self, length: int) -> engine.Engine:
        """The engine, made anew where its rows have no room for so many tokens."""
        if self._engine is None or self._engine.context < length:
            model = self._loaded.model
            self._engine = engine.Engine(
                model, self._loaded.params, n_slots=engine.SLOTS, chunk=engine.WHOLE,
                context=engine.bucket(length, model.config.max_seq_len), vocab_size=self._loaded.tokenizer.vocab_size,
            )  # fmt: skip
        return self._engine
