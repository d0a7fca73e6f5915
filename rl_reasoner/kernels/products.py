"""Matrix products of fp32 on a CPU, each class of them by what is fastest on this machine.

Three ways give fp32's digits: `torch` (F.linear's own: MKL, or what torch was built with), `onednn`
(which torch holds beside it, and which is twice as fast on AMD's processors), and `integers`: each
number as three integers of 8 bits, six products of which are summed exactly, on processors whose
tiles multiply integers (AMX; `cpp/integers.cpp`). Errors against exact sums are the same, 3e-7 of
the result, where a row's numbers are of like size; in the last way they are relative to the largest
of 256 in a row, so that numbers a hundred times as large as the others, which meet as small ones in
the other factor, leave 7e-6, a thousand times 5e-5.

Which one is taken is timed once a machine for each class: a layer's `forward`, the gradient of its
`input`, the gradient of its `weight`; they differ by which of the factors lie transposed. Knows
tensors only; low precision and other devices are torch's.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear as torch_linear

from rl_reasoner.kernels import native
from rl_reasoner.machine import choices, raced

Class = Literal["forward", "input", "weight"]
CLASSES: tuple[Class, ...] = ("forward", "input", "weight")
WAYS = ("torch", "onednn", "integers")
_WORTH = 1 << 21  # multiplications, from which another way than torch's is worth its call
_SHAPE = 1024, 512, 512  # that is timed: rows, outputs, inputs
_TIMES = 5


def usable_ways() -> list[str]:
    """The ways that this machine has."""
    has = {"torch": True, "onednn": torch.backends.mkldnn.is_available()}  # type: ignore[no-untyped-call]
    has["integers"] = native.can_slice()
    return [way for way in WAYS if has[way]]


def chosen() -> dict[str, Any]:
    """The way of each class, and under `rates` what each way reached, in GFLOP/s."""
    value: dict[str, Any] = choices.get("products", _measure, _is_usable, complete=_is_complete)
    return value


def bf16_rates() -> dict[str, int]:
    """GFLOP/s of a layer's forward product in bf16, as autocast makes it, and in fp32's best way.

    Some processors have instructions for bf16 and are slower with them.
    """
    name = f"bf16_products/{torch.get_num_threads()}_threads"
    value: dict[str, int] = choices.get(name, _measure_bf16, _are_rates)
    return value


def _are_rates(value: Any) -> bool:
    names = ("bf16", "fp32")
    return isinstance(value, dict) and all(isinstance(value.get(name), int) for name in names)


def _is_usable(value: Any) -> bool:
    """Whether this machine has the ways."""
    ways = usable_ways()
    return isinstance(value, dict) and all(value.get(c) in ways for c in CLASSES)


def _is_complete(value: dict[str, Any]) -> bool:
    """Whether all ways were timed that there are now."""
    rates = value.get("rates", {})
    return all(set(usable_ways()) <= set(rates.get(c, ())) for c in CLASSES)


def product_of(a: Tensor, b: Tensor, kind: Class, out: Tensor | None = None) -> Tensor:
    """a (m, k) times b (n, k) transposed -> (m, n); with `out`, the product is added to it.

    `kind`: the class that the product belongs to.
    """
    (m, k), n = a.shape, len(b)
    way = chosen()[kind] if m * n * k >= _WORTH and _plain(a) and _plain(b) else "torch"
    return _multiply(a, b, way, out)


def _plain(tensor: Tensor) -> bool:
    return tensor.dtype == torch.float32 and tensor.device.type == "cpu"


def _multiply(a: Tensor, b: Tensor, way: str, out: Tensor | None = None) -> Tensor:
    if way == "integers" and a.shape[1]:
        return _by_integers(a, b, out)
    if way == "onednn":
        product: Tensor = torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")
        return product if out is None else out.add_(product)
    return a @ b.t() if out is None else out.addmm_(a, b.t())


def _by_integers(a: Tensor, b: Tensor, out: Tensor | None) -> Tensor:
    a, b = (t if 1 in t.stride() else t.contiguous() for t in (a, b))
    target = a.new_empty(len(a), len(b)) if out is None else out
    # the two strides of a factor; a single row or column may have any
    strides = [(t.stride(0), 1) if t.stride(1) == 1 else (1, t.stride(1)) for t in (a, b)]
    sizes = len(a), len(b), a.shape[1]
    native.run_compiled(
        "sliced_product",
        *(a, *strides[0], b, *strides[1]),
        *(target, target.stride(0), *sizes, int(out is not None)),
    )
    return target


# ------------------------------------------------------------------------------------ the choice


def _measure() -> dict[str, Any]:
    """Time each way on one product of each class."""
    rows, outputs, inputs = _SHAPE
    random = torch.Generator().manual_seed(0)
    x, w, grad = (
        torch.randn(*shape, generator=random)
        for shape in ((rows, inputs), (outputs, inputs), (rows, outputs))
    )
    factors = {"forward": (x, w), "input": (grad, w.t()), "weight": (grad.t(), x.t())}
    rates = {
        kind: _rates({way: partial(_multiply, a, b, way) for way in usable_ways()})
        for kind, (a, b) in factors.items()
    }
    best: dict[str, Any] = {kind: max(r, key=lambda way: r[way]) for kind, r in rates.items()}
    return {**best, "rates": rates}


def _measure_bf16() -> dict[str, int]:
    """Time the forward product in both precisions."""
    rows, outputs, inputs = _SHAPE
    x, w = torch.ones(rows, inputs), torch.ones(outputs, inputs)
    halves = x.bfloat16(), w.bfloat16()
    fp32 = partial(_multiply, x, w, chosen()["forward"])
    return _rates({"fp32": fp32, "bf16": partial(torch_linear, *halves)})


def _rates(ways: Mapping[str, Callable[[], object]]) -> dict[str, int]:
    """GFLOP/s of each way to a product of the shape that is timed."""
    seconds = raced(ways, _TIMES)
    return {way: round(2 * math.prod(_SHAPE) / taken / 1e9) for way, taken in seconds.items()}


# -------------------------------------------------------------------------------- linear layers


def plain_layer(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As F.linear, (..., inputs) -> (..., outputs), by the chosen products; fp32 on a CPU."""
    if not (_plain(x) and _plain(weight)) or torch.is_autocast_enabled("cpu"):
        return torch_linear(x, weight, bias)
    [out] = joint_layers(x, [weight], [bias])
    return out


