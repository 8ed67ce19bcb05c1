"""Calls of tools: what a request may ask for, and that an answer keeps to it. The client is OpenAI's."""

import asyncio
import json

import jsonschema
import numpy as np
import openai
import pydantic
import pytest

from llm_jax import chat as chat_lib
from llm_jax import tokenizer as tokenizer_lib
from llm_jax.config import schema
from llm_jax.generate.requests import Finish
from llm_jax.serve.errors import ApiError
from llm_jax.serve.limits import Limits
from llm_jax.serve.protocol import parse_chat
from llm_jax.serve.service import Service
from llm_jax.serve.worker import Update

SCHEMAS = {
    'a': {
        'type': 'object',
        'properties': {'on': {'type': 'boolean'}, 'to': {'$ref': '#/$defs/Place'}},
        'required': ['on', 'to'],
        'additionalProperties': False,
        '$defs': {'Place': {'enum': ['é', 'x"']}},
    },
    'b': {'type': 'object', 'properties': {}, 'additionalProperties': False},
}
TOOLS = [{'type': 'function', 'function': {'name': name, 'parameters': one}} for name, one in SCHEMAS.items()]
NAMED = {'type': 'function', 'function': {'name': 'a'}}
HI = [{'role': 'user', 'content': 'Hi'}]


class Go(pydantic.BaseModel):
    """Goes."""

    on: bool


def make_chat(form):
    """Chats whose tokenizers have as many tokens as that of the other tests, so that they share its engine."""
    marks = chat_lib.FORMATS[form].marks
    marks += tuple(f'<{i}>' for i in range(len(chat_lib.FORMATS['llm_jax'].marks) - len(marks)))
    made = tokenizer_lib.train(schema.Tokenizer(kind='bytes', reserved=marks), [], seed=0)
    return chat_lib.open_chat(made, form)


@pytest.fixture(scope='module', params=['llm_jax', 'llama3'], ids=['hermes', 'llama3'])
def service(request):
    one = make_chat(request.param)
    return Service('tiny', one.tokenizer, 2048, one)


def ask(service, **fields):
    return service.open_chat(parse_chat({'messages': HI, 'tools': TOOLS, 'max_tokens': 1000} | fields))


def answer_at_random(work, tokenizer, seed):
    """Draws tokens among those that may come, until the answer ends; returns its choice."""
    rng, (request,) = np.random.default_rng(seed), work.requests
    for n in range(1000):
        bits = np.unpackbits(request.constraint.allowed().view(np.uint8), bitorder='little')
        token = int(rng.choice(np.flatnonzero(bits)))
        if token in request.stop_ids:
            work.answer.add(Update(0, request.watcher.close(), [], Finish.STOP_ID, n_tokens=n))
            break
        request.constraint.advance(token)
        if request.watcher.push(token) or request.constraint.is_complete():
            work.answer.add(Update(0, request.watcher.close(), [], Finish.STOP, n_tokens=n))
            break
        work.answer.add(Update(0, request.watcher.take(), []))
    return work.answer.whole()['choices'][0]


def check_calls(calls):
    for call in calls:
        jsonschema.validate(json.loads(call['function']['arguments']), SCHEMAS[call['function']['name']])
    return [call['function']['name'] for call in calls]


@pytest.mark.parametrize(
    ('choice', 'is_parallel', 'names', 'most'),
    [('required', True, {'a', 'b'}, 99), ('required', False, {'a', 'b'}, 1), (NAMED, True, {'a'}, 1)],
    ids=['required', 'one of them', 'named'],
)
def test_an_answer_that_has_to_call_calls(service, choice, is_parallel, names, most):
    called, counts = set(), set()
    for seed in range(12):
        work = ask(service, tool_choice=choice, parallel_tool_calls=is_parallel)
        answered = answer_at_random(work, service._tokenizer, seed)
        assert answered['finish_reason'] == 'tool_calls' and answered['message']['content'] is None
        got = check_calls(answered['message']['tool_calls'])
        called |= set(got)
        counts.add(len(got))
    assert called == names and 1 in counts and max(counts) <= most
    assert most == 1 or max(counts) > 1


def test_several_calls_are_cut_after_the_first_where_one_is_wanted(service):
    form = service._chat.tool_form
    calls = [chat_lib.ToolCall('a', {'on': True, 'to': 'é'}), chat_lib.ToolCall('b', {})]
    text = chat_lib.tools.write_calls(calls, form)
    for is_parallel in (True, False):
        work = ask(service, parallel_tool_calls=is_parallel)
        (request,) = work.requests
        assert request.constraint is None
        for token in service._tokenizer.encode(text):
            if request.watcher.push(token):
                break
            work.answer.add(Update(0, request.watcher.take(), []))
        work.answer.add(Update(0, request.watcher.close(), [], Finish.STOP, n_tokens=9))
        answered = work.answer.whole()['choices'][0]
        assert check_calls(answered['message']['tool_calls']) == (['a', 'b'] if is_parallel else ['a'])
        assert answered['message']['content'] is None and answered['finish_reason'] == 'tool_calls'


