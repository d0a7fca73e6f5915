"""The planner against published runs, and its answers to a recipe."""

import json
from pathlib import Path
from typing import Any

import pytest

from rl_reasoner import cli, open_policy
from rl_reasoner.cli.dispatch import parse_verb
from rl_reasoner.errors import UserError
from rl_reasoner.planning.gpus import GPUS
from rl_reasoner.planning.load import StepLoad
from rl_reasoner.planning.plan import plan, size
from rl_reasoner.planning.shapes import PUBLISHED, Shape, shape_of
from rl_reasoner.planning.step_memory import breaks, memory
from rl_reasoner.planning.step_time import seconds
from rl_reasoner.recipe.adapter import Lora
from rl_reasoner.recipe.load import load_recipe
from support.tiny import grpo, recipe, sft

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
    shared = StepLoad(gpus=64, rows=512, longest=4096, mean=2048, shards=64, states=64)
    assert (
        "training does not fit: use run.parallel: fsdp" in breaks(LLAMA_8B, alone, GPUS["H100"])[0]
    )
    whole, part = (memory(LLAMA_8B, work, GPUS["H100"]) for work in (alone, shared))
    assert whole["optimizer"] == pytest.approx(8 * 8.03e9)
    assert part["optimizer"] == pytest.approx(whole["optimizer"] / 64)
    assert not breaks(LLAMA_8B, shared, GPUS["H100"])


def test_a_policy_too_large_to_sample_beside_its_training_is_said() -> None:
    work = StepLoad(gpus=64, rows=512, longest=4096, mean=2048, shards=64, states=64)
    assert any("vllm.mode" in said for said in breaks(QWEN_235B_A22B, work, GPUS["H100"]))


def test_more_gpus_make_a_step_shorter_and_not_by_more_than_their_number() -> None:
    steps = []
    for gpus in (8, 16, 64):
        work = StepLoad(gpus=gpus, rows=1024, longest=4096, mean=2048, shards=gpus, states=gpus)
        steps.append(sum(seconds(LLAMA_8B, GPUS["H100"], work).values()))
    assert steps[0] > steps[1] > steps[2] > steps[0] / 8


def test_a_recipe_is_planned(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    made = recipe(tmp_path, grpo(group={"size": 8, "prompts": 16}), run={"parallel": "fsdp"})
    (tmp_path / "r.yaml").write_text(made.to_yaml(), encoding="utf-8")
    assert cli.main(["env", "--plan", str(tmp_path / "r.yaml"), "--gpus", "4", "--json"]) == 0
    [found] = json.loads(capsys.readouterr().out)["plans"]
    assert found["parameters"] > found["active_parameters"]
    assert found["seconds"]["step"] == pytest.approx(sum(list(found["seconds"].values())[:-1]))
    assert found["memory"]["training"] < 80e9 and found["breaks"] == []
    hours = found["steps"] * found["seconds"]["step"] / 3600
    assert found["hours"] == pytest.approx(hours)
    assert found["gpu_hours"] == pytest.approx(4 * hours)
    assert cli.main(["env", "--plan", str(tmp_path / "r.yaml"), "--gpus", "4"]) == 0
    told = capsys.readouterr().out
    assert "sampled tokens/s" in told and "0.0 GB" not in told and "MB" in told


def test_steps_on_one_batch_share_its_sampling(tmp_path: Path) -> None:
    made = [recipe(tmp_path, grpo(steps=6, loss={"iterations": n})) for n in (2, 6)]
    few, many = (plan(one, 1, "H100")[0] for one in made)
    assert few.seconds["sampling"] == pytest.approx(3 * many.seconds["sampling"])
    assert few.seconds["training"] == pytest.approx(many.seconds["training"])
    assert few.tokens == pytest.approx(3 * many.tokens)
    assert few.hours == pytest.approx(6 * few.step / 3600)


def test_the_flags_of_a_recipe_are_heard_in_every_spelling() -> None:
    verb = parse_verb(["env", "--steps", "3", "--plan=game_tiny", "--server_gpus", "2"])
    assert (verb.plan, verb.server_gpus, verb.flags) == ("game_tiny", 2, ["--steps", "3"])


def test_mistakes_in_a_plan_are_said(tmp_path: Any) -> None:
    made = recipe(tmp_path, grpo(group={"size": 8, "prompts": 16}))
    with pytest.raises(UserError, match=r"H100"):
        plan(made, 4, "H10")
    with pytest.raises(UserError, match="16 is not a multiple of 3 GPUs"):
        plan(made, 3, "H100")
    with pytest.raises(UserError, match="no vLLM server"):
        plan(made, 4, "H100", servers=8)


@pytest.mark.parametrize(("gpus", "engine"), [(1, 4), (8, 3), (8, 16)])
def test_engines_that_do_not_divide_among_the_gpus_are_refused(
    tmp_path: Path, gpus: int, engine: int
) -> None:
    said = f"stage grpo: --gpus {gpus} is not a multiple of vllm.gpus {engine}"
    group = {"size": 8, "prompts": 16}
    with pytest.raises(UserError, match=said):
        plan(recipe(tmp_path, grpo(group=group, vllm={"gpus": engine})), gpus, "H100")
    [four] = plan(recipe(tmp_path, grpo(group=group, vllm={"gpus": 4})), 8, "H100")
    assert four.load.engine == 4


def test_each_stage_is_planned_with_the_model_that_it_trains(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    stages = [
        grpo(name="teacher_rl"),
        sft(name="student_base", policy="scratch:dense-tiny"),
        grpo(name="student_rl"),
        grpo(name="teacher_again", start="teacher_rl"),
        grpo(name="kept", reuse=str(kept)),
        grpo(name="behind_it"),
    ]
    open_policy("scratch:deepseek-tiny").save(kept)
    sources = {
        "teacher_rl": "scratch:moe-tiny",
        "student_rl": "scratch:dense-tiny",
        "teacher_again": "scratch:moe-tiny",
        "behind_it": "scratch:deepseek-tiny",
    }
    found = {one.stage: one.shape for one in plan(recipe(tmp_path, *stages), 1, "H100")}
    assert found == {stage: shape_of(source) for stage, source in sources.items()}


def test_a_recipe_that_trains_no_grpo_stage_is_not_planned(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the recipe has none"):
        plan(recipe(tmp_path, sft(), grpo(reuse=str(tmp_path))), 1, "H100")


# --------------------------------------------------------------------- policies, by their configs


# What the models' cards say: parameters, active ones.
CARDS = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": (0.135e9, 0.135e9),
    "Qwen/Qwen2.5-7B": (7.61e9, 7.61e9),
    "Qwen/Qwen2.5-Coder-0.5B-Instruct": (0.49e9, 0.49e9),
    "Qwen/Qwen3-30B-A3B": (30.5e9, 3.3e9),
    "Qwen/Qwen3-30B-A3B-Base": (30.5e9, 3.3e9),
    "deepseek-ai/DeepSeek-V2-Lite-Chat": (15.7e9, 2.4e9),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_known_policies_have_the_parameters_of_their_cards(name: str) -> None:
    total, active = CARDS[name]
    shape = shape_of(name)
    assert shape.total == pytest.approx(total, rel=0.02)
    assert shape.active == pytest.approx(active, rel=0.12)  # cards differ in embeddings


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({}, "Should have a `model_type`"),
        ({"model_type": "t5"}, "T5Config"),
        ({"model_type": "llava"}, "LlavaConfig"),
        ({"model_type": "mamba", "num_hidden_layers": 2}, "num_attention_heads"),
        ({"model_type": "llama", "num_attention_heads": 3}, "is not a multiple of the number of"),
        ({"model_type": "llama", "hidden_size": "100"}, "expected int, got str"),
        ({"model_type": "gpt2", "n_head": 0}, "zero"),
    ],
)
def test_a_configuration_that_is_no_policys_is_told(
    tmp_path: Path, config: dict[str, Any], reason: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="no configuration to plan with") as caught:
        shape_of(str(tmp_path))
    assert reason in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["scratch:dense-tiny", "scratch:moe-tiny"])
