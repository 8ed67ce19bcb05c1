"""A whole small run in this process, and what its directory is good for afterwards."""

import json
import random

from awkward import write_pair
from etils import epath
import jax
import numpy as np
import pytest

import llm_jax
from llm_jax import config as config_lib
from llm_jax import runs, tokenizer
from llm_jax.config.schema import ConfigError
from llm_jax.evals import texts
from llm_jax.interop import convert
from llm_jax.metrics import read_jsonl
from llm_jax.nn.transformer import weights_of
from llm_jax.ops.quantised import quantise_params
from llm_jax.train.loop import train

EXPERIMENT = '''
from flax import linen as nn
import jax
from llm_jax import config as config_lib
from llm_jax.nn.einsum import Einsum

class Cubed(nn.Module):
    """A part that the library does not know."""
    config: object

    @nn.compact
    def __call__(self, x):
        c = self.config
        up = Einsum('BLD,DF->BLF', (c.d_model, c.ff_size), ('d_model', 'd_ff'), c, name='first')
        down = Einsum('BLF,FD->BLD', (c.ff_size, c.d_model), ('d_ff', 'd_model'), c, name='last')
        return down(jax.nn.relu(up(x)) ** 3)

def get_config():
    config = config_lib.default()
    config.model.feed_forward = Cubed
    config.model.d_model, config.model.n_layers, config.model.n_heads = 32, 2, 2
    config.model.vocab_size = 320
    config.data.sources = 'jsonl:CORPUS'
    config.data.seq_len = 32
    config.data.tokenizer.vocab_size = 300
    config.data.cache_dir = 'CACHE'
    config.train.duration = 4
    config.train.batch_size = 8
    config.train.log_every = 1
    config.train.sample_tokens = 4
    config.train.sample_prompts = ('the',)
    return config
'''


@pytest.fixture(scope='module')
def experiment(tmp_path_factory):
    root = tmp_path_factory.mktemp('runs')
    rng = random.Random(0)
    with (root / 'corpus.jsonl').open('w') as out:
        for _ in range(200):
            out.write(
                json.dumps(
                    {
                        'text': ' '.join(
                            rng.choices(
                                [
                                    'the',
                                    'cat',
                                    'sat',
                                    'on',
                                    'mats',
                                    'while',
                                    'dogs',
                                    'were',
                                    'running',
                                    'along',
                                    'rivers',
                                ],
                                k=30,
                            )
                        )
                    }
                )
                + '\n'
            )
    text = EXPERIMENT.replace('CORPUS', str(root / 'corpus.jsonl')).replace('CACHE', str(root / 'cache'))
    file = root / 'cubed.py'
    file.write_text(text)
    return file


@pytest.fixture(scope='module')
def run_dir(experiment):
    config = config_lib.validate(config_lib.load_experiment(experiment))
    out = experiment.parent / 'run'
    result = train(config, out, experiment=str(experiment))
    assert result.status == 'finished'
    assert result.step == 4
    return out


def test_a_run_leaves_everything(run_dir):
    lines = read_jsonl(run_dir / 'metrics.jsonl')
    assert [line['step'] for line in lines if 'loss' in line] == [1, 2, 3, 4]
    wanted = {'tokens', 'loss', 'grad_norm', 'param_norm', 'learning_rate', 'tokens_per_second', 'input_wait'}
    assert wanted <= [line for line in lines if 'loss' in line][-1].keys()
    last = [line for line in lines if 'val/loss' in line][-1]
    assert last['val/perplexity'] == pytest.approx(np.exp(last['val/loss']))
    # Bits per byte and nats per token are the same sum over different counts.
    assert 0 < last['val/bits_per_byte'] < 8
    assert 'test/bits_per_byte' in last
    assert {line['prompt'] for line in read_jsonl(run_dir / 'samples.jsonl')} == {'the'}
    assert json.loads((run_dir / 'run.json').read_text())['status'] == 'finished'
    for name in ('report.html', 'report.md', 'config.json', 'experiment.py', 'tokenizer'):
        assert (run_dir / name).exists(), name
    assert list((run_dir / 'tensorboard').glob('events*'))


