"""Checkpoints: the only file that knows Orbax.

`<run>/checkpoints/<step>/` holds four items: `params`, `ema` (where there is one),
`train` (step and optimizer state) and `meta` (JSON), so that a later stage reads the
parameters alone. Saves are asynchronous and atomic: a directory gets its final name when
it is complete, and nothing else is ever loaded.

A checkpoint is saved before it is evaluated, so that an evaluation that fails costs no
checkpoint. What the evaluation gives is written to `<run>/evaluations.json` (step ->
metrics) afterwards, and decides which checkpoint is the best from the next save on.

Whether parameters are good, only a loss computed with them shows: that of the next step, or of
an evaluation. Until then the checkpoint before is kept too, whatever `keep` says, and one that
turns out bad is moved out of `checkpoints/` (`set_aside`).
"""

from collections.abc import Mapping, Sequence
import json
import logging
import math
import sys
from typing import Any

from etils import epath
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import orbax.checkpoint as ocp

from llm_jax import disk
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
        if not read_only:
            _tell_once()
        self._run_dir, self._read_only = epath.Path(run_dir), read_only
        self._evaluations_file = self._run_dir / 'evaluations.json'
        self._evaluations = _read_evaluations(self._evaluations_file)
        self._retention = _Retention(config, self._evaluations)
        self._directory = epath.Path(run_dir).resolve() / 'checkpoints'
        # Orbax removes them in a thread of its own, which nothing waits for before the first save: where there are
        # none it is not started, as `close` may remove the directory under it.
        has_entries = not read_only and self._directory.exists() and any(self._directory.iterdir())
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=self._retention,
                cleanup_tmp_directories=has_entries,
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
        if differ := self._differences(step, shapes):
            more = f', and {len(differ) - 3} more' if len(differ) > 3 else ''
            raise ConfigError(
                f'the checkpoint {path} is of another model: {"; ".join(differ[:3])}{more}. Set config.model as it '
                'was there (config.json of that run), or take another checkpoint'
            )
        try:
            return dict(self._manager.restore(step, args=ocp.args.Composite(**args)).items())
        except (ValueError, KeyError, OSError) as error:
            before = max((s for s in self.steps() if s < step), default=None)
            fix = 'bring its files back from a copy' + (
                '' if before is None else f', or move that directory elsewhere to resume from step {before}'
            )
            raise ConfigError(f'the checkpoint {path} cannot be read: {_first_line(error)}; {fix}') from error

    def saved_shapes(self, step: int, item: str) -> Any:
        """An item of a checkpoint as it was saved: nested dicts and lists of `jax.ShapeDtypeStruct`.

        Raises:
          ConfigError: that cannot be read.
        """
        try:
            tree = ocp.PyTreeCheckpointHandler().metadata(self._directory / str(step) / item).tree
        except (ValueError, KeyError, OSError) as error:
            raise ConfigError(
                f'the checkpoint {self._directory / str(step)} cannot be read: {_first_line(error)}; bring its files '
                'back from a copy'
            ) from error
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(tuple(leaf.shape), leaf.dtype), tree)

    def _differences(self, step: int, shapes: Items) -> list[str]:
        """Arrays that a checkpoint has in other shapes than these, or lacks, or has alone."""
        differ = []
        for item, tree in shapes.items():
            there, here = shapes_by_path(self.saved_shapes(step, item)), shapes_by_path(tree)
            for name in sorted({*there, *here}):
                if there.get(name) != here.get(name):
                    said = [list(found[name]) if name in found else 'not' for found in (there, here)]
                    differ.append(f'{item}/{name} is {said[0]} there and {said[1]} here')
        return differ

    def set_aside(self, step: int) -> epath.Path | None:
        """Moves a checkpoint whose parameters are bad to `<run>/nonfinite_checkpoint_<step>`, so that none resumes it.

        To be called in every process of a job.

        Returns:
          its new place; None if there is no checkpoint of this step.
        """
        self.wait()
        bad, aside = self._directory / str(step), self._run_dir / f'nonfinite_checkpoint_{step}'
        if step not in self.steps():
            return None
        if jax.process_index() == 0:
            if aside.exists():
                aside.rmtree()
            bad.rename(aside)
        self._evaluations.pop(step, None)
        self._manager.reload()
        return aside

    def confirm(self, step: int) -> None:
        """Notes that the newest checkpoint is good: the one before it need not be kept for fear that it is not.

        To be called in every process of a job.
        """
        spare = self._retention.spare
        if spare is not None and spare in self.steps() and step == self.latest_step:
            self.wait()
            if spare != self._retention.best(self.steps()):
                self._manager.delete(spare)

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
        """Waits, then closes the directory, and removes it if no checkpoint was saved."""
        self.wait()
        self._manager.close()
        if not self._read_only and jax.process_index() == 0 and not any(self._directory.iterdir()):
            self._directory.rmdir()


