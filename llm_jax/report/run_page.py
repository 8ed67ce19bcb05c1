"""The report card of a run: what was trained, on what, how well, and how to do it again."""

from etils import epath

from llm_jax.report import run_charts, run_facts, scores
from llm_jax.report.page import encode, render
from llm_jax.report.run import read_run


def write_report(run_dir: epath.PathLike) -> None:
    """Writes report.html and report.md into a run directory, from what it holds.

    A run that is not finished, was killed, or recorded only some of its files gets a
    report that says what is missing.

    Args:
      run_dir: local or remote; `run.py` says which files are read and their fields.

    Raises:
      ConfigError: it is not a run directory, or a file in it is not JSON.
    """
    run = read_run(run_dir)
    results = scores.read_scores(run.directory)
    values = {
        'run': run,
        'headline': run_facts.headline(run),
        'warnings': run_facts.warnings(run),
        'cards': run_facts.cards(run),
        'setup': run_facts.setup(run),
        'evaluations': run_facts.evaluations(run),
        'confusion': run_facts.confusion(run),
        'data': run_facts.data_table(run),
        'data_notes': run_facts.data_notes(run),
        'samples': run_facts.samples(run),
        'scores': scores.tabulate(results),
        'examples': scores.pick_examples(run.directory, results),
        'config': run_facts.config_sections(run),
        'command': run_facts.command(run),
    }
    page = render('run.html.jinja', charts=run_charts.draw_all(run), score_chart=scores.draw(results), **values)
    (run.directory / 'report.html').write_bytes(encode(page))
    (run.directory / 'report.md').write_bytes(encode(render('run.md.jinja', **values)))
