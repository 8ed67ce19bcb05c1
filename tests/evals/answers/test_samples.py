"""pass@k without bias, and majority votes."""

import itertools

import pytest

from llm_jax.evals.answers import samples


def test_pass_at_k_is_the_share_of_subsets_with_a_right_one() -> None:
    for n, c in itertools.product(range(1, 7), range(7)):
        for k in range(1, n + 1):
            if c <= n:
                subsets = list(itertools.combinations(range(n), k))
                share = sum(any(i < c for i in subset) for subset in subsets) / len(subsets)
                assert samples.pass_at_k(n, c, k) == pytest.approx(share, abs=1e-12)


def test_pass_at_k_of_many_samples_does_not_overflow() -> None:
    assert samples.pass_at_k(200, 1, 1) == pytest.approx(0.005, abs=1e-15)
    assert samples.pass_at_k(10_000, 1, 100) == pytest.approx(0.01, abs=1e-12)


@pytest.mark.parametrize(('n', 'c', 'k'), [(2, 3, 1), (2, 1, 3), (2, 1, 0), (2, -1, 1)])
def test_pass_at_k_of_impossible_counts(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match=f'pass@{k} of {n}'):
        samples.pass_at_k(n, c, k)


def test_majority() -> None:
    right = lambda answer: answer == '4'
    assert samples.majority_at_k(['4', '5', '4'], right) == 1
    assert samples.majority_at_k(['5', '4', '4'], right, k=1) == 0
    assert samples.majority_at_k(['4', '5'], right) == 0.5  # a tie
    assert samples.majority_at_k([None, None, '4'], right) == 1  # None is no vote
    assert samples.majority_at_k([None], right) == 0
    assert samples.majority_at_k(['4', '04', '5', '5'], right, key=int) == 0.5
    with pytest.raises(ValueError, match='maj@3 of 2'):
        samples.majority_at_k(['4', '5'], right, k=3)
