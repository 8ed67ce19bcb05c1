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
    using = lambda package: {f for f in files for name in imported(f) if name.startswith(package)}
    paths = {file.relative_to(ROOT / 'llm_jax').as_posix() for file in using('matplotlib') | using('jinja2')}
    # Templates of conversations are Jinja too, and draw nothing.
    assert paths == {'report/charts.py', 'report/ticks.py', 'report/page.py', 'chat/template.py'}


def test_it_knows_no_room_above():
    above = ('train', 'lab', 'plan', 'corpus', 'evals', 'launch')
    files = list(ROOT.glob('llm_jax/report/*.py'))
    assert len(files) > 10
    for file in files:
        upwards = [name for name in imported(file) if name.startswith(tuple(f'llm_jax.{room}' for room in above))]
        assert upwards == [], file
