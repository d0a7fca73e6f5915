"""Tiny trainers on sums of digits, and what they log."""

import ast
from pathlib import Path
from typing import Any

import torch
import trl
from datasets import Dataset
from transformers import TrainerCallback

from rl_reasoner import GRPOConfig, open_policy
from support.plain_rewards import digits as digits
from support.tiny import QUIET

PROBLEMS = [f"{a}+{b}=" for a in range(3) for b in range(4)]

Weights = dict[str, torch.Tensor]

SPEED_UPS = [
    "share_prompts",
    "skip_zero_advantage",
    "regroup_rows",
    "balance_processes",
    "fast_rollouts",
]

# bit by bit is trl's own path; the others: gradients
PLAIN = dict.fromkeys(SPEED_UPS, False)


class Log(TrainerCallback):  # type: ignore[misc]
    """Keeps what the trainer logs."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "train_runtime" not in logs:
            self.rows.append(dict(logs))


def build(
    kind: type[trl.GRPOTrainer], folder: Path, rewards: Any, output: Path, **changes: Any
) -> Any:
    """A trainer of 2 prompts x 4 completions a step on the policy in `folder`."""
    policy = open_policy(str(folder), device="cpu")
    answers = [str(ast.literal_eval(p[0]) + ast.literal_eval(p[2])) for p in PROBLEMS]
    arguments = {
        "output_dir": str(output),
        "max_steps": 2,
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 8,
        "learning_rate": 1e-3,
        "temperature": 1.0,
        **QUIET,
        **changes,
    }
    return kind(
        policy.model,
        reward_funcs=rewards,
        args=GRPOConfig(**arguments),
        train_dataset=Dataset.from_dict({"prompt": PROBLEMS, "answer": answers}),
        processing_class=policy.tokenizer,
    )


def trained(trainer: Any) -> tuple[Weights, list[dict[str, Any]]]:
    """The weights after training, and what was logged."""
    log = Log()
    trainer.add_callback(log)
    trainer.train()
    return {n: p.detach().clone() for n, p in trainer.model.named_parameters()}, log.rows


def rollouts(trainer: Any) -> list[dict[str, Any]]:
    """Train and give every rollout row."""
    rows: list[dict[str, Any]] = []
    trainer.rollout_sink = rows.extend
    trainer.train()
    return rows
