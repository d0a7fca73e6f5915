"""Labelled rows for `rl-reasoner check judge`: real solutions, and the same with a wrong end.

    python benchmarks/judges.py labels.jsonl                # of ../shared/data/gsm8k_test.jsonl
    rl-reasoner check judge --labelled labels.jsonl --reward-options \\
        '{"policy": "FOLDER", "reference": true, "rubric": {"points": 1, "items":
          [{"name": "right", "text": "The final answer is right."}]}}'

Of the shortest problems, each gives two rows of equal length: its solution (label 1), and the same
with another number as its end (label 0), drawn from the problem's place. The rows are of a data set
of others: they are made on the machine, and not kept in the project.
"""

import argparse
import random
import re
import sys
from pathlib import Path

from rl_reasoner.errors import UserError
from rl_reasoner.files import read_jsonl, write_jsonl
from rl_reasoner.types import Row

GSM8K = Path(__file__).resolve().parent.parent.parent / "shared/data/gsm8k_test.jsonl"
_CALCULATION = re.compile(r"<<[^<>\n]{0,200}>>")


def labelled(row: Row, place: int) -> list[Row]:
    """The two rows of a problem; none where its answer is not a whole number."""
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


def main() -> int:
    """Write the rows; 2 where there are none to make them of."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--problems", type=int, default=100)
    parser.add_argument("--rows", type=Path, default=GSM8K, help="GSM8K's test rows (JSONL)")
    given = parser.parse_args()
    if not given.rows.is_file():
        print(UserError(f"{given.rows} is not there: give GSM8K's rows with --rows"))
        return 2
    rows: list[Row] = []
    problems = sorted(read_jsonl(given.rows), key=lambda row: len(row["problem"] + row["solution"]))
    for place, row in enumerate(problems):
        rows += labelled(row, place) if len(rows) < 2 * given.problems else []
    write_jsonl(given.out, rows)
    print(f"{len(rows)} rows in {given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
