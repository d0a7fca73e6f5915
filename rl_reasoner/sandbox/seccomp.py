"""The system-call filter: an allow-list as classic BPF, built for x86_64 and aarch64.

Pure: `program` returns the bytes of the filter, nothing is installed here. Everything not listed
answers EPERM; clone3 answers ENOSYS, so that the C library falls back to clone, whose flags a
filter can see. Calls with arguments that matter are checked one by one. No fork, no exec, no
sockets but connected pairs, no signals to others, no mounts, no kernel attack surface for its own
sake. Numbers are from the kernel's unistd.h of each machine.
"""

import errno
import struct
from collections.abc import Iterable, Sequence

# name: (x86_64, aarch64); None where the machine lacks the call.
_NUMBERS: dict[str, tuple[int | None, int | None]] = {
    "access": (21, None), "alarm": (37, None), "arch_prctl": (158, None), "brk": (12, 214),
    "chdir": (80, 49), "chmod": (90, None), "chown": (92, None), "clock_getres": (229, 114),
    "clock_gettime": (228, 113), "clock_nanosleep": (230, 115), "clone": (56, 220),
    "clone3": (435, 435), "close": (3, 57), "close_range": (436, 436),
    "copy_file_range": (326, 285), "creat": (85, None), "dup": (32, 23), "dup2": (33, None),
    "dup3": (292, 24), "epoll_create": (213, None), "epoll_create1": (291, 20),
    "epoll_ctl": (233, 21), "epoll_pwait": (281, 22), "epoll_pwait2": (441, 441),
    "epoll_wait": (232, None), "eventfd2": (290, 19), "exit": (60, 93), "exit_group": (231, 94),
    "faccessat": (269, 48), "faccessat2": (439, 439), "fadvise64": (221, 223),
    "fallocate": (285, 47), "fchdir": (81, 50), "fchmod": (91, 52), "fchmodat": (268, 53),
    "fchmodat2": (452, 452), "fchown": (93, 55), "fchownat": (260, 54), "fcntl": (72, 25),
    "fdatasync": (75, 83), "flock": (73, 32), "fstat": (5, 80), "fstatfs": (138, 44),
    "fsync": (74, 82), "ftruncate": (77, 46), "futex": (202, 98), "futex_waitv": (449, 449),
    "futimesat": (261, None), "get_robust_list": (274, 100), "getcpu": (309, 168),
    "getcwd": (79, 17), "getdents64": (217, 61), "getegid": (108, 177), "geteuid": (107, 175),
    "getgid": (104, 176), "getgroups": (115, 158), "getitimer": (36, 102), "getpeername": (52, 205),
    "getpgid": (121, 155), "getpgrp": (111, None), "getpid": (39, 172), "getppid": (110, 173),
    "getpriority": (140, 141), "getrandom": (318, 278), "getresgid": (120, 150),
    "getresuid": (118, 148), "getrlimit": (97, 163), "getrusage": (98, 165), "getsid": (124, 156),
    "getsockname": (51, 204), "getsockopt": (55, 209), "gettid": (186, 178),
    "gettimeofday": (96, 169), "getuid": (102, 174), "ioctl": (16, 29), "kill": (62, 129),
    "lchown": (94, None), "link": (86, None), "linkat": (265, 37), "lseek": (8, 62),
    "lstat": (6, None), "madvise": (28, 233), "membarrier": (324, 283), "mkdir": (83, None),
    "mkdirat": (258, 34), "mmap": (9, 222), "mprotect": (10, 226), "mremap": (25, 216),
    "msync": (26, 227), "munmap": (11, 215), "nanosleep": (35, 101), "newfstatat": (262, 79),
    "open": (2, None), "openat": (257, 56), "openat2": (437, 437), "pause": (34, None),
    "pipe": (22, None), "pipe2": (293, 59), "poll": (7, None), "ppoll": (271, 73),
    "prctl": (157, 167), "pread64": (17, 67), "prlimit64": (302, 261), "pselect6": (270, 72),
    "pwrite64": (18, 68), "read": (0, 63), "readlink": (89, None), "readlinkat": (267, 78),
    "readv": (19, 65), "recvfrom": (45, 207), "recvmsg": (47, 212), "rename": (82, None),
    "renameat": (264, 38), "renameat2": (316, 276), "restart_syscall": (219, 128),
    "rmdir": (84, None), "rseq": (334, 293), "rt_sigaction": (13, 134), "rt_sigpending": (127, 136),
    "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "rt_sigsuspend": (130, 133),
    "rt_sigtimedwait": (128, 137), "rt_tgsigqueueinfo": (297, 240), "sched_getaffinity": (204, 123),
    "sched_setaffinity": (203, 122), "sched_yield": (24, 124), "select": (23, None),
    "sendfile": (40, 71), "sendmsg": (46, 211), "sendto": (44, 206), "set_robust_list": (273, 99),
    "set_tid_address": (218, 96), "setitimer": (38, 103), "shutdown": (48, 210),
    "sigaltstack": (131, 132), "signalfd4": (289, 74), "socketpair": (53, 199), "stat": (4, None),
    "statfs": (137, 43), "statx": (332, 291), "symlink": (88, None), "symlinkat": (266, 36),
    "tgkill": (234, 131), "time": (201, None), "timer_create": (222, 107),
    "timer_delete": (226, 111), "timer_getoverrun": (225, 109), "timer_gettime": (224, 108),
    "timer_settime": (223, 110), "timerfd_create": (283, 85), "timerfd_gettime": (287, 87),
    "timerfd_settime": (286, 86), "times": (100, 153), "truncate": (76, 45), "umask": (95, 166),
    "uname": (63, 160), "unlink": (87, None), "unlinkat": (263, 35), "utime": (132, None),
    "utimensat": (280, 88), "utimes": (235, None), "wait4": (61, 260), "waitid": (247, 95),
    "write": (1, 64), "writev": (20, 66),
}  # fmt: skip

