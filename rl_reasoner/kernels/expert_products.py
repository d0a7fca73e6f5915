"""The experts of a sparse layer: tokens in the order of their experts, each expert's products once.

Gate, up and down of all experts are one function with its gradients; what is kept for the backward
pass is the input and the two halves, in the experts' order. One expert after the other: its rows
stay in the inner caches from the first product to the last. For a CPU; states and weights in fp32,
products in fp32 or, as autocast would have it, in bf16. Knows tensors only.

Each expert's rows are filled up to a multiple of `_ROWS` with rows whose gate is 0. oneDNN compiles
a product for each number of rows, and keeps a thousand: with a number of its own for every expert,
layer and batch, it compiled most of them anew.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rl_reasoner.kernels.products import product_of
from rl_reasoner.kernels.training_operations import weighted_gradients, weighted_product

_ROWS = 32


def experts(
    states: Tensor,
    gate_up: Tensor,
    down: Tensor,
    index: Tensor,
    gates: Tensor,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """(N, H): of each token the sum of its k experts' outputs, by their gates (N, k).

    `gate_up` (experts, 2 I, H), `down` (experts, H, I), `index` (N, k): which experts. `dtype`:
    that of the products, fp32 or bf16.
    """
    out: Tensor = _Experts.apply(states, gate_up, down, index, gates, dtype)  # type: ignore[no-untyped-call]
    return out


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        gate_up: Tensor,
        down: Tensor,
        index: Tensor,
        gates: Tensor,
        dtype: torch.dtype,
    ) -> Tensor:
        order, places, ends = _places(index, len(down))
        tokens = order.new_zeros(ends[-1])
        tokens[places] = order // index.shape[1]
        weights = gates.new_zeros(ends[-1])
        weights[places] = gates.flatten()[order]
        gate_up, down, rounded = gate_up.to(dtype), down.to(dtype), states.to(dtype)
        out, halves = torch.zeros_like(states), []  # gate and up of each expert's rows
        for expert, rows in _parts(ends):
            own = rounded.index_select(0, tokens[rows])
            both = product_of(own, gate_up[expert], "forward")
            hidden = weighted_product(both.float(), weights[rows]).to(dtype)
            part = product_of(hidden, down[expert], "forward")
            out.index_add_(0, tokens[rows], part.to(out.dtype))
            halves.append(both)
        ctx.save_for_backward(states, gate_up, down, tokens, weights, order, places, *halves)
        ctx.ends, ctx.shape = ends, gates.shape
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        states, gate_up, down, tokens, weights, order, places, *halves = ctx.saved_tensors
        dtype = down.dtype
        by_out, rounded = grads[0].to(dtype), states.to(dtype)
        by_gate_up, by_down = (  # none of frozen ones
            torch.zeros_like(weight, dtype=states.dtype) if needed else None
            for weight, needed in zip((gate_up, down), ctx.needs_input_grad[1:3], strict=True)
        )
        by_states, by_weights = torch.zeros_like(states), torch.empty_like(weights)
        for (expert, rows), both in zip(_parts(ctx.ends), halves, strict=True):
            grad = by_out.index_select(0, tokens[rows])
            hidden = product_of(grad, down[expert].t(), "input").float()  # its gradient, so far
            by_both, by_weights[rows] = weighted_gradients(hidden, both.float(), weights[rows])
            by_both = by_both.to(dtype)
            if by_down is not None:
                by_down[expert] = product_of(grad.t(), hidden.to(dtype).t(), "weight")
            if by_gate_up is not None:
                own = rounded.index_select(0, tokens[rows])
                by_gate_up[expert] = product_of(by_both.t(), own.t(), "weight")
            by_rows = product_of(by_both, gate_up[expert].t(), "input")
            by_states.index_add_(0, tokens[rows], by_rows.to(by_states.dtype))
        by_gates = torch.empty_like(weights[: len(order)])
        by_gates[order] = by_weights[places]
        return by_states, by_gate_up, by_down, None, by_gates.view(ctx.shape), None


def _places(index: Tensor, experts: int) -> tuple[Tensor, Tensor, list[int]]:
    """The choices (N, k) in the order of their experts, their rows, and where each expert's end."""
    chosen = index.flatten()
    order = chosen.argsort(stable=True)
    counts = torch.bincount(chosen, minlength=experts)
    ends = (counts + _ROWS - 1).div(_ROWS, rounding_mode="floor").mul(_ROWS).cumsum(0)
    missing = ends - counts.cumsum(0)  # rows that fill up this expert's and those before
    before = torch.cat((missing.new_zeros(1), missing[:-1]))
    places = torch.arange(len(order), device=order.device) + before[chosen[order]]
    return order, places, ends.tolist()


def _parts(ends: list[int]) -> list[tuple[int, slice]]:
    """The experts that have rows, and theirs."""
    starts = [0, *ends[:-1]]
    return [(i, slice(a, b)) for i, (a, b) in enumerate(zip(starts, ends, strict=True)) if b > a]
