"""The LM head on a CPU against plain float64 log-softmax, and what stays with trl's."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from trl.trainer import utils

from rl_reasoner.errors import UserError
from rl_reasoner.kernels import lm_head
from rl_reasoner.kernels.kept_tokens import KeptWriter, inflated, packed_bits
from rl_reasoner.training.trl_internals import fused_head

OUTPUTS = ("log_probs", "entropy")


def scored(
    hidden: Tensor, weight: Tensor, targets: Tensor, **changed: object
) -> tuple[Tensor, ...]:
    """What trl's models get from the head that stands in its place."""
    plain = {"temperature": 1.0, "softcap": None, "scale": 1.0, "bias": None, "kept": None}
    given: dict[str, Any] = plain | changed
    with fused_head(given["kept"]):
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
    st.sampled_from([None, 0.0, 0.02, 0.5, 0.99]),
    st.integers(0, 2**20),
)
@settings(max_examples=60, deadline=None)
def test_log_probs_entropies_and_gradients_are_those_of_a_plain_softmax(
    rows: int,
    shape: tuple[int, int],
    temperature: float,
    scale: float,
    tiled: bool,
    share: float | None,
    seed: int,
) -> None:
    """With the share of tokens that are kept, at random: a softmax over these alone."""
    torch.manual_seed(seed)
    vocabulary, width = shape
    hidden = (torch.randn(rows, width) * 3).requires_grad_()
    weight = torch.randn(vocabulary, width).requires_grad_()
    targets = torch.randint(0, vocabulary, (rows,))
    weighed = torch.randn(rows)
    kept = torch.rand(rows, vocabulary) < (1.0 if share is None else share)
    kept[torch.arange(rows), targets] = True
    bits = None if share is None else packed_bits(kept)
    with pytest.MonkeyPatch.context() as patch:
        if tiled:  # several tiles of the vocabulary, and several of the tokens
            patch.setattr(lm_head, "_TILE", 256)
            patch.setattr(lm_head, "_TOKENS", 7)
        logps, entropy, *others = scored(
            hidden, weight, targets, temperature=temperature, scale=scale, kept=bits
        )
        (logps * weighed).sum().backward()  # type: ignore[no-untyped-call]
    assert others == [None] * 3
    exact = [t.detach().double().requires_grad_() for t in (hidden, weight)]
    table = exact[0] @ exact[1].t() * (scale / temperature)
    table = table.masked_fill(~kept, -torch.inf).log_softmax(-1)
    wanted = table.gather(1, targets[:, None]).squeeze(1)
    (wanted * weighed.double()).sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(logps.double(), wanted, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(
        entropy.double(),
        -(table.exp() * table.masked_fill(~kept, 0.0)).sum(-1),
        rtol=1e-4,
        atol=1e-4,
    )
    for ours, theirs in zip((hidden, weight), exact, strict=True):
        assert ours.grad is not None and theirs.grad is not None
        # a sure token's gradient is the small difference of what is known to seven digits
        error = (ours.grad - theirs.grad).norm()
        assert error < 1e-5 * theirs.grad.norm() + 1e-6 * weighed.norm() * (1 + theirs.norm())


def test_over_its_set_the_expected_gradient_is_that_of_what_is_paid() -> None:
    """A policy of one token, cut off to `kept`: sum over all completions, and the exact gradient.

    Without the set, the same sum lacks the gradient of -log of the set's probability.
    """
    torch.manual_seed(1)
    state, weight = torch.randn(1, 6).double(), torch.randn(30, 6).double().requires_grad_()
    paid, kept = torch.rand(30).double(), torch.rand(1, 30) < 0.4
    inside = kept[0].nonzero().flatten()
    chance = (state @ weight.t()).masked_fill(~kept, -torch.inf).softmax(1)[0]
    [exact] = torch.autograd.grad((chance * paid).sum(), weight)
    found = {}
    for sets in (None, packed_bits(kept).expand(len(inside), -1)):
        table = weight.detach().float().requires_grad_()
        logps = scored(state.float().expand(len(inside), -1), table, inside, kept=sets)[0]
        ((chance * paid)[inside].detach() * logps).sum().backward()
        assert table.grad is not None
        found[sets is None] = (table.grad - exact).norm() / exact.norm()
    assert found[False] < 1e-5 and found[True] > 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sets_are_taken_in_every_type_but_with_no_other_head(dtype: torch.dtype) -> None:
    hidden, weight = torch.randn(3, 4, dtype=dtype), torch.randn(9, 4, dtype=dtype)
    targets, kept = torch.tensor([1, 2, 3]), torch.ones(3, 9, dtype=torch.bool)
    kept[:, 5:] = False
    weight.requires_grad_()
    logps = scored(hidden, weight, targets, kept=packed_bits(kept))[0]
    table = (hidden.float() @ weight.float().t())[:, :5].log_softmax(-1)
    torch.testing.assert_close(logps, table.gather(1, targets[:, None])[:, 0])
    logps.sum().backward()
    assert weight.grad is not None and weight.grad.dtype == dtype and not weight.grad[5:].any()
    with pytest.raises(UserError, match="keep_sampling_mask: the policy's head has a bias"):
        scored(hidden, weight, targets, kept=packed_bits(kept), bias=torch.ones(9))


@pytest.mark.parametrize(("size", "most"), [(10, 150), (100, 500), (1000, 2600), (50_000, 19_000)])
def test_sets_travel_in_few_bytes(size: int, most: int) -> None:
    """The figures of docs/trainer.md: bytes a token, for sets at random of 151,936."""
    torch.manual_seed(0)
    kept = torch.zeros(8, 151_936, dtype=torch.bool)
    for row in kept:
        row[torch.randperm(len(row))[:size]] = True
    writer = KeptWriter()
    for bits in packed_bits(kept).numpy():
        writer.add(bits)
    deflated = writer.deflated()
    assert len(deflated) / len(kept) < most
    assert torch.equal(inflated(deflated, kept.shape[1]), packed_bits(kept))


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
