"""Tokenizers without merges: a token for each byte, or for each character of a text."""

from collections.abc import Iterable, Mapping, Sequence
import json
from typing import Any

from llm_jax.config.schema import ConfigError
from llm_jax.tokenizer.tokenizer_json import JsonTokenizer, byte_alphabet

BOS = '<|bos|>'
_BYTES = 256


def size_of_bytes(reserved: Sequence[str]) -> int:
    """V of `bytes_tokenizer`."""
    return _BYTES + 1 + len(reserved)


def bytes_tokenizer(reserved: Sequence[str]) -> JsonTokenizer:
    """A token for each byte of UTF-8, with the byte as its id; then BOS and the reserved names."""
    byte_level = {'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': True, 'use_regex': False}
    vocab = byte_alphabet()
    return _tokenizer(vocab, reserved, pre_tokenizer=byte_level, decoder=byte_level)


def characters_tokenizer(
    counts: Mapping[str, int], vocab_size: int, reserved: Sequence[str], field: str
) -> JsonTokenizer:
    """A token for each character, in their order; then the bytes, of which other characters are made, BOS, reserved.

    Args:
      counts: how often each character is there.
      vocab_size: most tokens; the rarest characters are left to the bytes.
      reserved: names of tokens that no text becomes.
      field: the config's section, for errors.

    Raises:
      ConfigError: no room for a single character.
    """
    room = vocab_size - size_of_bytes(reserved)
    if room < 1:
        raise ConfigError(
            f'{field}.vocab_size = {vocab_size} has no room for characters: {size_of_bytes(reserved)} are bytes, BOS '
            f'and reserved; set at least {size_of_bytes(reserved) + len(counts)}'
        )
    common = sorted(counts, key=lambda char: (-counts[char], char))[:room]
    vocab = {char: i for i, char in enumerate(sorted(common))}
    vocab |= {f'<0x{byte:02X}>': len(vocab) + byte for byte in range(_BYTES)}
    undo = {'type': 'Sequence', 'decoders': [{'type': 'ByteFallback'}, {'type': 'Fuse'}]}
    return _tokenizer(vocab, reserved, decoder=undo, byte_fallback=True)


def _tokenizer(
    vocab: Mapping[str, int],
    reserved: Iterable[str],
    *,
    decoder: Any,
    pre_tokenizer: Any = None,
    byte_fallback: bool = False,
) -> JsonTokenizer:
    special = {name: len(vocab) + i for i, name in enumerate((BOS, *reserved))}
    literal = dict.fromkeys(('single_word', 'lstrip', 'rstrip', 'normalized'), False)
    spec = {
        'version': '1.0',
        'added_tokens': [{'id': i, 'content': name, 'special': True} | literal for name, i in special.items()],
        'normalizer': None,
        'pre_tokenizer': pre_tokenizer,
        'post_processor': None,
        'decoder': decoder,
        'model': {'type': 'BPE', 'fuse_unk': False, 'byte_fallback': byte_fallback, 'vocab': vocab, 'merges': []},
    }
    return JsonTokenizer(json.dumps(spec), bos_id=special[BOS], eos_ids=[])
