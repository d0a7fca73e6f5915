"""The server in the jail: started once, it forks one fresh process for each test.

Started by `host` as a bare interpreter (`python -P -s -S`, of the environment a seed for hashes
alone) with one end of a socket pair. It builds its jail, then answers jobs one at a time:
descriptors go to the forked process, what comes back is how that process ended. It never reads a
program, a test or an answer. It ends, and everything in it, when the host's end of the socket
closes.
"""

# A zygote does not load pathlib: each fork would pay for it.
# ruff: noqa: PTH101, PTH104, PTH106, PTH108, PTH119, PTH120, PTH123, PTH208

import contextlib
import errno
import gc
import mmap
import os
import resource
import select
import signal
import socket
import struct
import sys
import time
from dataclasses import dataclass

from rl_reasoner.sandbox import child, jail, linux, remote, removal

# mode, wall seconds, CPU seconds, memory bytes
JOB = struct.Struct("!cddQ")
# its mark, wall seconds, then for each of two processes: how it ended, code, CPU seconds
DONE = struct.Struct("!4sdcidcid")
ANSWERED = b"done"  # what begins otherwise is no result: why the zygote ends
SCRIPT, CALL, JUDGED = b"s", b"c", b"j"
EXITED, SIGNALLED, DEADLINE, QUOTA, NONE = b"e", b"s", b"d", b"q", b"-"
MAX_DESCRIPTORS = 8

_PRELOAD = """
    math re collections itertools functools heapq bisect string random operator typing dataclasses
    decimal fractions datetime json copy enum abc cmath io array queue threading contextlib types
    site ast
"""
_LOOK_EVERY_S = 0.05
_LOOK_AT_BOXES_EVERY_S = 0.02
_LEAST_S = 0.005
_MAX_DEPTH = 64
_EXITING = 4  # in the flags of a thread
_GRACE_S = 0.1


@dataclass
class Ended:
    """How a process ended, by whose doing, and what it used."""

    how: bytes
    code: int
    cpu_s: float


@dataclass
class Deadline:
    """When a job is over: after so many seconds since it began, or CPU seconds of one process."""

    began: float
    wall_s: float  # without the time that it waited for a processor
    longest_s: float  # with it
    cpu_s: float
    waited_s: float = 0.0
    held: bool = False  # whether the job was seen held up in the kernel, by its program
    entered: tuple[mmap.mmap, ...] = ()  # whether its processes have come as far as their programs

    @property
    def at(self) -> float:
        """The moment of the monotonic clock, as far as is known yet."""
        return self.began + min(self.wall_s + self.waited_s, self.longest_s)


def longest(wall_s: float) -> float:
    """The most seconds that a job of `wall_s` may take where it has to wait for a processor."""
    return 6 * wall_s + 5


def main(level: str, packages: list[str], scratch: str, control: int) -> None:
    """Serve jobs at `level` until the socket `control` closes; never returns.

    A second process stays outside the jail, and clears `scratch` away when the first has ended.
    """
    sock = socket.socket(fileno=control)
    try:
        if level == "namespaces":
            jail.isolate()
        pid = os.fork()
        if pid:
            sock.close()
            os.waitpid(pid, 0)
            if scratch:
                remove_tree(scratch)
            os._exit(0)
        linux.die_with_parent(signal.SIGKILL)
        if level == "landlock":
            removal.install()
        _preload(packages)
        built = jail.build(level, packages, scratch)
        if level != "process":
            linux.hide_memory()  # descriptors of a judge's test pass through here
        gc.collect()
        gc.freeze()
        sock.sendall(b"ready")
        _serve(sock, built)
    except (OSError, RuntimeError, ImportError, StopIteration) as error:
        with contextlib.suppress(OSError):
            sock.sendall(f"{type(error).__name__}: {error}".encode()[:500])
    finally:
        os._exit(0)


def _preload(packages: list[str]) -> None:
    """Load what programs commonly import, so that a fork has it already."""
    linux.one_arena()
    for name in _PRELOAD.split():
        __import__(name)
    sys.modules["site"].setquit()
    if packages:
        os.environ["OPENBLAS_NUM_THREADS"] = "1"
        sys.path.extend(sorted({os.path.dirname(path) for path in packages}))
        for path in packages:
            with contextlib.suppress(ImportError):
                __import__(os.path.basename(path))
    os.environ.clear()
    sys.dont_write_bytecode = True
    sys.argv = ["main.py"]
    sys.orig_argv = ["python", "main.py"]


