"""Where a reward runs, and what becomes of its faults: deadlines, one retry, the circuit breaker.

A reward runs in a worker process of its own, kept between batches, killed when it is late and
started anew when it died. One that cannot leave the trainer's process (it holds state, a lock, a
model) runs on a thread of it: its exceptions and hangs are caught all the same, a crash or its
memory are not; this is said once, by name. The rewards that come with the package run at once:
they are bounded, or have killable processes of their own. Every row that faults is tried once more;
where a batch form failed, each of its rows alone (not where it gave a wrong value). `Breaker` stops
a run whose reward broke down.
"""

import asyncio
import atexit
import logging
import os
import pickle
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rl_reasoner.errors import RunStopped
from rl_reasoner.scoring.call import changed, name_of, one_by_one, outcomes, packed, shipped
from rl_reasoner.scoring.executors import LOAD_S, Process, Thread, Work
from rl_reasoner.scoring.reward import Reward
from rl_reasoner.scoring.trl_form import call_mistake
from rl_reasoner.types import Completion, Fault, Outcome
from rl_reasoner.waiting import waiting_for
from rl_reasoner.workers import WorkerDied, WorkerLate

logger = logging.getLogger(__name__)
SEEDS = "random seeds"
"""The column with a seed for each row, which workers draw from; functions do not see it."""
_OF_TRL = ("trainer_state", "log_extra", "log_metric")


@dataclass(frozen=True)
class Limits:
    """What a reward may take: seconds a row, seconds a batch (each of two tries), MiB a process.

    With `apart` False everything runs in the caller's process, on a thread. `on`: "here", or "ray"
    for `@reward` functions on a cluster (`ray_pool`).
    """

    timeout_s: float = 60.0
    batch_timeout_s: float = 600.0
    memory_mb: int = 8192
    apart: bool = True
    on: str = "here"


# ------------------------------------------------------------------------------- the runner


