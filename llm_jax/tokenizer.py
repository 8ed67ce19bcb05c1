"""Text <-> tokens: SentencePiece, trained so that decode(encode(x)) == x for every string.

Ids 0 to 3 are '<unk>', '<|bos|>', '<|eos|>' and '<|pad|>'; no text encodes to
them. Then come the 256 bytes, then what was learned. A document is written as BOS
followed by its tokens: one separator, which is also what a model predicts where a
document ends.
"""

import codecs
from collections.abc import Iterable, Iterator, Sequence
import functools
import hashlib
import heapq
import io
import os
import re

from etils import epath
import numpy as np
import sentencepiece

from llm_jax import parts, schema
from llm_jax.schema import ConfigError

FILE_NAME = 'tokenizer.model'
_CHUNK_CHARS = 8192
# SentencePiece writes a space as this character inside its pieces.
_SPACE = '\u2581'
# Lines with these are skipped by its trainer: NUL, and the mark it uses for unknown characters.
_UNTRAINABLE = re.compile('[\0\u2585\u2581]')


class SentencePieceTokenizer:
    """A SentencePiece model with byte fallback.

    Attributes:
      vocab_size: V.
      bos_id: the token that opens every document.
      token_bytes: int32[V], the UTF-8 bytes that each token stands for, 0 for the
        special ones. Summed over `encode(text)` it is `len(text.encode())`.
      fingerprint: hash of the model; equal for tokenizers that encode alike.
    """

    def __init__(self, model: bytes):
        """Args: model: the content of a SentencePiece model file."""
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise ConfigError(f'not a SentencePiece model: {error}') from error
        self._model = model
        self.vocab_size: int = self._processor.vocab_size()
        self.bos_id: int = self._processor.bos_id()
        byte_ids = {self._processor.id_to_piece(i): i for i in range(self.vocab_size) if self._processor.is_byte(i)}
        if len(byte_ids) != 256 or self.bos_id < 0:
            raise ConfigError(
                'the SentencePiece model has no byte fallback or no BOS piece; '
                'train it with byte_fallback=true and a bos_id, or leave data.tokenizer.path empty'
            )
        self._bytes: tuple[bytes, ...] = tuple(self._bytes_of(i) for i in range(self.vocab_size))
        self._space_mark = [byte_ids[f'<0x{b:02X}>'] for b in _SPACE.encode()]
        self.token_bytes = np.array([len(b) for b in self._bytes], np.int32)
        self._check_lossless()

    @functools.cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(self._model).hexdigest()[:16]

    def encode(self, text: str) -> list[int]:
        """Tokens of `text`, without BOS. A lone surrogate, which is no text, is a UnicodeEncodeError."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str], num_threads: int = 1) -> list[list[int]]:
        """Tokens of each text, without BOS."""
        try:
            ids = self._processor.encode(list(texts), num_threads=num_threads)
        except (RuntimeError, TypeError):
            for text in texts:
                text.encode()  # says which surrogate it is, if that is what was wrong
            raise
        for i, text in enumerate(texts):
            # A literal '▁' would be taken for a space: it is spelt out in bytes.
            if _SPACE in text:
                first, *rest = (self._processor.encode(part) for part in text.split(_SPACE))
                ids[i] = first + [token for part in rest for token in self._space_mark + part]
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the tokens; special ones are nothing, bytes that are no UTF-8 become U+FFFD."""
        return b''.join(self._bytes[i] for i in ids).decode('utf-8', errors='replace')

    def decode_token(self, token: int) -> bytes:
        """UTF-8 bytes of one token; b'' for the special ones."""
        return self._bytes[token]

    def save(self, directory: str | os.PathLike) -> None:
        """Writes DIRECTORY/tokenizer.model, for `load`."""
        directory = epath.Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / FILE_NAME).write_bytes(self._model)

    def _bytes_of(self, i: int) -> bytes:
        processor = self._processor
        if processor.is_byte(i):
            return bytes([int(processor.id_to_piece(i)[3:-1], 16)])
        if processor.is_control(i) or processor.is_unknown(i) or processor.is_unused(i):
            return b''
        return processor.id_to_piece(i).replace(_SPACE, ' ').encode()

    def _check_lossless(self) -> None:
        probe = ' \tA  \u00c5\ufb01\r\n\n '
        if self.decode(self.encode(probe)) != probe:
            raise ConfigError(
                'the SentencePiece model changes text (it normalises or drops spaces); train it with '
                'normalization_rule_name=identity, add_dummy_prefix=false, remove_extra_whitespaces=false'
            )


