"""A plan for this machine's processor: its equations, its constants, what it refuses."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rl_reasoner import cli
from rl_reasoner.errors import UserError
from rl_reasoner.machine import VARIABLE, Choices
from rl_reasoner.planning import processors
from rl_reasoner.planning.cpu_time import seconds_on_cpu
from rl_reasoner.planning.load import StepLoad
from rl_reasoner.planning.plan import plan
from rl_reasoner.planning.processors import Processor, measured_processor
from rl_reasoner.planning.shapes import Shape
from support.tiny import grpo, recipe

CPU = Processor(1e11, 1e-9, 4e9, 1e-3, 2e-5, 2e-3, 1e-7)
SMOLLM = Shape(135e6, 135e6, 30, 576, 49_152, 2 * 2 * 30 * 192)
STEP = StepLoad(gpus=1, rows=128, longest=28, mean=15.4, prompts=756, micro=128, passes=0)
KINDS = {"pass_s": 1e-3, "token_s": 2e-5, "layer_s": 2e-3, "unit_s": 1e-7}


def said(**costs: Any) -> str:
    """What the environment says, so that nothing is measured."""
    threads = f"{torch.get_num_threads()}_threads"
    ways = {"torch": 125, "onednn": 109, "integers": 1}
    rates = dict.fromkeys(("forward", "input", "weight"), ways)
    products = dict.fromkeys(rates, "torch") | {"rates": rates}
    weights = {"dtype": "float32", "ms": {"float32": 53.6, "bfloat16": 57.4, "int8": 26.8}}
    given = {"native": False, "products": products}
    given |= {f"sampling_weights/{threads}": weights}
    given[f"bf16_products/{threads}"] = {"bf16": 72, "fp32": 125}
    return json.dumps(given | ({f"step_costs/{threads}": costs} if costs else {}))


def test_each_part_of_a_step_follows_from_its_constants() -> None:
    told = seconds_on_cpu(SMOLLM, CPU, CPU, STEP)
    # 28 passes over 135M weights, and 2 FLOPs for each of 1,971 tokens and of the prompts'
    assert told["sampling"] > 28 * 0.135 + 2 * 135e6 * (1971 + 756) / 1e11
    assert told["training"] > 6 * 135e6 * (1971 + 756) / 1e11
    assert told["log_probs"] == 0.0
    left_out = seconds_on_cpu(SMOLLM, CPU, CPU, replace(STEP, trained=0.0))
    assert left_out["training"] == pytest.approx(60 * 135e6 / 4e9)  # the optimizer's alone
    twice = seconds_on_cpu(SMOLLM, CPU, CPU, replace(STEP, rows=256, prompts=1512))
    assert told["sampling"] < twice["sampling"] < 2 * told["sampling"]  # weights are read once
    faster = replace(CPU, flops=2e11)
    assert seconds_on_cpu(SMOLLM, CPU, faster, STEP)["training"] < told["training"]
    assert seconds_on_cpu(SMOLLM, CPU, faster, STEP)["sampling"] == told["sampling"]


def test_a_recipe_is_planned_for_this_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    costs = {"bandwidth": 4e9, "dense": KINDS, "experts": KINDS}
    monkeypatch.setenv(VARIABLE, said(**costs))
    made = recipe(tmp_path, grpo(group={"size": 8, "prompts": 16}))
    (tmp_path / "r.yaml").write_text(made.to_yaml(), encoding="utf-8")
    asked = ["env", "--plan", str(tmp_path / "r.yaml"), "--gpu", "cpu"]
    assert cli.main([*asked, "--json"]) == 0
    [found] = json.loads(capsys.readouterr().out)["plans"]
    assert found["gpu"] == "cpu" and found["seconds"]["training"] > 0.01
    assert cli.main(asked) == 0
    told = capsys.readouterr().out
    assert "on 1 cpu" in told and "GPU-h" not in told
    assert cli.main([*asked, "--gpus", "2"]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "a CPU is planned for one process" in told
    monkeypatch.setattr(Processor, "memory", staticmethod(lambda: 1e6))
    assert cli.main([*asked, "--json"]) == 0
    [small] = json.loads(capsys.readouterr().out)["plans"]
    assert not found["breaks"] and len(small["breaks"]) == 2
    assert all("use a smaller policy, policy.lora or" in why for why in small["breaks"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"run": {"precision": "fp8"}}, "run.precision: fp8 is not planned on a CPU"),
        ({"vllm": {"mode": "server", "url": "http://a:1"}}, "a vLLM server takes on a CPU"),
    ],
)
def test_what_no_cpu_is_planned_for_is_said(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    stage = {name: value for name, value in changes.items() if name == "vllm"}
    run = {name: value for name, value in changes.items() if name == "run"}
    with pytest.raises(UserError, match=message):
        plan(recipe(tmp_path, grpo(**stage), **run), 1, "cpu")


def test_constants_are_measured_once_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RL_REASONER_CACHE", str(tmp_path))
    monkeypatch.setenv(VARIABLE, said())
    monkeypatch.setattr(processors, "choices", Choices())
    found = measured_processor(SMOLLM)
    assert found.flops == pytest.approx(125e9) and found.few_s > 0
    assert found.bandwidth > 1e7 and found.layer_s + found.unit_s > 0
    monkeypatch.setattr(processors, "choices", Choices())  # as another process's
    monkeypatch.setattr(processors, "_measure", lambda: pytest.fail("measured again"))
    assert measured_processor(SMOLLM) == found
    assert measured_processor(SMOLLM, "bfloat16").flops != found.flops
    eight = measured_processor(SMOLLM, "int8")
    assert eight.flops == pytest.approx(250e9) and eight.few_s < found.few_s
    told = json.loads(said())
    del told[f"sampling_weights/{torch.get_num_threads()}_threads"]["ms"]["int8"]
    monkeypatch.setenv(VARIABLE, json.dumps(told))
    with pytest.raises(UserError, match="no exact products in int8"):
        measured_processor(SMOLLM, "int8")
