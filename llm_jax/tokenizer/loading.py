"""Finding out what kind of tokenizer a file or a directory holds, and reading it."""

from collections.abc import Mapping
import json
import os
from typing import Any

from etils import epath
import tokenizers

from llm_jax import hub
from llm_jax.config.schema import ConfigError
from llm_jax.tokenizer import chat_template, llama2c, tiktoken_file
from llm_jax.tokenizer.interface import Tokenizer
from llm_jax.tokenizer.sentence_piece import FILE_NAME, SentencePieceTokenizer
from llm_jax.tokenizer.tokenizer_json import JsonTokenizer, parse, vocabulary

# The two files of GPT-2's kind: how the name of one ends, and of the other.
_PAIRS = (('encoder.json', 'vocab.bpe'), ('vocab.json', 'merges.txt'))
# What marks files in a directory, the most telling first.
_PATTERNS = (
    'tokenizer.json',
    FILE_NAME,
    '*.tiktoken',
    *(f'*{vocab}' for vocab, _ in _PAIRS),
    *(f'*{merges}' for _, merges in _PAIRS),
    'tok*.bin',
)
_END_OF_TEXT = '<|endoftext|>'
_KINDS = (
    'tokenizer.json, a SentencePiece or tiktoken tokenizer.model, NAME.tiktoken, vocab.json with merges.txt, '
    "encoder.json with vocab.bpe, or llama2.c's tokenizer.bin"
)


def load(path: str | os.PathLike) -> Tokenizer:
    """Reads a tokenizer of any kind.

    Args:
      path: tokenizer.json, with tokenizer_config.json, special_tokens_map.json,
        generation_config.json and config.json beside it read for BOS and EOS, and any
        kind with the chat templates beside it (`tokenizer/chat_template.py`); a
        SentencePiece model; ranks of tiktoken, such as cl100k_base.tiktoken or Llama 3's
        tokenizer.model; one of vocab.json and merges.txt, or encoder.json and
        vocab.bpe, of GPT-2, also with a prefix such as 'gpt2_'; llama2.c's tok*.bin;
        or a directory with one of these, such as `Tokenizer.save` writes; or
        'hf:OWNER/NAME[@REVISION]', a model of the Hub.

    Raises:
      ConfigError: no such file, a broken one, or a kind that loses text.
    """
    file = epath.Path(hub.fetch_tokenizer(path))
    if not file.exists():
        raise ConfigError(f'tokenizer {str(file)!r}: there is no such file; name {_KINDS}, or a directory with one')
    if file.is_dir():
        file = _in_directory(file)
    try:
        return _with_templates(_read(file), file.parent)
    except ConfigError as error:
        raise ConfigError(f'tokenizer {str(file)!r}: {error}') from error


def find(path: str | os.PathLike) -> Tokenizer | None:
    """What `load` reads; None for a directory that holds no tokenizer, as weights need none.

    Raises:
      ConfigError: as `load`.
    """
    path = epath.Path(hub.fetch_tokenizer(path))
    if path.is_dir() and not any(any(path.glob(pattern)) for pattern in _PATTERNS):
        return None
    return load(path)


def _in_directory(directory: epath.Path) -> epath.Path:
    for pattern in _PATTERNS:
        found = sorted(directory.glob(pattern))
        if len(found) > 1:
            names = ', '.join(file.name for file in found)
            raise ConfigError(f'tokenizer {str(directory)!r}: it holds several ({names}); name one of the files')
        if found:
            return found[0]
    raise ConfigError(f'tokenizer {str(directory)!r}: there is no such file in it; it needs {_KINDS}')


def _with_templates(tokenizer: Tokenizer, directory: epath.Path) -> Tokenizer:
    config_file = directory / 'tokenizer_config.json'
    config = _json_object(config_file) if config_file.exists() else {}
    return tokenizer.with_chat_templates(chat_template.read(directory, config))


def _read(file: epath.Path) -> Tokenizer:
    for pair in _PAIRS:
        for end in pair:
            if file.name.endswith(end):
                stem = file.name.removesuffix(end)
                return _read_gpt2(*(file.parent / f'{stem}{name}' for name in pair))
    if file.suffix == '.json':
        return _read_json(file)
    if file.suffix == '.bin':
        return SentencePieceTokenizer(llama2c.to_sentencepiece(file.read_bytes()))
    data = file.read_bytes()
    if file.suffix == '.tiktoken' or tiktoken_file.is_tiktoken(data):
        return _read_tiktoken(file.name, data)
    return SentencePieceTokenizer(data)


