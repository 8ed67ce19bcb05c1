"""Answers in LaTeX: found, read, and compared by meaning, without false positives and without end."""

import gzip
import itertools
import json
import pathlib
import time

import pytest

from llm_jax.evals.answers import latex

EQUAL = [
    (r'\frac34', '0.75'),
    (r'\dfrac{3}{4}', r'\tfrac34'),
    (r'-\frac{3}{4}', r'\frac{-3}{4}'),
    (r'3\frac{1}{2}', r'\frac72'),
    (r'3\frac12', '3.5'),
    ('3 1/2', '3.5'),
    (r'\frac{12}{36}', '1/3'),
    (r'0.\overline{3}', r'\frac13'),
    (r'5\sqrt{2}', r'\sqrt{50}'),
    (r'\frac{1}{\sqrt3}', r'\frac{\sqrt{3}}{3}'),
    (r'\sqrt[3]{-27}', '-3'),
    (r'\log_2 32', '5'),
    (r'\ln e^3', '3'),
    (r'\cos\frac{\pi}{3}', '.5'),
    (r'\arctan 1', r'\frac{\pi}{4}'),
    (r'\sin^2 x + \cos^2 x', '1'),
    (r'\binom{6}{2}', '15'),
    ('5!', '120'),
    (r'\sin 30^\circ', '0.5'),
    (r'\tan^2 60^{\circ}', '3'),
    (r'0.1\bar{6}', r'\frac16'),
    (r'\sqrt{x^2}', '|x|'),
    (r'\frac{x^2-1}{x-1}', 'x+1'),
    (r'|{-4}|', '4'),
    ('(a+b)(a-b)', 'a^2-b^2'),
    (r'\frac{a}{b}', 'a/b'),
    (r'2\cdot10^3', r'2{,}000'),
    ('12,345', '12345'),
    (r'\$7.50', '7.5'),
    (r'40\%', '40'),
    (r'35^\circ', '35'),
    (r'8\text{ cm}', '8'),
    (r'8 \mbox{ inches}^2', '8'),
    (r'8\text{ m/s}', '8'),
    ('8 miles', '8'),
    ('8 miles', r'8\text{ mile}'),
    (r'8\text{ inches}', '8 inch'),
    ('8 percent', r'8\%'),
    ('8 dollars', r'\$8'),
    (r'8\$', '8'),
    ('n=8', '8'),
    ('f(x) = 2x', '2x'),
    (r'x \in (1, 2]', '(1,2]'),
    (r'x \ge 2', r'[2,\infty)'),
    ('1 < t < 2', '(1,2)'),
    ('3 > y', 'y < 3'),
    (r'\{3, 1, 2\}', r'\{1,2,3\}'),
    ('4, 9', '9,4'),
    (r'4 \text{ and } 9', '9,4'),
    (r'x=4\text{ or }x=9', '4, 9'),
    (r'\pm 6', '-6, 6'),
    (r'2 \pm \sqrt{5}', r'2-\sqrt5, 2+\sqrt5'),
    (r'\left(\tfrac12, 5\right)', '(0.5, 5)'),
    (r'(-\infty,0) \cup (1,\infty)', r'(1, \infty)\cup(-\infty,0)'),
    (r'\begin{pmatrix} 1 & \frac12 \\ 3 & 4 \end{pmatrix}', r'\begin{bmatrix}1&0.5\\3&4\end{bmatrix}'),
    ('3x - 6y + 9 = 0', 'y = x/2 + 3/2'),
    (r'\text{Tuesday}', 'tuesday'),
    (r'\textbf{(D)}', 'D'),
    ('sin x', r'\sin x'),
    ('221_{3}', '221_3'),
    ('$7$', '7.'),
    (r'\(7\)', '7'),
    ('', ''),
]
DIFFERENT = [
    (r'\frac{1}{1000!}', r'\frac{1}{1001!}'),
    (r'\frac{1}{3^{90}}', r'\frac{1}{3^{91}}'),
    ('10^{60}+1', '10^{60}'),
    ('e^{-300}', 'e^{-301}'),
    (r'\pi', '3.14159265358979'),
    (r'\sqrt2', '1.41421356'),
    ('1/3', '0.33333333'),
    (r'\sqrt{x^2}', 'x'),
    ('|a-b|', 'a-b'),
    ('x^2', 'x^4'),
    ('221_{3}', '221'),
    ('221_3', '221_4'),
    (r'\pm 6', '6'),
    ('4, 9', '4'),
    ('(4, 9)', '(9, 4)'),
    ('[1,2)', '(1,2]'),
    ('x > 2', 'x < 2'),
    ('x = 5', 'y = 5'),
    ('3x - 6y + 9 = 0', 'y = x/2 - 3/2'),
    ('2 million', '2'),
    (r'8\text{ cm}', r'8\text{ km}'),
    (r'8^\circ', r'8\%'),
    (r'\$8', '8 cents'),
    (r'\text{even}', r'\text{odd}'),
    ('a', 'A'),
    ('2+i', '2-i'),
    ('1:2', '2:1'),
    ('1 000', '1'),
    ('1 1', '11'),
    ('3 1/2', '31/2'),
    (r'\begin{pmatrix}1\\2\end{pmatrix}', r'\begin{pmatrix}1&2\end{pmatrix}'),
    (r'\frac{7}{0}', '7'),
    ('', '0'),
    ('0', ''),
    ('-1', '1'),
    (r'\infty', r'-\infty'),
]


