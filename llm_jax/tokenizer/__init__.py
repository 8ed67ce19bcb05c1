"""Text <-> tokens: our own SentencePiece models, and the tokenizers that existing models come with.

`train` makes one, `load` reads one of any kind; all are a `Tokenizer`.
"""

from llm_jax.tokenizer.interface import StreamDecoder, Tokenizer
from llm_jax.tokenizer.loading import find, load
from llm_jax.tokenizer.sentence_piece import FILE_NAME, SentencePieceTokenizer
from llm_jax.tokenizer.tokenizer_json import JsonTokenizer
from llm_jax.tokenizer.training import expected_size, train

__all__ = [
    'FILE_NAME',
    'JsonTokenizer',
    'SentencePieceTokenizer',
    'StreamDecoder',
    'Tokenizer',
    'expected_size',
    'find',
    'load',
    'train',
]
