"""Every kind of page in a browser, on a phone and on a laptop: nothing overflows, no text is cut or lies on another.

All pages are measured in one start of a browser; where there is none, these tests are skipped.
"""

import html
import json
import re
import shutil
import subprocess

import pytest
from run_directories import INFO, write_run
from test_plan_page import plan

from llm_jax import report
from llm_jax.report import comparison, coord_check, corpus, extrapolation, transfer
from llm_jax.report import plan as plan_page

BROWSER = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome', 'chrome'))), None)
WIDTHS = (400, 1200)
LONG = 'wikipedia_and_some_books_of_the_last_century-cleaned.and.deduplicated'
# Measures one page in a frame; parentheses make it an expression.
MEASURE = """(frame => {
  const page = frame.contentDocument, root = page.documentElement, found = [];
  for (const details of page.querySelectorAll('details')) details.open = true;
  if (root.scrollWidth > root.clientWidth) found.push(`the page is ${root.scrollWidth} wide`);
  for (const cell of page.querySelectorAll('td, th, .card div, .card small, h1, h2, h3, p, summary, .word')) {
    const box = cell.getBoundingClientRect(), shows = box.width && cell.clientWidth;
    if (shows && box.right > root.clientWidth + 1) found.push('beyond the page: ' + cell.textContent);
    if (shows && cell.scrollWidth > cell.clientWidth + 1) found.push('cut: ' + cell.textContent);
  }
  for (const cell of page.querySelectorAll('td.n, .card div')) {
    const range = page.createRange();
    range.selectNodeContents(cell);
    const lines = new Set([...range.getClientRects()].map(box => Math.round(box.top)));
    if (lines.size > 1 && /\\d/.test(cell.textContent)) found.push('broken: ' + cell.textContent);
  }
  for (const box of page.querySelectorAll('.scroll'))
    if (box.scrollWidth > box.clientWidth + 1) found.push('has to be scrolled: ' + box.textContent.trim().slice(0, 40));
  for (const svg of page.querySelectorAll('svg')) {
    const frame = svg.getBoundingClientRect(), texts = [...svg.querySelectorAll('text')];
    const boxes = texts.map(text => text.getBoundingClientRect());
    const scale = frame.width / svg.viewBox.baseVal.width;
    texts.forEach((text, i) => {
      const a = boxes[i], size = parseFloat(getComputedStyle(text).fontSize) * scale;
      if (a.left < frame.left - 1 || a.right > frame.right + 1 || a.top < frame.top - 1 || a.bottom > frame.bottom + 1)
        found.push('cut off: ' + text.textContent);
      if (size < 8 || size > 16) found.push(`letters of ${size} pixels: ` + text.textContent);
      for (let j = 0; j < i; j++) {
        const b = boxes[j];
        if (a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 3 && b.top < a.bottom - 3)
          found.push(`${text.textContent} lies on ${texts[j].textContent}`);
      }
    });
  }
  return found;
})"""


def measure(pages, directory):
    """(name, width) -> what is wrong with the page."""
    frames = ''.join(
        f'<iframe id="{name} {width}" style="width: {width}px; height: 900px" srcdoc="{html.escape(text)}"></iframe>'
        for name, text in pages.items()
        for width in WIDTHS
    )
    script = (
        f'onload = () => {{ const out = {{}}; for (const frame of document.querySelectorAll("iframe")) '
        f'out[frame.id] = {MEASURE}(frame); document.body.innerHTML = "<pre></pre>"; '
        f'document.querySelector("pre").textContent = JSON.stringify(out); }}'
    )
    file = directory / 'all.html'
    file.write_text(f'<!doctype html><meta charset="utf-8"><body>{frames}<script>{script}</script></body>')
    flags = [
        '--headless',
        '--no-sandbox',
        '--disable-gpu',
        '--window-size=1300,1000',
        f'--user-data-dir={directory}/user',
    ]
    done = subprocess.run(
        [BROWSER, *flags, '--dump-dom', f'file://{file}'], capture_output=True, text=True, check=False, timeout=120
    )
    return json.loads(html.unescape(re.search(r'<pre>(.*)</pre>', done.stdout, re.DOTALL)[1]))


