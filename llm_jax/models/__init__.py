"""Model families: each is a config of the same modules.

A family's file holds its sizes, the translation of its config.json in both directions,
and the table of its tensors. What is fixed in it:

    MODEL_TYPE, ARCHITECTURE   of config.json; '' where the family has no such form
    SIZES                      name -> fields of `model`
    from_hf(config), to_hf(model)
    OUTER, LAYER               rows (ours, theirs, layout); LAYER's follow the prefix LAYERS
    BASE                       prefix that checkpoints of the bare model leave out
    BUFFERS                    regex of tensors that are passed over, such as buffers; may say {n_layers}
"""

import copy
import types
from typing import Any

import ml_collections

from llm_jax import config as config_lib
from llm_jax.config.parts import nearest
from llm_jax.config.schema import ConfigError
from llm_jax.models import (
    deepseek_v2,
    deepseek_v3,
    gemma2,
    gemma3,
    gpt2,
    gpt3,
    gpt_neox,
    gpt_oss,
    llama,
    mistral,
    mixtral,
    olmo2,
    phi3,
    qwen2,
    qwen3,
    qwen3_moe,
)

FAMILIES: dict[str, types.ModuleType] = {
    'gpt2': gpt2,
    'gpt3': gpt3,
    'gpt_neox': gpt_neox,
    'llama': llama,
    'mistral': mistral,
    'mixtral': mixtral,
    'qwen2': qwen2,
    'qwen3': qwen3,
    'qwen3_moe': qwen3_moe,
    'gemma2': gemma2,
    'gemma3': gemma3,
    'olmo2': olmo2,
    'phi3': phi3,
    'gpt_oss': gpt_oss,
    'deepseek_v2': deepseek_v2,
    'deepseek_v3': deepseek_v3,
}


def preset(name: str) -> dict[str, Any]:
    """The fields of `model` of a published model: `config.model.update(preset('gpt2:124m'))`.

    Args:
      name: 'FAMILY:SIZE'.

    Raises:
      ConfigError: no such family or size, with those that there are.
    """
    family, _, size = name.partition(':')
    if family not in FAMILIES:
        raise ConfigError(f'there is no family {family!r}{nearest(family, FAMILIES)} Known: {", ".join(FAMILIES)}')
    sizes = FAMILIES[family].SIZES
    if size not in sizes:
        names = [f'{family}:{known}' for known in sizes]
        raise ConfigError(f'there is no preset {name!r}{nearest(name, names)} Known: {", ".join(names)}')
    return copy.deepcopy(sizes[size])


def experiment(name: str) -> ml_collections.ConfigDict:
    """An experiment that trains a published model at its whole context: `preset` in the default config.

    Raises:
      ConfigError: as `preset`.
    """
    return to_experiment(name.replace(':', '-'), preset(name))


def to_experiment(name: str, fields: dict[str, Any]) -> ml_collections.ConfigDict:
    """An experiment that trains a model with these fields of `model` at its whole context."""
    config = config_lib.default()
    config.name = name
    config.model.update(fields)
    config.data.seq_len = config.model.max_seq_len
    return config


def by_model_type(model_type: str) -> types.ModuleType:
    """The family of a config.json.

    Raises:
      ConfigError: none is of this type.
    """
    known = {family.MODEL_TYPE: family for family in FAMILIES.values() if family.MODEL_TYPE}
    if model_type not in known:
        raise ConfigError(
            f'model_type {model_type!r} is not supported{nearest(model_type, known)} Known: {", ".join(known)}'
        )
    return known[model_type]
