"""Conversations on disk: whole, apart from each other, weighed, and what does not fit is counted."""

import dataclasses
import gzip
import json

import jax
import numpy as np
import pytest
from tiny import LLAMA, L, on_mesh, tiny_config, tiny_model

from llm_jax import tokenizer
from llm_jax.chat import open_chat
from llm_jax.config import schema
from llm_jax.config.schema import ConfigError
from llm_jax.data.batch import unpack_examples, unpack_rows
from llm_jax.data.batches import TrainRows, eval_batches
from llm_jax.data.example_rows import pack_examples
from llm_jax.data.examples import FORMS, Example, Renderer, Segment
from llm_jax.data.prepare import prepare
from llm_jax.nn.transformer import init_params
from llm_jax.train.objectives import make_objective

BOS = 1


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    directory = tmp_path_factory.mktemp('conversations')
    texts = [f'word{i % 7} and number {i} are said here' for i in range(200)]
    recipe = schema.Tokenizer(vocab_size=320, reserved=('<|im_start|>', '<|im_end|>'))
    tokenizer.train(recipe, iter(texts), 0).save(directory / 'tokenizer')
    records = [{'prompt': f'number {i}?', 'response': 'word ' * (1 + i % 5)} for i in range(60)]
    records.append({'prompt': 'long', 'response': 'here ' * 200})
    with gzip.open(directory / 'a.jsonl.gz', 'wt') as file:
        file.writelines(json.dumps(record) + '\n' for record in records)
    return schema.Data(
        sources={'a': f'conversations:{directory}/a.jsonl.gz'}, seq_len=64, validation_fraction=0.2, test_fraction=0.1,
        tokenizer=schema.Tokenizer(path=str(directory / 'tokenizer')), cache_dir=str(directory / 'cache'),
    )  # fmt: skip


def prepared_of(config):
    return prepare(config, 0, template='chatml')


def test_every_conversation_is_once_in_the_rows_as_it_is_rendered(config):
    prepared = prepared_of(config)
    found = []
    for split in ('train', 'validation', 'test'):
        for batch in eval_batches(prepared, split, 4):
            for row in batch.reshape(-1, 3, 65):
                for segment in range(1, row[1].max() + 1):
                    inside = row[1] == segment
                    found.append((row[0][inside].tolist(), row[2][inside].view(np.float32).tolist()))
    chat = open_chat(prepared.tokenizer, 'chatml')
    records = [('here', {'prompt': f'number {i}?', 'response': 'word ' * (1 + i % 5)}) for i in range(60)]
    wanted = FORMS['conversations'].examples(Renderer(config, prepared.tokenizer, chat), records)
    wanted = [segment for _, example in wanted for segment in example.segments]
    assert sorted(found) == sorted((one.ids, one.weights.tolist()) for one in wanted)
    assert sum(entry['a']['dropped'] for entry in prepared.manifest['splits'].values()) == 1


def test_order_is_of_seed_and_step(config):
    prepared = prepared_of(config)
    rows = TrainRows(prepared, {}, 3, 2)
    np.testing.assert_array_equal(rows.read(0, 4)[2], rows[2])
    assert rows[0].shape == (2, 3 * 65)


def test_cut_and_error(config):
    cut = prepared_of(dataclasses.replace(config, too_long='cut'))
    assert sum(entry['a']['cut'] for entry in cut.manifest['splits'].values()) == 1
    assert cut.manifest['digest'] != prepared_of(config).manifest['digest']
    with pytest.raises(ConfigError, match=r'record 61 has .* tokens, but a row has 65; raise data.seq_len'):
        prepared_of(dataclasses.replace(config, too_long='error'))


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'tokenizer': schema.Tokenizer()}, 'data.tokenizer.path is empty'),
        ({'sources': {'a': 'conversations:x', 'b': 'stdlib'}}, "data.sources.b = 'stdlib' has documents"),
        ({'seq_len': 4}, 'conversations of .* is in the train split: .* were longer than data.seq_len = 4'),
    ],
)
def test_what_cannot_be_prepared(config, fields, message):
    with pytest.raises(ConfigError, match=message):
        prepared_of(dataclasses.replace(config, **fields))


def test_an_objective_says_that_rows_are_of_the_other_kind(config):
    objective = make_objective(tiny_model(tiny_config(**LLAMA)), tiny_config(**LLAMA), bos_id=BOS)
    with pytest.raises(
        ConfigError, match="train.objective = 'next_token' trains on documents, but data.sources has conversations"
    ):
        objective.train_rows(prepared_of(config), [0])


def conversation(ids):
    return Example((Segment(ids, np.ones(len(ids))),), 0)


def documents_and_rows():
    """The same documents as rows of pre-training, and as rows of conversations with every weight 1."""
    documents = [[BOS, 5, 6, 7, 8, 9], [BOS, 11, 12, 13], [BOS, 21, 22, 23, 24]]
    (row,) = pack_examples([conversation(ids) for ids in documents], L, FORMS['conversations'])
    plain = np.full(L + 1, -1, np.int32)
    tokens = sum(sorted(documents, key=len, reverse=True), [])
    plain[: len(tokens)] = tokens
    return plain[None], row[None], documents


def test_weights_of_one_are_pre_training_but_for_starts():
    """Contract 12: BOS after another document is a target of pre-training's, and none of a conversation."""
    plain, row, _ = documents_and_rows()
    one, two = unpack_rows(plain, BOS), unpack_examples(row)
    real = np.asarray(plain[:, :-1] >= 0)
    np.testing.assert_array_equal(np.where(real, one.segments, 0), two.segments)
    np.testing.assert_array_equal(one.positions[real], two.positions[real])
    np.testing.assert_array_equal(one.tokens, two.tokens)
    np.testing.assert_array_equal(np.where(one.targets == BOS, 0, one.loss_weights), two.loss_weights)


