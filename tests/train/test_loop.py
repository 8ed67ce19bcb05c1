"""How runs end, and go on: divergence, signals, what is missing after a kill, other settings on resume."""

import json
import os
import shutil
import signal

import jax
from jobs import write_experiment
import numpy as np
import pytest

from llm_jax import config as config_lib
from llm_jax.checkpoint import Checkpoints
from llm_jax.config import schema
from llm_jax.config.schema import ConfigError
from llm_jax.data.prepare import prepare
from llm_jax.dist import mesh as mesh_lib
from llm_jax.metrics import read_jsonl
from llm_jax.train import interrupt, loop, setup
from llm_jax.train.resume import start_state

STEPS = 4
FIELDS = {
    'model.d_model': 32, 'model.dropout': 0.0, 'data.seq_len': 32, 'train.duration': STEPS, 'schedule.warmup': 0,
    'schedule.name': 'constant', 'train.eval_every': 2, 'train.eval_batches': 2, 'checkpoint.every': 2,
    'train.ema_decay': 0,
}  # fmt: skip


@pytest.fixture(scope='module')
def experiment(tmp_path_factory):
    return write_experiment(tmp_path_factory.mktemp('loop'))


def load(experiment, **overrides):
    config = config_lib.load_experiment(str(experiment))
    fields = FIELDS | {name.replace('__', '.'): value for name, value in overrides.items()}
    config_lib.apply_overrides(config, {name: str(value) for name, value in fields.items()})
    return config_lib.validate(config)


def train(experiment, run_dir, **overrides):
    return loop.train(load(experiment, **overrides), run_dir)


@pytest.fixture(scope='module')
def trained(experiment):
    run_dir = experiment.parent / 'trained'
    train(experiment, run_dir)
    return run_dir


@pytest.fixture
def run_dir(trained, tmp_path):
    shutil.copytree(trained, tmp_path / 'run')
    return tmp_path / 'run'


def steps(run_dir):
    return Checkpoints(run_dir, schema.Checkpoint(), read_only=True).steps()


def info(run_dir):
    return json.loads((run_dir / 'run.json').read_text())


# --- Divergence ------------------------------------------------------------------------


@pytest.mark.parametrize('evaluated', [2, 0])
def test_a_last_update_that_diverges_is_a_failure_and_no_checkpoint(experiment, run_dir, evaluated):
    bad = {'optimizer__learning_rate': 1e12, 'train__duration': STEPS + 1, 'train__eval_every': evaluated}
    with pytest.raises(loop.NonFiniteLossError, match=rf'of step {STEPS + 1} have .*; .* step {STEPS} is good'):
        train(experiment, run_dir, **bad)
    assert steps(run_dir) == [STEPS]
    assert (run_dir / f'nonfinite_checkpoint_{STEPS + 1}').exists()
    assert info(run_dir)['status'] == 'failed'
    assert f'the parameters of step {STEPS + 1}' in info(run_dir)['reason']
    page = (run_dir / 'report.html').read_text()
    assert '<b>Why it failed</b> the parameters of step' in page and f'of step {STEPS + 1} have' in page


def test_an_update_that_diverges_in_the_middle_costs_no_good_checkpoint(experiment, run_dir):
    bad = {'optimizer__learning_rate': 1e12, 'train__duration': STEPS + 4, 'train__eval_every': 0}
    with pytest.raises(
        loop.NonFiniteLossError, match=rf'step {STEPS + 2} has loss .*checkpoint of step {STEPS + 1}.*step {STEPS} is'
    ):
        train(experiment, run_dir, **bad, checkpoint__every=1, checkpoint__keep=1, checkpoint__keep_best=False)
    assert steps(run_dir) == [STEPS]
    # With a rate that works, the same directory goes on.
    assert train(experiment, run_dir, train__duration=STEPS + 1).status == 'finished'


# --- Ends of runs ----------------------------------------------------------------------


def test_what_a_kill_after_the_last_checkpoint_left_out_is_made(experiment, run_dir, capsys):
    (run_dir / 'report.html').unlink()
    lines = [line for line in (run_dir / 'metrics.jsonl').read_text().splitlines() if json.loads(line)['step'] < STEPS]
    (run_dir / 'metrics.jsonl').write_text('\n'.join(lines) + '\n')
    (run_dir / 'run.json').write_text(json.dumps(info(run_dir) | {'status': 'running'}))
    assert train(experiment, run_dir).status == 'finished'
    assert info(run_dir)['status'] == 'finished' and (run_dir / 'report.html').exists()
    assert 'val/loss' in read_jsonl(run_dir / 'metrics.jsonl')[-1]
    capsys.readouterr()
    train(experiment, run_dir)
    assert f'is done: {STEPS} of {STEPS} steps' in capsys.readouterr().out


