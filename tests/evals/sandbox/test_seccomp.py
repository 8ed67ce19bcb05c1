"""The filter of system calls, run instruction by instruction as the kernel does."""

import errno
import struct

import pytest

from llm_jax.evals.sandbox import seccomp

ALLOW, KILL = 0x7FFF0000, 0x80000000
DENIED, MISSING = 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS
ARCH = {'x86_64': 0xC000003E, 'aarch64': 0xC00000B7}
NUMBERS = {
    'x86_64': {'read': 0, 'mount': 165, 'clone': 56, 'clone3': 435, 'socket': 41, 'socketpair': 53, 'ioctl': 16,
               'ptrace': 101, 'bpf': 321, 'unshare': 272, 'memfd_create': 319, 'execve': 59,
               'setns': 308, 'shmget': 29},
    'aarch64': {'read': 63, 'mount': 40, 'clone': 220, 'clone3': 435, 'socket': 198, 'socketpair': 199, 'ioctl': 29,
                'ptrace': 117, 'bpf': 280, 'unshare': 97, 'memfd_create': 279, 'execve': 221,
                'setns': 268, 'shmget': 194},
}  # fmt: skip


def run_filter(program: bytes, arch: int, number: int, *arguments: int) -> int:
    data = struct.pack('=IIQ6Q', number, arch, 0, *arguments, *[0] * (6 - len(arguments)))
    instructions = list(struct.iter_unpack('=HBBI', program))
    at = accumulator = 0
    while True:
        code, true, false, value = instructions[at]
        if code == 0x20:
            (accumulator,) = struct.unpack_from('=I', data, value)
        elif code == 0x06:
            return value
        else:
            holds = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: bool(accumulator & value)}[code]
            at += true if holds else false
        at += 1


@pytest.fixture(params=['x86_64', 'aarch64'])
def call(request: pytest.FixtureRequest):
    program = seccomp.build_filter(request.param)
    return lambda name, *arguments: run_filter(
        program, ARCH[request.param], NUMBERS[request.param].get(name, name), *arguments
    )


def test_what_a_program_needs_is_allowed(call) -> None:
    assert call('read') == call('execve') == ALLOW
    assert call('clone', 0x3D0F00) == ALLOW  # a thread
    assert call('clone', 17) == ALLOW  # a child
    assert call('socketpair', 1) == call('socket', 1) == ALLOW
    assert call('ioctl', 0, 0x5413) == ALLOW  # the size of a terminal


@pytest.mark.parametrize('name', ['mount', 'ptrace', 'bpf', 'unshare', 'setns', 'memfd_create', 'shmget'])
def test_calls_that_no_program_needs_are_refused(call, name: str) -> None:
    assert call(name) == DENIED


def test_arguments_decide(call) -> None:
    for flag in (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000):
        assert call('clone', 17 | flag) == DENIED
    for family in (2, 10, 16, 17, 40):
        assert call('socket', family, 1) == call('socketpair', family, 1) == DENIED
    assert call('ioctl', 0, 0x5412) == call('ioctl', 0, 0x541C) == DENIED
    assert call('ioctl', 0, 0xFFFFFFFF00005412) == DENIED  # the kernel reads the low word alone


def test_calls_unknown_to_the_filter_are_missing(call) -> None:
    assert call('clone3') == call(463) == call(0x40000000 | 41) == call(0xFFFFFFFF) == MISSING


def test_other_machines_are_killed() -> None:
    for machine in ARCH:
        program = seccomp.build_filter(machine)
        assert run_filter(program, 0x40000003, 0) == KILL  # 32 bits
    assert not seccomp.supported('riscv64')
