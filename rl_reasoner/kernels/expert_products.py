"""The experts of a sparse layer: tokens in the order of their experts, each expert's products once.

Gate, up and down of all experts are one function with its gradients; what is kept for the backward
pass is the input and the two halves, in the experts' order. For fp32 on a CPU. Knows tensors only.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rl_reasoner.kernels.products import product_of
from rl_reasoner.kernels.training_operations import gated_gradients, gated_product


def experts(states: Tensor, gate_up: Tensor, down: Tensor, index: Tensor, gates: Tensor) -> Tensor:
    """(N, H): of each token the sum of its k experts' outputs, by their gates (N, k).

    `gate_up` (experts, 2 I, H), `down` (experts, H, I), `index` (N, k): which experts.
    """
    out: Tensor = _Experts.apply(states, gate_up, down, index, gates)  # type: ignore[no-untyped-call]
    return out


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, states: Tensor, gate_up: Tensor, down: Tensor, index: Tensor, gates: Tensor
    ) -> Tensor:
        chosen = index.flatten()
        order = chosen.argsort(stable=True)
        ends = torch.bincount(chosen, minlength=len(down)).cumsum(0).tolist()
        tokens = order // index.shape[1]
        weights = gates.flatten()[order]
        width = down.shape[2]
        sorted_states = states[tokens]
        gate, up = (states.new_empty(len(order), width) for _ in range(2))
        for expert, rows in _parts(ends):
            half = gate_up[expert]
            gate[rows] = product_of(sorted_states[rows], half[:width], "forward")
            up[rows] = product_of(sorted_states[rows], half[width:], "forward")
        hidden = gated_product(gate, up).mul_(weights[:, None])
        out = torch.zeros_like(states)
        for expert, rows in _parts(ends):
            out.index_add_(0, tokens[rows], product_of(hidden[rows], down[expert], "forward"))
        ctx.save_for_backward(states, gate_up, down, tokens, weights, order, gate, up)
        ctx.ends, ctx.shape = ends, gates.shape
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        states, gate_up, down, tokens, weights, order, gate, up = ctx.saved_tensors
        width, ends = down.shape[2], ctx.ends
        grad, sorted_states = grads[0][tokens], states[tokens]
        by_hidden = torch.empty_like(gate)  # before the gates
        for expert, rows in _parts(ends):
            by_hidden[rows] = product_of(grad[rows], down[expert].t(), "input")
        hidden = by_hidden * weights[:, None]
        by_gate, by_up = gated_gradients(hidden, gate, up)
        by_weights = torch.empty_like(weights)
        by_weights[order] = (hidden * by_hidden).sum(1)
        grad.mul_(weights[:, None])
        by_gate_up, by_down = (  # none of frozen ones
            torch.zeros_like(weight) if needed else None
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
            by_states.index_add_(
                0, tokens[rows], product_of(by_up[rows], half[width:].t(), "input", by_rows)
            )
        return by_states, by_gate_up, by_down, None, by_weights.view(ctx.shape)


def _parts(ends: list[int]) -> list[tuple[int, slice]]:
    """The experts that have rows, and theirs."""
    starts = [0, *ends[:-1]]
    return [(i, slice(a, b)) for i, (a, b) in enumerate(zip(starts, ends, strict=True)) if b > a]
