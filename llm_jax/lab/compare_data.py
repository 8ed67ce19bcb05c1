"""Comparison of corpora: the same experiment on each, with several seeds, on the same held-out texts."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import pathlib
from typing import Any

from etils import epath
import numpy as np

from llm_jax import runs
from llm_jax.config.schema import Config, ConfigError
from llm_jax.data.prepare import prepare
from llm_jax.evals import texts
from llm_jax.train.loop import train


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
    def numbers(self) -> dict[str, Any]:
        """All of it, for JSON and for `report.comparison`."""
        return {
            'corpora': self.corpora, 'held_out': self.held_out, 'tokens': self.tokens,
            'bits_per_byte': self.bits_per_byte.tolist(),
        }  # fmt: skip


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
