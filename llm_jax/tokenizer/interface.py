"""What every tokenizer offers, and what they share once the bytes of each token are known."""

import codecs
from collections.abc import Iterable, Mapping, Sequence
import copy
import os
from typing import Protocol, Self

import numpy as np

from llm_jax.config.schema import ConfigError
from llm_jax.tokenizer.special import Piece, Special, Splitter

# Text that a tokenizer changes if it normalises, folds or drops anything.
_PROBE = ' \tA  \u00c5\u0041\u030a\ufb01\u2581\r\n\n<0x41>\0\ufeff\U0001f642 a '


class Tokenizer(Protocol):
    """Text <-> tokens.

    Text is only ever text: the name of a special token written in it, such as
    '<|endoftext|>', becomes the tokens of those characters.

    Attributes:
      vocab_size: V, one more than the largest id.
      bos_id: the token that opens every document; of a tokenizer that has none, the one
        that stands between documents.
      eos_ids: tokens that end a text, besides bos_id; may be empty.
      token_bytes: int32[V], how many bytes of UTF-8 each token stands for, 0 for the
        special ones.
      prefix: what `encode` puts before a text and `decode` takes off: b'' or b' '.
      lossless: whether `decode(encode(text)) == text` for every text, and then
        `token_bytes` summed over `encode(text)` is `len(text.encode())`. Tokenizers that
        normalise, or put a space before the text, are not.
      adds_bos: whether its files say that BOS comes before every text that a model reads.
      fingerprint: a hash; tokenizers with the same one encode alike.
      special: name -> id of the tokens that no text becomes, such as the marks of a chat.
      token_roles: 'bos_token', 'eos_token' and the like -> name of the token: variables of chat templates.
      chat_templates: name -> Jinja source of the chat templates that it comes with; the usual one is 'default'.
    """

    vocab_size: int
    bos_id: int
    eos_ids: tuple[int, ...]
    token_bytes: np.ndarray
    prefix: bytes
    lossless: bool
    adds_bos: bool
    special: Mapping[str, int]
    token_roles: Mapping[str, str]
    chat_templates: Mapping[str, str]

    @property
    def fingerprint(self) -> str: ...

    def encode(self, text: str) -> list[int]:
        """Tokens of `text`, without BOS. A lone surrogate, which is no text, is a UnicodeEncodeError."""
        ...

    def encode_batch(self, texts: Sequence[str], num_threads: int = 1) -> list[list[int]]:
        """Tokens of each text, without BOS; `num_threads` is a hint."""
        ...

    def split_special(self, text: str) -> list[Piece]:
        """Cuts a text at the names of special tokens, where `encode` would take them for text, too."""
        ...

    def encode_part(self, text: str, *, first: bool) -> list[int]:
        """Tokens of a text between special tokens.

        Args:
          text: without names that are meant as special tokens.
          first: whether nothing comes before it; some tokenizers put a space there alone.
        """
        ...

    def locate_tokens(self, text: str, ids: Sequence[int]) -> list[tuple[int, int]]:
        """(start, end) of each token of `encode_part(text)`: the characters of `text` of which it has a byte."""
        ...

    def with_chat_templates(self, templates: Mapping[str, str]) -> 'Tokenizer':
        """This tokenizer with other chat templates; see `chat_templates`."""
        ...

    def decode(self, ids: Iterable[int], *, continues: bool = False) -> str:
        """Text of the tokens; special ones are nothing, bytes that are no UTF-8 become U+FFFD.

        Args:
          ids: tokens.
          continues: whether other text comes before them, so that they begin with no prefix.
        """
        ...

    def decode_token(self, token: int) -> bytes:
        """UTF-8 bytes of one token; b'' for the special ones."""
        ...

    def limit(self, vocab_size: int) -> 'Tokenizer':
        """This tokenizer without its special tokens that an embedding of `vocab_size` rows (0: any) has no row for.

        No text becomes a special token, so that nothing is lost. Where others are past the embedding too, or it
        begins or ends texts with one, this tokenizer as it is.
        """
        ...

    def save(self, directory: str | os.PathLike) -> None:
        """Writes files from which `load(directory)` makes an equal tokenizer."""
        ...

    def export(self, directory: str | os.PathLike) -> None:
        """Writes tokenizer.json and tokenizer_config.json, for `transformers.AutoTokenizer`.

        With add_special_tokens=False and split_special_tokens=True it encodes as this one does.

        Raises:
          ConfigError: a tokenizer that those files cannot describe.
        """
        ...