def test_a_signal_during_evaluation_stops_it_after_the_checkpoint(experiment, run_dir, monkeypatch):
    original = loop.evaluate

    def interrupted(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*args, **kwargs)

    monkeypatch.setattr(loop, 'evaluate', interrupted)
    result = train(experiment, run_dir, train__duration=STEPS + 4, train__eval_every=STEPS + 1, checkpoint__every=0)
    assert (result.status, result.step) == ('stopped', STEPS + 1)
    assert steps(run_dir)[-1] == STEPS + 1


def test_a_signal_before_training_says_that_nothing_was_lost(experiment, tmp_path, monkeypatch, capsys):
    def interrupted(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError('the signal was not obeyed')

    monkeypatch.setattr(loop, 'prepare', interrupted)
    assert train(experiment, tmp_path / 'run').status == 'stopped'
    assert 'SIGTERM before the first step: nothing was lost' in capsys.readouterr().out
    assert not (tmp_path / 'run').exists()


def test_a_signal_says_what_it_waits_for():
    said = []
    with interrupt.Interrupt(say=said.append) as active:
        active.waits_for = 'the step is compiled'
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(500):
            if said:
                break
            signal.sigtimedwait([], 0.01)
    assert said == ['SIGTERM: stopping as soon as the step is compiled']


# --- Other settings --------------------------------------------------------------------


def resumed(experiment, run_dir, **overrides):
    """(state of the run's checkpoint under other settings, where it came from, the saved item 'train')."""
    config = load(experiment, train__duration=STEPS + 2, **overrides)
    prepared = prepare(config.data, config.seed)
    vocab = {'vocab_size': prepared.tokenizer.vocab_size, 'bos_id': prepared.tokenizer.bos_id}
    plan = setup.plan(config, mesh_lib.make_mesh(config.mesh), rows=prepared.count('train'), **vocab)
    checkpoints = Checkpoints(run_dir, schema.Checkpoint(), read_only=True)
    with jax.set_mesh(plan.mesh):
        return start_state(plan, checkpoints, prepared)


def counts(state):
    named = jax.tree_util.tree_leaves_with_path(state.opt_state)
    return [int(leaf) for path, leaf in named if jax.tree_util.keystr(path).endswith('count')]


def test_moments_are_kept_where_they_fit_and_begin_afresh_where_not(experiment, trained):
    before, _, origin = resumed(experiment, trained)
    assert origin == f'resumed at step {STEPS}'
    without_clip, _, origin = resumed(experiment, trained, optimizer__clip=0)
    assert origin == f'resumed at step {STEPS}'
    for ours, theirs in zip(jax.tree.leaves(without_clip.opt_state), jax.tree.leaves(before.opt_state), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    lion, _, origin = resumed(experiment, trained, optimizer__name='lion')
    assert 'state begins afresh' in origin and "'lion'" in origin
    assert int(lion.step) == STEPS
    assert STEPS in counts(lion), 'the learning rate goes on'
    averaged, _, origin = resumed(experiment, trained, train__ema_decay=0.9)
    assert 'the average of train.ema_decay begins' in origin
    for ours, theirs in zip(jax.tree.leaves(averaged.ema), jax.tree.leaves(before.params), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(('field', 'value'), [('train__batch_size', 16), ('seed', 1), ('data__mixture', {'jsonl': 2})])
def test_what_changes_the_rows_of_a_step_is_refused(experiment, run_dir, field, value):
    before = (run_dir / 'config.json').read_text()
    with pytest.raises(ConfigError, match=rf'another run \({field.replace("__", ".")}.*: .* -> .*--config.init_from='):
        train(experiment, run_dir, train__duration=STEPS + 2, **{field: value})
    assert (run_dir / 'config.json').read_text() == before


def test_init_from_with_another_tokenizer_is_refused_and_leaves_no_run(experiment, trained, tmp_path):
    with pytest.raises(ConfigError, match='another tokenizer .* set data.tokenizer.path = .*trained/tokenizer'):
        train(experiment, tmp_path / 'other', init_from=trained, data__tokenizer__vocab_size=290)
    assert not (tmp_path / 'other').exists()


def test_init_from_says_what_shapes_do_not(experiment, trained):
    shutil.copytree(trained, experiment.parent / 'source', dirs_exist_ok=True)
    shutil.rmtree(experiment.parent / 'empty', ignore_errors=True)
    _, _, origin = resumed(
        experiment, experiment.parent / 'empty', init_from=experiment.parent / 'source', model__norm_eps=1e-3
    )
    assert origin.endswith(f'at step {STEPS}, whose model had model.norm_eps = 1e-05')
