"""Linear layers with packed weights: the same products, and nothing left behind."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from rl_reasoner.kernels import native, packed_linear, panel_weight
from rl_reasoner.kernels.packed_linear import packed_linears


@pytest.fixture(autouse=True)
def _small_models_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_linear, "_WORTH", 0)


@pytest.fixture(params=["panels", "onednn"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whose products in fp32 and bf16."""
    panels = request.param == "panels"
    if panels and native.library() is None:
        pytest.skip("no compiled operations on this machine")
    monkeypatch.setattr(packed_linear, "_by_panels", lambda dtype: panels)
    return str(request.param)


@pytest.mark.parametrize("rows", [1, 3, 16, 200])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_products_are_those_of_the_plain_layers(rows: int, bias: bool, way: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(34, 70, bias), nn.SiLU(), nn.Linear(70, 5, bias))
    given = torch.randn(2, rows, 34)
    with torch.no_grad():
        plain = model(given)
        with packed_linears(model):
            assert "forward" in model[0].__dict__  # or this test compares nothing
            found = model(given)
            strided = model(given.transpose(0, 1))
        torch.testing.assert_close(found, plain)
        torch.testing.assert_close(strided, plain.transpose(0, 1))


def test_layers_are_as_before_when_it_is_over() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(ZeroDivisionError), packed_linears(model), packed_linears(model):
        raise ZeroDivisionError
    assert "forward" not in model[0].__dict__
    model(torch.ones(1, 4)).sum().backward()
    assert model[0].weight.grad is not None


def test_other_types_and_subclasses_are_left_alone() -> None:
    class Own(nn.Linear):
        def forward(self, given: torch.Tensor) -> torch.Tensor:
            return super().forward(given) + 1

    model = nn.Sequential(nn.Linear(4, 4).half(), Own(4, 4))
    with packed_linears(model, torch.bfloat16):
        assert not any("forward" in layer.__dict__ for layer in model)


@pytest.mark.parametrize("own", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("inputs", [33, 34])  # panels in bf16 take pairs
def test_copies_in_bf16_give_the_products_of_rounded_weights(
    own: torch.dtype, inputs: int, way: str
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(inputs, 70), nn.SiLU(), nn.Linear(70, 5)).to(own)
    given = torch.randn(8, inputs, dtype=own)
    with torch.no_grad():
        with packed_linears(model, torch.bfloat16):
            found = model(given)
        rounded = model.bfloat16()(given.bfloat16())
    assert found.dtype == own
    torch.testing.assert_close(found.bfloat16(), rounded, atol=2e-2, rtol=2e-2)


def test_under_autocast_only_its_own_type_is_packed() -> None:
    model = nn.Sequential(nn.Linear(33, 70))
    given = torch.randn(8, 33)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        plain = model(given)
        with packed_linears(model):
            assert "forward" not in model[0].__dict__
        with packed_linears(model, torch.bfloat16):
            assert "forward" in model[0].__dict__
            found = model(given)
    assert found.dtype == plain.dtype == torch.bfloat16
    torch.testing.assert_close(found, plain)


def test_small_models_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_linear, "_WORTH", 4 * 16 + 1)
    monkeypatch.setenv("RL_REASONER_CHOICES", '{"native": false, "sampling_layout": "plain"}')
    model = nn.Sequential(nn.Linear(4, 4))
    with packed_linears(model):
        assert "forward" not in model[0].__dict__


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_faster_product_is_chosen_once_and_only_if_there_is_one(
    dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if native.library() is None:
        pytest.skip("no compiled operations on this machine")
    monkeypatch.setenv("RL_REASONER_CACHE", str(tmp_path))
    assert not packed_linear._by_panels(dtype)  # the tests' choices go without
    assert not any(tmp_path.rglob("*.json")), "which says nothing of other runs"
    monkeypatch.setattr(native, "available", lambda: True)
    chosen = packed_linear._by_panels(dtype)
    monkeypatch.setattr(packed_linear, "_time_panels", lambda dtype: 1 / 0)
    assert packed_linear._by_panels(dtype) == chosen
    ways = {"panels", "onednn"} if packed_linear._onednn_has(dtype) else {"panels"}
    assert packed_linear.few_rows_timed(dtype)["ms"].keys() == ways


def test_without_instructions_for_bf16_products_are_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fails:
        def __init__(self, weight: torch.Tensor, bias: object, dtype: torch.dtype) -> None:
            raise RuntimeError("bf16 path needs the cpu support avx512bw")

    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    monkeypatch.setattr(packed_linear, "_OnednnWeight", Fails)
    monkeypatch.setattr(native, "available", lambda: False)
    weight, given = torch.randn(6, 8), torch.randn(3, 8).bfloat16()
    product = packed_linear.PackedWeight(weight, None, torch.bfloat16)(given)
    torch.testing.assert_close(product, given @ weight.bfloat16().t(), atol=2e-2, rtol=2e-2)
    assert packed_linear.few_rows_timed(torch.bfloat16) == {"way": "torch"}
    model = nn.Sequential(nn.Linear(8, 6)).bfloat16()
    with packed_linears(model):
        assert "forward" not in model[0].__dict__, "a copy that is no faster"


def test_a_torch_without_onednn_multiplies_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    monkeypatch.setattr(torch.ops, "mkldnn", None)
    monkeypatch.setattr(native, "available", lambda: False)
    for dtype in (torch.float32, torch.bfloat16):
        assert packed_linear.few_rows_timed(dtype) == {"way": "torch"}
        weight, given = torch.randn(6, 8), torch.randn(3, 8).to(dtype)
        product = packed_linear.PackedWeight(weight, None, dtype)(given)
        torch.testing.assert_close(product, given @ weight.to(dtype).t(), atol=2e-2, rtol=2e-2)


def test_a_layer_that_cannot_be_packed_does_not_keep_others_from_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if native.library() is None:
        pytest.skip("no compiled operations on this machine")
    monkeypatch.setattr(packed_linear, "_by_panels", lambda dtype: True)
    monkeypatch.setattr(packed_linear, "_onednn_has", lambda dtype: False)
    model = nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 8)).bfloat16()
    with packed_linears(model):
        assert [*("forward" in layer.__dict__ for layer in model)] == [False, True]


@pytest.mark.usefixtures("way")
def test_under_autocast_biases_are_rounded_too() -> None:
    model, given = nn.Sequential(nn.Linear(64, 70)), torch.zeros(8, 64)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        plain = model(given)
        with packed_linears(model, torch.bfloat16):
            assert model(given).equal(plain)


def test_a_library_that_multiplies_wrong_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    if native.library() is None:
        pytest.skip("no compiled operations on this machine")
    monkeypatch.setattr(native, "available", lambda: True)
    told = {f"sampling_products/float32/{torch.get_num_threads()}_threads": {"way": "panels"}}
    monkeypatch.setenv("RL_REASONER_CHOICES", json.dumps(told))
    assert packed_linear._by_panels(torch.float32)
    monkeypatch.setattr(panel_weight, "works", lambda dtype: False)
    assert not packed_linear._by_panels(torch.float32)
