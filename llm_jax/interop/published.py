"""Published models as experiments, by name: what `show` and `plan` take beside experiment files."""

import pathlib

import ml_collections

from llm_jax import config as config_lib
from llm_jax import hub, models
from llm_jax.config.schema import ConfigError
from llm_jax.interop import hf


def experiment(name: str) -> ml_collections.ConfigDict:
    """The experiment of a file, or one that trains a published model at its whole context.

    Of a model of the Hub, config.json and the tokenizer are downloaded, and no weights.

    Args:
      name: 'FILE.py', 'FAMILY:SIZE', 'hf:OWNER/NAME', 'hf:OWNER/NAME@REVISION', 'hf:DIR' or DIR,
        a directory of Hugging Face.

    Raises:
      ConfigError: none of these, or a model that is not supported.
    """
    if name.endswith('.py'):
        return config_lib.load_experiment(name)
    if not hub.is_spec(name) and not pathlib.Path(name).is_dir():
        if ':' not in name:
            raise ConfigError(
                f'{name!r} is no experiment: name a file that ends in .py, a published model such as llama:3.1-8b, '
                'hf:OWNER/NAME, or a directory of Hugging Face'
            )
        return models.experiment(name)
    _, fields = hf.read_fields(hub.fetch_tokenizer(name))
    return models.to_experiment(hub.short_name(name), fields)
