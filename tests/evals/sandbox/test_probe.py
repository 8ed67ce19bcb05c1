"""The sandbox shows by trying that it holds, or refuses and runs nothing."""

from collections.abc import Callable
import json
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import tempfile

import pytest

from llm_jax.evals import sandbox as package
from llm_jax.evals.sandbox import Sandbox, SandboxError, check_sandbox, probe

ROOT = pathlib.Path(__file__).resolve().parents[3]


@pytest.fixture
def tool(tmp_path: pathlib.Path) -> Callable[..., subprocess.CompletedProcess]:
    """Runs the tool on a program that leaves a file beside itself, with another PATH."""
    program = tmp_path / 'program.py'
    program.write_text(f"open({str(tmp_path / 'canary')!r}, 'w').write('x')\nprint('ran')\n")

    def run(*arguments: str, path: str = os.environ['PATH']) -> subprocess.CompletedProcess:
        command = [sys.executable, str(ROOT / 'tools' / 'sandbox.py'), *(arguments or (str(program),))]
        return subprocess.run(
            command, env={'PATH': path, 'PYTHONPATH': str(ROOT), 'HOME': str(tmp_path)}, capture_output=True, text=True
        )

    return run


def test_every_promise_is_tried_and_holds(sandbox: Sandbox) -> None:
    findings = check_sandbox()
    assert len(findings) >= 15
    assert [finding for finding in findings if not finding.holds] == []


@pytest.mark.skipif(sys.platform != 'linux', reason='as told of Linux')
def test_without_bubblewrap_nothing_runs(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, tool: Callable[..., subprocess.CompletedProcess]
) -> None:
    which = shutil.which
    monkeypatch.setattr(shutil, 'which', lambda name, **more: None if name == 'bwrap' else which(name, **more))
    with pytest.raises(SandboxError, match='apt-get install bubblewrap'):
        probe.check_sandbox()


def test_a_bubblewrap_that_holds_nothing_is_found_out(
    tmp_path: pathlib.Path, sandbox: Sandbox, tool: Callable[..., subprocess.CompletedProcess]
) -> None:
    """A stand-in that starts the program as it is, after the report that is expected of it."""
    fake = tmp_path / 'bin' / 'bwrap'
    fake.parent.mkdir()
    fake.write_text(
        f'#!{sys.executable}\n'
        'import os, subprocess, sys\n'
        'a = sys.argv\n'
        "files = {a[i + 2]: int(a[i + 1]) for i, word in enumerate(a) if word == '--file'}\n"
        "script = [word for word in a if word.startswith('/program/')][-1]\n"
        'rest = a[len(a) - a[::-1].index(script) :]\n'
        "status = int(a[a.index('--json-status-fd') + 1])\n"
        'text = os.read(files[script], 1 << 20).decode()\n'
        "child = subprocess.Popen([sys.executable, '-c', text, *rest])\n"
        'os.write(status, b\'{"child-pid": %d}\\n\' % child.pid)\n'
        'child.wait()\n'
        'os.write(status, b\'{"exit-code": 0}\\n\')\n'
    )
    fake.chmod(0o755)
    done = tool(path=f'{fake.parent}:{os.environ["PATH"]}')
    assert done.returncode == 2
    assert done.stderr.startswith('sandbox: the sandbox does not hold on this machine, so nothing runs.')
    assert 'files outside' in done.stderr and done.stderr.count('\n') == 1
    assert not (tmp_path / 'canary').exists()


@pytest.mark.parametrize(
    ('words', 'hint'),
    [
        ('setting up uid map: Permission denied', 'in a container start it with'),
        ('Unknown option --size', 'bubblewrap 0.7 or newer is needed'),
    ],
)
def test_a_bubblewrap_that_fails_is_told_with_its_words(
    tmp_path: pathlib.Path, sandbox: Sandbox, tool: Callable[..., subprocess.CompletedProcess], words: str, hint: str
) -> None:
    fake = tmp_path / 'bin' / 'bwrap'
    fake.parent.mkdir()
    fake.write_text(f"#!/bin/sh\necho 'bwrap: {words}' >&2\nexit 1\n")
    fake.chmod(0o755)
    done = tool(path=f'{fake.parent}:{os.environ["PATH"]}')
    assert done.returncode == 2 and done.stderr.count('\n') == 1
    assert words in done.stderr and hint in done.stderr
    assert not (tmp_path / 'canary').exists()


