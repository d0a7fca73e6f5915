"""Guess a number: a game of several turns that takes little of anything.

The row says the range in its `problem` ("23-38?") and the number in its `start`. A turn is a
guess; the game tells whether the number is higher or lower. The right guess makes the rewards of
the turns 1 together; half of that is for what hints tell of the number, in bits.
"""

import math
import re
from typing import Any

from rl_reasoner.types import Row

_NUMBER = re.compile(r"-?\d{1,9}")
_RANGE = re.compile(r"(\d{1,9})-(\d{1,9})")


class Guess:
    """The number of a row, to be guessed in `guesses` turns."""

    bounded = True

    def __init__(self, guesses: int = 5) -> None:
        self._left = guesses
        self._number = self._low = self._high = 0
        self._size = 2  # of the range, at least
        self._paid = 0.0

    def reset(self, row: Row) -> None:
        """Hide the row's number; its problem is what the policy is asked."""
        self._low, self._high = map(int, _RANGE.findall(row["problem"])[-1])
        self._size = max(2, self._high - self._low + 1)
        self._number = int(row["start"])

    def step(self, completion: str) -> tuple[str, float, bool]:
        """Whether the number is higher or lower than the guess."""
        self._left -= 1
        guess = _NUMBER.fullmatch(completion.strip())
        if guess is None:
            return "a number", 0.0, self._left <= 0
        said = hint(int(guess[0]), self._number)
        before, self._paid = self._paid, self._worth(int(guess[0]))
        return said, self._paid - before, not said or self._left <= 0

    def _worth(self, guess: int) -> float:
        """The rewards so far, with this guess: exact in binary, so that they add up to 1."""
        self._low, self._high = narrowed(self._low, self._high, guess, self._number)
        if guess == self._number:
            return 1.0
        bits = math.log2(self._size / (self._high - self._low + 1)) / math.log2(self._size)
        return round(bits / 2 * 1024) / 1024


def narrowed(low: int, high: int, guess: int, number: int) -> tuple[int, int]:
    """The range that is left of one, after a guess at a number in it."""
    if guess == number:
        return number, number
    return (max(low, guess + 1), high) if guess < number else (low, min(high, guess - 1))


def hint(guess: int, number: int) -> str:
    """What the game says of a guess; nothing of the right one."""
    return "" if guess == number else "higher" if number > guess else "lower"


def play(first: int, last: int, number: int, guesses: int, choose: Any) -> list[list[str]]:
    """A game as pairs of a guess and what was said of it.

    `choose(lowest, highest)` is the next guess, by what is known of the number.
    """
    played: list[list[str]] = []
    while len(played) < guesses:
        guess = choose(first, last)
        said = hint(guess, number)
        played.append([str(guess), said])
        if not said:
            break
        first, last = narrowed(first, last, guess, number)
    return played
