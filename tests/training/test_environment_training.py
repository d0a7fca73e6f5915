"""The trainer with an environment: which episodes count as cut off."""

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from rl_reasoner import GRPOConfig, GRPOTrainer, open_policy
from rl_reasoner.recipe.environment import EnvironmentSettings
from rl_reasoner.rollout.episodes.environment_turns import EnvironmentUse
from rl_reasoner.rollout.episodes.opening import open_rows
from rl_reasoner.training.objective import trained_tokens
from support.stock import drawn
from support.tiny import QUIET
from support.trainers import Log

ROWS = [{"problem": "11-90?", "start": "30"}] * 4
TURNS = ["30", "50", "12345678", "30"]  # right, wrong, too long, right


def every_other(completions: list[str], **columns: Any) -> list[float]:
    """1 for every second completion."""
    return [float(place % 2) for place in range(len(completions))]


@pytest.mark.parametrize("masked", [True, False])
def test_episodes_that_a_limit_cuts_are_cut_off(masked: bool, tmp_path: Path) -> None:
    """Of a turn each: one episode ends with its turn, though it is not won."""
    tokens: list[list[float]] = []
    items: list[float] = []

    class Watched(GRPOTrainer):
        def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
            found = super()._generate_and_score_completions(inputs)
            tokens.append(trained_tokens(found).sum(1).tolist())
            items.append(found["num_items_in_batch"].item())
            return found

    policy = open_policy("scratch:dense-tiny", seed=3, device="cpu")
    opened = open_rows(EnvironmentSettings(use="guess"), ROWS, 0)
    config = GRPOConfig(
        output_dir=str(tmp_path),
        max_steps=1,
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=8,
        mask_truncated_completions=masked,
        **QUIET,
    )
    trainer = Watched(
        policy.model,
        reward_funcs=every_other,
        args=config,
        train_dataset=Dataset.from_list([{"prompt": r["problem"], **r} for r in opened]),
        processing_class=policy.tokenizer,
    )
    trainer.environment_use = EnvironmentUse(policy.tokenizer, "guess", template="plain", turns=1)
    log, rows, end = Log(), [], policy.tokenizer.eos_token_id
    trainer.add_callback(log)
    trainer.rollout_sink = rows.extend
    ids = [policy.tokenizer(text, add_special_tokens=False)["input_ids"] for text in TURNS]
    with drawn([[*each, *[end] * 8][:8] for each in ids], size=4):
        trainer.train()
    assert [row["ended"] for row in rows] == ["done", "turns", "length", "done"]
    assert [row["truncated"] for row in rows] == [False, True, True, False]
    whole = [3.0, 3.0, 8.0, 3.0]
    [found] = tokens
    assert found == ([3.0, 0.0, 0.0, 3.0] if masked else whole) and items == [sum(found)]
    assert log.rows[0]["completions/clipped_ratio"] == 0.5
    assert log.rows[0]["completions/mean_length"] == sum(whole) / 4
    for name in ("mean", "min", "max"):
        assert log.rows[0][f"completions/{name}_terminated_length"] == 3
