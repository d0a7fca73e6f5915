"""Killed and resumed runs end with the weights of the run that was not, bit by bit."""

from pathlib import Path
from typing import Any

import pytest
import torch

from rl_reasoner import GRPOTrainer, open_policy
from rl_reasoner.errors import UserError
from support.processes import EVAL, FSDP, build, killed, same, trained, weights

pytestmark = pytest.mark.usefixtures("any_processor_rounds")

PLAIN: dict[str, Any] = {"fast_rollouts": False, "share_prompts": False}


@pytest.mark.parametrize(
    ("at", "changes"),
    [
        (4, {}),
        pytest.param(4, {"sampling_weights": "bfloat16"}, marks=pytest.mark.matrix),
        pytest.param(6, {"save_steps": 4}, marks=pytest.mark.matrix),  # at the end of an epoch
        (7, {"save_steps": 5}),  # within the second epoch
        pytest.param(5, {"steps_per_generation": 4, "save_steps": 3}, marks=pytest.mark.matrix),
        (5, {"steps_per_generation": 4, "num_iterations": 3, "max_steps": 9, "save_steps": 3}),
        (9, {"num_iterations": 3, "max_steps": 9, "beta": 0.04, "save_steps": 7}),
        pytest.param(
            4,
            {"gradient_accumulation_steps": 1, "steps_per_generation": 1, "num_iterations": 3},
            marks=pytest.mark.matrix,
        ),
        (5, {"steps_per_generation": 4, "save_steps": 3, **PLAIN}),
        (5, {"steps_per_generation": 4, "save_steps": 3, **EVAL}),
    ],
    ids=str,
)
def test_a_killed_run_is_resumed_to_the_same_weights(
    at: int, changes: dict[str, Any], tmp_path: Path
) -> None:
    policy = "scratch:dense-tiny"
    if changes.get("beta"):  # the reference is loaded from where the policy lies
        open_policy(policy, seed=5, device="cpu").save(tmp_path / "policy")
        policy = str(tmp_path / "policy")
    torch.set_num_threads(1)  # a process with more of them cannot be forked safely
    whole = build(policy, tmp_path / "whole", **changes)
    whole.train()
    killed(policy, tmp_path / "killed", at, changes)
    resumed = build(policy, tmp_path / "killed", **changes)
    resumed.train(resume_from_checkpoint=True)
    assert 0 < resumed._initial_global_step < at, "there was a checkpoint, and steps were lost"
    assert same(weights(whole), weights(resumed))


def test_a_mixture_of_experts_is_resumed_to_the_same_weights(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    whole = build("scratch:moe-tiny", tmp_path / "whole")
    whole.train()
    killed("scratch:moe-tiny", tmp_path / "killed", 4, {})
    resumed = build("scratch:moe-tiny", tmp_path / "killed")
    resumed.train(resume_from_checkpoint=True)
    assert same(weights(whole), weights(resumed))


@pytest.mark.parametrize("fast", [True, False])
def test_evaluation_changes_no_training_number(fast: bool, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"max_steps": 3, "save_strategy": "no", "fast_rollouts": fast}
    without = build("scratch:dense-tiny", tmp_path, **changes)
    without.train()
    with_eval = build("scratch:dense-tiny", tmp_path, **changes, **EVAL)
    with_eval.train()
    evaluated = [row for row in with_eval.state.log_history if "eval_reward" in row]
    assert len(evaluated) == 3
    assert same(weights(without), weights(with_eval))


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path) -> None:
    trainer = build("scratch:dense-tiny", tmp_path, max_steps=4)
    with pytest.raises(UserError, match="no intact checkpoint"):
        trainer.train(resume_from_checkpoint=True)
    trainer.train()
    damaged = tmp_path / "checkpoint-4" / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    resumed = build("scratch:dense-tiny", tmp_path, max_steps=4)
    resumed.train(resume_from_checkpoint=True)
    assert resumed._initial_global_step == 2
    assert same(weights(trainer), weights(resumed))


