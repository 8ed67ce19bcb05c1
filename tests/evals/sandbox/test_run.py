"""Programs in the sandbox: what they see, what they may take, how they end."""

import os
import pathlib
import time

import pytest

from llm_jax.evals.sandbox import Limits, Sandbox

FEW = Limits(timeout=20, memory=128, processes=16, files=8, output=0.05)


def test_output_exit_code_and_status(sandbox: Sandbox) -> None:
    result = sandbox.run("import sys\nprint('é🙂')\nprint('no', file=sys.stderr)\nsys.exit(3)")
    assert (result.status, result.exit_code) == ('error', 3)
    assert result.stdout.decode() == 'é🙂\n' and result.stderr == b'no\n'
    assert sorted(result.output.decode().split()) == ['no', 'é🙂']
    assert sandbox.run('').status == 'ok'
    failed = sandbox.run('raise ValueError("no")')
    assert failed.exit_code == 1 and failed.stderr.rstrip().endswith(b'ValueError: no')
    assert sandbox.run('import os; os.kill(os.getpid(), 11)').exit_code == 128 + 11


def test_input_is_at_its_end_unless_given(sandbox: Sandbox) -> None:
    assert sandbox.run('print(repr(open(0).read()))').stdout == b"''\n"
    assert sandbox.run('print(input()[::-1])', stdin=b'abc\n').stdout == b'cba\n'


def test_output_by_the_names_of_its_files(sandbox: Sandbox) -> None:
    program = (
        "open('/dev/stdout', 'w').write('out')\nopen('/dev/stderr', 'w').write('err')\nopen('/proc/self/fd/1', 'w')"
    )
    result = sandbox.run(program)
    assert (result.stdout, result.stderr) == (b'out', b'err')


def test_files_of_its_own(sandbox: Sandbox) -> None:
    program = (
        "import tempfile, os\nopen('a', 'w').write('x')\nprint(os.listdir(), tempfile.TemporaryFile().write(b'ab'))"
    )
    assert sandbox.run(program).stdout == b"['a'] 2\n"
    assert sandbox.run('import os; print(os.listdir())').stdout == b'[]\n'  # nothing is left for the next


def test_processes_and_threads(sandbox: Sandbox) -> None:
    program = (
        'import subprocess, sys, threading, asyncio, multiprocessing\n'
        "print(subprocess.run([sys.executable, '-c', 'print(7)'], capture_output=True, text=True).stdout.strip())\n"
        'threads = [threading.Thread(target=print, args=(i,)) for i in range(4)]\n'
        '[t.start() for t in threads]; [t.join() for t in threads]\n'
        'print(asyncio.run(asyncio.sleep(0, 8)))\n'
        "with multiprocessing.get_context('fork').Pool(2) as pool: print(pool.map(abs, [-9]))\n"
    )
    assert sandbox.run(program).stdout.split() == [b'7', b'0', b'1', b'2', b'3', b'8', b'[9]']


def test_many_threads(sandbox: Sandbox) -> None:
    program = (
        'from concurrent.futures import ThreadPoolExecutor\nimport time\n'
        'with ThreadPoolExecutor(40) as pool: print(sum(pool.map(lambda i: time.sleep(0.01) or i, range(100))))'
    )
    assert sandbox.run(program).stdout == b'4950\n'


