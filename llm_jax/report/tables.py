"""Tables of text: on a page, on a phone and in Markdown."""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses

# Pixels that margins and frames of the stylesheet leave of a window of 400; a letter and a column's padding in it.
PHONE = 345
_LETTER, _PADDING = 9.2, 14.4


@dataclasses.dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
      title: over it; may be empty.
      header: a name for each column.
      rows: texts, as many as the header has.
      texts: so many columns at the left are words; the others are numbers, aligned right and never broken.
      sums: indices of rows that stand for those before them.
    """

    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    texts: int = 1
    sums: frozenset[int] = frozenset()

    @property
    def lines(self) -> list[list[str]]:
        """The header and the rows, for a terminal."""
        return [list(self.header), *map(list, self.rows)]

    @property
    def width(self) -> float:
        """Pixels that it takes at least: columns of words may break between words, numbers may not."""
        total = 0.0
        for i, name in enumerate(self.header):
            cells = [row[i] for row in self.rows]
            parts = [word for cell in cells for word in cell.split()] if i < self.texts else cells
            total += _LETTER * max(map(len, [*name.split(), *parts]), default=0) + _PADDING
        return total

    @property
    def stacks(self) -> bool:
        """True if a phone is too narrow for it: there, each row becomes a list of its values with their names."""
        return self.width > PHONE


def table_of(rows: Sequence[Mapping[str, str]], *, texts: int = 1, sums: Iterable[int] = ()) -> Table | None:
    """The table of rows that all have the same columns; None without a row."""
    if not rows:
        return None
    return Table('', tuple(rows[0]), [tuple(row.values()) for row in rows], texts, frozenset(sums))
