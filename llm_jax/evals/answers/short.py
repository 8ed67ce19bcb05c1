"""Short answers at the end of a chain of thought, as in BIG-Bench Hard."""

import re

_MAX_CHARS = 100_000
_LM_EVAL = re.compile(r'(?<=the answer is )(.*)(?=.)')
_SAID = re.compile(r'\banswer is:?[ \t]*', re.IGNORECASE)


def extract_after_answer(text: str) -> str:
    """The answer that lm-eval's filter of BBH finds: after 'the answer is ', without the line's last character.

    It takes 'Tru' from 'the answer is True', which has no full stop.
    """
    found = _LM_EVAL.search(text[:_MAX_CHARS])
    return found[1] if found else '[invalid]'


def find_short_answer(text: str) -> str | None:
    """What a text answers: after its last 'answer is', else its first line; without a final full stop.

    None where nothing is there.
    """
    text = text[:_MAX_CHARS]
    said = list(_SAID.finditer(text))
    rest = text[said[-1].end() :] if said else text.strip()
    line = rest.split('\n')[0].strip(' \t*"$')
    return line.removesuffix('.').rstrip(' *"$') or None
