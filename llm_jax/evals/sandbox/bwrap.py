"""The command line of bubblewrap for a sandbox on this machine: what a program there sees, and as whom it runs."""

from collections.abc import Mapping, Sequence
import dataclasses
import os
import pathlib
import platform
import secrets
import shutil
import sys

from . import cgroup, seccomp
from .limits import Limits, SandboxError

PROGRAM = '/program'  # read-only directory of the program's files
WORK = '/tmp/work'  # the program's own directory: empty, in memory, as large as Limits.files
_NOBODY = 65534
_SHM = 16  # MiB of /dev/shm
# An arena of malloc for each thread would reserve 64 MiB of the address space, which is bounded.
_ENVIRONMENT = {'PATH': '/usr/bin:/bin', 'HOME': WORK, 'TMPDIR': '/tmp', 'LANG': 'C.UTF-8', 'MALLOC_ARENA_MAX': '1'}
_SYSTEM = ('/bin', '/sbin', '/lib', '/lib32', '/lib64', '/libx32')
# Also where a C library outside the loader's own directories is found.
_READABLE = ('/etc/ld.so.cache', '/etc/localtime', '/etc/alternatives')


@dataclasses.dataclass(frozen=True)
class Host:
    """What this machine has for sandboxes.

    Attributes:
      bwrap, prlimit, setpriv: paths of the programs; setpriv is needed by root alone.
      python: the interpreter that programs get.
      prefix: its directory where that is not below /usr, else ''.
      uids: first and number of the user ids that a sandbox of root may take; (0, 0) for an ordinary user, whose
        sandboxes have a user namespace instead, and for root where there are no others.
      groups: where control groups can be made.
    """

    bwrap: str
    prlimit: str
    setpriv: str
    python: str
    prefix: str
    uids: tuple[int, int]
    groups: cgroup.Parents

    @property
    def is_root(self) -> bool:
        return bool(self.uids[1])


def _find_program(name: str, package: str) -> str:
    path = shutil.which(name) or shutil.which(name, path='/usr/bin:/bin:/usr/sbin:/sbin')
    if not path:
        raise SandboxError(f'the sandbox needs {name}, which is not installed: apt-get install {package}')
    return os.path.realpath(path)


def _free_uids() -> tuple[int, int]:
    """User ids that nobody has, out of those that this process's user namespace maps; (0, 0) where it maps none."""
    spans = [tuple(map(int, line.split())) for line in pathlib.Path('/proc/self/uid_map').read_text().splitlines()]
    first, _, count = max(spans)
    end = first + count
    low = 1 << 30 if end > 1 << 31 else 60_000
    if end - low < 1000:
        return 0, 0  # root of a namespace with a few users is an ordinary user outside
    return low, min(end, (1 << 31) - 1, 65_534 if low == 60_000 else 1 << 31) - low


def _find_python() -> tuple[str, str]:
    """The interpreter of this process, without its virtual environment, and the prefix to show beside /usr."""
    python, prefix = os.path.realpath(sys.executable), os.path.realpath(sys.base_prefix)
    if prefix == '/usr' or prefix.startswith('/usr/'):
        return python, ''
    home = os.path.realpath(os.path.expanduser('~'))
    if home == prefix or home.startswith(prefix.rstrip('/') + '/') or not python.startswith(prefix + '/'):
        raise SandboxError(
            f'the sandbox cannot show this Python alone: {python} is installed in {prefix}, with other files; '
            'take one with a directory of its own, such as /usr/bin/python3, by LLM_JAX_PYTHON'
        )
    return python, prefix


def find_host() -> Host:
    """What this machine has, as far as it can be seen without trying.

    Raises:
      SandboxError: a system, a machine or a program that is missing; says what helps.
    """
    if sys.platform != 'linux':
        raise SandboxError(
            f'the sandbox needs Linux: {platform.system()} has no namespaces; run it in a Linux machine or container'
        )
    if not seccomp.supported(platform.machine()):
        raise SandboxError(f'the sandbox has no filter of system calls for {platform.machine()}: x86_64 or aarch64')
    uids = _free_uids() if os.geteuid() == 0 else (0, 0)
    python, prefix = _find_python()
    return Host(
        bwrap=_find_program('bwrap', 'bubblewrap'),
        prlimit=_find_program('prlimit', 'util-linux'),
        setpriv=_find_program('setpriv', 'util-linux') if uids[1] else '',
        python=python,
        prefix=prefix,
        uids=uids,
        groups=cgroup.find_parents(),
    )


