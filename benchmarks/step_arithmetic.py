"""What `step_arithmetic` pays: the chains of people, and sums that are made up.

    python benchmarks/step_arithmetic.py              # of ../shared/data/gsm8k_train.jsonl
    python benchmarks/step_arithmetic.py --chains 400 --guesses 200

Of GSM8K's training rows, drawn by a fixed seed, it prints which share of the solutions gets 1.0 and
which 0.0; and for how many problems the answer of another problem is reached from the numbers of
this one by one right claim, or by two: a chain that would be paid without having solved anything.
Before claims had to take all their numbers from the problem, one claim reached every answer.
"""

import argparse
import random
import re
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

from rl_reasoner.errors import UserError
from rl_reasoner.files import read_jsonl
from rl_reasoner.rewards.step_arithmetic import numbers_given, step_arithmetic
from rl_reasoner.types import Row

GSM8K = Path(__file__).resolve().parent.parent.parent / "shared/data/gsm8k_train.jsonl"
_CALCULATION = re.compile(r"<<[^<>\n]{0,200}>>")
_BESIDE = 7  # whose answer is the guess: that of the row so many places on


def paid(rows: list[Row]) -> list[float]:
    """What the solutions of rows get."""
    found = []
    for row in rows:
        text = _CALCULATION.sub("", row["solution"]).replace("####", "The answer is")
        value = step_arithmetic(text, prompt=row["problem"]).value
        found.append(0.0 if value is None else value)
    return found


def results(some: set[Fraction], others: set[Fraction]) -> Iterator[Fraction]:
    """What one claim comes to with a number of each kind."""
    for a in some:
        for b in others:
            yield from (a + b, a - b, b - a, a * b)
            if b:
                yield a / b
            if a:
                yield b / a


def claims_to(problem: str, guess: Fraction) -> int:
    """How many claims lead from a problem's numbers to a guess: 0, 1, 2, or 3 for more."""
    given = numbers_given(problem)
    first = {*results(given, given)}
    if guess in given:
        return 0
    if guess in first:
        return 1
    return 2 if any(value == guess for value in results(first, given)) else 3


def main() -> int:
    """Print the shares; 2 where there are no rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=Path, default=GSM8K, help="GSM8K's training rows (JSONL)")
    parser.add_argument("--chains", type=int, default=400)
    parser.add_argument("--guesses", type=int, default=200)
    given = parser.parse_args()
    if not given.rows.is_file():
        print(UserError(f"{given.rows} is not there: give GSM8K's rows with --rows"))
        return 2
    rows = random.Random(0).sample([*read_jsonl(given.rows)], given.chains)
    values = paid(rows)
    ones, zeros = values.count(1.0) / len(values), values.count(0.0) / len(values)
    print(f"{len(values)} solutions: {ones:.1%} get 1.0, {zeros:.1%} get 0.0")
    reached = []
    for row, other in zip(rows[: given.guesses], rows[_BESIDE:], strict=False):
        answer = str(other["answer"]).replace(",", "")
        if answer.lstrip("-").isdecimal():
            reached.append(claims_to(row["problem"], Fraction(answer)))
    one, two = (sum(many <= most for many in reached) / len(reached) for most in (1, 2))
    print(f"{len(reached)} guesses: {one:.1%} within one claim, {two:.1%} within two")
    return 0


if __name__ == "__main__":
    sys.exit(main())
