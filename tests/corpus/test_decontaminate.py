"""Items of benchmarks in documents: copies and damaged copies are found, other text is not."""

import csv
import dataclasses
import gzip
import io
import json
import random
import tarfile

from awkward import AWKWARD
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from llm_jax.config.schema import ConfigError
from llm_jax.corpus.batch import through
from llm_jax.corpus.decontaminate import Decontaminate, benchmarks, common_words, find, index, make
from llm_jax.corpus.document import Document, Dropped

rng = random.Random(0)
VOCABULARY = [''.join(rng.choice('abcdefghijklmnoprstuvw') for _ in range(rng.randint(2, 9))) for _ in range(3000)]


def sentence(n: int, seed: int) -> str:
    draw = random.Random(seed)
    return ' '.join(draw.choices(VOCABULARY, k=n))


def document(text: str, number: int = 0) -> Document:
    return Document(id=f's/f#{number}', source='s', where='f', text=text, kind='text')


def write(path, items: list) -> str:
    path.write_text(''.join(json.dumps(item) + '\n' for item in items))
    return str(path)


@pytest.fixture
def options(tmp_path):
    items = [{'question': sentence(30, i), 'answer': sentence(20, 1000 + i)} for i in range(50)]
    items += [{'question': sentence(10, 2000 + i), 'answer': ''} for i in range(10)]
    write(tmp_path / 'quiz.jsonl', items)
    return Decontaminate({'quiz': str(tmp_path / 'quiz.jsonl')}, cache_dir=str(tmp_path / 'cache'), max_cut=0.0)


def around(text: str, seed: int = 5) -> str:
    return f'{sentence(60, 90_000 + seed)}.\n{text}\n{sentence(60, 91_000 + seed)}.'


# --- What is found ---------------------------------------------------------------------


def test_every_verbatim_copy_is_found(options):
    stage = make(options)
    for i, item in enumerate(benchmarks.read('quiz', options.benchmarks['quiz'])):
        for text in item.texts:
            if text:
                out = stage(document(around(text)))
                assert isinstance(out, Dropped)
                assert out.reason == 'decontaminate.quiz'
                assert out.detail.startswith(f'quiz.jsonl#{i}, ')
                assert text[:200] in out.detail


def test_case_punctuation_spaces_and_width_do_not_matter(options):
    item = next(benchmarks.read('quiz', options.benchmarks['quiz'])).texts[0]
    wide = ''.join(chr(ord(c) + 0xFEE0) if '!' <= c <= '~' else c for c in item)
    stage = make(options)
    for text in (item.upper(), item.replace(' ', ',\n'), item.replace(' ', ' -- '), wide, item.replace(' ', '\u00a0')):
        assert isinstance(stage(document(around(text))), Dropped), text


def test_a_run_of_ngram_words_is_enough_and_one_less_is_not(options):
    words = sentence(30, 3).split()
    stage = make(dataclasses.replace(options, min_share=0.0))
    assert isinstance(stage(document(around(' '.join(words[8:21])))), Dropped)
    assert isinstance(stage(document(around(' '.join(words[8:20])))), Document)


def test_share_of_a_long_item(tmp_path):
    file = write(tmp_path / 'long.jsonl', [{'text': sentence(200, 1)}])
    words = sentence(200, 1).split()
    options = Decontaminate({'long': file}, cache_dir=str(tmp_path), max_cut=0.0)
    # 200 words have 188 13-grams, and are compared in pieces of 40: of these, half each is no match.
    # 18 n-grams are less than a tenth, 19 are more.
    assert isinstance(make(options)(document(' '.join(words[25:55]))), Document)
    assert isinstance(make(options)(document(' '.join(words[25:56]))), Dropped)
    assert isinstance(make(dataclasses.replace(options, min_share=0.0))(document(' '.join(words[:13]))), Dropped)


def test_words_lost_or_changed(options):
    draw, found, total = random.Random(1), 0, 0
    stage = make(options)
    for item in list(benchmarks.read('quiz', options.benchmarks['quiz']))[:50]:
        for text in item.texts:
            for change in (lambda word: '', lambda word: draw.choice(VOCABULARY)):
                noisy = ' '.join(change(word) if draw.random() < 0.1 else word for word in text.split())
                found += isinstance(stage(document(around(noisy, draw.randrange(9999)))), Dropped)
                total += 1
    assert found / total >= 0.95


