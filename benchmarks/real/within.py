"""Evaluations of the same problems, compared as if fewer tokens had been allowed.

    python benchmarks/real/within.py keep verdicts.json own=own.rows.jsonl recipe=with.rows.jsonl
    python benchmarks/real/within.py show verdicts.json own recipe 256 400 512

`keep` writes each problem's verdict and length, without its text, as a small file. `show` counts,
for each number of tokens, what was right and had ended within them; greedy completions are the same
up to a cut, so a shorter evaluation would count the same. (A box in a completion that then goes on
is the exception: it counts as none here.) Intervals are Wilson's and Tango's, p is McNemar's, as
in `rl-reasoner compare`.
"""

import argparse
import json
from pathlib import Path

from rl_reasoner.evaluation.statistics import mcnemar, paired_interval, wilson

Verdicts = dict[str, tuple[float, int]]  # problem -> its first completion's score and tokens


def keep(file: Path, evaluations: list[str]) -> None:
    """Write the verdicts of evaluations, each given as NAME=ROWS, to `file`."""
    kept = dict[str, Verdicts]()
    for given in evaluations:
        name, _, file_of_rows = given.partition("=")
        rows = map(json.loads, Path(file_of_rows).read_text().splitlines())
        kept[name] = {row["id"]: (row["scores"][0], row["tokens"][0]) for row in rows}
    file.write_text(json.dumps(kept) + "\n")


def show(file: Path, a: str, b: str, budgets: list[int]) -> None:
    """Print how many are right within each budget, and the difference, of problems of both."""
    kept = json.loads(file.read_text())
    both = [problem for problem in kept[a] if problem in kept[b]]
    for budget in budgets:
        right = [
            [
                float(score == 1 and tokens <= budget)
                for score, tokens in (of[problem] for problem in both)
            ]
            for of in (kept[a], kept[b])
        ]
        shares = [_shown(sum(side) / len(both), *wilson(sum(side), len(both))) for side in right]
        differences = [after - before for before, after in zip(*right, strict=True)]
        mean = _shown(sum(differences) / len(both), *paired_interval(differences))
        p = mcnemar(differences.count(-1.0), differences.count(1.0))
        print(
            f"{len(both)} problems within {budget} tokens: {a} {shares[0]}, {b} {shares[1]}, "
            f"{b} - {a} {mean}, p {p:.2g}"
        )


def _shown(share: float, low: float, high: float) -> str:
    return f"{100 * share:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def main() -> None:
    """Keep verdicts, or show them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    keeping, showing = verbs.add_parser("keep"), verbs.add_parser("show")
    for verb in (keeping, showing):
        verb.add_argument("file", type=Path)
    keeping.add_argument("evaluations", nargs="+", metavar="NAME=ROWS")
    showing.add_argument("a")
    showing.add_argument("b")
    showing.add_argument("budgets", nargs="+", type=int)
    asked = parser.parse_args()
    if asked.verb == "keep":
        keep(asked.file, asked.evaluations)
    else:
        show(asked.file, asked.a, asked.b, asked.budgets)


if __name__ == "__main__":
    main()
