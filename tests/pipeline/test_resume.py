"""A run that was killed, stopped or damaged continues to the same weights, bit by bit."""

import errno
import json
import os
import re
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from rl_reasoner import Run, train
from rl_reasoner.cli import main
from rl_reasoner.errors import UserError
from rl_reasoner.files import read_jsonl
from rl_reasoner.pipeline.run_folder import RunFolder
from rl_reasoner.pipeline.train import Interrupted
from rl_reasoner.report.terminal import LiveView
from rl_reasoner.rollout.cache import SampleCache
from rl_reasoner.scoring.circuit_breaker import Breaker
from support.commands import TINY, run_outside, start_outside, stock
from support.tiny import TRAPPED, grpo, recipe, rows, same, sft, two_stages, untimed


def signals_at(monkeypatch: pytest.MonkeyPatch, at: tuple[str, int], *numbers: int) -> None:
    """Send signals to this process when the step `at` = (stage, step) is shown."""
    update, start = LiveView.update, LiveView.start_stage
    now = [""]

    def started(view: LiveView, name: str, *of: int) -> None:
        now[0] = name
        start(view, name, *of)

    def shown(view: LiveView, metrics: Any, step: int) -> None:
        update(view, metrics, step)
        if (now[0], step) == at:
            for number in numbers:
                os.kill(os.getpid(), number)

    monkeypatch.setattr(LiveView, "start_stage", started)
    monkeypatch.setattr(LiveView, "update", shown)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The uninterrupted run that the others are held against."""
    return train(two_stages(tmp_path_factory.mktemp("whole")), quiet=True)


# ------------------------------------------------------------------------- kill -9 and resuming


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the same run, killed with signal 9 while step 6 of grpo is scored."""
    folder = tmp_path_factory.mktemp("killed")
    (folder / "recipe.yaml").write_text(two_stages(folder).to_yaml())
    calls = 1 + 8 * 5 + 3  # the trial call, five steps, and into the sixth
    trap = {"TRAP_AT": str(calls), "TRAP_SIGNAL": str(int(signal.SIGKILL))}
    done = run_outside(folder, "train", "recipe.yaml", **trap)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(rows(folder / "run" / "stages" / "2-grpo" / "metrics.jsonl")) == 5
    return folder / "run"


def copied(killed: Path, folder: Path) -> Path:
    shutil.copytree(killed, folder / "run")
    return folder / "run"


def resumed(folder: Path, **options: Any) -> Run:
    run, saved = RunFolder.reopen(folder)
    run.release()
    return train(saved, resume=folder, **options)


def held_against(whole: Run, folder: Path) -> None:
    """Weights, metrics and rollouts equal to those of the uninterrupted run."""
    assert same(folder / "policy", whole.folder / "policy")
    for stage in ("1-sft", "2-grpo"):
        name = Path("stages") / stage / "metrics.jsonl"
        assert untimed(folder / name) == untimed(whole.folder / name)
    name = Path("stages") / "2-grpo" / "rollouts.jsonl"
    assert rows(folder / name) == rows(whole.folder / name)
    for file in ("before.json", "after.json"):
        ours, theirs = (
            json.loads((p / "evals" / file).read_text()) for p in (folder, whole.folder)
        )
        for sets in (ours["sets"], theirs["sets"]):
            for figures in sets.values():
                figures.pop("reward", None)  # its file lies in another folder
        assert ours["sets"] == theirs["sets"]


def test_a_killed_run_continues_to_the_same_weights(
    killed: Path, whole: Run, tmp_path: Path
) -> None:
    folder = copied(killed, tmp_path)
    assert not (folder / "policy").exists() and not (folder / "stages/2-grpo/done.json").exists()
    resumed(folder)
    held_against(whole, folder)
    done = json.loads((folder / "stages" / "2-grpo" / "done.json").read_text())
    steps = sum(row["step_time"] for row in rows(folder / "stages" / "2-grpo" / "metrics.jsonl"))
    assert done["seconds"] > steps, "the time before the kill counts"


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1000])


