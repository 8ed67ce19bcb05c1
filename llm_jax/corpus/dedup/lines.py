"""Lines that stand in several documents: menus, notices, signatures, quotations of whole paragraphs.

C4 (Raffel et al. 2020) and CCNet (Wenzek et al. 2020) hash normalised lines and let a line
stand only where it occurs first, from its second occurrence on. Here, too, the first
document keeps it. But what people write twice ('Once upon a time there was a girl named
Lily.') is not boilerplate yet, and cutting it tears holes into good text: a line is cut
only if many documents have it, and short lines stay: a '}', a date, a 'Yes.' or a heading
('Early life and education.') repeats because that is how such texts are written.
"""

from collections.abc import Iterator, Sequence
import dataclasses

import numpy as np

from llm_jax.config.schema import ConfigError, field
from llm_jax.corpus.dedup import words
from llm_jax.corpus.document import Document, Dropped
from llm_jax.corpus.exchange import ADDRESSED, KEYED, Round


@dataclasses.dataclass(frozen=True)
class Lines:
    """Which repeated lines are cut."""

    documents: int = field(6, 'a line that stands in at least so many documents is cut; C4 and CCNet: 2')
    min_words: int = field(6, 'lines of fewer words stay')
    keep: str = field('first', 'where such a line stays: in the first document that has it, or in none')
    max_cut: float = field(0.5, 'share of the characters; a document that loses more goes')
    skip_kinds: tuple = field(('code', 'notebook'), 'kinds of documents whose lines are neither counted nor cut')


def make(options: Lines) -> 'LinesExchange':
    """The exchange that cuts repeated lines.

    Raises:
      ConfigError: an option out of range.
    """
    if options.documents < 2:
        raise ConfigError(f'lines.documents = {options.documents!r}: it must be at least 2')
    if options.keep not in ('first', 'none'):
        raise ConfigError(f"lines.keep = {options.keep!r}: it must be 'first' or 'none'")
    if not 0 <= options.max_cut <= 1:
        raise ConfigError(f'lines.max_cut = {options.max_cut!r}: it is a share, from 0 to 1')
    return LinesExchange(options, (_Occurrences(options),))


@dataclasses.dataclass(frozen=True)
class LinesExchange:
    """Cuts lines; drops what was mostly such lines, as 'lines.mostly_repeated'."""

    options: Lines
    rounds: Sequence[Round]

    def apply(self, shard: int, documents: Sequence[Document], received: np.ndarray) -> Iterator[Document | Dropped]:
        begins = np.searchsorted(received['doc'], np.arange(len(documents) + 1))
        for i, document in enumerate(documents):
            repeated = received[begins[i] : begins[i + 1]]
            yield self._cut(document, repeated['line']) if len(repeated) else document

    def _cut(self, document: Document, repeated: np.ndarray) -> Document | Dropped:
        hashes, numbers, _ = line_hashes([document.text], self.options.min_words)
        cut = set(numbers[np.isin(hashes, repeated)].tolist())
        lines = document.text.split('\n')
        kept = []
        for number, line in enumerate(lines):
            # Of the blank lines around a cut only one stays.
            blank_again = not line.strip() and number - 1 in cut and (not kept or not kept[-1].strip())
            if number in cut or blank_again:
                cut.add(number)
            else:
                kept.append(line)
        gone = sum(len(lines[number].strip()) for number in cut)
        share = gone / max(1, sum(len(line.strip()) for line in lines))
        if share > self.options.max_cut:
            return Dropped(document, 'lines.mostly_repeated', f'{share:.2f} > {self.options.max_cut}')
        return dataclasses.replace(document, text='\n'.join(kept))


@dataclasses.dataclass(frozen=True)
class _Occurrences:
    """The only round: 16 bytes for each different line of a document."""

    options: Lines
    name: str = 'lines'
    together: bool = False

    def emit(self, shard: int, documents: Sequence[Document], received: np.ndarray) -> np.ndarray:
        out = [np.zeros(0, KEYED)]
        some = [i for i, document in enumerate(documents) if document.kind not in self.options.skip_kinds]
        for first, texts in words.in_blocks([documents[i] for i in some]):
            hashes, _, owners = line_hashes(texts, self.options.min_words)
            order = np.lexsort((hashes, owners))
            hashes, owners = hashes[order], owners[order]
            new = np.ones(len(order), bool)
            new[1:] = (hashes[1:] != hashes[:-1]) | (owners[1:] != owners[:-1])
            records = np.zeros(np.count_nonzero(new), KEYED)
            records['key'], records['shard'] = hashes[new], shard
            records['doc'] = np.array(some, np.int64)[first + owners[new]]
            out.append(records)
        return np.concatenate(out)

    def resolve(self, records: np.ndarray) -> np.ndarray:
        begins, ends = words.runs(records['key'])
        repeated = np.repeat(ends - begins >= self.options.documents, ends - begins)
        if self.options.keep == 'first':
            repeated[begins] = False
        records = records[repeated]
        messages = np.zeros(len(records), [*ADDRESSED, ('line', '<u8')])
        messages['shard'], messages['doc'], messages['line'] = records['shard'], records['doc'], records['key']
        return messages


def line_hashes(texts: Sequence[str], min_words: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hashes of the words of each line of enough words.

    Returns:
      uint64[lines] hashes; int64[lines] numbers of the lines within their texts; int64[lines]
      the texts that they are of.
    """
    found = words.find_words(texts)
    breaks = np.flatnonzero(found.codes == ord('\n'))
    number = np.searchsorted(breaks, found.starts)
    begins, ends = words.runs(number)
    long = ends - begins >= max(1, min_words)
    begins, ends = begins[long], ends[long]
    owners = found.owners()[begins]
    # The texts stand one after the other, with a line break between them.
    first = np.cumsum([0] + [text.count('\n') + 1 for text in texts])
    return words.hash_spans(found.hashes, begins, ends), number[begins] - first[owners], owners
