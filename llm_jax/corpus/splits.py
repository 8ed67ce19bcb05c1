"""Splits into training, validation and test by the hash of a document's content: equal documents share a split."""

import hashlib

SPLITS = ('train', 'validation', 'test')


def split_of(text: str, validation_fraction: float, test_fraction: float) -> str:
    """Returns the split of a document, a function of its content alone.

    Raises:
      UnicodeEncodeError: the text has half a surrogate pair.
    """
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    place = int.from_bytes(digest, 'little') / 2**64
    if place < validation_fraction:
        return 'validation'
    return 'test' if place < validation_fraction + test_fraction else 'train'
