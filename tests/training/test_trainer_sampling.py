"""How the trainer samples: trl's settings through the engine, correction, overlapped rewards."""

import logging
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationMixin, TrainerCallback

from rl_reasoner import GRPOTrainer, reward
from rl_reasoner.errors import UserError
from rl_reasoner.evaluation.learning_alarms import LearningAlarms, learning_alarms
from rl_reasoner.policy.scratch import byte_tokenizer
from rl_reasoner.training.overlapped_rewards import OverlappedRewards
from support import stock
from support.processes import build

SHORT: dict[str, Any] = {"max_steps": 2, "save_strategy": "no", "logging_steps": 1}


class Seen(GRPOTrainer):
    """Keeps what sampling and scoring gave."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.outputs: list[dict[str, Any]] = []

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        self.outputs.append(output)
        return output


Seen.__name__ = "GRPOTrainer"


@pytest.mark.parametrize("mode", ["truncate", "mask"])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_sampling_is_corrected_with_the_engines_log_probs(
    level: str, mode: str, tmp_path: Path
) -> None:
    """By rounded weights, and before top_k: what it took away is no matter of the weights."""
    most = 1.0
    trainer = build(
        "scratch:dense-tiny",
        tmp_path,
        kind=Seen,
        correct_sampling=True,
        vllm_importance_sampling_mode=f"{level}_{mode}",
        vllm_importance_sampling_clip_max=most,
        top_k=20,
        sampling_weights="bfloat16",
        **SHORT,
    )
    trainer.train()
    assert not trainer.use_vllm
    changed: list[bool] = []
    for output in trainer.outputs:
        mask = output["completion_mask"]
        diff = (output["old_per_token_logps"] - output["sampling_per_token_logps"]) * mask
        assert 0 < diff.abs().max() < 0.05, "the policy that samples is the same, but for rounding"
        exact = (diff.sum(1, keepdim=True) if level == "sequence" else diff).exp()
        clipped = exact.clamp(max=most)
        expected = clipped if mode == "truncate" else exact.where(exact <= most, 0.0)
        torch.testing.assert_close(output["importance_sampling_ratio"], expected)
        changed += (expected != exact).expand_as(mask)[mask.bool()].tolist()
    assert True in changed and False in changed
    mean = trainer.state.log_history[0]["sampling/importance_sampling_ratio/mean"]
    assert 0.2 < mean < 1


CUT_OFFS = [{"top_p": 0.9}, {"top_k": 20}, {"min_p": 0.2}, {"top_p": 0.98, "top_k": 100}, {}]
REASONS: list[dict[str, Any]] = [
    {"correct_sampling": True},
    {"correct_sampling": True, "vllm_importance_sampling_mode": "token_truncate"},
    {"correct_sampling": True, "reuse_log_probs": False},
    {"correct_sampling": True, "share_prompts": False},
    {"correct_sampling": True, "num_iterations": 2},
    {"sampling_weights": "bfloat16"},
]


@pytest.mark.parametrize("reason", REASONS, ids=str)
@pytest.mark.parametrize("cut_off", CUT_OFFS, ids=str)
def test_a_cut_off_takes_nothing_from_the_gradient(
    cut_off: dict[str, Any], reason: dict[str, Any], tmp_path: Path
) -> None:
    """A token weighs by the policies, not by what was left to draw from: 0.9^40 of a completion."""

    def first(**changes: Any) -> dict[str, float]:
        changes = {**SHORT, **cut_off, "max_completion_length": 40, "max_steps": 1, **changes}
        trainer = build("scratch:dense-tiny", tmp_path, **changes)
        trainer.train()
        return trainer.state.log_history[0]  # type: ignore[no-any-return]

    exact = "sampling_weights" not in reason
    plain = reason | ({"correct_sampling": False} if "correct_sampling" in reason else {})
    ours, uncorrected = first(**reason), first(**(plain | {"correct_sampling": False}))
    ratio = ours["sampling/importance_sampling_ratio/mean"]
    assert ratio == pytest.approx(1.0, abs=1e-4 if exact else 0.05)
    near = 1e-4 if exact else 0.05
    assert ours["grad_norm"] == pytest.approx(uncorrected["grad_norm"], rel=near)


def test_the_weights_of_the_correction_keep_to_trls_bounds(tmp_path: Path) -> None:
    bounds = {"vllm_importance_sampling_clip_min": 0.9999, "vllm_importance_sampling_cap": 1.0001}
    trainer = build(
        "scratch:dense-tiny",
        tmp_path,
        kind=Seen,
        correct_sampling=True,
        vllm_importance_sampling_mode="token_truncate",
        sampling_weights="bfloat16",
        **bounds,
        **SHORT,
    )
    trainer.train()
    found = torch.cat([o["importance_sampling_ratio"].flatten() for o in trainer.outputs])
    drawn = torch.cat([o["completion_mask"].flatten() for o in trainer.outputs]).bool()
    assert (found[drawn].min(), found[drawn].max()) == pytest.approx((0.9999, 1.0001), abs=1e-6)


class Unlikely(GRPOTrainer):
    """Whoever samples says that tokens were likelier than they are to the policy."""

    def _generate_single_turn(self, *given: Any) -> Any:
        ids, logps = super()._generate_single_turn(*given)
        return ids, [[logp + 1.0 for logp in row] for row in logps]


def test_weights_that_leave_next_to_nothing_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    changes = {**SHORT, "correct_sampling": True, "max_steps": 6, "logging_steps": 1}
    trainer = build("scratch:dense-tiny", tmp_path, kind=Unlikely, **changes)
    trainer.train()
    assert caplog.text.count("next to no gradient") == 1
    rows = [{**row, "step": row["step"]} for row in trainer.state.log_history if "reward" in row]
    alarms = learning_alarms(rows, LearningAlarms(8, 6, None))
    assert [alarm.since for alarm in alarms if "under 0.5 on average" in alarm.text] == [1]


def test_a_correction_that_is_off_and_on_is_one_clear_error(tmp_path: Path) -> None:
    changes = {"correct_sampling": True, "vllm_importance_sampling_correction": False}
    with pytest.raises(UserError, match="vllm_importance_sampling_correction=False turns that off"):
        build("scratch:dense-tiny", tmp_path, **changes)


def test_settings_of_generate_reach_the_engine(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokens = list(range(10, 200))
    with caplog.at_level(logging.WARNING, logger="rl_reasoner"):
        trainer = build(
            "scratch:dense-tiny",
            tmp_path,
            kind=Seen,
            generation_kwargs={"suppress_tokens": tokens, "min_new_tokens": 3},
            **SHORT,
        )
    assert "fast_rollouts" not in caplog.text and trainer.engine_sampling.sampling() is not None
    trainer.train()
    for output in trainer.outputs:
        assert not torch.isin(output["completion_ids"], torch.tensor(tokens)).any()
        assert (output["completion_mask"].sum(1) >= 3).all()


@pytest.mark.parametrize(
    "changes", [{"temperature": 1e-4}, {"do_sample": False}, {"do_sample": False, "num_beams": 2}]
)
def test_settings_that_a_callback_changes_hold_from_the_next_sampling_on(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    class Cooled(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            trainer.generation_config.update(**changes)

    trainer = build("scratch:dense-tiny", tmp_path, **SHORT)
    trainer.add_callback(Cooled())
    rows: list[dict[str, Any]] = []
    trainer.rollout_sink = rows.extend
    trainer.train()
    different: dict[int, set[int]] = {1: set(), 2: set()}
    for group in {(row["step"], row["group"]) for row in rows}:
        mine = {row["completion"] for row in rows if (row["step"], row["group"]) == group}
        different[group[0]].add(len(mine))
    assert max(different[1]) > 1 and different[2] == {1}


def test_what_the_engine_does_not_do_goes_trls_way_by_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="rl_reasoner"):
        trainer = build(
            "scratch:dense-tiny",
            tmp_path,
            generation_kwargs={"num_beams": 2},
            correct_sampling=True,
            **SHORT,
        )
    assert "generate is used, for generation_kwargs (num_beams)" in caplog.text
    assert "correct_sampling: turned off" in caplog.text
    trainer.train()
    assert trainer.state.global_step == 2


def test_a_generate_of_the_models_own_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def generate(self: Any, input_ids: torch.Tensor, **settings: Any) -> torch.Tensor:
        calls.append(len(input_ids))
        return torch.cat([input_ids, input_ids[:, :1].expand(-1, 3)], dim=1)

    trainer = build("scratch:dense-tiny", tmp_path, **SHORT)
    monkeypatch.setattr(GenerationMixin, "generate", generate)
    trainer.train()
    assert calls == [8] * 2  # a generation a step


# ------------------------------------------------------------------- rewards beside the sampling


@reward
def waits(completion: str, number: int) -> float | None:
    """Takes a while, abstains on some rows and fails on others."""
    time.sleep(0.002)
    kinds = len(set(completion))
    if kinds % 5 == 4:
        return None
    return kinds / (number if kinds % 5 else 0)


@reward
def in_batches(completion: str) -> float:
    """The number of different letters."""
    return float(len(set(completion)))


SIZES: list[int] = []


@in_batches.batch
def _in_batches(completions: list[str], rows: list[dict[str, Any]]) -> list[float]:
    SIZES.append(len(completions))
    return [float(len(set(c))) for c in completions]


def plain(completions: list[str], **columns: Any) -> list[float]:
    """A reward in trl's form: it waits for the whole batch."""
    SIZES.append(-len(completions))
    return [len(c) / 8 for c in completions]


