"""Treatment minus control: the comparison's figures, its words, and its section of the page."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl_reasoner.evaluation.result import EvalResult
from rl_reasoner.evaluation.statistics import holm, mcnemar, wilson
from rl_reasoner.report import write_report
from rl_reasoner.report.controls import (
    against_controls,
    control_differences,
    control_sentences,
    controls_table,
    verdict,
)
from rl_reasoner.report.run_data import Paired
from support.report_runs import make_run

Scores = dict[str, list[float]]
FACTS = {
    "random_reward": {
        "reward": {"mean": 0.25, "low": 0.0, "high": 1.0},
        "steps": 60,
        "seconds": 90.0,
    },
    "form_only": {"reward": {}, "steps": 60, "seconds": 80.0},
}


def result(scores: Scores) -> EvalResult:
    """An evaluation of one completion a problem."""
    rows = {
        name: [{"problem": f"{name} {i}", "answer": "1", "scores": [s]} for i, s in enumerate(own)]
        for name, own in scores.items()
    }
    sets: dict[str, Any] = {
        name: {
            "problems": len(own),
            "accuracy": sum(own) / len(own),
            "interval": [*wilson(sum(own), len(own))],
        }
        for name, own in scores.items()
    }
    return EvalResult("p", sets=sets, rows=rows)


def comparison(before: Scores, treatment: Scores, **arms: Scores) -> dict[str, Any]:
    made = {name: result(scores) for name, scores in arms.items()}
    facts = {name: FACTS[name] for name in arms}
    value = against_controls("grpo", result(before), result(treatment), made, facts)
    loaded: dict[str, Any] = json.loads(json.dumps(value))  # as the file holds it
    return loaded


def drawn(share: float, seed: int, n: int = 200) -> list[float]:
    rng = random.Random(seed)
    return [float(rng.random() < share) for _ in range(n)]


shares = st.lists(st.sampled_from([0.0, 1.0]), min_size=8, max_size=8)


@settings(max_examples=50)
@given(st.lists(shares, min_size=4, max_size=4))
def test_each_difference_is_paired_and_all_are_adjusted_together(given: list[list[float]]) -> None:
    before, treatment, one, two = given
    other = {"hard": treatment[::-1]}
    value = comparison(
        {"easy": before, "hard": before},
        {"easy": treatment, **other},
        random_reward={"easy": one, "hard": one},
        form_only={"easy": two, "hard": two},
    )
    tests = [*control_differences(value)]
    assert [(name, arm) for name, arm, _ in tests] == [
        (name, arm) for name in ("easy", "hard") for arm in ("random_reward", "form_only")
    ]
    for name, arm, test in tests:
        ours = treatment if name == "easy" else other["hard"]
        theirs = one if arm == "random_reward" else two
        changes = [a - b for a, b in zip(ours, theirs, strict=True)]
        assert test.difference == pytest.approx(sum(changes) / 8)
        assert test.p == pytest.approx(mcnemar(changes.count(-1.0), changes.count(1.0)))
    listed = [e["p"] for arm in value["arms"].values() for e in arm["headline"].values()]
    adjusted = [e["p_holm"] for arm in value["arms"].values() for e in arm["headline"].values()]
    assert adjusted == holm(listed) and value["tests"] == 4


def test_a_gain_that_the_controls_share_is_not_the_rewards() -> None:
    before, after = {"s": drawn(0.2, 1)}, {"s": drawn(0.6, 2)}
    value = comparison(before, after, random_reward={"s": drawn(0.58, 3)}, form_only=before)
    by_arm = {arm: verdict(test) for _, arm, test in control_differences(value)}
    assert by_arm == {"random_reward": "not told apart", "form_only": "above its control"}
    first, second = control_sentences(value)
    assert "the treatment gained +" in first and first.endswith("not told apart.")
    assert second.endswith("the control 0.0: above its control.")
    table = controls_table(value)
    assert "treatment minus control" in table and "Holm for 2 tests" in table


def test_lenient_marks_are_compared_beside_and_adjusted_apart() -> None:
    """What the treatment has above its control may be the form alone."""
    made = {
        "before": (drawn(0.1, 1), drawn(0.5, 4)),
        "treatment": (drawn(0.6, 2), drawn(0.6, 2)),
        "control": (drawn(0.1, 3), drawn(0.58, 5)),
    }
    results = {}
    for label, (strict, lenient) in made.items():
        one = results[label] = result({"s": strict})
        for row, mark in zip(one.rows["s"], lenient, strict=True):
            row["lenient"] = [mark]
        one.sets["s"]["lenient"] = {"accuracy": sum(lenient) / 200, "interval": [0.1, 0.9]}
    arms = {"random_reward": results["control"]}
    value = against_controls("grpo", results["before"], results["treatment"], arms, FACTS)
    assert {name: verdict(test) for name, _, test in control_differences(value)} == {
        "s": "above its control",
        "s@lenient": "not told apart",
    }
    assert value["tests"] == 1
    for test in value["arms"]["random_reward"]["headline"].values():
        assert test["p_holm"] == test["p"], "each family has one test"
    assert "s@lenient" in controls_table(value)


def test_a_run_below_its_control_is_said_to_be() -> None:
    value = comparison(
        {"s": drawn(0.5, 1)}, {"s": drawn(0.1, 2)}, random_reward={"s": drawn(0.6, 3)}
    )
    assert [verdict(test) for _, _, test in control_differences(value)] == ["below its control"]


@given(st.floats(-1, 1), st.floats(-1, 1), st.floats(-1, 1), st.floats(0, 1), st.floats(0, 1))
def test_no_verdict_without_both_interval_and_test(
    low: float, high: float, difference: float, p: float, adjusted: float
) -> None:
    words = verdict(Paired(10, difference, (low, high), p, adjusted, "any"))
    assert (words == "above its control") == (adjusted < 0.05 and low > 0)


def test_the_page_shows_the_headline_the_table_and_the_curves(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    treatment = {"modular_test": drawn(0.75, 2), "sums_hard": drawn(0.4, 5)}
    control = {"modular_test": drawn(0.2, 3), "sums_hard": drawn(0.38, 6)}
    before = {"modular_test": drawn(0.15, 1), "sums_hard": drawn(0.3, 4)}
    value = comparison(before, treatment, random_reward=control)
    (run / "controls.json").write_text(json.dumps(value))
    arm = run / "controls/random_reward/stages/1-random_reward"
    arm.mkdir(parents=True)
    (arm / "metrics.jsonl").write_text('{"step": 1, "completions/mean_length": 30.5}\n')
    page = write_report(run).read_text(encoding="utf-8")
    head, _, rest = page.partition("</header>")
    assert "minus random_reward: +" in head and "above its control" in head
    section = rest.partition('id="controls"')[2].partition("</section>")[0]
    for said in ("Treatment minus control", "mean 0.25 of 0 to 1", "2506.10947", "sums_hard"):
        assert said in section
    assert "Length in the stage" in section


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"arms": 3}',
        '{"arms": {"../../x": {"headline": {"s": {"difference": 1}}}}}',
        '{"arms": {"random_reward": {"headline": {"s": {"problems": 1, "difference": NaN}}}}}',
        '{"stage": [], "arms": {"form_only": {"headline": {"<b>": {"problems": 5, "difference": 1,'
        ' "interval": [0.5, 1], "p": 0.01, "p_holm": 0.01}}}}}',
    ],
)
def test_a_file_of_anybodys_breaks_no_page(text: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "controls.json").write_text(text)
    page = write_report(run).read_text(encoding="utf-8")
    assert "../../x" not in page and "<b>:" not in page
