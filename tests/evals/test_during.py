"""Benchmarks while a model trains: their scores are lines of the run, those of its checkpoint."""

import json
import pathlib

import pytest

from llm_jax import config as config_lib
from llm_jax import runs
from llm_jax.config.schema import ConfigError
from llm_jax.evals.during import Judge
from llm_jax.evals.run import Evaluation, Options
from llm_jax.evals.sources import Sources
from llm_jax.evals.tasks import find_task
from llm_jax.train.loop import train


def make_config(directory: pathlib.Path, **fields):
    (directory / 'input.txt').write_text('The cat sat on the mat. ' * 60)
    rows = [{'query': 'The cat sat', 'choices': ['on the mat.', 'xyz.'], 'gold': i % 2} for i in range(5)]
    (directory / 'openbook_qa_test.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    config = config_lib.default()
    config.name, config.data.sources = 'tiny', {'text': f'text:{directory}/input.txt'}
    config.data.tokenizer.kind, config.data.seq_len, config.data.split_by = 'bytes', 32, 'place'
    config.model.d_model, config.model.n_layers, config.model.n_heads = 16, 1, 2
    config.train.batch_size, config.train.duration, config.train.eval_every = 8, 4, 2
    config.train.sample_every, config.data.cache_dir = 0, str(directory / 'cache')
    config.train.eval_tasks, config.train.eval_data, config.train.eval_limit = ('openbookqa',), (str(directory),), 3
    for name, value in fields.items():
        config.train[name] = value
    return config_lib.validate(config)


def test_scores_are_on_the_lines_of_evaluations_and_those_of_the_checkpoint(tmp_path):
    config, run = make_config(tmp_path), tmp_path / 'run'
    train(config, run, make_judge=Judge)
    lines = [json.loads(line) for line in (run / 'metrics.jsonl').read_text().splitlines()]
    found = {line['step']: line for line in lines if 'tasks/openbookqa/acc_norm' in line}
    assert sorted(found) == [2, 4]
    results = Evaluation(runs.load(run), Sources([tmp_path]), Options(limit=3)).run(find_task('openbookqa'), tmp_path)
    for metric in ('acc', 'acc_norm'):
        assert found[4][f'tasks/openbookqa/{metric}'] == results['metrics'][metric]['value']


def test_mistakes_come_before_training(tmp_path):
    with pytest.raises(ConfigError, match="has 'piqa', and train.eval_data = .* has no piqa_val.jsonl.gz"):
        Judge(make_config(tmp_path, eval_tasks=('piqa',)), None, None)
    with pytest.raises(ConfigError, match='needs what runs them'):
        train(make_config(tmp_path), tmp_path / 'run')
