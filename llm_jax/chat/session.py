"""A conversation that goes on: its history, cut to what a context holds."""

from collections.abc import Mapping, Sequence
from typing import Any

from llm_jax.chat.messages import ChatError, Message, check
from llm_jax.chat.render import Chat, Rendered


class Session:
    """The messages of a conversation.

    A turn is a message of the user with all that follows it until the next: answers, calls of tools and their results.
    Where the context fills, the oldest turns are left out of the prompt whole; leading system messages stay, and so
    does the whole history here.

    Attributes:
      chat: renders.
      context: most tokens of a prompt and the answer to it.
      messages: the history, checked mappings; JSON.
      dropped: messages that the last prompt left out.
    """

    def __init__(self, chat: Chat, context: int, messages: Sequence[Mapping[str, Any] | Message] = ()):
        if context < 1:
            raise ChatError(f'a context of {context} tokens holds no conversation; it must be at least 1')
        self.chat, self.context = chat, context
        self.messages = check(messages) if messages else []
        self.dropped = 0

    def add(self, message: Mapping[str, Any] | Message) -> None:
        """Adds a message at the end.

        Raises:
          ChatError: a mistake in it, naming its index.
        """
        self.messages = check([*self.messages, message])

    def set_system(self, text: str) -> None:
        """Replaces the leading system messages; '' removes them."""
        rest = self.messages[_count_system(self.messages) :]
        self.messages = check([{'role': 'system', 'content': text}, *rest]) if text else rest

    def clear(self) -> None:
        """Forgets all messages but the leading system messages."""
        self.messages = self.messages[: _count_system(self.messages)]

    def take_back(self) -> bool:
        """Removes what follows the last message of the user, so that it can be answered anew; False if nothing does."""
        at = next((i for i in reversed(range(len(self.messages))) if self.messages[i]['role'] == 'user'), -1)
        is_answered = 0 <= at < len(self.messages) - 1
        if is_answered:
            self.messages = self.messages[: at + 1]
        return is_answered

    def prompt(self, reserve: int = 1, **options: Any) -> Rendered:
        """The prompt of the next answer: as many of the latest turns as fit.

        Args:
          reserve: tokens of the context to leave for the answer: older turns go for it. The last turn alone may leave
            fewer, but one.
          **options: of `Chat.render`; a generation prompt is added unless the last message is continued.

        Raises:
          ChatError: the last turn does not fit, with how long it is.
        """
        options.setdefault('add_generation_prompt', not options.get('continue_final_message', False))
        if not self.messages:
            raise ChatError('the conversation is empty; add a message of the user first')
        system = _count_system(self.messages)
        starts = [i for i in range(system, len(self.messages)) if self.messages[i]['role'] == 'user']
        if not starts or starts[0] > system:
            starts = [system, *starts]
        room = self.context - reserve

        def rendered(turn: int) -> Rendered:
            return self.chat.render([*self.messages[:system], *self.messages[starts[turn] :]], **options)

        found = rendered(0)
        low, high = 0, len(starts) - 1
        if len(found.ids) > room:
            # The fewest turns to leave out: prompts of fewer turns are shorter.
            while low < high:
                middle = (low + high) // 2
                low, high = (low, middle) if len(rendered(middle).ids) <= room else (middle + 1, high)
            found = rendered(low)
            if len(found.ids) >= self.context:
                raise ChatError(
                    f'the last turn has {len(found.ids)} tokens with the system message, and a context of '
                    f'{self.context} tokens leaves {self.context - 1} for it; shorten it'
                )
        self.dropped = starts[low] - system
        return found


def _count_system(messages: Sequence[Mapping[str, Any]]) -> int:
    """How many messages at the beginning are the system's or the developer's."""
    return next((i for i, m in enumerate(messages) if m['role'] not in ('system', 'developer')), len(messages))
