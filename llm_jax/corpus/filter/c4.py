"""C4's rules: lines that are not sentences go, then pages of which too little is left.

Raffel et al. 2020 (arXiv:1910.10683), section 2.2. The paper asks for 3 words a line and 5
sentences a page; the code that made C4 (tensorflow_datasets' c4_utils) for 5 and 3. The
defaults are the code's. Its rules, in its order: the page rules look only at lines that
have passed the line rules before them.

Three things differ from the code. A sentence is counted at each `.`, `?` or `!` before
white space (the code has a trained splitter; the paper's reason is the same). A closing
quotation mark ends a line in its curly form, too, as half of all dialogue is set so. A
blank line stays between paragraphs between which one stood.
"""

from collections.abc import Callable
import dataclasses
import re

from llm_jax.config.schema import field
from llm_jax.corpus.document import Document, Dropped, Stage
from llm_jax.corpus.filter import rules, signals

POLICY = ('terms of use', 'privacy policy', 'cookie policy', 'uses cookies', 'use of cookies', 'use cookies')
_CITATION = re.compile(r'\[\d*\]|\[edit\]|\[citation needed\]')
_SENTENCE_END = re.compile(r'[.?!]["\'”’)\]]*(?=\s|$)')

# Marks that end sentences in scripts without spaces, and what may close a quotation after them.
_UNSPACED_ENDS = tuple('。！？｡．」』）។៕။')
_UNSPACED_END = re.compile('[。！？｡．.?!។៕။]+')


@dataclasses.dataclass(frozen=True)
class Options:
    kinds: tuple = field(rules.PROSE, 'kinds of document that are judged; others pass')
    end_marks: tuple = field(('.', '?', '!', '"', '”'), 'what a line has to end in; () lets any line pass')
    min_line_words: int = field(5, 'fewest words of a line')
    max_word_length: int = field(1000, 'longest word of a line in characters')
    drop_phrases: tuple = field(('javascript', *POLICY), 'a line with one of these goes; in lower case')
    drop_page_phrases: tuple = field(('lorem ipsum',), 'a page with one of these in a line that stays goes')
    drop_curly: bool = field(True, 'whether a page with "{" in a line that stays goes')
    remove_citations: bool = field(True, 'whether [1], [edit] and [citation needed] are taken out of lines')
    min_sentences: int = field(3, 'fewest sentences of a page, of the lines that stay')


def make(options: Options) -> Stage:
    """The stage 'c4', which takes lines out of a document or drops it.

    Reasons: `c4.curly`, `c4.phrase`, `c4.sentences`. Signals: `c4.sentences` and `c4.kept_words`, the share of words
    in lines that stay.
    """

    def stage(document: Document) -> Document | Dropped:
        if document.kind not in options.kinds:
            return document
        text = signals.view(document.text)
        kept, page = clean(text, options)
        cleaned = rules.joined(kept)
        count = _sentence_counter(text)
        n_sentences = sum(max(count(line), 1) for line in kept if line)
        measured = {
            'sentences': n_sentences,
            'kept_words': len(signals.view(cleaned).words) / max(len(text.words), 1),
        }
        document = rules.with_signals(document, 'c4', measured)
        if page is not None:
            return Dropped(document, f'c4.{page[0]}', page[1])
        if n_sentences < options.min_sentences:
            return Dropped(document, 'c4.sentences', f'{n_sentences} < {options.min_sentences}')
        return dataclasses.replace(document, text=cleaned)

    return stage


def clean(text: signals.Text, options: Options) -> tuple[list[str], tuple[str, str] | None]:
    """The lines that stay, blank ones among them, and what condemns the whole page: (reason, detail) or None."""
    lower = text.text.lower()
    # Most pages hold none of these, and then no line has to be searched.
    phrases = [phrase for phrase in options.drop_phrases if phrase in lower]
    page_phrases = [phrase for phrase in options.drop_page_phrases if phrase in lower]
    citations = options.remove_citations and '[' in text.text
    curly = options.drop_curly and '{' in text.text
    unspaced, n_words = text.unspaced, options.min_line_words
    end_marks = options.end_marks and (*options.end_marks, *_UNSPACED_ENDS) if unspaced else options.end_marks
    end_marks = () if text.unmarked else end_marks
    kept = []
    for line in text.lines:
        line = line.rstrip()
        if not line:
            kept.append(line)
            continue
        if (
            not unspaced
            and len(line) > options.max_word_length
            and max(map(len, line.split())) > options.max_word_length
        ):
            continue
        if citations:
            line = _CITATION.sub('', line).rstrip()
        few = len(text.split(line)) < n_words if unspaced else has_fewer_words(line, n_words)
        if few or not ends_well(line, end_marks):
            continue
        low = line.lower() if phrases or page_phrases else ''
        for phrase in page_phrases:
            if phrase in low:
                return kept, ('phrase', phrase)
        if any(phrase in low for phrase in phrases):
            continue
        if curly and '{' in line:
            return kept, ('curly', line[max(0, line.index('{') - 40) :][:80])
        kept.append(line)
    return kept, None


def ends_well(line: str, end_marks: tuple[str, ...]) -> bool:
    """Whether the line ends as a sentence does, and not in an ellipsis."""
    return not end_marks or (line.endswith(end_marks) and not line.endswith('...'))


def has_fewer_words(line: str, count: int) -> bool:
    """Whether the line has fewer than this many words."""
    return count > 0 and len(line.split(maxsplit=count - 1)) < count


def _sentence_counter(text: signals.Text) -> Callable[[str], int]:
    """What counts the sentences of a line: by their marks, where white space need not follow, or by spaces."""
    if text.unmarked:
        return lambda line: len(line.split())
    return (lambda line: len(_UNSPACED_END.findall(line))) if text.unspaced else count_sentences


def count_sentences(line: str) -> int:
    """How many marks end a sentence."""
    return len(_SENTENCE_END.findall(line))
