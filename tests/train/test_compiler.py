"""What the compiler is told, and what it says to it."""

import dataclasses

import jax
import pytest

from llm_jax import config as config_lib
from llm_jax.config.schema import ConfigError
from llm_jax.dist import mesh as mesh_lib
from llm_jax.plan import topology
from llm_jax.train import compiler, setup


def configured(**options):
    config = config_lib.default()
    config.model.update(vocab_size=64, d_model=16, n_layers=1, n_heads=2)
    config.data.seq_len, config.train.batch_size = 8, 8
    text = {f'train.compiler_options.{name}': value for name, value in options.items()}
    config_lib.apply_overrides(config, text)
    return config_lib.validate(config)


def planned(config, devices):
    mesh = mesh_lib.make_mesh(config.mesh, devices)
    return setup.plan(config, mesh, rows=100, vocab_size=64, bos_id=0)


def test_the_options_of_a_platform_are_for_meshes_of_several_devices(monkeypatch):
    monkeypatch.setitem(compiler.OPTIONS, 'cpu', {'xla_cpu_enable_fast_math': True})
    config = configured(xla_llvm_disable_expensive_passes='true')
    of = lambda n: compiler.options(config, mesh_lib.make_mesh(config.mesh, jax.devices()[:n]))
    assert of(1) == {'xla_llvm_disable_expensive_passes': True}
    assert of(2) == {'xla_cpu_enable_fast_math': True, 'xla_llvm_disable_expensive_passes': True}


def test_an_option_of_the_config_is_over_that_of_the_platform(monkeypatch):
    monkeypatch.setitem(
        compiler.OPTIONS, 'cpu', {'xla_cpu_enable_fast_math': True, 'xla_cpu_enable_fast_min_max': True}
    )
    config = configured(xla_cpu_enable_fast_math='None', xla_cpu_enable_fast_min_max='false')
    mesh = mesh_lib.make_mesh(config.mesh, jax.devices()[:2])
    assert compiler.options(config, mesh) == {'xla_cpu_enable_fast_min_max': False}


@pytest.mark.parametrize(
    ('name', 'value', 'says'),
    [
        ('xla_cpu_bogus', '1', r'train\.compiler_options\.xla_cpu_bogus = 1 is refused .* cpu: No such compile option'),
        ('xla_cpu_enable_fast_math', 'maybe', r"xla_cpu_enable_fast_math = 'maybe' is refused .* not a valid bool"),
    ],
)
def test_what_the_compiler_refuses_is_said_before_anything_is_computed(name, value, says):
    with pytest.raises(ConfigError, match=says):
        planned(configured(**{name: value}), jax.devices())


def test_the_step_is_compiled_with_the_options():
    plan = planned(configured(), jax.devices())
    told = dataclasses.replace(plan.config.train, compiler_options={'xla_cpu_bogus': True})
    refused = dataclasses.replace(plan, config=dataclasses.replace(plan.config, train=told))
    tokens = jax.ShapeDtypeStruct((8, 9), 'int32', sharding=plan.rows_sharding)
    with jax.set_mesh(plan.mesh):
        plan.train_step().lower(plan.shapes, tokens).compile()
        with pytest.raises(jax.errors.JaxRuntimeError, match='xla_cpu_bogus'):
            refused.train_step().lower(plan.shapes, tokens).compile()


def test_the_compiler_for_tpus_knows_every_option_that_it_is_told(tpu_compiler):
    devices = topology.tpu_devices(topology.parse_tpu('v5e:2x4'))
    plan = planned(configured(), devices)
    assert compiler.options(plan.config, plan.mesh) == compiler.OPTIONS['tpu']
    with pytest.raises(ConfigError, match='xla_tpu_bogus = 3 is refused by the compiler for tpu'):
        planned(configured(xla_tpu_bogus='3'), devices)
