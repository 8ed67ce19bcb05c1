"""Gopher's repetition rules: texts that say the same again and again.

Rae et al. 2021 (arXiv:2112.11446), appendix A.1.1 and table A1. "Duplicate" means as in
datatrove and FineWeb: an occurrence after the first, so that a line that stands twice
counts once. For n-grams the paper asks that overlapping ones be counted once; a text is
read from left to right and a repeated n-gram passed over whole. Shares of characters are of
all characters of the text, white space too; the top n-gram's include the spaces within
it, the duplicate n-grams' do not.
"""

import dataclasses

from llm_jax.config.schema import field
from llm_jax.corpus.document import Stage
from llm_jax.corpus.filter import rules, signals

_TOP = (2, 3, 4)
_DUPLICATE = (5, 6, 7, 8, 9, 10)


@dataclasses.dataclass(frozen=True)
class Options:
    kinds: tuple = field(rules.PROSE, 'kinds of document that are judged; others pass')
    max_paragraphs: float = field(0.3, 'largest share of paragraphs that have stood before')
    max_paragraph_characters: float = field(0.2, 'largest share of characters that is in such paragraphs')
    max_lines: float = field(0.3, 'largest share of lines that have stood before')
    max_line_characters: float = field(0.2, 'largest share of characters that is in such lines')
    max_top_2: float = field(0.20, 'largest share of characters that is in the most frequent pair of words')
    max_top_3: float = field(0.18, 'the same of three words')
    max_top_4: float = field(0.16, 'the same of four words')
    max_repeated_5: float = field(0.15, 'largest share of characters that is in five words that have stood before')
    max_repeated_6: float = field(0.14, 'the same of six words')
    max_repeated_7: float = field(0.13, 'the same of seven words')
    max_repeated_8: float = field(0.12, 'the same of eight words')
    max_repeated_9: float = field(0.11, 'the same of nine words')
    max_repeated_10: float = field(0.10, 'the same of ten words')


def make(options: Options) -> Stage:
    """The stage 'repetition'; its signals and reasons are those of `measure`."""
    return rules.stage('repetition', options.kinds, measure, bounds(options))


def measure(text: signals.Text) -> dict[str, float]:
    """The signals of a text."""
    size = max(len(text.text), 1)
    lines = [line for line in text.lines if line]
    again_paragraphs, paragraph_characters = signals.repeats(text.paragraphs)
    again_lines, line_characters = signals.repeats(lines)
    out = {
        'paragraphs': again_paragraphs / max(len(text.paragraphs), 1),
        'paragraph_characters': paragraph_characters / size,
        'lines': again_lines / max(len(lines), 1),
        'line_characters': line_characters / size,
    }
    out |= {f'top_{n}': signals.top_characters(text, n) / size for n in _TOP}
    return out | {f'repeated_{n}': signals.repeated_characters(text, n) / size for n in _DUPLICATE}


def bounds(options: Options) -> rules.Bounds:
    """What is kept, in the order in which reasons are looked for."""
    names = ['paragraphs', 'paragraph_characters', 'lines', 'line_characters']
    names += [f'top_{n}' for n in _TOP] + [f'repeated_{n}' for n in _DUPLICATE]
    return {name: (0, getattr(options, f'max_{name}')) for name in names}
