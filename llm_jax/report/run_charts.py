"""The curves of a run."""

from collections.abc import Sequence

import numpy as np

from llm_jax.report import charts
from llm_jax.report.charts import MAIN, SECOND, Axis, Chart, Line, Rule
from llm_jax.report.run import Run

_STEP = Axis('step', whole=True)
# Metrics of post-training that belong into one chart: label -> name.
_ACCURACY = {'training, smoothed': 'accuracy', 'validation': 'val/accuracy'}
_REWARDS = {'chosen': 'rewards_chosen', 'rejected': 'rewards_rejected'}
_LOG_PROBS = {'chosen': 'log_prob_chosen', 'rejected': 'log_prob_rejected'}
_SCORES = {'chosen': 'score_chosen', 'rejected': 'score_rejected'}


def draw_all(run: Run) -> list[Chart]:
    """Every chart that the run has points for."""
    made = [
        _loss(run),
        _bits_per_byte(run),
        _several(run, 'Accuracy', 'Pairs in the right order, or texts in the right class.', _ACCURACY),
        _several(run, 'Rewards', 'β times the log-ratio to the reference, of both answers.', _REWARDS),
        _several(run, 'Log-probabilities', 'Of an answer by the policy, in nats.', _LOG_PROBS),
        _several(run, 'Scores', 'Of both answers by the reward model.', _SCORES),
        _curve(run, 'kl', 'Distance from the reference', 'z0 of KTO, in nats.', smooth=True),
        _curve(run, 'learning_rate', 'Learning rate', 'After warmup and decay.'),
        _curve(run, 'tokens_per_second', 'Throughput', 'Tokens per second, over all devices.', zero=True),
        _curve(run, 'grad_norm', 'Gradient norm', 'Before clipping.', smooth=True),
        _curve(run, 'param_norm', 'Parameter norm', 'Over all parameters.'),
        _curve(run, 'router_peak', 'Fullest expert', 'Its load over the mean load; 1 is even.', smooth=True),
        _curve(run, 'router_aux', 'Balance of experts', 'The balance loss; 1 is even.', smooth=True),
        _curve(run, 'router_z', 'Router logits', 'Mean of log(Σ exp)².', smooth=True),
    ]
    return [chart for chart in [*made, *_tasks(run)] if chart]


def smoothed(steps: Sequence[int], values: Sequence[float], span: float = 0.02) -> np.ndarray:
    """An exponential mean whose time constant is a share `span` of the steps.

    Bias-corrected, so that it starts at the first value; non-finite values are passed over.
    """
    steps, values = np.asarray(steps, float), np.asarray(values, float)
    constant = max(span * (steps[-1] - steps[0]), 1e-9)
    total = weight = 0.0
    out = np.empty_like(values)
    for i, value in enumerate(values):
        keep = np.exp(-(steps[i] - steps[i - 1]) / constant) if i else 0.0
        total, weight = keep * total, keep * weight
        if np.isfinite(value):
            total, weight = total + value, weight + 1
        out[i] = total / weight if weight else np.nan
    return out


def _loss(run: Run) -> Chart | None:
    steps, loss = run.series('loss')
    val_steps, val_loss = run.series('val/loss')
    finite = [value for value in [*loss, *val_loss] if np.isfinite(value)]
    if not finite:
        return None
    note, marks, limits = f'{run.loss_unit.capitalize()}.', [], None
    if steps:
        marks += [
            Line(steps, loss, alpha=0.3, width=0.8),
            Line(steps, smoothed(steps, loss), label='training, smoothed'),
        ]
    if val_steps:
        marks.append(Line(val_steps, val_loss, SECOND, 'validation', width=1, dots=True))
    shown = [v for v in [*loss[len(loss) // 20 :], *val_loss[1 if len(val_loss) > 2 else 0 :]] if np.isfinite(v)]
    highest = max([v for v in loss if np.isfinite(v)], default=0)
    if shown and len(loss) >= 40 and highest > max(shown) > min(shown):
        low, high = min(shown), max(shown)
        margin = 0.05 * (high - low)
        limits = low - margin, high + margin
        note += f' The start, at {highest:.2f}, lies above the frame.'
    return charts.draw('Loss', note, marks, x=_STEP, y=Axis(limits=limits))


def _bits_per_byte(run: Run) -> Chart | None:
    steps, bits = run.series('val/bits_per_byte')
    if not np.isfinite(bits).any():
        return None
    marks = [Line(steps, bits, SECOND, 'model', dots=True)]
    if gzip := run.data.get('gzip_bits_per_byte'):
        marks.append(Rule(gzip, 'gzip -9', horizontal=True))
    return charts.draw('Bits per byte', 'Validation split; lower is better.', marks, x=_STEP)


def _several(run: Run, title: str, note: str, names: dict[str, str]) -> Chart | None:
    """Metrics of a run in one chart, those of evaluations with dots; None if there is at most one of them."""
    found = {label: run.series(name) for label, name in names.items()}
    found = {label: points for label, points in found.items() if np.isfinite(points[1]).any()}
    if len(found) < 2:
        return None
    marks = []
    for color, (label, (steps, values)) in zip((MAIN, SECOND), found.items(), strict=False):
        is_held_out = names[label].startswith('val/')
        values = values if is_held_out else smoothed(steps, values)
        marks.append(Line(steps, values, color, label, width=1 if is_held_out else 1.6, dots=is_held_out))
    return charts.draw(title, note, marks, x=_STEP)


def _tasks(run: Run) -> list[Chart | None]:
    """The curve of each benchmark that is run while the model trains."""
    names = sorted({name for line in run.metrics for name in line if name.startswith('tasks/')})
    return [_curve(run, name, name.removeprefix('tasks/').replace('/', ' '), 'Benchmark.') for name in names]


def _curve(run: Run, name: str, title: str, note: str, *, smooth: bool = False, zero: bool = False) -> Chart | None:
    steps, values = run.series(name)
    finite = [value for value in values if np.isfinite(value)]
    if not finite:
        return None
    marks = [Line(steps, values, alpha=0.3, width=0.8)] if smooth else []
    marks.append(Line(steps, smoothed(steps, values) if smooth else values, MAIN))
    limits = (0, 1.06 * max(finite)) if zero and max(finite) > 0 else None
    return charts.draw(title, note, marks, x=_STEP, y=Axis(limits=limits))
