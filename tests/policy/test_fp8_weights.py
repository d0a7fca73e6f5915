"""Policies with FP8 weights in their files: written, opened, trained on, saved plain."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

from rl_reasoner import open_policy, train
from rl_reasoner.cli import main
from rl_reasoner.policy.fp8.layers import quantise
from rl_reasoner.policy.fp8.weights import dequantise, quantise_weight
from rl_reasoner.policy.lora import add_lora
from rl_reasoner.policy.policy import Policy
from rl_reasoner.policy.scratch import byte_tokenizer
from rl_reasoner.recipe.adapter import Lora
from support.mixtures import model_of
from support.tiny import grpo, recipe

WIDE = {"hidden_size": 128, "moe_intermediate_size": 128, "intermediate_size": 256}
ATTENTION = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 64}


def saved(folder: Path, model: Any) -> Path:
    """The model with our tokenizer, in a folder."""
    Policy(model, byte_tokenizer(), "test").save(folder)
    return folder


def model_in(kind: str) -> Any:
    if kind == "dense":
        sizes = {"vocab_size": 300, "hidden_size": 128, "intermediate_size": 256}
        config = Qwen3Config(**sizes, **ATTENTION, num_hidden_layers=2)
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config)
    more = {"DeepseekV3": {"v_head_dim": 64, "kv_lora_rank": 128, "q_lora_rank": 128}}
    changes = {**WIDE, "vocab_size": 300, **more.get(kind, ATTENTION)}
    return model_of(kind, **changes)


@pytest.mark.parametrize("kind", ["dense", "Qwen3Moe", "Mixtral", "DeepseekV3"])
def test_there_and_back_gives_the_rounded_weights(kind: str, tmp_path: Path) -> None:
    """Each weight is as it was, or rounded block by block; which, the scales in the files say."""
    model = model_in(kind)
    plain, small = saved(tmp_path / "plain", model), tmp_path / "small"
    assert main(["export", str(plain), str(small), "--fp8"]) == 0
    files = load_file(small / "model.safetensors")
    scales = {name for name in files if name.endswith("_scale_inv")}
    assert all(files[n.removesuffix("_scale_inv")].dtype == torch.float8_e4m3fn for n in scales)
    assert not any(
        part in name for name in scales for part in ("embed", "lm_head", "norm", "gate.")
    )
    assert any("experts" in name for name in scales) is (kind != "dense")
    opened = open_policy(str(small), device="cpu")
    assert not hasattr(opened.model.config, "quantization_config")
    before, after = model.state_dict(), opened.model.state_dict()
    assert before.keys() == after.keys()
    changed = 0
    for name, tensor in before.items():
        parts = tensor if tensor.dim() == 3 else [tensor]
        round_trip = [quantise(p, (128, 128)) if p.dim() == 2 else p for p in parts]
        found = after[name] if tensor.dim() == 3 else after[name][None]
        if not torch.equal(after[name], tensor):
            changed += 1
            assert torch.equal(found, torch.stack(round_trip)), name
    assert changed >= len(model.model.layers), "one weight a layer at least"


def test_what_was_opened_is_saved_plain_and_written_again_alike(tmp_path: Path) -> None:
    first, again, back = (tmp_path / name for name in ("first", "again", "back"))
    plain = saved(tmp_path / "plain", model_in("Qwen3Moe"))
    assert main(["export", str(plain), str(first), "--fp8"]) == 0
    assert main(["export", str(first), str(back)]) == 0
    assert "quantization_config" not in json.loads((back / "config.json").read_text())
    assert {t.dtype for t in load_file(back / "model.safetensors").values()} == {torch.float32}
    assert main(["export", str(back), str(again), "--fp8", "--dtype", "bf16"]) == 0
    one, two = (load_file(folder / "model.safetensors") for folder in (first, again))
    for name in one:
        if one[name].dtype == torch.float8_e4m3fn:
            layer = one[name], one[f"{name}_scale_inv"]
            other = two[name], two[f"{name}_scale_inv"]
            a, b = (dequantise(*pair, (128, 128)) for pair in (layer, other))
            assert float((a - b).norm() / a.norm()) < 0.01


def test_transformers_opens_it_by_itself(tmp_path: Path) -> None:
    """Without an FP8 card it dequantises to bf16."""
    plain, small = saved(tmp_path / "plain", model_in("Qwen3Moe")), tmp_path / "small"
    assert main(["export", str(plain), str(small), "--fp8"]) == 0
    ids = torch.arange(20)[None]
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(small)(input_ids=ids).logits.float()
        ours = open_policy(str(small), device="cpu").model(input_ids=ids).logits
    assert float((theirs - ours).norm() / ours.norm()) < 0.02


@pytest.mark.parametrize("side", [192, 576])
def test_blocks_that_are_cut_off_are_read_as_released_checkpoints_mean_them(
    side: int, tmp_path: Path
) -> None:
    """As in DeepSeek-V3's kv_a_proj, of 576 rows: transformers misreads one, refuses the other."""
    sizes = {"vocab_size": 300, "hidden_size": 128, "num_hidden_layers": 1}
    config = LlamaConfig(**sizes, intermediate_size=side, num_attention_heads=2)
    folder = saved(tmp_path / "ragged", AutoModelForCausalLM.from_config(config))
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    rows = torch.randn(side, 128)
    rows[:128] *= 50  # another scale than that of the last rows
    weight, scale = quantise_weight(torch.nn.functional.pad(rows, (0, 0, 0, -side % 128)))
    tensors[name], tensors[f"{name}_scale_inv"] = weight[:side].contiguous(), scale
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    described = json.loads((folder / "config.json").read_text())
    described["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (folder / "config.json").write_text(json.dumps(described))
    opened = open_policy(str(folder), device="cpu").model.state_dict()
    assert torch.allclose(opened[name], quantise(rows, (128, 128)))


def test_grpo_starts_from_one(tmp_path: Path) -> None:
    plain, small = saved(tmp_path / "plain", model_in("Qwen3Moe")), tmp_path / "small"
    assert main(["export", str(plain), str(small), "--fp8"]) == 0
    train(recipe(tmp_path, grpo(steps=1), policy=str(small)), quiet=True)
    AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "policy")
    tensors = load_file(tmp_path / "run" / "policy" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


def test_a_policy_without_whole_blocks_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "scratch:dense-tiny", str(tmp_path / "x"), "--fp8"]) == 2
    assert "multiples of 128" in capsys.readouterr().err and not (tmp_path / "x").exists()


