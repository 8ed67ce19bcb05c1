"""How a rule group becomes a stage: measure, keep what was measured, compare with thresholds."""

from collections.abc import Callable, Collection, Mapping
import dataclasses
import math

from llm_jax.corpus.document import Document, Dropped, Stage
from llm_jax.corpus.filter import signals

# Lowest and highest value that is kept, by the name of a signal.
Bounds = Mapping[str, tuple[float, float]]
# Kinds of document whose text is prose, and those whose text is a program.
PROSE = ('html', 'text', 'markdown')
CODE = ('code', 'notebook')

INFINITY = math.inf


def stage(group: str, kinds: Collection[str], measure: Callable[[signals.Text], dict], bounds: Bounds) -> Stage:
    """A stage that drops what lies outside the bounds.

    Args:
      group: name of the rule group; before the name of each signal and reason.
      kinds: kinds of document that it judges; others pass as they are.
      measure: a text's signals by name.
      bounds: what is kept; the first signal outside them is the reason.
    """

    def run(document: Document) -> Document | Dropped:
        if document.kind not in kinds:
            return document
        measured = measure(signals.view(document.text))
        document = with_signals(document, group, measured)
        found = missed(measured, bounds)
        return document if found is None else Dropped(document, f'{group}.{found[0]}', found[1])

    return run


def missed(measured: Mapping[str, float], bounds: Bounds) -> tuple[str, str] | None:
    """The first signal outside its bounds and by how much ('words', '12 < 50'), or None.

    A signal that was not measured is not judged.
    """
    for name, (low, high) in bounds.items():
        value = measured.get(name)
        if value is None:
            continue
        if value < low:
            return name, f'{value:.4g} < {low:g}'
        if value > high:
            return name, f'{value:.4g} > {high:g}'
    return None


def with_signals(document: Document, group: str, measured: Mapping[str, float]) -> Document:
    """The document with these signals beside those it has, named 'GROUP.NAME'."""
    named = {f'{group}.{name}': value for name, value in measured.items()}
    return dataclasses.replace(document, signals={**document.signals, **named})


def joined(lines: list[str]) -> str:
    """The lines as a text, with one blank line where there were blank lines between two that stay."""
    out = []
    for line in lines:
        if line or (out and out[-1]):
            out.append(line)
    return '\n'.join(out).strip('\n')
