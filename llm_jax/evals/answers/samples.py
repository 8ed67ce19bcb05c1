"""Scores of several samples of one problem: pass@k and maj@k."""

from collections.abc import Callable, Hashable, Sequence
import math


def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that one of k samples, drawn from n without replacement of which c are right, is right.

    The unbiased estimate of Chen et al. 2021: 1 - C(n - c, k) / C(n, k), as a product, which does not overflow.

    Raises:
      ValueError: k is not from 1 to n, or c not from 0 to n.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f'pass@{k} of {n} samples of which {c} are right: k must be from 1 to n, and c from 0 to n')
    if n - c < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(n - c + 1, n + 1))


def majority_at_k(
    answers: Sequence[Hashable | None],
    is_right: Callable[[Hashable], bool],
    k: int | None = None,
    key: Callable[[Hashable], Hashable] | None = None,
) -> float:
    """Whether the most frequent of the first k answers is right; of several that are as frequent, the share that is.

    Args:
      answers: of the samples in order; None where a sample has none, which is no vote.
      is_right: of an answer.
      k: how many vote; by default all.
      key: what makes answers the same, such as `latex.normal_form`.

    Raises:
      ValueError: there are fewer than k answers.
    """
    k = len(answers) if k is None else k
    if not 1 <= k <= len(answers):
        raise ValueError(f'maj@{k} of {len(answers)} samples: k must be from 1 to their number')
    votes: dict[Hashable, list[Hashable]] = {}
    for answer in answers[:k]:
        if answer is not None:
            votes.setdefault(key(answer) if key else answer, []).append(answer)
    most = max(map(len, votes.values()), default=0)
    leaders = [group[0] for group in votes.values() if len(group) == most]
    return sum(map(is_right, leaders)) / len(leaders) if leaders else 0.0