def a_corpus():
    """The page of a corpus of one long-named source."""
    stages = [
        {'stage': stage, 'documents': 12_345_678 - i, 'bytes': 98_765_432_109 - i, 'dropped': {}}
        for i, stage in enumerate(('read', 'extract', 'gopher', 'near'))
    ]
    stages[2]['dropped'] = {'gopher.mean_word_length': {'documents': 1, 'bytes': 10**9}}
    counts = {'stages': stages, 'broken': {'gzip: a truncated member': 3}, 'skipped': {}}
    split = {LONG: {'documents': 12_345, 'bytes': 10**11, 'tokens': 3 * 10**10, 'rows': 123_456_789, 'fill': 1.0}}
    manifest = {
        'name': 'corpus ' + LONG,
        'sources': {LONG: counts}, 'inputs': {LONG: {'digest': 16 * 'a', 'inputs': 1000, 'bytes': 10**11}},
        'config': {'dedup': ['near'], 'sources': {LONG: {'path': 40 * 'directory/'}}}, 'versions': {'python': '3.13'},
        'tokenizer': {'vocab_size': 32_000, 'compared_with': None, 'fertility': {LONG: {'bytes_per_token': 4.2}}},
        'mixture': {LONG: {'tokens': 10**10, 'share': 1.0, 'epochs': 1.0}},
        'rows': {
            'splits': {'train': split, 'validation': split, 'test': split}, 'seq_len': 4096, 'bytes_per_token': 4.2,
            'gzip': {'bits_per_byte': 2.1},
        },
    }  # fmt: skip
    example = {
        'title': LONG,
        'id': LONG,
        'where': 60 * 'a/',
        'characters': 7,
        'language': 'en',
        'detail': 'x',
        'text': 900 * 'ab',
    }
    points = [[i, {'bytes': 2**i, 'signals': {'gopher.mean_word_length': i / 7}}] for i in range(20)]
    tally = {
        'examples': {'kept': [[0, example]], 'gopher.mean_word_length': [[0, example]]}, 'clusters': 12,
        'points': {'kept': points, 'dropped': points[:3]}, 'lengths': {str(i): i for i in range(1, 20)},
        'languages': {'en': [12_345_678, 10**10], '?': [1, 10]}, 'signals': {'scrub.email': [123, 456]},
    }  # fmt: skip
    return corpus.render(manifest, {LONG: tally}, {})['report.html']


def studies(directory):
    """Pages of studies."""
    names = ['embedding', 'layer 0 residual', 'layer 1 residual']
    positions = ['none', 'rope', 'rope, yarn']
    both, command = ['standard', 'muP'], f'./tools/run study --workdir {100 * "x"}'
    made = {
        'coord_check': coord_check.write(
            directory, {
                'widths': [64, 512], 'names': names, 'limit': 0.25,
                'parametrisations': both, 'slopes': {p: dict.fromkeys(names, 0.1) for p in both},
                'change': {p: [[[[1.0, 1.0, 2.0]]], [[[1.5, 30.0, 0.0]]]] for p in both},
            }, sentence='muP holds.', command=command,
        ),
        'transfer': transfer.write(
            directory, {
                'widths': [64, 128], 'rates': [2.0**k for k in range(-12, -2)], 'parametrisations': both,
                'loss': {p: [[5.0 - k / 10 for k in range(10)], [float('inf')] * 10] for p in both},
                'best': {p: [2.0**-3, float('nan')] for p in both}, 'beyond': {p: [1, -1] for p in both},
            }, sentence='x', command=command,
        ),
        'extrapolation': extrapolation.write(
            directory, {
                'trained': 64, 'ends': [64, 128, 256, 512], 'trained_with': positions[:2], 'scaled': positions[1:],
                'perplexity': {name: [300.0, 400.0, 1e9, float('inf')] for name in positions},
            }, sentence='x', command=command,
        ),
        'comparison': comparison.write(
            directory, {
                'corpora': [LONG, 'b'], 'held_out': ['a', 'b', 'c', LONG], 'tokens': 10**9,
                'bits_per_byte': [[[1.0, 1.1]] * 4, [[1.2, 1.3]] * 4],
            }, command=command,
        ),
    }  # fmt: skip
    return {name: path.read_text() for name, path in made.items()}


@pytest.fixture(scope='module')
def measured(tmp_path_factory):
    if BROWSER is None:
        pytest.skip('there is no chromium to lay pages out')
    directory = tmp_path_factory.mktemp('pages')
    run = write_run(directory / f'run-{LONG}')
    failed = {**INFO, 'status': 'failed', 'reason': 'FAILED_PRECONDITION: ' + 30 * '/a/long/path' + 10 * ' and words'}
    pages = {'corpus': a_corpus(), **studies(directory)}
    for name, info in (('run', INFO), ('failed', failed)):
        (run / 'run.json').write_text(json.dumps(info))
        report.write_report(run)
        pages[name] = (run / 'report.html').read_text()
    plan_page.write(directory / 'plan.html', plan(name=LONG))
    pages['plan'] = (directory / 'plan.html').read_text()
    return measure(pages, directory)


@pytest.mark.parametrize('width', WIDTHS)
@pytest.mark.parametrize(
    'name', ['run', 'failed', 'corpus', 'plan', 'coord_check', 'transfer', 'extrapolation', 'comparison']
)
def test_a_page_fits(measured, name, width):
    assert measured[f'{name} {width}'] == []
