"""A program that tries to get out of the sandbox, harmlessly, and prints as JSON what it reached.

Its argument is a JSON object of what there is outside: files, directories, ports, sockets, a process and a secret word.
"""

import ctypes
import json
import mmap
import os
import socket
import sys
import time


def reaches(action, *arguments):
    """Whether an action works."""
    try:
        action(*arguments)
    except (OSError, MemoryError, AttributeError):
        return False
    return True


def read(path):
    with open(path, 'rb') as file:
        return file.read(1 << 20)


def write(path):
    with open(path, 'w') as file:
        file.write('x')
    os.unlink(path)


def connect(family, kind, address):
    with socket.socket(family, kind) as connection:
        connection.settimeout(1)
        connection.connect(address)
        connection.send(b'x')


def find_secret(secret):
    """Where processes show the secret in their environment or command line."""
    places = [name for name, value in os.environ.items() if secret in name + value]
    for pid in filter(str.isdigit, os.listdir('/proc')):
        for name in ('environ', 'cmdline'):
            path = f'/proc/{pid}/{name}'
            if pid != str(os.getpid()) and reaches(read, path) and secret.encode() in read(path):
                places.append(path)
    return places


def count_forks(most):
    """Processes that it can have at once, up to `most`; the last stays behind, in a session of its own."""
    children = []
    for i in range(most):
        try:
            pid = os.fork()
        except OSError:
            break
        if not pid:
            if not i:
                os.setsid()  # the daemon
                null = os.open('/dev/null', os.O_RDWR)
                for descriptor in (0, 1, 2):
                    os.dup2(null, descriptor)
            time.sleep(60)
            os._exit(0)
        children.append(pid)
    for pid in children[1:]:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    return len(children)


def fill(directory, most):
    """MiB of files that it can have in a directory, up to `most`."""
    path, written = f'{directory}/fill', 0
    try:
        with open(path, 'wb', buffering=0) as file:
            while written < most << 20:
                written += file.write(b'x' * (1 << 20))
    except OSError:
        pass
    if os.path.exists(path):
        os.unlink(path)
    return written / (1 << 20)


def main():
    outside = json.loads(sys.argv[1])
    libc = ctypes.CDLL(None, use_errno=True)
    status = dict(line.split(':\t', 1) for line in read('/proc/self/status').decode().splitlines() if ':\t' in line)
    new_namespaces = (0x10000000, 0x00020000, 0x40000000, 0x20000000)  # of users, mounts, network, processes
    found = {
        'files read': [path for path in outside['files'] if reaches(read, path)],
        'directories listed': [path for path in outside['directories'] if reaches(os.listdir, path)],
        'places written': [path for path in outside['places'] if reaches(write, f'{path}/llm_jax-sandbox-trial')],
        'secret seen': find_secret(outside['terces'][::-1]),
        'connections': [
            str(address)
            for family, kind, address in (
                (socket.AF_INET, socket.SOCK_STREAM, ('127.0.0.1', outside['port'])),
                (socket.AF_INET, socket.SOCK_DGRAM, ('127.0.0.1', outside['port'])),
                (socket.AF_UNIX, socket.SOCK_STREAM, '\0' + outside['abstract']),
                (socket.AF_UNIX, socket.SOCK_STREAM, outside['socket']),
            )
            if reaches(connect, family, kind, address)
        ],
        'interfaces': [name for _, name in socket.if_nameindex() if name != 'lo']
        if reaches(socket.if_nameindex)
        else [],
        'processes': [pid for pid in filter(str.isdigit, os.listdir('/proc')) if int(pid) > 2],
        'signalled': reaches(os.kill, outside['pid'], 0),
        'uid': int(status['Uid'].split()[0]),
        'capabilities': any(int(status[f'Cap{kind}'], 16) for kind in ('Eff', 'Prm', 'Inh', 'Amb')),
        'new privileges': status['NoNewPrivs'].strip() != '1',
        'filter': status['Seccomp'].strip() == '2',
        'became root': reaches(os.setuid, 0) or reaches(os.setgid, 0),
        'namespaces made': [hex(flag) for flag in new_namespaces if libc.unshare(flag) == 0],
        'descriptors': [fd for fd in map(int, os.listdir('/proc/self/fd')) if fd > 2 and reaches(os.fstat, fd)],
        'standard input': len(sys.stdin.read()),
        'files filled': max(fill(place, 40) for place in ('/tmp', '/dev/shm')),
        'memory taken': reaches(mmap.mmap, -1, outside['memory'] << 20),
        'forks': count_forks(outside['forks']),
    }
    print(json.dumps(found))


main()
