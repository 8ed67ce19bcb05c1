"""The small network that tells blocks of main text from the rest of a page, and what is chosen by it.

Two hidden layers on the features of a block give the probability that its words belong
to the main text. All of its arithmetic is on multiples of 2^-10 that float64 holds
exactly, so that no order of summation, and no machine, changes what is chosen.

The weights, `main_text.npz`, were fitted by `tools/train_main_text.py` to the development
pages of the Web Content Extraction Benchmark (M. Foley, CC BY 4.0).
"""

from collections.abc import Sequence
import dataclasses
import functools
import importlib.resources
import io

import numpy as np

_FILE = 'main_text.npz'
# Steps of the grid that features, weights and activations are rounded to, per unit.
_GRID = 1024.0
# Features are cut here after they have been centred and scaled.
CLIP = 4.0


@dataclasses.dataclass(frozen=True)
class Network:
    """Weights.

    Attributes:
      names: of the features it was fitted to.
      mean, scale: what features are centred by, then multiplied by.
      layers: (weights [from, to], biases [to]) of each layer; the last one has one output.
    """

    names: tuple[str, ...]
    mean: np.ndarray
    scale: np.ndarray
    layers: Sequence[tuple[np.ndarray, np.ndarray]]

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """The probability of each block [n_blocks], of features [n_blocks, n_features]."""
        x = _rounded(((features - self.mean) * self.scale).clip(-CLIP, CLIP))
        for weights, biases in self.layers[:-1]:
            x = _rounded(np.maximum(x @ weights + biases, 0))
        weights, biases = self.layers[-1]
        logits = (x @ weights + biases)[:, 0]
        return _rounded(1 / (1 + np.exp(-logits)))


def _rounded(values: np.ndarray) -> np.ndarray:
    return np.round(values.astype(np.float64) * _GRID) / _GRID


@functools.cache
def load() -> Network:
    """The network that comes with the library; read once per process."""
    return loads(importlib.resources.files(__package__).joinpath(_FILE).read_bytes())


def loads(data: bytes) -> Network:
    with np.load(io.BytesIO(data)) as stored:
        n_layers = sum(name.startswith('weights') for name in stored)
        layers = [(stored[f'weights{i}'] / _GRID, stored[f'biases{i}'] / _GRID) for i in range(n_layers)]
        return Network(tuple(stored['names'].tolist()), stored['mean'], stored['scale'], layers)


def dumps(network: Network) -> bytes:
    """The bytes of a file of weights, which are rounded to the grid; the same for the same network."""
    arrays = {'names': np.array(network.names), 'mean': network.mean, 'scale': network.scale}
    for i, (weights, biases) in enumerate(network.layers):
        for name, values in ((f'weights{i}', weights), (f'biases{i}', biases)):
            arrays[name] = np.round(np.asarray(values, np.float64) * _GRID).astype(np.int16)
    out = io.BytesIO()
    np.savez_compressed(out, **arrays)
    return out.getvalue()


def chosen(probabilities: np.ndarray, words: np.ndarray) -> np.ndarray:
    """The set of blocks of which the expected F1, by words, is largest.

    With probabilities p and words n, that of a set S is 2 Σ_S p n / (Σ_S n + Σ p n); the
    best set is that of all blocks above one threshold (Lewis 1995; Lipton et al. 2014,
    arXiv:1402.1892), a lower one on pages of which less is certain.

    Returns:
      mask [n_blocks].
    """
    order = np.argsort(-probabilities, kind='stable')
    expected = _rounded(probabilities * words)
    found, taken = np.cumsum(expected[order]), np.cumsum(words[order])
    scores = 2 * found / np.maximum(taken + expected.sum(), 1)
    best = int(scores.argmax())
    return (probabilities >= probabilities[order[best]]) & (scores[best] > 0)