def _serve(sock: socket.socket, built: jail.Jail) -> None:
    number = 0
    while True:
        raw, descriptors, _, _ = socket.recv_fds(sock, JOB.size, MAX_DESCRIPTORS)
        if len(raw) != JOB.size:
            return
        mode, wall_s, cpu_s, memory = JOB.unpack(raw)
        limits = jail.JailLimits(cpu_s, memory)
        number += 1
        boxes = [built.box(2 * number + part) for part in range(2 if mode == JUDGED else 1)]
        try:
            pids, entered = _start(mode, built, boxes, descriptors, limits)
            began = time.monotonic()
            watched = list(zip(pids, boxes, strict=True)) if built.scratch else []
            deadline = Deadline(began, wall_s, longest(wall_s), cpu_s, entered=tuple(entered))
            ended = _watch(pids, deadline, sock, watched, built.proc)
        finally:
            for box in boxes if built.scratch else []:
                remove_tree(box)
        if ended is None:
            return
        if any(e.code == remote.BROKEN and not at[0] for e, at in zip(ended, entered, strict=True)):
            raise OSError("a program could not enter its jail")
        for at in entered:
            at.close()
        first, second = [*ended, Ended(NONE, 0, 0.0)][:2]
        took = time.monotonic() - began
        fields = (f for e in (first, second) for f in (e.how, e.code, e.cpu_s))
        sock.sendall(DONE.pack(ANSWERED, took, *fields))


def _start(
    mode: bytes, built: jail.Jail, boxes: list[str], descriptors: list[int], limits: jail.JailLimits
) -> tuple[list[int], list[mmap.mmap]]:
    """Fork the processes of a job (a judge comes before its program); closes `descriptors`.

    With them the bytes that tell whether each came as far as its program.
    """
    entered = [mmap.mmap(-1, 1) for _ in boxes]
    if mode == JUDGED:
        test, verdict, *descriptors = descriptors
        ours, theirs = socket.socketpair()
        cells = [
            child.Cell(child.run_judge, test, [], [verdict, ours.fileno()], entered[0]),
            child.Cell(
                child.run_server, descriptors[0], descriptors[1:], [theirs.fileno()], entered[1]
            ),
        ]
        close = [test, verdict, ours.detach(), theirs.detach(), *descriptors]
    elif mode == CALL:
        payload, *streams, result = close = descriptors
        cells = [child.Cell(child.run_call, payload, streams, [result], *entered)]
    else:
        close = descriptors
        cells = [child.Cell(child.script, descriptors[0], descriptors[1:], [], *entered)]
    pids = []
    for cell, box in zip(cells, boxes, strict=True):
        pid = os.fork()
        if not pid:
            for other in entered:
                if other is not cell.entered:  # no program has its judge's
                    other.close()
            child.main(cell, built, box, limits)
        pids.append(pid)
    for descriptor in close:
        os.close(descriptor)
    return pids, entered


def _watch(
    pids: list[int],
    deadline: Deadline,
    sock: socket.socket,
    watched: list[tuple[int, str]],
    proc: int | None,
) -> list[Ended] | None:
    """Wait for the first process, then end them all; None when the host has gone."""
    how, first = _await(pids, deadline, sock, watched, proc)
    ended = {pids[0]: first} if first else {}
    if first and first.code == child.GONE and len(pids) > 1:
        grace = Deadline(time.monotonic(), _GRACE_S, _GRACE_S, deadline.cpu_s)
        _, second = _await(pids[1:], grace, sock, [], proc)
        if second:
            ended[pids[1]] = second
    for pid in pids:
        if pid not in ended:
            os.kill(pid, signal.SIGKILL)
            ended[pid] = _reap(pid)
            ended[pid].how = how if how in (DEADLINE, QUOTA) else NONE
    if os.getpid() == 1:
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
    return None if how == NONE else [ended[pid] for pid in pids]


