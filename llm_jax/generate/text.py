"""Text in, text out: prompts are documents that have begun, and BOS or EOS ends them."""

from collections.abc import Iterator, Sequence
from typing import Any

from llm_jax.generate import engine
from llm_jax.nn.transformer import Transformer
from llm_jax.tokenizer import StreamDecoder, Tokenizer


def complete(
    model: Transformer, params: Any, tokenizer: Tokenizer, prompts: Sequence[str], **options: Any
) -> list[str]:
    """Returns the continuation of each prompt, without the prompt.

    Args:
      model: the Transformer.
      params: its parameters.
      tokenizer: tokenizer that it was trained with.
      prompts: text; '' begins a document from nothing. For several samples, repeat a prompt.
      **options: options of `engine.stream`: max_new_tokens, sampler, seed, slide.

    Raises:
      ConfigError: as `engine.stream`.
    """
    tokens = engine.generate(model, params, _encode(tokenizer, prompts), **_text_options(tokenizer), **options)
    return [tokenizer.decode(row, continues=bool(p)) for p, row in zip(prompts, tokens, strict=True)]


def stream(
    model: Transformer, params: Any, tokenizer: Tokenizer, prompts: Sequence[str], **options: Any
) -> Iterator[list[tuple[str, int]]]:
    """Yields (new text, its number of tokens) of each prompt as it is decoded; otherwise as `complete`.

    The texts of a prompt, joined, are what `complete` returns.
    """
    blocks = engine.stream(model, params, _encode(tokenizer, prompts), **_text_options(tokenizer), **options)
    return _decode_text(blocks, [StreamDecoder(tokenizer, continues=bool(p)) for p in prompts])


def room(model: Transformer, tokenizer: Tokenizer, prompts: Sequence[str]) -> int:
    """Returns how many tokens the model's context has left after the longest prompt."""
    return model.config.max_seq_len - max(map(len, _encode(tokenizer, prompts)))


def _decode_text(blocks: Iterator[list[list[int]]], decoders: list[StreamDecoder]) -> Iterator[list[tuple[str, int]]]:
    """Decodes blocks of tokens to text; the last block has the bytes that the decoders still hold."""
    for block in blocks:
        yield [
            (''.join(map(decoder.push, tokens)), len(tokens)) for decoder, tokens in zip(decoders, block, strict=True)
        ]
    rest = [(decoder.flush(), 0) for decoder in decoders]
    if any(text for text, _ in rest):
        yield rest


def _encode(tokenizer: Tokenizer, prompts: Sequence[str]) -> list[list[int]]:
    """Encodes the prompts, each led by BOS."""
    return [[tokenizer.bos_id, *tokenizer.encode(prompt)] for prompt in prompts]


def _text_options(tokenizer: Tokenizer) -> dict[str, Any]:
    """Returns the options of `engine.stream` that the tokenizer decides."""
    # Ids past the tokenizer's vocabulary pad the embedding and have no text.
    return {'stop_ids': [tokenizer.bos_id, *tokenizer.eos_ids], 'vocab_size': tokenizer.vocab_size}
