"""The system-call filter decides as written on both machines, run on a model of kernel BPF."""

import errno
import platform
import struct
from pathlib import Path

import pytest

from rl_reasoner.sandbox import seccomp

ALLOW, KILL = 0x7FFF0000, 0x80000000
EPERM, ENOSYS = 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
PID = 4242
LEVELS = ("namespaces", "landlock", "seccomp")


def decide(code: bytes, arch: int, number: int, *args: int) -> int:
    """What the filter returns for one system call."""
    padded = [*args, 0, 0, 0, 0, 0, 0][:6]
    seen = struct.pack("=iIQ6Q", number, arch, 0, *(a & (2**64 - 1) for a in padded))
    program = list(struct.iter_unpack("=HBBI", code))
    at = value = 0
    while True:
        operation, yes, no, operand = program[at]
        at += 1
        if operation == 0x20:
            (value,) = struct.unpack_from("=I", seen, operand)
        elif operation == 0x54:
            value &= operand
        elif operation == 0x06:
            return int(operand)
        else:
            tests = {0x15: value == operand, 0x35: value >= operand, 0x25: value > operand}
            at += yes if tests[operation] else no


class Kernel:
    """One machine's filter at one level, asked by the names of calls."""

    def __init__(self, machine: str, level: str) -> None:
        self.arch = AUDIT[machine]
        self.numbers = seccomp.numbers(machine)
        self.code = seccomp.program(machine, level, PID)

    def __call__(self, name: str, *args: int) -> int:
        return decide(self.code, self.arch, self.numbers[name], *args)


@pytest.fixture(params=[(m, level) for m in AUDIT for level in LEVELS], ids="-".join)
def kernel(request: pytest.FixtureRequest) -> Kernel:
    return Kernel(*request.param)


def test_the_filter_is_short_enough_for_the_kernel(kernel: Kernel) -> None:
    assert len(kernel.code) % 8 == 0 and len(kernel.code) // 8 <= 4096


def test_other_machines_and_numbers_out_of_the_table_are_refused(kernel: Kernel) -> None:
    assert decide(kernel.code, 0x40000003, 1) == KILL  # 32-bit calls have other numbers
    read = kernel.numbers["read"]
    assert decide(kernel.code, kernel.arch, read) == ALLOW
    assert decide(kernel.code, kernel.arch, read | 0x40000000) == EPERM
    known = set(kernel.numbers.values())
    for number in set(range(600)) - known:
        assert decide(kernel.code, kernel.arch, number) == EPERM


def test_threads_but_no_processes(kernel: Kernel) -> None:
    thread = 0x3D0F00  # what the C library asks for
    assert kernel("clone", thread) == ALLOW
    assert kernel("clone", 0x7D0F00) == ALLOW  # and musl
    for flags in (17, 0, 0x4111, 0x10000000, 0x20000):
        assert kernel("clone", flags) == EPERM
    for lacking in (0x100, 0x200, 0x400, 0x800, 0x10000):
        assert kernel("clone", thread & ~lacking) == EPERM
    for more in (17, 0x8000, 0x2000, 0x4000, 0x20000, 0x10000000, 0x40000000):
        assert kernel("clone", thread | more) == EPERM
    assert kernel("clone3") == ENOSYS


def test_signals_to_oneself_only(kernel: Kernel) -> None:
    for name in ("kill", "tgkill"):
        assert kernel(name, PID, 15) == ALLOW
        for other in (0, 1, -1, -PID, PID + 1):
            assert kernel(name, other, 15) == EPERM


def test_only_connected_stream_pairs_as_sockets(kernel: Kernel) -> None:
    assert kernel("socketpair", 1, 1) == ALLOW
    assert kernel("socketpair", 1, 1 | 0o2000000 | 0o4000) == ALLOW
    for family, kind in ((1, 2), (1, 5), (2, 1), (16, 3), (40, 1)):
        assert kernel("socketpair", family, kind) == EPERM
    assert kernel("sendto", 3, 0x7000, 5, 0, 0, 0) == ALLOW
    assert kernel("sendto", 3, 0x7000, 5, 0, 0x7000, 16) == EPERM
    assert kernel("sendto", 3, 0x7000, 5, 0, 0x7000_0000_0000, 16) == EPERM
    assert "socket" not in kernel.numbers and "connect" not in kernel.numbers


