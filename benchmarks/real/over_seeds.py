"""What several seeds of one setting changed together: their evaluations before and after, joined.

    cd benchmarks/real/results
    python ../over_seeds.py --before mbpp_qwen_coder-{4,5}.json --after mbpp_qwen_coder-{4,5}.json

A file is one of run.py's results, of which the evaluation `before` or `after` is taken, or another
that stands behind an @, as in `mbpp_qwen_coder-5.json@form_only`. They have strict marks alone, in
the order of the set's rows, and are paired by their places. Or a file is a saved evaluation of a
run, as `runs/real/RUN-4/evals/before.json`, with problems and lenient marks.
The seeds' completions of a problem count as so many completions of it, and the two sides are
compared problem by problem, as `rl-reasoner compare` does. So the difference is the mean of the
seeds', and the interval is over problems: it tells what these policies have come to, not how far
another seed would lie from them.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rl_reasoner import EvalResult, compare
from rl_reasoner.cli.compare import comparison_table
from rl_reasoner.errors import UserError
from rl_reasoner.evaluation.comparison import counterparts
from rl_reasoner.foreign import json_object

MARKS = ("scores", "lenient")  # of a row's completions: what `compare` counts
NOT_JOINED = ("completions", "reasons")  # what it would show of a problem


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
    """As `compare`, without pass@k: of several seeds' completions it is no policy's."""
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
        print(
            comparison_table(compared(joined(asked.before, "before"), joined(asked.after, "after")))
        )
    except UserError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
