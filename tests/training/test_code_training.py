"""Training and evaluating on rows with tests: begun programs, and tests of several forms."""

import json
from pathlib import Path
from typing import Any

import pytest

from rl_reasoner import Policy, evaluate, open_policy, train
from rl_reasoner.types import Rollout
from support.tiny import grpo, recipe, rows

BEGUN = {
    "prompt": "def one(x):\n",
    "entry_point": "one",
    "tests": "def check(candidate):\n    assert candidate(0.5) == 1\n",
}
ASKED = {"prompt": "Write `two`.", "tests": [{"call": "two", "args": ["a", 1], "expected": [2]}]}
READS = {"prompt": "Echo.", "tests": [{"stdin": "1", "stdout": "1", "tolerance": 0.1}]}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "code.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in (BEGUN, ASKED, READS)))
    return path


def test_training_continues_the_begun_program(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All completions are made `return 1`, which is right for the begun program alone."""
    monkeypatch.setattr(
        "transformers.PreTrainedTokenizerFast.batch_decode",
        lambda self, ids, **kwargs: ["    return 1\n"] * len(ids),
    )
    stage = grpo(steps=1, data={"path": str(file)}, group={"size": 2, "prompts": 3})
    run = train(
        recipe(tmp_path, stage, rewards={"code_tests": 1.0}, evals={"sets": []}), quiet=True
    )
    kept = rows(run.folder / "stages" / "1-grpo" / "rollouts.jsonl")
    scores = {row["prompt"]: row["scores"]["code_tests"] for row in kept}
    assert len(kept) == 6
    assert scores[BEGUN["prompt"]]["value"] == 1.0
    assert {scores[row["prompt"]]["reason"] for row in (ASKED, READS)} == {"no closed Python block"}  # type: ignore[index]


def test_the_reward_is_chosen_by_the_rows(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = open_policy("scratch:dense-tiny", device="cpu")

    def said(policy: Policy, prompts: list[Any], **settings: Any) -> list[list[Rollout]]:
        return [[Rollout("    return 1\n", 1, False)] for _ in prompts]

    monkeypatch.setattr("rl_reasoner.rollout.sampler.sample", said)
    result = evaluate(policy, [str(file), "word_problems"], limit=3)
    assert result.sets[str(file)]["accuracy"] == pytest.approx(1 / 3)
    assert result.sets[str(file)]["reward"] == "code_tests"
    assert result.sets["word_problems"]["reward"] == "math_answer"