def _read_tiktoken(name: str, data: bytes) -> JsonTokenizer:
    ranks = tiktoken_file.read_ranks(data)
    encoding = tiktoken_file.encoding_of(name, len(ranks))
    spec, bos_id, eos_ids = tiktoken_file.to_tokenizer_json(ranks, encoding)
    return JsonTokenizer(json.dumps(spec), bos_id=bos_id, eos_ids=eos_ids)


def _read_json(file: epath.Path) -> JsonTokenizer:
    model = _text(file)
    beside = {
        name: _json_object(file.parent / f'{name}.json') if (file.parent / f'{name}.json').exists() else {}
        for name in ('tokenizer_config', 'special_tokens_map', 'generation_config', 'config')
    }
    bos_id, eos_ids = _special_ids(vocabulary(parse(model)), beside)
    return JsonTokenizer(model, bos_id=bos_id, eos_ids=eos_ids, config=beside['tokenizer_config'])


def _special_ids(vocab: Mapping[str, int], beside: Mapping[str, Mapping[str, Any]]) -> tuple[int, list[int]]:
    """BOS and every EOS: by name from the tokenizer's files, by number from the model's."""

    def named(role: str) -> list[int]:
        for source in ('tokenizer_config', 'special_tokens_map'):
            value = beside[source].get(f'{role}_token')
            name = value.get('content') if isinstance(value, dict) else value
            if name is None:
                continue
            if name not in vocab:
                raise ConfigError(f'{role}_token {name!r} of {source}.json is no token of it; correct that file')
            return [vocab[name]]
        return []

    def numbered(role: str) -> list[int]:
        values = (beside[source].get(f'{role}_token_id') for source in ('generation_config', 'config'))
        value = next((v for v in values if v is not None), [])
        return value if isinstance(value, list) else [value]

    eos_ids = [*named('eos'), *numbered('eos')]
    separator = [vocab[_END_OF_TEXT]] if _END_OF_TEXT in vocab else []
    bos_ids = [*named('bos'), *numbered('bos'), *separator, *eos_ids]
    if not bos_ids:
        raise ConfigError(
            'nothing says which token begins a document; put a tokenizer_config.json with "bos_token" beside it'
        )
    return bos_ids[0], eos_ids


def _read_gpt2(vocab_file: epath.Path, merges_file: epath.Path) -> JsonTokenizer:
    for file in (vocab_file, merges_file):
        if not file.exists():
            raise ConfigError(f'{file.name} is missing beside it; such a tokenizer is a pair of files')
    config_file = vocab_file.parent / 'tokenizer_config.json'
    config = _json_object(config_file) if config_file.exists() else {}
    kind = config.get('tokenizer_class', 'GPT2Tokenizer')
    if kind not in ('GPT2Tokenizer', 'GPT2TokenizerFast'):
        raise ConfigError(
            f'tokenizer_config.json names a {kind}, and a pair of files does not say how that splits text; '
            'add its tokenizer.json'
        )
    vocab = _json_object(vocab_file)
    if _END_OF_TEXT not in vocab:
        raise ConfigError(f'{vocab_file.name} has no {_END_OF_TEXT!r}, which stands between documents; add it')
    merges = []
    for number, line in enumerate(_text(merges_file).split('\n'), 1):
        if not line.strip() or (number == 1 and line.startswith('#version')):
            continue
        pair = tuple(line.rstrip('\r').split(' '))
        if len(pair) != 2:
            raise ConfigError(f'line {number} of {merges_file.name} is {line!r}, not two tokens; copy the file again')
        merges.append(pair)
    try:
        model = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, merges))
    except Exception as error:  # the library raises nothing more specific
        raise ConfigError(f'{vocab_file.name} and {merges_file.name} do not fit together: {error}') from error
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    model.add_special_tokens([_END_OF_TEXT])
    return JsonTokenizer(model.to_str(), bos_id=vocab[_END_OF_TEXT], eos_ids=[])


def _json_object(file: epath.Path) -> dict[str, Any]:
    try:
        value = json.loads(_text(file))
    except json.JSONDecodeError as error:
        raise ConfigError(f'{file.name} is broken JSON: {error}; copy the file again') from error
    if not isinstance(value, dict):
        raise ConfigError(f'{file.name} holds no JSON object; copy the file again')
    return value


def _text(file: epath.Path) -> str:
    try:
        return file.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f'{file.name} is no UTF-8 text: {error}; copy the file again') from error
