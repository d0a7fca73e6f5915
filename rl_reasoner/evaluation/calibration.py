"""How far a judge agrees with labels: before it is trained on, and by figures with intervals.

Labelled rows have a `completion`, the problem (`problem` or `prompt`) and a `label` from 0 to 1;
`answer` where the judge is shown one. Yes is 0.5 and more, of labels and of scores. Problems are
the independent units. The order in which completions are shown, and their length, should not
matter: both are measured. Knows nothing of the command line.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rl_reasoner.errors import UserError, did_you_mean
from rl_reasoner.evaluation.statistics import (
    Interval,
    Table,
    bootstrap_of_sums,
    clustered_interval,
    cohens_kappa,
    wilson,
)
from rl_reasoner.foreign import number
from rl_reasoner.judging.judge import ModelJudge
from rl_reasoner.types import Fault, Outcome, Row, Score

YES = 0.5


@dataclass(frozen=True)
class Figure:
    """A figure with its interval, and how many rows or pairs it is of; in words what it means."""

    name: str
    value: float | None
    interval: Interval | None
    count: int
    meaning: str = ""

    def to_json(self) -> dict[str, Any]:
        """As JSON values; None for what cannot be computed."""
        ends = None if self.interval is None else [_finite(end) for end in self.interval]
        return {"value": _finite(self.value), "interval": ends, "count": self.count}


@dataclass(frozen=True)
class Calibration:
    """What a judge's verdicts on labelled rows came to."""

    rows: int
    figures: tuple[Figure, ...]
    counts: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        figures = {figure.name: figure.to_json() for figure in self.figures}
        return {"rows": self.rows, "figures": figures, "counts": dict(self.counts)}


def read_labels(rows: Sequence[Row], source: str) -> list[Row]:
    """The rows with `problem`, `completion` and `label` as they are needed here.

    Raises `UserError` with the first row that lacks one.
    """
    found = []
    for place, row in enumerate(rows, 1):
        problem = row.get("problem", row.get("prompt"))
        for name, value in (("problem", problem), ("completion", row.get("completion"))):
            if not isinstance(value, str):
                raise UserError(
                    f"{source}, row {place}: no text {name!r}.{did_you_mean(name, row)}"
                )
        given = row.get("label")
        label = float(given) if isinstance(given, bool) else number(given)
        if label is None or not 0 <= label <= 1:
            raise UserError(f"{source}, row {place}: label is {given!r:.40}: expected 0 to 1")
        found.append({**row, "problem": problem, "label": label})
    if not found:
        raise UserError(f"{source}: it has no rows")
    return found


def calibrate(
    judge: ModelJudge, rows: Sequence[Row], *, reference: bool = False, most_pairs: int = 100
) -> Calibration:
    """Judge labelled rows (`read_labels`), and pairs of them in both orders; `reference` shows
    the judge each row's answer.

    Raises `UserError` where the judge failed on every row.
    """
    answers = [str(row["answer"]) if reference and row.get("answer") else None for row in rows]
    started = time.perf_counter()
    cases = [(row["problem"], row["completion"], a) for row, a in zip(rows, answers, strict=True)]
    before = judge.counts["cached"]
    outcomes = judge.points(cases)
    if all(isinstance(outcome, Fault) for outcome in outcomes):
        first = next(outcome for outcome in outcomes if isinstance(outcome, Fault))
        raise UserError(f"no row was judged: {first.message}")
    seconds = time.perf_counter() - started
    replies = judge.counts["cached"] - before
    figures = [*_agreement(rows, outcomes), _length_bias(rows, outcomes)]
    figures += _order_bias(judge, rows, answers, most_pairs)
    figures += _costs(judge, len(rows), seconds, all_cached=replies == len(rows) * judge.votes)
    return Calibration(len(rows), tuple(figures), judge.counts.to_json())


def _agreement(rows: Sequence[Row], outcomes: Sequence[Outcome]) -> list[Figure]:
    judged = [
        (row, v) for row, o in zip(rows, outcomes, strict=True) if (v := _value(o)) is not None
    ]
    groups = [row["problem"] for row, _ in judged]
    cells = [_cell(row["label"] >= YES, value >= YES) for row, value in judged]
    abstained = [float(isinstance(o, Score) and o.value is None) for o in outcomes]
    faults = [float(isinstance(o, Fault)) for o in outcomes]
    problems = [row["problem"] for row in rows]
    found = [
        _share("abstained", abstained, problems, "no verdict: left out below"),
        _share("faults", faults, problems, "the judge itself failed: left out below"),
        _share("agreement", [c[0] + c[3] for c in cells], groups, "same side of 0.5 as the label"),
    ]
    value, ends = math.nan, (math.nan, math.nan)
    if cells:
        value, ends = bootstrap_of_sums(cells, lambda s: cohens_kappa(*s.T), groups=groups)
    found.append(Figure("kappa", value, ends, len(cells), "agreement beyond chance: 0 none, 1 all"))
    for name, side, meaning in (
        ("said yes to right", True, "of rows with a label of 0.5 and more"),
        ("said yes to wrong", False, "of the others: 0 is best"),
    ):
        own = [(row, v) for row, v in judged if (row["label"] >= YES) is side]
        yes = [float(v >= YES) for _, v in own]
        found.append(_share(name, yes, [row["problem"] for row, _ in own], meaning))
    return found


