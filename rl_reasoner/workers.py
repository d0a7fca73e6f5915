"""Killable worker processes: one interpreter behind two pipes, and a deadline for everything.

A worker is a fresh interpreter that runs one module, never a fork, so that it is safe after CUDA
was initialised, in notebooks and in scripts without a main guard. Requests and replies are JSON
lines. The deadline is kept here, by the parent, with a kill. The verifier (`answers.pool`) and
rewards (`scoring.executors`) stand on it.
"""

import errno
import io
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

RECYCLE_AFTER = 20_000
_READ = 65_536


class WorkerDied(RuntimeError):
    """The worker's process ended in the middle of a request."""


class WorkerLate(TimeoutError):
    """The worker did not answer by the deadline, and was killed."""


class _Unread(io.TextIOWrapper):
    """A text stream that goes nowhere once its reader is gone, in place of failing each write."""

    def write(self, text: str) -> int:
        """Write `text`, or nowhere."""
        return int(self._tried(super().write, text) or len(text))

    def flush(self) -> None:
        """Flush what was written, or lose it."""
        self._tried(super().flush)

    def _tried(self, method: Callable[..., Any], *given: str) -> Any:
        try:
            return method(*given)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return None


def print_as_errors() -> None:
    """In a worker: what is printed goes to standard error, as long as somebody reads that.

    The run's log may lose its reader (`2>&1 | tee`, `| head`): a reward that prints is no fault.
    """
    os.dup2(2, 1)
    for name in ("stdout", "stderr"):
        stream: io.TextIOWrapper = getattr(sys, name)
        encoding, errors, lines = stream.encoding, stream.errors, stream.line_buffering
        unread = _Unread(stream.detach(), encoding, errors, line_buffering=lines)
        setattr(sys, name, unread)
        setattr(sys, f"__{name}__", unread)


def as_worker(memory_mb: int) -> tuple[TextIO, TextIO]:
    """Become a worker that runs a user's functions: its requests and its replies, line by line.

    They have no more memory than `memory_mb`, nothing to read, and print on standard error.
    """
    cap = memory_mb << 20
    with suppress(ValueError, OSError):  # macOS has no such limit
        resource.setrlimit(resource.RLIMIT_DATA, (cap, cap))
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    print_as_errors()
    requests = os.fdopen(os.dup(0), encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.modules["__main__"] = ModuleType("__main__")  # a copied function's own is elsewhere
    return requests, replies


def _paths() -> list[str]:
    """`sys.path`, the working folder by its name: an empty entry of PYTHONPATH is lost."""
    return [path or str(Path.cwd()) for path in sys.path]


class Worker:
    """One process that runs `module`, and its pipes; used by one thread at a time.

    It leads a process group of its own: Ctrl-C does not reach it, and a kill takes what it started
    along. What it prints is lost, or with `shown` goes to this process's standard error. It imports
    from where this process does, and not from the working folder first: a file random.py there
    would be taken for the standard module.
    """

    def __init__(self, module: str, *arguments: str, shown: bool = False) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if shown else subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(_paths())},
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.into, self.out = self.process.stdin.fileno(), self.process.stdout.fileno()
        os.set_blocking(self.into, False)
        self.buffer = b""
        self.served = 0
        self.stopped = False

    def send(self, request: dict[str, Any], deadline: float) -> None:
        """Write one request by `deadline` (monotonic s); raises `WorkerDied` or `WorkerLate`."""
        data = memoryview(json.dumps(request).encode() + b"\n")
        at = 0
        while at < len(data):
            self._wait(self.into, select.POLLOUT, deadline)
            try:
                at += os.write(self.into, data[at : at + _READ])
            except BlockingIOError:
                continue
            except OSError as error:
                raise self._died() from error

    def receive(self, deadline: float, most: int | None = None) -> Any:
        """The next reply; raises `WorkerDied` or `WorkerLate`.

        A worker whose reply has more than `most` bytes is killed, and counts as one that died.
        """
        while b"\n" not in self.buffer:
            if most is not None and len(self.buffer) > most:
                self.stop()
                raise WorkerDied(f"its reply has more than {most:,} bytes")
            self._wait(self.out, select.POLLIN, deadline)
            data = os.read(self.out, _READ)
            if not data:
                raise self._died()
            self.buffer += data
        line, _, self.buffer = self.buffer.partition(b"\n")
        self.served += 1
        return json.loads(line)

    def has_reply(self, deadline: float) -> bool:
        """Whether a reply comes by `deadline`, or an end; a worker that is late goes on."""
        poll = select.poll()
        poll.register(self.out, select.POLLIN)
        return bool(self.buffer or poll.poll(max(0.0, deadline - time.monotonic()) * 1000))

    def kill(self) -> None:
        """Kill the process with all that it started; the pipes stay open."""
        if not self.stopped:
            self.stopped = True
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)

    def _died(self) -> WorkerDied:
        """The error for a closed pipe; a process that is ending is left to end in its own way."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(0.5)
        self.stop()
        return WorkerDied(self.end)

    def _wait(self, fd: int, event: int, deadline: float) -> None:
        poll = select.poll()
        poll.register(fd, event)
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            self.stop()
            raise WorkerLate("no reply by the deadline")

    def stop(self) -> None:
        """Kill the process with all that it started and close the pipes; may be called again."""
        self.kill()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        self.forget()

    @property
    def end(self) -> str:
        """How the process ended, in words: its signal or exit code; empty while it runs."""
        code = self.process.returncode
        if code is None:
            return ""
        if code >= 0:
            return f"exit code {code}"
        with suppress(ValueError):
            return f"killed by {signal.Signals(-code).name}"
        return f"killed by signal {-code}"

    def forget(self) -> None:
        """Close this side of the pipes."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()

    @property
    def usable(self) -> bool:
        """Whether the worker can take another request."""
        return self.served < RECYCLE_AFTER and self.process.poll() is None