def _await(
    pids: list[int],
    deadline: Deadline,
    sock: socket.socket,
    watched: list[tuple[int, str]],
    proc: int | None,
) -> tuple[bytes, Ended | None]:
    """Why waiting for the first process is over: its end, a limit, or the host's end (NONE)."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    handle = _handle(pids[0])
    if handle is not None:
        poll.register(handle, select.POLLIN)
    seldom = _LOOK_AT_BOXES_EVERY_S if watched else _LOOK_EVERY_S
    pause = 0.002 if handle is None else seldom
    try:
        while True:
            left = min(pause, max(0.0, deadline.at - time.monotonic()))
            if any(ready == sock.fileno() for ready, _ in poll.poll(left * 1000)):
                return NONE, None
            found, status, usage = os.wait4(pids[0], os.WNOHANG)
            if found:
                return EXITED, _ended(status, usage)
            if any(_used(pid) > deadline.cpu_s for pid in pids):
                return DEADLINE, None
            if time.monotonic() >= deadline.at and not _put_off(deadline, pids, proc):
                return DEADLINE, None
            if any(_too_much(*pair) for pair in watched):
                return QUOTA, None
    finally:
        if handle is not None:
            os.close(handle)


def _used(pid: int) -> float:
    """CPU seconds that a running process has used; 0 where the system does not tell."""
    try:
        return time.clock_gettime((~pid << 3) | 2)  # CPUCLOCK_SCHED of that process
    except OSError:
        return 0.0


def _put_off(deadline: Deadline, pids: list[int], proc: int | None) -> bool:
    """Put a deadline off by what the job waited for a processor; False where that is over, too.

    The system counts a wait when it is over, so a job that does not sleep is looked at again: what
    it computes is the other limit's. What the kernel holds up (D: for a disk, say) may have waited
    for a processor there; but a program that is held up is looked at again once.
    """
    told = [] if proc is None else [_waits(proc, pid) for pid in pids]
    deadline.waited_s = sum(waited for waited, _ in told)
    states = b"".join(each for _, each in told)
    awake = b"R" in states or (b"D" in states and not deadline.held)
    deadline.held |= b"D" in states and all(at[0] for at in deadline.entered)
    if awake:
        past = time.monotonic() - deadline.began - deadline.wall_s
        deadline.waited_s = max(deadline.waited_s, past + _LOOK_EVERY_S)
    return deadline.at - time.monotonic() > _LEAST_S


def _waits(proc: int, pid: int) -> tuple[float, bytes]:
    """Seconds that a process has waited for a processor, and the states of its threads, as letters.

    The seconds are those of the thread that waited most. Asked of /proc as the zygote's parent sees
    it, where `pid` has another number in a namespace. 0 and none where the system does not tell.
    """
    seconds, states = [0.0], b""
    with contextlib.suppress(AttributeError, OSError, ValueError, IndexError):
        handle = os.pidfd_open(pid)
        try:
            about = _read(proc, f"self/fdinfo/{handle}")
        finally:
            os.close(handle)
        tasks = f"{int(about.partition(b'Pid:')[2].split(maxsplit=1)[0])}/task"
        folder = os.open(tasks, os.O_RDONLY | os.O_DIRECTORY, dir_fd=proc)
        try:
            threads = os.listdir(folder)
        finally:
            os.close(folder)
        for each in threads:
            with contextlib.suppress(OSError):  # it has just ended
                state, *_, flags = (
                    _read(proc, f"{tasks}/{each}/stat").rpartition(b")")[2].split()[:7]
                )
                leaves = (
                    state == b"D" and int(flags) & _EXITING
                )  # its mounts: of no program's doing
                states += b"R" if leaves else state
                seconds.append(int(_read(proc, f"{tasks}/{each}/schedstat").split()[1]) / 1e9)
    return max(seconds), states


def _read(folder: int, path: str) -> bytes:
    descriptor = os.open(path, os.O_RDONLY, dir_fd=folder)
    try:
        return os.read(descriptor, 4096)
    finally:
        os.close(descriptor)


def _handle(pid: int) -> int | None:
    """A descriptor that becomes readable when `pid` ends; None where the system has none."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (errno.ENOSYS, errno.EPERM):
            raise
        return None


def _reap(pid: int) -> Ended:
    _, status, usage = os.wait4(pid, 0)
    return _ended(status, usage)


def _ended(status: int, usage: resource.struct_rusage) -> Ended:
    code = os.waitstatus_to_exitcode(status)
    cpu_s = usage.ru_utime + usage.ru_stime
    return Ended(EXITED if code >= 0 else SIGNALLED, abs(code), cpu_s)


# -------------------------------------------------------------------- boxes on the host's disk


def _too_much(pid: int, box: str) -> bool:
    """Whether a program has passed its share of disk or of threads, where no mount caps them.

    A folder that is very deep or cannot be looked into counts as too much.
    """
    size = files = 0
    folders = [(folder, 0) for folder in jail.folders_of(box)]
    while folders:
        folder, depth = folders.pop()
        try:
            entries = list(os.scandir(folder))
        except FileNotFoundError:
            continue
        except OSError:
            return True
        files += len(entries)
        for entry in entries:
            with contextlib.suppress(OSError):
                size += entry.stat(follow_symlinks=False).st_blocks * 512
                if entry.is_dir(follow_symlinks=False):
                    folders.append((entry.path, depth + 1))
        if size > jail.QUOTA_BYTES or files > jail.QUOTA_FILES or depth > _MAX_DEPTH:
            return True
    try:
        with open(f"/proc/{pid}/status", "rb") as status:
            threads = status.read().partition(b"\nThreads:")[2].split(maxsplit=1)[0]
    except (OSError, IndexError):
        return False
    return int(threads) > jail.MAX_THREADS


def remove_tree(top: str) -> None:
    """Remove a folder that a hostile program may have filled: any depth, any permissions.

    Every folder is first lifted to lie directly in `top`, so that no path grows long.
    """
    lifted = 0
    folders = [top]
    for folder in folders:
        with contextlib.suppress(OSError):
            os.chmod(folder, 0o700)
            for entry in list(os.scandir(folder)):
                if not entry.is_dir(follow_symlinks=False):
                    os.unlink(entry.path)
                    continue
                lifted += 1
                folders.append(f"{top}/.{lifted}")
                os.chmod(entry.path, 0o700)
                os.rename(entry.path, folders[-1])
    for folder in reversed(folders):
        with contextlib.suppress(OSError):
            os.rmdir(folder)
