"""Constraints on a text, token by token: a JSON schema, a regular expression, a choice of texts, a grammar.

The parser of `llguidance` works on bytes: after each token it finds those that may come next, in one walk over
the trie of all tokens' bytes. Where only one text may follow, it takes the tokens that the tokenizer makes of it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import json
import re
from typing import Any

import llguidance
from llguidance import gbnf_to_lark
import numpy as np

from llm_jax.config.schema import ConfigError
from llm_jax.tokenizer import Tokenizer

# White space between the parts of a JSON value: bounded, since a model may repeat it for ever.
_JSON_SPACE = r'[ \t\r\n]{1,32}'
# Keywords whose values are schemas by name, and those whose values are data.
_SCHEMAS_BY_NAME = {'properties', 'patternProperties', '$defs', 'definitions', 'dependentSchemas'}
_DATA = {'const', 'enum', 'default', 'examples', 'required', 'x-guidance'}


class Grammars:
    """Compiles grammars over the tokens of one tokenizer.

    Building the trie of its tokens takes 4, 85 and 514 ms for 2,000, 32,000 and 128,000 tokens, so keep it as
    long as the tokenizer. Special tokens have no text, so that no grammar allows them.

    Attributes:
      tokenizer: the tokenizer.
      trie: of the bytes of its tokens.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.trie = llguidance.LLTokenizer(llguidance.TokenizerWrapper(_Spelling(tokenizer)))

    def json_schema(self, schema: Mapping[str, Any] | bool) -> 'Grammar':
        """Allows the JSON values that a schema describes; properties come in its order.

        Raises:
          ConfigError: not a JSON schema, one that no value satisfies, or one with a keyword that cannot be
            enforced token by token.
        """
        name = 'the JSON schema'
        rules = _json_rules(schema, name)
        grammar = Grammar(self, {'json_schema': rules}, name)
        _check_enforceable(rules, name)
        return grammar

    def json_between(
        self, schemas: Mapping[str, Mapping[str, Any]], before: str = '', after: str = '', separator: str = ''
    ) -> 'Grammar':
        """Allows a JSON value that one of several schemas describes, between two texts.

        Args:
          schemas: by the name that errors say, at least one.
          before: text before each value.
          after: text after each.
          separator: between several; '' allows a single one.

        Raises:
          ConfigError: as `json_schema`, naming the schema.
        """
        rules = {name: _json_rules(schema, name) for name, schema in schemas.items()}
        for name, one in rules.items():
            Grammar(self, {'json_schema': one}, name)
            _check_enforceable(one, name)
        texts = [json.dumps(text) if text else '' for text in (before, after, separator)]
        value = f'{texts[0]} value {texts[1]}'
        lark = [
            f'start: {value}' + (f' ({texts[2]} {value})*' if separator else ''),
            'value: ' + ' | '.join(f'value_{i}' for i in range(len(rules))),
            *(f'value_{i}: %json {json.dumps(one)}' for i, one in enumerate(rules.values())),
        ]
        return Grammar(self, {'lark_grammar': '\n'.join(lark)}, ' and '.join(rules))

    def json_object(self) -> 'Grammar':
        """Allows every JSON object."""
        return self.json_schema({'type': 'object'})

    def regex(self, pattern: str) -> 'Grammar':
        """Allows the texts that a regular expression matches from beginning to end.

        The syntax is that of Rust's regex, without look-around and word boundaries.

        Raises:
          ConfigError: not such an expression, or one that matches no text.
        """
        name = f'the regex {_shorten(pattern)}'
        _check_text(pattern, name)
        rules = json.loads(llguidance.LLMatcher.grammar_from_regex(pattern))['grammars'][0]
        return Grammar(self, {'lark_grammar': rules['lark_grammar']}, name)

    def choice(self, texts: Sequence[str]) -> 'Grammar':
        """Allows one of some texts.

        Raises:
          ConfigError: no text is given, or only the empty one.
        """
        name = f'the choice {_shorten(list(texts))}'
        if not texts:
            raise ConfigError(f'{name} needs at least one text')
        for text in texts:
            _check_text(text, name)
        return Grammar(self, {'lark_grammar': 'start: ' + ' | '.join(map(json.dumps, texts))}, name)

    def grammar(self, text: str) -> 'Grammar':
        """Allows what a context-free grammar derives: from `start` in Lark's syntax, from `root` in GBNF's.

        Raises:
          ConfigError: not such a grammar, or one that derives no text.
        """
        name = 'the grammar'
        _check_text(text, name)
        if re.search(r'^\s*[\w-]+\s*::=', text, re.MULTILINE):
            try:
                text = gbnf_to_lark.gbnf_to_lark(text)
            except Exception as error:  # the converter raises nothing more specific
                raise ConfigError(f'{name} cannot be used: {_clean(str(error))}') from error
        return Grammar(self, {'lark_grammar': text}, name)


