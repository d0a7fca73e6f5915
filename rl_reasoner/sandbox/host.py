"""The host's side: starting zygotes, giving them jobs, and never leaving one behind.

A zygote is a jailed interpreter that waits (see `zygote`); each runs one job at a time, so a batch
uses as many as it has workers. Idle ones stay for the next batch and end with this process. A job's
input and output are memory files: nothing is piped, nothing is parsed here.
"""

import atexit
import contextlib
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rl_reasoner.sandbox import zygote
from rl_reasoner.sandbox.data import MAX_BYTES

MAX_OUTPUT = 4 << 20
_START_S = 60.0
_GRACE_S = 5.0
_PASSED_ON = ("LD_LIBRARY_PATH",)  # some Pythons do not start without; programs do not see it
_SAME_HASHES = {"PYTHONHASHSEED": "0"}  # a program prints a set in the same order in every run
_SCIENCE = ("numpy", "sympy", "mpmath")
# Generous: a program that only names one of them gets it, too.
_SCIENCE_NAME = re.compile(r"\b(?:numpy|sympy|mpmath)\b")
# The sandbox's own modules under their own names, without what their packages import.
_BOOT = """
import sys, types
level, scratch, control, root, *packages = sys.argv[1:]
for name, path in (("rl_reasoner", root), ("rl_reasoner.sandbox", root + "/sandbox")):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [path]
from rl_reasoner.sandbox import zygote
zygote.main(level, packages, scratch, int(control))
"""


class Lost(Exception):
    """A zygote that did not start, ended, or did not answer."""


class NotStarted(Lost):
    """A zygote, or a job of one, that did not start; says why."""


class Overdue(Lost):
    """A zygote that did not answer in time."""


@dataclass(frozen=True)
class Finished:
    """What came back from a job: how its processes ended, and the bytes they wrote."""

    wall_s: float
    first: zygote.Ended
    second: zygote.Ended
    stdout: bytes
    stderr: bytes
    answer: bytes


