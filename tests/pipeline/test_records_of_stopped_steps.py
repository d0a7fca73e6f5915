"""What a stopped run has in its folder: each step's figures, whole checkpoints, its own end."""

import errno
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from rl_reasoner import train
from rl_reasoner.errors import RunStopped
from rl_reasoner.pipeline import stage_training
from rl_reasoner.pipeline.train import Interrupted
from rl_reasoner.recipe.recipe import Recipe
from rl_reasoner.training.checkpointing import signals
from rl_reasoner.training.checkpointing.faults import LastStep
from support.at_steps import at_step
from support.commands import Cli
from support.tiny import grpo, recipe, same, sft, untimed

LATE = '''
import os
import signal
import time

from rl_reasoner import reward


@reward
def late(completion: str) -> float:
    """The share of digits; where the file `stop` lies beside it, the run is taken away first."""
    try:
        os.remove(os.path.join({folder!r}, "stop"))
    except FileNotFoundError:
        return sum(c.isdigit() for c in completion) / max(1, len(completion))
    os.kill(os.getppid(), signal.SIGTERM)
    time.sleep(20)
    return 0.0
'''


def given_up_in_step_2(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """A run with a checkpoint of each step, which SIGTERM meets in the rewards of the second."""
    monkeypatch.setattr(signals, "GRACE_S", 0.2)
    (folder / "late.py").write_text(LATE.format(folder=str(folder)), encoding="utf-8")
    at_step(monkeypatch, 1, (folder / "stop").touch)
    rewards = {f"{folder / 'late.py'}:late": 1.0}
    return recipe(folder, grpo(save_every=1), rewards=rewards, evals={"sets": ()})


@pytest.mark.parametrize("steps", [4, 2], ids=["in the middle", "at the end"])
def test_an_evaluation_that_is_cut_short_by_sigterm_is_made_up_for(
    steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals, "GRACE_S", 0.2)
    found = []
    for name in ("whole", "stopped"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "late.py").write_text(LATE.format(folder=str(folder)), encoding="utf-8")
        evals = {"sets": (), "reward": f"{folder / 'late.py'}:late", "every": 2}
        evals |= {"validation": "modular_validation", "limit": 2}
        wanted = recipe(folder, grpo(steps=steps), evals=evals, hacking_meter={"every": 2})
        if name == "stopped":
            at_step(monkeypatch, 1, (folder / "stop").touch)
            with pytest.raises(Interrupted):
                train(wanted, quiet=True)
            assert not (folder / "stop").exists()
        train(wanted, resume=folder / "run" if name == "stopped" else None, quiet=True)
        found.append(folder / "run")
    stages = [run / "stages" / "1-grpo" for run in found]
    rows = [untimed(stage / "metrics.jsonl") for stage in stages]
    assert rows[1] == rows[0] and [row["step"] for row in rows[0]] == [*range(1, steps + 1)]
    for file in ("hacking.jsonl", "best/evaluation.json"):
        assert (stages[0] / file).read_text() == (stages[1] / file).read_text()
    assert same(found[0] / "policy", found[1] / "policy")


def test_an_evaluation_that_is_cut_short_as_it_begins_loses_no_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time is over in the moment in which the step may be cut short."""

    def change(step: LastStep, busy: bool) -> None:
        vars(step)["now"] = busy
        if not busy and not vars(step).get("recorded", True):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(20)

    changed = property(lambda step: vars(step)["now"], change)
    monkeypatch.setattr(LastStep, "busy", changed, raising=False)
    monkeypatch.setattr(signals, "GRACE_S", 0.05)
    evals = {"sets": (), "every": 1, "validation": "modular_validation", "limit": 2}
    with pytest.raises(Interrupted):
        train(recipe(tmp_path, grpo(steps=2), evals=evals), quiet=True)
    assert (tmp_path / "run/stages/1-grpo/checkpoints/checkpoint-1/checksums.json").is_file()
    [row] = untimed(tmp_path / "run/stages/1-grpo/metrics.jsonl")
    assert row["step"] == 1 and "eval/modular_validation/accuracy" not in row


class _Late:
    """Ends in the moment in which the time of a step is over."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(20)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_step_is_given_up_also_where_its_time_is_over_in_a_finalizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python ignores what is raised there."""
    begin = LastStep.on_step_begin

    def begun(step: LastStep, args: Any, state: Any, control: Any, **given: Any) -> None:
        begin(step, args, state, control, **given)
        if state.global_step == 1:
            _Late()
            time.sleep(20)

    monkeypatch.setattr(LastStep, "on_step_begin", begun)
    monkeypatch.setattr(signals, "GRACE_S", 0.05)
    monkeypatch.setattr(signals, "AGAIN_S", 0.5, raising=False)
    with pytest.raises(Interrupted):
        train(recipe(tmp_path, sft(steps=3, batch=2), evals={"sets": ()}), quiet=True)
    checkpoints = tmp_path / "run/stages/1-sft/checkpoints"
    assert [folder.name for folder in checkpoints.glob("checkpoint-*")] == ["checkpoint-1"]


def test_a_checkpoint_whose_seal_is_damaged_is_written_again_when_a_step_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seal = tmp_path / "run/stages/1-grpo/checkpoints/checkpoint-1/checksums.json"
    give_up = stage_training.give_up_all

    def damage() -> None:
        seal.write_text("{", encoding="utf-8")
        give_up()

    monkeypatch.setattr(stage_training, "give_up_all", damage)
    wanted = given_up_in_step_2(tmp_path, monkeypatch)
    with pytest.raises(Interrupted):
        train(wanted, quiet=True)
    assert not (tmp_path / "stop").exists() and json.loads(seal.read_text())


def test_a_checkpoint_that_is_there_is_not_written_again_when_a_step_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk may be full by then, or the machine gone before it is written."""

    seal = tmp_path / "run/stages/1-grpo/checkpoints/checkpoint-1/checksums.json"
    save = torch.save

    def once(value: Any, file: Any, **options: Any) -> None:
        if seal.is_file():
            Path(file).write_bytes(b"")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
        save(value, file, **options)

    monkeypatch.setattr(torch, "save", once)
    wanted = given_up_in_step_2(tmp_path, monkeypatch)
    with pytest.raises((Interrupted, RunStopped)):
        train(wanted, quiet=True)
    assert not (tmp_path / "stop").exists() and seal.is_file()


def test_a_changed_run_that_is_stopped_has_no_end_of_its_earlier_recipe(
    tmp_path: Path, cli: Cli
) -> None:
    stages = [sft(name=name, steps=1, batch=2) for name in ("one", "two")]
    folder = train(recipe(tmp_path, *stages, evals={"limit": 1}), quiet=True).folder
    ended = (folder / "evals" / "after.json").read_text()
    stages[1]["steps"] = 2
    stopped = train(recipe(tmp_path, *stages, evals={"limit": 1}), resume=folder, last="one")
    assert stopped.evals.keys() == {"before"}
    asked = cli("export", str(folder), str(tmp_path / "out"))
    assert asked.code == 2 and f"the run {folder} has no policy/ yet" in asked.err
    assert (folder / "old/1/evals/after.json").read_text() == ended
    assert (folder / "old/1/policy/model.safetensors").is_file()


def test_the_page_of_a_run_that_goes_on_stays(tmp_path: Path) -> None:
    """It has no end that is to be made again, and has replaced nothing."""
    stages = [sft(name=name, steps=1, batch=2) for name in ("one", "two")]
    wanted = recipe(tmp_path, *stages, evals={"sets": ()})
    folder = train(wanted, quiet=True, last="one").folder
    assert (folder / "report.html").is_file()
    train(wanted, resume=folder, quiet=True)
    assert not (folder / "old").exists()