class Runner:
    """One reward with its place; calls from several threads wait for each other."""

    def __init__(self, fn: Callable[..., Any], limits: Limits) -> None:
        self.limits = limits
        self.name = name_of(fn)
        self.alone = one_by_one(fn)
        self.shipped = shipped(fn)
        self._fn = weakref.ref(fn) if _weak(fn) else lambda: fn
        self._lock = threading.Lock()
        self._place: Process | Thread | None = None
        self._given_up = False
        self._packed = packed(fn) if limits.apart and not self.shipped else "isolate_rewards is off"
        self._here = isinstance(self._packed, str)
        if self._here and limits.apart and not self.shipped:
            self._say(str(self._packed))

    def outcomes(
        self, completions: Sequence[Completion], columns: Mapping[str, Any]
    ) -> list[Outcome]:
        """The outcome of each row, in order."""
        fn = self._function()
        columns = {**columns}
        seeds = columns.pop(SEEDS, ())
        if self.shipped:
            unused = asyncio.Runner()  # none of them is asynchronous; a notebook's own loop runs
            return list(outcomes(fn, completions, columns, self.limits.timeout_s, unused))
        if not completions:
            return []
        try:
            work = self._work(fn, completions, columns, seeds)
        except KeyError as error:  # a column that the data lacks
            return [Fault(str(error.args[0]))] * len(completions)
        with self._lock, waiting_for(self.name, self.limits.batch_timeout_s):
            self._renew(fn)
            rows = range(len(completions))
            found: dict[int, Outcome] = {}
            self._judge([list(rows)], work, found)
            again = [i for i in rows if self._retried(found[i])]
            self._judge([again] if self.alone else [[i] for i in again], work, found)
            return [found[i] for i in rows]

    def _retried(self, outcome: Outcome) -> bool:
        """Whether a second try may help; a late call on a thread is still running."""
        if not isinstance(outcome, Fault) or outcome.kind == "value":
            return False
        return not (self._here and outcome.kind == "timeout")

    def _function(self) -> Callable[..., Any]:
        fn = self._fn()
        assert fn is not None  # the caller holds it
        return fn

    def _work(
        self,
        fn: Callable[..., Any],
        completions: Sequence[Completion],
        columns: Mapping[str, Any],
        seeds: Sequence[int],
    ) -> Work:
        """What is sent: of our own rewards the columns they name; all of them to trl's form."""
        if isinstance(fn, Reward):
            for index in range(len(completions)):
                fn.row(columns, index)  # raises where one is missing
            named = (*fn.columns, *fn.missing)
            wanted = {"prompts" if n == "prompt" and n not in columns else n for n in named}
            kept = {name: columns[name] for name in wanted if name in columns}
            return Work(completions, kept, {}, seeds)
        if mistake := call_mistake(fn, self.name, columns):
            raise KeyError(mistake)
        extras = {name: columns[name] for name in _OF_TRL if name in columns}
        rest = {name: values for name, values in columns.items() if name not in extras}
        return Work(completions, rest, extras, seeds)

    def _judge(self, blocks: list[list[int]], work: Work, found: dict[int, Outcome]) -> None:
        """Outcomes for all rows of `blocks`, a request each; a failure ends one row, or its block.

        What has no outcome when the batch's time is up is a fault.
        """
        ends = time.monotonic() + self.limits.batch_timeout_s
        for block in blocks:
            waiting = deque(block)
            while waiting:
                try:
                    self._request(waiting, work, found, ends)
                except (WorkerLate, WorkerDied) as failure:
                    over = not self.alone or time.monotonic() >= ends
                    for index in list(waiting) if over else [waiting[0]]:
                        found[index] = self._fault(failure, time.monotonic() >= ends)
                        waiting.popleft()

    def _request(
        self, waiting: deque[int], work: Work, found: dict[int, Outcome], ends: float
    ) -> None:
        """Send the waiting rows and take their outcomes, each off `waiting`."""
        each = self.limits.timeout_s if self.alone or len(waiting) == 1 else float("inf")
        place = self._ready()
        try:
            rows = list(waiting)
            place.send(work.only(rows), min(ends, time.monotonic() + LOAD_S))
            for index in rows:
                found[index] = place.receive(min(ends, time.monotonic() + each))
                waiting.popleft()
            place.finish(min(ends, time.monotonic() + LOAD_S))
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            if self._here:
                raise
            self._move_here(f"its rows cannot be sent to another process ({error})")
        except BaseException:
            if isinstance(place, Process):
                place.stop()
                self._place = None if place is self._place else self._place
            raise

    def _ready(self) -> Process | Thread:
        """The place, started where it is not there yet."""
        if self._given_up:
            raise WorkerDied("given up")
        if self._place is not None and self._place.usable:
            return self._place
        if self._place is not None:
            self._place.stop()
        if not self._here:
            assert isinstance(self._packed, dict)
            try:
                self._place = Process(self._packed, self.limits)
                return self._place
            except ImportError as error:
                self._move_here(str(error))
        self._place = Thread(self._function, self.limits)
        return self._place

    def _renew(self, fn: Callable[..., Any]) -> None:
        """Send what the reward reads again where it has changed here: the worker has a copy."""
        if isinstance(self._packed, str) or self._here:
            return
        now = packed(fn)
        if isinstance(now, str):
            self._move_here(now)
            return
        before, self._packed = self._packed, now
        if now != before and isinstance(self._place, Process):
            try:
                self._place.load(changed(before, now))
            except (WorkerDied, WorkerLate, ImportError):
                self.close()  # a new one gets all of it

    def _move_here(self, why: str) -> None:
        self.close()
        self._here = True
        self._say(why)

    def _say(self, why: str) -> None:
        logger.warning(
            "reward %r runs inside this process, on a thread: %s. Its exceptions and hangs are "
            "caught, but not a crash; a function in a module or file runs in its own process",
            self.name,
            why,
        )

    def _fault(self, failure: WorkerLate | WorkerDied, over: bool) -> Fault:
        if isinstance(failure, WorkerDied):
            return Fault(f"reward {self.name!r}: its process ended ({failure})", "crash")
        if over:
            seconds = self.limits.batch_timeout_s
            said = f"the batch was not done within {seconds:g} s"
        elif "earlier" in str(failure):
            return Fault(f"reward {self.name!r}: {failure}", "timeout")
        else:
            seconds = self.limits.timeout_s
            said = f"no reply within {seconds:g} s"
        return Fault(f"reward {self.name!r}: {said}", "timeout", seconds=seconds)

    def close(self) -> None:
        """Kill the worker, if there is one."""
        if self._place is not None:
            self._place.stop()
            self._place = None

    def give_up(self) -> None:
        """End all calls under way, whichever thread waits for them; there are no further ones."""
        self._given_up = True
        if self._place is not None:
            self._place.give_up()

    def forget(self) -> None:
        """Leave the worker to the parent: this process is a fork of it."""
        if isinstance(self._place, Process):
            self._place.worker.forget()


