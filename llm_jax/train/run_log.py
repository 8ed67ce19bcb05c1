"""What a run tells of itself: progress, metrics.jsonl, TensorBoard, samples, run.json."""

import collections
from collections.abc import Callable, Iterator
import contextlib
import datetime
import importlib.metadata
import json
import platform
import shlex
import sys
import time
from typing import Any

from etils import epath
import jax
import numpy as np

from llm_jax.checkpoint import write_atomically
from llm_jax.data.examples import FORMS
from llm_jax.data.prepare import Prepared
from llm_jax.dist import mesh as mesh_lib
from llm_jax.metrics import (
    Console,
    JsonlWriter,
    MultiWriter,
    TensorBoardWriter,
    count,
    flops_per_token,
    frozen_flops_per_token,
    mfu,
    peak_flops,
    read_jsonl,
)
from llm_jax.metrics import format as fmt
from llm_jax.nn.transformer import weights_of
from llm_jax.train.setup import Plan

_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'sentencepiece', 'numpy')


# Seconds that a rate is measured over, at least.
_RATE_SECONDS = 0.25


class Throughput:
    """Steps per second of training.

    Of short steps the host sees several end at once, as when it waits for all of them before a pause; so no step is
    measured alone, but all that ended within the last `_RATE_SECONDS`.
    """

    def __init__(self) -> None:
        # Of each line: the step that was done, seconds of training until then, and those waited for data.
        self._lines: collections.deque[tuple[int, float, float]] = collections.deque()

    def measure(self, step: int, seconds: float, wait: float) -> tuple[float, float] | None:
        """Returns (steps per second, share of the time waited for data) up to a line; None at the first one.

        Args:
          step: that is done.
          seconds: of training until then, without pauses.
          wait: seconds of them that were waited for data.
        """
        while len(self._lines) > 1 and seconds - self._lines[1][1] >= _RATE_SECONDS:
            self._lines.popleft()
        self._lines.append((step, seconds, wait))
        first_step, first_seconds, first_wait = self._lines[0]
        if step == first_step:  # before the first line is compilation
            return None
        return (step - first_step) / (seconds - first_seconds), (wait - first_wait) / (seconds - first_seconds)


