import jax
import numpy as np
import pytest
from tiny import BOS, GPT2, LLAMA, on_mesh, packed_tokens, tiny_config, tiny_model

from llm_jax.init import SCHEMES, attention_scale
from llm_jax.nn.transformer import init_params, parameters_of, weights_of
from llm_jax.train.optimizer import Span, make_optimizer, make_schedule
from llm_jax.train.optimizers import RULES, is_weight
from llm_jax.train.state import init_state
from llm_jax.train.step import make_loss, make_train_step

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


# --- Schemes ---------------------------------------------------------------------------

# Everything at once: experts lead a dimension, layers another; an untied head, a router.
MOE = LLAMA | {'feed_forward': 'moe', 'model__moe__n_experts': 4, 'model__moe__d_ff': 96}
# Of each kernel: what it is, and the fans [in, out] of one matrix, in multiples of d_model = 64.
KERNELS = {
    'embed/embedding': ('lookup', 1, 64), 'unembed/kernel': ('readout', 64, 64), 'router/kernel': ('readout', 64, 4),
    'q/kernel': ('hidden', 64, 64), 'k/kernel': ('hidden', 64, 32), 'v/kernel': ('hidden', 64, 32),
    'out/kernel': ('residual', 64, 64), 'gate/kernel': ('hidden', 64, 96), 'up/kernel': ('hidden', 64, 96),
    'down/kernel': ('residual', 96, 64),
}  # fmt: skip
DEPTH = (2 * N_LAYERS) ** -0.5


def deep(kind):
    return DEPTH if kind == 'residual' else 1


STANDARD_DEVIATIONS = {
    'gpt2': lambda kind, i, o: STD * deep(kind),
    'normal': lambda kind, i, o: STD,
    'xavier': lambda kind, i, o: STD if kind == 'lookup' else (2 / (i + o)) ** 0.5 * deep(kind),
    'lecun': lambda kind, i, o: STD if kind == 'lookup' else i**-0.5 * deep(kind),
    'orthogonal': lambda kind, i, o: STD if kind == 'lookup' else max(i, o) ** -0.5 * deep(kind),
    'zero_residual': lambda kind, i, o: 0 if kind == 'residual' else STD,
    'small_embedding': lambda kind, i, o: 1e-4 if kind == 'lookup' else STD * deep(kind),
}  # fmt: skip


def drawn(**fields):
    config = tiny_config(**MOE | {'d_model': 64, 'n_layers': N_LAYERS, 'init_std': STD} | fields)
    return leaves(jax.jit(lambda key: init_params(tiny_model(config), key))(jax.random.key(0)))


def kernels(params):
    for name, x in params:
        if not name.endswith('scale'):
            yield name, x, *KERNELS['/'.join(name.split('/')[-2:])]


@pytest.mark.parametrize('scheme', SCHEMES)
def test_standard_deviations_of_every_scheme(scheme):
    for name, x, *what in kernels(drawn(init=scheme)):
        std = STANDARD_DEVIATIONS[scheme](*what)
        np.testing.assert_allclose(x.std(), std, rtol=4 / np.sqrt(x.size), err_msg=name)


def test_orthogonal(m=2):
    """W Wᵀ or Wᵀ W is the identity for each layer and expert; under muP at every width but for readouts."""
    wide = {'d_model': 64 * m, 'n_heads': 4 * m, 'n_kv_heads': 2 * m, 'model__moe__d_ff': 96 * m}
    for name, x, kind, fan_in, fan_out in kernels(drawn(init='orthogonal', model__mup__base_width=64, **wide)):
        if kind == 'lookup':
            continue
        sides = (fan_in * m, fan_out if kind == 'readout' else fan_out * m)
        gain = deep(kind) * (max(sides) / max(fan_in, fan_out) if kind == 'readout' else 1) ** 0.5
        for w in x.reshape(-1, *sides):
            small = w @ w.T if sides[0] <= sides[1] else w.T @ w
            np.testing.assert_allclose(small, gain**2 * np.eye(len(small)), atol=2e-5, err_msg=name)


def test_layers_and_experts_are_drawn_apart():
    for scheme in ('gpt2', 'orthogonal'):
        x = next(x for name, x in drawn(init=scheme) if name.endswith('up/kernel'))
        flat = x.reshape(N_LAYERS * 4, -1)[:, :512]
        assert np.abs(np.corrcoef(flat) - np.eye(len(flat))).max() < 0.25


# --- muP -------------------------------------------------------------------------------


