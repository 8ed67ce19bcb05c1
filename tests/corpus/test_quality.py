"""The quality classifier: against the formulas it stands for, and on human judgements."""

import dataclasses
import gzip
import hashlib
import json
import math
import random
import subprocess
import sys

from awkward import AWKWARD
import building
import numpy as np
import pytest

from llm_jax.config.schema import ConfigError
from llm_jax.corpus import build as build_lib
from llm_jax.corpus import chain, quality
from llm_jax.corpus.batch import through
from llm_jax.corpus.document import Document, Dropped
from llm_jax.corpus.engines.local import Local
from llm_jax.corpus.quality import Quality, Training, auc, features, load, make, train
from llm_jax.corpus.registry import STAGES

SMALL = Training(bits=12, folds=4)
# fmt: off
GOOD = ['the', 'study', 'light', 'and', 'its', 'measurement', 'in', 'careful', 'experiments', 'shows', 'how', 'waves']
BAD = ['click', 'here', 'buy', 'cheap', 'now', 'free', 'offer', 'best', 'price', 'subscribe', 'login', 'cookies']
# fmt: on


def text(seed: int, good: bool) -> str:
    draw = random.Random(seed)
    return ' '.join(draw.choices((GOOD if good else BAD) + ['a', 'of', 'to', 'it', 'page'], k=draw.randint(5, 60)))


TEXTS = [text(i, i % 2 == 0) for i in range(120)]
LABELS = [int(i % 2 == 0) for i in range(120)]


@pytest.fixture(scope='module')
def trained():
    return train(TEXTS, LABELS, SMALL)


def document(text: str) -> Document:
    return Document(id='s/f#0', source='s', where='f', text=text, kind='text')


def test_features_are_logs_of_counts_at_unit_length():
    got = features(['one two one', '', 'one'], Training(bits=20, ngram=2))
    assert got.starts.tolist() == [0, 4, 4, 5]  # one, two, 'one two', 'two one'
    twice = (1 + math.log(2)) / math.sqrt((1 + math.log(2)) ** 2 + 3)
    assert sorted(got.values[:4]) == pytest.approx([twice / (1 + math.log(2))] * 3 + [twice])
    assert got.values[4] == 1
    assert got.columns[4] in got.columns[:4]


def test_features_of_many_equal_those_of_each():
    texts = [*AWKWARD, *TEXTS[:20]] * 5
    together = features(texts, SMALL)
    for i, one in enumerate(texts):
        alone = features([one], SMALL)
        mine = slice(together.starts[i], together.starts[i + 1])
        assert np.array_equal(together.columns[mine], alone.columns)
        assert np.array_equal(together.values[mine], alone.values)


def test_only_the_first_words_count():
    cut = dataclasses.replace(SMALL, max_words=3)
    assert np.array_equal(features(['a b c d e'], cut).columns, features(['a b c'], cut).columns)


def test_sparse_products_against_dense_ones():
    matrix = features(TEXTS[:7] + [''], SMALL)
    dense = np.zeros((8, 1 << SMALL.bits))
    for i in range(8):
        mine = slice(matrix.starts[i], matrix.starts[i + 1])
        dense[i, matrix.columns[mine]] = matrix.values[mine]
    weights, by_row = np.random.default_rng(0).normal(size=1 << SMALL.bits), np.random.default_rng(1).normal(size=8)
    assert matrix.times(weights) == pytest.approx(dense @ weights)
    assert matrix.transposed_times(by_row, 1 << SMALL.bits) == pytest.approx(by_row @ dense)
    assert matrix.rows(np.array([5, 7, 0])).times(weights) == pytest.approx((dense @ weights)[[5, 7, 0]])


def test_weights_are_where_the_loss_is_least():
    matrix, y = features(TEXTS, SMALL), np.array(LABELS, float)
    weights, bias = quality._fit(matrix, y, 1e-3, 1 << SMALL.bits)

    def loss(weights: np.ndarray, bias: float) -> float:
        logits = matrix.times(weights) + bias
        return np.mean(np.logaddexp(0, logits) - y * logits) + 5e-4 * weights @ weights

    least, draw = loss(weights, bias), np.random.default_rng(2)
    for _ in range(20):
        step = draw.normal(size=len(weights)) * 0.01
        assert loss(weights + step, bias) > least
        assert loss(weights, bias + draw.normal() * 0.05) > least


