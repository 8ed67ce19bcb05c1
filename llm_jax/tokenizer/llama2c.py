"""The tokenizer files of llama2.c: pieces and scores of a SentencePiece BPE model, and nothing else."""

import re
import struct
from typing import Any

from llm_jax.config.schema import ConfigError
from llm_jax.tokenizer.export import SPACE

_BYTE = re.compile('<0x[0-9A-F]{2}>')
_UNK, _BOS, _EOS = range(3)


def to_sentencepiece(data: bytes) -> bytes:
    """The SentencePiece model that encodes as llama2.c does.

    One difference is left: a literal '▁' in a text is a space, as everywhere in SentencePiece,
    where llama2.c spells its bytes.

    Args:
      data: int32 the longest length, then of each token float32 score, int32 length, bytes.

    Raises:
      ConfigError: the file is something else, or cut short.
    """
    # Only where it is needed: the file wants a newer protobuf than Apache Beam has.
    from sentencepiece import sentencepiece_model_pb2 as proto

    model = proto.ModelProto()
    at = 4
    try:
        while at < len(data):
            score, size = struct.unpack_from('<fi', data, at)
            at += 8 + size
            if size < 0 or at > len(data):
                raise ValueError(f'a token of {size} bytes ends past the end of the file')
            _add_piece(model, data[at - size : at].decode(), score)
    except (struct.error, ValueError) as error:  # a UnicodeDecodeError is a ValueError
        raise ConfigError(f'not a tokenizer of llama2.c: {error}; copy the file again') from error
    if len(model.pieces) <= _EOS:
        raise ConfigError('not a tokenizer of llama2.c: it has no tokens; copy the file again')
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    trainer.model_type, trainer.byte_fallback = proto.TrainerSpec.BPE, True
    trainer.vocab_size = len(model.pieces)
    trainer.unk_id, trainer.bos_id, trainer.eos_id, trainer.pad_id = _UNK, _BOS, _EOS, -1
    trainer.unk_piece, trainer.bos_piece, trainer.eos_piece = (piece.piece for piece in model.pieces[: _EOS + 1])
    normalizer.name = 'identity'
    normalizer.add_dummy_prefix, normalizer.remove_extra_whitespaces = True, False
    return model.SerializeToString(deterministic=True)


def _add_piece(model: Any, text: str, score: float) -> None:
    piece, i = type(model).SentencePiece, len(model.pieces)
    kind = {_UNK: piece.UNKNOWN, _BOS: piece.CONTROL, _EOS: piece.CONTROL}.get(i, piece.NORMAL)
    if kind != piece.NORMAL:
        text = text.strip()  # its names of BOS and EOS may stand between line ends
    elif _BYTE.fullmatch(text):
        kind = piece.BYTE
    model.pieces.add(piece=text.replace(' ', SPACE), score=score, type=kind)
