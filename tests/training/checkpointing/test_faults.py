"""Faults in the middle of a run, injected for real; what is left continues to the same weights."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rl_reasoner import Run, train
from rl_reasoner.cli import main
from rl_reasoner.dataset.rows import load_rows
from rl_reasoner.pipeline.run_folder import RunFolder
from rl_reasoner.pipeline.train import Interrupted
from rl_reasoner.recipe.data import FileData
from rl_reasoner.recipe.recipe import Recipe
from rl_reasoner.scoring.ledger import entries
from rl_reasoner.training.checkpointing.faults import Diverged, LastStep
from support.at_steps import at_step
from support.processes import build
from support.tiny import REWARD, grpo, recipe, rows, same, weights

# Scores as `near`, but waits, while the file `slow` is there, from the third step on.
SLOW = REWARD.replace(
    "from rl_reasoner", "import time\nfrom pathlib import Path\n\nfrom rl_reasoner", 1
).replace(
    "    if answer",
    """    here = Path(__file__).parent
    rows = here / "run/stages/1-grpo/metrics.jsonl"
    if (here / "slow").exists() and rows.exists() and rows.read_text().count("\\n") >= 2:
        (here / "waiting").touch()
        time.sleep(600)
    if answer""",
)


def steps(folder: Path, **changes: Any) -> Recipe:
    """Five GRPO steps."""
    stage = grpo(steps=5, save_every=2)
    return recipe(folder, stage, **{"evals": {"sets": ()}, **changes})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run without a fault."""
    return train(steps(tmp_path_factory.mktemp("whole")), quiet=True)


def resumed(folder: Path) -> Run:
    run, saved = RunFolder.reopen(folder)
    run.release()
    return train(saved, resume=folder, quiet=True)


def stage_of(run: Path) -> Path:
    return run / "stages" / "1-grpo"


# ------------------------------------------------------------------------- gradients and weights


def poisoned(monkeypatch: pytest.MonkeyPatch, at: set[int]) -> None:
    """Make one gradient not a number at these steps."""
    from rl_reasoner.training.grpo_trainer import GRPOTrainer

    step = GRPOTrainer.training_step

    def training_step(self: Any, model: Any, inputs: Any, items: Any = None) -> Any:
        found = step(self, model, inputs, items)
        if self.state.global_step + 1 in at:
            next(p for p in model.parameters() if p.grad is not None).grad[..., 0] = torch.nan
        return found

    monkeypatch.setattr(GRPOTrainer, "training_step", training_step)


def test_a_step_whose_gradient_is_not_finite_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned(monkeypatch, {2, 5})
    run = train(steps(tmp_path), quiet=True)
    metrics = rows(stage_of(run.folder) / "metrics.jsonl")
    assert [row.get("steps/skipped", 0.0) for row in metrics] == [0.0, 1.0, 0.0, 0.0, 1.0]
    assert all(torch.isfinite(w).all() for w in weights(run.folder / "policy").values())
    (tmp_path / "four").mkdir()
    monkeypatch.undo()
    poisoned(monkeypatch, {2})
    four = recipe(tmp_path / "four", grpo(steps=4), evals={"sets": ()})
    assert same(train(four, quiet=True).folder / "policy", run.folder / "policy")


def test_a_run_that_diverges_stops_and_leaves_whole_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned(monkeypatch, set(range(2, 100)))
    with pytest.raises(Diverged, match="10 steps in a row, up to step 11") as caught:
        train(recipe(tmp_path, grpo(steps=30), evals={"sets": ()}), quiet=True)
    assert caught.value.folder == str(tmp_path / "run") and caught.value.code == 1
    [saved] = (stage_of(tmp_path / "run") / "checkpoints").glob("checkpoint-*")
    assert saved.name == "checkpoint-10"
    assert all(torch.isfinite(w).all() for w in weights(saved).values())


@pytest.mark.parametrize("most", [0.0, 1.0], ids=["no clipping", "clipping"])
def test_a_gradient_scaler_finds_its_scale(most: float, tmp_path: Path) -> None:
    """fp16's, on a CPU: more steps overflow in a row than would be a divergence without one."""
    changes = {"max_steps": 24, "save_strategy": "no", "logging_steps": 1, "optim": "sgd"}
    trainer = build(
        "scratch:dense-tiny", tmp_path, max_grad_norm=most, learning_rate=1e-5, **changes
    )
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**38)
    trainer.accelerator.scaler = scaler
    for parameter in trainer.model.parameters():
        parameter.register_hook(lambda gradient: gradient.half().float())
    start = [p.detach().clone() for p in trainer.model.parameters()]
    trainer.train()
    skipped = [row.get("steps/skipped", 0.0) for row in trainer.state.log_history[:24]]
    count = int(sum(skipped))
    assert 10 < count < 24 and skipped[:10] == [1.0] * 10, "until the scale fits"
    assert scaler.get_scale() == 2.0 ** (38 - count)
    parameters = list(trainer.model.parameters())
    assert all(p.isfinite().all() for p in parameters)
    assert any(not torch.equal(a, b) for a, b in zip(start, parameters, strict=True))


def test_a_scale_of_one_that_overflows_is_a_divergence(tmp_path: Path) -> None:
    trainer = build("scratch:dense-tiny", tmp_path, max_steps=40, save_strategy="no")
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**5)
    next(trainer.model.parameters()).register_hook(lambda gradient: gradient * torch.nan)
    with pytest.raises(Diverged, match="10 steps in a row, up to step 15"):
        trainer.train()


# ------------------------------------------------------------------------------ being stopped


