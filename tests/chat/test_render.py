import json
import random

from chats import ANSWER, CONVERSATIONS, NOW, SYSTEM, TEMPLATES, USER, byte_tokenizer, call, show
import numpy as np
import pytest
import tokenizers

from llm_jax import chat, tokenizer
from llm_jax.chat.formats import FORMATS
from llm_jax.config import schema
from llm_jax.tokenizer import JsonTokenizer

PLAIN = ('<think>', '</think>', '<tool_call>', '</tool_call>')


def open_template(name: str) -> chat.Chat:
    source, special = TEMPLATES[name]
    tok = byte_tokenizer(['<s>', '</s>', *special], plain=PLAIN, bos_token='<s>', eos_token='</s>')
    return chat.open_chat(tok.with_chat_templates({'default': source}))


# --- Against stored ids ----------------------------------------------------------------


def test_the_fixture(shared_data):
    """Ids and masks of Transformers, and where a text looks like a mark, the safe ones."""
    file = shared_data / 'align_fixtures' / 'chat.json'
    if not file.exists():
        pytest.skip(f'there is no {file}')
    fixture = json.loads(file.read_text())
    base = sorted(tokenizer.tokenizer_json.byte_alphabet())
    merges = fixture['merges']
    vocab = {piece: i for i, piece in enumerate([*base, *(''.join(pair) for pair in merges)])}
    model = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, [tuple(pair) for pair in merges]))
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    names = sorted(fixture['special_ids'], key=fixture['special_ids'].get)
    model.add_special_tokens([tokenizers.AddedToken(name, special=True, normalized=False) for name in names])
    ids = fixture['special_ids']
    roles = {'bos_token': '<|bos|>', 'eos_token': '<|end|>', 'chat_template': fixture['template']}
    tok = JsonTokenizer(model.to_str(), bos_id=ids['<|bos|>'], eos_ids=[ids['<|end|>']], config=roles)
    assert {name: tok.special[name] for name in ids} == ids
    one = chat.open_chat(tok)
    for name, want in fixture['conversations'].items():
        got = one.render(want['messages'], weights=True)
        assert got.text == want['text'], name
        assert (got.ids, got.weights.tolist()) == (want['safe_ids'], want['safe_mask']), name
        prompt = one.render(want['messages'][:-1], add_generation_prompt=True).ids
        assert got.ids[: len(prompt)] == prompt
        if want['safe_equals_template']:
            assert prompt == want['generation_prompt_ids']
    assert tok.encode('Q: ok?\n\nAnswer: yes') == fixture['boundary']['whole']


# --- BOS -------------------------------------------------------------------------------


def test_a_conversation_has_the_bos_of_its_template():
    marks = ['<|begin_of_text|>', '<|start_header_id|>', '<|end_header_id|>', '<|eot_id|>']
    tok = byte_tokenizer(marks, bos_token=marks[0], eos_token=marks[3])
    bos, start, end, eot = (tok.special[mark] for mark in marks)
    got = chat.open_chat(tok, 'llama3').render([{'role': 'user', 'content': 'test'}], add_generation_prompt=True).ids
    text = tok.encode
    assert got == [
        bos,
        start,
        *text('user'),
        end,
        *text('\n\ntest'),
        eot,
        start,
        *text('assistant'),
        end,
        *text('\n\n'),
    ]
    without = chat.Chat(tok, {'default': chat.Template('{{ messages[0].content }}')})
    assert without.render([USER]).ids == text(USER['content'])


def test_a_second_bos_is_an_error():
    tok = byte_tokenizer(['<s>', '</s>'], bos_token='<s>', eos_token='</s>')
    one = chat.Chat(tok, {'default': chat.Template("{{ bos_token }}{{ '<s>' + messages[0].content }}")})
    with pytest.raises(chat.ChatError, match='begins the conversation with BOS twice'):
        one.render([USER])
    ids = (
        chat.Chat(tok, {'default': chat.Template('{{ bos_token + messages[0].content }}')})
        .render([{'role': 'user', 'content': '<s>x'}])
        .ids
    )
    assert ids.count(tok.bos_id) == 1


