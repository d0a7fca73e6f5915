"""Starts of games that an environment plays (`rl_reasoner.environments`), as tasks.

`guess`: a range of numbers is the problem, the hidden number the `start`. `grid`: the ends of a
walk are the problem, the hidden wall the `start`. Neither has an answer.
"""

import random
from typing import Any

from rl_reasoner.dataset.tasks.base import Pick, Problem, Task
from rl_reasoner.environments.games.grid import STEPS, cell_name, grid_walk
from rl_reasoner.environments.games.guess import play

_GUESSES = 5  # of a played game: as many as halving 16 numbers takes
_SIDE = 4  # of the grid that is learned; larger ones are out of the distribution
_MOVES = 8  # of a walk: six are the longest way of 4 x 4, and two go round a wall


def _guess(level: int, pick: Pick) -> Problem:
    """A range of 2 ** level numbers, and one of them."""
    size = 2**level
    first = 10 + pick(90 - size + 1)
    number = first + pick(size)
    last = first + size - 1
    text = f"{first}-{last}?"
    return Problem("guess", text, "", "", level, f"{text}{number}", {"start": number}, text)


def _careless_game(problem: Problem, share: float, rng: random.Random) -> dict[str, Any]:
    """A game played with this share of random guesses, the others in the middle of what is left."""
    low, high = map(int, problem.problem.rstrip("?").split("-"))

    def choose(lowest: int, highest: int) -> int:
        return rng.randint(low, high) if rng.random() < share else (lowest + highest) // 2

    return {"played": play(low, high, int(problem.columns["start"]), _GUESSES, choose)}


GUESS_TASK = Task(
    name="guess",
    about="starts of a game: a number to guess in a range; for the environment of that name",
    levels=range(4, 5),
    ood=range(5, 6),
    make=_guess,
    careless=_careless_game,
    judge="environment",
)


def _grid(level: int, pick: Pick) -> Problem | None:
    """Two cells of a square of `level` a side, and a wall in another."""
    cells = [(row, column) for row in range(1, level + 1) for column in range(1, level + 1)]
    at, goal, wall = (cell_name(cells.pop(pick(len(cells)))) for _ in range(3))
    text = f"{at}>{goal}?"
    if level > _SIDE and str(level) not in text:  # a way that the smaller grid has, too
        return None
    return Problem("grid", text, "", "", level, f"{text}{wall}", {"start": wall}, text)


def _careless_walk(problem: Problem, share: float, rng: random.Random) -> dict[str, Any]:
    """A walk with this share of random steps, the others towards the goal as if no wall were."""

    def choose(told: str) -> str:
        steps = [*STEPS] if rng.random() < share else list(told[::2])
        return rng.choice(steps)

    return {"played": grid_walk(problem.row(), _MOVES, choose)}


GRID_TASK = Task(
    name="grid",
    about="starts of a game: a walk on a grid with a hidden wall; for the environment of that name",
    levels=range(_SIDE, _SIDE + 1),
    ood=range(_SIDE + 1, _SIDE + 2),
    make=_grid,
    careless=_careless_walk,
    judge="environment",
)
