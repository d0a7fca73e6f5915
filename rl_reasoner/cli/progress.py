"""How far a verb's work is, on standard error: bars on a terminal, elsewhere a line now and then.

With `--json` too, since standard output alone is the result; `--quiet` shows nothing.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Timer
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from rl_reasoner.evaluation.formatting import duration
from rl_reasoner.report.console import err
from rl_reasoner.report.terminal import SECONDS_BETWEEN_LINES

_LONG_S = 2.0  # a silence that one notices


@contextmanager
def told_if_long(what: str) -> Iterator[None]:
    """Say `what` is being done where it takes more than two seconds; for work without a count."""
    timer = Timer(_LONG_S, lambda: err.print(Text(f"{what} …"), style="dim", soft_wrap=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class ProgressBars:
    """A bar with the time left for each piece of work, as a context manager.

    `clock` (seconds, rising) is for tests.
    """

    def __init__(self, quiet: bool, clock: Callable[[], float] = time.monotonic) -> None:
        name = TextColumn("{task.description}", markup=False)
        columns = name, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        self.quiet = quiet
        self.clock = clock
        self.bars = Progress(*columns, console=err, disable=quiet or not err.is_terminal)
        self.tasks: dict[str, Any] = {}
        self.begun: dict[str, tuple[float, int]] = {}  # label -> when it was first heard of, done
        self.told = clock()

    def __enter__(self) -> Callable[[str, int, int], None]:
        self.bars.__enter__()
        return self.step

    def __exit__(self, *exc: Any) -> None:
        self.bars.__exit__(*exc)

    def step(self, label: str, done: int, of: int) -> None:
        """Show that so many of the work `label` are done."""
        if not self.quiet and not err.is_terminal:
            self._line(label, done, of)
            return
        if label not in self.tasks:
            self.tasks[label] = self.bars.add_task(label, total=of)
        self.bars.update(self.tasks[label], completed=done)

    def _line(self, label: str, done: int, of: int) -> None:
        now = self.clock()
        started, first = self.begun.setdefault(label, (now, done))
        if now - self.told < SECONDS_BETWEEN_LINES or done >= of:
            return
        self.told = now
        rate = (now - started) / (done - first) if done > first else 0.0
        left = f", about {duration(rate * (of - done))} left" if rate else ""
        err.print(Text(f"{label}: {done:,}/{of:,}{left}"), soft_wrap=True)
