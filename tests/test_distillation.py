"""On-policy distillation: the student comes nearer to its teacher, which stays as it was."""

from pathlib import Path

import pytest
import torch
from tiny import recipe, rows, same, sft

from rl_reasoner import open_policy, train
from rl_reasoner.errors import UserError

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
    with pytest.raises(UserError, match="other vocabularies: distil by samples instead"):
        train(recipe(tmp_path, stage, evals={"sets": ()}), quiet=True)
