"""Where a reward runs, and what becomes of its faults: deadlines and one retry.

A reward runs in a worker process of its own, kept between batches, killed when it is late and
started anew when it died. One that cannot leave the trainer's process (it holds a lock or a model)
runs on a thread of it: its exceptions and hangs are caught all the same, a crash or its memory are
not; this is logged once, by name. So does one that holds state: the first batch that changes it in
the worker is scored once more here. The rewards that come with the package run at once: they are
bounded, or have killable processes of their own. Every row that faults is tried once more; where a
batch form failed, each of its rows alone (not where it gave a wrong value). What one call is of, a
row or a group (a unit), has a deadline of its own, is tried whole and faults whole.
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
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rl_reasoner.scoring.call import call_reward, one_by_one
from rl_reasoner.scoring.executors import LOAD_S, HoldsState, Process, RewardCall, Thread
from rl_reasoner.scoring.limits import Limits
from rl_reasoner.scoring.reward import GROUPS, Reward, brings_code, is_shipped, name_of
from rl_reasoner.scoring.transport import pack_reward
from rl_reasoner.scoring.trl_form import OF_TRAINER, call_mistake
from rl_reasoner.scoring.waiting import GivenUp, give_up, warn_while_waiting
from rl_reasoner.types import Completion, Fault, Outcome
from rl_reasoner.workers import WorkerDied, WorkerLate

_log = logging.getLogger(__name__)
SEEDS = "random seeds"
"""The column with a seed for each row, which workers draw from; functions do not see it."""


class Runner:
    """One reward with its place; calls from several threads wait for each other."""

    def __init__(self, fn: Callable[..., Any], limits: Limits) -> None:
        self.limits = limits
        self.name = name_of(fn)
        self.alone = one_by_one(fn)
        self.shipped = is_shipped(fn) and not brings_code(fn)
        self._fn = weakref.ref(fn) if _weak(fn) else lambda: fn
        self._lock = threading.Lock()
        self._place: Process | Thread | None = None
        self._given_up = False
        self._packed: Mapping[str, Any] = {}
        self.here = "" if limits.apart and not self.shipped else "isolate_rewards is off"
        """Why it runs on a thread of this process; empty where it runs apart."""
        self._renew(fn)

    def score(self, completions: Sequence[Completion], columns: Mapping[str, Any]) -> list[Outcome]:
        """The outcome of each row, in order."""
        fn = self._function()
        columns = {**columns}
        seeds = columns.pop(SEEDS, ())
        if not getattr(fn, "group", False):
            columns.pop(GROUPS, None)
        if self.shipped:
            unused = asyncio.Runner()  # none of them is asynchronous; a notebook's own loop runs
            try:
                with warn_while_waiting(self.name, None):
                    return [*call_reward(fn, completions, columns, self.limits.timeout_s, unused)]
            except GivenUp:
                gone = Fault(f"reward {self.name!r}: it was given up", "crash")
                return [gone] * len(completions)
        if not completions:
            return []
        try:
            call = self._call(fn, completions, columns, seeds)
        except KeyError as error:  # a column that the data lacks
            return [Fault(str(error.args[0]))] * len(completions)
        with self._lock, warn_while_waiting(self.name, self.limits.batch_timeout_s):
            self._renew(fn)
            rows = range(len(completions))
            units = [[index] for index in rows]
            if isinstance(fn, Reward):
                units = fn.groups(call.columns, len(completions))
            outcomes: dict[int, Outcome] = {}
            self._judge([units], call, outcomes)
            again = {i for i in rows if self._retried(outcomes[i])}
            units = [unit for unit in units if again & {*unit}]
            blocks = [units] if self.alone else [[unit] for unit in units]
            self._judge(blocks, call, outcomes, each=self.limits.timeout_s)
            return [outcomes[i] for i in rows]

    def _retried(self, outcome: Outcome) -> bool:
        """Whether a second try may help; a late call on a thread is still running."""
        if not isinstance(outcome, Fault) or outcome.kind == "value":
            return False
        return not (self.here and outcome.kind == "timeout")

    def _function(self) -> Callable[..., Any]:
        fn = self._fn()
        assert fn is not None  # the caller holds it
        return fn

    def _call(
        self,
        fn: Callable[..., Any],
        completions: Sequence[Completion],
        columns: Mapping[str, Any],
        seeds: Sequence[int],
    ) -> RewardCall:
        """What is sent: of our own rewards the columns they name; all of them to trl's form."""
        if isinstance(fn, Reward):
            for index in range(len(completions)):
                fn.row(columns, index)  # raises where one is missing
            named = (*fn.columns, *fn.missing)
            wanted = {"prompts" if n == "prompt" and n not in columns else n for n in named}
            wanted |= {"prompts", GROUPS} if fn.group else set()
            kept = {name: columns[name] for name in wanted if name in columns}
            return RewardCall(completions, kept, {}, seeds)
        if mistake := call_mistake(fn, self.name, columns):
            raise KeyError(mistake)
        extras = {name: columns[name] for name in OF_TRAINER if name in columns}
        rest = {name: values for name, values in columns.items() if name not in extras}
        return RewardCall(completions, rest, extras, seeds)

    def _judge(
        self,
        blocks: list[list[list[int]]],
        call: RewardCall,
        outcomes: dict[int, Outcome],
        each: float = float("inf"),
    ) -> None:
        """Outcomes for all units of `blocks`, a request each; a failure ends one unit, or its
        block.

        `each`: the seconds for a block that is answered as one. What has no outcome when the
        batch's time is up is a fault.
        """
        ends = time.monotonic() + self.limits.batch_timeout_s
        for block in blocks:
            waiting = deque(index for unit in block for index in unit)
            unit_of = {index: unit for unit in block for index in unit}
            single = self.alone or len(waiting) == 1
            while waiting:
                try:
                    seconds = self.limits.timeout_s if single else each
                    self._request(waiting, call, outcomes, ends, seconds, unit_of)
                except (WorkerLate, WorkerDied) as failure:
                    over = not self.alone or time.monotonic() >= ends
                    # none waits where the process ended after its last reply
                    unit = unit_of[waiting[0]] if waiting else ()
                    for index in [one for one in waiting if over or one in unit]:
                        seconds = self.limits.timeout_s * len(unit_of[index])
                        outcomes[index] = self._fault(failure, time.monotonic() >= ends, seconds)
                        waiting.popleft()

    def _request(
        self,
        waiting: deque[int],
        call: RewardCall,
        outcomes: dict[int, Outcome],
        ends: float,
        each: float,
        unit_of: Mapping[int, Sequence[int]],
    ) -> None:
        """Send the waiting rows and take their outcomes, each off `waiting`.

        An outcome may take `each` seconds for each row of its unit, which is there with the first.
        """
        place = self._ready()
        rows = list(waiting)
        try:
            place.send(call.only(rows), min(ends, time.monotonic() + LOAD_S))
            for index in rows:
                longest = each * len(unit_of[index])
                outcomes[index] = place.receive(min(ends, time.monotonic() + longest))
                waiting.popleft()
            place.finish(min(ends, time.monotonic() + LOAD_S))
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            if self.here:
                raise
            self._move_here(f"its rows cannot be sent to another process ({error})")
        except HoldsState:
            self._move_here(
                "it changes what it holds, and a worker process has only a copy of that"
            )
            waiting.extend(rows)
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
        if not self.here:
            try:
                self._place = Process(self._packed, self.limits)
                if self._place.edited:
                    _log.warning(
                        "reward %r: its file, or a helper beside it, was edited after this command "
                        "had read it; its process, started now, judges by the new text",
                        self.name,
                    )
                return self._place
            except ImportError as error:
                self._move_here(str(error))
        self._place = Thread(self._function, self.limits)
        return self._place

    def _renew(self, fn: Callable[..., Any]) -> None:
        """Send the reward again where what it holds has changed here: the worker has a copy."""
        if self.here:
            return
        packed = pack_reward(fn)
        if isinstance(packed, str):
            self._move_here(packed)
        elif packed != self._packed:
            self._packed = packed
            if isinstance(self._place, Process):
                try:
                    self._place.load(packed)
                except (WorkerDied, WorkerLate, ImportError):
                    self.close()  # the next one is started with it

    def _move_here(self, why: str) -> None:
        self.close()
        self.here = why
        _log.warning(
            "reward %r runs inside this process, on a thread: %s. Its exceptions and hangs are "
            "caught, but not a crash; a function in a module or file runs in its own process",
            self.name,
            why,
        )

    def _fault(self, failure: WorkerLate | WorkerDied, over: bool, each: float) -> Fault:
        if isinstance(failure, WorkerDied):
            return Fault(f"reward {self.name!r}: its process ended ({failure})", "crash")
        if over:
            seconds = self.limits.batch_timeout_s
            what = f"the batch was not done within {seconds:g} s"
        elif "earlier" in str(failure):
            return Fault(f"reward {self.name!r}: {failure}", "timeout")
        else:
            seconds = each
            what = f"no reply within {seconds:g} s"
        return Fault(f"reward {self.name!r}: {what}", "timeout", seconds=seconds)

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
        runner = _RUNNERS.get(key)
        if runner is not None and runner.limits == limits and runner._fn() is fn:
            return runner
        if runner is not None:
            runner.close()
        elif _weak(fn):
            weakref.finalize(fn, _drop, key)
        _RUNNERS[key] = Runner(fn, limits)
        return _RUNNERS[key]


def runs_apart(fn: Callable[..., Any]) -> bool:
    """Whether `fn` runs in a process of its own, as far as it was called."""
    runner = _RUNNERS.get(id(fn))
    return runner is None or not runner.here


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
    give_up()  # what shipped rewards wait for


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
