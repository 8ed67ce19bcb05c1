"""The run directory: what an experiment leaves behind, and how later stages find it.

runs/<name>/config.json      the resolved config
            experiment.py    the file it came from, with any parts it defines
            tokenizer/       the tokenizer
            checkpoints/     by step
            evaluations.json of checkpoints, by step
            metrics.jsonl, samples.jsonl, run.json, report.html, report.md, tensorboard/
"""

from collections.abc import Mapping
import contextlib
import dataclasses
import json
import math
from typing import Any

from etils import epath
import jax
from jax.sharding import Mesh

from llm_jax import config as config_lib
from llm_jax import hub
from llm_jax.adapt.start import param_shapes
from llm_jax.checkpoint import Checkpoints, write_atomically
from llm_jax.config import moved
from llm_jax.config.parts import EXPERIMENT
from llm_jax.config.schema import Config, ConfigError, Model
from llm_jax.dist import mesh as mesh_lib
from llm_jax.dist.fit import check_fit
from llm_jax.interop import hf
from llm_jax.nn.transformer import Transformer, build, weights_of
from llm_jax.ops.quantised import quantise_params
from llm_jax.tokenizer import Tokenizer, find

# A change of these makes another model, other data or another stage: the checkpoints no longer fit. The last three
# decide which rows a step reads: with others, some rows would be read again and some never.
_FIXED = (
    'model', 'data.seq_len', 'data.tokenizer', 'train.objective', 'train.trainable', 'train.batch_size', 'seed',
    'data.mixture', 'chat.template',
)  # fmt: skip
# Fields of `model` that change how it is computed, not what it is.
_FREE = (
    'model.scan',
    'model.scan_unroll',
    'model.remat',
    'model.dtype',
    'model.matmul',
    'model.dropout',
    'model.adapter.dropout',
)


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A trained model: `model.apply({'params': params}, tokens)` gives logits [B, L, V].

    Attributes:
      model: the Linen module.
      params: nested dict, float32; of a run with adapters, these beside the kernels, and the base as it is held;
        matrices are `Quantised` where config.model.quantised says so.
      tokenizer: the one it was trained with; None if there is none.
      config: of the experiment.
      step: of the checkpoint.
      mesh: that the parameters are laid out on; None is the default device.
    """

    model: Transformer
    params: Any
    tokenizer: Tokenizer | None
    config: Config
    step: int
    mesh: Mesh | None = None


def load(
    path: str | epath.Path,
    step: int | None = None,
    *,
    max_seq_len: int | None = None,
    sizes: Mapping[str, int] | None = None,
) -> Loaded:
    """Reads a run directory, or one of Hugging Face: model, parameters, tokenizer and config.

    Parameters come from the averaged ones (EMA) where the run kept them.

    Args:
      path: a run directory, such as 'runs/quickstart', one with a config.json of Hugging Face and
        safetensors, or a model of the Hub, 'hf:OWNER/NAME' or 'hf:OWNER/NAME@REVISION'.
      step: which checkpoint of a run; None takes the newest.
      max_seq_len: the context to use the model at; None takes that of its config.
      sizes: axes of the mesh that parameters are laid out on, such as {'tensor': 4}; None or all 1: the default
        device. Decode under `jax.set_mesh(loaded.mesh)`.

    Raises:
      ConfigError: not such a directory, no (such) checkpoint in it, a model that is not
        supported or does not divide on the mesh, or a max_seq_len that its learned positions do not have.
    """
    path = hub.fetch_model(path)
    if hf.is_hf(path):
        return _load_hf(path, step, max_seq_len, sizes)
    run_dir = epath.Path(path)
    config = read_config(run_dir)
    has_tokenizer = (run_dir / 'tokenizer').exists()  # weights from elsewhere may have come without
    tokenizer = find(run_dir / 'tokenizer') if has_tokenizer else None
    tokenizer = tokenizer and tokenizer.limit(config.model.vocab_size)
    vocab_size = tokenizer.vocab_size if tokenizer else config.model.vocab_size
    laid, mesh = _lay_out(config, sizes or {})
    model = build(laid, vocab_size=vocab_size, seq_len=config.data.seq_len)
    if max_seq_len is not None:
        model = Transformer(hf.with_context(model.config, max_seq_len))
    checkpoints = Checkpoints(run_dir, config.checkpoint, read_only=True)
    step = pick_step(checkpoints, run_dir, step)
    with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
        shapes = param_shapes(model)
        if kind := config.model.quantised:
            shapes = jax.eval_shape(lambda params: quantise_params(params, weights_of(model), kind), shapes)
        item = 'ema' if checkpoints.has(step, 'ema') else 'params'
        params = checkpoints.restore(step, {item: shapes}, mesh)[item]
    return Loaded(model, params, tokenizer, config, step, mesh)


def _lay_out(config: Config, sizes: Mapping[str, int]) -> tuple[Model, Mesh | None]:
    """Makes the mesh of a model that is not trained, over the first devices; None where one is all.

    A vocabulary that does not divide is left whole: many do not, and the rest of the model does.
    """
    n_devices, model = math.prod(sizes.values()), config.model
    if n_devices == 1:
        return model, None
    if n_devices > jax.device_count():
        asked = ' × '.join(f'{axis} {n}' for axis, n in sizes.items() if n > 1)
        raise ConfigError(f'{asked} needs {n_devices} devices; there are {jax.device_count()}')
    whole = dict.fromkeys(mesh_lib.AXES, 1) | dict(sizes)
    n_parts = math.prod(whole[axis] for axis in mesh_lib.mesh_axes(dict(model.rules)['vocab']))
    if model.vocab_size % n_parts:
        model = dataclasses.replace(model, rules=tuple((dict(model.rules) | {'vocab': None}).items()))
    axes = dataclasses.replace(config.mesh, **whole)
    train = dataclasses.replace(config.train, batch_size=n_devices, grad_accumulation=1)
    check_fit(dataclasses.replace(config, model=model, mesh=axes, train=train), whole)
    return model, mesh_lib.make_mesh(axes, jax.devices()[:n_devices])


def _load_hf(
    path: str | epath.Path, step: int | None, max_seq_len: int | None, sizes: Mapping[str, int] | None
) -> Loaded:
    if step is not None:
        raise ConfigError(f'{path} is no run directory and has no step {step}')
    family, config = hf.read_config(path, max_seq_len)
    model, mesh = _lay_out(config, sizes or {})
    params = hf.load_params(path, family, model, mesh)
    tokenizer = find(path)
    tokenizer = tokenizer and tokenizer.limit(config.model.vocab_size)
    return Loaded(Transformer(model), params, tokenizer, config, 0, mesh)


def pick_step(checkpoints: Checkpoints, run_dir: epath.Path, step: int | None) -> int:
    """The wanted step, or the newest.

    Raises:
      ConfigError: there is none.
    """
    steps = checkpoints.steps()
    if not steps:
        raise ConfigError(f'{run_dir} holds no complete checkpoint yet; train it first')
    if step is not None and step not in steps:
        raise ConfigError(f'{run_dir} holds no checkpoint of step {step}; there are {", ".join(map(str, steps))}')
    return step if step is not None else steps[-1]


def read_config(run_dir: epath.Path) -> Config:
    """The config of a run directory.

    Raises:
      ConfigError: there is none, or it cannot be read.
    """
    file = run_dir / 'config.json'
    if not file.exists():
        near = sorted(p.parent.name for p in run_dir.parent.glob('*/config.json')) if run_dir.parent.exists() else []
        hint = f'; {run_dir.parent} has {", ".join(near)}' if near else ''
        raise ConfigError(f'{run_dir} is not a run directory: it has no config.json{hint}')
    values = _read_values(file)
    here = f'{run_dir / EXPERIMENT}:'
    try:
        return config_lib.from_dict(_replace_prefix(values, f'{EXPERIMENT}:', here))
    except ConfigError as error:  # a run of another version, or a file changed by hand
        raise ConfigError(f'{file}: {error}') from error


def has_begun(run_dir: epath.Path) -> bool:
    """Whether a run directory holds a checkpoint, of the config that is there."""
    kept = run_dir / 'checkpoints'
    return (run_dir / 'config.json').exists() and kept.exists() and any(path.name.isdigit() for path in kept.iterdir())


def check_config(run_dir: epath.Path, config: Config, experiment: epath.Path | None) -> None:
    """Refuses to turn a run into another; arguments as of `write_config`.

    Raises:
      ConfigError: the directory's checkpoints belong to another model or other rows, with the difference.
    """
    file = run_dir / 'config.json'
    if has_begun(run_dir):
        pair = moved.rename_fields(_read_values(file)), _values(config, experiment)
        old, new = (_flat(json.loads(json.dumps(values))) for values in pair)
        # Fields that the version of the old run did not have had their default.
        old = {name: value for name, value in _flat(config_lib.to_dict(Config())).items() if name not in old} | old
        changed = [
            f'{key}: {old.get(key)!r} -> {new.get(key)!r}'
            for key in sorted(old.keys() | new.keys())
            if old.get(key) != new.get(key) and key.startswith(_FIXED) and key not in _FREE
        ]
        if changed:
            raise ConfigError(
                f'{run_dir} holds checkpoints of another run ({"; ".join(changed)}). Undo the change, '
                'or train it elsewhere: --workdir DIR, or another config.name; --config.init_from='
                f'{run_dir} begins there with the parameters of this run'
            )


def write_config(run_dir: epath.Path, config: Config, experiment: epath.Path | None) -> None:
    """Writes config.json and the experiment's copy.

    Args:
      run_dir: where to.
      config: resolved.
      experiment: the file that the config came from.
    """
    write_atomically(run_dir / 'config.json', json.dumps(_values(config, experiment), indent=2) + '\n')
    if experiment is not None:
        write_atomically(run_dir / EXPERIMENT, experiment.read_text())


def _values(config: Config, experiment: epath.Path | None) -> dict[str, Any]:
    """The config as config.json has it: parts that the experiment defines are those of its copy."""
    values = config_lib.to_dict(config)
    return values if experiment is None else _replace_prefix(values, f'{experiment}:', f'{EXPERIMENT}:')


def _read_values(file: epath.Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text())
    except ValueError as error:
        raise ConfigError(f'{file} is not valid JSON: {error}') from error
    if not isinstance(values, dict):
        raise ConfigError(f'{file} holds a {type(values).__name__}, not the fields of a config')
    return values


def _flat(values: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
    out = {}
    for key, value in values.items():
        out.update(_flat(value, f'{prefix}{key}.') if isinstance(value, dict) else {f'{prefix}{key}': value})
    return out


def _replace_prefix(values: Any, old: str, new: str) -> Any:
    if isinstance(values, dict):
        return {key: _replace_prefix(value, old, new) for key, value in values.items()}
    if isinstance(values, str) and values.startswith(old):
        return new + values.removeprefix(old)
    return values