@pytest.mark.parametrize('kind', ['int8', 'int4'])
def test_a_quantised_run_loads_and_is_not_trained(run_dir, experiment, tmp_path, kind):
    """Its checkpoint holds the quantised weights, of parts of the experiment too; it is read like any other."""
    out = tmp_path / 'narrow'
    convert.quantise_run(run_dir, out, kind)
    whole, narrow = llm_jax.load(run_dir), llm_jax.load(out)
    assert json.loads((out / 'config.json').read_text())['model']['quantised'] == kind
    assert narrow.params['layers']['feed_forward']['first']['kernel'].kind == kind
    assert narrow.tokenizer.fingerprint == whole.tokenizer.fingerprint
    assert narrow.step == whole.step
    expected = quantise_params(whole.params, weights_of(whole.model), kind)
    jax.tree.map(np.testing.assert_array_equal, narrow.params, expected)
    scores = [texts.score(run, ['the cat sat on mats']).bits_per_byte for run in (whole, narrow)]
    assert scores[1] == pytest.approx(scores[0], rel=0.02)
    with pytest.raises(ConfigError, match=f"model.quantised = '{kind}': quantised weights are not trained"):
        train(narrow.config, tmp_path / 'trained')
    config = config_lib.load_experiment(experiment)
    config.init_from = str(out)
    with pytest.raises(ConfigError, match=f'its weights are {kind}, which are not trained'):
        train(config_lib.validate(config), tmp_path / 'tuned')
    with pytest.raises(ConfigError, match='is not empty'):
        convert.quantise_run(run_dir, out, kind)


def test_load_needs_only_the_path_and_keeps_parts_of_the_experiment(run_dir, experiment):
    moved = experiment.parent / 'moved.py'
    experiment.rename(moved)  # the run directory has its own copy
    try:
        run = llm_jax.load(run_dir)
    finally:
        moved.rename(experiment)
    assert set(run.params['layers']['feed_forward']) == {'first', 'last'}
    tokens = np.array([[run.tokenizer.bos_id, *run.tokenizer.encode('the cat sat')]])
    logits = run.model.apply({'params': run.params}, tokens)
    assert logits.shape == (1, tokens.shape[1], 320)
    assert logits.dtype == np.float32
    count = sum(leaf.size for leaf in jax.tree.leaves(run.params))
    assert json.loads((run_dir / 'run.json').read_text())['parameters'] == count


def test_a_run_with_the_tokenizer_of_another_model(experiment, tmp_path):
    write_pair(tmp_path / 'gpt2', 'gpt2_encoder.json', 'gpt2_vocab.bpe')
    config = config_lib.load_experiment(experiment)
    config.data.tokenizer.path = str(tmp_path / 'gpt2')
    (tmp_path / 'mine.jinja').write_text('{{ messages }}')
    config.model.vocab_size = 0
    config.train.duration = 1
    for template, mistake in (
        ('chatml', 'needs the special token'),
        (str(tmp_path / 'no.jinja'), 'there is no such file'),
    ):
        config.chat.template = template
        with pytest.raises(ConfigError, match=mistake):
            train(config_lib.validate(config), tmp_path / 'run')
    config.chat.template = str(tmp_path / 'mine.jinja')
    assert train(config_lib.validate(config), tmp_path / 'run').status == 'finished'
    given = tokenizer.load(tmp_path / 'gpt2')
    for file in ('gpt2/gpt2_vocab.bpe', 'mine.jinja'):  # the run directory has all it needs
        (tmp_path / file).unlink()
    run = llm_jax.load(tmp_path / 'run')
    assert run.tokenizer.fingerprint == given.fingerprint and run.tokenizer.bos_id == 500
    assert run.tokenizer.chat_templates == {'default': '{{ messages }}'}
    assert run.params['embed']['embedding'].shape == (501, 32)


