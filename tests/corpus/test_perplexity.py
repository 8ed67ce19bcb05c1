"""The filter by a model of the project's own: against the formula, and on text and what is none."""

import dataclasses
import json
import math
import random

import building
import jax
import numpy as np
import pytest

import llm_jax
from llm_jax import config as config_lib
from llm_jax.config.schema import ConfigError
from llm_jax.corpus import build as build_lib
from llm_jax.corpus import chain, perplexity
from llm_jax.corpus.batch import through
from llm_jax.corpus.document import Document, Dropped
from llm_jax.corpus.engines.local import Local
from llm_jax.corpus.perplexity import Options, make, windows
from llm_jax.corpus.registry import STAGES
from llm_jax.nn.transformer import Transformer
from llm_jax.train.loop import train

WINDOW = 32
SUBJECTS, VERBS = ('the old captain', 'a quiet teacher', 'my sister', 'the narrow river'), ('walked past', 'looked at')
OBJECTS = ('the market', 'a bright window', 'the garden in winter', 'an open letter', 'the house')


def prose(seed: int, sentences: int = 6) -> str:
    draw = random.Random(seed)
    choose = lambda: f'{draw.choice(SUBJECTS)} {draw.choice(VERBS)} {draw.choice(OBJECTS)}.'
    return ' '.join(choose() for _ in range(draw.randint(1, sentences)))


def shuffled(text: str, seed: int) -> str:
    """The same characters in another order."""
    letters = list(text)
    random.Random(seed).shuffle(letters)
    return ''.join(letters)


def document(text: str, kind: str = 'text') -> Document:
    return Document('s/f#0', 's', 'f', text, kind)


@pytest.fixture(scope='module')
def run_dir(tmp_path_factory):
    root = tmp_path_factory.mktemp('perplexity')
    (root / 'prose.jsonl').write_text(''.join(json.dumps({'text': prose(i)}) + '\n' for i in range(400)))
    config = config_lib.default()
    config.name = 'judge'
    config.model.d_model, config.model.n_layers, config.model.n_heads = 32, 2, 2
    config.data.sources = f'jsonl:{root}/prose.jsonl'
    config.data.seq_len, config.data.tokenizer.vocab_size, config.data.cache_dir = WINDOW, 300, str(root / 'cache')
    config.train.duration, config.train.batch_size = 80, 16
    config.train.eval_every, config.train.sample_tokens, config.train.sample_prompts = 80, 4, ('the',)
    config.optimizer.learning_rate = 1e-2
    assert train(config_lib.validate(config), root / 'run').status == 'finished'
    return root / 'run'


