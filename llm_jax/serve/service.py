"""A served model: requests of the protocol become rows of the engine."""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import secrets
from typing import Any

from llm_jax import chat as chat_lib
from llm_jax.config.schema import ConfigError
from llm_jax.generate.constrain import Grammar, Grammars
from llm_jax.generate.requests import Request
from llm_jax.generate.stops import StopText
from llm_jax.serve.answers import Answer, ChatAnswer
from llm_jax.serve.calls import OneCall, compile_calls
from llm_jax.serve.errors import ApiError
from llm_jax.serve.protocol import ChatCompletion, Completion, Options
from llm_jax.tokenizer import StreamDecoder, Tokenizer


@dataclasses.dataclass(frozen=True)
class Work:
    """Rows of one request, and the answer that they fill."""

    requests: Sequence[Request]
    answer: Answer
    n_prompt: int
    options: Options
    echoes: Sequence[str] = ()


class Service:
    """Encodes and checks requests.

    Attributes:
      name: of the model.
      context: tokens that a prompt and its answer have room for.
    """

    def __init__(self, name: str, tokenizer: Tokenizer, context: int, chat: chat_lib.Chat) -> None:
        """Args:
        name: by which clients ask for the model.
        tokenizer: of the model.
        context: of the engine.
        chat: renders conversations.
        """
        self.name, self.context = name, context
        self._tokenizer, self._chat = tokenizer, chat

    @functools.cached_property
    def _grammars(self) -> Grammars:
        return Grammars(self._tokenizer)

    def open_chat(self, asked: ChatCompletion) -> Work:
        """Raises: ApiError: messages, tools or a schema that cannot be used, or a prompt past the context."""
        prompt = self._render(asked.messages, asked.tools, asked.variables)
        chat = self._chat
        stop_ids = chat.stop_ids
        grammar, tool_form, watch = self._compile(asked.schema), '', StopText
        if asked.tools:
            tool_form = chat.tool_form
            grammar = compile_calls(self._grammars, asked.tools, asked.tool_choice, tool_form) or grammar
            if not asked.tool_choice.is_parallel:
                watch = functools.partial(OneCall, form=tool_form)
        answer = lambda n_prompts: ChatAnswer(
            *self._answer(asked.options, n_prompts), tool_form=tool_form, is_parallel=asked.tool_choice.is_parallel
        )
        return self._open(asked.options, [prompt], answer, stop_ids, grammar, [True], chat.stop_texts, watch)

    def open_completion(self, asked: Completion) -> Work:
        """Raises: ApiError: a prompt past the context, or with unknown ids."""
        tokenizer = self._tokenizer
        prompts = [
            [tokenizer.bos_id, *tokenizer.encode(one)] if isinstance(one, str) else list(one) for one in asked.prompts
        ]
        stop_ids = tuple(dict.fromkeys([tokenizer.bos_id, *tokenizer.eos_ids]))
        continues = [one not in ('', (tokenizer.bos_id,)) for one in asked.prompts]
        answer = lambda n_prompts: Answer(*self._answer(asked.options, n_prompts))
        work = self._open(asked.options, prompts, answer, stop_ids, None, continues, ())
        if not asked.echo:
            return work
        texts = [one if isinstance(one, str) else self._decode(one) for one in asked.prompts]
        return dataclasses.replace(work, echoes=[text for text in texts for _ in range(asked.options.n)])

    def tokenize(self, values: dict[str, Any]) -> dict[str, Any]:
        """Returns the tokens of `prompt`, or of `messages` as the model would be prompted."""
        prompt, messages = values.get('prompt'), values.get('messages')
        special = values.get('add_special_tokens', True)
        if (prompt is None) == (messages is None):
            raise ApiError(400, 'give prompt, a text, or messages, a list', 'prompt')
        if not isinstance(special, bool):
            raise ApiError(400, 'add_special_tokens must be true or false', 'add_special_tokens')
        if messages is not None:
            tokens = self._render(messages, values.get('tools'), {})
        elif isinstance(prompt, str):
            tokens = [*([self._tokenizer.bos_id] if special else []), *self._tokenizer.encode(prompt)]
        else:
            raise ApiError(400, 'prompt must be text', 'prompt')
        return {'tokens': tokens, 'count': len(tokens), 'max_model_len': self.context}

    def _render(self, messages: Any, tools: Any, variables: dict[str, Any]) -> list[int]:
        reserved = {
            'messages',
            'tools',
            'documents',
            'add_generation_prompt',
            'continue_final_message',
            'weights',
            'now',
            'self',
        }
        if taken := sorted(reserved & variables.keys()):
            raise ApiError(400, f'chat_template_kwargs.{taken[0]} is not for clients to set', 'chat_template_kwargs')
        try:
            checked = chat_lib.parse_arguments(chat_lib.check(messages))
            return self._chat.render(checked, tools=tools, add_generation_prompt=True, **variables).ids
        except ConfigError as error:
            raise ApiError(400, str(error), 'tools' if str(error).startswith('tools') else 'messages') from None

    def _compile(self, schema: Any) -> Grammar | None:
        try:
            return None if schema is None else self._grammars.json_schema(schema)
        except ConfigError as error:
            raise ApiError(400, str(error), 'response_format') from None

    def _decode(self, ids: Sequence[int]) -> str:
        if any(token >= self._tokenizer.vocab_size for token in ids):
            raise ApiError(400, f'prompt has token {max(ids)}; there are {self._tokenizer.vocab_size}', 'prompt')
        return self._tokenizer.decode(ids)

    def _answer(self, options: Options, lengths: Sequence[int]) -> tuple:
        return self._tokenizer, self.name, lengths, options.n, options.logprobs is not None

    def _open(
        self,
        options: Options,
        prompts: Sequence[Sequence[int]],
        make_answer: Any,
        stop_ids: Sequence[int],
        grammar: Grammar | None,
        continues: Sequence[bool],
        stop_texts: Sequence[str],
        watch: Callable[[StreamDecoder, Sequence[str]], StopText] = StopText,
    ) -> Work:
        if options.model not in ('', self.name):
            raise ApiError(
                404, f'there is no model {options.model!r}; there is {self.name!r}', 'model', 'model_not_found'
            )
        for prompt in prompts:
            n = len(prompt) + (options.max_tokens or 1)
            if n > self.context:
                asked = f' and max_tokens = {options.max_tokens}' if options.max_tokens else ''
                raise ApiError(
                    400,
                    f'the prompt has {len(prompt)} tokens{asked}, past the context of {self.context}; shorten it, or '
                    'ask for fewer',
                    code='context_length_exceeded',
                )
            unknown = next((token for token in prompt if token >= self._tokenizer.vocab_size), None)
            if unknown is not None:
                raise ApiError(400, f'prompt has token {unknown}; there are {self._tokenizer.vocab_size}', 'prompt')
        seed = secrets.randbits(63) if options.seed is None else options.seed
        try:
            requests = [
                Request(
                    prompt, options.max_tokens, options.sampler, seed, choice, stop_ids, options.logprobs or 0,
                    grammar.start(continues=after, stop_ids=stop_ids) if grammar else None,
                    watch(StreamDecoder(self._tokenizer, continues=after), [*options.stop, *stop_texts]),
                )
                for prompt, after in zip(prompts, continues, strict=True)
                for choice in range(options.n)
            ]  # fmt: skip
        except ConfigError as error:
            raise ApiError(400, str(error), 'response_format') from None
        lengths = [len(prompt) for prompt in prompts]
        return Work(requests, make_answer(lengths), sum(lengths), options)
