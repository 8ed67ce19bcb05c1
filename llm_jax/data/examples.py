"""Examples of post-training: from a record to tokens, with the weight of each as a target.

An example is what stays together in a row: a conversation, both answers of a pair, an answer with its label, a text
with its class. Each of its segments is a text that the model reads by itself.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import dataclasses
import datetime
from typing import Any

import numpy as np

from llm_jax import chat as chat_lib
from llm_jax.chat.comparisons import answer_start, read_comparison, read_judged
from llm_jax.chat.messages import ChatError
from llm_jax.chat.records import read_record
from llm_jax.config import parts, schema
from llm_jax.config.schema import ConfigError
from llm_jax.tokenizer import Tokenizer

# The date that templates write, so that the same records give the same rows on any day.
_NOW = datetime.datetime(2026, 1, 1)
Records = Iterable[tuple[str, dict[str, Any]]]


@dataclasses.dataclass(frozen=True)
class Segment:
    """n tokens `ids`, and their `weights` float32[n] as targets."""

    ids: Sequence[int]
    weights: np.ndarray

    def cut(self, length: int) -> 'Segment':
        """The first tokens of it."""
        return Segment(self.ids[:length], self.weights[:length])


@dataclasses.dataclass(frozen=True)
class Example:
    """What stays together in a row.

    Attributes:
      segments: in order; of a pair, the chosen answer comes first.
      n_bytes: of its text.
      value: margin of a pair, 1 or 0 of an answer that is desirable or not, index of a class.
    """

    segments: tuple[Segment, ...]
    n_bytes: int
    value: float = 0.0


@dataclasses.dataclass(frozen=True)
class Renderer:
    """What records are rendered with.

    Attributes:
      config: of the data.
      tokenizer: of the model.
      chat: with its template; None where nothing is a conversation.
    """

    config: schema.Data
    tokenizer: Tokenizer
    chat: chat_lib.Chat | None

    def render(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None, where: str
    ) -> tuple[Segment, int]:
        """(the tokens of a conversation, bytes of its text).

        Raises:
          ChatError: naming `where`.
        """
        try:
            rendered = self.chat.render(messages, tools=tools, weights=True, now=_NOW)
        except ChatError as error:
            raise ChatError(f'{where}: {error}') from error
        return Segment(rendered.ids, rendered.weights), len(rendered.text.encode())


@dataclasses.dataclass(frozen=True)
class Form:
    """A form of records.

    Attributes:
      examples: (renderer, records) -> (place, example) of each, None where it is left out.
      segments: of an example.
      parts: rows that lie beside each other in a stored row; segment i of an example is in part i modulo `parts`.
      has_value: whether examples have one.
      is_chat: whether they are conversations.
    """

    examples: Callable[[Renderer, Records], Iterator[tuple[str, Example | None]]]
    segments: int = 1
    parts: int = 1
    has_value: bool = True
    is_chat: bool = True

    @property
    def columns(self) -> int:
        """Arrays [L+1] of a stored row: tokens, segments and weights of each part, and the values."""
        return 3 * self.parts + self.has_value


def _conversations(renderer: Renderer, records: Records) -> Iterator[tuple[str, Example]]:
    for where, record in records:
        if 'chosen' in record:
            pair = read_comparison(record, where)
            messages, tools = pair.chosen, pair.tools
        else:
            messages, tools = read_record(record, where)
        segment, n_bytes = renderer.render(messages, tools, where)
        yield where, Example((segment,), n_bytes)


def _pairs(renderer: Renderer, records: Records) -> Iterator[tuple[str, Example | None]]:
    for where, record in records:
        pair = read_comparison(record, where)
        if not pair.share_prompt:
            yield where, None
            continue
        sides = pair.chosen, pair.rejected
        segments, n_bytes = zip(*(renderer.render(side, pair.tools, where) for side in sides), strict=True)
        yield where, Example(segments, sum(n_bytes), pair.margin)


def _labelled(renderer: Renderer, records: Records) -> Iterator[tuple[str, Example]]:
    classes, field = [str(label) for label in renderer.config.classes], renderer.config.text_field
    if len(classes) < 2:
        raise ConfigError(
            f'data.classes = {tuple(classes)}: name the labels of the texts, two at least, such as ("ham", "spam")'
        )
    for where, record in records:
        text, label = record.get(field), record.get('label')
        if not isinstance(text, str):
            raise ConfigError(
                f'{where} has no text in its field {field!r} but {", ".join(map(repr, record))}; set data.text_field'
            )
        if str(label) not in classes:
            raise ConfigError(
                f'{where}: "label" = {label!r} is not in data.classes = {tuple(classes)}'
                f'{parts.nearest(str(label), classes).rstrip(".")}; name all labels there'
            )
        ids = [renderer.tokenizer.bos_id, *renderer.tokenizer.encode(text)]
        # No token is a target of language modelling, but every text has its class.
        segment = Segment(ids, np.ones(len(ids), np.float32))
        yield where, Example((segment,), len(text.encode()), float(classes.index(str(label))))


def _unpaired(renderer: Renderer, records: Records) -> Iterator[tuple[str, Example]]:
    """Answers with a label; the second segment is the same prompt with the answer of the record before it.

    KTO measures with it how far the policy is from the reference (arXiv:2402.01306, §3.1).
    """
    read = [(where, *read_judged(record, where)) for where, record in records]
    for (where, messages, tools, desirable), (_, other, _, _) in zip(read, read[-1:] + read[:-1], strict=True):
        mismatched = [*messages[: answer_start(messages)], *other[answer_start(other) :]]
        segment, n_bytes = renderer.render(messages, tools, where)
        reference, _ = renderer.render(mismatched, tools, where)
        yield where, Example((segment, reference), n_bytes, float(desirable))


FORMS = {
    'conversations': Form(_conversations, has_value=False),
    'pairs': Form(_pairs, segments=2),
    'unpaired': Form(_unpaired, segments=2, parts=2),
    'labelled': Form(_labelled, is_chat=False),
}


def form_of(config: schema.Data) -> str:
    """The form of the records of the sources: a key of `FORMS`, or 'documents'.

    Raises:
      ConfigError: some are of another.
    """
    specs = {**config.sources, **config.validation_sources}
    found = {name: kind if (kind := spec.partition(':')[0]) in FORMS else 'documents' for name, spec in specs.items()}
    (first, form), *others = found.items()
    for name, other in others:
        if other != form:
            raise ConfigError(
                f'data.sources.{first} has {form} and data.sources.{name} = {specs[name]!r} has {other}; a stage '
                'trains on one or the other, so remove one'
            )
    return form
