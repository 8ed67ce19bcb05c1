"""Contract 16: a run that cannot sample, draw or write its page still ends with its last checkpoint saved.

And `every = 0` is never, also at the end.
"""

import json

import jax
from jobs import write_experiment
import numpy as np
import pytest

import llm_jax
from llm_jax import config as config_lib
from llm_jax.checkpoint import Checkpoints
from llm_jax.config import schema
from llm_jax.metrics import read_jsonl
from llm_jax.nn.attention import Attention
from llm_jax.train import loop

STEPS = 4


class CannotDecode(Attention):
    """Attention that trains, but keeps no cache to decode with."""

    @staticmethod
    def empty_cache(*args, **kwargs):
        raise NotImplementedError('no cache')


def fail(*args, **kwargs):
    raise ValueError('no ink\nleft')


@pytest.fixture(scope='module')
def experiment(tmp_path_factory):
    return write_experiment(tmp_path_factory.mktemp('save_first'))


@pytest.fixture
def train(experiment, tmp_path):
    """`train(**overrides)` in one directory: (what the run says of itself, the steps that have checkpoints)."""

    def run(**overrides):
        config = config_lib.load_experiment(str(experiment))
        fields = {
            'model.d_model': 32, 'data.seq_len': 32, 'mesh.fsdp': 8, 'train.duration': STEPS, 'schedule.warmup': 0,
            'train.eval_every': 2, 'train.eval_batches': 1, 'train.sample_every': 2, 'checkpoint.every': 0,
            'train.ema_decay': 0,
        }  # fmt: skip
        config_lib.apply_overrides(
            config, {name: str(value) for name, value in (fields | overrides).items() if not callable(value)}
        )
        if callable(attention := overrides.get('model.attention')):
            config.model.attention = attention
        loop.train(config_lib.validate(config), tmp_path / 'run')
        return json.loads((tmp_path / 'run' / 'run.json').read_text())

    run.directory = tmp_path / 'run'
    return run


def steps(train):
    return Checkpoints(train.directory, schema.Checkpoint(), read_only=True).steps()


def consequences(info):
    return [warning['consequence'] for warning in info['warnings']]


def test_a_part_that_cannot_decode_is_trained_to_the_end(train, capsys):
    info = train(**{'model.attention': CannotDecode})
    assert info['status'] == 'finished'
    assert consequences(info) == ['there are no samples at step 2', 'there are no samples at step 4']
    assert info['warnings'][0]['reason'] == 'NotImplementedError: no cache'
    assert (
        'warning: there are no samples at step 2, because of NotImplementedError: no cache' in capsys.readouterr().out
    )
    assert steps(train) == [STEPS]
    assert (train.directory / 'report.html').exists()
    assert llm_jax.load(train.directory).step == STEPS


@pytest.mark.parametrize('name', ['complete', 'write_report'])
def test_samples_and_the_report_may_fail(train, monkeypatch, name):
    monkeypatch.setattr(loop, name, fail)
    info = train()
    expected = {
        'complete': ['there are no samples at step 2', 'there are no samples at step 4'],
        'write_report': ['there is no report'],
    }
    assert info['status'] == 'finished'
    assert consequences(info) == expected[name]
    assert {warning['reason'] for warning in info['warnings']} == {'ValueError: no ink'}
    monkeypatch.undo()
    before = jax.tree.leaves(llm_jax.load(train.directory).params)
    # The same command says that it is done; a longer one resumes, and is as good as undisturbed.
    train()
    assert steps(train) == [STEPS]
    info = train(**{'train.duration': STEPS + 2})
    assert 'warnings' not in info
    assert steps(train) == [STEPS, STEPS + 2]
    after = jax.tree.leaves(llm_jax.load(train.directory).params)
    assert not all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_an_evaluation_that_fails_ends_the_run_after_its_checkpoint(train, monkeypatch):
    monkeypatch.setattr(loop, 'evaluate', fail)
    with pytest.raises(ValueError, match='no ink'):
        train(**{'checkpoint.every': 2})
    assert steps(train) == [2]
    assert json.loads((train.directory / 'run.json').read_text())['status'] == 'failed'
    with pytest.raises(ValueError, match='no ink'):  # it went on from there
        train(**{'checkpoint.every': 2})
    assert steps(train) == [2, STEPS]


def test_zero_is_never_also_at_the_end(train, monkeypatch):
    for name in ('complete', 'evaluate'):
        monkeypatch.setattr(loop, name, fail)
    never = {f'train.{name}_every': 0 for name in ('log', 'eval', 'sample')}
    # A prompt that is too long for the model is no mistake where nothing is sampled.
    info = train(**never, **{'train.sample_tokens': 1000})
    assert info['status'] == 'finished'
    assert 'warnings' not in info
    assert read_jsonl(train.directory / 'metrics.jsonl') == []
    assert read_jsonl(train.directory / 'samples.jsonl') == []
    assert steps(train) == [STEPS]


def test_the_best_checkpoint_is_kept_though_it_is_evaluated_after_it_is_saved(tmp_path):
    losses = {1: 3.0, 2: 1.0, 3: 2.0, 4: 2.5, 5: 0.5}
    checkpoints = Checkpoints(tmp_path, schema.Checkpoint(keep=1))
    kept = []
    for step, loss in losses.items():
        if step == 4:  # after a kill, what was evaluated before is known
            checkpoints.close()
            checkpoints = Checkpoints(tmp_path, schema.Checkpoint(keep=1))
        checkpoints.save(step, {'params': {'w': np.ones(2)}}, {})
        checkpoints.record_evaluation(step, {'val/loss': loss})
        checkpoints.wait()
        kept.append(checkpoints.steps())
    checkpoints.close()
    assert kept == [[1], [1, 2], [2, 3], [2, 4], [2, 5]]
