"""The report of a corpus shows what the manifest says, whatever stands in the documents."""

import pathlib
import re

import building
import pytest

from llm_jax import config as config_lib
from llm_jax.corpus.build import build
from llm_jax.corpus.engines.local import Local
from llm_jax.corpus.schema import Corpus
from llm_jax.report import corpus as report

HOSTILE = '<script>alert(1)</script> </pre> & "quotes" \x1b[31m red \u202e {{ jinja }} | pipe `tick` ' + 'banana ' * 30


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    directory = tmp_path_factory.mktemp('report')
    texts = building.texts(120, 1)
    building.write(directory, {'a': [*texts, HOSTILE], 'b': [*building.texts(12, 2), HOSTILE.replace('banana', 'x')]})
    config = building.config(directory, compare_tokenizer='')
    return config, build(config, Local(1))


def test_html(made):
    config, manifest = made
    html = pathlib.Path(config.out, 'report.html').read_text()
    assert '<script' not in html and 'http://' not in html and 'https://' not in html and '\x1b' not in html
    assert '&lt;script&gt;' in html.lower()
    for source, counts in manifest['sources'].items():
        assert f'>{source}</h3>' in html
        for row in counts['stages']:
            assert re.search(rf'>{row["stage"]}</td><td[^>]*>{row["documents"]:,}</td>', html)
            for reason in row['dropped']:
                assert f'<span>{reason}</span>' in html
    assert 'shout.length' in html and html.count('<svg') >= 3
    bananas = next(part for part in html.split('<details class="entry">') if '<span>no_bananas.found' in part)
    stages = [counts['stages'][2] for counts in manifest['sources'].values()]
    dropped = sum(row['dropped']['no_bananas.found']['documents'] for row in stages)
    assert bananas.count('class="example"') == min(20, dropped)


def test_markdown(made):
    config, manifest = made
    text = pathlib.Path(config.out, 'report.md').read_text()
    tables = re.findall(r'(?:^\|.*\|\n)+', text, re.MULTILINE)
    assert len(tables) >= 6
    for table in tables:
        assert len({len(re.findall(r'(?<!\\)\|', line)) for line in table.splitlines()}) == 1, table
    assert '| no_bananas.found |' in text.replace('\\_', '_')


def test_reasons_are_summed_over_sources():
    stage = lambda n: {'stage': 's', 'documents': 5, 'bytes': 50, 'dropped': {'s.x': {'documents': n, 'bytes': 10 * n}}}
    read = {'stage': 'read', 'documents': 9, 'bytes': 99, 'dropped': {}}
    manifest = {'sources': {'a': {'stages': [read, stage(1)]}, 'b': {'stages': [read, stage(2)]}}}
    tallies = {name: {'examples': {'s.x': [[place, {'id': name}]]}} for place, name in enumerate('ba')}
    (reason,) = report.reasons_of(manifest, tallies)
    assert reason[:4] == ('s.x', 's', 3, 30) and reason.by_source == {'a': 1, 'b': 2}
    assert [example['id'] for example in reason.examples] == ['b', 'a']


def test_the_config_shows_what_was_changed(made):
    _, manifest = made
    changed = dict(report._changed(manifest, config_lib.to_dict(Corpus())))
    assert changed['packing.seq_len'] == '32' and changed['tokenizer.vocab_size'] == '320'
    assert changed['sources.a.path'].endswith('a*.jsonl')
    assert not any(name.startswith('gopher') for name in changed) and Corpus().packing.seq_len != 32
