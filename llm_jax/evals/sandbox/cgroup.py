"""Control groups that bound the memory and the processes of a sandbox together, in version 1 and version 2."""

import contextlib
import dataclasses
import os
import pathlib
import re
import time

from .limits import Limits

_PREFIX = 'llm_jax-sandbox-'
_CONTROLLERS = ('memory', 'pids')


@dataclasses.dataclass(frozen=True)
class Parents:
    """Directories in which groups can be made, by controller; empty where this process may not make any."""

    directories: dict[str, pathlib.Path]
    version: int

    def __bool__(self) -> bool:
        return bool(self.directories)


@dataclasses.dataclass(frozen=True)
class Group:
    """The group of one sandbox."""

    directories: dict[str, pathlib.Path]
    version: int

    def add(self, pid: int) -> None:
        """Moves a process into the group; its children start there."""
        for directory in set(self.directories.values()):
            (directory / 'cgroup.procs').write_text(str(pid))

    def out_of_memory(self) -> bool:
        """Whether the kernel has killed a process of the group for its memory."""
        name = 'memory.events' if self.version == 2 else 'memory.oom_control'
        text = (self.directories['memory'] / name).read_text()
        return any(int(count) for count in re.findall(r'^oom_kill (\d+)', text, re.MULTILINE))

    def remove(self) -> None:
        """Removes the group, whose processes have ended; the kernel may need a moment to see it."""
        for directory in set(self.directories.values()):
            for _ in range(100):
                try:
                    directory.rmdir()
                except FileNotFoundError:
                    pass
                except OSError:
                    time.sleep(0.01)
                    continue
                break


def _own_directories() -> tuple[dict[str, pathlib.Path], int]:
    """This process's directory of each controller, and the version of control groups."""
    mounts = {}  # controller, or '' for version 2 -> (directory of the mount, root of the mount)
    for line in pathlib.Path('/proc/self/mountinfo').read_text().splitlines():
        before, _, after = line.partition(' - ')
        kind, _, options = (after.split() + ['', '', ''])[:3]
        root, where = before.split()[3:5]
        if kind == 'cgroup':
            for controller in set(_CONTROLLERS) & set(options.split(',')):
                mounts[controller] = pathlib.Path(where), root
        elif kind == 'cgroup2':
            mounts[''] = pathlib.Path(where), root
    found, version = {}, 1
    for line in pathlib.Path('/proc/self/cgroup').read_text().splitlines():
        _, controllers, path = line.split(':', 2)
        for controller in controllers.split(','):
            if controller in mounts and (controller or not set(_CONTROLLERS) <= set(mounts)):
                where, root = mounts[controller]
                directory = where / os.path.relpath(path, root)
                if controller:
                    found[controller] = directory
                else:
                    version, found = 2, dict.fromkeys(_CONTROLLERS, directory)
    return found, version


def find_parents() -> Parents:
    """The directories for groups of sandboxes: under this process's own groups, where it may make them.

    Version 2 gives controllers to children only of a group without processes, or of the root of a namespace.
    """
    found, version = _own_directories()
    if set(found) != set(_CONTROLLERS):
        return Parents({}, version)
    if version == 2:
        enabled = found['memory'] / 'cgroup.subtree_control'
        if not enabled.is_file():
            return Parents({}, version)
        if not set(_CONTROLLERS) <= set(enabled.read_text().split()):
            try:
                enabled.write_text('+memory +pids')
            except OSError:
                return Parents({}, version)
    parents = Parents(found, version)
    _remove_abandoned(parents)
    try:
        make_group(parents, Limits()).remove()
    except OSError:
        return Parents({}, version)
    return parents


def _remove_abandoned(parents: Parents) -> None:
    """Removes groups of processes that were killed before they could do it."""
    for directory in set(parents.directories.values()):
        for group in directory.glob(_PREFIX + '*'):
            pid = group.name.removeprefix(_PREFIX).split('-')[0]
            if not pathlib.Path('/proc', pid).exists():
                with contextlib.suppress(OSError):  # another process was quicker
                    group.rmdir()


def make_group(parents: Parents, limits: Limits) -> Group:
    """Makes a group with these limits.

    Raises:
      OSError: it may not, or the kernel has no such limits.
    """
    # Two of the processes are bubblewrap's own; its memory and the interpreter's pages count as well.
    memory, processes = (limits.memory + 16) << 20, limits.processes + 2
    name = f'{_PREFIX}{os.getpid()}-{os.urandom(6).hex()}'
    group = Group({c: directory / name for c, directory in parents.directories.items()}, parents.version)
    try:
        for directory in set(group.directories.values()):
            directory.mkdir()
        if group.version == 2:
            settings = {'memory.max': memory, 'memory.swap.max': 0, 'pids.max': processes}
        else:
            settings = {'memory.limit_in_bytes': memory, 'memory.memsw.limit_in_bytes': memory, 'pids.max': processes}
        for file, value in settings.items():
            path = group.directories[file.split('.')[0]] / file
            if path.exists() or 'sw' not in file:  # kernels without accounting of swap have no file for it
                path.write_text(str(value))
    except OSError:
        group.remove()
        raise
    return group
