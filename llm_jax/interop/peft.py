"""PEFT's files, adapter_config.json and adapter_model.safetensors, in and out.

Their names follow from the table of the family: the module of 'X.weight' has 'base_model.model.X.lora_A.weight' [r, in]
and 'lora_B.weight' [out, r], with the scale lora_alpha / r (over √r with use_rslora).

A tensor that holds several of our matrices has one adapter there. Read, each matrix gets its A and its part of B.
Written, the ranks lie side by side, with 0 in B where a rank is another matrix's, unless all have the same A.
"""

from collections.abc import Iterable, Mapping
import dataclasses
import json
import os
import pathlib
import re
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from llm_jax.adapt import lora
from llm_jax.config.schema import Adapter, ConfigError
from llm_jax.interop import files, hf, tensors
from llm_jax.models.layouts import Layout
from llm_jax.nn.transformer import Transformer

CONFIG, WEIGHTS = 'adapter_config.json', 'adapter_model.safetensors'
_PREFIX = 'base_model.model.'
_PART = re.compile(r'(.+)\.(?:lora_(A|B)\.weight|lora_embedding_(A|B)|lora_(magnitude)_vector(?:\.weight)?)')
# The table of a base, which PEFT writes beside an adapter of it.
_BASE = '.base_layer.weight'
# What would change the product in a way that is not said here: field -> values that do not.
_ONLY: dict[str, tuple] = {
    'peft_type': ('LORA',),
    'bias': ('none', None),
    'lora_bias': (False, None),
    'modules_to_save': (None, []),
    'trainable_token_indices': (None,),
    'target_parameters': (None, []),
    'layer_replication': (None,),
    'alora_invocation_tokens': (None,),
    'use_qalora': (False, None),
    'use_bdlora': (None, False),
}


@dataclasses.dataclass(frozen=True)
class _Module:
    """A module of PEFT's with an adapter: the tensor of its weight, and how B lies in it."""

    tensor: tensors.Tensor

    @property
    def name(self) -> str:
        return self.tensor.name.removesuffix('.weight')

    @property
    def is_table(self) -> bool:
        return self.tensor.leaves[0].endswith('/embedding')

    @property
    def n_in(self) -> int:
        return 1 if self.is_table else self.tensor.layout.n_in

    @property
    def outputs(self) -> list[tuple[int, ...]]:
        """Shapes of the outputs of our matrices in it."""
        return [shape[self.n_in :] for shape in self.tensor.shapes]

    @property
    def layout(self) -> Layout:
        """That of B [r, *out] in a tensor [out, r]; `axis` counts dimensions with outputs first."""
        ours = self.tensor.layout
        axis = ours.axis - ours.n_in if ours.kind == 'conv1d' else ours.axis
        return Layout('linear', n_in=1, axis=max(axis, 0))


# --- Out -----------------------------------------------------------------------------------


def save(
    model: Transformer, params: Any, directory: str | os.PathLike, *, family: str = '', base: str | None = None
) -> str:
    """Writes the adapters of a model.

    Args:
      model: its config says rank and scale.
      params: with adapters beside their kernels.
      directory: where to; new or empty.
      family: whose names; '' takes the first that can say all of the base.
      base: the name or directory of the base, for who loads it.

    Returns:
      the name of the family.

    Raises:
      ConfigError: no adapters, the directory is in use, or no family can say what the base is.
    """
    directory = pathlib.Path(directory)
    if directory.exists() and any(directory.iterdir()):
        raise ConfigError(f'{directory} is not empty; write to a new directory')
    plain = dataclasses.replace(model.config, adapter=Adapter())
    family = family or hf.find_family(plain)
    leaves = tensors.flat(params)
    if not any(lora.is_adapter(path) for path in leaves):
        raise ConfigError(
            f'there are no adapters to write to {directory}; model.adapter.kind is {plain.adapter.kind!r}'
        )
    adapter, written, ranks = model.config.adapter, {}, {}
    all_modules = [_Module(tensor) for tensor in tensors.tensors(plain, hf.find_module(family))]
    for module in all_modules:
        if parts := _parts(module, leaves):
            made = _joined(module, parts, lambda path: _norms(model, leaves, path), adapter)
            written |= {f'{_PREFIX}{module.name}.{name}': value for name, value in made.items()}
            ranks[module.name] = made['lora_embedding_A' if module.is_table else 'lora_A.weight'].shape[0]
    other = {name: rank for name, rank in ranks.items() if rank != adapter.rank}
    alpha = lambda rank: adapter.scale * (rank**0.5 if adapter.rslora else rank)
    layouts = {module.tensor.layout.kind for module in all_modules if module.name in ranks}
    said = {
        'peft_type': 'LORA', 'task_type': 'CAUSAL_LM', 'base_model_name_or_path': base, 'inference_mode': True,
        'r': adapter.rank, 'lora_alpha': adapter.alpha, 'lora_dropout': adapter.dropout,
        'use_rslora': adapter.rslora, 'use_dora': adapter.kind == 'dora', 'bias': 'none', 'init_lora_weights': True,
        'fan_in_fan_out': 'conv1d' in layouts, 'modules_to_save': None,
        'target_modules': _suffixes(ranks, [module.name for module in all_modules]),
        'rank_pattern': other, 'alpha_pattern': {name: alpha(rank) for name, rank in other.items()},
    }  # fmt: skip
    directory.mkdir(parents=True, exist_ok=True)
    held = {name: np.ascontiguousarray(value, np.float32) for name, value in written.items()}
    save_file(held, directory / WEIGHTS, metadata={'format': 'pt'})
    (directory / CONFIG).write_text(json.dumps(said, indent=2) + '\n')
    return family


