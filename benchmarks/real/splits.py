"""Train, validation and test rows for the recipes that train real models.

    python benchmarks/real/splits.py FOLDER --data DATA

DATA (or `$RL_REASONER_DATA`) is a folder with mawps.jsonl, asdiv.jsonl, svamp.jsonl, mbpp.jsonl,
gsm8k_train.jsonl and gsm8k_test.jsonl; FOLDER gets NAME_train.jsonl, NAME_validation.jsonl and
NAME_test.jsonl for the names below, and splits.json: counts, what was left out, the contamination
of the held-out rows with the training rows, and the sha256 of every file read and written. The
same sources always give the same bytes.

`word_problems`: one-step problems of MAWPS, ASDiv and SVAMP. ASDiv and SVAMP give the equation: one
operation, and its value is the answer. MAWPS gives none: all of its `singleop`; of `singleeq` and
`addsub` those whose text has exactly two numbers, one operation on which gives the answer. Equal
texts count once. Rows whose texts are alike once numbers and names are left out have one template;
no template is in two splits, and each held-out row has a template to itself.
word_problems_form.jsonl has the training rows whose set gives the equation, with a completion that
is this equation, its value boxed.
`mbpp`: its own splits by task id (11 to 510 test, 511 to 600 validation, 601 to 974 train).
`gsm8k`: its own two files; the last 300 rows of the train file are for validation. A row's `level`
is the number of lines of its solution before the answer, for `group.curriculum: levels`.
`instructions`: generated here, English alone, one or two instructions a prompt.
Training rows that are copies or near copies of held-out rows, or share half of their runs of 13
words, are left out, and counted; but for `instructions`, whose prompts are few words in common
phrases: 156 of its 500 test rows and 70 of 200 for validation have such a training row.
"""

import argparse
import hashlib
import os
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rl_reasoner.dataset.code_rows import code_row
from rl_reasoner.dataset.contamination import find_overlap, fold
from rl_reasoner.dataset.sets import read_rows
from rl_reasoner.dataset.tasks.generate import generate_problems
from rl_reasoner.errors import UserError
from rl_reasoner.files import sha256_of, write_json, write_jsonl
from rl_reasoner.types import Row

SOURCES = ("mawps", "asdiv", "svamp", "mbpp", "gsm8k_train", "gsm8k_test")
SPLITS = ("train", "validation", "test")
TEST, VALIDATION = 500, 200  # word problems held out; with fewer templates, their shares of these
LIKE = 0.4  # Jaccard similarity of templates from which on two are one

_NUMBER = r"-?\d+(?:\.\d+)?"
_EQUATION = re.compile(rf"\(?\s*({_NUMBER})\s*([-+*/])\s*({_NUMBER})\s*\)?(?:\s*=\s*{_NUMBER}\s*)?")
_IN_TEXT = re.compile(r"\d[\d,]*(?:\.\d+)?")
_PIECE = re.compile(r"\d[\d,.]*\d|\d|[A-Za-z]+")
_NUMERAL = re.compile(
    r"one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|"
    r"sixteen|seventeen|eighteen|nineteen|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety|"
    r"hundred|thousand|million"
)

Split = dict[str, list[Row]]
Counts = dict[str, int]


# ----------------------------------------------------------------------------- word problems


def one_step(row: Row) -> bool:
    """Whether a row of MAWPS, ASDiv or SVAMP is solved by one operation, with a numeric answer."""
    answer = _value(str(row["answer"]))
    if answer is None:
        return False
    if row.get("solution"):
        found = _EQUATION.fullmatch(str(row["solution"]).replace(",", "").strip())
        if not found:
            return False
        first, sign, second = found.groups()
        return any(abs(v - answer) < 0.01 for v in _results(float(first), float(second), sign))
    if row.get("subject") in ("singleeq", "addsub"):
        numbers = [float(text.replace(",", "")) for text in _IN_TEXT.findall(row["problem"])]
        pairs = [numbers, numbers[::-1]] if len(numbers) == 2 else []
        return any(abs(v - answer) < 0.01 for a, b in pairs for v in _results(a, b, "+-*/"))
    return row.get("subject") == "singleop"


def _value(text: str) -> float | None:
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return None


def _results(a: float, b: float, signs: str) -> list[float]:
    made = {"+": a + b, "-": a - b, "*": a * b} | ({"/": a / b} if b else {})
    return [made[sign] for sign in signs if sign in made]


