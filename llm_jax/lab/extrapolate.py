"""Perplexity against length, beyond the length that a model was trained at, for each kind of position."""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.config.schema import Config, ConfigError, with_fields
from llm_jax.data.batch import unpack_rows
from llm_jax.data.prepare import Prepared
from llm_jax.lab.trial import Trial
from llm_jax.nn.transformer import Transformer, build
from llm_jax.train.forward import per_token_nll

POSITIONS = ('none', 'learned', 'sinusoidal', 'alibi', 'rope')
# Ways to use a model with rotary positions beyond its length without training it again.
SCALINGS = ('linear', 'ntk', 'dynamic', 'yarn', 'llama3', 'longrope')


@dataclasses.dataclass(frozen=True)
class Extrapolation:
    """Result of the measurement.

    Attributes:
      trained: length L that all models were trained at.
      ends: the lengths; entry i of a curve is over the tokens at positions ends[i-1] + 1 to ends[i] of their
        document, each of which saw all tokens before it.
      perplexity: name -> one number for each of `ends`.
    """

    trained: int
    ends: list[int]
    perplexity: dict[str, list[float]]

    @property
    def sentence(self) -> str:
        """The result."""
        last = {name: values[-1] for name, values in self.perplexity.items()}
        best = min(last, key=last.get)
        return (
            f'All were trained at {self.trained} tokens. At positions up to {self.ends[-1]} the best is {best}, with a '
            f'perplexity of {last[best]:.1f}; within {self.ends[0]} it has {self.perplexity[best][0]:.1f}.'
        )

    @property
    def numbers(self) -> dict[str, Any]:
        """All of it, for JSON and for `report.extrapolation`."""
        scaled = [name for name in self.perplexity if name.startswith('rope')]
        return {
            'trained': self.trained, 'ends': self.ends, 'perplexity': self.perplexity, 'trained_with': list(POSITIONS),
            'scaled': scaled,
        }  # fmt: skip


def extrapolate(
    config: Config,
    batches: np.ndarray,
    held_out: Sequence[np.ndarray],
    *,
    vocab_size: int,
    bos_id: int,
    lengths: Sequence[int],
    progress: Callable[[str], None] = lambda text: None,
) -> Extrapolation:
    """Trains the experiment with each position part, and measures how well it reads longer texts.

    The model with "rope" is measured with each scaling besides; the factor is the
    longest length over the trained one.

    Args:
      config: the experiment; data.seq_len is the length it is trained at.
      batches: int32[steps, B, L+1].
      held_out: rows int32[B, longest + 1], of the same tokenizer.
      vocab_size: of the tokenizer.
      bos_id: of the tokenizer.
      lengths: borders of the positions that are told apart; the last is the longest.
      progress: told each result.
    """
    ends, trained = sorted(lengths), config.data.seq_len
    curves = {}

    def measure(name: str, model: Transformer, params: Any) -> None:
        curves[name] = perplexities(model, params, held_out, bos_id=bos_id, ends=ends)
        progress(
            f'{name}: ' + ', '.join(f'{value:.2f} to {end}' for end, value in zip(ends, curves[name], strict=True))
        )

    for position in POSITIONS:
        # The same parameters serve at both lengths: the table of learned positions has all from the start.
        changes = (('position', position), ('max_seq_len', ends[-1]))
        changed = dataclasses.replace(config, model=with_fields(config.model, changes))
        trial = Trial(changed, batches, vocab_size=vocab_size, bos_id=bos_id)
        params = trial.train(config.optimizer.learning_rate)
        measure(position, trial.model, params)
    pairs = trial.model.config.head_size // 2
    for scaling in SCALINGS:
        factor = ends[-1] / trained
        changes = [('rope.scaling', scaling), ('rope.original_len', trained), ('rope.factor', factor)]
        if scaling == 'dynamic':  # its factor says how fast the base grows with the length, not how far
            changes[-1] = ('rope.factor', 1.0)
        if scaling == 'longrope':
            # Its divisors are searched for each model; here they grow from 1 for the fastest pair to the factor.
            changes.append(('rope.long_factors', tuple(np.geomspace(1, factor, pairs))))
        model = build(with_fields(trial.model.config, changes), vocab_size=vocab_size, seq_len=ends[-1])
        measure(f'rope, {scaling}', model, params)
    return Extrapolation(trained, list(ends), curves)


def longer_rows(prepared: Prepared, length: int, rows: int) -> np.ndarray:
    """The validation split, cut into rows int32[n, length + 1], at most `rows` of them.

    Raises:
      ConfigError: it holds not one row of that length.
    """
    stream = []
    for source in prepared.rows('validation').values():
        # Neighbouring rows share a token; the last row may end in padding.
        stream.append(
            source.read(np.arange(min(len(source), rows * length // prepared.manifest['seq_len'] + 1)))[:, :-1]
        )
    tokens = np.concatenate([part.reshape(-1) for part in stream])
    tokens = tokens[tokens >= 0]
    n = min(rows, (len(tokens) - 1) // length)
    if n < 1:
        raise ConfigError(f'the validation split has {len(tokens)} tokens, not one row of {length}; add text')
    return np.stack([tokens[i * length : (i + 1) * length + 1] for i in range(n)])


def perplexities(
    model: Transformer, params: Any, rows: Sequence[np.ndarray], *, bos_id: int, ends: Sequence[int]
) -> list[float]:
    """Perplexity of the tokens at positions up to ends[0], from there to ends[1], ...

    Args:
      model: with max_seq_len of at least the rows' length.
      params: its parameters.
      rows: int[B, L+1] each.
      bos_id: what begins a document.
      ends: ascending.
    """

    @jax.jit
    def sums(params: Any, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        batch = unpack_rows(tokens, bos_id)
        nll_BL = per_token_nll(model, params, batch) * batch.loss_weights
        # A token is predicted from the position before it, and so many tokens and one were seen.
        piece = jnp.searchsorted(jnp.asarray(ends), batch.positions + 1)
        one_hot = jax.nn.one_hot(piece, len(ends)) * batch.loss_weights[..., None]
        return jnp.einsum('BL,BLN->N', nll_BL, one_hot), one_hot.sum((0, 1))

    total = [
        np.asarray(part, np.float64) for part in zip(*(jax.device_get(sums(params, r)) for r in rows), strict=True)
    ]
    nll, count = (part.sum(0) for part in total)
    return np.exp(nll / count).tolist()
