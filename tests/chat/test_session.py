from chats import SYSTEM, byte_tokenizer, call
import pytest

from llm_jax import chat
from llm_jax.chat.formats import FORMATS

ONE = chat.open_chat(byte_tokenizer(['<s>', *FORMATS['llm_jax'].marks], bos_token='<s>'), 'llm_jax')


def turns(count, size=10):
    return [m for i in range(count) for m in (
        {'role': 'user', 'content': f'{i}' * size}, {'role': 'assistant', 'content': f'{i}' * size})]  # fmt: skip


def test_the_oldest_turns_go_and_the_system_message_stays():
    session = chat.Session(ONE, 100, [SYSTEM, *turns(9), {'role': 'user', 'content': 'now'}])
    got = session.prompt(reserve=20)
    assert len(got.ids) <= 80
    assert got.text == (
        '<s><|system|>Be brief.<|end|><|user|>7777777777<|end|><|assistant|>7777777777<|end|>'
        '<|user|>8888888888<|end|><|assistant|>8888888888<|end|><|user|>now<|end|><|assistant|>'
    )
    assert session.dropped == 14 and len(session.messages) == 20  # the history itself is whole
    assert len(ONE.render([SYSTEM, *session.messages[-7:]], add_generation_prompt=True).ids) > 80
    longer = chat.Session(ONE, 1000, session.messages)
    assert longer.prompt().ids == ONE.render(session.messages, add_generation_prompt=True).ids and longer.dropped == 0


@pytest.mark.parametrize('context', range(30, 400, 7))
def test_as_many_whole_turns_as_fit(context):
    """A turn with calls of tools and results goes or stays as one."""
    tools = [{'role': 'user', 'content': 'q'}, {'role': 'assistant', 'content': '', 'tool_calls': [call('f', {})]},
             {'role': 'tool', 'content': 'r' * 20}, {'role': 'assistant', 'content': 'a'}]  # fmt: skip
    messages = [SYSTEM, *turns(2), *tools, *turns(2), {'role': 'user', 'content': 'x'}]
    session = chat.Session(ONE, context, messages)
    got = session.prompt()
    starts = [i - 1 for i, m in enumerate(messages) if m['role'] == 'user']
    assert len(got.ids) < context and session.dropped in starts
    one_more = [i for i in starts if i < session.dropped]
    if one_more:
        assert len(ONE.render([SYSTEM, *messages[one_more[-1] + 1 :]], add_generation_prompt=True).ids) >= context


def test_a_turn_that_does_not_fit_is_an_error():
    session = chat.Session(ONE, 20, [*turns(2), {'role': 'user', 'content': 'long ' * 10}])
    with pytest.raises(chat.ChatError, match='the last turn has 54 tokens .* a context of 20 tokens leaves 19'):
        session.prompt()
    with pytest.raises(chat.ChatError, match='the conversation is empty'):
        chat.Session(ONE, 20).prompt()
    with pytest.raises(chat.ChatError, match='a context of 0 tokens'):
        chat.Session(ONE, 0)


def test_a_session_is_led():
    session = chat.Session(ONE, 100)
    session.set_system('Rhyme.')
    session.add({'role': 'user', 'content': 'a'})
    assert not session.take_back()
    session.add(chat.Message('assistant', 'b'))
    assert session.take_back() and [m['role'] for m in session.messages] == ['system', 'user']
    session.add({'role': 'assistant', 'content': 'It'})
    assert session.prompt(continue_final_message=True).text.endswith('<|assistant|>It')
    session.set_system('Be brief.')
    assert session.messages[0]['content'] == 'Be brief.'
    session.clear()
    assert session.messages == [SYSTEM]
    session.set_system('')
    assert session.messages == []
    with pytest.raises(chat.ChatError, match=r'messages\[0\]\.role'):
        session.add({'role': 'x', 'content': ''})
    assert session.messages == []
