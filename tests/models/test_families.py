"""Every family against recorded logits of transformers (tools/bench/make_references.py); needs neither it nor torch."""

import pathlib

from families import CASES, CONTEXT, write_weights
import jax
import numpy as np
import pytest

from llm_jax import models
from llm_jax.interop import hf, tensors
from llm_jax.nn.transformer import Transformer

RECORDED = pathlib.Path(__file__).resolve().parents[1] / 'data' / 'families'


@pytest.mark.parametrize('name', CASES)
def test_logits_as_recorded(name, tmp_path):
    write_weights(tmp_path, CASES[name], {})
    family, config = hf.read_config(tmp_path, CONTEXT.get(name))
    shapes = {tensor.name: tensor.shape for tensor in tensors.tensors(config.model, family)}
    write_weights(tmp_path, CASES[name], shapes)
    params = hf.load_params(tmp_path, family, config.model)
    recorded = np.load(RECORDED / f'{name}.npz')
    model = Transformer(config.model)
    logits = jax.jit(lambda params, tokens: model.apply({'params': params}, tokens))(params, recorded['tokens'])
    error = np.abs(logits - recorded['logits']).max() / np.abs(recorded['logits']).max()
    assert error < 1e-4


def test_every_family_is_recorded():
    """Twice at least, but for those whose weights were never published."""
    for name, module in models.FAMILIES.items():
        cases = [case for case in CASES if case.partition('.')[0] == name]
        assert len(cases) >= 2 or not module.MODEL_TYPE, name
    assert {path.stem for path in RECORDED.glob('*.npz')} == set(CASES)
