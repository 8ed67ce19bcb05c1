"""The main text of a page: the blocks that the network chooses, as lines.

A heading, a paragraph, an item of a list ('- ...') and a row of a table ('a | b') are one
line each; code keeps its lines.
"""

import numpy as np

from llm_jax.corpus.extract import blocks, features, network
from llm_jax.corpus.extract.blocks import TAGS, Page
from llm_jax.corpus.extract.facts import Facts, facts

_LI, _TR, _PRE, _TD, _TH = map(TAGS.index, ('li', 'tr', 'pre', 'td', 'th'))
_TABLE, _DL = map(TAGS.index, ('table', 'dl'))
# A cell of a table longer than this is layout rather than data, in characters.
_LONGEST_CELL = 200


def main_text(net: network.Network, html: str, url: str, known: Facts | None = None) -> str:
    """The main text of a page; '' if it has none.

    Args:
      net: the network.
      html: the page.
      url: its address, a hint at what kind of page it is; '' if it is not known.
      known: what the page states of itself, if that has been looked for already.
    """
    tree = blocks.parse(html)
    if tree is None:
        return ''
    page = blocks.blocks(tree)
    if not page.texts:
        return ''
    _, seen = features.features(page, url, known or facts(html))
    probabilities = net.probabilities(seen)
    words = np.array([len(text.split()) for text in page.texts], np.float64)
    return render(page, whole(page, network.chosen(probabilities, words), words))


def whole(page: Page, mask: np.ndarray, words: np.ndarray) -> np.ndarray:
    """The chosen blocks, with all of a table of data or a list of definitions of which most is chosen."""
    mask, cells = mask.copy(), _cells(page)
    for node in np.flatnonzero(np.isin(page.tag, (_TABLE, _DL))).tolist():
        inside = slice(page.start[node], page.stop[node])
        of_words = 2 * (words[inside] @ mask[inside]) >= words[inside].sum()
        if (of_words or 2 * mask[inside].sum() >= len(mask[inside])) and _is_data(page, node, cells):
            mask[inside] = True
    return mask


def _is_data(page: Page, node: int, cells: dict[int, list[int]]) -> bool:
    """Tells if a table has several rows, and no cell as long as those of layout; a list of definitions is data."""
    if page.tag[node] == _DL:
        return True
    within = lambda row: row > node and page.start[node] <= page.start[row] and page.stop[row] <= page.stop[node]
    rows = [row for row in cells if within(row)]
    length = lambda cell: int(page.n_chars[page.start[cell] : page.stop[cell]].sum())
    return len(rows) > 1 and all(length(cell) < _LONGEST_CELL for row in rows for cell in cells[row])


def render(page: Page, mask: np.ndarray) -> str:
    """The text of some blocks of a page."""
    item, row, cells = nearest(page, _LI), nearest(page, _TR), _cells(page)
    lines: list[str] = []
    last_item = last_row = -1
    for i in np.flatnonzero(mask).tolist():
        text, node = page.texts[i], page.node[i]
        in_item, in_row = item[node], row[node]
        if in_row >= 0 and in_row == last_row:
            continue
        last_row = in_row if (line := _row(page, mask, row, cells.get(in_row, []))) else -1
        if line:
            text = line
        elif in_item >= 0 and in_item != last_item and page.tag[node] != _PRE:
            text = f'- {text}'
        lines.append(text)
        last_item = in_item
    return '\n'.join(lines)


def _cells(page: Page) -> dict[int, list[int]]:
    """The cells of each row, by their nodes."""
    cells: dict[int, list[int]] = {}
    for cell in np.flatnonzero(np.isin(page.tag, (_TD, _TH))).tolist():
        cells.setdefault(int(page.parent[cell]), []).append(cell)
    return cells


def _row(page: Page, mask: np.ndarray, rows: list[int], cells: list[int]) -> str:
    """A row of a table on one line, an empty cell between bars; '' for one of layout, or with nothing beside a cell."""
    found = []
    for cell in cells:
        inside = range(page.start[cell], page.stop[cell])
        nested = any(rows[page.node[i]] != rows[cell] or '\n' in page.texts[i] for i in inside)
        if nested or page.n_chars[inside.start : inside.stop].sum() >= _LONGEST_CELL:
            return ''
        found.append('; '.join(page.texts[i] for i in inside if mask[i]))
    return ' | '.join(found).strip() if sum(map(bool, found)) > 1 or (any(found) and len(found) > 2) else ''


def nearest(page: Page, tag: int) -> list[int]:
    """Of each node the innermost node of this tag it is in (or is), by number; -1 if there is none."""
    found = [-1] * len(page.parent)
    for i, (parent, own) in enumerate(zip(page.parent.tolist(), page.tag.tolist(), strict=True)):
        found[i] = i if own == tag else found[parent]
    return found
