"""The room that draws: nobody else does, and it takes plain data from the rooms above it."""

import ast
import pathlib

ROOT = pathlib.Path(__file__).parents[2]


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f'{node.module}.{alias.name}' for alias in node.names)


def test_nothing_else_draws():
    files = [*ROOT.glob('llm_jax/**/*.py'), *ROOT.glob('tools/**/*.py'), *ROOT.glob('experiments/**/*.py')]
    drawing = {f for f in files for name in imported(f) if name.startswith(('matplotlib', 'jinja2'))}
    assert {file.relative_to(ROOT / 'llm_jax' / 'report').as_posix() for file in drawing} == {
        'charts.py', 'ticks.py', 'page.py',
    }  # fmt: skip


def test_it_knows_no_room_above():
    above = ('train', 'lab', 'plan', 'corpus', 'evals', 'launch')
    files = list(ROOT.glob('llm_jax/report/*.py'))
    assert len(files) > 10
    for file in files:
        upwards = [name for name in imported(file) if name.startswith(tuple(f'llm_jax.{room}' for room in above))]
        assert upwards == [], file
