"""Linear layers for sampling: weights laid out once, not at every call, rounded where asked.

A step of sampling multiplies a few rows with each weight, and torch's product spends much of that
time on bringing the weight into its kernel's order. Inside `packed_linears` it lies so beforehand,
for oneDNN or for our own product (rl_reasoner.kernels.panel_weight), which needs a copy of the
weights while it lasts. In the weights' own type the products are the same up to rounding. In bf16
they are not: what a layer is given and gives is rounded too, but what lies between two layers keeps
its type. In int8 the weights alone are rounded (rl_reasoner.kernels.integer_weights). Without
gradients; other layers are left as they are, and so are small models, where it does not pay.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from rl_reasoner.kernels import integer_weights, native, panel_weight
from rl_reasoner.kernels.integer_weights import IntegerWeight
from rl_reasoner.kernels.panel_weight import PanelWeight
from rl_reasoner.machine import choices, raced

_WORTH = 64 << 20  # bytes of weights from which it pays everywhere: smaller ones stay in the cache
_ROWS = 16  # the number of rows that weights are laid out for; any number may come
_MANY = 64  # the same in bf16, whose layout is another for more rows
PACKED_TYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
ROUNDED = {"bfloat16": torch.bfloat16, "int8": torch.int8}
Products = Sequence[Callable[[Tensor], Tensor]]


class PackedWeight:
    """x @ weight.T + bias with a copy of `weight` (outputs, inputs), laid out for few rows.

    `dtype`: that of the copy; what is multiplied has it too, but for int8, whose rows are fp32.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        self._product: Callable[[Tensor], Tensor]
        if dtype == torch.int8:
            self._product = IntegerWeight(weight, bias)
        elif (way := _way(weight, dtype)) == "panels":
            self._product = PanelWeight(weight, bias, dtype)
        elif way == "onednn":
            self._product = _OnednnWeight(weight, bias, dtype)
        else:
            self._product = partial(linear, weight=weight.to(dtype), bias=_in(bias, dtype))

    def __call__(self, rows: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        return self._product(rows)


class _OnednnWeight:
    """The same by oneDNN, with a copy in its order."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        rows = _MANY if dtype == torch.bfloat16 else _ROWS
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype), rows)
        self._bias = _in(bias, dtype)

    def __call__(self, rows: Tensor) -> Tensor:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(
            rows, self._weight, self._bias, "none", [], ""
        )
        return product


def _in(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if tensor is None else tensor.to(dtype)


def computed_in(dtype: torch.dtype) -> torch.dtype:
    """The type of what is multiplied with copies of that type."""
    return torch.float32 if dtype == torch.int8 else dtype


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
        layers = [one for one in layers if _way(one.weight, one.weight.dtype) != "torch"]
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
    """`dtype`, bfloat16 where it is clearly faster than float32; `ms` of a step's products in each.

    Also of int8, if there is, which is for those who ask for it.
    """
    name = f"sampling_weights/{torch.get_num_threads()}_threads{_products_named()}"
    timed: dict[str, Any] = choices.get(name, _time_types, _is_usable, complete=_is_complete)
    return timed


def _is_usable(value: Any) -> bool:
    return isinstance(value, dict) and value.get("dtype") in ("float32", "bfloat16")


def _is_complete(value: dict[str, Any]) -> bool:
    """Whether all types were timed that there are now."""
    return {"float32", *_usable_types()} <= set(value.get("ms", {}))


def _usable_types() -> list[str]:
    return [name for name in ROUNDED if name != "int8" or integer_weights.work()]


def _fits(layer: nn.Linear) -> bool:
    if type(layer) is not nn.Linear or "forward" in layer.__dict__:
        return False
    return layer.weight.dtype in PACKED_TYPES


def _autocast(layers: list[nn.Linear]) -> torch.dtype | None:
    """The type in which autocast computes these layers, if it is on."""
    device = layers[0].weight.device.type if layers else "cpu"
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def _pays(layers: list[nn.Linear]) -> bool:
    """Whether a copy in another layout alone is faster."""
    if not layers:
        return False
    large = sum(layer.weight.nbytes for layer in layers) >= _WORTH
    return large or choices.get(f"sampling_layout{_products_named()}", _time_layout) == "packed"


def _way(weight: Tensor, dtype: torch.dtype) -> str:
    """Whose products a copy in `dtype` has: those of panels, of onednn, or of torch."""
    if weight.device.type != "cpu" or dtype not in PACKED_TYPES:
        return "torch"
    if weight.shape[1] % 2 == 0 and _by_panels(dtype):
        return "panels"
    return "onednn" if _onednn_has(dtype) else "torch"


def _onednn_has(dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies in it here: bf16 needs instructions that AVX2 alone has not."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return dtype != torch.bfloat16 or torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _by_panels(dtype: torch.dtype) -> bool:
    return bool(few_rows_timed(dtype)["way"] == "panels")


def few_rows_timed(dtype: torch.dtype) -> dict[str, Any]:
    """`way`, panels or onednn: the faster product of few rows; `ms` of the products in each.

    Where there is no compiled one that is right, nothing is timed or kept, and `way` may be torch.
    """
    if not native.available() or not panel_weight.works(dtype):
        return {"way": "onednn" if _onednn_has(dtype) else "torch"}
    name = f"sampling_products/{PACKED_TYPES[dtype]}/{torch.get_num_threads()}_threads"
    usable = partial(_is_usable_way, dtype=dtype)
    timed: dict[str, Any] = choices.get(name, lambda: _time_panels(dtype), usable)
    return timed


def _products_named() -> str:
    """What tells choices apart that were timed with compiled products and without."""
    return "/compiled" if native.available() else ""


def _is_usable_way(value: Any, dtype: torch.dtype) -> bool:
    way = value.get("way") if isinstance(value, dict) else None
    return way == "panels" or (way == "onednn" and _onednn_has(dtype))


def _packed(layer: nn.Linear, dtype: torch.dtype, back: bool) -> Callable[[Tensor], Tensor]:
    """The layer's product with a copy of its weights; `back`: in the type of what it is given."""
    bias = None if layer.bias is None else layer.bias.detach()
    weight = PackedWeight(layer.weight.detach(), bias, dtype)

    def forward(given: Tensor) -> Tensor:
        product = weight(given.to(computed_in(dtype)))
        return product.to(given.dtype) if back else product

    return forward


# ------------------------------------------------------------------------------ the measurements


@torch.no_grad()
def _time_types() -> dict[str, Any]:
    """Each type over weights that no cache holds."""
    layers = _layers(8, 1024, 4096)  # 128 MiB
    types = {name: ROUNDED.get(name, torch.float32) for name in ("float32", *_usable_types())}
    ways = {name: [_packed(one, dtype, True) for one in layers] for name, dtype in types.items()}
    seconds = _seconds(ways, torch.ones(32, 1024))
    faster = seconds["bfloat16"] < 0.8 * seconds["float32"]
    return {"dtype": "bfloat16" if faster else "float32", "ms": _in_ms(seconds, 1)}


@torch.no_grad()
def _time_layout() -> str:
    """`packed` where oneDNN's layout is clearly faster for a tiny model too, else `plain`."""
    layers = _layers(16, 256, 704)  # 11 MiB
    ways: dict[str, Products] = {
        "plain": [layer.forward for layer in layers],
        "packed": [_packed(layer, torch.float32, True) for layer in layers],
    }
    seconds = _seconds(ways, torch.ones(32, 256))
    return "packed" if seconds["packed"] < 0.9 * seconds["plain"] else "plain"


@torch.no_grad()
def _time_panels(dtype: torch.dtype) -> dict[str, Any]:
    """Both ways over small layers and wide ones, of 4, 16 and 48 rows, as they end one by one."""
    seconds: list[dict[str, float]] = []
    for count, inputs in ((16, 256), (2, 2048)):
        weights = [layer.weight for layer in _layers(count, inputs, 704)]
        ways: dict[str, Products] = {"panels": [PanelWeight(w, None, dtype) for w in weights]}
        if _onednn_has(dtype):
            ways["onednn"] = [_OnednnWeight(w, None, dtype) for w in weights]
        seconds += [_seconds(ways, torch.ones(n, inputs, dtype=dtype)) for n in (4, 16, 48)]
    total = {way: sum(one[way] for one in seconds) for way in seconds[0]}
    return {"way": min(total, key=lambda way: total[way]), "ms": _in_ms(total, 2)}


def _layers(count: int, inputs: int, outputs: int) -> list[nn.Linear]:
    """Layers with random weights; the global generator is as it was after."""
    with torch.random.fork_rng([]):
        return [nn.Linear(inputs, outputs, bias=False) for _ in range(count)]


def _seconds(ways: Mapping[str, Products], given: Tensor) -> dict[str, float]:
    """Seconds of all of a way's products of `given`."""

    def run(products: Products) -> None:
        for product in products:
            product(given)

    return raced({name: partial(run, products) for name, products in ways.items()})


def _in_ms(seconds: Mapping[str, float], digits: int) -> dict[str, float]:
    return {name: round(1000 * taken, digits) for name, taken in seconds.items()}
