"""Rendered conversations equal those of Transformers, byte for byte, and so do their tokens."""

import copy
import datetime
import importlib.util
import pathlib
import re

from chats import CLOCK, CONVERSATIONS, NOW, SEARCH, TEMPLATES, byte_tokenizer
import pytest

from llm_jax import chat

transformers = pytest.importorskip('transformers')

PLAIN = ('<think>', '</think>', '<tool_call>', '</tool_call>')
DOCUMENTS = [{'title': 'a page', 'text': 'words of some length, more than a line'}]


@pytest.fixture(autouse=True)
def fixed_date(monkeypatch):
    class Fixed(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return NOW

    monkeypatch.setattr('transformers.utils.chat_template_utils.datetime', Fixed)


def check(source: str, special: tuple[str, ...], directory: pathlib.Path, least: int) -> None:
    """Compares all conversations; at least so many are rendered, the others are refused by both."""
    ours = byte_tokenizer(['<s>', '</s>', *special], plain=PLAIN, bos_token='<s>', eos_token='</s>')
    ours = ours.with_chat_templates({'default': source})
    ours.export(directory)
    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    assert theirs.chat_template == source
    one = chat.open_chat(ours)
    rendered = 0
    for name, (messages, options) in CONVERSATIONS.items():
        options = options | ({'documents': DOCUMENTS} if 'documents' in source else {})
        try:
            text = theirs.apply_chat_template(copy.deepcopy(messages), tokenize=False, **options)
        except Exception:  # whatever Jinja and the template raise
            with pytest.raises(chat.ChatError):
                one.render(messages, now=NOW, **options)
            continue
        got = one.render(messages, now=NOW, **options)
        assert got.text == text, name
        assert got.ids == theirs.apply_chat_template(copy.deepcopy(messages), **options)['input_ids'], name
        rendered += 1
    assert rendered >= least


@pytest.mark.parametrize('name', TEMPLATES)
def test_our_templates(name, tmp_path):
    check(*TEMPLATES[name], tmp_path, least=5)


def test_there_are_enough():
    assert len(TEMPLATES) >= 20 and len(CONVERSATIONS) >= 12


def test_templates_of_models(tmp_path):
    """Those that the package `trl` has."""
    spec = importlib.util.find_spec('trl')
    if spec is None:
        pytest.skip('the package trl is not installed, which has the templates of models')
    files = sorted(pathlib.Path(spec.submodule_search_locations[0], 'chat_templates').glob('*.jinja'))
    assert files
    for file in files:
        source = file.read_text()
        marks = re.findall(r'<\|[a-z_]+\|>|<[a-z]+_of_[a-z]+>|<｜[^｜\n]{1,40}｜>', source)
        check(source, tuple(dict.fromkeys(marks)), tmp_path / file.stem, least=0)


def test_masks_of_generation_blocks(tmp_path):
    """Of blocks that are not within a macro, where Transformers counts characters from the macro's beginning."""
    source, special = TEMPLATES['generation']
    ours = byte_tokenizer(['<s>', '</s>', *special], plain=PLAIN, bos_token='<s>', eos_token='</s>')
    ours = ours.with_chat_templates({'default': source})
    ours.export(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for name in ('one turn', 'two turns, system', 'white space', 'four turns', 'two calls', 'letters'):
        messages, options = CONVERSATIONS[name]
        got = chat.open_chat(ours).render(messages, weights=True, **options)
        want = theirs.apply_chat_template(copy.deepcopy(messages), return_assistant_tokens_mask=True, **options)
        assert got.weights.tolist() == want['assistant_masks'] and sum(want['assistant_masks'])


@pytest.mark.parametrize('name', ['thinker', 'headers', 'chatml', 'instructions'])
def test_a_last_message_is_continued(name, tmp_path):
    source, special = TEMPLATES[name]
    ours = byte_tokenizer(['<s>', '</s>', *special], plain=PLAIN, bos_token='<s>', eos_token='</s>')
    ours = ours.with_chat_templates({'default': source})
    ours.export(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    one = chat.open_chat(ours)
    for begun in ('The answer', 'It is ', '\n x \n'):
        messages = [{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': begun}]
        text = theirs.apply_chat_template(copy.deepcopy(messages), tokenize=False, continue_final_message=True)
        assert one.render(messages, continue_final_message=True, now=NOW).text == text
    if name == 'thinker':
        messages = [{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': 'x', 'reasoning_content': 'hm'}]
        options = {'continue_final_message': 'reasoning_content'}
        text = theirs.apply_chat_template(copy.deepcopy(messages), tokenize=False, **options)
        assert one.render(messages, **options).text == text


def test_several_templates_of_one_tokenizer(tmp_path):
    templates = {'default': 'plain {{ messages[0].content }}', 'tool_use': 'with {{ tools | length }}', 'rag': 'no'}
    ours = byte_tokenizer(['<s>'], bos_token='<s>').with_chat_templates(templates)
    ours.export(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.chat_template == templates
    messages = [{'role': 'user', 'content': 'Hi'}]
    for tools in (None, [SEARCH, CLOCK], []):
        want = theirs.apply_chat_template(messages, tools=tools, tokenize=False)
        assert chat.open_chat(ours).render(messages, tools=tools).text == want


def test_schemas_of_functions(tmp_path):
    from chats import FUNCTIONS
    from transformers.utils import get_json_schema

    from llm_jax.chat.tools import schema

    for function in FUNCTIONS:
        theirs = get_json_schema(function)
        theirs['function'].pop('return', None)
        assert schema(function) == theirs