def test_packed_conversations_have_the_loss_that_they_have_alone():
    _, row, documents = documents_and_rows()
    config = tiny_config(**LLAMA, train__objective='sft')
    with on_mesh((1, 1, 1)):
        model = tiny_model(config)
        params = init_params(model, jax.random.key(0))
        objective = make_objective(model, config, bos_id=BOS)
        loss = jax.jit(lambda rows: objective.loss(params, objective.make_batch(rows), None)[1]['nll'])
        alone = [next(pack_examples([conversation(ids)], L, FORMS['conversations'])) for ids in documents]
        np.testing.assert_allclose(loss(row), sum(loss(one[None]) for one in alone), rtol=1e-5)


def form_config(config, tmp_path, form, records, **fields):
    (tmp_path / 'some.jsonl').write_text(''.join(json.dumps(record) + '\n' for record in records))
    held_out = {'validation_fraction': 0.0, 'test_fraction': 0.0}
    sources = {'s': f'{form}:{tmp_path}/some.jsonl'}
    same = {'validation_sources': {'v': sources['s']}, 'sources': sources}
    return dataclasses.replace(config, **same, **held_out, **fields)


def segments_of(prepared, part=0):
    """(row, segment) -> tokens and weights, and the values of each row at the first tokens of examples."""
    out, values, form = {}, {}, FORMS[prepared.form]
    for r, row in enumerate(prepared.rows('train')['s'].read(np.arange(prepared.count('train')))):
        columns = row.reshape(form.columns, -1)
        tokens, segments, bits = columns[3 * part : 3 * part + 3]
        for segment in range(1, segments.max() + 1):
            inside = segments == segment
            out[r, segment] = tokens[inside].tolist(), bits[inside].view(np.float32).tolist()
            values[r, segment] = columns[-1][inside].view(np.float32)[0]
    return out, values


def test_pairs_lie_side_by_side(config, tmp_path):
    sides = lambda i: {'chosen': f'number {i}', 'rejected': f'word {i}', 'margin': i / 4}
    records = [{'prompt': f'{i}?', **sides(i)} for i in range(6)]
    records += [{'chosen': f'\n\nHuman: {i}\n\nAssistant: a', 'rejected': '\n\nHuman: ?\n\nAssistant: b'} for i in 'xy']
    prepared = prepared_of(form_config(config, tmp_path, 'pairs', records, seq_len=256, examples_per_row=2))
    found, values = segments_of(prepared)
    assert prepared.count('train') == 3
    assert {segment for _, segment in found} == {1, 2, 3, 4}
    assert prepared.manifest['splits']['train']['s']['unequal'] == 2
    chat = open_chat(prepared.tokenizer, 'chatml')
    margins = []
    for (row, segment), (ids, weights) in found.items():
        if segment % 2:
            number = int(4 * values[row, segment])
            margins.append(number)
            for side, (ids, weights) in (('number', found[row, segment]), ('word', found[row, segment + 1])):
                asked = {'role': 'user', 'content': f'{number}?'}
                answer = {'role': 'assistant', 'content': f'{side} {number}'}
                alone = chat.render([asked, answer], weights=True)
                assert (ids, weights) == (alone.ids, alone.weights.tolist())
    assert sorted(margins) == list(range(6))


def test_labelled_texts_have_the_index_of_their_class(config, tmp_path):
    records = [{'text': f'number {i}', 'label': i % 3} for i in range(9)]
    fields = {'seq_len': 64, 'classes': ('2', '0', '1')}
    prepared = prepared_of(form_config(config, tmp_path, 'labelled', records, **fields))
    found, values = segments_of(prepared)
    texts = {place: prepared.tokenizer.decode(ids[1:]) for place, (ids, _) in found.items()}
    assert sorted(texts.values()) == [f'number {i}' for i in range(9)]
    assert all(values[place] == ('2', '0', '1').index(str(int(text[-1]) % 3)) for place, text in texts.items())
    with pytest.raises(ConfigError, match=r'record 1: "label" = 0 is not in data.classes = \(.spam., .ham.\)'):
        prepared_of(form_config(config, tmp_path, 'labelled', records, classes=('spam', 'ham')))
    with pytest.raises(ConfigError, match='name the labels of the texts, two at least'):
        prepared_of(form_config(config, tmp_path, 'labelled', records))
    with pytest.raises(ConfigError, match="has no text in its field 'body' but 'text', 'label'; set data.text_field"):
        prepared_of(form_config(config, tmp_path, 'labelled', records, text_field='body', classes=('a', 'b')))


def test_unpaired_answers_have_those_of_others_beside_them(config, tmp_path):
    records = [{'prompt': f'{i}?', 'completion': f'number {i}', 'label': i % 2 == 0} for i in range(4)]
    prepared = prepared_of(form_config(config, tmp_path, 'unpaired', records, seq_len=64))
    (own, values), (others, _) = segments_of(prepared), segments_of(prepared, 1)
    chat = open_chat(prepared.tokenizer, 'chatml')
    for i in range(4):
        texts = lambda j, i=i: [
            {'role': 'user', 'content': f'{i}?'}, {'role': 'assistant', 'content': f'number {j}'},
        ]  # fmt: skip
        (place,) = (place for place, (ids, _) in own.items() if ids == chat.render(texts(i)).ids)
        assert values[place] == (i % 2 == 0)
        assert others[place][0] == chat.render(texts((i - 1) % 4)).ids
