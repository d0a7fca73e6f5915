"""Forecasts of real stages: of a run from its own first steps, of a check from a trial."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rl_reasoner import open_policy, train
from rl_reasoner.pipeline import recorder, trial
from rl_reasoner.pipeline.forecaster import first_steps, forecast_of, pace_of, sampled_groups
from rl_reasoner.pipeline.placement import choose_placement
from rl_reasoner.pipeline.prepare import prepare
from rl_reasoner.pipeline.rehearsal import rehearse
from rl_reasoner.pipeline.run_folder import RunFolder
from rl_reasoner.pipeline.trial import forecast_by_trial, trial_size
from rl_reasoner.recipe.recipe import Recipe
from rl_reasoner.recipe.stages import GrpoStage
from support.commands import Cli
from support.tiny import TRAPPED, grpo, recipe, rows, sft


def tried(wanted: Recipe, policy: Any = None) -> list[Any]:
    """(notice, forecast) of each grpo stage, as `check` makes them."""
    placement = choose_placement(wanted)
    prepared = prepare(wanted, placement)
    policy = policy or open_policy(wanted.policy.source, device="cpu")
    found = rehearse(wanted, placement, prepared, policy)
    return [forecast_by_trial(wanted, placement, prepared, policy, seen) for seen in found]


def test_a_trial_forecasts_and_leaves_the_policy_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "trial_size", lambda *given: (33, 2))  # on a busy machine, too
    wanted = recipe(tmp_path, grpo(steps=500, loss={"beta": 0.1}, router_bias=0.1))
    policy = open_policy(wanted.policy.source, device="cpu")
    before = {name: tensor.clone() for name, tensor in policy.model.state_dict().items()}
    [(notice, made)] = tried(wanted, policy)
    after = policy.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert made.sentence in notice.message and "min for the stage" in notice.message
    found = made.to_json()
    assert found["groups"] >= 64 and found["completions"] == 8
    assert {"1", "2", "4"} == found["pass_at"].keys()
    assert made.sampled.course.trend == 0, "nothing is learned in a trial"
    factors = made.sampled.course.factors(500, 8 / found["mean_length"])
    steps = sum(made.pace.step + made.pace.longer(factor) for factor in factors)
    assert 60 * found["minutes"]["steps"] == pytest.approx(steps)
    assert found["last_length"] == pytest.approx(factors[-1] * found["mean_length"])
    assert found["detectable"] == {"modular_test": None}  # too few problems to show any
    assert "none on modular_test, which has too few problems" in notice.message
    assert json.loads(json.dumps(found)) == found


def test_a_policy_that_earlier_stages_make_is_not_judged(tmp_path: Path) -> None:
    [(notice, made)] = tried(recipe(tmp_path, sft(), grpo()))
    assert made is None and notice.status == "skipped"
    assert "not judged: the stages before it have not run" in notice.message


def test_a_stage_whose_rows_are_chosen_before_it_is_not_judged(tmp_path: Path) -> None:
    data = {"task": "modular", "count": 16}
    chosen = {"kind": "filter", "data": data, "samples": 4, "sampling": {"max_tokens": 8}}
    [(notice, made)] = tried(recipe(tmp_path, chosen, grpo(data={"stage": "filter"})))
    assert made is None and "not judged: an earlier stage" in notice.message


def test_check_warns_where_there_is_nothing_to_learn_from(tmp_path: Path, cli: Cli) -> None:
    wanted = recipe(tmp_path, grpo(steps=200), rewards={"math_answer": 1.0})
    (tmp_path / "none.yaml").write_text(wanted.to_yaml())
    ended = cli("check", "none.yaml", "--run-its-code", "--json")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    [made] = found["forecasts"]
    assert made["verdict"] == "flat at 0" and made["direction"] == "none"
    [notice] = [n for n in found["notices"] if n["check"] == "forecast"]
    assert notice["status"] == "warned" and "nothing to learn from: 100%" in notice["message"]


@given(
    st.integers(1, 100),
    st.integers(1, 40),
    st.integers(8, 64),
    st.floats(1e-4, 1e3),
    st.floats(1, 100),
)
def test_a_trial_keeps_its_time(
    steps: int, prompts: int, rows: int, seconds: float, budget: float
) -> None:
    stage = GrpoStage.model_validate({"steps": steps, "group": {"size": 4, "prompts": prompts}})
    took, each = trial_size(stage, rows, seconds, budget)
    assert 1 <= took <= steps and 1 <= each <= prompts
    whole = seconds * max(1.0, prompts * 4 / rows) * 2.5
    assert took * each == 1 or took * whole * each / prompts <= budget * (1 + 1e-9)
    assert each == prompts or took == 1  # whole steps, or one smaller one


def test_a_trial_of_a_smaller_step_is_forecast_as_the_whole_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "trial_size", lambda *given: (1, 3))
    group = {"size": 4, "prompts": 6, "micro_batch": 8}
    [(notice, made)] = tried(recipe(tmp_path, grpo(steps=500, group=group)))
    assert "11 sampled groups, cut short of 64" in notice.message  # 8 of the rehearsal
    assert made.to_json()["completions"] == 24


@given(st.integers(1, 300), st.integers(1, 100), st.integers(1, 4))
def test_a_run_waits_for_enough_prompts_or_a_fifth(steps: int, prompts: int, once: int) -> None:
    stage = GrpoStage.model_validate(
        {"steps": steps, "group": {"size": 4, "prompts": prompts}, "loss": {"iterations": once}}
    )
    waits = first_steps(stage)
    assert 1 <= waits <= steps and waits <= max(once, steps // 5)
    assert waits % once == 0 or waits == steps  # whole batches
    assert (waits // once) * prompts >= 64 or waits in (max(1, steps // 5 // once) * once, steps)


def test_steps_that_share_a_batch_share_its_sampling(tmp_path: Path) -> None:
    shared = grpo(steps=40, loss={"iterations": 4})
    run = train(recipe(tmp_path, shared), quiet=True)
    [folder] = (run.folder / "stages").glob("*")
    made = json.loads((folder / "forecast.json").read_text())
    took = rows(folder / "metrics.jsonl")[:8]
    assert made["of"] == "the first 8 steps" and made["groups"] == 4
    sampled = [row for row in took if row["timing/generation"] > 0]
    assert [row["step"] for row in sampled] == [1, 5], "of a batch, the first step samples"
    assert made["seconds"]["generation"] == pytest.approx(sampled[1]["timing/generation"] / 4)
    lengths = [row["completions/mean_length"] for row in sampled]
    assert made["mean_length"] == lengths[1], "of the batch whose seconds count"
    rate = made["mean_length"] * 8 / sampled[1]["timing/generation"]
    assert made["tokens_per_second"] == pytest.approx(rate)


def test_a_trial_samples_for_each_of_its_steps(tmp_path: Path) -> None:
    [(_, made)] = tried(recipe(tmp_path, grpo(steps=500, loss={"iterations": 4})))
    found, pace = made.to_json(), made.pace
    batch_s = 4 * pace.parts["generation"]
    assert found["tokens_per_second"] == pytest.approx(pace.tokens * 8 / batch_s)
    each = 60 * found["minutes"]["end"] / sum(n for n, _ in made.evals.sets.values())
    assert each == pytest.approx(batch_s / 8), "an evaluation samples each of its completions"


def _counted(length: float, tokens: float) -> dict[str, float]:
    """What trl logs of a batch when it samples it; `tokens`: of all batches so far."""
    return {"completions/mean_length": length, "num_tokens": tokens}


def test_whole_batches_tell_the_pace() -> None:
    """A stage that is continued may be forecast at any step."""
    steps = [
        {"step": float(i + 1), "step_time": 9.0 if i % 4 == 0 else 1.0, "timing/training": 1.0}
        | ({"timing/generation": 8.0, **_counted(5.0, 48.0 * (1 + i // 4))} if i % 4 == 0 else {})
        for i in range(11)
    ]
    for many in (4, 6, 8, 10, 11):
        pace = pace_of(steps[:many], 4, 6)
        assert (pace.parts["generation"], pace.step, pace.tokens) == (2.0, 3.0, 5.0)
        assert pace.share == 0.625  # 5 of 8 tokens, of batches of 6 completions


def test_groups_thrown_away_are_not_trained_on() -> None:
    """trl counts their tokens with the others'."""
    steps = [
        {"step": float(i + 1), "step_time": 1.0, **_counted(5.0, 10.0 * 16 * drawn)}
        | {"dynamic_sampling/thrown_away": thrown}
        for i, (thrown, drawn) in enumerate([(0.0, 1), (0.8, 6), (0.5, 8)])
    ]
    assert pace_of(steps, 1, 16).share == pytest.approx(0.5)
    assert pace_of([{"step": 1.0, "step_time": 1.0}], 1, 16).share == 1.0


