"""Bodies that nobody should send: each is refused with one clear line, and nothing else happens."""

import http.client
import json
import logging
import random
import socket

import pytest

from llm_jax.serve.limits import Limits

HI = [{'role': 'user', 'content': 'Hi'}]
CHAT, COMPLETE = '/v1/chat/completions', '/v1/completions'
SHARED = {
    'model': 'tiny', 'n': 2, 'stop': ['a', 'b'], 'seed': 3, 'temperature': 0.5, 'top_p': 0.9, 'top_k': 5, 'min_p': 0.1,
    'typical_p': 0.9, 'repetition_penalty': 1.1, 'frequency_penalty': 0.5, 'presence_penalty': 0.5, 'stream': True,
    'stream_options': {'include_usage': True}, 'logit_bias': {'65': 1}, 'max_tokens': 4, 'user': 'x',
}  # fmt: skip
VALID = {
    CHAT: SHARED | {
        'messages': [
            {'role': 'system', 'content': 'Be.'}, {'role': 'user', 'content': [{'type': 'text', 'text': 'Hi'}]},
        ],
        'logprobs': True, 'top_logprobs': 2, 'tool_choice': 'auto', 'parallel_tool_calls': True,
        'chat_template_kwargs': {'x': 1},
        'response_format': {'type': 'json_schema', 'json_schema': {'name': 'a', 'schema': {'type': 'object'}}},
        'tools': [{'type': 'function', 'function': {'name': 'f', 'parameters': {'type': 'object'}}}],
    },
    COMPLETE: SHARED | {'prompt': ['a', [1, 2]], 'logprobs': 2, 'echo': False},
    '/tokenize': {'messages': HI, 'add_special_tokens': True},
}  # fmt: skip


@pytest.fixture(scope='module')
def scripted(make_live, make_scripted):
    engine = make_scripted(lambda said: 'Yes.', per_step=4)
    with make_live(Limits(slots=16, body=1 << 20, body_seconds=0.3), engine=engine) as live:
        yield live


@pytest.fixture
def logged():
    """What the server logs."""
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    loggers = [logging.getLogger(name) for name in ('uvicorn', 'uvicorn.error', 'asyncio')]
    for logger in loggers:
        logger.addHandler(handler)
    yield records
    for logger in loggers:
        logger.removeHandler(handler)


