"""Formulas, exponents and indices of a page as text: what markup alone says would be another number without it.

MathML with TeX beside it ('alttext', an annotation; KaTeX, Wikipedia), MathJax's scripts and WordPress pictures become
'$...$'; MathML alone is written on one line (2.5×10^3, (3)/(4)). Of <sup> and <sub>, digits become Unicode's raised and
lowered ones (10⁶, H₂O), other letters follow '^' or '_', a footnote's mark stands in brackets; ordinals (1st) stay.
"""

import re

from lxml import etree

_TELLS = re.compile(r'<(?:\w+:)?math\b|math/tex|<su[bp]\b|\blatex\b', re.I)
_RAISED = str.maketrans('0123456789+-−=()ni', '⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻⁼⁽⁾ⁿⁱ')
_LOWERED = str.maketrans('0123456789+-−=()', '₀₁₂₃₄₅₆₇₈₉₊₋₋₌₍₎')
# What libraries draw around a formula, in which it stands more than once.
_AROUND = re.compile(r'\bkatex\b|\bmwe-math-element\b|\bMathJax(?:_\w+)?\b|\bMathJax-Element', re.I)
_DRAWN = re.compile(r'\bMathJax(?:_(?:Preview|Display|CHTML|SVG|CommonHTML))?\b')
_STYLE = re.compile(r'\{\\(?:displaystyle|textstyle|scriptstyle)\s*(.*)\}', re.S)
_ORDINAL = re.compile(r'(?:st|nd|rd|th|ers?|res?|e|è?me|ère|[oaº]s?|d|nde?)', re.I)
_SIMPLE = re.compile(r'[\w.]+|[^\W_]')


def rewrite(tree: etree._Element) -> None:
    """Puts text in the place of formulas, exponents and indices of a page."""
    for element in list(tree.iter('math', 'm:math', 'mml:math', 'script', 'img')):
        if element.getparent() is not None and tree in (element, *element.iterancestors()):
            _rewrite_formula(element)
    for element in reversed(list(tree.iter('sup', 'sub'))):
        _replace(element, _attached(element))


def has_any(page: str) -> bool:
    """Tells cheaply whether there may be something to rewrite."""
    return _TELLS.search(page) is not None


def _rewrite_formula(element: etree._Element) -> None:
    tag = _local_name(element)
    if tag == 'math':
        text = tex_of(element) or linear(element)
    elif tag == 'script':
        if not element.get('type', '').startswith('math/tex'):
            return
        text = _dollars(element.text or '', 'display' in element.get('type'))
        before = element.getprevious()  # what MathJax drew of it
        while before is not None and not (before.tail or '').strip() and _DRAWN.search(before.get('class', '')):
            drawn, before = before, before.getprevious()
            _replace(drawn, '')
    elif tag == 'img':
        if (
            not re.search(r'\b(?:latex|tex|math)\b', element.get('class', ''), re.I)
            or not element.get('alt', '').strip()
        ):
            return
        text = _dollars(element.get('alt'), False)
    else:
        return
    around = element
    for parent in element.iterancestors():
        if _AROUND.search(parent.get('class', '')) or parent.tag == 'mjx-container':
            around = parent
    _replace(around, text)


def _local_name(element: etree._Element) -> str:
    return re.split('[:}]', element.tag)[-1] if isinstance(element.tag, str) else ''


def tex_of(math: etree._Element) -> str:
    """The TeX that stands beside MathML, between dollars; '' if none does."""
    notes = (
        note.text
        for note in math.iter()
        if _local_name(note) == 'annotation' and 'tex' in note.get('encoding', '').lower()
    )
    return _dollars(next(notes, None) or math.get('alttext', ''), math.get('display') == 'block')


def _dollars(tex: str, display: bool) -> str:
    tex = re.sub(r'<!\[CDATA\[|\]\]>|^\s*%', '', tex).strip().strip('$').strip()
    tex = ' '.join((match[1] if (match := _STYLE.fullmatch(tex)) else tex).split())
    mark = '$$' if display else '$'
    return f'{mark}{tex}{mark}' if tex else ''


def linear(element: etree._Element) -> str:
    """MathML on one line."""
    tag = _local_name(element)
    if tag.startswith('annotation') or not tag:
        return ''
    parts = [linear(child) for child in element if isinstance(child.tag, str)]
    grouped = lambda text: text if _SIMPLE.fullmatch(text) else f'({text})'
    if tag in ('msup', 'mover') and len(parts) == 2:
        return f'{parts[0]}^{grouped(parts[1])}'
    if tag in ('msub', 'munder') and len(parts) == 2:
        return f'{parts[0]}_{grouped(parts[1])}'
    if tag in ('msubsup', 'munderover') and len(parts) == 3:
        return f'{parts[0]}_{grouped(parts[1])}^{grouped(parts[2])}'
    if tag == 'mfrac' and len(parts) == 2:
        return f'{grouped(parts[0])}/{grouped(parts[1])}'
    if tag == 'mroot' and len(parts) == 2:
        return f'{grouped(parts[0])}^(1/{parts[1]})'
    if tag == 'msqrt':
        return f'√({"".join(parts)})'
    if tag == 'mfenced':
        return element.get('open', '(') + element.get('separators', ',')[:1].join(parts) + element.get('close', ')')
    if tag in ('mtr', 'mlabeledtr'):
        return ' '.join(parts) + '; '
    return ' '.join((element.text or '').split()) + ''.join(parts)


def _attached(element: etree._Element) -> str | None:
    """What <sup> or <sub> becomes; None for what stays as it is."""
    text = ' '.join(''.join(element.itertext()).split())
    before = _text_before(element)
    raised = element.tag == 'sup'
    if not text or not re.search(r'[\w)\]}]$', before):
        return text
    if element.find('.//a') is not None or any(parent.tag == 'a' for parent in element.iterancestors()):
        return f'[{text}]' if re.fullmatch(r'[\d,\s]+', text) else text
    if re.match(r'[\[(]', text):
        return text
    table = _RAISED if raised else _LOWERED
    if all(ord(character) in table for character in text):
        return text.translate(table)
    if text in ('TM', 'SM'):
        return {'TM': '™', 'SM': '℠'}[text]
    if raised and (_ORDINAL.fullmatch(text) if before[-1].isdigit() else len(text) > 1 and text.isalpha()):
        return text
    if not re.search(r'\w', text):
        return text
    mark = '^' if raised else '_'
    return mark + (text if _SIMPLE.fullmatch(text) else f'({text})')


def _text_before(element: etree._Element) -> str:
    """The end of the text that stands before an element in its parent."""
    previous = element.getprevious()
    if previous is None:
        parent = element.getparent()
        return (parent.text or '') if parent is not None else ''
    return previous.tail or ''.join(previous.itertext())


def _replace(element: etree._Element, text: str | None) -> None:
    """Puts a text in the place of an element; what follows it stays."""
    parent = element.getparent()
    if text is None or parent is None:
        return
    text += element.tail or ''
    previous = element.getprevious()
    if previous is None:
        parent.text = (parent.text or '') + text
    else:
        previous.tail = (previous.tail or '') + text
    parent.remove(element)
