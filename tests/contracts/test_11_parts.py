"""Contract 11: an empty subclass of a part, given as a callable, equals the part given by name.

Functions are wrapped in another function. Programs are compared as text before they are
compiled: the same program gives the same logits, parameters and updates.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import LLAMA, L, V, tiny_config, tiny_model

from llm_jax import init, metrics
from llm_jax.config import parts, schema
from llm_jax.config.facts import HeadDims
from llm_jax.config.schema import ConfigError
from llm_jax.dist.fit import check_fit
from llm_jax.dist.mesh import AXES
from llm_jax.generate import decode
from llm_jax.nn.attention import ATTENTIONS
from llm_jax.nn.block import BLOCKS, FEED_FORWARDS
from llm_jax.nn.feed_forward import DENSE
from llm_jax.nn.norms import NORMS
from llm_jax.nn.positions import POSITIONS
from llm_jax.nn.transformer import init_params, parameters_of
from llm_jax.ops.attend.choose import kernels
from llm_jax.ops.remat import POLICIES
from llm_jax.train.optimizer import SCHEDULES, Span, decay_mask, make_optimizer, make_schedule
from llm_jax.train.optimizers import RULES

# Every table of parts of a model, and what a part needs besides to be used.
TABLES = {
    'attention': ATTENTIONS, 'feed_forward': FEED_FORWARDS, 'position': POSITIONS, 'norm': NORMS, 'residual': BLOCKS,
    'model__moe__activation': DENSE, 'init': init.SCHEMES,
}  # fmt: skip
WITH = {
    'mha': {'n_kv_heads': 0}, 'mqa': {'n_kv_heads': 0},
    'mla': {'n_kv_heads': 0, 'model__mla__q_rank': 12, 'model__mla__d_value': 24},
    'moe': {'model__moe__n_experts': 4, 'model__moe__d_ff': 40},
    'model__moe__activation': {'feed_forward': 'moe', 'model__moe__n_experts': 4},
}  # fmt: skip
CASES = [(field, name) for field, table in TABLES.items() for name in table]


def own(part):
    """An empty subclass of a class, a function around a function."""
    if isinstance(part, type):
        return type('Own', (part,), {})
    return lambda *args: part(*args)


def both(field, name, **more):
    """The configs with a part by name and as a callable."""
    fixed = LLAMA | {'d_ff': 0, 'norm_bias': True, 'bias': True} | WITH.get(field, {}) | WITH.get(name, {}) | more
    return tiny_config(**fixed | {field: name}), tiny_config(**fixed | {field: own(TABLES[field][name])})


def programs(config, field):
    """What a model is made of, and the text of the programs that a part of this field has a say in."""
    model = tiny_model(config)
    made = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32)))
    params, tokens = made['params'], jax.ShapeDtypeStruct((2, L), jnp.int32)
    if field == 'init':
        return made, [jax.jit(functools.partial(init_params, model)).lower(jax.random.key(0)).as_text()]
    texts = [jax.jit(model.apply).lower({'params': params}, tokens).as_text()]
    if field in ('attention', 'position', 'residual'):  # decoding
        weights = jax.eval_shape(lambda p: decode.prepare(model, p), params)
        caches = jax.eval_shape(lambda: decode.empty_caches(model.config, 2, L))
        one, last = jax.ShapeDtypeStruct((2, 1), jnp.int32), jax.ShapeDtypeStruct((2,), jnp.int32)
        step = jax.jit(functools.partial(decode.forward, model))
        texts.append(step.lower(weights, one, one, caches, last).as_text())
    return made, texts


def misfits(config):
    """What `check_fit` says of a mesh that splits one axis over 7 devices, for each axis."""
    out = []
    for axis in ('fsdp', 'tensor', 'expert'):
        with pytest.raises(ConfigError) as error:
            check_fit(config, dict.fromkeys(AXES, 1) | {'data': 1, axis: 7})
        out.append(str(error.value))
    return out


def facts(config, made):
    """Everything that the library concludes from a part."""
    model = tiny_model(config)
    counts = metrics.count(model.config, made['params'], made['weights'])
    attention = parts.attention(config.model)
    return {
        'counts': (counts, metrics.flops_per_token(model.config, counts, 1000)),
        'widths': (attention.head_dims(config.model), config.model.kv_heads, config.model.ff_size),
        'kernels': [kernels(model.config, platform=platform, length=256) for platform in ('tpu', 'cuda', 'cpu')],
        'misfits': misfits(config),
        'decays': decay_mask((), made['params'], made['weights']),
    }


@pytest.mark.parametrize(('field', 'name'), CASES)
def test_a_part_of_the_model(field, name):
    named, called = both(field, name)
    (made, by_name), (same, by_class) = programs(named, field), programs(called, field)
    assert by_name == by_class
    assert made == same  # shapes, and the `Weight` of every parameter
    assert facts(named, made) == facts(called, same)


@pytest.mark.parametrize('name', ['mla', 'mqa'])
def test_what_a_part_needs_is_checked(name):
    """A width that rope cannot turn, or heads that the part does not have, is the same error."""
    wrong = {'mla': {'model__mla__d_rope': 3}, 'mqa': {'n_kv_heads': 2}}[name]
    messages = []
    for part in (name, own(ATTENTIONS[name])):
        with pytest.raises(ConfigError) as error:
            tiny_config(**LLAMA | {'n_kv_heads': 0, 'attention': part} | wrong)
        messages.append(str(error.value).replace(repr(part), 'PART'))
    assert messages[0] == messages[1]


def test_a_part_that_says_nothing_has_the_defaults():
    class Bare:
        """Neither a subclass nor one fact."""

    class Wide(Bare):
        head_dims = staticmethod(lambda config: HeadDims(24, 48, 6))
        is_gated = staticmethod(lambda config: True)

    config = schema.Model(d_model=384, n_heads=4, attention=Bare, feed_forward=Bare)
    assert parts.attention(config).head_dims(config) == HeadDims(96, 96, 96)
    assert (config.kv_heads, config.ff_size) == (4, 1536)
    config = schema.Model(d_model=384, n_heads=4, attention=Wide, feed_forward=Wide)
    assert config.ff_size == 1024
    # A default that asks for another fact asks the part.
    assert parts.attention(config).attention_products(config, 10) == 4 * (24 + 48) * 10


@pytest.mark.parametrize('name', RULES)
def test_an_optimizer(name):
    config = tiny_config(**LLAMA, model__mup__base_width=16)
    model = tiny_model(config)
    params = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    texts = []
    for rule in (name, own(RULES[name])):
        optimizer = make_optimizer(schema.Optimizer(name=rule), lambda step: 0.1, params, parameters_of(model))
        state = jax.eval_shape(optimizer.init, params)
        texts.append(jax.jit(optimizer.update).lower(params, state, params).as_text())
    assert texts[0] == texts[1]


@pytest.mark.parametrize('name', SCHEDULES)
def test_a_schedule(name):
    """Values, and what is refused: nothing to fall over, no warmup, more steps than the run has."""

    def result(shape, span):
        config = schema.Schedule(name=shape)
        try:
            return np.asarray(jax.vmap(make_schedule(config, 1.0, span))(jnp.arange(span.total))).tolist()
        except ConfigError as error:
            return str(error)

    for span in (Span(40, 5, 8, 0.1), Span(40, 5, 0, 0.1), Span(40, 0, 8, 0.1), Span(10, 5, 8, 0.1), Span(5, 9, 1, 0)):
        assert result(name, span) == result(own(SCHEDULES[name]), span)


def test_a_schedule_without_guards_of_its_own_is_guarded():
    def fall(progress, span):
        return 1 - jnp.clip((progress - 1) / (span.decay / span.total) + 1, 0, 1)

    with pytest.raises(ConfigError, match=r"no finite value everywhere over this run with schedule.decay = '20 %'"):
        make_schedule(schema.Schedule(name=fall), 1.0, Span(100, 10, 0, 0.1))
    with pytest.raises(ConfigError, match=r'and schedule.decay = .20 %. is 95, but the run has only 100'):
        make_schedule(schema.Schedule(name=fall), 1.0, Span(100, 10, 95, 0.1))


@pytest.mark.parametrize('name', POLICIES)
def test_a_remat_policy(name):
    texts = []
    for policy in (name, POLICIES[name]):
        model = tiny_model(tiny_config(**LLAMA, remat=policy))
        params = jax.eval_shape(lambda model=model: init_params(model, jax.random.key(0)))
        loss = lambda params, tokens, model=model: model.apply({'params': params}, tokens).sum()
        texts.append(jax.jit(jax.grad(loss)).lower(params, jnp.zeros((2, L), jnp.int32) % V).as_text())
    assert texts[0] == texts[1]
