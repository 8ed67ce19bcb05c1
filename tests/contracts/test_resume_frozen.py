"""Contract 7 where part of the parameters is frozen: they stay bit by bit, and the optimizer has nothing for them."""

import jax
from jobs import write_experiment
import numpy as np
import orbax.checkpoint as ocp
import pytest

import llm_jax
from llm_jax import config as config_lib
from llm_jax.config.schema import ConfigError
from llm_jax.metrics import read_jsonl
from llm_jax.train import loop

TRAINABLE = r'layers/attention/.*|final_norm/.*'


def is_trained(path):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    return name.startswith(('layers/attention/', 'final_norm/'))


@pytest.fixture(scope='module')
def train(tmp_path_factory):
    root = tmp_path_factory.mktemp('frozen')
    experiment = write_experiment(root)

    def run(name, steps, **fields):
        config = config_lib.load_experiment(str(experiment))
        fields = {
            'model.d_model': 32, 'model.dropout': 0.1, 'data.seq_len': 32, 'mesh.fsdp': 4, 'mesh.tensor': 2,
            'schedule.name': 'constant', 'schedule.warmup': 0, 'train.duration': steps, 'train.ema_decay': 0.5,
            'train.eval_every': 0, 'train.trainable': TRAINABLE, 'train.grad_accumulation': 2, 'checkpoint.keep': 9,
            'mesh.data': 1, 'train.batch_size': 16, 'checkpoint.every': 1,
        } | fields  # fmt: skip
        config_lib.apply_overrides(config, {name: str(value) for name, value in fields.items()})
        loop.train(config_lib.validate(config), root / name)
        return root / name

    return run


def all_parameters(run_dir, step):
    return dict(jax.tree_util.tree_leaves_with_path(llm_jax.load(run_dir, step).params))


def test_frozen_parameters_stay_and_what_is_trained_resumes(train):
    run_dir, whole = train('resumed', 2), train('whole', 4)
    train('resumed', 4)
    first, last, expected = all_parameters(run_dir, 1), all_parameters(run_dir, 4), all_parameters(whole, 4)
    for path, value in last.items():
        np.testing.assert_array_equal(value, expected[path])
        assert np.array_equal(value, first[path]) == (not is_trained(path)), path
    assert [line['loss'] for line in read_jsonl(run_dir / 'metrics.jsonl')] == [
        line['loss'] for line in read_jsonl(whole / 'metrics.jsonl')
    ]

    # The optimizer's state has leaves like the trained parameters alone.
    stored = jax.tree_util.tree_leaves_with_path(
        ocp.PyTreeCheckpointHandler().metadata(run_dir / 'checkpoints/4/train').tree
    )
    names = {jax.tree_util.keystr(path, simple=True, separator='/') for path, _ in stored}
    assert any(name.endswith('attention/q/kernel') for name in names)
    assert not any('embed' in name or 'feed_forward' in name for name in names)

    # All of it can be read at once, and trained further in another stage.
    second = train('second', 1, **{'init_from': run_dir, 'train.trainable': '.*'})
    moved = all_parameters(second, 1)
    assert not any(np.array_equal(moved[path], value) for path, value in last.items())


def test_what_is_frozen_is_part_of_what_a_run_is(train):
    train('changed', 1)
    with pytest.raises(ConfigError, match='train.trainable: .* -> '):
        train('changed', 2, **{'train.trainable': '.*'})
