"""On-policy distillation: the student comes nearer to its teacher, which stays as it was."""

from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from datasets import Dataset

from rl_reasoner import open_policy, train
from rl_reasoner.errors import UserError
from rl_reasoner.training.other_trainers import DistillationTrainer, teacher_of
from support.tiny import QUIET, recipe, rows, same, sft

DISTILL = {
    "kind": "distill",
    "name": "student",
    "policy": "scratch:dense-tiny",
    "data": {"task": "modular", "count": 32},
    "batch": 8,
    "sampling": {"max_tokens": 6},
    "optim": {"lr": 3e-3},
}


@pytest.mark.parametrize("beta", [1.0, 0.0], ids=["reverse KL", "forward KL"])
def test_the_student_comes_nearer_to_the_teacher(beta: float, tmp_path: Path) -> None:
    open_policy("scratch:moe-tiny", seed=3, device="cpu").save(tmp_path / "teacher")
    stage = {**DISTILL, "teacher": str(tmp_path / "teacher"), "steps": 20, "beta": beta}
    run = train(recipe(tmp_path, stage, evals={"sets": ()}), quiet=True)
    loss = [row["loss"] for row in rows(run.folder / "stages" / "1-student" / "metrics.jsonl")]
    assert sum(loss[-4:]) < 0.7 * sum(loss[:4])
    assert run.policy.model.config.model_type == "qwen3"


def test_the_teacher_is_a_stage_and_not_changed(tmp_path: Path) -> None:
    stage = {**DISTILL, "teacher": "sft", "steps": 2}
    run = train(recipe(tmp_path, sft(), stage, evals={"sets": ()}), quiet=True)
    (tmp_path / "other").mkdir()
    alone = train(recipe(tmp_path / "other", sft(), evals={"sets": ()}), quiet=True)
    place = Path("stages") / "1-sft" / "policy"
    assert same(run.folder / place, alone.folder / place)
    assert all(torch.isfinite(p).all() for p in run.policy.model.parameters())


def test_a_teacher_of_another_vocabulary_is_refused(tmp_path: Path) -> None:
    policy = open_policy("scratch:dense-tiny", device="cpu")
    policy.tokenizer.add_tokens(["<more>"])
    policy.save(tmp_path / "teacher")
    stage = {**DISTILL, "teacher": str(tmp_path / "teacher"), "steps": 1}
    with pytest.raises(UserError, match="different vocabularies: distil by samples instead"):
        train(recipe(tmp_path, stage, evals={"sets": ()}), quiet=True)


@pytest.mark.parametrize("stream", [False, True], ids=["rows", "a stream"])
def test_distillation_is_resumed_to_the_same_weights(stream: bool, tmp_path: Path) -> None:
    """From within the first pass over the data, and from within the second."""

    def distiller(folder: Path) -> Any:
        student, teacher = (open_policy("scratch:dense-tiny", seed=s, device="cpu") for s in (0, 1))
        data = Dataset.from_dict({"prompt": [f"{a}+{b}=" for a in range(2) for b in range(4)]})
        arguments = {**QUIET, "save_strategy": "steps", "save_steps": 1, "max_steps": 7}
        arguments |= {"max_completion_length": 4, "learning_rate": 3e-3}
        arguments |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1}
        return DistillationTrainer(
            student.model,
            teacher_of(teacher),
            args=trl.DistillationConfig(str(folder), **arguments),
            train_dataset=data.to_iterable_dataset() if stream else data,
            processing_class=student.tokenizer,
        )

    whole = distiller(tmp_path / "whole")
    whole.train()
    for step in (2, 6):
        resumed = distiller(tmp_path / "resumed")
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
        pairs = zip(whole.model.parameters(), resumed.model.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs), step
