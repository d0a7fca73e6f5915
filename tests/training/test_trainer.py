"""The trainer: trl's gradients bit by bit, rewards that fail, and what it leans on in trl."""

import ast
import inspect
import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from datasets import Dataset

from rl_reasoner import GRPOConfig, GRPOTrainer, open_policy, reward
from rl_reasoner.errors import UserError
from rl_reasoner.scoring.circuit_breaker import RewardsFailed
from support.failing_rewards import huge, infinite, nan, nothing, raises_sometimes, text
from support.processes import build as few
from support.trainers import (
    PLAIN,
    PROBLEMS,
    SPEED_UPS,
    Log,
    build,
    digits,
    rollouts,
    trained,
)

OURS = [field.name for field in fields(GRPOConfig)][len(fields(trl.GRPOConfig)) :]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved policy: the reference of the KL term is loaded from there."""
    path = tmp_path_factory.mktemp("policy")
    open_policy("scratch:moe-tiny", seed=5, device="cpu").save(path)
    return path


# --------------------------------------------------------------------------- equal to trl's own


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"beta": 0.04},
        {"loss_type": "grpo", "scale_rewards": "none", "epsilon_high": 0.28},
        {"num_iterations": 2, "max_steps": 4},
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
        {"per_device_train_batch_size": 4, "steps_per_generation": 4, "max_steps": 3},
        {"mask_truncated_completions": True, "max_completion_length": 24},
        {"router_aux_loss_coef": 0.0, "top_k": 50, "top_p": 0.9},
    ],
    ids=lambda changes: "-".join(changes) or "plain",
)
def test_the_weights_are_those_of_stock_trl(
    changes: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    changes = {**PLAIN, **changes}
    stock, theirs = trained(build(trl.GRPOTrainer, folder, digits, tmp_path, **changes))
    start = dict(open_policy(str(folder), device="cpu").model.named_parameters())
    ours = build(GRPOTrainer, folder, digits, tmp_path, **changes)
    ours.rollout_sink = lambda rows: None
    found, logged = trained(ours)
    assert any(not torch.equal(start[name], stock[name]) for name in stock), "nothing was learned"
    for name in stock:
        assert torch.equal(stock[name], found[name]), name
    assert len(theirs) == len(logged)
    for a, b in zip(theirs, logged, strict=True):
        assert a.keys() <= b.keys()
        steady = [key for key in a if "time" not in key and "runtime" not in key]
        assert [a[key] for key in steady] == [b[key] for key in steady]


def test_the_config_is_trls_and_starts_on_a_cpu(tmp_path: Path) -> None:
    config = GRPOConfig(output_dir=str(tmp_path))
    assert isinstance(config, trl.GRPOConfig)
    assert config.bf16 is torch.cuda.is_available() or torch.backends.mps.is_available()
    ours = inspect.signature(GRPOConfig).parameters
    theirs = inspect.signature(trl.GRPOConfig).parameters
    assert list(ours) == [*theirs, *OURS]
    assert all(ours[name].default is True for name in SPEED_UPS)
    assert [ours[name].default for name in theirs] == [p.default for p in theirs.values()]


@pytest.mark.parametrize("by_name", [True, False])
def test_without_a_config_it_is_ours_in_the_folder_that_trl_chooses(
    by_name: bool, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    policy = open_policy(str(folder), device="cpu")
    data = Dataset.from_dict({"prompt": PROBLEMS, "answer": PROBLEMS})
    model = str(folder) if by_name else policy.model
    named = {} if by_name else {"processing_class": policy.tokenizer}
    trainer = GRPOTrainer(model, digits, train_dataset=data, **named)
    assert isinstance(trainer.args, GRPOConfig)
    assert trainer.args.output_dir == f"{folder.name}-GRPO"


def test_trl_gives_its_rows_as_the_trainer_reads_them(folder: Path, tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    class Spy(GRPOTrainer):
        def _generate_and_score_completions(self, inputs: Any) -> Any:
            output = super()._generate_and_score_completions(inputs)
            seen.update(output, inputs=inputs)
            return output

    Spy.__name__ = "GRPOTrainer"
    trainer = build(Spy, folder, digits, tmp_path, max_steps=1)
    assert isinstance(trainer._metrics["train"], dict) and trainer._step == 0
    trainer.train()
    assert len(seen["inputs"]) == 8 and {"prompt", "answer"} <= seen["inputs"][0].keys()
    problems = [row["prompt"] for row in seen["inputs"]]
    assert problems == [problems[0]] * 4 + [problems[4]] * 4, "groups lie together"
    assert seen["completion_ids"].shape == seen["completion_mask"].shape
    assert seen["advantages"].shape == (8,)


# --------------------------------------------------------------------------- rewards that fail


@pytest.mark.parametrize("scale", ["group", "none"])
@pytest.mark.parametrize(
    ("function", "outcome", "reason"),
    [
        (
            raises_sometimes,
            "fault",
            "'raises_sometimes': ZeroDivisionError: odd length at failing_",
        ),
        (nan, "fault", "not a usable number: nan"),
        (infinite, "fault", "not a usable number: inf"),
        (huge, "fault", "not a usable number: 1e+38"),
        (text, "fault", "'text' returned str ('1.0')"),
        (nothing, "abstain", "returned None"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_reward_without_a_number_takes_out_its_row(
    function: Callable[[str], object],
    outcome: str,
    reason: str,
    scale: str,
    folder: Path,
    tmp_path: Path,
) -> None:
    trainer = build(
        GRPOTrainer, folder, reward(function), tmp_path, scale_rewards=scale, max_steps=3
    )
    log = Log()
    trainer.add_callback(log)
    rows = rollouts(trainer)
    assert trainer.state.global_step == 3, "the run goes on"
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
    assert len(rows) == 24
    found = [row["scores"][function.__name__] for row in rows]
    bad = [score for score in found if score["outcome"] == outcome]
    assert bad and any(reason in score["reason"] for score in bad)
    for row, score in zip(rows, found, strict=True):
        if score["outcome"] != "score":
            assert row["reward"] is None and row["advantage"] == 0.0
    json.dumps(rows, allow_nan=False)
    faults = sum(score["outcome"] == "fault" for score in found)
    assert sum(row[f"rewards/{function.__name__}/faults"] for row in log.rows) == faults


def test_a_bad_row_of_a_batch_function_spares_the_others(folder: Path, tmp_path: Path) -> None:
    def batch(completions: list[str], **kwargs: Any) -> list[object]:
        return [{}, *(float(len(c)) for c in completions[1:])]

    rows = rollouts(build(GRPOTrainer, folder, batch, tmp_path))
    assert [r["scores"]["batch"]["outcome"] for r in rows[:8]] == ["fault"] + ["score"] * 7
    assert rows[0]["advantage"] == 0.0 and any(r["advantage"] for r in rows[1:4])


@pytest.mark.parametrize("decorated", [True, False], ids=["decorated", "trl's form"])
def test_when_every_reward_call_faults_the_run_ends(
    decorated: bool, folder: Path, tmp_path: Path
) -> None:
    def broken(completion: str = "", **kwargs: Any) -> float:
        raise OSError("the judge is away")

    function = reward(broken) if decorated else broken
    with pytest.raises(RewardsFailed, match=r"'broken': OSError: the judge is away"):
        build(GRPOTrainer, folder, function, tmp_path).train()


def test_where_no_call_gives_a_number_the_error_says_what_it_gave(
    folder: Path, tmp_path: Path
) -> None:
    def lost(completion: str) -> float:
        return float("nan")

    with pytest.raises(RewardsFailed, match=r"row 1 of the batch: not a usable number: nan"):
        build(GRPOTrainer, folder, reward(lost), tmp_path).train()


def test_a_reward_that_only_faults_leaves_the_other_where_it_is_optional(
    folder: Path, tmp_path: Path
) -> None:
    def broken(completions: list[str], **kwargs: Any) -> list[float]:
        raise OSError("the judge is away")

    broken.optional = True  # type: ignore[attr-defined]
    alone, _ = trained(build(GRPOTrainer, folder, [digits], tmp_path))
    both = build(GRPOTrainer, folder, [digits, broken], tmp_path)
    found, log = trained(both)
    assert all(torch.equal(alone[name], found[name]) for name in alone)
    assert [row["rewards/broken/faults"] for row in log] == [8.0, 8.0]
    assert [row["rewards/digits/faults"] for row in log] == [0.0, 0.0]
    broken.optional = False  # type: ignore[attr-defined]
    with pytest.raises(RewardsFailed, match="no row got a reward in any of 2 steps"):
        trained(build(GRPOTrainer, folder, [digits, broken], tmp_path))


def test_weights_of_rewards_count_and_abstentions_do_not(folder: Path, tmp_path: Path) -> None:
    def half(completions: list[str], **kwargs: Any) -> list[float | None]:
        return [None if len(c) % 2 else 1.0 for c in completions]

    rows = rollouts(
        build(GRPOTrainer, folder, [digits, half], tmp_path, reward_weights=[2.0, -1.0])
    )
    for row in rows:
        first, second = row["scores"]["digits"]["value"], row["scores"]["half"]["value"]
        assert row["reward"] == pytest.approx(2 * first - (second or 0.0))


# ----------------------------------------------------------------------- rollouts and metrics


def test_rollouts_tell_what_was_sampled_and_what_it_was_worth(folder: Path, tmp_path: Path) -> None:
    trainer = build(GRPOTrainer, folder, digits, tmp_path, max_completion_length=40)
    rows = rollouts(trainer)
    assert [row["step"] for row in rows] == [1] * 8 + [2] * 8
    assert [row["group"] for row in rows] == ([0] * 4 + [1] * 4) * 2
    for start in range(0, 16, 4):
        group = rows[start : start + 4]
        assert len({(row["prompt"], row["answer"]) for row in group}) == 1
        rewards = torch.tensor([row["reward"] for row in group])
        expected = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
        assert torch.tensor([r["advantage"] for r in group]).tolist() == pytest.approx(
            expected.tolist(), abs=1e-4
        )
    for row in rows:
        assert ast.literal_eval(row["prompt"][0]) + int(row["prompt"][2]) == int(row["answer"])
        score = digits(row["completion"], answer=row["answer"])
        assert row["scores"]["digits"]["value"] == pytest.approx(score.value)
        assert row["scores"]["digits"]["reason"] == score.reason


@pytest.mark.parametrize("masked", [False, True])
def test_rollouts_are_whole_where_truncated_ones_are_masked(
    masked: bool, folder: Path, tmp_path: Path
) -> None:
    """Texts and `truncated` are of what was sampled, whatever the loss leaves out."""
    changes = {"mask_truncated_completions": masked, "max_completion_length": 60, "max_steps": 1}
    trainer = build(GRPOTrainer, folder, digits, tmp_path, **changes)
    log = Log()
    trainer.add_callback(log)
    rows = rollouts(trainer)
    share = sum(row["truncated"] for row in rows) / len(rows)
    assert 0 < share < 1, "the case has both"
    assert share == pytest.approx(log.rows[0]["completions/clipped_ratio"])
    for row in rows:
        assert row["completion"]
        value = digits(row["completion"], answer=row["answer"]).value
        assert row["scores"]["digits"]["value"] == pytest.approx(value)


def test_metrics_of_a_step(folder: Path, tmp_path: Path) -> None:
    trainer = build(
        GRPOTrainer,
        folder,
        digits,
        tmp_path,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        max_steps=3,
    )
    _, log = trained(trainer)
    assert len(log) == 3
    for row in log:
        parts = [row[f"timing/{part}"] for part in ("generation", "reward", "training")]
        assert all(part > 0 for part in parts)
        assert row["experts/max_over_mean"] >= 1.0
        assert {"reward", "reward_std", "completions/mean_length", "grad_norm"} <= row.keys()
    assert len(trainer.last_expert_load) == 2
    for shares in trainer.last_expert_load:
        assert len(shares) == 8 and sum(shares) == pytest.approx(1.0)


def test_evaluation_by_trl_itself_writes_no_rollouts(folder: Path, tmp_path: Path) -> None:
    trainer = build(GRPOTrainer, folder, digits, tmp_path, per_device_eval_batch_size=8)
    rows: list[dict[str, Any]] = []
    trainer.rollout_sink = rows.extend
    held_out = Dataset.from_dict({"prompt": PROBLEMS[:4], "answer": ["0", "1", "2", "3"]})
    found = trainer.evaluate(eval_dataset=held_out)
    assert found["eval_rewards/digits/mean"] >= 0 and rows == []


def test_evaluation_takes_larger_batches_than_a_generation(folder: Path, tmp_path: Path) -> None:
    """Also where the advantages are not trl's: its table of completions is a generation long."""
    sizes = {"per_device_train_batch_size": 4, "per_device_eval_batch_size": 16}
    changes: dict[str, Any] = {**sizes, "algorithm": "rloo", "beta": 0.0}
    trainer = build(GRPOTrainer, folder, digits, tmp_path, **changes)
    held_out = Dataset.from_dict({"prompt": PROBLEMS[:4], "answer": ["0"] * 4})
    assert trainer.evaluate(eval_dataset=held_out)["eval_rewards/digits/mean"] >= 0
    table = trainer._logs
    assert len(table["advantages"]) == len(table["completion"]) == 4
    centred = sum(table["advantages"])
    assert centred == pytest.approx(0.0, abs=1e-5), "the last group's, whose mean is 0"


