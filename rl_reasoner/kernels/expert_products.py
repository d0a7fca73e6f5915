"""The experts of a sparse layer: tokens in the order of their experts, each expert's products once.

Gate, up and down of all experts are one function with its gradients; what is kept for the backward
pass is the input and the two halves, in the experts' order. For a CPU; states and weights in fp32,
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
from rl_reasoner.kernels.training_operations import gated_gradients, gated_product

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
        gate_up, down = gate_up.to(dtype), down.to(dtype)
        width, sorted_states = down.shape[2], states[tokens].to(dtype)
        gate, up = (sorted_states.new_empty(len(tokens), width) for _ in range(2))
        for expert, rows in _parts(ends):
            half = gate_up[expert]
            gate[rows] = product_of(sorted_states[rows], half[:width], "forward")
            up[rows] = product_of(sorted_states[rows], half[width:], "forward")
        hidden = gated_product(gate.float(), up.float()).mul_(weights[:, None]).to(dtype)
        out = torch.zeros_like(states)
        for expert, rows in _parts(ends):
            part = product_of(hidden[rows], down[expert], "forward")
            out.index_add_(0, tokens[rows], part.to(out.dtype))
        ctx.save_for_backward(states, gate_up, down, tokens, weights, order, places, gate, up)
        ctx.ends, ctx.shape = ends, gates.shape
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        states, gate_up, down, tokens, weights, order, places, gate, up = ctx.saved_tensors
        width, ends, dtype = down.shape[2], ctx.ends, down.dtype
        grad, sorted_states = grads[0][tokens].to(dtype), states[tokens].to(dtype)
        gate, up = gate.float(), up.float()
        by_hidden = torch.empty_like(gate)  # before the gates
        for expert, rows in _parts(ends):
            by_hidden[rows] = product_of(grad[rows], down[expert].t(), "input")
        hidden = by_hidden * weights[:, None]
        by_gate, by_up = (by.to(dtype) for by in gated_gradients(hidden, gate, up))
        by_weights = torch.empty_like(weights[: len(order)])
        by_weights[order] = (hidden * by_hidden).sum(1)[places]
        hidden = hidden.to(dtype)
        grad.mul_(weights[:, None])
        by_gate_up, by_down = (  # none of frozen ones
            torch.zeros_like(weight, dtype=states.dtype) if needed else None
            for weight, needed in zip((gate_up, down), ctx.needs_input_grad[1:3], strict=True)
        )
        by_states = torch.zeros_like(states)
        for expert, rows in _parts(ends):
            half, own = gate_up[expert], sorted_states[rows].t()
            if by_down is not None:
                by_down[expert] = product_of(grad[rows].t(), hidden[rows].t(), "weight")
            if by_gate_up is not None:
                by_gate_up[expert, :width] = product_of(by_gate[rows].t(), own, "weight")
                by_gate_up[expert, width:] = product_of(by_up[rows].t(), own, "weight")
            by_rows = product_of(by_gate[rows], half[:width].t(), "input")
            by_rows = product_of(by_up[rows], half[width:].t(), "input", by_rows)
            by_states.index_add_(0, tokens[rows], by_rows.to(by_states.dtype))
        return by_states, by_gate_up, by_down, None, by_weights.view(ctx.shape), None


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
