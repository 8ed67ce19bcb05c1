"""Scores of rows: alone and among others, against the logits, and what is not finite."""

import gzip
import json

import jax
import numpy as np
import pytest

from llm_jax import config as config_lib
from llm_jax import tokenizer
from llm_jax.config import schema
from llm_jax.config.schema import ConfigError
from llm_jax.evals import score
from llm_jax.evals.run import Evaluation, Options
from llm_jax.evals.sources import Sources
from llm_jax.evals.tasks import find_task
from llm_jax.nn.transformer import build, init_params
from llm_jax.runs import Loaded

ROWS = [([1, 5, 6, 7], 2), ([1, 9], 1), ([1, *range(2, 50)], 30), ([1, 5, 6, 7], 2), ([1, 3, 1, 4], 3)]
NAMES = [f'item {i}' for i in range(len(ROWS))]


@pytest.fixture(scope='module')
def loaded() -> Loaded:
    tok = tokenizer.train(schema.Tokenizer(vocab_size=280), ['The cat sat on the mat.\n'] * 5, seed=0)
    config = config_lib.default()
    config.name, config.data.seq_len = 'tiny', 64
    config.model.d_model, config.model.n_layers, config.model.n_heads = 16, 2, 2
    config.model.init_std = 0.5  # far from the uniform distribution
    config = config_lib.validate(config)
    model = build(config.model, vocab_size=tok.vocab_size, seq_len=64)
    return Loaded(model, init_params(model, jax.random.key(0)), tok, config, 1)


@pytest.fixture(scope='module')
def scorer(loaded: Loaded) -> score.Scorer:
    return score.Scorer(loaded.model, loaded.params)


def test_scores_are_sums_of_the_log_probabilities_of_the_last_tokens(loaded, scorer):
    for (ids, count), answer in zip(ROWS, scorer.score(ROWS, NAMES), strict=True):
        positions = np.arange(len(ids))[None]
        logits = loaded.model.apply({'params': loaded.params}, np.array([ids]), positions, np.zeros_like(positions))[0]
        log_p = np.asarray(jax.nn.log_softmax(logits), np.float64)[:-1]
        scored = range(len(ids) - 1 - count, len(ids) - 1)
        assert answer.log_likelihood == pytest.approx(sum(log_p[t, ids[t + 1]] for t in scored), abs=1e-3)
        assert answer.is_greedy == all(np.argmax(log_p[t]) == ids[t + 1] for t in scored)


def test_a_score_does_not_depend_on_the_other_rows(scorer):
    alone = [scorer.score([row], ['item'])[0] for row in ROWS]
    assert alone == scorer.score(ROWS, NAMES)
    many = [([1, 2 + i], 1) for i in range(200)]
    assert scorer.score([*many, *ROWS], ['item'] * 205)[200:] == alone


def test_a_score_that_is_not_finite_names_its_item(loaded):
    broken = jax.tree.map(lambda leaf: leaf * np.nan, loaded.params)
    with pytest.raises(ConfigError, match='item 0: the log-likelihood is nan'):
        score.Scorer(loaded.model, broken).score(ROWS[:1], NAMES[:1])


def test_a_task_leaves_its_items_and_results_and_is_not_run_twice(loaded, tmp_path, monkeypatch):
    documents = [{'query': 'The cat', 'choices': ['sat.', 'on the mat.'], 'gold': 1}] * 3
    (tmp_path / 'openbook_qa_test.jsonl').write_text('\n'.join(map(json.dumps, documents)))
    results = Evaluation(loaded, Sources([tmp_path]), Options(2)).run(find_task('openbookqa'), tmp_path / 'evals')
    assert (results['n'], results['truncated'], results['bos'], results['dtype']) == (2, 0, True, 'float32')
    lines = gzip.decompress((tmp_path / 'evals/openbookqa/items.jsonl.gz').read_bytes()).decode().splitlines()
    item = json.loads(lines[0])
    assert (item['task'], item['id'], item['gold']) == ('openbookqa', 0, 1)
    request = item['requests'][1]
    assert (request['context'], request['continuation']) == ('The cat', ' on the mat.')
    assert request['tokens'] == loaded.tokenizer.encode('The cat on the mat.')[-len(request['tokens']) :]
    monkeypatch.setattr(score.Scorer, 'score', lambda *args: pytest.fail('scored again'))
    assert (
        Evaluation(loaded, Sources([tmp_path]), Options(2)).run(find_task('openbookqa'), tmp_path / 'evals') == results
    )


def test_mistakes_are_named(loaded, tmp_path):
    evaluation = Evaluation(loaded, Sources([tmp_path]), Options(shots=1))
    with pytest.raises(ConfigError, match="'helaswag', which is no task; did you mean 'hellaswag'"):
        find_task('helaswag')
    with pytest.raises(ConfigError, match='has no piqa_val.jsonl.gz'):
        evaluation.run(find_task('piqa'), tmp_path)
    with pytest.raises(ConfigError, match='copa has no examples'):
        evaluation.run(find_task('copa'), tmp_path)
