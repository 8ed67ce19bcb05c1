"""Estimates of memory against what programs for TPUs took when they were compiled (`bench_plan --only worked`)."""

import pathlib

import pytest

from llm_jax.config import cli
from llm_jax.plan import facts, memory, planner, topology

EXPERIMENTS = pathlib.Path(__file__).parents[2] / 'experiments' / 'pretrain'
_NARROW = ('--config.optimizer.mu_dtype=bfloat16', '--config.train.accumulation_dtype=bfloat16')


@pytest.mark.parametrize(
    ('experiment', 'slice_', 'overrides', 'compiled_gib'),
    [
        ('llama3_8b', 'v5p:4x4x8', (), 13.3),
        (
            'llama3_8b',
            'v5e:4x8',
            ('--config.train.grad_accumulation=16', '--config.train.gather_head_once=False'),
            11.98,
        ),
        ('llama3_70b', 'v5p:8x8x8', (), 32.8),
        ('gpt3_175b', 'v5p:8x8x8', (), 27.0),
        ('gpt3_175b', 'v6e:16x16', ('--config.train.grad_accumulation=24', *_NARROW), 26.7),
        ('mixtral_8x7b', 'v5p:4x4x4', (), 32.7),
        ('deepseek_moe', 'v5p:8x8x8', (), 32.9),
    ],
)
def test_memory_is_estimated_to_15_percent(experiment, slice_, overrides, compiled_gib):
    config = cli.experiment(str(EXPERIMENTS / f'{experiment}.py'), list(overrides))
    case = planner.case_of(config, topology.parse_tpu(slice_), None)
    assert memory.estimate(case).total / 2**30 == pytest.approx(compiled_gib, rel=0.15)


def test_no_fewer_flops_are_executed_than_a_mask_leaves():
    """MFU counts the whole square of attention: a causal kernel executes less than that, and the plan says why."""
    overrides = ['--config.model.n_layers=2', '--config.train.batch_size=64', '--config.model.remat=none']
    config = cli.experiment(str(EXPERIMENTS / 'gpt2_124m.py'), overrides)
    outcome = planner.estimated(planner.case_of(config, topology.parse_gpu('h100', 8), None))
    rows = {row.name: row.value for row in facts.step_rows(outcome)}
    ratio = float(rows['executed FLOPs a step'].split('PFLOP, ')[1].split()[0])
    assert ratio >= 1 and 0.5 < outcome.unmasked_mfu / outcome.mfu < 1
    assert rows['MFU at most'].count('%') == 2 and 'without masked attention' in rows['MFU at most']
    assert sum('a causal mask leaves half' in note for note in facts.notes(outcome)) == 1
    windowed = cli.experiment(str(EXPERIMENTS / 'gpt2_124m.py'), [*overrides, '--config.model.window=128'])
    outcome = planner.estimated(planner.case_of(windowed, topology.parse_gpu('h100', 8), None))
    assert outcome.unmasked_mfu == outcome.mfu and not any('mask' in note for note in facts.notes(outcome))
