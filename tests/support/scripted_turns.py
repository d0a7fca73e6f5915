"""A `TurnTaker` whose answers follow from the completions, from threads."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue

from rl_reasoner.rollout.drawing import keyed_generator
from rl_reasoner.rollout.turns import Answer

GIVEN = 40  # answers are of tokens from 9 to below this
STOPS = (5, 6, 7, 8, 1)  # tokens that call a tool or end a turn


@dataclass(frozen=True)
class Script:
    """Answers that follow from a completion alone.

    `lengths` of the answers of a row's turns; a row that comes to -1 is ended, one that has had
    all of them does not stop any more.
    """

    lengths: tuple[int, ...] = (3, 0, 7, 1)
    stops: tuple[int, ...] = STOPS

    def answer(self, turn: int, ids: Sequence[int]) -> tuple[list[int], str]:
        length = self.lengths[turn]
        if length < 0:
            return [], "done"
        return keyed_generator([turn, *ids]).integers(9, GIVEN, length).tolist(), ""


class Threads:
    """A `TurnTaker` that answers by a script, from threads, after a while."""

    def __init__(
        self, script: Script, delay: Callable[[int, int], float] = lambda row, turn: 0.0
    ) -> None:
        self.script, self.delay = script, delay
        self.turns: dict[int, int] = {}
        self.waits = 0  # how often it was asked to wait
        self._ready: SimpleQueue[Answer] = SimpleQueue()
        self._pool = ThreadPoolExecutor(4)
        self._sampler = threading.get_ident()

    def stops(self, row: int, ids: Sequence[int]) -> bool:
        assert threading.get_ident() == self._sampler
        left = self.turns.get(row, 0) < len(self.script.lengths)
        return left and ids[-1] in self.script.stops

    def submit(self, row: int, ids: list[int]) -> None:
        turn = self.turns.get(row, 0)
        self.turns[row] = turn + 1
        self._pool.submit(self._work, row, turn, ids)

    def _work(self, row: int, turn: int, ids: list[int]) -> None:
        time.sleep(self.delay(row, turn))
        given, ended = self.script.answer(turn, ids)
        self._ready.put(Answer(row, given, ended))

    def answers(self, wait: bool) -> list[Answer]:
        self.waits += wait
        found = [self._ready.get()] if wait else []
        while not self._ready.empty():
            found.append(self._ready.get())
        return found
