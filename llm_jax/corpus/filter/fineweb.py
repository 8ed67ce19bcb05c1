"""FineWeb's own rules: pages made of list items, of short lines, of the same lines.

Penedo et al. 2024 (arXiv:2406.17557), section 3.6, with the thresholds of the code (datatrove)
that made FineWeb. A line ends a sentence where its last character has Unicode's property
Sentence_Terminal; a quotation mark after it does not count.

The paper drops a page from 10% of characters in repeated lines, the code from 1%, with which
FineWeb was made; it is the default here, so that verdicts are the same. It is strict: of pages
whose main content people have marked (WCXB), 1% costs 14% of the articles and 50% of the forum threads, where
"reply" and names of authors repeat; 10% costs 1% and 15%. The experiments of this project take 10%.
"""

import dataclasses

from llm_jax.config.schema import field
from llm_jax.corpus.document import Stage
from llm_jax.corpus.filter import rules, signals

# Code points with the property Sentence_Terminal of Unicode 17.
_SENTENCE_TERMINAL = (
    '21 2e 3f 589 61d-61f 6d4 700-702 7f9 837 839 83d-83e 964-965 104a-104b 1362 1367-1368 166e 1735-1736 '
    '17d4-17d5 1803 1809 1944-1945 1aa8-1aab 1b4e-1b4f 1b5a-1b5b 1b5e-1b5f 1b7d-1b7f 1c3b-1c3c 1c7e-1c7f '
    '2024 203c-203d 2047-2049 2cf9-2cfb 2e2e 2e3c 2e53-2e54 2e60-2e61 3002 a4ff a60e-a60f a6f3 a6f7 '
    'a876-a877 a8ce-a8cf a92f a9c8-a9c9 aa5d-aa5f aaf0-aaf1 abeb fe12 fe15-fe16 fe52 fe56-fe57 ff01 ff0e '
    'ff1f ff61 10a56-10a57 10f55-10f59 10f86-10f89 11047-11048 110be-110c1 11141-11143 111c5-111c6 111cd '
    '111de-111df 11238-11239 1123b-1123c 112a9 113d4-113d5 1144b-1144c 115c2-115c3 115c9-115d7 '
    '11641-11642 1173c-1173e 11944 11946 11a42-11a43 11a9b-11a9c 11c41-11c42 11ef7-11ef8 11f43-11f44 '
    '16a6e-16a6f 16af5 16b37-16b38 16b44 16d6e-16d6f 16e98 1bc9f 1da88'
)


def _sentence_ends() -> frozenset[str]:
    """The characters that end a sentence in some script."""
    ends = [[int(end, 16) for end in run.split('-')] for run in _SENTENCE_TERMINAL.split()]
    return frozenset(chr(code) for run in ends for code in range(run[0], run[-1] + 1))


SENTENCE_ENDS = _sentence_ends()


@dataclasses.dataclass(frozen=True)
class Options:
    kinds: tuple = field(rules.PROSE, 'kinds of document that are judged; others pass')
    min_line_punctuation: float = field(0.12, 'smallest share of lines that end a sentence')
    max_short_lines: float = field(0.67, 'largest share of lines with at most short_line characters')
    short_line: int = field(30, 'characters of a short line')
    max_repeated_lines: float = field(
        0.01, "largest share of characters in lines that have stood before; 0.01 is what FineWeb's code has, 0.1 what "
        'its paper has: 0.01 drops half of all forum threads'
    )  # fmt: skip
    max_newline_ratio: float = field(0.3, 'most newlines per word')


def make(options: Options) -> Stage:
    """The stage 'fineweb'; its signals and reasons are those of `measure`."""
    return rules.stage('fineweb', options.kinds, lambda text: measure(text, options.short_line), bounds(options))


def measure(text: signals.Text, short_line: int) -> dict[str, float]:
    """The signals of a text; lines are those that are not blank."""
    lines = text.filled_lines
    n_lines = max(len(lines), 1)
    newlines = text.text.count('\n')
    ended = {} if text.unmarked else {'line_punctuation': ending_sentences(lines) / n_lines}
    return ended | {
        'short_lines': sum(len(line) * text.density <= short_line for line in lines) / n_lines,
        'repeated_lines': signals.repeats(lines)[1] / max(len(text.text) - newlines, 1),
        'newline_ratio': newlines / max(len(text.words), 1),
    }


def bounds(options: Options) -> rules.Bounds:
    """What is kept, in the order in which reasons are looked for."""
    return {
        'line_punctuation': (options.min_line_punctuation, 1),
        'short_lines': (0, options.max_short_lines),
        'repeated_lines': (0, options.max_repeated_lines),
        'newline_ratio': (0, options.max_newline_ratio),
    }


def ending_sentences(lines: list[str]) -> int:
    """How many of the lines, none of them empty, end in a mark that ends a sentence in some script."""
    return sum(line[-1] in SENTENCE_ENDS for line in lines)