def _parts(module: _Module, leaves: Mapping[str, Any]) -> dict[int, dict[str, np.ndarray]]:
    """The adapters of our matrices in a tensor, by their place in it."""
    out = {}
    for i, path in enumerate(module.tensor.leaves):
        place = f'{path.rpartition("/")[0]}/{lora.NAME}'
        if path.endswith(('/kernel', '/embedding')) and f'{place}/a' in leaves:
            names = [name for name in ('a', 'b', 'magnitude') if f'{place}/{name}' in leaves]
            out[i] = {name: np.asarray(leaves[f'{place}/{name}'][module.tensor.at]) for name in names}
    return out


def _joined(module: _Module, parts: dict[int, dict[str, np.ndarray]], norms_of: Any, adapter: Adapter) -> dict:
    """PEFT's tensors of a module, by the end of their names."""
    A_parts = [part['a'].reshape(-1, part['a'].shape[-1]).T for part in parts.values()]
    shared = len(parts) == len(module.outputs) and all(np.array_equal(A, A_parts[0]) for A in A_parts)
    A = A_parts[0] if shared else np.concatenate(A_parts)
    blocks, first = [], 0
    for i, outputs in enumerate(module.outputs):
        block = np.zeros((len(A), *outputs), np.float32)
        if i in parts:
            b = parts[i]['b']
            block[first : first + len(b)] = b
            first += 0 if shared else len(b)
        blocks.append(block)
    B = module.layout.write(blocks)
    if module.is_table:
        return {'lora_embedding_A': A, 'lora_embedding_B': B}
    out = {'lora_A.weight': A, 'lora_B.weight': B}
    if adapter.kind == 'dora':
        known = {i: part['magnitude'] for i, part in parts.items()}
        sizes = [known[i] if i in known else norms_of(path)[module.tensor.at]
                 for i, path in enumerate(module.tensor.leaves)]  # fmt: skip
        out['lora_magnitude_vector'] = module.layout.write([np.asarray(size)[None] for size in sizes])[:, 0]
    return out


def _suffixes(adapted: Iterable[str], modules: list[str]) -> list[str]:
    """The shortest ends of names that only modules with adapters have; PEFT compares with the ends of names."""
    adapted, out = set(adapted), {}
    for name in sorted(adapted):
        words = name.split('.')
        for n in range(1, len(words) + 1):
            end = '.'.join(words[-n:])
            if all(other in adapted for other in modules if other == end or other.endswith(f'.{end}')):
                out[end] = None
                break
    return list(out)


# --- In ------------------------------------------------------------------------------------


