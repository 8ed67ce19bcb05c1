import html.parser
import json
import math
import os
import pathlib
import re
import runpy
import subprocess
import sys

import numpy as np
import pytest
from run_directories import INFO, write_run

from llm_jax import config, report
from llm_jax.config import schema
from llm_jax.report import run_charts, run_facts
from llm_jax.report.run import read_run

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def run_dir(tmp_path) -> pathlib.Path:
    return write_run(tmp_path / 'tiny')


def written(directory: pathlib.Path) -> tuple[str, str]:
    report.write_report(directory)
    return tuple((directory / name).read_text().replace('\xa0', ' ') for name in ('report.html', 'report.md'))


class Page(html.parser.HTMLParser):
    """The tags, attributes and text of a page; checks that tags are closed in order."""

    VOID = {'meta', 'link', 'br', 'img', 'col', 'input', 'hr'}

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.attributes, self.text, self._open = [], [], '', []
        self.feed(text)
        self.close()
        assert not self._open, self._open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] != 'style':
            self.text += data


def test_both_reports_hold_the_numbers(run_dir):
    page, markdown = written(run_dir)
    text = re.sub(r'\s+', ' ', Page(page).text)
    for shown in (
        '1.004 bits per byte', '49.8 % below gzip -9, which needs 2.000',  # (2 + 6 exp(-200/30)) / 2
        '7.45', '1 min 40 s', '14.2 k', '41.3 %', '8.69 M', '819 k', '1.64 epochs', 'step 200 of 200',
        '2 × cpu', 'data 1 × fsdp 2 × tensor 1', 'jax 0.10.2', '1,502', '22.3 MB', 'all', '1,510', '3.46',
        INFO['command'], 'tiny run', 'at_50', 'at_200',
    ):  # fmt: skip
        assert shown in text, shown
        assert shown in markdown.replace('**', ''), shown
    assert 'at_100' in text  # between the first and the last: only the page has room for it
    assert page.count('<svg') == 6


def test_page_needs_nothing_else(run_dir):
    page, _ = written(run_dir)
    parsed = Page(page)
    assert not {'script', 'link', 'img', 'iframe', 'object'} & set(parsed.tags)
    assert not re.search(r'https?:|//\w|@import|url\((?!#)', page)
    links = [value for name, value in parsed.attributes if name in ('href', 'src', 'xlink:href')]
    assert links and all(link.startswith('#') for link in links)  # the markers inside the charts
    ids = [value for name, value in parsed.attributes if name == 'id']
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in links} <= set(ids)
    clips = set(re.findall(r'url\(#(\w+)\)', page))
    assert clips and clips <= set(ids)


def test_charts_take_the_colours_of_the_page(run_dir):
    page, _ = written(run_dir)
    svg = ''.join(re.findall(r'<svg.*?</svg>', page, flags=re.DOTALL))
    assert 'var(--main)' in svg and 'var(--muted)' in svg
    assert not re.findall(r'#(?:[0-9a-f]{6}|[0-9a-f]{3})\b(?=[;"])', svg)
    assert '<text' in svg  # selectable, not outlines
    assert 'prefers-color-scheme: dark' in page


def test_samples_cannot_break_out(run_dir):
    page, markdown = written(run_dir)
    assert '<script' not in page and '&lt;script&gt;' in page
    for text in (page, markdown):
        assert '\x1b' not in text and '\x00' not in text and r'\x1b[31m\x00' in text
    assert '````text\ndef at_50' in markdown  # a fence longer than the sample's own


def test_config_shows_what_differs(run_dir):
    page, markdown = written(run_dir)
    rows = dict(run_facts.config_sections(read_run(run_dir)))
    changed = {f'{s}.{row.name}' for s, section in rows.items() for row in section if row.changed}
    assert changed == {'experiment.name', 'model.n_layers', 'model.vocab_size'}
    everything = sum(len(section) for section in rows.values())
    assert everything == len(config.describe(schema.Config()))
    assert '| model.n\\_layers | 3 | 6 |' in markdown.replace('model.n_layers', 'model.n\\_layers')
    assert page.count('class="changed"') == 2 * 3  # on their own, and among all


def test_a_field_that_is_gone_is_shown_as_such(run_dir):
    values = json.loads((run_dir / 'config.json').read_text())
    values['model']['flux'] = 'capacitor'
    (run_dir / 'config.json').write_text(json.dumps(values))
    page, _ = written(run_dir)
    assert 'capacitor' in page and 'not a field of this version' in page


@pytest.mark.parametrize('kept', ['config.json', 'run.json', 'metrics.jsonl'])
def test_any_single_file_makes_a_report(run_dir, kept):
    for path in list(run_dir.iterdir()):
        if path.name != kept:
            path.unlink()
    page, markdown = written(run_dir)
    Page(page)
    assert ('No step has been logged yet' in page) == (kept != 'metrics.jsonl')
    assert 'No samples have been drawn yet' in page and 'No samples have been drawn yet' in markdown
    assert ('has not been evaluated' in page) == (kept != 'metrics.jsonl')


