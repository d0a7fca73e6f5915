"""Dynamic sampling and the prompt schedule in the trainer: shapes, cost, resume, processes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, IterableDataset

from rl_reasoner import GRPOConfig, GRPOTrainer, open_policy, reward
from rl_reasoner.dataset.levels import levels_of
from rl_reasoner.errors import UserError
from rl_reasoner.training.curriculum import LevelSchedule, PromptSchedule
from support.processes import EVAL, killed, same, together, weights
from support.tiny import QUIET

PROMPTS = [f"{a}+{b}=" for a in range(6) for b in range(4)]
HARD = {p for p in PROMPTS if p[0] in "0123"}  # whose completions all score the same
Rows = list[dict[str, Any]]


def judged(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """0 for a hard prompt; else something that hardly any two completions share."""
    for name in ("log_extra", "log_metric"):
        assert name in columns
    columns["log_extra"]("said", [f"{p}{c}" for p, c in zip(prompts, completions, strict=True)])
    return [
        0.0 if p in HARD else sum(map(ord, c)) % 97 / 97
        for p, c in zip(prompts, completions, strict=True)
    ]


def build(folder: Path, rewards: Any = judged, prompts: Any = PROMPTS, **changes: Any) -> Any:
    """Three prompts a step with four completions each, in one micro-batch where not changed."""
    opened = open_policy("scratch:dense-tiny", seed=5, device="cpu")
    arguments = {
        "output_dir": str(folder),
        "max_steps": 2,
        "per_device_train_batch_size": 12,
        "num_generations": 4,
        "max_completion_length": 5,
        "learning_rate": 3e-3,
        **QUIET,
        **changes,
    }
    data = prompts if isinstance(prompts, IterableDataset) else Dataset.from_dict(prompted(prompts))
    return GRPOTrainer(
        opened.model,
        reward_funcs=rewards,
        args=GRPOConfig(**arguments),
        train_dataset=data,
        eval_dataset=data if "eval_steps" in changes else None,
        processing_class=opened.tokenizer,
    )


def prompted(prompts: list[str]) -> dict[str, list[Any]]:
    """The level of a prompt is its first number; 0 to 3 are the hard ones."""
    about = {"note": [f"about {p}" for p in prompts], "level": [int(p[0]) for p in prompts]}
    return {"prompt": list(prompts), **about}


def logged(trainer: Any) -> Rows:
    return [row for row in trainer.state.log_history if "reward" in row]


def groups(rows: Rows) -> list[list[dict[str, Any]]]:
    return [rows[i : i + 4] for i in range(0, len(rows), 4)]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 3},
        {"per_device_train_batch_size": 4, "steps_per_generation": 6, "num_iterations": 2},
        {"fast_rollouts": False},
        {"prompt_schedule": True},
    ],
    ids=str,
)
def test_flat_groups_are_replaced_by_other_prompts(changes: dict[str, Any], tmp_path: Path) -> None:
    trainer = build(tmp_path, dynamic_sampling=30, **changes)
    rows: Rows = []
    trainer.rollout_sink = rows.extend
    trainer.train()
    batch = trainer.args.generation_batch_size
    assert rows and len(rows) % batch == 0, "the batch keeps its shape"
    for start in range(0, len(rows), batch):
        kept = groups(rows[start : start + batch])
        prompts = [group[0]["prompt"] for group in kept]
        assert len(set(prompts)) == len(prompts) and not set(prompts) & HARD
        for group in kept:
            assert {row["prompt"] for row in group} == {group[0]["prompt"]}
            assert any(row["advantage"] for row in group)
            for row in group:  # the row, its completion and its score have stayed together
                score = sum(map(ord, row["completion"])) % 97 / 97
                assert row["scores"]["judged"]["value"] == pytest.approx(score)
    first = logged(trainer)[0]
    assert first["dynamic_sampling/kept"] == 1 and first["dynamic_sampling/refills"] >= 1
    assert 0 < first["dynamic_sampling/thrown_away"] < 1
    sampled = batch / (1 - first["dynamic_sampling/thrown_away"])
    assert sampled == pytest.approx(round(sampled)) and round(sampled) % 4 == 0
    mean = sum(len(row["scores"]) and row["reward"] for row in rows[:batch]) / batch
    assert first["reward"] == pytest.approx(mean, abs=1e-5)
    extra = list(trainer._logs["extra"]["said"])
    assert extra == [row["prompt"] + row["completion"] for row in rows[-batch:]]


def test_the_rounds_are_capped_and_their_cost_is_told(tmp_path: Path) -> None:
    trainer = build(tmp_path, lambda completions, **_: [0.0] * len(completions), dynamic_sampling=2)
    trainer.train()
    first, second = logged(trainer)
    for row in (first, second):
        assert row["dynamic_sampling/refills"] == 2 and row["dynamic_sampling/kept"] == 0
        assert row["dynamic_sampling/thrown_away"] == pytest.approx(2 / 3)
        assert row["frac_reward_zero_std"] == 1
    assert second["num_tokens"] > 1.8 * first["num_tokens"], "tokens thrown away are counted"
    assert first["num_tokens"] > 3 * 12 * 5


def test_faults_of_all_rounds_are_counted(tmp_path: Path) -> None:
    @reward
    def picky(completion: str, note: str) -> float:
        """Fails on prompts that begin with 0, and all others score the same."""
        if note.startswith("about 0"):
            raise ValueError("no")
        return 0.0

    trainer = build(tmp_path, picky, dynamic_sampling=30, max_steps=1)
    trainer.train()
    [row] = logged(trainer)
    assert row["dynamic_sampling/refills"] == 7, "until each of 24 prompts was tried once"
    assert row["rewards/picky/faults"] == 4 * 4


def test_without_other_prompts_the_flat_groups_stay(tmp_path: Path) -> None:
    trainer = build(tmp_path, prompts=PROMPTS[:4], dynamic_sampling=9, max_steps=1)
    rows: Rows = []
    trainer.rollout_sink = rows.extend
    trainer.train()
    assert len(rows) == 12 and all(row["advantage"] == 0 for row in rows)
    [row] = logged(trainer)
    assert row["dynamic_sampling/refills"] == 1, "one prompt of four was left to try"


def test_the_first_completions_are_those_of_a_run_without_it(tmp_path: Path) -> None:
    """Nothing is refilled where every group varies: the same weights, bit by bit."""
    found = []
    for rounds in (0, 5):
        trainer = build(tmp_path, prompts=PROMPTS[16:], dynamic_sampling=rounds)
        trainer.train()
        found.append(weights(trainer))
    assert same(*found)
    assert [row["dynamic_sampling/refills"] for row in logged(trainer)] == [0, 0]


def test_the_punishment_for_length_makes_no_group_vary(tmp_path: Path) -> None:
    trainer = build(tmp_path, dynamic_sampling=30, overlong_share=0.8, max_steps=1)
    rows: Rows = []
    trainer.rollout_sink = rows.extend
    trainer.train()
    assert not {row["prompt"] for row in rows} & HARD


@pytest.mark.parametrize(
    ("name", "value"), [("dynamic_sampling", 1), ("prompt_schedule", 1), ("level_band", [0.3, 0.7])]
)
def test_rows_that_have_no_number_are_refused(name: str, value: Any, tmp_path: Path) -> None:
    stream = IterableDataset.from_generator(lambda: iter([{"prompt": "1+1="}]))
    with pytest.raises(UserError, match=f"{name}.*must not be iterable"):
        build(tmp_path, prompts=stream, **{name: value})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"level_band": [0.7, 0.3]}, r"level_band is \[0.7, 0.3\].*low < high"),
        ({"level_band": [0.3]}, "two shares of success"),
        ({"level_band": [0.3, 30]}, "two shares of success"),
        ({"level_band": ["a", "b"]}, "two shares of success"),
        ({"level_band": 0.5}, "two shares of success"),
        ({"level_band": [0.3, 0.7], "prompt_schedule": True}, "use only one of them"),
        ({"level_band": [0.3, 0.7], "prompts": PROMPTS[:4]}, "all rows have level 0"),
    ],
)
def test_levels_that_cannot_be_drawn_are_refused(
    changes: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=expected):
        build(tmp_path, **changes)


# ---------------------------------------------------------------------------------- the schedule


def test_the_schedule_draws_by_what_was_scored_and_leaves_evaluation_alone(tmp_path: Path) -> None:
    """A schedule beside the trainer, told the same rewards, wants the same prompts."""
    evaluated = []
    for scheduled in (False, True):
        changes = {**EVAL, "eval_steps": 4, "per_device_eval_batch_size": 4}
        changes |= {"max_steps": 8, "learning_rate": 0.0, "prompt_schedule": scheduled}
        trainer = build(tmp_path, **changes)
        rows: Rows = []
        trainer.rollout_sink = rows.extend
        trainer.train()
        evaluated.append(
            [r["eval_reward"] for r in trainer.state.log_history if "eval_reward" in r]
        )
    assert len(evaluated[0]) == 2 and evaluated[0] == evaluated[1]
    beside = PromptSchedule(len(PROMPTS))
    for step in range(8):
        wanted = beside.order((7, 2, step))[:3]
        batch = groups(rows)[3 * step : 3 * step + 3]
        assert [group[0]["prompt"] for group in batch] == [PROMPTS[i] for i in wanted]
        beside.update(wanted, torch.tensor([[row["reward"] for row in group] for group in batch]))
    assert torch.allclose(beside.counts, trainer.prompt_selection.schedule.counts, atol=1e-5)
    assert len({beside.probabilities()[i].item() for i in range(24)}) > 3, "it has learned"


def test_levels_are_drawn_by_their_success_and_resumed_exactly(tmp_path: Path) -> None:
    """As a schedule beside the trainer that is told the same rewards; and the second half again."""
    changes = {"level_band": [0.1, 0.9], "max_steps": 8, "save_strategy": "steps", "save_steps": 4}
    whole = build(tmp_path, **changes)
    rows: Rows = []
    whole.rollout_sink = rows.extend
    whole.train()
    beside = LevelSchedule(levels_of([{"level": int(p[0])} for p in PROMPTS]), (0.1, 0.9))
    for step, line in enumerate(logged(whole)):
        wanted = beside.order((7, 2, step))[:3]
        batch = groups(rows)[3 * step : 3 * step + 3]
        assert [group[0]["prompt"] for group in batch] == [PROMPTS[i] for i in wanted]
        beside.update(wanted, torch.tensor([[row["reward"] for row in group] for group in batch]))
        told = {name: value for name, value in line.items() if name.startswith("curriculum/")}
        assert told == pytest.approx(beside.metrics(wanted)) and len(told) == 2 * 6 + 1
    assert told["curriculum/level_mean"] == pytest.approx(sum(i // 4 for i in wanted) / 3)
    assert beside.shares()[4:].min() > beside.shares()[:4].max(), "0 to 3 are never solved"
    resumed = build(tmp_path, **changes)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert resumed._initial_global_step == 4 and same(weights(whole), weights(resumed))
    counts = [trainer.prompt_selection.schedule.counts for trainer in (whole, resumed)]
    assert torch.equal(*counts)


def test_levels_are_counted_once_a_batch_whatever_was_refilled(tmp_path: Path) -> None:
    """As a schedule beside the trainer that is told all rewards of a batch at once."""
    seen: dict[int, dict[str, list[float]]] = {}

    def kept(prompts: list[str], trainer_state: Any, **columns: Any) -> list[float]:
        found = judged(prompts, **columns)
        for prompt, score in zip(prompts, found, strict=True):
            of_step = seen.setdefault(trainer_state.global_step, {})
            of_step.setdefault(prompt, []).append(score)
        return found

    changes = {"level_band": [0.1, 0.9], "dynamic_sampling": 30, "isolate_rewards": False}
    trainer = build(tmp_path, kept, max_steps=3, **changes)
    rows: Rows = []
    trainer.rollout_sink = rows.extend
    trainer.train()
    beside = LevelSchedule(levels_of([{"level": int(p[0])} for p in PROMPTS]), (0.1, 0.9))
    for step, line in enumerate(logged(trainer)):
        trained = [PROMPTS.index(group[0]["prompt"]) for group in groups(rows)[3 * step :][:3]]
        beside.update([*map(PROMPTS.index, seen[step])], torch.tensor([*seen[step].values()]))
        told = {name: value for name, value in line.items() if name.startswith("curriculum/")}
        assert told == pytest.approx(beside.metrics(trained), abs=1e-5)
    assert logged(trainer)[0]["dynamic_sampling/refills"] >= 1


@pytest.mark.parametrize(
    "changes",
    [
        {"dynamic_sampling": 3},
        pytest.param(
            {"level_band": [0.1, 0.9], "dynamic_sampling": 2, "steps_per_generation": 4},
            marks=pytest.mark.matrix,
        ),
        pytest.param({"prompt_schedule": True}, marks=pytest.mark.matrix),
        {"prompt_schedule": True, "dynamic_sampling": 2, "steps_per_generation": 4},
        pytest.param(
            {"algorithm": "dapo", "num_iterations": 2, "steps_per_generation": 4, **EVAL},
            marks=pytest.mark.matrix,
        ),
    ],
    ids=str,
)
def test_a_killed_run_is_resumed_to_the_same_weights(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def small(policy: str, folder: Path, **changes: Any) -> Any:
        size = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
        steps = {"max_steps": 6, "save_steps": 2, "save_strategy": "steps"}
        return build(folder, **{**size, **steps, **changes})

    monkeypatch.setattr("support.processes.build", small)
    torch.set_num_threads(1)
    whole = small("", tmp_path / "whole", **changes)
    whole.train()
    killed("", tmp_path / "killed", 6, changes)
    resumed = small("", tmp_path / "killed", **changes)
    resumed.train(resume_from_checkpoint=True)
    assert resumed._initial_global_step == 4
    assert same(weights(whole), weights(resumed))
    if resumed.prompt_selection.schedule:
        assert torch.equal(
            whole.prompt_selection.schedule.counts, resumed.prompt_selection.schedule.counts
        )


# ----------------------------------------------------------------------------- two processes


def test_two_processes_keep_groups_whole_and_end(tmp_path: Path) -> None:
    """Groups of six in batches of nine rows a process: groups lie across the processes.

    Both draw the same levels, or the groups would not be whole.
    """

    def job(rank: int) -> None:
        size = {"per_device_train_batch_size": 9, "num_generations": 6, "ddp_backend": "gloo"}
        trainer = build(tmp_path, **size, dynamic_sampling=30, level_band=[0.3, 0.7])
        assert isinstance(trainer, GRPOTrainer) and trainer.accelerator.num_processes == 2
        rows: Rows = []
        trainer.rollout_sink = rows.extend
        trainer.train()
        if rank == 0:
            (tmp_path / "rows.json").write_text(json.dumps(rows), encoding="utf-8")

    assert together(2, job) == [0, 0]
    rows = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))
    assert len(rows) == 2 * 18
    for start in range(0, len(rows), 6):
        group = rows[start : start + 6]
        assert len({row["prompt"] for row in group}) == 1 and group[0]["prompt"] not in HARD
        for row in group:
            score = sum(map(ord, row["completion"])) % 97 / 97
            assert row["scores"]["judged"]["value"] == pytest.approx(score)
        values = [row["reward"] for row in group]
        mean = sum(values) / 6
        assert all((row["advantage"] > 0) == (row["reward"] > mean) for row in group)
