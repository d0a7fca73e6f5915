"""The paired test of the problems that two evaluations of a run share, for its report.

A problem is held against itself, so what is hard for both ends cancels: the test sees changes that
two overlapping intervals hide. Same statistics as `rl-reasoner compare`. Pure.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rl_reasoner.errors import UserError
from rl_reasoner.evaluation.comparison import compare_rows
from rl_reasoner.evaluation.statistics import holm
from rl_reasoner.report.run_data import Evaluation, Paired, RunData, SetResult


def add_paired_tests(run: RunData) -> RunData:
    """Add tests against "before" to the figures "after" of a run, where all rows are there."""
    named = {e.name: e for e in run.evals}
    if "before" not in named or "after" not in named:
        return run
    after = named["after"]
    tested = replace(after, sets=_tested(named["before"], after))
    return replace(run, evals=[tested if e is after else e for e in run.evals])


def _tested(before: Evaluation, after: Evaluation) -> dict[str, SetResult]:
    """p-values are adjusted for the number of sets and modes, lenient ones and pass@k apart."""
    entries: dict[str, dict[str, Any]] = {}
    for name in after.sets:
        rows = [{name: e.judged[name]} for e in (before, after) if _whole(e, name)]
        try:
            entries |= {name: compare_rows(*rows)[name]} if len(rows) == 2 else {}
        except UserError:  # other problems in the one than in the other
            continue
    leniently, passes = (
        {name: entry[key] for name, entry in entries.items() if key in entry}
        for key in ("lenient", "pass_at_k")
    )
    sets: dict[str, SetResult] = dict(after.sets)
    for name, test in _adjusted(entries, after).items():
        sets[name] = replace(sets[name], paired=test)
    for name, test in _adjusted(leniently, after).items():
        if (lenient := sets[name].lenient) is not None:
            sets[name] = replace(sets[name], lenient=replace(lenient, paired=test))
    for name, test in _adjusted(passes, after).items():
        sets[name] = replace(sets[name], pass_paired={passes[name]["k"]: test})
    return sets


def _adjusted(entries: Mapping[str, Mapping[str, Any]], after: Evaluation) -> dict[str, Paired]:
    """The tests of one family."""
    tests = {}
    adjusted = holm([entry["p"] for entry in entries.values()])
    for (name, entry), p in zip(entries.items(), adjusted, strict=True):
        low, high = entry["interval"]
        many, moved = len(after.judged[name]), entry["difference"]
        tests[name] = Paired(
            many,
            moved,
            (low, high),
            entry["p"],
            p,
            entry["test"],
            tests=len(adjusted),
            better=entry["better"],
            worse=entry["worse"],
        )
    return tests


def _whole(evaluation: Evaluation, name: str) -> bool:
    """Whether the rows of all problems of a set are there."""
    rows: Mapping[str, Any] = evaluation.judged
    figures = evaluation.sets.get(name)
    return figures is not None and len(rows.get(name, ())) == figures.problems != 0