@pytest.mark.parametrize(('answer', 'gold'), EQUAL)
def test_equal(answer: str, gold: str) -> None:
    assert latex.is_equal(answer, gold)
    assert latex.is_equal(gold, answer)


@pytest.mark.parametrize(('answer', 'gold'), DIFFERENT)
def test_different(answer: str, gold: str) -> None:
    assert not latex.is_equal(answer, gold)
    assert not latex.is_equal(gold, answer)


@pytest.mark.parametrize(
    'answer',
    [
        '2^{3^{100}}',
        '9^{9^{9^{9^{9}}}}',
        '99999999!',
        '((' * 900 + '1',
        '{' * 1500,
        '-' * 1900 + '1',
        r'\frac{1}{' * 300 + '1' + '}' * 300,
        r'\sqrt{' * 300,
        'x^{99999}' * 30,
        '+'.join(f'{i}!' for i in range(200, 280)),
        ', '.join(f'x^{{{i}}}' for i in range(150)),
        '1' * 100_000,
        '(' + ','.join('1' * 800) + ')',
        'a=' * 900,
        r'\text{' * 400,
        ','.join(f'{i}{i}x^{{{i}}}!' for i in range(100, 200)),
        ', '.join(f'(x+{i})^{{400}}' for i in range(29)),
        r'\binom{3000}{1500}' * 100,
    ],
)
def test_hostile_answers_end_soon(answer: str) -> None:
    started = time.monotonic()
    for gold in ('1', 'x^2 + 1', r'\{1, 2\}'):
        assert not latex.is_equal(answer, gold)
    latex.is_equal(answer, answer[:-1])
    latex.find_answer(answer)
    latex.normal_form(answer)
    assert time.monotonic() - started < 4


@pytest.mark.parametrize(
    ('text', 'answer'),
    [
        (r'so \boxed{3} and then \boxed{\frac{1}{2}}.', r'\frac{1}{2}'),
        (r'\boxed{\{1,2\}}', r'\{1,2\}'),
        (r'\boxed 7', '7'),
        (r'\fbox{8}', '8'),
        ('The final answer is $x^2$. I hope it is correct.', 'x^2'),
        ('The answer is 3.5.', '3.5'),
        ('Therefore $a=1$ and $b=2$', 'b=2'),
        (r'\boxed{never closed', None),
        ('', None),
    ],
)
def test_find_answer(text: str, answer: str | None) -> None:
    assert latex.find_answer(text) == answer


def test_votes_are_counted_by_value() -> None:
    assert latex.normal_form(r'\frac12') == latex.normal_form('x = 0.5') == latex.normal_form('$.50$')
    assert latex.normal_form('x + 1') != latex.normal_form('x - 1')


def test_pairs_of_the_reference(shared_data: pathlib.Path) -> None:
    pairs = json.loads((shared_data / 'evals_reference' / 'graders.json').read_text())['math']
    for pair in pairs:
        assert latex.is_equal(pair['answer'], pair['gold']) == pair['truth'], pair


def test_gold_answers_of_math(shared_data: pathlib.Path) -> None:
    with gzip.open(shared_data / 'bench' / 'math_test.jsonl.gz', 'rt') as file:
        rows = [json.loads(line) for line in itertools.islice(file, 0, None, 10)]
    for row in rows:
        boxed = latex.find_boxed(row['chain_of_thought'])
        assert boxed is not None and latex.is_equal(boxed, row['answer']), row['answer']
    equal = sum(latex.is_equal(a['answer'], b['answer']) for a, b in itertools.pairwise(rows))
    assert equal == sum(a['answer'] == b['answer'] for a, b in itertools.pairwise(rows))  # neighbours seldom agree
