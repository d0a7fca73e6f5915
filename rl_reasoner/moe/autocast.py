"""Autocast for the grouped products of experts, which torch leaves out of its own list.

`torch.nn.functional.grouped_mm` multiplies in the type of its factors, also where autocast is on:
experts kept in fp32 are computed in fp32 beside linear layers in bf16, at half the speed on a CPU
with the instructions, and by a slow loop on a GPU (pytorch/pytorch issue 174763). The rule that is
added here is the process's: autocast has one table for all models.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import grouped_mm

from rl_reasoner.moe.experts import routers

_BYTES = 16  # grouped products want rows of whole multiples; others stay in the type they have
_DEVICES = {"cpu": "AutocastCPU", "cuda": "AutocastCUDA"}
_kept: ContextVar[dict[Any, Tensor] | None] = ContextVar("rl_reasoner_casts", default=None)


def autocast_experts(model: nn.Module) -> None:
    """Let autocast compute the experts of a mixture in its type, from here on in this process."""
    if any(True for _ in routers(model)):
        _registered()


@contextmanager
def kept_casts() -> Iterator[None]:
    """Cast the weights of experts once inside, not in every pass; they must not change.

    A pass of sampling has few rows: to cast all experts for it takes far longer than their product.
    """
    token = _kept.set({})
    try:
        yield
    finally:
        _kept.reset(token)


@cache
def _registered() -> tuple[Any, ...]:
    """Autocast's rule for grouped products, where torch has none; kept alive by the cache."""
    kept = []
    for device, key in _DEVICES.items() if not _is_cast() else ():
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
        sizes = a.shape[-1], b.shape[-2], b.shape[-1]  # of factors, product and gradients
        with torch.autocast(device, enabled=False):
            if all(size * dtype.itemsize % _BYTES == 0 for size in sizes):
                a, b = a.to(dtype), _weights(b, dtype)
            return torch._grouped_mm(a, b, offs, *rest, **named)

    return cast


def _weights(weights: Tensor, dtype: torch.dtype) -> Tensor:
    kept = None if torch.is_grad_enabled() else _kept.get()
    base = weights if weights._base is None else weights._base
    if kept is None or not isinstance(base, nn.Parameter):  # what is no parameter may be gone soon
        return weights.to(dtype)
    place = weights.data_ptr(), weights.shape, weights.stride(), dtype
    if place not in kept:
        kept[place] = weights.to(dtype)
    return kept[place]
