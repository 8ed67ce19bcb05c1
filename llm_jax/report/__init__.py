"""The report card of a run: what was trained, on what, how well, and how to do it again."""

import datetime
import re

from etils import epath
import jinja2

from llm_jax.report import charts, facts
from llm_jax.report.run import Run, read_run

# What a file cannot show as text, such as the escape sequences of a terminal.
_CONTROL = re.compile(r'[\x00-\x08\x0b-\x1f\x7f-\x9f]')


def write_report(run_dir: epath.PathLike) -> None:
    """Writes report.html and report.md into a run directory, from what it holds.

    report.html needs no other file and no network. A run that is still going, or was
    killed, or recorded only some of its files gets a report that says what is missing.

    Args:
      run_dir: local or remote; `run.py` says which files are read and their fields.

    Raises:
      ConfigError: it is not a run directory, or a file in it is not JSON.
    """
    run = read_run(run_dir)
    for name in ('report.html', 'report.md'):
        text = render(run, f'{name}.jinja')
        # Half of a surrogate pair in a sample is no reason to have no report.
        (run.directory / name).write_bytes(text.encode('utf-8', 'backslashreplace'))


def render(run: Run, template: str) -> str:
    """The text of one template of this package for a run."""
    return load_template(template).render(
        run=run,
        headline=facts.headline(run),
        cards=facts.cards(run),
        setup=facts.setup(run),
        charts=charts.all_charts(run) if template.endswith('.html.jinja') else (),
        evaluations=facts.evaluations(run),
        data=facts.data_table(run),
        data_notes=facts.data_notes(run),
        samples=facts.samples(run),
        config=facts.config_sections(run),
        command=facts.command(run),
        written=datetime.datetime.now(datetime.UTC).strftime('%Y-%m-%d %H:%M UTC'),
    )


def load_template(name: str) -> jinja2.Template:
    """A template of this package."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader('llm_jax.report', 'templates'),
        autoescape=name.endswith('.html.jinja'),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(visible=_visible, cell=_markdown_cell, fenced=_markdown_fence)
    return environment.get_template(name)


def _visible(text: str) -> str:
    return _CONTROL.sub(lambda match: match[0].encode('unicode_escape').decode(), str(text))


def _markdown_cell(text: str) -> str:
    """Text that stays in its table cell and means nothing to Markdown or HTML."""
    text = _visible(text).replace('\n', ' ')
    return re.sub(r'([\\`*_\[\]<>|~#&])', r'\\\1', text)


def _markdown_fence(text: str) -> str:
    """A code block whose fence is longer than any run of backticks in the text."""
    longest = max((len(ticks) for ticks in re.findall('`+', text)), default=0)
    fence = '`' * max(3, longest + 1)
    return f'{fence}text\n{_visible(text)}\n{fence}'
