"""What is combined with what: each pair of features tested, refused, or told as untested.

`TESTED` names the tests that run a pair. What is refused is not declared but found: a recipe with
both is made, and whatever its schema or the trainers' configs say is the message. All else is
untested, or two values of one field. `python docs/matrix.py` writes the tables into
docs/scaling.md; tests/project/test_combinations.py holds both.
"""

import ast
import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any
from unittest import mock

from pydantic import ValidationError

from rl_reasoner.errors import UserError
from rl_reasoner.pipeline.placement import Placement
from rl_reasoner.pipeline.trl_configs import check_configs
from rl_reasoner.recipe.recipe import Recipe
from support.places import ROOT


@dataclass(frozen=True)
class Feature:
    """A feature as fields of a recipe, some of them of its grpo stage."""

    fields: Mapping[str, Any] = field(default_factory=dict)
    grpo: Mapping[str, Any] = field(default_factory=dict)
    processes: int = 1
    others: tuple[str, ...] = ()
    """features that are other values of the same field"""


_PARALLEL, _PRECISION, _VLLM = ("DDP", "FSDP2", "ZeRO"), ("bf16", "fp16", "FP8"), ("vLLM", "files")
FEATURES: dict[str, Feature] = {
    "DDP": Feature({"run": {"parallel": "ddp"}}, {}, 2, _PARALLEL),
    "FSDP2": Feature({"run": {"parallel": "fsdp"}}, {}, 2, _PARALLEL),
    "ZeRO": Feature({"run": {"parallel": "zero3"}}, {}, 2, _PARALLEL),
    "LoRA": Feature({"policy": {"lora": {"rank": 2}}}),
    "replay": Feature({"policy": {"source": "scratch:moe-tiny"}}, {"router_replay": True}),
    "KL": Feature({}, {"loss": {"beta": 0.04}}),
    "bf16": Feature({"run": {"precision": "bf16"}}, {}, 1, _PRECISION),
    "fp16": Feature({"run": {"precision": "fp16"}}, {}, 1, _PRECISION),
    "FP8": Feature({"run": {"precision": "fp8"}}, {}, 1, _PRECISION),
    "tools": Feature({"tools": {"use": ["calculator"], "format": "tags"}}),
    "environment": Feature(
        {
            "environment": {"use": "guess", "turns": 2},
            "rewards": {"environment": 1.0},
            "data": {"task": "guess", "count": 8},
        }
    ),
    "vLLM": Feature({}, {"vllm": {"mode": "colocate"}}, 1, _VLLM),
    "files": Feature(
        {}, {"vllm": {"mode": "server", "url": "http://a:1", "folder": "w"}}, 1, _VLLM
    ),
    "stages": Feature({"before": True}),
    "resumed": Feature(),
}
MEANING = {
    "DDP, FSDP2, ZeRO": "`run.parallel`, several processes; ZeRO is DeepSpeed's, for GPUs alone",
    "LoRA": "`policy.lora`",
    "replay": "a mixture of experts, with router replay",
    "KL": "`loss.beta`: a reference policy",
    "bf16, fp16, FP8": "`run.precision`",
    "tools, environment": "completions of several turns",
    "vLLM": "vLLM on the training's GPUs, or trl's server: weights over NCCL",
    "files": "vLLM's own server, weights by files",
    "stages": "a supervised stage before",
    "resumed": "killed or stopped, and resumed to equal weights",
}

