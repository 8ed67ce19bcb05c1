"""Making a tokenizer of text: a SentencePiece model that keeps every string as it is, or its characters or bytes."""

from collections import Counter
from collections.abc import Iterable, Iterator
import hashlib
import heapq
import io
import os
import re

import sentencepiece

from llm_jax.config import parts, schema
from llm_jax.config.schema import ConfigError
from llm_jax.tokenizer import units
from llm_jax.tokenizer.export import SPACE
from llm_jax.tokenizer.interface import Tokenizer
from llm_jax.tokenizer.sentence_piece import OWN_PIECES, SentencePieceTokenizer

KINDS = ('sentencepiece', 'characters', 'bytes')
_CHUNK_CHARS = 8192
# Lines with these are skipped by the trainer: NUL, and the mark it uses for unknown characters.
_UNTRAINABLE = re.compile('[\0\u2585\u2581]')


def expected_size(config: schema.Tokenizer) -> int:
    """Tokens that a tokenizer made like this has; of characters, the most that it may have."""
    return units.size_of_bytes(config.reserved) if config.kind == 'bytes' else config.vocab_size


def train(config: schema.Tokenizer, texts: Iterable[str], seed: int) -> Tokenizer:
    """Learns a vocabulary; the same texts and seed give the same one, in any order of the texts.

    Args:
      config: what to learn, and how many bytes of `texts` to look at.
      texts: documents; iterated once, not kept.
      seed: chooses the sample when there are more than `config.sample_bytes`.

    Raises:
      ConfigError: no text, a vocab_size that the text cannot fill, or an unknown kind.
    """
    check(config, 'data.tokenizer')
    # All characters of the text are counted, not those of a sample: the rarest would become bytes.
    chunks = texts if config.kind != 'sentencepiece' else _sample(texts, config.sample_bytes, seed)
    return train_on(config, chunks, 'data.tokenizer', 'data.sources')


def check(config: schema.Tokenizer, field: str) -> None:
    """Whether a tokenizer can be trained so.

    Args:
      field: the section's name, for errors.

    Raises:
      ConfigError: an unknown kind or algorithm, or a name that cannot be reserved.
    """
    for name, value, known in (
        ('kind', config.kind, KINDS),
        ('algorithm', config.algorithm, ('bpe', 'unigram')),
    ):
        if value not in known:
            hint = f'{parts.nearest(value, known)} Known: {", ".join(known)}'
            raise ConfigError(f'{field}.{name} = {value!r} is unknown{hint}')
    for name in config.reserved:
        is_word = isinstance(name, str) and name and not re.search(r'[\s,\0\u2581\u2585]', name)
        if not is_word or name in OWN_PIECES or re.fullmatch('<0x[0-9A-F]{2}>', name):
            raise ConfigError(
                f'{field}.reserved: {name!r} cannot be a token of its own; write a name such as "<|user|>", without '
                f'spaces or commas and other than {", ".join(OWN_PIECES)}'
            )
    if len(set(config.reserved)) < len(config.reserved):
        raise ConfigError(f'{field}.reserved = {config.reserved!r} has a name twice')


def train_on(config: schema.Tokenizer, chunks: Iterable[str], field: str, sources: str) -> Tokenizer:
    """Learns a vocabulary of a sample.

    Args:
      config: what to learn, checked.
      chunks: the sample, as `pieces` cuts it; another order of them may give another vocabulary.
      field: the name of the config's section, for errors.
      sources: the name of the field that text comes from, for errors.

    Raises:
      ConfigError: no text, or a vocab_size that the text cannot fill.
    """
    if config.kind == 'bytes':
        return units.bytes_tokenizer(config.reserved)
    if config.kind == 'characters':
        counts: Counter[str] = Counter()
        for chunk in chunks:
            counts.update(chunk)
        if not counts:
            raise _no_text(sources)
        return units.characters_tokenizer(counts, config.vocab_size, config.reserved, field)
    chunks = list(chunks)
    if not chunks:
        raise _no_text(sources)
    return _train_sentencepiece(config, chunks, field, sources)


def _no_text(sources: str) -> ConfigError:
    return ConfigError(f'there is no text to train the tokenizer on; look at {sources}')


def _train_sentencepiece(
    config: schema.Tokenizer, chunks: list[str], field: str, sources: str
) -> SentencePieceTokenizer:
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
            split_digits=config.split_digits,
            control_symbols=list(config.reserved),
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
        raise _explained(error, config, chunks, field, sources) from error
    tokenizer = SentencePieceTokenizer(model.getvalue())
    if not tokenizer.lossless:
        raise ConfigError(
            f'SentencePiece {sentencepiece.__version__} trained a model that changes text; use the version that '
            'requirements.txt pins'
        )
    return tokenizer


def share(texts: Iterable[str], part: float, seed: int) -> Iterator[tuple[int, str]]:
    """(rank, piece) of about this part of the pieces of some documents: those of smallest hash.

    A piece is chosen for itself, so that shards of a corpus can be looked at one by one.
    """
    key = _key(seed)
    limit = int(part * 2**64)
    for text in texts:
        for chunk in pieces(text):
            rank = _rank(chunk.encode(), key)
            if rank < limit:
                yield rank, chunk


def _sample(texts: Iterable[str], max_bytes: int, seed: int) -> list[str]:
    """The chunks of smallest hash, up to `max_bytes` of them, in the order of their hash.

    A sample by hash needs one pass and no more memory than the sample, and does not
    depend on the order of the documents.
    """
    key = _key(seed)
    heap: list[tuple[int, str]] = []  # largest hash first
    size = 0
    for text in texts:
        for chunk in pieces(text):
            data = chunk.encode()
            heapq.heappush(heap, (-_rank(data, key), chunk))
            size += len(data)
            while size > max_bytes and len(heap) > 1:
                size -= len(heapq.heappop(heap)[1].encode())
    return [chunk for _, chunk in sorted(heap, reverse=True)]


def _key(seed: int) -> bytes:
    return seed.to_bytes(8, 'little', signed=True)


def _rank(data: bytes, key: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8, key=key).digest(), 'little')


def pieces(text: str) -> Iterator[str]:
    """Pieces of a document that the trainer takes whole, cut at line ends where it can be."""
    for part in _UNTRAINABLE.split(text):
        start = 0
        while start < len(part):
            stop = start + _CHUNK_CHARS
            if stop < len(part):
                stop = part.rfind('\n', start, stop) + 1 or stop
            yield part[start:stop]
            start = stop


def _explained(
    error: RuntimeError, config: schema.Tokenizer, chunks: list[str], section: str, sources: str
) -> Exception:
    too_high = re.search(r'Vocabulary size too high.*<= (\d+)', str(error))
    too_small = re.search(r'smaller than required_chars\. \d+ vs (\d+)', str(error))
    amount = sum(len(chunk.encode()) for chunk in chunks)
    field = f'{section}.vocab_size = {config.vocab_size}'
    if too_high:
        return ConfigError(
            f'{field} is more than {amount} bytes of training text can fill; '
            f'set at most {too_high[1]}, or add text to {sources}'
        )
    if too_small:
        return ConfigError(f'{field} is too small for the characters of the text; set at least {too_small[1]}')
    return error
