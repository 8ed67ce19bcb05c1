"""A model from its directory on the mesh of the devices at hand."""

import jax
import numpy as np
import pytest

from llm_jax import runs
from llm_jax.config.schema import ConfigError
from llm_jax.evals import devices
from llm_jax.evals.run import Evaluation
from llm_jax.evals.sources import Sources
from llm_jax.interop import convert

TEXTS = ['Once upon a time there was a little dog.', 'The sun was hot.']


def test_a_model_is_opened_on_the_mesh_that_is_asked_for(shared_data, tmp_path):
    checkpoint = shared_data / 'checkpoint'
    run = tmp_path / 'run'
    convert.from_llama2c(checkpoint / 'stories260K.bin', run, tokenizer=str(checkpoint / 'tok512.bin'))
    alone = Evaluation(runs.load(run), Sources([])).roll(TEXTS)
    assert jax.device_count() == 8
    with devices.open_model(run, {'mesh.fsdp': '4', 'mesh.tensor': '2'}) as loaded:
        assert dict(jax.sharding.get_abstract_mesh().shape)['tensor'] == 2
        assert len({str(leaf.sharding.spec) for leaf in jax.tree.leaves(loaded.params)}) > 1
        np.testing.assert_allclose(Evaluation(loaded, Sources([])).roll(TEXTS), alone, atol=1e-4)
    assert jax.sharding.get_abstract_mesh().empty


def test_a_mesh_that_does_not_fit_and_other_fields_are_refused(tmp_path):
    (tmp_path / 'config.json').write_text('{}')
    for fields, error in (
        ({'model.d_model': '3'}, '--config.model.d_model: only the mesh may differ from the run'),
        ({'mesh.fsdp': '3'}, 'does not fit 8 device'),
    ):
        with pytest.raises(ConfigError, match=error), devices.open_model(tmp_path, fields):
            pass
