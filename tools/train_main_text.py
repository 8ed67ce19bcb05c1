"""Fit the network that finds the main text of web pages, and measure it on pages it has not seen.

    ./tools/run train_main_text DIR/web/wcxb_dev.jsonl.zst [--write]

DIR/web/wcxb_dev.jsonl.zst holds pages with their main text: the development pages of the Web
Content Extraction Benchmark. First each half of the web sites is fitted and the other
half measured (word F1 by kind of page); then all pages are fitted and, with --write, the
weights of `llm_jax/corpus/extract/network.py` are replaced. About 15 minutes and 3 GB.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
import dataclasses
import hashlib
import pathlib
import re
import sys
from typing import TYPE_CHECKING
import urllib.parse

import numpy as np
from rich.console import Console
from rich.table import Table

from llm_jax.config import cli
from llm_jax.config.schema import ConfigError
from llm_jax.corpus.extract import blocks, features, main_text, network
from llm_jax.corpus.extract.blocks import Page
from llm_jax.corpus.extract.facts import facts
from llm_jax.data import files

if TYPE_CHECKING:
    import jax

_WORD = re.compile(r'\w+')
_WEIGHTS = pathlib.Path(network.__file__).parent / 'main_text.npz'
# Blocks and pages of a batch; a longer page is cut off.
_BLOCKS, _PAGES = 6000, 24
_HIDDEN = (96, 48)
_DROP_FEATURES, _DROP_HIDDEN = 0.2, 0.3
_EPOCHS, _LEARNING_RATE, _WEIGHT_DECAY = 25, 2e-3, 0.1
# What a block says is the main text's if so many of its words in a row are.
_GRAM = 3


@dataclasses.dataclass(frozen=True)
class Example:
    """A page, its features, and of each block its words n and what share y of them is in the main text."""

    kind: str
    site: str
    truth: str
    page: Page
    x: np.ndarray
    y: np.ndarray
    n: np.ndarray


def main(argv: list[str]) -> None:
    parser = cli.Parser('train_main_text', __doc__)
    parser.add_argument('pages', help='JSON lines with html, url, page_type and main_content')
    parser.add_argument('--write', action='store_true', help='replace the weights that come with the library')
    arguments = parser.parse(argv)
    console = Console()
    names, examples = read(arguments.pages)
    halves = np.array([hashlib.sha256(e.site.encode()).digest()[0] % 2 for e in examples])
    scores = np.zeros(len(examples))
    for half in (0, 1):
        net = fit(names, [e for e, h in zip(examples, halves, strict=True) if h == half])
        for i in np.flatnonzero(halves != half):
            scores[i] = score(net, examples[i])
    table = Table('kind', 'pages', 'F1', 'first half', 'second half', title='fitted to the other half of the sites')
    kinds = np.array([e.kind for e in examples])
    judged = np.array([bool(e.truth.strip()) for e in examples])
    for kind in ('all', *sorted(set(kinds))):
        of_kind = judged & ((kinds == kind) | (kind == 'all'))
        cells = [f'{scores[of_kind & mask].mean():.3f}' for mask in (judged, halves == 0, halves == 1)]
        table.add_row(kind, str(of_kind.sum()), *cells)
    console.print(table)
    if arguments.write:
        net = network.loads(network.dumps(fit(names, examples)))
        _WEIGHTS.write_bytes(network.dumps(net))
        seen = np.mean([score(net, e) for e, j in zip(examples, judged, strict=True) if j])
        console.print(f'fitted to all pages: F1 {seen:.3f} on these pages; wrote {_WEIGHTS}')


def read(path: str) -> tuple[list[str], list[Example]]:
    """(names of the features, the pages that have any text)."""
    examples, names = [], []
    for row in files.read_json_lines(path, 'PAGES', ('html', 'url', 'page_type', 'main_content')):
        url, truth = row['url'] or '', row['main_content'] or ''
        tree = blocks.parse(row['html'])
        page = blocks.blocks(tree) if tree is not None else None
        if page is None or not page.texts:
            x = np.zeros((0, 0), np.float32)
            page = page or blocks.blocks(blocks.parse('<p></p>'))
        else:
            names, x = features.features(page, url, facts(row['html']))
        y, n = labels(page.texts, truth)
        site = '.'.join(urllib.parse.urlsplit(url).netloc.split('.')[-2:]) or row['id']
        examples.append(Example(row['page_type'], site, truth, page, x, y, n))
    return names, examples


def labels(texts: Sequence[str], truth: str) -> tuple[np.ndarray, np.ndarray]:
    """(share of each block's words that stand in the truth in a row of three, or as a line of it; words)."""
    words = [_WORD.findall(text.lower()) for text in texts]
    flat = [word for block in words for word in block]
    grams = lambda of: zip(*(of[i:] for i in range(_GRAM)), strict=False)
    known = set(grams(_WORD.findall(truth.lower())))
    lines = {tuple(_WORD.findall(part.lower())) for line in truth.split('\n') for part in (line, *line.split('|'))}
    covered = np.zeros(len(flat), bool)
    for i, gram in enumerate(grams(flat)):
        if gram in known:
            covered[i : i + _GRAM] = True
    n = np.array([len(block) for block in words], np.float32)
    stop = np.cumsum(n).astype(int)
    sums = np.concatenate([[0], np.cumsum(covered)])
    y = (sums[stop] - sums[stop - n.astype(int)]) / np.maximum(n, 1)
    whole = np.array([bool(block) and tuple(block) in lines for block in words], bool)
    return np.where(whole, 1, y).astype(np.float32), n


def score(net: network.Network, example: Example) -> float:
    """Word F1 of what the network chooses."""
    text = ''
    if len(example.y):
        words = np.array([len(t.split()) for t in example.page.texts], np.float64)
        text = main_text.render(example.page, network.chosen(net.probabilities(example.x), words))
    found, true = (Counter(_WORD.findall(t.lower())) for t in (text, example.truth))
    both = (found & true).total()
    return 2 * both / (found.total() + true.total()) if both else 0.0


def fit(names: Sequence[str], examples: Sequence[Example], seed: int = 0) -> network.Network:
    """A network fitted to pages: half cross-entropy, half expected F1, every page alike.

    Raises:
      ConfigError: no page has main text.
    """
    import jax
    import optax

    examples = [e for e in examples if e.y.sum()]
    if not examples:
        raise ConfigError('PAGES: half of the web sites have no page with main text; give pages of more sites')
    x = np.concatenate([e.x for e in examples])
    mean, scale = x.mean(0), 1 / np.maximum(x.std(0), 0.05)
    rng = np.random.default_rng(seed)
    sizes = (len(names), *_HIDDEN, 1)
    params = [
        (rng.normal(0, (2 / a) ** 0.5, (a, b)).astype(np.float32), np.zeros(b, np.float32))
        for a, b in zip(sizes[:-1], sizes[1:], strict=True)
    ]
    steps = _EPOCHS * (1 + sum(1 for _ in batches(examples, mean, scale, rng)))
    optimizer = optax.adamw(optax.cosine_decay_schedule(_LEARNING_RATE, steps), weight_decay=_WEIGHT_DECAY)
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, batch, key):
        grads = jax.grad(loss)(params, batch, key)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    key = jax.random.key(seed)
    for _ in range(_EPOCHS):
        for batch in batches(examples, mean, scale, rng):
            key, now = jax.random.split(key)
            params, state = step(params, state, batch, now)
    rounded = network.dumps(network.Network(tuple(names), mean, scale, [(w, b) for w, b in params]))
    return network.loads(rounded)


