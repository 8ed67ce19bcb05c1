"""Benchmarks while a model trains, on its own mesh: their scores are curves of the run."""

import pathlib
import tempfile
from typing import Any

from llm_jax.config.schema import Config, ConfigError
from llm_jax.evals.run import Evaluation, Options
from llm_jax.evals.sources import Sources
from llm_jax.evals.tasks import Group, find_task
from llm_jax.nn.transformer import Transformer
from llm_jax.runs import Loaded
from llm_jax.tokenizer import Tokenizer


class Judge:
    """Judges parameters by the tasks of `train.eval_tasks`; programs are compiled at the first call."""

    def __init__(self, config: Config, model: Transformer, tokenizer: Tokenizer) -> None:
        """Args:
        config: of the run.
        model: that trains.
        tokenizer: of its data.

        Raises:
          ConfigError: an unknown task, or one without data, before anything is trained.
        """
        train = config.train
        self._tasks = [find_task(name) for name in train.eval_tasks]
        self._sources = Sources(train.eval_data)
        for task in self._tasks:
            members = task.tasks if isinstance(task, Group) else [task]
            if not any(self._sources.has(one.files) for one in members):
                raise ConfigError(
                    f'train.eval_tasks has {task.name!r}, and train.eval_data = {tuple(train.eval_data)!r} has no '
                    f'{members[0].files[0]}; give the directory that has it'
                )
        self._config, self._model, self._tokenizer = config, model, tokenizer
        self._evaluation: Evaluation | None = None

    def __call__(self, step: int, params: Any) -> dict[str, float]:
        """The main metrics of each task, as 'tasks/NAME/METRIC'; {} on all processes but the first.

        Args:
          step: of the parameters.
          params: on the mesh.

        Raises:
          ConfigError: a score that is not finite; it names the item.
        """
        loaded = Loaded(self._model, params, self._tokenizer, self._config, step)
        if self._evaluation is None:
            self._evaluation = Evaluation(loaded, self._sources, Options(limit=self._config.train.eval_limit))
        else:
            self._evaluation.take(loaded)
        with tempfile.TemporaryDirectory() as folder:
            found = {task.name: self._evaluation.run(task, pathlib.Path(folder)) for task in self._tasks}
        return {
            f'tasks/{name}/{metric}': results['metrics'][metric]['value']
            for name, results in found.items()
            for metric in results.get('main', ())
        }