def test_an_end_of_turn_that_is_bos():
    """Of tokenizers as GPT-2's, with one special token: what ends a turn also begins the document."""
    tok = byte_tokenizer(['<|endoftext|>'], bos_token='<|endoftext|>', eos_token='<|endoftext|>')
    source = '{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content + eos_token }}\n{% endfor %}' \
             "{% if add_generation_prompt %}assistant: {% endif %}"  # fmt: skip
    one = chat.Chat(tok, {'default': chat.Template(source)})
    messages = [USER, ANSWER, USER, ANSWER]
    got = one.render(messages, weights=True)
    assert got.ids.count(tok.bos_id) == 5 and got.ids[0] == tok.bos_id
    weighed = [i for i, weight in zip(got.ids, got.weights, strict=True) if weight]
    assert weighed == 2 * [*tok.encode('It is 42.'), tok.bos_id]
    assert one.stop_ids == (tok.bos_id,)
    # A first message without text is no second BOS.
    assert chat.Chat(tok, {'default': chat.Template('{{ bos_token }}{{ eos_token }}')}).render([USER]).ids == 2 * [
        tok.bos_id
    ]


# --- Tokens of a text between marks ----------------------------------------------------


def test_white_space_that_belongs_to_a_mark():
    """As `AddedToken` says: lstrip and rstrip take it away, single_word finds a name only by itself."""
    model = json.loads(byte_tokenizer(['<s>', '<|a|>', '<|b|>', 'end'], bos_token='<s>')._tokenizer.to_str())
    for token in model['added_tokens']:
        token |= {'rstrip': token['content'] == '<|a|>', 'lstrip': token['content'] == '<|b|>',
                  'single_word': token['content'] == 'end'}  # fmt: skip
    tok = JsonTokenizer(json.dumps(model), bos_id=256, eos_ids=[])
    whole = tokenizers.Tokenizer.from_str(json.dumps(model))
    one = chat.Chat(
        tok, {'default': chat.Template("x <|a|>\n\n{{ messages[0].content }} \n<|b|> \nlegend end. end{{ 'end' }}")}
    )
    got = one.render([{'role': 'user', 'content': ' y '}])
    assert got.ids == whole.encode(got.text, add_special_tokens=False).ids
    assert show(tok, got.ids) == 'x ⟨<|a|>⟩y⟨<|b|>⟩ \nlegend ⟨end⟩. endend'


@pytest.mark.parametrize('scheme', ['first', 'always', 'never'])
def test_a_space_before_the_first_text_alone(scheme):
    pieces = ['<s>', '▁', 'a', '▁a', *(f'<0x{b:02X}>' for b in range(256))]
    bpe = tokenizers.models.BPE({p: i for i, p in enumerate(pieces)}, [('▁', 'a')], byte_fallback=True)
    model = tokenizers.Tokenizer(bpe)
    model.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    model.decoder = tokenizers.decoders.Sequence(
        [
            tokenizers.decoders.ByteFallback(),
            tokenizers.decoders.Metaspace(prepend_scheme=scheme),
            tokenizers.decoders.Fuse(),
        ]
    )
    model.add_special_tokens(['<s>'])
    tok = JsonTokenizer(model.to_str(), bos_id=0, eos_ids=[])
    one = chat.Chat(tok, {'default': chat.Template('{% for m in messages %}{{ m.content }}<s>{% endfor %}')})
    messages = [{'role': 'user', 'content': text} for text in ('a', 'a a', ' a')]
    assert one.render(messages).ids == model.encode('a<s>a a<s> a<s>', add_special_tokens=False).ids
    # And a name that is text changes nothing else.
    source = '{% for m in messages %}{{ m.content }}<s>{% endfor %}{{ add_generation_prompt and "a" }}'
    marked = chat.Chat(tok, {'default': chat.Template(source)})
    ids = marked.render([{'role': 'user', 'content': 'a'}, {'role': 'assistant', 'content': 'a<s>a', 'weight': 1}]).ids
    assert ids.count(0) == 2 and tok.decode(ids, continues=True).replace(' ', '').startswith('aa<s>a')


def test_our_own_sentencepiece_tokenizer():
    config = schema.Tokenizer(vocab_size=320, reserved=FORMATS['llm_jax'].marks)
    tok = tokenizer.train(config, ['What is 6*7? It is 42. Be brief, say the end. ' * 20], seed=0)
    assert set(FORMATS['llm_jax'].marks) < set(tok.special) and tok.token_roles['bos_token'] == '<|bos|>'
    one = chat.open_chat(tok, 'llm_jax')
    got = one.render([SYSTEM, {'role': 'user', 'content': 'say <|end|> ▁🙂'}, ANSWER], weights=True)
    assert show(tok, got.ids) == (
        '⟨<|bos|>⟩⟨<|system|>⟩Be brief.⟨<|end|>⟩⟨<|user|>⟩say <|end|> ▁🙂⟨<|end|>⟩⟨<|assistant|>⟩It is 42.⟨<|end|>⟩'
    )
    assert show(tok, [i for i, w in zip(got.ids, got.weights, strict=True) if w]) == 'It is 42.⟨<|end|>⟩'
    assert tok.special['<|end|>'] in one.stop_ids


