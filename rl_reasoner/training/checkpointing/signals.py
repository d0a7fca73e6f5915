"""Being asked to stop: Ctrl-C, a pre-emption, the end of a time slot, a lost terminal.

SIGINT asks for a stop after the step; once more stops at once. So does SIGHUP, which comes when a
terminal closes, unless it is ignored (`nohup`); what is written to the terminal then goes nowhere.
SIGTERM and SIGUSR1, which schedulers send before they take the machine away, ask for the same, but
do not wait longer than a grace period: then the step is given up, and the checkpoint is that of the
step before (`faults.LastStep`). An evaluation behind a step is cut short then, and made when the
run goes on. Outside of a training step every signal stops at once: nothing is
lost there.
"""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from rl_reasoner.distributed import launcher, processes
from rl_reasoner.training.checkpointing.faults import LastStep

GRACE_S = 5.0
"""Seconds that a step may go on after SIGTERM; SLURM and Kubernetes kill after 30."""
ECHO_S = 5.0
"""Seconds within which a second signal to one of several processes is the first one again."""
AGAIN_S = 5.0
"""Seconds until a step is given up once more: Python ignores what is raised in a finalizer."""
_BUSY_S = 0.2  # until the next look, while the optimizer changes weights


class StepGivenUp(KeyboardInterrupt):
    """The step at hand would take longer than there is time for."""


class Stop:
    """The signals, as a context manager around a run.

    `asked` says that the run is to stop after this step; `last_step` is there while one trains.
    """

    def __init__(self, note: Callable[[str], None]) -> None:
        self.note = note
        self.asked = False
        self.last_step: LastStep | None = None
        self._before: dict[int, Any] = {}
        self._heard = float("-inf")  # when the last signal came

    def __enter__(self) -> "Stop":
        handlers = {
            signal.SIGINT: self._asked,
            signal.SIGTERM: self._taken_away,
            signal.SIGUSR1: self._taken_away,
            signal.SIGALRM: self._out_of_time,
        }
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            handlers[signal.SIGHUP] = self._hung_up
        for number, handler in handlers.items():
            try:
                self._before[number] = signal.signal(number, handler)
            except ValueError:  # not the main thread: the caller's own handlers hold
                break
        return self

    def _asked(self, number: int, frame: FrameType | None) -> None:
        again = launcher.interrupted_again()
        echo = processes.world_size() > 1 and time.monotonic() - self._heard < ECHO_S
        self._heard = time.monotonic()
        if self.asked and echo and not again:  # the launcher passes on what the scheduler sent
            return
        if self.asked or again or self.last_step is None:
            raise KeyboardInterrupt
        self.asked = True
        if not launcher.peer_ended():  # the launcher says what ended the job
            self.note("stopping after this step; interrupt again to stop at once")

    def _hung_up(self, number: int, frame: FrameType | None) -> None:
        processes.leave_terminal()
        self._asked(number, frame)

    def _taken_away(self, number: int, frame: FrameType | None) -> None:
        self._asked(number, frame)
        signal.setitimer(signal.ITIMER_REAL, GRACE_S)

    def _out_of_time(self, number: int, frame: FrameType | None) -> None:
        if self.last_step is None or not self.last_step.alone:
            return
        if self.last_step.busy:
            signal.setitimer(signal.ITIMER_REAL, _BUSY_S)
            return
        signal.setitimer(signal.ITIMER_REAL, AGAIN_S)
        raise StepGivenUp

    @contextmanager
    def cuts(self) -> Iterator[None]:
        """What a signal may cut short behind a step, an evaluation: it raises `StepGivenUp` here.

        Around it, not a moment outside of it: there the step would be lost.
        """
        step = self.last_step
        try:
            if step is not None:
                step.busy = False
            yield
        finally:
            if step is not None:
                step.busy = True

    def __exit__(self, *exc: object) -> None:
        if self._before:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._before.items():
            signal.signal(number, handler)
