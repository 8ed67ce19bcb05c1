"""Records of preference data: pairs of answers, answers with a label, and dialogues that are written as one text.

In the conversations that come of them, weights of messages say what is trained on: 1 for the answer, all that follows
the last message of the user, and 0 for what the assistant said before.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import re
from typing import Any

from llm_jax.chat.messages import ChatError
from llm_jax.chat.records import read_prompt, read_record, read_tools, read_turns

Messages = list[dict[str, Any]]
FORMS = (
    '"chosen" and "rejected", which are answers to "prompt" (or "question", or "instruction" with "input"), or else '
    'whole conversations: lists of messages, or dialogues "\\n\\nHuman: ... \\n\\nAssistant: ..."'
)
# How a dialogue of HH-RLHF (arXiv:2204.05862) begins each turn.
_TURN = re.compile(r'\n\n(Human|Assistant): ?')
_SPEAKERS = {'Human': 'user', 'Assistant': 'assistant'}


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two answers to one prompt.

    Attributes:
      chosen: messages of the prompt and of the better answer.
      rejected: the same with the other answer.
      tools: schemas that the answers may call, or None.
      margin: by how much the one is better than the other, at least.
    """

    chosen: Messages
    rejected: Messages
    tools: list[Any] | None
    margin: float

    @property
    def share_prompt(self) -> bool:
        """Whether both are answers to the same prompt."""
        prompts = (side[: answer_start(side)] for side in (self.chosen, self.rejected))
        return next(prompts) == next(prompts)


def read_comparison(record: Mapping[str, Any], where: str) -> Comparison:
    """Returns the pair of a record.

    Args:
      record: as `FORMS` says; "margin" is a number, "system" and "tools" are as in `records.read_record`.
      where: the place of the record, for errors.

    Raises:
      ChatError: another form, or a side without an answer.
    """
    if 'chosen' not in record or 'rejected' not in record:
        raise ChatError(f'{where} has the fields {", ".join(map(repr, record))}; a pair has {FORMS}')
    margin = record.get('margin') or 0.0
    if isinstance(margin, bool) or not isinstance(margin, (int, float)):
        raise ChatError(f'{where}: "margin" = {margin!r} is {type(margin).__name__}; make it a number')
    prompt = read_prompt(record, where)
    chosen, rejected = (_read_side(record, name, prompt, where) for name in ('chosen', 'rejected'))
    return Comparison(chosen, rejected, read_tools(record, where), float(margin))


def read_judged(record: Mapping[str, Any], where: str) -> tuple[Messages, list[Any] | None, bool]:
    """Returns (messages, tools or None, whether the answer is desirable) of a record of an unpaired answer.

    Args:
      record: a conversation as `records.read_record` takes it, and "label": true or false.
      where: the place of the record, for errors.

    Raises:
      ChatError: another form.
    """
    if not isinstance(record.get('label'), (bool, int)) or record['label'] not in (0, 1):
        raise ChatError(
            f'{where}: "label" = {record.get("label")!r}; an unpaired answer has "label", true where it is desirable'
        )
    messages, tools = read_record({name: value for name, value in record.items() if name != 'label'}, where)
    return _train_answer(messages, where), tools, bool(record['label'])


def read_dialogue(text: str, where: str) -> Messages:
    """Returns the messages of a dialogue, '\\n\\nHuman: ... \\n\\nAssistant: ...'.

    Raises:
      ChatError: it does not begin with a turn.
    """
    before, *parts = _TURN.split(text)
    if not parts or before.strip():
        raise ChatError(f'{where}: {text[:40]!r} is no dialogue; it begins with "\\n\\nHuman:", or a "prompt" is given')
    turns = zip(parts[::2], parts[1::2], strict=True)
    return [{'role': _SPEAKERS[speaker], 'content': said.strip()} for speaker, said in turns]


def _read_side(record: Mapping[str, Any], name: str, prompt: Messages | None, where: str) -> Messages:
    value, where = record[name], f'{where}: {name!r}'
    if isinstance(value, str):
        own = [{'role': 'assistant', 'content': value}] if prompt is not None else read_dialogue(value, where)
    else:
        own = read_turns(value, where)
    # What begins with another role than the assistant's is a whole conversation: the prompt is said twice.
    messages = own if prompt is None or own[0]['role'] != 'assistant' else [*prompt, *own]
    if record.get('system') and messages[0]['role'] != 'system':
        messages = [{'role': 'system', 'content': record['system']}, *messages]
    return _train_answer(messages, where)


def answer_start(messages: Sequence[Mapping[str, Any]]) -> int:
    """The index of the first message after the last one of the user."""
    return 1 + max((i for i, message in enumerate(messages) if message['role'] == 'user'), default=-1)


def _train_answer(messages: Messages, where: str) -> Messages:
    start = answer_start(messages)
    if not any(message['role'] == 'assistant' for message in messages[start:]):
        raise ChatError(f'{where} ends with the role {messages[-1]["role"]!r}; it must end with an answer')
    asked = [m | {'weight': 0.0} if m['role'] == 'assistant' else m for m in messages[:start]]
    return [*asked, *messages[start:]]
