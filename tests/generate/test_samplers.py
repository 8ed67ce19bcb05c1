import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.config.schema import ConfigError
from llm_jax.generate.samplers import Sampler

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
    Sampler(0.7, top_k=6, top_p=0.9),
    Sampler(1.5, top_k=3, top_p=0.6),
]


def reference(logits, sampler):
    """The distribution that should be drawn from, float64[V], one token after another."""
    probs = np.exp(np.asarray(logits, np.float64) / sampler.temperature)
    order = sorted(range(len(probs)), key=lambda token: -probs[token])
    order = order[: sampler.top_k or None]
    total, kept, mass = sum(probs[token] for token in order), [], 0.0
    for token in order:
        if mass >= sampler.top_p and sampler.top_p < 1:  # a sum of 1 may be reached early, by rounding
            break
        kept.append(token)
        mass += probs[token] / total
    out = np.zeros(len(probs))
    out[kept] = probs[kept] / probs[kept].sum()
    return out


@pytest.mark.parametrize('sampler', SAMPLERS, ids=str)
def test_drawn_from_the_reference_distribution(sampler):
    n = 20_000
    keys = jax.random.split(jax.random.key(1), n)
    tokens = jax.jit(sampler)(jnp.broadcast_to(LOGITS, (n, V)), keys)
    assert tokens.dtype == jnp.int32
    counts, expected = np.bincount(tokens, minlength=V), n * reference(LOGITS, sampler)
    assert counts[expected == 0].sum() == 0
    # Chi-square with at most V - 1 degrees of freedom; 40 is past its 0.99997 quantile.
    likely = expected > 5
    assert (np.square(counts - expected)[likely] / expected[likely]).sum() < 40


@pytest.mark.parametrize('sampler', SAMPLERS, ids=str)
@pytest.mark.parametrize('size', [3, 1000])
def test_support_is_exact(sampler, size):
    logits = np.random.default_rng(size).normal(scale=3.0, size=(5, size)).astype(np.float32)
    kept, ids = jax.jit(sampler.candidates)(logits)
    for row in range(5):
        tokens = np.flatnonzero(np.isfinite(kept[row]))
        tokens = set(tokens if ids is None else np.asarray(ids)[row][tokens])
        assert tokens == set(np.flatnonzero(reference(logits[row], sampler)))


def test_nucleus_includes_the_token_that_crosses():
    logits = jnp.log(jnp.array([[0.5, 0.25, 0.125, 0.125]]))
    for top_p, n in ((0.25, 1), (0.5, 1), (0.51, 2), (0.75, 2), (0.76, 4), (0.99, 4)):  # the last two are tied
        assert np.isfinite(jax.jit(Sampler(top_p=top_p).candidates)(logits)[0]).sum() == n


def test_greedy_takes_the_first_of_the_likeliest():
    logits = jnp.array([[0.0, 2.0, 2.0], [-jnp.inf, -5.0, -jnp.inf]])
    keys = jax.random.split(jax.random.key(0), 2)
    assert Sampler(0)(logits, keys).tolist() == [1, 1]
    assert Sampler(1e-30)(logits[1:], keys[1:]).tolist() == [1]


@pytest.mark.parametrize('sampler', [Sampler(), Sampler(top_k=3), Sampler(top_p=0.99), Sampler(0.0), Sampler(1e-40)])
def test_masked_tokens_are_never_drawn(sampler):
    logits = jnp.full((1000, V), -jnp.inf).at[:, 5].set(1.0).at[:, 7].set(1.5)
    tokens = jax.jit(sampler)(logits, jax.random.split(jax.random.key(0), 1000))
    assert set(tokens.tolist()) <= {5, 7}


def test_a_row_depends_on_its_own_key_alone():
    keys = jax.random.split(jax.random.key(3), 8)
    rows = np.random.default_rng(1).normal(size=(8, 50))
    draw = jax.jit(Sampler(top_k=20, top_p=0.9))
    together = draw(rows, keys)
    alone = [int(draw(rows[i : i + 1], keys[i : i + 1])[0]) for i in range(8)]
    assert together.tolist() == alone


@pytest.mark.parametrize(
    'field, value',
    [
        ('temperature', -0.1), ('temperature', float('nan')), ('temperature', float('inf')), ('top_k', -1),
        ('top_p', 0), ('top_p', 1.01), ('top_p', float('nan')),
    ],
)  # fmt: skip
def test_mistakes(field, value):
    with pytest.raises(ConfigError, match=f'{field} = {value}'):
        Sampler(**{field: value})
