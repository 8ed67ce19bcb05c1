"""A run directory as an older layout of the library wrote it: tests/data/old_run, made before modules moved."""

import importlib
import pathlib
import shutil
import sys

from etils import epath
import jax
import pytest

from llm_jax import config as config_lib
from llm_jax import runs
from llm_jax.config import moved, parts
from llm_jax.config.schema import ConfigError
from llm_jax.nn.attention import Attention
from llm_jax.nn.transformer import build, init_params

OLD = pathlib.Path(__file__).parent / 'data' / 'old_run'


def test_its_own_parts_are_found_again():
    config = runs.read_config(epath.Path(OLD))
    attention = parts.attention(config.model)
    assert attention.__name__ == 'ValueEmbeddings' and issubclass(attention, Attention)
    model = build(config.model, vocab_size=64, seq_len=config.data.seq_len)
    shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    assert shapes['layers']['0']['attention']['value_embedding']['embedding'].shape == (1, 64, 32)
    assert config.model.layer(0).moe.capacity_factor == 2.0


def test_its_fields_are_read_under_their_names_of_today():
    config = runs.read_config(epath.Path(OLD))
    moe = config.model.layer(1).moe
    assert (moe.capacity_factor, moe.bias_update_rate) == (1.25, 0.002)
    assert (config.schedule.final_lr_ratio, config.optimizer.mu_dtype) == (0.03, 'bfloat16')
    assert not config.train.watch_preemption
    known = {name for name, _, _ in config_lib.describe(config_lib.validate(config_lib.default()))}
    for old, new in moved.FIELDS.items():
        assert old not in known and new in known


def test_new_experiments_are_told_the_new_name_of_a_field(tmp_path):
    with pytest.raises(ConfigError, match='it is now called model.moe.capacity_factor'):
        config_lib.apply_overrides(config_lib.default(), {'model.moe.capacity': '2.0'})
    (tmp_path / 'mine.py').write_text(
        'from llm_jax import config as config_lib\n'
        'def get_config():\n    config = config_lib.default()\n    config.schedule.floor = 0.1\n    return config\n'
    )
    with pytest.raises(ConfigError, match="'floor' in the config: schedule.final_lr_ratio is what it is called now"):
        config_lib.load_experiment(tmp_path / 'mine.py')


def test_old_names_are_those_of_modules_of_today():
    for name in moved.MOVED.values():
        assert importlib.util.find_spec(name), name


def test_old_names_end_with_the_experiment():
    runs.read_config(epath.Path(OLD))
    assert 'llm_jax.mesh' not in sys.modules
    with pytest.raises(ImportError):
        importlib.import_module('llm_jax.mesh')


def test_new_experiments_do_not_find_them(tmp_path):
    shutil.copy(OLD / 'experiment.py', tmp_path / 'mine.py')
    with pytest.raises((ConfigError, ImportError), match='mesh'):
        parts.import_file(tmp_path / 'mine.py')
