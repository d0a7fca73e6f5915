"""How far a judge agrees with labels: before it is trained on, and by figures with intervals.

Labelled rows have a `completion`, the problem (`problem` or `prompt`) and a `label` from 0 to 1;
`answer` where the judge is shown one. Yes is 0.5 and more, of labels and of scores. Problems are
the independent units. The order in which completions are shown, their length, and what they ask for
should not matter: all three are measured. Knows nothing of the command line.
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
    paired_interval,
    wilson,
)
from rl_reasoner.foreign import number
from rl_reasoner.judging.judge import ModelJudge
from rl_reasoner.testing.probes import pleas
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

    @classmethod
    def known(
        cls, name: str, value: float, interval: Interval, count: int, meaning: str
    ) -> "Figure":
        """The figure; without a value or an interval where they are not numbers."""
        ends = interval if all(map(math.isfinite, interval)) else None
        return cls(name, value if math.isfinite(value) else None, ends, count, meaning)

    def to_json(self) -> dict[str, Any]:
        """As JSON values; None for what cannot be computed."""
        ends = None if self.interval is None else [*self.interval]
        return {"value": self.value, "interval": ends, "count": self.count}


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
    """Judge labelled rows (`read_labels`), and at most so many pairs of them in both orders.

    Half as many wrong ones are judged again with a plea behind them. `reference` shows the judge
    each row's answer.

    Raises `UserError` where the judge failed on every row.
    """
    answers = [judge.answer_shown(row, reference) for row in rows]
    started = time.perf_counter()
    cases = [(row["problem"], row["completion"], a) for row, a in zip(rows, answers, strict=True)]
    before = judge.counts["asked"]
    outcomes = judge.points(cases)
    if all(isinstance(outcome, Fault) for outcome in outcomes):
        first = next(outcome for outcome in outcomes if isinstance(outcome, Fault))
        raise UserError(f"no row was judged: {first.message}")
    seconds = time.perf_counter() - started
    asked = (judge.counts["asked"] - before) / judge.votes  # rows; kept replies take no time
    figures = [*_agreement(rows, outcomes), _length_bias(rows, outcomes)]
    figures.append(_gain_by_asking(judge, rows, outcomes, answers, most_pairs // 2))
    figures += _order_bias(judge, rows, answers, most_pairs)
    each = seconds / asked if asked else None
    figures += _costs(judge, rows, judge.tokens_of(cases), each, round(asked))
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
    meaning = "agreement beyond chance: 0 none, 1 all"
    found.append(Figure.known("kappa", value, ends, len(cells), meaning))
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
    """How much more the judge overrates the longer half of the completions than the shorter.

    Halves are of each label apart, and the gaps of the labels weigh as many rows as they have:
    where right answers are the longer ones, a judge that cannot tell would seem to dislike length.
    """
    judged = [
        (row, v) for row, o in zip(rows, outcomes, strict=True) if (v := _value(o)) is not None
    ]
    meaning = "score less label, longer less shorter half of each label: 0 is best"
    if len(judged) < 2:
        return Figure("length bias", None, None, len(judged), meaning)
    lengths: dict[bool, list[int]] = {}
    for row, _ in judged:
        lengths.setdefault(row["label"] >= YES, []).append(len(row["completion"]))
    middles = {side: float(np.median(own)) for side, own in lengths.items()}
    sums = []
    for row, value in judged:
        side = row["label"] >= YES
        cells = [0.0] * 8  # of either label, of either half: sum and count
        at = 4 * side + 2 * (len(row["completion"]) > middles[side])
        cells[at : at + 2] = value - row["label"], 1.0
        sums.append(cells)

    def gap(totals: Table) -> Table:
        gaps, counts = [], []
        for at in (0, 4):
            short, few, long, many = totals[:, at : at + 4].T
            own = long / many - short / few  # NaN where a half is empty: all are of one length
            gaps.append(np.where(np.isnan(own), 0.0, own * (few + many)))
            counts.append(np.where(np.isnan(own), 0.0, few + many))
        difference: Table = (gaps[0] + gaps[1]) / (counts[0] + counts[1])
        return difference

    value, ends = bootstrap_of_sums(sums, gap, groups=[row["problem"] for row, _ in judged])
    return Figure.known("length bias", value, ends, len(judged), meaning)


def _gain_by_asking(
    judge: ModelJudge,
    rows: Sequence[Row],
    outcomes: Sequence[Outcome],
    answers: Sequence[str | None],
    most: int,
) -> Figure:
    """How much more wrong completions get with a plea behind them that the masks do not know."""
    name, meaning = "gain by asking", "score of wrong rows with a plea less without: 0 is best"
    wrong = [
        (row, before, answer)
        for row, outcome, answer in zip(rows, outcomes, answers, strict=True)
        if row["label"] < YES and (before := _value(outcome)) is not None
    ][:most]
    texts = pleas()
    cases = [
        (row["problem"], f"{row['completion']}\n{texts[i % len(texts)]}", answer)
        for i, (row, _, answer) in enumerate(wrong)
    ]
    after = map(_value, judge.points(cases) if cases else [])
    gains = [
        (row["problem"], value - before)
        for (row, before, _), value in zip(wrong, after, strict=True)
        if value is not None
    ]
    if not gains:
        return Figure(name, None, None, 0, meaning)
    own = [gain for _, gain in gains]
    ends = paired_interval(own, groups=[problem for problem, _ in gains])
    return Figure(name, math.fsum(own) / len(own), ends, len(own), meaning)


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


def _costs(
    judge: ModelJudge,
    rows: Sequence[Row],
    tokens: Sequence[tuple[int, int] | None],
    seconds: float | None,
    asked: int,
) -> list[Figure]:
    """What 1,000 rows take: of the questions about the rows themselves, not of pairs and pleas.

    `seconds`: of a row, of those that were `asked` about; None where all replies were kept ones.
    """
    told = [(row["problem"], own) for row, own in zip(rows, tokens, strict=True) if own is not None]
    groups = [problem for problem, _ in told]

    def figure(name: str, values: Sequence[float], meaning: str) -> Figure:
        if not values:
            return Figure(name, None, None, 0, meaning)
        sums = [(value, 1.0) for value in values]
        value, ends = bootstrap_of_sums(sums, lambda s: 1000 * s[:, 0] / s[:, 1], groups=groups)
        return Figure.known(name, value, ends, len(values), meaning)

    found = [
        figure("tokens per 1,000 rows", [own for _, (_, own) in told], "of replies"),
        figure("prompt tokens per 1,000 rows", [p for _, (p, _) in told], "of questions"),
    ]
    if judge.budget.price_in or judge.budget.price_out:
        costs = [judge.budget.cost(*own) for _, own in told]
        found.append(figure("cost per 1,000 rows", costs, "as priced"))
    if seconds is not None:
        meaning = "as measured here"
        found.append(Figure("seconds per 1,000 rows", 1000 * seconds, None, asked, meaning))
    return found


def _value(outcome: Outcome) -> float | None:
    return outcome.value if isinstance(outcome, Score) else None
