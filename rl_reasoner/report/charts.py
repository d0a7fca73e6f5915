"""The report's charts as plain figures: what the page's script (`charts.js`) draws as inline SVG.

A chart's specification is small whatever the run's length: long curves are thinned so that no spike
is lost, and come with their running mean. Titles, legends and summaries are words for the page.
Colours are names of the style sheet's variables. Pure functions on figures.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from rl_reasoner.evaluation.formatting import percent, short_number
from rl_reasoner.evaluation.statistics import Interval
from rl_reasoner.foreign import printable

_POINTS = 200  # along the x axis: more would not be seen
RESULT = "result"
"""What the only evaluation of a page is called: it needs no legend."""
SERIES = ("c1", "c2", "c3", "c4", "c5", "c6")


@dataclass(frozen=True)
class Trace:
    """One curve: values at steps, with `band` (low, high) around it where given."""

    label: str
    steps: Sequence[int]
    values: Sequence[float]
    band: tuple[Sequence[float], Sequence[float]] | None = None


@dataclass(frozen=True)
class Chart:
    """What is drawn (`spec`, for JSON), with its title, newest figures in words, and legend.

    The legend has (label, colour variable) pairs. `flat`: no curve on it moves.
    """

    title: str
    spec: Mapping[str, Any]
    summary: str = ""
    note: str = ""
    legend: Sequence[tuple[str, str]] = field(default_factory=tuple)
    flat: bool = False


@dataclass(frozen=True)
class Bar:
    """One bar: a share of 1 with its interval."""

    label: str
    value: float
    interval: Interval | None


def band(intervals: Sequence[Interval | None]) -> tuple[list[float], list[float]] | None:
    """The band of a series whose points have these intervals; None where one has none."""
    known = [interval for interval in intervals if interval is not None]
    whole = len(known) == len(intervals)
    return ([low for low, _ in known], [high for _, high in known]) if whole else None


def colour(index: int) -> str:
    """The colour variable of the series `index`; the palette starts over after its end."""
    return SERIES[index % len(SERIES)]


def curve(title: str, lines: Sequence[Trace], *, share: bool = False, note: str = "") -> Chart:
    """Curves over steps. Long ones are drawn faint, with their running mean over them.

    The summary gives the first line's means at both ends (`ends`).
    """
    spec = {
        "kind": "curve",
        "share": share,
        "lines": [_line(line, colour(index)) for index, line in enumerate(lines)],
    }
    legend = [(line.label, colour(i)) for i, line in enumerate(lines)] if len(lines) > 1 else []
    told = [percent(v) if share else short_number(v) for v in ends(lines[0].values)]
    flat = len(lines[0].values) > 1 and not any(_moves(line) for line in lines)
    return Chart(title, spec, " → ".join(told), note, legend, flat)


def ends(values: Sequence[float]) -> tuple[float, float]:
    """The means of the first values and of the last, `end_size` of each: one alone is noise."""
    size = end_size(len(values))
    return sum(values[:size]) / size, sum(values[-size:]) / size


def end_size(count: int) -> int:
    """How many of `count` values are an end: ten, a tenth of very many, a third of few."""
    return max(1, min(10, count // 3), count // 10)


def _moves(line: Trace) -> bool:
    return any(len(set(values)) > 1 for values in (line.values, *(line.band or ())))


def stack(
    title: str, labels: Sequence[str], steps: Sequence[int], rows: Sequence[Sequence[float]]
) -> Chart:
    """Areas on top of each other: at each step one row of seconds, a figure a label."""
    means = _means([[step, *row] for step, row in zip(steps, rows, strict=True)])
    spec = {
        "kind": "stack",
        "labels": [printable(label) for label in labels],
        "colours": [colour(i) for i in range(len(labels))],
        "x": [round(row[0]) for row in means],
        "rows": [_rounded(row[1:]) for row in means],
    }
    sums = [sum(row[i] for row in rows) for i in range(len(labels))]
    whole = sum(sums) or 1
    parts = [f"{label} {percent(s / whole, 0)}" for label, s in zip(labels, sums, strict=True)]
    return Chart(title, spec, "", "seconds", [(part, colour(i)) for i, part in enumerate(parts)])


def heat_map(title: str, steps: Sequence[int], rows: Sequence[Sequence[float]], note: str) -> Chart:
    """Shares of experts (one list a step); the full colour is twice the fair share or more."""
    parts = [steps[i:j] for i, j in _parts(len(steps))]
    spec = {
        "kind": "heat",
        "x": [[part[0], part[-1]] for part in parts],
        "rows": [_rounded(row, 3) for row in _means(rows)],
    }
    return Chart(title, spec, f"largest {percent(max(rows[-1]))}", note)


def bars(title: str, sets: Sequence[tuple[str, Sequence[Bar]]], *, note: str = "") -> Chart:
    """Lying bars with error bars under each set's name, one bar an evaluation."""
    labels = list(dict.fromkeys(bar.label for _, group in sets for bar in group))
    colours = evaluation_colours(labels)

    def spec(bar: Bar) -> dict[str, Any]:
        look = {"label": printable(bar.label), "colour": colours[bar.label]}
        return {**look, "value": bar.value, "interval": bar.interval}

    groups = [{"name": printable(name), "bars": [*map(spec, group)]} for name, group in sets]
    legend = [(label, colours[label]) for label in labels if label != RESULT]
    named = any(len(group) > len(SERIES) for _, group in sets)  # colours alone would not tell
    return Chart(title, {"kind": "bars", "groups": groups, "named": named}, "", note, legend)


