"""A quality classifier that the user trains: logistic regression on hashed n-grams of words.

What fastText's classifiers of web pages are (Joulin et al. 2017; DCLM, Li et al. 2024), without
the middle layer, which two classes do not need: then the problem is convex, and the model does
not depend on a seed.

    features    x_j = 1 + log(count) of the words and word pairs that hash to j, scaled to |x| = 1
    score       sigmoid(w x + b), in [0, 1]
    training    minimises mean log loss + l2/2 |w|², by L-BFGS
    calibration the scores that cross-validation gave unseen texts say how far the model is too sure
                of itself (Platt 1999); w and b are scaled by that, so a score is a probability for
                texts that are as often good as the training texts are
"""

from collections.abc import Iterable, Iterator, Sequence
import dataclasses
import hashlib
import json
import os
import random
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from llm_jax.config.schema import ConfigError, field
from llm_jax.corpus.batch import stage_of
from llm_jax.corpus.dedup.words import find_words, hash_spans, in_blocks
from llm_jax.corpus.document import Document, Dropped, Stage
from llm_jax.corpus.filter import rules
from llm_jax.data import files

_QUANTILES = 1001
_SOLVER = {'maxiter': 500, 'ftol': 1e-8, 'gtol': 1e-6}
# Texts whose features are made at a time.
_BLOCK = 256


@dataclasses.dataclass(frozen=True)
class Quality:
    """The filter by a trained classifier."""

    kinds: tuple = field(rules.PROSE, 'kinds of document that are judged; others pass')
    model: str = field('', 'file that the tool train_quality wrote')
    threshold: float = field(0.5, 'documents with a lower score are dropped')
    keep_share: float = field(
        0.0, 'drop all but this share, instead: the threshold is that quantile of the scores of the reference sample '
        'that the model was trained with; 0 uses threshold'
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Training:
    """How a classifier is trained."""

    bits: int = field(18, 'log2 of the number of hashed features')
    ngram: int = field(2, 'longest run of words that is a feature')
    max_words: int = field(5000, 'words at the beginning of a text that count')
    l2: float = field(1e-4, 'weight of the penalty on large weights')
    folds: int = field(10, 'folds of the cross-validation, by which scores are calibrated')
    seed: int = field(0, 'seed of the folds')


@dataclasses.dataclass(frozen=True)
class Features:
    """A sparse matrix by rows: row i has values[starts[i]:starts[i+1]] in columns[starts[i]:starts[i+1]]."""

    columns: np.ndarray
    values: np.ndarray
    starts: np.ndarray

    def times(self, weights: np.ndarray) -> np.ndarray:
        """float64[rows], the matrix times a vector."""
        row = np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))
        # Adds up in order: what a row gives does not depend on the others.
        return np.bincount(row, self.values * weights[self.columns], len(self.starts) - 1)

    def transposed_times(self, by_row: np.ndarray, width: int) -> np.ndarray:
        """float64[width], the transposed matrix times a vector."""
        return np.bincount(self.columns, self.values * np.repeat(by_row, np.diff(self.starts)), width)

    def rows(self, chosen: np.ndarray) -> 'Features':
        """Some of the rows."""
        counts = np.diff(self.starts)[chosen]
        ends = np.cumsum(counts)
        at = np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - counts - self.starts[chosen], counts)
        return Features(self.columns[at], self.values[at], np.concatenate([[0], ends]))


@dataclasses.dataclass(frozen=True)
class Model:
    """A trained classifier.

    Attributes:
      weights: float32[2^bits].
      bias: of the logit.
      quantiles: float32[1001], scores of the reference sample that 0, 0.1, ... 100 % of it stay below.
      training: how it was trained.
    """

    weights: np.ndarray
    bias: float
    quantiles: np.ndarray
    training: Training

    def scores(self, texts: Sequence[str]) -> np.ndarray:
        """float64[texts], in [0, 1]."""
        return _sigmoid(features(texts, self.training).times(self.weights) + self.bias)

    def save(self, path: str | os.PathLike) -> None:
        """Writes the model as one file; the same model gives the same bytes."""
        tensors = {'weights': self.weights, 'quantiles': self.quantiles, 'bias': np.array([self.bias])}
        save_file(tensors, path, {'quality': json.dumps(dataclasses.asdict(self.training))})


