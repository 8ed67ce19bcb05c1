"""Commands and snippets that the documents show, as a user's shell and Python take them."""

import dataclasses
import importlib.util
import os
import pathlib
import re
import subprocess
import sys
import textwrap
import types

ROOT = pathlib.Path(__file__).parents[1]
DOCUMENTS = (ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md')))
_FENCE = re.compile(r'^( *)```(\w*)\n(.*?)^ *```$', re.DOTALL | re.MULTILINE)
# A command in a docstring or an indented block, with the lines that it goes on in.
_COMMAND = re.compile(r'^ *((?:\w+=\S+ )*\./tools/(?:[^\n]*\\\n)*[^\n]*)$', re.MULTILINE)
# Stands in for ./tools/run: writes its arguments, each ended by a zero byte, and an empty one after the last.
_RECORDER = '#!/usr/bin/env bash\nprintf \'%s\\0\' "${0##*/}" "$@" "" >> "$RECORD"\n'


@dataclasses.dataclass(frozen=True)
class Block:
    """Text of a document in a language, where it stands."""

    where: str
    language: str
    text: str


def fenced() -> list[Block]:
    """All fenced blocks of the documents, and the commands of their indented ones as blocks of bash."""
    blocks = []
    for file in DOCUMENTS:
        text = file.read_text()
        for match in _FENCE.finditer(text):
            line = text.count('\n', 0, match.start()) + 1
            blocks.append(Block(f'{file.name}:{line}', match[2], textwrap.dedent(match[3])))
        rest = _FENCE.sub(lambda match: '\n' * match[0].count('\n'), text)
        blocks += _commands(file.name, rest, indent='    ')
    return blocks


def own_commands() -> list[Block]:
    """Commands that experiments and tools show at their own top."""
    blocks = []
    files = (
        *(ROOT / 'experiments').rglob('*.py'),
        *(ROOT / 'tools').glob('*.py'),
        *(ROOT / 'tools/bench').glob('*.py'),
    )
    for file in sorted(files):
        blocks += _commands(str(file.relative_to(ROOT)), file.read_text().split('"""')[1])
    return blocks


def _commands(where: str, text: str, indent: str = '') -> list[Block]:
    """Commands among prose: what is optional is taken, of alternatives the first, and remarks after spaces are none."""
    blocks = []
    for match in _COMMAND.finditer(text):
        if not match[0].startswith(indent):
            continue
        command = re.sub(r'\[(\.[^\]]*)\]', '', match[1])  # FILE.jsonl[.gz|.zst]
        command = re.sub(r'\[(-[^\]]*)\]', r'\1', command)  # [--widths 64,128]
        command = re.sub(r'(?<=\w)\|\w+', '', command).replace(' ...', '')
        command = '\n'.join(re.sub(r'(?<=\S) {4,}\S.*$|  +see .*$', '', line) for line in command.splitlines())
        line = text.count('\n', 0, match.start()) + 1
        blocks.append(Block(f'{where}:{line}', 'bash', command))
    return blocks


def record(block: Block, directory: pathlib.Path, names: list[str]) -> list[list[str]]:
    """Runs a block of bash where every program of `tools/` only notes that it was called.

    Args:
      block: of bash.
      directory: where it runs.
      names: the programs.

    Returns:
      for each call: name of the program, and its arguments.

    Raises:
      AssertionError: bash ends with an error, as where a program is none of these.
    """
    tools = directory / 'tools'
    tools.mkdir(exist_ok=True)
    for name in names:
        (tools / name).write_text(_RECORDER)
        (tools / name).chmod(0o755)
    log = directory / 'calls'
    log.write_text('')
    environment = {'PATH': os.environ['PATH'], 'RECORD': str(log)}
    done = subprocess.run(
        ['bash', '-eu'], input=block.text, cwd=directory, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f'{block.where}: bash says {done.stderr.strip()}'
    calls = [call.split('\0') for call in log.read_text().split('\0\0')]
    return [call for call in calls if call != ['']]


def load_tool(name: str) -> types.ModuleType:
    """The module of a tool, new, as if it were started: what is beside it can be imported."""
    file = next(file for file in (ROOT / 'tools' / f'{name}.py', ROOT / 'tools/bench' / f'{name}.py') if file.exists())
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
