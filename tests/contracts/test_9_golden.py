"""Contract 9: the first steps of each family, to the fourth digit, from the real initialisation.

After a change that is meant to change them, rewrite the record and say why in the commit:

    GOLDEN=write python -m pytest tests/contracts/test_9_golden.py
"""

import json
import os
import pathlib

import jax
import pytest
from tiny import BOS, GPT2, LLAMA, packed_tokens, tiny_config, tiny_model

from llm_jax.nn.transformer import init_params, parameters_of
from llm_jax.train.optimizer import Span, make_optimizer, make_schedule
from llm_jax.train.state import init_state
from llm_jax.train.step import make_train_step

RECORD = pathlib.Path(__file__).with_name('golden.json')
FAMILIES = {'gpt2': GPT2, 'llama': LLAMA}


def first_steps(family: str) -> list[dict[str, float]]:
    config = tiny_config(**FAMILIES[family], optimizer__learning_rate=1e-2)
    model = tiny_model(config)
    schedule = make_schedule(config.schedule, config.optimizer.learning_rate, Span(10, 2, 0, 0.1))
    shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    optimizer = make_optimizer(config.optimizer, schedule, shapes, parameters_of(model))
    state = jax.jit(lambda key: init_state(model, optimizer, key, with_ema=False))(jax.random.key(0))
    step = jax.jit(make_train_step(model, config, optimizer, schedule, bos_id=BOS))
    record = []
    for i in range(3):
        state, metrics = step(state, packed_tokens(8, seed=i))
        record.append({name: float(metrics[name]) for name in ('loss', 'grad_norm')})
    return record


@pytest.mark.parametrize('family', FAMILIES)
def test_golden(family):
    record = json.loads(RECORD.read_text())
    got = first_steps(family)
    if os.environ.get('GOLDEN') == 'write':
        RECORD.write_text(json.dumps(record | {family: got}, indent=2) + '\n')
        pytest.skip(f'rewrote {family} in {RECORD.name}')
    for step, expected in zip(got, record[family], strict=True):
        assert step == pytest.approx(expected, rel=1e-4)
