"""Scores a batch with a reward, under limits: in a process, on a thread, or on a Ray cluster.

The front door of the room: training, evaluation and `rl-reasoner score` come in here.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rl_reasoner.errors import UserError, unknown
from rl_reasoner.scoring import ray_cluster
from rl_reasoner.scoring.limits import Limits
from rl_reasoner.scoring.outcome import NOT_ITS_ROW
from rl_reasoner.scoring.reward import Reward, name_of
from rl_reasoner.scoring.runner import SEEDS, runner_of
from rl_reasoner.types import Completion, Outcome, Row, own_text_of

APPLIES = "rewards"
"""The column with the names of the rewards that a row gets; rows without it get all."""
ROW_SEED = "row_seed"
"""The column with the seed of a row's place in the run, for rewards that name it (as a `Column`):
what is drawn from it is the same wherever the reward runs, and after a resume."""

POLICY_TEXT = "policy_text"
"""The column with what the policy itself wrote, where tools or an environment have answered in the
middle of completions. Rewards with `policy_text` read it; others may name it. Elsewhere it is the
completion's text."""
POLICY_IDS = "policy_ids"
"""The column with the token ids of that."""


def score_batch(
    fn: Callable[..., Any],
    completions: Sequence[Completion],
    columns: Mapping[str, Any],
    limits: Limits | None = None,
) -> list[Outcome]:
    """Score completions with a `Reward` or any trl reward function, row faults kept apart.

    `columns` holds one value a row, with trl's `prompts` for the prompts. The function runs in a
    killable process under `limits` where it can (`runner`); a row that faults is tried once more,
    alone where the whole batch failed; a wrong value is a fault at once.
    """
    limits = limits or Limits()
    if isinstance(fn, Reward):
        completions, columns = _as_read(fn, completions, columns)
        if ROW_SEED in fn.missing and SEEDS in columns:
            columns = {**columns, ROW_SEED: columns[SEEDS]}
    if limits.on == "ray" and isinstance(fn, Reward):
        return ray_cluster.score_on_ray(fn, completions, columns, limits)
    return runner_of(fn, limits).score(completions, columns)


def reads_own(fn: Reward) -> bool:
    """Whether a reward reads what the policy wrote beside the whole completion."""
    return POLICY_TEXT in (*fn.columns, *fn.missing)


def _as_read(
    fn: Reward, completions: Sequence[Completion], columns: Mapping[str, Any]
) -> tuple[Sequence[Completion], Mapping[str, Any]]:
    """The completions and columns as `fn` reads them: whole, or what the policy wrote of them."""
    named = reads_own(fn)
    if not fn.policy_text and not named:
        return completions, columns
    known = columns.get(POLICY_TEXT) or [None] * len(completions)
    own = [own_text_of(c) if t is None else t for t, c in zip(known, completions, strict=True)]
    if named:
        columns = {**columns, POLICY_TEXT: own}
    if not fn.policy_text:
        return completions, columns
    if POLICY_IDS in columns:
        columns = {**columns, "completion_ids": columns[POLICY_IDS]}
    return own, columns


def applies(name: str, row_names: Sequence[str] | str | None) -> bool:
    """Whether the reward `name` is one of `row_names`: a list, a text with commas, None for all."""
    if row_names is None:
        return True
    listed = row_names.split(",") if isinstance(row_names, str) else row_names
    return any(name == one.strip() for one in listed)


def row_settings(row: Row, of_row: str) -> list[str] | None:
    """The names of the rewards that a row asks for, None for all.

    Raises `UserError`, which calls the row `of_row`, for what is no list of names, and for a row's
    `max_tokens` that is no number of tokens.
    """
    longest, asked = row.get("max_tokens"), row.get(APPLIES)
    if longest is not None and (type(longest) is not int or longest < 1):
        raise UserError(f"{of_row}: max_tokens is {longest!r:.40}, not a whole number above 0")
    if asked is None:
        return None
    listed = asked.split(",") if isinstance(asked, str) else asked
    if not isinstance(listed, (list, tuple)) or not all(isinstance(key, str) for key in listed):
        raise UserError(f"{of_row}: its rewards are {listed!r:.40}, not a list of names")
    if not listed:
        raise UserError(f"{of_row}: its list of rewards is empty")
    return [*map(str.strip, listed)]


def name_rewards(row: Row, rewards: Mapping[str, Callable[..., Any]]) -> Row:
    """The row, its rewards by the functions' names: it may have them as the recipe does.

    Raises `UserError` for rewards that are none of `rewards` (by their names in the recipe), and
    as `row_settings` does.
    """
    of_row = f"row {row.get('id', row['problem'])!r:.60}"
    asked = row_settings(row, of_row)
    if asked is None:
        return row
    titles = [name_of(function) for function in rewards.values()]
    names = [name_of(rewards[key]) if key in rewards else key for key in asked]
    for name in names:
        if name not in titles:
            raise unknown("reward", name, rewards, owner=f"{of_row}: the recipe")
    return {**row, APPLIES: names}


def score_own_rows(
    fn: Callable[..., Any],
    completions: Sequence[Completion],
    columns: Mapping[str, Any],
    limits: Limits | None = None,
) -> list[Outcome]:
    """As `score_batch`, of the rows that the reward applies to; the others cost nothing.

    A row with a column `rewards` gets the rewards named there, by the functions' names. The others
    abstain on it: they are not called.
    """
    count = len(completions)
    names = (None if getattr(fn, "of_every_row", False) else columns.get(APPLIES)) or [None] * count
    mine = [i for i in range(count) if applies(name_of(fn), names[i])]
    if len(mine) == count:
        return score_batch(fn, completions, columns, limits)
    outcomes: list[Outcome] = [NOT_ITS_ROW] * count
    if mine:
        part = columns_of_rows(columns, mine, count)
        scores = score_batch(fn, [completions[i] for i in mine], part, limits)
        for i, score in zip(mine, scores, strict=True):
            outcomes[i] = score
    return outcomes


def own_rows(outcomes: Sequence[Outcome]) -> list[bool]:
    """Of which rows `score_own_rows` called the reward."""
    return [outcome is not NOT_ITS_ROW for outcome in outcomes]


def columns_of_rows(columns: Mapping[str, Any], rows: Sequence[int], count: int) -> dict[str, Any]:
    """The columns of some rows of a batch of `count`."""
    return {key: _of_rows(key, value, rows, count) for key, value in columns.items()}


def _of_rows(name: str, value: Any, rows: Sequence[int], count: int) -> Any:
    """A column's values of some rows; trl's `log_extra` from some logs None for the others."""
    if isinstance(value, (list, tuple)):
        return [value[i] for i in rows]
    if name != "log_extra":
        return value

    def spread(column: str, values: Sequence[Any]) -> None:
        given = dict(zip(rows, values, strict=True))
        value(column, [given.get(i) for i in range(count)])

    return spread
