"""Norms, rotations and gated layers of fp32 with their gradients, by the compiled operations.

Each is one pass over its rows, and keeps no more for the backward pass than its inputs. Only where
rl_reasoner.kernels.native is available. Knows tensors only.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rl_reasoner.kernels import native
from rl_reasoner.kernels.products import product_of

_BLOCK = 256  # rows whose gradients of a norm's weight are summed together, as in C++


def rms_norm(states: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """states / root mean square of its last dimension, times weight; any leading dimensions."""
    out: Tensor = _RMSNorm.apply(states, weight, epsilon)  # type: ignore[no-untyped-call]
    return out


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        states, width = states.contiguous(), states.shape[-1]
        out, rows = torch.empty_like(states), states.numel() // width
        scales = states.new_empty(rows)
        native.run_compiled("rms_forward", states, weight, out, scales, rows, width, epsilon)
        ctx.save_for_backward(states, weight, scales)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        states, weight, scales = ctx.saved_tensors
        grad, width = grads[0].contiguous(), states.shape[-1]
        by_states = torch.empty_like(states)
        parts = states.new_empty((len(scales) + _BLOCK - 1) // _BLOCK, width)
        given = (grad, states, weight, scales, by_states, parts)
        native.run_compiled("rms_backward", *given, len(scales), width)
        return by_states, parts.sum(0) if ctx.needs_input_grad[1] else None, None


def rotated(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Heads (1, N, heads, width) turned by angles (1, N, width), in the order of Llama's halves."""
    out: Tensor = _Rotation.apply(states, cos.contiguous(), sin.contiguous())  # type: ignore[no-untyped-call]
    return out


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(states, cos, sin, 1.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _turned(grads[0], cos, sin, -1.0), None, None


def _turned(states: Tensor, cos: Tensor, sin: Tensor, sign: float) -> Tensor:
    _, tokens, heads, width = states.shape
    if states.stride(3) != 1 or states.stride(2) != width:
        states = states.contiguous()
    out = states.new_empty(states.shape)
    given = (states, states.stride(1), cos, sin, out)
    native.run_compiled("rotate", *given, tokens, heads, width, sign)
    return out


def gated(gate: Tensor, up: Tensor, down: Tensor | None = None) -> Tensor:
    """silu(gate) times up, (..., width); with `down` (outputs, width), that layer's output."""
    out: Tensor = _Gated.apply(gate, up, down)  # type: ignore[no-untyped-call]
    return out


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, down: Tensor | None) -> Tensor:
        gate, up = gate.contiguous(), up.contiguous()
        ctx.save_for_backward(gate, up, down)
        hidden = gated_product(gate, up)
        if down is None:
            return hidden
        rows = hidden.view(-1, hidden.shape[-1])
        return product_of(rows, down, "forward").view(*gate.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gate, up, down = ctx.saved_tensors
        if down is None:
            grad = grads[0].clone(memory_format=torch.contiguous_format)  # of any layout
            by_gate, by_up = gated_gradients(grad, gate, up)
            return by_gate, by_up, None
        grad = grads[0].reshape(-1, len(down))
        hidden = product_of(grad, down.t(), "input")
        by_gate, by_up = gated_gradients(hidden, gate, up)
        by_down = product_of(grad.t(), hidden.t(), "weight") if ctx.needs_input_grad[2] else None
        return by_gate, by_up, by_down


def gated_product(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) times up, of contiguous tensors."""
    hidden = torch.empty_like(gate)
    native.run_compiled("gated_forward", gate, up, hidden, gate.numel())
    return hidden


def gated_gradients(hidden: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of gate and up, by that of `hidden`, which becomes silu(gate) times up."""
    by_gate, by_up = torch.empty_like(gate), torch.empty_like(up)
    native.run_compiled("gated_backward", hidden, gate, up, by_gate, by_up, gate.numel())
    return by_gate, by_up


def weighted_product(both: Tensor, weights: Tensor) -> Tensor:
    """silu(gate) times up times a weight for each row, (rows, width), of contiguous tensors.

    `both` (rows, 2 width): the gates before the ups; `weights` (rows,).
    """
    hidden = both.new_empty(len(both), both.shape[1] // 2)
    native.run_compiled("expert_forward", both, weights, hidden, *hidden.shape)
    return hidden


def weighted_gradients(hidden: Tensor, both: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of both and weights, by that of `hidden`, which becomes the product again."""
    by_both, by_weights = torch.empty_like(both), torch.empty_like(weights)
    given = (hidden, both, weights, by_both, by_weights)
    native.run_compiled("expert_backward", *given, *hidden.shape)
    return by_both, by_weights
