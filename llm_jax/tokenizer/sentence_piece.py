"""SentencePiece models: our own, and those of Llama 2, Mistral and Gemma.

In our own, ids 0 to 3 are '<unk>', '<|bos|>', '<|eos|>' and '<|pad|>', then come those that
the config reserves; no text encodes to them. Then come the 256 bytes, then what was
learned. A document is written as BOS followed by its tokens: one separator, which is also
what a model predicts where a document ends. decode(encode(x)) == x for every string.

Those of others encode exactly as the sentencepiece library does, with what that loses: a
literal '▁' is a space, and there may be a space before every text, or normalisation.
Pieces that a model declares as user-defined are text like any other.
"""

from collections.abc import Sequence
import functools
import hashlib
import os

from etils import epath
import sentencepiece

from llm_jax.config.schema import ConfigError
from llm_jax.tokenizer import chat_template, export
from llm_jax.tokenizer.export import SPACE
from llm_jax.tokenizer.interface import Spelled
from llm_jax.tokenizer.special import Special
from llm_jax.tokenizer.words import Words

FILE_NAME = 'tokenizer.model'
# The first pieces of a model that `train` made: this is what it is known by.
OWN_PIECES = ('<unk>', '<|bos|>', '<|eos|>', '<|pad|>')
# So many threads that merge are faster than one that looks words up.
_MERGING_THREADS = 4


class SentencePieceTokenizer(Spelled):
    """A SentencePiece model with byte fallback; a `Tokenizer`."""

    def __init__(self, model: bytes):
        """Args: model: the content of a SentencePiece model file.

        Raises:
          ConfigError: not such a model, or one without byte fallback or BOS.
        """
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise ConfigError(
                f'not a SentencePiece model: {error}; copy the file again, or name another kind of tokenizer'
            ) from error
        self._model = model
        processor = self._processor
        ids = range(processor.vocab_size())
        self._is_own = tuple(processor.id_to_piece(i) for i in ids[: len(OWN_PIECES)]) == OWN_PIECES
        self._space_mark = [processor.piece_to_id(f'<0x{b:02X}>') for b in SPACE.encode()]
        eos_id = processor.eos_id()
        bos_id = processor.bos_id() if processor.bos_id() >= 0 else eos_id
        if bos_id < 0 or not any(map(processor.is_byte, ids)):
            raise ConfigError(
                'the SentencePiece model has no byte fallback or neither BOS nor EOS; '
                'train it with byte_fallback=true and a bos_id, or leave data.tokenizer.path empty'
            )
        roles = {'unk': processor.unk_id(), 'bos': processor.bos_id(), 'eos': eos_id, 'pad': processor.pad_id()}
        super().__init__(
            map(self._bytes_of, ids),
            bos_id,
            [eos_id] if eos_id >= 0 else [],
            special={
                processor.id_to_piece(i): Special(i) for i in ids if processor.is_control(i) or processor.is_unknown(i)
            },
            token_roles={f'{role}_token': processor.id_to_piece(i) for role, i in roles.items() if i >= 0},
        )
        if self._joined(self.encode('a')) == b'a ':
            raise ConfigError('the SentencePiece model puts spaces behind words; use one that puts them before')

    @property
    def reserved(self) -> dict[str, int]:
        """Name -> id of the tokens that were reserved when the model was trained."""
        processor, first = self._processor, len(OWN_PIECES)
        ids = range(first, processor.vocab_size())
        return {processor.id_to_piece(i): i for i in ids if processor.is_control(i)} if self._is_own else {}

    @functools.cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(self._model).hexdigest()[:16]

    def encode_batch(self, texts: Sequence[str], num_threads: int = 1) -> list[list[int]]:
        try:
            if self._words is not None and num_threads < _MERGING_THREADS:
                ids = self._words.encode(texts)
            else:
                ids = self._processor.encode(list(texts), num_threads=num_threads)
        except (RuntimeError, TypeError):
            for text in texts:
                text.encode()  # says which surrogate it is, if that is what was wrong
            raise
        if not self._is_own:
            return ids
        for i, text in enumerate(texts):
            # A literal '▁' would be taken for a space: it is spelt out in bytes.
            if SPACE in text:
                first, *rest = (self._processor.encode(part) for part in text.split(SPACE))
                ids[i] = first + [token for part in rest for token in self._space_mark + part]
        return ids

    @functools.cached_property
    def _words(self) -> Words | None:
        """Remembers words; None for models whose tokens of a text may not be those of its words."""
        processor = self._processor
        learned = [i for i in range(len(OWN_PIECES), processor.vocab_size())
                   if not (processor.is_byte(i) or processor.is_control(i))]  # fmt: skip
        # Byte-pair merging numbers what it learns. A unigram model's scores are log-probabilities, and it
        # weighs a text as a whole.
        is_bpe = [processor.get_score(i) for i in learned] == [-float(rank) for rank in range(len(learned))]
        if not (self._is_own and is_bpe):
            return None
        return Words((processor.id_to_piece(i).replace(SPACE, ' ') for i in learned), processor.encode)

    def save(self, directory: str | os.PathLike) -> None:
        directory = epath.Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / FILE_NAME).write_bytes(self._model)
        chat_template.write(directory, self.chat_templates)

    def export(self, directory: str | os.PathLike) -> None:
        export.write(directory, export.from_sentencepiece(self._model, literal_mark=self._is_own))
        chat_template.write(directory, self.chat_templates)

    def _locate(self, text: str, ids: Sequence[int]) -> list[tuple[int, int]]:
        offsets = self._processor.encode(text, return_type='offset_mapping')['offsets']
        # The first bytes of a character that has no piece stand before it, and are a part of it.
        return [(start, end if end > start else min(start + 1, len(text))) for start, end in offsets]

    def _bytes_of(self, i: int) -> bytes:
        processor = self._processor
        if processor.is_byte(i):
            return bytes([int(processor.id_to_piece(i)[3:-1], 16)])
        if processor.is_control(i) or processor.is_unknown(i) or processor.is_unused(i):
            return b''
        return processor.id_to_piece(i).replace(SPACE, ' ').encode()
