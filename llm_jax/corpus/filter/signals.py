"""What the rules of prose look at: words, lines and repeated n-grams of a text, each found once.

A word is what stands between white space (`str.split`), a line what stands between
newlines. Thresholds of the literature assume one or another definition: 99.6% of the
words of English prose hold a letter by this one, 89.8% by a linguistic tokenizer's, which
makes words of commas.

Scripts that part no words (`_UNSPACED`) are cut into pieces of the mean length of a word, from the beginning of each
run of letters, in texts that are mostly in such a script. That counts words right on average; what is asked of the
length of words, of stop words and, in Thai, Lao and Tibetan, of marks that end sentences is not measured there, and so
not judged.

The stages of one document follow one another on the same text, so `view` keeps the last
text's: whatever order and number of rule groups is configured, words are split once.
"""

import functools
import re

import numpy as np

# The n-grams that rules ask for.
MAX_N = 10
_BLANK = re.compile('\n{2,}')
# Thai, Lao and Tibetan have no mark that ends sentences alone.
_UNMARKED = '\u0e00-\u0fff'
# Characters of scripts without spaces between words, and the mean length of a word: Han, hiragana, katakana, Thai with
# Lao and Tibetan, Burmese, Khmer.
_UNSPACED = (
    ('\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af', 2),
    ('\u3041-\u309f', 3),
    ('\u30a0-\u30ff\u31f0-\u31ff\uff66-\uff9f', 4),
    (_UNMARKED, 4),
    ('\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f', 5),
    ('\u1780-\u17ff', 5),
)
_ANY_UNSPACED = ''.join(characters for characters, _ in _UNSPACED)
_UNSPACED_RUN, _UNMARKED_RUN = re.compile(f'[{_ANY_UNSPACED}]+'), re.compile(f'[{_UNMARKED}]+')
# A piece, with the punctuation that follows it.
_PIECE = re.compile(
    '(?:' + '|'.join(f'[{characters}]{{1,{size}}}' for characters, size in _UNSPACED)
    + rf'|[^\s{_ANY_UNSPACED}]+)[^\w\s{_ANY_UNSPACED}]*'
)  # fmt: skip
# Share of the letters and digits from which a text counts as one of such a script.
_MOSTLY = 0.3
# Characters of a word of English with the space after it.
_LATIN_WORD = 6
# Bits of a character's class.
_LETTER, _SOLID, _SPACE = 1, 2, 4


class Text:
    """A text and what is found in it, each when it is first asked for.

    Attributes:
      text: the text; lines end in '\\n' alone (`normalise` sees to that).
    """

    def __init__(self, text: str):
        self.text = text

    @functools.cached_property
    def unspaced(self) -> bool:
        """Whether the text is mostly in scripts without spaces between words."""
        if self.text.isascii():
            return False
        count = sum(map(len, _UNSPACED_RUN.findall(self.text)))
        return count > 0 and count >= _MOSTLY * self.alphanumeric

    @functools.cached_property
    def unmarked(self) -> bool:
        """Whether the text is mostly in a script that does not mark the ends of sentences."""
        return self.unspaced and sum(map(len, _UNMARKED_RUN.findall(self.text))) >= _MOSTLY * self.alphanumeric

    @functools.cached_property
    def density(self) -> float:
        """How many characters of English say as much as one of this text."""
        return max(1.0, _LATIN_WORD * len(self.words) / max(len(self.text), 1)) if self.unspaced else 1.0

    @functools.cached_property
    def words(self) -> list[str]:
        return self.split(self.text)

    def split(self, line: str) -> list[str]:
        """The words of a line, as words of this text are told."""
        return _PIECE.findall(line) if self.unspaced else line.split()

    @functools.cached_property
    def vocabulary(self) -> dict[str, int]:
        """The number of each different word, in order of first appearance."""
        different = dict.fromkeys(self.words)
        return dict(zip(different, range(len(different)), strict=True))

    @functools.cached_property
    def word_ids(self) -> np.ndarray:
        """(words,) int64: the number of each word in `vocabulary`; nothing is hashed, so nothing collides."""
        return np.fromiter(map(self.vocabulary.__getitem__, self.words), np.int64, len(self.words))

    @functools.cached_property
    def _classes(self) -> np.ndarray:
        """(characters,) uint8: the bits of each character."""
        if self.text.isascii():
            codes = np.frombuffer(self.text.encode('ascii'), np.uint8)
        else:
            codes = np.frombuffer(self.text.encode('utf-32-le', 'surrogatepass'), np.uint32)
        return _character_classes()[codes]

    @functools.cached_property
    def alphanumeric(self) -> int:
        """How many characters are letters or digits."""
        return int(np.count_nonzero(self._classes & _SOLID))

    @functools.cached_property
    def _by_character(self) -> tuple[np.ndarray, np.ndarray]:
        """(words,) int64 length of each word, (words,) uint8 bits of all its characters."""
        classes = self._classes
        if self.unspaced:
            spans = np.array([match.span() for match in _PIECE.finditer(self.text)], np.int64).reshape(-1, 2)
            return spans[:, 1] - spans[:, 0], np.bitwise_or.reduceat(classes, spans[:, 0])
        # Words begin and end where white space begins and ends; both ends of the text count as white space.
        inside = np.zeros(len(classes) + 2, bool)
        np.less(classes, _SPACE, out=inside[1:-1])
        edges = np.flatnonzero(inside[1:] != inside[:-1])
        starts, ends = edges[::2], edges[1::2]
        # What is reduced reaches to the next word, but white space has no bit of interest.
        bits = np.bitwise_or.reduceat(classes, starts) if len(starts) else np.empty(0, np.uint8)
        return ends - starts, bits

    @functools.cached_property
    def word_lengths(self) -> np.ndarray:
        """(words,) int64: characters of each word."""
        return self._by_character[0]

    @functools.cached_property
    def word_ends(self) -> np.ndarray:
        """(words + 1,) int64: how many characters the first k words have together, without the space between."""
        ends = np.zeros(len(self.word_lengths) + 1, np.int64)
        np.cumsum(self.word_lengths, out=ends[1:])
        return ends

    @functools.cached_property
    def has_letter(self) -> np.ndarray:
        """(words,) bool: whether the word has a letter."""
        return (self._by_character[1] & _LETTER) != 0

    @functools.cached_property
    def is_solid(self) -> np.ndarray:
        """(words,) bool: whether the word has a letter or a digit, and is not punctuation alone."""
        return (self._by_character[1] & _SOLID) != 0

    @functools.cached_property
    def lines(self) -> list[str]:
        """All lines, blank ones too."""
        return self.text.removesuffix('\n').split('\n') if self.text else []

    @functools.cached_property
    def filled_lines(self) -> list[str]:
        """The lines that are not blank."""
        return [line for line in self.lines if line and not line.isspace()]

    @functools.cached_property
    def paragraphs(self) -> list[str]:
        """What stands between blank lines."""
        return [p for p in _BLANK.split(self.text.strip('\n')) if p]

    @functools.cached_property
    def repeated(self) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """The n-grams of words that occur more than once, n = 2 to MAX_N.

        Both halves of a repeated n-gram, its first and its last n - 1 words, are repeated
        themselves: so each n looks at what is left of the one before, which in prose is next to nothing
        from n = 4.

        Returns:
          n -> (positions, groups): int64 of equal length. The index of the first word of each occurrence,
            ascending, and a number that two occurrences share if and only if they are the same words.
        """
        group_at = np.append(self.word_ids, -1)  # by position; -1 where the (n - 1)-gram occurs once or runs off
        group_at[:-1][np.bincount(self.word_ids)[self.word_ids] == 1] = -1
        positions = np.flatnonzero(group_at >= 0)
        out = {}
        for n in range(2, MAX_N + 1):
            groups = group_at[positions]
            if len(positions):
                following = group_at[positions + 1]
                both = following >= 0
                again, groups_again = _occurring_again(groups[both] * len(group_at) + following[both])
                group_at[positions] = -1
                positions, groups = positions[both][again], groups_again
                group_at[positions] = groups
            out[n] = positions, groups
        return out


