"""The processes of a job, as `launch` waits for them: torch's launcher, without its time limit.

torch's launcher kills the processes 30 s after it has passed a signal on to them. Here a signal is
passed on and then waited for, as long as the step takes. A second Ctrl-C stops the processes at
once; a third kills them. torch's waiting is `start` and `close` of its `SubprocessContext`, under
`torchrun` and `accelerate launch` alike.
"""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

ASKED = "asked"
"""The file in the job's folder that says: its launcher was sent a signal."""
AGAIN = "again"
"""The file in the job's folder that says: Ctrl-C came once more, stop at once."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_LOOK_S = 0.1  # between two looks at whether the processes have ended


class Supervision:
    """Signals and processes of one job, as a context manager around torch's launcher."""

    def __init__(self, folder: Path) -> None:
        self.asked = False
        self._folder = folder  # of the job
        self._interrupts = 0
        self._contexts: list[Any] = []
        self._before: dict[int, Any] = {}
        self._methods: tuple[Any, Any] | None = None

    def __enter__(self) -> "Supervision":
        watched = _context_class()
        start, close = self._methods = watched.start, watched.close

        def started(context: Any) -> None:
            self._contexts.append(context)
            start(context)
            self._listen()

        def closed(context: Any, *args: Any, **options: Any) -> None:
            if self.asked:
                self._wait()
            close(context, *args, **options)

        for number in _SIGNALS:
            self._before[number] = signal.getsignal(number)
        watched.start, watched.close = started, closed
        return self

    def __exit__(self, *exc: object) -> None:
        watched = _context_class()
        assert self._methods is not None
        watched.start, watched.close = self._methods
        for number, handler in self._before.items():
            with suppress(ValueError):
                signal.signal(number, handler)

    def killed(self) -> dict[int, int]:
        """Number on this host -> signal, of the processes that SIGKILL has ended."""
        codes = {n: process.poll() for context in self._contexts for n, process in _all(context)}
        return {n: -code for n, code in codes.items() if code == -signal.SIGKILL}

    def _listen(self) -> None:
        """Take the signals back from torch, which has just set its own handlers."""
        for number in _SIGNALS:
            with suppress(ValueError):  # not the main thread: the caller's own handlers hold
                signal.signal(number, self._pass_on)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self._interrupts += number == signal.SIGINT
        if self.asked and number == signal.SIGINT:
            (self._folder / AGAIN).touch()
        self.asked = True
        (self._folder / ASKED).touch()
        for process in self._running():
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL if self._interrupts > 2 else number)

    def _wait(self) -> None:
        """Wait until the processes have ended; after a second Ctrl-C torch's limit holds."""
        while self._interrupts < 2 and any(True for _ in self._running()):
            time.sleep(_LOOK_S)

    def _running(self) -> Iterator[Any]:
        for context in self._contexts:
            yield from (process for _, process in _all(context) if process.poll() is None)


def _context_class() -> Any:
    from torch.distributed.elastic.multiprocessing.api import SubprocessContext

    return SubprocessContext


def _all(context: Any) -> list[tuple[int, Any]]:
    """(number, process) of a context; those that it has started so far."""
    return [(number, handler.proc) for number, handler in context.subprocess_handlers.items()]
