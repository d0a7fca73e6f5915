"""Autocast for the grouped products of experts, which torch leaves out of its own list.

`torch.nn.functional.grouped_mm` multiplies in the type of its factors, also where autocast is on:
experts kept in fp32 are computed in fp32 beside linear layers in bf16, at half the speed on a CPU
with the instructions, and by a slow loop on a GPU (pytorch/pytorch issue 174763).
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import grouped_mm

from rl_reasoner.moe.experts import routers

_BYTES = 16  # grouped products want rows of whole multiples; others stay in the type they have
_DEVICES = {"cpu": "AutocastCPU", "cuda": "AutocastCUDA"}


def autocast_experts(model: nn.Module) -> None:
    """Let autocast compute the experts of a mixture in its type, from here on in this process."""
    if any(True for _ in routers(model)):
        _registered()


@cache
def _registered() -> tuple[Any, ...]:
    """Autocast's rule for grouped products, where torch has none; kept alive by the cache."""
    kept = []
    for device, key in _DEVICES.items():
        if device == "cpu" and _is_cast():
            continue
        library: Any = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
        library.impl("_grouped_mm", _cast_on(device), key)
        kept.append(library)
    return tuple(kept)


def _is_cast() -> bool:
    """Whether autocast does it already, as a later torch may."""
    ends = torch.tensor([8], dtype=torch.int32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        product = grouped_mm(torch.ones(8, 8), torch.ones(1, 8, 8), offs=ends)
    return product.dtype == torch.bfloat16


def _cast_on(device: str) -> Callable[..., Tensor]:
    def cast(a: Tensor, b: Tensor, offs: Tensor | None = None, *rest: Any, **named: Any) -> Tensor:
        dtype = torch.get_autocast_dtype(device)
        steps = {step for factor in (a, b) for step in factor.stride()} - {1}
        if all(step * dtype.itemsize % _BYTES == 0 for step in steps):
            a, b = a.to(dtype), b.to(dtype)
        with torch.autocast(device, enabled=False):
            return torch._grouped_mm(a, b, offs, *rest, **named)

    return cast
