"""The two places where a reward runs: a worker process, or a thread of this one.

Both take the rows of a call and give their outcomes one after the other; `isolation` picks one,
waits, and deals with what goes wrong.
"""

import asyncio
import base64
import dataclasses
import json
import pickle
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rl_reasoner.scoring.call import outcomes
from rl_reasoner.types import Completion, Fault, Outcome, Score
from rl_reasoner.workers import Worker, WorkerDied, WorkerLate

if TYPE_CHECKING:
    from rl_reasoner.scoring.runner import Limits

LOAD_S = 300.0
"""Seconds that a worker may take to start and to import the reward's module."""
_OF_A_THREAD = ("main thread", "same thread", "_thread._local")
_ADVICE = (
    "It runs on a thread other than the main one: make connections and thread-locals in its first "
    "call, not before; a function in a module or file gets a worker's main thread, with signals"
)


@dataclass(frozen=True)
class Work:
    """The rows of one call, as they are sent: completions, columns by name, trl's extras.

    `seeds`, one a row or none at all, set a worker's generators: its draws are those of the row,
    whichever process comes to judge it. A thread has the generators of the trainer.
    """

    completions: Sequence[Completion]
    columns: Mapping[str, Any]
    extras: Mapping[str, Any]
    seeds: Sequence[int]

    def only(self, rows: Sequence[int]) -> "Work":
        """The same for some rows."""
        columns = {name: [values[i] for i in rows] for name, values in self.columns.items()}
        seeds = [self.seeds[i] for i in rows] if self.seeds else []
        return Work([self.completions[i] for i in rows], columns, self.extras, seeds)


class Process:
    """A reward in a worker process."""

    def __init__(self, reward: Mapping[str, Any], limits: "Limits") -> None:
        self.limits = limits
        self.extras: Mapping[str, Any] = {}
        self.history: list[Any] = []  # trl's log, of which the worker has the first `told`
        self.told = 0
        self.worker = Worker("rl_reasoner.scoring.worker", str(limits.memory_mb), shown=True)
        self.load(reward)

    def load(self, reward: Mapping[str, Any]) -> None:
        """Let the worker have the reward, or what changed of it."""
        deadline = time.monotonic() + LOAD_S
        self.worker.send({"reward": reward}, deadline)
        reply = self.worker.receive(deadline)
        if "failed" in reply:
            self.worker.stop()
            raise ImportError(f"a worker process cannot load it ({reply['failed']})")

    def send(self, work: Work, deadline: float) -> None:
        """Begin with the rows of `work`."""
        self.extras = work.extras
        request = {
            "rows": base64.b64encode(pickle.dumps((work.completions, work.columns))).decode(),
            **self._state(work.extras),
            "seeds": list(work.seeds),
            "timeout_s": self.limits.timeout_s,
        }
        self.worker.send(request, deadline)

    def _state(self, extras: Mapping[str, Any]) -> dict[str, Any]:
        """trl's trainer state for the worker; of its log, which grows, what is new."""
        if not extras:
            return {"state": None}
        state = extras.get("trainer_state")
        values = (
            {f.name: getattr(state, f.name) for f in dataclasses.fields(state)} if state else {}
        )
        history = values.pop("log_history", [])
        if history is not self.history or len(history) < self.told:
            self.history, self.told = history, 0
        since, self.told = self.told, len(history)
        values["log_history"] = history[since:]
        return {"state": json.dumps(values, default=_told, skipkeys=True), "log_since": since}

    def receive(self, deadline: float) -> Outcome:
        """The outcome of the next row."""
        kind, *rest = self.worker.receive(deadline)
        if kind == "fault":
            return Fault(rest[0], rest[1], seconds=rest[2])
        return Score(rest[0], rest[1], rest[2], seconds=rest[3])

    def finish(self, deadline: float) -> None:
        """Take over what the function logged through trl's arguments."""
        for kind, name, value in self.worker.receive(deadline)["logged"]:
            self.extras[f"log_{kind}"](name, value)

    @property
    def usable(self) -> bool:
        """Whether it takes another batch."""
        return self.worker.usable

    def stop(self) -> None:
        """Kill the process."""
        self.worker.stop()

    def give_up(self) -> None:
        """Kill the process while another thread waits for it: that thread hears of its death."""
        self.worker.kill()


class Thread:
    """A reward on a thread of this process, one for all its batches: connections, thread-locals
    and event loops belong to the thread that made them. A call that is late is left to itself."""

    usable = True

    def __init__(self, function: Callable[[], Callable[..., Any]], limits: "Limits") -> None:
        self.function = function
        self.limits = limits
        self.works: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self.idle = threading.Event()
        self.idle.set()
        self.found: queue.SimpleQueue[Outcome | BaseException] = queue.SimpleQueue()
        threading.Thread(target=self._serve, name="rl_reasoner reward", daemon=True).start()

    def _serve(self) -> None:
        with asyncio.Runner() as loop:
            while (work := self.works.get()) is not None:
                self._judge(work, self.found, loop)
                del work
                self.idle.set()

    def _judge(self, work: Work, found: "queue.SimpleQueue[Any]", loop: asyncio.Runner) -> None:
        columns = {**work.columns, **work.extras}
        timeout_s = self.limits.timeout_s
        try:
            for outcome in outcomes(self.function(), work.completions, columns, timeout_s, loop):
                found.put(_advised(outcome))
        except BaseException as error:  # handed on: KeyboardInterrupt and SystemExit
            found.put(error)

    def send(self, work: Work, deadline: float) -> None:
        """Begin with the rows of `work`."""
        if not self.idle.is_set():
            raise WorkerLate("an earlier call has not returned")
        self.idle.clear()
        self.found = queue.SimpleQueue()
        self.works.put(work)

    def receive(self, deadline: float) -> Outcome:
        """The outcome of the next row."""
        try:
            found = self.found.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            raise WorkerLate("no reply by the deadline") from None
        if isinstance(found, BaseException):
            raise found
        return found

    def finish(self, deadline: float) -> None:
        """Wait for the thread, which has nothing left to do."""
        self.idle.wait(max(0.0, deadline - time.monotonic()))

    def stop(self) -> None:
        """Let the thread end; a call under way cannot be stopped."""
        self.works.put(None)

    def give_up(self) -> None:
        """End the waiting of another thread; the call itself goes on."""
        self.found.put(WorkerDied("given up"))
        self.stop()


def _told(value: Any) -> Any:
    """A value that JSON has not: a number where it is one, as numpy's are."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return str(value)


def _advised(outcome: Outcome) -> Outcome:
    """`outcome`; where it failed because it was not on the main thread, with what to do."""
    if not isinstance(outcome, Fault) or not any(t in outcome.message for t in _OF_A_THREAD):
        return outcome
    return replace(outcome, message=f"{outcome.message}. {_ADVICE}")
