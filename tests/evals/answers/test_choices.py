"""Letters and exact matches in generated text."""

import pytest

from llm_jax.evals.answers import choices


@pytest.mark.parametrize(
    ('text', 'letter'),
    [
        ('B', 'B'),
        (' B. Paris', 'B'),
        ('(C) because it rains', 'C'),
        ('**D**', 'D'),
        ('The answer is (A).', 'A'),
        ('The answer is A, not B. Wait: the answer is B.', 'B'),
        ('Answer: C', 'C'),
        ('the correct answer is option **D**', 'D'),
        ('So it must be \\boxed{B}.', 'B'),
        ('\\boxed{\\text{(C)}}', 'C'),
        ('I think that (B) fits', 'B'),
        ('(A) or (B)', None),
        ('A dog barks', None),  # an article
        ('The answer is Athens', None),
        ('nothing', None),
        ('', None),
        ('E', None),
    ],
)
def test_find_choice(text: str, letter: str | None) -> None:
    assert choices.find_choice(text) == letter


def test_find_choice_of_other_letters() -> None:
    assert choices.find_choice('Answer: E', 'ABCDE') == 'E'


def test_exact_match() -> None:
    assert choices.exact_match('True', ['False', 'True'])
    assert not choices.exact_match('True ', 'True')
    assert choices.exact_match('Yes!', 'yes', ignore_case=True, ignore_punctuation=True)
    assert choices.exact_match('route 66', 'route ', ignore_numbers=True)
    assert choices.exact_match('#### 5.', '5', ignored=['#### ', r'\.$'])


def test_short_answers_without_articles_accents_and_punctuation() -> None:
    assert choices.match_short_answer('The Café.', ['tea house', 'cafe'])
    assert not choices.match_short_answer('cafes', 'cafe')
