"""Products by every way that this machine has, against float64."""

import pytest
import torch

from rl_reasoner.kernels import products
from support.ways import multiplied


@pytest.mark.parametrize("way", products.WAYS)
@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (33, 17, 65), (300, 70, 600), (40, 2100, 3)])
def test_products_of_strided_factors_have_the_digits_of_fp32(
    way: str, m: int, n: int, k: int
) -> None:
    torch.manual_seed(0)
    with multiplied(way) as able:
        if not able:
            pytest.skip(f"this machine has no products by {way}")
        for a in (torch.randn(m, k), torch.randn(k, m).t(), torch.randn(m, 2 * k)[:, :k]):
            for b in (torch.randn(n, k), torch.randn(k, n).t()):
                exact = a.double() @ b.double().t()
                for out in (None, torch.ones(m, 2 * n)[:, :n]):
                    found = products.product_of(a, b, "forward", out) - float(out is not None)
                    assert float((found - exact).norm() / exact.norm()) < 2e-6


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("way", products.WAYS)
def test_what_is_not_finite_stays_so_in_its_row_alone(way: str, bad: float) -> None:
    a, b = torch.randn(40, 70), torch.randn(50, 70)
    a[3, 5] = bad
    with multiplied(way) as able:
        if not able:
            pytest.skip(f"this machine has no products by {way}")
        for rows in (a, a.t().contiguous().t()):
            found = products.product_of(rows, b, "forward").isfinite()
            assert not found[3].any() and found[:3].all() and found[4:].all()
