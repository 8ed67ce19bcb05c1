"""The contract of a task, and the two kinds whose answers are log-likelihoods."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any

from llm_jax.evals import metrics

Document = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Item:
    """A document as requests.

    Attributes:
      requests: (context, continuation).
      gold: index of the right request; of one request, its continuation; of several right ones, a label for each.
      lengths: texts whose lengths normalise the scores; as a rule the choices without the space before them.
    """

    requests: Sequence[tuple[str, str]]
    gold: Any
    lengths: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Task:
    """A benchmark.

    Attributes:
      name: on the command line.
      files: names of its data in --data, the first that is there is read.
      item: document -> Item.
      main: the metrics of the table.
      form: prompt in words, for the card.
      chance: score of a guess; None if it is not a share.
      shot: document -> its text as an example; '' where there are no examples.
      keep: which documents belong to it.
    """

    name: str
    files: Sequence[str]
    item: Callable[[Document], Item]
    main: Sequence[str]
    form: str
    chance: float | None
    shot: Callable[[Document], str] | None = None
    keep: Callable[[Document], bool] = lambda document: True


def grade(item: Item, answers: Sequence[Any], n_tokens: Sequence[int]) -> dict[str, float]:
    """Metrics of an item.

    Args:
      item: the requests.
      answers: `score.Answer` of each.
      n_tokens: of each continuation.
    """
    values = [answer.log_likelihood for answer in answers]
    if isinstance(item.gold, str):
        return {'acc': float(answers[0].is_greedy), 'log_likelihood': values[0]}
    if not isinstance(item.gold, int):
        return {'mc2': metrics.mass_on(values, item.gold)}
    lengths = item.lengths or [continuation for _, continuation in item.requests]
    return metrics.choice_metrics(values, lengths, item.gold, n_tokens)
