"""Hugging Face directories: config.json and safetensors, in and out."""

import dataclasses
import json
import os
import pathlib
import re
import types
from typing import Any

from jax.sharding import Mesh

from llm_jax import config as config_lib
from llm_jax import models
from llm_jax.config import parts
from llm_jax.config.schema import Config, ConfigError, Model
from llm_jax.interop import files, tensors
from llm_jax.interop.same import differences
from llm_jax.models.hf_config import original_len

# Largest file that is written, unless one tensor is larger.
MAX_BYTES = 5_000_000_000


def is_hf(directory: str | os.PathLike) -> bool:
    """Whether this is such a directory: its config.json has a model_type (that of a run has not)."""
    file = pathlib.Path(directory) / 'config.json'
    return file.is_file() and 'model_type' in _json(file)


def read_fields(directory: str | os.PathLike) -> tuple[types.ModuleType, dict[str, Any]]:
    """The family of a directory, and the fields of `model` in its config.json.

    Raises:
      ConfigError: no config.json, or something in it that is not supported.
    """
    file = pathlib.Path(directory) / 'config.json'
    if not file.is_file():
        raise ConfigError(f'{directory} has no config.json')
    values = _json(file)
    if values.get('quantization_config'):
        method = values['quantization_config'].get('quant_method')
        raise ConfigError(f'{file}: quantised weights ({method}) cannot be read; take those before quantisation')
    family = models.by_model_type(values.get('model_type', ''))
    return family, family.from_hf(values)


def read_config(directory: str | os.PathLike, max_seq_len: int | None = None) -> tuple[types.ModuleType, Config]:
    """The family of a directory, and an experiment's config with its model.

    Args:
      directory: with config.json.
      max_seq_len: the context to use the model at; None takes that of config.json.

    Raises:
      ConfigError: what is not supported, or a longer context than learned positions.
    """
    family, fields = read_fields(directory)
    config = to_config(fields, pathlib.Path(directory).resolve().name)
    if max_seq_len is not None:
        data = dataclasses.replace(config.data, seq_len=min(config.data.seq_len, max_seq_len))
        config = dataclasses.replace(config, model=with_context(config.model, max_seq_len), data=data)
    return family, config


def with_context(model: Model, max_seq_len: int) -> Model:
    """The model used at another context than it was trained at.

    Raises:
      ConfigError: it has a learned vector for each position.
    """
    if parts.position(model).has_table(model) and max_seq_len != model.max_seq_len:
        raise ConfigError(f'max_seq_len = {max_seq_len}: this model has learned {model.max_seq_len} positions')
    rope = dataclasses.replace(model.rope, original_len=original_len(model))
    return dataclasses.replace(model, max_seq_len=max_seq_len, rope=rope)


def to_config(fields: dict[str, Any], name: str) -> Config:
    """An experiment's config with these fields of `model`; the rest is at its default."""
    config = config_lib.default()
    config.name = name
    config.model.update(fields)
    config.data.seq_len = min(config.data.seq_len, fields['max_seq_len'])
    return config_lib.validate(config)


def load_params(
    directory: str | os.PathLike, family: types.ModuleType, model: Model, mesh: Mesh | None = None
) -> dict[str, Any]:
    """The parameters of a directory, float32, read piece by piece to where they lie.

    Args:
      directory: with safetensors.
      family: of its config.json.
      model: from `read_config`.
      mesh: where to; None means the default device.

    Raises:
      ConfigError: a tensor is missing, left over or of another shape; or a damaged file.
    """
    reader = files.Reader(directory)
    wanted = tensors.tensors(model, family)
    outer = {row[1] for row in family.OUTER}
    shapes, full = {}, {}
    for name, shape in reader.shapes.items():
        # A checkpoint of the bare model leaves out the prefix.
        bare = family.BASE and not any(known.startswith(family.BASE) for known in reader.shapes)
        whole = family.BASE + name if bare and name not in outer else name
        shapes[whole], full[whole] = shape, name
    embedding, head = wanted[0].name, find_head(family)
    if model.tie_embeddings and head in shapes:
        if embedding not in shapes:  # files keep a shared tensor under one of its names
            shapes[embedding], full[embedding] = shapes.pop(head), full[head]
        elif shapes[head] == shapes[embedding]:
            _check_tied(reader, full[head], full[embedding])
            del shapes[head]
    passed_over = re.compile(family.BUFFERS.replace('{n_layers}', str(model.n_layers)))
    tensors.check(wanted, shapes, lambda name: passed_over.fullmatch(name) is not None)
    return tensors.load(model, wanted, lambda name, index: reader.fetch(full[name], index), mesh)


