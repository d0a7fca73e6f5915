"""Gradient checkpointing changes no weight, whichever options of ours are on."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import trl
from peft import LoraConfig

from rl_reasoner import GRPOConfig, open_policy
from rl_reasoner.errors import UserError
from support.passes import counted_passes
from support.processes import build, same, weights

pytestmark = pytest.mark.usefixtures("any_processor_rounds")

AGAIN: dict[str, Any] = {
    "gradient_checkpointing": True,
    "gradient_checkpointing_kwargs": {"use_reentrant": False},
}
# every option of ours that is off where nothing is said, or another value of it
OTHERS: list[tuple[str, dict[str, Any]]] = [
    (
        "moe-tiny",
        {
            "router_replay": True,
            "correct_sampling": True,
            "sampling_weights": "bfloat16",
            "router_sequence_loss_coef": 0.1,
            "num_iterations": 2,
            "dynamic_sampling": 1,
            "prompt_schedule": True,
        },
    ),
    (
        "deepseek-tiny",
        {
            "router_bias_update": 0.01,
            "router_sequence_loss_coef": 0.1,
            "share_prompts": False,
            "fast_rollouts": False,
        },
    ),
    (
        "moe-tiny",
        {
            "router_replay": True,
            "freeze_router": True,
            "share_prompts": False,
            "regroup_rows": False,
            "balance_processes": False,
        },
    ),
    (
        "moe-tiny",
        {
            "algorithm": "reinforce++-baseline",
            "kl_estimator": "k2",
            "kl_in": "loss",
            "beta": 0.1,
            "overlong_share": 0.5,
            "positive_advantage_weight": 0.5,
        },
    ),
    (
        "dense-tiny",
        {
            "skip_zero_advantage": False,
            "reuse_log_probs": False,
            "num_iterations": 2,
            "isolate_rewards": False,
            "overlap_rewards": False,
            "rewards_on": "here",
            "reward_timeout_s": 30.0,
            "reward_batch_timeout_s": 300.0,
            "reward_memory_mb": 4096,
            "long_prompts": "skip",
            "level_band": None,
        },
    ),
    ("dense-tiny", {"keep_sampling_mask": True, "top_k": 20, "top_p": 0.9}),
]


@pytest.mark.parametrize(("policy", "options"), [("dense-tiny", {}), ("moe-tiny", {}), *OTHERS])
def test_the_weights_are_those_without_it(
    policy: str, options: dict[str, Any], tmp_path: Path
) -> None:
    opened = f"scratch:{policy}"
    if options.get("beta"):  # the reference is loaded from where the policy lies
        open_policy(opened, seed=5, device="cpu").save(tmp_path / "policy")
        opened = str(tmp_path / "policy")
    found, logged = [], []
    for checkpointing in ({}, AGAIN):
        changes = {"max_steps": 2, "save_strategy": "no", "logging_steps": 1, **checkpointing}
        trainer = build(opened, tmp_path, **{**changes, **options})
        trainer.train()
        found.append(weights(trainer))
        logged.append(trainer.state.log_history)
    assert same(*found)
    for one, other in zip(*logged, strict=True):
        timed = ("time", "timing", "per_second")
        assert one.keys() == other.keys()
        for name in one:
            assert any(t in name for t in timed) or one[name] == other[name], name


@pytest.mark.parametrize("adapter", [None, LoraConfig(r=2, target_modules="all-linear")])
def test_sampling_is_as_fast_and_no_hook_is_left(
    adapter: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """trl checkpoints by default, for which transformers puts a hook on at each generation."""
    trainer = build("scratch:dense-tiny", tmp_path, peft_config=adapter, max_steps=2, **AGAIN)
    before = hooks(trainer.model)
    rows = counted_passes(monkeypatch)
    trainer.train()
    assert len(rows) > 2 * 5, "a pass without modules for each token, of both steps"
    assert hooks(trainer.model) == before


def hooks(model: Any) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def test_every_option_of_ours_is_tried() -> None:
    ours = {f.name for f in fields(GRPOConfig)} - {f.name for f in fields(trl.GRPOConfig)}
    assert ours <= {name for _, options in OTHERS for name in options}


def test_a_loss_without_a_gradient_is_one_clear_error(tmp_path: Path) -> None:
    changes = {**AGAIN, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
    with pytest.raises(UserError, match=r"router_sequence_loss_coef .* reentrant checkpointing"):
        build("scratch:moe-tiny", tmp_path, router_sequence_loss_coef=0.1, **changes)