_PROCESSES = "tests/training/test_trainer_processes.py::"
_LAUNCH = (
    "tests/distributed/test_launch.py::"
    "test_a_process_that_is_killed_ends_the_job_with_one_message_and_it_goes_on_exactly"
)
_MOVES = "tests/training/checkpointing/test_exact_resume.py::test_a_reference_that_moves_is_resumed"
_KILLED = (
    "tests/training/checkpointing/test_exact_resume.py::"
    "test_a_killed_run_is_resumed_to_the_same_weights"
)
_OTHER_KIND = (
    "tests/pipeline/test_resume.py::"
    "test_a_stopped_run_of_another_kind_continues_to_the_same_weights"
)
_REPLAY = "tests/training/test_router_replay.py::test_replay_reaches_adapters_and_reference"
_STAGES = "tests/pipeline/test_stages.py::"
_REFERENCE = f"{_STAGES}test_the_reference_is_the_policy_that_enters_the_stage"
_TOOLS = "tests/training/test_tool_training.py::test_gradients_are_those_of_stock_trl"
_TURN = "test_the_same_in_the_middle_of_a_turn_after_kill_9"
_FP8 = "tests/policy/test_fp8.py::"
_ZERO = "tests/distributed/test_deepspeed.py::"
_ZERO_GRADIENT = f"{_ZERO}test_two_processes_have_the_gradient_of_one"
_SERVED = "tests/training/test_vllm_rollouts.py::test_a_recipes_run_ends_with_a_message_and_goes_on"
TESTED: dict[tuple[str, str], str] = {
    ("DDP", "replay"): _LAUNCH,
    ("DDP", "resumed"): _LAUNCH,
    ("FSDP2", "LoRA"): _LAUNCH,
    ("FSDP2", "replay"): _LAUNCH,
    ("FSDP2", "KL"): _MOVES,
    ("FSDP2", "stages"): _LAUNCH,
    ("FSDP2", "resumed"): _PROCESSES
    + "test_a_killed_job_of_two_processes_is_resumed_to_the_same_weights",
    ("ZeRO", "LoRA"): _ZERO_GRADIENT,
    ("ZeRO", "KL"): _ZERO_GRADIENT,
    ("ZeRO", "resumed"): f"{_ZERO}test_a_killed_job_is_resumed_to_the_same_weights",
    ("LoRA", "replay"): _REPLAY,
    ("LoRA", "KL"): _REPLAY,
    ("LoRA", "FP8"): f"{_FP8}test_a_low_rank_adapter_stays_out_and_its_base_is_covered",
    ("LoRA", "tools"): _TOOLS,
    ("LoRA", "files"): "tests/training/test_vllm_adapters.py::"
    "test_a_recipes_run_is_resumed_bit_for_bit",
    ("LoRA", "stages"): f"{_STAGES}test_an_adapter_is_trained_and_merged",
    ("LoRA", "resumed"): _OTHER_KIND,
    ("replay", "KL"): _REPLAY,
    ("replay", "bf16"): f"{_FP8}test_a_recipe_trains_in_it_and_says_so",
    ("replay", "FP8"): f"{_FP8}test_a_recipe_trains_in_it_and_says_so",
    ("replay", "files"): "tests/training/test_vllm_rollouts.py::"
    "test_experts_that_a_server_does_not_tell_are_those_of_the_first_pass",
    ("replay", "stages"): _REFERENCE,
    ("replay", "resumed"): "tests/training/test_router_replay.py::"
    "test_a_killed_run_keeps_the_experts_of_its_completions",
    ("KL", "bf16"): f"{_FP8}test_a_recipe_trains_in_it_and_says_so",
    ("KL", "FP8"): f"{_FP8}test_a_recipe_trains_in_it_and_says_so",
    ("KL", "tools"): _TOOLS,
    ("KL", "stages"): _REFERENCE,
    ("KL", "resumed"): _KILLED,
    ("bf16", "stages"): f"{_FP8}test_a_recipe_trains_in_it_and_says_so",
    ("FP8", "stages"): f"{_FP8}test_a_recipe_trains_in_it_and_says_so",
    ("fp16", "resumed"): "tests/training/checkpointing/test_loss_scaling.py::"
    "test_a_whole_run_in_fp16_is_resumed_exactly",
    ("tools", "stages"): "tests/pipeline/test_tools_in_runs.py::"
    "test_a_run_calls_and_is_evaluated_with_its_tools",
    ("tools", "files"): "tests/pipeline/test_tools_in_runs.py::"
    "test_the_same_by_a_vllm_server_after_kill_9",
    ("tools", "resumed"): f"tests/pipeline/test_tools_in_runs.py::{_TURN}",
    ("environment", "files"): "tests/pipeline/test_environments_in_runs.py::"
    "test_a_vllm_server_samples_the_turns",
    ("environment", "stages"): f"tests/pipeline/test_environments_in_runs.py::{_TURN}",
    ("environment", "resumed"): f"tests/pipeline/test_environments_in_runs.py::{_TURN}",
    ("files", "resumed"): _SERVED,
    ("stages", "resumed"): "tests/pipeline/test_pipeline.py::"
    "test_killed_in_every_kind_of_stage_it_ends_with_the_same_weights",
}
# Pairs that a run of two steps is made with: it ends, and the last step has a gradient.
RUN_TOGETHER = (
    ("LoRA", "bf16"),
    ("LoRA", "fp16"),
    ("LoRA", "environment"),
    ("replay", "fp16"),
    ("replay", "tools"),
    ("replay", "environment"),
    ("KL", "fp16"),
    ("KL", "environment"),
    ("bf16", "tools"),
    ("bf16", "environment"),
    ("fp16", "tools"),
    ("fp16", "environment"),
    ("fp16", "stages"),
    ("FP8", "tools"),
    ("FP8", "environment"),
)
_TOGETHER = "tests/pipeline/test_combined_features.py::test_two_features_train_together"
TESTED |= dict.fromkeys(RUN_TOGETHER, _TOGETHER)
# Refused where the trainer is made, not by the recipe: (what is refused, the test that sees it).
AT_THE_START: dict[tuple[str, str], tuple[str, str]] = {
    ("FSDP2", "fp16"): (
        "fp16 on a CPU is for whole weights: take run.parallel ddp, or bf16",
        "tests/training/checkpointing/test_loss_scaling.py::test_shards_on_a_cpu_are_one_error",
    ),
}