def _mounts(host: Host) -> list[str]:
    """The system, read-only."""
    out = ['--ro-bind', '/usr', '/usr']
    for path in _SYSTEM:
        if os.path.islink(path):
            out += ['--symlink', os.readlink(path), path]
        elif os.path.isdir(path):
            out += ['--ro-bind', path, path]
    for path in _READABLE:
        if os.path.exists(path):
            out += ['--ro-bind', os.path.realpath(path), path]
    return out + show_prefix(host)


def show_prefix(host: Host) -> list[str]:
    """Options that show the directory of the interpreter, read-only, where it is outside /usr."""
    out = []
    for parent in reversed(pathlib.Path(host.prefix).parents[:-1]):  # else open to root alone
        out += ['--perms', '0755', '--dir', str(parent)]
    return [*out, '--ro-bind', host.prefix, host.prefix] if host.prefix else []


def identity(host: Host) -> tuple[list[str], list[str]]:
    """Options of bubblewrap, and the command in front of the program, that leave it without any privilege.

    Root sets up the sandbox with the capabilities it needs for it, keeps three of them, and gives these up with its
    uid. An ordinary user's program has a user namespace of its own and no capabilities there.
    """
    if not host.is_root:
        return ['--unshare-user', '--uid', str(_NOBODY), '--gid', str(_NOBODY), '--cap-drop', 'ALL'], []
    uid = str(host.uids[0] + secrets.randbelow(host.uids[1]))
    keep = ['--cap-drop', 'ALL']
    for capability in ('CAP_SETUID', 'CAP_SETGID', 'CAP_SETPCAP'):
        keep += ['--cap-add', capability]
    drop = [host.setpriv, '--reuid', uid, '--regid', uid, '--clear-groups', '--no-new-privs']
    return keep, [*drop, '--inh-caps=-all', '--bounding-set=-all', '--']


def _resources(host: Host, limits: Limits) -> list[str]:
    values = {
        'as': limits.memory << 20,
        'nproc': limits.processes,
        'fsize': limits.files << 20,
        'nofile': 256,
        'core': 0,
        'msgqueue': 0,
        'memlock': 0,
    }
    return [host.prlimit, *(f'--{name}={value}:{value}' for name, value in values.items()), '--']


def build_command(
    host: Host,
    limits: Limits,
    files: Mapping[str, int],
    arguments: Sequence[str],
    *,
    seccomp_fd: int,
    status_fd: int,
    block_fd: int,
) -> list[str]:
    """The whole command.

    Args:
      files: name in PROGRAM -> descriptor to read it from.
      arguments: of the interpreter, after its options.
      seccomp_fd, status_fd, block_fd: the filter, bubblewrap's reports, and what it waits for.
    """
    options, drop = identity(host)
    out = [host.bwrap, '--unshare-pid', '--unshare-net', '--unshare-ipc', '--unshare-uts', '--unshare-cgroup-try']
    out += [*options, '--hostname', 'sandbox', '--new-session', '--die-with-parent', '--clearenv']
    for name, value in _ENVIRONMENT.items():
        out += ['--setenv', name, value]
    out += [*_mounts(host), '--proc', '/proc', '--dev', '/dev']
    # Otherwise the root and /dev may fill half of the machine's memory.
    out += ['--perms', '1777', '--size', str(_SHM << 20), '--tmpfs', '/dev/shm', '--remount-ro', '/dev']
    out += ['--perms', '1777', '--size', str(limits.files << 20), '--tmpfs', '/tmp', '--perms', '0777', '--dir', WORK]
    for name, descriptor in files.items():
        out += ['--perms', '0444', '--file', str(descriptor), f'{PROGRAM}/{name}']
    out += ['--remount-ro', '/', '--chdir', WORK]
    out += ['--seccomp', str(seccomp_fd), '--json-status-fd', str(status_fd), '--block-fd', str(block_fd), '--']
    out += [*_resources(host, limits), *drop]
    return [*out, host.python, '-I', '-S', '-B', '-X', 'utf8', *arguments]
