"""Text in, text out: prompts are documents that have begun, and BOS or EOS ends them."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from llm_jax.chat import Chat
from llm_jax.generate import beam, engine
from llm_jax.generate.beam import Beams
from llm_jax.generate.requests import Constraint
from llm_jax.generate.stops import StopText
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
      **options: `stop`, `constraint`, and options of `engine.stream`: max_new_tokens, sampler, seed, slide, quantise,
        cache.

    Raises:
      ConfigError: as `engine.stream`.
    """
    texts = [''] * len(prompts)
    for block in stream(model, params, tokenizer, prompts, **options):
        texts = [text + new for text, (new, _) in zip(texts, block, strict=True)]
    return texts


def answer(model: Transformer, params: Any, chat: Chat, questions: Sequence[str], **options: Any) -> list[str]:
    """Returns the answer to each question, a conversation of one turn; arguments as of `complete`."""
    rendered = [chat.render([{'role': 'user', 'content': text}], add_generation_prompt=True).ids for text in questions]
    texts = [StopText(StreamDecoder(chat.tokenizer, continues=True), chat.stop_texts) for _ in questions]
    limits = {'stop_ids': chat.stop_ids, 'vocab_size': chat.tokenizer.vocab_size}
    answers = [''] * len(questions)
    for block in _read(engine.stream(model, params, rendered, watchers=texts, **limits, **options), texts):
        answers = [said + new for said, (new, _) in zip(answers, block, strict=True)]
    return answers


def stream(
    model: Transformer,
    params: Any,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    stop: Sequence[str] = (),
    constraint: Callable[[bool], Constraint] | None = None,
    **options: Any,
) -> Iterator[list[tuple[str, int]]]:
    """Yields (new text, its number of tokens) of each prompt as it is decoded; otherwise as `complete`.

    The texts of a prompt, joined, are what `complete` returns. `stop` has strings that end a text, and are not part
    of it. `constraint` makes the constraint of each text, and is told whether a prompt comes before: `Grammar.start`.
    """
    texts = [StopText(StreamDecoder(tokenizer, continues=bool(p)), stop) for p in prompts]
    # Ids past the tokenizer's vocabulary pad the embedding and have no text.
    limits = {'stop_ids': [tokenizer.bos_id, *tokenizer.eos_ids], 'vocab_size': tokenizer.vocab_size}
    if constraint:
        options['constraints'] = [constraint(bool(p)) for p in prompts]
    return _read(engine.stream(model, params, _encode(tokenizer, prompts), watchers=texts, **limits, **options), texts)


def search(
    model: Transformer, params: Any, tokenizer: Tokenizer, prompts: Sequence[str], *, max_new_tokens: int, beams: Beams
) -> list[list[tuple[str, float]]]:
    """Returns (continuation, score) of the best beams of each prompt, the best first; see `beam.search`."""
    stop_ids = [tokenizer.bos_id, *tokenizer.eos_ids]
    limits = {'max_new_tokens': max_new_tokens, 'stop_ids': stop_ids, 'vocab_size': tokenizer.vocab_size}
    found = beam.search(model, params, _encode(tokenizer, prompts), beams=beams, **limits)
    return [
        [(tokenizer.decode(one.tokens, continues=bool(prompt)), one.score) for one in row]
        for prompt, row in zip(prompts, found, strict=True)
    ]


def _read(blocks: Iterator[list[list[int]]], texts: list[StopText]) -> Iterator[list[tuple[str, int]]]:
    """Takes the text of each block; the last has what is held back until a row ends."""
    for block in blocks:
        yield [(text.take(), len(tokens)) for text, tokens in zip(texts, block, strict=True)]
    rest = [(text.close(), 0) for text in texts]
    if any(text for text, _ in rest):
        yield rest


def room(model: Transformer, tokenizer: Tokenizer, prompts: Sequence[str]) -> int:
    """Returns how many tokens the model's context has left after the longest prompt."""
    return model.config.max_seq_len - max(map(len, _encode(tokenizer, prompts)))


def _encode(tokenizer: Tokenizer, prompts: Sequence[str]) -> list[list[int]]:
    """Encodes the prompts, each led by BOS."""
    return [[tokenizer.bos_id, *tokenizer.encode(prompt)] for prompt in prompts]
