"""Evaluations of the same problems, compared as if fewer tokens had been allowed.

    python benchmarks/real/within.py keep verdicts.json MODEL own=own.rows.jsonl run=run.rows.jsonl
    python benchmarks/real/within.py show verdicts.json own run

`keep` takes greedy evaluations by `math_answer`. A greedy completion is the same up to where fewer
tokens would have cut it off, so that part is judged again. What is kept is a small file of
verdicts, without texts. `show` counts them, and compares two prompts on the problems of both.
Intervals are Wilson's and Tango's, p is McNemar's, as in `rl-reasoner compare`.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rl_reasoner import open_policy
from rl_reasoner.evaluation.statistics import mcnemar, paired_interval, wilson
from rl_reasoner.rewards.math_answer import math_answer

BUDGETS = (256, 400, 512)
RESULT, ITS_END = "```output\n", "\n```\n"  # what a tool gave is no answer of the policy's


def cut(completion: str, budget: int, tokenizer: Any) -> str:
    """What the policy itself had written within `budget` tokens, results counted among them."""
    ids = tokenizer(completion, add_special_tokens=False).input_ids[:budget]
    own, *others = tokenizer.decode(ids).split(RESULT)
    return "".join([own, *(rest.partition(ITS_END)[2] for rest in others)])


def verdicts(row: Mapping[str, Any], tokenizer: Any, longest: int) -> list[int | None]:
    """Whether a row's completion is right within each budget; None beyond its own, `longest`."""
    [completion], [tokens] = row["completions"], row["tokens"]
    found = list[int | None]()
    for budget in BUDGETS:
        if budget > longest:
            found.append(None)
        elif tokens > budget:
            text = cut(completion, budget, tokenizer)
            score = math_answer.fn(text, row["answer"], value_only=True).value
            found.append(int(score == 1))
        else:
            found.append(int(row["scores"][0] == 1))
    return found


def keep(file: Path, model: str, evaluations: list[str]) -> None:
    """Write the verdicts of evaluations, each given as NAME=ROWS, to `file`."""
    tokenizer = open_policy(model, device="cpu").tokenizer
    kept = dict[str, dict[str, list[int | None]]]()
    for given in evaluations:
        name, _, file_of_rows = given.partition("=")
        rows = [json.loads(line) for line in Path(file_of_rows).read_text().splitlines()]
        cut_off = [row["tokens"][0] for row in rows if row["truncated"][0]]
        longest = max(cut_off, default=max(BUDGETS))
        kept[name] = {row["id"]: verdicts(row, tokenizer, longest) for row in rows}
    file.write_text(json.dumps(kept) + "\n")


def show(file: Path, a: str, b: str) -> None:
    """Print how many are right within each budget, and the difference, of problems of both."""
    kept = json.loads(file.read_text())
    if unknown := {a, b} - kept.keys():
        sys.exit(f"{file}: no evaluation {', '.join(unknown)}; there are: {', '.join(kept)}")
    both = [problem for problem in kept[a] if problem in kept[b]]
    for number, budget in enumerate(BUDGETS):
        right = [[of[problem][number] for problem in both] for of in (kept[a], kept[b])]
        if not both or None in (right[0][0], right[1][0]):
            print(f"{len(both)} problems within {budget} tokens: not measured for both")
            continue
        shares = [_shown(sum(side) / len(both), *wilson(sum(side), len(both))) for side in right]
        differences = [float(after - before) for before, after in zip(*right, strict=True)]
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
    keeping.add_argument("model")
    keeping.add_argument("evaluations", nargs="+", metavar="NAME=ROWS")
    showing.add_argument("a")
    showing.add_argument("b")
    asked = parser.parse_args()
    if asked.verb == "keep":
        keep(asked.file, asked.model, asked.evaluations)
    else:
        show(asked.file, asked.a, asked.b)


if __name__ == "__main__":
    main()
