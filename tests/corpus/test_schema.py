"""The config of a corpus: sources become tables, mistakes become one line."""

import pathlib

import building
import pytest

from llm_jax import config as config_lib
from llm_jax.config.schema import ConfigError
from llm_jax.corpus import chain, schema
from llm_jax.corpus.dedup import EXCHANGES as DEDUP
from llm_jax.corpus.registry import EXCHANGES, STAGES

EXPERIMENTS = pathlib.Path(__file__).parents[2] / 'experiments'


def config(**fields):
    made = schema.default()
    made.name, made.sources = 'x', {'books': {'path': 'books/*.txt'}, 'code': 'stdlib'}
    for name, value in fields.items():
        section, _, field = name.partition('__')
        if field:
            made[section][field] = value
        else:
            made[name] = value
    return made


def test_places_and_sources():
    built = schema.validate(config())
    assert built.out == 'corpora/x' and built.work == 'corpora/x/work'
    assert built.sources['code'].path == 'stdlib' and built.sources['books'].path == 'books/*.txt'
    assert schema.validate(config(out='gs://b/c/')).work == 'gs://b/c/work'
    assert schema.validate(config(out='a', work='b')).work == 'b'


def test_stages_of_a_source():
    sources = {'books': {'path': 'x', 'stages': ('normalise',)}, 'code': 'stdlib'}
    built = schema.validate(config(sources=sources, stages=('gopher', 'scrub')))
    assert built.stages_of('books') == ('normalise',) and built.stages_of('code') == ('gopher', 'scrub')


@pytest.mark.parametrize('known', [STAGES, EXCHANGES], ids=['stages', 'exchanges'])
def test_every_known_part_can_be_made(known):
    built = schema.validate(config(decontaminate__benchmarks={}))
    for name, part in known.items():
        if part.section:
            assert hasattr(built, part.section), name
        assert callable(__import__(part.make.partition(':')[0], fromlist=['make']).make), name
    assert set(EXCHANGES) == set(DEDUP)


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'sources': {}}, r'sources = \{\}: name one'),
        ({'sources': {'a b': 'x'}}, r'sources\.a b.*use letters'),
        ({'sources': {'a': 7}}, r'sources\.a = 7 must be a table'),
        ({'sources': {'a': {'pth': 'x'}}}, r"sources\.a\.pth.*did you mean 'path'"),
        ({'sources': {'a': {'path': 7}}}, r'sources\.a\.path = 7 is int; it must be str'),
        ({'sources': {'a': {'path': 'x', 'stages': ('gophr',)}}}, r"sources\.a\.stages = 'gophr'.*'gopher'"),
        ({'stages': ('gophr',)}, r"stages = 'gophr'.*did you mean 'gopher'"),
        ({'stages': ('gopher', 7)}, r'stages = 7'),
        ({'stages': ('no.such:thing',)}, r"stages = 'no\.such:thing' cannot be imported"),
        ({'stages': ('gopher', 'gopher')}, r"stages = \['gopher'\].*take it once"),
        ({'finish': ('gopher',), 'stages': ('gopher',)}, 'take it once'),
        ({'dedup': ('nera',)}, r"dedup = 'nera'.*did you mean 'near'"),
        ({'dedup': ('gopher',)}, r"dedup = 'gopher' is not a known part"),
        ({'mixture': {'book': 1}}, r"mixture\.book.*did you mean 'books'"),
        ({'mixture': {'books': 1}}, r"mixture says nothing of \['code'\]"),
        ({'mixture': {'books': 1, 'code': '2 epochs'}}, 'either all values are weights'),
        ({'mixture': {'books': 'much', 'code': 1}}, r"mixture\.books = 'much': write a weight"),
        ({'mixture': {'books': -1, 'code': 1}}, r'mixture\.books = -1'),
        ({'mixture': {'books': 0, 'code': 0}}, 'at least one source'),
        ({'packing__method': 'bestfit'}, r"packing\.method = 'bestfit'.*did you mean 'best_fit'"),
        ({'packing__seq_len': 0}, r'packing\.seq_len = 0'),
        ({'tokenizer__algorithm': 'bep'}, r"tokenizer\.algorithm = 'bep'.*'bpe'"),
        ({'tokenizer__reserved': ('a b',)}, r"tokenizer\.reserved: 'a b'"),
        ({'splits__validation': 0.6, 'splits__test': 0.5}, 'leave nothing to train on'),
        ({'splits__test': 1.0}, r'splits\.test = 1\.0'),
        ({'shard_bytes': 0}, r'shard_bytes = 0'),
    ],
)
def test_mistakes(fields, message):
    with pytest.raises(ConfigError, match=message) as error:
        schema.validate(config(**fields))
    assert '\n' not in str(error.value)


def test_an_experiment_with_stages_of_its_own(tmp_path):
    file = tmp_path / 'mine.py'
    file.write_text(
        building.STAGES + '\nfrom llm_jax.corpus import schema\ndef get_config():\n    c = schema.default()\n'
        '    c.sources = {"a": "stdlib"}\n    c.stages = ("normalise", no_bananas, Shout)\n    return c\n'
    )
    loaded = config_lib.load_experiment(file, schema.Corpus)
    built = schema.validate(loaded)
    assert built.name == 'mine' and built.stages == ('normalise', f'{file}:no_bananas', f'{file}:Shout')
    assert [chain.label(part) for part in built.stages] == ['normalise', 'no_bananas', 'Shout']
    made = [chain.make('stages', part, STAGES, built) for part in built.stages]
    assert type(made[2]).__name__ == 'Shout' and made[1].__name__ == 'no_bananas'
    assert config_lib.to_dict(built)['stages'][1] == f'{file}:no_bananas'


def test_options_of_stages_of_ones_own(tmp_path):
    file = tmp_path / 'mine.py'
    file.write_text(
        'def longer(document, least=3):\n    return least\n'
        'class Shout:\n    def __init__(self, mark="!"):\n        self.mark = mark\n'
        'from llm_jax.corpus import schema\ndef get_config():\n    c = schema.default()\n'
        '    c.sources = {"a": "stdlib"}\n    c.stages = ("normalise", longer, Shout)\n    return c\n'
    )
    built = schema.load(file, {'options.longer.least': '7', 'options.Shout.mark': '?'})
    _, longer, shout = (chain.make('stages', part, STAGES, built) for part in built.stages)
    assert (longer(None), shout.mark) == (7, '?')
    plain = schema.load(file, {})
    assert chain.depends_on(built.stages[1], STAGES, built) != chain.depends_on(plain.stages[1], STAGES, plain)
    with pytest.raises(
        ConfigError, match=r"options\.longer\.last = 7: longer has no such option; did you mean 'least'"
    ):
        schema.load(file, {'options.longer.last': '7'})
    with pytest.raises(ConfigError, match=r"options\.longr.*did you mean 'longer'"):
        schema.load(file, {'options.longr.least': '7'})


def test_another_kind_of_experiment_is_told():
    with pytest.raises(ConfigError, match='kind that this tool needs'):
        config_lib.load_experiment(EXPERIMENTS / 'quickstart.py', schema.Corpus)


def test_an_unknown_field_of_an_experiment(tmp_path):
    file = tmp_path / 'mine.py'
    file.write_text(
        'from llm_jax.corpus import schema\ndef get_config():\n    c = schema.default()\n    c.stagse = ()\n'
    )
    with pytest.raises(ConfigError, match="no field 'stagse'.*Did you mean 'stages'"):
        config_lib.load_experiment(file, schema.Corpus)
