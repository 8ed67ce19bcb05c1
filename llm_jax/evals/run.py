"""Running tasks on a model: prompts, scores, items and results on disk."""

from collections.abc import Sequence
import dataclasses
import gzip
import json
import pathlib
import random
from typing import Any

from llm_jax.checkpoint import write_atomically
from llm_jax.config.schema import ConfigError
from llm_jax.evals import encode, metrics, sources
from llm_jax.evals.score import Scorer
from llm_jax.evals.tasks import Item, Task, find_task
from llm_jax.evals.tasks.task import Document, grade
from llm_jax.runs import Loaded

SEED = 1234  # of the draws of examples, as lm-eval's
POOL = 50  # documents after the judged ones that examples are drawn from


def begins_with_bos(loaded: Loaded) -> bool:
    """Whether the model reads BOS before a text: always if it was trained here, else as its tokenizer's files say.

    Raises:
      ConfigError: there is no tokenizer.
    """
    if loaded.tokenizer is None:
        raise ConfigError('the model has no tokenizer, so that no text can be scored; convert it with --tokenizer')
    return loaded.step > 0 or loaded.tokenizer.adds_bos


class Evaluation:
    """Scores tasks with one model; programs that are compiled once serve all of them."""

    def __init__(self, loaded: Loaded, data: pathlib.Path | None, *, limit: int = 0, shots: int = 0) -> None:
        """Args:
        loaded: the model.
        data: the directory of the benchmarks; None where none is run.
        limit: the first items of each; 0 takes all.
        shots: examples before each question.

        Raises:
          ConfigError: the model has no tokenizer.
        """
        self._bos, self._tokenizer = begins_with_bos(loaded), loaded.tokenizer
        self._scorer, self._step = Scorer(loaded.model, loaded.params), loaded.step
        self._data, self._limit, self._shots = data, limit, shots

    def run(self, name: str, out: pathlib.Path) -> dict[str, Any]:
        """Scores a task and writes items.jsonl.gz and results.json under `out`; one that is there already is read.

        Raises:
          ConfigError: an unknown task, missing data, or a score that is not finite.
        """
        task = find_task(name)
        if self._shots and task.shot is None:
            raise ConfigError(f'--shots {self._shots}: {name} has no examples in this form; leave --shots out')
        if self._data is None:
            raise ConfigError(f'{name} needs a directory of benchmarks; give --data DIR')
        documents, digest = sources.read_documents(self._data, task)
        settings = {
            'task': name, 'form': task.form, 'shots': self._shots, 'limit': self._limit, 'step': self._step,
            'bos': self._bos, 'max_seq_len': self._scorer.max_seq_len, 'dtype': 'float32', 'data_sha256': digest,
            'seeds': {'fewshot': SEED}, 'chance': task.chance,
        }  # fmt: skip
        folder = out / name
        file = folder / 'results.json'
        if file.exists():
            old = json.loads(file.read_text())
            if all(old.get(key) == value for key, value in settings.items()):
                return old
        items = self.build_items(task, documents)
        rows, truncated, spanning = self.score_items(name, items)
        scores = {key: [row['metrics'][key] for row in rows] for key in rows[0]['metrics']}
        results: dict[str, Any] = settings | {'n': len(rows), 'truncated': truncated, 'boundary_spanned': spanning}
        results['metrics'] = {}
        for key, values in scores.items():
            entry: dict[str, Any] = {'value': metrics.mean(values), 'stderr': metrics.standard_error(values)}
            if key.startswith('acc'):
                entry['interval'] = metrics.wilson_interval(values)
            results['metrics'][key] = entry
        results['main'] = list(task.main)
        folder.mkdir(parents=True, exist_ok=True)
        lines = ''.join(json.dumps(row) + '\n' for row in rows)
        part = folder / 'items.jsonl.gz.part'
        part.write_bytes(gzip.compress(lines.encode(), mtime=0))
        part.rename(folder / 'items.jsonl.gz')
        write_atomically(file, json.dumps(results, indent=1) + '\n')
        return json.loads(file.read_text())

    def roll(self, texts: Sequence[str]) -> list[float]:
        """Log-likelihood of each text in nats: every token once, BOS given and never scored.

        Raises:
          ConfigError: a score that is not finite.
        """
        options = {'bos_id': self._tokenizer.bos_id, 'max_seq_len': self._scorer.max_seq_len}
        windows = [encode.rolling_windows(self._tokenizer.encode(text), **options) for text in texts]
        flat = [(window, f'text {number}') for number, several in enumerate(windows) for window in several]
        answers = iter(self._scorer.score([window for window, _ in flat], [name for _, name in flat]))
        return [sum(next(answers).log_likelihood for _ in several) for several in windows]

    def build_items(self, task: Task, documents: Sequence[Document]) -> list[Item]:
        """The items of the first documents, with their examples before the contexts.

        Examples are drawn by one stream over the documents in order, as lm-eval draws them: where --limit leaves
        documents unjudged, from the next POOL of them; else from the judged ones, one more than asked for, less the
        document itself. Those of MMLU are the first of its dev set.
        """
        items, draw = [], random.Random(SEED)
        chosen = list(documents)[: self._limit or None]
        heading = ''
        if task.name.startswith('mmlu_'):
            subject = task.name.removeprefix('mmlu_').replace('_', ' ')
            heading = f'The following are multiple choice questions (with answers) about {subject}.\n\n'
            if self._shots and task.shot is not None:
                dev = task.files[0].replace('/test/', '/dev/').replace('_test.', '_dev.')
                examples, _ = sources.read_documents(self._data, dataclasses.replace(task, files=[dev]))
                heading += ''.join(map(task.shot, examples[: self._shots]))
        pool = list(documents)[len(chosen) :][:POOL]
        is_apart = len(pool) >= self._shots
        pool = pool if is_apart else chosen
        if self._shots and not heading and len(pool) < self._shots + (not is_apart):
            raise ConfigError(f'--shots {self._shots}: {task.name} has {len(documents)} documents; ask for fewer')
        for document in chosen:
            prefix = heading
            if self._shots and task.shot is not None and not heading:
                drawn = draw.sample(pool, self._shots + (not is_apart))
                prefix = ''.join(map(task.shot, [one for one in drawn if one != document][: self._shots]))
            item = task.item(document)
            requests = [(prefix + context, continuation) for context, continuation in item.requests]
            items.append(dataclasses.replace(item, requests=requests))
        return items

    def score_items(self, name: str, items: Sequence[Item]) -> tuple[list[dict[str, Any]], int, int]:
        """(a record of each item, requests that were cut on the left, requests with a token over the boundary)."""
        options = {'bos': self._bos, 'max_seq_len': self._scorer.max_seq_len}
        encoded = [
            [encode.encode_pair(self._tokenizer, *request, **options) for request in item.requests] for item in items
        ]
        flat = [(number, one) for number, several in enumerate(encoded) for one in several]
        names = [f'{name}, item {number}' for number, _ in flat]
        answers = iter(self._scorer.score([(one.tokens, len(one.continuation)) for _, one in flat], names))
        rows = []
        for number, (item, several) in enumerate(zip(items, encoded, strict=True)):
            own = [next(answers) for _ in several]
            requests = [
                {
                    'context': context, 'continuation': continuation, 'loglikelihood': answer.log_likelihood,
                    'is_greedy': answer.is_greedy, 'tokens': list(one.continuation),
                    'context_tokens': list(one.context),
                }
                for (context, continuation), answer, one in zip(item.requests, own, several, strict=True)
            ]  # fmt: skip
            graded = grade(item, own, [len(one.continuation) for one in several])
            rows.append({'task': name, 'id': number, 'requests': requests, 'gold': item.gold, 'metrics': graded})
        truncated = sum(one.is_truncated for _, one in flat)
        return rows, truncated, sum(one.spans_boundary for _, one in flat)
