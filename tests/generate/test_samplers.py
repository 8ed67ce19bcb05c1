import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.config.schema import ConfigError
from llm_jax.generate import samplers
from llm_jax.generate.samplers import Seen
from llm_jax.generate.settings import MAX_BIAS, Sampler, pack_settings

V = 12
LOGITS = np.random.default_rng(0).normal(scale=2.0, size=V).astype(np.float32)
SAMPLERS = [
    Sampler(),
    Sampler(0.5),
    Sampler(2.0),
    Sampler(top_k=1),
    Sampler(top_k=4),
    Sampler(top_k=100),
    Sampler(top_p=0.5),
    Sampler(top_p=0.9),
    Sampler(top_p=1e-6),
    Sampler(min_p=0.2),
    Sampler(min_p=1.0),
    Sampler(typical_p=0.3),
    Sampler(typical_p=0.95),
    Sampler(0.7, top_k=6, top_p=0.9),
    Sampler(1.5, top_k=3, top_p=0.6),
    Sampler(1.3, 8, 0.95, 0.05, 0.8, 1.2, 0.3, -0.4, {0: 2.5, 5: -np.inf, 11: -1.0}),
]


def reference(logits, sampler, prompt=(), output=()):
    """The distribution that should be drawn from, float64[V], one step after another, with sorted lists."""
    logits = np.array(logits, np.float64)
    for token, bias in sampler.logit_bias.items():
        logits[token] += bias
    for token in {*prompt, *output}:
        factor = sampler.repetition_penalty
        logits[token] = logits[token] / factor if logits[token] > 0 else logits[token] * factor
    for token in set(output):
        logits[token] -= sampler.frequency_penalty * list(output).count(token) + sampler.presence_penalty
    logits /= sampler.temperature
    if 0 < sampler.top_k < len(logits):
        logits[logits < np.sort(logits)[-sampler.top_k]] = -np.inf
    softmax = lambda x: np.exp(x - x.max()) / np.exp(x - x.max()).sum()
    if sampler.top_p < 1:
        logits[~up_to(softmax(logits), -softmax(logits), sampler.top_p)] = -np.inf
    probs = softmax(logits)
    logits[probs < sampler.min_p * probs.max()] = -np.inf
    if sampler.typical_p < 1:
        probs = softmax(logits)
        with np.errstate(divide='ignore', invalid='ignore'):
            surprise = -np.log(probs)
            entropy = np.nansum(probs * surprise)
        logits[~up_to(probs, np.abs(surprise - entropy), sampler.typical_p)] = -np.inf
    return softmax(logits)


def up_to(probs, cost, mass):
    """The cheapest tokens that together reach the mass, with all that cost as much as the last."""
    kept, total, last = np.zeros(len(probs), bool), 0.0, np.inf
    for token in np.argsort(cost, kind='stable'):
        if total >= mass and cost[token] > last + 1e-6:
            break
        kept[token], total, last = True, total + probs[token], cost[token]
    return kept & (probs > 0)


def seen(rows, vocab=V):
    """`Seen` of [(prompt, output), ...]."""
    prompt, counts = np.zeros((len(rows), vocab), bool), np.zeros((len(rows), vocab), np.int32)
    for row, (before, after) in enumerate(rows):
        prompt[row, list(before)] = True
        np.add.at(counts[row], list(after), 1)
    return Seen(jnp.asarray(prompt), jnp.asarray(counts))


@jax.jit
def distribution(logits, settings, seen):
    changed = samplers.penalise(samplers.add_bias(logits, settings), settings, seen)
    return jax.nn.softmax(samplers.cut(samplers.scale(changed, settings), settings))


sample = jax.jit(lambda *args: samplers.sample(*args)[0])


