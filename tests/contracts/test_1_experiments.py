"""Contract 1: every experiment file loads, validates, and lowers on an abstract mesh.

Nothing is compiled and no parameter is made, so that size does not matter.
"""

import pathlib

import jax
import jax.numpy as jnp
import pytest
from tiny import BOS

from llm_jax import config as config_lib
from llm_jax.dist import mesh as mesh_lib
from llm_jax.dist.fit import check_fit
from llm_jax.nn.transformer import build, init_params, parameters_of
from llm_jax.train.objectives import fill_scores, make_objective
from llm_jax.train.optimizer import Span, make_optimizer, make_schedule
from llm_jax.train.state import init_state
from llm_jax.train.step import make_train_step

EXPERIMENTS = pathlib.Path(__file__).parents[2] / 'experiments'
FILES = sorted(file for file in EXPERIMENTS.rglob('*.py') if file.parent.name != 'data')  # those make corpora


def lower(config, n_devices):
    """The StableHLO of one training step on n devices that need not exist."""
    config = fill_scores(config)
    sizes = mesh_lib.axis_sizes(config.mesh, n_devices)
    check_fit(config, sizes)
    explicit = (jax.sharding.AxisType.Explicit,) * len(sizes)
    mesh = jax.sharding.AbstractMesh(tuple(sizes.values()), tuple(sizes), axis_types=explicit)
    vocab_size = config.model.vocab_size or config.data.tokenizer.vocab_size
    model = build(config.model, vocab_size=vocab_size, seq_len=config.data.seq_len)
    total = config_lib.steps(
        config.train.duration, 'train.duration', steps_per_epoch=1000.0,
        tokens_per_step=config.train.batch_size * config.data.seq_len,
    )  # fmt: skip
    with jax.sharding.use_abstract_mesh(mesh):
        schedule = make_schedule(config.schedule, config.optimizer.learning_rate, Span(total, 1, 1, 0.1))
        params = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
        optimizer = make_optimizer(config.optimizer, schedule, params, parameters_of(model))
        with_ema = config.train.ema_decay > 0
        state = jax.eval_shape(lambda: init_state(model, optimizer, jax.random.key(0), with_ema=with_ema))
        batch = mesh_lib.spec(config.model.rules, ('batch', None))
        rows = make_objective(model, config, bos_id=BOS).step_shapes()
        tokens = jax.ShapeDtypeStruct(rows.shape, jnp.int32, sharding=jax.sharding.NamedSharding(mesh, batch))
        step = jax.jit(make_train_step(model, config, optimizer, schedule, bos_id=BOS), donate_argnums=0)
        return step.trace(state, tokens).lower(lowering_platforms=('tpu',)).as_text()


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_experiment(path):
    config = config_lib.validate(config_lib.load_experiment(path))
    assert config.name == path.stem
    fixed = [getattr(config.mesh, axis) for axis in mesh_lib.AXES if getattr(config.mesh, axis) != -1]
    n_devices = 1
    for n in fixed:
        n_devices *= n
    for scale in {1, 8} if len(fixed) < len(mesh_lib.AXES) else {1}:  # the axis of -1 takes the rest
        assert 'stablehlo.dot_general' in lower(config, n_devices * scale)


def test_large_experiments_take_no_text_unasked():
    """The standard library is the text of the quickstart and its variants alone."""
    for path in sorted((EXPERIMENTS / 'pretrain').glob('*.py')):
        config = config_lib.validate(config_lib.load_experiment(path))
        assert config.model.d_model <= 128 or 'stdlib' not in config.data.sources.values(), path.name


def test_the_quickstart_is_there():
    assert (EXPERIMENTS / 'quickstart.py').is_file()


def test_lowering_512_devices():
    config = config_lib.default()
    config.mesh.tensor, config.train.batch_size, config.model.n_heads = 8, 512, 8
    text = lower(config_lib.validate(config), 512)
    assert '"fsdp"=64' in text
    assert 'num_partitions = 512' in text
