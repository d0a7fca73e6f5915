"""FP8 products of a GPU, by torchao.

torchao's float8 training (`torchao.float8`) scales a tensor or a row; its blockwise training
(`torchao.prototype`) as DeepSeek-V3 does. `convert_to_float8_training` swaps `nn.Linear` alone and
passes over fused experts, and the wrapper of its MoE prototype hears `torch._grouped_mm`, which
transformers' experts do not call. So its differentiable products are taken from below that, one for
each linear layer and each expert (`layers` says where). Rows are filled up with zeros
to the number that the kernels take: zeros change no scale and no sum. torchao is an extra:
the extra `fp8`.
"""

import importlib.metadata
import importlib.util
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from rl_reasoner.errors import UserError
from rl_reasoner.version import install_extra

SIDES = {"tensor": 16, "row": 16, "block": 128}  # what a weight's sides must be multiples of
_RECIPES = {"tensor": "tensorwise", "row": "rowwise"}


def card_has_fp8(device: str) -> bool:
    """Whether the card multiplies in FP8: compute capability 8.9 (Ada), 9.0 (Hopper) or later."""
    return device == "cuda" and torch.cuda.get_device_capability() >= (8, 9)


def check(scaling: str) -> None:
    """Raise `UserError` if something that the products need is missing."""
    if importlib.util.find_spec("torchao") is None:
        raise UserError(f"run.precision fp8 needs torchao on this card: {install_extra('fp8')}")
    if scaling == "block" and torch.cuda.get_device_capability() < (9, 0):
        raise UserError("run.fp8 block needs a Hopper card or a later one: set row or tensor")


def torchao_version() -> str:
    """torchao and its version."""
    return f"torchao {importlib.metadata.version('torchao')}"


def fp8_product(scaling: str) -> Callable[[Tensor, Tensor], Tensor]:
    """(M, K) rows and (N, K) weight -> (M, N) in the rows' type; all three products in FP8."""
    multiply = _blockwise() if scaling == "block" else _scaled(_RECIPES[scaling])
    side = SIDES[scaling]

    def padded(rows: Tensor, weight: Tensor) -> Tensor:
        count = len(rows)
        whole = nn.functional.pad(rows, (0, 0, 0, -count % side))
        return multiply(whole, weight)[:count]

    return padded


@cache
def _scaled(recipe: str) -> Callable[[Tensor, Tensor], Tensor]:
    from torchao.float8.config import Float8LinearConfig
    from torchao.float8.float8_linear import Float8Linear, matmul_with_hp_or_float8_args

    config = Float8LinearConfig.from_recipe_name(recipe)
    layer = Float8Linear(16, 16, bias=False, device="meta", config=config)
    apply: Any = matmul_with_hp_or_float8_args.apply

    def multiply(rows: Tensor, weight: Tensor) -> Tensor:
        product: Tensor = apply(rows, weight.t(), layer.linear_mm_config, config)
        return product

    return multiply


@cache
def _blockwise() -> Callable[[Tensor, Tensor], Tensor]:
    from torchao.prototype.blockwise_fp8_training.linear import fp8_blockwise_mm

    def multiply(rows: Tensor, weight: Tensor) -> Tensor:
        product: Tensor = fp8_blockwise_mm.apply(
            rows.contiguous(), weight.contiguous(), 128, torch.bfloat16
        )
        return product.to(rows.dtype)

    return multiply