def write_atomically(file: epath.Path, text: str) -> None:
    """Writes a file that a reader sees whole or not at all.

    Raises:
      OSError: naming the file.
    """
    partial = file.parent / f'.{file.name}.partial'
    with disk.naming(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_text(text)
            partial.replace(file)  # `rename` refuses a file that exists, on a bucket
        except OSError:
            partial.unlink(missing_ok=True)
            raise


def shapes_by_path(tree: Any) -> dict[str, tuple[int, ...]]:
    """Shape of each array of a tree, by its path: {'opt_state/0/mu/embed/embedding': (V, D)}."""
    return {
        jax.tree_util.keystr(place, simple=True, separator='/'): tuple(leaf.shape)
        for place, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


class _Retention(ocp.checkpoint_managers.PreservationPolicy):
    """Preserves the newest checkpoints, the one with the lowest validation loss, and always one besides the newest.

    Attributes:
      spare: step of a checkpoint that only the last of these keeps, or None.
    """

    def __init__(self, config: schema.Checkpoint, evaluations: Mapping[int, Mapping[str, float]]) -> None:
        """Args:
        config: how many to keep.
        evaluations: step -> metrics; read anew at every save.
        """
        self._config, self._evaluations = config, evaluations
        self.spare: int | None = None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """One boolean for each checkpoint, ascending by step."""
        del context
        steps = [info.step for info in checkpoints]
        # Earlier versions kept the metrics in the checkpoint.
        best = self.best(steps, {info.step: info.metrics for info in checkpoints if info.metrics})
        kept = [step in steps[-self._config.keep :] or step == best for step in steps]
        self.spare = None
        if len(steps) > 1 and not any(kept[:-1]):
            kept[-2], self.spare = True, steps[-2]
        return kept

    def best(self, steps: Sequence[int], before: Mapping[int, Mapping[str, float]] | None = None) -> int | None:
        """The step with the lowest finite validation loss; None if none was evaluated, or the best is not to be kept.

        Args:
          steps: of the checkpoints there are.
          before: metrics of checkpoints that are not among the evaluations.
        """
        if not self._config.keep_best:
            return None
        metrics = {step: self._evaluations.get(step) or (before or {}).get(step) or {} for step in steps}
        losses = {step: of_step.get('val/loss', math.nan) for step, of_step in metrics.items()}
        finite = {step: loss for step, loss in losses.items() if math.isfinite(loss)}
        return min(finite, key=finite.__getitem__) if finite else None


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
        if reason := disk.reason(error):
            raise ConfigError(
                f'no checkpoint could be written to {self._directory}: {reason[:300]}. '
                'The checkpoints that are complete are untouched: make room and run the same command again'
            ) from error


class _ToldOnce(logging.Filter):
    """Keeps an error of the disk, which is raised as well, out of the logs of threads and tasks."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return error is None or disk.reason(error) is None


def _ignore_closed_loop(unraisable: Any) -> None:
    """Prints what could not be raised, but for a write of TensorStore that ends after Orbax gave up at another."""
    if not (unraisable.exc_type is RuntimeError and str(unraisable.exc_value) == 'Event loop is closed'):
        sys.__unraisablehook__(unraisable)


def _tell_once() -> None:
    """Has an error of the disk told by its one message alone."""
    for name in ('absl', 'asyncio'):  # Orbax's threads, and its tasks that nobody awaits after the first failure
        logger = logging.getLogger(name)
        if not any(isinstance(one, _ToldOnce) for one in logger.filters):
            logger.addFilter(_ToldOnce())
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _ignore_closed_loop


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


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
