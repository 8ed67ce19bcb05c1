"""Rows of training data for the terminal: each token in the colour of its weight in the loss."""

from collections.abc import Iterator

import numpy as np
import rich.text

from llm_jax.data.array_record import PADDING
from llm_jax.data.examples import FORMS
from llm_jax.data.prepare import Prepared
from llm_jax.tokenizer import Tokenizer

# Tokens that are read, those with a weight below 1, of 1, and above 1.
_STYLES = ('dim', 'yellow', 'green', 'bold magenta')
LEGEND = (
    'weight in the loss: 0 [dim]dim[/], below 1 [yellow]yellow[/], 1 [green]green[/], above 1 [bold magenta]bold[/]'
)


def preview(prepared: Prepared, rows: int) -> Iterator[rich.text.Text]:
    """Yields the documents or conversations of the first training rows, tokens parted by '|', weights in colour.

    Args:
      prepared: the data.
      rows: of each source, at most.
    """
    for name, stored in prepared.rows('train').items():
        for i, row in enumerate(stored.read(np.arange(min(rows, len(stored))))):
            yield rich.text.Text(f'{name}, row {i}', style='bold')
            yield from _pieces(row, prepared.form, prepared.tokenizer)


def _pieces(row: np.ndarray, form: str, tokenizer: Tokenizer) -> Iterator[rich.text.Text]:
    """Yields the segments of a row; documents of pre-training, led by BOS, weigh 1."""
    if form == 'documents':
        segments = np.where(row == PADDING, 0, 1 + np.cumsum(row == tokenizer.bos_id))
        parts = [(row, segments, np.ones(len(row), np.float32))]
    else:
        columns = row.reshape(FORMS[form].columns, -1)
        places = range(0, 3 * FORMS[form].parts, 3)
        parts = [(columns[i], columns[i + 1], columns[i + 2].view(np.float32)) for i in places]
    for tokens, segments, weights in parts:
        for segment in np.unique(segments[segments > 0]):
            inside = segments == segment
            yield coloured(tokens[inside], weights[inside], tokenizer)


def coloured(tokens: np.ndarray, weights: np.ndarray, tokenizer: Tokenizer) -> rich.text.Text:
    """The tokens int[n] as text, in the colour of their weights float[n]."""
    names = {number: name for name, number in tokenizer.special.items()}
    text = rich.text.Text()
    for token, weight in zip(tokens.tolist(), weights.tolist(), strict=True):
        style = _STYLES[0 if not weight else 1 if weight < 1 else 2 if weight == 1 else 3]
        text.append(names.get(token) or tokenizer.decode([token]) or f'<{token}>', style)
        text.append('|', 'dim')
    return text
