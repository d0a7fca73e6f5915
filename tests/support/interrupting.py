"""A trainer with tools for policies that call none: completions are given tokens in the middle."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from rl_reasoner import GRPOTrainer
from rl_reasoner.rollout.tool_turns import ToolEvent
from rl_reasoner.rollout.turns import Answer


class Interrupting:
    """Stands for tools where a policy without training writes no calls.

    A row is given tokens behind its 2nd, 5th … sampled one, as many and such as follow from it.
    """

    schemas = None

    def running(self) -> AbstractContextManager[None]:
        return nullcontext()

    @contextmanager
    def turns(self, count: int) -> Iterator["Interrupting"]:
        self.made: list[list[ToolEvent]] = [[] for _ in range(count)]
        self.begin, self.asked = [0] * count, list[tuple[int, list[int]]]()
        yield self

    def events(self, row: int, ids: Sequence[int]) -> list[ToolEvent]:
        return self.made[row]

    def stops(self, row: int, ids: Sequence[int]) -> bool:
        wrote = len(ids) - self.begin[row]
        return wrote == (3 if self.begin[row] else 2)

    def submit(self, row: int, ids: list[int]) -> None:
        self.asked.append((row, ids))

    def answers(self, wait: bool) -> list[Answer]:
        found = []
        for row, ids in self.asked:
            given = [7 + (sum(ids) + place) % 190 for place in range(sum(ids) % 3)]
            self.made[row].append(ToolEvent("none", "ok", 0.0, len(ids), len(given)))
            self.begin[row] = len(ids) + len(given)
            found.append(Answer(row, given))
        self.asked = []
        return found


Turns = list[tuple[list[list[int]], list[list[int]]]]  # ids and masks of each batch


def with_turns(turns: Turns) -> type[GRPOTrainer]:
    """Our trainer with such a tool; what is sampled is kept in `turns`."""

    class Ours(GRPOTrainer):
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            self.tool_use = Interrupting()  # type: ignore[assignment]

        def _generate_single_turn(self, *given: Any, **named: Any) -> Any:
            found = super()._generate_single_turn(*given, **named)
            masks = self.rollout_batch.tool_masks
            assert masks is not None
            turns.append((found[0], masks))
            return found

    Ours.__name__ = "GRPOTrainer"
    return Ours
