"""The planner against published runs, and its answers to a recipe."""

import json
from typing import Any

import pytest

from rl_reasoner import cli
from rl_reasoner.errors import UserError
from rl_reasoner.pipeline.capacity_planner import (
    GPUS,
    Shape,
    StepLoad,
    breaks,
    memory,
    plan,
    seconds,
)
from support.tiny import grpo, recipe

# From the models' cards: parameters, active ones, layers, width, vocabulary, bytes a token's cache.
LLAMA_8B = Shape(8.03e9, 8.03e9, 32, 4096, 128_256, 4 * 32 * 8 * 128)
QWEN_32B = Shape(32.8e9, 32.8e9, 64, 5120, 151_936, 4 * 64 * 8 * 128)
QWEN_30B_A3B = Shape(30.5e9, 3.3e9, 48, 2048, 151_936, 4 * 48 * 4 * 128)
QWEN_235B_A22B = Shape(235e9, 22e9, 94, 4096, 151_936, 4 * 94 * 4 * 128)
DEEPSEEK_V3 = Shape(671e9, 37e9, 61, 7168, 129_280, 2 * 61 * (512 + 64))


def run(
    gpus: int, engine: int, copy: int, pipeline: int, rows: int, mean: int, longest: int
) -> StepLoad:
    """A published run: `copy` GPUs train one copy, in `pipeline` parts; 512 rows an update."""
    return StepLoad(
        gpus=gpus,
        engine=engine,
        model=copy,
        pipeline=pipeline,
        rows=rows,
        batch=512,
        mean=mean,
        longest=longest,
    )


# NVIDIA NeMo RL, docs/about/performance-summary.md, GRPO on policy on DGX-H100 in BF16: version 0.4
# (release r0.4.0), which the planner's assumptions were fitted to, and 0.6, which they were not.
# GPUs, generation TP, GPUs a training copy, PP, rows, mean length, longest, and seconds a step.
FITTED = [
    ("Llama 3.1 8B", LLAMA_8B, run(16, 1, 2, 2, 2048, 1060, 4096), 97.7),
    ("Qwen3 30B-A3B", QWEN_30B_A3B, run(32, 4, 2, 1, 2048, 3154, 4096), 225.0),
    ("Qwen3 32B", QWEN_32B, run(32, 4, 16, 4, 2048, 3206, 4096), 393.0),
    ("Qwen3 235B-A22B", QWEN_235B_A22B, run(128, 16, 32, 8, 512, 5671, 8192), 506.0),
    ("DeepSeek V3", DEEPSEEK_V3, run(256, 32, 16, 16, 512, 745, 1536), 154.0),
]
HELD_OUT = [
    ("Qwen3 30B-A3B", QWEN_30B_A3B, run(32, 2, 1, 1, 2048, 3203, 4096), 192.0),
    ("Qwen3 235B-A22B", QWEN_235B_A22B, run(128, 16, 32, 8, 512, 5698, 8192), 395.0),
    ("Qwen3 235B-A22B, 256", QWEN_235B_A22B, run(256, 16, 32, 8, 512, 5713, 8192), 312.0),
    ("DeepSeek V3", DEEPSEEK_V3, run(256, 32, 16, 16, 512, 701, 1536), 134.0),
    ("DeepSeek V3, 512", DEEPSEEK_V3, run(512, 32, 16, 16, 512, 697, 1536), 111.0),
]


@pytest.mark.parametrize(("name", "shape", "work", "measured"), [*FITTED, *HELD_OUT])
def test_a_published_step_is_estimated_within_a_factor_of_one_and_a_half(
    name: str, shape: Shape, work: StepLoad, measured: float
) -> None:
    estimated = sum(seconds(shape, GPUS["H100"], work).values())
    assert 1 / 1.5 < estimated / measured < 1.5


def test_shards_share_what_ddp_holds_whole() -> None:
    alone = StepLoad(gpus=64, rows=512, longest=4096, mean=2048)
    shared = StepLoad(gpus=64, rows=512, longest=4096, mean=2048, shards=64)
    assert (
        "training does not fit: use run.parallel: fsdp" in breaks(LLAMA_8B, alone, GPUS["H100"])[0]
    )
    whole, part = (memory(LLAMA_8B, work, GPUS["H100"]) for work in (alone, shared))
    assert whole["optimizer"] == pytest.approx(8 * 8.03e9)
    assert part["optimizer"] == pytest.approx(whole["optimizer"] / 64)
    assert not breaks(LLAMA_8B, shared, GPUS["H100"])


def test_a_policy_too_large_to_sample_beside_its_training_is_said() -> None:
    work = StepLoad(gpus=64, rows=512, longest=4096, mean=2048, shards=64)
    assert any("vllm.mode" in said for said in breaks(QWEN_235B_A22B, work, GPUS["H100"]))


def test_more_gpus_make_a_step_shorter_and_not_by_more_than_their_number() -> None:
    steps = []
    for gpus in (8, 16, 64):
        work = StepLoad(gpus=gpus, rows=1024, longest=4096, mean=2048, shards=gpus)
        steps.append(sum(seconds(LLAMA_8B, GPUS["H100"], work).values()))
    assert steps[0] > steps[1] > steps[2] > steps[0] / 8


def test_a_recipe_is_planned(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    made = recipe(tmp_path, grpo(group={"size": 8, "prompts": 16}), run={"parallel": "fsdp"})
    (tmp_path / "r.yaml").write_text(made.to_yaml(), encoding="utf-8")
    assert cli.main(["env", "--plan", str(tmp_path / "r.yaml"), "--gpus", "4", "--json"]) == 0
    [found] = json.loads(capsys.readouterr().out)["plans"]
    assert found["parameters"] > found["active_parameters"]
    assert found["seconds"]["step"] == pytest.approx(sum(list(found["seconds"].values())[:-1]))
    assert found["memory"]["all"] < 80e9 and found["breaks"] == []
    assert cli.main(["env", "--plan", str(tmp_path / "r.yaml"), "--gpus", "4"]) == 0
    assert "sampled tokens/s" in capsys.readouterr().out


def test_mistakes_in_a_plan_are_said(tmp_path: Any) -> None:
    made = recipe(tmp_path, grpo(group={"size": 8, "prompts": 16}))
    with pytest.raises(UserError, match=r"H100"):
        plan(made, 4, "H10")
    with pytest.raises(UserError, match="16 is not a multiple of 3 GPUs"):
        plan(made, 3, "H100")