def word_problems(rows: Sequence[Row]) -> tuple[Split, Counts]:
    """One-step rows in splits without a common template, and counts of what was left out."""
    kept = [row for row in rows if one_step(row)]
    by_text = defaultdict(list)
    for row in kept:
        by_text[" ".join(re.findall(r"\w+", fold(row)))].append(row)
    agreed = [same[0] for same in by_text.values() if len({_value(r["answer"]) for r in same}) == 1]
    counts = {
        "rows": len(rows),
        "not_one_step": len(rows) - len(kept),
        "repeated_text": len(kept) - len(by_text),
        "two_answers_for_one_text": len(by_text) - len(agreed),
    }
    groups = sorted(templates(agreed), key=lambda group: _order(group[0]))
    share = min(1.0, len(groups) / (2 * (TEST + VALIDATION)))
    test = round(TEST * share)
    held = groups[: test + round(VALIDATION * share)]
    chosen = [_tidy(min(group, key=_order)) for group in held]
    counts |= {
        "templates": len(groups),
        "shares_template_of_held_out": sum(map(len, held)) - len(held),
    }
    train = [_tidy(row) for group in groups[len(held) :] for row in group]
    split = {"train": train, "validation": chosen[test:], "test": chosen[:test]}
    return {name: sorted(rows, key=_order) for name, rows in split.items()}, counts


def with_equations(train: Sequence[Row], sources: Sequence[Row]) -> list[Row]:
    """Training rows whose source gives the equation, which is their completion, its value boxed."""
    given = {row["id"]: _EQUATION.fullmatch(_plain(row.get("solution", ""))) for row in sources}
    return [
        {**row, "completion": f"{a} {sign} {b} = \\boxed{{{_plain(row['answer'])}}}"}
        for row, found in ((row, given.get(row["id"])) for row in train)
        if found
        for a, sign, b in [found.groups()]
    ]


def _plain(number: str) -> str:
    """Numbers as people write them: 1050 for 1,050 and for 1050.0."""
    return re.sub(r"(\d)\.0+\b", r"\1", number.replace(",", "")).strip()


def _order(row: Row) -> str:
    """A place in a shuffle that depends on nothing but the row's id."""
    return hashlib.sha256(str(row["id"]).encode()).hexdigest()


def _tidy(row: Row) -> Row:
    return {name: row[name] for name in ("id", "problem", "answer", "source")}