def batches(examples: Sequence[Example], mean: np.ndarray, scale: np.ndarray, rng: np.random.Generator) -> Iterator:
    """(features, labels, words, page of each block) of whole pages, in a new order."""
    held: list[Example] = []
    for i in (*rng.permutation(len(examples)), None):
        size = 0 if i is None else min(len(examples[i].y), _BLOCKS)
        if held and (i is None or len(held) == _PAGES or sum(min(len(e.y), _BLOCKS) for e in held) + size > _BLOCKS):
            x = np.zeros((_BLOCKS, len(mean)), np.float32)
            y, n, of = np.zeros(_BLOCKS, np.float32), np.zeros(_BLOCKS, np.float32), np.full(_BLOCKS, _PAGES)
            at = 0
            for page, e in enumerate(held):
                k = min(len(e.y), _BLOCKS)
                x[at : at + k] = ((e.x[:k] - mean) * scale).clip(-network.CLIP, network.CLIP)
                y[at : at + k], n[at : at + k], of[at : at + k] = e.y[:k], e.n[:k], page
                at += k
            yield x, y, n, of
            held = []
        if i is not None:
            held.append(examples[i])


def loss(params: list, batch: tuple, key: 'jax.Array') -> 'jax.Array':
    import jax
    import jax.numpy as jnp
    import optax

    x, y, n, of = batch
    keys = jax.random.split(key, len(params))
    for i, (weights, biases) in enumerate(params):
        keep = 1 - (_DROP_HIDDEN if i else _DROP_FEATURES)
        x = x * jax.random.bernoulli(keys[i], keep, x.shape) / keep
        x = x @ weights + biases
        x = jax.nn.relu(x) if i < len(params) - 1 else x
    logits = x[:, 0]
    per_page = lambda values: jax.ops.segment_sum(values, of, _PAGES + 1)[:_PAGES]
    words, true = per_page(n), per_page(n * y)
    chosen = jax.nn.sigmoid(logits) * n
    entropy = per_page(optax.sigmoid_binary_cross_entropy(logits, y) * (n + 0.5)) / jnp.maximum(words + true, 1)
    f1 = 2 * per_page(chosen * y) / jnp.maximum(per_page(chosen) + true, 1)
    judged = true > 0
    return jnp.sum(judged * 0.5 * (entropy + 1 - f1)) / jnp.maximum(judged.sum(), 1)


if __name__ == '__main__':
    cli.run(main, sys.argv[1:])
