"""The verifier's workers: started when first needed, kept, recycled, never waited for too long.

What a worker is stands in `rl_reasoner.workers`, what it runs in `worker` here. Usable from any
thread; a forked child starts with no workers.
"""

import atexit
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rl_reasoner.workers import Worker, WorkerLate

_MODULE = "rl_reasoner.answers.worker"
START_S = 6.0
"""Seconds that a worker gets to import sympy; a second is usual, on a busy machine it is more."""
LONGEST_START_S = 60.0
"""Seconds after which a worker that still imports it ends."""


class NoneFree(WorkerLate):
    """All workers were busy, or starting, until the deadline."""


class Verifier(Worker):
    """A worker of the verifier; one that imports sympy slowly is left to do so."""

    def __init__(self) -> None:
        super().__init__(_MODULE)
        self._asked = self._warm = False  # for sympy

    def warm(self, deadline: float) -> bool:
        """Whether sympy is imported by the deadline; raises `WorkerDied` where it ended."""
        if not self._asked:
            self.send({"kind": "warm", "timeout_s": LONGEST_START_S}, deadline)
            self._asked = True
        return self._ready(deadline)

    def send(self, request: dict[str, Any], deadline: float) -> None:
        """As `Worker.send`, behind an import that is under way."""
        if not self._ready(deadline):
            raise WorkerLate("its start took too long")
        super().send(request, deadline)

    def _ready(self, deadline: float) -> bool:
        if self._asked and not self._warm and self.has_reply(deadline):
            self.receive(deadline)
            self._warm = True
        return self._warm or not self._asked


class WorkerPool:
    """Workers at rest and at work, at most `size` of them."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.free = threading.Condition()
        self.resting: list[Verifier] = []
        self.working: set[Verifier] = set()

    @contextmanager
    def lease(self, deadline: float) -> Iterator[Verifier]:
        """A worker for one thread; raises `NoneFree` where there is none by the deadline."""
        worker = self._take(deadline)
        try:
            yield worker
        except BaseException:
            worker.stop()
            raise
        finally:
            with self.free:
                self.working.discard(worker)
                kept = worker.usable
                if kept:
                    self.resting.append(worker)
                self.free.notify()
            if not kept:  # one that is kept may be another thread's by now
                worker.stop()

    def _take(self, deadline: float) -> Verifier:
        with self.free:
            while len(self.working) >= self.size:
                if not self.free.wait(max(0.0, deadline - time.monotonic())):
                    raise NoneFree("no worker was free by the deadline")
            worker = self.resting.pop() if self.resting else None
            if worker is None or not worker.usable:
                if worker is not None:
                    worker.stop()
                worker = Verifier()
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


_POOLS: dict[int, WorkerPool] = {}
_LOCK = threading.Lock()


def worker_pool(size: int | None = None) -> WorkerPool:
    """This process's pool, made on first use; `size` raises its number of workers."""
    with _LOCK:
        pool = _POOLS.setdefault(os.getpid(), WorkerPool(max(2, cores())))
        pool.size = max(pool.size, size or 0)
        return pool


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