def joint_layers(
    x: Tensor, weights: list[Tensor], biases: list[Tensor | None]
) -> tuple[Tensor, ...]:
    """Several layers of one input, whose gradient is summed up in one place."""
    rows = x.reshape(-1, x.shape[-1])
    outs: tuple[Tensor, ...] = _Linears.apply(rows, len(weights), *weights, *biases)  # type: ignore[no-untyped-call]
    return tuple(out.view(*x.shape[:-1], -1) for out in outs)


class _Linears(torch.autograd.Function):
    """rows (N, inputs), how many, weights (outputs, inputs), biases (outputs,) or None."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, count: int, *given: Any) -> tuple[Tensor, ...]:
        weights, biases = given[:count], given[count:]
        ctx.save_for_backward(rows, *weights)
        outs = tuple(product_of(rows, weight, "forward") for weight in weights)
        for out, bias in zip(outs, biases, strict=True):
            if bias is not None:
                out.add_(bias)
        return outs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, *weights = ctx.saved_tensors
        needs_rows, _, *needs = ctx.needs_input_grad
        count = len(weights)
        by_rows: Tensor | None = None
        by_weights: list[Tensor | None] = []
        for grad, weight, needed in zip(grads, weights, needs[:count], strict=True):
            if needs_rows:
                by_rows = product_of(grad, weight.t(), "input", by_rows)
            by_weights.append(product_of(grad.t(), rows.t(), "weight") if needed else None)
        by_biases = [
            grad.sum(0) if needed else None
            for grad, needed in zip(grads, needs[count:], strict=True)
        ]
        return (by_rows, None, *by_weights, *by_biases)