class Spelled:
    """The half of a `Tokenizer` that follows from the bytes of each token."""

    adds_bos = True

    def __init__(
        self,
        spelling: Iterable[bytes],
        bos_id: int,
        eos_ids: Iterable[int],
        literals: Iterable[str] = (),
        *,
        special: Mapping[str, Special],
        token_roles: Mapping[str, str],
    ):
        """Args:
          spelling: bytes of token 0, 1, ...; `encode` has to work by now.
          bos_id: see `Tokenizer`.
          eos_ids: see `Tokenizer`.
          literals: texts that are cut out of a text before anything else, each a token, tried for what they lose.
          special: name -> how it is found in a text.
          token_roles: see `Tokenizer`.

        Raises:
          ConfigError: some byte has no token, so that there is text without tokens.
        """
        self._bytes = tuple(spelling)
        self.vocab_size = len(self._bytes)
        self.bos_id = bos_id
        self.eos_ids = tuple(i for i in dict.fromkeys(eos_ids) if i != bos_id)
        self.token_bytes = np.array([len(b) for b in self._bytes], np.int32)
        self.special = {name: one.id for name, one in special.items()}
        self.token_roles = dict(token_roles)
        self.chat_templates: dict[str, str] = {}
        self._splitter = Splitter(special)
        missing = 256 - len({b for b in self._bytes if len(b) == 1})
        if missing:
            raise ConfigError(
                f'{missing} of the 256 bytes have no token, so that some text has none; only tokenizers with '
                'byte fallback or of the byte-level kind keep all text, so take the tokenizer of another model'
            )
        self.prefix = b' ' if self._joined(self.encode('a')) == b' a' else b''
        probe = _PROBE + ''.join(f'  {literal}  ' for literal in literals)
        ids = self.encode(probe)
        self.lossless = self.decode(ids) == probe and self.token_bytes[ids].sum() == len(probe.encode())

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str], num_threads: int = 1) -> list[list[int]]:
        raise NotImplementedError

    def split_special(self, text: str) -> list[Piece]:
        return list(self._splitter.split(text))

    def encode_part(self, text: str, *, first: bool) -> list[int]:
        del first
        return self.encode(text)

    def locate_tokens(self, text: str, ids: Sequence[int]) -> list[tuple[int, int]]:
        data, spelt = text.encode(), self._joined(ids)
        if spelt not in (data, self.prefix + data):
            return self._locate(text, ids)
        sizes = [len(char.encode()) for char in text]
        char_of_byte = np.repeat(np.arange(len(text)), sizes)
        stops = np.cumsum(self.token_bytes[list(ids)]) - (len(spelt) - len(data))
        starts = np.concatenate([[0], stops[:-1]])
        return [
            (int(char_of_byte[max(start, 0)]), int(char_of_byte[stop - 1]) + 1) if stop > 0 else (0, 0)
            for start, stop in zip(starts, stops, strict=True)
        ]

    def _locate(self, text: str, ids: Sequence[int]) -> list[tuple[int, int]]:
        """The same for tokens that do not spell the text, as of tokenizers that normalise."""
        raise NotImplementedError

    def with_chat_templates(self, templates: Mapping[str, str]) -> Self:
        """See `Tokenizer.with_chat_templates`."""
        changed = copy.copy(self)
        changed.chat_templates = dict(templates)
        return changed

    def decode(self, ids: Iterable[int], *, continues: bool = False) -> str:
        data = self._joined(ids)
        return (data if continues else data.removeprefix(self.prefix)).decode('utf-8', errors='replace')

    def decode_token(self, token: int) -> bytes:
        return self._bytes[token]

    def limit(self, vocab_size: int) -> 'Spelled':
        """See `Tokenizer.limit`; here of a tokenizer whose ids are all needed."""
        del vocab_size
        return self

    def _joined(self, ids: Iterable[int]) -> bytes:
        return b''.join(self._bytes[i] for i in ids)


class StreamDecoder:
    """Text of tokens as they come; a character is given out when its last byte is there."""

    def __init__(self, tokenizer: Tokenizer, *, continues: bool = False):
        """Args: continues: whether other text comes before the tokens, as in `Tokenizer.decode`."""
        self._tokenizer = tokenizer
        self._prefix = b'' if continues else tokenizer.prefix
        self._skip = self._prefix
        self._decoder = codecs.getincrementaldecoder('utf-8')(errors='replace')

    def push(self, token: int) -> str:
        """The text that this token completes, possibly ''."""
        data = self._tokenizer.decode_token(token)
        if data:  # the prefix lies in the first token that has text
            data, self._skip = data.removeprefix(self._skip), b''
        return self._decoder.decode(data)

    def flush(self) -> str:
        """What is left: '', or U+FFFD for an unfinished character. Starts afresh."""
        rest = self._decoder.decode(b'', final=True)
        self._decoder.reset()
        self._skip = self._prefix
        return rest
