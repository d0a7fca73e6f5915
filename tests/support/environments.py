"""Environments for tests: some do as they should, the others each what they should not."""

import os
import random
import time
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class Echo:
    """Says a turn back, with what it drew; done at "stop"; asynchronous steps."""

    def __init__(self, pay: float = 0.5) -> None:
        self.pay = pay
        self.turns = 0

    def reset(self, row: Row) -> str:
        return f"start {row['start']} {random.randint(0, 999)}"

    async def step(self, completion: str) -> tuple[str, float, bool]:
        self.turns += 1
        said = f"{self.turns} {completion} {random.randint(0, 999)}"
        return said, self.pay, completion == "stop"


KEPT: list[bytearray] = []


class Hoards:
    """Keeps all the memory of its process at "hoard"; else takes a little and gives it back."""

    def reset(self, row: Row) -> None:
        """Nothing to begin with."""

    def step(self, completion: str) -> tuple[str, float, bool]:
        size = 64 << 20
        while completion == "hoard":
            try:
                KEPT.append(bytearray(size))
            except MemoryError:
                if size < 1 << 16:
                    raise
                size //= 2
        return str(len(bytearray(1 << 20))), 1.0, False


class Hostile:
    """Does in a step what the turn says."""

    def reset(self, row: Row) -> None:
        if row["start"] == "raise":
            raise KeyError("no start")

    def step(self, completion: str) -> Any:
        good = "fine", 1.0, False
        if completion == "raise":
            raise ValueError("no")
        if completion == "exit":
            os._exit(3)
        if completion == "quit":
            raise SystemExit("enough")
        if completion == "hang":
            time.sleep(600)
        if completion == "fork":
            return good if os.fork() else ("child", 5.0, False)
        if completion == "shout":
            for descriptor in range(3, 20):
                try:
                    os.write(descriptor, b"x" * 100_000)
                except OSError:
                    continue
        wrong = {
            "huge": ("y" * 10_000_000, 1.0, False),
            "many": (["a"] * 3, 1.0, False),
            "nothing": None,
            "nan": ("", float("nan"), False),
            "text reward": ("", "1", False),
            "no done": ("", 1.0, None),
            "role": ([{"role": "assistant", "content": "x"}], 1.0, False),
            "bytes": (b"x", 1.0, False),
            "no reward": ("fine", None, False),
        }
        return wrong.get(completion, good)


class Fickle:
    """Never answers the same twice."""

    def reset(self, row: Row) -> None: ...

    def step(self, completion: str) -> tuple[str, float, bool]:
        if completion == "exit":
            os._exit(3)
        return str(time.time_ns()), 0.0, False


class Slow:
    """Takes a while, and says how many guesses there were; done at the third."""

    def reset(self, row: Row) -> None:
        self.turns = 0

    def step(self, completion: str) -> tuple[str, float, bool]:
        self.turns += 1
        time.sleep(0.04)
        return f"{self.turns} of 3", len(set(completion)) / 10, self.turns == 3


FILE = Path(__file__)