class StreamDecoder:
    """Text of tokens as they come; a character is given out when its last byte is there."""

    def __init__(self, tokenizer: SentencePieceTokenizer):
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder('utf-8')(errors='replace')

    def push(self, token: int) -> str:
        """The text that this token completes, possibly ''."""
        return self._decoder.decode(self._tokenizer.decode_token(token))

    def flush(self) -> str:
        """What is left: '', or U+FFFD for an unfinished character. Starts afresh."""
        rest = self._decoder.decode(b'', final=True)
        self._decoder.reset()
        return rest


def train(config: schema.Tokenizer, texts: Iterable[str], seed: int) -> SentencePieceTokenizer:
    """Learns a vocabulary; the same texts and seed give the same one, in any order of the texts.

    Args:
      config: algorithm, vocab_size, and how many bytes of `texts` to look at.
      texts: documents; iterated once, not kept.
      seed: chooses the sample when there are more than `config.sample_bytes`.

    Raises:
      ConfigError: no text, or a vocab_size that the text cannot fill.
    """
    for field, value, known in (
        ('data.tokenizer.kind', config.kind, ('sentencepiece',)),
        ('data.tokenizer.algorithm', config.algorithm, ('bpe', 'unigram')),
    ):
        if value not in known:
            raise ConfigError(f'{field} = {value!r} is unknown{parts.nearest(value, known)} Known: {", ".join(known)}')
    chunks = _sample(texts, config.sample_bytes, seed)
    if not chunks:
        raise ConfigError('there is no text to train the tokenizer on; look at data.sources')
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(chunks),
            model_writer=model,
            model_type=config.algorithm,
            vocab_size=config.vocab_size,
            byte_fallback=True,
            normalization_rule_name='identity',
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,  # so that indentation is one token
            split_digits=True,
            required_chars=_SPACE,  # text without a space must not leave spaces to the byte fallback
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=3,
            bos_piece='<|bos|>',
            eos_piece='<|eos|>',
            pad_piece='<|pad|>',
            max_sentence_length=4 * _CHUNK_CHARS + 1,  # bytes; a longer chunk would be skipped
            num_threads=os.cpu_count() or 1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise _explained(error, config, chunks) from error
    return SentencePieceTokenizer(model.getvalue())


def load(path: str | os.PathLike) -> SentencePieceTokenizer:
    """Reads a SentencePiece model file, or the directory that `save` wrote.

    Raises:
      ConfigError: no such file, or not a tokenizer that keeps text as it is.
    """
    file = epath.Path(path)
    if file.is_dir():
        file = file / FILE_NAME
    if not file.exists():
        raise ConfigError(f'tokenizer {str(file)!r}: there is no such file')
    try:
        return SentencePieceTokenizer(file.read_bytes())
    except ConfigError as error:
        raise ConfigError(f'tokenizer {str(file)!r}: {error}') from error


def _sample(texts: Iterable[str], max_bytes: int, seed: int) -> list[str]:
    """The chunks of smallest hash, up to `max_bytes` of them, in the order of their hash.

    A sample by hash needs one pass and no more memory than the sample, and does not
    depend on the order of the documents.
    """
    key = seed.to_bytes(8, 'little', signed=True)
    heap: list[tuple[int, str]] = []  # largest hash first
    size = 0
    for text in texts:
        for chunk in _chunks(text):
            data = chunk.encode()
            rank = int.from_bytes(hashlib.blake2b(data, digest_size=8, key=key).digest(), 'little')
            heapq.heappush(heap, (-rank, chunk))
            size += len(data)
            while size > max_bytes and len(heap) > 1:
                size -= len(heapq.heappop(heap)[1].encode())
    return [chunk for _, chunk in sorted(heap, reverse=True)]


def _chunks(text: str) -> Iterator[str]:
    """Pieces of a document that the trainer takes whole, cut at line ends where it can be."""
    for part in _UNTRAINABLE.split(text):
        start = 0
        while start < len(part):
            stop = start + _CHUNK_CHARS
            if stop < len(part):
                stop = part.rfind('\n', start, stop) + 1 or stop
            yield part[start:stop]
            start = stop


def _explained(error: RuntimeError, config: schema.Tokenizer, chunks: list[str]) -> Exception:
    too_high = re.search(r'Vocabulary size too high.*<= (\d+)', str(error))
    too_small = re.search(r'smaller than required_chars\. \d+ vs (\d+)', str(error))
    amount = sum(len(chunk.encode()) for chunk in chunks)
    field = f'data.tokenizer.vocab_size = {config.vocab_size}'
    if too_high:
        return ConfigError(
            f'{field} is more than {amount} bytes of training text can fill; '
            f'set at most {too_high[1]}, or add text to data.sources'
        )
    if too_small:
        return ConfigError(f'{field} is too small for the characters of the text; set at least {too_small[1]}')
    return error
