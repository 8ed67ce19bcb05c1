"""OpenAI's own client judges the protocol."""

import asyncio
import json

import jsonschema
import openai
import pytest

from llm_jax.serve.limits import Limits

HI = [{'role': 'user', 'content': 'Hi'}]
AHEAD = {'model': 'tiny', 'messages': HI}


@pytest.fixture(scope='module')
def client(live):
    with openai.OpenAI(base_url=f'{live.url}/v1', api_key='none', max_retries=0) as one:
        yield one


def test_models(client):
    assert [model.id for model in client.models.list()] == ['tiny']
    assert client.models.retrieve('tiny').owned_by == 'llm_jax'
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve('huge')
    assert caught.value.code == 'model_not_found'


def test_chat_whole_and_streamed(client):
    whole = client.chat.completions.create(**AHEAD, max_completion_tokens=20, max_tokens=3, seed=-5, n=2)
    with client.chat.completions.stream(**AHEAD, max_completion_tokens=20, seed=-5, n=2) as stream:
        for _ in stream:
            pass
        final = stream.current_completion_snapshot
    texts = [choice.message.content for choice in whole.choices]
    assert [choice.message.content for choice in final.choices] == texts
    assert texts[0] != texts[1]
    assert [choice.finish_reason for choice in final.choices] == [choice.finish_reason for choice in whole.choices]


def test_settings_are_those_of_the_engine(client):
    settings = {'temperature': 0, 'frequency_penalty': 1, 'presence_penalty': 1, 'top_p': 0.5, 'max_tokens': 8}
    first, second = (client.chat.completions.create(**AHEAD, **settings, seed=seed) for seed in (1, 2))
    assert first.choices[0].message == second.choices[0].message
    only = client.completions.create(model='tiny', prompt='x', logit_bias={'70': 100}, max_tokens=3)
    forced = only.choices[0].text
    assert len(set(forced)) == 1
    stopped = client.completions.create(model='tiny', prompt='x', logit_bias={'70': 100}, max_tokens=9, stop=forced)
    assert (stopped.choices[0].text, stopped.choices[0].finish_reason) == ('', 'stop')
    assert stopped.usage.completion_tokens == 3


def test_log_probs(client):
    answer = client.chat.completions.create(**AHEAD, max_tokens=5, logprobs=True, top_logprobs=3, temperature=0)
    content = answer.choices[0].logprobs.content
    for one in content:
        assert len(one.top_logprobs) == 3
        assert one.top_logprobs[0].logprob == one.logprob
        assert one.logprob < 0
    spelled = b''.join(bytes(one.bytes) for one in content)
    assert spelled.decode(errors='replace') == answer.choices[0].message.content
    old = client.completions.create(model='tiny', prompt='a', max_tokens=4, logprobs=2)
    assert len(old.choices[0].logprobs.tokens) == old.usage.completion_tokens
    chunks = client.chat.completions.create(**AHEAD, max_tokens=5, logprobs=True, temperature=0, stream=True)
    parts = [chunk.choices[0].logprobs for chunk in chunks if chunk.choices]
    assert [one.token for part in parts if part for one in part.content] == [one.token for one in content]


def test_prompts_are_texts_or_ids(client):
    answer = client.completions.create(model='tiny', prompt=['a', 'b'], n=2, max_tokens=4)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    text = client.completions.create(model='tiny', prompt='ab', max_tokens=6, seed=4)
    tokens = client.post('../tokenize', body={'prompt': 'ab'}, cast_to=object)['tokens']
    ids = client.completions.create(model='tiny', prompt=tokens, max_tokens=6, seed=4)
    assert ids.choices[0].text == text.choices[0].text


SCHEMA = {
    'type': 'object',
    'properties': {'name': {'enum': ['Ann', 'Bo']}, 'old': {'type': 'boolean'}},
    'required': ['name', 'old'],
    'additionalProperties': False,
}


def test_json_follows_its_schema(client):
    form = {'type': 'json_schema', 'json_schema': {'name': 'person', 'schema': SCHEMA, 'strict': True}}
    answer = client.chat.completions.create(**AHEAD, response_format=form, n=3, max_tokens=300)
    for choice in answer.choices:
        if choice.finish_reason == 'stop':
            jsonschema.validate(json.loads(choice.message.content), SCHEMA)
    assert any(choice.finish_reason == 'stop' for choice in answer.choices)
    free = client.chat.completions.create(**AHEAD, response_format={'type': 'json_object'}, max_tokens=3)
    assert free.choices[0].message.content.startswith('{')


def test_errors_have_their_classes(client, make_live):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**AHEAD, temperature=3)
    assert caught.value.param == 'temperature'
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model='huge', messages=HI)
    with make_live(Limits(slots=4, seconds=0.001), api_key='right') as other:
        wrong = openai.OpenAI(base_url=f'{other.url}/v1', api_key='wrong', max_retries=0)
        with pytest.raises(openai.AuthenticationError):
            wrong.models.list()
        right = wrong.with_options(api_key='right')
        with pytest.raises(openai.InternalServerError) as caught:
            right.chat.completions.create(**AHEAD)
        assert caught.value.code == 'timeout'
        other.wait_until_idle()


def test_asynchronous(live):
    async def ask():
        async with openai.AsyncOpenAI(base_url=f'{live.url}/v1', api_key='none', max_retries=0) as client:
            asked = [client.chat.completions.create(**AHEAD, max_tokens=12, seed=i) for i in range(6)]
            whole = [answer.choices[0].message.content for answer in await asyncio.gather(*asked)]
            streamed = []
            for i in range(6):
                stream = await client.chat.completions.create(**AHEAD, max_tokens=12, seed=i, stream=True)
                streamed.append(''.join([chunk.choices[0].delta.content or '' async for chunk in stream]))
            left = await client.chat.completions.create(**AHEAD, stream=True, logit_bias={'65': 100})
            async for _ in left:
                break
            await left.close()
            return whole, streamed

    whole, streamed = asyncio.run(ask())
    assert whole == streamed
    live.wait_until_idle()