class Grammar:
    """A set of texts; `start` makes the constraint that keeps a row within it."""

    def __init__(self, grammars: Grammars, rules: Mapping[str, Any], name: str) -> None:
        """Args:
          grammars: of the tokenizer.
          rules: of llguidance, as {'json_schema': ...} or {'lark_grammar': ...}.
          name: of the rules, for errors.

        Raises:
          ConfigError: rules with a mistake, or that allow no text or only the empty one.
        """
        self._grammars, self._rules, self._name = grammars, rules, name
        self.start()

    def start(self, continues: bool = True, stop_ids: Iterable[int] | None = None) -> 'GrammarConstraint':
        """Makes the constraint of one request.

        Args:
          continues: whether text comes before, as in `Tokenizer.decode`. If not, the space that some tokenizers
            put before a text comes first, which `decode` takes off.
          stop_ids: tokens that end the row, as in its request; None: the tokenizer's BOS and EOS.

        Raises:
          ConfigError: as the constructor; no text of the grammar can be written without a stop id.
        """
        tokenizer = self._grammars.tokenizer
        if stop_ids is None:
            stop_ids = (tokenizer.bos_id, *tokenizer.eos_ids)
        has_text_V = tokenizer.token_bytes > 0
        is_stop_V = np.isin(np.arange(len(has_text_V)), list(stop_ids))
        # Where one text alone may follow, its tokens may be stop ids, though it can be written with others.
        options = '%llguidance {"no_forcing": true}\n' if (is_stop_V & has_text_V).any() else ''
        prefix = b'' if continues else tokenizer.prefix
        grammars = [{'name': 'text', **self._rules}]
        if options or prefix:
            grammars.insert(0, {'lark_grammar': f'{options}start: {json.dumps(prefix.decode())} @text'})
        matcher = llguidance.LLMatcher(self._grammars.trie, json.dumps({'grammars': grammars}), log_level=0)
        return GrammarConstraint(matcher, has_text_V, is_stop_V, self._name)


class GrammarConstraint:
    """Tokens that may follow those so far; the `requests.Constraint` of one request.

    A stop id may come where the text is whole, and nowhere else.
    """

    def __init__(self, matcher: llguidance.LLMatcher, has_text_V: np.ndarray, is_stop_V: np.ndarray, name: str) -> None:
        """Args:
          matcher: parser before its first token.
          has_text_V: bool[V], True for tokens that have bytes.
          is_stop_V: bool[V], True for tokens that end the row.
          name: of the grammar, for errors.

        Raises:
          ConfigError: as `Grammar.start`.
        """
        self._matcher, self._name = matcher, name
        self._text_W, self._stop_W = _pack_bits(has_text_V & ~is_stop_V), _pack_bits(is_stop_V)
        self._find_next()
        if self._is_complete:
            raise ConfigError(f'{name} allows only the empty text, so there is nothing to draw')

    def allowed(self) -> np.ndarray:
        return self._allowed_W

    def advance(self, token: int) -> None:
        """Takes the next token.

        Raises:
          ConfigError: the parser gives up, as at too many states, or nothing can follow.
        """
        self._matcher.consume_token(token)
        self._find_next()

    def is_complete(self) -> bool:
        return self._is_complete

    def _find_next(self) -> None:
        allowed_W = np.zeros_like(self._text_W)
        self._matcher.unsafe_compute_mask_ptr(allowed_W.ctypes.data, allowed_W.nbytes)
        if self._matcher.is_error():
            raise ConfigError(f'{self._name} cannot be used: {_clean(self._matcher.get_error())}')
        allowed_W &= self._text_W
        is_whole, is_end = self._matcher.is_accepting(), not allowed_W.any()
        if is_end and not is_whole:
            raise ConfigError(
                f'{self._name} cannot be used: no token may come next; stop ids and special tokens do not'
            )
        self._allowed_W = allowed_W | self._stop_W if is_whole else allowed_W
        self._is_complete = is_whole and is_end


