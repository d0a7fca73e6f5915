"""The LM head on a CPU against plain float64 log-softmax, and what stays with trl's."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from trl.trainer import utils

from rl_reasoner.kernels import lm_head
from rl_reasoner.training.trl_internals import fused_head

OUTPUTS = ("log_probs", "entropy")


def scored(
    hidden: Tensor, weight: Tensor, targets: Tensor, **changed: object
) -> tuple[Tensor, ...]:
    """What trl's models get from the head that stands in its place."""
    given = {"temperature": 1.0, "softcap": None, "scale": 1.0, "bias": None} | changed
    with fused_head():
        found: tuple[Tensor, ...] = utils._ChunkedLogProbFunction.apply(
            hidden,
            weight,
            given["bias"],
            targets,
            given["temperature"],
            32768,
            given["softcap"],
            given["scale"],
            OUTPUTS,
        )
    return found


@given(
    st.integers(1, 40),
    st.sampled_from([(5, 3), (300, 8), (3000, 4)]),
    st.floats(0.3, 2.0),
    st.floats(0.5, 2.0),
    st.booleans(),
    st.integers(0, 2**20),
)
@settings(max_examples=40, deadline=None)
def test_log_probs_entropies_and_gradients_are_those_of_a_plain_softmax(
    rows: int, shape: tuple[int, int], temperature: float, scale: float, tiled: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    vocabulary, width = shape
    hidden = (torch.randn(rows, width) * 3).requires_grad_()
    weight = torch.randn(vocabulary, width).requires_grad_()
    targets = torch.randint(0, vocabulary, (rows,))
    share = torch.randn(rows)
    with pytest.MonkeyPatch.context() as patch:
        if tiled:  # several tiles of the vocabulary, and several of the tokens
            patch.setattr(lm_head, "_TILE", 256)
            patch.setattr(lm_head, "_TOKENS", 7)
        logps, entropy, *others = scored(
            hidden, weight, targets, temperature=temperature, scale=scale
        )
        (logps * share).sum().backward()  # type: ignore[no-untyped-call]
    assert others == [None] * 3
    exact = [t.detach().double().requires_grad_() for t in (hidden, weight)]
    table = (exact[0] @ exact[1].t() * (scale / temperature)).log_softmax(-1)
    wanted = table.gather(1, targets[:, None]).squeeze(1)
    (wanted * share.double()).sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(logps.double(), wanted, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(
        entropy.double(), -(table.exp() * table).sum(-1), rtol=1e-4, atol=1e-4
    )
    for ours, theirs in zip((hidden, weight), exact, strict=True):
        assert ours.grad is not None and theirs.grad is not None
        # a sure token's gradient is the small difference of what is known to seven digits
        error = (ours.grad - theirs.grad).norm()
        assert error < 1e-5 * theirs.grad.norm() + 1e-6 * share.norm() * (1 + theirs.norm())


def test_a_frozen_weight_gets_no_gradient() -> None:
    hidden = torch.randn(3, 4, requires_grad=True)
    weight = torch.randn(9, 4)
    scored(hidden, weight, torch.tensor([1, 2, 3]))[0].sum().backward()  # type: ignore[no-untyped-call]
    assert hidden.grad is not None and weight.grad is None


@pytest.mark.parametrize(
    "changed", [{"softcap": 5.0}, {"bias": torch.ones(9)}], ids=["softcap", "bias"]
)
def test_what_this_head_does_not_do_is_done_by_trls(changed: dict[str, object]) -> None:
    torch.manual_seed(0)
    hidden, weight, targets = torch.randn(3, 4), torch.randn(9, 4), torch.tensor([1, 2, 3])
    found = scored(hidden, weight, targets, **changed)[0]
    logits = hidden @ weight.t()
    logits = logits + torch.ones(9) if "bias" in changed else 5 * (logits / 5).tanh()
    torch.testing.assert_close(found, logits.log_softmax(-1).gather(1, targets[:, None])[:, 0])


def test_trls_head_is_back_afterwards() -> None:
    theirs = utils._ChunkedLogProbFunction
    with pytest.raises(ZeroDivisionError), fused_head():
        assert utils._ChunkedLogProbFunction is not theirs
        raise ZeroDivisionError
    assert utils._ChunkedLogProbFunction is theirs


def test_under_autocast_sums_are_fp32s_and_states_may_be_in_bf16() -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(9, 16).bfloat16(), torch.randn(50, 16).requires_grad_()
    targets = torch.randint(0, 50, (9,))
    with torch.autocast("cpu", torch.bfloat16):
        logps, _, *_ = scored(hidden.requires_grad_(), weight, targets)
    exact = (hidden.float() @ weight.t()).log_softmax(1).gather(1, targets[:, None]).squeeze(1)
    assert logps.dtype == torch.float32 and torch.allclose(logps, exact, atol=1e-5)
    logps.sum().backward()
    assert hidden.grad is not None and hidden.grad.dtype == torch.bfloat16
    assert weight.grad is not None and weight.grad.dtype == torch.float32
