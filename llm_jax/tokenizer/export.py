"""The files that Hugging Face libraries read: tokenizer.json and tokenizer_config.json."""

from collections.abc import Iterator, Mapping
import json
import os
from typing import Any

from etils import epath
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

from llm_jax.config.schema import ConfigError

# SentencePiece writes a space as this character inside its pieces.
SPACE = '\u2581'


def write(directory: str | os.PathLike, files: Mapping[str, Any]) -> None:
    """Writes file name -> what becomes its JSON."""
    directory = epath.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (directory / name).write_bytes(json.dumps(content, indent=1, ensure_ascii=False).encode())


def from_sentencepiece(data: bytes, *, literal_mark: bool) -> dict[str, Any]:
    """File name -> JSON, of a SentencePiece BPE model.

    Args:
      data: the content of a SentencePiece model file.
      literal_mark: whether '▁' in a text is that character, not a space.

    Raises:
      ConfigError: a unigram model, or one that normalises or has user-defined pieces: those
        files would give other tokens in places.
    """
    # Only where it is needed: the file wants a newer protobuf than Apache Beam has.
    from sentencepiece import sentencepiece_model_pb2 as proto

    model = proto.ModelProto.FromString(data)
    normalizer, kind = model.normalizer_spec, proto.ModelProto.SentencePiece
    for wrong, what in (
        (model.trainer_spec.model_type != proto.TrainerSpec.BPE, 'it is no BPE model'),
        (normalizer.precompiled_charsmap or normalizer.remove_extra_whitespaces, 'it normalises text'),
        (any(piece.type == kind.USER_DEFINED for piece in model.pieces), 'it has user-defined pieces'),
    ):
        if wrong:
            raise ConfigError(
                f'the tokenizer cannot be exported to tokenizer.json: {what}, for which that file would give other '
                'tokens; use its tokenizer.model there, or train with data.tokenizer.algorithm = "bpe"'
            )
    # Written with real spaces, no piece has the mark, and '▁' falls back to its bytes.
    spell = (lambda text: text.replace(SPACE, ' ')) if literal_mark else (lambda text: text)
    normal = {spell(piece.piece): piece.score for piece in model.pieces if piece.type == kind.NORMAL}
    vocab = {spell(p.piece) if p.type == kind.NORMAL else p.piece: i for i, p in enumerate(model.pieces)}
    trainer = model.trainer_spec
    tokenizer = Tokenizer(
        models.BPE(vocab, list(_merges(normal)), unk_token=trainer.unk_piece, fuse_unk=True, byte_fallback=True)
    )
    undo = [decoders.ByteFallback(), decoders.Fuse()]
    if not literal_mark:
        prefix = normalizer.add_dummy_prefix
        marks = [normalizers.Prepend(SPACE)] * prefix + [normalizers.Replace(' ', SPACE)]
        tokenizer.normalizer = normalizers.Sequence(marks)
        undo = [decoders.Replace(SPACE, ' '), *undo] + [decoders.Strip(' ', 1, 0)] * prefix
    tokenizer.decoder = decoders.Sequence(undo)
    control = [p.piece for p in model.pieces if p.type in (kind.CONTROL, kind.UNKNOWN)]
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in control])
    config = {'tokenizer_class': 'PreTrainedTokenizerFast', 'clean_up_tokenization_spaces': False}
    for role in ('unk', 'bos', 'eos', 'pad'):
        if (i := getattr(trainer, f'{role}_id')) >= 0:
            config[f'{role}_token'] = model.pieces[i].piece
    if (bos := config.get('bos_token')) is not None:  # a text begins with BOS, as in training
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[bos, '$A'], pair=[bos, '$A', bos, '$B'], special_tokens=[(bos, vocab[bos])]
        )
    return {'tokenizer.json': json.loads(tokenizer.to_str()), 'tokenizer_config.json': config}


def _merges(scores: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    """Every pair of pieces that makes a piece, the best result first.

    SentencePiece merges whichever neighbours give the piece of the highest score, so one
    piece is several merges, of the same rank there and of neighbouring ranks here.
    """
    for piece in sorted(scores, key=scores.__getitem__, reverse=True):
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in scores and right in scores:
                yield left, right
