"""Words, lines and repeated n-grams, against plain definitions."""

from collections import Counter
import gzip
import json
import random

import awkward
import numpy as np
import pytest

from llm_jax.corpus.document import Document, Dropped
from llm_jax.corpus.filter import c4, fineweb, gopher, refinedweb, repetition, signals


def texts() -> list[str]:
    """Awkward strings of scripts with spaces, and random texts of few words, in which everything is repeated."""
    rng = random.Random(2)
    few = [
        ' '.join(rng.choices(['a', 'b', 'cc', 'ddd', 'é', '😀,'][: rng.randrange(1, 7)], k=rng.randrange(60)))
        for _ in range(400)
    ]
    lines = ['\n'.join(rng.choices(['x y z', 'x', '', ' ', 'z z z z z z'], k=rng.randrange(30))) for _ in range(200)]
    return [text for text in awkward.cases(300) if not signals.Text(text).unspaced] + few + lines


def grams(words: list[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def test_words_and_characters():
    for text in texts():
        found = signals.Text(text)
        words = text.split()
        assert found.words == words
        assert found.word_lengths.tolist() == list(map(len, words))
        assert np.diff(found.word_ends).tolist() == list(map(len, words))
        assert found.has_letter.tolist() == [any(map(str.isalpha, w)) for w in words]
        assert found.is_solid.tolist() == [any(map(str.isalnum, w)) for w in words]
        assert found.alphanumeric == sum(map(str.isalnum, text))
        names = list(found.vocabulary)
        assert [names[i] for i in found.word_ids] == words


def test_repeated_n_grams_are_those_that_occur_twice():
    for text in texts():
        found = signals.Text(text)
        for n in range(2, signals.MAX_N + 1):
            all_grams = grams(found.words, n)
            counts = Counter(all_grams)
            positions, groups = found.repeated[n]
            assert positions.tolist() == [i for i, gram in enumerate(all_grams) if counts[gram] > 1]
            named = {}
            for position, group in zip(positions.tolist(), groups.tolist(), strict=True):
                assert named.setdefault(group, all_grams[position]) == all_grams[position]
            assert len(set(named.values())) == len(named)


@pytest.mark.parametrize('n', [2, 3, 4])
def test_top_n_gram(n):
    for text in texts():
        words = text.split()
        counts = Counter(' '.join(gram) for gram in grams(words, n))
        gram, count = max(counts.items(), key=lambda item: item[1], default=('', 0))
        assert signals.top_characters(signals.Text(text), n) == len(gram) * count


@pytest.mark.parametrize('n', [5, 6, 7, 8, 9, 10])
def test_repeated_characters_count_each_character_once(n):
    for text in texts():
        words, seen, total, i = text.split(), set(), 0, 0
        while i + n <= len(words):
            gram = tuple(words[i : i + n])
            if gram in seen:
                total += sum(map(len, gram))
                i += n
            else:
                seen.add(gram)
                i += 1
        assert signals.repeated_characters(signals.Text(text), n) == total


def test_lines():
    text = signals.Text('a\n\n b \n\n\nc\nd\n')
    assert text.lines == ['a', '', ' b ', '', '', 'c', 'd']
    assert text.filled_lines == ['a', ' b ', 'c', 'd']
    assert text.paragraphs == ['a', ' b ', 'c\nd']
    assert signals.Text('').lines == signals.Text('').paragraphs == []
    assert signals.repeats(['ab', 'c', 'ab', 'ab']) == (2, 4)


def test_rule_groups_share_the_last_text():
    text = 'some words of a text'
    assert signals.view(text) is signals.view(text)
    first = signals.view(text)
    signals.view('another')
    assert signals.view(text) is not first


@pytest.mark.parametrize(
    'sentence',
    [
        '潮汐钟是港口博物馆的一件展品，它显示每天两次涨潮的时间。',
        '港の博物館には潮の時計があり、毎日二回の満潮の時刻を示しています。',
        'นาฬิกาน้ำขึ้นน้ำลงของพิพิธภัณฑ์ท่าเรือแสดงเวลาน้ำขึ้นวันละสองครั้ง',
        'ໂມງນ້ຳຂຶ້ນຂອງພິພິທະພັນທ່າເຮືອສະແດງເວລາ',
        'នាឡិកាជំនោរនៃសារមន្ទីរកំពង់ផែបង្ហាញម៉ោងទឹកឡើងពីរដងក្នុងមួយថ្ងៃ។',
        'ဆိပ်ကမ်းပြတိုက်၏ဒီရေနာရီသည်တစ်နေ့နှစ်ကြိမ်ဒီရေတက်ချိန်ကိုပြသည်။',
    ],
)
def test_scripts_without_spaces_pass_the_rules_of_prose_and_their_repetition_does_not(sentence):
    """The characters of a sentence, rotated, make lines of as many words that are not each other's copies."""
    turned = [sentence[i:-1] + sentence[:i] + sentence[-1] for i in range(0, 20, 2)]
    lines = [a + b for a, b in zip(turned[::2], turned[1::2], strict=True)]
    document = lambda text: Document(id='a', source='s', where='w', text=text, kind='text', language='xx')
    stages = {m.__name__.rpartition('.')[2]: m.make(m.Options()) for m in (gopher, c4, fineweb, refinedweb)}
    judged = {name: stage(document('\n'.join(lines))) for name, stage in stages.items()}
    assert not [one.reason for one in judged.values() if isinstance(one, Dropped)]
    assert signals.view('\n'.join(lines)).unspaced
    assert isinstance(repetition.make(repetition.Options())(document('\n'.join([sentence] * 20))), Dropped)


def test_chinese_articles_survive_the_rules_of_prose(shared_data):
    with gzip.open(shared_data / 'multilingual/zhwiki_sample.jsonl.gz', 'rt') as lines:
        documents = [Document(id='a', source='s', where='w', text=json.loads(line)['text'], kind='text', language='zh')
                     for line in lines]  # fmt: skip
    for module in (gopher, repetition, c4, fineweb):
        stage = module.make(module.Options())
        assert sum(isinstance(stage(one), Document) for one in documents) >= 0.9 * len(documents), module
