"""Running tasks on a model: prompts, answers, items and results on disk."""

from collections.abc import Iterator, Sequence
import dataclasses
import hashlib
import pathlib
from typing import Any

import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np

from llm_jax.config.schema import ConfigError
from llm_jax.evals import encode, metrics, prompts, results
from llm_jax.evals.anchors import ANCHORS
from llm_jax.evals.generate import DRAWN, GREEDY, Ask, Generator
from llm_jax.evals.score import Scorer, score_all
from llm_jax.evals.sources import Sources
from llm_jax.evals.tasks import Group, Item, Task
from llm_jax.evals.tasks.task import grade_item
from llm_jax.generate.settings import Sampler
from llm_jax.runs import Loaded

_BLOCK = 256  # items that are scored, or texts that are generated, between two writes


@dataclasses.dataclass(frozen=True)
class Options:
    """How tasks are run.

    Attributes:
      limit: the first items of each; 0 takes all.
      shots: examples before each question; None takes the task's own number.
      samples: texts of each prompt.
      temperature: of the draws; None takes the likeliest token for one sample, and 0.8 with top_p 0.95 for several.
      max_new_tokens: of a text; None takes the task's own number.
      seed: of the draws.
    """

    limit: int = 0
    shots: int | None = None
    samples: int = 1
    temperature: float | None = None
    max_new_tokens: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.samples > 1 and self.temperature == 0:
            raise ConfigError(
                f'--samples {self.samples} at --temperature 0 are all the same; give a temperature above 0'
            )
        if not 0 <= self.seed < 1 << 32:
            raise ConfigError(f'--seed {self.seed} must be from 0 to 2^32 - 1')


def begins_with_bos(loaded: Loaded) -> bool:
    """Whether the model reads BOS before a text: always if it was trained here, else as its tokenizer's files say.

    Raises:
      ConfigError: there is no tokenizer.
    """
    if loaded.tokenizer is None:
        raise ConfigError('the model has no tokenizer, so that no text can be scored; convert it with --tokenizer')
    return loaded.step > 0 or loaded.tokenizer.adds_bos