def test_text_is_free_where_no_call_has_to_come(service):
    for fields in (
        {'tool_choice': 'auto'},
        {'tool_choice': 'none'},
        {'tools': [], 'tool_choice': 'auto'},
        {'tools': []},
    ):
        assert ask(service, **fields).requests[0].constraint is None


@pytest.mark.parametrize(
    ('fields', 'param', 'problem'),
    [
        ({'tool_choice': 'any'}, 'tool_choice', "must be 'none', 'auto', 'required' or"),
        ({'tool_choice': {'type': 'function'}}, 'tool_choice', 'must be'),
        ({'tool_choice': {'type': 'function', 'function': {'name': 'c'}}}, 'tool_choice', "'c'; tools are a, b"),
        ({'tool_choice': 'required', 'tools': []}, 'tools', 'needs tools'),
        ({'tool_choice': NAMED, 'tools': None}, 'tools', 'needs tools'),
        ({'tool_choice': 'required', 'response_format': {'type': 'json_object'}}, 'tool_choice', 'response_format'),
        ({'parallel_tool_calls': 'yes'}, 'parallel_tool_calls', 'true or false'),
        (
            {'tool_choice': 'required', 'tools': [{'function': {'name': 'f', 'parameters': {'type': 'objekt'}}}]},
            'tools', "the tool 'f' cannot be used",
        ),
    ],
    ids=range(8),
)  # fmt: skip
def test_mistakes_are_400(service, fields, param, problem):
    with pytest.raises(ApiError, match=problem) as caught:
        ask(service, **fields)
    assert (caught.value.status, caught.value.body()['error']['param']) == (400, param)


def test_a_template_whose_calls_are_not_known():
    plain = chat_lib.open_chat(tokenizer_lib.train(schema.Tokenizer(kind='bytes'), [], seed=0), 'plain')
    with pytest.raises(ApiError, match='form of calls is known'):
        ask(Service('tiny', plain.tokenizer, 2048, plain), tool_choice='required')


@pytest.mark.parametrize('form', ['llm_jax', 'llama3'])
def test_openai_client(make_live, form):
    """A call comes whole and in deltas, and the conversation goes on with its result."""
    tools = [openai.pydantic_function_tool(Go, name='a')] if form == 'llm_jax' else TOOLS[1:]
    # White space is as likely as anything else to a model that has learnt nothing.
    asked = {'model': 'tiny', 'tools': tools, 'logit_bias': dict.fromkeys(('9', '10', '13', '32'), -100)}
    with (
        make_live(Limits(slots=4), chat=make_chat(form)) as live,
        openai.OpenAI(base_url=f'{live.url}/v1', api_key='none', max_retries=0) as client,
    ):
        forced = asked | {'messages': HI, 'tool_choice': 'required', 'parallel_tool_calls': False, 'seed': 1}
        whole = client.chat.completions.create(**forced).choices[0]
        with client.chat.completions.stream(**forced) as stream:
            for _ in stream:
                pass
            streamed = stream.get_final_completion().choices[0]
        assert whole.finish_reason == streamed.finish_reason == 'tool_calls'
        (call,), (same,) = whole.message.tool_calls, streamed.message.tool_calls
        assert call.type == 'function' and call.function.name == same.function.name == tools[0]['function']['name']
        assert call.function.arguments == same.function.arguments
        if form == 'llm_jax':
            assert same.function.parsed_arguments == Go.model_validate_json(call.function.arguments)
        result = {'role': 'tool', 'tool_call_id': call.id, 'content': '1'}
        messages = [*HI, whole.message.model_dump(exclude_none=True), result]
        answered = client.chat.completions.create(**asked | {'tools': []}, messages=messages, max_tokens=3)
        assert answered.choices[0].message.tool_calls is None and answered.usage.completion_tokens <= 3
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(**forced | {'tool_choice': 'any'})
        assert caught.value.param == 'tool_choice'
        live.wait_until_idle()


def test_openai_client_asynchronous(live):
    async def call():
        async with openai.AsyncOpenAI(base_url=f'{live.url}/v1', api_key='none', max_retries=0) as client:
            stream = await client.chat.completions.create(
                model='tiny', messages=HI, tools=TOOLS[1:], tool_choice={'type': 'function', 'function': {'name': 'b'}},
                stream=True, logit_bias=dict.fromkeys(('9', '10', '13', '32'), -100),
            )  # fmt: skip
            return [chunk.choices[0] async for chunk in stream]

    *choices, last = asyncio.run(call())
    first, second = (choice.delta.tool_calls[0] for choice in choices if choice.delta.tool_calls)
    assert first.function.name == 'b' and first.id and (first.index, second.index) == (0, 0)
    assert json.loads(second.function.arguments) == {} and last.finish_reason == 'tool_calls'