def test_auc_against_counting_pairs():
    draw = np.random.default_rng(3)
    for _ in range(20):
        scores, labels = draw.integers(0, 6, 40), draw.integers(0, 2, 40)
        pairs = [(a > b) + 0.5 * (a == b) for a in scores[labels == 1] for b in scores[labels == 0]]
        assert auc(scores, labels) == pytest.approx(np.mean(pairs))


def test_two_kinds_are_told_apart(trained):
    model, estimates = trained
    assert estimates['auc'].mean > 0.98
    assert estimates['majority'].mean == 0.5
    unseen = [text(1000 + i, i % 2 == 0) for i in range(100)]
    assert auc(model.scores(unseen), np.arange(100) % 2 == 0) > 0.98


def test_labels_without_meaning_give_chance_and_no_confidence():
    draw = random.Random(0)
    model, estimates = train(TEXTS, [draw.randint(0, 1) for _ in TEXTS], SMALL)
    assert abs(estimates['auc'].mean - 0.5) < 0.2
    assert np.abs(model.scores([text(1000 + i, True) for i in range(20)]) - 0.5).max() < 0.3


def test_same_texts_same_file(trained, tmp_path):
    for name in ('a', 'b'):
        train(TEXTS, LABELS, SMALL)[0].save(tmp_path / name)
    assert (tmp_path / 'a').read_bytes() == (tmp_path / 'b').read_bytes()
    again = load(tmp_path / 'a')
    assert again.training == SMALL
    assert np.array_equal(again.scores(TEXTS), trained[0].scores(TEXTS))


def test_stage(trained, tmp_path):
    trained[0].save(tmp_path / 'm')
    stage = make(Quality(model=str(tmp_path / 'm')))
    good, bad = stage(document(text(7000, True))), stage(document(text(7001, False)))
    assert good.signals['quality.score'] > 0.5
    assert isinstance(bad, Dropped)
    assert bad.reason == 'quality.score' and bad.document.signals['quality.score'] < 0.5
    documents = [document(one) for one in [*AWKWARD, *TEXTS]]
    assert through(stage, documents) == [stage(one) for one in documents]


def test_only_prose_is_judged(trained, tmp_path):
    trained[0].save(tmp_path / 'm')
    stage = make(Quality(model=str(tmp_path / 'm'), threshold=1.0))
    texts = [dataclasses.replace(document(text(i, True)), kind=kind) for i, kind in enumerate(('html', 'code', 'text'))]
    assert [isinstance(out, Dropped) for out in through(stage, texts)] == [True, False, True]
    assert through(stage, texts)[1] is texts[1]
    assert isinstance(make(Quality(model=str(tmp_path / 'm'), threshold=1.0, kinds=('code',)))(texts[1]), Dropped)


def test_a_stage_of_a_corpus(trained, tmp_path):
    trained[0].save(tmp_path / 'm')
    texts = [text(5000 + i, i % 2 == 0) for i in range(100)]
    building.write(tmp_path, {'a1': texts[:50], 'b': texts[50:]})
    config = building.config(tmp_path, stages=('quality',), dedup=(), quality__model=str(tmp_path / 'm'))
    manifest = build_lib.build(config, Local(1))
    dropped = [counts['stages'][2]['dropped']['quality.score']['documents'] for counts in manifest['sources'].values()]
    assert sum(dropped) == sum(load(tmp_path / 'm').scores(texts) < 0.5) > 30
    assert manifest['models'] == {'quality': hashlib.sha256((tmp_path / 'm').read_bytes()).hexdigest()[:16]}
    before = chain.depends_on('quality', STAGES, config)
    train(TEXTS, LABELS, dataclasses.replace(SMALL, l2=0.1))[0].save(tmp_path / 'm')
    assert chain.depends_on('quality', STAGES, config) != before


def test_no_model_is_said_before_any_work(tmp_path):
    building.write(tmp_path, {'a': ['a text'], 'b': ['another']})
    with pytest.raises(ConfigError, match=r"quality\.model is empty: name the file .* './tools/run train_quality"):
        build_lib.build(building.config(tmp_path, stages=('quality',)), Local(1))
    assert not (tmp_path / 'out' / 'work' / 'extract').exists()


