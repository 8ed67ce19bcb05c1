"""Constraints: what they let through, what they refuse, and what they leave alone."""

import json
import random
import re

from awkward import sentencepiece_model
import jsonschema
import numpy as np
import pytest
from tiny import LLAMA, random_params, tiny_config

from llm_jax import tokenizer as tokenizer_lib
from llm_jax.config import schema as config_schema
from llm_jax.config.schema import ConfigError
from llm_jax.generate import engine, text
from llm_jax.generate.constrain import Grammars
from llm_jax.generate.requests import Finish, Request
from llm_jax.generate.settings import Sampler
from llm_jax.generate.speculate import Speculation
from llm_jax.nn.transformer import build
from tools import sample

CONTEXT = 256


@pytest.fixture(scope='module')
def tokenizer():
    words = ' '.join(f'{a}{b} "{b}{a}": [{{}}, true], null naïve\n' for a in 'abcdefgh' for b in 'klmnop')
    return tokenizer_lib.train(config_schema.Tokenizer(vocab_size=300), [words], seed=0)


@pytest.fixture(scope='module')
def grammars(tokenizer):
    return Grammars(tokenizer)


@pytest.fixture(scope='module')
def trained(tokenizer):
    # More rows than the tokenizer has tokens, in another number of words of 32 bits.
    config = tiny_config(**(LLAMA | {'vocab_size': 340}), data__seq_len=CONTEXT)
    model = build(config.model, vocab_size=tokenizer.vocab_size, seq_len=CONTEXT)
    return model, random_params(model)


@pytest.fixture(scope='module')
def resident(trained, tokenizer):
    return engine.Engine(*trained, n_slots=32, vocab_size=tokenizer.vocab_size)


def ids_of(bits):
    return set(np.flatnonzero(np.unpackbits(bits.view(np.uint8), bitorder='little')).tolist())


def next_texts(constraint, tokenizer):
    return {tokenizer.decode_token(i) for i in ids_of(constraint.allowed())}


def feed(constraint, tokenizer, data):
    """Gives a text, in the longest tokens that are allowed; True if all of it was."""
    rest = data.encode()
    while rest:
        fitting = [i for i in ids_of(constraint.allowed()) if (b := tokenizer.decode_token(i)) and rest.startswith(b)]
        if constraint.is_complete() or not fitting:
            return False
        token = max(fitting, key=lambda i: len(tokenizer.decode_token(i)))
        constraint.advance(token)
        rest = rest[len(tokenizer.decode_token(token)) :]
    return True


def random_value(rng, depth=1):
    scalars = [None, True, False, 0, -1, 2.5, 10**9, '', 'a', 'ö', 'x"y\\', '\n', '\U0001f642']
    kind = rng.random() if depth else 0
    if kind < 0.6:
        return rng.choice(scalars)
    if kind < 0.8:
        return [random_value(rng, depth - 1) for _ in range(rng.randrange(3))]
    return {name: random_value(rng, depth - 1) for name in rng.sample('abö', rng.randrange(3))}


def random_schema(rng, depth=2):
    """A JSON schema with keywords of its type, some of which nothing satisfies together."""
    often = lambda p: rng.random() < p
    inner = lambda: random_schema(rng, depth - 1)
    if often(0.05):
        return True
    if often(0.12):
        return {'enum': [random_value(rng) for _ in range(rng.randint(1, 3))]}
    if depth and often(0.12):
        return {rng.choice(['anyOf', 'allOf', 'oneOf', 'anyOf']): [inner() for _ in range(rng.randint(1, 2))]}
    if depth and often(0.05):
        return {'not': inner()}
    kinds = ['string', 'integer', 'number', 'boolean', 'null', *['object', 'array', 'object'][: 3 * depth]]
    kind = rng.choice(kinds)
    made = {'type': [kind, 'null'] if often(0.1) else kind}
    if kind == 'string':
        made |= {
            name: n for name, n in (('minLength', rng.randrange(3)), ('maxLength', rng.randrange(2, 9))) if often(0.4)
        }
        made |= {'pattern': rng.choice(['^a+$', '[0-9]{2}', '^[a-c]*$', '^x', 'y$', '^.{1,3}$'])} if often(0.2) else {}
        made |= {'format': rng.choice(['date', 'time', 'uuid', 'ipv4', 'email'])} if often(0.1) else {}
    if kind in ('integer', 'number'):
        bounds = {
            'minimum': [0, -3, 1.5],
            'maximum': [10, 3, 2.5],
            'exclusiveMaximum': [10, 5],
            'multipleOf': [2, 0.5, 7],
        }
        made |= {name: rng.choice(values) for name, values in bounds.items() if often(0.25)}
    if kind == 'array':
        made |= {'items': inner()} if often(0.8) else {}
        made |= {'prefixItems': [inner() for _ in range(rng.randint(1, 2))]} if often(0.2) else {}
        made |= {'minItems': rng.randrange(3)} if often(0.3) else {}
        made |= {'maxItems': rng.randrange(1, 4)} if often(0.7) else {}
        made |= {'uniqueItems': True} if often(0.05) else {}
    if kind == 'object':
        names = rng.sample(['a', 'b', 'ö', 'x y', 'q"'], rng.randrange(1, 4))
        made['properties'] = {name: inner() for name in names}
        made |= {'required': rng.sample(names, rng.randrange(len(names) + 1))} if often(0.6) else {}
        made |= {'additionalProperties': rng.choice([False, False, inner()])} if often(0.8) else {}
        made |= {'patternProperties': {'^p': inner()}} if often(0.1) else {}
        made |= {'minProperties': rng.randrange(3)} if often(0.1) else {}
    return made