def test_checkpoints_of_the_model_alone_are_resumed_with_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    changes: dict[str, Any] = {"save_only_model": True, "max_steps": 4}
    build("scratch:dense-tiny", tmp_path, **changes).train()
    resumed = build("scratch:dense-tiny", tmp_path, **{**changes, "max_steps": 6})
    resumed.train(resume_from_checkpoint=True)
    assert (resumed._initial_global_step, resumed.state.global_step) == (4, 6)
    [said] = [
        record.getMessage() for record in caplog.records if "only the model" in record.getMessage()
    ]
    assert "checkpoint-4" in said and "optimizer" in said


@pytest.mark.parametrize("changes", [{}, {"steps_per_generation": 4, "num_iterations": 2}], ids=str)
def test_a_stream_is_resumed_to_the_same_weights(changes: dict[str, Any], tmp_path: Path) -> None:
    """From the end of its first pass, and from within a later one."""
    every = {"max_steps": 10, "save_steps": 1, "stream": True, **changes}
    whole = build("scratch:dense-tiny", tmp_path / "whole", **every)
    whole.train()
    for step in (4, 9):
        resumed = build("scratch:dense-tiny", tmp_path / "resumed", **every)
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
        assert resumed._initial_global_step == step
        assert same(weights(whole), weights(resumed)), step


SYNCED: dict[str, Any] = {"sync_ref_model": True, "ref_model_sync_steps": 2, "beta": 0.5}


@pytest.mark.parametrize("processes", [1, 2])
def test_a_reference_that_moves_is_resumed(processes: int, tmp_path: Path) -> None:
    """In one process, and in two that hold a shard of it each."""
    open_policy("scratch:dense-tiny", seed=5, device="cpu").save(tmp_path / "policy")
    changes = {**SYNCED, "max_steps": 5, "save_steps": 3, "policy": str(tmp_path / "policy")}
    changes |= FSDP if processes > 1 else {}
    whole = trained(processes, tmp_path / "whole", **changes)
    trained(processes, tmp_path / "killed", kill=5, **changes)
    assert same(whole, trained(processes, tmp_path / "killed", resume=True, **changes))


def test_a_checkpoint_without_the_reference_is_resumed_with_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    open_policy("scratch:dense-tiny", seed=5, device="cpu").save(tmp_path / "policy")
    changes = {**SYNCED, "max_steps": 2, "save_steps": 1}
    build(str(tmp_path / "policy"), tmp_path, **changes).train()
    for name in ("reference.safetensors", "checksums.json"):  # it had neither, once
        (tmp_path / "checkpoint-1" / name).unlink()
    resumed = build(str(tmp_path / "policy"), tmp_path, **changes)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert any("has no reference policy" in r.getMessage() for r in caplog.records)


class Evaluated(GRPOTrainer):
    """Keeps what was sampled to evaluate each step."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seen: dict[int, list[list[int]]] = {}

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        if not self.model.training:
            rows = output["completion_ids"].tolist()
            self.seen.setdefault(self.state.global_step, []).extend(rows)
        return output


Evaluated.__name__ = "GRPOTrainer"


@pytest.mark.parametrize("fast", [True, False])
def test_evaluation_samples_the_same_after_a_resume_inside_a_generation(
    fast: bool, tmp_path: Path
) -> None:
    changes = {"steps_per_generation": 8, "save_steps": 2, "max_steps": 3, "fast_rollouts": fast}
    whole = build("scratch:dense-tiny", tmp_path, kind=Evaluated, **changes, **EVAL)
    whole.train()
    resumed = build("scratch:dense-tiny", tmp_path, kind=Evaluated, **changes, **EVAL)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert whole.seen.keys() == {1, 2, 3} and resumed.seen.keys() == {3}
    assert resumed.seen[3] == whole.seen[3]
