"""The recipes of R1 run with one step a stage; those for GPUs at a reduced size."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from rl_reasoner import Recipe, train
from rl_reasoner.recipe.load import load_recipe

R1 = ["pretrain", "zero", "cold_start", "reasoning", "samples"]
R1 += ["student_base", "student_rl", "student", "sft", "all"]
NAMES = {
    "r1_tiny": R1,
    "r1_zero_tiny": R1[:2],
    "r1_distill_tiny": [
        *R1[:2],
        "samples",
        "student_base",
        "by_samples",
        "on_policy",
        "by_rl",
    ],
    "r1_qwen_7b": [*R1[1:5], "student", "sft", "all"],
    "r1_moe_30b": [*R1[1:5], "student", "sft", "all"],
}
MATHS = {"task": "modular", "count": 16}
CODE = {"task": "functions", "count": 8}


def small_source(source: dict[str, Any]) -> dict[str, Any]:
    """The source with a few rows; one of the hub is rows of a task."""
    if "stage" in source:
        return {"stage": source["stage"], "limit": 8}
    if "task" in source:
        return {**source, "count": 8}
    task = CODE if source["columns"].get("tests") else MATHS
    return {**task, "rewards": source["rewards"]}


def small_data(data: dict[str, Any]) -> dict[str, Any]:
    if "mix" in data:
        return {"mix": [small_source(source) for source in data["mix"]]}
    return small_source(data)


def small_stage(stage: dict[str, Any]) -> dict[str, Any]:
    """The stage with one step and few tokens; all samples are kept, the policy being random."""
    stage = {**stage, "data": small_data(stage["data"])}
    few = {"max_tokens": 8}
    if stage["kind"] == "sample":
        keep = {"readable": False, "per_prompt": 4}
        return {**stage, "samples": 1, "min_score": 0.0, "keep": keep, "sampling": few}
    stage |= {"steps": 1}
    if stage["kind"] == "grpo":
        return stage | {"group": {"size": 4, "prompts": 2}, "sampling": few, "vllm": None}
    return stage | {
        "batch": 4,
        **({"sampling": few} if stage["kind"] == "distill" else {"micro_batch": None}),
    }


def small(wanted: Recipe, folder: Path) -> Recipe:
    """The recipe with every size overridden, and scratch policies in place of those of the hub."""
    data = wanted.model_dump(mode="json")
    data["stages"] = [small_stage(stage) for stage in data["stages"]]
    for stage in data["stages"]:
        if stage.get("policy"):
            stage["policy"] = "scratch:dense-tiny"
    if not data["policy"]["source"].startswith("scratch:"):
        data["policy"]["source"] = "scratch:moe-tiny"
        data["template"] = "plain"
        data["evals"]["sets"] = ["modular_test", "functions_test"]
    data["evals"] |= {"limit": 2, "samples": 2, "max_tokens": 8}
    data["run"] = {"folder": str(folder / "run"), "device": "cpu"}
    return Recipe.model_validate(data)


@pytest.mark.parametrize("name", NAMES)
def test_every_stage_is_taken(name: str, tmp_path: Path) -> None:
    wanted = load_recipe(name)
    assert [stage.name for stage in wanted.stages] == NAMES[name]
    run = train(small(wanted, tmp_path), quiet=True)
    done = {p.parent.name.partition("-")[2] for p in run.folder.glob("stages/*/done.json")}
    assert done == {*NAMES[name]}
    evals = {p.stem for p in (run.folder / "evals").glob("*.json")}
    assert evals == {*NAMES[name], "before", "after"} - {"samples"} | (
        set() if name.endswith("tiny") else {"before"}
    )
    AutoModelForCausalLM.from_pretrained(run.folder / "policy")
    page = run.report.read_text(encoding="utf-8")
    assert "The pipeline" in page and "What each gain is" in page


def test_the_recipes_for_gpus_share_the_stages_and_ask_in_two_languages() -> None:
    qwen, mixture = load_recipe("r1_qwen_7b"), load_recipe("r1_moe_30b")
    assert qwen.name != mixture.name and qwen.policy != mixture.policy
    kinds = [(s.name, s.kind, qwen.start_of(s)) for s in qwen.stages]
    assert kinds == [(s.name, s.kind, mixture.start_of(s)) for s in mixture.stages]
    sources = json.dumps(qwen.model_dump(mode="json")["stages"][0]["data"])
    assert "gsm8k" in sources and "question_chinese" in sources and "mgsm_zh" in qwen.evals.sets
