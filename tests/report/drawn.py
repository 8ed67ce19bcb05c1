"""What is drawn in an SVG, in its own units; browsers and fonts left out."""

from collections.abc import Callable
import re
from typing import NamedTuple
from xml.etree import ElementTree

LETTER = 0.55  # width of a letter over its height, in the wider fonts of systems


class Text(NamedTuple):
    text: str
    left: float
    right: float
    top: float
    bottom: float


def _parse(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg.replace('xlink:', ''))  # a prefix that HTML knows and XML does not


def size(svg: str) -> tuple[float, float]:
    """Width and height."""
    return tuple(map(float, re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg).groups()))


def texts(svg: str) -> list[Text]:
    """Every text with about the box that it fills."""
    found = []
    for node in _parse(svg).iter('text'):
        style = dict(part.split(': ', 1) for part in node.get('style').split('; '))
        letter = float(style['font-size'].removesuffix('px'))
        width, x, y = LETTER * letter * len(node.text or ''), float(node.get('x')), float(node.get('y'))
        left = x - width * {'start': 0, 'middle': 0.5, 'end': 1}[style['text-anchor']]
        found.append(Text(node.text or '', left, left + width, y - 0.8 * letter, y + 0.2 * letter))
    return [text for text in found if text.text]


def ticks(svg: str) -> tuple[list[str], list[str]]:
    """Labels below the frame, and left of it."""
    frame = _parse(svg).find('.//clipPath/rect')
    left, bottom = float(frame.get('x')), float(frame.get('y')) + float(frame.get('height'))
    below = [text for text in texts(svg) if text.top > bottom]
    first = min((text.bottom for text in below), default=0)
    return (
        [text.text for text in below if text.bottom < first + 1],
        [text.text for text in texts(svg) if text.right <= left and text.top <= bottom],
    )


def corners(svg: str, color: str) -> list[tuple[float, float]]:
    """The points of all lines in a color, y growing upwards as in the data."""
    height = size(svg)[1]
    found = []
    for node in _parse(svg).iter('path'):
        if f'stroke: {color}' in node.get('style', ''):
            pairs = re.findall(r'[ML] ([\d.]+) ([\d.]+)', node.get('d'))
            found += [(float(x), height - float(y)) for x, y in pairs]
    return found


def faults(svg: str) -> list[str]:
    """Texts that are cut off or lie on each other, or are so small or large as to catch the eye."""
    width, height = size(svg)
    found, seen = [], texts(svg)
    beyond: Callable[[Text], bool] = lambda t: t.left < 0 or t.right > width or t.top < 0 or t.bottom > height
    found += [f'{text.text} is cut off' for text in seen if beyond(text)]
    found += [f'{text.text} is not legible' for text in seen if not 8 <= text.bottom - text.top <= 12]
    for i, one in enumerate(seen):
        for other in seen[:i]:
            if one.left < other.right and other.left < one.right and one.top < other.bottom and other.top < one.bottom:
                found.append(f'{one.text} lies on {other.text}')
    return found