def pairs() -> Iterator[tuple[str, str]]:
    """All pairs of features that can be asked for together."""
    for one, other in combinations(FEATURES, 2):
        if other not in FEATURES[one].others:
            yield one, other


def together(one: str, other: str) -> tuple[dict[str, Any], int]:
    """A recipe with both, as fields, and its number of processes."""
    chosen = FEATURES[one], FEATURES[other]
    data = {"task": "modular", "count": 8}
    stage: dict[str, Any] = {
        "kind": "grpo",
        "steps": 2,
        "group": {"size": 4, "prompts": 2},
        "sampling": {"max_tokens": 12},
    }
    made: dict[str, Any] = {
        "policy": {"source": "scratch:dense-tiny"},
        "template": "plain",
        "data": data,
        "rewards": {"math_answer": 1.0},
        "run": {"device": "cpu"},
    }
    for feature in chosen:
        stage |= feature.grpo
        for name, value in feature.fields.items():
            made[name] = {**made.get(name, {}), **value} if name in ("run", "policy") else value
    before = [{"kind": "sft", "steps": 1, "batch": 4}] if made.pop("before", False) else []
    return {**made, "stages": [*before, stage]}, max(feature.processes for feature in chosen)


def refusal(one: str, other: str) -> str | None:
    """What is said to a recipe with both features, before anything is loaded; None if nothing.

    As if vLLM were installed. DeepSpeed's settings are read by DeepSpeed alone: these are left out,
    and what is said to several processes is asked.
    """
    fields, processes = together(one, other)
    spec = importlib.util.find_spec
    there = mock.patch.object(
        importlib.util, "find_spec", lambda name: spec(name) or name == "vllm"
    )
    try:
        recipe = Recipe.model_validate(fields)
        precision = {"auto": "fp32"}.get(recipe.run.precision, recipe.run.precision)
        if "ZeRO" in (one, other):
            run = recipe.run.model_copy(update={"parallel": "auto"})
            recipe = recipe.model_copy(update={"run": run})
        with there:
            check_configs(recipe, Placement("cpu", precision, processes))
    except ValidationError as error:
        return str(error.errors()[0]["msg"]).removeprefix("Value error, ")
    except UserError as error:
        return str(error)
    return None


@cache
def matrix() -> dict[tuple[str, str], str]:
    """What of each pair: "tested", "untested", or the message that refuses it."""
    found = {}
    for pair in pairs():
        said = refusal(*pair) or AT_THE_START.get(pair, ("",))[0]
        found[pair] = said or ("tested" if pair in TESTED else "untested")
    return found


def tables() -> str:
    """The matrix and the list of refusals, in Markdown."""
    words = {"tested": "yes", "untested": "?"}
    names = [*FEATURES]
    lines = ["| |" + "|".join(f" {name} " for name in names[1:]) + "|"]
    lines.append("|---" * len(names) + "|")
    for row, one in enumerate(names[:-1]):
        cells = [""] * row
        for other in names[row + 1 :]:
            state = matrix().get((one, other), "-")
            cells.append("-" if state == "-" else words.get(state, "no"))
        lines.append(f"| **{one}** | " + " | ".join(cells) + " |")
    lines += ["", "| refused | what is said |", "|---|---|"]
    said: dict[str, list[str]] = {}
    for (one, other), state in matrix().items():
        if state not in words:
            said.setdefault(state, []).append(f"{one} and {other}")
    for message, refused in said.items():
        lines.append(f"| {'; '.join(refused)} | {message.replace('|', '/')} |")
    lines += ["", "| name | what it is |", "|---|---|"]
    lines += [f"| {name} | {what} |" for name, what in MEANING.items()]
    return "\n".join([*lines, ""])


def functions_of(file: str) -> set[str]:
    """Names of the test functions in a file of the repository."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def page() -> Path:
    """The document that has the tables."""
    return ROOT / "docs" / "scaling.md"
