"""Emulated FP8 against a reference in float64, written with loops from the definition."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mixtures import FAMILIES, model_of
from torch import Tensor

from rl_reasoner import open_policy
from rl_reasoner.precision import covered, fp8, linear, product, quantised, tile_of

IDS = torch.arange(24).reshape(2, 12)


def nearest(value: float) -> float:
    """The e4m3 number nearest to `value`, ties to even: 3 bits behind the point, least 2^-9."""
    if value == 0:
        return 0.0
    _, exponent = torch.frexp(torch.tensor(abs(value), dtype=torch.float64))
    step = 2.0 ** max(int(exponent) - 4, -9)
    return max(-448.0, min(448.0, round(value / step) * step))


def reference(values: Tensor, tile: tuple[int, int]) -> Tensor:
    """Tile by tile, number by number, in float64."""
    rows, columns = values.shape
    high, wide = tile[0] or rows, tile[1] or columns
    found = torch.zeros(rows, columns, dtype=torch.float64)
    for r in range(0, rows, high):
        for c in range(0, columns, wide):
            part = values[r : r + high, c : c + wide].double()
            scale = float(part.abs().max()) / 448 or 1.0
            rounded = [[nearest(v / scale) * scale for v in row] for row in part.tolist()]
            found[r : r + high, c : c + wide] = torch.tensor(rounded, dtype=torch.float64)
    return found


def close(found: Tensor, expected: Tensor) -> bool:
    return bool((found.double() - expected).norm() <= 2e-6 * expected.norm() + 1e-12)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["tensor", "row", "block"]), st.booleans())
def test_all_three_products_are_those_of_the_reference(
    seed: int, scaling: Any, outliers: bool
) -> None:
    """In float64, so that a tie of rounding does not fall the other way."""
    random = torch.Generator().manual_seed(seed)
    x, w, dy = (
        torch.randn(*shape, generator=random, dtype=torch.float64)
        for shape in ((5, 140), (9, 140), (5, 9))
    )
    if outliers:
        x[0, 3] = 1000.0
    x.requires_grad_()
    w.requires_grad_()
    y = linear(x, w, None, scaling)
    torch.autograd.backward(y, dy)
    activation, weight = tile_of(scaling, False), tile_of(scaling, True)
    a, b, d = x.detach(), w.detach(), dy
    assert close(y.detach(), reference(a, activation) @ reference(b, weight).T)
    assert close(x.grad, reference(d, activation) @ reference(b.T, weight).T)  # type: ignore[arg-type]
    assert close(w.grad, reference(d.T, activation) @ reference(a.T, activation).T)  # type: ignore[arg-type]


def error(a: Tensor, b: Tensor, scaling: Any) -> float:
    exact = a.double() @ b.double().T
    return float((product(a, b, scaling, True).double() - exact).norm() / exact.norm())


def test_blocks_err_by_at_most_4_percent_and_flush_less_than_tensors() -> None:
    random = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 512, 512, generator=random)
    assert 0.01 < error(a, b, "block") <= 0.04
    outlying = torch.where(torch.rand(512, 512, generator=random) < 1e-3, a * 1000, a)
    flushed = {
        scaling: float((quantised(outlying, tile_of(scaling, False)) == 0).float().mean())
        for scaling in ("tensor", "block")
    }
    assert flushed["block"] < 0.2 * flushed["tensor"]


def test_zeros_and_empty_parts_stay() -> None:
    assert torch.equal(quantised(torch.zeros(3, 200), (1, 128)), torch.zeros(3, 200))
    assert quantised(torch.zeros(0, 8), (1, 128)).shape == (0, 8)
    assert linear(torch.zeros(2, 0, 8), torch.ones(4, 8), None, "block").shape == (2, 0, 4)


# ---------------------------------------------------------------------------------- the model


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_and_experts_are_covered_gates_and_head_are_not(family: str) -> None:
    model = model_of(family).eval()
    names = covered(model)
    last = {name.rsplit(".", 1)[-1] for name in names}
    assert {"experts", "o_proj"} <= last
    assert not {"gate", "router", "lm_head", "shared_expert_gate", "embed_tokens"} & last
    plain = model(input_ids=IDS).logits
    before = model.config._experts_implementation
    with fp8(model):
        rounded = model(input_ids=IDS).logits
        rounded.logsumexp(-1).sum().backward()
    apart = float(((rounded - plain).norm() / plain.norm()).detach())
    assert 1e-4 < apart < 0.2
    assert all(p.grad is not None for n, p in model.named_parameters() if "experts" in n)
    assert torch.equal(model(input_ids=IDS).logits, plain), "outside nothing has changed"
    assert model.config._experts_implementation == before


def test_experts_alone_are_rounded_as_their_formula_says() -> None:
    layer = open_policy("scratch:moe-tiny", device="cpu").model.model.layers[0].mlp
    experts = layer.experts
    x = torch.randn(7, 96, generator=torch.Generator().manual_seed(2))
    _, gates, chosen = layer.gate(x)
    experts.config._experts_implementation = "fp8_emulation_row"
    with torch.no_grad():
        found = experts(x, chosen, gates)
        for t in range(7):
            total = torch.zeros(96)
            for gate, e in zip(gates[t], chosen[t].tolist(), strict=True):
                one = quantised(x[t : t + 1], (1, 0)) @ quantised(experts.gate_up_proj[e], (1, 0)).T
                inner = torch.nn.functional.silu(one[:, :96]) * one[:, 96:]
                out = quantised(inner, (1, 0)) @ quantised(experts.down_proj[e], (1, 0)).T
                total += gate * out[0]
            assert torch.allclose(found[t], total, atol=1e-6)


def test_a_model_learns_with_it() -> None:
    """The same loss curve, up to its rounding: 30 steps on one batch, in fp32 and emulated."""
    ends = []
    for scaling in (None, "block", "tensor"):
        model = open_policy("scratch:moe-tiny", device="cpu").model
        ids = torch.randint(6, 200, (8, 12), generator=torch.Generator().manual_seed(3))
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
        for _ in range(30):
            if scaling is None:
                loss = model(input_ids=ids, labels=ids).loss
            else:
                with fp8(model, scaling):
                    loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        ends.append(float(loss.detach()))
    assert max(ends) < 1.0 and abs(ends[0] - ends[1]) < 0.3
