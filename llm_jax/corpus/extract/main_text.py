"""The main text of a page: the blocks that the network chooses, as lines.

A heading, a paragraph, an item of a list ('- ...') and a row of a table ('a | b') are one
line each; code keeps its lines.
"""

import numpy as np

from llm_jax.corpus.extract import blocks, features, network
from llm_jax.corpus.extract.blocks import TAGS, Page
from llm_jax.corpus.extract.facts import Facts, facts

_LI, _TR, _PRE = TAGS.index('li'), TAGS.index('tr'), TAGS.index('pre')
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
    return render(page, network.chosen(probabilities, words))


def render(page: Page, mask: np.ndarray) -> str:
    """The text of some blocks of a page."""
    item, row = nearest(page, _LI), nearest(page, _TR)
    lines: list[str] = []
    last_item = last_row = -1
    for i in np.flatnonzero(mask).tolist():
        text, node = page.texts[i], page.node[i]
        in_item, in_row = item[node], row[node]
        if in_row >= 0 and in_row == last_row and len(text) < _LONGEST_CELL and '\n' not in text + lines[-1]:
            lines[-1] += f' | {text}'
            continue
        if in_item >= 0 and in_item != last_item and page.tag[node] != _PRE:
            text = f'- {text}'
        lines.append(text)
        last_item, last_row = in_item, in_row if len(text) < _LONGEST_CELL else -1
    return '\n'.join(lines)


def nearest(page: Page, tag: int) -> list[int]:
    """Of each node the innermost node of this tag it is in (or is), by number; -1 if there is none."""
    found = [-1] * len(page.parent)
    for i, (parent, own) in enumerate(zip(page.parent.tolist(), page.tag.tolist(), strict=True)):
        found[i] = i if own == tag else found[parent]
    return found
