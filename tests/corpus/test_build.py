"""A corpus is what its stages make of its sources, whoever makes it, however often it is killed on the way."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import building
import numpy as np
import pytest
import tensorflow_datasets as tfds

from llm_jax.config.schema import ConfigError
from llm_jax.corpus import build as build_lib
from llm_jax.corpus.dedup import exact, near
from llm_jax.corpus.document import Document
from llm_jax.corpus.engines.local import Local
from llm_jax.corpus.exchange import run_in_memory
from llm_jax.corpus.splits import SPLITS

FILES = {'a1': building.texts(80, 1), 'a2': building.texts(40, 2), 'b': building.texts(60, 3)}


@pytest.fixture
def directory(tmp_path):
    building.write(tmp_path, FILES)
    return tmp_path


def build(config, workers=1, **options):
    engine = Local(workers, **options)
    try:
        return build_lib.build(config, engine)
    finally:
        engine.close()


def published(out, source, split):
    builder = tfds.builder_from_directory(f'{out}/documents/{source}')
    if split not in builder.info.splits:
        return []
    rows = builder.as_data_source(split=split)
    return [{name: value.decode() for name, value in rows[i].items()} for i in range(len(rows))]


def test_documents_are_what_the_stages_make(directory):
    config = building.config(directory)
    manifest = build(config)
    shards = [
        [
            Document(f'{name}/{i}', name[0], '', text.upper(), 'text')
            for i, text in enumerate(FILES[name])
            if 'banana' not in text
        ]
        for name in FILES
    ]
    for exchange in (exact.make(exact.Exact()), near.make(near.Near())):
        results = run_in_memory(exchange, shards)
        shards = [[one for one in shard if isinstance(one, Document)] for shard in results]
    assert sum(map(len, shards)) < sum(map(len, FILES.values())) - 20  # something was found
    for source in 'ab':
        expected = [one for shard in shards for one in shard if one.source == source]
        found = [one for split in SPLITS for one in published(config.out, source, split)]
        assert sorted(one['text'] for one in found) == sorted(one.text for one in expected)
        assert len({one['id'] for one in found}) == len(found)
        assert all(json.loads(one['signals'])['shout.length'] == len(one['text']) for one in found)
        counts = manifest['sources'][source]['stages']
        assert counts[-1]['documents'] == len(expected)
        assert counts[-1]['bytes'] == sum(len(one.text.encode()) for one in expected)
    assert manifest == json.loads(pathlib.Path(config.out, 'manifest.json').read_text())


def test_what_goes_in_comes_out_or_is_counted(directory):
    (directory / 'b.jsonl').write_text((directory / 'b.jsonl').read_text() + 'not json\n{"text": ""}\n{"text": 7}\n')
    manifest = build(building.config(directory))
    for source, counts in manifest['sources'].items():
        names = [row['stage'] for row in counts['stages']]
        assert names == ['read', 'extract', 'no_bananas', 'Shout', 'exact', 'near']
        for before, after in zip(counts['stages'][:-1], counts['stages'][1:], strict=True):
            gone = sum(dropped['documents'] for dropped in after['dropped'].values())
            assert before['documents'] - gone == after['documents'], (source, after['stage'])
    assert sum(manifest['sources']['b']['broken'].values()) + sum(manifest['sources']['b']['skipped'].values()) >= 2
    assert 'no_bananas.found' in manifest['sources']['a']['stages'][2]['dropped']


def test_clusters_are_on_one_side_of_the_split(directory):
    config = building.config(directory, near__threshold=0.999, near__cluster_threshold=0.6)
    build(config)
    split_of = {}
    found = [(split, one) for source in 'ab' for split in SPLITS for one in published(config.out, source, split)]
    for split, one in found:
        if one['cluster']:
            assert split_of.setdefault(one['cluster'], split) == split
    sizes = [sum(one['cluster'] == cluster for _, one in found) for cluster in split_of]
    assert len(sizes) > 3 and max(sizes) > 1 and len(set(split_of.values())) > 1


@pytest.mark.parametrize('workers', [1, 2])
def test_two_runs_and_any_number_of_workers_are_the_same(directory, workers):
    first, second = building.config(directory, 'first'), building.config(directory, 'second')
    build(first)
    # Ranges of keys of 64 records at most.
    build(second, workers, range_bytes=2000)
    assert building.hashes(first.out) == building.hashes(second.out)
    assert 'report.html' in building.hashes(first.out)


def test_beam_makes_the_same(directory):
    pytest.importorskip('apache_beam', reason='Apache Beam is an extra with an environment of its own')
    from llm_jax.corpus.engines.beam import Beam

    local, beam = building.config(directory, 'local'), building.config(directory, 'beam')
    build(local)
    build_lib.build(beam, Beam(['--runner=FnApiRunner'], range_bytes=100_000))
    assert building.hashes(local.out) == building.hashes(beam.out)


def test_beam_wants_a_runner():
    pytest.importorskip('apache_beam', reason='Apache Beam is an extra with an environment of its own')
    from llm_jax.corpus.engines.beam import Beam

    with pytest.raises(ConfigError, match='--runner=FnApiRunner'):
        Beam([])


CHILD = """
import sys
sys.path[:0] = [{tests!r}]
import building, pathlib
from llm_jax.corpus.build import build
from llm_jax.corpus.engines.local import Local
if __name__ == '__main__':
    build(building.config(pathlib.Path({directory!r})), Local(2))
