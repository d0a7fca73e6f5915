"""benchmarks/real/over_seeds.py: several seeds' evaluations are joined problem by problem."""

import json
import math
import random
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from scipy import stats

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


# ------------------------------------------------------------------ seeds and problems random


def mbpp(*seeds: int) -> list[Path]:
    return [RESULTS / f"mbpp_qwen_coder-{seed}.json" for seed in seeds]


def test_three_seeds_that_differ_show_no_gain_of_samples_on_humaneval() -> None:
    files = mbpp(6, 7, 8)
    found = over_seeds.over_seeds(files, files)["humaneval@sampled"]
    alone = over_seeds.compared(
        over_seeds.joined(files, "before"), over_seeds.joined(files, "after")
    )["humaneval@sampled"]
    assert math.isclose(found.difference, alone["difference"])
    assert alone["interval"][0] > 0.03, "over problems, as if the seeds were all there are"
    assert [round(100 * end, 1) for end in found.interval] == [-5.4, 21.7]
    assert found.p > 0.1 and not found.bounded


def test_the_interval_covers_the_mean_of_other_seeds_on_other_problems() -> None:
    draw = random.Random(0)
    covered, draws = 0, 400
    for _ in range(draws):
        seeds = [draw.gauss(0.1, 0.05) for _ in range(3)]
        problems = [draw.gauss(0, 0.4) for _ in range(50)]
        made = [[s + p + draw.gauss(0, 0.3) for s in seeds] for p in problems]
        low, high = over_seeds.two_way(made).interval
        covered += low <= 0.1 <= high
    assert 0.92 <= covered / draws <= 0.99


def test_files_without_marks_have_a_bound_no_narrower_than_with_them() -> None:
    files = mbpp(4, 5, 6, 7, 8)
    exact = over_seeds.over_seeds(files, files)
    bounds = over_seeds._bounded([json.loads(file.read_text()) for file in files])
    for name, each in exact.items():
        bound = bounds[name]
        assert math.isclose(bound.difference, each.difference)
        assert bound.interval[0] <= each.interval[0] and each.interval[1] <= bound.interval[1], name
    old = [RESULTS / f"word_problems_smollm2-{seed}.json" for seed in range(4)]
    assert all(each.bounded for each in over_seeds.over_seeds(old, old).values())
    with pytest.raises(UserError, match="compared with themselves alone"):
        over_seeds.over_seeds(old, mbpp(4, 5, 6, 7))
    with pytest.raises(UserError, match="one of each of two seeds or more"):
        over_seeds.over_seeds(old[:1], old[:1])


@pytest.mark.parametrize("freedom", [1.0, 1.58, 2.43, 9.2, 63.0])
def test_students_t_takes_broken_degrees_of_freedom(freedom: float) -> None:
    assert math.isclose(over_seeds.t_quantile(freedom), stats.t.ppf(0.975, freedom), rel_tol=1e-6)
    assert math.isclose(over_seeds.t_tails(2.5, freedom), 2 * stats.t.sf(2.5, freedom))


def test_seeds_that_are_equal_leave_what_problems_vary(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    same = over_seeds.two_way([[0.0, 0.0]] * 9)
    assert same.interval == (0.0, 0.0) and same.p == 1.0
    files = [str(file) for file in mbpp(6, 7, 8)]
    monkeypatch.setattr(sys, "argv", ["x", "--before", *files, "--after", *files])
    over_seeds.main()
    assert "| humaneval@sampled | 3 | +8.1 [−5.4, +21.7] | 0.14 |" in capsys.readouterr().out
