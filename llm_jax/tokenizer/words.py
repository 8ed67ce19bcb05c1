"""Encoding word by word: one that was met before is looked up, not merged again.

Text is cut where no token of the vocabulary can reach across. Byte-pair merging joins
neighbours only into tokens, so nothing is ever joined across such a cut, and the tokens of
the words, one after the other, are exactly the tokens of the text. Natural text repeats
its words, and a lookup costs a fraction of merging.
"""

from collections.abc import Callable, Iterable, Sequence
import itertools
import re

# Spaces stay with what follows them. Each pattern cuts at pairs of neighbours alone, so that a cut within a
# token shows when the token is cut by itself. The first one cuts before a space after something else and
# between letters and what is neither letter nor space; the second only before a space.
_PATTERNS = (re.compile(r' *(?:[^\W\d_]++|(?:[^\w ]++|[\d_]++)++)| +'), re.compile(r' *[^ ]++| +'))
# Characters of the words that are remembered: with their tokens some 100 MB.
_MOST_CHARS = 1 << 21


class Words:
    """Encodes texts, and remembers their words."""

    def __init__(self, vocabulary: Iterable[str], encode: Callable[[list[str]], Iterable[Sequence[int]]]):
        """Args:
          vocabulary: the text of every token that text can become, spaces as ' '.
          encode: tokens of each of some words, by byte-pair merging over this vocabulary.

        A vocabulary that reaches across words, however they are cut, leaves every text whole.
        """
        tokens = list(vocabulary)
        fitting = (p.findall for p in _PATTERNS if all(len(p.findall(token)) == 1 for token in tokens))
        self._cut = next(fitting, lambda text: [text])
        self._encode = encode
        self._known: dict[str, Sequence[int]] = {}
        self._chars = 0

    def encode(self, texts: Iterable[str]) -> list[list[int]]:
        """Tokens of each text."""
        cut = list(map(self._cut, texts))
        new = list(set().union(*cut).difference(self._known))
        self._known.update(zip(new, self._encode(new), strict=True))
        self._chars += sum(map(len, new))
        tokens = [list(itertools.chain.from_iterable(map(self._known.__getitem__, words))) for words in cut]
        if self._chars > _MOST_CHARS:
            self._known.clear()
            self._chars = 0
        return tokens
