"""Checkpoints: the only file that knows Orbax.

`<run>/checkpoints/<step>/` holds four items: `params`, `ema` (where there is one),
`train` (step and optimizer state) and `meta` (JSON), so that a later stage reads the
parameters alone. Saves are asynchronous and atomic: a directory gets its final name when
it is complete, and nothing else is ever loaded.

A checkpoint is saved before it is evaluated, so that an evaluation that fails costs no
checkpoint. What the evaluation gives is written to `<run>/evaluations.json` (step ->
metrics) afterwards, and decides which checkpoint is the best from the next save on.
"""

from collections.abc import Sequence
import json
import math
from typing import Any

from etils import epath
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import orbax.checkpoint as ocp

from llm_jax.config import schema
from llm_jax.config.schema import ConfigError

# A checkpoint's items are named trees, e.g. {'params': ..., 'train': ...}.
Items = dict[str, Any]


class Checkpoints:
    """The checkpoints of one run directory."""

    def __init__(self, run_dir: str | epath.Path, config: schema.Checkpoint, *, read_only: bool = False) -> None:
        """Opens `run_dir`/checkpoints, to be kept as `config` says.

        Half-written checkpoints of a killed run are removed, unless `read_only`: then the
        run may be going on.
        """
        policies = ocp.checkpoint_managers
        self._evaluations_file = epath.Path(run_dir) / 'evaluations.json'
        self._evaluations = _read_evaluations(self._evaluations_file)
        keep = [policies.LatestN(config.keep)]
        if config.keep_best:
            keep.append(_KeepBest(self._evaluations))
        self._directory = epath.Path(run_dir).resolve() / 'checkpoints'
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(keep),
                cleanup_tmp_directories=not read_only,
                create=not read_only,
                enable_async_checkpointing=True,
            ),
        )

    @property
    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """The steps of all complete checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, items: Items, meta: dict[str, Any]) -> None:
        """Starts to write a checkpoint; returns once the arrays are copied off the device.

        Args:
          step: optimizer steps taken.
          items: named trees of arrays.
          meta: JSON.

        Raises:
          ConfigError: the disk is full or not writable (of this save or the one before).
        """
        args = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
        with _disk_errors(self._directory):
            self._manager.save(
                step,
                args=ocp.args.Composite(meta=ocp.args.JsonSave(meta), **args),
                force=True,
            )

    def record_evaluation(self, step: int, metrics: dict[str, float]) -> None:
        """Notes the metrics of a step's parameters; to be called in every process of a job.

        Args:
          step: optimizer steps taken.
          metrics: 'val/loss' decides which checkpoint is the best.

        Raises:
          ConfigError: the disk is full or not writable.
        """
        self._evaluations[step] = metrics
        if jax.process_index() == 0:
            text = json.dumps({str(s): m for s, m in self._evaluations.items()}, indent=2) + '\n'
            with _disk_errors(self._directory):
                write_atomically(self._evaluations_file, text)

    def restore(self, step: int, shapes: Items, mesh: Mesh | None) -> Items:
        """Reads named trees, laid out on `mesh` whatever mesh they were saved from.

        Args:
          step: one of `steps()`.
          shapes: trees of `jax.ShapeDtypeStruct`, from `jax.eval_shape` under the mesh.
          mesh: where to; None means the default device.

        Raises:
          ConfigError: the checkpoint cannot be read or holds other shapes.
        """
        args = {name: ocp.args.StandardRestore(_placed(tree, mesh)) for name, tree in shapes.items()}
        path = self._directory / str(step)
        if differ := _differences(path, shapes):
            more = f', and {len(differ) - 3} more' if len(differ) > 3 else ''
            raise ConfigError(
                f'the checkpoint {path} is of another model: {"; ".join(differ[:3])}{more}. Set config.model as it '
                'was there (config.json of that run), or take another checkpoint'
            )
        try:
            return dict(self._manager.restore(step, args=ocp.args.Composite(**args)).items())
        except (ValueError, KeyError, OSError) as error:
            raise ConfigError(
                f'the checkpoint {path} cannot be read as this model: {_first_line(error)}. If it is damaged, '
                'delete that directory and the one before it is used'
            ) from error

    def meta(self, step: int) -> dict[str, Any]:
        """The JSON saved with a checkpoint."""
        return self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))['meta']

    def has(self, step: int, item: str) -> bool:
        """True if a checkpoint holds this item."""
        return (self._directory / str(step) / item).exists()

    def wait(self) -> None:
        """Returns when everything saved is on disk."""
        with _disk_errors(self._directory):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, then lets go of the directory."""
        self.wait()
        self._manager.close()


def write_atomically(file: epath.Path, text: str) -> None:
    """Writes a file that a reader sees whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.parent / f'.{file.name}.partial'
    partial.write_text(text)
    partial.replace(file)  # `rename` refuses a file that exists, on a bucket


class _KeepBest(ocp.checkpoint_managers.PreservationPolicy):
    """Preserves the checkpoint with the lowest validation loss among those that were evaluated."""

    def __init__(self, evaluations: dict[int, dict[str, float]]) -> None:
        """Args: evaluations: step -> metrics; read anew at every save."""
        self._evaluations = evaluations

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """One boolean for each checkpoint; at most one is true."""
        del context
        # Earlier versions kept the metrics in the checkpoint.
        metrics = [self._evaluations.get(info.step) or info.metrics or {} for info in checkpoints]
        losses = [of_step.get('val/loss', math.inf) for of_step in metrics]
        best = losses.index(min(losses)) if losses else -1
        return [i == best and loss < math.inf for i, loss in enumerate(losses)]


def _read_evaluations(file: epath.Path) -> dict[int, dict[str, float]]:
    """Step -> metrics; empty if nothing was evaluated."""
    return {int(step): metrics for step, metrics in json.loads(file.read_text()).items()} if file.exists() else {}


class _disk_errors:  # noqa: N801 - used like a function
    """Turns an error of the file system into one clear message."""

    def __init__(self, directory: epath.Path) -> None:
        self._directory = directory

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, _: Any) -> None:
        cause = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__cause__ or cause.__context__
        no_space = error is not None and 'no space left' in str(error).lower()
        if cause is not None or no_space:
            raise ConfigError(
                f'no checkpoint could be written to {self._directory}: {_first_line(cause or error)}. '
                'The checkpoints that are complete are untouched: make room and run the same command again'
            ) from error


def _placed(tree: Any, mesh: Mesh | None) -> Any:
    """Shapes with a concrete sharding: Orbax would otherwise restore the mesh that was saved."""

    def place(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        if mesh is None:
            sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        else:
            spec, memory = (leaf.sharding.spec, leaf.sharding.memory_kind) if leaf.sharding else (PartitionSpec(), None)
            sharding = NamedSharding(mesh, spec, memory_kind=memory)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(place, tree)


def _differences(path: epath.Path, shapes: Items) -> list[str]:
    """Arrays that a checkpoint has in other shapes than these, lacks, or has alone; none if that cannot be read."""
    named = lambda tree: {
        jax.tree_util.keystr(place, simple=True, separator='/'): list(leaf.shape)
        for place, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    differ = []
    for item, tree in shapes.items():
        try:
            there = named(ocp.PyTreeCheckpointHandler().metadata(path / item).tree)
        except (ValueError, KeyError, OSError):
            return []
        here = named(tree)
        for name in sorted({*there, *here}):
            if there.get(name) != here.get(name):
                differ.append(f'{item}/{name} is {there.get(name, "not")} there and {here.get(name, "not")} here')
    return differ


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
