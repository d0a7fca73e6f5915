"""The compiled norms, rotations and gated layers, whatever the layout of what they are given."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rl_reasoner.kernels import native
from rl_reasoner.kernels.own_code import changed_everywhere
from rl_reasoner.kernels.prefix_attention import PrefixSegments, prefix_attention
from rl_reasoner.kernels.training_operations import gated, rms_norm, rotated

ROWS, HEADS, WIDTH = 6, 4, 16
SHAPE = (1, ROWS, HEADS, WIDTH)
ANGLES = torch.linspace(0, 2, ROWS * WIDTH).view(1, ROWS, WIDTH)
DOWN = torch.linspace(-1, 1, 8 * WIDTH).view(8, WIDTH)
SEGMENTS: PrefixSegments = [(0, 2, [2, 2])]
WAYS: dict[str, Callable[[Tensor], Tensor]] = {
    "norm": lambda x: rms_norm(x, torch.linspace(1, 2, WIDTH), 1e-6),
    "rotation": lambda x: rotated(x, ANGLES.cos(), ANGLES.sin()),
    "gated": lambda x: gated(x, x.flip(1)),
    "gated layer": lambda x: gated(x, x.flip(1), DOWN),
    "attention": lambda x: prefix_attention(*3 * (x.transpose(1, 2),), SEGMENTS, 0.3),
}
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "columns first": lambda x: x.transpose(-1, -2).contiguous().transpose(-1, -2),
    "rows apart": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "every second": lambda x: torch.stack((x, -x), -1)[..., 0],
    "one number": lambda x: x[..., :1, :1].expand(x.shape),
}


@pytest.mark.skipif(native.library() is None, reason="no compiler here")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("way", WAYS)
def test_gradients_of_any_layout_are_read_as_what_they_are(
    way: str, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "available", lambda: True)
    random = torch.Generator().manual_seed(0)
    found = []
    for laid in (LAYOUTS[layout], lambda x: LAYOUTS[layout](x).contiguous()):
        x = torch.randn(SHAPE, generator=random.manual_seed(1)).requires_grad_()
        out = WAYS[way](x)
        out.backward(laid(torch.randn(out.shape, generator=random.manual_seed(2))))
        found.append(x.grad)
    assert found[0] is not None and torch.allclose(found[0], found[1], atol=1e-6)


@pytest.mark.skipif(native.library() is None, reason="no compiler here")
def test_a_row_without_numbers_leaves_its_neighbours_theirs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where it is longer, and the neighbour comes after it."""
    monkeypatch.setattr(native, "available", lambda: True)
    segments, width = [(0, 2, [9, 3])], 16
    random = torch.Generator().manual_seed(0)
    given = torch.randn(3, 1, 2, 14, width, generator=random)
    found = []
    for spoilt in (False, True):
        own = given.clone()
        own[:, :, :, 2:11] = torch.nan if spoilt else own[:, :, :, 2:11]
        own.requires_grad_()
        out = prefix_attention(*own, segments, 0.3)
        out[:, :, 11:].sum().backward()
        assert own.grad is not None
        found.append((out[:, :, 11:].detach(), own.grad[:, :, :, 11:]))
    assert found[0][0].isfinite().all()
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_where_new_tensors_lie_changes_no_module() -> None:
    assert changed_everywhere() is None
    with torch.device("cpu"):
        assert changed_everywhere() is None
