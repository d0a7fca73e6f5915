"""Write the data sets of this folder, byte for byte the same on every machine.

    python data/make.py            writes every file
    python data/make.py --check    writes nothing; exit code 1 where a file differs

The task sets come from the generators of `rl_reasoner.dataset.tasks`, `programming.jsonl` from the
`programming_*.py` files beside this one. `word_problems.jsonl` is written by hand: it is its own
source, and only brought into the common form. DATASHEET.md says what the sets are for.
"""

import argparse
import importlib
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import programming

from rl_reasoner.dataset.tasks.generate import TASKS, generate_problems

HERE = Path(__file__).resolve().parent
COUNTS = {"train": 200, "validation": 200, "test": 500, "ood": 300}
COUNTS_OF = {  # where a recipe needs others
    "modular": {"train": 200, "validation": 400, "test": 1000, "ood": 500},
    "product": {"validation": 100, "test": 500},
    "tens": {"validation": 100, "test": 500},
    "guess": {"validation": 25, "test": 75},
    "grid": {"validation": 100, "test": 400},
    "functions": {"validation": 200, "test": 400},
    "instructions": {"train": 200, "validation": 200, "test": 400, "ood": 200},
    "instructions_tiny": {"train": 200, "validation": 400, "test": 1000, "ood": 300},
}


def jsonl(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """The rows as UTF-8 JSONL: one object a line, fields in the order they come in."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def files() -> dict[str, bytes]:
    """Every data file by name, with its content."""
    made = {}
    for task in TASKS:
        for split, count in COUNTS_OF.get(task, COUNTS).items():
            problems = generate_problems(task, split=split, count=count)
            made[f"{task}_{split}.jsonl"] = jsonl(problem.row() for problem in problems)
    for subject in ("numbers", "text", "lists"):
        importlib.import_module(f"programming_{subject}")  # it adds its problems
    made["programming.jsonl"] = jsonl(programming.PROBLEMS)
    with (HERE / "word_problems.jsonl").open(encoding="utf-8") as lines:
        made["word_problems.jsonl"] = jsonl(json.loads(line) for line in lines)
    return made


def main() -> int:
    """Write or check the files; the exit code is 1 where a check finds one that differs."""
    parser = argparse.ArgumentParser(description="Write the data sets of this folder.")
    parser.add_argument("--check", action="store_true", help="compare only, write nothing")
    check = parser.parse_args().check
    differing = []
    for name, content in files().items():
        path = HERE / name
        if not path.exists() or path.read_bytes() != content:
            differing.append(name)
            if not check:
                path.write_bytes(content)
    print(f"{'differing' if check else 'written'}: {', '.join(differing) or 'none'}")
    return 1 if check and differing else 0


if __name__ == "__main__":
    sys.exit(main())