def test_random_schemas_and_weights_give_json_that_validates(grammars, tokenizer, resident):
    rng, requests, schemas, refused = random.Random(0), [], [], 0
    while len(schemas) < 200:
        schema = random_schema(rng)
        try:
            constraint = grammars.json_schema(schema).start()
        except ConfigError as error:
            assert str(error).startswith('the JSON schema cannot be'), error
            refused += 1
            continue
        schemas.append(schema)
        stops = (tokenizer.bos_id, *tokenizer.eos_ids)
        sampler = Sampler(rng.choice([0.0, 1.0, 3.0]))
        requests.append(
            Request(
                [tokenizer.bos_id, rng.randrange(300)],
                120,
                sampler,
                len(requests),
                stop_ids=stops,
                constraint=constraint,
            )
        )
    assert refused < 60
    ends = {}
    for row, schema in zip(resident.run(requests), schemas, strict=True):
        ends.setdefault(row.finish, []).append(row)
        if row.finish is not Finish.LENGTH:
            value = json.loads(tokenizer.decode(row.tokens, continues=True))
            jsonschema.Draft202012Validator(schema if isinstance(schema, dict) else {}).validate(value)
    assert set(ends) == {Finish.STOP, Finish.STOP_ID, Finish.LENGTH}
    assert len(ends[Finish.LENGTH]) < 60 and all(len(row.tokens) == 120 for row in ends[Finish.LENGTH])
    assert len(ends[Finish.STOP]) > 20 < len(ends[Finish.STOP_ID])


ACCEPTED = [  # method, rules, texts that are allowed, and others
    ('regex', r'-?[0-9]{1,3}(\.[0-9]+)?', ['0', '-12', '3.14'], ['', '1234', 'a', '1.', ' 1']),
    ('regex', 'naïve/"\\\\(\U0001f642|\n)', ['naïve/"\\\U0001f642', 'naïve/"\\\n'], ['naive/', 'naïve/\\']),
    ('choice', ['a', 'ab', 'ö "x"\\n\n', '^'], ['a', 'ab', 'ö "x"\\n\n', '^'], ['', 'b', 'abc', 'ö "x"\n']),
    ('grammar', 'start: "<" start ">" | /[0-9]+/', ['1', '<<42>>'], ['<1', '<>', '1>', '']),
    ('grammar', 'root ::= item ("," item)*\nitem ::= [a-c]+ | "\\"q\\""', ['a', 'ab,"q",c'], ['', 'a,', 'd']),
    ('json_schema', {'const': 'ö'}, ['"ö"'], ['"\\u00f6"', '"o"']),
    ('json_schema', {'type': 'object'}, ['{}', '{"a": [1, {"b": null}]}', '{\n  "ö": ""\n}'], ['[]', '{"a"}', '']),
    ('json_schema', True, ['1', '[]', 'null', '"a b"'], ['', 'nul', "'a'"]),
]  # fmt: skip


def accepts(constraint, tokenizer, data):
    """True if a text may come, and a stop id after it."""
    return feed(constraint, tokenizer, data) and tokenizer.bos_id in ids_of(constraint.allowed())


