"""How well a trained model of the project's own predicts a document, and whether that is plausible.

    bits per byte   -Σ log2 p(token | tokens before) / bytes of the text

It is perplexity in units that do not depend on the tokenizer. Text of the kind that the model was
trained on has few bits; noise, other languages and broken encodings have many (CCNet, Wenzek et
al. 2020, arXiv:1911.00359), and boilerplate, lists and repetition have hardly any, so there are two
thresholds. Both are a matter of the model: run the stage without them first, and read them
from the histogram of 'perplexity.bits_per_byte' in the report.

A document longer than the model's context is scored in windows that overlap, each token once. Rows
are padded to a few lengths, so that few programs are compiled, and each row is computed by
itself: neither the documents beside it nor the number of workers changes a score.

Workers share the default device: on a TPU, which one process owns, take `--workers 1`.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import functools
import hashlib
import json
import math
import os
import pathlib
from typing import Any, NamedTuple

import numpy as np

from llm_jax.config.schema import ConfigError, field
from llm_jax.corpus.batch import stage_of
from llm_jax.corpus.chain import code_of
from llm_jax.corpus.document import Document, Dropped, Stage
from llm_jax.corpus.filter import rules

# JAX, and what needs it, is imported where a model is loaded: other stages and their workers do without.

# Tokens of a batch. On a CPU small ones are as fast, and less of the last one is padding.
_TOKENS = {'cpu': 2048}
_TOKENS_OF_ACCELERATORS = 16384
# Rows are padded to the window, or to a half, a quarter, an eighth of it.
_LENGTHS = 4
# Logits that are there at a time.
_LOGITS = 1 << 24
# Of the bits per byte. What another machine computes differs later on.
_DECIMALS = 3


@dataclasses.dataclass(frozen=True)
class Options:
    run: str = field('', 'run directory of a trained model, such as runs/quickstart, or one of Hugging Face')
    step: int = field(0, 'which checkpoint of the run; 0 takes the newest, so name one while the run goes on')
    kinds: tuple = field(rules.PROSE, 'kinds of document that are judged; others pass')
    min_bits_per_byte: float = field(0.0, 'documents that are predicted better are dropped; 0 drops none')
    max_bits_per_byte: float = field(0.0, 'documents that are predicted worse are dropped; 0 drops none')
    window: int = field(0, 'tokens that are scored at a time; 0 takes the data.seq_len that the model was trained with')
    overlap: float = field(0.25, 'share of a window that repeats the end of the one before, where it is scored')
    max_windows: int = field(0, 'windows of a long document that are scored, spread evenly over it; 0 scores all')


def make(options: Options) -> Stage:
    """The stage 'perplexity'.

    Reasons: `perplexity.low`, `perplexity.high`. Signal: `perplexity.bits_per_byte`.

    Raises:
      ConfigError: no model, or an option out of range.
    """
    scorer = _scorer(options)
    low, high = options.min_bits_per_byte, options.max_bits_per_byte or math.inf

    def many(documents: Sequence[Document]) -> list[Document | Dropped]:
        judged = [document for document in documents if document.kind in options.kinds]
        scores = iter(scorer.bits_per_byte([d.text for d in judged], options))
        out: list[Document | Dropped] = []
        for document in documents:
            if document.kind not in options.kinds:
                out.append(document)
                continue
            bits = next(scores)
            scored = rules.with_signals(document, 'perplexity', {'bits_per_byte': bits})
            if bits < low:
                out.append(Dropped(scored, 'perplexity.low', f'{bits:g} < {low:g} bits per byte'))
            elif bits > high:
                out.append(Dropped(scored, 'perplexity.high', f'{bits:g} > {high:g} bits per byte'))
            else:
                out.append(scored)
        return out

    return stage_of(many)


def check(options: Options) -> Options:
    """The options, if they can be meant.

    Raises:
      ConfigError: naming the option, its value and what would be right.
    """
    low, high = options.min_bits_per_byte, options.max_bits_per_byte
    for name, right, fix in (
        ('run', bool(options.run), 'name the run directory of a trained model, such as runs/quickstart'),
        ('step', options.step >= 0, 'it must be a step of a checkpoint, or 0 for the newest'),
        ('min_bits_per_byte', low >= 0, 'it must be at least 0'),
        ('max_bits_per_byte', high == 0 or high > low, f'it must be above min_bits_per_byte = {low}, or 0 (off)'),
        ('window', options.window >= 0, "it must be a number of tokens, or 0 for the model's"),
        ('overlap', 0 <= options.overlap <= 0.9, 'it must be 0 to 0.9'),
        ('max_windows', options.max_windows >= 0, 'it must be at least 1, or 0 (all)'),
    ):
        if not right:
            raise ConfigError(f'perplexity.{name} = {getattr(options, name)!r}: {fix}')
    return options


def fingerprint(options: Options) -> str:
    """A hash of the model: its config, its parts, its tokenizer and its parameters.

    Raises:
      ConfigError: there is no such model, or an option is out of range.
    """
    return _scorer(options).fingerprint


def _scorer(options: Options) -> '_Scorer':
    found = _load(check(options).run, options.step)
    if options.window > found.max_len:
        raise ConfigError(
            f"perplexity.window = {options.window}: the model's context is {found.max_len} tokens; take that or fewer"
        )
    return found


@functools.lru_cache(maxsize=1)
def _load(run: str, step: int) -> '_Scorer':
    """The model on the default device, once per process."""
    # Workers that share a GPU take what they need of it, not most of it each.
    os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
    from llm_jax import runs

    try:
        loaded = runs.load(run, step or None)
    except ConfigError as error:
        raise ConfigError(f'perplexity.run = {run!r}: {error}') from error
    if loaded.tokenizer is None:
        raise ConfigError(f'perplexity.run = {run!r} has no tokenizer')
    return _Scorer(loaded, pathlib.Path(run, runs.EXPERIMENT))


class _Scorer:
    """Bits per byte of texts under a model."""

    def __init__(self, loaded: Any, parts: pathlib.Path):
        """Args:
        loaded: a `runs.Loaded`.
        parts: the file that defines parts of the model, which need not be there.
        """
        import jax

        self._tokenizer, self._params, self._model = loaded.tokenizer, loaded.params, loaded.model
        self.trained_len, self.max_len = loaded.config.data.seq_len, loaded.model.config.max_seq_len
        self._batch_tokens = _TOKENS.get(jax.default_backend(), _TOKENS_OF_ACCELERATORS)
        self._nll = jax.jit(functools.partial(_nll, loaded.model))
        self.fingerprint = _fingerprint(loaded, parts)

    def bits_per_byte(self, texts: Sequence[str], options: Options) -> list[float]:
        """Of each text; one without any token has 0."""
        window = options.window or self.trained_len
        overlap = int(options.overlap * window)
        tokens = [
            np.array([self._tokenizer.bos_id, *ids], np.int32) for ids in self._tokenizer.encode_batch(list(texts))
        ]
        rows = [
            Row(i, start, stop, first)
            for i, ids in enumerate(tokens)
            for start, stop, first in windows(len(ids) - 1, window, overlap, options.max_windows)
        ]
        nats, n_bytes = np.zeros(len(texts)), np.zeros(len(texts))
        for row, nll in self._of_rows(tokens, rows, window):
            nats[row.text] += nll.astype(np.float64).sum()
            n_bytes[row.text] += self._tokenizer.token_bytes[tokens[row.text][row.first + 1 : row.stop + 1]].sum()
        # Of tokenizers that put a space before a text, or normalise it, tokens have other bytes than the text.
        whole = np.array([self._tokenizer.token_bytes[ids[1:]].sum() for ids in tokens])
        share = np.divide(n_bytes, whole, out=np.zeros(len(texts)), where=whole > 0)
        size = share * [len(text.encode()) for text in texts]
        bits = np.divide(nats / math.log(2), size, out=np.zeros(len(texts)), where=size > 0)
        if not np.isfinite(bits).all():
            raise ConfigError('perplexity.run: the model gives probabilities that are no numbers; it is of no use here')
        return [round(value, _DECIMALS) for value in bits.tolist()]

    def _of_rows(
        self, tokens: Sequence[np.ndarray], rows: Sequence['Row'], window: int
    ) -> Iterator[tuple['Row', np.ndarray]]:
        """Rows with -log p of each of their tokens that counts, in nats."""
        lengths = sorted({-(-window >> k) for k in range(_LENGTHS)})
        by_length: dict[int, list[Row]] = {}
        for row in rows:
            fits = next(length for length in lengths if row.stop - row.start <= length)
            by_length.setdefault(fits, []).append(row)
        for length, some in sorted(by_length.items()):
            size = max(1, self._batch_tokens // length)
            for at in range(0, len(some), size):
                batch = np.zeros((size, length + 1), np.int32)
                for place, row in zip(batch, some[at : at + size], strict=False):
                    place[: row.stop - row.start + 1] = tokens[row.text][row.start : row.stop + 1]
                nll_BL = np.asarray(self._nll(self._params, batch))
                for row, nll_L in zip(some[at : at + size], nll_BL, strict=False):
                    yield row, nll_L[row.first - row.start : row.stop - row.start]


class Row(NamedTuple):
    """A window of a text: it predicts tokens `start` to `stop` of its text, and those from `first` on count."""

    text: int
    start: int
    stop: int
    first: int


def windows(n_tokens: int, window: int, overlap: int, most: int) -> list[tuple[int, int, int]]:
    """(start, stop, first) of the windows of a text; `first` to `stop` of all of them together are its tokens.

    Args:
      n_tokens: of the text.
      window: tokens that are predicted at a time.
      overlap: how many of them were predicted before; fewer than `window`.
      most: take only so many, the first and the last among them, evenly spread; 0 takes all.
    """
    if not n_tokens:
        return []
    step = window - overlap
    count = 1 + max(0, -(-(n_tokens - window) // step))
    found = [(i * step, min(i * step + window, n_tokens), i * step + overlap if i else 0) for i in range(count)]
    if most and count > most:
        found = [found[i * (count - 1) // max(most - 1, 1)] for i in range(most)]
    return found


def _nll(model: Any, params: Any, tokens: Any) -> Any:
    """-log p of each token after the first, in nats: int32[B, L + 1] -> float32[B, L]."""
    import jax
    import jax.numpy as jnp

    x_BLD = model.apply({'params': params}, tokens[:, :-1], method='features')
    B, L, _ = x_BLD.shape
    wanted = max(1, _LOGITS // (B * model.config.vocab_size))
    chunk = max(n for n in range(1, L + 1) if L % n == 0 and n <= wanted)

    def part(start: Any) -> Any:
        at = lambda array: jax.lax.dynamic_slice_in_dim(array, start, chunk, axis=1)
        logits_BlV = model.apply({'params': params}, at(x_BLD), method='head')
        chosen_Bl = jnp.take_along_axis(logits_BlV, at(tokens[:, 1:])[..., None], axis=-1)[..., 0]
        return jax.nn.logsumexp(logits_BlV, axis=-1) - chosen_Bl

    nll_NBl = jax.lax.map(part, jnp.arange(0, L, chunk))
    return jnp.moveaxis(nll_NBl, 0, 1).reshape(B, L)


def _fingerprint(loaded: Any, parts: pathlib.Path) -> str:
    import jax

    # Parts that are classes or functions count by name; their code is in `parts`, or that of the library.
    model = json.dumps(dataclasses.asdict(loaded.model.config), default=lambda part: part.__qualname__, sort_keys=True)
    sha = hashlib.sha256(model.encode())
    sha.update(parts.read_bytes() if parts.is_file() else b'')
    sha.update(f'{loaded.tokenizer.fingerprint} {loaded.config.data.seq_len} {jax.__version__}'.encode())
    sha.update(' '.join(map(code_of, ('llm_jax.nn', 'llm_jax.ops', 'llm_jax.corpus.perplexity'))).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(loaded.params):
        sha.update(jax.tree_util.keystr(path).encode())
        sha.update(np.ascontiguousarray(leaf).view(np.uint8).data)
    return sha.hexdigest()[:16]
