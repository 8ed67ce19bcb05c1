"""Contract 7 for the stages of post-training: stopped and resumed, they are bit by bit the run that never stopped.

What is killed by a signal goes the way of `test_resume.py`; here the loop ends after some steps and begins again.
"""

import json

import jax
import numpy as np
import pytest

import llm_jax
from llm_jax import config as config_lib
from llm_jax import tokenizer
from llm_jax.config import schema
from llm_jax.config.schema import ConfigError
from llm_jax.metrics import read_jsonl
from llm_jax.train import loop

EVALUATED = {'train.eval_every': '100 %'}
MARKS = ('<|im_start|>', '<|im_end|>')


@pytest.fixture(scope='module')
def train(tmp_path_factory):
    """`train(name, steps, objective, **fields)` trains in a directory and gives it; `base` is there."""
    root = tmp_path_factory.mktemp('stages')
    texts = [f'number {i} and word {i % 7} are far away' for i in range(60)]
    tokenizer.train(schema.Tokenizer(vocab_size=290, reserved=MARKS), iter(texts), 0).save(root / 'tokenizer')
    records = {
        'documents': [{'text': text} for text in texts],
        'conversations': [{'prompt': text[:9], 'response': text[9:]} for text in texts],
        'pairs': [{'prompt': text[:9], 'chosen': text[9:], 'rejected': text[-4:]} for text in texts],
        'unpaired': [{'prompt': text[:9], 'response': text[9:], 'label': i % 3 > 0} for i, text in enumerate(texts)],
        'labelled': [{'text': text, 'label': i % 7 > 3} for i, text in enumerate(texts)],
    }
    for form, some in records.items():
        (root / f'{form}.jsonl').write_text(''.join(json.dumps(record) + '\n' for record in some))

    def run(name, steps, objective, form, **fields):
        config = config_lib.default()
        kind = 'jsonl' if form == 'documents' else form
        config.data.sources = {'s': f'{kind}:{root}/{form}.jsonl'}
        config.data.classes = ('False', 'True')
        config.train.objective_options = fields.pop('options', {})
        plain = {
            'data.seq_len': 128, 'data.cache_dir': root / 'cache', 'data.validation_fraction': 0.2,
            'data.examples_per_row': 2, 'chat.template': 'chatml', 'train.objective': objective,
            'train.duration': steps, 'train.batch_size': 8, 'train.log_every': 1, 'train.eval_every': 0,
            'train.sample_every': 0, 'train.compile_cache': '', 'schedule.name': 'constant', 'schedule.warmup': 0,
            'checkpoint.every': 0, 'optimizer.learning_rate': 1e-2, 'mesh.data': 8, 'mesh.fsdp': 1,
        } | ({'init_from': root / 'base'} if form != 'documents' else {
            'data.tokenizer.path': root / 'tokenizer', 'model.d_model': 16, 'model.n_layers': 1, 'model.n_heads': 2,
        }) | fields  # fmt: skip
        config_lib.apply_overrides(config, {key: str(value) for key, value in plain.items()})
        loop.train(config_lib.validate(config), root / name)
        return root / name

    run('base', 1, 'next_token', 'documents')
    return run


def lines_of(run_dir):
    return [{name: line[name] for name in line if name in ('step', 'loss', 'val/loss', 'kl')}
            for line in read_jsonl(run_dir / 'metrics.jsonl') if line['step'] != 2 or 'loss' in line]  # fmt: skip


def assert_same(resumed, whole):
    assert lines_of(resumed) == lines_of(whole)
    jax.tree.map(np.testing.assert_array_equal, *(llm_jax.load(run).params for run in (resumed, whole)))


@pytest.mark.parametrize(
    ('objective', 'form'),
    [
        ('kto', 'unpaired'),
        pytest.param('sft', 'conversations', marks=pytest.mark.slow),
        pytest.param('classify', 'labelled', marks=pytest.mark.slow),
        pytest.param('reward', 'pairs', marks=pytest.mark.slow),
    ],
)
def test_stopped_and_resumed_it_is_the_same_run(train, objective, form):
    whole = train(f'{objective} whole', 4, objective, form)
    train(f'{objective} resumed', 2, objective, form)
    assert_same(train(f'{objective} resumed', 4, objective, form), whole)


def test_pairs_and_their_reference(train):
    whole = train('dpo whole', 4, 'preference', 'pairs', **EVALUATED)
    first, *_ = read_jsonl(whole / 'metrics.jsonl')
    np.testing.assert_allclose(first['loss'], np.log(2), rtol=1e-5)  # the policy is the reference
    resumed = train('dpo resumed', 2, 'preference', 'pairs', **EVALUATED)
    kept = (resumed / 'reference/train.s.npy').read_bytes()
    (resumed / 'reference/manifest.json').unlink()  # the rest of a directory that was not complete
    assert_same(train('dpo resumed', 4, 'preference', 'pairs', **EVALUATED), whole)
    assert (resumed / 'reference/train.s.npy').read_bytes() == kept
    with pytest.raises(ConfigError, match="another reference or other rows .init_from '.*base', now '.*whole'"):
        train('dpo resumed', 6, 'preference', 'pairs', init_from=whole)
    manifest = json.loads((resumed / 'reference/manifest.json').read_text())
    assert manifest['files'] == ['train.s.npy', 'validation.s.npy', 'test.s.npy']


def test_a_teacher_is_in_no_checkpoint(train):
    """A student that is its teacher has nothing to learn; another comes nearer to it."""
    teacher = train('sft whole', 4, 'sft', 'conversations')
    options = {'teacher': str(teacher), 'divergence': 'jsd'}
    student = train('student', 2, 'distill', 'conversations', options=options)
    lines = [line for line in read_jsonl(student / 'metrics.jsonl') if 'loss' in line]
    assert 0 < lines[1]['loss'] < lines[0]['loss']
    same = train('same', 1, 'distill', 'conversations', options=options, init_from=teacher)
    (line, *_) = read_jsonl(same / 'metrics.jsonl')
    assert abs(line['loss']) < 1e-6
    assert 'teacher' not in llm_jax.load(student).params