class Zygote:
    """One running zygote. Not for use by two threads at once."""

    def __init__(self, level: str, science: bool) -> None:
        self.kind = (level, science)
        self.scratch = ""
        if level != "namespaces":
            self.scratch = tempfile.mkdtemp(prefix="rl-sandbox-")
            Path(self.scratch).chmod(0o711)
        self._socket, theirs = socket.socketpair()
        root = str(Path(__file__).resolve().parent.parent)
        packages = _science_folders() if science else []
        # As -I, but for the variables of Python: the environment has one of them.
        isolated = ["-P", "-s", "-S", "-X", "utf8"]
        command = [os.path.realpath(sys.executable), *isolated, "-c", _BOOT]
        command += [level, self.scratch, str(theirs.fileno()), root, *packages]
        passed_on = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        try:
            with theirs:
                self._process = subprocess.Popen(
                    command,
                    env={**passed_on, **_SAME_HASHES},
                    cwd="/",
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                )
        except OSError as error:
            self._socket.close()
            self._clean()
            raise NotStarted(f"{command[0]} does not start: {error.strerror}") from error
        try:
            self._socket.settimeout(_START_S)
            said = self._receive(5)
            if said != b"ready":
                raise NotStarted(said.decode(errors="replace") or "it ended while starting")
        except BaseException:
            self.kill()
            raise

    def run(
        self, mode: bytes, inputs: Sequence[bytes], wall_s: float, cpu_s: float, memory: int
    ) -> Finished:
        """Run one job: `inputs` are the program's payload and, by mode, its stdin or its test.

        Raises Lost (and Overdue) when the zygote fails; it is of no use afterwards.
        """
        with contextlib.ExitStack() as stack:
            given = [_file(stack, content) for content in inputs]
            stdout, stderr, answer = (_file(stack, None) for _ in range(3))
            if mode == zygote.JUDGED:
                program, test = given
                files = [test, answer, program, _file(stack, b""), stdout, stderr]
            elif mode == zygote.CALL:
                files = [given[0], _file(stack, b""), stdout, stderr, answer]
            else:
                files = [*given, stdout, stderr]
            try:
                self._socket.settimeout(zygote.longest(wall_s) + _GRACE_S)
                job = zygote.JOB.pack(mode, wall_s, cpu_s, memory)
                socket.send_fds(self._socket, [job], files)
                raw = self._receive(zygote.DONE.size)
            except OSError as error:
                raise Lost(str(error)) from error
            if not raw.startswith(zygote.ANSWERED):
                raise NotStarted(raw.decode(errors="replace")) if raw else Lost("it ended")
            _, took, *fields = zygote.DONE.unpack(raw)
            first, second = zygote.Ended(*fields[:3]), zygote.Ended(*fields[3:])
            limits = ((stdout, MAX_OUTPUT), (stderr, MAX_OUTPUT), (answer, MAX_BYTES))
            read = [os.pread(descriptor, limit + 1, 0) for descriptor, limit in limits]
            return Finished(took, first, second, *read)

    def _receive(self, count: int) -> bytes:
        """At least `count` bytes, or what came before the end. Nothing follows them unasked."""
        raw = b""
        try:
            while len(raw) < count and (part := self._socket.recv(500)):
                raw += part
        except TimeoutError as error:
            raise Overdue("no answer in time") from error
        except OSError as error:
            raise Lost(str(error)) from error
        return raw

    def forget(self) -> None:
        """Close this process's copy of the socket, in a fork that does not own the zygote."""
        self._socket.close()

    def close(self) -> None:
        """End the zygote in order: it goes when its socket closes."""
        self._socket.close()
        try:
            self._process.wait(timeout=2.0)
        except subprocess.TimeoutExpired:
            self.kill()
        self._clean()

    def kill(self) -> None:
        """End the zygote and all in it at once."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes a thread that waits for an answer
        self._socket.close()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._clean()

    def _clean(self) -> None:
        if self.scratch:
            zygote.remove_tree(self.scratch)
            shutil.rmtree(self.scratch, ignore_errors=True)


class Pool:
    """The zygotes of this process: idle ones wait for the next batch."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[Zygote] = []
        self._all: set[Zygote] = set()

    def take(self, level: str, science: bool) -> Zygote:
        """An idle zygote of this kind, or a new one. Raises Lost where none starts."""
        with self._lock:
            for index, found in enumerate(self._idle):
                if found.kind == (level, science):
                    return self._idle.pop(index)
        started = Zygote(level, science)
        with self._lock:
            self._all.add(started)
        return started

    def give_back(self, used: Zygote) -> None:
        """Keep a zygote for the next batch, or end it where there are enough."""
        with self._lock:
            if sum(other.kind == used.kind for other in self._idle) < processors():
                self._idle.append(used)
                return
            self._all.discard(used)
        used.close()

    def end(self, used: Zygote) -> None:
        """End a zygote that is of no use any more."""
        with self._lock:
            self._all.discard(used)
        used.kill()

    def close(self) -> None:
        """End all zygotes."""
        with self._lock:
            ending, self._all, self._idle = self._all, set(), []
        for each in ending:
            each.close()

    def forget(self) -> None:
        """Let go of all zygotes without ending them: they belong to the parent of this fork."""
        for each in self._all:
            each.forget()
        self._reset()


pool = Pool()
atexit.register(pool.close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=pool.forget)


class Leases:
    """The zygotes one call uses at this moment, so that an interrupt can end them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._used: set[Zygote] = set()
        self.cancelled = False

    @contextlib.contextmanager
    def zygote(self, level: str, science: bool) -> Iterator[Zygote]:
        """A zygote for the length of a block; one that fails in it (Lost) is ended."""
        leased = pool.take(level, science)
        with self._lock:
            self._used.add(leased)
        try:
            if self.cancelled:
                raise Lost("the batch was cancelled")
            yield leased
        except BaseException:
            pool.end(leased)
            raise
        else:
            pool.give_back(leased)
        finally:
            with self._lock:
                self._used.discard(leased)

    def cancel(self) -> None:
        """End every zygote in use, and let no other be used."""
        with self._lock:
            self.cancelled = True
            used = list(self._used)
        for each in used:
            pool.end(each)


def processors() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def wants_science(*texts: str) -> bool:
    """Whether a program or its tests name numpy or sympy."""
    return any(_SCIENCE_NAME.search(text) for text in texts)


def _science_folders() -> list[str]:
    folders = []
    for name in _SCIENCE:
        spec = importlib.util.find_spec(name)
        for folder in (spec and spec.submodule_search_locations) or []:
            folders += [path for path in (folder, f"{folder}.libs") if Path(path).is_dir()]
    return folders


def _file(stack: contextlib.ExitStack, content: bytes | None) -> int:
    """A file without a name: holding `content`, or empty for output."""
    if sys.platform == "linux":
        descriptor = os.memfd_create("sandbox")
    else:
        with tempfile.TemporaryFile(buffering=0) as file:
            descriptor = os.dup(file.fileno())
    stack.callback(os.close, descriptor)
    if content is not None:
        view = memoryview(content)
        while view:
            view = view[os.write(descriptor, view) :]
        os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor
