"""The compiled products of few rows, for every kind of vectors they know."""

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from rl_reasoner.kernels import panel_weight
from rl_reasoner.kernels.panel_weight import PanelWeight

pytestmark = pytest.mark.usefixtures("step_library")


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@example(1, 50, 33, True, torch.float32, False, 1)
@example(2, 50, 33, False, torch.float32, False, 1)
@given(
    rows=st.integers(0, 40),
    outputs=st.integers(1, 90),
    inputs=st.integers(1, 70),
    bias=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    strided=st.booleans(),
    threads=st.integers(1, 2),
)
def test_products_are_torchs(
    rows: int,
    outputs: int,
    inputs: int,
    bias: bool,
    dtype: torch.dtype,
    strided: bool,
    threads: int,
) -> None:
    inputs += inputs % 2 if dtype == torch.bfloat16 else 0
    random = torch.Generator().manual_seed(rows + 100 * outputs)
    weight = torch.randn(outputs, inputs, generator=random).to(dtype)
    added = torch.randn(outputs, generator=random).to(dtype) if bias else None
    some = torch.randn(rows, 2 * inputs, generator=random).to(dtype)
    some = some[:, ::2] if strided else some[:, :inputs].contiguous()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = PanelWeight(weight, added, dtype)(some)
    finally:
        torch.set_num_threads(before)
    exact = some.double() @ weight.double().t() + (0.0 if added is None else added.double())
    assert found.dtype == dtype and found.shape == exact.shape
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2  # the result is rounded to bf16
    torch.testing.assert_close(found.double(), exact, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_not_finite_stays_in_its_row(dtype: torch.dtype) -> None:
    rows, weight = torch.randn(29, 64).to(dtype), torch.randn(50, 64)
    rows[7, 3] = torch.nan
    found = PanelWeight(weight, None, dtype)(rows).isfinite()
    assert not found[7].any() and found[:7].all() and found[8:].all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("inputs", [1024, 1026, 2048, 2050])
def test_wide_layers_are_gone_through_in_parts(dtype: torch.dtype, inputs: int) -> None:
    rows, weight, bias = torch.randn(29, inputs), torch.randn(70, inputs), torch.randn(70)
    rows, weight, bias = (t.to(dtype) for t in (rows, weight, bias))
    exact = rows.double() @ weight.double().t() + bias.double()
    product = PanelWeight(weight, bias, dtype)
    for count in (1, 2, 13, 29):
        found = product(rows[:count]).double()
        error = (found - exact[:count]).norm() / exact[:count].norm()
        assert float(error) < (1e-6 if dtype == torch.float32 else 4e-3)
    assert panel_weight.works.__wrapped__(dtype)


@pytest.mark.parametrize(
    "rows", [torch.ones(2, 34), torch.ones(2, 68).bfloat16(), torch.ones(2, 68, device="meta")]
)
def test_rows_of_another_kind_are_refused(rows: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"68 inputs in torch\.float32"):
        PanelWeight(torch.ones(3, 68), None, torch.float32)(rows)
