"""FP8: the emulation against a reference in float64, the card's products, and runs in it."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rl_reasoner import open_policy, train
from rl_reasoner.errors import UserError
from rl_reasoner.pipeline.placement import choose_placement
from rl_reasoner.pipeline.preflight import inspect
from rl_reasoner.pipeline.prepare import prepare
from rl_reasoner.pipeline.rehearsal import rehearse
from rl_reasoner.policy.fp8 import torchao_products
from rl_reasoner.policy.fp8.layers import (
    covered_layers,
    emulated_product,
    excluded_layers,
    fp8,
    fp8_backend,
    linear,
    quantise,
    tile_of,
)
from rl_reasoner.policy.lora import add_lora
from rl_reasoner.recipe.adapter import Lora
from support.mixtures import FAMILIES, model_of
from support.tiny import grpo, recipe, rows, sft, weights

IDS = torch.arange(24).reshape(2, 12)


def nearest(value: float) -> float:
    """The e4m3 number nearest to `value`, ties to even: 3 bits behind the point, least 2^-9.

    By way of float32, as torch's conversion goes: what is within 1e-8 of a tie falls as ties do.
    """
    value = float(torch.tensor(value, dtype=torch.float32))
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
    return float((emulated_product(a, b, scaling, True).double() - exact).norm() / exact.norm())


def test_blocks_err_by_at_most_4_percent_and_flush_less_than_tensors() -> None:
    random = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 512, 512, generator=random)
    assert 0.01 < error(a, b, "block") <= 0.04
    outlying = torch.where(torch.rand(512, 512, generator=random) < 1e-3, a * 1000, a)
    flushed = {
        scaling: float((quantise(outlying, tile_of(scaling, False)) == 0).float().mean())
        for scaling in ("tensor", "block")
    }
    assert flushed["block"] < 0.2 * flushed["tensor"]


def test_zeros_and_empty_parts_stay() -> None:
    assert torch.equal(quantise(torch.zeros(3, 200), (1, 128)), torch.zeros(3, 200))
    assert quantise(torch.zeros(0, 8), (1, 128)).shape == (0, 8)
    assert linear(torch.zeros(2, 0, 8), torch.ones(4, 8), None, "block").shape == (2, 0, 4)


# ---------------------------------------------------------------------------------- the model


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_and_experts_are_covered_gates_and_head_are_not(family: str) -> None:
    model = model_of(family).eval()
    names = covered_layers(model)
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
                one = quantise(x[t : t + 1], (1, 0)) @ quantise(experts.gate_up_proj[e], (1, 0)).T
                inner = torch.nn.functional.silu(one[:, :96]) * one[:, 96:]
                out = quantise(inner, (1, 0)) @ quantise(experts.down_proj[e], (1, 0)).T
                total += gate * out[0]
            assert torch.allclose(found[t], total, atol=1e-6)


@pytest.mark.slow
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


# ------------------------------------------------------------------------------------- the run


def test_a_recipe_trains_in_it_and_says_so(tmp_path: Path) -> None:
    """Supervised and GRPO steps with a reference: other losses than in bf16, plain weights."""
    losses = {}
    for precision in ("bf16", "fp8"):
        folder = tmp_path / precision
        folder.mkdir()
        run = {"folder": str(folder / "run"), "device": "cpu", "precision": precision}
        made = recipe(folder, sft(), grpo(loss={"beta": 0.01}), run=run)
        train(made, quiet=True)
        found = sorted((folder / "run" / "stages").glob("*/metrics.jsonl"))
        losses[precision] = [[row["loss"] for row in rows(file)] for file in found]
    plain, rounded = losses["bf16"], losses["fp8"]
    assert [len(stage) for stage in rounded] == [3, 3]
    assert all(1e-6 < abs(a - b) < 0.2 for a, b in zip(plain[0], rounded[0], strict=True))
    lock = json.loads((folder / "run" / "lock.json").read_text())
    assert (lock["precision"], lock["fp8"]["computed_by"]) == ("fp8", "emulation")
    assert lock["fp8"]["layers"] == 10 and "same products" in lock["fp8"]["rollouts"]
    config = json.loads((folder / "run" / "policy" / "config.json").read_text())
    assert "quantization_config" not in config and not any("experts_impl" in key for key in config)
    assert {t.dtype for t in weights(folder / "run" / "policy").values()} == {torch.float32}


def test_sampling_and_training_pass_are_the_same_policy_in_rows_and_blocks() -> None:
    """An activation's scale is its own token's: a token alone gets what it gets among others."""
    model = open_policy("scratch:moe-tiny", device="cpu").model.eval()
    found = {}
    for scaling in ("row", "block", "tensor"):
        with fp8(model, scaling), torch.no_grad():
            whole = model(input_ids=IDS).logits
            found[scaling] = float((model(input_ids=IDS[:1]).logits - whole[:1]).abs().max())
    assert found["row"] < 1e-4 and found["block"] < 1e-4 < found["tensor"]


def test_the_check_says_that_it_is_emulated(tmp_path: Path) -> None:
    made = recipe(tmp_path, grpo(), run={"device": "cpu", "precision": "fp8"})
    placement = choose_placement(made)
    prepared = prepare(made, placement)
    policy = open_policy("scratch:moe-tiny", device="cpu")
    notices = {n.check: n for n in inspect(made, placement, prepared, policy, tmp_path)}
    assert notices["precision"].status == "warned" and "emulated" in notices["precision"].message
    [rehearsed] = rehearse(made, placement, prepared, policy)
    [row] = [n for n in rehearsed.notices if n.check == "mismatch"]
    assert "fp8" in row.message


def test_a_low_rank_adapter_stays_out_and_its_base_is_covered() -> None:
    policy = open_policy("scratch:moe-tiny", device="cpu")
    add_lora(policy, Lora(rank=4), seed=0)
    names = covered_layers(policy.model)
    assert any(n.endswith("q_proj.base_layer") for n in names)
    assert any(n.endswith("experts.base_layer.base_layer") or "experts" in n for n in names)
    assert not any("lora_" in n for n in names)
    with fp8(policy.model):
        policy.model(input_ids=IDS, labels=IDS).loss.backward()
    grads = [p.grad for n, p in policy.model.named_parameters() if "lora_B" in n]
    assert grads and all(g is not None and float(g.abs().max()) > 0 for g in grads)


# --------------------------------------------------------------------------- the card's products


def test_a_card_with_fp8_is_never_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fp8_backend("cpu", "block") == "emulation"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    assert fp8_backend("cuda", "block") == "emulation"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 9))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install"):
        fp8_backend("cuda", "row")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert fp8_backend("cuda", "row") == "torchao"
    with pytest.raises(UserError, match="Hopper"):
        fp8_backend("cuda", "block")


@pytest.mark.parametrize("family", ["Qwen3Moe", "DeepseekV3", "GptOss"])
@pytest.mark.parametrize("scaling", ["tensor", "row"])
def test_torchaos_products_reach_linear_layers_and_fused_experts(family: str, scaling: Any) -> None:
    """On torch's own FP8 product, which CPUs have too; gradients point where fp32's do."""
    pytest.importorskip("torchao", reason="torchao is an extra: pip install -e '.[fp8]'")
    sizes = {"hidden_size": 32, "intermediate_size": 32, "moe_intermediate_size": 32}
    heads = {"DeepseekV3": {"q_lora_rank": 16, "kv_lora_rank": 16}}.get(family, {"head_dim": 16})
    model = model_of(family, **{**sizes, **heads})
    grads = []
    for by in (None, "torchao"):
        with fp8(model, scaling, by) if by else nullcontext():
            loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        grads.append({n: p.grad for n, p in model.named_parameters()})
        model.zero_grad()
    changed = [n for n in grads[0] if not torch.equal(grads[0][n], grads[1][n])]
    assert any("gate_up_proj" in n for n in changed) and any("o_proj" in n for n in changed)
    for name in covered_layers(model):
        for own, _ in model.get_submodule(name).named_parameters(recurse=False):
            a, b = (g[f"{name}.{own}"].flatten() for g in grads)
            if "bias" not in own and float(a.norm()) > 1e-6:
                assert float(torch.cosine_similarity(a, b, dim=0)) > 0.9, name


def test_rows_are_filled_up_for_the_kernels_and_odd_layers_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A stand-in for the blockwise kernels of Hopper cards, which takes what they take."""
    seen = []

    def kernel(rows: Tensor, weight: Tensor) -> Tensor:
        assert not any(side % 128 for side in (*rows.shape, *weight.shape))
        seen.append(weight.shape)
        return rows @ weight.T

    monkeypatch.setattr(torchao_products, "_blockwise", lambda: kernel)
    wide = {"hidden_size": 128, "moe_intermediate_size": 128, "head_dim": 64}
    model = model_of("Qwen3Moe", **wide).eval()
    plain = model(input_ids=IDS).logits
    with fp8(model, "block", "torchao"):
        found = model(input_ids=IDS).logits
    assert torch.allclose(found, plain, atol=1e-5)
    assert (256, 128) in seen, "experts"
    out = excluded_layers(model, "block", "torchao")
    assert {n.rsplit(".", 1)[-1] for n in out} == {"k_proj", "v_proj"}, "64 wide"
    assert excluded_layers(model, "block", "emulation") == []
