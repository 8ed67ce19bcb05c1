"""Packed pairs and labelled texts: what each example is alone, in micro-batches, and on a mesh."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import LLAMA, on_mesh, place_params, random_params, tiny_config, tiny_model

from llm_jax.align import preference, scores
from llm_jax.config.schema import ConfigError
from llm_jax.data.batch import place_rows, split_rows, take_micro_batch
from llm_jax.data.example_rows import pack_examples
from llm_jax.data.examples import FORMS, Example, Segment
from llm_jax.train.objectives import make_objective

BETA, L = 0.3, 16
PAIRS = [  # (prompt, chosen, rejected)
    ([1, 5, 6], [7, 8, 2], [9, 2]),
    ([1, 4], [3, 2], [11, 12, 2]),
    ([1, 20], [22, 2], [23, 2]),
    ([1, 6], [5, 2], [7, 2]),
]
CLASSES = ('a', 'b', 'c')


def segment(prompt, answer):
    return Segment(prompt + answer, np.array([0] * len(prompt) + [1] * len(answer), np.float32))


def rows_of(examples, form):
    """int32[4, C (L+1)], and the places of the examples: two in each of two rows, and two rows that fill the batch."""
    rows = np.stack(list(pack_examples(examples, L, FORMS[form], 2)))
    filling = np.full((4 - len(rows), rows.shape[1]), -1, np.int32)
    return np.concatenate([rows, filling])


@pytest.fixture(scope='module')
def model():
    return tiny_model(tiny_config(**LLAMA, scores=len(CLASSES)))


@pytest.fixture(scope='module')
def params(model):
    return random_params(model, scale=0.2)


def objective_of(name, model, **options):
    fields = {'train__objective': name, 'train__objective_options': options, 'data__examples_per_row': 2,
              'data__classes': CLASSES}  # fmt: skip
    config = tiny_config(**LLAMA, **fields)
    return make_objective(model, dataclasses.replace(config, model=model.config), bos_id=1)


def alone(model, params, sides):
    """Each side by itself: log-probabilities of its answer, and the features of its last token."""
    rows = np.zeros((len(sides), L), np.int32)
    for row, (prompt, answer) in zip(rows, sides, strict=True):
        row[: len(prompt + answer)] = prompt + answer

    @jax.jit
    def run(params):
        x_BLD = model.apply({'params': params}, rows, method='features')
        log_p = jax.nn.log_softmax(model.apply({'params': params}, x_BLD, method='head'))
        return x_BLD, jnp.take_along_axis(log_p[:, :-1], rows[:, 1:, None], -1)[..., 0]

    x_BLD, log_probs = map(np.asarray, run(params))
    answers = [log_probs[i, len(p) - 1 : len(p + a) - 1] for i, (p, a) in enumerate(sides)]
    return answers, np.stack([x_BLD[i, len(p + a) - 1] for i, (p, a) in enumerate(sides)])


def whole(objective, params, rows, n_micro=1):
    """Metrics of a step, in micro-batches."""

    @jax.jit
    def run(params, rows):
        batch = split_rows(objective.add_statistics(objective.make_batch(rows)), n_micro)
        parts = [objective.loss(params, take_micro_batch(batch, i), None) for i in range(n_micro)]
        sums = jax.tree.map(lambda *values: sum(values), *({**sums, 'objective': total} for total, sums in parts))
        return objective.metrics(sums)

    return run(params, rows)


def test_pairs(model, params):
    """Three losses by their formulas, of log-probabilities that each side has alone."""
    answers, _ = alone(model, params, [(p, side) for p, *sides in PAIRS for side in sides])
    examples = [Example((segment(p, w), segment(p, r)), 0, 0.5) for p, w, r in PAIRS]
    rows = rows_of(examples, 'pairs')
    reference = np.random.default_rng(0).normal(size=(len(rows), L + 1)).astype(np.float32)
    tokens, segments = rows.reshape(4, 4, L + 1)[:, 0], rows.reshape(4, 4, L + 1)[:, 1]
    sums = np.array([answer.sum() for answer in answers]).reshape(-1, 2)
    n = np.array([len(answer) for answer in answers]).reshape(-1, 2)
    # The reference's sums, found by the tokens of each side.
    rho = np.zeros_like(sums)
    for i, (prompt, *sides) in enumerate(PAIRS):
        for j, side in enumerate(sides):
            place = [(r, s) for r in range(len(rows)) for s in range(1, 5)
                     if tokens[r][segments[r] == s].tolist() == prompt + side]  # fmt: skip
            ((row, number),) = place
            rho[i, j] = reference[row][segments[row] == number][len(prompt) :].sum()
    pairs = preference.Pairs(*sums.T, *rho.T, *n.T)
    for kind in ('dpo', 'ipo', 'orpo'):
        wanted = float(np.mean(preference.PAIR_LOSSES[kind](pairs, beta=BETA)))
        wanted -= 0.5 * np.concatenate(answers[::2]).mean()
        objective = objective_of('preference', model, kind=kind, beta=BETA, sft_weight=0.5)
        given = rows if kind == 'orpo' else np.concatenate([rows, reference.view(np.int32)], 1)
        for n_micro in (1, 2) if kind == 'dpo' else (2,):
            metrics = whole(objective, params, given, n_micro)
            np.testing.assert_allclose(metrics['loss'], wanted, rtol=1e-4)
            assert metrics['pairs'] == len(PAIRS)
            if kind == 'dpo':
                np.testing.assert_allclose(metrics['margin'], BETA * np.mean(pairs.delta), rtol=1e-3)
                np.testing.assert_allclose(metrics['accuracy'], np.mean(pairs.delta > 0), rtol=1e-6)
        if kind == 'dpo':
            with on_mesh({'fsdp': 2, 'context': 2}):
                placed = place_params(model, params)
                on_devices = jax.jit(lambda rows: place_rows(rows, model.config.rules))(given)
                np.testing.assert_allclose(whole(objective, placed, on_devices, 2)['loss'], wanted, rtol=1e-4)


def test_scores_at_the_last_token(model, params):
    _, features = alone(model, params, [(p, side) for p, *sides in PAIRS for side in sides])
    kernel = params['score']['kernel']
    score = (features @ kernel)[:, 0].reshape(-1, 2).T
    margins = [0.5, 0.0, 0.1, 0.7]
    examples = [Example((segment(p, w), segment(p, r)), 0, m) for (p, w, r), m in zip(PAIRS, margins, strict=True)]
    total, n = scores.bradley_terry(*score, np.array(margins), centre=0.1)
    metrics = whole(objective_of('reward', model, centre=0.1), params, rows_of(examples, 'pairs'), 2)
    np.testing.assert_allclose(metrics['loss'], total / n, rtol=1e-4)
    np.testing.assert_allclose(metrics['accuracy'], np.mean(score[0] > score[1]), rtol=1e-6)
    # The first side of each pair as a text with a label.
    labels = np.array([2, 0, 1, 0])
    examples = [Example((segment([], p + w),), 0, float(c)) for (p, w, _), c in zip(PAIRS, labels, strict=True)]
    logits = jnp.asarray(features[::2] @ kernel)
    total, n = scores.class_nll(logits, labels)
    rows = rows_of(examples, 'labelled')
    objective = objective_of('classify', model)
    metrics = whole(objective, params, rows, 2)
    np.testing.assert_allclose(metrics['loss'], total / n, rtol=1e-4)
    np.testing.assert_allclose(metrics['accuracy'], np.mean(np.argmax(logits, 1) == labels), rtol=1e-6)
    sums = jax.jit(objective.eval_sums)(params, rows, None)
    found = objective.eval_metrics({name: np.asarray(value, np.float64) for name, value in sums.items()})
    guess = np.argmax(logits, 1)
    assert found['confusion/a/b'] == sum((labels == 0) & (guess == 1))
    np.testing.assert_allclose(found['loss'], total / n, rtol=1e-4)
    with on_mesh({'fsdp': 2, 'context': 2}):
        placed = place_params(model, params)
        on_devices = jax.jit(lambda rows: place_rows(rows, model.config.rules))(rows)
        np.testing.assert_allclose(whole(objective, placed, on_devices, 2)['loss'], total / n, rtol=1e-4)


def test_metrics_of_classes_that_are_seen_at_different_rates():
    """By hand: recalls 1 and ½, F1 4/5 and 2/3."""
    logits = jnp.array([[2.0, 0, 0], [2, 0, 0], [2, 0, 0], [0, 2, 0]])
    metrics = scores.class_metrics(scores.confusion(logits, jnp.array([0, 0, 1, 1])))
    np.testing.assert_allclose(metrics['balanced_accuracy'], 0.75)
    np.testing.assert_allclose(metrics['f1'], [0.8, 2 / 3, 0], rtol=1e-6)
    np.testing.assert_allclose(metrics['accuracy'], 0.75)


def _squared(pairs, *, beta, gamma):
    return jnp.square(beta * pairs.delta - gamma)


def test_a_loss_of_a_user(model, params):
    """A function of pairs as `kind`; it gets those of its arguments that are options."""
    assert objective_of('preference', model, kind=_squared, gamma=2.0).columns == 5
    examples = [Example((segment(p, w), segment(p, r)), 0) for p, w, r in PAIRS]
    rows = np.concatenate([rows_of(examples, 'pairs'), np.zeros((4, L + 1), np.int32)], 1)
    named = objective_of('preference', model, kind=lambda pairs, *, beta: preference.dpo(pairs, beta=beta))
    metrics = [whole(one, params, rows) for one in (named, objective_of('preference', model))]
    assert metrics[0]['loss'] == metrics[1]['loss']


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'kind': 'dppo'}, "train.objective_options.kind = 'dppo' is not a known part; did you mean 'dpo'"),
        ({'kind': 'kto'}, 'is no loss of pairs but of single answers'),
        ({'kind': 'cdpo'}, 'train.objective_options.smoothing = 0, with which cdpo is dpo'),
        ({'beta': 'big'}, "train.objective_options.beta = 'big' is str; it must be float"),
        ({'smoothing': 0.6}, 'must be at least 0 and below 0.5'),
        ({'betta': 0.2}, "Preference has no such option; did you mean 'beta'"),
    ],
)
def test_options_that_are_wrong(model, options, message):
    with pytest.raises(ConfigError, match=message):
        objective_of('preference', model, **options)
