"""Comparison of corpora: the same experiment on each, with several seeds, on the same held-out texts."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import pathlib

from etils import epath
import matplotlib
from matplotlib import axes, figure
import numpy as np

from llm_jax import runs
from llm_jax.config.schema import Config, ConfigError
from llm_jax.data.prepare import prepare
from llm_jax.evals import texts
from llm_jax.report.charts import INK, MAIN, SECOND, STYLE, Chart, svg
from llm_jax.report.page import write_page
from llm_jax.train.loop import train

_SIZE = (4.9, 2.9)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Result of the measurement.

    Attributes:
      corpora: names, in the order they were given.
      held_out: names of the texts.
      tokens: that each model was trained on.
      bits_per_byte: float[corpora, held_out, seeds].
    """

    corpora: list[str]
    held_out: list[str]
    tokens: int
    bits_per_byte: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """Over seeds: float[corpora, held_out]."""
        return self.bits_per_byte.mean(-1)

    @property
    def error(self) -> np.ndarray:
        """Standard error of the mean over seeds: float[corpora, held_out]; NaN for one seed."""
        seeds = self.bits_per_byte.shape[-1]
        return self.bits_per_byte.std(-1, ddof=1) / np.sqrt(seeds) if seeds > 1 else np.full_like(self.mean, np.nan)


def compare(
    config: Config,
    corpora: Sequence[str],
    held_out: Mapping[str, Sequence[str]],
    directory: str | epath.Path,
    *,
    seeds: int,
    progress: Callable[[str], None] = lambda text: None,
) -> Comparison:
    """Trains the experiment on each corpus with each seed; what is trained already is not trained again.

    Args:
      config: the experiment; its data.sources and its seed are set here.
      corpora: directories that `prepare_data` made, with one tokenizer.
      held_out: name -> texts that none of them has.
      directory: of the runs, which are called CORPUS-SEED.
      seeds: how many; 0, 1, ...
      progress: told each result.

    Raises:
      ConfigError: two corpora of one name, or with different tokenizers; stopped by a signal.
    """
    names = [pathlib.PurePath(corpus).name for corpus in corpora]
    if len(set(names)) < len(names):
        raise ConfigError(f'two of the corpora have the same name: {", ".join(names)}')
    configs = [
        dataclasses.replace(config, data=dataclasses.replace(config.data, sources={'corpus': f'corpus:{corpus}'}))
        for corpus in corpora
    ]
    prints = {name: prepare(one.data, 0).tokenizer.fingerprint for name, one in zip(names, configs, strict=True)}
    if len(set(prints.values())) > 1:
        raise ConfigError(
            f'the corpora have different tokenizers ({prints}); build them with the tokenizer of one: '
            '--config.tokenizer.path=CORPUS/tokenizer'
        )
    result = np.zeros((len(names), len(held_out), seeds))
    for seed in range(seeds):  # a run of each corpus, before the next seed: a run cut short compares all of them
        for i, (name, one) in enumerate(zip(names, configs, strict=True)):
            run_dir = epath.Path(directory) / f'{name}-{seed}'
            if train(dataclasses.replace(one, seed=seed, name=f'{name}-{seed}'), run_dir).status == 'stopped':
                raise ConfigError(f'stopped in the middle of {run_dir}; the same command goes on from there')
            loaded = runs.load(run_dir)
            result[i, :, seed] = [texts.score(loaded, some).bits_per_byte for some in held_out.values()]
            figures = ', '.join(f'{text} {x:.4f}' for text, x in zip(held_out, result[i, :, seed], strict=True))
            progress(f'{name}, seed {seed}: {figures}')
    tokens = loaded.step * config.train.batch_size * config.data.seq_len
    return Comparison(names, list(held_out), tokens, result)


def table(result: Comparison) -> list[list[str]]:
    """Header and rows: mean and standard error over seeds."""
    cells = lambda i: [f'{m:.4f} ± {e:.4f}' for m, e in zip(result.mean[i], result.error[i], strict=True)]
    return [['corpus', *result.held_out], *([name, *cells(i)] for i, name in enumerate(result.corpora))]


def write(result: Comparison, directory: str | epath.Path, *, name: str, command: str) -> epath.Path:
    """Writes compare_data.html and compare_data.json; returns the path of the page."""
    seeds = result.bits_per_byte.shape[-1]
    sentence = (
        f'The same model after the same {result.tokens:,} tokens of each corpus, {seeds} seeds; bits per byte of '
        'held-out text (less is better), mean and standard error over the seeds.'
    )
    numbers = {
        'corpora': result.corpora, 'held_out': result.held_out, 'tokens': result.tokens,
        'bits_per_byte': result.bits_per_byte.tolist(),
    }  # fmt: skip
    charts = [_chart(result, k) for k in range(len(result.held_out))]
    page = {'title': 'corpora compared', 'sentence': sentence, 'charts': charts, 'table': table(result)}
    return write_page(directory, 'compare_data', name, command, page, numbers)


def _chart(result: Comparison, k: int) -> Chart:
    with matplotlib.rc_context(STYLE):
        drawing = figure.Figure(_SIZE)
        plot: axes.Axes = drawing.subplots()
        places = np.arange(len(result.corpora))
        plot.errorbar(result.mean[:, k], places, xerr=result.error[:, k], fmt='o', color=MAIN, capsize=3)
        for seed in range(result.bits_per_byte.shape[-1]):
            plot.plot(result.bits_per_byte[:, k, seed], places, '.', color=SECOND, markersize=4)
        plot.set_yticks(places, result.corpora, color=INK)
        plot.invert_yaxis()
        plot.set_xlabel('bits per byte')
        return Chart(
            result.held_out[k],
            'Mean with its standard error; small dots are single seeds.',
            svg(drawing, f'compare-{k}'),
        )
