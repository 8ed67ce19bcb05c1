"""Reading a run directory, whatever part of it exists.

  config.json    the resolved config, nested as in `schema.Config`
  metrics.jsonl  step, tokens, loss, grad_norm, param_norm, learning_rate,
                 tokens_per_second, mfu (0 to 1), input_wait (share of the step, 0 to
                 1), seconds (since training started); val/loss, val/perplexity,
                 val/bits_per_byte on the lines of evaluations; of post-training what its
                 objective reports, such as accuracy, margin, val/confusion/TRUE/GUESS
  samples.jsonl  step, prompt, text (what came after the prompt)
  run.json       command; started, finished (ISO 8601); status (running, finished,
                 stopped, failed); devices, platform, n_devices, n_processes, mesh
                 {axis: size}, versions {package: version}; parameters,
                 parameters_embedding; total_steps; loss_unit (what the loss is a mean of);
                 data {splits: {split: {source: {documents, bytes, tokens, rows}}},
                 vocab_size, bytes_per_token, gzip_bits_per_byte}

Any file and any field may be missing: the report then has a gap where it would be.
"""

import dataclasses
import datetime
import json
import statistics
from typing import Any

from etils import epath

from llm_jax.config.schema import ConfigError
from llm_jax.metrics import read_jsonl


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run directory says; empty where it says nothing."""

    directory: epath.Path
    config: dict[str, Any]
    metrics: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    info: dict[str, Any]  # run.json

    @property
    def name(self) -> str:
        """Its directory's: the experiment's own may be that of several runs."""
        return self.directory.resolve().name or self.config.get('name') or ''

    @property
    def data(self) -> dict[str, Any]:
        return self.info.get('data') or {}

    @property
    def loss_unit(self) -> str:
        """Of what the loss is a mean."""
        return self.info.get('loss_unit') or 'nats per token'

    @property
    def status(self) -> str:
        return self.info.get('status') or 'unknown'

    @property
    def last_step(self) -> int:
        return self.metrics[-1]['step'] if self.metrics else 0

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """(steps, values) of one metric, where it was recorded."""
        points = [(line['step'], line[name]) for line in self.metrics if isinstance(line.get(name), (int, float))]
        return [step for step, _ in points], [float(value) for _, value in points]

    def last(self, name: str) -> float | None:
        values = self.series(name)[1]
        return values[-1] if values else None

    def median(self, name: str) -> float | None:
        """The middle value, which the compilation in the first step does not move."""
        values = self.series(name)[1]
        return statistics.median(values) if values else None

    def seconds(self) -> float | None:
        """Time spent training, over all starts of the run; else from start to finish."""
        total, before = 0.0, 0.0
        clock = self.series('seconds')[1]
        for now in clock:
            total += now - before if now >= before else now  # the clock began again: a resume
            before = now
        if clock:
            return total
        start, end = timestamp(self.info.get('started')), timestamp(self.info.get('finished'))
        return (end - start).total_seconds() if start and end else None


def read_run(run_dir: epath.PathLike) -> Run:
    """Reads a run directory.

    Raises:
      ConfigError: no such directory, none of a run's files in it, or a damaged one.
    """
    directory = epath.Path(run_dir)
    if not directory.is_dir():
        raise ConfigError(f'there is no run directory {directory}')
    if not any((directory / name).exists() for name in ('config.json', 'run.json', 'metrics.jsonl')):
        raise ConfigError(
            f'{directory} is not a run directory: it has no config.json, run.json or metrics.jsonl; '
            'give the directory that train wrote, such as runs/quickstart'
        )
    return Run(
        directory=directory,
        config=_read_object(directory / 'config.json'),
        metrics=read_jsonl(directory / 'metrics.jsonl'),
        samples=read_jsonl(directory / 'samples.jsonl'),
        info=_read_object(directory / 'run.json'),
    )


def timestamp(text: str | None) -> datetime.datetime | None:
    """An ISO 8601 time; one without a zone is taken as UTC."""
    if not text:
        return None
    try:
        time = datetime.datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(f'run.json: {text!r} is not an ISO 8601 time') from error
    return time if time.tzinfo else time.replace(tzinfo=datetime.UTC)


def _read_object(path: epath.Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ConfigError(f'{path} is not JSON ({error}); restore or remove it') from error
    if not isinstance(value, dict):
        raise ConfigError(f'{path} holds a {type(value).__name__}; it must be a JSON object')
    return value