def find_head(family: types.ModuleType) -> str:
    """The name of the output head in a checkpoint."""
    (head,) = (row[1] for row in family.OUTER if row[0] == 'unembed/kernel')
    return head


def _check_tied(reader: files.Reader, head: str, embedding: str) -> None:
    rows, step = reader.shapes[head][0], 4096
    for start in range(0, rows, step):
        piece = (slice(start, min(start + step, rows)), slice(0, reader.shapes[head][1]))
        if (reader.fetch(head, piece) != reader.fetch(embedding, piece)).any():
            raise ConfigError(f'config.json says tie_word_embeddings, but {head!r} is not {embedding!r}')


def save(
    model: Model, params: Any, directory: str | os.PathLike, *, family: str = '', dtype: str = 'float32',
    max_bytes: int = MAX_BYTES, more: dict[str, Any] | None = None,
) -> str:  # fmt: skip
    """Writes config.json and safetensors.

    Args:
      model: complete, as in `Transformer.config`.
      params: its parameters.
      directory: where to; new or empty.
      family: whose form; '' takes the first that can say all of the model.
      dtype: of the tensors, 'float32' or 'bfloat16'.
      max_bytes: largest file.
      more: further entries of config.json, such as bos_token_id.

    Returns:
      the name of the family.

    Raises:
      ConfigError: no family (or not this one) can say what the model is, or the
        directory is in use.
    """
    directory = pathlib.Path(directory)
    if directory.exists() and any(directory.iterdir()):
        raise ConfigError(f'{directory} is not empty; write to a new directory')
    if model.adapter.kind != 'none':
        raise ConfigError(
            f'model.adapter.kind = {model.adapter.kind!r}: merge the adapters first (adapt.lora.merge), or write them '
            'alone (interop.peft.save)'
        )
    family = family or find_family(model)
    module = find_module(family)
    if problems := unsaid(model, module):
        raise ConfigError(f'a {module.MODEL_TYPE} config.json cannot say {"; ".join(problems)}')
    wanted = tensors.tensors(model, module)
    shapes = {tensor.name: tensor.shape for tensor in wanted}
    files.write(directory, shapes, tensors.values(wanted, params), dtype, max_bytes)
    said = {'architectures': [module.ARCHITECTURE], 'model_type': module.MODEL_TYPE, **module.to_hf(model)}
    # Said, because what is not said has a default there, which may be no token of this vocabulary.
    said |= dict.fromkeys(('bos_token_id', 'eos_token_id', 'pad_token_id')) | {'torch_dtype': dtype} | (more or {})
    (directory / 'config.json').write_text(json.dumps(said, indent=2) + '\n')
    return family


def find_family(model: Model) -> str:
    """The first family whose config.json can say all that the model is.

    Raises:
      ConfigError: there is none, with what stands in the way of the nearest.
    """
    return find_families(model)[0]


def find_families(model: Model) -> list[str]:
    """All such families; at least one.

    Raises:
      ConfigError: as `find_family`.
    """
    problems = {name: unsaid(model, module) for name, module in models.FAMILIES.items() if module.MODEL_TYPE}
    if found := [name for name, these in problems.items() if not these]:
        return found
    # A family that has no word for a part is further off than one with another value of a field.
    nearest = min(problems, key=lambda name: (not problems[name][0].startswith('model.'), len(problems[name])))
    raise ConfigError(
        f'no family can say what this model is; the nearest, {nearest}, cannot say {"; ".join(problems[nearest])}'
    )


def unsaid(model: Model, family: types.ModuleType) -> list[str]:
    """What would be lost of a model in the family's config.json: translated there and back, it differs in this."""
    try:
        said = {'model_type': family.MODEL_TYPE, **family.to_hf(model)}
        back = to_config(family.from_hf(said), 'back').model
    except ConfigError as error:
        return [str(error)]
    return differences(model, dataclasses.replace(back, rules=model.rules, pipeline=model.pipeline))


def find_module(name: str) -> types.ModuleType:
    """The module of a family that has checkpoints.

    Raises:
      ConfigError: there is none of this name.
    """
    known = {key: module for key, module in models.FAMILIES.items() if module.MODEL_TYPE}
    if name not in known:
        raise ConfigError(f'family {name!r} has no checkpoints there; known: {", ".join(known)}')
    return known[name]


def _json(file: pathlib.Path) -> dict[str, Any]:
    return files.read_object(file)
