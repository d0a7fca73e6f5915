"""Products with weights of 8 bits, several times as fast as in fp32, for sampling on a CPU.

A weight is rounded to 255 values of its output's largest. What it multiplies keeps 16 bits: two
integers of 8 bits a number, relative to the largest of its row, whose products oneDNN sums exactly
(AVX-512 VNNI, AVX-VNNI, AMX). So rounding the weights is all that changes, and a row's result does
not depend on the rows beside it. One integer a number would be faster still. But a few numbers of a
row are much larger than the others (arXiv 2208.07339), so log-probabilities are several times as
far off. Knows tensors only.
"""

from functools import cache

import torch
from torch import Tensor

from rl_reasoner.kernels import native

_ROWS = 128  # and outputs of one product, so that it stays in the cache
_OUTPUTS = 4096
_LEAST = 1e-30  # scales are larger
_ZERO = 128  # oneDNN multiplies signed weights by unsigned numbers
_FINER = 254.0  # of the second integer's steps in one of the first


class IntegerWeight:
    """x @ weight.T + bias with `weight` (outputs, inputs) in 8 bits; `bias` (outputs,) or None."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.outputs = len(weight)
        self.compiled = native.available()
        self.parts = [_Part(part) for part in torch.split(weight, _OUTPUTS)]
        self.biases = (
            [None] * len(self.parts)
            if bias is None
            else [*torch.split(bias.float().contiguous(), _OUTPUTS)]
        )

    def __call__(self, rows: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs), fp32."""
        flat = rows.reshape(-1, rows.shape[-1]).float().contiguous()
        out = torch.empty(len(flat), self.outputs, dtype=torch.float32)
        for some, target in zip(torch.split(flat, _ROWS), torch.split(out, _ROWS), strict=True):
            slices, scale = _sliced(some, self.compiled)
            columns = torch.split(target, _OUTPUTS, dim=1)
            for part, bias, into in zip(self.parts, self.biases, columns, strict=True):
                _join(part.product(slices), scale, bias, into, self.compiled)
        return out.view(*rows.shape[:-1], self.outputs)


class _Part:
    """Some outputs' weights (outputs, inputs), rounded and laid out."""

    def __init__(self, weight: Tensor) -> None:
        weight = weight.float()
        self.scale = (weight.abs().amax(1) / 127).clamp_min_(_LEAST)
        rounded = (weight / self.scale[:, None]).round_().to(torch.int8)
        self.packed = torch.ops.onednn.qlinear_prepack(rounded, None)
        self.zeros = torch.zeros(len(weight), dtype=torch.int64)

    def product(self, slices: Tensor) -> Tensor:
        """(n, inputs) uint8 -> (n, outputs) fp32: the exact sums, times the outputs' scales."""
        out: Tensor = torch.ops.onednn.qlinear_pointwise(
            *(slices, 1.0, _ZERO, self.packed, self.scale, self.zeros, None),
            *(1.0, 0, torch.float32, "none", [], ""),
        )
        return out


@cache
def work() -> bool:
    """Whether this torch has such products on this processor, and they are exact.

    Without the instructions, sums of two products overflow 16 bits.
    """
    try:
        weight = torch.full((16, 64), 127.0, dtype=torch.float32)
        weight[::2, ::3] = -5.0
        rows = torch.full((3, 64), 127.0, dtype=torch.float32)
        rows[1, ::5] = -126.5
        found = IntegerWeight(weight, None)(rows)
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
    expected = (rows[:, None] * weight).sum(-1)  # no product that autocast would round
    return torch.allclose(found, expected, rtol=1e-4, atol=1.0)


def _sliced(rows: Tensor, compiled: bool) -> tuple[Tensor, Tensor]:
    """(n, inputs) fp32 -> (2 n, inputs) uint8: first and second integers; and scales (n, 1)."""
    if compiled:
        slices = torch.empty(2 * len(rows), rows.shape[1], dtype=torch.uint8)
        scale = torch.empty(len(rows), 1, dtype=torch.float32)
        native.run_compiled("slice_rows", rows, slices, scale, *rows.shape, torch.get_num_threads())
        return slices, scale
    scale = (rows.abs().amax(1, keepdim=True) / 127).clamp_min_(_LEAST)
    scaled = rows / scale
    first = scaled.round()
    second = ((scaled - first) * _FINER).round_()
    whole = torch.cat((first, second)).add_(_ZERO).nan_to_num_(_ZERO, _ZERO, _ZERO)
    return whole.to(torch.uint8), scale * torch.where(scale.isfinite(), 1.0, torch.nan)


def _join(
    products: Tensor, scale: Tensor, bias: Tensor | None, out: Tensor, compiled: bool
) -> None:
    """(2 n, outputs) -> `out` (n, outputs), columns of a wider tensor."""
    count, outputs = out.shape
    if compiled:
        none = 0  # a null pointer
        native.run_compiled(
            "join_products",
            *(products, scale, none if bias is None else bias, out),
            *(out.stride(0), count, outputs, torch.get_num_threads()),
        )
        return
    torch.add(products[:count], products[count:], alpha=1 / _FINER, out=out).mul_(scale)
    if bias is not None:
        out.add_(bias)
