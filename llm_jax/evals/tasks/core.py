"""DCLM CORE (Li et al. 2024, arXiv:2406.11794): few-shot accuracies above chance, and their mean.

Prompts, order, examples and the choice by mean log-probability of a token are those that nanochat runs it with.
"""

from collections.abc import Callable, Mapping
import functools
from typing import NamedTuple

from llm_jax.evals.tasks.task import Cut, Document, Group, Item, Shots, Task

_ANSWER = '\nAnswer: '


class _Row(NamedTuple):
    """A task of CORE: files, kind of its documents, examples, what follows a question, score of a guess."""

    files: tuple[str, ...]
    kind: str
    n_shots: int
    delimiter: str
    chance: float


def _choice(document: Document, delimiter: str) -> Item:
    context = f'{document["query"]}{delimiter}'
    return Item([(context, choice) for choice in document['choices']], document['gold'])


def _schema(document: Document, delimiter: str) -> Item:
    ending = document['continuation']
    return Item([(f'{context}{delimiter}', ending) for context in document['context_options']], document['gold'])


def _language(document: Document, delimiter: str) -> Item:
    return Item([(f'{document["context"].strip()}{delimiter}', document['continuation'])], document['continuation'])


_KINDS: Mapping[str, tuple[Callable[[Document, str], Item], Cut]] = {
    'choice': (_choice, 'common_prefix'),
    'schema': (_schema, 'common_suffix'),
    'language': (_language, 'common_prefix'),
}


_HELLASWAG, _LAMBADA = ('hellaswag.jsonl',), ('lambada_openai.jsonl',)
_TASKS = {
    'hellaswag_zeroshot': _Row(_HELLASWAG, 'choice', 0, ' ', 0.25),
    'jeopardy': _Row(('jeopardy_all.jsonl', 'jeopardy.jsonl.gz'), 'language', 10, _ANSWER, 0.0),
    'bigbench_qa_wikidata': _Row(('bigbench_qa_wikidata.jsonl',), 'language', 10, ' ', 0.0),
    'arc_easy': _Row(('arc_easy.jsonl', 'arc_easy_test.jsonl.gz'), 'choice', 10, _ANSWER, 0.25),
    'arc_challenge': _Row(('arc_challenge.jsonl', 'arc_challenge_test.jsonl.gz'), 'choice', 10, _ANSWER, 0.25),
    'copa': _Row(('copa.jsonl', 'copa_val.jsonl'), 'choice', 0, ' ', 0.5),
    'commonsense_qa': _Row(('commonsense_qa.jsonl',), 'choice', 10, ' ', 0.2),
    'piqa': _Row(('piqa.jsonl', 'piqa_val.jsonl.gz'), 'choice', 10, _ANSWER, 0.5),
    'openbook_qa': _Row(('openbook_qa.jsonl', 'openbook_qa_test.jsonl'), 'choice', 0, ' ', 0.25),
    'lambada_openai': _Row(_LAMBADA, 'language', 0, ' ', 0.0),
    'hellaswag': _Row(_HELLASWAG, 'choice', 10, ' ', 0.25),
    'winograd': _Row(('winograd_wsc.jsonl',), 'schema', 0, ' ', 0.5),
    'winogrande': _Row(('winogrande.jsonl', 'winogrande_val.jsonl.gz'), 'schema', 0, ' ', 0.5),
    'bigbench_dyck_languages': _Row(('bigbench_dyck_languages.jsonl',), 'language', 10, ' ', 0.0),
    'agi_eval_lsat_ar': _Row(('agi_eval_lsat_ar.jsonl',), 'choice', 3, ' ', 0.2),
    'bigbench_cs_algorithms': _Row(('bigbench_cs_algorithms.jsonl',), 'language', 10, ' ', 0.0),
    'bigbench_operators': _Row(('bigbench_operators.jsonl',), 'language', 10, ' ', 0.0),
    'bigbench_repeat_copy_logic': _Row(('bigbench_repeat_copy_logic.jsonl',), 'language', 10, ' ', 0.0),
    'squad': _Row(('squad.jsonl',), 'language', 10, ' ', 0.0),
    'coqa': _Row(('coqa.jsonl',), 'language', 0, ' ', 0.0),
    'boolq': _Row(('boolq.jsonl', 'boolq_val.jsonl.gz'), 'choice', 10, _ANSWER, 0.62),
    'bigbench_language_identification': _Row(('bigbench_language_identification.jsonl',), 'choice', 10, ' ', 0.091),
}


def _example(make: Callable[[Document, str], Item], delimiter: str, document: Document) -> str:
    item = make(document, delimiter)
    context, ending = item.requests[item.gold if isinstance(item.gold, int) else 0]
    return f'{context}{ending}\n\n'


def core_task(name: str) -> Task:
    """One of the 22 tasks."""
    row = _TASKS[name]
    make, cut = _KINDS[row.kind]
    return Task(
        f'core_{name}', row.files, functools.partial(make, delimiter=row.delimiter), ('acc', 'centred'),
        f'DCLM CORE, {row.kind}, {row.n_shots} examples', row.chance,
        shots=Shots(functools.partial(_example, make, row.delimiter), draw='item', default=row.n_shots),
        cut=cut, shuffle_seed=1337,
    )  # fmt: skip


NAMES = tuple(_TASKS)
CORE = Group(
    'core', [core_task(name) for name in NAMES], 'centred',
    note='the mean over the tasks whose data are there; only that over all 22 is CORE',
)  # fmt: skip