def test_a_killed_run_says_so(run_dir):
    lines = (run_dir / 'metrics.jsonl').read_text().splitlines(keepends=True)
    (run_dir / 'metrics.jsonl').write_text(''.join(lines[:30]) + lines[30][:20])
    (run_dir / 'run.json').write_text(json.dumps({'status': 'running', 'total_steps': 200}))
    page, markdown = written(run_dir)
    for text in (page, markdown):
        assert 'not finished when this was written · step 30 of 200' in text
        assert 'has not been evaluated on the validation split yet' in text


def test_non_finite_numbers_leave_gaps(run_dir):
    with open(run_dir / 'metrics.jsonl', 'a') as file:
        file.write('{"step": 201, "loss": "NaN", "grad_norm": "Infinity", "tokens": 823296, "seconds": 100.5}\n')
    page, _ = written(run_dir)
    assert page.count('<svg') == 6 and 'nan' not in ''.join(re.findall(r'<svg.*?</svg>', page, flags=re.DOTALL))


def test_worse_than_gzip_is_said_plainly(run_dir):
    info = json.loads((run_dir / 'run.json').read_text())
    info['data']['gzip_bits_per_byte'] = 0.8
    (run_dir / 'run.json').write_text(json.dumps(info))
    assert '25.5 % above gzip -9' in written(run_dir)[0]


def test_time_adds_up_over_restarts(run_dir):
    with open(run_dir / 'metrics.jsonl', 'a') as file:
        for step, seconds in ((201, 1.0), (202, 4.0)):
            file.write(json.dumps({'step': step, 'seconds': seconds}) + '\n')
    assert read_run(run_dir).seconds() == 104.0
    (run_dir / 'metrics.jsonl').unlink()
    assert read_run(run_dir).seconds() == 300.0  # from the start to the finish


def test_smoothing_against_the_sum_written_out():
    steps, values = [0, 1, 2, 5], [4.0, 2.0, float('nan'), 1.0]
    got = run_charts.smoothed(steps, values, span=0.4)  # a time constant of 2 steps
    for i, now in enumerate(steps):
        seen = [(math.exp(-(now - t) / 2), v) for t, v in zip(steps, values, strict=True) if t <= now and v == v]
        assert got[i] == pytest.approx(sum(w * v for w, v in seen) / sum(w for w, _ in seen))
    assert np.all(run_charts.smoothed([7], [3.0]) == 3.0)


def test_tool(run_dir):
    tool = [sys.executable, str(ROOT / 'tools' / 'report.py'), str(run_dir)]
    env = {**os.environ, 'PYTHONPATH': str(ROOT)}
    done = subprocess.run(tool, capture_output=True, text=True, env=env, check=False)
    assert (done.returncode, done.stderr) == (0, '') and 'report.html' in done.stdout
    assert (run_dir / 'report.html').exists() and (run_dir / 'report.md').exists()


@pytest.mark.parametrize('case', ['missing', 'empty', 'damaged'])
def test_tool_says_what_is_wrong_in_one_line(tmp_path, case, monkeypatch, capsys):
    directory = tmp_path / 'run'
    if case != 'missing':
        directory.mkdir()
    if case == 'damaged':
        (directory / 'config.json').write_text('{"model": ')
    monkeypatch.setattr(sys, 'argv', ['report', str(directory)])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / 'tools' / 'report.py'), run_name='__main__')
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count('\n') == 1 and str(directory) in error


def test_a_stage_of_post_training(tmp_path):
    """Accuracy leads; both sides of a pair share charts; classes have their confusion; the loss has its own unit."""
    directory = tmp_path / 'stage'
    directory.mkdir()
    (directory / 'run.json').write_text(json.dumps(INFO | {'loss_unit': 'nats per pair'}))
    lines = []
    for step in range(1, 41):
        sides = {'rewards_chosen': step / 40, 'rewards_rejected': -step / 40, 'accuracy': 0.5 + step / 100}
        lines.append({'step': step, 'loss': 0.7 - step / 100, **sides})
    confusion = {'ham/ham': 90.0, 'ham/spam': 3.0, 'spam/ham': 2.0, 'spam/spam': 1005.0}
    held_out = {'val/loss': 0.31, 'val/accuracy': 0.953, 'val/f1': 0.9, 'val/f1/ham': 0.8}
    lines += [{'step': 20, **held_out, 'val/accuracy': 0.9}]
    lines += [{'step': 40, **held_out, **{f'val/confusion/{name}': value for name, value in confusion.items()}}]
    (directory / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
    page, markdown = written(directory)
    text = re.sub(r'\s+', ' ', Page(page).text)
    for shown in ('95.3 % accuracy', 'the loss there is 0.310 nats per pair', 'taken for spam', '1,005'):
        assert shown in text, shown
        assert shown in markdown.replace('**', ''), shown
    assert 'Classes on the validation split' in text
    assert [chart.title for chart in run_charts.draw_all(read_run(directory))] == ['Loss', 'Accuracy', 'Rewards']
    assert run_facts.evaluations(read_run(directory)).header == ('step', 'loss', 'accuracy', 'f1')
