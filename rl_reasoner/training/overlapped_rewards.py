"""Rewards of completions that are done while others are still being sampled.

The sampling engine says which rows have ended; our own rewards score them on threads beside it, the
rows that have gathered meanwhile in one call. A reward of a completion sees nothing but its row, so
its scores are those it would have given afterwards. Knows nothing of models.
"""

import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from rl_reasoner.scoring.reward import Reward
from rl_reasoner.types import Completion, Outcome


@dataclass(eq=False)
class OverlappedRewards:
    """The scores of one batch of completions, begun before the last of them is there.

    `rewards` by their place among all; `columns` hold a value for each row of the batch; `read`
    makes completions of token ids; `score` gives the outcomes of a reward.
    """

    rewards: Mapping[int, Reward]
    columns: Mapping[str, Sequence[Any]]
    read: Callable[[list[list[int]]], list[Completion]]
    score: Callable[[Reward, Sequence[Completion], Mapping[str, Any]], list[Outcome]]

    def __post_init__(self) -> None:
        self.ids: dict[int, list[int]] = {}
        self.completions: dict[int, Completion] = {}
        self.found: dict[int, dict[int, Outcome]] = {place: {} for place in self.rewards}
        self.seconds = 0.0  # that rewards ran while nobody waited for them
        self._waited_since: float | None = None
        self._lock = threading.Lock()
        self._waiting: dict[int, list[int]] = {place: [] for place in self.rewards}
        self._calls: list[Future[None]] = []
        self._begun: queue.SimpleQueue[tuple[Future[None], int] | None] = queue.SimpleQueue()
        for _ in self.rewards:  # daemons: a judge that hangs holds no interpreter back
            threading.Thread(target=self._serve, name="overlapped rewards", daemon=True).start()

    def add(self, ended: list[tuple[int, list[int]]]) -> None:
        """Rows that are complete: number and token ids of each."""
        texts = self.read([ids for _, ids in ended])
        for (row, ids), text in zip(ended, texts, strict=True):
            self.ids[row], self.completions[row] = ids, text
        with self._lock:
            for rows in self._waiting.values():
                rows += [row for row, _ in ended]
        for place in self.rewards:
            self._calls.append(Future())
            self._begun.put((self._calls[-1], place))

    def _serve(self) -> None:
        """Make the calls that are begun, one after the other, until there are to be no more."""
        while (begun := self._begun.get()) is not None:
            call, place = begun
            if not call.set_running_or_notify_cancel():
                continue
            try:
                self._score(place)
                call.set_result(None)
            except BaseException as error:  # handed on: `collect` raises it
                call.set_exception(error)

    def _score(self, place: int) -> None:
        """Score all rows that wait for the reward at `place`."""
        with self._lock:
            rows, self._waiting[place] = self._waiting[place], []
        if not rows:
            return
        started = time.perf_counter()
        columns = {
            name: [self.ids[row] if name == "completion_ids" else values[row] for row in rows]
            for name, values in self.columns.items()
        }
        texts = [self.completions[row] for row in rows]
        outcomes = self.score(self.rewards[place], texts, columns)
        self.found[place] |= dict(zip(rows, outcomes, strict=True))
        with self._lock:
            until = self._waited_since or time.perf_counter()
            self.seconds += max(0.0, until - started)

    def collect(self, completions: Sequence[Completion]) -> dict[int, list[Outcome]]:
        """The scores by place, each in the order of the rows; waits for those still to come.

        Nothing where `completions` are not the ones that were scored.
        """
        self._waited_since = time.perf_counter()
        try:
            for call in self._calls:
                call.result()
        finally:
            self.close()
        if [self.completions.get(row) for row in range(len(completions))] != [*completions]:
            return {}
        rows = range(len(completions))
        return {place: [scores[row] for row in rows] for place, scores in self.found.items()}

    def close(self) -> None:
        """Begin nothing more."""
        for call in self._calls:
            call.cancel()
        for _ in self.rewards:
            self._begun.put(None)