def templates(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows in groups that are chained by alike templates: runs of 3 pieces, by Jaccard."""
    lower = {word for row in rows for word in re.findall(r"\b[a-z]+\b", row["problem"])}
    runs = [_runs(_template(row["problem"], lower)) for row in rows]
    parents = list(range(len(rows)))

    def root(index: int) -> int:
        while parents[index] != index:
            parents[index] = index = parents[parents[index]]
        return index

    having = defaultdict(list)
    for index, own in enumerate(runs):
        common = Counter(other for run in own for other in having[run])
        for other, count in common.items():
            if count >= LIKE * (len(own) + len(runs[other]) - count):
                parents[root(index)] = root(other)
        for run in own:
            having[run].append(index)
    groups = defaultdict(list)
    for index, row in enumerate(rows):
        groups[root(index)].append(row)
    return list(groups.values())


def _template(problem: str, lower: set[str]) -> list[str]:
    """The words of a problem, numbers as # and names (never seen in lower case) as @."""
    pieces: list[str] = []
    for piece in _PIECE.findall(problem):
        word = piece.lower()
        if piece[0].isdigit() or _NUMERAL.fullmatch(word):
            word = "#"
        elif piece[0].isupper() and word not in lower:
            word = "@"
        if not (word in "#@" and pieces[-1:] == [word]):  # "eight hundred five" is one number
            pieces.append(word)
    return pieces


def _runs(pieces: list[str]) -> set[tuple[str, ...]]:
    return {tuple(pieces[at : at + 3]) for at in range(max(1, len(pieces) - 2))}


# ---------------------------------------------------------------------------- the other sets


def mbpp(rows: Iterable[Row]) -> tuple[Split, Counts]:
    """MBPP's own splits by the number of the task; tasks 1 to 10 are for few-shot prompts."""
    split: Split = {name: [] for name in SPLITS}
    prompts = 0
    for row in rows:
        number = str(row.get("id", "")).rpartition("-")[2]
        if not number.isdecimal():
            raise UserError(f"mbpp.jsonl: id {row.get('id')!r} does not end in the task's number")
        task = int(number)
        if task <= 10:
            prompts += 1
            continue
        name = "test" if task <= 510 else "validation" if task <= 600 else "train"
        split[name].append(code_row(row))
    return split, {"for_few_shot_prompts": prompts}


def gsm8k(train: Sequence[Row], test: Sequence[Row]) -> tuple[Split, Counts]:
    """GSM8K's own files; the last 300 rows of the first (at most half of them) for validation."""
    held = min(300, len(train) // 2)
    own = [{**row, "level": _lines(row)} for row in train]
    return {
        "train": own[: len(own) - held],
        "validation": own[len(own) - held :],
        "test": [{**row, "level": _lines(row)} for row in test],
    }, {}


def _lines(row: Row) -> int:
    """Lines of a solution of GSM8K, a step each, without the last: `#### ANSWER`."""
    lines = [line for line in str(row.get("solution", "")).splitlines() if line.strip()]
    return max(1, len(lines) - 1)


def instructions() -> tuple[Split, Counts]:
    """English prompts of the task `instructions`, of its first two levels; splits are its own."""
    split: Split = {}
    counts = {"chinese": 0}
    for name, size in (("train", 2000), ("validation", VALIDATION), ("test", TEST)):
        drawn = generate_problems("instructions", split=name, count=3 * size, levels=range(1, 3))
        english = [row for row in (one.row() for one in drawn) if row["language"] == "en"]
        split[name] = english[:size]
        counts["chinese"] += len(drawn) - len(english)
    return split, counts


def without_copies(split: Split) -> int:
    """Take rows out of `train` until no held-out row counts as contaminated (`contamination`)."""
    held = split["validation"] + split["test"]
    taken = 0
    while True:
        hits = [hit for hit in find_overlap(split["train"], held).hits if hit]
        copies = {hit["train_row"] for hit in hits if hit["contaminated"]}
        if not copies:
            return taken
        taken += len(copies)
        split["train"] = [row for n, row in enumerate(split["train"]) if n not in copies]


# --------------------------------------------------------------------------------- the files


def make(folder: Path, data: Path) -> dict[str, Any]:
    """Write all splits to `folder` and return what splits.json says.

    Raises `UserError` when a source is missing or broken.
    """
    files = {name: data / f"{name}.jsonl" for name in SOURCES}
    missing = [str(file) for file in files.values() if not file.is_file()]
    if missing:
        raise UserError(f"missing: {', '.join(missing)}")
    rows = {name: read_rows(str(file)) for name, file in files.items()}
    made = {
        "word_problems": word_problems(rows["mawps"] + rows["asdiv"] + rows["svamp"]),
        "mbpp": mbpp(rows["mbpp"]),
        "gsm8k": gsm8k(rows["gsm8k_train"], rows["gsm8k_test"]),
        "instructions": instructions(),
    }
    told: dict[str, Any] = {"sources": {f.name: sha256_of(f) for f in files.values()}, "sets": {}}
    for name, (split, counts) in made.items():
        if name != "instructions":  # prompts of few words in common phrases are not copies
            counts["copies_taken_from_train"] = without_copies(split)
        if name == "word_problems":
            split["form"] = with_equations(split["train"], rows["asdiv"] + rows["svamp"])
        written = {part: folder / f"{name}_{part}.jsonl" for part in split}
        for part, file in written.items():
            write_jsonl(file, split[part])
        told["sets"][name] = {
            "rows": {part: len(rows) for part, rows in split.items()},
            "left_out": counts,
            "contamination": {
                part: find_overlap(split["train"], split[part]).counts()
                for part in ("validation", "test")
            },
            "sha256": {file.name: sha256_of(file) for file in written.values()},
        }
    write_json(folder / "splits.json", told)
    return told


def main() -> int:
    """Write the splits into the folder named on the command line and print their counts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, default=os.environ.get("RL_REASONER_DATA"))
    asked = parser.parse_args()
    if asked.data is None:
        parser.error("say where the sources lie: --data FOLDER, or RL_REASONER_DATA")
    try:
        told = make(asked.folder.expanduser(), asked.data.expanduser())
    except (UserError, OSError) as error:
        print(f"the splits could not be made: {error}", file=sys.stderr)
        return 2
    for name, what in told["sets"].items():
        rows = ", ".join(f"{part} {count}" for part, count in what["rows"].items())
        print(f"{name}: {rows}")
        print("  left out: " + ", ".join(f"{why} {n}" for why, n in what["left_out"].items()))
        for part, found in what["contamination"].items():
            kinds = ", ".join(f"{kind} {count}" for kind, count in found.items())
            print(f"  {part} rows found in train: {kinds}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