def test_an_adapter_has_the_parameters_that_training_puts_on(name: str) -> None:
    from rl_reasoner.policy.lora import add_lora

    lora = Lora(rank=4)
    policy = open_policy(name)
    add_lora(policy, lora, seed=0)
    trained = sum(p.numel() for p in policy.model.parameters() if p.requires_grad)
    shape = shape_of(name, lora)
    assert shape.trained == trained < 0.5 * shape.total
    assert shape_of(name).trained == shape.total


def test_an_adapter_saves_gradients_moments_and_the_reference() -> None:
    flags = ["--loss", "{beta: 0.01}"]
    whole = load_recipe("moe_qwen3", [*flags, "--policy.lora", "none"])
    adapted = load_recipe("moe_qwen3", flags)
    [all_of_it], [part] = (plan(made, 8, "H100") for made in (whole, adapted))
    assert part.memory["weights"] == all_of_it.memory["weights"]
    assert part.memory["optimizer"] < 0.1 * all_of_it.memory["optimizer"]
    assert "reference" in all_of_it.memory and "reference" not in part.memory


# ------------------------------------------------------------------------------- vLLM, and phases


def test_a_server_samples_on_its_own_gpus() -> None:
    flags = ["--vllm.mode", "server", "--vllm.url", "http://other:8000"]
    made = load_recipe("r1_qwen_7b", flags)
    few, many = (plan(made, 8, "H100", servers=n)[0] for n in (8, 32))
    assert "kv_cache" not in few.memory and "vllm" not in few.memory
    assert many.seconds["sampling"] < few.seconds["sampling"]
    assert many.seconds["training"] == few.seconds["training"]
    assert many.gpu_hours == pytest.approx(many.hours * 40)


def test_a_sleeping_engine_leaves_its_memory_to_the_training() -> None:
    work = {"gpus": 8, "rows": 512, "longest": 4096, "mean": 2048, "shards": 8, "states": 8}
    awake = StepLoad(**work, micro=8, sampler=0.65)
    asleep = StepLoad(**work, micro=8, sampler=0.65, sleeps=True)
    assert any("vllm.sleep" in said for said in breaks(LLAMA_8B, awake, GPUS["H100"]))
    assert not breaks(LLAMA_8B, asleep, GPUS["H100"])


ON_GPUS = {
    "r1_qwen_7b": 8,
    "r1_moe_30b": 32,
    "moe_qwen3": 8,
    "moe_deepseek": 8,
    "gsm8k": 1,
    "code_mbpp": 1,
}


@pytest.mark.parametrize(("name", "gpus"), ON_GPUS.items())
def test_shipped_recipes_for_gpus_fit_where_they_say(name: str, gpus: int) -> None:
    for stage in plan(load_recipe(name), gpus, "H100"):
        assert not stage.breaks, f"{name}, {stage.stage}: {stage.breaks}"


@pytest.mark.parametrize(
    ("amount", "said"), [(0.0, "0 B"), (1500.0, "1.5 kB"), (2.34e8, "234.0 MB"), (8e10, "80.0 GB")]
)
def test_sizes_have_the_unit_that_shows_them(amount: float, said: str) -> None:
    assert size(amount) == said