def test_the_answers_of_tools_are_no_length_of_the_policy(tmp_path: Path) -> None:
    own = [
        {"step": 1, "group": g, "completion": "x" * 50 + "answer" * i, "policy_text": "x" * 50}
        | {"reward": float(i > 1), "truncated": False}
        for g in range(16)
        for i in range(4)
    ]
    (tmp_path / "rollouts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
    found = sampled_groups(tmp_path, [{"step": 1.0, "step_time": 1.0}], "the first step")
    assert found.course.pull == 0 and len(found.groups) == 16


def test_a_price_for_length_is_in_the_minutes(tmp_path: Path) -> None:
    """Rollouts whose completions become shorter, and whose shortest one is right."""
    rows = [
        {"step": float(step), "step_time": 6.0, "timing/generation": 6.0}
        | {"completions/mean_length": 80.0}
        for step in range(1, 9)
    ]
    rollouts = [
        {"step": step, "group": group, "completion": "x" * (400 - 30 * step + 10 * group + 50 * i)}
        | {"reward": 1.0 - i, "truncated": False}
        for step in range(1, 9)
        for group in range(8)
        for i in range(2)
    ]
    (tmp_path / "rollouts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rollouts))
    found = sampled_groups(tmp_path, rows, "the first 8 steps")
    assert len(found.groups) == 64 and found.course.seen == 8
    assert (
        found.course.trend < -0.05 and -0.2 < found.course.pull < -0.05 and found.course.least < 0
    )
    wanted, plan = recipe(tmp_path, grpo(steps=80)), {"steps": 80, "group": {"size": 2}}
    stage = GrpoStage.model_validate({**plan, "sampling": {"max_tokens": 96}})
    pace = replace(pace_of(rows, 1, 16), spent=48.0, done=8)
    made = forecast_of(wanted, stage, found, pace)
    assert made.last_length < 60
    assert 48 / 60 < made.minutes["stage"] < 0.8 * 8 and made.minutes["step"] == 0.1


def test_a_run_forecasts_once_and_says_what_happened(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evals = {"validation": "modular_validation", "every": 10}
    run = train(recipe(tmp_path, sft(), grpo(steps=30), evals=evals))
    [folder] = (run.folder / "stages").glob("2-*")
    assert not (run.folder / "stages" / "1-sft" / "forecast.json").exists()
    made = json.loads((folder / "forecast.json").read_text())
    assert made["of"] == "the first 6 steps" and made["groups"] == 12
    first = [row for row in rows(folder / "rollouts.jsonl") if row["step"] <= 6]
    assert made["truncated"] == pytest.approx(sum(r["truncated"] for r in first) / len(first))
    outcome = made["outcome"]
    assert outcome["minutes"] >= outcome["minutes_of_steps"] > 0
    assert outcome["reward"] in ("rose", "fell", "stayed")
    said = capsys.readouterr().err
    assert said.count("stage grpo, forecast: ") == 1
    assert "stage grpo: forecast " in said and f"the reward {outcome['reward']}" in said


def without_clock(run: Path) -> dict[str, Any]:
    """A run's forecast without what the clock says."""
    [file] = (run / "stages").glob("*/forecast.json")
    made: dict[str, Any] = json.loads(file.read_text())
    timed = ("seconds", "minutes", "tokens_per_second")
    reward = made["outcome"]["reward"]
    return {**{k: v for k, v in made.items() if k not in timed}, "outcome": reward}


@pytest.mark.matrix
def test_a_run_that_was_killed_forecasts_the_same(tmp_path: Path) -> None:
    """Killed with signal 9 in step 4, continued from step 2; the forecast is made after step 6."""
    folders = [tmp_path / name for name in ("whole", "killed")]
    for folder in folders:
        folder.mkdir()
    whole, killed = (recipe(f, grpo(steps=30, save_every=2), source=TRAPPED) for f in folders)
    (folders[1] / "recipe.yaml").write_text(killed.to_yaml())
    trap = {"TRAP_AT": str(1 + 8 * 3 + 3), "TRAP_SIGNAL": str(int(signal.SIGKILL))}
    command = [sys.executable, "-m", "rl_reasoner.cli", "train", str(folders[1] / "recipe.yaml")]
    done = subprocess.run(command, env={**os.environ, **trap}, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not [*(folders[1] / "run" / "stages").glob("*/forecast.json")]
    run, saved = RunFolder.reopen(folders[1] / "run")
    run.release()
    ours, theirs = train(saved, resume=run.path, quiet=True), train(whole, quiet=True)
    assert without_clock(ours.folder) == without_clock(theirs.folder)
    [made] = (ours.folder / "stages").glob("*/forecast.json")
    outcome = json.loads(made.read_text())["outcome"]
    assert outcome["minutes"] is None and outcome["minutes_of_steps"] > 0


def test_killed_behind_its_last_step_a_run_says_what_happened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last checkpoint is there, the policy is not."""
    wanted = recipe(tmp_path, grpo(steps=30))
    folder = Path(str(wanted.run.folder))
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        monkeypatch.setattr(
            recorder, "add_outcome", lambda *given: os.kill(os.getpid(), signal.SIGKILL)
        )
        try:
            train(wanted, quiet=True)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    [file] = (folder / "stages").glob("*/forecast.json")
    assert "outcome" not in json.loads(file.read_text())
    capsys.readouterr()
    train(wanted, resume=folder)
    outcome = json.loads(file.read_text())["outcome"]
    assert outcome["minutes"] is None and outcome["minutes_of_steps"] > 0
    assert capsys.readouterr().err.count(f"the reward {outcome['reward']}") == 1
