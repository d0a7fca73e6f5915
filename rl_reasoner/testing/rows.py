"""The rows that a reward is examined on: a user's, or those of a task."""

from collections.abc import Callable, Sequence
from typing import Any

from rl_reasoner.dataset.rows import lint
from rl_reasoner.dataset.sets import read_rows
from rl_reasoner.dataset.tasks.generate import TASKS, generate_problems
from rl_reasoner.errors import UserError, did_you_mean
from rl_reasoner.scoring.batch import POLICY_TEXT
from rl_reasoner.scoring.reward import Reward, name_of
from rl_reasoner.types import Row

_ROWS = 8
_LEAST = 3


def rows_for(fn: Callable[..., Any], data: Sequence[Row] | str | None) -> list[Row]:
    """Rows with the columns that `fn` names, their answers all different.

    They are those of `data` (rows, or their file) that training would take, by default those of the
    first task that has the columns. Raises `UserError` where too few can be had, with the reason.
    """
    named = fn.columns if isinstance(fn, Reward) else ["answer"]
    columns = [column for column in named if column not in ("prompt", POLICY_TEXT)]
    bad: list[str] = []
    if data is None:
        rows = _of_a_task(columns, name_of(fn))
    else:
        rows, bad = _of_data(columns, name_of(fn), data)
    different = {str(row.get("answer", index)): row for index, row in enumerate(rows)}
    if len(different) < _LEAST:
        few = "the kit needs at least three rows with different answers"
        raise UserError(*bad[:_LEAST], few)
    return list(different.values())[:_ROWS]


def _of_a_task(columns: Sequence[str], name: str) -> list[Row]:
    for task in TASKS:
        problems = generate_problems(task, split="train", count=4 * _ROWS, seed=0)
        rows = [problem.row() for problem in problems]
        if all(column in rows[0] for column in columns):
            return rows
    known = {column for task in TASKS for column in _columns_of(task)}
    lacking = next((column for column in columns if column not in known), columns[0])
    raise UserError(
        f"reward {name} needs the column {lacking!r}, which no built-in task has: "
        "give rows that have it with --data FILE"
    )


def _columns_of(task: str) -> Row:
    [problem] = generate_problems(task, split="train", count=1, seed=0)
    return problem.row()


def _of_data(
    columns: Sequence[str], name: str, data: Sequence[Row] | str
) -> tuple[list[Row], list[str]]:
    """The good rows of `data` that have the columns, and what is wrong with its bad ones."""
    source = data if isinstance(data, str) else "the data"
    given = [dict(row) for row in (read_rows(data) if isinstance(data, str) else data)]
    rows: list[Row] = []
    bad: list[str] = []
    for number, row in enumerate(given, 1):  # each alone: an examination may ask one thing twice
        good, said = lint([row], source) if "problem" in row else ([row], [])
        rows += good
        bad += [f"{source}, row {number}:{text.partition(', row 1:')[2]}" for text in said]
    for column in columns:
        if not any(column in row for row in rows or given):
            there = list(dict.fromkeys(str(key) for row in rows or given for key in row))
            hint = did_you_mean(column, there) or f" It has: {', '.join(there)}."
            raise UserError(f"reward {name} needs the column {column!r}; {source} has none.{hint}")
    whole = [row for row in rows if all(column in row for column in columns)]
    return whole, bad