# Plain computation, memory, time and files already open: allowed at every level.
_COMPUTE = """
    read write readv writev pread64 pwrite64 close lseek fstat dup dup2 dup3 pipe pipe2 brk mmap
    munmap mremap mprotect madvise futex futex_waitv set_robust_list rseq set_tid_address
    restart_syscall exit exit_group sched_yield getcpu nanosleep gettimeofday time times getrusage
    getrlimit getrandom getpid gettid getppid getuid geteuid getgid getegid getresuid getresgid
    getgroups getpgrp umask rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigtimedwait
    rt_sigsuspend sigaltstack pause alarm setitimer getitimer timer_settime timer_gettime
    timer_getoverrun timer_delete timerfd_create timerfd_settime timerfd_gettime signalfd4 eventfd2
    epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 poll ppoll select
    pselect6 sendfile flock recvfrom recvmsg sendmsg shutdown getsockname getpeername getsockopt
    stat lstat newfstatat statx access faccessat faccessat2 readlink readlinkat getcwd chdir fchdir
    getdents64 arch_prctl wait4 waitid
"""
# Changing files: only where a mount or Landlock holds the program to its work folder.
_WRITE = """
    open openat creat mkdir mkdirat rmdir unlinkat renameat2 link linkat symlink symlinkat
    ftruncate fallocate copy_file_range
"""
# Calls that Landlock does not cover, and those by which a file loses its last name (`removal`):
# only inside a mount namespace of the program's own.
_OWN_ROOT = """
    truncate chmod fchmod fchmodat fchmodat2 chown lchown fchown fchownat utime utimes utimensat
    futimesat statfs fstatfs uname unlink rename renameat
"""