def test_nothing_of_the_caller_is_there(
    sandbox: Sandbox, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('SECRET_TOKEN', 'hush')
    file = tmp_path / 'file'
    file.write_text('hush')
    program = (
        'import glob, os\n'
        "found = [v for v in os.environ.values() if 'hush' in v] + glob.glob('/home/*') + glob.glob('/etc/pass*')\n"
        "for path in [*glob.glob('/proc/*/environ'), *glob.glob('/proc/*/cmdline'), %r]:\n"
        '    try:\n'
        "        if b'hush' in open(path, 'rb').read(): found.append(path)\n"
        '    except OSError: pass\n'
        'print(found, os.getuid() == %d)'
    )
    assert sandbox.run(program % (str(file), os.getuid())).stdout == b'[] False\n'


@pytest.mark.parametrize(
    ('program', 'status'),
    [
        ('while True: pass', 'timeout'),
        ('import time; time.sleep(60)', 'timeout'),
        ("import os, time\nfor _ in range(3): os.fork()\nx = b'x' * (60 << 20)\ntime.sleep(9)", 'memory'),
        ("import sys\nwhile True: sys.stdout.write('x' * 10000)", 'output'),
        ("import os\nwhile True: os.write(2, b'x' * 10000)", 'output'),
        ("import os\nwhile True: open(os.urandom(8).hex(), 'w').close()", 'memory'),
    ],
)  # fmt: skip
def test_limits_end_a_program(sandbox: Sandbox, program: str, status: str) -> None:
    limits = Limits(timeout=0.5, memory=128, processes=16) if status == 'timeout' else FEW
    started = time.monotonic()
    result = sandbox.run(program, Limits(**vars(limits)))
    assert (result.status, result.exit_code) == (status, None)
    assert len(result.output) <= limits.output * (1 << 20)
    assert time.monotonic() - started < limits.timeout + 3


@pytest.mark.parametrize(
    'program',
    [
        'bytearray(300 << 20)',
        "f = open('/tmp/x', 'wb')\nfor _ in range(100): f.write(b'x' * (1 << 20))",
        "f = open('/dev/shm/x', 'wb')\nfor _ in range(100): f.write(b'x' * (1 << 20))",
        'import os\nfor _ in range(40):\n    if os.fork() == 0: import time; time.sleep(5); os._exit(0)',
        "import os; os.memfd_create('x')",
        "import socket; socket.create_connection(('127.0.0.1', 1))",
        'import socket; socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)',
        "open('/usr/x', 'w')",
        "open('/program/main.py', 'a')",
        "open('/x', 'w')",
        "open('/dev/x', 'w')",
        "open('/proc/sys/kernel/hostname', 'w').write('x')",
        'import os; os.setuid(0)',
        'import os; os.chroot("/tmp")',
        'import os; os.kill(1, 9); os.kill(1, 0); import sys; sys.exit(os.path.exists("/proc/1"))',
        'import resource; resource.setrlimit(resource.RLIMIT_AS, (-1, -1))',
        'x = []\nfor _ in range(200000): x = [x]\nrepr(x)',
    ],
)
def test_what_a_program_may_not(sandbox: Sandbox, program: str) -> None:
    assert sandbox.run(program, FEW).status == 'error'


def test_daemons_end_with_the_program(sandbox: Sandbox) -> None:
    program = (
        'import ctypes, os, time\n'
        'if os.fork() == 0:\n'
        '    os.setsid()\n'
        '    if os.fork() == 0:\n'
        "        ctypes.CDLL(None).prctl(15, b'llm_jax_daemon', 0, 0, 0)\n"
        '        time.sleep(60)\n'
        '    os._exit(0)\n'
        'time.sleep(0.2)'
    )
    assert sandbox.run(program).status == 'ok'
    names = [path.read_text().strip() for path in pathlib.Path('/proc').glob('[0-9]*/comm') if path.exists()]
    assert 'llm_jax_daemon' not in names


def test_no_process_no_descriptor_and_no_zombie_stays(sandbox: Sandbox) -> None:
    def mine() -> tuple[list[str], int]:
        children = pathlib.Path(f'/proc/self/task/{os.getpid()}/children').read_text().split()
        return children, len(os.listdir('/proc/self/fd'))

    before = mine()
    for program in ('pass', 'while True: pass', 'import os; os.fork(); os.abort()'):
        sandbox.run(program, Limits(timeout=0.3))
    assert mine() == before


def test_limits_that_are_none() -> None:
    for field, value in (('timeout', 0), ('memory', 1), ('processes', 0), ('output', float('nan'))):
        with pytest.raises(ValueError, match=field):
            Limits(**{field: value})
