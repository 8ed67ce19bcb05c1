"""Tokenizers that are described by a Hugging Face tokenizer.json: byte-level BPE, and pieces with byte fallback."""

from collections.abc import Callable, Iterable, Mapping, Sequence
import functools
import hashlib
import json
import os
from typing import Any

import tokenizers

from llm_jax.config.schema import ConfigError
from llm_jax.tokenizer import chat_template, export
from llm_jax.tokenizer.interface import Spelled
from llm_jax.tokenizer.special import Special, from_added_token, names_of_roles

# What a tokenizer.json may undo when it joins pieces with byte fallback.
_PIECE_DECODERS = {'ByteFallback', 'Fuse', 'Metaspace', 'Replace', 'Strip'}
# Put before a text that is not the first; a private use of characters that no text has.
_ANCHOR = '\U0010fffe\U0010fffd'


class JsonTokenizer(Spelled):
    """A tokenizer.json, run by the `tokenizers` library; a `Tokenizer`."""

    def __init__(self, model: str, *, bos_id: int, eos_ids: Sequence[int], config: Mapping[str, Any] | None = None):
        """Args:
          model: the content of tokenizer.json.
          bos_id: see `Tokenizer`.
          eos_ids: see `Tokenizer`.
          config: the content of tokenizer_config.json, kept for `save`; its chat template is its own.

        Raises:
          ConfigError: not such a file, or one whose tokens have no certain bytes, or that makes
            special tokens of text.
        """
        spec = parse(model)
        vocab = vocabulary(spec)
        names = {i: name for name, i in vocab.items()}
        outside = [i for i in (bos_id, *eos_ids) if i not in names]
        if outside:
            raise ConfigError(f'BOS or EOS is {outside[0]}, which no token has as id; correct it in the files beside')
        # What ends a text must never be text, whatever the file says.
        control = {bos_id, *eos_ids}
        added = [token | {'special': token['special'] or token['id'] in control} for token in spec['added_tokens']]
        # A token of a text that takes the white space beside it along would lose that.
        added = [token if token['special'] else token | {'lstrip': False, 'rstrip': False} for token in added]
        control |= {token['id'] for token in added if token['special']} | _unknown(spec)
        spec = spec | {'added_tokens': added, 'truncation': None, 'padding': None}
        if spec['model'].get('dropout'):  # of merges, as in training some models: it draws other tokens each time
            spec = spec | {'model': spec['model'] | {'dropout': None}}
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(spec))
        except Exception as error:  # the library raises nothing more specific
            raise ConfigError(
                f'not a tokenizer.json that tokenizers {tokenizers.__version__} reads: {error}; get another copy of it'
            ) from error
        self._tokenizer.encode_special_tokens = True
        self._spec, self._names = spec, names
        self._config = {name: value for name, value in (config or {}).items() if name != chat_template.FIELD}
        self.adds_bos = _adds_bos(spec, names[bos_id], self._config)
        spell = _speller(spec)
        literal = {token['id'] for token in added}
        spelled = (
            b'' if i in control or i not in names else spell(names[i], i in literal) for i in range(max(names) + 1)
        )
        special = {names[i]: Special(i) for i in (bos_id, *eos_ids)}
        special |= {token['content']: from_added_token(token) for token in added if token['special']}
        ends = tuple(i for i in eos_ids if i != bos_id)
        self._roles = {'bos_token': names[bos_id], 'eos_token': names[(*ends, bos_id)[0]]}
        super().__init__(
            spelled,
            bos_id,
            eos_ids,
            [t['content'] for t in added if not t['special']],
            special=special,
            token_roles=names_of_roles(self._roles | self._config),
        )
        self.chat_templates = chat_template.from_config(config or {})
        written = [names[i] for i in sorted(control)]
        for name, ids in zip(written, self.encode_batch(written), strict=True):
            if control & set(ids):
                raise ConfigError(f'the text {name!r} would become a special token; take a tokenizer of another kind')

    def limit(self, vocab_size: int) -> 'JsonTokenizer':
        """See `Tokenizer.limit`."""
        past = {i for i in self._names if i >= vocab_size > 0}
        special = {token['id'] for token in self._spec['added_tokens'] if token['special']}
        in_model = {i for i in vocabulary(self._spec | {'added_tokens': []}).values() if i in past}
        if not past or not past <= special or in_model or past & {self.bos_id, *self.eos_ids}:
            return self
        kept = [token for token in self._spec['added_tokens'] if token['id'] not in past]
        spec = json.dumps(self._spec | {'added_tokens': kept})
        limited = JsonTokenizer(spec, bos_id=self.bos_id, eos_ids=self.eos_ids, config=self._config)
        return limited.with_chat_templates(self.chat_templates)

    @functools.cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps([self._spec, self.bos_id], sort_keys=True).encode()).hexdigest()[:16]

    def encode_batch(self, texts: Sequence[str], num_threads: int = 1) -> list[list[int]]:
        try:
            encoded = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        except TypeError:
            for text in texts:
                text.encode()  # says which surrogate it is, if that is what was wrong
            raise
        return [encoding.ids for encoding in encoded]

    def encode_part(self, text: str, *, first: bool) -> list[int]:
        if first or self._inner is None or _ANCHOR in text:  # a text of those characters may get a space before it
            return self.encode(text)
        return self._inner.encode(_ANCHOR + text, add_special_tokens=False).ids[1:]

    @functools.cached_property
    def _inner(self) -> tokenizers.Tokenizer | None:
        """Encodes texts that are not the first ones; None where those are encoded as the first.

        It has one token more, which no text is cut at but those that it is put before: what follows a token
        of the vocabulary is not the beginning.
        """
        if '"prepend_scheme": "first"' not in json.dumps(self._spec):
            return None
        inner = tokenizers.Tokenizer.from_str(self._tokenizer.to_str())
        inner.add_tokens([tokenizers.AddedToken(_ANCHOR, normalized=False, special=False)])
        inner.encode_special_tokens = True
        return inner

    def _locate(self, text: str, ids: Sequence[int]) -> list[tuple[int, int]]:
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        if encoding.ids == list(ids):
            return encoding.offsets
        encoding = self._inner.encode(_ANCHOR + text, add_special_tokens=False)
        return [(max(start - len(_ANCHOR), 0), max(end - len(_ANCHOR), 0)) for start, end in encoding.offsets[1:]]

    def save(self, directory: str | os.PathLike) -> None:
        self.export(directory)
        ids = {'bos_token_id': self.bos_id, 'eos_token_id': list(self.eos_ids)}
        export.write(directory, {'generation_config.json': ids})

    def export(self, directory: str | os.PathLike) -> None:
        config = {'tokenizer_class': 'PreTrainedTokenizerFast', **self._roles, **self._config}
        export.write(directory, {'tokenizer.json': self._spec, 'tokenizer_config.json': config})
        chat_template.write(directory, self.chat_templates)


