"""Numbers in generated text: lm-eval's two filters of GSM8K, and the final number as a reader finds it."""

from decimal import Decimal
import gzip
import json
import pathlib
import time

import pytest

from llm_jax.evals.answers import numbers


@pytest.mark.parametrize(
    ('generation', 'strict', 'flexible'),
    [
        ('so 5 and 6.\n#### 11', '11', '11'),
        ('#### 3\n#### 4', '3', '4'),  # a recited example comes first
        ('####3', '[invalid]', '3'),
        ('It costs $1,250.', '[invalid]', '$1,250.'),
        ('#### -7.5 metres', '-7.5', '-7.5'),
        ('#### $9', '[invalid]', '$9'),
        ('nothing', '[invalid]', '[invalid]'),
        ('', '[invalid]', '[invalid]'),
    ],
)
def test_filters_take_the_first_and_the_last_match(generation: str, strict: str, flexible: str) -> None:
    assert numbers.extract_strict(generation) == strict
    assert numbers.extract_flexible(generation) == flexible


def test_grades_of_the_filters_compare_text_without_commas_and_dollars() -> None:
    gold = 'They pay 1,250 in all.\n#### 1,250'
    assert numbers.grade_strict('#### 1250', gold)
    assert numbers.grade_flexible('It costs $1,250.', gold)
    assert not numbers.grade_flexible('#### 1250.0', gold)
    assert not numbers.grade_strict('The answer is 1250', gold)


def test_filters_equal_those_of_lm_eval(shared_data: pathlib.Path) -> None:
    rows = json.loads((shared_data / 'evals_reference' / 'graders.json').read_text())['gsm8k']
    for row in rows:
        generation, gold = row['generation'], row['target']
        assert numbers.extract_strict(generation) == row['strict_extracted']
        assert numbers.extract_flexible(generation) == row['flexible_extracted']
        assert numbers.grade_strict(generation, gold) == bool(row['strict'])
        assert numbers.grade_flexible(generation, gold) == bool(row['flexible'])


@pytest.mark.parametrize(
    ('text', 'gold', 'right'),
    [
        ('2 + 3 = 5 apples\nA: 5', '#### 5', True),
        ('A: 5 out of 12', '5', True),  # the first number after the mark, not the last
        ('The answer is $1,234.50.', '1234.5', True),
        ('The answer is -3.', '3', False),
        ('the answer is \u22123', '-3', True),
        ('So \\boxed{18} of the 20', '18', True),
        ('#### 18.00', '18', True),
        ('#### 1/2', '0.5', True),
        ('it is 10%', '10', True),
        ('between 7-9', '9', True),
        ('.5 of it', '1/2', True),
        ('12,34', '34', True),  # no thousands: two numbers
        ('1,234,567', '1234567', True),
        ('no number', '5', False),
        ('The answer is unknown. A: 4', '4', True),
        ('Answer: 100000000000000000000000001', '100000000000000000000000000', False),
        ('Answer: 0.1000000000000000000000001', '0.1', False),
    ],
)
def test_final_number(text: str, gold: str, right: bool) -> None:
    assert numbers.grade_number(text, gold) is right


def test_signs_and_currencies() -> None:
    for text in ('-$5', '$-5', '- $5', '-5', '\u2212 5'):
        assert numbers.read_number(text) == Decimal(-5), text


@pytest.mark.parametrize(
    'text', ['9' * 100_000, '####' * 25_000, 'A:\n' * 30_000, '1,' * 50_000, '-' * 100_000, '$' * 100_000]
)
def test_long_texts_take_no_time(text: str) -> None:
    started = time.monotonic()
    numbers.grade_number(text, '1')
    numbers.grade_flexible(text, '1')
    assert time.monotonic() - started < 2


def test_agrees_with_the_graded_solutions_of_gsm8k(shared_data: pathlib.Path) -> None:
    agree = total = 0
    with gzip.open(shared_data / 'bench' / 'gsm8k_model_solutions_graded_part1.jsonl.gz', 'rt') as file:
        for line in file:
            problem = json.loads(line)
            for answer in (value for value in problem.values() if isinstance(value, dict)):
                total += 1
                agree += numbers.grade_number(answer['solution'], problem['ground_truth']) == answer['is_correct']
    assert (agree, total) == (3600, 3600)