def by_hand(run_dir, text: str, overlap: int) -> float:
    """Bits per byte with one forward pass for each token: as much context as its window has."""
    loaded = llm_jax.load(run_dir)
    ids = [loaded.tokenizer.bos_id, *loaded.tokenizer.encode(text)]
    apply, bits = jax.jit(loaded.model.apply), 0.0
    for target in range(1, len(ids)):
        start = 0 if target <= WINDOW else -(-(target - WINDOW) // (WINDOW - overlap)) * (WINDOW - overlap)
        row = np.zeros((1, WINDOW), np.int32)
        row[0, : target - start] = ids[start:target]
        logits = np.asarray(apply({'params': loaded.params}, row), np.float64)[0, target - start - 1]
        bits += (np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[ids[target]]) / math.log(2)
    return bits / len(text.encode())


@pytest.mark.parametrize('overlap', [0.0, 0.25, 0.5])
def test_against_one_token_at_a_time(run_dir, overlap):
    stage = make(Options(str(run_dir), overlap=overlap))
    for text in ('a', prose(1000), ' '.join(prose(i) for i in range(1001, 1006)), 'Crème brûlée 🙂 漢字'):
        found = stage(document(text)).signals['perplexity.bits_per_byte']
        assert found == pytest.approx(by_hand(run_dir, text, int(overlap * WINDOW)), abs=6e-4)


def test_windows_cover_each_token_once():
    for n in range(70):
        for window, overlap in ((8, 0), (8, 3), (8, 7), (16, 4)):
            found = windows(n, window, overlap, 0)
            assert [i for _, stop, first in found for i in range(first, stop)] == list(range(n))
            assert all(0 <= start <= first < stop <= start + window for start, stop, first in found)
            assert all(first - start == overlap for start, _, first in found[1:])
            some = windows(n, window, overlap, 3)
            assert set(some) <= set(found) and len(some) == min(3, len(found))
            assert not found or (some[0], some[-1]) == (found[0], found[-1])


def test_a_document_has_the_same_score_in_any_company(run_dir):
    stage = make(Options(str(run_dir)))
    documents = [document(prose(i, 1 + i % 40)) for i in range(150)] + [
        document(shuffled(prose(i), i)) for i in range(9)
    ]
    alone = [stage(one) for one in documents]
    assert through(stage, documents) == alone
    assert through(stage, documents[::-1]) == alone[::-1]
    assert through(stage, documents[3:40]) == alone[3:40]


def test_few_programs_are_compiled(run_dir):
    stage = make(Options(str(run_dir)))
    scorer = perplexity._load(str(run_dir), 0)
    for i in range(1, 30):
        through(stage, [document(prose(j, i)) for j in range(i)])
    assert scorer._nll._cache_size() <= 4


def test_text_is_told_from_what_is_none(run_dir):
    stage = make(Options(str(run_dir)))
    bits = lambda text: stage(document(text)).signals['perplexity.bits_per_byte']
    texts = [prose(2000 + i) for i in range(30)]
    real, words, letters = (
        np.array([bits(change(text, i)) for i, text in enumerate(texts)])
        for change in (
            lambda text, _: text,
            lambda text, i: ' '.join(random.Random(i).sample(text.split(), len(text.split()))),
            shuffled,
        )
    )
    assert (real < words).mean() > 0.9 and (words < letters).all() and letters.min() > 1.5 * real.max()
    limit = float(real.max() + letters.min()) / 2
    kept = through(make(Options(str(run_dir), max_bits_per_byte=limit)), [document(text) for text in texts])
    assert all(isinstance(one, Document) for one in kept)
    out = make(Options(str(run_dir), max_bits_per_byte=limit))(document(shuffled(texts[0], 0)))
    assert isinstance(out, Dropped) and out.reason == 'perplexity.high' and f'> {limit:g} bits per byte' in out.detail
    assert out.document.signals['perplexity.bits_per_byte'] > limit
    low = make(Options(str(run_dir), min_bits_per_byte=limit))(document(texts[0]))
    assert isinstance(low, Dropped) and low.reason == 'perplexity.low'


def test_some_windows_of_a_long_document(run_dir):
    texts = [document(' '.join(prose(i) for i in range(first, first + 60))) for first in (0, 100)]
    whole, some = (
        [out.signals['perplexity.bits_per_byte'] for out in through(make(Options(str(run_dir), max_windows=n)), texts)]
        for n in (0, 12)
    )
    assert whole != some and some == pytest.approx(whole, rel=0.2)


def test_other_kinds_and_empty_texts_pass(run_dir):
    stage = make(Options(str(run_dir), max_bits_per_byte=0.01))
    code = document(shuffled(prose(0), 0), 'code')
    assert through(stage, [code, document('')])[0] is code
    assert through(stage, [code, document('')])[1].signals == {'perplexity.bits_per_byte': 0.0}
    assert through(stage, []) == []


def test_same_corpus_whatever_the_workers(run_dir, tmp_path):
    texts = [prose(i) for i in range(60)] + [shuffled(prose(i), i) for i in range(20)]
    random.Random(0).shuffle(texts)
    building.write(tmp_path, {'a1': texts[:30], 'a2': texts[30:50], 'b': texts[50:]})
    options = {'stages': ('perplexity',), 'perplexity__run': str(run_dir), 'perplexity__max_bits_per_byte': 4.0}
    hashes = []
    for name, workers in (('one', 1), ('two', 2)):
        config, engine = building.config(tmp_path, name, dedup=(), **options), Local(workers)
        try:
            manifest = build_lib.build(config, engine)
        finally:
            engine.close()
        hashes.append(building.hashes(config.out))
    assert hashes[0] == hashes[1]
    dropped = [
        counts['stages'][2]['dropped']['perplexity.high']['documents'] for counts in manifest['sources'].values()
    ]
    assert sum(dropped) == 20
    assert manifest['models'] == {'perplexity': perplexity.fingerprint(config.perplexity)}


def test_beam_makes_the_same(run_dir, tmp_path):
    pytest.importorskip('apache_beam', reason='Apache Beam is an extra with an environment of its own')
    from llm_jax.corpus.engines.beam import Beam

    building.write(
        tmp_path, {'a1': [prose(i) for i in range(20)], 'b': [shuffled(prose(i), i) for i in range(3)] + ['x']}
    )
    options = {'stages': ('perplexity',), 'perplexity__run': str(run_dir), 'dedup': ()}
    local, beam = building.config(tmp_path, 'local', **options), building.config(tmp_path, 'beam', **options)
    build_lib.build(local, Local(1))
    build_lib.build(beam, Beam(['--runner=FnApiRunner']))
    assert building.hashes(local.out) == building.hashes(beam.out)


def test_what_a_step_depends_on(run_dir, tmp_path):
    building.write(tmp_path, {})
    config = building.config(tmp_path, perplexity__run=str(run_dir))
    before = chain.depends_on('perplexity', STAGES, config)
    assert perplexity.fingerprint(config.perplexity) in before[2]
    other = building.config(tmp_path, perplexity__run=str(run_dir), perplexity__max_bits_per_byte=2.0)
    assert chain.depends_on('perplexity', STAGES, other) != before


def test_another_model_has_another_fingerprint(run_dir):
    loaded = llm_jax.load(run_dir)
    same = perplexity._fingerprint(loaded, run_dir / 'none')
    assert perplexity._fingerprint(llm_jax.load(run_dir), run_dir / 'none') == same
    own = [
        dataclasses.replace(loaded, model=Transformer(dataclasses.replace(loaded.model.config, feed_forward=part)))
        for part in (Transformer, Transformer, make)
    ]
    first, again, other = (perplexity._fingerprint(one, run_dir / 'none') for one in own)
    assert first == again and len({first, other, same}) == 3
    changed = jax.tree.map(lambda leaf: leaf + 1e-3, loaded.params)
    assert perplexity._fingerprint(dataclasses.replace(loaded, params=changed), run_dir / 'none') != same


@pytest.mark.parametrize(
    ('wrong', 'message'),
    [
        ({'run': ''}, r"perplexity\.run = '': name the run directory"),
        ({'run': 'no/such/run'}, r"perplexity\.run = 'no/such/run': .* is not a run directory"),
        ({'step': 7}, r'holds no checkpoint of step 7; there are'),
        ({'min_bits_per_byte': -1.0}, r'min_bits_per_byte = -1\.0: it must be at least 0'),
        ({'min_bits_per_byte': 2.0, 'max_bits_per_byte': 1.0}, r'max_bits_per_byte = 1\.0: it must be above'),
        ({'window': 64}, f'perplexity.window = 64: .* is {WINDOW} tokens'),
        ({'overlap': 1.0}, r'overlap = 1\.0: it must be 0 to 0\.9'),
    ],
)
def test_mistakes(run_dir, tmp_path, wrong, message):
    fields = {f'perplexity__{name}': value for name, value in ({'run': str(run_dir)} | wrong).items()}
    building.write(tmp_path, {'a': ['a text'], 'b': ['another']})
    config = building.config(tmp_path, stages=('perplexity',), **fields)
    with pytest.raises(ConfigError, match=message):
        build_lib.build(config, Local(1))
    assert not (tmp_path / 'out' / 'work' / 'extract').exists()  # it is said before any work is done