def test_short_items_only_as_a_whole(options):
    words = sentence(10, 2003).split()
    stage = make(options)
    assert isinstance(stage(document(around(' '.join(words)))), Dropped)
    assert isinstance(stage(document(around(' '.join(words[:-1])))), Document)
    assert isinstance(stage(document(around(' '.join([*words[:5], 'between', *words[5:]])))), Document)


def test_unrelated_documents_of_the_same_words(options):
    documents = [document(sentence(300, 10_000 + i), i) for i in range(300)]
    assert through(make(options), documents) == documents


def test_nothing_is_found_across_the_border_of_documents(options):
    words = sentence(30, 3).split()
    halves = [document(' '.join(words[:12]), 0), document(' '.join(words[12:24]), 1)]
    assert through(make(options), halves) == halves


def test_many_at_a_time_equal_one_by_one(options):
    texts = [around(sentence(30, i)) if i % 3 else sentence(40, 777 + i) for i in range(40)]
    documents = [document(text, i) for i, text in enumerate(['', *AWKWARD, *texts])]
    stage = make(options)
    assert through(stage, documents) == [stage(one) for one in documents]


def test_longest_match_is_named_and_others_counted(options):
    out = make(options)(document(f'{sentence(10, 2004)} . {sentence(30, 7)} . {sentence(30, 8)}'))
    assert out.detail.startswith('quiz.jsonl#7') and out.detail.endswith('; and 2 other items')


def test_matched_text_is_that_of_the_document(options):
    text = index.normalised('ﬁrst line …\n' + around(sentence(30, 4)))
    (match,) = find([text], index.load(options, options.cache_dir), options)[0]
    assert text[match.start : match.stop] == sentence(30, 4)
    assert (match.benchmark, match.item, match.share, match.words) == ('quiz', 'quiz.jsonl#4', 1.0, 30)


# --- What is not looked for ------------------------------------------------------------


def test_wording_of_a_task_does_not_count(tmp_path):
    task = sentence(16, 1)
    file = write(tmp_path / 'task.jsonl', [{'text': f'{task} {sentence(25, 10 + i)}'} for i in range(30)])
    options = Decontaminate({'task': file}, cache_dir=str(tmp_path), max_cut=0.0)
    stage = make(options)
    assert isinstance(stage(document(around(task))), Document)
    assert isinstance(stage(document(around(f'{task} {sentence(25, 12)}'))), Dropped)
    few = make(dataclasses.replace(options, common=30))
    assert isinstance(few(document(around(task))), Dropped)


@pytest.mark.parametrize(
    'text', ['1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16', 'ha ' * 30, 'x + 1 - 1 * x / x + 1 - 1 + x - x + 1 = 1 + x']
)
def test_numbers_and_choruses_tell_nothing(tmp_path, text):
    file = write(tmp_path / 'odd.jsonl', [{'text': text}])
    options = Decontaminate({'odd': file}, cache_dir=str(tmp_path), max_cut=0.0)
    assert index.load(options, options.cache_dir).skipped == {'odd': 1}
    assert isinstance(make(options)(document(around(text))), Document)


def test_items_that_are_too_short_are_counted(tmp_path):
    file = write(tmp_path / 'short.jsonl', [{'text': sentence(n, n)} for n in range(1, 12)])
    options = Decontaminate({'short': file}, cache_dir=str(tmp_path))
    assert index.load(options, options.cache_dir).skipped == {'short': 7}


def test_scripts_without_spaces(tmp_path):
    text = '人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心，并应以兄弟关系的精神相对待。'
    file = write(tmp_path / 'zh.jsonl', [{'text': text}])
    stage = make(Decontaminate({'zh': file}, cache_dir=str(tmp_path), max_cut=0.0))
    assert isinstance(stage(document('前言。' + text + '后记。')), Dropped)
    assert isinstance(stage(document('他们在一起，人人都有一本书。')), Document)


# --- Cutting ---------------------------------------------------------------------------


