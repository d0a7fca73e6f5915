"""Says that a reward takes long, while it does: a hanging one would be silent until it is late."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)
FIRST_S = 60.0
"""Seconds of waiting after which it is said; again whenever they have doubled."""


@contextmanager
def waiting_for(name: str, until_s: float) -> Iterator[None]:
    """While it lasts: a warning for the reward `name`, which may take `until_s` seconds."""
    done = threading.Event()

    def watch() -> None:
        waited = pause = FIRST_S
        while not done.wait(pause):
            said = "waiting for reward %r for %g s (its calls on one batch may take %g s)"
            logger.warning(said, name, waited, until_s)
            waited, pause = 2 * waited, waited

    if until_s > FIRST_S:
        threading.Thread(target=watch, name="rl_reasoner waiting", daemon=True).start()
    try:
        yield
    finally:
        done.set()
