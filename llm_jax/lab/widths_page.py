"""Pages on what a model's width does: the coordinate check, and the best learning rate."""

from collections.abc import Sequence

from etils import epath
import matplotlib
from matplotlib import axes, figure
import numpy as np

from llm_jax.lab.coord_check import CoordCheck
from llm_jax.lab.transfer import Transfer
from llm_jax.lab.widths import MUP, STANDARD
from llm_jax.report.charts import INK, MAIN, SECOND, STYLE, Chart, svg
from llm_jax.report.page import write_page

_SIZE = (4.9, 2.9)
_COLORS = {STANDARD: SECOND, MUP: MAIN}


def coord_check_table(check: CoordCheck) -> list[list[str]]:
    """Header and rows: the exponent of the width in the change of each activation."""
    slopes = {name: check.slopes(name) for name in (STANDARD, MUP)}
    rows = [[name, *(f'{slopes[p][name]:+.2f}' for p in (STANDARD, MUP))] for name in check.names]
    return [['change of', STANDARD, MUP], *rows]


def write_coord_check(check: CoordCheck, directory: epath.PathLike, *, name: str, command: str) -> epath.Path:
    """Writes coord_check.html and coord_check.json; returns the path of the page."""
    kinds = dict.fromkeys(activation.split(' ', 2)[-1] for activation in check.names)
    charts = [_changes(check, kind) for kind in kinds]
    numbers = {
        'widths': check.widths, 'grow': check.grow, 'names': check.names, 'passed': check.passed,
        'doubts': check.doubts,
        'slopes': {p: check.slopes(p) for p in (STANDARD, MUP)},
        'change': {p: values.tolist() for p, values in check.change.items()},
        'size': {p: values.tolist() for p, values in check.size.items()},
    }  # fmt: skip
    page = {
        'title': 'coordinate check',
        'sentence': check.sentence,
        'charts': charts,
        'table': coord_check_table(check),
    }
    return write_page(directory, 'coord_check', name, command, page, numbers)


def transfer_table(result: Transfer) -> list[list[str]]:
    """Header and rows: the loss of each run, and the best learning rate of each width."""
    rows = []
    for parametrisation in (STANDARD, MUP):
        bests = zip(result.best(parametrisation), result.beyond(parametrisation), strict=True)
        for width, losses, (best, side) in zip(result.widths, result.loss[parametrisation], bests, strict=True):
            shown = ['diverged' if not np.isfinite(loss) else f'{loss:.3f}' for loss in losses]
            shown[int(np.argmin(losses))] += ' *'
            rows.append(
                [f'{parametrisation} {width}', *shown, f'2^{np.log2(best):.2f}' + (f' or {side}' if side else '')]
            )
    return [['width', *(f'2^{np.log2(rate):g}' for rate in result.rates), 'best rate'], *rows]


def write_transfer(result: Transfer, directory: epath.PathLike, *, name: str, command: str) -> epath.Path:
    """Writes mup_transfer.html and mup_transfer.json; returns the path of the page."""
    both = (STANDARD, MUP)
    numbers = {
        'widths': result.widths, 'rates': result.rates,
        'drift': {p: None if np.isnan(result.drift(p)) else result.drift(p) for p in both},
        'best': {p: result.best(p) for p in both}, 'beyond': {p: result.beyond(p) for p in both},
        'loss': {p: values.tolist() for p, values in result.loss.items()},
    }  # fmt: skip
    charts = [_losses(result, p) for p in (STANDARD, MUP)]
    page = {
        'title': 'learning rate and width', 'sentence': result.sentence, 'charts': charts,
        'table': transfer_table(result),
    }  # fmt: skip
    return write_page(directory, 'mup_transfer', name, command, page, numbers)


def _changes(check: CoordCheck, kind: str) -> Chart:
    """Change after the last step against the width, a line for each layer."""
    indices = [i for i, name in enumerate(check.names) if name.split(' ', 2)[-1] == kind]
    with matplotlib.rc_context(STYLE):
        fig, ax = _axes(check.widths, 'width')
        for parametrisation, color in _COLORS.items():
            last = np.exp(np.mean(np.log(check.change[parametrisation][:, :, -1]), axis=1))
            for n, i in enumerate(indices):
                label = None if n else parametrisation
                alpha = 1 - 0.6 * n / len(indices)
                ax.plot(check.widths, last[:, i], 'o-', color=color, markersize=3, alpha=alpha, label=label)
        ax.set_yscale('log')
        ax.legend(loc='best')
        note = 'Root mean square of the change after the last step' + (
            '; later layers are paler.' if indices[1:] else '.'
        )
        return Chart(kind, note, svg(fig, f'change-{kind}'))


def _losses(result: Transfer, parametrisation: str) -> Chart:
    """Loss against the learning rate, a line for each width."""
    with matplotlib.rc_context(STYLE):
        fig, ax = _axes(result.rates, 'learning rate')
        lowest = result.loss[MUP].min()
        for n, (width, losses) in enumerate(zip(result.widths, result.loss[parametrisation], strict=True)):
            shade = 0.35 + 0.65 * n / max(1, len(result.widths) - 1)
            shown = np.where(np.isfinite(losses), losses, np.nan)
            ax.plot(result.rates, shown, 'o-', color=_COLORS[parametrisation], markersize=3, alpha=shade, label=width)
            best = int(np.argmin(losses))
            ax.plot(result.rates[best], losses[best], 'o', color=INK, markersize=6, fillstyle='none')
        ax.set_ylim(lowest - 0.1, lowest + 1.5)
        ax.legend(loc='best', title='width')
        return Chart(parametrisation, 'Held-out loss; the best of each width is circled.', svg(fig, parametrisation))


def _axes(ticks: Sequence[float], label: str) -> tuple[figure.Figure, axes.Axes]:
    fig = figure.Figure(figsize=_SIZE, layout='constrained')
    ax = fig.subplots()
    ax.set_xlabel(label)
    ax.set_xscale('log', base=2)
    ax.set_xticks(ticks)
    if min(ticks) >= 1:
        ax.set_xticklabels([str(tick) for tick in ticks])
    ax.tick_params(length=0)
    return fig, ax
