"""A directory of attacks: held in the sandbox, and biting where nothing holds them."""

import json
import pathlib

import pytest

from llm_jax.evals.sandbox import Sandbox, SandboxError, attacks

MANIFEST = {
    'limits used': {'timeout_s': 5, 'memory_MiB': 256, 'processes': 32, 'files_MiB': 32, 'output_MiB': 1},
    'checker_task': {
        'entry_point': 'twice',
        'prompt': 'def twice(x):\n    """Twice x."""\n',
        'test': 'def check(candidate):\n    assert candidate(4) == 8\n',
        'right_solution': 'def twice(x):\n    return x * 2\n',
    },
    'benign': [{'name': 'echo', 'program': 'print(input())', 'expect': {'stdin': 'hi\n', 'stdout': 'hi\n'}}],
    'attacks': [],
}
ATTACKS = {
    'secret': ('program', "print(open('@SECRET@').read())", ['output_has:@SECRETVALUE@']),
    'token': ('program', "import os, sys\nsys.exit(66 if '@TOKEN@' in os.environ else 0)", ['exit:66']),
    'victim': ('program', "open('@OUTSIDE@/victim', 'a').write('x')", ['path_changed:@OUTSIDE@/victim']),
    'remove': ('program', "import os; os.unlink('@OUTSIDE@/victim')", ['path_missing:@OUTSIDE@/victim']),
    'listeners': (
        'program',
        'import socket\n'
        "s = socket.socket(socket.AF_UNIX); s.connect('\\0@ABS@')",
        ['listener_hit'],
    ),
    'serve': (
        'program',
        "import socket, time\ns = socket.create_server(('127.0.0.1', @PORT2@)); time.sleep(1)",
        ['reachable:@PORT2@'],
    ),
    'kill': ('program', 'import os; os.kill(@SIB@, 15)', ['helper_dead']),
    'exit': ('checker', 'import os\nos._exit(0)', ['verdict:passed']),
}  # fmt: skip


@pytest.fixture
def directory(tmp_path: pathlib.Path) -> pathlib.Path:
    manifest = MANIFEST | {'attacks': []}
    for name, (kind, program, escape) in ATTACKS.items():
        (tmp_path / f'{name}.py').write_text(program)
        manifest['attacks'].append({'id': name, 'file': f'{name}.py', 'kind': kind, 'escape': escape})
    (tmp_path / 'manifest.json').write_text(json.dumps(manifest))
    return tmp_path


def test_the_sandbox_holds_what_bites_in_the_open(
    directory: pathlib.Path, sandbox: Sandbox, capsys: pytest.CaptureFixture
) -> None:
    assert attacks.run_command(directory, is_open=False, only='', as_json=True) == 0
    held = {record['id']: record['verdict'] for record in json.loads(capsys.readouterr().out)}
    assert held == dict.fromkeys(ATTACKS, 'held') | {'echo': 'works', 'right_solution': 'works'}
    for name in ('listeners', 'kill', 'exit'):
        assert attacks.run_command(directory, is_open=True, only=name, as_json=True) == 0
        opened = {record['id']: record['verdict'] for record in json.loads(capsys.readouterr().out)}
        assert opened == {name: 'bites'}


def test_what_escapes_is_an_error(directory: pathlib.Path, sandbox: Sandbox, capsys: pytest.CaptureFixture) -> None:
    manifest = json.loads((directory / 'manifest.json').read_text())
    manifest['attacks'] = [manifest['attacks'][1] | {'escape': ['status_ok']}]
    manifest['benign'][0]['expect']['stdout'] = 'other'
    (directory / 'manifest.json').write_text(json.dumps(manifest))
    assert attacks.run_command(directory, is_open=False, only='', as_json=False) == 1
    out = capsys.readouterr().out
    assert 'ESCAPED  token' in out and 'BROKEN   echo' in out


def test_manifests_that_are_none(directory: pathlib.Path, sandbox: Sandbox) -> None:
    with pytest.raises(SandboxError, match='manifest.json cannot be read'):
        attacks.read_manifest(directory / 'nowhere')
    (directory / 'manifest.json').write_text('{')
    with pytest.raises(SandboxError, match='is no JSON'):
        attacks.read_manifest(directory)
    (directory / 'manifest.json').write_text('{"attacks": []}')
    with pytest.raises(SandboxError, match="lacks 'limits used'"):
        attacks.read_manifest(directory)


@pytest.mark.slow
def test_shared_attacks_are_held(sandbox: Sandbox, shared_data: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    assert attacks.run_command(shared_data / 'attacks', is_open=False, only='', as_json=False) == 0, (
        capsys.readouterr().out
    )
