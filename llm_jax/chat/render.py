"""Conversations become tokens: the one path of training and of serving."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import datetime
import functools
from typing import Any

import numpy as np

from llm_jax.chat import formats, spans
from llm_jax.chat import tools as tools_lib
from llm_jax.chat.guard import Guard, spare_characters, strings
from llm_jax.chat.messages import ChatError, Message, check, check_json, text_of
from llm_jax.chat.template import Inputs, Template, content_reads_parts
from llm_jax.tokenizer import Tokenizer

Conversation = Sequence[Mapping[str, Any] | Message]


@dataclasses.dataclass(frozen=True)
class Rendered:
    """A conversation as tokens.

    Attributes:
      ids: L tokens.
      weights: float32[L], of each token in the training loss; None where they were not asked for.
      text: as the template writes it; names of special tokens in it may be text or marks, which `ids` tell apart.
    """

    ids: list[int]
    weights: np.ndarray | None
    text: str


class Chat:
    """A tokenizer with a chat template.

    Attributes:
      tokenizer: of the model.
      templates: name -> template; 'default', and 'tool_use' where conversations with tools have another.
      stop_texts: that end an answer, of a format whose turns end with no mark.
      tool_form: in which a model writes calls of tools: a name in `tools.FORMS`; '' if it is not known.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        templates: Mapping[str, Template],
        *,
        stop_texts: Sequence[str] = (),
        tool_form: str = '',
    ):
        self.tokenizer, self.templates, self.stop_texts = tokenizer, dict(templates), tuple(stop_texts)
        self.tool_form = tool_form
        self._guards: dict[str, Guard] = {}
        self._reads_parts: dict[str, bool] = {}

    def render(
        self,
        messages: Conversation,
        *,
        tools: Sequence[Mapping[str, Any] | Callable] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool | str = False,
        weights: bool = False,
        now: datetime.datetime | None = None,
        **variables: Any,
    ) -> Rendered:
        """Renders and encodes a conversation.

        Marks are ids and values are text: no content, name, argument or result, nor a tool or document, becomes a
        special token, whatever is written in it.

        Args:
          messages: mappings or `Message`s.
          tools: schemas or functions that the model may call.
          documents: mappings, for templates that read them.
          add_generation_prompt: whether to end with what begins an assistant's message.
          continue_final_message: whether to leave the last message open, to be continued; or the field to leave open.
          weights: whether to weigh the tokens for training: those that the assistant wrote, the mark that ends its turn
            included, have the `weight` of their message (1 unless it says otherwise), all others 0.
          now: for templates that write the date; None is the present.
          **variables: what else the template reads, such as enable_thinking=False.

        Raises:
          ChatError: a mistake in the messages, a template that refuses them or fails, or one whose weights cannot be
            found.
        """
        checked = check(messages)
        if continue_final_message and (add_generation_prompt or weights):
            other = 'add_generation_prompt' if add_generation_prompt else 'weights'
            raise ChatError(f'continue_final_message leaves the last message open, which excludes {other}; choose one')
        schemas = None if tools is None else [tools_lib.schema(tool, f'tools[{i}]') for i, tool in enumerate(tools)]
        name = 'tool_use' if schemas is not None and 'tool_use' in self.templates else 'default'
        template = self.templates[name]
        given = check_json(variables, 'variables')
        documents = None if documents is None else check_json(documents, 'documents')
        if not self._knows_parts(name):
            checked = [m | {'content': text_of(m)} if isinstance(m.get('content'), list) else m for m in checked]
        # Variables such as bos_token that name a token are marks, which the template writes.
        tokens = {
            key: value
            for key, value in given.items()
            if key.endswith('_token') and isinstance(value, str) and value in self.tokenizer.special
        }
        values = [checked, schemas, documents, given]
        spare = spare_characters([template.source, *self.tokenizer.special, *strings(values)])
        guard = self._guard(name)
        char, single = next(spare), {one: next(spare) for one in guard.single}
        kept, tag, now = (char, *single.values()), next(spare), now or datetime.datetime.now()

        def write(values: Sequence[Any]) -> tuple[str, Sequence[Mapping[str, Any]], Inputs]:
            messages, schemas, documents, given = values
            inputs = Inputs(schemas, documents, dict(self.tokenizer.token_roles) | given | tokens, now)
            if continue_final_message:
                field = continue_final_message if isinstance(continue_final_message, str) else 'content'
                return template.render_open(messages, inputs, field, tag, kept), messages, inputs
            text = template.render(messages, inputs, add_generation_prompt=add_generation_prompt, kept=kept)
            return text, messages, inputs

        broken = [guard.break_value(value, char, single) for value in values]
        text, safe, inputs = write(broken)
        if broken != values and not any(map(guard.holds_name, strings(values))):
            # Where no name is in the values nor comes about, the template sees them as they are.
            whole = write(values)
            if self._marks(whole[0]) == self._marks(text):
                text, safe, inputs = whole
        char_weights = None
        if weights:
            split = self.tokenizer.split_special
            finder = spans.Finder(template, safe, inputs, spare, split, is_open=add_generation_prompt, kept=kept)
            char_weights = self._weigh(finder, checked, text)
        restore = str.maketrans({char: None} | {stand_in: one for one, stand_in in single.items()})
        return self._encode(template, text, restore, char_weights)

    def _marks(self, text: str) -> list[int]:
        return [piece.id for piece in self.tokenizer.split_special(text) if piece.id is not None]

    @functools.cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer: BOS, EOS, and the mark that ends an assistant's turn."""
        ids = [self.tokenizer.bos_id, *self.tokenizer.eos_ids]
        probe = [{'role': 'user', 'content': 'a'}, {'role': 'assistant', 'content': 'b'}]
        template = self.templates['default']
        inputs = Inputs(variables=self.tokenizer.token_roles)
        try:
            text = template.render(probe, inputs)
            spare = spare_characters([template.source, text])
            finder = spans.Finder(template, probe, inputs, spare, self.tokenizer.split_special)
            span = finder.find_by_rendering(text, 1)
        except ChatError:  # a template for other conversations than this one; its tokenizer's EOS has to do
            return tuple(dict.fromkeys(ids))
        marks = [
            piece.id for piece in self.tokenizer.split_special(text) if piece.end == span.end and piece.id is not None
        ]
        return tuple(dict.fromkeys([*ids, *marks]))

    def _guard(self, name: str) -> Guard:
        if name not in self._guards:
            self._guards[name] = Guard(tuple(self.tokenizer.special), self.templates[name].literals)
        return self._guards[name]

    def _knows_parts(self, name: str) -> bool:
        if name not in self._reads_parts:
            inputs = Inputs(variables=self.tokenizer.token_roles)
            self._reads_parts[name] = content_reads_parts(self.templates[name], inputs)
        return self._reads_parts[name]

    def _weigh(self, finder: spans.Finder, messages: Sequence[Mapping[str, Any]], text: str) -> np.ndarray:
        """Weight of each character, float32."""
        wanted = {i: m.get('weight', 1.0) for i, m in enumerate(messages) if m['role'] == 'assistant'}
        trained = [i for i, weight in wanted.items() if weight]
        found = finder.find(text, trained)
        out = np.zeros(len(text), np.float32)
        for span in found:
            out[span.start : span.end] = wanted[span.message]
        return out

    def _encode(
        self, template: Template, text: str, restore: Mapping[int, Any], char_weights: np.ndarray | None
    ) -> Rendered:
        ids: list[int] = []
        weights: list[float] = []
        for piece in self.tokenizer.split_special(text):
            part = text[piece.start : piece.end]
            if piece.id is not None:
                ids.append(piece.id)
                weights.append(float(char_weights[piece.start : piece.end].max()) if char_weights is not None else 0.0)
                continue
            plain = part.translate(restore)
            tokens = self.tokenizer.encode_part(plain, first=piece.start == 0)
            ids += tokens
            if char_weights is not None:
                weights += self._token_weights(part, plain, tokens, char_weights[piece.start : piece.end], restore)
        bos, roles = self.tokenizer.bos_id, self.tokenizer.token_roles
        if ids[:2] == [bos, bos] and roles.get('bos_token') != roles.get('eos_token'):
            raise ChatError(f'{template.name} begins the conversation with BOS twice; remove one from the template')
        return Rendered(ids, None if char_weights is None else np.array(weights, np.float32), text.translate(restore))

    def _token_weights(
        self, part: str, plain: str, tokens: list[int], own: np.ndarray, restore: Mapping[int, Any]
    ) -> list[float]:
        """Weight of each token of a text: the largest of its characters'."""
        if own.min() == own.max():
            return [float(own[0])] * len(tokens)
        own = own[[restore.get(ord(char), char) is not None for char in part]]
        return [float(own[start:end].max(initial=0.0)) for start, end in self.tokenizer.locate_tokens(plain, tokens)]


