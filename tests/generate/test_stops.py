import numpy as np
import pytest

from llm_jax.config.schema import ConfigError
from llm_jax.generate.stops import StopText
from llm_jax.tokenizer import StreamDecoder


class Pieces:
    """Tokens are indices of these pieces of bytes."""

    prefix = b''

    def __init__(self, *pieces):
        self.pieces = [piece.encode() if isinstance(piece, str) else piece for piece in pieces]

    def decode_token(self, token):
        return self.pieces[token]


def read(pieces, stops=()):
    """(text after each token, text at the end, number of tokens pushed, the stop string)"""
    text = StopText(StreamDecoder(Pieces(*pieces)), stops)
    shown = []
    for token in range(len(pieces)):
        ended = text.push(token)
        shown.append(text.take())
        if ended:
            break
    return shown, text.close(), len(shown), text.stop


@pytest.mark.parametrize(
    'pieces, stops, expected',
    [
        (['Hi', '\n', '\nUs', 'er: x', 'more'], ['\n\nUser'], (['Hi', '', '', ''], '', 4, '\n\nUser')),
        (['Hi', '\n', '\nUs'], ['\n\nUser'], (['Hi', '', ''], '\n\nUs', 3, '')),
        (['xab'], ['ab', 'b'], (['x'], '', 1, 'ab')),
        (['xab'], ['b', 'ab'], (['x'], '', 1, 'ab')),
        (['aa', 'ab'], ['aab'], (['', 'a'], '', 2, 'aab')),
        (['<', '<', 'e>'], ['<e>'], (['', '<', ''], '', 3, '<e>')),
        (['a', 'b'], [], (['a', 'b'], '', 2, '')),
        ([b'\xf0', b'\x9f', b'\x99', b'\x82'], [], (['', '', '', '\U0001f642'], '', 4, '')),
        ([b'\xf0', b'\x9f'], ['x'], (['', ''], '\ufffd', 2, '')),
        ([b'a\xff', 'b'], ['\ufffdb'], (['a', ''], '', 2, '\ufffdb')),
    ],
    ids=str,
)
def test_text_up_to_a_stop(pieces, stops, expected):
    assert read(pieces, stops) == expected


def test_any_cut_into_tokens_gives_the_same_text():
    rng = np.random.default_rng(0)
    ended = 0
    for _ in range(500):
        text = ''.join(rng.choice(list('aab\n'), 30))
        stops = [''.join(rng.choice(list('ab\n'), rng.integers(3, 7))) for _ in range(2)]
        starts = [text.find(stop) for stop in stops if stop in text]
        cuts = np.sort(rng.choice(np.arange(1, 30), 6, replace=False))
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, 30], strict=True)]
        shown, rest, _, stop = read(pieces, stops)
        # Of two that begin at different places the one completed first ends the text.
        first = min((text.find(one) + len(one) for one in stops if one in text), default=None)
        assert bool(stop) == bool(starts)
        if stop:
            assert ''.join(shown) + rest in {text[: text.find(one)] for one in stops if one in text}
            assert ''.join(pieces).startswith(''.join(shown) + stop) and len(''.join(shown)) <= first
        else:
            assert ''.join(shown) + rest == text
        ended += bool(stop)
    assert 50 < ended < 450


def test_an_empty_stop_string():
    with pytest.raises(ConfigError, match="stop = ''"):
        StopText(StreamDecoder(Pieces()), [''])
