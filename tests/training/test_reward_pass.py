"""Rewards in the trainer: every kind of them trains as in trl, and is written down."""

import math
import random
import re
import statistics
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import transformers
import trl
from datasets import Dataset, concatenate_datasets

from rl_reasoner import GRPOConfig, GRPOTrainer, open_policy, reward
from rl_reasoner.errors import UserError
from rl_reasoner.scoring.circuit_breaker import RewardsFailed
from rl_reasoner.scoring.limits import Limits
from rl_reasoner.scoring.runner import close_all
from support.trainers import PLAIN, build, digits, trained


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


@reward
def now_and_then(completion: str) -> float | None:
    """Abstains on every third length."""
    return None if len(completion) % 3 == 0 else float(completion.count("a"))


@pytest.mark.parametrize("scale", ["group", "none"])
def test_a_row_that_abstains_leaves_the_mean_of_its_group(
    scale: str, folder: Path, tmp_path: Path
) -> None:
    trainer = build(GRPOTrainer, folder, now_and_then, tmp_path, scale_rewards=scale, max_steps=4)
    rows: list[dict[str, Any]] = []
    trainer.rollout_sink = rows.extend
    trainer.train()
    abstained = [row for row in rows if row["reward"] is None]
    assert 0 < len(abstained) < len(rows)
    for start in range(0, len(rows), 4):
        group = rows[start : start + 4]
        known = [row["reward"] for row in group if row["reward"] is not None]
        for row in group:
            if row["reward"] is None or len(known) < 2:
                assert row["advantage"] == pytest.approx(0.0, abs=1e-6)
                continue
            spread = statistics.stdev(known) + 1e-4 if scale == "group" else 1.0
            wanted = (row["reward"] - statistics.mean(known)) / spread
            assert row["advantage"] == pytest.approx(wanted, abs=1e-4)


def test_limits_come_from_the_config(folder: Path, tmp_path: Path) -> None:
    limits = {"reward_timeout_s": 3.0, "reward_batch_timeout_s": 9.0, "reward_memory_mb": 777}
    trainer = build(GRPOTrainer, folder, digits, tmp_path, **limits, isolate_rewards=False)
    assert trainer.reward_pass.limits == Limits(3.0, 9.0, 777, apart=False)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        (
            "rewards_on",
            "rya",
            "unknown rewards_on 'rya'. Did you mean 'ray'? There are: here, ray.",
        ),
        ("reward_timeout_s", -1, "reward_timeout_s is -1; it has to be more than 0"),
        ("reward_batch_timeout_s", 0.0, "reward_batch_timeout_s is 0.0; it has to be more than 0"),
        ("reward_timeout_s", math.nan, "reward_timeout_s is nan; it has to be more than 0"),
        ("reward_memory_mb", 0, "reward_memory_mb is 0; it has to be more than 0"),
    ],
)
def test_limits_that_no_reward_could_keep_are_refused(
    field: str, value: Any, says: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=re.escape(says)):
        GRPOConfig(str(tmp_path), **{field: value})


def test_the_breaker_stops_the_training_of_a_drop_in(folder: Path, tmp_path: Path) -> None:
    @reward
    def broken(completion: str) -> float:
        raise OSError("the judge is away")

    trainer = build(GRPOTrainer, folder, [digits, broken], tmp_path, max_steps=40)
    with pytest.raises(
        RewardsFailed, match=r"broken: 1\d\d of its last 1\d\d calls faulted"
    ) as caught:
        trainer.train()
    assert "row 1 of the batch: reward 'broken': OSError: the judge is away" in str(caught.value)
    assert trainer.state.global_step == 16, "more than half of 256 calls"


COLUMNS: dict[str, list[Any]] = {
    "rewards as text": ["rewards", "+5 gold", "2 gold"],
    "rewards as numbers": ["rewards", [0.1, 0.2], [0.3]],
    "rewards as objects": ["rewards", {"gold": 1.0}, {"gold": 2.0}],
    "max_tokens": ["max_tokens", 1, 2],
    "max_tokens as text": ["max_tokens", "1", "2"],
    "task as text": ["task", "add them", "take them away"],
    "task as lists": ["task", ["a"], ["b", "c"]],
    "task as objects": ["task", {"a": 1}, {"a": 2}],
}


def with_column(name: str, values: list[Any]) -> Any:
    """What makes our trainer, on its rows again and again with one column more."""

    def made(*args: Any, train_dataset: Dataset, **rest: Any) -> GRPOTrainer:
        times = -(-len(values) // len(train_dataset))
        rows = concatenate_datasets([train_dataset] * times).select(range(len(values)))
        return GRPOTrainer(*args, train_dataset=rows.add_column(name, values), **rest)

    return made


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("column", COLUMNS.values(), ids=COLUMNS)
def test_a_column_is_the_rewards_whatever_it_is_called(
    column: list[Any], overlap: bool, folder: Path, tmp_path: Path
) -> None:
    name, *values = column

    @reward
    def ours(completion: str) -> float:
        return float(len(completion))

    def theirs(completions: list[str], **columns: Any) -> list[float]:
        return [float(values.index(value)) for value in columns[name]]

    changes = {"isolate_rewards": False, "overlap_rewards": overlap, "max_steps": 1}
    kind = with_column(name, [values[i % 2] for i in range(12)])
    trainer = build(kind, folder, [ours, theirs], tmp_path, **changes)
    rows: list[dict[str, Any]] = []
    trainer.rollout_sink = rows.extend
    _, [logged, *_] = trained(trainer)
    outcomes = {score["outcome"] for row in rows for score in row["scores"].values()}
    assert outcomes == {"score"}
    assert max(len(row["completion"]) for row in rows) > 2
    assert not any(key.startswith("task/") for key in logged)


@pytest.mark.parametrize(("tasks", "told"), [(24, True), (25, False)])
def test_figures_of_each_task_only_where_the_tasks_are_few(
    tasks: int, told: bool, folder: Path, tmp_path: Path
) -> None:
    kind = with_column("task", [f"task {i}" for i in range(tasks)])
    trainer = build(kind, folder, digits, tmp_path, max_steps=1)
    trainer.use_row_settings = True
    _, [logged, *_] = trained(trainer)
    assert any(key.startswith("task/") for key in logged) == told


@reward
def noisy(completion: str) -> float:
    return random.random() + numpy.random.rand()


def noisy_batch(completions: list[str], **columns: Any) -> list[float]:
    return [random.random() + numpy.random.rand() for _ in completions]


@pytest.mark.matrix
def test_rewards_that_draw_at_random_are_the_same_after_a_resume(
    folder: Path, tmp_path: Path
) -> None:
    """Whichever worker judges a row: the second run starts its own."""
    changes: dict[str, Any] = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    found: list[list[tuple[Any, ...]]] = []
    for start in (None, str(tmp_path / "checkpoint-2")):
        rows: list[dict[str, Any]] = []
        trainer = build(GRPOTrainer, folder, [noisy, noisy_batch], tmp_path, **changes)
        trainer.rollout_sink = rows.extend
        trainer.train(resume_from_checkpoint=start)
        close_all()
        values = [[score["value"] for score in row["scores"].values()] for row in rows]
        found.append([(row["completion"], *v) for row, v in zip(rows, values, strict=True)])
    whole, resumed = found
    assert len(whole) == 32 and len({value for _, value, _ in whole}) == 32
    assert len({value for _, _, value in whole}) == 32
    assert resumed == whole[16:]
