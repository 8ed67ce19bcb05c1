"""Update rules against formulas in float64 or optax's own rule, and on meshes against one device."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import LLAMA, on_mesh, place_params, random_params, tiny_config, tiny_model

from llm_jax.config import schema
from llm_jax.init import Weight
from llm_jax.nn.transformer import parameters_of
from llm_jax.train.optimizer import make_optimizer
from llm_jax.train.optimizers import NEWTON_SCHULZ, RULES, orthogonalise

MESHES = [(1, 8, 1), (1, 4, 2), (2, 2, 2)]
SHAPES = {
    'up': {'kernel': (8, 24)},
    'embed': {'embedding': (16, 8)},
    'head': {'kernel': (8, 16)},
    'norm': {'scale': (8,)},
}


def weights(m: float = 1.0) -> dict:
    """One parameter of each class of the paper's table 8, m times as wide as at the base."""
    grown = {'grow_in': m, 'grow_out': m}
    return {
        'up': {'kernel': Weight(('d_model',), ('d_ff',), fan_in=8, fan_out=24, **grown)},
        'embed': {'embedding': Weight(('vocab',), ('d_model',), fan_in=16, fan_out=8, lookup=True, grow_out=m)},
        'head': {'kernel': Weight(('d_model',), ('vocab',), fan_in=8, fan_out=16, grow_in=m)},
        'norm': {'scale': Weight((), ('residual',), fan_in=1, fan_out=8, grow_out=m)},
    }


def normal(rng, *shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


def problem(steps=3, seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda: jax.tree.map(lambda shape: normal(rng, *shape), SHAPES, is_leaf=lambda x: isinstance(x, tuple))
    return draw(), [draw() for _ in range(steps)]


def updates_of(name, params, grads, *, known=None, rate=0.5, **fields):
    """What a rule makes of gradients, one after another, at a constant learning rate."""
    config = schema.Optimizer(name=name, **{'clip': 0.0, 'weight_decay': 0.0} | fields)
    optimizer = make_optimizer(config, lambda step: rate, params, weights() if known is None else known)
    update, state, out = jax.jit(optimizer.update), jax.jit(optimizer.init)(params), []
    for grad in grads:
        step, state = update(grad, state, params)
        out.append(step)
    return out


def newton_schulz(x):
    """The same polynomial of the singular values, by a decomposition in float64."""
    u, s, v = np.linalg.svd(np.asarray(x, np.float64), full_matrices=False)
    s = s / np.linalg.norm(s)
    for _ in range(5):
        a, b, c = NEWTON_SCHULZ
        s = a * s + b * s**3 + c * s**5
    return u @ np.diag(s) @ v


# --- Against formulas ------------------------------------------------------------------


@pytest.mark.parametrize(('n_in', 'n_out'), [(12, 12), (8, 24), (24, 8)])
def test_orthogonalise(n_in, n_out):
    x = normal(np.random.default_rng(0), n_in, n_out)
    y = np.asarray(orthogonalise(x, Weight(('d_model',), ('d_ff',), n_in, n_out)))
    np.testing.assert_allclose(y, newton_schulz(x), atol=2e-5)
    if n_in != n_out:  # a square matrix has singular values near 0, which five iterations do not bring up
        singular = np.linalg.svd(y)[1]
        assert singular.min() > 0.65 and singular.max() < 1.25


def test_orthogonalise_takes_stacks_apart_and_sides_of_many_dimensions_together():
    x = normal(np.random.default_rng(0), 3, 2, 4, 5, 6)  # layers, experts, heads, width of a head, D
    y = np.asarray(orthogonalise(x, Weight(('heads', 'd_head'), ('d_model',), fan_in=20, fan_out=6)))
    for i in range(3):
        for j in range(2):
            np.testing.assert_allclose(y[i, j].reshape(20, 6), newton_schulz(x[i, j].reshape(20, 6)), atol=2e-5)
    assert not np.any(orthogonalise(jnp.zeros((4, 4)), Weight(('d_model',), ('d_ff',), 4, 4)))


@pytest.mark.parametrize('nesterov', [False, True])
def test_muon(nesterov):
    """Matrices: Jordan et al. 2024, of the size of Liu et al. 2025; all else: Adam."""
    params, grads = problem()
    fields = {'weight_decay': 0.1, 'momentum': 0.8, 'nesterov': nesterov}
    by_adam = updates_of('adamw', params, grads, **fields)
    total = 0.0
    for got, grad, other in zip(updates_of('muon', params, grads, **fields), grads, by_adam, strict=True):
        g = np.asarray(grad['up']['kernel'], np.float64)
        total = 0.8 * total + g
        direction = newton_schulz(0.8 * total + g if nesterov else total)
        expected = -0.5 * (0.2 * np.sqrt(24) * direction + 0.1 * np.asarray(params['up']['kernel']))
        np.testing.assert_allclose(got['up']['kernel'], expected, atol=1e-4)
        for name in ('embed', 'head', 'norm'):
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got[name], other[name])


@pytest.mark.parametrize('nesterov', [False, True])
def test_sgd(nesterov):
    """Sutskever et al. 2013, in the form v = μ v + g, with the step g + μ v of Nesterov's momentum."""
    params, grads = problem()
    total = 0.0
    for got, grad in zip(updates_of('sgd', params, grads, momentum=0.8, nesterov=nesterov), grads, strict=True):
        g = np.asarray(grad['head']['kernel'], np.float64)
        total = 0.8 * total + g
        np.testing.assert_allclose(got['head']['kernel'], -0.5 * (g + 0.8 * total if nesterov else total), rtol=1e-4)


def test_lion():
    """Against optax's, whose mask leaves the scale of the norm alone as well."""
    params, grads = problem()
    decays = jax.tree.map(lambda p: p.ndim == 2, params)
    reference = optax.lion(0.5, 0.9, 0.95, weight_decay=0.1, mask=decays)
    state = reference.init(params)
    for got, grad in zip(updates_of('lion', params, grads, weight_decay=0.1), grads, strict=True):
        expected, state = reference.update(grad, state, params)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got, expected)