@pytest.mark.parametrize("chats", [False, True])
@pytest.mark.parametrize("changes", [{}, {"dynamic_sampling": 2}], ids=str)
def test_overlapped_rewards_are_the_same_rewards(
    chats: bool, changes: dict[str, Any], tmp_path: Path
) -> None:
    tokenizer = byte_tokenizer()
    few = {*range(80, 92), tokenizer.eos_token_id}  # so that rows end at different times
    others = [token for token in range(len(tokenizer)) if token not in few]
    weights = {}
    rows: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
    sizes = {}
    for overlap in (False, True):
        SIZES.clear()
        trainer = build(
            "scratch:dense-tiny",
            tmp_path,
            reward=[waits, in_batches, plain],
            columns={"number": list(range(2, 10))},
            chats=chats,
            overlap_rewards=overlap,
            max_completion_length=24,
            generation_kwargs={"suppress_tokens": others},
            **{**SHORT, "max_steps": 3, **changes},
        )
        trainer.rollout_sink = rows[overlap].extend
        trainer.train()
        weights[overlap] = torch.cat([p.flatten() for p in trainer.model.parameters()])
        sizes[overlap] = list(SIZES)
        assert (trainer.state.log_history[0]["overlapped_time/reward"] > 0) == overlap
    assert torch.equal(weights[False], weights[True])
    for one, other in zip(rows[False], rows[True], strict=True):
        del one["seconds"], other["seconds"]
        assert one == other
    found = [row["scores"]["waits"]["outcome"] for row in rows[True]]
    assert {"score", "abstain", "fault"} == set(found)
    ours = {overlap: [n for n in sizes[overlap] if n > 0] for overlap in sizes}
    assert sum(ours[True]) == sum(ours[False]) and len(ours[True]) > len(ours[False])
    assert [n for n in sizes[True] if n < 0] == [n for n in sizes[False] if n < 0]


