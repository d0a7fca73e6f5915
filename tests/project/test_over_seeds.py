"""benchmarks/real/over_seeds.py: several seeds' evaluations are joined problem by problem."""

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from rl_reasoner import EvalResult, compare
from rl_reasoner.errors import UserError
from rl_reasoner.evaluation.metrics import compute_figures
from support.places import ROOT

sys.path.insert(0, str(ROOT / "benchmarks" / "real"))

import over_seeds

RESULTS = ROOT / "benchmarks" / "real" / "results"


def saved(file: Path, marks: Sequence[float], *, backwards: bool = False, first: int = 0) -> Path:
    """A result on a set of as many problems, with one completion each."""
    rows = [
        {
            "problem": f"What is {i} plus {i}?",
            "answer": str(2 * i),
            "completions": [f"{mark}"],
            "scores": [mark],
            "lenient": [mark],
            "reasons": [""],
            "outcomes": ["score"],
            "tokens": [3],
            "truncated": [False],
        }
        for i, mark in enumerate(marks, first)
    ]
    rows = rows[::-1] if backwards else rows
    return EvalResult("p", rows={"sums": rows}, sets={"sums": compute_figures(rows)}).save(file)


def test_the_difference_is_the_mean_of_the_seeds(tmp_path: Path) -> None:
    before = [saved(tmp_path / f"before{i}.json", [0, 0, 1, 0] * 10) for i in range(2)]
    marks = [[1, 0, 1, 0] * 10, [1, 1, 1, 0] * 10]
    after = [
        saved(tmp_path / f"after{i}.json", side, backwards=i > 0) for i, side in enumerate(marks)
    ]
    alone = [
        compare(EvalResult.load(a), EvalResult.load(b))["sums"]["difference"]
        for a, b in zip(before, after, strict=True)
    ]
    together = over_seeds.compared(
        over_seeds.joined(before, "before"), over_seeds.joined(after, "after")
    )["sums"]
    assert alone == [0.25, 0.5]
    assert math.isclose(together["difference"], 0.375)
    assert together["problems"] == 40
    assert together["better"] == 20
    assert over_seeds.joined(after, "after").rows["sums"][1]["scores"] == [0, 1], (
        "by problem, not by place"
    )


def test_other_problems_are_refused(tmp_path: Path) -> None:
    a = saved(tmp_path / "a.json", [0, 1])
    for other in (saved(tmp_path / "b.json", [0, 1], first=5), saved(tmp_path / "c.json", [0])):
        with pytest.raises(UserError, match=r"other problems of sums"):
            over_seeds.joined([a, other], "before")


def test_the_results_in_the_repository_can_be_joined_without_their_runs() -> None:
    files = [RESULTS / f"mbpp_qwen_coder-{seed}.json" for seed in (4, 5)]
    sides = [over_seeds.joined(files, side) for side in ("before", "after")]
    found = over_seeds.compared(*sides)["mbpp_test"]
    told = [json.loads(file.read_text())["paired_with_before"]["after"] for file in files]
    alone = [each["mbpp_test"]["difference"] for each in told]
    assert math.isclose(found["difference"], sum(alone) / 2) and found["problems"] == 500


def test_a_control_arm_stands_behind_an_at() -> None:
    file = RESULTS / "mbpp_qwen_coder-5.json"
    arm = over_seeds.joined([Path(f"{file}@form_only")], "after")
    found = over_seeds.compared(over_seeds.joined([file], "before"), arm)["mbpp_test"]
    told = json.loads(file.read_text())["controls"]["arms"]["form_only"]["sets"]
    (expected,) = (each for name, each in told.items() if name.endswith("mbpp_test.jsonl"))
    assert math.isclose(found["difference"], expected["gain"]["difference"])
    with pytest.raises(UserError, match=r"-0\.json is of an earlier version"):
        over_seeds.joined([RESULTS / "mbpp_qwen_coder-0.json"], "before")
    with pytest.raises(UserError, match=r"no evaluation 'random_reward': it has after, before"):
        over_seeds.joined([Path(f"{file}@random_reward")], "before")