_LOAD, _AND, _RET = 0x20, 0x54, 0x06
_JEQ, _JGE, _JGT = 0x15, 0x35, 0x25
_ALLOW = 0x7FFF0000
_KILL = 0x80000000
_EPERM = 0x00050000 | errno.EPERM
_EOPNOTSUPP = 0x00050000 | errno.EOPNOTSUPP
_ENOSYS = 0x00050000 | errno.ENOSYS
_DONE = 0x00050000  # the call does nothing, and says that it did
_NR, _ARCH = 0, 4
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}

_CLONE_THREAD = 0x00010F00  # with VM, FS, FILES, SIGHAND: a thread that shares all there is
_CLONE_FREE = 0x017C0000  # SYSVSEM, SETTLS, PARENT_SETTID, CHILD_CLEARTID, DETACHED, CHILD_SETTID
_CLOSE_RANGE_UNSHARE = 2  # a table of descriptors of the thread's own
_AT_REMOVEDIR, _RENAME_NOREPLACE = 0x200, 1
_O_TMPFILE = 0o20000000
_AF_UNIX = 1
_SOCK_STREAM, _SOCK_TYPE = 1, 0xF
_WRITING = 0o1 | 0o2 | 0o100 | 0o1000 | 0o2000  # O_WRONLY O_RDWR O_CREAT O_TRUNC O_APPEND
_FCNTL = (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030, 1032)  # descriptors, flags, locks, pipe size
# TCGETS* GWINSZ FION* FI*CLEX
_IOCTL = (0x5401, 0x802C542A, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
_PRCTL = (15, 16)  # the name of a thread
_MEMBARRIER = (0, 8, 16, 32, 64, 128, 256)  # of a process's own threads: the others wait for all
# What would wait for a disk, or clear the cache that others read from: no file outlives a program.
_CLOCKS = ("clock_gettime", "clock_getres", "clock_nanosleep", "timer_create")
_DISK = ("fsync", "fdatasync", "msync", "fadvise64")

BpfInstruction = tuple[int, int, int, int]


def supported(machine: str) -> bool:
    """Whether there is a filter for `machine` (as `os.uname().machine` names it)."""
    return machine in _MACHINES


def numbers(machine: str) -> dict[str, int]:
    """System-call numbers of `machine` by name."""
    index = _MACHINES[machine][0]
    table = ((name, pair[index]) for name, pair in _NUMBERS.items())
    return {name: number for name, number in table if number is not None}


def program(machine: str, level: str, pid: int) -> bytes:
    """The filter for `machine` at `level`, as an array of `struct sock_filter`.

    `pid` is the only process that kill and tgkill may name. Levels: "namespaces" (files are the
    mount namespace's affair), "landlock" (without the calls Landlock does not see), "seccomp"
    (files can only be opened for reading). Raises KeyError for an unknown machine.
    """
    table = numbers(machine)
    checks = _checked(level, pid)
    names = _COMPUTE.split()
    if level in ("namespaces", "landlock"):
        names += _WRITE.split()
    if level == "namespaces":
        names += _OWN_ROOT.split()
    allowed = {table[name] for name in names if name in table and name not in checks}
    checked = {table[name]: body for name, body in checks.items() if name in table}
    out: list[BpfInstruction] = [
        (_LOAD, 0, 0, _ARCH),
        (_JEQ, 1, 0, _MACHINES[machine][1]),
        (_RET, 0, 0, _KILL),
        (_LOAD, 0, 0, _NR),
    ]
    for number, body in checked.items():
        out += [(_JEQ, 0, len(body), number), *body]
    for low, high in _ranges(allowed):
        out += [(_JGE, 0, 2, low), (_JGT, 1, 0, high), (_RET, 0, 0, _ALLOW)]
    out.append((_RET, 0, 0, _EPERM))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in out)


