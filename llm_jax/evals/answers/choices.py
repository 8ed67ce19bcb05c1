"""Letters of multiple choice and exact matches in generated text."""

from collections.abc import Sequence
import re
import string
import unicodedata

_MAX_CHARS = 100_000


def find_choice(text: str, letters: str = 'ABCD') -> str | None:
    """The letter that a text gives as its answer, or None.

    The last of the statements that are plainest: '\\boxed{B}', 'the answer is (B)', 'Answer: B'; else a letter at the
    start ('B.', '(B) because', '**B**'); else the only letter that stands in parentheses, or on a line of its own.
    """
    text = text[:_MAX_CHARS]
    one = f'[{re.escape(letters)}]'
    dressed = rf'[\s*_$]*(?:\\(?:text|mathrm|mathbf|textbf)\{{)?[\s*_$]*\(?\[?({one})(?![\w\'’])'
    for pattern in (
        rf'\\boxed\{{{dressed}',
        r'(?i:\banswer)(?i:\s+(?:is|would be|should be|choice|option)|\s*[:=])+(?i:\s+(?:option|choice))?[\s:]*'
        + dressed,
        rf'(?i:\b(?:correct|right|best) (?:option|choice)(?: is|:))[\s:]*{dressed}',
    ):
        if found := re.findall(pattern, text):
            return found[-1]
    ends = r'[*_]*(?:[)\]]++[*_]*(?!\s+(?:or|and)\b)|\s*$|\s*[.:,\n]|\s+(?:because|since|is|[-–])\b)'
    if found := re.match(rf'{dressed}{ends}', text.strip()):
        return found[1]
    for pattern in (rf'\(({one})\)', rf'^[\s*]*({one})[\s.*)]*$'):
        if len(found := set(re.findall(pattern, text, re.MULTILINE))) == 1:
            return found.pop()
    return None


def exact_match(
    answer: str,
    gold: str | Sequence[str],
    *,
    ignore_case: bool = False,
    ignore_punctuation: bool = False,
    ignore_numbers: bool = False,
    ignored: Sequence[str] = (),
) -> bool:
    """Whether an answer is one of the gold strings.

    Args:
      ignored: patterns that are removed from both first, in order (as `regexes_to_ignore` of lm-eval).
    """
    return any(
        _normalise(answer, ignore_case, ignore_punctuation, ignore_numbers, ignored)
        == _normalise(right, ignore_case, ignore_punctuation, ignore_numbers, ignored)
        for right in ([gold] if isinstance(gold, str) else gold)
    )


def _normalise(text: str, case: bool, punctuation: bool, numbers: bool, ignored: Sequence[str]) -> str:
    for pattern in ignored:
        text = re.sub(pattern, '', text)
    text = text.lower() if case else text
    removed = string.punctuation * punctuation + string.digits * numbers
    return text.translate(str.maketrans('', '', removed))


def match_short_answer(answer: str, gold: str | Sequence[str]) -> bool:
    """Whether short answers agree as in TriviaQA and SQuAD: without case, accents, articles and punctuation."""
    return any(_short(answer) == _short(right) for right in ([gold] if isinstance(gold, str) else gold))


def _short(text: str) -> str:
    text = ''.join(c for c in unicodedata.normalize('NFKD', text.lower()) if not unicodedata.combining(c))
    text = ''.join(c for c in text if c not in string.punctuation)
    return ' '.join(word for word in text.split() if word not in ('a', 'an', 'the'))
