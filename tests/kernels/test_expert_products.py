"""The experts' own function: values and gradients of the plain formula, in both types."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear, silu

from rl_reasoner.kernels import native
from rl_reasoner.kernels.expert_products import experts

pytestmark = pytest.mark.skipif(native.library() is None, reason="no compiler here")


def plain(
    states: Tensor, gate_up: Tensor, down: Tensor, index: Tensor, gates: Tensor, dtype: torch.dtype
) -> Tensor:
    """Expert by expert, by autograd; products in `dtype`, sums in fp32."""
    out = torch.zeros_like(states)
    for expert in range(len(down)):
        token, place = (index == expert).nonzero(as_tuple=True)
        gate, up = linear(states[token].to(dtype), gate_up[expert].to(dtype)).chunk(2, dim=-1)
        part = linear(silu(gate) * up, down[expert].to(dtype))
        out = out.index_add(0, token, (part * gates[token, place, None]).float())
    return out


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("tokens", [1, 3, 70, 200])
@pytest.mark.parametrize("used", [2, 5], ids=["some experts without rows", "all"])
def test_values_and_every_gradient(
    dtype: torch.dtype, bound: float, tokens: int, used: int
) -> None:
    torch.manual_seed(tokens)
    given = [torch.randn(tokens, 24), torch.randn(5, 32, 24) / 5, torch.randn(5, 24, 16) / 4]
    gates, weight = torch.rand(tokens, 2), torch.randn(tokens, 24)
    index = torch.rand(tokens, used).topk(2).indices
    found = []
    for way in (experts, plain):
        leaves = [t.clone().requires_grad_() for t in (*given, gates)]
        out = way(*leaves[:3], index, leaves[3], dtype)
        found.append([out.detach(), *torch.autograd.grad((out * weight).sum(), leaves)])
    for name, ours, theirs in zip(
        ("values", "states", "gate_up", "down", "gates"), *found, strict=True
    ):
        assert ours.dtype == torch.float32
        assert (ours - theirs).norm() <= bound * theirs.norm(), name