@pytest.mark.parametrize('scheme', SCHEMES)
def test_standard_deviations_under_mup(scheme):
    """Table 8 of Yang et al. 2022: σ/√m for hidden matrices, that of the base width for all else."""
    wide = {'d_model': 128, 'n_heads': 8, 'n_kv_heads': 4, 'model__moe__d_ff': 192}
    for name, x, *what in kernels(drawn(init=scheme, model__mup__base_width=64, **wide)):
        std = STANDARD_DEVIATIONS[scheme](*what) * (0.5**0.5 if what[0] in ('hidden', 'residual') else 1)
        np.testing.assert_allclose(x.std(), std, rtol=4 / np.sqrt(x.size), err_msg=name)


def described(**fields):
    model = tiny_model(tiny_config(**MOE | {'d_model': 128, 'model__mup__base_width': 32} | fields))
    flat = jax.tree_util.tree_leaves_with_path(parameters_of(model), is_leaf=is_weight)
    return {jax.tree_util.keystr(path, simple=True, separator='/'): weight for path, weight in flat}


def test_what_each_parameter_is():
    """Factors of a model four times as wide: Adam's rate, that of plain gradients, the product."""
    readout, hidden, rest = ('readout', 1, 4, 0.25), ('hidden', 0.25, 1, 1), ('embedding', 1, 4, 1)
    of = lambda weight: (weight.role, weight.learning_rate, weight.sgd_learning_rate, weight.forward)
    for name, weight in described(bias=True, n_heads=16, n_kv_heads=8).items():
        last, leaf = name.split('/')[-2:]
        if leaf in ('embedding', 'scale') or (leaf == 'bias' and last not in ('router', 'unembed')):
            assert of(weight) == rest, name
        elif leaf == 'bias':
            assert of(weight) == ('embedding', 1, 1, 1), name
        else:
            assert of(weight) == (readout if last in ('router', 'unembed') else hidden), name


def test_maps_to_a_fixed_width_are_readouts():
    """What all heads share, as long as heads have a fixed width: keys of MQA, the rotated key of MLA."""
    role = lambda name, **fields: described(**fields)[f'layers/attention/{name}/kernel'].role
    mqa, mla = {'attention': 'mqa', 'n_kv_heads': 0}, {'attention': 'mla', 'n_kv_heads': 0}
    assert role('k', **mqa) == role('v', **mqa) == role('k_rope', **mla) == 'readout'
    assert role('q', **mqa) == role('k_up', **mla) == 'hidden'
    wider = {'model__mup__base_head': 8}
    assert role('k', **mqa | wider) == role('k_rope', **mla | wider) == 'hidden'


def test_scale_of_attention():
    """Yang et al. 2022, definition 4.1: 1/K, and at the base width what it is without muP."""
    scale = lambda **fields: attention_scale(tiny_config(n_heads=2, **fields).model, 16)
    assert (
        scale() == scale(model__mup__base_width=8) == scale(model__mup__base_width=8, model__mup__base_head=16) == 0.25
    )
    assert scale(model__mup__base_width=8, model__mup__base_head=4) == pytest.approx(4**0.5 / 16)
    assert scale(attention_scale=0.5) == 0.5
    assert scale(attention_scale=0.5, model__mup__base_width=8, model__mup__base_head=4) == 0.125


def one_step(run, optimizer, **fields):
    """The program of a step, or the state after it."""
    config = tiny_config(**MOE | {'optimizer__name': optimizer} | fields)
    model = tiny_model(config)
    schedule = make_schedule(config.schedule, 0.01, Span(10, 2, 0, 0.1))
    shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    rule = make_optimizer(config.optimizer, schedule, shapes, parameters_of(model))
    init = jax.jit(lambda key: init_state(model, rule, key, with_ema=False))
    step = jax.jit(make_train_step(model, config, rule, schedule, bos_id=BOS))
    if run:
        return jax.device_get(step(init(jax.random.key(0)), packed_tokens(8)))
    key = jax.random.key(0)
    return init.lower(key).as_text(), step.lower(jax.eval_shape(init, key), packed_tokens(8)).as_text()


BASE = {'model__mup__base_width': 32, 'model__mup__base_head': 8}


@pytest.mark.parametrize('optimizer', RULES)
def test_at_the_base_width_mup_is_the_same_program(optimizer):
    assert one_step(False, optimizer) == one_step(False, optimizer, **BASE)


def test_at_the_base_width_mup_is_bit_equal():
    jax.tree.map(np.testing.assert_array_equal, one_step(True, 'adamw'), one_step(True, 'adamw', **BASE))


def test_weights_of_has_the_kernels_alone():
    model = tiny_model(tiny_config(**MOE, bias=True))
    names = [path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(weights_of(model), is_leaf=is_weight)]
    assert set(names) == {'kernel', 'embedding'}