def test_sigterm_in_a_step_that_takes_too_long(whole: Run, tmp_path: Path) -> None:
    """Long before the step is over the process is gone, and nothing else than the step is lost."""
    wanted = steps(tmp_path, source=SLOW)
    (tmp_path / "recipe.yaml").write_text(wanted.to_yaml())
    (tmp_path / "slow").touch()
    command = [sys.executable, "-m", "rl_reasoner.cli", "train", str(tmp_path / "recipe.yaml")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    metrics = stage_of(tmp_path / "run") / "metrics.jsonl"
    while process.poll() is None and not (tmp_path / "waiting").exists():
        time.sleep(0.01)
    done = len(rows(metrics))
    process.send_signal(signal.SIGTERM)
    try:
        _, said = process.communicate(timeout=250)
    finally:
        process.kill()
    assert process.returncode == 130 and "continue with" in said
    assert (stage_of(tmp_path / "run") / f"checkpoints/checkpoint-{done}/checksums.json").is_file()
    (tmp_path / "slow").unlink()
    run = resumed(tmp_path / "run")
    assert same(run.folder / "policy", whole.folder / "policy")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=lambda n: n.name)
def test_a_scheduler_that_warns_gets_a_checkpoint(
    number: signal.Signals, whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_step(monkeypatch, 3, lambda: os.kill(os.getpid(), number))
    with pytest.raises(Interrupted):
        train(steps(tmp_path), quiet=True)
    monkeypatch.undo()
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0.0, "no alarm is left behind"
    assert same(resumed(tmp_path / "run").folder / "policy", whole.folder / "policy")


def test_a_step_is_not_given_up_while_the_optimizer_changes_weights() -> None:
    from rl_reasoner.training.checkpointing.signals import StepGivenUp, Stop

    last_step = LastStep(SimpleNamespace(accelerator=SimpleNamespace(num_processes=1)))
    with Stop(lambda text: None) as stop:
        stop.last_step = last_step
        last_step.on_pre_optimizer_step(None, None, None)
        os.kill(os.getpid(), signal.SIGALRM)
        last_step.busy = False
        with pytest.raises(StepGivenUp):
            time.sleep(5)


# --------------------------------------------------------------------------------- workers, rows


def test_a_worker_that_is_killed_in_a_run_costs_nothing(whole: Run, tmp_path: Path) -> None:
    """kill -9 of the reward's process in the middle of a batch: the row is scored again."""
    once = REWARD.replace("from rl_reasoner", "import os\nimport signal\n\nfrom rl_reasoner", 1)
    once = once.replace(
        "    if answer",
        f"""    global CALLS
    CALLS += 1
    if CALLS == 13 and not os.path.exists({str(tmp_path / "killed")!r}):
        open({str(tmp_path / "killed")!r}, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    if answer""",
    )
    run = train(steps(tmp_path, source=f"{once}\n\nCALLS = 0\n"), quiet=True)
    assert (tmp_path / "killed").exists()
    assert same(run.folder / "policy", whole.folder / "policy")
    found = list(entries(stage_of(run.folder)))
    assert len(found) == 5 * 8 and {row["outcome"] for row in found} == {"score"}


def test_the_ledger_is_complete_after_a_resume(
    whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    at_step(monkeypatch, 3, twice)
    with pytest.raises(Interrupted):
        train(steps(tmp_path), quiet=True)
    monkeypatch.undo()
    assert max(row["step"] for row in entries(stage_of(tmp_path / "run"))) == 3
    resumed(tmp_path / "run")

    def untimed(run: Path) -> list[dict[str, Any]]:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in entries(stage_of(run))]

    assert untimed(tmp_path / "run") == untimed(whole.folder)
    assert len(untimed(whole.folder)) == 5 * 8


def test_bad_rows_among_good_ones(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """1,000 bad rows among 10,000: told, left out, and the rest trains."""
    path = tmp_path / "rows.jsonl"
    lines = [
        json.dumps({"problem": f"{i}+1=", "answer": "" if i % 10 == 0 else str(i + 1)})
        for i in range(10_000)
    ]
    path.write_text("\n".join(lines))
    assert len(load_rows(FileData(path=str(path), on_bad_row="skip"))) == 9_000
    assert "1000 bad rows are skipped" in caplog.text
    stage = grpo(steps=2, data={"path": str(path), "on_bad_row": "skip"})
    run = train(recipe(tmp_path, stage, evals={"sets": ()}), quiet=True)
    assert len(rows(stage_of(run.folder) / "metrics.jsonl")) == 2


# ------------------------------------------------------------------------------------- the disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 120 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=120m", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("spare", [1, 5, 0], ids=["weights", "optimizer", "nothing"])
def test_a_full_disk_keeps_the_last_good_checkpoint(
    spare: int, whole: Run, small_disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = steps(small_disk)
    (tmp_path / "recipe.yaml").write_text(wanted.to_yaml())
    room = small_disk / "filler"

    def fill() -> None:
        left = os.statvfs(small_disk)
        room.write_bytes(b"\0" * (left.f_bavail * left.f_frsize - (spare << 20)))

    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, 3, fill)
        assert main(["train", str(tmp_path / "recipe.yaml"), "--quiet"]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "the disk is full" in said and "the checkpoint of step 2 is intact" in said
    assert "Traceback" not in said and f"--resume {small_disk / 'run'}" in said
    checkpoints = stage_of(small_disk / "run") / "checkpoints"
    assert [path.name for path in checkpoints.glob("checkpoint-*")] == ["checkpoint-2"]
    room.unlink()
    run = resumed(small_disk / "run")
    assert same(run.folder / "policy", whole.folder / "policy")