@pytest.mark.parametrize('kind, rules, texts, others', ACCEPTED, ids=lambda value: str(value)[:20])
def test_what_is_whole_may_end_and_nothing_else(grammars, tokenizer, kind, rules, texts, others):
    make = getattr(grammars, kind)(rules).start
    assert [data for data in texts if not accepts(make(), tokenizer, data)] == []
    assert [data for data in others if accepts(make(), tokenizer, data)] == []


def test_random_walks_stay_within_a_regex_and_a_choice(grammars, tokenizer):
    rng = random.Random(0)
    texts = ['', *(''.join(rng.choices('ab.[\\"/ ö|', k=rng.randrange(1, 9))) for _ in range(60))]
    pattern = r'([a-zö]{1,3}: [0-9]{2}[;/] ?){1,3}end'
    for make, holds in (
        (grammars.choice(texts).start, lambda text: text in texts),
        (grammars.regex(pattern).start, lambda text: re.fullmatch(pattern, text)),
    ):
        whole = set()
        for _ in range(60):
            constraint, tokens = make(), []
            while not constraint.is_complete() and len(tokens) < 50:
                token = rng.choice(sorted(ids_of(constraint.allowed())))
                if token in (tokenizer.bos_id, *tokenizer.eos_ids):
                    break
                tokens.append(token)
                constraint.advance(token)
            if len(tokens) < 50:
                whole.add(tokenizer.decode(tokens, continues=True))
        assert len(whole) > 10 and all(map(holds, whole))


def test_special_tokens_are_no_text(tokenizer, grammars):
    """'<|bos|>' may be written in characters, but BOS, EOS, padding and <unk> come nowhere within a text."""
    special = {i for i in range(tokenizer.vocab_size) if not tokenizer.decode_token(i)}
    assert special == {0, 1, 2, 3}
    start = grammars.json_object().start()
    assert not ids_of(start.allowed()) & special
    assert feed(start, tokenizer, '{"<|bos|>": "<|eos|> ')
    inside = start
    assert len(ids_of(inside.allowed())) > 100 and not ids_of(inside.allowed()) & special
    whole = grammars.regex('<.*').start()
    assert feed(whole, tokenizer, '<|pad|>')
    assert ids_of(whole.allowed()) & special == {tokenizer.bos_id, *tokenizer.eos_ids} == {1, 2}


def test_a_stop_id_that_is_text_comes_at_the_end_alone(tokenizer, grammars):
    quotes = [i for i in range(300) if b'"' in tokenizer.decode_token(i)]
    start = lambda pattern: grammars.regex(pattern).start(stop_ids=quotes)
    assert not ids_of(start('"?x').allowed()) & set(quotes)
    whole = start('x[a-z"]*')
    assert feed(whole, tokenizer, 'x')
    assert ids_of(whole.allowed()) > set(quotes) and tokenizer.bos_id not in ids_of(whole.allowed())
    with pytest.raises(ConfigError, match='the regex .* cannot be used: no token may come next'):
        feed(start('x"y'), tokenizer, 'x')


