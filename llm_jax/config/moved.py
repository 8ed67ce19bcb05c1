"""Names in an old run directory that have changed since: modules of its experiment.py, fields of its config.json.

The copy of the experiment is executed as it was written. While that lasts, and only then,
the old names of modules are found; new code has to use the new ones. Fields are renamed
as config.json is read; an experiment that sets an old one is told the new one.
"""

from collections.abc import Iterator, Mapping
import contextlib
import importlib
import importlib.abc
import importlib.machinery
import sys
import types
from typing import Any

_OPS = ('attend', 'dispatch', 'grouped', 'matmul', 'pipeline', 'product', 'remat', 'zigzag')
_ATTEND = ('blocks', 'choose', 'cudnn', 'scores', 'splash', 'xla')
_PRETRAIN = (
    'deepseek_moe', 'gpt2_124m', 'gpt3_175b', 'llama3_70b', 'llama3_8b', 'long_context_128k', 'mixtral_8x7b',
    'shakespeare', 'tinystories_10m', 'value_embeddings',
)  # fmt: skip
# Old name of a module -> its name now.
MOVED = {
    **{f'llm_jax.{name}': f'llm_jax.config.{name}' for name in ('cli', 'parts', 'schema')},
    **{f'llm_jax.{name}': f'llm_jax.dist.{name}' for name in ('fit', 'hosts', 'mesh', 'slices')},
    **{f'llm_jax.nn.{name}': f'llm_jax.ops.{name}' for name in _OPS},
    **{f'llm_jax.nn.attend.{name}': f'llm_jax.ops.attend.{name}' for name in _ATTEND},
    'llm_jax.data.records': 'llm_jax.data.array_record',
    'llm_jax.data.source': 'llm_jax.data.batches',
    'llm_jax.data.sources': 'llm_jax.corpus.read.plain',
    'llm_jax.train.records': 'llm_jax.train.run_log',
    'llm_jax.evals.compare': 'llm_jax.lab.compare_data',
    **{f'llm_jax.train.{name}': f'llm_jax.lab.{name}' for name in ('coord_check', 'transfer', 'trial', 'widths')},
    'llm_jax.train.extrapolate': 'llm_jax.lab.extrapolate',
    **{f'experiments.{name}': f'experiments.pretrain.{name}' for name in _PRETRAIN},
    **{f'experiments.{name}': f'experiments.lab.{name}' for name in ('ablation', 'extrapolation', 'mup_transfer')},
}

# Old path of a field -> its path now, in the same section.
FIELDS = {
    'model.moe.capacity': 'model.moe.capacity_factor',
    'model.moe.bias_rate': 'model.moe.bias_update_rate',
    'mesh.stage_microbatches': 'mesh.pipeline_microbatches',
    'mesh.stage_repeats': 'mesh.pipeline_repeats',
    'optimizer.m_dtype': 'optimizer.mu_dtype',
    'schedule.floor': 'schedule.final_lr_ratio',
    'train.notices': 'train.watch_preemption',
}


def rename_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a stored config, a JSON-ready nested dict, with the old fields under their names of today."""

    def renamed(value: Any, path: str) -> Any:
        if isinstance(value, Mapping):
            inside = lambda key: f'{path}.{key}'.lstrip('.')
            name = lambda key: FIELDS[inside(key)].rpartition('.')[2] if inside(key) in FIELDS else key
            return {name(key): renamed(inner, inside(key)) for key, inner in value.items()}
        return value

    def renamed_in_layer(entry: Any) -> Any:
        pairs = entry.items() if isinstance(entry, Mapping) else entry
        return [(FIELDS.get(f'model.{name}', f'model.{name}').removeprefix('model.'), value) for name, value in pairs]

    out = renamed(values, '')
    for name in ('pattern', 'first_layers'):
        if name in out.get('model', {}):
            out['model'][name] = [renamed_in_layer(entry) for entry in out['model'][name]]
    return out


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports the module of today under its old name."""

    def find_spec(self, name: str, path: object, target: object = None) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(name, self) if name in MOVED else None

    def exec_module(self, module: types.ModuleType) -> None:
        # The import system takes what is in sys.modules afterwards.
        sys.modules[module.__name__] = importlib.import_module(MOVED[module.__name__])


@contextlib.contextmanager
def old_names() -> Iterator[None]:
    """Within it, imports find the modules of `MOVED` under their old names."""
    finder = _Finder()
    sys.meta_path.append(finder)  # last: a name that exists is what it says
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in MOVED.keys() & sys.modules.keys():
            del sys.modules[name]
            package, _, leaf = name.rpartition('.')
            if package in sys.modules:
                vars(sys.modules[package]).pop(leaf, None)
