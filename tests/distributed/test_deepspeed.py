"""DeepSpeed's ZeRO-2 and ZeRO-3 on its CPU accelerator: two processes of one job over gloo.

accelerate gets there where its state is made first, with gloo, and transformers is told to take it
(`use_configured_state`). A recipe's `run.parallel` does not do that: on a CPU it is refused. The
last test has it done, so that a run of two stages goes the way that it goes on GPUs.
"""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig

from rl_reasoner import GRPOTrainer, cli, open_policy
from rl_reasoner.distributed.strategy import deepspeed_settings
from rl_reasoner.pipeline import trl_configs
from support import tiny
from support.jobs import STEPS, written
from support.processes import Kill, Weights, build, same, together

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(1800)]
pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
DENSE, MIXTURE = "scratch:dense-tiny", "scratch:moe-tiny"
ADAPTER = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
GRADIENT: dict[str, Any] = {
    "gradient_accumulation_steps": 1,
    "learning_rate": 1.0,
    "max_grad_norm": 0.0,
    "max_steps": 1,
    "optim": "sgd",
    "save_strategy": "no",
    "shuffle_dataset": False,
}


class Told(GRPOTrainer):
    """A completion follows from its prompt and its place in the group, in any process.

    It has two to five different tokens.
    """

    def _generate_single_turn(self, prompt_ids: list[list[int]], *others: Any) -> Any:
        def drawn(row: int) -> list[int]:
            return [10 + (sum(prompt_ids[row]) + min(t, row % 4 + 1)) % 60 for t in range(6)]

        return [drawn(row) for row in range(len(prompt_ids))], None


def half(completions: list[str], prompts: list[str], **columns: Any) -> list[float]:
    """Groups of every other prompt are flat."""
    return [
        1.0 if int(prompt[2]) % 2 else len(set(completion)) / 8
        for completion, prompt in zip(completions, prompts, strict=True)
    ]


def under_zero(stage: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Have accelerate's state made for DeepSpeed in this process of several; the arguments."""
    import deepspeed
    from accelerate.state import PartialState

    # an operation for shared memory, which DeepSpeed would compile; gloo does without it
    monkeypatch.setitem(deepspeed.ops.__compatible_ops__, "deepspeed_shm_comm", False)
    monkeypatch.delenv("ACCELERATE_USE_CPU")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    torch.distributed.init_process_group("gloo")
    PartialState(backend="gloo")
    return configured(stage)


def configured(stage: int) -> dict[str, Any]:
    """The trainer's arguments for DeepSpeed; accelerate's state is made already."""
    there = {"use_configured_state": True}
    return {"deepspeed": deepspeed_settings(stage), "accelerator_config": there}


def whole(trainer: Any) -> Weights:
    """All weights, put together by both processes; the first one has them."""
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped) or {}
    return {n.removeprefix("module."): t.detach().float().clone() for n, t in state.items()}


