"""What is told of a handover: warnings of what verl does otherwise, and the README."""

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tyro

from rl_reasoner import Recipe
from rl_reasoner.cli.eval import EvalVerb
from rl_reasoner.handover.folder import hand_over
from rl_reasoner.policy.scratch import byte_tokenizer


def recipe(**given: Any) -> Recipe:
    stage = {"kind": "grpo", "steps": 3, "sampling": {"max_tokens": 64}}
    own: dict[str, Any] = {"policy": "org/model", "template": "plain", "stages": [stage]}
    own |= {"data": {"task": "modular", "count": 6}, "rewards": {"math_answer": 2.0}}
    return Recipe(**{**own, **given})


@pytest.mark.parametrize(
    ("policy", "config", "told"),
    [
        ("Qwen/Qwen3-30B-A3B", None, 1),
        ("deepseek-ai/DeepSeek-V2-Lite-Chat", None, 1),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", None, 0),
        ("zai-org/GLM-4.5-Air", None, 1),
        ("zai-org/GLM-4-9B-0414", None, 0),
        ("moonshotai/Kimi-K2-Instruct", None, 1),
        ("meta-llama/Llama-4-Scout-17B-16E-Instruct", None, 1),
        ("scratch:deepseek-tiny", None, 1),
        ("scratch:dense-tiny", None, 0),
        ("mine", {"model_type": "mixtral", "num_local_experts": 8}, 1),
        ("not-moe", {"model_type": "llama"}, 0),
    ],
)
def test_of_a_mixture_it_is_told_that_its_experts_are_not_replayed(
    policy: str, config: Mapping[str, Any] | None, told: int, tmp_path: Path
) -> None:
    if config is not None:
        folder = tmp_path / policy
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        policy = str(folder)
    made = hand_over(recipe(policy=policy), tmp_path / "out")
    assert sum("router_replay" in line for line in made.warnings) == told


def test_the_evaluation_samples_as_the_recipe_does(tmp_path: Path) -> None:
    drawn = {"samples": 4, "temperature": 0.6, "weights": "int8"}
    made = hand_over(recipe(evals={"sets": ["a"], **drawn}), tmp_path / "out")
    readme = (made.folder / "README.md").read_text()
    [command] = [line for line in readme.splitlines() if line.startswith("rl-reasoner eval")]
    found = tyro.cli(EvalVerb, args=shlex.split(command)[2:])
    assert {name: getattr(found, name) for name in drawn} == drawn


def test_no_value_ends_a_cell_of_the_table(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<|begin|>"})
    tokenizer.save_pretrained(tmp_path / "policy")
    file = tmp_path / "policy" / "tokenizer.json"
    bos = {"id": "<|begin|>", "ids": [tokenizer.bos_token_id], "tokens": ["<|begin|>"]}
    parts = [{"SpecialToken": {"id": "<|begin|>", "type_id": 0}}]
    parts += [{"Sequence": {"id": "A", "type_id": 0}}]
    adding: dict[str, Any] = {"type": "TemplateProcessing", "single": parts, "pair": parts}
    adding |= {"special_tokens": {"<|begin|>": bos}}
    file.write_text(json.dumps({**json.loads(file.read_text()), "post_processor": adding}))
    asked = recipe(policy=str(tmp_path / "policy"), name="a|b")
    readme = (hand_over(asked, tmp_path / "out").folder / "README.md").read_text()
    rows = [line for line in readme.splitlines() if line.startswith("| ")]
    assert rows and {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {4}
    assert r"<\|begin\|>" in readme
