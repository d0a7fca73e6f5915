"""The two places where a reward runs: a worker process, or a thread of this one.

Both take the rows of a call and give their outcomes one after the other; `runner` picks one, waits,
and deals with what goes wrong.
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
from typing import Any

from rl_reasoner.scoring.call import call_reward
from rl_reasoner.scoring.limits import Limits
from rl_reasoner.types import Completion, Fault, Outcome, Score
from rl_reasoner.workers import Worker, WorkerDied, WorkerLate

LOAD_S = 300.0
"""Seconds that a worker may take to start and to import the reward's module."""
_OF_A_THREAD = ("main thread", "same thread", "_thread._local")
_ADVICE = (
    "It runs on a thread other than the main one: make connections and thread-locals in its first "
    "call, not before; a function in a module or file gets a worker's main thread, with signals"
)


class HoldsState(RuntimeError):
    """A reward has changed the copy of it that a worker has."""


@dataclass(frozen=True)
class RewardCall:
    """The rows of one call, as they are sent: completions, columns by name, trl's extras.

    `seeds`, one a row or none at all, set a worker's generators: its draws are those of the row,
    whichever process comes to judge it. A thread has the generators of the trainer.
    """

    completions: Sequence[Completion]
    columns: Mapping[str, Any]
    extras: Mapping[str, Any]
    seeds: Sequence[int]

    def only(self, rows: Sequence[int]) -> "RewardCall":
        """The same for some rows."""
        columns = {name: [values[i] for i in rows] for name, values in self.columns.items()}
        seeds = [self.seeds[i] for i in rows] if self.seeds else []
        return RewardCall([self.completions[i] for i in rows], columns, self.extras, seeds)


class Process:
    """A reward in a worker process."""

    def __init__(self, reward: Mapping[str, Any], limits: Limits) -> None:
        self.limits = limits
        self.extras: Mapping[str, Any] = {}
        self.history: list[Any] = []  # trl's log, of which the worker has the first `sent`
        self.sent = 0
        self.edited = False  # whether it has another text of the file than the trainer
        self.worker = Worker("rl_reasoner.scoring.worker", str(limits.memory_mb), shown=True)
        self.load(reward)

    def load(self, reward: Mapping[str, Any]) -> None:
        """Let the worker have the reward (`pack_reward`). Raises ImportError where it cannot."""
        deadline = time.monotonic() + LOAD_S
        self.worker.send({"reward": reward}, deadline)
        reply = self.worker.receive(deadline)
        if "failed" in reply:
            self.worker.stop()
            raise ImportError(f"a worker process cannot load it ({reply['failed']})")
        self.edited = bool(reply["edited"])

    def send(self, call: RewardCall, deadline: float) -> None:
        """Begin with the rows of `call`."""
        self.extras = call.extras
        request = {
            "rows": base64.b64encode(pickle.dumps((call.completions, call.columns))).decode(),
            **self._state(call.extras),
            "seeds": list(call.seeds),
            "timeout_s": self.limits.timeout_s,
        }
        self.worker.send(request, deadline)

    def _state(self, extras: Mapping[str, Any]) -> dict[str, Any]:
        """trl's trainer state for the worker; of its log, which grows, what is new."""
        if not extras:
            return {"state": None}
        state = extras.get("trainer_state")
        fields = dataclasses.fields(state) if state else ()
        values = {field.name: getattr(state, field.name) for field in fields}
        history = values.pop("log_history", [])
        if history is not self.history or len(history) < self.sent:
            self.history, self.sent = history, 0
        since, self.sent = self.sent, len(history)
        values["log_history"] = history[since:]
        return {"state": json.dumps(values, default=_number, skipkeys=True), "log_since": since}

    def receive(self, deadline: float) -> Outcome:
        """The outcome of the next row."""
        kind, *rest = self.worker.receive(deadline)
        if kind == "fault":
            return Fault(rest[0], rest[1], seconds=rest[2])
        return Score(rest[0], rest[1], rest[2], seconds=rest[3])

    def finish(self, deadline: float) -> None:
        """Take over what the function logged through trl's arguments; raises `HoldsState`."""
        reply = self.worker.receive(deadline)
        if reply["changed"]:
            raise HoldsState
        for kind, name, value in reply["logged"]:
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

    def __init__(self, function: Callable[[], Callable[..., Any]], limits: Limits) -> None:
        self.function = function
        self.limits = limits
        self.calls: queue.SimpleQueue[RewardCall | None] = queue.SimpleQueue()
        self.idle = threading.Event()
        self.idle.set()
        self.outcomes: queue.SimpleQueue[Outcome | BaseException] = queue.SimpleQueue()
        threading.Thread(target=self._serve, name="rl_reasoner reward", daemon=True).start()

    def _serve(self) -> None:
        with asyncio.Runner() as loop:
            while (call := self.calls.get()) is not None:
                self._judge(call, self.outcomes, loop)
                del call
                self.idle.set()

    def _judge(
        self, call: RewardCall, outcomes: "queue.SimpleQueue[Any]", loop: asyncio.Runner
    ) -> None:
        columns = {**call.columns, **call.extras}
        timeout_s = self.limits.timeout_s
        try:
            for outcome in call_reward(self.function(), call.completions, columns, timeout_s, loop):
                outcomes.put(_advised(outcome))
        except BaseException as error:  # handed on: KeyboardInterrupt
            outcomes.put(error)

    def send(self, call: RewardCall, deadline: float) -> None:
        """Begin with the rows of `call`."""
        if not self.idle.is_set():
            raise WorkerLate("an earlier call has not returned")
        self.idle.clear()
        self.outcomes = queue.SimpleQueue()
        self.calls.put(call)

    def receive(self, deadline: float) -> Outcome:
        """The outcome of the next row."""
        try:
            outcome = self.outcomes.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            raise WorkerLate("no reply by the deadline") from None
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def finish(self, deadline: float) -> None:
        """Wait for the thread, which has nothing left to do."""
        self.idle.wait(max(0.0, deadline - time.monotonic()))

    def stop(self) -> None:
        """Let the thread end; a call under way cannot be stopped."""
        self.calls.put(None)

    def give_up(self) -> None:
        """End the waiting of another thread; the call itself goes on."""
        self.outcomes.put(WorkerDied("given up"))
        self.stop()


def _number(value: Any) -> Any:
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
