"""Rewards in the trainer: every kind of them trains as in trl, and is written down."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import trl
from test_trainer import PLAIN, build, digits, trained

from rl_reasoner import GRPOTrainer, open_policy


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved policy."""
    path = tmp_path_factory.mktemp("policy")
    open_policy("scratch:moe-tiny", seed=5, device="cpu").save(path)
    return path


def test_asynchronous_rewards_train_as_in_trl_and_are_written_down(
    folder: Path, tmp_path: Path
) -> None:
    async def later(completions: list[str], **kwargs: Any) -> list[float]:
        return [float(len(c)) for c in completions]

    stock, _ = trained(build(trl.GRPOTrainer, folder, later, tmp_path))
    ours = build(GRPOTrainer, folder, later, tmp_path, **PLAIN)
    rows: list[dict[str, Any]] = []
    ours.rollout_sink = rows.extend
    found, _ = trained(ours)
    assert all(torch.equal(stock[name], found[name]) for name in stock)
    assert [row["scores"]["later"]["value"] for row in rows] == [
        len(row["completion"]) for row in rows
    ]
    assert len(rows) == 16 and all(row["seconds"]["later"] > 0 for row in rows)


def test_a_reward_model_beside_a_function_trains_as_in_trl_and_is_written_down(
    folder: Path, tmp_path: Path
) -> None:
    policy = open_policy(str(folder), device="cpu")
    config = transformers.LlamaConfig(
        vocab_size=policy.model.config.vocab_size,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_labels=1,
        pad_token_id=policy.tokenizer.pad_token_id,
    )
    torch.manual_seed(1)
    transformers.LlamaForSequenceClassification(config).save_pretrained(tmp_path / "judge")
    policy.tokenizer.save_pretrained(tmp_path / "judge")
    rewards = [digits, str(tmp_path / "judge")]
    stock, _ = trained(build(trl.GRPOTrainer, folder, rewards, tmp_path))
    ours = build(GRPOTrainer, folder, rewards, tmp_path, **PLAIN)
    rows: list[dict[str, Any]] = []
    ours.rollout_sink = rows.extend
    found, _ = trained(ours)
    assert all(torch.equal(stock[name], found[name]) for name in stock)
    [judge] = rows[0]["scores"].keys() - {"digits"}
    assert len({row["scores"][judge]["value"] for row in rows}) > 2
    for row in rows:
        values = [score["value"] for score in row["scores"].values()]
        assert row["reward"] == pytest.approx(sum(values))
