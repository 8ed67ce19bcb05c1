"""Text in, text out: prompts are documents that have begun, and BOS or EOS ends them."""

from collections.abc import Iterator, Sequence
from typing import Any

from llm_jax.generate import engine
from llm_jax.nn.transformer import Transformer
from llm_jax.tokenizer import StreamDecoder, Tokenizer


def complete(
    model: Transformer, params: Any, tokenizer: Tokenizer, prompts: Sequence[str], **options: Any
) -> list[str]:
    """The continuation of each prompt, without the prompt.

    Args:
      model: the Transformer.
      params: its parameters.
      tokenizer: the one it was trained with.
      prompts: text; '' begins a document from nothing. For several samples, repeat a prompt.
      **options: of `engine.stream`: max_new_tokens, sampler, seed.

    Raises:
      ConfigError: as `engine.stream`.
    """
    tokens = engine.generate(model, params, _encode(tokenizer, prompts), **_text_options(tokenizer), **options)
    return [tokenizer.decode(row, continues=bool(p)) for p, row in zip(prompts, tokens, strict=True)]


def stream(
    model: Transformer, params: Any, tokenizer: Tokenizer, prompts: Sequence[str], **options: Any
) -> Iterator[list[tuple[str, int]]]:
    """As `complete`, but yields each prompt's new text, and of how many tokens it is, as it comes.

    The texts of a prompt, joined, are what `complete` returns.
    """
    blocks = engine.stream(model, params, _encode(tokenizer, prompts), **_text_options(tokenizer), **options)
    return _decoded(blocks, [StreamDecoder(tokenizer, continues=bool(p)) for p in prompts])


def _decoded(blocks: Iterator[list[list[int]]], decoders: list[StreamDecoder]) -> Iterator[list[tuple[str, int]]]:
    for block in blocks:
        yield [
            (''.join(map(decoder.push, tokens)), len(tokens)) for decoder, tokens in zip(decoders, block, strict=True)
        ]
    rest = [(decoder.flush(), 0) for decoder in decoders]
    if any(text for text, _ in rest):
        yield rest


def _encode(tokenizer: Tokenizer, prompts: Sequence[str]) -> list[list[int]]:
    return [[tokenizer.bos_id, *tokenizer.encode(prompt)] for prompt in prompts]


def _text_options(tokenizer: Tokenizer) -> dict[str, Any]:
    # Rows of the vocabulary past the tokenizer's only pad it, and stand for no text.
    return {'stop_ids': [tokenizer.bos_id, *tokenizer.eos_ids], 'vocab_size': tokenizer.vocab_size}