def _weak(fn: Callable[..., Any]) -> bool:
    try:
        weakref.ref(fn)
    except TypeError:
        return False
    return True


_RUNNERS: dict[int, Runner] = {}
_LOCK = threading.Lock()


def runner_of(fn: Callable[..., Any], limits: Limits) -> Runner:
    """The runner of `fn`, made on first use and closed when `fn` is gone."""
    key = id(fn)
    with _LOCK:
        found = _RUNNERS.get(key)
        if found is not None and found.limits == limits and found._fn() is fn:
            return found
        if found is not None:
            found.close()
        made = _RUNNERS[key] = Runner(fn, limits)
        if found is None and _weak(fn):
            weakref.finalize(fn, _drop, key)
        return made


def _drop(key: int) -> None:
    gone = _RUNNERS.pop(key, None)
    if gone is not None:
        gone.close()


def give_up_all() -> None:
    """End all calls under way, so that nobody waits for them; the next ones start anew."""
    with _LOCK:
        for runner in _RUNNERS.values():
            runner.give_up()
        _RUNNERS.clear()


def _after_fork() -> None:
    global _LOCK
    _LOCK = threading.Lock()
    for inherited in _RUNNERS.values():
        inherited.forget()
    _RUNNERS.clear()


@atexit.register
def close_all() -> None:
    """End every worker; the next call of a reward starts its own again."""
    for runner in list(_RUNNERS.values()):
        runner.close()
    _RUNNERS.clear()


os.register_at_fork(after_in_child=_after_fork)


# ------------------------------------------------------------------------ the circuit breaker


class RewardsFailed(RunStopped):
    """A reward broke down: going on would train on nothing, or on something else."""

    title = "a reward kept failing"
    code = 3


class Breaker:
    """Counts the failures of each reward; raises `RewardsFailed` when one has broken down.

    That is when more than half of its calls failed, in a window of its last `WINDOW` calls and not
    fewer than its last `STEPS` steps: a bad step alone ends no run, however many rows it has. Also
    when no row got a reward in `BARREN` steps in a row.
    """

    WINDOW = 256
    STEPS = 4
    SHARE = 0.5
    BARREN = 64

    def __init__(self) -> None:
        self._last: dict[str, deque[tuple[int, int]]] = {}  # by step: failures, calls
        self._barren = self._judged = self._steps = 0
        self._first = 0  # step that was added first
        self._failed = False

    def add(
        self, step: int, faults: Mapping[str, Sequence[bool]], said: Iterator[str], *, judged: bool
    ) -> None:
        """Take one step's calls into account: by reward, whether each row failed.

        `said` are fault messages with their rows, for the error; `judged`: a row has got a reward.
        """
        broken = []
        for name, flags in faults.items():
            last = self._last.setdefault(name, deque())
            if flags:
                last.append((sum(flags), len(flags)))
            while len(last) > self.STEPS and sum(n for _, n in last) - last[0][1] >= self.WINDOW:
                last.popleft()
            bad, calls = (sum(column) for column in zip(*last, strict=True)) if last else (0, 0)
            enough = len(last) >= self.STEPS
            if enough and bad > self.SHARE * max(self.WINDOW, calls):
                broken.append(f"{name}: {bad} of its last {calls} calls faulted")
            self._failed |= any(flags)
        self._first = self._first or step
        self._steps += 1
        self._judged += judged
        self._barren = 0 if judged else self._barren + 1
        if self._barren >= self.BARREN:
            broken.append(f"no row got a reward in the last {self._barren} steps")
        if broken:
            raise RewardsFailed("\n".join([*broken, *said]))

    def end(self, said: Iterator[str], *, strict: bool) -> None:
        """The last step was added: raise where no row of the training got a reward.

        Unless `strict`, only where rewards failed: in trl, abstaining on everything is no error. Of
        a resumed training the steps before are not known.
        """
        if self._first <= 1 and self._judged == 0 and (self._failed or strict):
            told = f"no row got a reward in any of {self._steps} steps"
            raise RewardsFailed("\n".join([told, *said]))
