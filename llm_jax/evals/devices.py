"""The model that is judged, on the devices at hand: one, the mesh of its run, several hosts."""

from collections.abc import Iterator, Mapping
import contextlib
import os

from etils import epath
import jax

from llm_jax import config as config_lib
from llm_jax import hub, runs
from llm_jax.config.schema import Config, ConfigError
from llm_jax.dist import hosts, mesh
from llm_jax.interop import hf


@contextlib.contextmanager
def open_model(
    path: str | os.PathLike, fields: Mapping[str, str], *, step: int | None = None, max_seq_len: int | None = None
) -> Iterator[runs.Loaded]:
    """The model; while it is open, its mesh is the current one, and the processes of a job are joined.

    Args:
      path: as of `runs.load`.
      fields: of the config, `{'mesh.fsdp': '4'}`, over those of the run.
      step: of the checkpoint; None takes the newest.
      max_seq_len: the context to use the model at; None takes its own.

    Raises:
      ConfigError: as `runs.load`, or a mesh that does not fit the devices.
    """
    config = _read_config(path, fields)
    with hosts.job(config):
        if jax.device_count() == 1:
            yield runs.load(path, step, max_seq_len=max_seq_len)
            return
        sizes = mesh.make_mesh(config.mesh).shape
        loaded = runs.load(path, step, max_seq_len=max_seq_len, sizes=sizes)
        with contextlib.nullcontext() if loaded.mesh is None else jax.set_mesh(loaded.mesh):
            yield loaded


def _read_config(path: str | os.PathLike, fields: Mapping[str, str]) -> Config:
    """The config of a run, or the default one of weights from elsewhere, with fields of the mesh changed."""
    for field in fields:
        if not field.startswith('mesh.'):
            raise ConfigError(f'--config.{field}: only the mesh may differ from the run; leave it out')
    is_run = not hub.is_spec(path) and not hf.is_hf(path)
    values = config_lib.default()
    if is_run:
        values.mesh.update(config_lib.to_dict(runs.read_config(epath.Path(path)))['mesh'])
    config_lib.apply_overrides(values, fields)
    return config_lib.validate(values)
