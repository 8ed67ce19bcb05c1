"""Checks that an experiment fits a mesh, before anything is compiled: every sharded dimension has to divide."""

import math

from llm_jax.config import parts, schema
from llm_jax.config.facts import Dimension
from llm_jax.config.schema import Config, ConfigError
from llm_jax.dist.mesh import AXES, mesh_axes

# Logical axes that some array has together: no mesh axis can split two of one array's.
_TOGETHER = (
    ('vocab', 'd_model'), ('position', 'd_model'), ('d_model', 'heads', 'd_head'),
    ('d_model', 'kv_heads', 'd_head'), ('rank', 'heads', 'd_head'), ('experts', 'd_model', 'd_ff'),
    ('vocab', 'residual'), ('position', 'residual'),
    *(('batch', 'length', *rest) for rest in
      (('heads', 'd_head'), ('kv_heads', 'd_head'), ('d_ff',), ('vocab',))),
    ('batch', 'residual_length', 'residual'),
)  # fmt: skip


def check_fit(config: Config, sizes: dict[str, int]) -> None:
    """Checks that every split dimension divides, before anything is compiled.

    Args:
      config: the experiment.
      sizes: mesh axis -> size, from `axis_sizes`.

    Raises:
      ConfigError: naming the field, its value, and the axes that must divide it.
    """
    _check_rules(dict(config.model.rules))
    _check_pipeline(config, sizes)
    model, micro_batch = config.model, config.train.batch_size // config.train.grad_accumulation
    dimensions = [
        ('train.batch_size / train.grad_accumulation', micro_batch, 'batch'),
        ('model.d_model', model.d_model, 'd_model'),
        ('model.vocab_size', model.vocab_size, 'vocab'),
        *_of_layers(model),
    ]
    batch = mesh_axes(dict(model.rules)['batch'])
    for axis in mesh_axes(dict(model.rules)['experts']):
        if sizes[axis] > 1 and axis not in batch and any(logical == 'experts' for _, _, logical in dimensions):
            raise ConfigError(
                f'mesh.rules.experts = {axis!r} is an axis that does not split the batch (mesh.rules.batch = {batch}): '
                'tokens go to the devices of their experts from all of them. Add it to mesh.rules.batch'
            )
    for field, value, logical in dimensions:
        axes = [axis for axis in mesh_axes(dict(model.rules)[logical]) if sizes[axis] > 1]
        n = math.prod(sizes[axis] for axis in axes)
        if value % n:
            axes_text = ' × '.join(f'{axis} {sizes[axis]}' for axis in axes)
            raise ConfigError(
                f'{field} = {value} cannot be split over mesh {axes_text}: it must be a multiple of {n}. '
                f'Change it (e.g. to {math.ceil(value / n) * n}), the mesh, or mesh.rules.{logical}'
            )

    _check_length(config.data.seq_len, dict(model.rules), sizes)


def _check_length(length: int, rules: dict, sizes: dict[str, int]) -> None:
    used = lambda name: [axis for axis in mesh_axes(rules[name]) if sizes[axis] > 1]
    row, stream = used('length'), used('residual_length')
    if stream[: len(row)] != row:
        raise ConfigError(
            f'mesh.rules.residual_length = {rules["residual_length"]!r} must begin with the axes of '
            f'mesh.rules.length = {rules["length"]!r}: it may only split the residual stream further'
        )
    chunks = 2 * math.prod(sizes[axis] for axis in row) if row else 1
    n = math.lcm(chunks, math.prod(sizes[axis] for axis in stream))
    if length % n:
        why = ' (two chunks of each row on a device, so that causal attention is even)' if row else ''
        axes = ' × '.join(f'{axis} {sizes[axis]}' for axis in stream)
        raise ConfigError(
            f'data.seq_len = {length} cannot be split over mesh {axes}: it must be a multiple of {n}{why}. '
            f'Change it (e.g. to {math.ceil(length / n) * n}), the mesh, or mesh.rules.length'
        )


