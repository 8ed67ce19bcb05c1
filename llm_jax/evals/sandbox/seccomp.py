"""The filter of system calls, as BPF bytes of the kernel's own format, for x86_64 and aarch64; no library is needed.

Programs keep what a program needs. Refused are calls that make or change namespaces, mounts, kernel modules, clocks and
swap, that reach into other processes, that hold memory that belongs to no file and no process (memfd, System V),
sockets
other than Unix ones, and every call that is newer than the tables below. The namespaces and the missing capabilities
refuse most of it already: the filter keeps the program from code in the kernel that it has no business in.
"""

from collections.abc import Iterable, Mapping
import dataclasses
import errno
import struct

# name: (number on x86_64, number on aarch64); None: not there.
_DENIED: Mapping[str, tuple[int | None, int | None]] = {
    'acct': (163, 89),
    'add_key': (248, 217),
    'adjtimex': (159, 171),
    'bpf': (321, 280),
    'chroot': (161, 51),
    'clock_adjtime': (305, 266),
    'clock_settime': (227, 112),
    'create_module': (174, None),
    'delete_module': (176, 106),
    'fanotify_init': (300, 262),
    'finit_module': (313, 273),
    'fsconfig': (431, 431),
    'fsmount': (432, 432),
    'fsopen': (430, 430),
    'fspick': (433, 433),
    'get_kernel_syms': (177, None),
    'init_module': (175, 105),
    'io_setup': (206, 0),
    'io_uring_enter': (426, 426),
    'io_uring_register': (427, 427),
    'io_uring_setup': (425, 425),
    'ioperm': (173, None),
    'iopl': (172, None),
    'kcmp': (312, 272),
    'kexec_file_load': (320, 294),
    'kexec_load': (246, 104),
    'keyctl': (250, 219),
    'lookup_dcookie': (212, 18),
    'mbind': (237, 235),
    'memfd_create': (319, 279),
    'memfd_secret': (447, 447),
    'migrate_pages': (256, 238),
    'modify_ldt': (154, None),
    'mount': (165, 40),
    'mount_setattr': (442, 442),
    'move_mount': (429, 429),
    'move_pages': (279, 239),
    'mq_open': (240, 180),
    'msgget': (68, 186),
    'name_to_handle_at': (303, 264),
    'nfsservctl': (180, 42),
    'open_by_handle_at': (304, 265),
    'open_tree': (428, 428),
    'perf_event_open': (298, 241),
    'personality': (135, 92),
    'pidfd_getfd': (438, 438),
    'pivot_root': (155, 41),
    'process_madvise': (440, 440),
    'process_vm_readv': (310, 270),
    'process_vm_writev': (311, 271),
    'ptrace': (101, 117),
    'query_module': (178, None),
    'quotactl': (179, 60),
    'quotactl_fd': (443, 443),
    'reboot': (169, 142),
    'request_key': (249, 218),
    'semget': (64, 190),
    'set_mempolicy': (238, 237),
    'set_mempolicy_home_node': (450, 450),
    'setdomainname': (171, 162),
    'sethostname': (170, 161),
    'setns': (308, 268),
    'settimeofday': (164, 170),
    'shmget': (29, 194),
    'swapoff': (168, 225),
    'swapon': (167, 224),
    'syslog': (103, 116),
    'sysfs': (139, None),
    'umount2': (166, 39),
    'unshare': (272, 97),
    'uselib': (134, None),
    'userfaultfd': (323, 282),
    'ustat': (136, None),
    'vhangup': (153, 58),
    'vmsplice': (278, 75),
    '_sysctl': (156, None),
}
# Refused by their arguments, or with an error of their own.
_CLONE, _CLONE3, _SOCKET, _SOCKETPAIR, _IOCTL = (56, 220), (435, 435), (41, 198), (53, 199), (16, 29)
_LAST = (462, 462)  # the newest call in the tables; what comes after it the filter does not know

_NEW_NAMESPACES = 0x7E020000  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
_AF_UNIX = 1
_TERMINAL_INPUT = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX: characters typed into a terminal

_MACHINES = {'x86_64': (0, 0xC000003E), 'aarch64': (1, 0xC00000B7)}  # column above, AUDIT_ARCH_*

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000
# struct seccomp_data: int nr; u32 arch; u64 instruction pointer; u64 arguments[6] (low word first on both machines)
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16


@dataclasses.dataclass(frozen=True)
class _Rule:
    """A test of the loaded word: `kind` against `value`; where it is true, `then`, else the next instruction."""

    kind: int
    value: int
    then: int


def _instruction(code: int, value: int, true: int = 0, false: int = 0) -> bytes:
    return struct.pack('=HBBI', code, true, false, value)


def _rules(rules: Iterable[_Rule]) -> bytes:
    """Each rule as a comparison and the return that it jumps over."""
    return b''.join(_instruction(r.kind, r.value, 0, 1) + _instruction(_RETURN, r.then) for r in rules)


def _with_argument(number: int, argument: int, rules: list[_Rule], otherwise: int) -> bytes:
    """Rules on the low word of an argument of one call; every other call jumps over them."""
    body = _instruction(_LOAD, _ARGUMENTS + 8 * argument) + _rules(rules) + _instruction(_RETURN, otherwise)
    return _instruction(_EQUAL, number, 0, len(body) // 8) + body


def supported(machine: str) -> bool:
    """Whether there is a filter for a machine as `platform.machine()` names it."""
    return machine in _MACHINES


def build_filter(machine: str) -> bytes:
    """The filter for a machine ('x86_64' or 'aarch64'), as struct sock_filter[]."""
    column, arch = _MACHINES[machine]
    denied, missing = _ERROR | errno.EPERM, _ERROR | errno.ENOSYS
    out = _instruction(_LOAD, _ARCH) + _instruction(_EQUAL, arch, 1, 0) + _instruction(_RETURN, _KILL)
    out += _instruction(_LOAD, _NUMBER)
    # Above the newest call are those of later kernels and, with bit 30, those of x32.
    out += _rules([_Rule(_AT_LEAST, _LAST[column] + 1, missing), _Rule(_EQUAL, _CLONE3[column], missing)])
    numbers = sorted(numbers[column] for numbers in _DENIED.values() if numbers[column] is not None)
    out += _rules(_Rule(_EQUAL, number, denied) for number in numbers)
    out += _with_argument(_CLONE[column], 0, [_Rule(_ANY_BIT, _NEW_NAMESPACES, denied)], _ALLOW)
    for number in (_SOCKET, _SOCKETPAIR):
        out += _with_argument(number[column], 0, [_Rule(_EQUAL, _AF_UNIX, _ALLOW)], denied)
    out += _with_argument(_IOCTL[column], 1, [_Rule(_EQUAL, value, denied) for value in _TERMINAL_INPUT], _ALLOW)
    return out + _instruction(_RETURN, _ALLOW)
