"""What is watched while GRPO trains: the best policy, alarms, and training rows in the sets."""

import json
from pathlib import Path
from typing import Any

import pytest

from rl_reasoner import open_policy, train
from rl_reasoner.evaluation.monitor import Watch, alarms
from rl_reasoner.report import write_report
from support.places import ROOT
from support.tiny import grpo, recipe, rows, same


def metrics(
    steps: int, accuracy: list[float], every: int = 5, **curves: Any
) -> list[dict[str, Any]]:
    """Rows of `steps` steps; `curves` maps a metric to a function of the step."""
    made: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        row: dict[str, Any] = {"step": step, "reward": 0.5 + 0.02 * (step % 2)}
        row |= {name.replace("_of_", "/"): curve(step) for name, curve in curves.items()}
        if step % every == 0:
            row["eval/held/accuracy"] = accuracy[step // every - 1]
            row["eval/held/repeating"] = row.pop("repeating", 0.0)
        made.append(row)
    return made


def rising(step: int) -> float:
    return 0.5 + 0.01 * step + 0.02 * (step % 2)


def test_a_reward_that_rises_alone_is_an_alarm() -> None:
    assert "reward" in alarms(metrics(20, [0.4, 0.4, 0.38, 0.39], reward=rising), "held")
    assert alarms(metrics(20, [0.4, 0.5, 0.55, 0.6], reward=rising), "held") == {}
    assert alarms(metrics(20, [0.4, 0.4, 0.38, 0.39]), "held") == {}, "the reward stood still too"
    assert alarms(metrics(10, [0.4, 0.3], reward=rising), "held") == {}, "too early to tell"
    assert alarms(metrics(20, [1.0] * 4, reward=rising), "held") == {}, "nothing left to gain"
    assert alarms(metrics(20, [0.4] * 4, reward=rising), "other") == {}


def test_what_runs_away_is_an_alarm() -> None:
    cut = metrics(20, [0.4] * 4, completions_of_clipped_ratio=lambda step: 0.02 * step)
    assert [*alarms(cut, "held")] == ["cut off"]
    steady = metrics(20, [0.4] * 4, completions_of_clipped_ratio=lambda step: 0.4)
    assert alarms(steady, "held") == {}, "it was so from the start"
    longer = {"completions_of_mean_length": lambda step: 20.0 + 5 * step}
    assert [*alarms(metrics(20, [0.4] * 4, **longer), "held")] == ["length"]
    assert alarms(metrics(20, [0.4, 0.5, 0.6, 0.7], **longer), "held") == {}, "thinking pays"
    loops = metrics(20, [0.4] * 4, repeating=lambda step: 0.02 * step)
    assert [*alarms(loops, "held")] == ["repetition"]


def figures(accuracy: float, low: float, high: float) -> dict[str, Any]:
    found: dict[str, Any] = {"accuracy": accuracy, "interval": [low, high], "truncated": 0.0}
    return {**found, "mean_length": 5.0, "repeating": 0.0}


def test_the_best_is_the_one_with_the_highest_lower_bound(tmp_path: Path) -> None:
    policy = open_policy("scratch:dense-tiny", device="cpu")
    watch = Watch(tmp_path, "held", lambda text: None)
    assert watch.best() == {}
    watch.record(figures(0.5, 0.4, 0.6), 5, policy)
    watch.record(figures(0.7, 0.35, 0.9), 10, policy)
    assert watch.best()["step"] == 5, "a higher figure, but on few problems"
    watch.record(figures(0.55, 0.45, 0.65), 15, policy)
    watch.record(figures(0.9, 0.8, 0.95), 20, None)
    best = Watch(tmp_path, "held", lambda text: None).best()
    assert (best["step"], best["accuracy"], best["bound"]) == (15, 0.55, 0.45)
    open_policy(str(tmp_path / "best"), device="cpu")
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_a_kill_between_two_names_leaves_the_old_best(tmp_path: Path) -> None:
    policy = open_policy("scratch:dense-tiny", device="cpu")
    Watch(tmp_path, "held", print).record(figures(0.5, 0.4, 0.6), 5, policy)
    (tmp_path / "best").rename(tmp_path / ".best.old")  # so a kill in the middle leaves it
    again = Watch(tmp_path, "held", print)
    assert again.best()["step"] == 5
    again.record(figures(0.7, 0.6, 0.8), 10, policy)
    assert [path.name for path in tmp_path.iterdir()] == ["best"] and again.best()["step"] == 10


def test_a_rise_and_a_fall_is_an_alarm() -> None:
    history = metrics(25, [0.3, 0.6, 0.8, 0.6, 0.35], reward=rising)
    for row in history:
        if "eval/held/accuracy" in row:
            mean = row["eval/held/accuracy"]
            row["eval/held/interval"] = [mean - 0.07, mean + 0.07]
    assert "from 80.0% to 35.0%" in alarms(history, "held")["reward"]
    assert alarms(history[:15], "held") == {}
    for row in history:
        if "eval/held/interval" in row:
            row["eval/held/interval"] = [0.0, 1.0]  # so few problems say nothing
    assert alarms(history, "held") == {}


def test_alarms_are_told_once(tmp_path: Path) -> None:
    said: list[str] = []
    watch = Watch(tmp_path, "held", said.append)
    history = metrics(25, [0.4] * 5, reward=rising)
    for end in (15, 20, 25):
        assert "reward" in watch.alarms(history[:end])
    assert len(said) == 1 and said[0].startswith("alarm: the reward rises, and accuracy on held")


def test_a_run_keeps_its_best_policy_and_tells_of_overlaps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trained on six of the evaluated problems, which the run says; a report shows all of it."""
    data = ROOT / "data" / "modular_validation.jsonl"
    mine = tmp_path / "mine.jsonl"
    mine.write_text("".join(data.read_text().splitlines(keepends=True)[:6]))
    stage = grpo(steps=4, data={"path": str(mine)})
    evals = {"validation": "modular_validation", "every": 1, "sets": ["modular_test"]}
    run = train(recipe(tmp_path, stage, evals=evals))
    assert "modular_validation: 6 of its 400 problems are in the training data" in (
        capsys.readouterr().err
    )
    found = json.loads((run.folder / "contamination.json").read_text())
    assert [hit["row"] for hit in found["modular_validation"]["overlapping"]] == [*range(6)]
    assert found["modular_test"]["contaminated"] == 0
    folder = run.folder / "stages" / "1-grpo"
    best = json.loads((folder / "best" / "evaluation.json").read_text())
    kept = {row["step"]: row for row in rows(folder / "metrics.jsonl")}
    bounds = {step: row["eval/modular_validation/interval"][0] for step, row in kept.items()}
    assert best["bound"] == max(bounds.values()) == bounds[best["step"]]
    assert all(isinstance(row["alarms"], dict) for row in kept.values())
    open_policy(str(folder / "best"), device="cpu")
    if best["step"] == 4:
        assert same(folder / "best", folder / "policy")
    page = write_report(run.folder).read_text(encoding="utf-8")
    assert f"Best on modular_validation: step {best['step']}" in page


def test_a_curve_of_lenient_accuracy_goes_beside_the_strict_one(tmp_path: Path) -> None:
    watch = Watch(tmp_path, "held", print)
    assert "eval/held/lenient" not in watch.record(figures(0.5, 0.4, 0.6), 5, None)
    both = {**figures(0.5, 0.4, 0.6), "lenient": {"accuracy": 0.75, "interval": [0.6, 0.8]}}
    assert watch.record(both, 5, None)["eval/held/lenient"] == 0.75