def test_a_long_document_loses_the_lines(options):
    stage = make(dataclasses.replace(options, max_cut=0.01))
    before, after = (sentence(4000, 50 + i).replace(' ', '\n', 100) for i in range(2))
    item = sentence(30, 9)
    out = stage(document(f'{before}\nA line: {item[:50]}\n{item[50:]} and so on.\n{after}'))
    assert out.text == f'{before}\n{after}'
    assert out.signals == {'decontaminate.quiz': 1}
    assert isinstance(stage(document(around(item))), Dropped)


# --- The index -------------------------------------------------------------------------


def test_index_is_kept_and_follows_its_files(options, tmp_path):
    first = index.load(options, options.cache_dir)
    (directory,) = (tmp_path / 'cache').iterdir()
    stamp = directory.stat().st_mtime_ns
    again = index.load(options, options.cache_dir)
    assert directory.stat().st_mtime_ns == stamp
    assert all(np.array_equal(getattr(first, name), getattr(again, name)) for name in index._ARRAYS)
    write(tmp_path / 'quiz.jsonl', [{'question': sentence(30, 1), 'answer': 'none'}])
    assert len(index.load(options, options.cache_dir).names) == 1
    assert len(list((tmp_path / 'cache').iterdir())) == 2


def test_lookup_against_brute_force():
    draw = np.random.default_rng(0)
    keys = np.sort(draw.integers(0, 2**64, 3000, np.uint64))
    keys[100:104] = keys[100]
    wanted = np.concatenate([draw.choice(keys, 200), draw.integers(0, 2**64, 500, np.uint64)])
    pairs = set(zip(*(a.tolist() for a in index.lookup(keys, index._bits(keys), wanted)), strict=True))
    assert pairs == {(i, j) for i, w in enumerate(wanted) for j in np.flatnonzero(keys == w).tolist()}


def test_common_words_against_the_textbook():
    draw = random.Random(2)
    for _ in range(200):
        a, b = ([draw.randrange(6) for _ in range(draw.randrange(40))] for _ in range(2))
        table = np.zeros((len(a) + 1, len(b) + 1), int)
        for i, x in enumerate(a):
            for j, y in enumerate(b):
                table[i + 1, j + 1] = table[i, j] + 1 if x == y else max(table[i, j + 1], table[i + 1, j])
        assert common_words(a, b) == table[-1, -1]


# --- Reading benchmarks ----------------------------------------------------------------


def texts_of(path, fields=()) -> list[tuple[str, ...]]:
    where = {'path': str(path), 'fields': fields} if fields else str(path)
    return [item.texts for item in benchmarks.read('b', where)]


def test_formats_say_the_same(tmp_path):
    rows = [{'question': f'what, "{i}"?', 'answer': f'ä{i}\nb'} for i in range(3)]
    lines = ''.join(json.dumps(row) + '\n' for row in rows)
    (tmp_path / 'a.jsonl').write_text(lines)
    (tmp_path / 'b.jsonl.gz').write_bytes(gzip.compress(lines.encode()))
    (tmp_path / 'c.json').write_text(json.dumps(rows))
    (tmp_path / 'd.json').write_text(json.dumps({'canary': 'x', 'examples': rows}))
    table = io.StringIO(newline='')
    writer = csv.DictWriter(table, ['question', 'answer'])
    writer.writeheader()
    writer.writerows(rows)
    (tmp_path / 'e.csv').write_bytes(b'\xef\xbb\xbf' + table.getvalue().encode())
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / 'f.parquet')
    with tarfile.open(tmp_path / 'g.tar.gz', 'w:gz') as archive:
        archive.add(tmp_path / 'a.jsonl', 'in/a.jsonl')
    expected = [(f'what, "{i}"?', f'ä{i}\nb') for i in range(3)]
    for file in sorted(tmp_path.iterdir()):
        assert texts_of(file) == expected, file


def test_texts_of_an_item(tmp_path):
    cases = [
        ({'query': 'q', 'choices': ['a', 'b'], 'gold': 1}, ('q', 'q a b')),
        ({'context_options': ['x', 'y'], 'continuation': 'z', 'gold': 0}, ('x z', 'y z')),
        ({'ctx': 'c', 'ctx_a': 'no', 'endings': ['1', '2']}, ('c', 'c 1', 'c 2')),
        ({'one': 'a', 'two': {'three': ['b', 4, 'c']}, 'five': None}, ('a b c',)),
    ]
    for i, (item, expected) in enumerate(cases):
        (tmp_path / f'{i}.jsonl').write_text(json.dumps(item))
        assert texts_of(tmp_path / f'{i}.jsonl') == [expected]
    assert texts_of(tmp_path / '2.jsonl', ['ctx_a', 'ctx']) == [('no c',)]
    assert texts_of(tmp_path / '2.jsonl', [['ctx_a'], ['endings*']]) == [('no', '1', '2')]


