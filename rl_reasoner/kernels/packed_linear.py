"""Linear layers for sampling on a CPU: weights laid out once, not at every call.

A step of sampling multiplies a few rows with each weight, and torch's product spends much of that
time on bringing the weight into its kernel's order. Inside `packed_linears` oneDNN has done so
beforehand, which needs a copy of the weights while it lasts. The products are the same up to
rounding. For fp32 on a CPU, without gradients; other layers are left as they are, and so are small
models.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_WORTH = 64 << 20  # bytes of weights from which it pays: smaller ones stay in the cache anyway
_ROWS = 16  # the number of rows that weights are laid out for; any number may come


@contextmanager
def packed_linears(model: nn.Module) -> Iterator[None]:
    """Let the model's plain linear layers use packed weights inside; they must not change."""
    able = torch.backends.mkldnn.is_available() and not torch.is_autocast_enabled("cpu")  # type: ignore[no-untyped-call]
    layers = [m for m in model.modules() if able and isinstance(m, nn.Linear) and _fits(m)]
    if sum(layer.weight.nbytes for layer in layers) < _WORTH:
        layers = []
    for layer in layers:
        layer.__dict__["forward"] = _packed(layer)  # before the class's own, for this instance
    try:
        yield
    finally:
        for layer in layers:
            del layer.__dict__["forward"]


def _fits(layer: nn.Linear) -> bool:
    if type(layer) is not nn.Linear or "forward" in layer.__dict__:
        return False
    weight = layer.weight
    return weight.device.type == "cpu" and weight.dtype == torch.float32


def _packed(layer: nn.Linear) -> Callable[[Tensor], Tensor]:
    weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), _ROWS)
    bias = layer.bias

    def forward(rows: Tensor) -> Tensor:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
        return product

    return forward