"""


def start(directory):
    script = directory / 'child.py'
    script.write_text(CHILD.format(tests=str(pathlib.Path(__file__).parents[1]), directory=str(directory)))
    return subprocess.Popen([sys.executable, str(script)], stderr=subprocess.DEVNULL, start_new_session=True)


def test_killed_it_goes_on_with_what_is_not_done(directory):
    (directory / 'hold').touch()
    child = start(directory)
    deadline = time.monotonic() + 120
    while not (directory / 'holding').exists() and time.monotonic() < deadline and child.poll() is None:
        time.sleep(0.05)
    time.sleep(1)  # the other worker goes on
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    before = (directory / 'calls').read_text().split()
    (directory / 'hold').unlink()
    config = building.config(directory)
    work = pathlib.Path(config.work)
    # Shards whose DONE was there are not looked at again.
    done = {file.parent.name for file in work.glob('clean/*/done.json')}
    extracted = {file: file.stat().st_mtime_ns for file in work.glob('extract/*/done.json')}
    assert extracted and not pathlib.Path(config.out, 'manifest.json').exists()
    build(config, 2)
    after = (directory / 'calls').read_text().split()[len(before) :]
    stored = {name: json.loads((work / 'clean' / name / 'done.json').read_text()) for name in done}
    finished = sum(one['tally']['passed'].get('no_bananas', [0])[0] for one in stored.values())
    assert len(after) <= sum(map(len, FILES.values())) - finished
    assert all(file.stat().st_mtime_ns == time_ns for file, time_ns in extracted.items())
    clean = building.config(directory, 'clean')
    build(clean)
    assert building.hashes(config.out) == building.hashes(clean.out)


def times(config, step):
    return {file: file.stat().st_mtime_ns for file in pathlib.Path(config.work).glob(f'{step}/**/done.json')}


def test_a_change_makes_anew_what_follows_from_it(directory):
    config = building.config(directory)
    first = build(config)
    extract, clean, rows = times(config, 'extract'), times(config, 'clean'), times(config, 'rows')
    assert build(config) == first and times(config, 'rows') == rows
    # Another row length: documents and the tokenizer stay.
    shorter = building.config(directory, packing__seq_len=16)
    assert build(shorter)['rows']['seq_len'] == 16
    assert times(config, 'clean') == clean and not set(times(config, 'rows')) & set(rows)
    # Another input: the others are not read again.
    (directory / 'a2.jsonl').write_text(json.dumps({'text': 'quite another text ' * 9}) + '\n')
    build(config)
    again = times(config, 'extract')
    assert len(set(again) & set(extract)) == 2 and len(again) == 3
    assert all(again[file] == extract[file] for file in set(again) & set(extract))
    # What belongs to no step of this config is gone.
    assert not set(times(config, 'extract')) - set(again)
    # Code of one's own is looked at: a stage that does something else.
    (directory / 'stages.py').write_text(building.STAGES.replace("'banana' in", "'cherry' in"))
    changed = build(config)
    assert changed['sources']['a']['stages'][2] != first['sources']['a']['stages'][2]


def test_stages_can_be_left_out_and_differ_by_source(directory):
    table = {'a': {'path': f'{directory}/a*.jsonl', 'stages': ('normalise',)}, 'b': f'{directory}/b.jsonl'}
    config = building.config(directory, sources=table, stages=(), dedup=())
    manifest = build(config)
    assert [row['stage'] for row in manifest['sources']['a']['stages']] == ['read', 'extract', 'normalise']
    assert [row['stage'] for row in manifest['sources']['b']['stages']] == ['read', 'extract']
    found = [one['text'] for split in SPLITS for one in published(config.out, 'b', split)]
    assert sorted(found) == sorted(FILES['b'])


def test_finish_comes_after_duplicates(directory):
    config = building.config(directory, stages=(), finish=(f'{directory}/stages.py:no_bananas',))
    manifest = build(config)
    assert [row['stage'] for row in manifest['sources']['a']['stages']][2:] == ['exact', 'near', 'no_bananas']


def test_nothing_left_says_so_and_reports_why(directory):
    config = building.config(directory, stages=(f'{directory}/stages.py:everything_goes',))
    with pytest.raises(ConfigError, match=r'no document is left to train on; .*report\.html'):
        build(config)
    report = pathlib.Path(config.out, 'report.html').read_text()
    assert 'everything_goes.all' in report and not pathlib.Path(config.out, 'manifest.json').exists()


@pytest.mark.parametrize('workers', [1, 2])
def test_a_stage_that_gives_nothing_is_told(directory, workers):
    config = building.config(directory, stages=(f'{directory}/stages.py:nothing',))
    with pytest.raises(ConfigError, match="'nothing' gave NoneType for document [ab]/"):
        build(config, workers)


def test_a_full_disk_is_one_clear_error_and_nothing_is_lost(directory):
    # A limit on the size of files is met as a full disk is: by an error of write().
    code = CHILD.format(tests=str(pathlib.Path(__file__).parents[1]), directory=str(directory)).replace(
        "    build(", '    import resource, signal\n    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n'
        '    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, resource.RLIM_INFINITY))\n    build('
    ).replace('Local(2)', 'Local(1)')  # fmt: skip
    child = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert child.returncode != 0
    last = child.stderr.strip().splitlines()[-1]
    assert 'ConfigError: cannot write' in last and 'make room' in last
    config = building.config(directory)
    assert not list(pathlib.Path(config.work).rglob('*.partial'))
    build(config)


def test_places_that_cannot_be_written(directory):
    (directory / 'file').write_text('')
    with pytest.raises(ConfigError, match='cannot write .*file/'):
        build(building.config(directory, 'file/out'))


def test_a_damaged_shard_is_named(directory):
    config = building.config(directory)
    build(config)
    (shard, *_) = sorted(pathlib.Path(config.work).glob('dedup/near-*/*/*.zst'))
    os.remove(pathlib.Path(config.out, 'manifest.json'))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 0xFF
    shard.write_bytes(data)
    with pytest.raises(ConfigError, match=r'\.zst is damaged'):
        build(building.config(directory, finish=('normalise',)))


def test_two_runs_at_a_time_are_refused(directory):
    (directory / 'hold').touch()
    child = start(directory)
    try:
        deadline = time.monotonic() + 120
        while not (directory / 'holding').exists() and time.monotonic() < deadline and child.poll() is None:
            time.sleep(0.05)
        with pytest.raises(ConfigError, match='another run'):
            build(building.config(directory))
    finally:
        child.kill()
        child.wait()


def test_workers_end_with_their_parent(directory):
    (directory / 'hold').touch()
    child = start(directory)
    deadline = time.monotonic() + 120
    while not (directory / 'holding').exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    child.kill()
    child.wait()
    alive = lambda: subprocess.run(['pgrep', '-g', str(child.pid)], capture_output=True, text=True).stdout.split()
    while alive() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not alive()


@pytest.mark.slow
def test_memory_is_that_of_a_shard(directory):
    """Ten times the data at the same peak."""
    peaks = []
    for times_ in (1, 10):
        where = directory / f'x{times_}'
        names = {f'a{i:03d}': building.texts(4000, i, words=200) for i in range(4 * times_)} | {'b': FILES['b']}
        building.write(where, names)
        code = CHILD.format(tests=str(pathlib.Path(__file__).parents[1]), directory=str(where)).replace(
            f'    build(building.config(pathlib.Path({str(where)!r})), Local(2))',
            f"    build(building.config(pathlib.Path({str(where)!r}), shard_bytes=4_000_000, dedup=('exact',), "
            'tokenizer__sample_bytes=1_000_000), Local(1))',
        )
        subprocess.run([sys.executable, '-c', code], check=True)
        peaks.append(json.loads((where / 'out' / 'timing.json').read_text())['peak_bytes_of_a_process'])
    assert peaks[1] < 1.15 * peaks[0], np.array(peaks) / 1e6
