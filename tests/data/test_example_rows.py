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
