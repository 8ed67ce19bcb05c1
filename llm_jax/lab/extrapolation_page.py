"""The page on perplexity against length."""

from etils import epath
import matplotlib
from matplotlib import figure

from llm_jax.lab.extrapolate import POSITIONS, Extrapolation
from llm_jax.report.charts import INK, STYLE, Chart, svg
from llm_jax.report.page import write_page

_SIZE = (4.9, 3.2)


def table(result: Extrapolation) -> list[list[str]]:
    """Header and rows: the perplexity of tokens at these positions."""
    starts = [1, *(end + 1 for end in result.ends[:-1])]
    header = ['position part', *(f'{start}–{end}' for start, end in zip(starts, result.ends, strict=True))]
    return [header, *([name, *(f'{value:.1f}' for value in values)] for name, values in result.perplexity.items())]


def write(result: Extrapolation, directory: epath.PathLike, *, name: str, command: str) -> epath.Path:
    """Writes extrapolation.html and extrapolation.json; returns the path of the page."""
    scalings = [name for name in result.perplexity if name.startswith('rope')]
    charts = [
        _curves(result, list(POSITIONS), 'Trained with each', 'positions'),
        _curves(result, scalings, 'RoPE, scaled after training', 'scalings'),
    ]
    last = {name: values[-1] for name, values in result.perplexity.items()}
    best = min(last, key=last.get)
    sentence = (
        f'All were trained at {result.trained} tokens. At positions up to {result.ends[-1]} the best is {best}, '
        f'with a perplexity of {last[best]:.1f}; within {result.ends[0]} it has {result.perplexity[best][0]:.1f}.'
    )
    numbers = {'trained': result.trained, 'ends': result.ends, 'perplexity': result.perplexity}
    page = {'title': 'perplexity against length', 'sentence': sentence, 'charts': charts, 'table': table(result)}
    return write_page(directory, 'extrapolation', name, command, page, numbers)


def _curves(result: Extrapolation, names: list[str], title: str, key: str) -> Chart:
    with matplotlib.rc_context(STYLE):
        fig = figure.Figure(figsize=_SIZE, layout='constrained')
        ax = fig.subplots()
        for i, name in enumerate(names):
            label = name.removeprefix('rope, ')
            ax.plot(result.ends, result.perplexity[name], 'o-', color=f'C{i}', markersize=3, label=label)
        ax.axvline(result.trained, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        lowest = min(min(result.perplexity[name]) for name in names)
        ax.set(xlabel='position', ylabel='perplexity', xscale='log', yscale='log', ylim=(0.85 * lowest, 12 * lowest))
        ax.set_xticks(result.ends, [str(end) for end in result.ends])
        ax.minorticks_off()
        ax.legend(loc='upper left', ncols=2)
        note = f'Of the tokens from the last point to this; dashed: {result.trained}, the length of training.'
        return Chart(title, note, svg(fig, key))
