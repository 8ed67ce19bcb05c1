"""Benchmarks on a run's page: scores, chance, landmarks, groups, hardest and easiest items, texts."""

import gzip
import json
import pathlib

from run_directories import HOSTILE, write_run

from llm_jax import report
from llm_jax.report import scores


def write_task(run: pathlib.Path, name: str, results: dict, rows: list[dict] | None = None) -> None:
    folder = run / 'evals' / name
    folder.mkdir(parents=True)
    (folder / 'results.json').write_text(json.dumps({'task': name, 'main': ['acc'], 'chance': 0.25} | results))
    if rows:
        (folder / 'items.jsonl.gz').write_bytes(gzip.compress('\n'.join(map(json.dumps, rows)).encode()))


def entry(value: float) -> dict:
    return {'acc': {'value': value, 'stderr': 0.01, 'interval': [value - 0.1, value + 0.1]}}


def choice(number: int, margin: float) -> dict:
    requests = [
        {'context': f'question {number}', 'continuation': ' right', 'loglikelihood': margin},
        {'context': f'question {number}', 'continuation': ' wrong', 'loglikelihood': 0.0},
    ]
    return {'id': number, 'gold': 0, 'requests': requests, 'metrics': {'acc': float(margin > 0)}}


def text(number: int, right: float) -> dict:
    return {
        'id': number, 'prompt': HOSTILE, 'generations': [f'answer {number}'], 'gold': f'gold {number}',
        'metrics': {'acc': right},
    }  # fmt: skip


def make_run(tmp_path: pathlib.Path) -> pathlib.Path:
    run = write_run(tmp_path / 'tiny')
    write_task(run, 'chosen', {'n': 8, 'metrics': entry(0.5), 'anchors': {'acc': {'people (a source)': 0.9}}},
               [choice(i, margin) for i, margin in enumerate([3, -1, 5, -7, 2, -2, 9, 1])])  # fmt: skip
    write_task(run, 'written', {'n': 9, 'metrics': entry(0.3), 'shots': 5, 'samples': 4, 'temperature': 0.8},
               [text(i, float(i % 3 == 0)) for i in range(9)])  # fmt: skip
    write_task(run, 'part_a', {'n': 3, 'metrics': entry(0.2)})
    write_task(run, 'group', {'n': 3, 'metrics': entry(0.2), 'tasks': {'part_a': 0.2}, 'missing': ['part_b']})
    return run


def test_scores_are_a_table_with_groups_first_and_their_parts_last(tmp_path):
    results = scores.read_scores(make_run(tmp_path))
    assert [one['task'] for one in results] == ['group', 'chosen', 'written', 'part_a']
    table = scores.tabulate(results)
    rows = {row[0]: dict(zip(table.header, row, strict=True)) for row in table.rows}
    assert rows['chosen']['landmarks'] == 'people (a source) 0.9' and rows['chosen']['chance'] == '0.25'
    assert rows['chosen']['score'] == '0.5' and rows['chosen']['95 %'] == '0.400 to 0.600'
    assert rows['written']['asked'] == '5 examples, 4 samples at 0.8'
    assert rows['group']['asked'] == '1 tasks, 1 missing'


def test_the_hardest_and_easiest_items_and_right_and_wrong_texts_are_shown(tmp_path):
    run = make_run(tmp_path)
    chosen, written = scores.pick_examples(run, scores.read_scores(run))
    assert [item.label for item in chosen.items] == [
        'hardest 1: item 3, -7.00 nats', 'hardest 2: item 5, -2.00 nats', 'hardest 3: item 1, -1.00 nats',
        'easiest 1: item 6, +9.00 nats', 'easiest 2: item 2, +5.00 nats', 'easiest 3: item 0, +3.00 nats',
    ]  # fmt: skip
    assert chosen.items[0].answer == ' wrong' and chosen.items[3].answer == chosen.items[3].gold == ' right'
    assert [item.label for item in written.items] == [f'item {i}, acc {int(i % 3 == 0)}' for i in (0, 1, 2, 3, 4, 6)]


def test_the_page_has_them_and_stays_as_it_was_without(tmp_path):
    run = make_run(tmp_path)
    report.write_report(run)
    page, markdown = ((run / name).read_text() for name in ('report.html', 'report.md'))
    assert 'Benchmarks' in page and 'hardest 1: item 3' in page and 'answer 0' in page and '<script>' not in page
    assert '| chosen | acc |' in markdown
    plain = write_run(tmp_path / 'plain')
    report.write_report(plain)
    assert 'Benchmarks' not in (plain / 'report.html').read_text()