@pytest.mark.parametrize(
    'kind, rules, message',
    [
        ('json_schema', [], r"the JSON schema is \[\]; it must be an object"),
        ('json_schema', '{"type": "object"}', 'it must be an object'),
        ('json_schema', {'type': 'strnig'}, 'the JSON schema cannot be used: Invalid type: strnig'),
        ('json_schema', {'properties': {'a': {'pattern': '('}}}, 'unclosed group'),
        ('json_schema', {'const': float('nan')}, 'the JSON schema is no JSON: Out of range float'),
        ('json_schema', {'const': {1, 2}}, 'the JSON schema is no JSON: .*set'),
        ('json_schema', {'not': {'type': 'null'}}, r'Unimplemented keys: \["not"\]'),
        ('json_schema', {'x-guidance': {'lenient': True}, 'not': {}}, r'Unimplemented keys: \["not"\]'),
        ('json_schema', {'x-guidance': 3}, 'x-guidance = 3; it must be an object'),
        ('json_schema', False, 'the JSON schema cannot be used: Unsatisfiable schema'),
        ('json_schema', {'type': 'integer', 'minimum': 5, 'maximum': 1}, r'\(5\) is greater than maximum \(1\)'),
        ('json_schema', {'$ref': '#'}, 'the JSON schema cannot be used: no text satisfies it'),
        (
            'json_schema',
            {'properties': {'a': {'patternProperties': {'^a$': True}, 'minProperties': 2}}},
            'cannot be enforced: minProperties = 2 with 0 required names',
        ),
        (
            'json_schema',
            {'items': {'prefixItems': [{'type': 'null'}], 'additionalItems': {'type': 'string'}}},
            'cannot be enforced: prefixItems with additionalItems',
        ),
        ('regex', '(', r"^the regex '\(' cannot be used: invalid regex .* unclosed group$"),
        ('regex', 'a(?=b)', 'look-around, including look-ahead and look-behind, is not supported'),
        ('regex', '', 'allows only the empty text'),
        ('regex', '[^\\x00-\\U0010FFFF]', 'cannot be used: no text satisfies it'),
        ('regex', '\ud800', 'is not UTF-8 text: .*surrogates not allowed'),
        ('choice', [], r'the choice \[\] needs at least one text'),
        ('choice', [''], 'allows only the empty text'),
        ('choice', ['a', '\udc80'], 'is not UTF-8 text'),
        ('grammar', 'start: item', 'the grammar cannot be used: .*unknown name: "item"'),
        ('grammar', 'start: start "a"', 'the grammar cannot be used: no text satisfies it'),
        ('grammar', 'start: "a', 'the grammar cannot be used: .*lexer error'),
        ('grammar', 'start: <[1]>', 'no token may come next; stop ids and special tokens do not'),
        ('grammar', 'root ::= "a', 'the grammar cannot be used: Unexpected end of input at line 1'),
    ],
)  # fmt: skip
def test_rules_that_are_none_are_one_error_before_anything_runs(grammars, kind, rules, message):
    with pytest.raises(ConfigError, match=message) as error:
        getattr(grammars, kind)(rules)
    assert '\n' not in str(error.value) and len(str(error.value)) < 300


def test_keywords_of_schemas_are_properties_too(grammars, tokenizer):
    """Names of properties that look like keywords, and data that looks like a schema, are not judged."""
    odd = {'prefixItems': [], 'additionalItems': True, 'minProperties': 5}
    schema = {
        'properties': {'minProperties': {'const': odd}, 'additionalItems': {}, 'prefixItems': {'default': odd}},
        'additionalProperties': False,
    } | {'type': 'object', '$defs': {'unused': {'required': True, 'minProperties': '3'}}}
    assert accepts(grammars.json_schema(schema).start(), tokenizer, '{"additionalItems": 3}')
    counted = {'type': 'object', 'required': ['a'], 'minProperties': 2}
    assert accepts(grammars.json_schema(counted).start(), tokenizer, '{"a": 1, "b": 2}')
    assert not accepts(grammars.json_schema(counted).start(), tokenizer, '{"a": 1}')


def test_other_rows_draw_what_they_draw_alone(grammars, tokenizer, resident):
    stops = (tokenizer.bos_id, *tokenizer.eos_ids)
    free = lambda i: Request([1, 30 + i, 40], 40, Sampler(2.0), i)
    held = lambda pattern: Request(
        [1, 9], 40, Sampler(1.0), 3, stop_ids=stops, constraint=grammars.regex(pattern).start(stop_ids=stops)
    )
    alone = [resident.run([free(i)])[0].tokens for i in range(3)]
    once = resident.run([held('[a-h]{20}')])[0]
    first, *rows = [resident.submit(one) for one in (free(0), held('[a-h]{20}'), free(1), held('"[^"]*'), free(2))]
    while not resident.is_idle:
        resident.step()
    assert [first.tokens, rows[1].tokens, rows[3].tokens] == alone
    assert rows[0].tokens == once.tokens and rows[0].finish is Finish.STOP
    assert re.fullmatch('[a-h]{20}', tokenizer.decode(rows[0].tokens, continues=True))
    assert rows[2].finish in (Finish.STOP_ID, Finish.LENGTH)


def test_guesses_change_no_token_of_a_constraint(grammars, tokenizer, trained):
    """A text that repeats itself is guessed ahead, but each token waits for the constraint."""
    options = {'max_new_tokens': 60, 'sampler': Sampler(1.0), 'seed': 4}
    start = grammars.regex('(ab ){9}[a-d]{9}').start
    plain, guessed = (
        text.complete(*trained, tokenizer, ['def ', '', 'a'], constraint=start, speculation=speculation, **options)
        for speculation in (None, Speculation())
    )
    assert plain == guessed and all(re.fullmatch('(ab ){9}[a-d]{9}', row) for row in plain)


