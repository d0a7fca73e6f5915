"""What a made-up problem and the task that writes it are; the other modules here hold the tasks.

Choices come from SHA-256, not from `random`: problems are the same everywhere.
"""

import hashlib
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Pick = Callable[[int], int]  # pick(n) is a number in range(n)


@dataclass(frozen=True)
class Problem:
    """One problem: its text, a chain of thought that solves it ("" for none), and the answer.

    A start of a game has no answer either, but a column `start`.

    `level` is the task's measure of difficulty. `key` writes operands and operators in canonical
    form: problems that differ only by `3+4` against `4+3` share it, and so share a split. So do
    problems of one `family`, where there are any.
    `columns` is what the task's rows have besides, such as what a reward needs.
    """

    task: str
    problem: str
    chain: str
    answer: str
    level: int
    key: str
    columns: Mapping[str, Any] = field(default_factory=dict, hash=False)
    family: str = ""

    def row(self) -> dict[str, Any]:
        """The problem as a row of a data set (JSON values only)."""
        own = self.key if self.family else self.problem
        row = {
            "id": f"{self.task}-{sha256_int(own) % 16**10:010x}",
            "problem": self.problem,
            "answer": self.answer,
            "chain": self.chain,
            "task": self.task,
            "level": self.level,
            **self.columns,
        }
        return {k: v for k, v in row.items() if v != "" or k not in ("chain", "answer")}


# A careless writer: (problem, how careless from 0 to 1, choices) -> the columns it changes.
Careless = Callable[[Problem, float, random.Random], dict[str, Any]]


@dataclass(frozen=True)
class Task:
    """A kind of problem: `make(level, pick)` writes one, or None where the choices give none.

    `careless`, where there is one, writes its completions with faults. `judge` is the shipped
    reward that judges its rows, with its options.
    """

    name: str
    about: str
    levels: range
    ood: range
    make: Callable[[int, Pick], Problem | None]
    careless: Careless | None = None
    judge: str = "math_answer"
    judge_options: Mapping[str, Any] = field(default_factory=dict)


def sha256_int(text: str) -> int:
    """A number of 256 bits made from `text`."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest(), "big")


def picker(text: str) -> Pick:
    """Choices out of 256 bits made from `text`; a problem needs far fewer than it holds."""
    number = sha256_int(text)

    def pick(n: int) -> int:
        nonlocal number
        number, choice = divmod(number, n)
        return choice

    return pick
