"""Attack programs where nothing holds them, in a throwaway machine, to show that they bite.

The throwaway machine has its own processes, network, home, temporary files and site-packages; the rest is read-only.
In it whoever tries the attack runs it as a plain child with its environment, as scripts that score a model usually do:
nothing stands between the two. What it reaches is gone with the machine.
"""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import sysconfig
import time

from . import attacks, bwrap
from .bait import Outcome, end_descendants
from .box import memory_file
from .limits import Limits, Result, SandboxError

_PACKAGE = pathlib.Path(__file__).parent
_LONGEST = 60.0  # seconds of the throwaway machine, over the limit of a program


def _command(host: bwrap.Host) -> list[str]:
    """The command line of the throwaway machine, up to the arguments of `main`."""
    options, drop = bwrap.identity(host)
    out = [host.bwrap, *options, '--unshare-pid', '--unshare-net', '--unshare-ipc', '--unshare-uts']
    out += ['--die-with-parent', '--new-session', '--clearenv', '--setenv', 'PATH', '/usr/bin:/bin']
    out += ['--setenv', 'HOME', '/tmp/home', '--ro-bind', '/', '/', '--dev', '/dev', '--proc', '/proc']
    out += ['--perms', '1777', '--size', str(1 << 30), '--tmpfs', '/tmp', '--perms', '1777', '--dir', '/tmp/home']
    home = os.path.realpath(os.path.expanduser('~'))
    if os.path.isdir(home) and home != '/':  # an interpreter in it is shown again
        out += ['--tmpfs', home]
    out += bwrap.show_prefix(host)
    for directory in {*_site_packages(host)}:
        out += ['--perms', '1777', '--tmpfs', directory]
    out += ['--perms', '0755', '--dir', '/tmp/package', '--ro-bind', str(_PACKAGE), '/tmp/package/sandbox']
    out += ['--chdir', '/tmp/home', '--']
    resources = {'nproc': 400, 'fsize': 128 << 20, 'core': 0, 'as': 4 << 30}
    out += [host.prlimit, *(f'--{name}={value}:{value}' for name, value in resources.items()), '--', *drop]
    text = 'import sys; sys.path.insert(0, "/tmp/package"); from sandbox import opened; opened.main()'
    return [*out, host.python, '-B', '-E', '-s', '-c', text]


def _site_packages(host: bwrap.Host) -> list[str]:
    paths = sysconfig.get_paths(vars={'base': host.prefix or '/usr', 'platbase': host.prefix or '/usr'})
    return [path for path in (paths['purelib'], paths['platlib']) if os.path.isdir(path)]


def try_in_throwaway(attack: dict, task: dict, limits: Limits) -> list[str]:
    """The escape words that came true where nothing holds the attack."""
    host = bwrap.find_host()
    job = json.dumps({'attack': attack, 'task': task, 'limits': vars(limits)}).encode()
    stdin = memory_file(job)
    try:
        done = subprocess.run(
            _command(host), stdin=stdin, capture_output=True, env={}, timeout=limits.timeout + _LONGEST
        )
    except subprocess.TimeoutExpired:
        return ['no_verdict']
    finally:
        os.close(stdin)
    if done.returncode >= 128:  # killed, with everything in it
        return ['harness_dead']
    if done.returncode:
        said = done.stderr.decode(errors='replace').strip().splitlines()[-1:]
        raise SandboxError(f'the throwaway machine of {attack["id"]} failed: {" ".join(said)}')
    return json.loads(done.stdout.splitlines()[-1])


def execute_open(attack: dict, program: str, limits: Limits, task: dict) -> Outcome:
    """Runs a program as a plain child; a solution passes where, with the tests appended, it exits with code 0."""
    is_checker = attack['kind'] == 'checker'
    if is_checker:
        program = f'{program}\n{task["test"]}\ncheck({task["entry_point"]})\n'
    path = pathlib.Path('program.py')
    path.write_text(program)
    started = time.monotonic()
    # Limits that only keep the real machine from harm: attacks count as having bitten before they reach them.
    bounds = ['prlimit', f'--as={1536 << 20}', '--nproc=200', '--']
    read, write = os.pipe()
    child = subprocess.Popen(
        [*bounds, sys.executable, '-B', str(path)], stdin=read, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    output, status = b'', ''
    try:
        output, _ = child.communicate(timeout=limits.timeout + 15)
        status = 'error' if child.returncode else 'ok'
    except subprocess.TimeoutExpired as e:
        output, status = e.stdout or b'', 'running'
    seconds = time.monotonic() - started
    os.close(read)
    os.close(write)
    if is_checker:
        return Outcome(seconds, passed=status == 'ok')
    return Outcome(seconds, Result(status, child.returncode, output, b'', output, seconds))


def main() -> None:
    """Runs inside the throwaway machine: reads the attack from standard input, prints the escape words as JSON."""
    job = json.load(sys.stdin)
    escaped = attacks.try_attack(job['attack'], job['task'], Limits(**job['limits']), execute_open)
    with contextlib.suppress(OSError):
        end_descendants()
    print(json.dumps(escaped))
