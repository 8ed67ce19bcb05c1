"""Training of a SentencePiece model that keeps every string as it is."""

from collections.abc import Iterable, Iterator
import hashlib
import heapq
import io
import os
import re

import sentencepiece

from llm_jax import parts, schema
from llm_jax.schema import ConfigError
from llm_jax.tokenizer.export import SPACE
from llm_jax.tokenizer.sentence_piece import OWN_PIECES, SentencePieceTokenizer

_CHUNK_CHARS = 8192
# Lines with these are skipped by the trainer: NUL, and the mark it uses for unknown characters.
_UNTRAINABLE = re.compile('[\0\u2585\u2581]')


def train(config: schema.Tokenizer, texts: Iterable[str], seed: int) -> SentencePieceTokenizer:
    """Learns a vocabulary; the same texts and seed give the same one, in any order of the texts.

    Args:
      config: algorithm, vocab_size, and how many bytes of `texts` to look at.
      texts: documents; iterated once, not kept.
      seed: chooses the sample when there are more than `config.sample_bytes`.

    Raises:
      ConfigError: no text, a vocab_size that the text cannot fill, or an unknown kind.
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
            required_chars=SPACE,  # text without a space must not leave spaces to the byte fallback
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=3,
            unk_piece=OWN_PIECES[0],
            bos_piece=OWN_PIECES[1],
            eos_piece=OWN_PIECES[2],
            pad_piece=OWN_PIECES[3],
            max_sentence_length=4 * _CHUNK_CHARS + 1,  # bytes; a longer chunk would be skipped
            num_threads=os.cpu_count() or 1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise _explained(error, config, chunks) from error
    tokenizer = SentencePieceTokenizer(model.getvalue())
    if not tokenizer.lossless:
        raise ConfigError(
            f'SentencePiece {sentencepiece.__version__} trained a model that changes text; use the version that '
            'requirements.txt pins'
        )
    return tokenizer


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
