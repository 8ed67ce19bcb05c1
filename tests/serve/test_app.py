import json

import httpx2
import pytest

from llm_jax.serve.limits import Limits

HI = [{'role': 'user', 'content': 'Hi'}]
CHAT, COMPLETE = '/v1/chat/completions', '/v1/completions'


def post(live, path, body, **options):
    return httpx2.post(live.url + path, json=body, timeout=60, **options)


def events(text):
    assert text.endswith('\n\n')
    lines = text.removesuffix('\n\n').split('\n\n')
    assert all(line.startswith('data: ') and '\n' not in line for line in lines)
    assert lines[-1] == 'data: [DONE]'
    return [json.loads(line.removeprefix('data: ')) for line in lines[:-1]]


def test_a_chat_is_answered_whole(live):
    answer = post(live, CHAT, {'model': 'tiny', 'messages': HI, 'max_tokens': 9, 'seed': 1}).json()
    assert answer['object'] == 'chat.completion'
    assert answer['choices'][0]['message']['role'] == 'assistant'
    usage = answer['usage']
    assert 0 < usage['completion_tokens'] <= 9
    assert usage['total_tokens'] == usage['prompt_tokens'] + usage['completion_tokens']


@pytest.mark.parametrize('path', [CHAT, COMPLETE])
def test_a_stream_joined_is_the_whole_answer(live, path):
    body = {'n': 2, 'max_tokens': 40, 'seed': 3, 'stop': ['e', 'xyz'], 'messages': HI}
    if path == COMPLETE:
        body = body | {'prompt': 'Hi', 'echo': True}
        del body['messages']
    whole = post(live, path, body).json()
    response = post(live, path, body | {'stream': True, 'stream_options': {'include_usage': True}})
    assert response.headers['content-type'].startswith('text/event-stream')
    assert response.headers['cache-control'] == 'no-cache'
    chunks = events(response.text)
    assert len({(chunk['id'], chunk['created'], chunk['model']) for chunk in chunks}) == 1
    texts, reasons = ['', ''], [None, None]
    for chunk in chunks[:-1]:
        assert chunk['usage'] is None
        (choice,) = chunk['choices']
        texts[choice['index']] += choice['text'] if path == COMPLETE else choice['delta'].get('content', '')
        reasons[choice['index']] = reasons[choice['index']] or choice['finish_reason']
    wanted = [one['text'] if path == COMPLETE else one['message']['content'] for one in whole['choices']]
    assert texts == wanted
    assert texts[0] != texts[1]
    assert reasons == [one['finish_reason'] for one in whole['choices']]
    assert chunks[-1]['choices'] == []
    counts = ('prompt_tokens', 'completion_tokens', 'total_tokens')
    assert all(chunks[-1]['usage'][name] == whole['usage'][name] for name in counts)


def test_a_chat_stream_begins_with_the_role_and_ends_with_the_reason(live):
    chunks = events(post(live, CHAT, {'messages': HI, 'max_tokens': 3, 'stream': True}).text)
    assert chunks[0]['choices'][0]['delta'] == {'role': 'assistant', 'content': ''}
    assert chunks[-1]['choices'][0]['delta'] == {}
    assert chunks[-1]['choices'][0]['finish_reason'] in ('stop', 'length')
    assert all('usage' not in chunk for chunk in chunks)


