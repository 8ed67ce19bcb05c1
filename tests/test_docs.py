"""The code that the documents print runs as it is printed."""

import pathlib
import re

import jax
from tiny import LLAMA, tiny_config, tiny_model

from llm_jax import config as config_lib
from llm_jax.config import parts
from llm_jax.nn.transformer import init_params, parameters_of
from llm_jax.train.optimizer import make_optimizer

ROOT = pathlib.Path(__file__).parents[1]


def snippet(document, name):
    """The block of Python in a document that defines this."""
    blocks = re.findall(r'```python\n(.*?)```', (ROOT / document).read_text(), re.DOTALL)
    return next(block for block in blocks if re.search(rf'^(def|class) {name}\b', block, re.MULTILINE))


def test_the_part_in_the_readme(tmp_path):
    file = tmp_path / 'mine.py'
    file.write_text(snippet('README.md', 'ReluCubed'))
    config = config_lib.validate(config_lib.load_experiment(file))
    assert config.model.feed_forward == f'{file}:ReluCubed'
    model = tiny_model(tiny_config(**LLAMA | {'feed_forward': config.model.feed_forward}))
    params = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))['layers']['feed_forward']
    assert {name: w['kernel'].shape for name, w in params.items()} == {'up': (2, 32, 96), 'down': (2, 96, 32)}


def test_the_optimizer_in_the_page_on_mup(tmp_path):
    file = tmp_path / 'rule.py'
    file.write_text(snippet('docs/mup.md', 'ademamix'))
    config = tiny_config(**LLAMA, optimizer__name=f'{file}:ademamix', optimizer__options__b3=0.999)
    assert parts.named(config.optimizer, 'name', 'optimizer').__name__ == 'ademamix'
    model = tiny_model(config)
    params = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    optimizer = make_optimizer(config.optimizer, lambda step: 0.1, params, parameters_of(model))
    assert jax.eval_shape(optimizer.init, params)