def parse(model: str) -> dict[str, Any]:
    """The content of tokenizer.json as a dict that has all that is read here.

    Raises:
      ConfigError: it is broken, or of a kind that loses text.
    """
    try:
        spec = json.loads(model)
    except json.JSONDecodeError as error:
        raise ConfigError(f'broken JSON: {error}; copy the file again') from error
    if not isinstance(spec, dict) or not isinstance(spec.get('model'), dict) or not spec['model'].get('vocab'):
        raise ConfigError('not a tokenizer.json: it has no model with a vocab; name the file that has one')
    added = [{'special': False} | token for token in spec.get('added_tokens') or []]
    spec = spec | {'added_tokens': added}
    _speller(spec)
    return spec


def _adds_bos(spec: Mapping[str, Any], bos: str, config: Mapping[str, Any]) -> bool:
    """Whether its post-processor puts BOS before a text, or, where it has none that adds tokens, its config says so."""
    processor = spec.get('post_processor') or {}
    templates = [
        one for one in [processor, *processor.get('processors', [])] if one.get('type') == 'TemplateProcessing'
    ]
    if templates:
        return any(part.get('SpecialToken', {}).get('id') == bos for part in templates[0].get('single', [])[:1])
    return bool(config.get('add_bos_token', False))


def vocabulary(spec: Mapping[str, Any]) -> dict[str, int]:
    """Name of every token -> id, for the content of a tokenizer.json."""
    vocab = spec['model']['vocab']
    if isinstance(vocab, list):  # of a unigram model: [piece, score]
        vocab = {piece: i for i, (piece, _) in enumerate(vocab)}
    return vocab | {token['content']: token['id'] for token in spec['added_tokens']}


def _unknown(spec: Mapping[str, Any]) -> set[int]:
    model = spec['model']
    unknown = model.get('unk_id', model['vocab'].get(model.get('unk_token')) if 'merges' in model else None)
    return set() if unknown is None else {unknown}


def _speller(spec: Mapping[str, Any]) -> Callable[[str, bool], bytes]:
    """(name of a token, whether it is an added one) -> its bytes.

    Raises:
      ConfigError: a kind of tokenizer whose tokens do not spell text out.
    """
    decoders = list(_flat(spec.get('decoder')))
    kinds = {decoder['type'] for decoder in decoders}
    if 'ByteLevel' in kinds and kinds <= {'ByteLevel', 'Fuse'}:
        return _byte_level
    if spec['model'].get('byte_fallback') and 'ByteFallback' in kinds and kinds <= _PIECE_DECODERS:
        return functools.partial(_piece, [pair for decoder in decoders for pair in _replacement(decoder)])
    raise ConfigError(
        f'a {spec["model"].get("type")} tokenizer with the decoders {sorted(kinds)} loses text; '
        'byte-level BPE and models with byte fallback can be used'
    )


def _flat(decoder: Mapping[str, Any] | None) -> Iterable[Mapping[str, Any]]:
    if not decoder:
        return
    if decoder['type'] == 'Sequence':
        for part in decoder['decoders']:
            yield from _flat(part)
    else:
        yield decoder


def _replacement(decoder: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    if decoder['type'] == 'Metaspace':
        yield decoder['replacement'], ' '
    elif decoder['type'] == 'Replace':
        if 'String' not in decoder['pattern']:
            raise ConfigError(f'its decoder replaces {decoder["pattern"]}, so that tokens have no certain bytes')
        yield decoder['pattern']['String'], decoder['content']


def _piece(replacements: Sequence[tuple[str, str]], name: str, is_added: bool) -> bytes:
    if not is_added and len(name) == 6 and name.startswith('<0x') and name.endswith('>'):
        return bytes([int(name[3:5], 16)])
    for old, new in replacements:
        name = name.replace(old, new)
    return name.encode()


@functools.cache
def byte_alphabet() -> dict[str, int]:
    """Character -> byte: GPT-2 writes visible Latin-1 as itself, and the other bytes from U+0100 on."""
    visible = [*range(ord('!'), ord('~') + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in visible]
    return {chr(b): b for b in visible} | {chr(0x100 + n): b for n, b in enumerate(others)}


def _byte_level(name: str, is_added: bool) -> bytes:
    alphabet = byte_alphabet()
    if is_added or not all(c in alphabet for c in name):
        return name.encode()
    return bytes(alphabet[c] for c in name)
