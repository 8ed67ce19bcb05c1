"""The contract of a task: documents become requests or prompts, and what the model makes of them metrics."""

from collections.abc import Callable, Hashable, Mapping, Sequence
import dataclasses
from typing import Any, Literal

from llm_jax.evals import metrics

Document = Mapping[str, Any]
# How the tokens of a request are cut into those that are given and those that are scored: where lm-eval cuts them; or,
# as in DCLM CORE, after what the prompts of an item begin with alike, or before what they end with alike.
Cut = Literal['context', 'common_prefix', 'common_suffix']


@dataclasses.dataclass(frozen=True)
class Item:
    """A document as requests for log-likelihoods.

    Attributes:
      requests: (context, continuation).
      gold: index of the right request; of one request, its continuation; of several right ones, a label for each.
      lengths: texts whose lengths normalise the scores; as a rule the choices without the space before them.
    """

    requests: Sequence[tuple[str, str]]
    gold: Any
    lengths: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A document as a text that the model continues.

    Attributes:
      text: what the model reads.
      gold: the right answer, for the items' file.
    """

    text: str
    gold: Any


@dataclasses.dataclass(frozen=True)
class Grade:
    """What one generated text is worth.

    Attributes:
      metrics: by name, from 0 to 1.
      answer: what the text answers, for votes (maj@k); equal answers have equal keys, None is no vote.
      note: why, for the items' file.
    """

    metrics: Mapping[str, float]
    answer: Hashable | None = None
    note: str = ''


@dataclasses.dataclass(frozen=True)
class Generation:
    """How a task's texts are generated and graded.

    Attributes:
      stops: strings that end a text, and are no part of it.
      max_new_tokens: most tokens of a text.
      grade: grades of the texts of each document, of many at once, since programs run side by side.
      passing: the metric that says whether a text is right, for pass@k and maj@k.
      votes: whether grades have answers, for maj@k.
      check: raises a ConfigError where texts cannot be graded on this machine, before anything is generated.
    """

    stops: Sequence[str]
    max_new_tokens: int
    grade: Callable[[Sequence[tuple[Document, Sequence[str]]]], list[list[Grade]]]
    passing: str
    votes: bool = False
    check: Callable[[], None] = lambda: None


@dataclasses.dataclass(frozen=True)
class Shots:
    """Documents as examples before a prompt.

    Attributes:
      render: document -> its text as an example, what separates it from the next included.
      files: where they come from, as `Task.files`; none takes them from the task's own documents.
      keep: which documents of the files serve.
      draw: 'stream' draws for each prompt in turn from one stream, as lm-eval; 'item' from a stream of its own for
        each, as nanochat runs DCLM CORE; 'first' takes the first.
      default: how many there are unless the user says otherwise.
    """

    render: Callable[[Document], str]
    files: Sequence[str] = ()
    keep: Callable[[Document], bool] = lambda document: True
    draw: Literal['stream', 'item', 'first'] = 'stream'
    default: int = 0


@dataclasses.dataclass(frozen=True)
class Task:
    """A benchmark.

    Attributes:
      name: on the command line.
      files: names of its data in --data; the first that is there is read.
      item: document -> its requests, or its prompt.
      main: the metrics of the table.
      form: prompt in words, for the card.
      chance: score of a guess; None if it is not a share.
      shots: examples; None where there are none in this form.
      keep: which documents belong to it.
      heading: text before the examples.
      generation: how texts are generated; None for log-likelihoods.
      cut: of a request's tokens.
      shuffle_seed: of the order of the documents; None keeps that of the file.
      lower_is_better: True where a high score is bad, as of over-refusals.
      note: limits of the task, for the card.
    """

    name: str
    files: Sequence[str]
    item: Callable[[Document], Item | Prompt]
    main: Sequence[str]
    form: str
    chance: float | None
    shots: Shots | None = None
    keep: Callable[[Document], bool] = lambda document: True
    heading: str = ''
    generation: Generation | None = None
    cut: Cut = 'context'
    shuffle_seed: int | None = None
    lower_is_better: bool = False
    note: str = ''


@dataclasses.dataclass(frozen=True)
class Group:
    """Several tasks and the mean of their scores.

    Attributes:
      name: on the command line.
      tasks: its members.
      metric: that is averaged.
      by_item: whether every item counts alike, as in MMLU, or every task.
      note: limits, for the card.
    """

    name: str
    tasks: Sequence[Task]
    metric: str
    by_item: bool = False
    note: str = ''


def grade_item(item: Item, answers: Sequence[Any], n_tokens: Sequence[int], cut: Cut) -> dict[str, float]:
    """Metrics of an item.

    Args:
      item: the requests.
      answers: `score.Answer` of each.
      n_tokens: of each continuation.
      cut: of the task. Where it is not that of lm-eval, choices compare by their mean per token, as in DCLM CORE.
    """
    values = [answer.log_likelihood for answer in answers]
    if isinstance(item.gold, str):
        return {'acc': float(answers[0].is_greedy), 'log_likelihood': values[0]}
    if not isinstance(item.gold, int):
        return {'mc2': metrics.mass_on(values, item.gold)}
    lengths = item.lengths or [continuation for _, continuation in item.requests]
    found = metrics.choice_metrics(values, lengths, item.gold, n_tokens)
    return found if cut == 'context' else {'acc': found['acc_per_token']}


def grade_each(grade: Callable[[Document, str], Grade]) -> Callable[..., list[list[Grade]]]:
    """Makes the `grade` of a `Generation` from one that grades a single text."""
    return lambda items: [[grade(document, text) for text in texts] for document, texts in items]
