"""Warns that a reward takes long, while it does: a hanging one would be silent until it is late."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_log = logging.getLogger(__name__)
FIRST_S = 60.0
"""Seconds of waiting before the first warning; there is another whenever they have doubled."""


@contextmanager
def warn_while_waiting(name: str, until_s: float) -> Iterator[None]:
    """Inside: log a warning for the reward `name` now and then; it may take `until_s` seconds."""
    done = threading.Event()

    def watch() -> None:
        waited = pause = FIRST_S
        while not done.wait(pause):
            _log.warning(
                "waiting for reward %r for %g s (its calls on one batch may take %g s)",
                name,
                waited,
                until_s,
            )
            waited, pause = 2 * waited, waited

    if until_s > FIRST_S:
        threading.Thread(target=watch, name="rl_reasoner waiting", daemon=True).start()
    try:
        yield
    finally:
        done.set()
