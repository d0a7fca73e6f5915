"""A run that cannot learn says so, with the share and since when; a sound one is silent."""

import json
from pathlib import Path
from typing import Any

import pytest

from rl_reasoner.errors import UserError
from rl_reasoner.evaluation.learning_alarms import LearningAlarms, learning_alarms
from rl_reasoner.pipeline.placement import choose_placement
from rl_reasoner.pipeline.prepare import prepare
from rl_reasoner.report import write_report
from support.commands import Cli, stock
from support.tiny import grpo, recipe, rows


def step(number: int, **metrics: float) -> dict[str, Any]:
    sound = {"clipped_ratio": 0.1, "flat": 0.3, "reward": 0.4, "grad_norm": 0.5}
    told = sound | metrics
    return {
        "step": number,
        "completions/clipped_ratio": told["clipped_ratio"],
        "frac_reward_zero_std": told["flat"],
        "reward": told["reward"],
        "grad_norm": told["grad_norm"],
    }


def said(metrics: list[dict[str, Any]], steps: int = 40) -> list[str]:
    return [str(found) for found in learning_alarms(metrics, LearningAlarms(96, steps, 1.0))]


def test_all_cut_off_from_the_start() -> None:
    found = said([step(n, clipped_ratio=1.0) for n in range(1, 20)])
    assert found == [
        "since step 1: all completions are cut off at 96 tokens: raise sampling.max_tokens"
    ]


def test_groups_flat_at_nought_since_a_step() -> None:
    metrics = [step(n) for n in range(1, 11)]
    metrics += [step(n, flat=0.98, reward=0.001) for n in range(11, 41)]
    [told] = said(metrics)
    assert told.startswith("since step 11: 98% of the groups are flat at 0")


def test_what_is_over_is_told_with_both_ends() -> None:
    metrics = [step(n, flat=1.0, reward=0.2) for n in range(1, 21)]
    metrics += [step(n) for n in range(21, 41)]
    [told] = said(metrics)
    assert told.startswith("from step 1 to 20: all groups have equal rewards (mean 0.2)")


def test_rows_that_are_solved_raise_no_alarm_unless_from_the_start() -> None:
    right = [step(n, flat=1.0, reward=1.0, grad_norm=0.0) for n in range(11, 41)]
    assert said([step(n) for n in range(1, 11)] + right) == []
    [told] = said(right)
    assert "the rows are too easy" in told


def test_rewards_of_another_scale_are_not_taken_for_solved() -> None:
    """A reward of 2 points of 10 is above the 1 that the weights alone would allow."""
    stuck = [step(n, flat=1.0, reward=2.0, grad_norm=0.0) for n in range(11, 41)]
    for metrics in (stuck, [step(n, reward=1.8) for n in range(1, 11)] + stuck):
        [told] = said(metrics)
        assert "all groups have equal rewards (mean 2)" in told


def test_no_gradient_is_told_unless_equal_rewards_explain_it() -> None:
    still = [step(n, grad_norm=0.0) for n in range(1, 9)]
    assert said(still) == ["since step 1: no step changes the policy: the gradient is 0"]
    [told] = said([{**row, "frac_reward_zero_std": 1.0, "reward": 0.0} for row in still])
    assert "flat at 0" in told


def test_a_lower_share_at_the_end_of_a_window_is_counted_apart() -> None:
    [told] = said([step(n, clipped_ratio=share) for n, share in enumerate([1, 1, 1, 1, 0.6], 1)])
    assert told.startswith("since step 1: all completions")


def test_a_sound_run_and_a_few_bad_steps_say_nothing() -> None:
    assert said([step(n, flat=1.0 if n % 3 == 0 else 0.4) for n in range(1, 60)]) == []
    assert said([step(n, clipped_ratio=1.0) for n in range(1, 4)]) == []


@pytest.mark.slow
def test_a_run_that_is_cut_off_says_so_while_it_runs_and_in_the_report(
    tmp_path: Path, cli: Cli
) -> None:
    stock(tmp_path)
    ended = cli("train", "tiny.yaml", "--grpo.steps", "6", "--grpo.optim.lr", "1e-9")
    assert ended.code == 0, ended.err
    metrics = rows(tmp_path / "run" / "stages" / "2-grpo" / "metrics.jsonl")
    assert all(row["completions/clipped_ratio"] == 1.0 for row in metrics)
    alarm = "since step 1: all completions are cut off at 4 tokens: raise sampling.max_tokens"
    assert f"alarm: {alarm}" in ended.err
    assert f"stage grpo ends with this alarm: {alarm}" in ended.err
    page = write_report(tmp_path / "run").read_text()
    assert f"Stage grpo: Alarm, {alarm}" in page


@pytest.mark.slow
def test_too_few_rows_for_a_step_are_told_before_the_run(tmp_path: Path, cli: Cli) -> None:
    stock(tmp_path)
    few = [{"problem": f"{n}+1=", "answer": str(n + 1)} for n in range(3)]
    (tmp_path / "few.jsonl").write_text("".join(json.dumps(row) + "\n" for row in few))
    stage = grpo(data={"path": "few.jsonl"}, group={"size": 2, "prompts": 4})
    with pytest.raises(UserError, match="3 rows cannot fill a step of 4 prompts"):
        made = recipe(tmp_path, stage)
        prepare(made, choose_placement(made))
    text = (
        (tmp_path / "tiny.yaml")
        .read_text()
        .replace("task: modular, count: 8, seed: 1", "path: few.jsonl")
    )
    (tmp_path / "tiny.yaml").write_text(text)
    ended = cli("train", "tiny.yaml", "--grpo.group.prompts", "4")
    assert ended.code == 2 and not (tmp_path / "run").exists()
    assert "3 rows cannot fill a step of 4 prompts, so nothing would be trained" in ended.err
    assert cli("train", "tiny.yaml", "--grpo.group.prompts", "3", "--until", "sft").code == 0
