"""FP8 training emulated: the rounding of float8 products, computed in a wider type.

`emulated_fp8` makes the linear layers and the fused experts of a model compute as FP8 training
does: both factors of the forward product and of both backward products are scaled, rounded to
float8 (e4m3, as DeepSeek-V3, arXiv 2412.19437, section 3.3) and scaled back; sums are those of the
wider type. So the effect on losses and gradients can be studied on any machine; nothing becomes
faster. Embeddings, norms, routers and other gates, and the head stay as they are.

Scalings: "tensor" (one scale a tensor), "row" (one a row, along the sum), "block" (DeepSeek's:
1 x 128 along the sum for activations and gradients, 128 x 128 for weights).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from rl_reasoner.moe import routers

Scaling = Literal["tensor", "row", "block"]
BLOCK = 128
_E4M3 = torch.float8_e4m3fn
_LARGEST = torch.finfo(_E4M3).max  # 448


def quantised(values: Tensor, tile: tuple[int, int]) -> Tensor:
    """(M, K) `values` rounded to e4m3 with one scale for each tile of rows x columns; their type.

    The largest number of a tile becomes the largest of e4m3. A tile side of 0 means all of it.
    """
    rows, columns = values.shape
    high, wide = tile[0] or max(rows, 1), tile[1] or max(columns, 1)
    padded = nn.functional.pad(values, (0, -columns % wide, 0, -rows % high))
    tiles = padded.unflatten(1, (-1, wide)).unflatten(0, (-1, high))  # type: ignore[no-untyped-call]
    largest = tiles.abs().amax((1, 3), keepdim=True)
    scale = torch.where(largest > 0, largest / _LARGEST, 1.0)
    rounded: Tensor = (tiles / scale).clamp(-_LARGEST, _LARGEST).to(_E4M3).to(values.dtype) * scale
    return rounded.flatten(2, 3).flatten(0, 1)[:rows, :columns]


def tile_of(scaling: Scaling, weight: bool) -> tuple[int, int]:
    """The tile of a factor that is summed along its second dimension."""
    if scaling == "tensor":
        return 0, 0
    if scaling == "row":
        return 1, 0
    return (BLOCK, BLOCK) if weight else (1, BLOCK)


def product(a: Tensor, b: Tensor, scaling: Scaling, weight: bool) -> Tensor:
    """a b^T of (M, K) and (N, K), both rounded; `weight`: whether `b` is one."""
    return quantised(a, tile_of(scaling, False)) @ quantised(b, tile_of(scaling, weight)).T


class _Linear(torch.autograd.Function):
    """y = x w^T; dx = dy w, dw = dy^T x: each product of two rounded factors."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scaling: Scaling) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.scaling = scaling
        return product(x, weight, scaling, True)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dy = grads[0]
        dx = product(dy, weight.T, ctx.scaling, True) if ctx.needs_input_grad[0] else None
        dw = product(dy.T, x.T, ctx.scaling, False) if ctx.needs_input_grad[1] else None
        return dx, dw, None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, scaling: Scaling) -> Tensor:
    """As torch's `linear`: (..., K), (N, K), (N,) -> (..., N)."""
    rows: Tensor = _Linear.apply(x.reshape(-1, x.shape[-1]), weight, scaling)  # type: ignore[no-untyped-call]
    y = rows.view(*x.shape[:-1], len(weight))
    return y if bias is None else y + bias


def _experts(
    self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor, scaling: Scaling
) -> Tensor:
    """transformers' interface of fused experts: the gated sum, expert by expert."""
    total = torch.zeros_like(hidden_states, dtype=torch.float32)
    for expert in sorted(set(top_k_index.flatten().tolist())):
        token, place = (top_k_index == expert).nonzero(as_tuple=True)
        names = ("gate_up_proj", "down_proj")
        up, down = (getattr(self, name)[expert] for name in names)
        if self.is_transposed:
            up, down = up.T, down.T
        biases = [getattr(self, f"{n}_bias")[expert] if self.has_bias else None for n in names]
        inner = self._apply_gate(linear(hidden_states[token], up, biases[0], scaling))
        outer = linear(inner, down, biases[1], scaling) * top_k_weights[token, place, None]
        total = total.index_add(0, token, outer.float())
    return total.to(hidden_states.dtype)


for _scaling in get_args(Scaling):
    ALL_EXPERTS_FUNCTIONS.register(f"emulated_fp8_{_scaling}", partial(_experts, scaling=_scaling))


def covered(model: Any) -> list[str]:
    """The names of the layers that FP8 is for: linear layers and fused experts, by rule.

    Not the head, and no gate: neither routers nor that of a shared expert.
    """
    head = model.get_output_embeddings()
    gates = {id(router) for _, router in routers(model)}
    return [
        name
        for name, module in model.named_modules()
        if (isinstance(module, nn.Linear) and module is not head and not name.endswith("_gate"))
        or (isinstance(getattr(module, "gate_up_proj", None), nn.Parameter))
        if id(module) not in gates
    ]


@contextmanager
def emulated_fp8(model: Any, scaling: Scaling = "block") -> Iterator[None]:
    """Inside, `model` computes with emulated FP8; weights, and what is saved, stay as they are."""
    layers = [model.get_submodule(name) for name in covered(model)]
    linears = [layer for layer in layers if isinstance(layer, nn.Linear)]
    config = model.config
    before = config._experts_implementation
    for layer in linears:
        layer.__dict__["forward"] = _forward(layer, scaling)  # before the class's own
    if len(linears) < len(layers):
        config._experts_implementation = f"emulated_fp8_{scaling}"
    try:
        yield
    finally:
        config._experts_implementation = before
        for layer in linears:
            del layer.__dict__["forward"]


def _forward(layer: nn.Linear, scaling: Scaling) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        return linear(x, layer.weight, layer.bias, scaling)

    return forward