BAD = [
    ({}, 'messages'), ({'messages': 5}, 'messages'), ({'messages': []}, 'messages'),
    ({'messages': [{'role': 'robot', 'content': 'x'}]}, 'messages'),
    ({'messages': HI, 'temperature': 'hot'}, 'temperature'), ({'messages': HI, 'temperature': -1}, 'temperature'),
    ({'messages': HI, 'top_p': 0}, 'top_p'), ({'messages': HI, 'n': True}, 'n'), ({'messages': HI, 'n': 0}, 'n'),
    ({'messages': HI, 'max_tokens': 0}, 'max_tokens'), ({'messages': HI, 'max_tokens': 1.5}, 'max_tokens'),
    ({'messages': HI, 'stop': ['']}, 'stop'), ({'messages': HI, 'stop': 7}, 'stop'),
    ({'messages': HI, 'logit_bias': {'x': 1}}, 'logit_bias'), ({'messages': HI, 'logit_bias': {'9999': 1}}, None),
    ({'messages': HI, 'logit_bias': {str(i): 1 for i in range(513)}}, 'logit_bias'),
    ({'messages': HI, 'top_logprobs': 2}, 'top_logprobs'), ({'messages': HI, 'temprature': 1}, 'temprature'),
    ({'messages': HI, 'stream_options': {}}, 'stream_options'), ({'messages': HI, 'seed': 'x'}, 'seed'),
    ({'messages': HI, 'response_format': {'type': 'xml'}}, 'response_format.type'),
    ({'messages': HI, 'response_format': {'type': 'json_schema', 'json_schema': {'schema': {'type': 5}}}},
     'response_format'),
    ({'messages': HI, 'tools': [5]}, 'tools'), ({'messages': HI, 'tool_choice': 'required'}, 'tools'),
    ({'messages': HI, 'chat_template_kwargs': {'weights': True}}, 'chat_template_kwargs'),
]  # fmt: skip


@pytest.mark.parametrize(('body', 'param'), BAD)
def test_a_bad_field_is_named(live, body, param):
    response = post(live, CHAT, body)
    error = response.json()['error']
    assert response.status_code == 400
    assert (error['param'], error['type']) == (param, 'invalid_request_error')
    assert error['message']


def test_a_prompt_past_the_context(live):
    answer = post(live, COMPLETE, {'prompt': 'a' * 500, 'max_tokens': 100})
    assert answer.status_code == 400
    assert answer.json()['error']['code'] == 'context_length_exceeded'
    fits = post(live, CHAT, {'messages': [{'role': 'user', 'content': 'a' * 480}], 'logit_bias': {'65': 100}})
    assert fits.json()['choices'][0]['finish_reason'] == 'length'


def test_paths_and_methods(live):
    assert httpx2.get(live.url + '/v1/nothing').json()['error']['type'] == 'not_found_error'
    assert httpx2.get(live.url + CHAT).status_code == 405
    assert httpx2.get(live.url + '/health').json() == {'status': 'ok'}
    found = post(live, '/tokenize', {'prompt': 'ab'}).json()
    assert found['count'] == len(found['tokens']) == 3
    assert post(live, '/tokenize', {'messages': HI}).json()['count'] > 2


def test_a_second_turn_reuses_the_first(live):
    body = {'messages': [{'role': 'user', 'content': 'b' * 200}], 'max_tokens': 2}
    post(live, CHAT, body)
    live.wait_until_idle()
    assert post(live, CHAT, body).json()['usage']['prompt_tokens_details']['cached_tokens'] >= 128


def test_a_key(make_live):
    with make_live(Limits(slots=4), api_key='secret') as live:
        assert httpx2.get(live.url + '/v1/models').json()['error']['code'] == 'invalid_api_key'
        assert post(live, CHAT, {'messages': HI}).status_code == 401
        right = {'Authorization': 'Bearer secret'}
        assert httpx2.get(live.url + '/v1/models', headers=right).json()['data'][0]['id'] == 'tiny'


def test_counters_are_the_sums_of_the_answers(make_live):
    with make_live(Limits(slots=4)) as live:
        answers = [post(live, CHAT, {'messages': HI, 'max_tokens': n, 'n': 2}).json()['usage'] for n in (1, 5, 9)]
        post(live, CHAT, {'messages': 1})
        for name in ('prompt_tokens', 'completion_tokens'):
            assert live.read_counter(f'{name}_total') == sum(usage[name] for usage in answers)
        assert live.read_counter(f'requests_total{{path="{CHAT}",status="200"}}') == 3
        assert live.read_counter(f'requests_total{{path="{CHAT}",status="400"}}') == 1
        assert live.read_counter('request_seconds_count') == 3


def test_an_engine_that_fails_fails_all_and_says_so(make_live, make_engine):
    engine = make_engine()

    def fail():
        raise MemoryError('no room')

    engine.step = fail
    with make_live(Limits(slots=4), engine=engine) as live:
        assert post(live, CHAT, {'messages': HI}).status_code == 500
        assert httpx2.get(live.url + '/health').status_code == 503
        assert post(live, CHAT, {'messages': HI}).json()['error']['code'] == 'engine_stopped'
