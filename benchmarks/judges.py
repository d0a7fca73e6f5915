"""Labelled rows for `rl-reasoner check judge`: completions of a policy, or solutions made wrong.

    rl-reasoner eval POLICY --sets svamp --samples 3 --limit 120 --out completions.json
    python benchmarks/judges.py labels.jsonl --of completions.json
    rl-reasoner check judge --labelled labels.jsonl --json --reward-options \\
        '{"server": "http://localhost:8000/v1", "model": "NAME", "rubric": {"points": 1,
          "items": [{"name": "right", "text": "The final answer is right."}]}}'

With `--of`, the rows are of an evaluation's result: of each problem the first two different
completions that were not cut off, with the verifier's verdict as their label. Without it they are
made of GSM8K's test rows (../shared/data/gsm8k_test.jsonl): of the shortest problems, each gives
two rows of equal length, its solution (label 1), and the same with another number as its end
(label 0), drawn from the problem's place. The rows are of data sets of others: they are made on the
machine, and not kept in the project.
"""

import argparse
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from rl_reasoner.errors import UserError
from rl_reasoner.evaluation.result import EvalResult
from rl_reasoner.files import read_jsonl, write_jsonl
from rl_reasoner.types import Row

GSM8K = Path(__file__).resolve().parent.parent.parent / "shared/data/gsm8k_test.jsonl"
_CALCULATION = re.compile(r"<<[^<>\n]{0,200}>>")
_EACH = 2  # rows of a problem


def of_result(file: Path) -> Iterator[Row]:
    """The labelled rows of a result's completions; raises `UserError` where it is none."""
    for rows in EvalResult.load(file).rows.values():
        for row in rows:
            of_row = zip(row["completions"], row["scores"], row["truncated"], strict=True)
            judged = {text: score for text, score, cut in of_row if score is not None and not cut}
            for number, (text, score) in enumerate([*judged.items()][:_EACH]):
                yield {
                    "id": f"{row.get('id')}-{number}",
                    "problem": row["problem"],
                    "answer": row["answer"],
                    "completion": text,
                    "label": float(score == 1.0),
                }


def of_solution(row: Row, place: int) -> list[Row]:
    """The two rows of a solved problem; none where its answer is not a whole number."""
    answer = str(row["answer"]).replace(",", "")
    if not answer.lstrip("-").isdigit():
        return []
    draw = random.Random(place)
    size = 10 ** (len(answer.lstrip("-")) - 1)
    others = [n for n in range(size, 10 * size) if n != abs(int(answer))]
    other = str(draw.choice(others) if size < 10**6 else int(answer) + 1)
    chain = _CALCULATION.sub("", str(row["solution"]).partition("####")[0]).strip()
    return [
        {
            "id": f"{row['id']}-{label}",
            "problem": row["problem"],
            "answer": answer,
            "completion": f"{chain}\nThe answer is {end}.",
            "label": label,
        }
        for label, end in ((1, answer), (0, other))
    ]


def of_solutions(file: Path, problems: int) -> list[Row]:
    """The rows of the shortest problems; raises `UserError` where there are none."""
    if not file.is_file():
        raise UserError(f"{file} is not there: give GSM8K's rows with --rows")
    made: list[Row] = []
    solved = sorted(read_jsonl(file), key=lambda row: len(row["problem"] + row["solution"]))
    for place, row in enumerate(solved):
        made += of_solution(row, place) if len(made) < _EACH * problems else []
    return made


def main() -> int:
    """Write the rows; 2 where there are none to make them of."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--of", type=Path, help="the result of an evaluation (JSON)")
    parser.add_argument("--problems", type=int, default=100)
    parser.add_argument("--rows", type=Path, default=GSM8K, help="GSM8K's test rows (JSONL)")
    given = parser.parse_args()
    try:
        if given.of is not None:
            rows = [*of_result(given.of)][: _EACH * given.problems]
        else:
            rows = of_solutions(given.rows, given.problems)
    except UserError as error:
        print(error)
        return 2
    write_jsonl(given.out, rows)
    right = sum(row["label"] for row in rows)
    print(f"{len(rows)} rows in {given.out}, {right:.0f} of them right")
    return 0


if __name__ == "__main__":
    sys.exit(main())