def test_sampling_that_breaks_off_leaves_no_reward_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = build("scratch:dense-tiny", tmp_path, reward=in_batches, **SHORT)
    left = OverlappedRewards.add

    def breaks(self: OverlappedRewards, ended: Any) -> None:
        left(self, ended)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(OverlappedRewards, "add", breaks)
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer.train()
    monkeypatch.undo()
    trainer.train()
    assert trainer.state.global_step == 2


_HANGS = """
import time
from rl_reasoner.training.overlapped_rewards import OverlappedRewards
rewards = OverlappedRewards({0: len}, {}, lambda ids: ["a"], lambda *_: time.sleep(500))
rewards.add([(0, [1])])
rewards.close()
"""


def test_a_reward_that_hangs_beside_the_sampling_does_not_hold_the_exit_back() -> None:
    subprocess.run([sys.executable, "-c", _HANGS], check=True, timeout=200)


def test_the_policy_that_is_sampled_from_has_no_dropout(tmp_path: Path) -> None:
    """With an adapter's dropout in training the engine draws what it draws without."""
    found = []
    for dropout in (0.0, 0.5):
        changes = {"peft_config": stock.lora(dropout), "max_completion_length": 12, **SHORT}
        torch.manual_seed(0)  # of the adapter's first weights
        trainer = build("scratch:dense-tiny", tmp_path, kind=Seen, **{**changes, "max_steps": 1})
        assert trainer.engine_sampling.on and trainer.packed_forward.packs == (dropout == 0.0)
        trainer.train()
        found.append(trainer.outputs[0])
        assert all(module.training for module in trainer.model.modules())
    assert torch.equal(found[0]["completion_ids"], found[1]["completion_ids"])
    torch.testing.assert_close(*(f["sampling_per_token_logps"] for f in found))


def test_a_faster_way_that_a_model_rules_out_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = build("scratch:dense-tiny", tmp_path, max_steps=1, save_strategy="no")
    layer = trainer.model.model.layers[0]
    layer.register_forward_hook(lambda module, given, out: out)
    for _ in range(2):
        trainer.train()
    assert caplog.text.count("transformers' modules make each token, for hooks on a Qwen3") == 1
    # nothing is corrected: no figure of it, not even an empty one
    assert not any("importance_sampling" in name for name in trainer.state.log_history[0])