def load(path: str | os.PathLike) -> Model:
    """Reads a model.

    Raises:
      ConfigError: no such file, or one that is no quality model.
    """
    if not str(path):
        raise ConfigError(
            "quality.model is empty: name the file of a classifier, which './tools/run train_quality LABELLED.jsonl "
            "--out FILE' trains"
        )
    if not os.path.isfile(path):
        raise ConfigError(f'quality.model = {str(path)!r}: there is no such file; the tool train_quality writes one')
    try:
        with safe_open(path, 'numpy') as file:
            training = Training(**json.loads((file.metadata() or {})['quality']))
            return Model(
                file.get_tensor('weights'), float(file.get_tensor('bias')[0]), file.get_tensor('quantiles'), training
            )
    except (SafetensorError, KeyError) as error:
        raise ConfigError(f'quality.model = {str(path)!r} is no quality model: {error}') from error


def make(options: Quality) -> Stage:
    """The stage: 'quality.score' among the signals; lower ones than the threshold are dropped under that name.

    Raises:
      ConfigError: no model, or an option out of range.
    """
    model = load(options.model)
    threshold = _threshold(options, model)

    def many(documents: Sequence[Document]) -> list[Document | Dropped]:
        judged = [document for document in documents if document.kind in options.kinds]
        scores = iter([score for _, texts in in_blocks(judged) for score in model.scores(texts).tolist()])
        out: list[Document | Dropped] = []
        for document in documents:
            if document.kind not in options.kinds:
                out.append(document)
                continue
            score = next(scores)
            scored = rules.with_signals(document, 'quality', {'score': score})
            low = score < threshold
            out.append(Dropped(scored, 'quality.score', f'{score:.3f} < {threshold:.3f}') if low else scored)
        return out

    return stage_of(many)


