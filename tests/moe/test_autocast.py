"""Experts under autocast: computed in its type, as linear layers are."""

from typing import Any

import pytest
import torch
from torch.nn.functional import grouped_mm
from torch.utils._python_dispatch import TorchDispatchMode

from rl_reasoner.moe.autocast import autocast_experts, kept_casts
from rl_reasoner.rollout.engine import generate
from rl_reasoner.rollout.sampling_params import SamplingParams
from support.mixtures import model_of

WIDE = {"hidden_size": 32, "intermediate_size": 48}  # rows of 16 bytes in bf16
INNER = {"Qwen3Moe": 16, "Qwen2Moe": 16, "Mixtral": None, "Olmoe": None, "DeepseekV3": 16}


class _Types(TorchDispatchMode):
    """The types of the factors of every grouped product."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.dtype] = []
        self.casts = 0  # of whole tables of experts

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._grouped_mm.default:
            self.seen += [args[0].dtype, args[1].dtype]
        if func is torch.ops.aten._to_copy.default and args[0].ndim == 3 and len(args[0]) == 6:
            self.casts += 1
        return func(*args, **(kwargs or {}))


def passed(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of a pass under autocast, and the gradient of one layer's experts."""
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(torch.arange(3, 33).view(2, 15)).logits
    logits.float().square().sum().backward()
    [weight] = [p for n, p in model.named_parameters() if n.endswith("1.mlp.experts.down_proj")]
    assert weight.grad is not None
    return logits.detach().float(), weight.grad.clone()


@pytest.mark.parametrize("family", INNER)
def test_grouped_products_are_made_in_autocasts_type(family: str) -> None:
    """Forward and backward, to weights that are kept in fp32; with the values of eager experts."""
    inner = {"moe_intermediate_size": INNER[family]} if INNER[family] else {}
    model = model_of(family, **WIDE, **inner)
    autocast_experts(model)
    model.set_experts_implementation("grouped_mm")
    with _Types() as types:
        grouped = passed(model)
    assert len(types.seen) >= 12 and set(types.seen) == {torch.bfloat16}
    assert grouped[1].dtype == torch.float32
    model.set_experts_implementation("eager")  # linear layers, which torch itself casts
    for one, other in zip(grouped, passed(model), strict=True):
        apart = (one - other).norm(dim=-1) / other.norm(dim=-1).clamp(min=1e-9)
        assert apart.median() < 0.02  # a token whose experts are nearly equal may take others


@pytest.mark.parametrize("sizes", [(32, 12), (36, 16), (36, 12)])
@pytest.mark.parametrize("family", ["Qwen3Moe", "Qwen2Moe"])
def test_products_of_an_odd_size_stay_in_their_type(family: str, sizes: tuple[int, int]) -> None:
    """Rows of 12 or 36 numbers: in fp32 they are whole 16 bytes, in bf16 not, which torch refuses.

    Those of the factors, of the product, and of their gradients.
    """
    model = model_of(family, hidden_size=sizes[0], moe_intermediate_size=sizes[1])
    autocast_experts(model)
    model.set_experts_implementation("grouped_mm")
    with _Types() as types:
        logits, _ = passed(model)
    assert bool(logits.isfinite().all()) and torch.float32 in types.seen


def test_sampling_casts_each_weight_once() -> None:
    """Passes of a few rows by modules, which olmoe's are; casts take longer than products."""
    model = model_of("Olmoe", **WIDE).eval()
    autocast_experts(model)
    model.set_experts_implementation("grouped_mm")
    with _Types() as types, torch.autocast("cpu", torch.bfloat16):
        generate(model, [[3, 4, 5]], [[0]], SamplingParams(8, (1,), temperature=0.0))
    assert len(types.seen) >= 2 * 4 * 8 and set(types.seen) == {torch.bfloat16}
    assert types.casts == 2 * 2  # layers times weights


def test_weights_that_are_made_for_a_pass_are_not_kept() -> None:
    """As those of adapters on experts are: their place in memory soon holds other weights."""
    autocast_experts(model_of("Olmoe", **WIDE))
    rows, ends = torch.randn(8, 16), torch.tensor([3, 8], dtype=torch.int32)
    base = torch.nn.Parameter(torch.randn(2, 16, 16))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), kept_casts():
        for scale in (1.0, 2.0, 3.0):
            made = grouped_mm(rows, base * scale, offs=ends).float()
            assert (made / scale - grouped_mm(rows, base, offs=ends).float()).abs().max() < 0.1


def test_without_autocast_nothing_is_cast() -> None:
    model = model_of("Mixtral", **WIDE)
    autocast_experts(model)
    with _Types() as types, torch.no_grad():
        model(torch.arange(3, 18)[None])
    assert set(types.seen) == {torch.float32}
