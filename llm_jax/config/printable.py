"""Text of models, files and users, made fit for a terminal or a page."""

import re

# C0 and C1 but tab and newline, which a terminal obeys as commands, and what reorders the text around it (bidi).
_CONTROL = re.compile('[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]')


def visible(text: str) -> str:
    """Spells control characters as escapes: \\x1b[31m."""
    return _CONTROL.sub(lambda match: match[0].encode('unicode_escape').decode(), text)
