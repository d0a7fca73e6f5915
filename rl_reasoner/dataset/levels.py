"""The levels of rows: the column `level`, a number or a text, such as a generator's or MATH's.

Levels of different tasks are different levels: level 2 of one says nothing about level 2 of
another. Knows nothing of what levels are used for.
"""

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from rl_reasoner.errors import UserError, did_you_mean
from rl_reasoner.types import Row

LEVEL = "level"
_MOST = 100  # levels: each has curves of its own
_ALIKE = ("difficulty", "hardness", "grade", "stage", "tier")  # what others call it


@dataclass(frozen=True)
class Levels:
    """The levels that rows have, easiest number first.

    `names`: "3", or "gcd/3" where the rows are of several tasks. `numbers`: each level as a number,
    None where one has none ("hard"; "Level 3" has). `of_rows`: each row's place in `names`.
    """

    names: tuple[str, ...]
    numbers: tuple[float, ...] | None
    of_rows: tuple[int, ...]


def levels_of(rows: Sequence[Row]) -> Levels:
    """The levels of `rows`, which have at least the columns `level` and (may be) `task`.

    Raises `UserError` for rows without a level, and where all rows have the same one.
    """
    columns = dict.fromkeys(str(name) for row in rows for name in row)
    named = [_text(row.get(LEVEL)) for row in rows]
    if LEVEL not in columns or not any(named):
        there = next((name for name in _ALIKE if name in columns), None)
        hint = f" Is it {there!r}?" if there else did_you_mean(LEVEL, columns)
        raise UserError(
            f"the rows have no level, which a curriculum of levels needs.{hint} Rows of a task "
            "have one; for a file, set `columns: {level: NAME}` to the column that holds it"
        )
    if not all(named):
        first = named.index("")
        raise UserError(
            f"row {first + 1} has no level, but {rows[first].get(LEVEL)!r:.40}: a curriculum of "
            f"levels needs one in every row ({named.count(''):,} of {len(named):,} lack it)"
        )
    tasks = [_text(row.get("task")) for row in rows]
    several = len(set(tasks)) > 1
    pairs = list(zip(tasks if several else [""] * len(rows), named, strict=True))
    order = sorted(set(pairs), key=lambda pair: (pair[0], *in_order(pair[1])))
    if len(order) == 1:
        raise UserError(
            f"all rows have level {named[0]}: a curriculum of levels needs at least two"
        )
    if len(order) > _MOST:
        raise UserError(
            f"the rows have {len(order):,} levels, more than {_MOST}: too few rows would tell of "
            "each. Round them, or use the curriculum of prompts"
        )
    places = {pair: place for place, pair in enumerate(order)}
    numbers = tuple(_number(level) for _, level in order)
    return Levels(
        names=tuple("/".join(filter(None, pair)) for pair in order),
        numbers=numbers if all(map(math.isfinite, numbers)) else None,
        of_rows=tuple(places[pair] for pair in pairs),
    )


def in_order(level: str) -> tuple[float, str]:
    """What levels are sorted by: 2 before 10, "Level 2" before "Level 10", other texts last."""
    return _number(level), level


def _text(value: Any) -> str:
    """A level or task as it is written; empty for none. 3, 3.0 and "3" are the same."""
    if value is None or isinstance(value, bool):
        return ""
    if isinstance(value, int | float):
        whole = math.isfinite(value) and value == int(value)
        return str(int(value)) if whole else str(value) if math.isfinite(value) else ""
    return str(value).strip()


def _number(level: str) -> float:
    """The number that `level` is or ends with; infinity where it has none."""
    with suppress(ValueError):
        return float(level.split()[-1])
    return math.inf