def load(
    directory: str | os.PathLike, model: Transformer, params: Any, *, family: str = ''
) -> tuple[Transformer, dict[str, Any]]:
    """(the model with adapters, the adapters), read for a base.

    Matrices of a stack that have none there get one that changes nothing and is never trained.

    Args:
      directory: with adapter_config.json and adapter_model.safetensors.
      model: of the base.
      params: of the base.
      family: whose names; '' takes the one that they are of, of those that can say all of the base.

    Raises:
      ConfigError: what is not supported, or does not fit the base.
    """
    directory = pathlib.Path(directory)
    said = _read_config(directory / CONFIG)
    model = Transformer(dataclasses.replace(model.config, adapter=Adapter()))
    reader = files.Reader(directory, only=WEIGHTS)
    found: dict[str, dict[str, np.ndarray]] = {}
    module_of, head = _find_modules(reader, model, family)
    for name in reader.shapes:
        if name.endswith(_BASE):
            _check_base(reader, name, module_of, tensors.flat(params))
            continue
        matched = _PART.fullmatch(name.removeprefix(_PREFIX))
        if not matched:
            raise ConfigError(f'{directory / WEIGHTS} has {name!r}, which is no tensor of LoRA; write it without')
        part = next(group for group in matched.groups()[1:] if group)
        whole = tuple(slice(0, size) for size in reader.shapes[name])
        found.setdefault(matched[1], {})[part] = np.asarray(reader.fetch(name, whole), np.float32)
    _check_modules(directory, found, module_of, head, model)
    rank = max(len(parts['A']) for parts in found.values())
    scale = _scale(said, said['r'], said['lora_alpha'])
    rslora = bool(said.get('use_rslora'))
    alpha = scale * (rank**0.5 if rslora else rank)
    arrays: dict[str, np.ndarray] = {}
    stacks = {path: leaf.shape for path, leaf in tensors.flat(tensors.shapes_of(model.config)).items()}
    known = lora.adaptable(model)
    for name, parts in found.items():
        module = module_of[name]
        _check_shapes(directory, name, parts, module)
        own = _scale(said, _pattern(said, 'rank_pattern', name, said['r']),
                     _pattern(said, 'alpha_pattern', name, said['lora_alpha']))  # fmt: skip
        _spread(module, parts, own / scale, rank, arrays, known, stacks)
    if said.get('use_dora'):
        _fill_magnitudes(model, params, arrays, known)
    targets = '|'.join(sorted(re.escape(path) for path in known if f'{known[path].place}/a' in arrays))
    adapter = Adapter(kind='dora' if said.get('use_dora') else 'lora', rank=rank, alpha=alpha, rslora=rslora,
                      targets=targets, dropout=said.get('lora_dropout') or 0.0)  # fmt: skip
    config = dataclasses.replace(model.config, adapter=adapter)
    return Transformer(config), tensors.nested({path: jnp.asarray(value) for path, value in arrays.items()})


def _find_modules(reader: files.Reader, model: Transformer, family: str) -> tuple[dict[str, _Module], str]:
    """(modules by name, the name of the output head) of a family; of several, the one that the file's names are of."""
    candidates = [family] if family else hf.find_families(model.config)
    best = (-1, {}, '')
    for module in map(hf.find_module, candidates):
        known = {}
        for tensor in tensors.tensors(model.config, module):
            known[tensor.name.removesuffix('.weight')] = _Module(tensor)
        count = sum(name.removeprefix(_PREFIX).partition('.lora_')[0] in known for name in reader.shapes)
        if count > best[0]:
            best = (count, known, hf.find_head(module).removesuffix('.weight'))
    return best[1:]


def _read_config(file: pathlib.Path) -> dict[str, Any]:
    if not file.is_file():
        raise ConfigError(f'{file.parent} has no {CONFIG}: it is no directory of a PEFT adapter')
    said = files.read_object(file)
    for field, allowed in _ONLY.items():
        if field in said and said[field] not in allowed:
            raise ConfigError(
                f'{file}: {field} = {said[field]!r} is not supported, only {allowed[0]!r}; train or merge it without'
            )
    for field in ('r', 'lora_alpha'):
        if not isinstance(said.get(field), int | float):
            raise ConfigError(f'{file}: {field} = {said.get(field)!r} must be a number; copy it again')
    return said


def _check_base(reader: files.Reader, name: str, module_of: Mapping[str, _Module], leaves: Mapping[str, Any]) -> None:
    """Raises: ConfigError: a matrix of the base that is another than ours."""
    module = module_of.get(name.removeprefix(_PREFIX).removesuffix(_BASE))
    whole = tuple(slice(0, size) for size in reader.shapes[name])
    if module is not None:
        tensor = module.tensor
        own = tensor.layout.write([np.asarray(leaves[path][tensor.at]) for path in tensor.leaves])
        found = np.asarray(reader.fetch(name, whole), np.float32)
        # Of a base that was rounded to bfloat16, as well.
        if own.shape == found.shape and np.allclose(own, found, rtol=1e-2, atol=1e-3 * np.abs(own).max()):
            return
    raise ConfigError(
        f'{reader.directory / WEIGHTS} has {name!r}, and it is not that of this base (resized, or trained as a whole): '
        'merge the adapter there, and read the merged model'
    )


