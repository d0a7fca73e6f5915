"""Control arms: the same stage with another reward, resumed exactly, held against the treatment."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from rl_reasoner import Run, train
from rl_reasoner.answers import verify
from rl_reasoner.errors import UserError
from rl_reasoner.evaluation.statistics import holm
from rl_reasoner.pipeline.placement import choose_placement
from rl_reasoner.pipeline.preflight import control_cost
from rl_reasoner.pipeline.prepare import prepare
from rl_reasoner.pipeline.run_folder import RunFolder
from rl_reasoner.recipe.recipe import Recipe
from support.commands import Cli, stock
from support.ready import Ready
from support.tiny import grpo, recipe, rows, same, sft, untimed

BOTH = ["random_reward", "form_only"]
STEPS = 6
# Kills its process, as kill -9 does, when a step of a stage is shown.
KILLED = """
import os, signal, sys
from rl_reasoner.cli import main
from rl_reasoner.report.terminal import LiveView

update, start, now = LiveView.update, LiveView.start_stage, [""]

def started(view, name, *of):
    now[0] = name
    start(view, name, *of)

def shown(view, metrics, step):
    if [now[0], str(step)] == sys.argv[1:3]:
        os.kill(os.getpid(), signal.SIGKILL)
    update(view, metrics, step)

LiveView.start_stage, LiveView.update = started, shown
main(["train", "--quiet", *sys.argv[3:]])
"""


def arms(folder: Path, controls: list[str], **changes: Any) -> Recipe:
    """Twenty supervised steps, so that some completions have the form; then the stage at hand."""
    given: dict[str, Any] = {
        "rewards": {"math_answer": 1.0, f"{folder / 'near.py'}:near": 0.5},
        "evals": {"limit": 12, "max_tokens": 30, "samples": 2, "reward": None},
        "controls": controls,
    }
    cold = sft(steps=20, batch=16)
    stage = grpo(steps=STEPS, save_every=2, sampling={"max_tokens": 30})
    return recipe(folder, cold, stage, **given | changes)


def stage_of(run: Path, arm: str) -> Path:
    return run / "controls" / arm / "stages" / f"1-{arm}"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with both arms that nothing interrupted."""
    return train(arms(tmp_path_factory.mktemp("whole"), BOTH), quiet=True)


# ----------------------------------------------------------------------------- what an arm is


def test_an_arm_begins_as_the_treatment_did_and_goes_another_way(whole: Run) -> None:
    treatment = rows(whole.folder / "stages/2-grpo/rollouts.jsonl")
    for arm in BOTH:
        own = rows(stage_of(whole.folder, arm) / "rollouts.jsonl")
        assert [row["prompt"] for row in own] == [row["prompt"] for row in treatment]
        first = [
            [row["completion"] for row in all_of if row["step"] == 1] for all_of in (own, treatment)
        ]
        assert first[0] == first[1], "the same policy, seed and order"
        assert own != treatment
        assert {name for row in own for name in row["scores"]} == {arm}
        assert not same(stage_of(whole.folder, arm) / "policy", whole.folder / "policy")


def test_the_random_reward_has_the_mean_of_the_treatment_and_says_nothing(whole: Run) -> None:
    treatment = [row["reward"] for row in rows(whole.folder / "stages/2-grpo/rollouts.jsonl")]
    options = json.loads((whole.folder / "controls.json").read_text())["arms"]["random_reward"]
    assert options["reward"]["mean"] == pytest.approx(sum(treatment) / len(treatment), abs=1e-6)
    assert options["reward"]["low"] == pytest.approx(min(treatment), abs=1e-6)
    assert options["reward"]["high"] == pytest.approx(max(treatment), abs=1e-6)
    drawn = [row["reward"] for row in rows(stage_of(whole.folder, BOTH[0]) / "rollouts.jsonl")]
    assert {round(value, 6) for value in drawn} == {
        options["reward"]["low"],
        options["reward"]["high"],
    }


def test_the_form_alone_is_rewarded_right_or_wrong(whole: Run) -> None:
    own = rows(stage_of(whole.folder, "form_only") / "rollouts.jsonl")
    assert {row["reward"] for row in own} == {0.0, 1.0}
    verdicts = [verify(row["completion"], row["answer"]) for row in own]
    for row, verdict in zip(own, verdicts, strict=True):
        assert row["reward"] == float("no final answer" not in verdict.reason), verdict.reason
    rewarded = {v.value for row, v in zip(own, verdicts, strict=True) if row["reward"] == 1.0}
    assert rewarded == {0.0, 1.0}, "right and wrong ones"


