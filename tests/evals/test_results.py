"""Files of a task that is killed and resumed, and metrics of items, samples and groups."""

import gzip
import json

import pytest

from llm_jax.evals import metrics, results


def test_a_killed_task_resumes_after_its_last_whole_item(tmp_path):
    rows = [{'task': 'x', 'id': i, 'metrics': {'acc': 1.0}} for i in range(4)]
    first = results.Journal(tmp_path, {'task': 'x', 'seed': 1})
    first.append(rows[:2])
    first.append(rows[2:3])
    with open(tmp_path / 'items.jsonl.part', 'a') as file:
        file.write('{"task": "x", "id": 3, "met')  # killed while it was written
    second = results.Journal(tmp_path, {'task': 'x', 'seed': 1})
    assert second.rows == rows[:3] and second.results is None
    second.append(rows[3:])
    done = second.finish({'n': 4})
    assert done == {'task': 'x', 'seed': 1, 'n': 4}
    assert results.Journal(tmp_path, {'task': 'x', 'seed': 1}).results == done
    lines = gzip.decompress((tmp_path / 'items.jsonl.gz').read_bytes()).decode().splitlines()
    assert list(map(json.loads, lines)) == rows
    assert sorted(path.name for path in tmp_path.iterdir()) == ['items.jsonl.gz', 'results.json']


def test_items_of_other_settings_are_not_taken(tmp_path):
    results.Journal(tmp_path, {'seed': 1}).append([{'id': 0}])
    assert results.Journal(tmp_path, {'seed': 2}).rows == []
    results.Journal(tmp_path, {'seed': 2}).finish({})
    assert results.Journal(tmp_path, {'seed': 3}).results is None


def test_shares_have_wilsons_interval_and_other_means_a_normal_one():
    share = results.summarise_metric([1, 0, 0, 1])
    assert share['value'] == 0.5 and share['stderr'] == pytest.approx(0.288675, abs=1e-6)
    assert share['interval'] == metrics.wilson_interval([1, 0, 0, 1])
    other = results.summarise_metric([0.5, 0.25])
    assert other['interval'] == pytest.approx((0.375 - 1.96 * 0.125, 0.375 + 1.96 * 0.125), abs=1e-4)
    assert results.summarise_metric([1])['stderr'] is None


def test_several_samples_give_pass_and_majority():
    graded = [
        {'metrics': {'acc': right}, 'answer': answer}
        for right, answer in ((1, 'a'), (0, 'b'), (0, 'b'), (1, 'a'), (0, None))
    ]
    found = results.sample_metrics(graded, 'acc', votes=True)
    assert found['acc'] == pytest.approx(0.4)
    assert (found['pass@1'], found['pass@2'], found['pass@4']) == pytest.approx((0.4, 1 - 3 / 10, 1.0))
    assert found['pass@5'] == 1.0 and found['maj@1'] == 1.0 and found['maj@2'] == 0.5 and found['maj@5'] == 0.5
    assert results.sample_metrics(graded[:1], 'acc', votes=True) == {'acc': 1.0}
    assert not [key for key in results.sample_metrics(graded, 'acc', votes=False) if key.startswith('maj')]


def test_perplexity_and_centred_accuracy():
    rows = [{'metrics': {'acc': acc, 'log_likelihood': value}} for acc, value in ((1.0, -1.0), (0.0, -3.0))]
    found = results.summarise(rows, chance=0.25, is_centred=True)
    assert found['perplexity']['value'] == pytest.approx(7.389056)
    assert found['perplexity']['stderr'] == pytest.approx(7.389056 * 1.0)
    assert found['centred']['value'] == pytest.approx(1 / 3)
    assert found['centred']['stderr'] == pytest.approx(found['acc']['stderr'] / 0.75)


def test_groups_average_over_items_or_tasks_with_the_standard_error_of_that_mean():
    entry = lambda value, stderr: {'acc': {'value': value, 'stderr': stderr}}
    of = {'a': {'n': 300, 'metrics': entry(0.5, 0.03)}, 'b': {'n': 100, 'metrics': entry(0.1, 0.04)}}
    by_item = results.combine(of, 'acc', by_item=True)
    assert by_item['value'] == pytest.approx(0.4)
    assert by_item['stderr'] == pytest.approx(((0.75 * 0.03) ** 2 + (0.25 * 0.04) ** 2) ** 0.5)
    assert results.combine(of, 'acc', by_item=False)['value'] == pytest.approx(0.3)


def test_mutual_information_takes_what_the_context_makes_likelier():
    assert metrics.mutual_information([-5.0, -4.0], [-9.0, -4.0], 0) == 1.0
    assert metrics.mutual_information([-5.0, -4.0], [-5.0, -5.0], 0) == 0.0