def test_a_dense_policy_has_no_expert_load(tmp_path: Path) -> None:
    open_policy("scratch:dense-tiny", device="cpu").save(tmp_path / "dense")
    trainer = build(GRPOTrainer, tmp_path / "dense", digits, tmp_path, max_steps=1)
    _, log = trained(trainer)
    assert trainer.last_expert_load == [] and "experts/max_over_mean" not in log[0]


# ------------------------------------------------------------------------- data that fill no step


@pytest.mark.parametrize(
    ("rows", "stream", "said"),
    [
        (0, False, "train_dataset is empty"),
        (1, False, r"too few rows, 1: .* for 2 prompts"),
        (1, True, "ended before it gave 2 prompts"),
    ],
)
def test_data_that_fill_no_step_are_one_clear_error(
    rows: int, stream: bool, said: str, tmp_path: Path
) -> None:
    trainer = few("scratch:dense-tiny", tmp_path, prompts=rows, stream=stream, max_steps=2)
    with pytest.raises(UserError, match=said):
        trainer.train()


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"max_tokens": "5"}, r"row 1: max_tokens is '5', not a whole number above 0"),
        ({"max_tokens": 0}, "row 1: max_tokens is 0"),
        ({"max_tokens": 2.5}, r"row 1: max_tokens is 2\.5"),
        ({"rewards": 3}, "row 1: its rewards are 3, not a list of names"),
        ({"rewards": "digit"}, "row 1: the trainer has no reward 'digit'. Did you mean 'digits'"),
        ({"prompt": None}, "row 1: its prompt is None, not a text or messages"),
    ],
    ids=str,
)
def test_columns_that_say_nothing_are_one_clear_error(
    columns: dict[str, Any], said: str, tmp_path: Path
) -> None:
    trainer = build(GRPOTrainer, Path("scratch:dense-tiny"), digits, tmp_path)
    rows = [{**row, **columns} for row in trainer.train_dataset]
    trainer.train_dataset, trainer.use_row_settings = Dataset.from_list(rows), True
    with pytest.raises(UserError, match=f"train_dataset, {said}"):
        trainer.train()


def test_data_without_prompts_are_one_clear_error(tmp_path: Path) -> None:
    trainer = build(GRPOTrainer, Path("scratch:dense-tiny"), digits, tmp_path)
    trainer.train_dataset = trainer.train_dataset.rename_column("prompt", "question")
    with pytest.raises(UserError, match="no column 'prompt'; it has answer, question"):
        trainer.train()
