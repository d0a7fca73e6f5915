"""Checkpoints of a trainer of one's own: sealed, checked before use, and the best one taken."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, TrainerCallback

from rl_reasoner.errors import UserError
from support.processes import build, same, weights


def flip(file: Path) -> None:
    """One bit of the last number in a file of weights: the file can be read as before."""
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes(content)


def test_a_flipped_bit_is_found_before_a_run_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    short = {"max_steps": 4, "save_steps": 2}
    build("scratch:dense-tiny", tmp_path, **short).train()
    flip(tmp_path / "checkpoint-4/model.safetensors")
    trainer = build("scratch:dense-tiny", tmp_path, **short)
    with pytest.raises(UserError, match=r"checkpoint-4 is damaged \(model.safetensors fails"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    with caplog.at_level(logging.WARNING, "rl_reasoner"):
        trainer.train(resume_from_checkpoint=True)
    assert "checkpoint-4 is damaged (model.safetensors fails its checksum)" in caplog.text
    assert trainer._initial_global_step == 2 and trainer.state.global_step == 4


def test_a_checkpoint_cannot_ask_for_a_kernel_from_elsewhere(tmp_path: Path) -> None:
    """A mixture's is opened as a policy is; how the model computes is not up to it."""
    build("scratch:moe-tiny", tmp_path, max_steps=2, save_steps=1).train()
    checkpoint = tmp_path / "checkpoint-1"
    config = json.loads((checkpoint / "config.json").read_text())
    config["attn_implementation"] = "someone/attention"
    (checkpoint / "config.json").write_text(json.dumps(config))
    (checkpoint / "checksums.json").unlink()
    trainer = build("scratch:moe-tiny", tmp_path, max_steps=2, save_steps=1)
    trainer.train(resume_from_checkpoint=str(checkpoint))
    assert trainer.state.global_step == 2


def falling(completions: list[str], trainer_state: Any, **columns: Any) -> list[float]:
    """How many different letters a completion has; from the second step on far less."""
    return [len(set(c)) / 8 - 9 * (trainer_state.global_step > 1) for c in completions]


BEST: dict[str, Any] = {
    "eval_strategy": "steps",
    "eval_steps": 1,
    "per_device_eval_batch_size": 8,
    "max_steps": 3,
    "save_steps": 1,
    "learning_rate": 0.1,
    "load_best_model_at_end": True,
    "metric_for_best_model": "eval_reward",
    "greater_is_better": True,
}


@pytest.mark.parametrize("policy", ["scratch:moe-tiny", "scratch:dense-tiny"])
def test_the_best_model_at_the_end_is_all_of_it(policy: str, tmp_path: Path) -> None:
    """Files hold a mixture's experts one by one; in memory they are one tensor."""
    trainer = build(policy, tmp_path, falling, **BEST)
    trainer.train()
    best = tmp_path / "checkpoint-1"
    assert trainer.state.best_model_checkpoint == str(best)
    saved = dict(AutoModelForCausalLM.from_pretrained(best).named_parameters())
    last = dict(AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-3").named_parameters())
    assert same(weights(trainer), saved)
    assert not any(torch.equal(saved[name], last[name]) for name in saved)


def test_a_best_model_that_is_damaged_is_not_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Damage(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 3:
                flip(tmp_path / "checkpoint-1/model.safetensors")

    trainer = build("scratch:dense-tiny", tmp_path, falling, **BEST)
    trainer.add_callback(Damage())
    trainer.train()
    assert "checkpoint-1 is damaged (model.safetensors fails its checksum)" in caplog.text
    last = dict(AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-3").named_parameters())
    assert same(weights(trainer), last)