def pass_at_k_chart(title: str, curves: Sequence[Trace]) -> Chart:
    """pass@k over k on a doubling axis, one curve an evaluation, its intervals as a band."""
    colours = evaluation_colours([line.label for line in curves])
    lines = [_line(line, colours[line.label]) for line in curves]
    spec = {"kind": "curve", "share": True, "doubling": True, "lines": lines}
    note = "band: 95% interval" if any(line.band for line in curves) else ""
    return Chart(title, spec, "", note, [(line.label, colours[line.label]) for line in curves])


def evaluation_colours(labels: Sequence[str]) -> dict[str, str]:
    """A colour variable for each evaluation: grey before, the accent after, others between."""
    fixed = {"before": "before", "after": "c1", RESULT: "c1"}
    others = [label for label in labels if label not in fixed]
    return {label: fixed.get(label) or colour(1 + others.index(label)) for label in labels}


def _line(line: Trace, colour: str) -> dict[str, Any]:
    """A curve for JSON: its points without the thinned ones, its running mean where it has one."""
    kept = _extremes(line.values)
    spec: dict[str, Any] = {
        "label": printable(line.label),
        "colour": colour,
        "x": [line.steps[i] for i in kept],
        "y": _rounded([line.values[i] for i in kept]),
    }
    if line.band is not None:
        spec["low"] = _rounded([line.band[0][i] for i in kept])
        spec["high"] = _rounded([line.band[1][i] for i in kept])
    places, means = _running_mean(line.values)
    if means != list(line.values):
        spec["mean"] = {"x": [line.steps[i] for i in places], "y": _rounded(means)}
    return spec


def _rounded(values: Sequence[float], digits: int = 5) -> list[float]:
    return [float(f"{value:.{digits}g}") for value in values]


def _parts(count: int) -> list[tuple[int, int]]:
    """(start, end) of at most `_POINTS` even parts of `count` things."""
    size = max(1, -(-count // _POINTS))
    return [(i, min(i + size, count)) for i in range(0, count, size)]


def _extremes(values: Sequence[float]) -> list[int]:
    """Where each part has its lowest and its highest value: no spike is lost to thinning."""
    parts = (sorted(range(i, j), key=values.__getitem__) for i, j in _parts(len(values)))
    return sorted(set(chain.from_iterable((part[0], part[-1]) for part in parts)))


def _means(rows: Sequence[Sequence[float]]) -> list[list[float]]:
    """The mean row of each part of `rows`."""
    parts = [rows[i:j] for i, j in _parts(len(rows))]
    return [[sum(values) / len(part) for values in zip(*part, strict=True)] for part in parts]


def _running_mean(values: Sequence[float]) -> tuple[list[int], list[float]]:
    """Places along `values`, first and last among them, and the mean around each.

    A mean is over a fifteenth of all values; while they are few, over the one alone.
    """
    reach = len(values) // 30
    places = sorted({i for i, _ in _parts(len(values))} | {len(values) - 1})
    windows = [values[max(0, i - reach) : i + reach + 1] for i in places]
    return places, [sum(window) / len(window) for window in windows]
