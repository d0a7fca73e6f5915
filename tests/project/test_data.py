"""The data sets in data/: made byte for byte, well formed, and right."""

import ast
import json
import re
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from rl_reasoner.dataset.tasks.generate import TASKS
from rl_reasoner.paths import room
from support.arithmetic import value
from support.places import SHARED

DATA = room("data")
COUNTS = {"train": 200, "validation": 200, "test": 500, "ood": 300}
COUNTS_OF = {
    "modular": {"train": 200, "validation": 400, "test": 1000, "ood": 500},
    "product": {"validation": 100, "test": 500},
    "tens": {"validation": 100, "test": 500},
    "guess": {"validation": 25, "test": 75},
    "grid": {"validation": 100, "test": 400},
    "functions": {"validation": 200, "test": 400},
    "instructions": {"train": 200, "validation": 200, "test": 400, "ood": 200},
    "instructions_tiny": {"train": 200, "validation": 400, "test": 1000, "ood": 300},
}
RUN_ALL = """
import json, sys
faults = []
for row in json.load(sys.stdin):
    names = {}
    exec(row["reference_solution"], names)
    for test in row["tests"]:
        got = names[test["call"]](*test["args"])
        if type(got) is not type(test["expected"]) or got != test["expected"]:
            faults.append([row["id"], test, repr(got)])
json.dump(faults, sys.stdout)
"""


def rows_of(name: str) -> list[dict[str, Any]]:
    with (DATA / name).open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(folder / "make.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


# ----------------------------------------------------------------------------------- files


def test_the_files_are_what_the_script_makes() -> None:
    done = make(DATA, "--check")
    assert (done.returncode, done.stdout) == (0, "differing: none\n"), done.stderr


def test_a_changed_file_is_found_and_restored(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(DATA, folder, ignore=shutil.ignore_patterns("__pycache__"))
    changed = folder / "gcd_test.jsonl"
    kept = changed.read_bytes()
    changed.write_bytes(kept.replace(b"1", b"2", 1))
    (folder / "programming.jsonl").unlink()
    found = make(folder, "--check")
    assert (found.returncode, found.stdout) == (1, "differing: gcd_test.jsonl, programming.jsonl\n")
    assert not (folder / "programming.jsonl").exists()  # a check writes nothing
    assert make(folder).returncode == 0
    assert changed.read_bytes() == kept
    assert (folder / "programming.jsonl").read_bytes() == (DATA / "programming.jsonl").read_bytes()


def test_every_file_is_made_and_described() -> None:
    names = {path.name for path in DATA.glob("*.jsonl")}
    expected = {f"{task}_{split}.jsonl" for task in TASKS for split in COUNTS_OF.get(task, COUNTS)}
    assert names == expected | {"word_problems.jsonl", "programming.jsonl"}
    sheet = (DATA / "DATASHEET.md").read_text(encoding="utf-8")
    for name in [*TASKS, "word_problems.jsonl", "programming.jsonl"]:
        assert f"`{name}`" in sheet
    assert sum(path.stat().st_size for path in DATA.iterdir() if path.is_file()) < 3_200_000


# ------------------------------------------------------------------------------- task sets


@pytest.mark.parametrize("task", sorted(TASKS))
def test_task_sets_are_distinct_well_formed_and_apart(task: str) -> None:
    seen: set[str] = set()
    total = 0
    for split, count in COUNTS_OF.get(task, COUNTS).items():
        rows = rows_of(f"{task}_{split}.jsonl")
        levels = TASKS[task].ood if split == "ood" else TASKS[task].levels
        extra = {
            "countdown": {"numbers", "target"},
            "functions": {"completion", "tests"},
            "instructions": {"instructions", "language"},
            "instructions_tiny": {"completion", "instructions", "language"},
            "guess": {"start"},
            "grid": {"start"},
        }
        fields = {"id", "problem", "answer", "task", "level"} | extra.get(task, {"chain"})
        fields -= {"answer"} if task in ("grid", "guess") else set()
        fields |= {"chain"} if task == "countdown" else set()
        for row in rows:
            assert set(row) == fields
            assert row["task"] == task
            assert row["level"] in levels
            texts = [row[name] for name in ("answer", "chain", "completion") if name in row]
            assert all(isinstance(text, str) and text for text in texts)
        assert len(rows) == count
        total += count
        problems = {f"{row['problem']}{row.get('start', '')}" for row in rows}
        seen |= problems | {row["id"] for row in rows}
    assert len(seen) == 2 * total  # no problem and no id twice, in all splits together


# ---------------------------------------------------------------------------- word problems


def test_word_problems_are_well_formed() -> None:
    rows = rows_of("word_problems.jsonl")
    fields = ["id", "problem", "solution", "answer", "check", "subject", "level"]
    assert all(list(row) == fields for row in rows)
    assert [row["id"] for row in rows] == [f"word-{number:03d}" for number in range(1, 101)]
    assert len({row["problem"] for row in rows}) == 100
    assert len({row["subject"] for row in rows}) == 10
    assert {row["level"] for row in rows} == {1, 2, 3}
    assert all(re.search(r"[?.]$", row["problem"]) for row in rows)


@pytest.mark.parametrize("row", rows_of("word_problems.jsonl"), ids=lambda row: row["id"])
def test_word_problem_answers_are_right(row: dict[str, Any]) -> None:
    assert Fraction(row["answer"]) == value(row["check"])
    # The worked solution comes to the answer, too.
    assert re.search(rf"(?<![\d.]){re.escape(row['answer'])}(?!\d)", row["solution"])


@pytest.mark.skipif(not SHARED.is_dir(), reason="the public sets are not beside the repository")
def test_word_problems_are_in_no_public_set() -> None:
    def grams(text: str) -> set[tuple[str, ...]]:
        words = re.findall(r"[a-z0-9]+", text.lower())
        return {tuple(words[start : start + 10]) for start in range(len(words) - 9)}

    own = set().union(*(grams(row["problem"]) for row in rows_of("word_problems.jsonl")))
    for name in ("gsm8k_train", "gsm8k_test", "svamp", "asdiv", "mawps", "math_test"):
        with (SHARED / "data" / f"{name}.jsonl").open(encoding="utf-8") as lines:
            for line in lines:
                assert not own & grams(json.loads(line)["problem"]), line


# ------------------------------------------------------------------------------ programming


def test_programming_problems_are_well_formed() -> None:
    rows = rows_of("programming.jsonl")
    assert [row["id"] for row in rows] == [f"prog-{number:02d}" for number in range(1, 61)]
    assert len({row["entry_point"] for row in rows}) == 60
    assert {row["level"] for row in rows} == {1, 2, 3}
    for row in rows:
        (function,) = ast.parse(row["reference_solution"]).body
        assert isinstance(function, ast.FunctionDef)
        assert function.name == row["entry_point"]
        assert ast.get_docstring(function) is None  # the specification is the prompt's
        assert f"Write a Python function `{function.name}(" in row["prompt"]
        assert f"Example: `{function.name}(" in row["prompt"]
        assert len({json.dumps(test["args"]) for test in row["tests"]}) >= 5
        assert row["time_limit_s"] > 0
        answers = [json.dumps(test["expected"]) for test in row["tests"]]
        assert len(set(answers)) > 1  # no constant passes
        assert all(set(test) == {"call", "args", "expected"} for test in row["tests"])


def test_reference_solutions_pass_their_tests() -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-c", RUN_ALL],
        input=json.dumps(rows_of("programming.jsonl")),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert json.loads(done.stdout) == []
