"""Answers of OpenAI's API, whole or in chunks, from the updates of a job."""

from collections.abc import Callable, Sequence
import secrets
import time
from typing import Any

from llm_jax.chat.tools import Parser
from llm_jax.generate.requests import Finish
from llm_jax.serve.protocol import finite
from llm_jax.serve.worker import Update
from llm_jax.tokenizer import Tokenizer


def make_id(prefix: str) -> str:
    return f'{prefix}{secrets.token_hex(12)}'


class Answer:
    """What a request is answered with.

    Attributes:
      usage: tokens so far.
    """

    kind, chunk_kind, prefix = 'text_completion', 'text_completion', 'cmpl-'

    def __init__(self, tokenizer: Tokenizer, model: str, prompt_lengths: Sequence[int], n: int, logprobs: bool) -> None:
        """Args:
        tokenizer: spells tokens.
        model: name that the answer says.
        prompt_lengths: tokens of each prompt.
        n: choices of each prompt.
        logprobs: whether to report log-probabilities.
        """
        self._tokenizer, self._logprobs, self._n = tokenizer, logprobs, n
        self._head = {'id': make_id(self.prefix), 'created': int(time.time()), 'model': model}
        self._n_prompt = sum(prompt_lengths)
        n_choices = n * len(prompt_lengths)
        self._counts, self._reused, self._lengths = [0] * n_choices, [0] * n_choices, [0] * n_choices
        self._parts: list[list[Any]] = [[] for _ in range(n_choices)]
        self._reasons: list[str | None] = [None] * n_choices

    @property
    def usage(self) -> dict[str, Any]:
        n_new = sum(self._counts)
        return {
            'prompt_tokens': self._n_prompt,
            'completion_tokens': n_new,
            'total_tokens': self._n_prompt + n_new,
            'prompt_tokens_details': {'cached_tokens': sum(self._reused[:: self._n])},
        }

    def begin(self) -> list[dict[str, Any]]:
        """Returns the chunks before the first token."""
        return []

    def echo_chunks(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        """Returns the chunks that repeat the prompt of each choice."""
        return [self._chunk(i, text, None, None) for i, text in enumerate(texts)]

    def add(self, update: Update) -> list[dict[str, Any]]:
        """Takes an update; returns its chunks."""
        i = update.index
        self._counts[i], self._reused[i] = update.n_tokens, update.n_reused
        logprobs = self._describe_tokens(i, update) if self._logprobs and update.tokens else None
        deltas = self._deltas(i, update)
        if update.finish is not None:
            self._reasons[i] = self._reason(i, update.finish)
        if logprobs is not None and not deltas:
            deltas = [self._empty_delta()]
        chunks = []
        for delta in deltas:
            self._parts[i].append((delta, logprobs))
            chunks.append(self._chunk(i, delta, logprobs, None))
            logprobs = None
        if update.finish is not None:
            chunks.append(self._chunk(i, self._last_delta(), None, self._reasons[i]))
        return chunks

    def usage_chunk(self) -> dict[str, Any]:
        """Returns the chunk that only has the usage."""
        return self._head | {'object': self.chunk_kind, 'choices': [], 'usage': self.usage}

    def whole(self) -> dict[str, Any]:
        """Returns the answer in one."""
        choices = [self._choice(i) for i in range(len(self._counts))]
        return self._head | {'object': self.kind, 'choices': choices, 'usage': self.usage}

    def _chunk(self, i: int, delta: Any, logprobs: Any, reason: str | None) -> dict[str, Any]:
        choice = {'index': i} | self._named(delta) | {'logprobs': logprobs, 'finish_reason': reason}
        return self._head | {'object': self.chunk_kind, 'choices': [choice]}

    def _spell(self, token: int) -> tuple[str, bytes]:
        spelled = self._tokenizer.decode_token(token)
        return spelled.decode(errors='replace'), spelled

    def _reason(self, i: int, finish: Finish) -> str:
        return 'length' if finish == Finish.LENGTH else 'stop'

    # --- What differs in chats ---

    def _named(self, delta: Any) -> dict[str, Any]:
        return {'text': delta}

    def _empty_delta(self) -> Any:
        return ''

    def _last_delta(self) -> Any:
        return ''

    def _deltas(self, i: int, update: Update) -> list[Any]:
        return [update.text] if update.text else []

    def _describe_tokens(self, i: int, update: Update) -> dict[str, Any]:
        out: dict[str, list] = {'tokens': [], 'token_logprobs': [], 'top_logprobs': [], 'text_offset': []}
        for token, log_prob, top in update.tokens:
            text, _ = self._spell(token)
            out['tokens'].append(text)
            out['token_logprobs'].append(finite(log_prob))
            out['top_logprobs'].append({self._spell(one)[0]: finite(value) for one, value in top if one >= 0})
            out['text_offset'].append(self._lengths[i])
            self._lengths[i] += len(text)
        return out

    def _choice(self, i: int) -> dict[str, Any]:
        logprobs = [one for _, one in self._parts[i] if one]
        merged = {name: [x for one in logprobs for x in one[name]] for name in logprobs[0]} if logprobs else None
        text = ''.join(delta for delta, _ in self._parts[i])
        return {'index': i, 'text': text, 'logprobs': merged, 'finish_reason': self._reasons[i]}


class ChatAnswer(Answer):
    """Of a chat completion: messages, with calls of tools."""

    kind, chunk_kind, prefix = 'chat.completion', 'chat.completion.chunk', 'chatcmpl-'

    def __init__(self, *arguments: Any, tool_form: str, is_parallel: bool = True) -> None:
        """Args:
        *arguments: of `Answer`.
        tool_form: in which the model writes calls; '' finds none.
        is_parallel: whether a message may have several; if not, what follows the first is left out.
        """
        super().__init__(*arguments)
        make_call_id: Callable[[], str] = lambda: make_id('call_')
        self._parsers = [Parser(tool_form, make_call_id) for _ in self._counts]
        self._n_calls, self._is_parallel = [0] * len(self._counts), is_parallel

    def begin(self) -> list[dict[str, Any]]:
        return [self._chunk(i, {'role': 'assistant', 'content': ''}, None, None) for i in range(len(self._counts))]

    def _reason(self, i: int, finish: Finish) -> str:
        reason = super()._reason(i, finish)
        return 'tool_calls' if self._n_calls[i] and reason == 'stop' else reason

    def _named(self, delta: Any) -> dict[str, Any]:
        return {'delta': delta}

    def _empty_delta(self) -> Any:
        return {'content': ''}

    def _last_delta(self) -> Any:
        return {}

    def _deltas(self, i: int, update: Update) -> list[Any]:
        parsed = [self._parsers[i].push(update.text)]
        if update.finish is not None:
            parsed.append(self._parsers[i].close())
        deltas: list[Any] = []
        for one in parsed:
            if self._n_calls[i] and not self._is_parallel:
                break
            if one.text:
                deltas.append({'content': one.text})
            for call in one.calls if self._is_parallel else one.calls[:1]:
                index = self._n_calls[i]
                self._n_calls[i] += 1
                named = {'name': call.name, 'arguments': ''}
                first = {'index': index, 'id': call.id, 'type': 'function', 'function': named}
                deltas.append({'tool_calls': [first]})
                deltas.append({'tool_calls': [{'index': index, 'function': {'arguments': call.arguments}}]})
        return deltas

    def _describe_tokens(self, i: int, update: Update) -> dict[str, Any]:
        def describe(token: int, log_prob: float) -> dict[str, Any]:
            text, spelled = self._spell(token)
            return {'token': text, 'logprob': finite(log_prob), 'bytes': list(spelled)}

        return {
            'content': [
                describe(token, log_prob) | {'top_logprobs': [describe(*one) for one in top if one[0] >= 0]}
                for token, log_prob, top in update.tokens
            ],
            'refusal': None,
        }

    def _choice(self, i: int) -> dict[str, Any]:
        deltas = [delta for delta, _ in self._parts[i]]
        text = ''.join(delta.get('content', '') for delta in deltas)
        pieces = [delta['tool_calls'][0] for delta in deltas if 'tool_calls' in delta]
        calls = [
            {key: first[key] for key in ('id', 'type')}
            | {'function': {'name': first['function']['name'], 'arguments': second['function']['arguments']}}
            for first, second in zip(pieces[::2], pieces[1::2], strict=True)
        ]
        message = {'role': 'assistant', 'content': text or (None if calls else ''), 'refusal': None}
        logprobs = [one for _, one in self._parts[i] if one]
        merged = {'content': [x for one in logprobs for x in one['content']], 'refusal': None} if logprobs else None
        return {
            'index': i,
            'message': message | ({'tool_calls': calls} if calls else {}),
            'logprobs': merged,
            'finish_reason': self._reasons[i],
        }