class GivesUp:
    """Allows one id until it has been told a few."""

    def __init__(self, n):
        self.left = n

    def allowed(self):
        return np.array([0, 1 << 3], np.uint32)  # id 35

    def advance(self, token):
        assert token == 35
        self.left -= 1
        if self.left == 0:
            raise ConfigError('the parser has too many states')

    def is_complete(self):
        return False


def test_a_constraint_that_gives_up_ends_its_row_alone(resident):
    fails, free, after = resident.run(
        [Request([1], 30, constraint=GivesUp(3)), Request([1, 2], 30, Sampler(2.0)), Request([1, 2], 30, Sampler(2.0))]
    )
    assert (fails.finish, fails.error, fails.tokens) == (Finish.ERROR, 'the parser has too many states', [35] * 3)
    assert free.finish is Finish.LENGTH and free.tokens == after.tokens and len(free.tokens) == 30
    many = GivesUp(3)
    many.allowed = lambda: np.zeros(12, np.uint32)
    with pytest.raises(ConfigError, match='the constraint allows ids up to 383, but the model knows 0 to 339'):
        resident.submit(Request([1], 30, constraint=many))


def test_text_of_a_constraint(tokenizer, grammars, trained):
    """Also past the context, where the window slides."""
    options = {'max_new_tokens': 60, 'sampler': Sampler(1.0), 'seed': 4}
    schema = {
        'type': 'object',
        'properties': {'a': {'enum': ['x', 'y']}},
        'required': ['a'],
        'additionalProperties': False,
    }
    rows = text.complete(
        *trained, tokenizer, ['def ', '', 'a'], constraint=grammars.json_schema(schema).start, **options
    )
    assert all(json.loads(row)['a'] in ('x', 'y') for row in rows)
    with pytest.raises(ConfigError, match='prompt 0: the parser has too many states'):
        text.complete(*trained, tokenizer, ['def ', '', 'a'], constraint=lambda continues: GivesUp(2), **options)
    long = 'abc ' * 200
    room = CONTEXT - 1 - len(tokenizer.encode(long))
    assert room < 0
    digits = grammars.regex('[0-9]{12}').start
    (row,) = text.complete(*trained, tokenizer, [long], constraint=digits, slide=True, **options)
    assert re.fullmatch('[0-9]{12}', row)


def test_the_space_before_a_text_is_no_part_of_it():
    """Of tokenizers that put one there, which decoding takes off: a document that begins has it, a continuation not."""
    keeps = {'normalization_rule_name': 'identity', 'remove_extra_whitespaces': False}
    tok = tokenizer_lib.SentencePieceTokenizer(sentencepiece_model(**keeps))
    assert tok.prefix == b' '
    for grammar in (
        Grammars(tok).choice(['the', ' the']),
        Grammars(tok).regex(' ?the'),
        Grammars(tok).grammar('root ::= " "? "the"'),
    ):
        begins, continues = grammar.start(False), grammar.start(True)
        assert {data[:1] for data in next_texts(begins, tok)} == {b' '}
        assert {data[:1] for data in next_texts(continues, tok)} == {b' ', b't'}
        ids = tok.encode(' the')
        assert tok.decode(ids) == ' the'
        for token in ids:
            assert token in ids_of(begins.allowed())
            begins.advance(token)
        assert begins.is_complete()


def test_flags_of_sample(tmp_path):
    (tmp_path / 'schema.json').write_text('{"type": "object"')
    (tmp_path / 'latin.txt').write_bytes(b'start: "\xe9"')
    for flags, message in (
        (['--regex', 'a', '--choice', 'b'], '--regex and --choice exclude each other'),
        (['--json_schema', f'{tmp_path}/schema.json'], 'schema.json is not JSON: Expecting'),
        (['--grammar', f'{tmp_path}/latin.txt'], '--grammar .*latin.txt is not UTF-8 text'),
        (['--beams', '4', '--regex', 'a'], '--regex does not go with --beams'),
        (['--beams', '4', '--temperature', '1'], '--temperature does not go with --beams'),
        (['--beams', '4', '--num_samples', '5'], '--num_samples = 5 exceeds --beams = 4'),
        (['--length_penalty', '2'], '--length_penalty = 2.0 needs --beams'),
    ):
        with pytest.raises(ConfigError, match=message):
            sample.main(['no_such_run', *flags])
    (tmp_path / 'schema.json').write_text('[' * 100_000)
    with pytest.raises(ConfigError, match='schema.json is not JSON'):
        sample.main(['no_such_run', '--json_schema', f'{tmp_path}/schema.json'])
