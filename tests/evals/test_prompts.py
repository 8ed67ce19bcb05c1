"""Order of documents and examples before them, in the draws of lm-eval and of nanochat."""

import json
import random

import pytest

from llm_jax.config.schema import ConfigError
from llm_jax.evals import prompts
from llm_jax.evals.sources import Sources
from llm_jax.evals.tasks import Item, Prompt, Shots, Task


def make_task(draw: str = 'stream', *, files: tuple[str, ...] = (), **fields) -> Task:
    shots = Shots(lambda document: f'[{document["n"]}]', files, draw=draw)
    item = lambda document: Item([(f'q{document["n"]}', ' a')], ' a')
    return Task('own', ['own.jsonl'], item, ('acc',), 'number', None, shots=shots, **fields)


def build(task: Task, tmp_path, *, n: int, limit: int = 0, n_shots: int = 0) -> list[str]:
    (tmp_path / 'own.jsonl').write_text('\n'.join(json.dumps({'n': i}) for i in range(n)))
    sources = Sources([tmp_path])
    documents, _ = prompts.read_documents(sources, task)
    built = prompts.build_prompts(task, documents, sources, limit=limit, n_shots=n_shots)
    return [item.requests[0][0] for _, item in built]


def test_examples_come_in_one_stream_from_the_documents_after_those_judged(tmp_path):
    first, second = build(make_task(), tmp_path, n=60, limit=2, n_shots=3)
    stream = random.Random(1234)
    assert first == ''.join(f'[{i + 2}]' for i in stream.sample(range(50), 3)) + 'q0'
    assert first.startswith('[51][30][9]')  # documents 49, 28 and 7 of the 50
    assert second == ''.join(f'[{i + 2}]' for i in stream.sample(range(50), 3)) + 'q1'


def test_examples_among_the_judged_leave_the_document_out(tmp_path):
    stream = random.Random(1234)
    for i, found in enumerate(build(make_task(), tmp_path, n=5, n_shots=2)):
        drawn = [one for one in stream.sample(range(5), 3) if one != i][:2]
        assert found == ''.join(f'[{one}]' for one in drawn) + f'q{i}'


def test_examples_of_core_have_a_stream_of_their_own_for_each_item(tmp_path):
    found = build(make_task('item', shuffle_seed=1337), tmp_path, n=9, limit=4, n_shots=2)
    order = list(range(9))
    random.Random(1337).shuffle(order)
    for i, prompt in enumerate(found):
        others = [j for j in range(4) if j != i]
        drawn = random.Random(1234 + i).sample(others, 2)
        assert prompt == ''.join(f'[{order[j]}]' for j in drawn) + f'q{order[i]}'


def test_the_first_of_another_file_and_a_heading(tmp_path):
    (tmp_path / 'dev.jsonl').write_text('{"n": "x"}\n{"n": "y"}\n{"n": "z"}')
    found = build(make_task('first', files=('dev.jsonl',), heading='# '), tmp_path, n=2, n_shots=2)
    assert found == ['# [x][y]q0', '# [x][y]q1']


def test_prompts_have_examples_too(tmp_path):
    task = make_task()
    task = Task('own', task.files, lambda document: Prompt('Q', 1), ('acc',), '', None, shots=task.shots, heading='# ')
    (tmp_path / 'own.jsonl').write_text('{"n": 1}\n{"n": 2}')
    sources = Sources([tmp_path])
    built = prompts.build_prompts(task, prompts.read_documents(sources, task)[0], sources, n_shots=1)
    assert [item.text for _, item in built] == ['# [2]Q', '# [1]Q']


def test_too_few_documents_for_the_examples_are_one_error(tmp_path):
    with pytest.raises(ConfigError, match='--shots 4: own has 4 documents for examples; ask for fewer'):
        build(make_task(), tmp_path, n=4, n_shots=4)
    with pytest.raises(ConfigError, match='has no item of own'):
        build(make_task(keep=lambda document: False), tmp_path, n=4)
