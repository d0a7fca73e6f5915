"""Walk a grid: a game of several turns in which one cell, not told, is a wall.

The row says in its `problem` where the policy stands and where it is to go ("11>34?": row and
column, counted from the north-west), in its `start` which cell is the wall, in its `level` how many
cells a side has. A turn is a step: n, s, e or w. The game says where the goal lies from there
("s2e1": two to the south, one to the east), with "wall" before it where the step led nowhere.
Arriving makes the rewards of the turns 1 together. Half of that is for coming closer, turn by turn,
and going away takes it back: what is best to do stays the same (Ng et al. 1999, potentials).
"""

import re
from collections.abc import Callable
from functools import cache

from rl_reasoner.errors import UserError
from rl_reasoner.types import Row

GridCell = tuple[int, int]
STEPS: dict[str, GridCell] = {"n": (-1, 0), "s": (1, 0), "e": (0, 1), "w": (0, -1)}
_PATH = re.compile(r"(\d)(\d)>(\d)(\d)")


class Grid:
    """A walk of at most `moves` steps from a row's cell to another."""

    bounded = True

    def __init__(self, moves: int = 8) -> None:
        self._left = moves
        self._side = 1
        self._at: GridCell = (1, 1)
        self._goal: GridCell = (1, 1)
        self._wall: GridCell = (0, 0)
        self._far = 1  # steps to the goal at first
        self._paid = 0.0

    def reset(self, row: Row) -> None:
        """Stand where the row's problem says; it is what the policy is asked."""
        self._at, self._goal = start_and_goal(row["problem"])
        self._side, self._wall = int(row["level"]), cell_of(str(row["start"]))
        ways = distances(self._goal, self._side, self._wall)
        if self._goal in (self._at, self._wall) or self._at not in ways:
            told = f"{row['problem']!r} with a wall at {row['start']}"
            raise UserError(f"grid: there is no way: {told}")
        self._far = self._distance()

    def step(self, completion: str) -> tuple[str, float, bool]:
        """Where the goal lies after a step."""
        self._left -= 1
        to = STEPS.get(completion.strip())
        if to is None:
            return "n, s, e or w", 0.0, self._left <= 0
        there = grid_step(self._at, to, self._side, self._wall)
        said = way(there, self._goal) if there != self._at else f"wall {way(there, self._goal)}"
        self._at = there
        before, self._paid = self._paid, self._worth()
        arrived = there == self._goal
        return "" if arrived else said, self._paid - before, arrived or self._left <= 0

    def _worth(self) -> float:
        """The rewards so far: exact in binary, so that they add up to 1."""
        if self._at == self._goal:
            return 1.0
        return round((1 - self._distance() / self._far) / 2 * 1024) / 1024

    def _distance(self) -> int:
        return distances(self._goal, self._side, self._wall)[self._at]


def start_and_goal(problem: str) -> tuple[GridCell, GridCell]:
    """The cells that a walk begins and ends in. Raises `UserError` where none are named."""
    found = _PATH.findall(problem)
    if not found:
        raise UserError(f"grid: problem {problem!r} names no way: write 11>34")
    row, column, to_row, to_column = map(int, found[-1])
    return (row, column), (to_row, to_column)


def cell_of(name: str) -> GridCell:
    """A cell by its name, "34"."""
    return int(name[0]), int(name[1])


def cell_name(cell: GridCell) -> str:
    """A cell's row and column, a digit each."""
    return f"{cell[0]}{cell[1]}"


def way(at: GridCell, goal: GridCell) -> str:
    """Where the goal lies from a cell, "s2e1"; nothing where it is that cell."""
    down, right = goal[0] - at[0], goal[1] - at[1]
    ways = (("n", -down), ("s", down), ("e", right), ("w", -right))
    return "".join(f"{side}{steps}" for side, steps in ways if steps > 0)


def grid_step(at: GridCell, step: GridCell, side: int, wall: GridCell) -> GridCell:
    """Where a step leads: nowhere at the wall and at the edge."""
    there = (at[0] + step[0], at[1] + step[1])
    inside = all(1 <= place <= side for place in there)
    return there if inside and there != wall else at


@cache
def distances(goal: GridCell, side: int, wall: GridCell) -> dict[GridCell, int]:
    """Of each cell from which there is a way, the steps to the goal."""
    found, ring = {goal: 0}, [goal]
    while ring:
        further = {grid_step(cell, step, side, wall) for cell in ring for step in STEPS.values()}
        ring = sorted(further - found.keys())
        found.update(dict.fromkeys(ring, max(found.values()) + 1))
    return found


def grid_walk(row: Row, moves: int, choose: Callable[[str], str]) -> list[list[str]]:
    """A walk as pairs of a step and what was said of it.

    `choose(way)` is the next step, by where the goal lies.
    """
    game = Grid(moves)
    game.reset(row)
    told = way(*start_and_goal(row["problem"]))
    played: list[list[str]] = []
    done = False
    while not done:
        step = choose(told)
        said, _, done = game.step(step)
        played.append([step, said])
        told = said.removeprefix("wall ")
    return played
