"""Gopher's quality rules: what nearly all prose does and menus, tables and junk do not.

Rae et al. 2021 (arXiv:2112.11446), appendix A.1.1, with the thresholds given there. Where
the paper leaves a definition open, the one of datatrove, with which FineWeb was made:
the length rules leave out words that are punctuation alone, while ratios are of all words.
Its list of punctuation has gaps ('•', '→', '©' count as words there); here it is every
word without a letter or digit. The paper asks these rules of web pages alone, so books and
code pass by default.
"""

import dataclasses

import numpy as np

from llm_jax.config.schema import field
from llm_jax.corpus.document import Document, Dropped, Stage
from llm_jax.corpus.filter import rules, signals

STOP_WORDS = ('the', 'be', 'to', 'of', 'and', 'that', 'have', 'with')
_BULLETS = ('•', '-')
_ELLIPSES = ('...', '…')


@dataclasses.dataclass(frozen=True)
class Options:
    kinds: tuple = field(rules.PROSE, 'kinds of document that are judged; others pass')
    min_words: int = field(50, 'fewest words')
    max_words: int = field(100_000, 'most words')
    min_mean_word_length: float = field(3.0, 'lowest mean length of a word in characters')
    max_mean_word_length: float = field(10.0, 'highest mean length of a word in characters')
    max_hash_ratio: float = field(0.1, 'most "#" per word')
    max_ellipsis_ratio: float = field(0.1, 'most ellipses per word')
    max_bullet_lines: float = field(0.9, 'largest share of lines that begin with a bullet')
    max_ellipsis_lines: float = field(0.3, 'largest share of lines that end in an ellipsis')
    min_alphabetic_words: float = field(0.8, 'smallest share of words that have a letter')
    min_stop_words: int = field(2, 'fewest of stop_words that occur')
    stop_words: tuple = field(STOP_WORDS, 'words that prose cannot do without, as they are written within a sentence')
    stop_language: str = field('en', 'language of stop_words; texts known to be in another are not asked for them')


def make(options: Options) -> Stage:
    """The stage 'gopher'; its signals and reasons are those of `measure`."""
    english, other = bounds(options), bounds(dataclasses.replace(options, min_stop_words=0))
    find = lambda text: measure(text, options)
    judge = rules.stage('gopher', options.kinds, find, english)
    judge_other = rules.stage('gopher', options.kinds, find, other)

    def stage(document: Document) -> Document | Dropped:
        return (judge if document.language in ('', options.stop_language) else judge_other)(document)

    return stage


def measure(text: signals.Text, options: Options) -> dict[str, float]:
    """The signals of a text."""
    n_words, n_lines = max(len(text.words), 1), max(len(text.lines), 1)
    solid = text.is_solid
    n_solid = int(np.count_nonzero(solid))
    of_words = {
        'mean_word_length': int(text.word_lengths @ solid) / max(n_solid, 1),
        'stop_words': sum(word in text.vocabulary for word in options.stop_words),
    }
    return (of_words if not text.unspaced else {}) | {
        'words': n_solid,
        'hash_ratio': text.text.count('#') / n_words,
        'ellipsis_ratio': sum(map(text.text.count, _ELLIPSES)) / n_words,
        'bullet_lines': bullet_lines(text.lines) / n_lines,
        'ellipsis_lines': ellipsis_lines(text.lines) / n_lines,
        'alphabetic_words': int(np.count_nonzero(text.has_letter)) / n_words,
    }


def bounds(options: Options) -> rules.Bounds:
    """What is kept, in the order in which reasons are looked for."""
    return {
        'words': (options.min_words, options.max_words),
        'mean_word_length': (options.min_mean_word_length, options.max_mean_word_length),
        'hash_ratio': (0, options.max_hash_ratio),
        'ellipsis_ratio': (0, options.max_ellipsis_ratio),
        'bullet_lines': (0, options.max_bullet_lines),
        'ellipsis_lines': (0, options.max_ellipsis_lines),
        'alphabetic_words': (options.min_alphabetic_words, 1),
        'stop_words': (options.min_stop_words, rules.INFINITY),
    }


def bullet_lines(lines: list[str]) -> int:
    """How many lines begin with a bullet."""
    return sum(line.lstrip().startswith(_BULLETS) for line in lines)


def ellipsis_lines(lines: list[str]) -> int:
    """How many lines end in an ellipsis."""
    return sum(line.rstrip().endswith(_ELLIPSES) for line in lines)
