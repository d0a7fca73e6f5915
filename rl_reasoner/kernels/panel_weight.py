"""Linear layers by a compiled product that is made for few rows, for sampling on a CPU.

A step of sampling has a few dozen rows, which end one by one. oneDNN's product reaches half of a
core's rate for eight of them; `cpp/panels.h` reaches nearly all of it for any number, since the
sums of up to a dozen rows stay in registers. Weights lie in panels: of so many outputs as those
sums have, input by input. A mixture's experts are laid out the same (rl_reasoner.kernels.decoding).
Knows tensors only.
"""

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from rl_reasoner.kernels import native


def panels(weight: Tensor, width: int) -> Tensor:
    """(..., outputs, inputs) -> (..., outputs / width, inputs, width), zeros behind."""
    missing = -weight.shape[-2] % width
    filled = pad(weight, (0, 0, 0, missing)) if missing else weight  # which would copy
    parts: Tensor = filled.unflatten(-2, (-1, width))  # type: ignore[no-untyped-call]
    return parts.transpose(-1, -2)


def laid_out(parts: Tensor) -> Tensor:
    """Panels as they lie in memory: in bfloat16 two inputs, of an even number, are side by side."""
    if parts.dtype == torch.bfloat16:
        pairs: Tensor = parts.unflatten(-2, (-1, 2))  # type: ignore[no-untyped-call]
        parts = pairs.transpose(-1, -2)
    return parts.contiguous()


class PanelWeight:
    """x @ weight.T + bias with a copy of `weight` (outputs, inputs); `bias` (outputs,) or None.

    `dtype`: of the copy, the bias and what is multiplied: fp32 or, for an even number of inputs,
    bfloat16. Sums are in fp32.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        self._product, lanes = _product(dtype)
        self._dtype = dtype
        self.outputs, self.inputs = weight.shape
        self._weight = laid_out(panels(weight.detach().to(dtype), 2 * lanes))
        self._bias = None if bias is None else bias.detach().to(dtype).float().contiguous()
        self._at = (self._weight.data_ptr(), None if self._bias is None else self._bias.data_ptr())

    def __call__(self, rows: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs), all of the copy's type and on the CPU."""
        if rows.shape[-1] != self.inputs or rows.dtype != self._dtype or rows.device.type != "cpu":
            raise ValueError(
                f"rows of {rows.shape[-1]} {rows.dtype} on {rows.device} for a weight of "
                f"{self.inputs} inputs in {self._dtype} on the CPU"
            )
        flat = rows.reshape(-1, self.inputs).contiguous()
        count, threads = len(flat), torch.get_num_threads()
        out = flat.new_empty(count, self.outputs)
        self._product(
            flat.data_ptr(), *self._at, out.data_ptr(), count, self.inputs, self.outputs, threads
        )
        return out if rows.ndim == 2 else out.view(*rows.shape[:-1], self.outputs)


@cache
def works(dtype: torch.dtype) -> bool:
    """Whether this process's library multiplies as torch does: what a compiler made may not."""
    given, weight, bias = (
        torch.linspace(-1, 1, math.prod(size)).view(size).to(dtype)
        for size in ((15, 600), (70, 600), (70,))
    )
    expected = torch.nn.functional.linear(given.double(), weight.double(), bias.double())
    found = torch.cat(
        [PanelWeight(weight, bias, dtype)(part) for part in torch.split(given, [1, 2, 12])]
    )
    tolerance = 1e-4 if dtype == torch.float32 else 1e-2
    return torch.allclose(found.double(), expected, rtol=tolerance, atol=tolerance)


@cache
def _product(dtype: torch.dtype) -> tuple[Any, int]:
    """The compiled product, and how many numbers a vector of it has."""
    library = native.library()
    return native.functions(library, "layer", "ppppiiin")[dtype], int(library.lanes())