def gradient(
    folder: Path, stage: int | None, monkeypatch: pytest.MonkeyPatch, **changes: Any
) -> Weights:
    """What SGD takes off the weights at a rate of 1: two processes, or one by itself."""
    count, rows = (1, 8) if stage is None else (2, 4)

    def job(rank: int) -> None:
        zero = {} if stage is None else under_zero(stage, monkeypatch)
        given = {**GRADIENT, "per_device_train_batch_size": rows, **zero, **changes}
        trainer = build(str(folder / "policy"), folder, half, kind=Told, **given)
        with torch.no_grad():
            for name, parameter in trainer.model.named_parameters():
                if "lora_B" in name:  # begins at 0, and A would have no gradient
                    parameter.fill_(0.02)
        before = whole(trainer) if stage is None else {}
        torch.save(before, folder / "before.pt") if before else None
        trainer.train()
        after = whole(trainer)
        if rank == 0:
            torch.save(after, folder / f"{stage}.pt")

    assert together(count, job) == [0] * count
    before, after = torch.load(folder / "before.pt"), torch.load(folder / f"{stage}.pt")
    return {name: before[name] - after[name] for name in before}


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize(
    ("policy", "changes"),
    [
        (DENSE, {}),
        (DENSE, {"beta": 1.0, "max_steps": 2}),  # it has a gradient from the second step on
        (DENSE, {"peft_config": ADAPTER}),
        (MIXTURE, {"router_aux_loss_coef": 0.0}),
    ],
    ids=["dense", "KL", "LoRA", "mixture"],
)
def test_two_processes_have_the_gradient_of_one(
    policy: str,
    stage: int,
    changes: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    open_policy(policy, seed=5, device="cpu").save(tmp_path / "policy")  # trl's reference: a folder
    alone, zero = (gradient(tmp_path, kind, monkeypatch, **changes) for kind in (None, stage))
    errors = {name: float((zero[name] - g).norm()) for name, g in alone.items()}
    size = sum(float(g.norm()) ** 2 for g in alone.values()) ** 0.5
    print(f"ZeRO-{stage}: the largest error is {max(errors.values()) / size:.1e} of the gradient")
    assert size > 0 and max(errors.values()) <= 1e-5 * size


def trained(
    folder: Path,
    stage: int,
    monkeypatch: pytest.MonkeyPatch,
    kill: int | None = None,
    resume: bool = False,
) -> Weights:
    """The weights after four steps with a checkpoint after two; nothing of a run that is killed."""

    def job(rank: int) -> None:
        zero = under_zero(stage, monkeypatch)
        trainer = build(DENSE, folder, max_steps=4, save_steps=2, logging_steps=1, **zero)
        if kill is not None:
            trainer.add_callback(Kill(kill))
        trainer.train(resume_from_checkpoint=resume)
        assert not resume or trainer._initial_global_step == 2
        state = whole(trainer)
        if rank == 0:
            torch.save(state, folder / "end.pt")

    ended = together(2, job)
    assert ended == ([9, 9] if kill is not None else [0, 0])
    found: Weights = {} if kill is not None else torch.load(folder / "end.pt")
    return found


@pytest.mark.parametrize("stage", [2, 3])
def test_a_killed_job_is_resumed_to_the_same_weights(
    stage: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = trained(tmp_path / "whole", stage, monkeypatch)
    trained(tmp_path / "killed", stage, monkeypatch, kill=4)
    assert (tmp_path / "killed/checkpoint-2").is_dir()
    assert same(undisturbed, trained(tmp_path / "killed", stage, monkeypatch, resume=True))


def run_of_two_stages(
    stage: int, monkeypatch: pytest.MonkeyPatch, *arguments: Any, trap: str = ""
) -> list[int]:
    """How the two processes of `rl-reasoner train ARGUMENTS` end, under ZeRO."""

    def settings(*others: Any) -> dict[str, Any]:
        """In the place of a recipe's `run.parallel`, for each stage."""
        from accelerate.state import AcceleratorState, PartialState

        monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
        PartialState(backend="gloo")
        AcceleratorState._reset_state()
        return configured(stage)

    def job(rank: int) -> None:
        import deepspeed

        monkeypatch.setitem(deepspeed.ops.__compatible_ops__, "deepspeed_shm_comm", False)
        monkeypatch.setattr(trl_configs, "_parallel", settings)
        os.environ |= {"DS_ACCELERATOR": "cpu", "ACCELERATE_USE_DEEPSPEED": "true"}
        os.environ |= {"TRAP_AT": trap, "TRAP_SIGNAL": str(int(signal.SIGKILL))}
        assert cli.main(["train", "--quiet", *map(str, arguments)]) == 0

    return together(2, job)


@pytest.mark.parametrize("stage", [2, 3])
def test_a_run_of_two_stages_is_killed_in_the_second_and_resumed_to_the_same_weights(
    stage: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = [{**STEPS, "name": "first"}, STEPS]
    one, two = (written(tmp_path / name, *stages, policy=DENSE) for name in ("one", "two"))
    assert run_of_two_stages(stage, monkeypatch, one) == [0, 0]
    ended = run_of_two_stages(stage, monkeypatch, two, trap="30")
    assert signal.SIGKILL in ended, ended
    run = tmp_path / "two/run"
    assert (run / "stages/2-grpo/checkpoints/checkpoint-2").is_dir()
    assert run_of_two_stages(stage, monkeypatch, "--resume", run) == [0, 0]
    assert tiny.same(run / "policy", tmp_path / "one/run/policy")
