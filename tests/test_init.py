import jax
import numpy as np
import pytest
from tiny import BOS, GPT2, LLAMA, on_mesh, packed_tokens, tiny_config, tiny_model

from llm_jax.nn.transformer import init_params
from llm_jax.train.step import make_loss

N_LAYERS, STD = 3, 0.05


@pytest.fixture(scope='module', params=['gpt2', 'llama'])
def fresh(request):
    family = {'gpt2': GPT2, 'llama': LLAMA}[request.param]
    config = tiny_config(**family, d_model=64, n_layers=N_LAYERS, init_std=STD)
    return config, jax.jit(lambda key: init_params(tiny_model(config), key))(jax.random.key(0))


def leaves(params):
    return [
        (jax.tree_util.keystr(path, simple=True, separator='/'), np.asarray(leaf))
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    ]


def test_standard_deviations(fresh):
    """Radford et al. 2019, §2.3: what writes to the residual stream is smaller by 1/√(2·layers)."""
    for name, x in leaves(fresh[1]):
        if name.endswith('bias'):
            assert np.all(x == 0)
        elif name.endswith('scale'):
            assert np.all(x == 1)
        else:
            std = STD / np.sqrt(2 * N_LAYERS) if name.endswith(('out/kernel', 'down/kernel')) else STD
            error = std / np.sqrt(x.size)  # of a mean; of a standard deviation it is that over √2
            assert abs(x.mean()) < 4 * error, name
            assert abs(x.std() - std) < 4 * error, name
            assert abs((np.abs(x) < std).mean() - 0.683) < 0.05, name  # normal, not uniform


def test_layers_and_parts_differ(fresh):
    arrays = [x for name, x in leaves(fresh[1]) if name.endswith('kernel')]
    layers = [x[i].ravel()[:64] for x in arrays if len(x) == N_LAYERS for i in range(N_LAYERS)]
    assert np.abs(np.corrcoef(layers) - np.eye(len(layers))).max() < 0.6


def test_first_loss_is_that_of_guessing(fresh):
    config, params = fresh
    loss = jax.jit(make_loss(tiny_model(config), config, bos_id=BOS))
    _, sums = loss(params, packed_tokens(8))
    # Logits of variance D·std² raise the mean of log Z by half of that.
    assert abs(sums['nll'] / sums['weight'] - (np.log(64) + 64 * STD**2 / 2)) < 0.12


def test_same_numbers_on_every_mesh(fresh):
    config, params = fresh
    with on_mesh((2, 2, 2)):
        split = jax.jit(lambda key: init_params(tiny_model(config), key))(jax.random.key(0))
    for (name, a), (_, b) in zip(leaves(params), leaves(split), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8, err_msg=name)
