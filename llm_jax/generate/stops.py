"""Text of a row as its tokens come, up to a stop string."""

from collections.abc import Sequence

from llm_jax.config.schema import ConfigError
from llm_jax.tokenizer import StreamDecoder


class StopText:
    """Watches a row (`requests.Watcher`): decodes its tokens, and ends it at the first stop string.

    The stop string and the text after it, in the same token too, are left out. Text that may be the beginning of a
    stop string is held back until it is told from one.

    Attributes:
      stop: the stop string that ended the row; '' while none has.
    """

    def __init__(self, decoder: StreamDecoder, stops: Sequence[str] = ()) -> None:
        """Args:
          decoder: of the row's tokens.
          stops: strings, not empty.

        Raises:
          ConfigError: an empty stop string.
        """
        if '' in stops:
            raise ConfigError("stop = '' would end every text; leave it out")
        self._decoder, self._stops = decoder, tuple(stops)
        self._ready = self._held = self.stop = ''

    def push(self, token: int) -> bool:
        """Decodes a token; True if it completes a stop string."""
        if self.stop:
            return True
        text = self._held + self._decoder.push(token)
        start, self.stop = min(((text.find(stop), stop) for stop in self._stops if stop in text), default=(-1, ''))
        if self.stop:
            self._ready, self._held = self._ready + text[:start], ''
        else:
            n_held = max((_overlap(text, stop) for stop in self._stops), default=0)
            shown = len(text) - n_held
            self._ready, self._held = self._ready + text[:shown], text[shown:]
        return bool(self.stop)

    def take(self) -> str:
        """Returns the text that has come since the last call and is no part of a stop string."""
        ready, self._ready = self._ready, ''
        return ready

    def close(self) -> str:
        """Returns the rest, at the end of the row: what was held back, and U+FFFD for an unfinished character."""
        rest = '' if self.stop else self._held + self._decoder.flush()
        self._held = ''
        return self.take() + rest


def _overlap(text: str, stop: str) -> int:
    """Returns the length of the longest end of `text` that begins `stop` and is shorter than it."""
    lengths = range(min(len(text), len(stop) - 1), 0, -1)
    return next((n for n in lengths if text.endswith(stop[:n])), 0)
