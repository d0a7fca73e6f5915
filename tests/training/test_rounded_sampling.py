"""Training on what rounded copies sampled: corrected by itself, and measured at each step."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from rl_reasoner import GRPOTrainer
from rl_reasoner.rollout import sampling_weights
from support.processes import build
from support.processors import needs_int8
from support.trainers import build as tiny

pytestmark = pytest.mark.usefixtures("any_processor_rounds")

SHORT: dict[str, Any] = {"max_steps": 1, "save_strategy": "no", "logging_steps": 1}
BF16 = {"sampling_weights": "bfloat16"}
GAP = "sampling/sampling_logp_difference/mean"
RATIO = "sampling/importance_sampling_ratio/mean"


@pytest.mark.parametrize(
    ("changes", "corrects"),
    [
        ({}, False),  # tiny: exact
        ({"sampling_weights": "own"}, False),
        (BF16, True),
        pytest.param({"sampling_weights": "int8"}, True, marks=needs_int8),
        ({**BF16, "correct_sampling": False}, False),
        ({**BF16, "vllm_importance_sampling_correction": False}, False),
    ],
    ids=str,
)
def test_rounded_weights_are_corrected_for_by_themselves(
    changes: dict[str, Any], corrects: bool, tmp_path: Path
) -> None:
    trainer = build("scratch:dense-tiny", tmp_path, **changes, **SHORT)
    trainer.train()
    logged = trainer.state.log_history[0]
    assert (GAP in logged) == corrects
    if corrects:
        assert 1e-5 < logged[GAP] < 0.05
        assert 0.5 < logged[RATIO] < 1.5 and logged[RATIO] != 1.0


def first_flat(completions: list[str], **columns: Any) -> list[float]:
    """Rewards of which the first group's are all the same."""
    return [1.0 if i < 4 else float(i % 2) for i in range(len(completions))]


def test_rows_that_are_not_computed_weigh_one(tmp_path: Path) -> None:
    """Without an upper bound too: a row without log-probs would have weighed infinitely much."""
    changes = {
        **SHORT,
        "correct_sampling": True,
        "vllm_importance_sampling_mode": "sequence_truncate",
        "vllm_importance_sampling_clip_min": 0.5,
        "vllm_importance_sampling_clip_max": None,
        "max_completion_length": 40,
        "logging_nan_inf_filter": False,
    }
    trainer = tiny(GRPOTrainer, Path("scratch:dense-tiny"), first_flat, tmp_path, **changes)
    trainer.train()
    logged = trainer.state.log_history[0]
    assert logged["frac_reward_zero_std"] == 0.5 and math.isfinite(logged["loss"])


class OwnCompletions(GRPOTrainer):
    """Completions of the user's own, of which nobody knows how likely they were."""

    def _generate_single_turn(self, prompt_ids: list[list[int]], *others: Any) -> Any:
        return [[9 + i, 8, *row[:3]] for i, row in enumerate(prompt_ids)], None


@pytest.mark.parametrize("more", [{}, {"num_iterations": 2}, {"dynamic_sampling": 2}], ids=str)
def test_completions_of_ones_own_are_not_corrected_for(
    more: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def trained(weights: str) -> dict[str, torch.Tensor]:
        changes = {**SHORT, **more, "max_steps": 2, "sampling_weights": weights}
        trainer = build("scratch:dense-tiny", tmp_path / weights, kind=OwnCompletions, **changes)
        trainer.train()
        assert GAP not in trainer.state.log_history[0]
        assert not trainer.use_vllm
        return dict(trainer.model.state_dict())

    exact = trained("own")
    assert "correct_sampling" not in caplog.text
    rounded = trained("bfloat16")
    assert caplog.text.count("correct_sampling: left out") == 1
    assert all(exact[name].equal(rounded[name]) for name in exact)


class SomeLogProbs(GRPOTrainer):
    """Some calls give log-probs, others none."""

    calls = 0

    def _generate_single_turn(self, *given: Any) -> Any:
        type(self).calls += 1
        ids, logps = super()._generate_single_turn(*given)
        return ids, logps if self.calls % 2 else None


@pytest.mark.parametrize("first", [0, 1])
def test_log_probs_of_some_rows_are_not_taken_for_all(first: int, tmp_path: Path) -> None:
    SomeLogProbs.calls = first
    changes = {**SHORT, **BF16, "dynamic_sampling": 3, "max_steps": 3, "max_completion_length": 2}
    trainer = build(
        "scratch:dense-tiny",
        tmp_path,
        reward=lambda completions, **columns: [float("a" in c) for c in completions],
        kind=SomeLogProbs,
        **changes,
    )
    trainer.train()
    assert any(log.get("dynamic_sampling/refills") for log in trainer.state.log_history)


def test_it_is_said_where_nothing_is_rounded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = build("scratch:dense-tiny", tmp_path, **SHORT, **BF16, fast_rollouts=False)
    assert "sampling_weights: left out" in caplog.text
    trainer.train()
    assert GAP not in trainer.state.log_history[0]


def test_a_large_policy_is_sampled_in_bf16_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling_weights, "LARGE", 0)
    monkeypatch.setattr(sampling_weights, "bf16_pays", lambda: True)
    trainer = build("scratch:dense-tiny", tmp_path, **SHORT)
    trainer.train()
    assert trainer.engine_sampling.weights == torch.bfloat16
    assert GAP in trainer.state.log_history[0]


@pytest.mark.parametrize("weights", ["bfloat16", pytest.param("int8", marks=needs_int8)])
def test_the_copies_are_of_the_weights_of_now(weights: str, tmp_path: Path) -> None:
    """The gap stays one of rounding while the policy moves far."""
    changes = {**SHORT, "sampling_weights": weights, "max_steps": 3, "learning_rate": 3e-2}
    trainer = build("scratch:dense-tiny", tmp_path, **changes)
    trainer.train()
    gaps = [log[GAP] for log in trainer.state.log_history if GAP in log]
    assert len(gaps) == 3 and max(gaps) < 0.1