def test_an_adapter_finds_the_base_whose_blocks_are_cut_off(tmp_path: Path) -> None:
    sizes = {"vocab_size": 300, "hidden_size": 128, "num_hidden_layers": 1}
    config = LlamaConfig(**sizes, intermediate_size=192, num_attention_heads=2)
    folder = saved(tmp_path / "base", AutoModelForCausalLM.from_config(config))
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    rows = torch.randn(192, 128)
    rows[:128] *= 50
    weight, scale = quantise_weight(torch.nn.functional.pad(rows, (0, 0, 0, 64)))
    tensors[name], tensors[f"{name}_scale_inv"] = weight[:192].contiguous(), scale
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    described = json.loads((folder / "config.json").read_text())
    described["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (folder / "config.json").write_text(json.dumps(described))
    policy = open_policy(str(folder), device="cpu")
    add_lora(policy, Lora(rank=2, targets=("q_proj",)), seed=0)
    policy.save(tmp_path / "adapter")
    opened = open_policy(str(tmp_path / "adapter"), device="cpu").model.state_dict()
    assert torch.equal(opened[f"base_model.model.{name}"], quantise(rows, (128, 128)))


def test_numbers_near_nothing_round_to_numbers() -> None:
    values = torch.zeros(2, 4)
    values[0, 1], values[1, 2] = 2e-43, 1.0
    assert quantise(values, (1, 0)).isfinite().all()
