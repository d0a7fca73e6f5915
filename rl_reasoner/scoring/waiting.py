"""Waiting for a reward: it is told while it lasts, and ends when the run is given up.

A hanging reward would be silent until it is late. One that comes with the package is called in
the waiting thread itself: `give_up` ends what it waits for there.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_log = logging.getLogger(__name__)
FIRST_S = 60.0
"""Seconds of waiting before the first warning; there is another whenever they have doubled."""


class GivenUp(BaseException):
    """What was waited for is given up; no `Exception`, so that no reward takes it for its own."""


_ends: dict[object, Callable[[], None]] = {}


@contextmanager
def ended_by_giving_up(end: Callable[[], None]) -> Iterator[None]:
    """Inside: `give_up`, from another thread, calls `end`, which lets the wait end in `GivenUp`."""
    key = object()
    _ends[key] = end
    try:
        yield
    finally:
        del _ends[key]


def give_up() -> None:
    """End all waits that are under way."""
    for end in list(_ends.values()):
        end()


@contextmanager
def warn_while_waiting(name: str, until_s: float | None) -> Iterator[None]:
    """Inside: log a warning for the reward `name` now and then; it may take `until_s` seconds.

    None: it has bounds of its own.
    """
    done = threading.Event()
    bound = "" if until_s is None else f" (its calls on one batch may take {until_s:g} s)"

    def watch() -> None:
        waited = pause = FIRST_S
        while not done.wait(pause):
            _log.warning("waiting for reward %r for %g s%s", name, waited, bound)
            waited, pause = 2 * waited, waited

    if until_s is None or until_s > FIRST_S:
        threading.Thread(target=watch, name="rl_reasoner waiting", daemon=True).start()
    try:
        yield
    finally:
        done.set()