def test_columns_without_names(tmp_path):
    (tmp_path / 'm.csv').write_text('"Which, then?",a,b,c,d,B\nAnd this?,1,2,3,4,A\n')
    assert texts_of(tmp_path / 'm.csv') == [
        ('Which, then?', 'Which, then? a b c d'),
        ('And this?', 'And this? 1 2 3 4'),
    ]
    (tmp_path / 'm.tsv').write_text('ham\tSome "text\nspam\tOther\n')
    assert texts_of(tmp_path / 'm.tsv', ['1']) == [('Some "text',), ('Other',)]


@pytest.mark.parametrize(
    ('where', 'message'),
    [
        ('nowhere.jsonl', 'no file matches'),
        ({'fields': ['a']}, 'a table of'),
        ({'path': '{tmp}/ok.jsonl', 'fields': ['b']}, 'has no field b; it has text'),
        ('{tmp}/broken.jsonl', 'cannot be read as .jsonl'),
        ('{tmp}/odd.doc', 'has to be one of'),
    ],
)
def test_mistakes_in_benchmarks(tmp_path, where, message):
    (tmp_path / 'ok.jsonl').write_text('{"text": "a"}')
    (tmp_path / 'broken.jsonl').write_text('{"text": ')
    (tmp_path / 'odd.doc').write_text('x')
    fill = lambda text: text.replace('{tmp}', str(tmp_path))
    where = fill(where) if isinstance(where, str) else {k: fill(v) if k == 'path' else v for k, v in where.items()}
    with pytest.raises(ConfigError, match=message):
        make(Decontaminate({'b': where}, cache_dir=str(tmp_path)))


@pytest.mark.parametrize(
    'wrong',
    [{'benchmarks': {}}, {'ngram': 3}, {'min_words': 2}, {'min_words': 14}, {'similarity': 0.3}, {'common': 0},
     {'max_cut': 1.5}, {'min_share': -0.1}],
)  # fmt: skip
def test_mistakes_in_the_options(wrong):
    with pytest.raises(ConfigError, match=f'decontaminate.{next(iter(wrong))}'):
        make(dataclasses.replace(Decontaminate({'b': 'x'}), **wrong))


# --- Real benchmarks -------------------------------------------------------------------


@pytest.fixture(scope='module')
def real(shared_data, tmp_path_factory):
    names = ('gsm8k_test.jsonl.gz', 'HumanEval.jsonl.gz', 'jeopardy.jsonl.gz', 'arc_challenge_test.jsonl.gz')
    files = {name.split('.')[0]: str(shared_data / 'bench' / name) for name in names}
    return Decontaminate(files, cache_dir=str(tmp_path_factory.mktemp('index')), max_cut=0.0)


def test_real_items_verbatim_and_with_words_lost(real, shared_data):
    draw = random.Random(3)
    lines = gzip.decompress((shared_data / 'tinystories' / 'valid.jsonl.gz').read_bytes()).decode().splitlines()
    stories = [json.loads(line)['text'] for line in lines]
    built = index.load(real, real.cache_dir)
    has = {tuple(built.names[i]) for i in built.text_item}
    for lost, least in ((0.0, 1.0), (0.1, 0.95)):
        found = total = 0
        for name, where in real.benchmarks.items():
            items = [i for i in benchmarks.read(name, where) if (name, i.name) in has]
            for item in draw.sample(items, 100):
                text = ' '.join(dict.fromkeys(item.texts))
                kept = ' '.join(word for word in text.split() if draw.random() >= lost)
                if len(text.split()) >= 15:
                    page = index.normalised(f'{draw.choice(stories)}\n{kept}\n{draw.choice(stories)}')
                    found += any(m.item == item.name for m in find([page], built, real)[0])
                    total += 1
        assert found / total >= least, lost
    assert through(make(real), [document(text) for text in stories]) == [document(text) for text in stories]
