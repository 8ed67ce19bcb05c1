"""Literals as bytes, between the process of a solution and the process of the tests.

A value is a tag, a decimal number, ':' and as many bytes or values as the number says. The reader makes plain builtin
objects of it and nothing else, whatever the writer was: an object that is equal to everything does not get through.
"""

import os

MAX_BYTES = 16 << 20  # of a message
MAX_DEPTH = 150  # of values in one another
MAX_ITEMS = 1_000_000  # that an iterator is asked for

_TYPES = (int, float, complex, bool, str, bytes, bytearray, list, tuple, dict, set, frozenset, object, type, type(None))
_BY_NAME = {kind.__name__: kind for kind in _TYPES}


class Unsendable(TypeError):
    """A value that is no literal."""


class Malformed(ValueError):
    """Bytes that are no value."""


class Handle:
    """An object that stays in the process of the solution, which the tests can only hand back to it."""

    def __init__(self, number):
        object.__setattr__(self, 'number', number)

    def _refuse(self, *_):
        raise Unsendable('the solution returned an object that is no literal')

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __bool__ = __iter__ = __len__ = __getitem__ = __call__ = (
        _refuse
    )
    __contains__ = __getattr__ = __setattr__ = __hash__ = __str__ = __repr__ = __add__ = __radd__ = __float__ = _refuse
    __int__ = __index__ = __sub__ = __rsub__ = __abs__ = __round__ = __format__ = _refuse


def encode(value, keep=None):
    """The bytes of a value.

    Args:
      value: of builtin types, or of collections, fractions or decimal, in one another; iterators give what is left.
      keep: number of an object that is none of these, which stays here; without it that is Unsendable.
    """
    out = []
    _encode(value, out.append, keep, 0)
    return b''.join(out)


def _counted(tag, payload):
    return b'%s%d:%s' % (tag, len(payload), payload)


def _encode(value, put, keep, depth):
    if depth > MAX_DEPTH:
        raise Unsendable('values are too deep in one another')
    kind, depth = type(value), depth + 1
    if value is None:
        put(b'N0:')
    elif kind is bool:
        put(b'B%d:' % value)
    elif isinstance(value, int):
        put(_counted(b'i', b'%x' % int.__index__(value)))
    elif isinstance(value, float):
        put(_counted(b'f', float.hex(value).encode()))
    elif isinstance(value, complex):
        put(_counted(b'c', f'{float.hex(value.real)} {float.hex(value.imag)}'.encode()))
    elif isinstance(value, str):
        put(_counted(b's', str.encode(value, 'utf-8', 'surrogatepass')))
    elif isinstance(value, (bytes, bytearray)):
        put(_counted(b'b' if isinstance(value, bytes) else b'a', bytes(value)))
    elif isinstance(value, (list, tuple, set, frozenset)):
        tag = next(tag for tag, base in _SEQUENCES.items() if isinstance(value, base))
        put(b'%s%d:' % (tag, len(value)))
        for item in value:
            _encode(item, put, keep, depth)
    elif isinstance(value, dict):
        tag = _DICTS.get((kind.__module__, kind.__name__), b'd')
        put(b'%s%d:' % (tag, len(value)))
        for key, item in value.items():
            _encode(key, put, keep, depth)
            _encode(item, put, keep, depth)
    elif kind is range:
        put(_counted(b'r', b'%x %x %x' % (value.start, value.stop, value.step)))
    elif kind is Handle:
        put(_counted(b'h', b'%x' % value.number))
    elif kind is type and _BY_NAME.get(value.__name__) is value:
        put(_counted(b't', value.__name__.encode()))
    elif (kind.__module__, kind.__name__) in _TEXTS:
        put(_counted(_TEXTS[kind.__module__, kind.__name__], str(value).encode()))
    elif (kind.__module__, kind.__name__) == ('collections', 'deque'):
        _encode_items(b'q', value, put, keep, depth)
    elif (kind.__module__, kind.__name__) in _VIEWS:
        _encode_items(b'l', value, put, keep, depth)
    elif hasattr(kind, '__next__') and hasattr(kind, '__iter__'):
        items = []
        for item in value:
            items.append(item)
            if len(items) > MAX_ITEMS:
                raise Unsendable(f'an iterator of more than {MAX_ITEMS} items')
        _encode_items(b'n', items, put, keep, depth)
    elif keep is not None:
        put(_counted(b'h', b'%x' % keep(value)))
    else:
        raise Unsendable(f'a value of type {kind.__name__} is no literal')


