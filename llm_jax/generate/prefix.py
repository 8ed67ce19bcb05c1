"""Prefixes whose keys and values are kept: a radix tree over token ids, in pages. Plain Python, without JAX.

Zheng et al. 2023, arXiv:2312.07104 (RadixAttention); pages: Kwon et al. 2023, arXiv:2309.06180.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator, Sequence
import dataclasses

# Tokens of a page.
PAGE = 64


@dataclasses.dataclass(eq=False)
class _Node:
    """A page of tokens that follows those of its parents.

    Attributes:
      page: where their keys and values are.
      parent: the page before; None of the root.
      tokens: PAGE ids.
      children: pages that follow, by their tokens.
    """

    page: int = -1
    parent: _Node | None = None
    tokens: tuple[int, ...] = ()
    children: dict[tuple[int, ...], _Node] = dataclasses.field(default_factory=dict)


class PrefixTree:
    """Pages of a pool by the tokens that they hold, the tokens before them included.

    A page is told by ids, not by text: a tokenizer may encode a text that was decoded from ids
    to other ids. Pages least recently used are given to new prefixes.
    """

    def __init__(self, n_pages: int) -> None:
        self._root = _Node()
        self._free = list(range(n_pages))[::-1]
        # Least recently used first. A page is always newer than those that follow it, so the first has none.
        self._order: collections.OrderedDict[_Node, None] = collections.OrderedDict()

    def match(self, tokens: Sequence[int]) -> list[int]:
        """Returns the pages of the longest prefix that is kept, in order."""
        path = list(self._walk(tokens))
        self._touch(path)
        return [node.page for node in path]

    def insert(self, tokens: Sequence[int]) -> list[tuple[int, int]]:
        """Adds all whole pages of `tokens`; returns those that have to be filled: (index in tokens / PAGE, page).

        Where the pool is too small for all, the first ones are kept.
        """
        path, new = list(self._walk(tokens)), []
        self._touch(path)
        node = path[-1] if path else self._root
        for index in range(len(path), len(tokens) // PAGE):
            page = self._take(set(path))
            if page is None:
                break
            ids = tuple(tokens[index * PAGE : (index + 1) * PAGE])
            child = node.children[ids] = _Node(page, node, ids)
            node = child
            path.append(node)
            new.append((index, page))
        self._touch(path)
        return new

    def _walk(self, tokens: Sequence[int]) -> Iterator[_Node]:
        node = self._root
        for start in range(0, len(tokens) - PAGE + 1, PAGE):
            node = node.children.get(tuple(tokens[start : start + PAGE]))
            if node is None:
                return
            yield node

    def _touch(self, path: list[_Node]) -> None:
        for node in reversed(path):
            self._order[node] = None
            self._order.move_to_end(node)

    def _take(self, kept: set[_Node]) -> int | None:
        """Returns a free page, or the least recently used one; None if all belong to `kept`."""
        if self._free:
            return self._free.pop()
        node = next(iter(self._order), None)
        if node is None or node in kept:
            return None
        del self._order[node], node.parent.children[node.tokens]
        return node.page
