"""Maths tasks made on the spot: problems with chains of thought and answers known to be right.

Each task is one small function that writes a problem from the choices it is dealt; everything else
(levels, splits, seeds, distinctness) is common to all. A split is a matter of the problem itself:
the hash of its `key` decides whether it is training, validation or test material, so that no seed
ever mixes them; `ood` has levels of its own, above those of the other splits. Problems are the
same on every platform and Python version: choices come from SHA-256, not from `random`.
Standard library only; knows nothing of models, prompts or rewards.
"""

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rl_reasoner.errors import UserError, unknown

SPLITS = ("train", "validation", "test", "ood")
_SHARES = {"train": 70, "validation": 80}  # percent of the keys, cumulated; the rest is test
_PATIENCE = 2000  # draws without a new problem before the rest is counted out
Pick = Callable[[int], int]  # pick(n) is a number in range(n)


@dataclass(frozen=True)
class Problem:
    """One problem: its text, a chain of thought that solves it, and the answer.

    `level` is the task's measure of difficulty. `key` writes operands and operators in canonical
    form: problems that differ only by `3+4` against `4+3` share it, and so share a split.
    """

    task: str
    problem: str
    chain: str
    answer: str
    level: int
    key: str

    def row(self) -> dict[str, Any]:
        """The problem as a row of a data set (JSON values only)."""
        return {
            "id": f"{self.task}-{_hash(f'{self.task}|{self.key}') % 16**10:010x}",
            "problem": self.problem,
            "answer": self.answer,
            "chain": self.chain,
            "task": self.task,
            "level": self.level,
        }


@dataclass(frozen=True)
class Task:
    """A kind of problem: `make(level, pick)` writes one, or None where the choices give none."""

    name: str
    about: str
    levels: range
    ood: range
    make: Callable[[int, Pick], Problem | None]


def generate(
    task: str,
    *,
    split: str,
    count: int,
    seed: int = 0,
    levels: range | None = None,
    distinct: bool = True,
) -> list[Problem]:
    """`count` problems of `task` out of `split`, levels evenly mixed, in random order.

    `levels` narrows the split's own levels. With `distinct` no two problems share a key, and small
    levels give what they have. Another seed draws others (not disjoint) out of the same split.
    Raises `UserError` for an unknown task, split or level, and where fewer distinct problems exist.
    """
    if task not in TASKS:
        raise unknown("task", task, TASKS)
    if split not in SPLITS:
        raise unknown(f"split of task {task}", split, SPLITS)
    kind = TASKS[task]
    wanted = _levels(kind, split, levels)
    found: dict[str, Problem] = {}
    drawn: list[Problem] = []
    misses = number = 0
    while len(drawn) < count:
        pick = _picker(f"{task}|{split}|{seed}|{number}")
        number += 1
        problem = kind.make(wanted[pick(len(wanted))], pick)
        if problem and _belongs(problem, split) and not (distinct and problem.key in found):
            found[problem.key] = problem
            drawn.append(problem)
            misses = 0
            continue
        misses += 1
        if distinct and misses == _PATIENCE:
            return drawn + _rest(kind, split, wanted, found, count - len(drawn))
    return drawn


def _levels(task: Task, split: str, levels: range | None) -> range:
    own = task.ood if split == "ood" else task.levels
    if levels is None:
        return own
    if not levels or any(level not in own for level in levels):
        raise UserError(
            f"task {task.name!r}, split {split!r}: there are levels {own[0]} to {own[-1]}, "
            f"asked was {levels!r}"
        )
    return levels


def _belongs(problem: Problem, split: str) -> bool:
    if split == "ood":  # by its levels
        return True
    percent = _hash(f"split|{problem.task}|{problem.key}") % 100
    return split == next((name for name, end in _SHARES.items() if percent < end), "test")


def _rest(
    task: Task, split: str, levels: range, found: Mapping[str, Problem], count: int
) -> list[Problem]:
    """`count` problems that are not among `found`, out of all there are."""
    every = (problem for level in levels for problem in _every(task, level))
    rest = {
        problem.key: problem
        for problem in every
        if problem.key not in found and _belongs(problem, split)
    }
    if len(rest) < count:
        raise UserError(
            f"task {task.name!r}, split {split!r}, levels {levels[0]} to {levels[-1]}: there are "
            f"{len(found) + len(rest)} distinct problems, asked were {len(found) + count}"
        )
    return sorted(rest.values(), key=lambda problem: _hash(f"rest|{problem.key}"))[:count]


# ---------------------------------------------------------------------------------- choices


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest(), "big")


def _picker(text: str) -> Pick:
    """Choices out of 256 bits made from `text`; a problem needs far fewer than it holds."""
    number = _hash(text)

    def pick(n: int) -> int:
        nonlocal number
        number, choice = divmod(number, n)
        return choice

    return pick


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


# ---------------------------------------------------------------------------------- tasks


def _apply(a: int, operator: str, b: int) -> int:
    return a + b if operator == "+" else a - b if operator == "-" else a * b


def _left_nested(operands: Sequence[int], operators: str) -> str:
    """The expression that takes the operators from left to right, with no needless parentheses."""
    text, last = str(operands[0]), "*"
    for operator, operand in zip(operators, operands[1:], strict=True):
        if operator == "*" and last != "*":
            text = f"({text})"
        text, last = f"{text}{operator}{operand}", operator
    return text


def _key(operands: Sequence[int], operators: str) -> str:
    """Operands and operators in a row, the first two in order where they may change places."""
    first = list(operands[:2])
    if operators[0] != "-":
        first.sort()
    rest = [*first, *operands[2:]]
    return str(rest[0]) + "".join(f"{o}{n}" for o, n in zip(operators, rest[1:], strict=True))


def _modular(level: int, pick: Pick) -> Problem:
    operands = [pick(10) for _ in range(level)]
    operators = "".join("+-*"[pick(3)] for _ in range(level - 1))
    total, steps = operands[0], []
    for operator, operand in zip(operators, operands[1:], strict=True):
        result = _apply(total, operator, operand) % 10
        steps.append(f"{total}{operator}{operand}={result}")
        total = result
    text = f"({_left_nested(operands, operators)})%10="
    return Problem("modular", text, ";".join(steps), str(total), level, _key(operands, operators))


def noisy_chain(problem: Problem, share: float, rng: random.Random) -> tuple[str, str]:
    """The chain and answer of a `modular` problem as a careless writer gives them.

    Each step's result is, with probability `share`, a random digit (the right one in one case of
    ten); the next step goes on from it, and the answer is the last result.
    """
    if problem.task != "modular":
        raise UserError(f"noisy_chain is for the task 'modular', not for {problem.task!r}")
    steps, result = [], problem.chain[0]
    for step in problem.chain.split(";"):
        operator, operand = step[1], step[2]
        right = str(_apply(int(result), operator, int(operand)) % 10)
        wrong = rng.random() < share
        steps.append(f"{result}{operator}{operand}=")
        result = str(int(rng.random() * 10)) if wrong else right
        steps[-1] += result
    return ";".join(steps), result


TASKS: Mapping[str, Task] = {
    task.name: task
    for task in (
        Task(
            "modular",
            "digit expressions modulo 10, worked from left to right; level: operands",
            range(2, 6),
            range(6, 8),
            _modular,
        ),
    )
}
