"""What was measured about this machine: each choice once, kept, and the same again on resume.

Which product is the fastest, how many threads, which pass for one token: none of it follows from
the name of a processor, so it is timed. What is chosen changes how sums are rounded, so a choice is
made once and kept in the cache folder, in one file for a processor and a version of torch; a run
records what it used (`taken`), and, resumed, takes that again whatever the cache says. The
environment goes first: `RL_REASONER_CHOICES='{"NAME": VALUE}'`. Values are plain JSON. Knows
nothing of what is chosen.
"""

import fcntl
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from rl_reasoner.errors import UserError
from rl_reasoner.files import write_json
from rl_reasoner.foreign import json_object, json_value
from rl_reasoner.paths import cache_folder

VARIABLE = "RL_REASONER_CHOICES"
_FLAGS = ("flags", "Features")  # of /proc/cpuinfo: what instructions there are, x86 and Arm
logger = logging.getLogger(__name__)


@cache
def processor() -> str:
    """The processor's name and a digest of its instructions, as far as the system tells."""
    told: dict[str, str] = {}
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            told.setdefault(name.strip(), value.strip())
    name = told.get("model name") or platform.processor() or platform.machine()
    instructions = " ".join(told.get(key, "") for key in _FLAGS)
    return f"{name} {hashlib.sha256(instructions.encode()).hexdigest()[:8]}"


class Choices:
    """The choices of this process; see the module. `choices` is the one that is used."""

    def __init__(self) -> None:
        self._recorded: dict[str, Any] = {}  # of the run that is resumed
        self._taken: dict[str, Any] = {}
        self._keep: Callable[[dict[str, Any]], None] | None = None
        self._found: dict[tuple[str | None, ...], Any] = {}  # asked for many times a second

    def get(
        self,
        name: str,
        measure: Callable[[], Any],
        usable: Callable[[Any], bool] = lambda value: True,
        *,
        complete: Callable[[Any], bool] = lambda value: True,
        here_and_now: bool = False,
    ) -> Any:
        """The value chosen for `name`, a JSON value; `measure()` makes it where there is none.

        Looked for in the environment, in the resumed run, in the cache folder; what depends on how
        busy the machine is, `here_and_now`, only in this process instead of that. One that is not
        `usable` here, as a run's from another machine, is passed over; so is one of the cache that
        is not `complete`, from before there was another way to measure. What depends on the number
        of threads has it in its name.
        """
        asked = name, os.environ.get(VARIABLE), os.environ.get("RL_REASONER_CACHE")
        if asked not in self._found:
            told = self._told(name, usable)
            if told is None and here_and_now:
                told = self._taken[name] if name in self._taken else measure()
            elif told is None:
                told = _measured(name, measure, lambda v: usable(v) and complete(v))
            self._found[asked] = told
        return self._take(name, self._found[asked])

    def _told(self, name: str, usable: Callable[[Any], bool]) -> Any:
        """What the environment or the resumed run says, if that can be done here."""
        for value in (self._said().get(name), self._recorded.get(name)):
            if value is not None and usable(value):
                return value
            if value is not None:
                logger.warning("%s was %s, which this machine cannot do", name, value)
        return None

    def taken(self) -> dict[str, Any]:
        """What was used so far, by name, also before a resume: what a run or a checkpoint keeps."""
        return {**self._recorded, **self._taken}

    def adopt(self, recorded: Mapping[str, Any]) -> None:
        """Take from now on what a run or a checkpoint recorded, until `during` ends."""
        self._recorded.update(recorded)
        self._found.clear()

    @contextmanager
    def during(
        self,
        recorded: Mapping[str, Any] | None = None,
        keep: Callable[[dict[str, Any]], None] | None = None,
    ) -> Iterator[None]:
        """Inside, `recorded` is adopted; `keep` gets all that was taken, at each new choice."""
        before = self._recorded, self._keep
        self._recorded = dict(self._recorded)
        self.adopt(recorded or {})
        self._keep = keep or self._keep
        try:
            yield
        finally:
            self._recorded, self._keep = before
            self._found.clear()

    def _take(self, name: str, value: Any) -> Any:
        new = name not in self._taken or self._taken[name] != value
        self._taken[name] = value
        if new and self._keep is not None:
            self._keep(self.taken())
        return value

    def _said(self) -> dict[str, Any]:
        """What the environment says. Raises `UserError` where it is no JSON object."""
        text = os.environ.get(VARIABLE, "{}")
        with suppress(ValueError):
            if isinstance(value := json_value(text.encode()), dict):
                return value
        raise UserError(f"{VARIABLE} is {text!r:.60}: expected a JSON object of choices by name")


choices = Choices()


def raced(ways: Mapping[str, Callable[[], object]], goes: int = 7) -> dict[str, float]:
    """Seconds of the best go of each way.

    They take turns, so that other work on the machine meets all of them, and not one alone. Before
    each go the way runs once more, so that it finds its own data in the caches.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(goes):
        for name, run in ways.items():
            run()
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    return {name: min(taken) for name, taken in seconds.items()}


def choices_file() -> Path:
    """Where the choices for this processor and this torch are kept."""
    key = json.dumps([processor(), importlib.metadata.version("torch")])
    return cache_folder() / "machine" / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def _measured(name: str, measure: Callable[[], Any], usable: Callable[[Any], bool]) -> Any:
    """The kept value, or a new one that is kept where the folder can be written to.

    Of processes that start together each may measure; the first one's value stays for all.
    """
    try:
        file = choices_file()
    except OSError:
        return measure()
    if (value := _kept(file).get(name)) is not None and usable(value):
        return value
    value = measure()
    with suppress(OSError), _alone(file):
        before = _kept(file)
        if (first := before.get(name)) is not None and usable(first):
            return first
        about = {"processor": processor(), "torch": importlib.metadata.version("torch")}
        write_json(file, {**about, "choices": {**before, name: value}})
    return value


def _kept(file: Path) -> dict[str, Any]:
    """The choices in a file; none where it is missing, damaged or not to be read."""
    with suppress(UserError, OSError):
        if isinstance(kept := json_object(file).get("choices"), dict):
            return kept
    return {}


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Inside, no other process writes `file`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.with_suffix(".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
