"""What several seeds of one setting changed together: their evaluations before and after, joined.

    python benchmarks/real/over_seeds.py --before runs/real/RUN-{4,5}/evals/before.json \\
        --after runs/real/RUN-{4,5}/evals/after.json

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

MARKS = ("scores", "lenient")  # of a row's completions: what `compare` counts
NOT_JOINED = ("completions", "reasons")  # what it would show of a problem


def joined(files: Sequence[Path]) -> EvalResult:
    """One result of them all, with the sets that the first of them has."""
    first, *others = [EvalResult.load(file) for file in files]
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
        print(comparison_table(compared(joined(asked.before), joined(asked.after))))
    except UserError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
