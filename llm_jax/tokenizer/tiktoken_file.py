"""Files of tiktoken: the bytes of each token in base64, and its rank. How text is cut, and what the special tokens are,
they do not say: that follows from the encoding, which is known by the file's name or by how many ranks it has."""

import base64
import binascii
from collections.abc import Iterator, Mapping
import dataclasses
import re
from typing import Any

from llm_jax.config import parts
from llm_jax.config.schema import ConfigError
from llm_jax.tokenizer.tokenizer_json import byte_alphabet

_LINE = re.compile(rb'[A-Za-z0-9+/]+={0,2} \d+\r?(\n|\Z)')
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_CASED = r'[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]', r'[\p{Ll}\p{Lm}\p{Lo}\p{M}]'
# Regular expressions of Oniguruma for those of tiktoken_ext/openai_public.py and of the models' own code.
_GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = _CONTRACTIONS + r'|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
_CL100K = _LLAMA3.replace(r'\s*[\r\n]+|', r'\s+\z|\s*[\r\n]+|')
_QWEN = _LLAMA3.replace(r'\p{N}{1,3}', r'\p{N}')
_O200K = (
    rf'[^\r\n\p{{L}}\p{{N}}]?{_CASED[0]}*{_CASED[1]}+{_CONTRACTIONS}?|'
    rf'[^\r\n\p{{L}}\p{{N}}]?{_CASED[0]}+{_CASED[1]}*{_CONTRACTIONS}?|'
    r'\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)
_END_OF_TEXT = '<|endoftext|>'
_FIM = ('<|fim_prefix|>', '<|fim_middle|>', '<|fim_suffix|>')
_HARMONY = {
    0: '<|startoftext|>', 1: _END_OF_TEXT, 4: '<|return|>', 5: '<|constrain|>', 7: '<|channel|>', 8: '<|start|>',
    9: '<|end|>', 10: '<|message|>', 14: '<|call|>', 20: '<|endofprompt|>',
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Encoding:
    """What a file of ranks does not say.

    Attributes:
      pattern: regular expression of the pieces that text is cut into.
      special: name -> id; of an encoding whose special tokens follow its ranks, name -> place after them.
      bos: name of the token that opens a document.
      eos: names of tokens that end a text.
      ranks: how many there are, by which the file is known; 0 if it may be any number.
      after_ranks: whether `special` counts from the number of ranks.
    """

    pattern: str
    special: Mapping[str, int]
    bos: str
    eos: tuple[str, ...] = ()
    ranks: int = 0
    after_ranks: bool = False


def _llama3() -> dict[str, int]:
    """The 256 special tokens of Llama 3.1, at the ids that Llama 3 has, too, where both have a name for one."""
    names = {0: 'begin_of_text', 1: 'end_of_text', 4: 'finetune_right_pad_id', 6: 'start_header_id',
             7: 'end_header_id', 8: 'eom_id', 9: 'eot_id', 10: 'python_tag'}  # fmt: skip
    reserved = iter(range(256))
    return {f'<|{names[i]}|>' if i in names else f'<|reserved_special_token_{next(reserved)}|>': i for i in range(256)}


def _in_order(first: int, *names: str) -> dict[str, int]:
    return {name: first + i for i, name in enumerate(names)}


_QWEN_SPECIAL = (_END_OF_TEXT, '<|im_start|>', '<|im_end|>', *(f'<|extra_{i}|>' for i in range(205)))
ENCODINGS = {
    'gpt2': Encoding(_GPT2, {_END_OF_TEXT: 50256}, _END_OF_TEXT),
    'r50k_base': Encoding(_GPT2, {_END_OF_TEXT: 50256}, _END_OF_TEXT, ranks=50_256),
    'p50k_base': Encoding(_GPT2, {_END_OF_TEXT: 50256}, _END_OF_TEXT, ranks=50_280),
    'p50k_edit': Encoding(_GPT2, {_END_OF_TEXT: 50256} | _in_order(50281, *_FIM), _END_OF_TEXT),
    'cl100k_base': Encoding(
        _CL100K, _in_order(100257, _END_OF_TEXT, *_FIM) | {'<|endofprompt|>': 100276}, _END_OF_TEXT, ranks=100_256
    ),
    'o200k_base': Encoding(
        _O200K, {_END_OF_TEXT: 199999, '<|endofprompt|>': 200018}, _END_OF_TEXT, ranks=199_998
    ),
    'o200k_harmony': Encoding(
        _O200K,
        {_HARMONY.get(i - 199998, f'<|reserved_{i}|>'): i for i in range(199998, 201088)},
        '<|startoftext|>',
        (_END_OF_TEXT, '<|return|>', '<|call|>'),
    ),
    'qwen': Encoding(_QWEN, _in_order(0, *_QWEN_SPECIAL), _END_OF_TEXT, ('<|im_end|>',), 151_643, after_ranks=True),
    'llama3': Encoding(
        _LLAMA3, _llama3(), '<|begin_of_text|>', ('<|end_of_text|>', '<|eom_id|>', '<|eot_id|>'), 128_000,
        after_ranks=True,
    ),
}  # fmt: skip


def is_tiktoken(data: bytes) -> bool:
    """Whether this is the content of such a file: its first line is base64 and a number."""
    return _LINE.match(data) is not None


def encoding_of(name: str, ranks: int) -> Encoding:
    """The encoding of a file.

    Args:
      name: of the file: 'cl100k_base.tiktoken', or 'tokenizer.model' as Meta calls that of Llama 3.
      ranks: how many it has.

    Raises:
      ConfigError: neither says which it is.
    """
    stem = name.removesuffix('.tiktoken')
    if stem in ENCODINGS:
        return ENCODINGS[stem]
    for encoding in ENCODINGS.values():
        if encoding.ranks == ranks:
            return encoding
    if name == 'tokenizer.model':
        return ENCODINGS['llama3']
    raise ConfigError(
        f'nothing says how text is cut for these {ranks} ranks: call the file after its encoding, such as '
        f'cl100k_base.tiktoken{parts.nearest(stem, list(ENCODINGS))} Known: {", ".join(ENCODINGS)}'
    )


def read_ranks(data: bytes) -> dict[bytes, int]:
    """Bytes of each token -> its rank, which is its id.

    Raises:
      ConfigError: a line that is no token, or a token or rank that is there twice.
    """
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise ConfigError(f'line {number} is {line[:60]!r}, not base64 and a rank; copy the file again') from error
    lines = sum(1 for line in data.splitlines() if line.strip())
    if not lines == len(ranks) == len(set(ranks.values())):
        raise ConfigError('a token or a rank is there twice; copy the file again')
    if b'' in ranks:
        raise ConfigError('a token is empty; copy the file again')
    return ranks


def to_tokenizer_json(ranks: Mapping[bytes, int], encoding: Encoding) -> tuple[dict[str, Any], int, list[int]]:
    """(content of a tokenizer.json that encodes as tiktoken does, BOS, EOS).

    Raises:
      ConfigError: the id of a special token is a rank.
    """
    special = {
        name: i + (max(ranks.values()) + 1 if encoding.after_ranks else 0) for name, i in encoding.special.items()
    }
    taken = set(ranks.values())
    if clash := next((name for name, i in special.items() if i in taken), None):
        raise ConfigError(
            f'{clash} of its encoding has id {special[clash]}, which is a token of the file; '
            'it is a file of another encoding: call it after that'
        )
    spelled = {byte: char for char, byte in byte_alphabet().items()}
    spell = lambda token: ''.join(map(spelled.__getitem__, token))
    split = {'type': 'Split', 'pattern': {'Regex': encoding.pattern}, 'behavior': 'Isolated', 'invert': False}
    plain = {'add_prefix_space': False, 'trim_offsets': True, 'use_regex': False}
    byte_level = {'type': 'ByteLevel', **plain}
    literal = dict.fromkeys(('single_word', 'lstrip', 'rstrip', 'normalized'), False)
    spec = {
        'version': '1.0',
        'added_tokens': [
            {'id': i, 'content': name, 'special': True} | literal
            for name, i in special.items()
        ],
        'normalizer': None,
        'pre_tokenizer': {'type': 'Sequence', 'pretokenizers': [split, byte_level]},
        'post_processor': _begin_with(encoding, special),
        'decoder': byte_level,
        'model': {
            'type': 'BPE', 'fuse_unk': False, 'byte_fallback': False,
            'ignore_merges': True,  # a piece that is a token is that token, whether or not merges lead to it
            'vocab': {spell(token): rank for token, rank in ranks.items()},
            'merges': [[spell(left), spell(right)] for left, right in merges(ranks)],
        },
    }  # fmt: skip
    return spec, special[encoding.bos], [special[name] for name in encoding.eos]


def merges(ranks: Mapping[bytes, int]) -> Iterator[tuple[bytes, bytes]]:
    """Every pair of tokens that makes a token, the lowest rank of the result first.

    tiktoken merges whichever neighbours make the token of the lowest rank, the leftmost of equals; a list of
    merges has an order among the pairs that make one token, too. The longest left part comes first.
    """
    for token in sorted(ranks, key=ranks.__getitem__):
        for cut in range(len(token) - 1, 0, -1):
            if token[:cut] in ranks and token[cut:] in ranks:
                yield token[:cut], token[cut:]


def _begin_with(encoding: Encoding, special: Mapping[str, int]) -> dict[str, Any] | None:
    """For `transformers`: a text begins with BOS, where that is not what stands between documents."""
    if encoding.bos == _END_OF_TEXT:
        return None
    bos = {'SpecialToken': {'id': encoding.bos, 'type_id': 0}}
    return {
        'type': 'TemplateProcessing',
        'single': [bos, {'Sequence': {'id': 'A', 'type_id': 0}}],
        'pair': [bos, {'Sequence': {'id': 'A', 'type_id': 0}}, bos, {'Sequence': {'id': 'B', 'type_id': 1}}],
        'special_tokens': {
            encoding.bos: {'id': encoding.bos, 'ids': [special[encoding.bos]], 'tokens': [encoding.bos]}
        },
    }
