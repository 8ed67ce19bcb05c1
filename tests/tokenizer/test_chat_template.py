"""Chat templates and names of special tokens stay with a tokenizer, whatever its kind and files."""

import json

from awkward import byte_level_bpe, sentencepiece_model, write_pair
import pytest

from llm_jax import tokenizer
from llm_jax.config import schema
from llm_jax.config.schema import ConfigError

NAMED = {'default': '{{ messages }}\n', 'tool_use': 'é {{ tools }}'}


def json_directory(directory, **config):
    directory.mkdir()
    byte_level_bpe(('<s>', '<|im_end|>')).save(str(directory / 'tokenizer.json'))
    (directory / 'tokenizer_config.json').write_text(
        json.dumps({'bos_token': '<s>', 'eos_token': '<|im_end|>'} | config)
    )
    return directory


@pytest.mark.parametrize(
    ('field', 'templates'),
    [
        ('one', {'default': 'one'}),
        ([{'name': name, 'template': source} for name, source in NAMED.items()], NAMED),
        (NAMED, NAMED),
        (None, {}),
    ],
)
def test_the_forms_of_a_config(tmp_path, field, templates):
    directory = json_directory(tmp_path / 'a', chat_template=field)
    tok = tokenizer.load(directory)
    assert tok.chat_templates == templates
    for write in (tok.save, tok.export):
        write(tmp_path / write.__name__)
        assert tokenizer.load(tmp_path / write.__name__).chat_templates == templates
        assert 'chat_template' not in json.loads((tmp_path / write.__name__ / 'tokenizer_config.json').read_text())
    assert tok.limit(501).chat_templates == templates


def test_files_come_before_the_config(tmp_path):
    directory = json_directory(tmp_path / 'a', chat_template='of the config')
    (directory / 'chat_template.jinja').write_text('of the file')
    assert tokenizer.load(directory).chat_templates == {'default': 'of the file'}
    assert tokenizer.load(directory / 'tokenizer.json').chat_templates == {'default': 'of the file'}
    (directory / 'additional_chat_templates').mkdir()
    (directory / 'additional_chat_templates' / 'rag.jinja').write_text('of documents')
    assert tokenizer.load(directory).chat_templates == {'default': 'of the file', 'rag': 'of documents'}


def test_every_kind_keeps_them(tmp_path):
    (tmp_path / 'tokenizer.model').write_bytes(sentencepiece_model(normalization_rule_name='identity',
                                                                   remove_extra_whitespaces=False))  # fmt: skip
    write_pair(tmp_path / 'gpt2', 'vocab.json', 'merges.txt')
    made = tokenizer.train(schema.Tokenizer(kind='bytes', reserved=('<|user|>',)), [], seed=0)
    kinds = tokenizer.load(tmp_path / 'tokenizer.model'), tokenizer.load(tmp_path / 'gpt2'), made
    for i, tok in enumerate(kinds):
        changed = tok.with_chat_templates(NAMED)
        assert tok.chat_templates == {} and changed.fingerprint == tok.fingerprint
        for write in (changed.save, changed.export):
            directory = tmp_path / f'{write.__name__}{i}'
            write(directory)
            again = tokenizer.load(directory)
            assert again.chat_templates == NAMED
            assert (again.special, again.token_roles) == (tok.special, tok.token_roles)


def test_special_tokens_have_names(tmp_path):
    config = {'pad_token': {'content': '<|im_end|>'}, 'unk_token': None, 'model_max_length': 5}
    tok = tokenizer.load(json_directory(tmp_path / 'a', **config))
    ids = {name: tok.vocab_size - 2 + i for i, name in enumerate(('<s>', '<|im_end|>'))}
    assert tok.special == ids and tok.eos_ids == (ids['<|im_end|>'],)
    assert tok.token_roles == {'bos_token': '<s>', 'eos_token': '<|im_end|>', 'pad_token': '<|im_end|>'}
    made = tokenizer.train(schema.Tokenizer(kind='characters', vocab_size=300, reserved=('<|user|>',)), ['ab'], seed=0)
    assert made.special == {'<|bos|>': made.bos_id, '<|user|>': made.bos_id + 1}
    assert made.token_roles == {'bos_token': '<|bos|>', 'eos_token': '<|bos|>'}
    without = json_directory(tmp_path / 'b', bos_token=None)
    (without / 'generation_config.json').write_text('{"bos_token_id": 500}')
    assert tokenizer.load(without).token_roles == {'eos_token': '<|im_end|>'}  # templates see no bos_token


def test_texts_are_cut_at_names():
    made = tokenizer.train(schema.Tokenizer(kind='bytes', reserved=('<|a|>', '<|a|>b')), [], seed=0)
    text = 'é<|a|>b<|a|><|bos|>c'
    pieces = [(text[p.start : p.end], p.id) for p in made.split_special(text)]
    ids = made.special
    assert pieces == [('é', None), ('<|a|>b', ids['<|a|>b']), ('<|a|>', ids['<|a|>']), ('<|bos|>', ids['<|bos|>']),
                      ('c', None)]  # fmt: skip
    assert made.split_special('') == [] and made.encode(text)[0] == 'é'.encode()[0]


def test_where_tokens_are():
    made = tokenizer.train(schema.Tokenizer(kind='bytes'), [], seed=0)
    assert made.locate_tokens('aé🙂', made.encode('aé🙂')) == [(0, 1), (1, 2), (1, 2), *[(2, 3)] * 4]
    spaced = tokenizer.SentencePieceTokenizer(sentencepiece_model())  # a space before the text, and others are lost
    for text in ('import os', '  x  y', 'e\u0301'):
        ids = spaced.encode(text)
        places = spaced.locate_tokens(text, ids)
        assert len(places) == len(ids) and all(0 <= a <= b <= len(text) for a, b in places)
        assert max(b for _, b in places) >= len(text.rstrip())


@pytest.mark.parametrize('field', [3, [1], [{'name': 'a'}], {'a': 1}])
def test_a_broken_field_is_an_error(tmp_path, field):
    with pytest.raises(ConfigError, match=r'"chat_template" of tokenizer_config\.json is neither a text nor a list'):
        tokenizer.load(json_directory(tmp_path / 'a', chat_template=field))


def test_broken_files_and_names(tmp_path):
    directory = json_directory(tmp_path / 'a')
    (directory / 'chat_template.jinja').write_bytes(b'\xff')
    with pytest.raises(ConfigError, match=r'chat_template\.jinja is no UTF-8 text'):
        tokenizer.load(directory)
    made = tokenizer.train(schema.Tokenizer(kind='bytes'), [], seed=0)
    for name in ('../x', '', '.hidden'):
        with pytest.raises(ConfigError, match='cannot be the name of a file'):
            made.with_chat_templates({name: 'x'}).save(tmp_path / 'b')
