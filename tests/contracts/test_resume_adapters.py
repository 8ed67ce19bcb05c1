"""Contract 7 of a run with adapters, and what becomes of it: loaded, merged, a base of another run."""

import jax
from jobs import write_experiment
import numpy as np
import orbax.checkpoint as ocp
import pytest

import llm_jax
from llm_jax import config as config_lib
from llm_jax.adapt import lora
from llm_jax.config.schema import ConfigError
from llm_jax.interop import convert, hf
from llm_jax.metrics import read_jsonl
from llm_jax.train import loop


@pytest.fixture(scope='module')
def train(tmp_path_factory):
    root = tmp_path_factory.mktemp('adapters')
    experiment = write_experiment(root)

    def run(name, steps, **fields):
        config = config_lib.load_experiment(str(experiment))
        fields = {
            'model.d_model': 32, 'data.seq_len': 32, 'mesh.fsdp': 2, 'mesh.tensor': 2, 'mesh.data': 2,
            'schedule.name': 'constant', 'schedule.warmup': 0, 'train.duration': steps, 'train.eval_every': 0,
            'train.batch_size': 16, 'checkpoint.every': 2, 'checkpoint.keep': 9, 'model.norm': 'rmsnorm',
        } | fields  # fmt: skip
        config_lib.apply_overrides(config, {name: str(value) for name, value in fields.items()})
        loop.train(config_lib.validate(config), root / name)
        return root / name

    return run


def leaves_of(params):
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


@pytest.fixture(scope='module')
def adapter(train):
    return {
        'init_from': train('base', 2), 'model.adapter.kind': 'lora', 'model.adapter.rank': 2,
        'model.adapter.base': 'nf4', 'model.adapter.block': 8, 'model.adapter.dropout': 0.2,
    }  # fmt: skip


def test_adapters_resume_and_their_base_stays(train, adapter):
    resumed, whole = train('resumed', 2, **adapter), train('whole', 4, **adapter)
    train('resumed', 4, **adapter)
    loaded, expected, first = llm_jax.load(resumed), llm_jax.load(whole), llm_jax.load(resumed, 2)
    for tree in (loaded.params, first.params):
        assert leaves_of(tree).keys() == leaves_of(expected.params).keys()
    held, adapters = lora.detach(loaded.params)
    held_before, adapters_before = lora.detach(first.params)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, expected.params)
    jax.tree.map(np.testing.assert_array_equal, held, held_before)
    assert not any(
        np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (adapters, adapters_before)), strict=True)
    )
    losses = lambda run: [line['loss'] for line in read_jsonl(run / 'metrics.jsonl')]
    assert losses(resumed) == losses(whole)
    stored = jax.tree_util.tree_leaves_with_path(
        ocp.PyTreeCheckpointHandler().metadata(resumed / 'checkpoints/4/train').tree
    )
    paths = [jax.tree_util.keystr(path, simple=True, separator='/') for path, _ in stored]
    moments = [path for path in paths if '/mu/' in path or '/nu/' in path]
    assert moments and all('/lora/' in path for path in moments)


@pytest.mark.slow
def test_adapters_are_merged_where_they_go_elsewhere(train, adapter, tmp_path):
    """Into a Hugging Face directory, and into the base of another stage."""
    run_dir = train('merged', 2, **adapter)
    loaded = llm_jax.load(run_dir)
    convert.to_hf(run_dir, tmp_path / 'merged')
    family, config = hf.read_config(tmp_path / 'merged')
    params = hf.load_params(tmp_path / 'merged', family, config.model)
    tokens = np.random.default_rng(0).integers(0, 60, (2, 9))
    logits = loaded.model.apply({'params': loaded.params}, tokens)
    merged = llm_jax.nn.transformer.Transformer(config.model).apply({'params': params}, tokens)
    np.testing.assert_allclose(merged, logits, rtol=1e-3, atol=1e-4)
    onward = llm_jax.load(train('onward', 2, init_from=run_dir, **{'optimizer.learning_rate': 0.0}))
    assert not any(lora.is_adapter(path) for path in lora._flat(onward.params))
    again = onward.model.apply({'params': onward.params}, tokens)
    np.testing.assert_allclose(again, logits, rtol=1e-3, atol=1e-4)


def test_an_adapter_needs_a_base(train):
    with pytest.raises(
        ConfigError, match=r"model.adapter.kind = 'lora' changes a model that was trained; name it with"
    ):
        train('nothing', 1, **{'model.adapter.kind': 'lora'})
