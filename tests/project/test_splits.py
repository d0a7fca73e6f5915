"""benchmarks/real/splits.py: rows of the recipes that train real models."""

import hashlib
import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.places import DATA, ROOT

SCRIPT = ROOT / "benchmarks" / "real" / "splits.py"
OTHERS = ("word_problems", "mbpp", "gsm8k")  # sets that are made of others' files
SETS = (*OTHERS, "instructions")


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.open(encoding="utf-8")]


def split(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, cwd=ROOT
    )


def row(id: str, problem: str, answer: str, **more: str) -> dict[str, Any]:
    return {"id": id, "problem": problem, "answer": answer, "source": "made up"} | more


GSM8K = ["aa", "bb", "cc", "dd", "ee", "ff", "gg", "hh", "ii", "jj"]
STORIES = 8


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Tiny sources: eight stories with two wordings each, and a task of each split of MBPP."""
    told = "{0} saw {1} a{3} b{3} c{3} d{3} e{3}. Then {2} f{3} g{3} h{3} went"
    singles = [
        row(
            f"m-{n}-{name}",
            told.format(name, 9 + n, 4, "xyzuvwst"[n]),
            str(5 + n),
            subject="singleop",
        )
        for n in range(STORIES)
        for name in ("Ada", "Bob")
    ]
    tasks = [
        {"id": f"mbpp-x-{n}", "prompt": f"Do {n} {text}", "tests": [f"assert f{n}({n}) == {n}"]}
        for n, text in [(3, "shown"), (11, "one way"), (510, "two"), (511, "three"), (601, "four")]
    ]
    same = {"prompt": "Do 11 one way", "tests": ["assert f11(11) == 11"]}
    texts = [
        row(f"g-{n}", f"{word} {n} " * 20, str(n), solution="A step.\n\n" * (n % 3) + f"#### {n}")
        for n, word in enumerate(GSM8K)
    ]
    made = {
        "mawps": singles,
        "asdiv": [row("a-0", "Zoe has 2 dice and 3 dice", "5", solution="2+3=5")],
        "svamp": [row("s-0", "How many more trees", "7", solution="( 9.0 - 2.0 )")],
        "mbpp": [*tasks, {"id": "mbpp-x-974"} | same],
        "gsm8k_train": texts[:8],
        "gsm8k_test": texts[8:],
    }
    folder = tmp_path / "data"
    folder.mkdir()
    for name, rows in made.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


@pytest.mark.parametrize(
    ("kept", "fields"),
    [
        (True, {"answer": "5", "solution": "2+3=5"}),
        (True, {"answer": "4.5", "solution": "( 9.0 / 2.0 )"}),
        (True, {"answer": "1,050", "solution": "6*175=1,050"}),
        (False, {"answer": "9", "solution": "2+3+4=9"}),
        (False, {"answer": "6", "solution": "2+3=5"}),  # the answer is not the equation's
        (False, {"answer": "4", "solution": "9/2=4 r1"}),
        (False, {"answer": "Ann", "solution": "2+3=5"}),
        (False, {"answer": "5", "solution": "5/0=5"}),
        (True, {"answer": "3", "subject": "singleop"}),
        (True, {"answer": "11", "subject": "addsub", "problem": "She had 7 and got 4."}),
        (True, {"answer": "3", "subject": "singleeq", "problem": "4 of 7 left"}),
        (False, {"answer": "11", "subject": "singleeq", "problem": "1 had 7 and got 4"}),
        (False, {"answer": "12", "subject": "addsub", "problem": "7 and 4"}),
        (False, {"answer": "11", "subject": "multiarith", "problem": "7 and 4"}),
    ],
)
def test_one_step_is_one_operation_that_gives_the_answer(
    kept: bool, fields: dict[str, str]
) -> None:
    one_step = runpy.run_path(str(SCRIPT))["one_step"]
    assert one_step({"id": "x", "problem": "no numbers"} | fields) is kept


def test_wordings_of_one_story_have_one_template() -> None:
    templates = runpy.run_path(str(SCRIPT))["templates"]
    rows = [
        row("0", "Sam found 18 red shells and Mary found 4 blue ones. How many in all?", "22"),
        row("1", "Tom found seventy six red shells and Kim found 12 blue ones. How many?", "88"),
        row("2", "A bus with 9 seats drives to the sea, and 3 seats are empty. Who sits?", "6"),
    ]
    groups = sorted([r["id"] for r in group] for group in templates(rows))
    assert groups == [["0", "1"], ["2"]]


def test_splits_are_written_counted_and_the_same_again(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = split(str(out), "--data", str(data))
    assert done.returncode == 0, done.stderr
    told = json.loads((out / "splits.json").read_text())
    for name in SETS:
        for part, count in told["sets"][name]["rows"].items():
            file = out / f"{name}_{part}.jsonl"
            assert len(rows_of(file)) == count
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            assert told["sets"][name]["sha256"][file.name] == digest
        for found in told["sets"][name]["contamination"].values():
            assert found["exact"] == 0 and (name not in OTHERS or found["contaminated"] == 0)
    problems = {part: rows_of(out / f"word_problems_{part}.jsonl") for part in
                ("train", "validation", "test")}  # fmt: skip
    # ten templates, of which eight have two wordings: half of them are held out, one row of each
    assert len(problems["test"]) + len(problems["validation"]) == 5
    stories = {part: {r["id"].rsplit("-", 1)[0] for r in rows} for part, rows in problems.items()}
    assert not stories["train"] & (stories["test"] | stories["validation"])
    left_out = told["sets"]["word_problems"]["left_out"]
    assert len(problems["train"]) + 5 + left_out["shares_template_of_held_out"] == 18
    assert {r["id"] for r in rows_of(out / "mbpp_test.jsonl")} == {"mbpp-x-11", "mbpp-x-510"}
    assert [r["id"] for r in rows_of(out / "mbpp_validation.jsonl")] == ["mbpp-x-511"]
    [task] = rows_of(out / "mbpp_train.jsonl")  # 974 has the text of 11
    assert task["tests"] == ["assert f601(601) == 601"] and task["tests"][0] in task["problem"]
    assert told["sets"]["mbpp"]["left_out"]["copies_taken_from_train"] == 1
    told_steps = {part: rows_of(out / f"gsm8k_{part}.jsonl") for part in problems}
    assert [len(rows) for rows in told_steps.values()] == [4, 4, 2]
    for gsm8k in (r for rows in told_steps.values() for r in rows):  # a level is a number of steps
        assert gsm8k["level"] == max(1, int(gsm8k["answer"]) % 3)
    prompts = rows_of(out / "instructions_test.jsonl")
    assert len(prompts) == 500
    assert {r["language"] for r in prompts} == {"en"} and {r["level"] for r in prompts} == {1, 2}
    again = tmp_path / "again"
    shutil.copytree(data, tmp_path / "copy")
    assert split(str(again), "--data", str(tmp_path / "copy")).returncode == 0
    assert {f.name: f.read_bytes() for f in out.iterdir()} == {
        f.name: f.read_bytes() for f in again.iterdir()
    }


def test_a_missing_or_broken_source_is_named(data: Path, tmp_path: Path) -> None:
    (data / "svamp.jsonl").write_text('{"id": \n')
    done = split(str(tmp_path / "out"), "--data", str(data))
    assert done.returncode == 2 and "svamp.jsonl" in done.stderr
    (data / "svamp.jsonl").unlink()
    done = split(str(tmp_path / "out"), "--data", str(data))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and str(data / "svamp.jsonl") in done.stderr
    assert not (tmp_path / "out").exists()


def test_rows_with_an_equation_get_it_as_their_completion() -> None:
    sources = [
        row("a", "Zoe has 2 dice", "1,050", solution="6*175=1,050"),
        row("s", "Trees", "7.0", solution="( 9.0 - 2.0 )"),
        row("u", "Not in training", "3", solution="1+2=3"),
    ]
    train = [row("m", "No equation", "4"), *({**r, "solution": ""} for r in sources[:2])]
    form = runpy.run_path(str(SCRIPT))["with_equations"](train, sources)
    assert {r["id"]: r["completion"] for r in form} == {
        "a": "6 * 175 = \\boxed{1050}",
        "s": "9 - 2 = \\boxed{7}",
    }


@pytest.mark.matrix
@pytest.mark.real
@pytest.mark.slow
def test_the_real_sets(tmp_path: Path) -> None:
    if not DATA.is_dir():
        pytest.skip("the folder ../shared/data is not beside the checkout")
    done = split(str(tmp_path), "--data", str(DATA))
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "splits.json").read_text())["sets"]
    assert told["word_problems"]["rows"]["test"] == 500
    assert told["word_problems"]["rows"]["validation"] == 200
    assert told["word_problems"]["rows"]["train"] > 1000
    forms = rows_of(tmp_path / "word_problems_form.jsonl")
    assert len(forms) > 800 and all("= \\boxed{" in r["completion"] for r in forms)
    assert told["mbpp"]["rows"]["test"] == 500 and told["mbpp"]["rows"]["validation"] == 90
    assert told["gsm8k"]["rows"]["test"] == 1319 and told["gsm8k"]["rows"]["validation"] == 300
    assert all(
        found["contaminated"] == 0
        for name in OTHERS
        for found in told[name]["contamination"].values()
    )
    kept = {part: found["contaminated"] for part, found in
            told["instructions"]["contamination"].items()}  # fmt: skip
    words = " ".join((runpy.run_path(str(SCRIPT))["__doc__"] or "").split())
    assert kept == {"validation": 70, "test": 156}
    assert "156 of its 500 test rows and 70 of 200 for validation" in words, "they are not left out"
    page = (ROOT / "docs" / "real-models.md").read_text(encoding="utf-8")
    assert "156 are contaminated" in page
    for name in SETS:
        ids = [r["id"] for p in ("train", "validation", "test") for r in
               rows_of(tmp_path / f"{name}_{p}.jsonl")]  # fmt: skip
        assert len(ids) == len(set(ids))
