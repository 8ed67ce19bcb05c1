"""Strings, tokens, scores and metrics of lm-eval on one small model."""

import gzip
import json
import math
import pathlib

import pytest

from llm_jax.evals import encode, prompts
from llm_jax.evals.run import Evaluation, Options
from llm_jax.evals.sources import Sources
from llm_jax.evals.tasks import find_task
from llm_jax.interop import convert
from llm_jax.runs import load

# file of the reference -> task and number of examples
TASKS = {
    'arc_easy': ('arc_easy', 0),
    'arc_easy_3shot': ('arc_easy', 3),
    'blimp_anaphor_number_agreement': ('blimp_anaphor_number_agreement', 0),
    'hellaswag': ('hellaswag', 0),
    'lambada': ('lambada', 0),
    'mmlu_astronomy_0shot': ('mmlu_astronomy', 0),
    'piqa': ('piqa', 0),
    'truthfulqa_mc1': ('truthfulqa_mc1', 0),
}
SAME_SCORE, CLEAR_MARGIN = 1e-3, 2e-3


@pytest.fixture(scope='module')
def reference(shared_data: pathlib.Path) -> pathlib.Path:
    directory = shared_data / 'evals_reference'
    if not directory.exists():
        pytest.skip('the scores of the reference are not at hand')
    return directory


@pytest.fixture(scope='module')
def stories(shared_data: pathlib.Path, tmp_path_factory: pytest.TempPathFactory):
    run = tmp_path_factory.mktemp('stories') / 'run'
    checkpoint = shared_data / 'checkpoint'
    convert.from_llama2c(checkpoint / 'stories260K.bin', run, tokenizer=str(checkpoint / 'tok512.bin'))
    return load(run)


def read_reference(directory: pathlib.Path, name: str) -> dict:
    return json.loads(gzip.decompress((directory / f'stories260K.{name}.json.gz').read_bytes()))


@pytest.mark.parametrize('name', TASKS)
def test_strings_and_tokens_are_those_of_the_reference(name, reference, stories, shared_data):
    wanted = read_reference(reference, name)
    task, shots = TASKS[name]
    sources = Sources([shared_data / 'bench'])
    documents, _ = prompts.read_documents(sources, find_task(task))
    items = prompts.build_prompts(find_task(task), documents, sources, limit=wanted['n'], n_shots=shots)
    assert len(items) == len(wanted['items'])
    for (_, item), right in zip(items, wanted['items'], strict=True):
        assert len(item.requests) == len(right['requests'])
        for (context, continuation), request in zip(item.requests, right['requests'], strict=True):
            assert context == right.get('context', request.get('context'))
            assert continuation == request['continuation']
            options = {'bos': True, 'max_seq_len': wanted['max_length']}
            one = encode.encode_pair(stories.tokenizer, context, continuation, **options)
            assert list(one.continuation) == request['continuation_tokens']
            assert len(one.context) == request['n_context_tokens']
            assert one.context[0] == request['first_context_token']
            if 'context_tokens' in request:
                assert list(one.context) == request['context_tokens']


@pytest.mark.parametrize('name', ['hellaswag', 'lambada', 'mmlu_astronomy_0shot'])
def test_scores_and_metrics_are_those_of_the_reference(name, reference, stories, shared_data, tmp_path):
    wanted = read_reference(reference, name)
    task, shots = TASKS[name]
    sources = Sources([shared_data / 'bench'])
    results = Evaluation(stories, sources, Options(wanted['n'], shots)).run(find_task(task), tmp_path)
    lines = gzip.decompress((tmp_path / task / 'items.jsonl.gz').read_bytes()).decode().splitlines()
    rows = [json.loads(line) for line in lines]
    for row, right in zip(rows, wanted['items'], strict=True):
        for request, reference_request in zip(row['requests'], right['requests'], strict=True):
            assert request['loglikelihood'] == pytest.approx(reference_request['loglikelihood'], abs=SAME_SCORE)
            assert request['is_greedy'] == reference_request['is_greedy']
        if right.get('margin', 0) >= CLEAR_MARGIN:
            values = [request['loglikelihood'] for request in row['requests']]
            assert values.index(max(values)) == right['argmax']
        for metric in {'acc', 'acc_norm', 'acc_bytes'} & right.keys():
            assert row['metrics'][metric] == right[metric], (right['doc_id'], metric)
    for metric, entry in results['metrics'].items():
        if metric == 'perplexity':  # whose standard error the reference draws by bootstrap
            assert math.log(entry['value']) == pytest.approx(math.log(wanted['results']['perplexity,none']), abs=1e-4)
        elif f'{metric},none' in wanted['results']:
            assert entry['value'] == pytest.approx(wanted['results'][f'{metric},none'], abs=1e-9)
            assert entry['stderr'] == pytest.approx(wanted['results'][f'{metric}_stderr,none'], abs=1e-9)


def test_texts_have_the_scores_of_bos_given_once(reference, stories):
    wanted = read_reference(reference, 'rolling')
    found = Evaluation(stories, Sources([])).roll([item['target'] for item in wanted['items']])
    rights = [item['requests'][0]['loglikelihood_bos_once'] for item in wanted['items']]
    assert found == pytest.approx(rights, abs=2e-3)
    size = sum(len(item['target'].encode()) for item in wanted['items'])
    assert -sum(found) / math.log(2) / size == pytest.approx(wanted['bits_per_byte_bos_once'], abs=1e-5)


@pytest.mark.parametrize('name', ['copa', 'winogrande', 'jeopardy', 'boolq'])
def test_items_of_core_are_right_where_those_of_the_reference_are(name, reference, stories, shared_data, tmp_path):
    whole = json.loads((reference / 'core.stories.json').read_text())
    wanted = whole['tasks'][name]
    evaluation = Evaluation(stories, Sources([shared_data / 'bench']), Options(len(wanted['correct'])))
    found = evaluation.run(find_task(f'core_{name}'), tmp_path)
    lines = gzip.decompress((tmp_path / f'core_{name}' / 'items.jsonl.gz').read_bytes()).decode().splitlines()
    assert found['shots'] == wanted['num_fewshot'] and len(lines) == len(wanted['correct'])
    for line, right in zip(lines, wanted['correct'], strict=True):
        row = json.loads(line)
        means = sorted(one['loglikelihood'] / len(one['tokens']) for one in row['requests'])
        if len(means) == 1 or means[-1] - means[-2] > 1e-4:
            assert row['metrics']['acc'] == right, row['id']
    assert found['metrics']['centred']['value'] == pytest.approx(wanted['centered'], abs=1e-9)