def test_arguments_that_reach_others_are_refused(kernel: Kernel) -> None:
    assert kernel("prlimit64", 0, 7) == kernel("prlimit64", PID, 7) == ALLOW
    assert kernel("prlimit64", 1, 7) == EPERM
    for flags, verdict in ((0, ALLOW), (4, ALLOW), (2, EPERM), (6, EPERM)):
        assert kernel("close_range", 3, 9, flags) == verdict
    assert kernel("sched_setaffinity", 0) == ALLOW
    assert kernel("sched_setaffinity", 1) == EPERM
    for command, verdict in ((1, ALLOW), (3, ALLOW), (1030, ALLOW), (8, EPERM), (1031, EPERM)):
        assert kernel("fcntl", 1, command) == verdict
    for request, verdict in ((0x5401, ALLOW), (0x541B, ALLOW), (0x5412, EPERM), (0x8901, EPERM)):
        assert kernel("ioctl", 1, request) == verdict
    for option, verdict in ((15, ALLOW), (16, ALLOW), (1, EPERM), (4, EPERM), (22, EPERM)):
        assert kernel("prctl", option) == verdict
    for name in ("getpgid", "getsid", "sched_getaffinity"):
        assert [kernel(name, p) for p in (0, PID, 1, PID + 1)] == [ALLOW, ALLOW, EPERM, EPERM]
    assert [kernel("getpriority", 0, p) for p in (0, PID, 1)] == [ALLOW, ALLOW, EPERM]
    assert [kernel("get_robust_list", p) for p in (0, 1)] == [ALLOW, EPERM]
    for name in ("clock_gettime", "clock_getres", "clock_nanosleep", "timer_create"):
        assert [kernel(name, c) for c in (0, 2, 11, (~1 << 3) | 2)] == [ALLOW, ALLOW, ALLOW, EPERM]
    for command, verdict in ((0, ALLOW), (8, ALLOW), (16, ALLOW), (1, EPERM), (2, EPERM)):
        assert kernel("membarrier", command) == verdict
    for name in ("fsync", "fdatasync", "msync", "fadvise64"):
        assert kernel(name, 3) == 0x00050000  # done already: nothing reaches a disk


@pytest.mark.parametrize("machine", AUDIT)
def test_changing_files_goes_with_what_else_holds_them(machine: str) -> None:
    own_root, landlock, bare = (Kernel(machine, level) for level in LEVELS)
    for name in ("mkdirat", "linkat", "ftruncate"):
        verdicts = [k(name) for k in (own_root, landlock, bare)]
        assert verdicts == [ALLOW, ALLOW, EPERM]
    # At "landlock" no file loses its last name, and none is allocated at once.
    for name, at in (("unlinkat", (3, 0x7000, 0x200)), ("renameat2", (3, 0x7000, 3, 0x7000, 1))):
        assert [k(name, *at) for k in (own_root, landlock, bare)] == [ALLOW, ALLOW, EPERM]
        for flags in (0, 2, 4, 0x201):
            again = [k(name, *at[:-1], flags) for k in (own_root, landlock, bare)]
            assert again == [ALLOW, EPERM, EPERM]
    nameless = ("openat", -100, 0x7000, 0o20200002)
    assert [k(*nameless) for k in (own_root, landlock, bare)] == [ALLOW, EPERM, EPERM]
    verdicts = [k("fallocate", 3, 0, 0, 4096) for k in (own_root, landlock, bare)]
    assert verdicts == [ALLOW, 0x00050000 | errno.EOPNOTSUPP, EPERM]
    for name in ("fchmodat", "fchownat", "utimensat", "truncate", "statfs", "uname", "renameat"):
        assert [k(name) for k in (own_root, landlock, bare)] == [ALLOW, EPERM, EPERM]
    for flags in (0, 0o2000000, 0o200000):
        assert bare("openat", -100, 0x7000, flags) == ALLOW
    for flags in (0o1, 0o2, 0o101, 0o1000, 0o3):
        assert bare("openat", -100, 0x7000, flags) == EPERM
        assert landlock("openat", -100, 0x7000, flags) == ALLOW


HEADERS = {
    "x86_64": ("/usr/include/x86_64-linux-gnu/asm/unistd_64.h",),
    "aarch64": ("/usr/include/aarch64-linux-gnu/asm/unistd_64.h",),
}


@pytest.mark.parametrize("machine", AUDIT)
def test_numbers_are_the_kernels(machine: str) -> None:
    header = next((p for p in map(Path, HEADERS[machine]) if p.is_file()), None)
    if header is None:
        pytest.skip(f"no kernel header for {machine} here")
    words = [line.split() for line in header.read_text().splitlines()]
    theirs = {w[1][5:]: int(w[2]) for w in words if w[:1] == ["#define"] and len(w) == 3}
    ours = seccomp.numbers(machine)
    assert {name: theirs.get(name) for name in ours} == ours


def test_unknown_machines_have_no_filter() -> None:
    assert seccomp.supported(platform.machine()) == (platform.machine() in AUDIT)
    assert not seccomp.supported("riscv64")
