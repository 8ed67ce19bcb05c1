"""A page of a comparison: a sentence, charts, a table of numbers; and the numbers as JSON beside it."""

import json
from typing import Any

from etils import epath

from llm_jax.report import load_template


def write_page(
    directory: epath.PathLike, stem: str, name: str, command: str, page: dict[str, Any], numbers: dict[str, Any]
) -> epath.Path:
    """Writes STEM.html and STEM.json.

    Args:
      directory: where; made if needed.
      stem: of both files.
      name: of the experiment.
      command: that makes the page again.
      page: 'title', 'sentence', 'charts' (of `report.charts.Chart`), 'table' (header and rows of text).
      numbers: what the JSON file holds besides the command.

    Returns:
      the path of the page.
    """
    directory = epath.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f'{stem}.json').write_text(json.dumps({'command': command, **numbers}, indent=1))
    path = directory / f'{stem}.html'
    path.write_text(load_template('page.html.jinja').render(name=name, command=command, **page))
    return path
