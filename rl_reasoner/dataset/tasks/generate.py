"""Problems of any task, by split, level and seed, with answers known to be right.

Each task is one small function that writes a problem from the choices it is dealt; levels, splits,
seeds and distinctness are common to all, and here. The hash of a problem's `key` decides whether it
is training, validation or test material, so that no seed ever mixes them; `ood` has levels of its
own, above those of the other splits. Problems are the same on every platform and Python version:
choices come from SHA-256, not from `random`. Knows nothing of models, prompts or rewards.
"""

import itertools
import random
from collections.abc import Iterator, Mapping, Set
from typing import Any

from rl_reasoner.dataset.tasks.base import Problem, Task, picker, sha256_int
from rl_reasoner.dataset.tasks.code import FUNCTION_TASK
from rl_reasoner.dataset.tasks.games import GRID_TASK, GUESS_TASK
from rl_reasoner.dataset.tasks.instructions import INSTRUCTION_TASK
from rl_reasoner.dataset.tasks.instructions_tiny import TINY_INSTRUCTION_TASK
from rl_reasoner.dataset.tasks.maths import MATHS_TASKS
from rl_reasoner.errors import UserError, unknown

_LANGUAGE = (TINY_INSTRUCTION_TASK, INSTRUCTION_TASK)
_TASKS = (*MATHS_TASKS, FUNCTION_TASK, *_LANGUAGE, GUESS_TASK, GRID_TASK)
TASKS: Mapping[str, Task] = {task.name: task for task in _TASKS}
SPLITS = ("train", "validation", "test", "ood")
_SHARES = {"train": 70, "validation": 80}  # percent of the keys, cumulated; the rest is test
_PATIENCE = 2000  # draws without a new problem before the rest is counted out


def generate_problems(
    task: str,
    *,
    split: str,
    count: int,
    seed: int = 0,
    levels: range | None = None,
    distinct: bool = True,
) -> list[Problem]:
    """Generate `count` problems of `task` in `split`, levels evenly mixed, in random order.

    `levels` narrows the split's own levels, or reaches up to those of `ood`: the hash of the key
    keeps the other splits apart there too, but `ood` is then no longer above what was trained on.
    With `distinct` no two problems share a key, and small levels give what they have. Another seed
    draws others (not disjoint) out of the same split. Raises `UserError` for an unknown task, split
    or level, and where fewer distinct problems exist.
    """
    if task not in TASKS:
        raise unknown("task", task, TASKS)
    if split not in SPLITS:
        raise unknown(f"split of task {task}", split, SPLITS)
    kind = TASKS[task]
    wanted = _levels(kind, split, levels)
    keys: set[str] = set()
    drawn: list[Problem] = []
    misses = 0
    for problem in _draws(kind, f"{task}|{split}|{seed}", wanted):
        if len(drawn) >= count or misses == _PATIENCE:
            break
        misses += 1
        if _belongs(problem, split) and not (distinct and problem.key in keys):
            keys.add(problem.key)
            drawn.append(problem)
            misses = 0
    if len(drawn) < count:
        drawn += _rest(kind, split, wanted, keys, count - len(drawn))
    return drawn


def _draws(task: Task, seed: str, levels: range) -> Iterator[Problem]:
    """Problems of any split without end, each level as often as the others."""
    picks = (picker(f"{seed}|{number}") for number in itertools.count())
    for pick in picks:
        level = levels[pick(len(levels))]
        problem = task.make(level, pick)
        while problem is None:
            problem = task.make(level, next(picks))
        yield problem


def _levels(task: Task, split: str, levels: range | None) -> range:
    own = task.ood if split == "ood" else task.levels
    if levels is None:
        return own
    able = own if split == "ood" else range(task.levels.start, task.ood.stop)
    if not levels or any(level not in able for level in levels):
        raise UserError(
            f"task {task.name!r}, split {split!r}: expected the smallest and the largest of "
            f"levels {able[0]} to {able[-1]}, got [{levels.start}, {levels.stop - 1}]"
        )
    return levels


def _belongs(problem: Problem, split: str) -> bool:
    if split == "ood":  # by its levels
        return True
    percent = sha256_int(f"split|{problem.task}|{problem.family or problem.key}") % 100
    return split == next((name for name, end in _SHARES.items() if percent < end), "test")


def _rest(task: Task, split: str, levels: range, keys: Set[str], count: int) -> list[Problem]:
    """`count` problems that are not among `keys`, out of all there are."""
    every = (problem for level in levels for problem in _every(task, level))
    rest = {
        problem.key: problem
        for problem in every
        if problem.key not in keys and _belongs(problem, split)
    }
    if len(rest) < count:
        raise UserError(
            f"task {task.name!r}, split {split!r}, levels {levels[0]} to {levels[-1]}: there are "
            f"{len(keys) + len(rest)} distinct problems, fewer than {len(keys) + count}"
        )
    return sorted(rest.values(), key=lambda problem: sha256_int(f"rest|{problem.key}"))[:count]


def _every(task: Task, level: int) -> Iterator[Problem]:
    """All problems of a level: every sequence of choices in turn, like an odometer."""
    wheels: list[tuple[int, int]] = []  # what each choice was, and out of how many
    while True:
        depth = 0

        def pick(n: int) -> int:
            nonlocal depth
            if depth == len(wheels):
                wheels.append((0, n))
            depth += 1
            return wheels[depth - 1][0]

        problem = task.make(level, pick)
        if problem:
            yield problem
        while wheels and wheels[-1][0] + 1 == wheels[-1][1]:
            wheels.pop()
        if not wheels:
            return
        wheels[-1] = (wheels[-1][0] + 1, wheels[-1][1])


def careless(problem: Problem, share: float, rng: random.Random) -> dict[str, Any]:
    """The columns of the problem's row that a careless writer changes, as the task has it.

    `share` (0 to 1) is how careless: the share of wrong steps in `modular`, of wrong programs in
    `functions`, of responses that forget an instruction in `instructions_tiny`, of random guesses
    in `guess`, of random steps in `grid`. Raises `UserError` for a task without such a writer.
    """
    writer = TASKS[problem.task].careless
    if writer is None:
        able = ", ".join(task.name for task in _TASKS if task.careless)
        raise UserError(f"task {problem.task!r} has no noise; the tasks that have: {able}")
    return writer(problem, share, rng)
