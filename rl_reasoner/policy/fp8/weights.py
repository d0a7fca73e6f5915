"""Opening and writing policies with FP8 weights, such as DeepSeek-V3.

transformers calls the form FineGrainedFP8: e4m3 weights, one fp32 scale (`weight_scale_inv`) for
each block of 128 x 128; embeddings, norms, gates and the head stay in a wider type. Training needs
the weights in fp32, so a policy is dequantised as it is opened, on every machine, and saved plain.
`write_fp8` goes the other way, for serving. Knows models and files; nothing of recipes.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig

from rl_reasoner.errors import UserError
from rl_reasoner.policy.fp8.layers import BLOCK, covered_layers, is_experts, round_to_e4m3

_SCALE = "_scale_inv"


# ------------------------------------------------------------------------------------- opening


def config_of(path: str) -> Any:
    """The config to open `path` with: weights in FP8 are dequantised."""
    config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    if has_fp8_weights(config):
        config.quantization_config["dequantize"] = True
    return config


def has_fp8_weights(config: Any) -> bool:
    """Whether the weights of a policy with this config are FP8."""
    how = getattr(config, "quantization_config", None)
    return isinstance(how, dict) and how.get("quant_method") == "fp8"


@contextmanager
def whole_blocks() -> Iterator[None]:
    """Let transformers also dequantise weights whose sides are not multiples of the block.

    It takes the block's size from the number of scales: of DeepSeek-V3's 576 rows it would make 5
    blocks of 115.2, which it refuses, of 192 rows 2 of 96, which is wrong without a word.
    """
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    original = Fp8Dequantize._dequantize_one

    def one(self: Any, quantized: Tensor, scales: Tensor, output_dtype: Any = None) -> Tensor:
        block = self.hf_quantizer.quantization_config.weight_block_size
        ragged = block and any(n % b for n, b in zip(quantized.shape[-2:], block, strict=True))
        if not ragged or quantized.dtype != torch.float8_e4m3fn or not scales.is_floating_point():
            plain: Tensor = original(self, quantized, scales, output_dtype)
            return plain
        return dequantise(quantized, scales, block).to(output_dtype or torch.bfloat16)

    Fp8Dequantize._dequantize_one = one
    try:
        yield
    finally:
        Fp8Dequantize._dequantize_one = original


def dequantise(weight: Tensor, scales: Tensor, block: tuple[int, int]) -> Tensor:
    """(..., M, N) e4m3 and a scale a block, the last ones cut off at the edges -> fp32."""
    rows, columns = weight.shape[-2:]
    spread = scales.float().repeat_interleave(block[0], -2).repeat_interleave(block[1], -1)
    return weight.float() * spread[..., :rows, :columns]


# ------------------------------------------------------------------------------------- writing


def check_fp8(model: Any) -> None:
    """Raises `UserError` for a policy of which `write_fp8` would round nothing."""
    if not any(_fits(model.get_submodule(name)) for name in covered_layers(model)):
        raise UserError(f"--fp8: no layer of this policy has sides that are multiples of {BLOCK}")


def write_fp8(model: Any, folder: Path) -> None:
    """Turn the plain policy in `folder`, saved from `model`, into one of FP8 weights.

    What is rounded: linear layers and experts whose sides are multiples of 128, but not the head
    and no gates (rl_reasoner.policy.fp8.layers.covered); the rest keeps its type.
    """
    fitting = {name for name in covered_layers(model) if _fits(model.get_submodule(name))}
    experts = any(is_experts(model.get_submodule(name)) for name in fitting)
    placed: dict[str, str] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors = load_file(file)
        for name, tensor in list(tensors.items()):
            layer = name.removesuffix(".weight")
            inside = experts and ".experts." in layer and tensor.dim() == 2
            if layer in fitting or (inside and layer != name):
                tensors[name], tensors[name + _SCALE] = quantise_weight(tensor)
        save_file(tensors, file, metadata={"format": "pt"})
        placed |= dict.fromkeys(tensors, file.name)
    others = [
        name
        for name, module in model.named_modules()
        if (isinstance(module, nn.Linear) and f"{name}.weight{_SCALE}" not in placed)
        or (is_experts(module) and not experts)
    ]
    _describe(folder, others, placed)


def quantise_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(M, N) with sides that are multiples of 128 -> e4m3, and (M / 128, N / 128) fp32 scales."""
    tiles, scale = round_to_e4m3(weight.float(), (BLOCK, BLOCK))
    return tiles.flatten(2, 3).flatten(0, 1), scale[:, 0, :, 0].contiguous()


def _fits(layer: Any) -> bool:
    """Whether all weights of a layer are whole blocks, and lie in files one matrix an expert."""
    if isinstance(layer, nn.Linear):
        return not any(side % BLOCK for side in layer.weight.shape)
    hidden, inner = layer.down_proj.shape[1:]
    return not layer.is_transposed and not hidden % BLOCK and not inner % BLOCK


def _describe(folder: Path, others: Sequence[str], placed: Mapping[str, str]) -> None:
    """Update the config, and the index of several files, to what the files hold now."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["quantization_config"] = {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [BLOCK, BLOCK],
        "modules_to_not_convert": others,
    }
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        content = json.loads(index.read_text(encoding="utf-8"))
        content["weight_map"] = dict(sorted(placed.items()))
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        content["metadata"] = {**content.get("metadata", {}), "total_size": size}
        index.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