def nest(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def junk(chance):
    """Draws a value that some field will not like."""
    codes = [0, 10, 34, 65, 0x1F642, 0xD800, 0xDFFF, 0x2028]
    text = ''.join(chr(chance.choice(codes)) for _ in range(chance.randint(0, 5)))
    schema = {'type': 'json_schema', 'json_schema': {'schema': {text: []}}}
    return chance.choice([
        None, True, False, 0, -1, 1, 2**31, 2**63, 10**400, -0.5, 1e308, float('nan'), float('inf'), -1e999, text,
        'x' * 3000, '\ud800', [], {}, [None], [text, 1], {text: text}, {'type': text}, [[1, [2]], 'a'],
        [{'role': text}], nest(40), [{'role': 'user', 'content': text, text: 1}], schema,
    ])  # fmt: skip


def change(value, chance):
    """Returns a value with junk in a random place."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        key = chance.choice(list(value))
        if chance.random() < 0.1:
            return {name: one for name, one in value.items() if name != key} | {f'{key}x': junk(chance)}
        return value | {key: change(value[key], chance)}
    if isinstance(value, list) and value and chance.random() < 0.8:
        i = chance.randrange(len(value))
        return [*value[:i], change(value[i], chance), *value[i + 1 :]]
    return junk(chance)


def spoil(data, chance):
    """Damages bytes."""
    i = chance.randrange(len(data))
    return chance.choice(
        [data[:i], data[:i] + bytes([chance.randrange(256)]) + data[i + 1 :], data[:i] + data, data * 2]
    )


def make_body(path, chance):
    fields = list(VALID[path].items())
    kept = dict(chance.sample(fields, chance.randint(0, len(fields))))
    needed = {CHAT: {'messages': HI}, COMPLETE: {'prompt': 'a'}, '/tokenize': {'prompt': 'a'}}[path]
    body = (needed if chance.random() < 0.9 else {}) | kept
    for _ in range(chance.randint(0, 2)):
        body = change(body, chance)
    data = json.dumps(body, ensure_ascii=chance.random() < 0.5).encode(errors='surrogatepass')
    return spoil(data, chance) if chance.random() < 0.15 else data


def check_error(status, text):
    assert 400 <= status < 500, (status, text)
    message = json.loads(text)['error']['message']
    assert message and '\n' not in message and len(message) < 1000, message


def test_generated_bodies_are_answered_or_refused(scripted, logged, capfd):
    chance = random.Random(0)
    connection = http.client.HTTPConnection('127.0.0.1', scripted.port, timeout=20)
    seen = {}
    for _ in range(500):
        path = chance.choice(list(VALID))
        body = make_body(path, chance)
        connection.request('POST', path, body)
        answer = connection.getresponse()
        text = answer.read()
        seen[answer.status] = seen.get(answer.status, 0) + 1
        if answer.status != 200:
            check_error(answer.status, text)
        else:
            assert b'"error"' not in text, (body, text)
    connection.close()
    assert seen[200] > 30 and seen[400] > 150 and seen.keys() <= {200, 400, 404}, seen
    scripted.wait_until_idle()
    assert not logged
    assert capfd.readouterr().err == ''


def talk(port, *parts, seconds=20):
    """Sends parts, and returns status and body of the answer."""
    with socket.create_connection(('127.0.0.1', port), timeout=seconds) as one:
        for part in parts:
            one.sendall(part)
        answer = http.client.HTTPResponse(one)
        answer.begin()
        return answer.status, json.loads(answer.read()), answer.headers


def head(path, *lines):
    return '\r\n'.join([f'POST {path} HTTP/1.1', 'Host: x', *lines, '', '']).encode()


@pytest.mark.parametrize('path', [CHAT, '/tokenize'])
def test_a_large_body_is_413_before_it_has_come(scripted, logged, path):
    megabyte = b' ' * (1 << 20)
    chunk = f'{len(megabyte):x}\r\n'.encode() + megabyte + b'\r\n'
    for parts in (
        [head(path, 'Content-Length: 50000000')],
        [head(path, 'Content-Length: 50000000'), *[megabyte] * 20],
        [head(path, f'Content-Length: {"9" * 17}')],
        [head(path, 'Transfer-Encoding: chunked'), chunk, chunk],
    ):
        status, body, _ = talk(scripted.port, *parts)
        assert (status, body['error']['code']) == (413, 'body_too_large')
    assert not logged


def test_a_slow_body_is_408_and_its_connection_closed(scripted, logged):
    status, body, headers = talk(scripted.port, head(CHAT, 'Content-Length: 100'), b'{"mess')
    assert (status, body['error']['code']) == (408, 'body_too_slow')
    assert headers['connection'] == 'close'
    assert not logged


def test_a_chunked_body_is_a_body(scripted):
    pieces = [b'{"messages": [{"role": "us', b'er", "content": "Hi"}], ', b'"max_tokens": 3}']
    chunks = [f'{len(piece):x}\r\n'.encode() + piece + b'\r\n' for piece in pieces]
    status, body, _ = talk(scripted.port, head(CHAT, 'Transfer-Encoding: chunked'), *chunks, b'0\r\n\r\n')
    assert (status, body['choices'][0]['message']['content']) == (200, 'Yes')


def test_a_client_that_goes_away_within_its_body_is_no_failure(scripted, logged):
    before = scripted.read_counter(f'requests_total{{path="{CHAT}",status="499"}}')
    with socket.create_connection(('127.0.0.1', scripted.port)) as one:
        one.sendall(head(CHAT, 'Content-Length: 100') + b'{"mess')
    scripted.wait_for(lambda: scripted.read_counter(f'requests_total{{path="{CHAT}",status="499"}}') == before + 1)
    assert not logged


RAW = [
    b'', b'{', b'[]', b'null', b'\xff\xfe', b'{"messages": NaN}', b'{"temperature": 1e999}', b'"\\ud800"',
    b'{"messages": [{"role": "user", "content": "\\ud800"}]}', b'[' * 100_000, b'{"a":' * 10_000 + b'1' + b'}' * 10_000,
    b'{"seed": ' + b'9' * 5000 + b'}',
]  # fmt: skip


def test_a_body_that_is_none_is_400(scripted, logged):
    for path in VALID:
        for body in RAW:
            status, answer, _ = talk(scripted.port, head(path, f'Content-Length: {len(body)}') + body)
            assert status == 400, body[:20]
            assert answer['error']['message'], body[:20]
    assert not logged