def test_the_comparison_is_that_of_compare_adjusted_over_sets_and_arms(
    whole: Run, cli: Cli
) -> None:
    saved = json.loads((whole.folder / "controls.json").read_text())
    ours = str(whole.folder / "evals/after.json")
    tests = []
    for arm in BOTH:
        theirs = str(whole.folder / "controls" / arm / "evals/after.json")
        ended = cli("compare", theirs, ours, "--json")
        for name, entry in json.loads(ended.out).items():
            shown = saved["arms"][arm]["headline"][name]
            assert {key: entry[key] for key in ("difference", "interval", "p", "problems")} == {
                key: shown[key] for key in ("difference", "interval", "p", "problems")
            }
            assert entry["unlike"] == {}, "the same sets with the same settings"
            tests.append(shown)
    assert saved["tests"] == len(tests) == 4  # greedy and sampled, two arms
    assert [test["p_holm"] for test in tests] == holm([test["p"] for test in tests])
    page = whole.report.read_text(encoding="utf-8")
    assert 'id="controls"' in page and "Against its controls" in page


def test_results_name_the_arms(whole: Run, cli: Cli) -> None:
    ended = cli("train", "--resume", str(whole.folder))
    assert "treatment minus control" in ended.out and "random_reward" in ended.out
    assert "stage form_only: already finished" in ended.err
    words = " ".join(ended.out.split())
    assert "Greedy accuracy" in words and "On the same" in words, "the gain, as the report says it"
    ended = cli("train", "--resume", str(whole.folder), "--json")
    assert json.loads(ended.out)["controls"] == json.loads(
        (whole.folder / "controls.json").read_text()
    )


# ------------------------------------------------------------------------ kill -9 and resuming


def killed(folder: Path, stage: str, step: int) -> None:
    """Resume the run in `folder`; it dies with signal 9 at a step of the stage or arm `stage`."""
    done = Ready(folder, KILLED, stage, str(step), "--resume", str(folder)).wait()
    assert done.returncode == -signal.SIGKILL, done.stderr


def resumed(folder: Path) -> Run:
    run, saved = RunFolder.reopen(folder)
    run.release()
    return train(saved, resume=folder, quiet=True)


def held_against(whole: Path, other: Path, names: list[str]) -> None:
    assert same(other / "policy", whole / "policy")
    for arm in names:
        one, two = stage_of(whole, arm), stage_of(other, arm)
        assert same(one / "policy", two / "policy")
        assert untimed(one / "metrics.jsonl") == untimed(two / "metrics.jsonl")
        assert rows(one / "rollouts.jsonl") == rows(two / "rollouts.jsonl")


@pytest.mark.parametrize(("stage", "step"), [("random_reward", 3), ("form_only", 5)])
def test_an_arm_that_was_killed_continues_to_the_same_weights(
    stage: str, step: int, whole: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole.folder, folder)  # as it was when its stages had ended
    shutil.rmtree(folder / "controls")
    (folder / "controls.json").unlink()
    killed(folder, stage, step)
    assert len(rows(stage_of(folder, stage) / "metrics.jsonl")) == step
    assert not (stage_of(folder, stage) / "done.json").exists()
    assert not (folder / "controls.json").exists()
    done = resumed(folder)
    held_against(whole.folder, folder, BOTH)
    ours, theirs = (
        json.loads((path / "controls.json").read_text()) for path in (done.folder, whole.folder)
    )
    for arm in BOTH:
        assert ours["arms"][arm]["headline"] == theirs["arms"][arm]["headline"]


@pytest.mark.matrix
def test_an_arm_of_several_processes_continues_to_the_same_weights(tmp_path: Path) -> None:
    folders = []
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        made = arms(tmp_path / name, BOTH)
        (tmp_path / name / "recipe.yaml").write_text(made.to_yaml())
        folders.append(tmp_path / name / "run")
    command = [sys.executable, "-m", "rl_reasoner.cli", "train", "--quiet", "--launch", "2"]
    given = {"env": {**os.environ, "OMP_NUM_THREADS": "1"}, "text": True}
    subprocess.run([*command, str(tmp_path / "whole/recipe.yaml")], check=True, **given)
    job = subprocess.Popen(
        [*command, str(tmp_path / "killed/recipe.yaml")], start_new_session=True, **given
    )
    metrics = stage_of(folders[1], "form_only") / "metrics.jsonl"
    while not (metrics.is_file() and len(rows(metrics)) >= 3):
        assert job.poll() is None, "it ended before it could be killed"
        time.sleep(0.02)
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    assert not (stage_of(folders[1], "form_only") / "done.json").exists()
    subprocess.run([*command, "--resume", str(folders[1])], check=True, **given)
    held_against(*folders, BOTH)


