"""The meter in a stage: windows, alarm, resume, and that training is the same."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rl_reasoner import Run, train
from rl_reasoner.files import append_rows, keep_rows_until
from rl_reasoner.hacking import judges
from rl_reasoner.hacking.meter import FILE, HackingMeter
from rl_reasoner.pipeline.train import Interrupted
from rl_reasoner.recipe.recipe import Recipe
from rl_reasoner.report import write_report
from rl_reasoner.scoring.registry import load_reward
from support.tiny import grpo, recipe, rows, same, sft, untimed

STEPS = 12
GROUPS = 8


def of_maths(**meter: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "policy": "scratch:dense-tiny",
            "data": "rows.jsonl",
            "rewards": {"math_answer": 1.0},
            "stages": [{"kind": "grpo", "steps": STEPS}],
            "hacking_meter": {"every": 4, **meter},
        }
    )


ROWS = [{"problem": f"{n}+1=", "answer": str(n + 1)} for n in range(GROUPS)]


def batch(step: int, stuffed: int) -> list[dict[str, Any]]:
    """A batch in which the best of `stuffed` groups have several boxes; all others are right."""
    found = []
    for group, row in enumerate(ROWS):
        for index in range(3):
            right = rf"\boxed{{{row['answer']}}}"
            text = rf"\boxed{{{90 + step}}} {right}" if group < stuffed else f"{step}: {right}"
            value = float(index > 0)
            found.append(
                {
                    "step": step,
                    "group": group,
                    "prompt": row["problem"],
                    "completion": text if value else "no",
                    "row": group,
                    "scores": {"math_answer": {"value": value}},
                }
            )
    return found


def meter_in(folder: Path, step: int = 0, **settings: Any) -> HackingMeter:
    rewards = {"math_answer": load_reward("math_answer")}
    return HackingMeter(folder, of_maths(**settings), ROWS, rewards, step)


def fed(folder: Path, meter: HackingMeter, steps: range) -> Iterator[dict[str, Any]]:
    """Feed a meter what a stage would, a step at a time, ever more of it stuffed."""
    for step in steps:
        rollouts = batch(step, min(GROUPS, max(0, step - 4)))
        append_rows(folder / "rollouts.jsonl", rollouts)
        meter.add(rollouts)
        if closed := meter.close(step, last=step == STEPS):
            yield closed


def test_windows_tell_what_is_paid_most_and_wrong(tmp_path: Path) -> None:
    meter = meter_in(tmp_path)
    metrics = list(fed(tmp_path, meter, range(1, STEPS + 1)))
    windows = rows(tmp_path / FILE)
    assert [one["step"] for one in windows] == [4, 8, 12]
    assert [one["judged"] for one in windows] == [32, 32, 32], "one a group at most"
    assert [one["disagrees"] for one in windows] == [0, 10, 26]
    assert [bool(one["alarm"]) for one in windows] == [False, False, True]
    assert metrics[2]["hacking/disagreement"] == 26 / 32 and metrics[2]["hacking/time"] > 0
    low, high = metrics[2]["hacking/interval"]
    assert low < 26 / 32 < high
    assert "most often: several different final answers" in meter.alarm
    shown = windows[2]["examples"]
    assert len(shown) == 6 and [one["verdict"] for one in shown].count("disagrees") == 5
    assert shown[0]["pay"] == 1.0 and "\\boxed" in shown[0]["completion"]


def test_what_is_left_out_of_its_group_is_not_paid(tmp_path: Path) -> None:
    """Another reward abstained: no share of the others' scores reached the policy."""
    meter = meter_in(tmp_path)
    meter.add([{**row, "left_out_by": ["code_tests"]} for row in batch(1, GROUPS)])
    assert meter.close(1, last=True) == {}


def test_honest_stages_raise_nothing(tmp_path: Path) -> None:
    meter = meter_in(tmp_path)
    for step in range(1, STEPS + 1):
        meter.add(batch(step, 0))
        meter.close(step)
        assert not meter.alarm
    assert sum(one["disagrees"] for one in rows(tmp_path / FILE)) == 0


