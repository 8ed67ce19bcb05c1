"""Contract 7 for an objective of a user's own, which makes its batches from the current parameters.

It is defined in the experiment's file, trained by the real command, killed, resumed, and sampled from.
"""

import pathlib
import signal

from jobs import finish, losses, parameters, start, wait_for_step, write_experiment
import numpy as np

import llm_jax
from llm_jax.generate.text import complete
from llm_jax.metrics import read_jsonl

POLICY = pathlib.Path(__file__).parents[1] / 'policy.py'
FIELDS = ('--config.train.grad_accumulation=2', '--config.checkpoint.every=4', '--config.train.sample_every=50 %')


def test_killed_and_resumed_it_is_the_same_run(tmp_path):
    experiment = write_experiment(tmp_path)
    chosen = experiment.read_text().replace('return config', 'config.train.objective = OnlinePolicy\n    return config')
    experiment.write_text(POLICY.read_text() + chosen)
    undisturbed, killed = tmp_path / 'undisturbed', tmp_path / 'killed'
    finish(start(experiment, undisturbed, *FIELDS))

    process = start(experiment, killed, *FIELDS)
    wait_for_step(process, killed, 9)
    process.send_signal(signal.SIGKILL)
    finish(process, code=-signal.SIGKILL)
    assert 'resumed at step' in finish(start(experiment, killed, *FIELDS))
    assert losses(killed) == losses(undisturbed)
    for ours, theirs in zip(parameters(killed), parameters(undisturbed), strict=True):
        np.testing.assert_array_equal(ours, theirs)

    lines = [line for line in read_jsonl(killed / 'metrics.jsonl') if 'loss' in line]
    assert all('advantage' in line for line in lines)
    assert len({line['loss'] for line in lines}) == len(lines)
    assert [line['step'] for line in read_jsonl(killed / 'samples.jsonl')] == [20, 40]
    loaded = llm_jax.load(killed)  # the objective is found again in the run directory
    assert loaded.config.train.objective.endswith('experiment.py:OnlinePolicy')
    assert complete(loaded.model, loaded.params, loaded.tokenizer, ['the '], max_new_tokens=2)

    other = finish(start(experiment, killed, *FIELDS, '--config.train.objective=next_token'), code=2)
    assert 'train.objective' in other
    assert 'next_token' in other