# Rule groups that follow one another ask for the same text.
view = functools.lru_cache(maxsize=1)(Text)


def _occurring_again(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the keys that occur more than once, ascending, and a small number for each such key."""
    if len(keys) < 2:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    order = np.argsort(keys)
    ordered = keys[order]
    same = np.zeros(len(keys) + 1, bool)  # whether each is the same as the one before it
    np.equal(ordered[1:], ordered[:-1], out=same[1:-1])
    numbers = np.empty(len(keys), np.int64)
    numbers[order] = np.cumsum(~same[:-1])
    again = np.zeros(len(keys), bool)
    again[order] = same[:-1] | same[1:]
    indices = np.flatnonzero(again)
    return indices, numbers[indices]


def repeats(items: list[str]) -> tuple[int, int]:
    """How many of the items have occurred before, and their characters."""
    different = set(items)
    return len(items) - len(different), sum(map(len, items)) - sum(map(len, different))


def top_characters(text: Text, n: int) -> int:
    """Characters of all occurrences of the most frequent n-gram (of several: the first), spaces within included."""
    if len(text.words) < n:
        return 0
    positions, groups = text.repeated[n]
    start, count = 0, 1  # where nothing is repeated
    if len(positions):
        counts = np.bincount(groups)[groups]
        best = int(np.argmax(counts))
        start, count = int(positions[best]), int(counts[best])
    between = 0 if text.unspaced else n - 1
    return int(text.word_ends[start + n] - text.word_ends[start] + between) * count


def repeated_characters(text: Text, n: int) -> int:
    """Characters of n-grams that have occurred before, none counted twice, from left to right.

    A repeated n-gram is passed over whole: the next one looked at begins after it, and
    those that begin within it count neither as repeated nor as having occurred.
    """
    positions, groups = text.repeated[n]
    if not len(positions):
        return 0
    total, after, seen, ends = 0, 0, set(), text.word_ends
    for start, group in zip(positions.tolist(), groups.tolist(), strict=True):
        if start < after:
            continue
        if group in seen:
            after = start + n
            total += int(ends[after] - ends[start])
        else:
            seen.add(group)
    return total


@functools.cache
def _character_classes() -> np.ndarray:
    """(0x110000,) uint8: the bits of every character."""
    characters = np.arange(0x110000, dtype=np.uint32).view('<U1')
    classes = np.where(np.strings.isalpha(characters), _LETTER, 0) | np.where(np.strings.isalnum(characters), _SOLID, 0)
    classes |= np.where(np.strings.isspace(characters), _SPACE, 0)
    return classes.astype(np.uint8)