def test_rows_of_all_settings_have_the_reference_distribution():
    """One program for 1,000 rows, which all differ in all settings; supports are equal, not just close."""
    rng, vocab, n = np.random.default_rng(1), 200, 1000
    logits = rng.normal(scale=3.0, size=(n, vocab)).astype(np.float32)
    often = lambda value, neutral: value if rng.random() < 0.5 else neutral
    rows, history = [], []
    for _ in range(n):
        bias = {int(i): float(rng.normal(scale=3)) for i in rng.integers(0, vocab, 5)}
        rows.append(
            Sampler(
                temperature=float(rng.uniform(0.3, 3)), top_k=often(int(rng.integers(1, vocab + 5)), 0),
                top_p=often(float(rng.uniform(0.05, 1)), 1.0), min_p=often(float(rng.uniform(0, 0.3)), 0.0),
                typical_p=often(float(rng.uniform(0.1, 1)), 1.0), repetition_penalty=often(rng.uniform(0.7, 1.6), 1.0),
                frequency_penalty=often(rng.uniform(-1, 1), 0.0), presence_penalty=often(rng.uniform(-1, 1), 0.0),
                logit_bias=often(bias, {}),
            )
        )  # fmt: skip
        history.append((rng.integers(0, vocab, 4).tolist(), rng.integers(0, 9, 6).tolist()))
    drawn = np.asarray(distribution(logits, pack_settings(rows), seen(history, vocab)))
    differ = 0
    for row in range(n):
        expected = reference(logits[row], rows[row], *history[row])
        if ((drawn[row] > 0) != (expected > 0)).any():
            differ += 1  # a sum that reaches its target within the rounding of float32
            continue
        np.testing.assert_allclose(drawn[row], expected, atol=3e-6)
    assert differ <= 2


@pytest.mark.parametrize('sampler', SAMPLERS, ids=str)
def test_drawn_from_the_reference_distribution(sampler):
    n, history = 20_000, ([1, 2], [3, 3, 4])
    keys = jax.random.split(jax.random.key(1), n)
    tokens = sample(jnp.broadcast_to(LOGITS, (n, V)), pack_settings([sampler] * n, 8), keys, seen([history] * n))
    assert tokens.dtype == jnp.int32
    counts, expected = np.bincount(tokens, minlength=V), n * reference(LOGITS, sampler, *history)
    assert counts[expected == 0].sum() == 0
    # Chi-square with at most V - 1 degrees of freedom; 40 is past its 0.99997 quantile.
    likely = expected > 5
    assert (np.square(counts - expected)[likely] / expected[likely]).sum() < 40


def test_log_probabilities_are_those_of_the_distribution():
    keys, n = jax.random.split(jax.random.key(2), 4 * len(SAMPLERS)), 4 * len(SAMPLERS)
    rows, history = [*SAMPLERS, *SAMPLERS, *SAMPLERS, *SAMPLERS], seen([([1, 2], [3, 3])] * n)
    logits = np.random.default_rng(4).normal(scale=2, size=(n, V)).astype(np.float32)
    tokens, log_probs = jax.jit(samplers.sample)(logits, pack_settings(rows), keys, history)
    for i, sampler in enumerate(rows):
        if sampler.temperature == 0:
            assert log_probs[i] == 0
        else:
            probs = reference(logits[i], sampler, [1, 2], [3, 3])
            np.testing.assert_allclose(np.exp(log_probs[i]), probs[tokens[i]], rtol=1e-4)


def kept(probs, sampler):
    out = distribution(jnp.log(jnp.array([probs])), pack_settings([sampler]), seen([((), ())], len(probs)))
    return {i: round(float(p), 3) for i, p in enumerate(out[0]) if p > 0}


def test_cuts_come_after_the_temperature():
    probs = np.exp([3.0, 2.0, 1.0])
    assert kept(probs, Sampler(0.5, top_p=0.8)) == {0: 1.0}
    assert kept(probs, Sampler(2.0, min_p=0.2)) == {0: 0.506, 1: 0.307, 2: 0.186}


@pytest.mark.parametrize(
    'probs, options, tokens',
    [
        ([0.5, 0.25, 0.25], {'top_p': 0.5}, {0}),  # reached, not crossed
        ([0.5, 0.25, 0.125, 0.125], {'top_p': 0.51}, {0, 1}),  # the one that crosses is in
        ([0.4, 0.2, 0.2, 0.2], {'top_p': 0.5}, {0, 1, 2, 3}),  # ties stay together
        ([0.4, 0.2, 0.2, 0.2], {'top_k': 2}, {0, 1, 2, 3}),
        ([0.5, 0.25, 0.125, 0.125], {'typical_p': 0.2}, {1}),  # the likeliest may be cut
        ([0.5, 0.25, 0.125, 0.125], {'typical_p': 0.5}, {0, 1}),
    ],
)
def test_edges_of_the_cuts(probs, options, tokens):
    assert set(kept(probs, Sampler(**options))) == tokens


