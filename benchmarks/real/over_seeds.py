"""What several seeds of one setting changed together: their evaluations before and after, joined.

    cd benchmarks/real/results
    python ../over_seeds.py --before mbpp_qwen_coder-{4,5}.json --after mbpp_qwen_coder-{4,5}.json

A file is one of run.py's results, of which the evaluation `before` or `after` is taken, or another
that stands behind an @, as in `mbpp_qwen_coder-5.json@form_only`. They have strict marks alone, in
the order of the set's rows, and are paired by their places. Or a file is a saved evaluation of a
run, as `runs/real/RUN-4/evals/before.json`, with problems and lenient marks.
The difference is the mean of the seeds', paired problem by problem. Its interval says where the
mean of other seeds on other problems would lie: both are random. That is the two-way layout of
seeds and problems (Cornfield and Tukey 1956): the variance of the mean is (S + P - E) / n, of the
mean squares of seeds, problems and what is left, and n differences. t has the degrees of freedom
that Satterthwaite (1946) gives this sum. S and P count as no less than E, which they hold. Two
or three seeds tell little of a fourth: where they differ the interval is wide, and where they
happen to be alike it may be too narrow.
Older files have no `right_per_problem`. For these, and marked by a *, the variance is bounded from
their tests: that of the seeds' differences, over their number, and the square of their mean
standard error, as if all seeds erred alike on a problem.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, variance
from typing import Any

import mpmath

from rl_reasoner import EvalResult, compare
from rl_reasoner.errors import UserError
from rl_reasoner.evaluation.comparison import counterparts
from rl_reasoner.evaluation.formatting import p_value, points, points_span
from rl_reasoner.evaluation.metrics import share_right
from rl_reasoner.foreign import json_object

MARKS = ("scores", "lenient")  # of a row's completions: what `compare` counts
NOT_JOINED = ("completions", "reasons")  # what it would show of a problem
Z = 1.959963985  # half of a paired interval, in standard errors


@dataclass(frozen=True)
class OverSeeds:
    """The mean difference of several seeds, with seeds and problems random."""

    seeds: int
    difference: float
    interval: tuple[float, float]
    p: float
    bounded: bool  # from the files' tests: without marks per problem


def over_seeds(before: Sequence[Path], after: Sequence[Path]) -> dict[str, OverSeeds]:
    """The mean difference of each set that all files have. Raises `UserError`."""
    if len(before) != len(after) or len(before) < 2:
        raise UserError(
            f"{len(before)} files before and {len(after)} after: one of each of two seeds or more"
        )
    told = [json_object(file) if file.is_file() else {} for file in (*before, *after)]
    if any("evals" in one and "right_per_problem" not in one for one in told):
        if [*before] != [*after]:
            raise UserError("files without marks per problem are compared with themselves alone")
        return _bounded(told[: len(before)])
    a, b = joined(before, "before"), joined(after, "after")
    found = {}
    for name in a.rows:
        if name not in b.rows:
            continue
        pairs = [j for j in counterparts(a.rows[name], b.rows[name]) if j is not None]
        if not len(a.rows[name]) == len(b.rows[name]) == len(pairs):
            raise UserError(f"the sides have other problems of {name}")
        mine, others = (_shares(rows, len(before)) for rows in (a.rows[name], b.rows[name]))
        found[name] = two_way(
            [[y - x for x, y in zip(mine[i], others[j], strict=True)] for i, j in enumerate(pairs)]
        )
    return found


def _shares(rows: Sequence[dict[str, Any]], seeds: int) -> list[list[float]]:
    """Of each problem the share of right completions, seed by seed."""
    each = [len(row["scores"]) // seeds for row in rows]
    return [
        [share_right({"scores": row["scores"][n * i : n * (i + 1)]}) for i in range(seeds)]
        for row, n in zip(rows, each, strict=True)
    ]


def two_way(differences: Sequence[Sequence[float]]) -> OverSeeds:
    """From a row of differences for each problem, one of each seed."""
    seeds, problems = len(differences[0]), len(differences)
    mean = fmean(map(fmean, differences))
    of_seeds = [fmean(row[s] for row in differences) for s in range(seeds)]
    squares = [
        problems * variance(of_seeds),
        seeds * variance(map(fmean, differences)),
        math.fsum(
            (value - fmean(row) - of_seeds[s] + mean) ** 2
            for row in differences
            for s, value in enumerate(row)
        )
        / ((seeds - 1) * (problems - 1)),
    ]
    squares[:2] = [max(square, squares[2]) for square in squares[:2]]
    parts = [square / (seeds * problems) for square in squares]
    freedom = (seeds - 1, problems - 1, (seeds - 1) * (problems - 1))
    total = parts[0] + parts[1] - parts[2]
    return _told(seeds, mean, total, parts, freedom, bounded=False)


def _bounded(results: Sequence[dict[str, Any]]) -> dict[str, OverSeeds]:
    """From the paired tests in the files, where there are no marks per problem."""
    tests = [told["paired_with_before"]["after"] for told in results]
    found = {}
    for name in tests[0]:
        if not all(name in each for each in tests):
            continue
        entries = [each[name] for each in tests]
        means = [entry["difference"] for entry in entries]
        errors = [(high - low) / (2 * Z) for low, high in (entry["interval"] for entry in entries)]
        parts = [variance(means) / len(means), fmean(errors) ** 2]
        freedom = (len(means) - 1, min(entry["problems"] for entry in entries) - 1)
        found[name] = _told(len(means), fmean(means), sum(parts), parts, freedom, bounded=True)
    return found


def _told(
    seeds: int,
    mean: float,
    total: float,
    parts: Sequence[float],
    freedom: Sequence[int],
    *,
    bounded: bool,
) -> OverSeeds:
    """Interval and p of a mean whose variance `total` is a sum or difference of `parts`."""
    if total <= 0.0:  # no problem changed with any seed
        return OverSeeds(seeds, mean, (mean, mean), 1.0 if mean == 0 else 0.0, bounded)
    of = zip(parts, freedom, strict=True)
    free = total**2 / math.fsum(part**2 / n for part, n in of)
    half = t_quantile(free) * math.sqrt(total)
    return OverSeeds(
        seeds, mean, (mean - half, mean + half), t_tails(mean / math.sqrt(total), free), bounded
    )


def t_tails(t: float, freedom: float) -> float:
    """The probability that Student's t is at least as far from 0."""
    at = freedom / (freedom + t * t)
    return float(mpmath.betainc(freedom / 2, 0.5, 0, at, regularized=True))