def _checked(level: str, pid: int) -> dict[str, list[BpfInstruction]]:
    """The calls whose arguments decide, each with instructions that end in a return."""
    checks = {
        "clone3": [(_RET, 0, 0, _ENOSYS)],
        "openat2": [(_RET, 0, 0, _ENOSYS)],
        "clone": [
            *_masked(0, 0xFFFFFFFF & ~_CLONE_FREE),
            (_JEQ, 0, 1, _CLONE_THREAD),
            *_verdict(),
        ],
        "close_range": [*_masked(2, _CLOSE_RANGE_UNSHARE), (_JEQ, 0, 1, 0), *_verdict()],
        "kill": _one_of(0, (pid,)),
        "tgkill": _one_of(0, (pid,)),
        "rt_tgsigqueueinfo": _one_of(0, (pid,)),
        "fcntl": _one_of(1, _FCNTL),
        "ioctl": _one_of(1, _IOCTL),
        "prctl": _one_of(0, _PRCTL),
        "membarrier": _one_of(0, _MEMBARRIER),
        **{name: [(_RET, 0, 0, _DONE)] for name in _DISK},
        "prlimit64": _one_of(0, (0, pid)),  # limits cannot be raised without capabilities
        "sched_setaffinity": _one_of(0, (0,)),
        # Of other processes not even whether there are any, nor what time they took.
        **{name: _one_of(0, (0, pid)) for name in ("getpgid", "getsid", "sched_getaffinity")},
        "getpriority": _one_of(1, (0, pid)),
        "get_robust_list": _one_of(0, (0,)),
        **{name: [*_masked(0, 1 << 31), (_JEQ, 0, 1, 0), *_verdict()] for name in _CLOCKS},
        # Only connected stream pairs: a datagram socket could send to any address.
        "socketpair": [
            *_load(0),
            (_JEQ, 0, 4, _AF_UNIX),
            *_masked(1, _SOCK_TYPE),
            (_JEQ, 0, 1, _SOCK_STREAM),
            *_verdict(),
        ],
        "sendto": [*_load(4), (_JEQ, 0, 3, 0), *_load(4, high=True), (_JEQ, 0, 1, 0), *_verdict()],
    }
    # What open may not be asked for: writing; at "landlock" a file that never has a name.
    unopened = {"seccomp": _WRITING, "landlock": _O_TMPFILE}.get(level)
    if unopened:
        checks["open"] = [*_masked(1, unopened), (_JEQ, 0, 1, 0), *_verdict()]
        checks["openat"] = [*_masked(2, unopened), (_JEQ, 0, 1, 0), *_verdict()]
    if level == "landlock":
        checks["unlinkat"] = _one_of(2, (_AT_REMOVEDIR,))
        checks["renameat2"] = _one_of(4, (_RENAME_NOREPLACE,))
        # Gigabytes in no time, before a watcher looks; the C library then writes them one by one.
        checks["fallocate"] = [(_RET, 0, 0, _EOPNOTSUPP)]
    return checks


def _load(argument: int, high: bool = False) -> list[BpfInstruction]:
    return [(_LOAD, 0, 0, 16 + 8 * argument + (4 if high else 0))]


def _masked(argument: int, mask: int) -> list[BpfInstruction]:
    return [*_load(argument), (_AND, 0, 0, mask)]


def _verdict() -> list[BpfInstruction]:
    return [(_RET, 0, 0, _ALLOW), (_RET, 0, 0, _EPERM)]


def _one_of(argument: int, values: Sequence[int]) -> list[BpfInstruction]:
    """Allow when the low word of `argument` is one of `values`."""
    last = len(values) - 1
    jumps = [(_JEQ, last - i, 1 if i == last else 0, value) for i, value in enumerate(values)]
    return [*_load(argument), *jumps, *_verdict()]


def _ranges(values: Iterable[int]) -> list[tuple[int, int]]:
    """Sorted numbers as inclusive ranges, so that the filter stays short."""
    found: list[tuple[int, int]] = []
    for value in sorted(values):
        if found and found[-1][1] == value - 1:
            found[-1] = (found[-1][0], value)
        else:
            found.append((value, value))
    return found