def test_keep_share_is_a_quantile_of_the_reference(tmp_path):
    reference = [text(i, i % 4 == 0) for i in range(400)]
    train(TEXTS, LABELS, SMALL, reference)[0].save(tmp_path / 'm')
    stage = make(Quality(model=str(tmp_path / 'm'), keep_share=0.25))
    kept = [isinstance(out, Document) for out in through(stage, [document(one) for one in reference])]
    assert sum(kept) == pytest.approx(100, abs=2)
    assert np.mean(np.array(kept) == (np.arange(400) % 4 == 0)) > 0.97


def test_mistakes(tmp_path, trained):
    with pytest.raises(ConfigError, match='there is no such file'):
        make(Quality(model=str(tmp_path / 'none')))
    (tmp_path / 'other').write_bytes(b'nothing of the kind')
    with pytest.raises(ConfigError, match='is no quality model'):
        make(Quality(model=str(tmp_path / 'other')))
    trained[0].save(tmp_path / 'm')
    for wrong in ({'keep_share': 1.0}, {'threshold': 2.0}):
        with pytest.raises(ConfigError, match=f'quality.{next(iter(wrong))}'):
            make(Quality(model=str(tmp_path / 'm'), **wrong))
    with pytest.raises(ConfigError, match='3 texts have label 0'):
        train(TEXTS[:8], [1] * 5 + [0] * 3, SMALL)


@pytest.mark.parametrize('line', ['{"text": "a"}', '{"text": "a", "label": 2}', '{"text": 1, "label": 1}', '[', '3'])
def test_broken_labels(tmp_path, line):
    (tmp_path / 'l.jsonl').write_text('{"text": "a", "label": 1}\n' + line)
    with pytest.raises(ConfigError, match='l.jsonl:2'):
        list(quality.read_labelled(str(tmp_path / 'l.jsonl')))


def test_sample_is_even_and_in_order():
    counts = np.zeros(20)
    for seed in range(600):
        chosen = quality.sample(range(20), 5, seed)
        assert chosen == sorted(chosen)
        counts[chosen] += 1
    assert counts.sum() == 3000 and counts.min() > 100 and counts.max() < 200
    assert quality.sample(range(3), 5, 0) == [0, 1, 2]


def test_tool(tmp_path):
    lines = [json.dumps({'text': one, 'label': label}) for one, label in zip(TEXTS, LABELS, strict=True)]
    (tmp_path / 'l.jsonl').write_text('\n'.join(lines))
    (tmp_path / 'good.jsonl').write_text('\n'.join(lines[::2]))
    (tmp_path / 'bad.jsonl').write_text('\n'.join(lines[1::2]))
    run = [sys.executable, 'tools/train_quality.py', '--bits', '12', '--folds', '4', '--out']
    by_label = subprocess.run(
        [*run, tmp_path / 'a', tmp_path / 'l.jsonl'], check=True, text=True, capture_output=True
    ).stdout
    assert '120 texts, 60 of them good' in by_label and 'auc' in by_label
    sources = ['--good', f'jsonl:{tmp_path}/good.jsonl', '--bad', f'jsonl:{tmp_path}/bad.jsonl']
    subprocess.run([*run, tmp_path / 'b', *sources], check=True, capture_output=True)
    assert auc(load(tmp_path / 'b').scores(TEXTS), np.array(LABELS)) > 0.98
    wrong = subprocess.run([*run, tmp_path / 'c'], check=False, text=True, capture_output=True)
    assert wrong.returncode == 2 and 'nothing to train on' in wrong.stderr


def test_human_judgements(shared_data):
    """411 web pages that people judged: better than their length, by more than the error of the measurement."""
    lines = (
        gzip.decompress((shared_data / 'quality' / 'dclm_human_quality.jsonl.gz').read_bytes()).decode().splitlines()
    )
    rows = [json.loads(line) for line in lines]
    _, estimates = train([row['text'] for row in rows], [row['label'] for row in rows], Training(bits=15, folds=5))
    assert estimates['auc'].mean > 0.85
    assert estimates['auc'].mean - estimates['length_auc'].mean > 2 * estimates['length_auc'].error
    assert estimates['accuracy'].mean > 0.75
    assert estimates['calibration'].mean < 0.15