class Evaluation:
    """Judges one model by tasks; programs that are compiled once serve all of them.

    Attributes:
      options: how tasks are run.
      writes: whether this process writes files: the first of a job.
    """

    def __init__(self, loaded: Loaded, sources: Sources, options: Options | None = None) -> None:
        """Args:
        loaded: the model.
        sources: of the benchmarks.
        options: how tasks are run.

        Raises:
          ConfigError: the model has no tokenizer.
        """
        self._bos, self._tokenizer, self._step = begins_with_bos(loaded), loaded.tokenizer, loaded.step
        self._scorer, self._weights = Scorer(loaded.model, loaded.params), _fingerprint(loaded.params)
        self._generator, self._dtype = Generator(loaded, bos=self._bos), loaded.model.config.dtype
        self._sources, self.options = sources, options or Options()
        self.writes = jax.process_index() == 0

    def take(self, loaded: Loaded) -> None:
        """Goes on with other parameters of the same model."""
        self._step, self._weights = loaded.step, _fingerprint(loaded.params)
        self._scorer.take(loaded.params)
        self._generator = Generator(loaded, bos=self._bos)

    def run(self, task: Task | Group, out: pathlib.Path) -> dict[str, Any]:
        """Judges a task and writes items.jsonl.gz and results.json under `out/NAME`.

        What is there already, of the same model, data and settings, is not done again. Of several processes the first
        reads and writes, and returns the results; the others return {}.

        Raises:
          ConfigError: missing data, a score that is not finite, or no sandbox for programs.
        """
        if isinstance(task, Group):
            return self._run_group(task, out)
        if task.generation:
            task.generation.check()
        n_shots = self.options.shots
        if n_shots is None:
            n_shots = task.shots.default if task.shots else 0
        if n_shots and task.shots is None:
            raise ConfigError(f'--shots {n_shots}: {task.name} has no examples in this form; leave --shots out')
        documents, digest = prompts.read_documents(self._sources, task)
        settings = self._settings(task, n_shots, digest)
        journal = results.Journal(out / task.name, settings) if self.writes else None
        done, start = _agree(journal)
        if done:
            return journal.results if journal else {}
        built = prompts.build_prompts(task, documents, self._sources, limit=self.options.limit, n_shots=n_shots)
        for rows in (self._write if task.generation else self._score)(task, built[start:], start):
            if journal:
                journal.append(rows)
        if not journal:
            return {}
        rows = journal.rows
        return journal.finish({
            'n': len(rows),
            'truncated': sum(row['truncated'] for row in rows),
            'boundary_spanned': sum(row.get('boundary_spanned', 0) for row in rows),
            'anchors': ANCHORS.get(task.name, {}),
            'metrics': results.summarise(rows, chance=task.chance, is_centred=task.cut != 'context'),
        })  # fmt: skip

    def roll(self, texts: Sequence[str]) -> list[float]:
        """Log-likelihood of each text in nats: every token once, BOS given and never scored.

        Raises:
          ConfigError: a score that is not finite.
        """
        options = {'first': self._tokenizer.bos_id, 'max_seq_len': self._scorer.max_seq_len}
        windows = [encode.rolling_windows(self._tokenizer.encode(text), **options) for text in texts]
        flat = [(window, f'text {number}') for number, several in enumerate(windows) for window in several]
        answers = iter(self._scorer.score([window for window, _ in flat], [name for _, name in flat]))
        return [sum(next(answers).log_likelihood for _ in several) for several in windows]

    def _settings(self, task: Task, n_shots: int, digest: str) -> dict[str, Any]:
        """All that the scores of a task depend on, and what its card says of it."""
        found: dict[str, Any] = {
            'task': task.name, 'form': task.form, 'note': task.note, 'shots': n_shots, 'limit': self.options.limit,
            'step': self._step, 'weights': self._weights, 'bos': self._bos, 'max_seq_len': self._scorer.max_seq_len,
            'data_sha256': digest, 'seeds': {'fewshot': prompts.SEED}, 'chance': task.chance, 'main': self._main(task),
            'lower_is_better': task.lower_is_better, 'dtype': 'float32',
        }  # fmt: skip
        if task.generation:
            sampler = self._sampler()
            n_new = self._generator.room(self.options.max_new_tokens or task.generation.max_new_tokens)
            found['seeds']['samples'] = self.options.seed
            found |= {
                'dtype': self._dtype, 'samples': self.options.samples, 'temperature': sampler.temperature,
                'top_p': sampler.top_p, 'max_new_tokens': n_new, 'stops': list(task.generation.stops),
            }  # fmt: skip
        return found

    def _main(self, task: Task) -> list[str]:
        """The metrics of the table; with several samples, what several are for."""
        k = self.options.samples
        if not task.generation or k == 1:
            return list(task.main)
        return [*task.main, f'pass@{k}', *([f'maj@{k}'] if task.generation.votes else [])]

    def _sampler(self) -> Sampler:
        if self.options.temperature is None:
            return GREEDY if self.options.samples == 1 else DRAWN
        return dataclasses.replace(DRAWN, temperature=self.options.temperature)

    def _run_group(self, group: Group, out: pathlib.Path) -> dict[str, Any]:
        """Judges the tasks of a group whose data are there, and their mean."""
        there = [task for task in group.tasks if self._sources.has(task.files)]
        if not there:
            self._sources.read(group.tasks[0].files, group.name)  # says what is missing
        found = {task.name: self.run(task, out) for task in there}
        if not self.writes:
            return {}
        mean = results.combine(found, group.metric, by_item=group.by_item)
        one = next(iter(found.values()))
        settings = {
            'task': group.name, 'note': group.note, 'step': self._step, 'weights': self._weights,
            'main': [group.metric],
        }  # fmt: skip
        return results.Journal(out / group.name, settings).write_results({
            'n': sum(each['n'] for each in found.values()),
            'truncated': sum(each['truncated'] for each in found.values()),
            'chance': 0.0 if group.metric == 'centred' else one['chance'],
            'anchors': ANCHORS.get(group.name, {}),
            'metrics': {group.metric: mean},
            'tasks': {name: each['metrics'][group.metric]['value'] for name, each in found.items()},
            'missing': [task.name for task in group.tasks if task not in there],
        })  # fmt: skip

    def _score(self, task: Task, built: Sequence[prompts.Built], start: int) -> Iterator[list[results.Row]]:
        """Records of items by log-likelihoods, a block at a time."""
        for at in range(0, len(built), _BLOCK):
            items = [item for _, item in built[at : at + _BLOCK]]
            yield self._score_items(task, items, start + at)

    def _score_items(self, task: Task, items: Sequence[Item], start: int) -> list[results.Row]:
        names = [f'{task.name}, item {start + i}' for i in range(len(items))]
        encoded = [self._encode(task, item, name) for item, name in zip(items, names, strict=True)]
        alone = [self._encode_alone(task, item) for item in items]
        scored = score_all(self._scorer, [*encoded, *alone], [*names, *names])
        unconditional = [[one.log_likelihood for one in several] for several in scored[len(items) :]]
        rows = []
        for i, (item, several, own) in enumerate(zip(items, encoded, scored[: len(items)], strict=True)):
            requests = [
                {
                    'context': context, 'continuation': continuation, 'loglikelihood': answer.log_likelihood,
                    'is_greedy': answer.is_greedy, 'tokens': list(one.continuation),
                    'context_tokens': list(one.context),
                }
                for (context, continuation), answer, one in zip(item.requests, own, several, strict=True)
            ]  # fmt: skip
            graded = grade_item(item, own, [len(one.continuation) for one in several], task.cut)
            row = {'task': task.name, 'id': start + i, 'requests': requests, 'gold': item.gold, 'metrics': graded}
            if unconditional[i]:
                values = [answer.log_likelihood for answer in own]
                graded['acc_mutual_info'] = metrics.mutual_information(values, unconditional[i], item.gold)
                row['unconditional'] = unconditional[i]
            row['truncated'] = sum(one.is_truncated for one in several)
            row['boundary_spanned'] = sum(one.spans_boundary for one in several)
            rows.append(row)
        return rows

    def _encode(self, task: Task, item: Item, name: str) -> list[encode.Encoded]:
        most = self._scorer.max_seq_len
        try:
            if task.cut == 'context':
                options = {'bos': self._bos, 'max_seq_len': most}
                return [encode.encode_pair(self._tokenizer, *request, **options) for request in item.requests]
            from_end = task.cut == 'common_suffix'
            return encode.encode_alike(self._tokenizer, item.requests, from_end=from_end, max_seq_len=most)
        except ConfigError as error:
            raise ConfigError(f'{name}: {error}') from error

    def _encode_alone(self, task: Task, item: Item) -> list[encode.Encoded]:
        """The choices after nothing, for mutual information; none where a task has no choices after one context."""
        contexts = {context for context, _ in item.requests}
        if task.cut != 'context' or not isinstance(item.gold, int) or not item.lengths or contexts == {''}:
            return []
        options = {'bos': self._bos, 'max_seq_len': self._scorer.max_seq_len}
        return [encode.encode_pair(self._tokenizer, '', choice, **options) for choice in item.lengths]

    def _write(self, task: Task, built: Sequence[prompts.Built], start: int) -> Iterator[list[results.Row]]:
        """Records of items by generated texts, a block at a time."""
        size = max(1, _BLOCK // self.options.samples)
        for at in range(0, len(built), size):
            yield self._write_items(task, built[at : at + size], start + at)

    def _write_items(self, task: Task, part: Sequence[prompts.Built], start: int) -> list[results.Row]:
        how = task.generation
        asks = [Ask(item.text, start + i, f'{task.name}, item {start + i}') for i, (_, item) in enumerate(part)]
        texts = self._generator.complete(
            asks, stops=how.stops, max_new_tokens=self.options.max_new_tokens or how.max_new_tokens,
            n_samples=self.options.samples, sampler=self._sampler(), seed=self.options.seed,
        )  # fmt: skip
        if not self.writes:
            return []
        grades = how.grade([(document, one.samples) for (document, _), one in zip(part, texts, strict=True)])
        rows = []
        for ask, (_, item), one, graded in zip(asks, part, texts, grades, strict=True):
            each = [{'metrics': dict(grade.metrics), 'answer': grade.answer} for grade in graded]
            rows.append({
                'task': task.name, 'id': ask.number, 'prompt': item.text, 'generations': one.samples,
                'finish': one.finishes, 'gold': item.gold,
                'metrics': results.sample_metrics(each, how.passing, votes=how.votes),
                'grades': [
                    dict(grade.metrics) | {'answer': _shown(grade.answer), 'note': grade.note} for grade in graded
                ],
                'truncated': int(one.is_truncated),
            })  # fmt: skip
        return rows


def _fingerprint(params: Any) -> str:
    """A hash that other weights do not have: of the sum of the magnitudes of each array, to six digits."""
    digits = ' '.join(f'{float(value):.5e}' for value in jax.device_get(_sum_magnitudes(params)))
    return hashlib.sha256(digits.encode()).hexdigest()[:16]


@jax.jit
def _sum_magnitudes(params: Any) -> list[jax.Array]:
    return [jnp.sum(jnp.abs(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(params)]


def _agree(journal: results.Journal | None) -> tuple[bool, int]:
    """(whether the task is done, items that are): what the first process reads, on all of them."""
    own = (journal.results is not None, len(journal.rows)) if journal else (False, 0)
    if jax.process_count() == 1:
        return own
    done, start = multihost_utils.broadcast_one_to_all(np.array(own, np.int32)).tolist()
    return bool(done), start


def _shown(answer: Any) -> str | None:
    return None if answer is None else str(answer)[:200]
