import json

import pytest

from llm_jax.generate.requests import Finish
from llm_jax.serve.answers import ChatAnswer
from llm_jax.serve.worker import Update

HERMES = 'Wait.\n<tool_call>\n{"name": "f", "arguments": {"a": "é<"}}\n</tool_call>\n' * 2
LLAMA3 = '{"name": "f", "parameters": {"a": "é<"}}; {"name": "f", "parameters": {"a": "é<"}}'


@pytest.mark.parametrize(('form', 'text', 'content'), [('hermes', HERMES, 'Wait.'), ('llama3', LLAMA3, None)])
@pytest.mark.parametrize('step', [1, 7, 1000])
def test_tool_calls_come_in_deltas_and_whole(chat, form, text, content, step):
    answer = ChatAnswer(chat.tokenizer, 'tiny', [3], 1, False, tool_form=form)
    pieces = [text[i : i + step] for i in range(0, len(text), step)]
    chunks = [chunk for piece in pieces for chunk in answer.add(Update(0, piece, []))]
    chunks += answer.add(Update(0, '', [], Finish.STOP_ID, n_tokens=9))
    choice = answer.whole()['choices'][0]
    calls = choice['message']['tool_calls']
    assert [json.loads(call['function']['arguments']) for call in calls] == [{'a': 'é<'}] * 2
    assert len({call['id'] for call in calls}) == 2
    assert choice['finish_reason'] == chunks[-1]['choices'][0]['finish_reason'] == 'tool_calls'
    assert (choice['message']['content'] or '').startswith(content or '')
    deltas = [delta['tool_calls'][0] for chunk in chunks if 'tool_calls' in (delta := chunk['choices'][0]['delta'])]
    assert [delta['index'] for delta in deltas] == [0, 0, 1, 1]
    assert deltas[0]['function'] == {'name': 'f', 'arguments': ''}
    assert [delta['id'] for delta in deltas[::2]] == [call['id'] for call in calls]
    assert answer.usage['completion_tokens'] == 9


def test_usage_counts_a_prompt_once_and_the_new_tokens_of_all_choices(chat):
    answer = ChatAnswer(chat.tokenizer, 'tiny', [7], 2, False, tool_form='')
    answer.add(Update(0, 'a', [], Finish.LENGTH, n_tokens=5, n_reused=4))
    answer.add(Update(1, 'b', [], Finish.STOP_ID, n_tokens=3, n_reused=4))
    assert answer.usage == {
        'prompt_tokens': 7, 'completion_tokens': 8, 'total_tokens': 15, 'prompt_tokens_details': {'cached_tokens': 4},
    }  # fmt: skip
    assert [choice['finish_reason'] for choice in answer.whole()['choices']] == ['length', 'stop']