def test_an_alarm_says_that_nobody_can_tell_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hack that a judge cannot judge was none, however large its share grew."""
    meter = meter_in(tmp_path)
    for step in range(1, STEPS + 1):
        if step == 5:
            monkeypatch.setattr(judges, "judge_maths", lambda *_: ("cannot tell", "it loops: 1"))
        meter.add(batch(step, 0))
        meter.close(step)
        assert bool(meter.alarm) == (step >= 8)
    assert "can no more be judged by" in meter.alarm and "most often: it loops" in meter.alarm
    assert meter_in(tmp_path, STEPS).alarm == meter.alarm


@pytest.mark.parametrize("at", [1, 4, 6, 8, 11])
def test_a_stage_that_goes_on_has_the_same_windows(tmp_path: Path, at: int) -> None:
    """Killed two steps after the checkpoint at step `at`, and continued from there."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
    meter = meter_in(whole)
    list(fed(whole, meter, range(1, STEPS + 1)))
    list(fed(cut, meter_in(cut), range(1, min(STEPS, at + 2) + 1)))
    keep_rows_until(cut / "rollouts.jsonl", at)
    again = meter_in(cut, at)
    list(fed(cut, again, range(at + 1, STEPS + 1)))
    assert (cut / FILE).read_bytes() == (whole / FILE).read_bytes()
    assert again.alarm == meter.alarm


def test_a_batch_that_was_sampled_ahead_waits_for_its_window(tmp_path: Path) -> None:
    meter = meter_in(tmp_path)
    for step in range(1, 6):
        meter.add(batch(step, GROUPS))
    meter.close(4)
    assert rows(tmp_path / FILE)[0]["groups"] == 4 * GROUPS


def test_a_stage_that_begins_anew_forgets_its_windows(tmp_path: Path) -> None:
    list(fed(tmp_path, meter_in(tmp_path), range(1, 9)))
    assert meter_in(tmp_path, 0).windows == [] and rows(tmp_path / FILE) == []


# --------------------------------------------------------------------------------- in a run

PAYS = '''
from rl_reasoner import reward


@reward
def near(completion: str) -> float:
    """Can be hacked by whatever is long."""
    return float(len(completion) > 5)
'''


def hacked(folder: Path, every: int) -> Recipe:
    stage = grpo(steps=6, save_every=2, group={"size": 4, "prompts": 8})
    meter = {"every": every, "rewards": [f"{folder / 'near.py'}:near"]}
    evals = {"sets": [], "validation": None}
    return recipe(folder, sft(), stage, source=PAYS, hacking_meter=meter, evals=evals)


@pytest.fixture(scope="module")
def metered(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(hacked(tmp_path_factory.mktemp("metered"), 3), quiet=True)


def stage_of(folder: Path) -> Path:
    return folder / "stages" / "2-grpo"


def test_a_planted_hack_is_found_in_training(metered: Run) -> None:
    windows = rows(stage_of(metered.folder) / FILE)
    assert [one["step"] for one in windows] == [3, 6]
    assert windows[0]["alarm"] and windows[0]["disagreement"] > 0.8
    metrics = rows(stage_of(metered.folder) / "metrics.jsonl")
    assert metrics[2]["alarms"]["hacking"] == windows[0]["alarm"]
    assert "hacking/disagreement" in metrics[5] and "hacking/disagreement" not in metrics[3]
    page = write_report(metered.folder).read_text()
    assert "is the reward being hacked?" in page and "Disagreement of the independent judge" in page


def test_training_is_the_same_without_a_meter(metered: Run, tmp_path: Path) -> None:
    without = train(hacked(tmp_path, 0), quiet=True)
    assert same(without.folder / "policy", metered.folder / "policy")
    ours, theirs = (rows(stage_of(run.folder) / "rollouts.jsonl") for run in (without, metered))
    assert ours == theirs
    assert not (stage_of(without.folder) / FILE).exists()


def test_a_run_that_was_stopped_has_the_same_windows(
    metered: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rl_reasoner.report.terminal import LiveView

    update = LiveView.update

    def shown(view: LiveView, metrics: Any, step: int) -> None:
        update(view, metrics, step)
        if step == 4 and "reward" in metrics:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(LiveView, "update", shown)
        with pytest.raises(Interrupted):
            train(hacked(tmp_path, 3), quiet=True)
    run = train(hacked(tmp_path, 3), resume=tmp_path / "run", quiet=True)
    assert (stage_of(run.folder) / FILE).read_bytes() == (
        stage_of(metered.folder) / FILE
    ).read_bytes()
    name = "metrics.jsonl"
    assert untimed(stage_of(run.folder) / name) == untimed(stage_of(metered.folder) / name)
    assert json.loads((run.folder / "stages/2-grpo/done.json").read_text())["steps"] == 6
