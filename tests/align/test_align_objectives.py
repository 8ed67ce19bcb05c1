"""Pairs and labelled texts in rows: what they are alone, in micro-batches, and on a mesh."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import LLAMA, on_mesh, place_params, random_params, tiny_config, tiny_model

from llm_jax.align import objectives, preference, scores
from llm_jax.config.schema import ConfigError
from llm_jax.data.batch import place_rows, split_rows, take_micro_batch

L, BETA = 16, 0.3
PAIRS = [  # (prompt, chosen, rejected), and the last row only fills the batch
    ([1, 5, 6], [7, 8, 2], [9, 2]),
    ([1, 4], [3, 2], [11, 12, 13, 2]),
    ([1, 20, 21], [22, 2], [23, 2]),
    ([], [], []),
]


def sequences():
    return [[prompt + chosen, prompt + rejected] for prompt, chosen, rejected in PAIRS]


def make_rows():
    tokens, segments, trained = (np.full((len(PAIRS), L + 1), fill) for fill in (-1, 0, 0))
    for row, ((prompt, _, _), sides) in enumerate(zip(PAIRS, sequences(), strict=True)):
        start = 0
        for segment, side in enumerate(sides, 1):
            stop = start + len(side)
            tokens[row, start:stop], segments[row, start:stop] = side, segment
            trained[row, start + len(prompt) : stop] = 1
            start = stop
    rng = np.random.default_rng(0)
    return {
        'tokens': tokens.astype(np.int32),
        'segments': segments.astype(np.int32),
        'trained': trained.astype(np.float32),
        'reference': -5 * rng.random((len(PAIRS), 2)).astype(np.float32),
        'margin': rng.random(len(PAIRS)).astype(np.float32),
        'label': np.array([2, 0, 1, 0], np.int32),
    }


@pytest.fixture(scope='module')
def model():
    return tiny_model(tiny_config(**LLAMA))


@pytest.fixture(scope='module')
def params(model):
    head = np.random.default_rng(1).normal(size=(32, 3)).astype(np.float32)
    return random_params(model, scale=0.2) | {'score': {'kernel': head}}


def alone(model, params):
    """Each side by itself: log-probabilities of its tokens [..., L], and the features of its last token."""
    rows = np.zeros((2 * len(PAIRS), L), np.int32)
    sides = [side for pair in sequences() for side in pair]
    for row, side in zip(rows, sides, strict=True):
        row[: len(side)] = side

    def run(params):
        x_BLD = model.apply({'params': params}, rows, method='features')
        log_p = jax.nn.log_softmax(model.apply({'params': params}, x_BLD, method='head'))
        return x_BLD, jnp.take_along_axis(log_p[:, :-1], rows[:, 1:, None], -1)[..., 0]

    x_BLD, log_probs = map(np.asarray, jax.jit(run)(params))
    prompts = [len(pair[0]) for pair in PAIRS for _ in range(2)]
    answers = [log_probs[i, max(n - 1, 0) : max(len(sides[i]) - 1, 0)] for i, n in enumerate(prompts)]
    return answers, [x_BLD[i, len(side) - 1] for i, side in enumerate(sides)]


def objective_of(cls, model, **options):
    config = tiny_config(**LLAMA)
    return cls(model, dataclasses.replace(config, model=model.config), 1, **options)


def whole(objective, params, rows, n_micro=1):
    """(loss, metrics) of a step, in micro-batches."""

    def run(params, rows):
        batch = split_rows(objective.add_statistics(objective.make_batch(rows)), n_micro)
        parts = [objective.loss(params, take_micro_batch(batch, i), None) for i in range(n_micro)]
        sums = jax.tree.map(lambda *values: sum(values), *({**sums, 'objective': total} for total, sums in parts))
        return objective.metrics(sums)

    return jax.jit(run)(params, rows)


@pytest.mark.parametrize('kind', ['dpo', 'ipo', 'orpo'])
def test_preferences_of_pairs(model, params, kind):
    rows, (answers, _) = make_rows(), alone(model, params)
    sums, n = np.array([answer.sum() for answer in answers]), np.array([len(answer) for answer in answers])
    real = slice(0, len(PAIRS) - 1)
    sides = lambda x: (x[0::2][real], x[1::2][real])
    pairs = preference.Pairs(*sides(sums), *rows['reference'][real].T, *sides(n))
    loss = preference.PAIR_LOSSES[kind](pairs, beta=BETA)
    chosen = np.concatenate(answers[0::2][real])
    wanted = float(np.mean(loss)) - 0.5 * chosen.mean()
    objective = objective_of(objectives.Preference, model, kind=kind, beta=BETA, sft_weight=0.5)
    for n_micro in (1, 2):
        metrics = whole(objective, params, rows, n_micro)
        np.testing.assert_allclose(metrics['loss'], wanted, rtol=1e-4)
        np.testing.assert_allclose(metrics['margin'], BETA * np.mean(pairs.delta), rtol=1e-3)
        np.testing.assert_allclose(metrics['accuracy'], np.mean(pairs.delta > 0), rtol=1e-6)
    if kind == 'dpo':
        for sizes in ({'fsdp': 2, 'tensor': 2}, {'fsdp': 2, 'context': 2}):
            with on_mesh(sizes):
                placed = place_params(model, {name: value for name, value in params.items() if name != 'score'})
                on_devices = jax.jit(lambda rows: place_rows(rows, model.config.rules))(rows)
                np.testing.assert_allclose(whole(objective, placed, on_devices, 2)['loss'], wanted, rtol=1e-4)


def test_scores_at_the_last_token(model, params):
    rows, (_, features) = make_rows(), alone(model, params)
    kernel = params['score']['kernel']
    sides = np.array([x @ kernel for x in features])
    real = slice(0, len(PAIRS) - 1)
    rows = {name: value[real] for name, value in rows.items()}
    score = lambda side: sides[side::2, 0][real]
    total, n = scores.bradley_terry(score(0), score(1), rows['margin'], centre=0.1)
    objective = objective_of(objectives.Reward, model, centre=0.1)
    metrics = whole(objective, params, rows)
    np.testing.assert_allclose(metrics['loss'], total / n, rtol=1e-4)
    np.testing.assert_allclose(metrics['accuracy'], np.mean(score(0) > score(1)), rtol=1e-6)
    # The first side of each pair as a text with a label.
    text = {name: np.where(rows['segments'] == 1, rows[name], fill) for name, fill in (('tokens', -1), ('segments', 0))}
    metrics = whole(objective_of(objectives.Classify, model), params, text | {'label': rows['label']})
    logits = jnp.asarray(sides[0::2][real])
    total, n = scores.class_nll(logits, rows['label'])
    np.testing.assert_allclose(metrics['loss'], total / n, rtol=1e-4)
    np.testing.assert_allclose(metrics['accuracy'], np.mean(np.argmax(logits, 1) == rows['label']), rtol=1e-6)


def test_a_batch_of_one_answer_each_way_is_balanced():
    """Metrics of classes that are seen at different rates, by hand: recalls 1 and ½, F1 4/5 and 2/3."""
    logits = jnp.array([[2.0, 0, 0], [2, 0, 0], [2, 0, 0], [0, 2, 0]])
    metrics = scores.class_metrics(scores.confusion(logits, jnp.array([0, 0, 1, 1])))
    np.testing.assert_allclose(metrics['balanced_accuracy'], 0.75)
    np.testing.assert_allclose(metrics['f1'], [0.8, 2 / 3, 0], rtol=1e-6)
    np.testing.assert_allclose(metrics['accuracy'], 0.75)


def test_an_unknown_loss(model):
    with pytest.raises(ConfigError, match="the preference loss 'dppo' is not known; there are dpo, "):
        objective_of(objectives.Preference, model, kind='dppo')
