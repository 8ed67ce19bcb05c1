"""The tool: one command from an experiment to a corpus, and one line for each mistake."""

import importlib.util
import json
import pathlib
import re
import subprocess
import sys

import building
import pytest

ROOT = pathlib.Path(__file__).parents[2]


def tool():
    spec = importlib.util.spec_from_file_location('prepare_data', ROOT / 'tools' / 'prepare_data.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def experiment(tmp_path):
    building.write(tmp_path, {'a': building.texts(60, 1)})
    file = tmp_path / 'mine.py'
    file.write_text(
        building.STAGES + f'\nfrom llm_jax.corpus import schema\ndef get_config():\n    c = schema.default()\n'
        f'    c.sources = {{"a": "{tmp_path}/a.jsonl"}}\n    c.stages = (no_bananas,)\n    c.out = "{tmp_path}/out"\n'
        '    c.tokenizer.vocab_size = 320\n    c.packing.seq_len = 32\n    return c\n'
    )
    return file


def test_a_corpus_from_an_experiment(experiment, capsys):
    tool().main(
        [
            str(experiment),
            '--workers',
            '1',
            '--config.packing.seq_len=16',
            '--config.sources.a.limit=50',
            '--config.splits.validation=0.4',
        ]
    )
    manifest = json.loads((experiment.parent / 'out' / 'manifest.json').read_text())
    assert manifest['name'] == 'mine' and manifest['rows']['seq_len'] == 16
    assert manifest['sources']['a']['stages'][0]['documents'] == 50
    text = capsys.readouterr().out
    assert 'extract: 1' in text
    train, everything = re.search(
        r'([\d,]+) documents to train on \(([\d,]+) with validation and test\)', text
    ).groups()
    page = (experiment.parent / 'out' / 'report.html').read_text()
    assert f'<div>{train}</div>' in page and f'{everything} with validation and test' in page.replace('\xa0', ' ')


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--workers', '0'], 'argument --workers: 0 must be at least 1'),
        (
            ['--runner=FnApiRunner'],
            "unknown option '--runner'; options of Apache Beam need --engine beam",
        ),
        (['--config.stages=gopher'], "stages = 'gopher' is str; it must be tuple"),
        (['--config.packing.sequence=3'], "no field 'packing.sequence'"),
        (['--config.sources.a.path=/nowhere/*.txt'], '/nowhere'),
    ],
)
def test_mistakes_are_one_line(experiment, arguments, message):
    command = [sys.executable, str(ROOT / 'tools' / 'prepare_data.py'), str(experiment), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and message in done.stderr
    assert done.stderr.startswith('error: ') and done.stderr.count('\n') == 1


def test_beam_that_is_missing_is_told(experiment):
    if importlib.util.find_spec('apache_beam'):
        pytest.skip('Apache Beam is installed')
    command = [
        sys.executable,
        str(ROOT / 'tools' / 'prepare_data.py'),
        str(experiment),
        '--engine',
        'beam',
        '--runner=X',
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and 'tools/requirements/beam.txt' in done.stderr and done.stderr.count('\n') == 1