def fingerprint(options: Quality) -> str:
    """A hash of the classifier.

    Raises:
      ConfigError: there is none, or an option is out of range.
    """
    _threshold(options, load(options.model))
    with open(options.model, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()[:16]


def _threshold(options: Quality, model: Model) -> float:
    if not 0 <= options.keep_share < 1:
        raise ConfigError(f'quality.keep_share = {options.keep_share!r}: it must be 0 (off) to below 1')
    if not 0 <= options.threshold <= 1:
        raise ConfigError(f'quality.threshold = {options.threshold!r}: scores are 0 to 1')
    if not options.keep_share:
        return options.threshold
    return float(np.interp(1 - options.keep_share, np.linspace(0, 1, _QUANTILES), model.quantiles))


# --- Texts to train on -----------------------------------------------------------------


def read_labelled(pattern: str, text_field: str = 'text', label_field: str = 'label') -> Iterator[tuple[str, int]]:
    """(text, label) of JSON lines; a label is 1, 0, true or false.

    Raises:
      ConfigError: no such file, or a line without a text or such a label.
    """
    for file in files.find(pattern, 'labelled'):
        for number, line in enumerate(file.lines(), 1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
                text, label = value[text_field], value[label_field]
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise ConfigError(
                    f'{file.path}:{number} has no {text_field!r} and {label_field!r}: {error!r}'
                ) from error
            if not isinstance(text, str) or label not in (0, 1):
                raise ConfigError(f'{file.path}:{number}: {label_field} = {label!r}; it must be 1 (good) or 0 (bad)')
            yield text, int(label)


def sample(texts: Iterable[Any], limit: int, seed: int) -> list[Any]:
    """Some of the texts, each with the same chance, in their order; all if there are no more than `limit`."""
    rng, kept = random.Random(seed), []
    for i, text in enumerate(texts):
        if i < limit:
            kept.append((i, text))
        elif (place := rng.randrange(i + 1)) < limit:
            kept[place] = (i, text)
    return [text for _, text in sorted(kept, key=lambda pair: pair[0])]


# --- Features --------------------------------------------------------------------------


def features(texts: Sequence[str], training: Training) -> Features:
    """Hashed n-grams of some texts; a text without words has none."""
    parts = [_features(texts[i : i + _BLOCK], training) for i in range(0, len(texts), _BLOCK)] or [
        _features([], training)
    ]
    lengths = np.concatenate([np.diff(part.starts) for part in parts])
    starts = np.concatenate([[0], np.cumsum(lengths)])
    return Features(np.concatenate([p.columns for p in parts]), np.concatenate([p.values for p in parts]), starts)


def _features(texts: Sequence[str], training: Training) -> Features:
    words = find_words(texts)
    begin = words.offsets[:-1]
    end = np.minimum(words.offsets[1:], begin + training.max_words)
    owner = words.owners()
    keys = []
    for n in range(1, training.ngram + 1):
        at = np.flatnonzero(np.arange(len(owner)) + n <= end[owner]) if len(owner) else np.zeros(0, int)
        hashes = words.hashes[at] if n == 1 else hash_spans(words.hashes, at, at + n)
        keys.append(owner[at].astype(np.uint64) << np.uint64(training.bits) | hashes >> np.uint64(64 - training.bits))
    keys, counts = np.unique(np.concatenate(keys), return_counts=True)
    values = 1 + np.log(counts)
    row = (keys >> np.uint64(training.bits)).astype(np.int64)
    norm = np.sqrt(np.bincount(row, values**2, len(texts)))
    starts = np.searchsorted(row, np.arange(len(texts) + 1))
    columns = (keys & np.uint64((1 << training.bits) - 1)).astype(np.int32)
    return Features(columns, values / norm[row], starts)


# --- Training --------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Mean over folds, and its standard error."""

    mean: float
    error: float

    def __str__(self) -> str:
        return f'{self.mean:.3f} ± {self.error:.3f}'


def train(
    texts: Sequence[str], labels: Sequence[int], training: Training, reference: Sequence[str] = ()
) -> tuple[Model, dict[str, Estimate]]:
    """A calibrated classifier, and how well it tells unseen texts apart.

    Args:
      texts, labels: 1 is good, 0 is bad.
      training: options.
      reference: texts that `keep_share` is to be understood of, such as a sample of the crawl;
        empty takes the training texts, as cross-validation scored them.

    Returns:
      the model, trained on all texts, and estimates by cross-validation: 'auc', 'accuracy' (at
      0.5), 'log_loss' (nats) and 'calibration' (expected error of the probability, over ten bins
      of equal size), where what calibrates the scores of a fold comes from the others;
      'length_auc' of the length of the text alone, and 'majority', the accuracy of always saying
      the same.

    Raises:
      ConfigError: too few texts of a class for the folds.
    """
    y = np.asarray(labels, np.float64)
    fold = _folds(y, training)
    matrix = features(texts, training)
    unseen = _unseen_logits(matrix, y, fold, training)
    scale, shift = _platt(unseen, y)
    weights, bias = _fit(matrix, y, training.l2, 1 << training.bits)
    model = Model((scale * weights).astype(np.float32), float(scale * bias + shift), np.zeros(0), training)
    scores = model.scores(reference) if len(reference) else _sigmoid(scale * unseen + shift)
    quantiles = np.quantile(scores, np.linspace(0, 1, _QUANTILES)).astype(np.float32)
    lengths = np.array([len(text) for text in texts], np.float64)
    return dataclasses.replace(model, quantiles=quantiles), _estimates(unseen, y, fold, lengths)


def _estimates(unseen: np.ndarray, y: np.ndarray, fold: np.ndarray, lengths: np.ndarray) -> dict[str, Estimate]:
    found: dict[str, list[float]] = {}
    for k in range(fold.max() + 1):
        rest, here = fold != k, fold == k
        scale, shift = _platt(unseen[rest], y[rest])
        score, truth = _sigmoid(scale * unseen[here] + shift), y[here]
        likely = np.clip(np.where(truth == 1, score, 1 - score), 1e-12, 1)
        for name, value in (
            ('auc', auc(score, truth)),
            ('accuracy', np.mean((score >= 0.5) == truth)),
            ('log_loss', -np.mean(np.log(likely))),
            ('calibration', _calibration_error(score, truth)),
            ('length_auc', auc(lengths[here], truth)),
            ('majority', np.mean(truth == np.round(y[rest].mean()))),
        ):
            found.setdefault(name, []).append(float(value))
    error = lambda values: float(np.std(values, ddof=1) / np.sqrt(len(values)))
    return {name: Estimate(float(np.mean(values)), error(values)) for name, values in found.items()}


def auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Probability that a good text scores higher than a bad one; equal scores count half."""
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    good = labels == 1
    n = int(good.sum())
    return float((rank[good].sum() - n * (n + 1) / 2) / (n * (len(labels) - n)))


def _fit(matrix: Features, y: np.ndarray, l2: float, width: int) -> tuple[np.ndarray, float]:
    """(weights, bias) of least penalised log loss."""
    from scipy import optimize  # of training alone: workers that only score need not import it

    sign = 2 * y - 1

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        weights, bias = parameters[:-1], parameters[-1]
        margin = sign * (matrix.times(weights) + bias)
        by_row = -sign * _sigmoid(-margin) / len(y)
        gradient = matrix.transposed_times(by_row, width) + l2 * weights
        value = np.logaddexp(0, -margin).mean() + l2 / 2 * weights @ weights
        return value, np.append(gradient, by_row.sum())

    found = optimize.minimize(loss, np.zeros(width + 1), jac=True, method='L-BFGS-B', options=_SOLVER).x
    return found[:-1], float(found[-1])


def _unseen_logits(matrix: Features, y: np.ndarray, fold: np.ndarray, training: Training) -> np.ndarray:
    """The logit of each text by a model that was trained without its fold."""
    out = np.zeros(len(y))
    for k in range(training.folds):
        rest = np.flatnonzero(fold != k)
        weights, bias = _fit(matrix.rows(rest), y[rest], training.l2, 1 << training.bits)
        out[fold == k] = matrix.rows(np.flatnonzero(fold == k)).times(weights) + bias
    return out


def _folds(y: np.ndarray, training: Training) -> np.ndarray:
    """int[texts], the fold of each, both classes spread evenly."""
    rng, fold = np.random.default_rng(training.seed), np.zeros(len(y), int)
    for label in (0, 1):
        mine = np.flatnonzero(y == label)
        if len(mine) < training.folds or training.folds < 2:
            raise ConfigError(
                f'{len(mine)} texts have label {label}, and there are {training.folds} folds; '
                'it needs at least 2 folds, and a text of each label for each'
            )
        fold[rng.permutation(mine)] = np.arange(len(mine)) % training.folds
    return fold


def _platt(logits: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """(scale, shift) that make logits of unseen texts calibrated."""
    one = Features(np.zeros(len(y), int), logits, np.arange(len(y) + 1))
    scale, shift = _fit(one, y, 1e-6, 1)
    return max(float(scale[0]), 0.0), shift


def _calibration_error(scores: np.ndarray, labels: np.ndarray, bins: int = 10) -> float:
    parts = np.array_split(np.argsort(scores, kind='stable'), bins)
    return sum(len(p) * abs(scores[p].mean() - labels[p].mean()) for p in parts if len(p)) / len(scores)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -x))
