"""Templates into pages and Markdown; the pages of studies, which are a sentence, charts and a table."""

from collections.abc import Callable, Sequence
import dataclasses
import datetime
import json
from typing import Any, NamedTuple

from etils import epath
import jinja2

from llm_jax.config.printable import visible
from llm_jax.report.charts import Chart
from llm_jax.report.tables import Table
from llm_jax.report.text import keep_units, markdown_cell, markdown_fence, split_words


class Card(NamedTuple):
    """A number beside the headline."""

    label: str
    value: str
    note: str


def render(template: str, **values: Any) -> str:
    """The text of one template of this package, `NAME.html.jinja` or `NAME.md.jinja`.

    A page needs no other file and no network. All text is escaped; what a terminal would obey is shown as text.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader('llm_jax.report', 'templates'),
        autoescape=template.endswith('.html.jinja'),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=lambda value: visible(value) if type(value) is str else value,  # not Markup, which is finished
    )
    environment.filters.update(
        cell=markdown_cell, fenced=markdown_fence, keep_units=keep_units, split_words=split_words
    )
    written = datetime.datetime.now(datetime.UTC).strftime('%Y-%m-%d %H:%M UTC')
    return environment.get_template(template).render(written=written, **values)


def encode(text: str) -> bytes:
    """UTF-8; half of a surrogate pair, as a sample or a name may have, is written as an escape."""
    return text.encode('utf-8', 'backslashreplace')


@dataclasses.dataclass(frozen=True)
class Study:
    """The page of a study, and the JSON file of the numbers that it is drawn from.

    Attributes:
      stem: name of both files.
      title: of the study.
      draw: numbers -> charts, one below or beside the other.
      tabulate: numbers -> the result as a table.
    """

    stem: str
    title: str
    draw: Callable[[dict[str, Any]], Sequence[Chart]]
    tabulate: Callable[[dict[str, Any]], Table]

    def write(self, directory: epath.PathLike, numbers: dict[str, Any], *, sentence: str, command: str) -> epath.Path:
        """Writes STEM.html and STEM.json; returns the path of the page.

        Args:
          directory: where, and what the page is headed by; made if needed.
          numbers: as the module of the page describes them; the JSON file holds them and the command.
          sentence: the result.
          command: that makes the page again, as a shell takes it.
        """
        directory = epath.Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f'{self.stem}.json').write_text(json.dumps({'command': command, **numbers}, indent=1))
        path = directory / f'{self.stem}.html'
        page = render(
            'study.html.jinja',
            name=directory.resolve().name,
            title=self.title,
            sentence=sentence,
            charts=self.draw(numbers),
            table=self.tabulate(numbers),
            command=command,
        )
        path.write_bytes(encode(page))
        return path