def test_adafactor():
    """Against optax's parts of it, as long as the decay is below its ceiling."""
    params, grads = problem(steps=4)
    reference = optax.chain(
        optax.scale_by_factored_rms(min_dim_size_to_factor=1), optax.clip_by_block_rms(1.0), optax.scale(-0.5)
    )
    state = reference.init(params)
    for got, grad in zip(updates_of('adafactor', params, grads), grads, strict=True):
        expected, state = reference.update(grad, state, params)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), got, expected)


@pytest.mark.parametrize('name', RULES)
def test_a_stack_is_so_many_matrices(name):
    """Layers that are scanned learn as layers that are not, experts as matrices of their own."""
    problems = [problem(seed=0), problem(seed=1)]
    stack = lambda *trees: jax.tree.map(lambda *xs: jnp.stack(xs), *trees)
    params, grads = zip(*problems, strict=True)
    stacked = updates_of(name, stack(*params), [stack(*pair) for pair in zip(*grads, strict=True)])
    for i in range(2):
        for a, b in zip(stacked, updates_of(name, *problems[i]), strict=True):
            jax.tree.map(lambda x, y, i=i: np.testing.assert_allclose(x[i], y, rtol=1e-4, atol=1e-5), a, b)


# --- muP -------------------------------------------------------------------------------

M = 4.0
# Yang et al. 2022, table 8, and for Muon the spectral condition: the spectral norm of a
# matrix's update is the same at every width.
TABLE = {
    'adamw': {'up': 1 / M, 'embed': 1, 'head': 1, 'norm': 1},
    'lion': {'up': 1 / M, 'embed': 1, 'head': 1, 'norm': 1},
    'adafactor': {'up': 1 / M, 'embed': 1, 'head': 1, 'norm': 1},
    'sgd': {'up': 1, 'embed': M, 'head': M, 'norm': M},
    'muon': {'up': M**-0.5, 'embed': 1, 'head': 1, 'norm': 1},
}


@pytest.mark.parametrize('name', RULES)
def test_learning_rates_of_a_wider_model(name):
    params, grads = problem()
    plain, wide = (updates_of(name, params, grads, known=known) for known in (weights(), weights(M)))
    for a, b in zip(plain, wide, strict=True):
        for part, factor in TABLE[name].items():
            jax.tree.map(lambda x, y, f=factor: np.testing.assert_allclose(f * x, y, rtol=1e-5), a[part], b[part])


@pytest.mark.parametrize('name', RULES)
def test_decay_is_that_of_the_base_width(name):
    params, grads = problem()
    zeros = [jax.tree.map(jnp.zeros_like, g) for g in grads]
    for got in updates_of(name, params, zeros, known=weights(M), weight_decay=0.1):
        for part in SHAPES:
            share = 0.0 if part == 'norm' else 0.5 * 0.1
            jax.tree.map(
                lambda u, p, s=share: np.testing.assert_allclose(u, -s * p, rtol=1e-6), got[part], params[part]
            )


# --- Any model, any mesh ---------------------------------------------------------------


@pytest.mark.parametrize('name', RULES)
def test_what_is_not_trained_stays(name):
    """Whatever its gradient and the mask say: the router's balance has a rule of its own."""
    params = {'router': {'balance': jnp.ones(4), 'scale': jnp.ones(4)}}
    known = {'router': {'balance': Weight((), ('experts',), 1, 4, trained=False)}}  # and nothing of the scale
    fields = {'weight_decay': 0.1, 'decay_mask': (('.*', True),)}
    for got in updates_of(name, params, [params, params], known=known, **fields):
        assert not np.any(got['router']['balance'])
        assert np.all(got['router']['scale'] < 0)


@pytest.fixture(scope='module')
def mixture():
    model = tiny_model(tiny_config(**LLAMA | {'feed_forward': 'moe', 'bias': True, 'model__moe__balance': 'bias'}))
    return model, random_params(model), [random_params(model, seed) for seed in (1, 2)]


@pytest.mark.parametrize('name', RULES)
@pytest.mark.parametrize('sizes', MESHES, ids=str)
def test_same_update_on_every_mesh(name, sizes, mixture):
    """And the state keeps its types, sharding included: its buffers can be donated."""
    model, params, grads = mixture
    known = parameters_of(model)
    expected = updates_of(name, jax.tree.map(jnp.asarray, params), grads, known=known, weight_decay=0.1)
    with on_mesh(sizes):
        params, *grads = (place_params(model, tree) for tree in (params, *grads))
        config = schema.Optimizer(name=name, weight_decay=0.1, clip=0.0)
        optimizer = make_optimizer(config, lambda step: 0.5, params, known)
        state = jax.jit(optimizer.init)(params)
        types = jax.tree.map(jax.typeof, (params, state))
        for grad, want in zip(grads, expected, strict=True):
            updates, state = jax.jit(optimizer.update)(grad, state, params)
            assert jax.tree.map(jax.typeof, (updates, state)) == types
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), updates, want)
        named = [(jax.tree_util.keystr(path), x) for path, x in jax.tree_util.tree_leaves_with_path(state)]
        # Biases of experts are split over `expert` alone.
        matrices = [x for path, x in named if x.size >= 1024 and 'bias' not in path]
        assert name == 'adafactor' or (matrices and all(any(jax.typeof(x).sharding.spec) for x in matrices))
