"""A folder opens as a policy with all its weights, or not: what it lacks would be random."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rl_reasoner import open_policy
from rl_reasoner.errors import UserError
from rl_reasoner.policy.lora import add_lora
from rl_reasoner.recipe.adapter import Lora


def saved(name: str, folder: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """The file of weights of a scratch policy that is saved, and what is in it."""
    open_policy(f"scratch:{name}", device="cpu").save(folder)
    file = folder / "model.safetensors"
    return file, load_file(file)


def put(file: Path, weights: dict[str, torch.Tensor]) -> None:
    save_file(weights, file, metadata={"format": "pt"})


def refused(folder: Path, words: str) -> None:
    with pytest.raises(UserError, match=words):
        open_policy(str(folder), device="cpu")


def test_a_folder_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    file, weights = saved("dense-tiny", tmp_path)
    lost = "model.layers.1.self_attn.o_proj.weight"
    put(file, {name: tensor for name, tensor in weights.items() if name != lost})
    refused(tmp_path, rf"lacks weights of its model \({lost}\)")
    put(file, {name: tensor for name, tensor in weights.items() if ".layers.1." not in name})
    refused(tmp_path, r"lacks weights of its model \(.*, .*, .* and \d+ more\)")


def test_a_tied_head_is_not_lacking(tmp_path: Path) -> None:
    """The scratch policies tie theirs; untied by its config alone, it would be random."""
    file, weights = saved("dense-tiny", tmp_path)
    assert "lm_head.weight" not in weights
    assert open_policy(str(tmp_path), device="cpu").model.config.tie_word_embeddings
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    refused(tmp_path, r"lacks weights of its model \(lm_head\.weight\)")
    put(file, {**weights, "lm_head.weight": weights["model.embed_tokens.weight"] + 1})
    assert not open_policy(str(tmp_path), device="cpu").model.config.tie_word_embeddings


def test_weights_of_other_sizes_are_one_message(tmp_path: Path) -> None:
    file, weights = saved("dense-tiny", tmp_path)
    name = "model.layers.0.self_attn.o_proj.weight"
    put(file, {**weights, name: torch.zeros(3)})
    refused(tmp_path, rf"has weights of other sizes than its config says \({name}\)")


def test_a_mixture_that_lost_an_expert_is_refused(tmp_path: Path) -> None:
    file, weights = saved("moe-tiny", tmp_path)
    lost = "model.layers.0.mlp.experts.3.down_proj.weight"
    put(file, {name: tensor for name, tensor in weights.items() if name != lost})
    refused(tmp_path, r"of other sizes than its config says \(model\.layers\.0\.mlp\.experts")
    part = weights["model.layers.0.mlp.experts.3.up_proj.weight"]
    put(file, {**weights, "model.layers.0.mlp.experts.3.up_proj.weight": part[:, :-1].contiguous()})
    refused(tmp_path, "has weights that do not fit the sizes of its config")


def adapter_of(base: Path, folder: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """The file of weights of an adapter on a saved policy, and what is in it."""
    policy = open_policy(str(base), device="cpu")
    add_lora(policy, Lora(rank=2), seed=0)
    policy.save(folder)
    file = folder / "adapter_model.safetensors"
    return file, load_file(file)


def test_an_adapter_whose_base_lacks_weights_is_refused(tmp_path: Path) -> None:
    file, weights = saved("dense-tiny", tmp_path / "base")
    adapter_of(tmp_path / "base", tmp_path / "adapter")
    open_policy(str(tmp_path / "adapter"), device="cpu")
    lost = "model.layers.1.self_attn.o_proj.weight"
    put(file, {name: tensor for name, tensor in weights.items() if name != lost})
    refused(tmp_path / "adapter", rf"adapter' has a base, .*base, that lacks weights .*\({lost}\)")


def test_an_adapter_opens_wherever_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    saved("dense-tiny", Path("base"))
    adapter_of(Path("base"), Path("adapter"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert "default" in open_policy("../adapter", device="cpu").model.peft_config


def test_an_adapter_of_another_task_is_refused(tmp_path: Path) -> None:
    saved("dense-tiny", tmp_path / "base")
    adapter_of(tmp_path / "base", tmp_path / "adapter")
    file = tmp_path / "adapter/adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "task_type": "SEQ_CLS"}))
    refused(tmp_path / "adapter", "is an adapter for SEQ_CLS, not for CAUSAL_LM")


def test_an_adapter_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    """peft warns, and trains on: one half of a pair is zero then, or both are as at the start."""
    saved("dense-tiny", tmp_path / "base")
    file, weights = adapter_of(tmp_path / "base", tmp_path / "adapter")
    lost = "base_model.model.model.layers.1.self_attn.o_proj.lora_B"
    put(file, {name: tensor for name, tensor in weights.items() if not name.startswith(lost)})
    refused(tmp_path / "adapter", rf"lacks weights of its adapter \({lost}\.default\.weight\)")
    put(file, {name: torch.cat([tensor, tensor]) for name, tensor in weights.items()})
    refused(tmp_path / "adapter", r"of other sizes than its config says \(.*and \d+ more\)")


def test_weights_without_a_place_in_the_model_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """transformers leaves them out: with biases, the policy is another than the trained one."""
    file, weights = saved("dense-tiny", tmp_path)
    put(file, {**weights, "lm_head.weight": weights["model.embed_tokens.weight"].clone()})
    open_policy(str(tmp_path), device="cpu")
    assert not caplog.text
    bias = "model.layers.1.mlp.up_proj.bias"
    put(file, {**weights, bias: torch.ones(2), "mtp.norm.weight": torch.ones(2)})
    open_policy(str(tmp_path), device="cpu")
    assert f"has weights that its model has no place for ({bias}, mtp.norm.weight)" in caplog.text


def test_weights_of_an_adapter_without_a_place_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As DoRA's magnitudes under a config without it."""
    saved("dense-tiny", tmp_path / "base")
    file, weights = adapter_of(tmp_path / "base", tmp_path / "adapter")
    open_policy(str(tmp_path / "adapter"), device="cpu")
    assert not caplog.text
    size = "base_model.model.model.layers.1.self_attn.o_proj.lora_magnitude_vector"
    put(file, {**weights, size: torch.ones(2)})
    open_policy(str(tmp_path / "adapter"), device="cpu")
    assert f"no place for ({size}): they are left out" in caplog.text