def t_quantile(freedom: float) -> float:
    """Student's t that 95% are below in size, for degrees of freedom that may be broken."""
    low, high = 1.9, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if t_tails(middle, freedom) > 0.05 else (low, middle)
    return high


def opened(file: Path, side: str) -> EvalResult:
    """A saved evaluation, or one in a file of run.py's results. Raises `UserError` if neither."""
    place = file.with_name(file.name.partition("@")[0])
    name = file.name.partition("@")[2] or side
    told = json_object(place) if place.is_file() else {}
    if "evals" not in told:
        return EvalResult.load(file)
    if "right_per_problem" not in told:
        raise UserError(f"{place} is of an earlier version: without what was right of each problem")
    kept = told["right_per_problem"]
    if name not in kept:
        raise UserError(f"{place} has no evaluation {name!r}: it has {', '.join(sorted(kept))}")
    sets = told["evals"].get(name, told["evals"]["before"])  # an arm samples as the run does
    rows = {}
    for on, counts in kept[name].items():
        right, samples = [*map(int, counts.split())], sets.get(on, {}).get("samples", 0)
        if max(right, default=0) > samples:
            raise UserError(f"{place}: {max(right)} right of {samples} samples of {on}, {name}")
        marks = [[1.0] * hits + [0.0] * (samples - hits) for hits in right]
        rows[on] = [{"problem": str(i), "scores": scores} for i, scores in enumerate(marks)]
    return EvalResult(str(place), rows=rows)


def joined(files: Sequence[Path], side: str) -> EvalResult:
    """One result of them all, with the sets that the first of them has."""
    first, *others = [opened(file, side) for file in files]
    rows = {
        name: _together(name, [each.rows.get(name, []) for each in (first, *others)], files)
        for name in first.rows
    }
    return EvalResult(first.policy, rows=rows)


def _together(
    name: str, sides: Sequence[list[dict[str, Any]]], files: Sequence[Path]
) -> list[dict[str, Any]]:
    """The first side's rows, each with the marks of its counterparts in the others."""
    first, *others = sides
    found = [[row] for row in first]
    for rows, file in zip(others, files[1:], strict=True):
        places = [place for place in counterparts(first, rows) if place is not None]
        if not len(first) == len(rows) == len(places):
            raise UserError(f"{file}: other problems of {name} than {files[0]} has")
        for mine, place in zip(found, places, strict=True):
            mine.append(rows[place])
    marks = [mark for mark in MARKS if all(mark in row for mine in found for row in mine)]
    return [
        {key: value for key, value in mine[0].items() if key not in (*MARKS, *NOT_JOINED)}
        | {mark: [value for row in mine for value in row[mark]] for mark in marks}
        for mine in found
    ]


def compared(before: EvalResult, after: EvalResult) -> dict[str, dict[str, Any]]:
    """As `compare`, over problems alone, and without pass@k: it is no policy's."""
    entries = compare(before, after)
    return {
        name: {key: value for key, value in entry.items() if key != "pass_at_k"}
        for name, entry in entries.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="What several seeds of a setting came to.")
    for side in ("before", "after"):
        words = f"results of the policies {side} training, one of each seed"
        parser.add_argument(f"--{side}", type=Path, nargs="+", required=True, help=words)
    asked = parser.parse_args()
    try:
        found = over_seeds(asked.before, asked.after)
    except UserError as error:
        sys.exit(str(error))
    print("| set | seeds | mean difference, points, seeds and problems random | p |")
    print("|---|---|---|---|")
    for name, each in found.items():
        moved = f"{points(each.difference)} {points_span(each.interval)}"
        print(f"| {name} | {each.seeds} | {moved}{'*' * each.bounded} | {p_value(each.p)} |")


if __name__ == "__main__":
    main()