def _of_layers(model: schema.Model) -> list[Dimension]:
    """Collects the dimensions that a mesh may split, from the parts of all layers."""
    layers = dict.fromkeys(map(model.layer, range(model.n_layers)))
    kinds = [(kind, layer) for layer in layers for kind in (parts.attention(layer), parts.feed_forward(layer))]
    return list(dict.fromkeys(dimension for part, layer in kinds for dimension in part.dimensions(layer)))


def _check_pipeline(config: Config, sizes: dict[str, int]) -> None:
    """Checks that layers and micro-batches can be split over the stages (ops/pipeline.py)."""
    model, rules, stages = config.model, dict(config.model.rules), sizes['stage']
    if rules['layers'] not in (None, 'stage'):
        raise ConfigError(f"mesh.rules.layers = {rules['layers']!r}: layers are split over 'stage', or None")
    if stages == 1 or not rules['layers']:
        return
    if mesh_axes(rules['batch'])[:1] != ('stage',):
        raise ConfigError(
            f"mesh.rules.batch = {rules['batch']!r} has to begin with 'stage' on mesh stage {stages}: "
            'outside of the pipeline the rows are split over the stages, too'
        )
    microbatches, repeats = model.pipeline
    size, n_first = max(1, len(model.pattern)), len(model.first_layers)
    n_stacked = (model.n_layers - n_first) // size
    if n_stacked % (stages * repeats) or not n_stacked:
        unit, first = (
            (f' patterns of {size}' if size > 1 else ' layers'),
            (f' after the first {n_first}' * (n_first > 0)),
        )
        fits = [n for n in range(2, n_stacked + 1) if n_stacked % (n * repeats) == 0]
        use = f'mesh.stage = {" or ".join(map(str, fits))}' if fits else 'mesh.stage = 1'
        n = -(-max(1, n_stacked) // (stages * repeats)) * stages * repeats
        raise ConfigError(
            f'model.n_layers = {model.n_layers} has {n_stacked}{unit}{first}, which cannot be split over mesh stage '
            f'{stages} × mesh.pipeline_repeats = {repeats}: it must be a multiple of {stages * repeats}. Use {use}, '
            f'or model.n_layers = {n_first + n * size}'
        )
    if microbatches % stages:
        fewer = 'fewer than' if microbatches < stages else 'no multiple of'
        raise ConfigError(
            f'mesh.pipeline_microbatches = {microbatches} is {fewer} mesh stage {stages}: the stages take micro-batches '
            f'in blocks of {stages}. Use {-(-microbatches // stages) * stages}, or 0 for one each'
        )
    rows = config.train.batch_size // config.train.grad_accumulation
    axes = [axis for axis in mesh_axes(rules['batch'])[1:] if sizes[axis] > 1]
    n = (microbatches or stages) * math.prod(sizes[axis] for axis in axes)
    if rows % n:
        split = ' × '.join(
            ['micro-batches ' + str(microbatches or stages), *(f'{axis} {sizes[axis]}' for axis in axes)]
        )
        raise ConfigError(
            f'train.batch_size / train.grad_accumulation = {rows} cannot be split over {split}: it must be a '
            f'multiple of {n}. Use {-(-rows // n) * n}, or another mesh.pipeline_microbatches'
        )


def _check_rules(rules: dict) -> None:
    for logical, entry in rules.items():
        for axis in mesh_axes(entry):
            if axis not in AXES:
                raise ConfigError(f'mesh.rules.{logical} = {axis!r} is no mesh axis; there are {", ".join(AXES)}')
    for array in _TOGETHER:
        taken = {}
        for logical in array:
            for axis in mesh_axes(rules[logical]):
                if axis in taken:
                    raise ConfigError(
                        f'mesh.rules.{logical} = {rules[logical]!r}: {axis!r} already splits '
                        f'{taken[axis]!r} of the same arrays; use another axis, or None'
                    )
                taken[axis] = logical
