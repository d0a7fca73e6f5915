"""Killed and resumed runs end with the weights of the run that was not, bit by bit."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback

from rl_reasoner import GRPOConfig, GRPOTrainer, open_policy

PROMPTS = [f"{a}+{b}=" for a in range(2) for b in range(4)]
Weights = dict[str, torch.Tensor]


def letters(completions: list[str], **columns: Any) -> list[float]:
    return [len(set(c)) / 8 for c in completions]


class Kill(TrainerCallback):  # type: ignore[misc]
    """Ends the process as `kill -9` does, before the optimizer's step number `at`."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step + 1 == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


def build(policy: str, folder: Path, **changes: Any) -> GRPOTrainer:
    """Two prompts a step and eight in the data: an epoch is four steps where not changed."""
    opened = open_policy(policy, seed=5, device="cpu")
    arguments = {
        "output_dir": str(folder),
        "max_steps": 7,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "num_generations": 4,
        "max_completion_length": 6,
        "learning_rate": 3e-3,
        "save_steps": 2,
        "seed": 7,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "disable_tqdm": True,
        **changes,
    }
    data = Dataset.from_dict({"prompt": PROMPTS})
    return GRPOTrainer(
        opened.model,
        reward_funcs=letters,
        args=GRPOConfig(**arguments),
        train_dataset=data,
        eval_dataset=data if "eval_steps" in changes else None,
        processing_class=opened.tokenizer,
    )


def weights(trainer: GRPOTrainer) -> Weights:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def killed(policy: str, folder: Path, at: int, changes: dict[str, Any]) -> None:
    """Train in a process of its own until it is killed in step `at`."""
    child = os.fork()
    if child == 0:
        try:
            trainer = build(policy, folder, **changes)
            trainer.add_callback(Kill(at))
            trainer.train()
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL


def same(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


PLAIN = {"fast_rollouts": False, "share_prompts": False}
EVAL = {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 8}


@pytest.mark.parametrize(
    ("at", "changes"),
    [
        (4, {}),
        (6, {"save_steps": 4}),  # at the end of an epoch
        (7, {"save_steps": 5}),  # within the second epoch
        (5, {"steps_per_generation": 4, "save_steps": 3}),
        (5, {"steps_per_generation": 4, "num_iterations": 3, "max_steps": 9, "save_steps": 3}),
        (9, {"num_iterations": 3, "max_steps": 9, "beta": 0.04, "save_steps": 7}),
        (4, {"gradient_accumulation_steps": 1, "steps_per_generation": 1, "num_iterations": 3}),
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
    changes = {"max_steps": 3, "save_strategy": "no", "fast_rollouts": fast}
    without = build("scratch:dense-tiny", tmp_path, **changes)
    without.train()
    with_eval = build("scratch:dense-tiny", tmp_path, **changes, **EVAL)
    with_eval.train()
    evaluated = [row for row in with_eval.state.log_history if "eval_reward" in row]
    assert len(evaluated) == 3
    assert same(weights(without), weights(with_eval))
