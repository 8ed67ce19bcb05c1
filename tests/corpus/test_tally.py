"""Tallies of shards add up to that of the corpus, whatever the shards are."""

import json
import random

from llm_jax.corpus.document import Broken, Document, Dropped
from llm_jax.corpus.tally import EXAMPLES, POINTS, Tally, total


def tally_of(documents, seed=0):
    tally = Tally(seed)
    for i, document in enumerate(documents):
        tally.arrived('read', len(document.text))
        if i % 3 == 0 and document.text[0] in 'abc':
            tally.drop('x', Dropped(document, f'x.{document.text[0]}', 'why'), len(document.text))
        else:
            tally.keep(document, len(document.text))
    return tally.to_json()


def documents(n):
    rng = random.Random(0)
    return [
        Document(f's/{i}', 's', f'/{i}', rng.choice('abcdef') * rng.randrange(1, 3000), 'text', signals={'v': 0.5 * i})
        for i in range(n)
    ]


def test_the_sum_does_not_depend_on_the_shards():
    some = documents(3000)
    whole = total([tally_of(some)])
    for sizes in ([3, 600, 2397], [1500, 1500]):
        parts, start = [], 0
        for size in sizes:
            # i % 3 has to be that of the whole.
            assert start % 3 == 0
            parts.append(json.loads(json.dumps(tally_of(some[start : start + size]))))
            start += size
        assert total(parts) == whole and total(parts[::-1]) == whole
    assert whole['passed']['read'][0] == 3000
    assert sum(n for n, _ in whole['dropped']['x'].values()) + sum(whole['lengths'].values()) == 3000
    assert all(len(items) == EXAMPLES for items in whole['examples'].values())
    assert len(whole['points']['kept']) == POINTS


def test_examples_are_a_fair_sample_and_change_with_the_seed():
    some = documents(3000)
    places = lambda seed: [int(item['id'][2:]) for _, item in tally_of(some, seed)['examples']['kept']]
    assert places(0) == places(0) != places(1)
    mean = sum(sum(places(seed)) / EXAMPLES for seed in range(20)) / 20
    assert 1300 < mean < 1700


def test_broken_and_skipped_and_long_texts():
    tally = Tally(0)
    tally.cannot_read(Broken('s', '/x', 'read.truncated', 'd' * 9999))
    tally.skip('skip.image')
    tally.keep(Document('s/1', 's', '/1', 'x' * 99_999, 'text', language='en', cluster='c'), 99_999)
    out = tally.to_json()
    assert out['broken'] == {'read.truncated': 1} and out['skipped'] == {'skip.image': 1} and out['clusters'] == 1
    assert len(json.dumps(out)) < 4000 and out['languages'] == {'en': [1, 99_999]} and out['lengths'] == {'16': 1}