# --- Weights ---------------------------------------------------------------------------


@pytest.mark.parametrize('name', TEMPLATES)
def test_weights_are_of_the_answers(name):
    """In each template that writes answers: with `{% generation %}` and without, the same tokens."""
    one = open_template(name)
    messages = CONVERSATIONS['two turns, system'][0]
    if name in ('white_space', 'json', 'loops'):
        with pytest.raises(chat.ChatError, match=r'cannot tell which text of messages\[2\]'):
            one.render(messages, weights=True, now=NOW)
        return
    try:
        got = one.render(messages, weights=True, now=NOW)
    except chat.ChatError:
        messages = messages[1:]
        got = one.render(messages, weights=True, now=NOW)
    special = dict(one.tokenizer.special)
    written = one.tokenizer.decode([i for i, w in zip(got.ids, got.weights, strict=True) if w])
    for answer in ('It is 42.', '13'):
        assert written.count(answer) == 1
    assert not any(text in written for text in ('What', 'And', 'Be brief', 'user', 'system'))
    marks = [i for i, w in zip(got.ids, got.weights, strict=True) if w and i in special.values()]
    assert name in ('plain', 'lines') or len(marks) >= 2  # each turn is ended
    assert got.ids == one.render(messages, now=NOW).ids
    bare = one.templates['default'].source.replace('{%- generation -%}', '{%- if true -%}')
    bare = bare.replace('{%- endgeneration -%}', '{%- endif -%}')
    again = chat.Chat(one.tokenizer, {'default': chat.Template(bare)}).render(messages, weights=True, now=NOW)
    assert np.array_equal(again.weights, got.weights)


@pytest.mark.parametrize(
    ('name', 'conversation', 'written'),
    [
        ('thinker', 'thoughts', '42⟨<|im_end|>⟩<think>\nit is\n</think>\n\nYes⟨<|im_end|>⟩'),
        ('thinker', 'thoughts in the text', '42⟨<|im_end|>⟩<think>\nyes\n</think>\n\nYes⟨<|im_end|>⟩'),
        ('thinker', 'a tool', '<tool_call>\n{"name": "search", "arguments": {"query": "<é>", "count": 2}}\n</tool_call>'
         '⟨<|im_end|>⟩<think>\n\n</think>\n\nIt is 42.⟨<|im_end|>⟩'),
        ('thinker', 'without thinking', 'It is 42.⟨<|im_end|>⟩'),
        ('headers', 'a tool',
         '{"name": "search", "parameters": {"query": "<é>", "count": 2}}⟨<|eot_id|>⟩It is 42.⟨<|eot_id|>⟩'),
        ('headers', 'white space', 'c⟨<|eot_id|>⟩'),
        ('alternating', 'white space', 'c⟨<end_of_turn>⟩'),
        ('channels', 'two turns, system', '⟨<|channel|>⟩final⟨<|message|>⟩It is 42.⟨<|end|>⟩'
         '⟨<|channel|>⟩final⟨<|message|>⟩13⟨<|return|>⟩'),
        ('channels', 'a tool',
         ' to=functions.search⟨<|channel|>⟩commentary json⟨<|message|>⟩{"query": "<é>", "count": 2}⟨<|call|>⟩'
         '⟨<|channel|>⟩final⟨<|message|>⟩It is 42.⟨<|return|>⟩'),
        ('channels', 'thoughts',
         '⟨<|channel|>⟩final⟨<|message|>⟩42⟨<|end|>⟩⟨<|channel|>⟩analysis⟨<|message|>⟩it is⟨<|end|>⟩'
         '⟨<|start|>⟩assistant⟨<|channel|>⟩final⟨<|message|>⟩Yes⟨<|return|>⟩'),
        ('instructions', 'one turn', ' It is 42. ⟨</s>⟩'),
        ('late_system', 'two turns, system', ' It is 42.⟨</s>⟩ 13⟨</s>⟩'),
        ('late_system', 'two calls',
         '⟨[TOOL_CALLS]⟩ [{"name": "search", "arguments": {"query": "a", "tags": ["x", "y"]}, '
         '"id": "abcdefgh1"}, {"name": "clock", "arguments": {}, "id": "abcdefgh2"}]⟨</s>⟩ It is 42.'
          '⟨</s>⟩ Welcome⟨</s>⟩'),
        ('wide_marks', 'two calls',
         'Let me see.⟨<｜calls▁begin｜>⟩⟨<｜call▁begin｜>⟩search\n```json\n{"query": "a", "tags": '
         '["x", "y"]}\n```⟨<｜call▁end｜>⟩⟨<｜call▁begin｜>⟩clock\n```json\n{}\n```⟨<｜call▁end｜>⟩'
         '⟨<｜calls▁end｜>⟩⟨</s>⟩It is 42.⟨</s>⟩Welcome⟨</s>⟩'),
        ('documents', 'two turns, system', 'It is 42.⟨<|turn|>⟩13⟨</s>⟩'),
        ('llm_jax', 'two calls',
         'Let me see.\n<tool_call>\n{"name": "search", "arguments": {"query": "a", "tags": ["x", "y"]}}'
         '\n</tool_call>\n<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>⟨<|end|>⟩It'
          ' is 42.⟨<|end|>⟩Welcome⟨<|end|>⟩'),
        ('plain', 'white space', ' c\n\n'),
    ],
)  # fmt: skip
def test_weighted_tokens(name, conversation, written):
    one = open_template(name)
    messages, options = CONVERSATIONS[conversation]
    got = one.render(messages, weights=True, now=NOW, **options)
    assert show(one.tokenizer, [i for i, w in zip(got.ids, got.weights, strict=True) if w]) == written
    assert set(got.weights.tolist()) <= {0.0, 1.0}


