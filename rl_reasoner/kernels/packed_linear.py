"""Linear layers for sampling: weights laid out once, not at every call, and in bf16 where asked.

A step of sampling multiplies a few rows with each weight, and torch's product spends much of that
time on bringing the weight into its kernel's order. Inside `packed_linears` oneDNN has done so
beforehand, which needs a copy of the weights while it lasts. In the weights' own type the products
are the same up to rounding. In bf16 they are not: what a layer is given and gives is rounded too,
but what lies between two layers keeps its type. Without gradients; other layers are left as they
are, and so are small models, where it does not pay.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from rl_reasoner.machine import choices

_WORTH = 64 << 20  # bytes of weights from which it pays everywhere: smaller ones stay in the cache
_ROWS = 16  # the number of rows that weights are laid out for; any number may come
_MANY = 64  # the same in bf16, whose layout is another for more rows
_TYPES = (torch.float32, torch.bfloat16)


@contextmanager
def packed_linears(model: nn.Module, dtype: torch.dtype | None = None) -> Iterator[None]:
    """Let the model's plain linear layers use packed weights inside; they must not change.

    `dtype`: that of the copies, by default the layers' own. Under autocast only its own type pays.
    """
    layers = plain_linears(model)
    cast = _autocast(layers)
    if cast is not None:
        layers = layers if dtype == cast else []
    elif dtype is None or all(layer.weight.dtype == dtype for layer in layers):
        layers = layers if _pays(layers) else []
    for layer in layers:
        # before the class's own, for this instance
        layer.__dict__["forward"] = _packed(layer, dtype or layer.weight.dtype, cast is None)
    try:
        yield
    finally:
        for layer in layers:
            del layer.__dict__["forward"]


def plain_linears(model: nn.Module) -> list[nn.Linear]:
    """The layers that may be packed: torch's own linear layers, in fp32 or bf16."""
    return [m for m in model.modules() if isinstance(m, nn.Linear) and _fits(m)]


def linear_bytes(model: nn.Module) -> int:
    """Bytes of those layers' weights."""
    return sum(layer.weight.nbytes for layer in plain_linears(model))


def bf16_pays() -> bool:
    """Whether products in bf16, casts included, are faster than in fp32 on this processor."""
    return bool(sampling_weights_timed()["dtype"] == "bfloat16")


def sampling_weights_timed() -> dict[str, Any]:
    """The faster `dtype` of large weights that are sampled from, and `ms`: of a step's products."""
    name = f"sampling_weights/{torch.get_num_threads()}_threads"
    timed: dict[str, Any] = choices.get(name, _time_bf16, _is_timed)
    return timed


def _is_timed(value: Any) -> bool:
    return isinstance(value, dict) and value.get("dtype") in ("float32", "bfloat16")


def _fits(layer: nn.Linear) -> bool:
    if type(layer) is not nn.Linear or "forward" in layer.__dict__:
        return False
    return layer.weight.dtype in _TYPES


def _autocast(layers: list[nn.Linear]) -> torch.dtype | None:
    """The type in which autocast computes these layers, if it is on."""
    device = layers[0].weight.device.type if layers else "cpu"
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def _pays(layers: list[nn.Linear]) -> bool:
    """Whether a copy in another layout alone is faster."""
    if not layers or not all(_by_onednn(layer.weight) for layer in layers):
        return False
    large = sum(layer.weight.nbytes for layer in layers) >= _WORTH
    return large or choices.get("sampling_layout", _time_layout) == "packed"


def _by_onednn(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]


def _packed(layer: nn.Linear, dtype: torch.dtype, back: bool) -> Callable[[Tensor], Tensor]:
    """The layer's product with a copy of its weights; `back`: in the type of what it is given."""
    weight = layer.weight.detach().to(dtype)
    bias = None if layer.bias is None else layer.bias.detach().to(dtype)
    packs = _by_onednn(weight)
    if packs:
        rows = _MANY if dtype == torch.bfloat16 else _ROWS
        weight = torch.ops.mkldnn._reorder_linear_weight(weight, rows)

    def forward(given: Tensor) -> Tensor:
        rows = given.to(dtype)
        product: Tensor
        if packs:
            product = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
        else:
            product = linear(rows, weight, bias)
        return product.to(given.dtype) if back else product

    return forward


# ------------------------------------------------------------------------------ the measurements


@torch.no_grad()
def _time_bf16() -> dict[str, Any]:
    """`bfloat16` where it is clearly faster over weights that no cache holds, else `float32`."""
    layers = _layers(8, 1024, 4096)  # 128 MiB
    given = torch.ones(32, 1024)
    exact, rounded = (
        _best_seconds([_packed(layer, dtype, True) for layer in layers], given)
        for dtype in (torch.float32, torch.bfloat16)
    )
    dtype = "bfloat16" if rounded < 0.8 * exact else "float32"
    return {"dtype": dtype, "ms": {"float32": _ms(exact), "bfloat16": _ms(rounded)}}


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 1)


@torch.no_grad()
def _time_layout() -> str:
    """`packed` where oneDNN's layout is clearly faster for a tiny model too, else `plain`."""
    layers = _layers(16, 256, 704)  # 11 MiB
    given = torch.ones(32, 256)
    plain = _best_seconds([layer.forward for layer in layers], given)
    packed = _best_seconds([_packed(layer, torch.float32, True) for layer in layers], given)
    return "packed" if packed < 0.9 * plain else "plain"


def _layers(count: int, inputs: int, outputs: int) -> list[nn.Linear]:
    """Layers with random weights; the global generator is as it was after."""
    with torch.random.fork_rng([]):
        return [nn.Linear(inputs, outputs, bias=False) for _ in range(count)]


def _best_seconds(products: list[Callable[[Tensor], Tensor]], given: Tensor) -> float:
    seconds = []
    for _ in range(7):
        started = time.perf_counter()
        for product in products:
            product(given)
        seconds.append(time.perf_counter() - started)
    return min(seconds)
