"""Compiler options: defaults by generation, the user's over them, refusals and hazards in one line."""

import dataclasses
import warnings

import jax
import pytest

from llm_jax import config as config_lib
from llm_jax.config.schema import ConfigError
from llm_jax.dist import mesh as mesh_lib
from llm_jax.plan import topology
from llm_jax.train import compiler, setup

FUSED_GATHERS = 'xla_tpu_enable_async_collective_fusion_fuse_all_gather'
SLICES = {'v4': '2x2x2', 'v5e': '2x4', 'v5p': '2x2x2', 'v6e': '2x4', '7x': '2x2x1'}


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


def as_defaults(monkeypatch, options):
    """Makes `options` the defaults of the CPU devices at hand."""
    monkeypatch.setattr(compiler, 'default_options', lambda mesh: options)


def test_other_platforms_and_single_devices_have_no_defaults():
    config = configured(xla_llvm_disable_expensive_passes='true')
    for n in (1, 2):
        mesh = mesh_lib.make_mesh(config.mesh, jax.devices()[:n])
        assert compiler.default_options(mesh) == {}
        assert compiler.accepted_options(config, mesh) == {'xla_llvm_disable_expensive_passes': True}


def test_an_option_of_the_config_is_over_the_default(monkeypatch):
    as_defaults(monkeypatch, {'xla_cpu_enable_fast_math': True, 'xla_cpu_enable_fast_min_max': True})
    config = configured(xla_cpu_enable_fast_math='None', xla_cpu_enable_fast_min_max='false')
    plan = planned(config, jax.devices()[:2])
    assert plan.compiler_options == {'xla_cpu_enable_fast_min_max': False}


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


def test_a_default_that_the_compiler_refuses_is_left_out_with_a_warning(monkeypatch):
    """As when a new release retires an option: the run goes on without it, with all others."""
    as_defaults(monkeypatch, {'xla_cpu_retired': True, 'xla_cpu_enable_fast_math': True, 'xla_cpu_gone': 1})
    config = configured(xla_llvm_disable_expensive_passes='true')
    with pytest.warns(UserWarning, match='xla_cpu_') as caught:
        plan = planned(config, jax.devices()[:2])
    left = {'xla_llvm_disable_expensive_passes': True, 'xla_cpu_enable_fast_math': True}
    assert plan.compiler_options == left
    assert {name for name in ('xla_cpu_retired', 'xla_cpu_gone') for w in caught if name in str(w.message)} == {
        'xla_cpu_retired', 'xla_cpu_gone'
    }  # fmt: skip


def test_the_step_is_compiled_with_the_options():
    plan = planned(configured(), jax.devices())
    refused = dataclasses.replace(plan, compiler_options={'xla_cpu_bogus': True})
    tokens = jax.ShapeDtypeStruct((8, 9), 'int32', sharding=plan.rows_sharding)
    with jax.set_mesh(plan.mesh):
        plan.train_step().lower(plan.shapes, tokens).compile()
        with pytest.raises(jax.errors.JaxRuntimeError, match='xla_cpu_bogus'):
            refused.train_step().lower(plan.shapes, tokens).compile()


@dataclasses.dataclass
class Refusing:
    """A lowered step that the compiler refuses with certain options, and takes without them."""

    refused: str
    message: str

    def compile(self, compiler_options):
        if self.refused in compiler_options:
            raise jax.errors.JaxRuntimeError(self.message)
        return compiler_options


def test_a_step_that_is_refused_with_the_defaults_is_compiled_without_them():
    config = configured(xla_mine='1')
    lowered = Refusing('xla_default', 'FAILED_PRECONDITION: Fusion is not supported on this platform\nstack')
    with pytest.warns(UserWarning, match='xla_default: left out, .*: Fusion is not supported on this platform$'):
        assert compiler.compile_step(lowered, config, {'xla_default': True, 'xla_mine': 1}) == {'xla_mine': 1}


def test_a_step_that_is_refused_with_options_of_the_config_is_one_line():
    config = configured(xla_mine='1')
    lowered = Refusing('xla_mine', 'UNIMPLEMENTED: No such layout\nstack')
    with pytest.raises(ConfigError, match=r"^train\.compiler_options = \{'xla_mine': 1\}: .*: No such layout\. Leave"):
        compiler.compile_step(lowered, config, {'xla_mine': 1})


def test_a_lack_of_memory_is_no_refusal():
    lowered = Refusing('xla_default', 'RESOURCE_EXHAUSTED: Used 38G of 31G hbm')
    with pytest.raises(jax.errors.JaxRuntimeError, match='38G'):
        compiler.compile_step(lowered, configured(), {'xla_default': True})


@pytest.mark.parametrize('generation', SLICES)
def test_every_generation_takes_its_defaults(tpu_compiler, generation):
    devices = topology.tpu_devices(topology.parse_tpu(f'{generation}:{SLICES[generation]}'))
    with warnings.catch_warnings():
        warnings.filterwarnings('error', message='.*(refuses|unsafe|left out)')
        plan = planned(configured(), devices)
    assert plan.compiler_options == compiler.DEFAULTS[generation]


@pytest.mark.parametrize('generation', SLICES)
def test_no_default_is_a_hazard(generation):
    hazards = {name for name, hazard in compiler.HAZARDS.items() if generation not in hazard.safe_on}
    assert not hazards & compiler.DEFAULTS[generation].keys()


def test_the_compiler_for_tpus_names_what_it_does_not_know(tpu_compiler):
    devices = topology.tpu_devices(topology.parse_tpu('v5e:2x4'))
    with pytest.raises(ConfigError, match='xla_tpu_bogus = 3 is refused by the compiler for tpu'):
        planned(configured(xla_tpu_bogus='3'), devices)


def test_a_hazard_is_said_where_it_is_one(tpu_compiler):
    devices = topology.tpu_devices(topology.parse_tpu('v6e:2x4'))
    asked = configured(**{FUSED_GATHERS: 'true', 'xla_enable_async_all_gather': 'true'})
    with pytest.warns(UserWarning, match=f'{FUSED_GATHERS} = True is unsafe on v6e: .* may be wrong'):
        if jax.__version_info__ < (0, 12):
            assert planned(asked, devices).compiler_options[FUSED_GATHERS]
        else:  # the refusal names no option: those without which the others are taken are named
            with pytest.raises(ConfigError, match=f'{FUSED_GATHERS} = True.*is refused .*: Continuation fusion'):
                planned(asked, devices)
    safe = configured(**{FUSED_GATHERS: 'false'})
    with warnings.catch_warnings():
        warnings.filterwarnings('error', message='.*(refuses|unsafe|left out)')
        assert planned(safe, devices).compiler_options[FUSED_GATHERS] is False