def attach_template(tokenizer: Tokenizer, template: str) -> Tokenizer:
    """The tokenizer with this as its own chat template; arguments and errors as of `open_chat`."""
    open_chat(tokenizer, template)
    return tokenizer.with_chat_templates({'default': formats.source_of(template)})


def open_chat(tokenizer: Tokenizer, template: str = '') -> Chat:
    """The chat of a tokenizer.

    Args:
      tokenizer: of the model.
      template: what `config.chat.template` says: the name of a format, a file, or '' for the tokenizer's own.

    Raises:
      ChatError: there is no such template, or the tokenizer lacks its marks.
    """
    sources = {'default': formats.source_of(template)} if template else dict(tokenizer.chat_templates)
    if not sources:
        raise ChatError(
            'the tokenizer comes without a chat template; set chat.template to one of '
            f"{', '.join(formats.FORMATS)} ('plain' for a base model), or to a file"
        )
    if 'default' not in sources:
        raise ChatError(f"the tokenizer's chat templates are {', '.join(sources)}, and none is 'default'; name a file")
    label = f'the chat template {template!r}' if template else "the tokenizer's chat template"
    compiled = {
        name: Template(source, label if name == 'default' else f'{label} {name!r}') for name, source in sources.items()
    }
    # A run directory keeps the source of a format, not its name.
    one = next((one for one in formats.FORMATS.values() if one.source == sources['default']), None)
    if one is None:
        return Chat(tokenizer, compiled, tool_form=tools_lib.detect_form(sources['default']))
    if lacking := one.lacking(tokenizer.special):
        raise ChatError(
            f'{label} needs the special token {lacking[0]!r}, which the tokenizer lacks; train the tokenizer with this '
            f'template, or set chat.template to another: {", ".join(formats.FORMATS)}, or a file'
        )
    return Chat(tokenizer, compiled, stop_texts=one.stop_texts, tool_form=one.tool_form)


def open_any_chat(tokenizer: Tokenizer, template: str = '') -> tuple[Chat, str]:
    """Returns the chat of a tokenizer, a plain transcript where it has no template, and what to say then of the model.

    Raises:
      ChatError: as `open_chat`.
    """
    if template or tokenizer.chat_templates:
        return open_chat(tokenizer, template), ''
    return open_chat(tokenizer, 'plain'), 'has no chat template: it continues a plain transcript, as base models can'