def _encode_items(tag, items, put, keep, depth):
    put(b'%s%d:' % (tag, len(items)))
    for item in items:
        _encode(item, put, keep, depth)


_SEQUENCES = {b'l': list, b'u': tuple, b'z': frozenset, b'e': set}
_DICTS = {('collections', 'Counter'): b'k', ('collections', 'OrderedDict'): b'o'}
_TEXTS = {('decimal', 'Decimal'): b'D', ('fractions', 'Fraction'): b'F'}
_VIEWS = {('builtins', 'dict_keys'), ('builtins', 'dict_values'), ('builtins', 'dict_items')}


def decode(data, handles=None):
    """The value of these bytes.

    Args:
      handles: number -> object that stayed here; without it a Handle is made.

    Raises:
      Malformed: they are no value, or one that is too deep.
    """
    try:
        value, end = _decode(data, 0, handles, 0)
    except (ValueError, TypeError, KeyError, IndexError, OverflowError, ArithmeticError) as e:
        raise Malformed(f'{type(e).__name__}: {e}') from None
    if end != len(data):
        raise Malformed('bytes after the value')
    return value


def _decode(data, at, handles, depth):
    if depth > MAX_DEPTH:
        raise Malformed('values are too deep in one another')
    tag, colon, depth = data[at : at + 1], data.index(b':', at, at + 24), depth + 1
    digits = data[at + 1 : colon]
    if not digits.isdigit():
        raise Malformed('no count')
    count, at = int(digits), colon + 1
    if tag in b'NB' and tag:
        return (None if tag == b'N' else bool(count)), at
    if tag in b'luezqnkod' and tag:
        pairs = tag in b'kod'
        if count * (1 + pairs) > (len(data) - at) // 3:  # the least value has three bytes
            raise Malformed('fewer values than the count says')
        items = []
        for _ in range(count * (1 + pairs)):
            item, at = _decode(data, at, handles, depth)
            items.append(item)
        return _collection(tag, dict(zip(items[::2], items[1::2], strict=True)) if pairs else items), at
    payload = data[at : at + count]
    if len(payload) != count:
        raise Malformed('fewer bytes than the count says')
    return _scalar(tag, payload, handles), at + count


def _collection(tag, items):
    if tag in b'uze':
        return {b'u': tuple, b'z': frozenset, b'e': set}[tag](items)
    if tag in b'qko':
        import collections

        return {b'q': collections.deque, b'k': collections.Counter, b'o': collections.OrderedDict}[tag](items)
    return iter(items) if tag == b'n' else items


def _scalar(tag, payload, handles):
    if tag == b's':
        return payload.decode('utf-8', 'surrogatepass')
    if tag in (b'b', b'a'):
        return payload if tag == b'b' else bytearray(payload)
    text = payload.decode('ascii')
    if tag == b'i':
        return int(text, 16)
    if tag == b'f':
        return float.fromhex(text)
    if tag == b'c':
        return complex(*map(float.fromhex, text.split(' ')))
    if tag == b'r':
        return range(*(int(part, 16) for part in text.split(' ')))
    if tag == b't':
        return _BY_NAME[text]
    if tag == b'h':
        number = int(text, 16)
        return Handle(number) if handles is None else handles[number]
    if tag == b'D':
        import decimal

        return decimal.Decimal(text)
    if tag == b'F':
        import fractions

        return fractions.Fraction(text)
    raise Malformed(f'an unknown tag {tag!r}')


def send(descriptor, data):
    """Writes one message."""
    data = b'%08x' % len(data) + data
    while data:
        data = data[os.write(descriptor, data) :]


def receive(descriptor):
    """Reads one message; None at the end.

    Raises:
      Malformed: it is longer than MAX_BYTES, or no message.
    """
    head = _read(descriptor, 8)
    if len(head) < 8:
        return None
    try:
        length = int(head, 16)
    except ValueError:
        raise Malformed('no message') from None
    if not 0 <= length <= MAX_BYTES:
        raise Malformed(f'a message of {length} bytes, more than {MAX_BYTES}')
    data = _read(descriptor, length)
    return data if len(data) == length else None


def _read(descriptor, length):
    pieces = []
    while length:
        piece = os.read(descriptor, min(length, 1 << 20))
        if not piece:
            break
        pieces.append(piece)
        length -= len(piece)
    return b''.join(pieces)