def _cell(label: bool, verdict: bool) -> tuple[float, float, float, float]:
    """Both yes, only the label, only the verdict, neither."""
    return (
        float(label and verdict),
        float(label and not verdict),
        float(verdict and not label),
        float(not label and not verdict),
    )


def _share(name: str, values: Sequence[float], groups: Sequence[str], meaning: str) -> Figure:
    if not values:
        return Figure(name, None, None, 0, meaning)
    mean = math.fsum(values) / len(values)
    return Figure(name, mean, clustered_interval(values, groups), len(values), meaning)


def _length_bias(rows: Sequence[Row], outcomes: Sequence[Outcome]) -> Figure:
    """How much more the judge overrates the longer half of the completions than the shorter."""
    judged = [
        (row, v) for row, o in zip(rows, outcomes, strict=True) if (v := _value(o)) is not None
    ]
    meaning = "score less label, longer half minus shorter half: 0 is best"
    if len(judged) < 2:
        return Figure("length bias", None, None, len(judged), meaning)
    middle = float(np.median([len(row["completion"]) for row, _ in judged]))
    sums = []
    for row, value in judged:
        over = value - row["label"]
        long = len(row["completion"]) > middle
        sums.append((over * long, float(long), over * (not long), float(not long)))

    def gap(totals: Table) -> Table:
        difference: Table = totals[:, 0] / totals[:, 1] - totals[:, 2] / totals[:, 3]
        return difference

    value, ends = bootstrap_of_sums(sums, gap, groups=[row["problem"] for row, _ in judged])
    return Figure("length bias", value, ends, len(judged), meaning)


def _order_bias(
    judge: ModelJudge, rows: Sequence[Row], answers: Sequence[str | None], most: int
) -> list[Figure]:
    """A right and a wrong completion of a problem, shown in both orders."""
    by_problem: dict[str, dict[bool, int]] = {}
    for index, row in enumerate(rows):
        by_problem.setdefault(row["problem"], {}).setdefault(row["label"] >= YES, index)
    pairs = [(p[True], p[False]) for p in by_problem.values() if len(p) == 2][:most]
    asked = [
        (rows[a]["problem"], [rows[i]["completion"] for i in order], answers[a])
        for a, b in pairs
        for order in ((a, b), (b, a))
    ]
    said = judge.prefers_first(asked) if asked else []
    both = [
        (first, second)
        for first, second in zip(said[::2], said[1::2], strict=True)
        if first is not None and second is not None
    ]
    firsts = sum(first + second for first, second in both)
    right = sum(first + (not second) for first, second in both)
    flips = sum(first == second for first, second in both)
    count = len(both)

    def share(name: str, hits: float, of: int, meaning: str) -> Figure:
        # an answer of a pair is half a unit: its two orders are of one problem
        interval = wilson(hits / of * count, count) if count else None
        return Figure(name, hits / of if of else None, interval, count, meaning)

    return [
        share("prefers the first", firsts, 2 * count, "position bias of pairs: 0.5 is none"),
        share("changes with the order", flips, count, "of pairs: 0 is best"),
        share("prefers the right", right, 2 * count, "of pairs in both orders: 0.5 is chance"),
    ]


def _costs(judge: ModelJudge, rows: int, seconds: float, *, all_cached: bool) -> list[Figure]:
    """What 1,000 rows take, by all that the judge's cache holds."""
    spent = judge.spent()
    each = 1000 * judge.votes / spent["requests"] if spent["requests"] else 0.0
    found = [
        Figure("tokens per 1,000 rows", spent["tokens"] * each, None, rows, "of replies"),
        Figure("prompt tokens per 1,000 rows", spent["prompt_tokens"] * each, None, rows),
    ]
    if judge.budget.price_in or judge.budget.price_out:
        found.append(Figure("cost per 1,000 rows", spent["cost"] * each, None, rows, "as priced"))
    if not all_cached:
        taken = 1000 * seconds / rows
        found.append(Figure("seconds per 1,000 rows", taken, None, rows, "as measured here"))
    return found


def _value(outcome: Outcome) -> float | None:
    return outcome.value if isinstance(outcome, Score) else None


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
