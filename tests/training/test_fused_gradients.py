"""Gradients by each way of multiplying and with fused modules: equal to stock trl's."""

from pathlib import Path
from typing import Any

import pytest
import torch
import trl

from rl_reasoner import GRPOTrainer
from rl_reasoner.policy.fp8.layers import fp8
from support.processes import build
from support.stock import (
    TOLERANCE,
    Gradients,
    Policies,
    gradients,
    never_flat,
    saved_policies,
    worst,
)
from support.ways import WAYS, multiplied


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> Policies:
    return saved_policies(tmp_path_factory.mktemp("policies"))


@pytest.mark.parametrize("kind", ["dense", "moe", "llama", "mistral"])
def test_gradients_of_each_way_and_family(kind: str, policies: Policies, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"beta": 0.04, "max_steps": 2}
    if kind == "moe":
        changes["router_aux_loss_coef"] = 0.01
    stock, _, _ = gradients(trl.GRPOTrainer, policies(kind), tmp_path, never_flat, **changes)
    for way in WAYS:
        with multiplied(way) as able:
            if not able:
                continue
            policy = policies(kind)
            ours, _, trainer = gradients(GRPOTrainer, policy, tmp_path, never_flat, **changes)
        assert trainer.packed_forward.fuses
        assert worst(stock, ours) <= TOLERANCE, way


def apart(one: Gradients, other: Gradients) -> float:
    """The relative difference of all gradients of the first step together."""
    both = [torch.cat([g.flatten() for g in steps[0].values()]) for steps in (one, other)]
    return float((both[0] - both[1]).norm() / both[1].norm())


@pytest.mark.parametrize("kind", ["dense", "moe", "llama"])
def test_in_bf16_gradients_are_as_near_to_fp32s_as_stock_trls(
    kind: str, policies: Policies, tmp_path: Path
) -> None:
    """Under autocast experts and attention are functions of ours, and the head is fp32's."""
    exact, _, _ = gradients(trl.GRPOTrainer, policies(kind), tmp_path, never_flat, max_steps=1)
    rounded = {"bf16": True, "max_steps": 1}
    stock, _, _ = gradients(trl.GRPOTrainer, policies(kind), tmp_path, never_flat, **rounded)
    ours, _, trainer = gradients(GRPOTrainer, policies(kind), tmp_path, never_flat, **rounded)
    assert trainer.packed_forward.fuses
    assert 0 < apart(ours, exact) <= min(0.05, 1.2 * apart(stock, exact))


def test_experts_in_fp8_stay_in_fp8(tmp_path: Path) -> None:
    """The training pass multiplies as sampling does, by modules: compiled experts know no FP8."""
    with multiplied("torch, fused") as able:
        if not able:
            pytest.skip("no compiled operations on this machine")
        changes = {"max_steps": 1, "save_strategy": "no", "logging_steps": 1}
        trainer = build("scratch:moe-tiny", tmp_path, correct_sampling=True, **changes)
        assert trainer.packed_forward.fuses
        with fp8(trainer.model):
            trainer.train()
    apart = trainer.state.log_history[0]["sampling/sampling_logp_difference/mean"]
    assert apart < 3e-3, "FP8 moves log-probs by a hundredth and more"