def test_penalties():
    settings = pack_settings([Sampler(repetition_penalty=1.2), Sampler(frequency_penalty=0.5, presence_penalty=1.0)])
    logits = jnp.array([[2.0, -1.0, 0.5]] * 2)
    out = samplers.penalise(logits, settings, seen([([0], [1, 1]), ([1], [0, 0, 2])], 3))
    np.testing.assert_allclose(out, [[2 / 1.2, -1.2, 0.5], [0.0, -1.0, -1.0]], rtol=1e-6)


def test_greedy_takes_the_first_of_the_likeliest_of_the_changed_logits():
    logits = jnp.array([[0.0, 2.0, 2.0], [-jnp.inf, -5.0, -jnp.inf], [1.0, 0.9, 0.0], [1.0, 0.9, 0.0]])
    rows = [Sampler(0), Sampler(1e-30), Sampler(0, logit_bias={0: -1.0}), Sampler(0, repetition_penalty=2.0)]
    keys = jax.random.split(jax.random.key(0), 4)
    tokens = sample(logits, pack_settings(rows), keys, seen([((), ())] * 3 + [([0], ())], 3))
    assert tokens.tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize('sampler', [Sampler(), Sampler(top_k=3), Sampler(top_p=0.99), Sampler(0.0), Sampler(1e-40)])
def test_masked_tokens_are_never_drawn(sampler):
    logits = jnp.full((1000, V), -jnp.inf).at[:, 5].set(1.0).at[:, 7].set(1.5)
    keys = jax.random.split(jax.random.key(0), 1000)
    tokens = sample(logits, pack_settings([sampler] * 1000, 8), keys, seen([((), ())] * 1000))
    assert set(tokens.tolist()) <= {5, 7}


def test_a_row_depends_on_its_own_settings_and_key_alone():
    keys = jax.random.split(jax.random.key(3), len(SAMPLERS))
    logits = np.random.default_rng(1).normal(size=(len(SAMPLERS), V)).astype(np.float32)
    history = seen([([1, 2], [3, 3])] * len(SAMPLERS))
    together = sample(logits, pack_settings(SAMPLERS), keys, history)
    one = lambda x, i: jax.tree.map(lambda leaf: leaf[i : i + 1], x)
    alone = [
        int(sample(logits[i : i + 1], pack_settings([sampler]), keys[i : i + 1], one(history, i))[0])
        for i, sampler in enumerate(SAMPLERS)
    ]
    assert together.tolist() == alone


@pytest.mark.parametrize(
    'field, value',
    [
        ('temperature', -0.1), ('temperature', float('nan')), ('temperature', float('inf')), ('top_k', -1),
        ('top_k', 1.5), ('top_p', 0), ('top_p', 1.01), ('top_p', float('nan')), ('min_p', -0.1), ('min_p', 2),
        ('typical_p', 0), ('repetition_penalty', 0), ('repetition_penalty', float('nan')),
        ('frequency_penalty', float('inf')), ('presence_penalty', float('nan')),
    ],
)  # fmt: skip
def test_mistakes(field, value):
    with pytest.raises(ConfigError, match=f'{field} = {value}'):
        Sampler(**{field: value})


@pytest.mark.parametrize('bias', [{-1: 0.0}, {3: float('nan')}, {3: float('inf')}])
def test_biases_that_are_none(bias):
    with pytest.raises(ConfigError, match='logit_bias = '):
        Sampler(logit_bias=bias)


def test_too_many_biases():
    with pytest.raises(ConfigError, match=f'logit_bias has {MAX_BIAS + 1} ids; {MAX_BIAS} are the most'):
        pack_settings([Sampler(logit_bias=dict.fromkeys(range(MAX_BIAS + 1), 1.0))])