def test_other_systems_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, 'platform', 'darwin')
    monkeypatch.setattr(platform, 'system', lambda: 'Darwin')
    with pytest.raises(SandboxError, match='needs Linux: Darwin'):
        check_sandbox()


@pytest.mark.skipif(sys.platform != 'linux', reason='as told of Linux')
def test_machines_without_a_filter_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, 'machine', lambda: 'riscv64')
    with pytest.raises(SandboxError, match='riscv64'):
        check_sandbox()


def test_the_tool_runs_a_program(
    tmp_path: pathlib.Path, sandbox: Sandbox, tool: Callable[..., subprocess.CompletedProcess]
) -> None:
    (tmp_path / 'three.py').write_text("import sys\nprint('out')\nprint('err', file=sys.stderr)\nsys.exit(3)\n")
    done = tool(str(tmp_path / 'three.py'), '--json', '--timeout', '9')
    result = json.loads(done.stdout)
    assert done.returncode == 0 and 0 < result.pop('seconds') < 9
    assert set(result.pop('output').split()) == {'out', 'err'}
    assert result == {'status': 'error', 'exit_code': 3, 'stdout': 'out\n', 'stderr': 'err\n'}
    done = tool()  # as it is
    assert (done.returncode, done.stdout) == (1, '') and 'FileNotFoundError' in done.stderr
    assert not (tmp_path / 'canary').exists()
    done = tool(str(tmp_path / 'none.py'))
    assert done.returncode == 2 and 'none.py cannot be read: No such file' in done.stderr
    done = tool(str(tmp_path / 'three.py'), '--timeout', '0')
    assert done.returncode == 2 and 'timeout = 0' in done.stderr


def test_the_package_needs_nothing_else() -> None:
    program = (
        'import sys; import llm_jax.evals.sandbox.attacks; '
        "print(sorted({name.split('.')[0] for name in sys.modules} - set(sys.stdlib_module_names)))"
    )
    done = subprocess.run(
        [sys.executable, '-S', '-c', program], env={'PYTHONPATH': str(ROOT)}, capture_output=True, text=True
    )
    assert done.stdout == "['__main__', 'llm_jax']\n", done.stderr


def test_an_ordinary_user_has_the_same_sandbox(sandbox: Sandbox) -> None:
    """As nobody, with the system's Python, on a copy of the package alone."""
    python = '/usr/bin/python3'
    version = 'import sys; sys.exit(sys.version_info < (3, 11))'
    if os.geteuid() or not os.path.exists(python) or subprocess.run([python, '-c', version]).returncode:
        pytest.skip('root and a Python of the system, of 3.11 or newer, are needed')
    program = (
        'from sandbox import Limits, Sandbox, Suite, check_sandbox\n'
        'print([finding for finding in check_sandbox() if not finding.holds])\n'
        's = Sandbox()\n'
        "print(s.run('import os; print(os.getuid())').stdout)\n"
        "print(s.judge('def f(x): return x', Suite(['f'], '', 'assert f(1) == 1')).passed)\n"
        'hungry = \'import os, time\\nfor _ in range(3): os.fork()\\nx = b"x" * (60 << 20)\\ntime.sleep(9)\'\n'
        'print(s.run(hungry, Limits(memory=128)).status)\n'
    )
    with tempfile.TemporaryDirectory(prefix='llm_jax-') as directory:
        os.chmod(directory, 0o755)
        shutil.copytree(pathlib.Path(package.__file__).parent, f'{directory}/sandbox')
        command = ['setpriv', '--reuid', '65534', '--regid', '65534', '--clear-groups', python, '-B', '-c', program]
        environment = {'PYTHONPATH': directory, 'PATH': os.environ['PATH'], 'HOME': '/nonexistent'}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=directory)
    assert done.stdout.splitlines() == ['[]', "b'65534\\n'", 'True', 'memory'], done.stderr
