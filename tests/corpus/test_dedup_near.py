"""Near duplicates, against the Jaccard similarity of sets of tuples in plain Python."""

import collections
import dataclasses
import itertools
import json
import random
import re
import tarfile

import numpy as np
import pytest
import zstandard

from llm_jax.config.schema import ConfigError
from llm_jax.corpus.dedup import EXCHANGES, Near, sketch
from llm_jax.corpus.document import Document, Dropped
from llm_jax.corpus.exchange import run_in_memory

# Editions differ by whole prefaces, and story collections share some stories: many short bands find J = .14 for sure.
BOOKS = Near(bands=256, rows=2, threshold=0.7, cluster_threshold=0.1)
VOCABULARY = [f'word{i}' for i in range(20_000)]


def documents(texts, kind='text', prefix=''):
    return [Document(f'{prefix}{i}', 's', '', text, kind) for i, text in enumerate(texts)]


def run(corpus, shards=1, **options):
    size = max(1, -(-len(corpus) // shards))
    parts = [corpus[i : i + size] for i in range(0, len(corpus), size)]
    return [x for part in run_in_memory(EXCHANGES['near'](Near(**options)), parts) for x in part]


def prose(rng, count):
    return ' '.join(rng.choice(VOCABULARY) for _ in range(count))


def edited(rng, text, rate):
    """The text with a share of its words left out, changed or added."""
    out = []
    for word in text.split():
        how = rng.random() / rate
        out += [] if how < 1 / 3 else [rng.choice(VOCABULARY)] if how < 2 / 3 else [word]
        out += [rng.choice(VOCABULARY)] if 2 / 3 <= how < 1 else []
    return ' '.join(out)


def plain_shingles(text, ngram=5):
    tokens = re.findall(r'[^\W_]+', text.lower())
    return {tuple(tokens[i : i + ngram]) for i in range(max(1, len(tokens) - ngram + 1))}


def plain_jaccard(one, other):
    one, other = plain_shingles(one), plain_shingles(other)
    return len(one & other) / len(one | other)


def pairs_of(rng, originals):
    """Texts with an edited copy each, and their similarity."""
    rates = (0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.06)
    for text in originals:
        copy = edited(rng, text, rng.choice(rates))
        yield text, copy, plain_jaccard(text, copy)


def recall_and_precision(originals, seed):
    """(pairs found, pairs) by lower end of the similarity, and whether every verdict is right."""
    found, total, wrong = collections.Counter(), collections.Counter(), 0
    pairs = list(pairs_of(random.Random(seed), originals))
    flat = list(itertools.chain.from_iterable((a, b) for a, b, _ in pairs))
    out = run(documents(flat), shards=3)
    for (_, _, similarity), one, other in zip(pairs, out[::2], out[1::2], strict=True):
        dropped = [x for x in (one, other) if isinstance(x, Dropped)]
        for x in dropped:
            name, measured = re.fullmatch(r'of (\d+), Jaccard ([\d.]+)', x.detail).groups()
            exact = plain_jaccard(x.document.text, flat[int(name)])
            wrong += exact < 0.8
            assert abs(float(measured) - exact) < 1e-3
        edge = 0.9 if similarity >= 0.9 else 0.85 if similarity >= 0.85 else 0.8 if similarity >= 0.8 else 0
        total[edge] += 1
        found[edge] += bool(dropped)
    return {edge: (found[edge], total[edge]) for edge in total}, wrong


def test_recall_and_precision_on_synthetic_edits():
    rng = random.Random(0)
    bins, wrong = recall_and_precision([prose(rng, rng.randrange(30, 400)) for _ in range(1800)], seed=1)
    assert wrong == 0 and bins[0][0] == 0
    assert all(total > 150 for _, total in bins.values())
    # .92 and .99 are promised; .96 and .997 are expected.
    assert bins[0.8][0] >= 0.93 * bins[0.8][1]
    assert bins[0.85][0] >= 0.985 * bins[0.85][1]
    assert bins[0.9][0] == bins[0.9][1]


def test_recall_and_precision_on_edits_of_real_articles(shared_data):
    with zstandard.open(shared_data / 'wikipedia' / 'enwiki_2021_slice.jsonl.zst', 'rt', encoding='utf-8',
                        dctx=zstandard.ZstdDecompressor(max_window_size=2**31)) as lines:  # fmt: skip
        articles = [json.loads(line)['text'] for line in itertools.islice(lines, 1800)]
    # Of letters, digits and plain punctuation, which the words of the tests need not tell apart from operators.
    articles = [re.sub(r'[^a-zA-Z0-9\s.,;:!?()"\'-]', ' ', text) for text in articles]
    articles = [text for text in articles if 40 < len(text.split()) < 1500]
    bins, wrong = recall_and_precision(articles, seed=2)
    assert wrong == 0
    assert bins[0.8][0] >= 0.92 * bins[0.8][1] > 100
    assert bins[0.85][0] + bins[0.9][0] >= 0.99 * (bins[0.85][1] + bins[0.9][1])


def test_signatures_agree_as_often_as_sets_do():
    """Unbiased at all sizes, and no further from the truth than independent hashes would be."""
    rng = random.Random(0)
    for size in (1, 3, 20, 100, 1000):
        errors = []
        for _ in range(300):
            union = np.array([rng.getrandbits(64) for _ in range(size)], np.uint64)
            similarity = rng.randrange(size + 1) / size
            common = round(similarity * size)
            mine, theirs = np.split(union[common:], [rng.randrange(size - common + 1)])
            sets = [np.append(union[:common], mine), np.append(union[:common], theirs)]
            owners = np.repeat([0, 1], [len(s) for s in sets])
            minima = sketch.signatures(np.concatenate(sets), owners, 2, 112)
            if all(len(s) for s in sets):
                errors.append(np.mean(minima[0] == minima[1]) - similarity)
        assert abs(np.mean(errors)) < 0.01
        assert np.std(errors) < 1.15 * np.sqrt(1 / 6 / 112)  # J (1 - J) is 1/6 on average


def test_signature_does_not_depend_on_the_neighbours():
    rng = random.Random(0)
    texts = ['', 'a', 'a b', *(prose(rng, n) for n in (1, 4, 5, 6, 30, 3000)), '', '...']
    size = 24
    together = sketch.signatures(*sketch.shingles(texts, 5), len(texts), size)
    for text, row in zip(texts, together, strict=True):
        np.testing.assert_array_equal(sketch.signatures(*sketch.shingles([text], 5), 1, size)[0], row)
    assert (together[[0, -2, -1]] == 2**64 - 1).all() and (together[1:-2] < 2**63).all()


def test_the_longest_stays_or_the_first():
    rng = random.Random(0)
    text = prose(rng, 200)
    corpus = documents([text, text + ' more', text + ' and more', prose(rng, 200)])
    for shards in (1, 2, 4):
        assert [getattr(x, 'detail', '') for x in run(corpus, shards)] == [
            'of 2, Jaccard 0.990', 'of 2, Jaccard 0.985', '', '']  # fmt: skip
        assert [getattr(x, 'detail', '') for x in run(corpus, shards, prefer='first')] == [
            '', 'of 0, Jaccard 0.995', 'of 0, Jaccard 0.990', '']  # fmt: skip


def test_a_chain_loses_only_what_is_like_something_that_stays():
    """Each is like its neighbours (J = .85), not like those further away: every second one has to stay."""
    tokens = prose(random.Random(0), 700).split()
    corpus = documents([' '.join(tokens[20 * i : 20 * i + 250]) for i in range(12)])
    out = run(corpus, prefer='first')
    assert [isinstance(x, Dropped) for x in out] == [False, True] * 6
    kept = [x for x in out if isinstance(x, Document)]
    assert {x.cluster for x in kept} == {'0'}
    assert all(plain_jaccard(a.text, b.text) < 0.8 for a, b in itertools.combinations(kept, 2))


def test_shared_boilerplate_is_no_reason_to_go():
    rng = random.Random(0)
    notice = prose(rng, 300)
    corpus = documents([f'{prose(rng, 120)} {notice}' for _ in range(500)])  # J = .55
    assert [x.id for x in run(corpus, cluster_threshold=0.8)] == [d.id for d in corpus]


def test_true_pairs_are_found_among_documents_that_share_boilerplate():
    rng = random.Random(0)
    notice = prose(rng, 300)
    originals = [f'{prose(rng, 100)} {notice}' for _ in range(600)]  # J = .6: groups far above `group`
    copies = [edited(rng, text, 0.005) for text in originals[:100]]
    out = run(documents(originals + copies), shards=3)
    assert sum(isinstance(x, Dropped) for x in out) >= 99
    assert all(not isinstance(x, Dropped) for x in out[100:600])


def test_a_large_set_of_copies_leaves_about_what_comparing_all_would():
    rng = random.Random(0)
    text = prose(rng, 300)
    corpus = documents([edited(rng, text, 0.006) for _ in range(300)])
    kept = []
    for document in sorted(corpus, key=lambda d: -len(d.text)):
        if all(plain_jaccard(document.text, k.text) < 0.8 for k in kept):
            kept.append(document)
    assert len([x for x in run(corpus) if isinstance(x, Document)]) <= 1.5 * len(kept) + 2


def test_clusters():
    rng = random.Random(0)
    a, b, c = (prose(rng, 300) for _ in range(3))
    shorter = ' '.join(a.split()[:220])  # J = .73: both stay, of one cluster
    corpus = documents([shorter, b, a, b + ' x', c])
    out = run(corpus, bands=40, shards=2)
    assert [getattr(x, 'cluster', None) for x in out] == ['2', None, '2', '', '']
    # A cluster that documents came with holds them together, and what is like one of them joins.
    came = [dataclasses.replace(d, cluster='c') if d.id in '14' else d for d in corpus]
    assert [getattr(x, 'cluster', None) for x in run(came, bands=40, shards=2)] == ['2', None, '2', '3', '3']
    came[4] = dataclasses.replace(came[4], text=c + ' ' + prose(rng, 300))
    assert [getattr(x, 'cluster', None) for x in run(came, bands=40)] == ['2', None, '2', 'c', 'c']


def test_short_documents_are_only_like_their_equals():
    texts = ['one', 'one two', 'One, two!', 'one two three', 'one two three four', 'two three four five', '', '', '...']
    out = run(documents(texts), shards=2)
    assert [isinstance(x, Dropped) for x in out] == [False, True, False, *[False] * 6]


@pytest.mark.parametrize('kind', ['even', 'one shard', 'many'])
def test_shards_make_no_difference(kind):
    rng = random.Random(0)
    originals = [prose(rng, 150) for _ in range(60)]
    texts = [edited(rng, text, rate) for text in originals for rate in (1e-9, 0.01, 0.02, 0.03)]
    rng.shuffle(texts)
    corpus = documents(texts)
    assert run(corpus, {'even': 4, 'one shard': 1, 'many': 100}[kind]) == run(corpus, 7)


def test_a_sample_of_the_shingles_estimates_the_similarity():
    rng = random.Random(0)
    text = prose(rng, 20_000)
    copy = edited(rng, text, 0.02)
    true = plain_jaccard(text, copy)
    out = run(documents([text, copy]), sample=1000, bands=40)
    measured = float(next(x for x in out if isinstance(x, Dropped)).detail.rpartition(' ')[2])
    assert abs(measured - true) < 4 * np.sqrt(true * (1 - true) / 1000)


def test_unspaced_scripts():
    rng = random.Random(0)
    text = ''.join(chr(rng.randrange(0x4E00, 0x9FA5)) for _ in range(400))
    out = run(documents([text, text[:200] + '。' + text[201:], text[::-1]]))
    assert [isinstance(x, Dropped) for x in out].count(True) == 1 and isinstance(out[2], Document)


def test_editions_of_books(shared_data):
    index = [json.loads(line) for line in (shared_data / 'books' / 'books_index.jsonl').open()]
    bodies = {}
    with (
        zstandard.open(shared_data / 'books' / 'books.tar.zst', dctx=zstandard.ZstdDecompressor(max_window_size=2**31)
                       ) as stream,
        tarfile.open(fileobj=stream, mode='r|') as archive,
    ):  # fmt: skip
        for member in archive:
            if member.isfile():
                bodies[member.name.removeprefix('./')] = archive.extractfile(member).read()
    corpus = [Document(book['file'], 'books', '', body(book, bodies[book['file']]), 'gutenberg') for book in index]
    groups = {book['file']: book['edition_group'] for book in index}
    out = [x for part in run_in_memory(EXCHANGES['near'](BOOKS), [corpus[:60], corpus[60:]]) for x in part]
    dropped = {x.document.id: x.detail[3:].rpartition(', ')[0] for x in out if isinstance(x, Dropped)}
    assert all(groups[book] and groups[book] == groups[kept] for book, kept in dropped.items())
    kept = collections.defaultdict(list)
    for x in out:
        if isinstance(x, Document) and groups[x.id]:
            kept[groups[x.id]].append(x.cluster)
    assert len(kept) == 30
    # Of 29 works one edition stays; the 30th group is two collections that share stories (J = .14), of one cluster.
    assert sorted(len(clusters) for clusters in kept.values()) == [1] * 29 + [2]
    assert all(len(set(clusters)) == 1 for clusters in kept.values())


def body(book, content):
    """A book between the markers that the index gives."""
    encoding = 'cp1252' if 'latin' in book['encoding'] else book['encoding']
    lines = [line.strip() for line in content.decode(encoding, 'replace').splitlines()]
    first, last = 0, len(lines)
    if book['start_marker']:
        first = lines.index(book['start_marker'].strip()) + 1
    elif book['header_style'] == 'old_small_print':
        first = next(i for i, line in enumerate(lines) if line.startswith('*END')) + 1
    for marker in (book['end_of_line'], book['end_marker']):
        if marker and marker.strip() in lines[first:last]:
            last = first + lines[first:last].index(marker.strip())
    return '\n'.join(lines[first:last])


@pytest.mark.parametrize(
    'wrong',
    [{'bands': 0}, {'rows': 0}, {'threshold': 1.5}, {'cluster_threshold': 0.9}, {'prefer': 'newest'}, {'group': 1}],
)
def test_wrong_options(wrong):
    with pytest.raises(ConfigError, match=f'near.{next(iter(wrong))} = '):
        EXCHANGES['near'](Near(**wrong))