def test_a_message_has_its_own_weight():
    last = {'role': 'assistant', 'content': 'z'}
    messages = [USER, ANSWER | {'weight': 0}, USER, ANSWER | {'weight': 0.25}, USER, last]
    for name in ('thinker', 'chatml', 'llm_jax', 'generation'):
        one = open_template(name)
        got = one.render(messages, weights=True)
        weighed = {w: [i for i, v in zip(got.ids, got.weights, strict=True) if v == w] for w in (0.25, 1.0)}
        assert one.tokenizer.decode(weighed[0.25]).rstrip() == 'It is 42.'
        assert one.tokenizer.decode(weighed[1.0]).removeprefix('<think>\n\n</think>\n\n').rstrip() == 'z'
        assert set(got.weights.tolist()) == {0.0, 0.25, 1.0}
        assert not one.render([USER, ANSWER | {'weight': 0}], weights=True).weights.any()
        alone = one.render([USER], weights=True)
        assert alone.weights.tolist() == [0.0] * len(alone.ids)


def test_answers_that_are_like_prompts_and_marks():
    """Texts that equal what is around them, empty ones, and an answer that begins the conversation."""
    one = open_template('chatml_in_a_line')
    hard = ['<|im_end|>', '', '<|im_start|>assistant\n', 'assistant\n', '\n', ' <', 'It is 42.', '𒀀']
    messages = [m for text in hard for m in ({'role': 'user', 'content': text}, {'role': 'assistant', 'content': text})]
    for given in (messages, messages[1:]):
        got = one.render(given, weights=True)
        pieces = ''.join(f'{m["content"]}⟨<|im_end|>⟩' for m in given if m['role'] == 'assistant')
        assert show(one.tokenizer, [i for i, w in zip(got.ids, got.weights, strict=True) if w]) == pieces


@pytest.mark.parametrize('name', [name for name in TEMPLATES if name not in ('white_space', 'json', 'loops')])
def test_fuzzed_weights(name):
    """Values with whole and cut names, empty ones and calls: each character of answers is weighed, and no other."""
    one = open_template(name)
    rng = random.Random(name)
    names = [*one.tokenizer.special, *PLAIN, 'assistant', 'Assistant:', 'user\n', ' ', '\n']

    def text(letter: str) -> str:
        marks = [rng.choice(names) for _ in range(rng.randrange(4))]
        return letter + ''.join(mark[: rng.randrange(1, len(mark) + 1)] for mark in marks) + letter

    for _ in range(6):
        messages = [{'role': 'system', 'content': text('Ǝ')}] if rng.random() < 0.4 else []
        for _ in range(rng.randrange(1, 4)):
            messages.append({'role': 'user', 'content': text('Ʉ')})
            if rng.random() < 0.3 and name in ('thinker', 'channels', 'llm_jax', 'chatml', 'late_system', 'wide_marks'):
                calls = [call('f', {'k': text('Ⱥ')}, id='123456789')]
                messages.append({'role': 'assistant', 'content': rng.choice(['', text('Ⱥ')]), 'tool_calls': calls})
                messages.append({'role': 'tool', 'name': 'f', 'content': text('Ʉ'), 'tool_call_id': '123456789'})
            messages.append({'role': 'assistant', 'content': rng.choice(['', text('Ⱥ'), text('Ⱥ')])})
        got = one.render(messages, weights=True, now=NOW)
        weighed, rest = (
            one.tokenizer.decode([i for i, w in zip(got.ids, got.weights, strict=True) if bool(w) == is_weighed])
            for is_weighed in (True, False)
        )
        assert not {'Ǝ', 'Ʉ'} & set(weighed) and 'Ⱥ' not in rest, (messages, weighed)