def _check_modules(
    directory: pathlib.Path, found: Mapping[str, Any], module_of: Mapping[str, _Module], head: str, model: Transformer
) -> None:
    if not found:
        raise ConfigError(f'{directory / WEIGHTS} holds no adapters')
    known = lora.adaptable(model)
    can = {name: module for name, module in module_of.items() if all(path in known for path in module.tensor.leaves)}
    for name, parts in found.items():
        if model.config.tie_embeddings and (name == head or (name in can and can[name].is_table)):
            raise ConfigError(
                f'{directory} has an adapter of {name}, but embedding and output head are one matrix here '
                '(model.tie_embeddings = True): it would change both; untie the base first (adapt.lora.untie), or '
                'train the adapter without it'
            )
        if name not in can:
            near = ', '.join(sorted({other.rpartition('.')[2] for other in can}))
            raise ConfigError(
                f'{directory} has an adapter of {name}, and the base has no such matrix that can have one; there are '
                f'{near}'
            )
        if not {'A', 'B'} <= parts.keys():
            raise ConfigError(f'{directory / WEIGHTS} has only {", ".join(sorted(parts))} of {name}; copy it again')


def _check_shapes(directory: pathlib.Path, name: str, parts: Mapping[str, np.ndarray], module: _Module) -> None:
    n_in = int(np.prod(module.tensor.shapes[0][: module.n_in]))
    n_out = sum(int(np.prod(outputs)) for outputs in module.outputs)
    rank = parts['A'].shape[0]
    wanted = {'A': (rank, n_in), 'B': (n_out, rank), 'magnitude': (n_out,)}
    for part, value in parts.items():
        if value.shape != wanted[part]:
            raise ConfigError(
                f'{directory}: lora_{part} of {name} has shape {list(value.shape)}; of this base it would be '
                f'{list(wanted[part])}'
            )


def _spread(
    module: _Module,
    parts: Mapping[str, np.ndarray],
    factor: float,
    rank: int,
    arrays: dict[str, np.ndarray],
    known: Mapping[str, lora.Target],
    stacks: Mapping[str, tuple[int, ...]],
) -> None:
    """Puts the parts of a module into the adapters of our matrices; those of a stack begin as 0."""
    A, B = parts['A'], parts['B'] * np.float32(factor)
    r = len(A)
    shapes = [(r, *outputs) for outputs in module.outputs]
    for i, path in enumerate(module.tensor.leaves):
        target = known[path]
        inputs, outputs = target.shape[: target.n_in], target.shape[target.n_in :]
        lead = stacks[path][: 1 if target.stack else 0]
        whole = tuple(slice(0, size) for size in shapes[i])
        made = {'a': A.T.reshape(*inputs, r), 'b': module.layout.read(lambda s: B[s], shapes, i, whole)}
        empty = {'a': (*lead, *inputs, rank), 'b': (*lead, rank, *outputs)}
        if 'magnitude' in parts:
            sizes = [(1, *outputs) for outputs in module.outputs]
            index = tuple(slice(0, size) for size in sizes[i])
            made['magnitude'] = module.layout.read(lambda s: parts['magnitude'][:, None][s], sizes, i, index)[0]
            empty['magnitude'] = (*lead, *outputs)
        for name, value in made.items():
            fill = np.nan if name == 'magnitude' else 0
            array = arrays.setdefault(f'{target.place}/{name}', np.full(empty[name], fill, np.float32))
            held = array[module.tensor.at]
            held[tuple(slice(0, size) for size in value.shape)] = value


def _fill_magnitudes(
    model: Transformer, params: Any, arrays: dict[str, np.ndarray], known: Mapping[str, lora.Target]
) -> None:
    """Magnitudes of layers without an adapter: the norms of their kernels."""
    for path, target in known.items():
        name = f'{target.place}/magnitude'
        if name in arrays and np.isnan(arrays[name]).any():
            norms = _norms(model, tensors.flat(params), path)
            arrays[name] = np.where(np.isnan(arrays[name]), norms, arrays[name])


def _norms(model: Transformer, leaves: Mapping[str, Any], path: str) -> np.ndarray:
    """Norms of the inputs of each output of a kernel, layers of a stack first."""
    target = lora.adaptable(model)[path]
    first = 1 if target.stack else 0
    kernel = np.asarray(leaves[path], np.float32)
    return np.sqrt(np.sum(np.square(kernel), tuple(range(first, first + target.n_in))))


def _scale(said: Mapping[str, Any], rank: float, alpha: float) -> float:
    return alpha / (rank**0.5 if said.get('use_rslora') else rank)


def _pattern(said: Mapping[str, Any], field: str, module: str, default: float) -> float:
    """What a pattern of PEFT's says of a module: the first key that matches the end of its name."""
    for key, value in (said.get(field) or {}).items():
        if re.fullmatch(rf'(.*\.)?({key})', module):
            return value
    return default
