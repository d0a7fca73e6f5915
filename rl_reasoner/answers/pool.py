"""Killable worker processes: started when first needed, kept, recycled, never waited for too long.

A worker is a fresh interpreter (`worker`) behind two pipes, never a fork, so that it is safe after
CUDA was initialised, in notebooks and in scripts without a main guard. The deadline is kept here,
by the parent, with a kill. Usable from any thread; a forked child starts with no workers.
"""

import atexit
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

RECYCLE_AFTER = 20_000
_READ = 65_536


class WorkerDied(RuntimeError):
    """The worker's process ended in the middle of a request."""


class WorkerLate(TimeoutError):
    """The worker did not answer by the deadline, and was killed."""


class Worker:
    """One worker process and its pipes; used by one thread at a time."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "rl_reasoner.answers.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.into, self.out = self.process.stdin.fileno(), self.process.stdout.fileno()
        os.set_blocking(self.into, False)
        self.buffer = b""
        self.served = 0

    def send(self, request: dict[str, Any], deadline: float) -> None:
        """Write one request by `deadline` (monotonic s); raises `WorkerDied` or `WorkerLate`."""
        data = json.dumps(request).encode() + b"\n"
        at = 0
        while at < len(data):
            self._wait(self.into, select.POLLOUT, deadline)
            try:
                at += os.write(self.into, data[at : at + _READ])
            except BlockingIOError:
                continue
            except OSError as error:
                self.stop()
                raise WorkerDied(str(error)) from error

    def receive(self, deadline: float) -> Any:
        """The next reply; raises `WorkerDied` or `WorkerLate`."""
        while b"\n" not in self.buffer:
            self._wait(self.out, select.POLLIN, deadline)
            data = os.read(self.out, _READ)
            if not data:
                self.stop()
                raise WorkerDied(f"exit code {self.process.returncode}")
            self.buffer += data
        line, _, self.buffer = self.buffer.partition(b"\n")
        self.served += 1
        return json.loads(line)

    def _wait(self, fd: int, event: int, deadline: float) -> None:
        poll = select.poll()
        poll.register(fd, event)
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            self.stop()
            raise WorkerLate("no reply by the deadline")

    def stop(self) -> None:
        """Kill the process and close the pipes; may be called again."""
        self.process.kill()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        self.forget()

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


class Pool:
    """Workers at rest and at work, at most `size` of them."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.free = threading.Condition()
        self.resting: list[Worker] = []
        self.working: set[Worker] = set()

    @contextmanager
    def lease(self, deadline: float) -> Iterator[Worker]:
        """A worker for one thread; raises `WorkerLate` where none is free by the deadline."""
        worker = self._take(deadline)
        try:
            yield worker
        except BaseException:
            worker.stop()
            raise
        finally:
            with self.free:
                self.working.discard(worker)
                if worker.usable:
                    self.resting.append(worker)
                self.free.notify()
            if worker not in self.resting:
                worker.stop()

    def _take(self, deadline: float) -> Worker:
        with self.free:
            while len(self.working) >= self.size:
                if not self.free.wait(max(0.0, deadline - time.monotonic())):
                    raise WorkerLate("no worker was free by the deadline")
            worker = self.resting.pop() if self.resting else None
            if worker is None or not worker.usable:
                if worker is not None:
                    worker.stop()
                worker = Worker()
            self.working.add(worker)
            return worker

    def close(self) -> None:
        """Kill every worker."""
        with self.free:
            for worker in (*self.resting, *self.working):
                worker.stop()
            self.resting.clear()

    def forget(self) -> None:
        """Close the inherited pipes in a forked child; the workers belong to the parent."""
        for worker in (*self.resting, *self.working):
            worker.forget()


def cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


_POOLS: dict[int, Pool] = {}
_LOCK = threading.Lock()


def pool(size: int | None = None) -> Pool:
    """This process's pool, made on first use; `size` raises its number of workers."""
    with _LOCK:
        found = _POOLS.setdefault(os.getpid(), Pool(max(2, cores())))
        found.size = max(found.size, size or 0)
        return found


def _after_fork() -> None:
    global _LOCK
    _LOCK = threading.Lock()
    for inherited in _POOLS.values():
        inherited.forget()
    _POOLS.clear()


@atexit.register
def _close() -> None:
    for own in _POOLS.values():
        own.close()
    _POOLS.clear()


os.register_at_fork(after_in_child=_after_fork)