def flip(file: Path) -> None:
    body = bytearray(file.read_bytes())
    body[len(body) // 2] ^= 1
    file.write_bytes(body)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        pytest.param("model.safetensors", cut, marks=pytest.mark.matrix),
        ("model.safetensors", flip),
        pytest.param("optimizer.pt", flip, marks=pytest.mark.matrix),
        ("trainer_state.json", cut),
        pytest.param("config.json", flip, marks=pytest.mark.matrix),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_and_said(
    name: str,
    damage: Callable[[Path], None],
    killed: Path,
    whole: Run,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = copied(killed, tmp_path)
    damage(folder / "stages" / "2-grpo" / "checkpoints" / "checkpoint-4" / name)
    resumed(folder)
    shown = " ".join(capsys.readouterr().err.split())
    assert "checkpoint checkpoint-4 is damaged (" in shown
    assert "using the one before it" in shown
    held_against(whole, folder)


def test_without_any_whole_checkpoint_the_stage_begins_anew(
    killed: Path, whole: Run, tmp_path: Path
) -> None:
    folder = copied(killed, tmp_path)
    for checkpoint in (folder / "stages" / "2-grpo" / "checkpoints").glob("checkpoint-*"):
        cut(checkpoint / "model.safetensors")
    resumed(folder)
    held_against(whole, folder)


@pytest.mark.parametrize("changed", [False, True])
def test_a_run_of_a_version_that_lacked_some_fields_is_finished_all_the_same(
    changed: bool, whole: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole.folder, folder)
    lock = folder / "stages" / "2-grpo" / "lock.json"
    begun = json.loads(lock.read_text())
    del begun["made_from"]["long_prompts"], begun["made_from"]["sampling"]["top_p"]
    if changed:
        del begun["made_from"]["steps"]  # not the default of today
    lock.write_text(json.dumps(begun))
    done = folder / "stages" / "2-grpo" / "done.json"
    before = done.stat().st_mtime_ns
    resumed(folder)
    assert (done.stat().st_mtime_ns != before) == changed


def test_two_processes_in_one_folder(killed: Path, tmp_path: Path) -> None:
    folder = copied(killed, tmp_path)
    run, _ = RunFolder.reopen(folder)
    done = run_outside(tmp_path, "train", "--resume", str(folder))
    run.release()
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert f"another process ({os.getpid()}) is training in {folder}" in " ".join(
        done.stderr.split()
    )
    assert not (folder / "policy").exists()


def test_a_finished_run_is_not_trained_again(whole: Run, tmp_path: Path) -> None:
    folder = copied(whole.folder, tmp_path)
    (folder / "report.html").unlink()
    (folder / "evals" / ".before.drawn").mkdir()  # killed just behind the save
    run = resumed(folder)
    held_against(whole, folder)
    assert not [*folder.glob("evals/.*")]
    assert run.report.is_file() and run.evals.keys() == {"before", "after"}


def test_until_an_earlier_stage_leaves_a_finished_run_as_it_is(whole: Run, tmp_path: Path) -> None:
    folder = copied(whole.folder, tmp_path)
    run = resumed(folder, last="sft")
    assert same(folder / "policy", whole.folder / "policy")
    assert not (folder / "old").exists() and run.policy.source == str(folder / "policy")
    assert run.evals["after"].manifest == whole.evals["after"].manifest


def test_a_set_that_was_changed_in_between_is_evaluated_again(tmp_path: Path) -> None:
    """Both ends of a run are of the same rows: a gain is not that of mended answers."""
    held = tmp_path / "held.jsonl"

    def write(*answers: str) -> None:
        rows = [{"problem": f"{i} + 1 =", "answer": answer} for i, answer in enumerate(answers)]
        held.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")

    write("9", "9")
    stages = grpo(name="a", steps=1), grpo(name="b", steps=1)
    evals = {"sets": [str(held)], "max_tokens": 4, "reward": "math_answer"}
    made = recipe(tmp_path, *stages, evals=evals)
    begun = train(made, quiet=True, last="a")
    write("1", "2")
    ended = train(made, resume=begun.folder, quiet=True)
    answers = {
        name: [row["answer"] for row in result.rows[str(held)]]
        for name, result in ended.evals.items()
    }
    assert answers == {"before": ["1", "2"], "after": ["1", "2"]}
    assert [*begun.folder.glob("old/*/evals/before.json")]


def test_a_run_does_not_continue_with_another_recipe(killed: Path, tmp_path: Path) -> None:
    folder = copied(killed, tmp_path)
    with pytest.raises(UserError, match="is a run of the recipe 'tiny', not 'other'"):
        train(two_stages(tmp_path, name="other"), resume=folder, quiet=True)
    resumed(folder)  # and the folder is free again


# ------------------------------------------------------------------------------- interruptions


def test_ctrl_c_in_the_middle_of_grpo(
    whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "r.yaml").write_text(two_stages(tmp_path).to_yaml())
    # while the fifth step is scored; the 20 calls of an evaluation do not reach so far
    monkeypatch.setenv("TRAP_AT", str(1 + 8 * 4 + 3))
    monkeypatch.setenv("TRAP_SIGNAL", str(int(signal.SIGINT)))
    assert main(["train", str(tmp_path / "r.yaml")]) == 130
    shown = capsys.readouterr()
    run = tmp_path / "run"
    assert f"interrupted; continue with: rl-reasoner train --resume {run}" in shown.err
    assert "Traceback" not in shown.err
    metrics = rows(run / "stages" / "2-grpo" / "metrics.jsonl")
    assert len(metrics) == 5, "the step is taken to its end"
    assert (run / "stages" / "2-grpo" / "checkpoints" / "checkpoint-5").is_dir()
    monkeypatch.delenv("TRAP_AT")
    assert main(["train", "--resume", str(run)]) == 0
    held_against(whole, run)


@pytest.mark.parametrize(
    ("at", "signals"),
    [
        (("sft", 1), [signal.SIGINT]),
        pytest.param(("sft", 3), [signal.SIGTERM], marks=pytest.mark.matrix),
        (("grpo", 3), [signal.SIGINT, signal.SIGINT]),
        (("grpo", 7), [signal.SIGINT]),
    ],
    ids=["sft", "last step of sft", "twice", "last step"],
)
def test_a_stop_at_any_step_costs_nothing(
    at: tuple[str, int],
    signals: list[signal.Signals],
    whole: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wanted = two_stages(tmp_path)
    before = signal.getsignal(signal.SIGINT)
    signals_at(monkeypatch, at, *signals)
    with pytest.raises(Interrupted) as caught:
        train(wanted, quiet=True)
    assert caught.value.folder == tmp_path / "run"
    monkeypatch.undo()
    train(wanted, resume=tmp_path / "run", quiet=True)
    held_against(whole, tmp_path / "run")
    assert signal.getsignal(signal.SIGINT) is before, "the caller's own handler is back"


@pytest.mark.parametrize(
    ("source", "stage"),
    [
        ({"source": "scratch:moe-tiny", "lora": {"rank": 4}}, {"loss": {"beta": 0.04}}),
        ({"source": "scratch:moe-tiny"}, {"loss": {"beta": 0.04}}),
        pytest.param(
            {"source": "scratch:dense-tiny"},
            {"group": {"size": 4, "prompts": 2, "micro_batch": 4}},
            marks=pytest.mark.matrix,
        ),
    ],
    ids=["adapter", "reference", "micro-batches"],
)
def test_a_stopped_run_of_another_kind_continues_to_the_same_weights(
    source: dict[str, Any], stage: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
        stages = sft(), grpo(steps=4, save_every=2, **stage)
        wanted = recipe(tmp_path / name, *stages, policy=source, evals={"sets": ()})
        if name == "stopped":
            signals_at(monkeypatch, ("grpo", 3), signal.SIGINT, signal.SIGINT)
            with pytest.raises(Interrupted):
                train(wanted, quiet=True)
            monkeypatch.undo()
            train(wanted, resume=tmp_path / name / "run", quiet=True)
        else:
            train(wanted, quiet=True)
        found.append(tmp_path / name / "run")
    assert same(found[0] / "policy", found[1] / "policy")
    metrics = [untimed(run / "stages" / "2-grpo" / "metrics.jsonl") for run in found]
    assert metrics[0] == metrics[1]


@pytest.mark.parametrize("call", [1, 2], ids=["before", "after"])
def test_a_stop_while_evaluating_costs_nothing(
    call: int, whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = two_stages(tmp_path)
    calls = [0]

    def progress(view: LiveView, label: str, done: int, of: int) -> None:
        if label.endswith("@sampled") and done == of:
            calls[0] += 1
            if calls[0] == call:
                os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(LiveView, "progress", progress)
    with pytest.raises(Interrupted):
        train(wanted, quiet=True)
    assert [(tmp_path / "run/evals" / f"{n}.json").exists() for n in ("before", "after")] == [
        call == 2,
        False,
    ]
    train(wanted, resume=tmp_path / "run", quiet=True)
    held_against(whole, tmp_path / "run")


def test_a_reward_that_breaks_down_ends_the_run_and_can_be_mended(
    whole: Run,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Breaker, "WINDOW", 8)  # a night's run has more steps than this one
    monkeypatch.setattr(Breaker, "STEPS", 1)
    down = TRAPPED.replace(
        "    if answer",
        f"    if CALLS > 1 + 8 * 4 and os.path.exists({str(tmp_path / 'down')!r}):\n"
        '        raise ConnectionError("the judge is away")\n    if answer',
    )
    wanted = two_stages(tmp_path)
    (tmp_path / "near.py").write_text(down)
    (tmp_path / "r.yaml").write_text(wanted.to_yaml())
    (tmp_path / "down").touch()
    assert main(["train", str(tmp_path / "r.yaml")]) == 3
    shown = " ".join(capsys.readouterr().err.split())
    assert "a reward kept failing: " in shown and "8 of its last 8 calls faulted" in shown
    assert "the judge is away" in shown and f"train --resume {tmp_path / 'run'}" in shown
    assert (tmp_path / "run/stages/2-grpo/checkpoints/checkpoint-4/checksums.json").is_file()
    (tmp_path / "down").unlink()
    train(wanted, resume=tmp_path / "run", quiet=True)
    held_against(whole, tmp_path / "run")


@pytest.mark.matrix
def test_an_evaluation_that_was_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    """What was drawn before the kill is not drawn again; nothing of it is left behind."""
    stock(tmp_path)
    evals = "{sets: [modular_test], limit: 200, max_tokens: 600, reward: math_answer}"
    changed = re.sub(r"evals: \{.*\}", f"evals: {evals}", TINY)
    (tmp_path / "tiny.yaml").write_text(changed, encoding="utf-8")
    running = start_outside(tmp_path, "train", "tiny.yaml")
    folder = tmp_path / "run" / "evals" / ".before.drawn"
    while not (there := [*folder.glob("*.sqlite")]) or not _drawn(there[0]):
        assert running.poll() is None
        time.sleep(0.01)
    running.kill()
    assert not (tmp_path / "run" / "evals" / "before.json").exists(), "it was killed too late"
    [file] = folder.glob("*.sqlite")
    drawn = _drawn(file)
    with closing(sqlite3.connect(file)) as store, store:
        store.execute("UPDATE samples SET value = json_set(value, '$[0]', 'drawn before')")
    run_outside(tmp_path, "train", "--resume", "run").check_returncode()
    rows = read_jsonl(tmp_path / "run" / "evals" / "before.rows.jsonl")
    texts = [text for row in rows for text in row["completions"]]
    assert len(texts) == 200 and texts.count("drawn before") == drawn
    assert not [*(tmp_path / "run" / "evals").glob(".*")]


def _drawn(file: Path) -> int:
    with closing(sqlite3.connect(file)) as store:
        try:
            [(count,)] = store.execute("SELECT count(*) FROM samples")
        except sqlite3.OperationalError:  # it is about to be made
            return 0
    return int(count)


def test_a_disk_that_is_full_while_evaluating_stops_the_run_and_tells_how_to_go_on(
    whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(cache: SampleCache, drawn: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(cache.file))

    (tmp_path / "recipe.yaml").write_text(two_stages(tmp_path).to_yaml())
    monkeypatch.setattr(SampleCache, "keep", full)
    assert main(["train", str(tmp_path / "recipe.yaml"), "--quiet"]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "the disk is full" in said and "Traceback" not in said
    assert f"--resume {tmp_path / 'run'}" in said
    monkeypatch.undo()
    resumed(tmp_path / "run", quiet=True)
    held_against(whole, tmp_path / "run")
