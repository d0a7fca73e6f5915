"""Products with weights of 8 bits: exact but for the weights' rounding, row by row."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rl_reasoner.kernels import integer_weights, native
from rl_reasoner.kernels.integer_weights import IntegerWeight
from rl_reasoner.kernels.packed_linear import packed_linears
from support.processors import needs_int8

pytestmark = needs_int8


def rounded(weight: torch.Tensor) -> torch.Tensor:
    """The weight as 8 bits keep it."""
    scale = weight.abs().amax(1, keepdim=True) / 127
    return (weight / scale).round() * scale


@pytest.fixture(params=[True, False], ids=["compiled", "torch"])
def compiled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    wanted = bool(request.param)
    if wanted and native.library() is None:
        pytest.skip("no compiler here")
    monkeypatch.setattr(native, "available", lambda: wanted)
    return wanted


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (33, 70), (64, 5000), (300, 31)])
@pytest.mark.parametrize("rows", [1, 7, 130])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_only_the_weights_are_rounded(rows: int, inputs: int, outputs: int, bias: bool) -> None:
    torch.manual_seed(rows + inputs)
    weight, given = torch.randn(outputs, inputs), torch.randn(rows, inputs)
    added = torch.randn(outputs) if bias else None
    expected = torch.nn.functional.linear(given, rounded(weight), added)
    found = IntegerWeight(weight, added)(given)
    size = given.abs().amax(1, keepdim=True) * weight.abs().amax(1) * inputs**0.5
    assert ((found - expected).abs() <= 6e-5 * size + 1e-6).all()


@settings(max_examples=30, deadline=None)
@given(scales=st.lists(st.floats(-20, 20), min_size=2, max_size=5), seed=st.integers(0, 99))
def test_a_row_does_not_depend_on_its_neighbours(scales: list[float], seed: int) -> None:
    """Bit for bit, however large they are."""
    torch.manual_seed(seed)
    weight = IntegerWeight(torch.randn(40, 24), torch.randn(40))
    rows = torch.randn(len(scales), 24) * 10 ** torch.tensor(scales)[:, None]
    together = weight(rows)
    for row, whole in zip(rows, together, strict=True):
        assert torch.equal(weight(row[None])[0], whole)


@pytest.mark.usefixtures("compiled")
def test_zeros_and_what_is_no_number_stay_so() -> None:
    weight = torch.randn(8, 32)
    weight[3] = 0
    rows = torch.randn(5, 32)
    rows[1], rows[2, 7], rows[3, 4] = 0, torch.nan, torch.inf
    found = IntegerWeight(weight, None)(rows)
    assert found[1].eq(0).all() and found[[2, 3]].isnan().all()
    assert found[[0, 4]].isfinite().all() and found[[0, 4], 3].eq(0).all()
    weight[5, 0] = torch.nan
    assert IntegerWeight(weight, None)(rows)[0, 5].isnan()


@pytest.mark.usefixtures("compiled")
def test_no_rows_are_no_error_and_the_default_type_is_not_ours() -> None:
    weight = IntegerWeight(torch.randn(70, 24), None)
    assert weight(torch.empty(2, 0, 24)).shape == (2, 0, 70)
    rows = torch.randn(9, 24)
    expected = weight(rows)
    torch.set_default_dtype(torch.bfloat16)  # as while another thread opens a model
    try:
        assert torch.equal(weight(rows), expected)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("compiled")
def test_tiny_numbers_count_or_are_zeros() -> None:
    weight = torch.randn(16, 32)
    found = IntegerWeight(weight, None)(torch.ones(3, 32) * torch.tensor([[1e-28], [3e-31], [1.0]]))
    torch.testing.assert_close(found[0] * 1e28, found[2], rtol=1e-4, atol=1e-4)
    assert (found[1].abs() <= 3e-31 * weight.abs().sum(1)).all()


def test_layers_of_a_model_take_them_inside_only() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(33, 70), nn.SiLU(), nn.Linear(70, 5))
    given = torch.randn(2, 8, 33)
    with torch.no_grad():
        plain = model(given)
        with packed_linears(model, torch.int8):
            found = model(given)
        assert torch.equal(model(given), plain)
    assert found.shape == plain.shape and 1e-5 < (found - plain).abs().max() < 0.02


def test_a_processor_whose_sums_overflow_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where two products are added up in 16 bits."""
    right = torch.ops.onednn.qlinear_pointwise

    class Saturated:
        def __getattr__(self, name: str) -> object:
            if name != "qlinear_pointwise":
                return getattr(torch.ops.onednn, name)
            return lambda *given: right(*given).clamp(max=1e5)

    class Ops:
        onednn = Saturated()

    integer_weights.work.cache_clear()
    try:
        monkeypatch.setattr(integer_weights.torch, "ops", Ops())
        assert not integer_weights.work()
    finally:
        monkeypatch.undo()
        integer_weights.work.cache_clear()
    assert integer_weights.work()