def test_validation_loss_is_that_of_a_plain_sum_over_documents(run_dir):
    """Row by row with the loaded model: no batches, mesh, chunks or padding."""
    run = llm_jax.load(run_dir)
    from llm_jax.data.prepare import prepare

    prepared = prepare(run.config.data, run.config.seed)
    nats = tokens = 0
    forward = jax.jit(lambda *x: jax.nn.log_softmax(run.model.apply({'params': run.params}, *x)))
    for source in prepared.rows('validation').values():
        for row in source.read(np.arange(len(source))):
            inputs, targets = row[:-1], row[1:]
            starts = inputs == run.tokenizer.bos_id
            last_start = np.maximum.accumulate(np.where(starts, np.arange(len(inputs)), 0))
            positions = np.arange(len(inputs)) - last_start
            log_probs = forward(np.maximum(inputs, 0)[None], positions[None], np.cumsum(starts)[None])[0]
            real = targets >= 0
            nats -= np.asarray(log_probs, np.float64)[np.flatnonzero(real), targets[real]].sum()
            tokens += real.sum()
    last = [line for line in read_jsonl(run_dir / 'metrics.jsonl') if 'val/loss' in line][-1]
    assert last['val/loss'] == pytest.approx(nats / tokens, rel=1e-5)
    n_bytes = sum(entry['bytes'] for entry in prepared.manifest['splits']['validation'].values())
    # Every byte of the split counts, but those of the first token of the split's stream (BOS: none).
    assert last['val/bits_per_byte'] == pytest.approx(nats / np.log(2) / n_bytes, rel=1e-5)


@pytest.mark.parametrize(
    ('override', 'message'),
    [
        ({'mesh.tensor': '3'}, 'does not fit 8 device'),
        ({'train.batch_size': '4'}, 'train.batch_size .* = 4 cannot be split over mesh'),
        ({'model.vocab_size': '200'}, 'model.vocab_size = 200 is smaller than the tokenizer'),
        ({'schedule.warmup': '5 steps'}, 'schedule.warmup = .5 steps. is 5 steps'),
        ({'model.remat': 'some'}, "model.remat = 'some'"),
        ({'optimizer.decay_mask': '((".*kernel", True),)'}, 'decay_mask does not cover'),
    ],
)
def test_what_does_not_fit_is_one_error_and_leaves_nothing(experiment, tmp_path, override, message):
    config = config_lib.load_experiment(experiment)
    config_lib.apply_overrides(config, override)
    with pytest.raises(ConfigError, match=message):
        train(config_lib.validate(config), tmp_path / 'none')
    assert not (tmp_path / 'none' / 'checkpoints').exists()


def test_load_explains_what_is_missing(run_dir, tmp_path):
    with pytest.raises(ConfigError, match='is not a run directory'):
        llm_jax.load(tmp_path)
    with pytest.raises(ConfigError, match='no checkpoint of step 99; there are'):
        llm_jax.load(run_dir, step=99)


def test_a_damaged_checkpoint_is_one_error(run_dir, tmp_path):
    import shutil

    copy = tmp_path / 'damaged'
    shutil.copytree(run_dir, copy)
    newest = max(int(p.name) for p in (copy / 'checkpoints').iterdir())
    for file in (copy / 'checkpoints' / str(newest) / 'params').rglob('*'):
        if file.is_file() and file.parent.name == 'd':
            file.write_bytes(b'not what was written')
    with pytest.raises(ConfigError, match=f'checkpoints/{newest} cannot be read'):
        llm_jax.load(copy)


@pytest.mark.parametrize(
    ('override', 'message'),
    [
        ({'model.d_model': '64'}, r'params/embed/embedding is \[320, 32\] there and \[320, 64\] here'),
        ({'model.tie_embeddings': 'False'}, r'params/unembed/\w+ is not there and \[[\d, ]+\] here'),
    ],
)
def test_a_checkpoint_of_another_model_is_one_error(run_dir, experiment, tmp_path, override, message, capfd):
    config = config_lib.load_experiment(experiment)
    config_lib.apply_overrides(config, {'init_from': str(run_dir), **override})
    with pytest.raises(ConfigError, match=f'is of another model: .*{message}'):
        train(config_lib.validate(config), tmp_path / 'other')
    assert 'Traceback' not in ''.join(capfd.readouterr())


def test_config_json_is_read_back_as_it_was(run_dir):
    config = runs.read_config(run_dir)
    assert config_lib.from_dict(config_lib.to_dict(config)) == config


def test_a_config_json_of_another_version_is_named(run_dir, tmp_path):
    values = json.loads((run_dir / 'config.json').read_text())
    values['model']['n_hydras'] = 3
    (tmp_path / 'config.json').write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=r'config.json: there is no field .model.n_hydras. in the config'):
        runs.read_config(epath.Path(tmp_path))