class Clock:
    """Wall time since the run began, less what was spent beside training."""

    def __init__(self, began: float | None = None) -> None:
        """Args: began: of `time.perf_counter()`; now, if left out."""
        self._began = time.perf_counter() if began is None else began
        self._paused = 0.0
        self._lap = self._began
        self.laps: dict[str, float] = {}  # what was done first -> seconds

    def lap(self, name: str) -> None:
        """The time since the last lap was spent on this."""
        now = time.perf_counter()
        self.laps[name], self._lap = now - self._lap, now

    def seconds(self) -> float:
        """All of it."""
        return time.perf_counter() - self._began

    def training(self) -> float:
        """Without pauses."""
        return self.seconds() - self._paused

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time in here is not training."""
        began = time.perf_counter()
        yield
        self._paused += time.perf_counter() - began


def preparation_progress(console: Console) -> Callable[[str, int], None]:
    """Says what data preparation is doing, at most every two seconds."""
    last = {'time': 0.0}

    def progress(stage: str, done: int) -> None:
        if time.monotonic() - last['time'] > 2:
            last['time'] = time.monotonic()
            console.event(f'preparing data: {stage}, {fmt.size(done)}')

    return progress


class Record:
    """The observing half of a run; the loop hands it numbers and it puts them everywhere."""

    def __init__(
        self, run_dir: epath.Path, plan: Plan, prepared: Prepared, *, start: int, origin: str, enabled: bool
    ) -> None:
        """Opens the files of a run, `enabled` on the one process that writes them."""
        config = plan.config
        self._run_dir, self._plan, self._enabled = run_dir, plan, enabled
        self._clock = Clock()
        self._wait = 0.0
        self._throughput = Throughput()
        self._tokens_per_step = config.train.batch_size * config.data.seq_len
        weights, length = weights_of(plan.model), config.data.seq_len
        self._flops = flops_per_token(config.model, count(config.model, plan.param_shapes, weights), length)
        self._flops -= frozen_flops_per_token(config.model, plan.shapes.params, plan.frozen_shapes, weights, length)
        self._peak = peak_flops(plan.mesh.devices.flat[0])
        self.console = Console(plan.steps.total, enabled=enabled)
        files = [JsonlWriter(run_dir / 'metrics.jsonl', start), TensorBoardWriter(run_dir / 'tensorboard', start)]
        self._writer = MultiWriter([*files, self.console] if enabled else [])
        self._samples = JsonlWriter(run_dir / 'samples.jsonl', start) if enabled else None
        self._info = _run_info(plan, prepared)
        if enabled:
            previous = run_dir / 'run.json'
            if start and previous.exists():
                self._info['started'] = json.loads(previous.read_text())['started']
            self._write_info()
        train, held_out = prepared.manifest['splits']['train'], prepared.manifest['splits']['validation']
        total = lambda split, what: sum(entry[what] for entry in split.values())
        self.console.event(
            f'data: {fmt.size(total(train, "bytes"))} of text in {total(train, "documents")} documents, '
            f'{fmt.count(total(train, "tokens"))} tokens to train on, {fmt.count(total(held_out, "tokens"))} held out'
        )
        if prepared.form != 'documents':
            self.console.event(_describe_examples(prepared))
        self.console.event(
            f'model: {fmt.count(self._info["parameters"])} parameters on {jax.device_count()} '
            f'{plan.mesh.devices.flat[0].device_kind} device(s), mesh ' + mesh_lib.format_sizes(plan.mesh.shape)
        )
        for name, why in plan.attention.items():
            self.console.event(f'attention: {name} ({why})')
        self.console.event(f'{origin}, of {plan.steps.total} in {run_dir}')

    def input_wait(self, seconds: float) -> None:
        """Time the loop waited for data."""
        self._wait += seconds

    def started(self, clock: Clock, metrics: Any) -> None:
        """The first step is on its way: says what it took to get there.

        Args:
          clock: with its laps up to now; where none is 'compile', dispatching the step has compiled it.
          metrics: of the step, for whose end this waits.
        """
        if 'compile' not in clock.laps:
            clock.lap('compile')
        jax.block_until_ready(metrics)
        clock.lap('first step')
        self._info['startup_seconds'] = {name: round(seconds, 3) for name, seconds in clock.laps.items()}
        if self._enabled:
            self._write_info()
        parts = ', '.join(f'{name} {seconds:.1f}' for name, seconds in clock.laps.items())
        self.console.event(f'the first step is done after {sum(clock.laps.values()):.1f} s ({parts})')

    def paused(self) -> contextlib.AbstractContextManager[None]:
        """Evaluation, samples and checkpoints are not throughput."""
        return self._clock.paused()

    def step(self, step: int, values: dict[str, float]) -> None:
        """One finished step; every so many make a line."""
        if not self._plan.steps.due(self._plan.steps.log, step):
            return
        line = {'tokens': step * self._tokens_per_step, **values, 'seconds': self._clock.seconds()}
        if measured := self._throughput.measure(step, self._clock.training(), self._wait):
            rate = measured[0] * self._tokens_per_step
            share = mfu(rate, self._flops, self._plan.mesh.size, self._peak)
            line |= {'tokens_per_second': rate, 'input_wait': measured[1]}
            line |= {} if share is None else {'mfu': share}
        self._writer.write(step, line)

    def evaluation(self, step: int, values: dict[str, float]) -> None:
        """Validation or test metrics."""
        self._writer.write(step, {'tokens': step * self._tokens_per_step, **values})

    def samples(self, step: int, completions: list[tuple[str, str]]) -> None:
        """(prompt, text after it) pairs."""
        for prompt, text in completions:
            self.console.sample(step, prompt, text)
            if self._samples:
                self._samples.write(step, {'prompt': prompt, 'text': text})

    @contextlib.contextmanager
    def failure_as_warning(self, consequence: str) -> Iterator[None]:
        """Makes an error inside a warning: a line on the console, and an entry of `warnings` in run.json.

        It is for what a run can do without, such as samples. Where several processes compute together, an error
        of a device is raised all the same: the other processes may still be waiting for this one.

        Args:
          consequence: what the run lacks if it fails, such as 'there is no report'.
        """
        try:
            yield
        except Exception as error:
            if jax.process_count() > 1 and isinstance(error, jax.errors.JaxRuntimeError):
                raise
            reason = f'{type(error).__name__}: {error}'.strip().splitlines()[0]
            self.console.event(f'warning: {consequence}, because of {reason}')
            self._info.setdefault('warnings', []).append({'consequence': consequence, 'reason': reason})
            if self._enabled:
                self._write_info()

    def fail(self, clock: Clock, error: BaseException) -> None:
        """Closes the files and notes what a run failed of; if a full disk keeps it from that, it says so instead."""
        self._info['reason'] = f'{error or type(error).__name__}'.strip().splitlines()[0][:1000]
        try:
            self.end('failed', clock)
        except OSError as second:
            self.console.event(f'warning: run.json does not say that this run failed, because of {second}')

    def end(self, status: str, clock: Clock, *, signal: str = '', step: int = 0) -> None:
        """Closes the files and notes how it ended."""
        self._info |= {'status': status, 'finished': _now(), 'seconds_total': clock.seconds()}
        try:
            self.close()
        finally:
            if self._enabled:
                self._write_info()
        if status == 'stopped':
            self.console.event(f'{signal}: saved at step {step}; run the same command to go on')

    def close(self) -> None:
        """Lets go of the files."""
        self._writer.close()
        if self._samples:
            self._samples.close()

    def farewell(self, status: str, step: int, results: dict[str, float]) -> None:
        """The table at the end, and what to do next."""
        rows = {'status': status, 'steps': f'{step} of {self._plan.steps.total}'}
        rows['tokens'] = fmt.count(step * self._tokens_per_step)
        rows |= {name.replace('_', ' '): f'{value:.4f}' for name, value in results.items() if name.count('/') < 2}
        gzip = self._info['data']['gzip_bits_per_byte']
        bits = results.get('val/bits_per_byte')
        if bits and gzip:  # not of conversations
            side = 'below' if bits < gzip else 'above'
            rows['gzip -9 on the same text'] = f'{gzip:.4f} bits per byte'
            rows['the model against gzip'] = f'{abs(1 - bits / gzip):.1%} {side}'
        report = self._run_dir / 'report.html'
        if report.exists():
            rows['report'] = str(report)
        self.console.table(self._run_dir.resolve().name, rows)
        if status == 'finished':
            prompt = (self._plan.config.train.sample_prompts or ('',))[0]
            self.console.event(
                'Try next:\n'
                f'  ./tools/run sample {shlex.quote(str(self._run_dir))} --prompt {shlex.quote(prompt)}\n'
                + (f'  open {shlex.quote(str(report))}\n' if report.exists() else '')
                + '  the same file with a part swapped: --config.model.feed_forward=relu2 --workdir runs/relu2'
            )

    def _write_info(self) -> None:
        write_atomically(self._run_dir / 'run.json', json.dumps(self._info, indent=2) + '\n')


def is_complete(run_dir: epath.Path) -> bool:
    """Whether a run said to the end what it had to say: it noted that it finished, and has its page."""
    file = run_dir / 'run.json'
    finished = file.exists() and json.loads(file.read_text()).get('status') == 'finished'
    return finished and (run_dir / 'report.html').exists()


def missing(run_dir: epath.Path, step: int) -> set[str]:
    """What of 'evaluation' and 'samples' a run has not recorded for a step."""
    recorded = {
        'evaluation': any('val/loss' in line for line in _lines(run_dir / 'metrics.jsonl', step)),
        'samples': any(_lines(run_dir / 'samples.jsonl', step)),
    }
    return {what for what, is_there in recorded.items() if not is_there}


def _lines(file: epath.Path, step: int) -> list[dict[str, Any]]:
    return [line for line in read_jsonl(file) if line['step'] == step]


def _describe_examples(prepared: Prepared) -> str:
    """What became of the examples of post-training, and how full their rows are."""
    splits, parts = prepared.manifest['splits'], FORMS[prepared.form].parts
    count = lambda word: sum(entry[word] for split in splits.values() for entry in split.values())
    room = prepared.count('train') * parts * (prepared.manifest['seq_len'] + 1)
    text = f'{prepared.form}: rows are {prepared.count("train", "tokens") / room:.0%} full'
    if any(map(count, ('dropped', 'cut', 'untrained', 'unequal'))):
        text += (
            f'; {count("dropped")} longer than data.seq_len dropped, {count("cut")} cut, {count("untrained")} without '
            'a token to train on left out'
        )
    return text + (f', {count("unequal")} with two prompts left out' if count('unequal') else '')


def _run_info(plan: Plan, prepared: Prepared) -> dict[str, Any]:
    device, manifest = plan.mesh.devices.flat[0], prepared.manifest
    count = lambda tree: int(sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(tree)))
    params = plan.param_shapes
    embeddings = [params['embed'], params.get('unembed', {})]
    return {
        'command': shlex.join(['./tools/run', epath.Path(sys.argv[0]).stem, *sys.argv[1:]]),
        'started': _now(),
        'status': 'running',
        'devices': device.device_kind,
        'platform': device.platform,
        'machine': platform.platform(),
        'python': platform.python_version(),
        'n_devices': jax.device_count(),
        'n_processes': jax.process_count(),
        'mesh': dict(plan.mesh.shape),
        'versions': {name: importlib.metadata.version(name) for name in _PACKAGES},
        'parameters': count(params),
        'parameters_trained': count(plan.shapes.params),
        'parameters_embedding': count(embeddings),
        'total_steps': plan.steps.total,
        'loss_unit': plan.objective.loss_unit,
        'data': {
            'splits': manifest['splits'],
            'vocab_size': manifest['vocab_size'],
            'bytes_per_token': manifest['bytes_per_token'],
            'gzip_bits_per_byte': manifest['gzip']['bits_per_byte'],
        },
    }


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
