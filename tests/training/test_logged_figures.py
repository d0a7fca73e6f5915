"""What is logged of a step: figures of all that was sampled, of each group apart."""

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from rl_reasoner import GRPOConfig, GRPOTrainer, open_policy


def every_other(completions: list[str], task: list[str], **columns: Any) -> list[float]:
    """Nothing for the task "flat"; of the other every second completion is right."""
    return [float(i % 2 and name != "flat") for i, name in enumerate(task)]


@pytest.mark.parametrize("scale", ["group", "batch"])
def test_what_is_masked_has_its_length_and_a_flat_group_is_one_however_scaled(
    scale: str, tmp_path: Path
) -> None:
    """Lengths of tasks left out what `mask_truncated_completions` does not train on; no group was
    flat where the deviation is that of the batch."""
    tasks = ("flat", "other")
    rows = [{"prompt": f"{n}+1=", "task": task} for n in range(2) for task in tasks]
    policy = open_policy("scratch:dense-tiny", device="cpu")
    args = GRPOConfig(
        str(tmp_path),
        max_steps=1,
        per_device_train_batch_size=8,
        num_generations=2,
        max_completion_length=3,
        mask_truncated_completions=True,
        scale_rewards=scale,
        isolate_rewards=False,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = GRPOTrainer(
        policy.model,
        [every_other],
        args,
        train_dataset=Dataset.from_list(rows),
        processing_class=policy.tokenizer,
    )
    trainer.use_row_settings = True
    trainer.train()
    log = trainer.state.log_history[0]
    assert log["completions/clipped_ratio"] > 0
    lengths = [log[f"task/{task}/mean_length"] for task in tasks]
    assert sum(lengths) / 2 == pytest.approx(log["completions/mean_length"])
    assert log["frac_reward_zero_std"] == 0.5
