"""The recipes for large mixtures, two steps each: their own settings, a policy of their family."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from rl_reasoner.cli import main
from rl_reasoner.policy.policy import Policy
from rl_reasoner.policy.scratch import byte_tokenizer
from support.mixtures import FAMILIES, SIZES

POLICIES = {"moe_qwen3": "Qwen3Moe", "moe_deepseek": "DeepseekV2"}


def small(family: str, folder: Path) -> Path:
    """A saved policy of the family, with a few thousand parameters."""
    shape = {**FAMILIES["DeepseekV3" if family == "DeepseekV2" else family]}
    if family == "DeepseekV2":
        shape |= {"topk_method": "greedy", "q_lora_rank": None}  # as in the Lite one
    config = getattr(transformers, f"{family}Config")(**{**SIZES, **shape, "vocab_size": 300})
    torch.manual_seed(0)
    Policy(AutoModelForCausalLM.from_config(config), byte_tokenizer(), family).save(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", POLICIES)
def test_two_steps_of_its_own_settings(name: str, tmp_path: Path) -> None:
    file, folder = tmp_path / "rows.jsonl", tmp_path / "run"
    rows: list[dict[str, Any]] = [
        {"problem": f"{n} + 1 = ?", "answer": str(n + 1)} for n in range(8)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    flags = [
        *("--policy.source", str(small(POLICIES[name], tmp_path / "policy"))),
        *("--data.path", str(file), "--data.config", "null", "--data.columns", "{}"),
        *("--grpo.steps", "2", "--grpo.group.size", "4", "--grpo.group.prompts", "2"),
        *("--grpo.group.micro_batch", "4", "--grpo.sampling.max_tokens", "8"),
        *("--evals.sets", f"[{file}]", "--evals.limit", "4", "--evals.max_tokens", "8"),
        *("--grpo.vllm", "none", "--template", "plain"),
        *("--run.device", "cpu", "--run.folder", str(folder)),
    ]
    assert main(["train", name, *flags, "--json"]) == 0
    AutoModelForCausalLM.from_pretrained(folder / "policy")
    steps = [json.loads(line) for line in (folder / "stages/1-grpo/metrics.jsonl").open()]
    assert [step["step"] for step in steps] == [1, 2]
    assert all("router_replay/flips" in step and "experts/max_over_mean" in step for step in steps)
    lock = json.loads((folder / "lock.json").read_text())
    assert (lock.get("fp8", {}).get("computed_by") == "emulation") is (name == "moe_qwen3")
    assert (folder / "stages" / "1-grpo" / "adapter").is_dir() is (name == "moe_qwen3")
    assert ("router_sequence_loss" in steps[0]) is (name == "moe_deepseek")