class _Spelling:
    """The tokens of a tokenizer as llguidance reads them."""

    # Is put before a text, so that the tokens after it are those of a text that continues.
    _MARK = '\x02'

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.bos_token_id = self.eos_token_id = tokenizer.bos_id
        self.tokens = [tokenizer.decode_token(i) for i in range(tokenizer.vocab_size)]
        self.special_token_ids = [i for i, spelled in enumerate(self.tokens) if not spelled]
        self._bytes = {spelled[0]: i for i, spelled in enumerate(self.tokens) if len(spelled) == 1}

    def __call__(self, text: str) -> list[int]:
        """Returns the tokens of a text; those of its bytes if the tokenizer would change it."""
        ids = self._tokenizer.encode(self._MARK + text)
        spelled = b''
        for n, token in enumerate(ids, 1):
            spelled += self.tokens[token]
            if spelled == self._tokenizer.prefix + self._MARK.encode():
                rest = ids[n:]
                if b''.join(self.tokens[i] for i in rest) == text.encode():
                    return rest
        return [self._bytes[byte] for byte in text.encode()]


def _json_rules(schema: Mapping[str, Any] | bool, name: str) -> dict[str, Any]:
    """Adds the options of llguidance to a JSON schema.

    Raises:
      ConfigError: no schema, or no JSON.
    """
    if not isinstance(schema, Mapping | bool):
        raise ConfigError(f'{name} is {_shorten(schema)}; it must be an object, such as {{"type": "object"}}')
    rules = {'allOf': [schema]} if isinstance(schema, bool) else dict(schema)
    options = rules.get('x-guidance', {})
    if not isinstance(options, Mapping):
        raise ConfigError(f"{name} has x-guidance = {_shorten(options)}; it must be an object of llguidance's options")
    rules['x-guidance'] = {'whitespace_pattern': _JSON_SPACE, **options, 'lenient': False, 'coerce_one_of': False}
    try:
        json.dumps(rules, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f'{name} is no JSON: {error}') from error
    return rules


def _check_enforceable(rules: Mapping[str, Any], name: str) -> None:
    """Raises: ConfigError: the schema has a keyword that llguidance takes without holding to it."""
    for problem in _unenforceable(rules):
        raise ConfigError(f'{name} cannot be enforced: {problem}')


def _unenforceable(schema: Any) -> Iterator[str]:
    """Finds keywords that llguidance takes without holding to them, in all schemas within a schema."""
    if isinstance(schema, list):
        for part in schema:
            yield from _unenforceable(part)
    if not isinstance(schema, Mapping):
        return
    least, required = schema.get('minProperties'), schema.get('required')
    count = len(set(map(str, required))) if isinstance(required, list) else 0
    # It counts properties without telling their names apart: one that is not required may come twice.
    if isinstance(least, int) and least > count + 1:
        yield f'minProperties = {least} with {count} required names, while one name may come twice; require more names'
    # It takes prefixItems with keywords of older drafts for a schema of those, which do not know prefixItems.
    if 'prefixItems' in schema and ('additionalItems' in schema or isinstance(schema.get('items'), list)):
        yield 'prefixItems with additionalItems or a list of items, which older drafts have; write items = {...}'
    for key, value in schema.items():
        if key in _SCHEMAS_BY_NAME and isinstance(value, Mapping):
            yield from _unenforceable(list(value.values()))
        elif key not in _DATA:
            yield from _unenforceable(value)


def _pack_bits(is_set_V: np.ndarray) -> np.ndarray:
    """Packs bool[V] as uint32[ceil(V / 32)], least significant bit first."""
    padded = np.zeros(-(-len(is_set_V) // 32) * 32, bool)
    padded[: len(is_set_V)] = is_set_V
    return np.packbits(padded, bitorder='little').view('<u4').astype(np.uint32)


def _check_text(text: str, name: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f'{name} is not UTF-8 text: {error}') from error


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f'{text[:57]}...'


def _clean(message: str) -> str:
    """Takes the state of the parser, and the place in rules made here, out of an error's message."""
    message = re.split(r'\n<|\n +1 \|', message)[0].removeprefix('at 1(8): ')
    return {'NoExtensionBias': 'no text satisfies it'}.get(message, ' '.join(message.split()))