def test_arms_come_and_go_with_the_recipe(tmp_path: Path, cli: Cli) -> None:
    """A finished run gets an arm; another recipe takes it away; what is there is kept."""
    stock(tmp_path)
    assert cli("train", "tiny.yaml").code == 0
    weights = (tmp_path / "run/stages/2-grpo/policy/model.safetensors").stat().st_mtime_ns
    ended = cli("train", "--resume", "run", "--controls", "random_reward")
    assert ended.code == 0, ended.err
    assert stage_of(tmp_path / "run", "random_reward").is_dir()
    assert (tmp_path / "run/stages/2-grpo/policy/model.safetensors").stat().st_mtime_ns == weights
    assert (tmp_path / "run/controls.json").is_file()
    ended = cli("train", "--resume", "run", "--grpo.optim.lr", "0.5", "--until", "sft")
    assert ended.code == 0, ended.err
    assert not (tmp_path / "run/controls.json").exists(), "it compared what the stage made before"
    ended = cli("train", "--resume", "run", "--controls", "[]")
    assert ended.code == 0, ended.err
    assert not (tmp_path / "run/controls/random_reward").exists()
    assert not (tmp_path / "run/controls.json").exists()
    assert [*(tmp_path / "run/old").glob("*/controls/random_reward")]


# ------------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("random_rewrd", "Did you mean 'random_reward'?"),
        ("form_only,form_only", "form_only occurs twice"),
        ("form_only", "asks for no form of an answer"),  # a reward of their own, a plain prompt
    ],
)
def test_what_is_no_arm_is_one_error(given: str, said: str, tmp_path: Path, cli: Cli) -> None:
    stock(tmp_path)
    ended = cli("train", "tiny.yaml", "--controls", given)
    assert ended.code == 2 and said in " ".join(ended.err.split()), ended.err
    assert "--controls" in ended.err and "Traceback" not in ended.err


def test_arms_need_a_stage_to_repeat_and_sets_to_be_compared_on(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="controls train a grpo stage again: the recipe has none"):
        recipe(tmp_path, sft(), controls=["random_reward"])
    with pytest.raises(ValueError, match=r"compared on evals\.sets, which is empty"):
        recipe(tmp_path, grpo(), controls=["random_reward"], evals={"sets": []})
    with pytest.raises(ValueError, match="leave out reuse, or controls"):
        recipe(tmp_path, grpo(reuse="elsewhere"), controls=["random_reward"])


def test_instructions_have_no_form_but_take_the_random_arm(tmp_path: Path) -> None:
    stage = grpo(data={"task": "instructions_tiny", "count": 16})
    given: dict[str, Any] = {"rewards": {"instructions": 1.0}, "evals": {"reward": None}}
    made = recipe(tmp_path, stage, controls=["random_reward"], **given)
    prepare(made, choose_placement(made))
    made = recipe(tmp_path, stage, controls=BOTH, **given)
    with pytest.raises(UserError, match="instructions with the template 'plain' asks for no form"):
        prepare(made, choose_placement(made))


def test_steps_on_one_batch_cost_its_completions_once(tmp_path: Path) -> None:
    stage = grpo(steps=5, group={"size": 4, "prompts": 2}, loss={"iterations": 2})
    made = recipe(tmp_path, stage, controls=["random_reward"])
    assert made.controlled is not None
    said = control_cost(made, made.controlled, None).message
    assert "5 steps with 24 completions" in said, said


def test_check_names_the_arms_and_what_they_cost(tmp_path: Path, cli: Cli) -> None:
    stock(tmp_path)
    text = (tmp_path / "tiny.yaml").read_text() + "controls: [random_reward]\n"
    cold_start = next(line for line in text.splitlines(keepends=True) if "kind: sft" in line)
    for recipe_text, timed in ((text, False), (text.replace(cold_start, ""), True)):
        (tmp_path / "tiny.yaml").write_text(recipe_text)
        found = json.loads(cli("check", "tiny.yaml", "--run-its-code", "--json").out)["notices"]
        [notice] = [one for one in found if one["check"] == "controls"]
        said = "random_reward: stage grpo once more, 1 steps with 4 completions"
        assert notice["status"] == "passed" and said in notice["message"]
        assert ("minutes" in notice["message"]) == timed, "known where the stage is forecast"