@pytest.mark.parametrize(
    ('source', 'message'),
    [
        ('{% for m in messages %}{{ m.content }}{% endfor %}', 'nothing ends its turn'),
        ('{% for m in messages if m.role == "user" %}{{ m.content }}{% endfor %}', 'the template does not write it'),
        ('{% for m in messages %}{{ m.content | length }}.{% endfor %}', 'the template changes its values'),
        ('{% generation %}{% endgeneration %}{{ messages[1].content }}',
         r'no {% generation %} block writes messages\[1\]'),
        ('{% generation %}{% for m in messages %}{{ m.content }}{% endfor %}{% endgeneration %}',
         'holds several messages'),
    ],
)  # fmt: skip
def test_weights_that_cannot_be_found_are_an_error(source, message):
    tok = byte_tokenizer(['<s>', '</s>'], bos_token='<s>', eos_token='</s>')
    one = chat.Chat(tok, {'default': chat.Template(source)})
    messages = [USER, ANSWER, USER, ANSWER]
    assert one.render(messages).ids
    with pytest.raises(chat.ChatError, match=message):
        one.render(messages, weights=True)


# --- The rest --------------------------------------------------------------------------


def test_parts_are_joined_for_templates_that_read_text():
    parts = [{'type': 'text', 'text': 'What is '}, {'type': 'text', 'text': '6*7?'}]
    for name in ('chatml_in_a_line', 'thinker', 'headers', 'chatml', 'llama3', 'plain', 'llm_jax', 'gemma'):
        one = open_template(name)
        got = one.render([{'role': 'user', 'content': parts}], now=NOW)
        assert got.ids == one.render([USER], now=NOW).ids, name


def test_tools_may_be_functions_and_templates_named():
    def add(a: int) -> int:
        """Adds.

        Args:
          a: a number.
        """

    tok = byte_tokenizer(['<s>'], bos_token='<s>')
    templates = {'default': 'plain', 'tool_use': '{{ tools[0].function.name }}'}
    one = chat.open_chat(tok.with_chat_templates(templates))
    assert (one.render([USER]).text, one.render([USER], tools=[add]).text) == ('plain', 'add')
    with pytest.raises(chat.ChatError, match="none is 'default'"):
        chat.open_chat(tok.with_chat_templates({'rag': 'x'}))


def test_a_message_is_left_open():
    one = open_template('chatml')
    got = one.render([USER, {'role': 'assistant', 'content': 'It <|im_end|> '}], continue_final_message=True)
    assert show(one.tokenizer, got.ids).endswith('⟨<|im_start|>⟩assistant\nIt <|im_end|> ')
    with pytest.raises(chat.ChatError, match='excludes add_generation_prompt'):
        one.render([USER], continue_final_message=True, add_generation_prompt=True)
    with pytest.raises(chat.ChatError, match='excludes weights'):
        one.render([USER], continue_final_message=True, weights=True)
    with pytest.raises(chat.ChatError, match=r'messages\[0\]\.reasoning_content is missing'):
        one.render([USER], continue_final_message='reasoning_content')


def test_a_template_and_a_tokenizer_that_do_not_fit(tmp_path):
    tok = byte_tokenizer(['<s>'], bos_token='<s>')
    with pytest.raises(chat.ChatError, match='comes without a chat template; set chat.template to one of chatml'):
        chat.open_chat(tok)
    with pytest.raises(chat.ChatError, match=r"needs the special token '<\|im_start\|>', which the tokenizer lacks"):
        chat.open_chat(tok, 'chatml')
    with pytest.raises(chat.ChatError, match=r"chat\.template = '.*no\.jinja': there is no such file"):
        chat.open_chat(tok, str(tmp_path / 'no.jinja'))
    (tmp_path / 'mine.jinja').write_text('mine: {{ messages[0].content }}')
    assert chat.open_chat(tok, str(tmp_path / 'mine.jinja')).render([USER]).text == 'mine: What is 6*7?'
    kept = chat.attach_template(tok, 'plain')
    assert chat.open_chat(kept).stop_texts == FORMATS['plain'].stop_texts
