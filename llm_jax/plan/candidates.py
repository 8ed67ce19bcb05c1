"""Candidates of a search: meshes, remat policies and micro-batches, as overrides of an experiment."""

from collections.abc import Iterator
import dataclasses
import math

from llm_jax.config import freeze_rules, parts
from llm_jax.config.schema import Config, ConfigError
from llm_jax.dist import mesh as mesh_lib
from llm_jax.dist.fit import check_fit
from llm_jax.plan.topology import Machine

# Field -> value.
Changes = dict[str, object]

REMAT = ('none', 'attention', 'dots', 'offload', 'full')
# Rows of so many tokens may be worth sharing among devices.
_LONG = 16_384
_SPLIT_STREAM = ('context', 'tensor')
# Whether speed or memory comes first in the head.
HEAD_ONCE = 'train.gather_head_once'


def candidates(config: Config, machine: Machine) -> Iterator[Changes]:
    """Every mesh, remat policy and number of micro-batches that the model allows on a machine.

    On the way: sharing the residual stream over `tensor`, rows over `context` where they are long or shared already,
    stages where the experiment has them. Nothing that changes what is computed: not the batch, not a dtype.
    """
    base = changed(config, {'mesh.pipeline_microbatches': 0})
    for sizes in _meshes(config, machine):
        mesh = {f'mesh.{axis}': n for axis, n in sizes.items()}
        rules = dict(config.model.rules)
        shards = math.prod(sizes[axis] for axis in mesh_lib.mesh_axes(rules['batch']))
        streams = [rules['residual_length']]
        if sizes['tensor'] > 1 and sizes['stage'] == 1 and _SPLIT_STREAM not in streams:
            streams.append(_SPLIT_STREAM)
        for stream in streams:
            split = {**mesh, 'mesh.rules.residual_length': stream}
            for micro in _micro_batches(config.train.batch_size, shards, sizes['stage']):
                if not _fits(changed(base, {**split, **micro}), sizes):
                    continue
                for remat in dict.fromkeys((*REMAT, config.model.remat)):
                    yield {**split, **micro, 'model.remat': remat, HEAD_ONCE: config.train.gather_head_once}


def _micro_batches(batch_size: int, shards: int, stages: int) -> Iterator[Changes]:
    """With stages the batch runs through them in as many pieces as there are rows, or half, or a quarter."""
    rows = batch_size // shards
    if stages == 1:
        for n in _divisors(rows):
            yield {'train.grad_accumulation': n, 'mesh.pipeline_microbatches': 0}
    else:
        for part in (1, 2, 4):
            if rows * stages // part >= stages and rows * stages % (part * stages) == 0:
                yield {'train.grad_accumulation': 1, 'mesh.pipeline_microbatches': rows * stages // part}


def _meshes(config: Config, machine: Machine) -> Iterator[dict[str, int]]:
    """Meshes over the machine; of the axes that the model has no use for, one device."""
    model, n = config.model, machine.devices
    powers = lambda most: [d for d in _divisors(n) if d <= most]
    tensors = powers(min(16, model.n_heads))
    contexts = powers(16) if config.mesh.context != 1 or config.data.seq_len >= _LONG else [1]
    experts = powers(min(64, model.moe.n_experts)) if parts.feed_forward(model).is_mixture(model) else [1]
    stages = powers(16) if config.mesh.stage != 1 else [1]
    # Whole copies beyond those of the slices seldom pay: few are tried.
    datas = [machine.slices * copies for copies in (1, 2, 8)]
    for tensor in tensors:
        for context in contexts:
            for expert in experts:
                for stage in stages:
                    for data in datas:
                        rest = tensor * context * expert * stage * data
                        if n % rest == 0:
                            yield {'data': data, 'stage': stage, 'fsdp': n // rest, 'expert': expert,
                                   'context': context, 'tensor': tensor}  # fmt: skip


def _fits(config: Config, sizes: dict[str, int]) -> bool:
    try:
        check_fit(config, sizes)
    except ConfigError:
        return False
    return True


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def changed(config: Config, changes: Changes) -> Config:
    """The config with some fields replaced, and what follows from them filled in again."""
    for field, value in changes.items():
        section, *middle, name = field.split('.')
        if middle:
            (table,) = middle
            name, value = table, {**getattr(getattr(config, section), table), name: value}
        config = dataclasses.replace(
            config, **{section: dataclasses.replace(getattr(config, section), **{name: value})}
        )
    mesh = config.mesh
    filled = {'rules': freeze_rules(mesh.rules), 'pipeline': (mesh.pipeline_microbatches, mesh.pipeline_repeats)}
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **filled))


def as_it_stands(config: Config, sizes: dict[str, int]) -> Changes:
    """The experiment itself in the fields of a candidate."""
    return {
        **{f'mesh.{axis}': n for axis, n in sizes.items()},
        'mesh.rules.residual_length': dict(config.model.rules)['residual_length'],
        'train.grad_accumulation': config.train.grad_accumulation,
        'mesh.pipeline_microbatches': config.mesh.pipeline_microbatches,
        'model.remat': config.model.remat,
        HEAD_ONCE: config.train.gather_head_once,
    }


def flags(changes: Changes) -> str:
    """The command-line form: `--config.mesh.fsdp=64 ...`."""
    written = lambda value: f'"{value}"' if isinstance(value, tuple) else value
    return ' '.join(f'--config.{field}={written(value)}' for field, value in changes.items())


def short(changes: Changes) -> str:
    """'fsdp 64 × tensor 8, stream split, remat full, 4 micro-batches'."""
    axes = ' × '.join(f'{axis} {n}' for axis in mesh_lib.AXES if (n := changes.get(f'mesh.{axis}', 1)) != 1)
    stream = changes['mesh.rules.residual_length']
    split = ', stream split' if 'tensor' in mesh_lib.mesh_axes(stream) and changes['mesh.tensor'] > 1 else ''
    micro = changes['train.grad_accumulation'] * (changes['mesh.pipeline_microbatches'] or changes['mesh.stage'])
    head = '' if changes[HEAD_ONCE] else ', head per slice'
    return (
        f'{axes or "1 device"}{split}, remat {changes["model.remat"]}, {micro} micro-batch{"es" * (micro != 1)}{head}'
    )
