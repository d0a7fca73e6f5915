"""Advantages and KL estimators against references written from the papers' equations."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from trl.rewards import get_soft_overlong_punishment

from rl_reasoner.training.advantages import (
    ESTIMATORS,
    Estimator,
    group_centred,
    group_relative,
    kl_estimate,
    leave_one_out,
    over_group_mean,
    positive_weighed,
    prompt_averaged,
    returns_to_go,
    token_weights,
    total_rewards,
    varied,
    whitened,
    without_baseline,
)

numbers = st.floats(-5, 5, width=32)
abstained = st.one_of(numbers, st.none())


def batches(values: st.SearchStrategy[float | None]) -> st.SearchStrategy[list[list[float | None]]]:
    """Some groups of one size."""
    return st.integers(2, 6).flatmap(
        lambda size: st.lists(st.lists(values, min_size=size, max_size=size), min_size=1)
    )


def tensor(groups: Sequence[Sequence[float | None]]) -> Tensor:
    return torch.tensor([math.nan if v is None else v for group in groups for v in group])


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def std(values: Sequence[float]) -> float:
    centre = mean(values)
    return math.sqrt(math.fsum((v - centre) ** 2 for v in values) / (len(values) - 1))


def close(found: Tensor, wanted: Sequence[float], size: float = 1e-3) -> bool:
    return torch.allclose(found, torch.tensor(wanted, dtype=found.dtype), atol=size, rtol=1e-3)


# -------------------------------------------------------------------------------- advantages


@given(batches(abstained), st.sampled_from(["group", "batch", "none"]))
def test_group_relative_is_the_papers(groups: list[list[float | None]], scale: str) -> None:
    """(r - mean) / std over those that have a reward; who has none, or is alone, gets 0."""
    wanted = []
    everyone = [v for group in groups for v in group if v is not None]
    for group in groups:
        known = [v for v in group if v is not None]
        width = everyone if scale == "batch" else known
        for value in group:
            if value is None or (scale != "none" and len(width) < 2):
                wanted.append(0.0)
            else:
                wide = 1.0 if scale == "none" else std(width) + 1e-4
                wanted.append((value - mean(known)) / wide)
    assert close(group_relative(tensor(groups), len(groups[0]), scale), wanted, 2e-2)


@given(batches(abstained))
def test_leave_one_out_is_the_papers(groups: list[list[float | None]]) -> None:
    """R_i - (sum of R_j over j != i) / (k - 1), k the rows that have a reward."""
    wanted = []
    for group in groups:
        for i, value in enumerate(group):
            others = [v for j, v in enumerate(group) if j != i and v is not None]
            wanted.append(0.0 if value is None or not others else value - mean(others))
    assert close(leave_one_out(tensor(groups), len(groups[0])), wanted)


@given(batches(numbers))
def test_leave_one_out_is_the_centred_reward_times_k_over_k_minus_1(
    groups: list[list[float | None]],
) -> None:
    size = len(groups[0])
    centred = group_centred(tensor(groups), size)
    found = leave_one_out(tensor(groups), size)
    assert torch.allclose(found, centred * size / (size - 1), atol=1e-4)


@given(batches(st.one_of(st.floats(0, 5, width=16), st.none())))
def test_over_the_group_mean_is_the_papers(groups: list[list[float | None]]) -> None:
    """(r - mean) / mean, and 0 where the mean is 0; at most size - 1, for rewards from 0 up."""
    wanted = []
    for group in groups:
        known = [v for v in group if v is not None]
        centre = mean(known) if known else 0.0
        wanted += [0.0 if v is None or not centre else (v - centre) / centre for v in group]
    found = over_group_mean(tensor(groups), len(groups[0]))
    assert close(found, wanted)
    assert found.max() <= len(groups[0]) - 1 + 1e-3 and found.min() >= -1


def policy_gradient(
    logits: Tensor, right: Tensor, size: int, advantages: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """The expected gradient of a group's mean of A log pi, and the gradient of p, the chance of a
    right answer.

    Exact: a policy with one choice among few; the sum goes over all groups of `size` there are.
    """
    logits = logits.clone().requires_grad_()
    log_pi = logits.log_softmax(0)
    terms = []
    for group in itertools.product(range(len(logits)), repeat=size):
        chosen = log_pi[list(group)]
        found = advantages(right[list(group)])
        terms.append(chosen.detach().sum().exp() * (found * chosen).mean())
    chance = (log_pi.exp() * right).sum()
    grads = [
        torch.autograd.grad(value, logits, retain_graph=True)[0]
        for value in (torch.stack(terms).sum(), chance)
    ]
    return grads[0], grads[1]


_CHOICES = st.lists(st.tuples(st.floats(-3, 3, width=32), st.booleans()), min_size=2, max_size=3)


@given(_CHOICES, st.integers(2, 4))
def test_max_rl_climbs_pass_at_k_over_k(choices: list[tuple[float, bool]], size: int) -> None:
    """In expectation, the gradient of the sum of pass@k / k for k < size, which goes to log p."""
    logits, right = torch.tensor(choices, dtype=torch.float64).T
    found, by_chance = policy_gradient(logits, right, size, lambda r: over_group_mean(r, size))
    chance = (logits.softmax(0) * right).sum()
    pass_at = [(1 - chance) ** (k - 1) for k in range(1, size)]  # grad pass@k / k, by grad p
    assert torch.allclose(found, torch.stack(pass_at).sum() * by_chance, atol=1e-8)


@given(_CHOICES, st.floats(0, 2))
def test_w_reinforce_is_the_sum_of_the_papers_two_losses(
    choices: list[tuple[float, bool]], weight: float
) -> None:
    """weight * L_PSR + L_NSR: the chances of right and of wrong, by their own gradients."""
    logits, right = torch.tensor(choices, dtype=torch.float64).T
    found, by_chance = policy_gradient(
        logits, right, 2, lambda r: positive_weighed(without_baseline(r), weight)
    )
    logits.requires_grad_()
    pi = logits.softmax(0)
    [psr] = torch.autograd.grad(-(pi * right).sum(), logits, retain_graph=True)
    [nsr] = torch.autograd.grad((pi * (1 - right)).sum(), logits)
    assert torch.allclose(found, -(weight * psr + nsr), atol=1e-8)
    assert torch.allclose(found, (1 + weight) * by_chance, atol=1e-8)


@given(batches(abstained), st.integers(0, 99))
def test_scalerl_is_the_papers(groups: list[list[float | None]], seed: int) -> None:
    """J is the mean over prompts of 1 / (tokens of the group) * sum of A / std(A) over its tokens;
    prompts whose rewards are all the same are left out. The loss divides by the tokens of all rows.
    """
    size = len(groups[0])
    random = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, 9, (len(groups) * size,), generator=random).float()
    found = prompt_averaged(tensor(groups), tokens, size) / tokens.sum()
    known = [[v for v in group if v is not None] for group in groups]
    kept = [i for i, values in enumerate(known) if values and min(values) < max(values)]
    wanted = torch.zeros(len(groups), size)
    apart = [v - mean(known[i]) for i in kept for v in known[i]]
    for i in kept:
        own = [v is not None for v in groups[i]]
        length = tokens.view(-1, size)[i][own].sum().item()
        for j, value in enumerate(groups[i]):
            if value is not None:
                normal = (value - mean(known[i])) / (std(apart) + 1e-4)
                wanted[i, j] = normal / length / len(kept)
    assert torch.allclose(found, wanted.flatten(), atol=1e-2, rtol=1e-2)


@given(batches(abstained), st.floats(0, 3, width=32))
def test_only_positive_advantages_are_weighed(
    groups: list[list[float | None]], weight: float
) -> None:
    before = group_relative(tensor(groups), len(groups[0]), "group")
    after = positive_weighed(before, weight)
    assert torch.equal(after[before <= 0], before[before <= 0])
    assert torch.equal(after[before > 0], weight * before[before > 0])
    assert without_baseline(torch.tensor([1.0, 0.0, torch.nan])).tolist() == [1.0, -1.0, 0.0]


@given(st.lists(numbers, min_size=2, max_size=5), st.integers(1, 6), st.integers(0, 99))
def test_reinforce_plus_plus_is_the_papers(rewards: list[float], width: int, seed: int) -> None:
    """Equations 8 to 10: r - beta * sum of KL from the token on, normalised over all tokens."""
    random = torch.Generator().manual_seed(seed)
    kl = torch.randn(len(rewards), width, generator=random)
    lengths = torch.randint(1, width + 1, (len(rewards),), generator=random)
    mask = (torch.arange(width) < lengths[:, None]).float()
    beta = 0.1
    found = whitened(returns_to_go(torch.tensor(rewards), beta * kl, mask), mask)
    flat = [
        r - beta * math.fsum(kl[i, t : int(lengths[i])].tolist())
        for i, r in enumerate(rewards)
        for t in range(int(lengths[i]))
    ]
    centre = mean(flat)
    wide = math.sqrt(mean([(v - centre) ** 2 for v in flat])) + 1e-4
    assert close(found[mask.bool()], [(v - centre) / wide for v in flat], 2e-2)
    assert not found[~mask.bool()].any()


def test_normalising_over_processes_is_normalising_the_whole_batch() -> None:
    """Each process has a half, and the sums of both are added up."""
    values, mask = torch.randn(6, 5), torch.rand(6, 5).gt(0.3).float()
    values[1] = torch.nan  # a row without a reward
    whole = whitened(values, mask)
    known = mask * values.isfinite()
    filled = values.nan_to_num()
    sums = [torch.stack([known.sum(), (filled * known).sum()])]
    sums.append(((filled - sums[0][1] / sums[0][0]) * known).square().sum())
    for half in (slice(0, 3), slice(3, 6)):
        part = whitened(values[half], mask[half], totals(iter(sums)))
        assert torch.allclose(part, whole[half], atol=1e-6)
    assert not whole[1].any()


def totals(sums: Iterator[Tensor]) -> Callable[[Tensor], Tensor]:
    """What adding up over the processes gives, call by call."""
    return lambda value: next(sums)


def test_equal_rewards_give_no_advantage_but_for_rounding() -> None:
    mask = torch.ones(4, 7)
    assert whitened(torch.full((4, 7), 0.1), mask).abs().max() < 1e-2


@given(st.lists(st.tuples(abstained, abstained), min_size=1, max_size=8))
def test_an_abstention_adds_nothing_to_its_row(
    rows: list[tuple[float | None, float | None]],
) -> None:
    table = torch.tensor([[math.nan if v is None else v for v in row] for row in rows])
    found = total_rewards(table, torch.tensor([2.0, -1.0]))
    for total, row in zip(found.tolist(), rows, strict=True):
        known = [w * v for w, v in zip((2.0, -1.0), row, strict=True) if v is not None]
        assert total == pytest.approx(sum(known), abs=1e-5) if known else math.isnan(total)


@given(batches(st.sampled_from([0.0, 1.0, None])))
def test_groups_that_vary(groups: list[list[float | None]]) -> None:
    found = varied(tensor(groups)[:, None], len(groups[0]))
    assert found.tolist() == [len({v for v in group if v is not None}) > 1 for group in groups]


@given(st.integers(1, 200), st.integers(1, 100), st.integers(0, 300))
def test_the_soft_overlong_punishment_is_equation_13(longest: int, cache: int, length: int) -> None:
    [found] = get_soft_overlong_punishment(longest, cache)(completion_ids=[[1] * length])
    if length <= longest - cache:
        assert found == 0
    elif length <= longest:
        assert found == pytest.approx((longest - cache - length) / cache)
    else:
        assert found == -1


# --------------------------------------------------------------------------- the KL estimators


def expected_gradient(
    logits: Tensor, reference: Tensor, estimator: Estimator, place: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradient of each place, summed over all actions; those of KL(pi||ref), KL(ref||pi), E[k].

    A policy with one choice among few: every expectation is a finite sum.
    """
    logits = logits.clone().requires_grad_()
    log_pi = logits.log_softmax(0)
    log_ref = reference.log_softmax(0)
    pi = log_pi.detach().exp()  # the sampling distribution
    estimate = kl_estimate(log_pi - log_ref, estimator)
    ratio = (log_pi - log_pi.detach()).exp()
    term = {
        "loss": estimate,
        "loss times ratio": estimate * ratio,
        "reward": estimate.detach() * log_pi,  # the policy gradient of a penalty
    }[place]
    kls = [
        (log_pi.exp() * (log_pi - log_ref)).sum(),
        (log_ref.exp() * (log_ref - log_pi)).sum(),
        (log_pi.exp() * kl_estimate(log_pi - log_ref, estimator)).sum(),
    ]
    grads = [
        torch.autograd.grad(value, logits, retain_graph=True)[0]
        for value in [(pi * term).sum(), *kls]
    ]
    return grads[0], grads[1], grads[2], grads[3]


@pytest.mark.parametrize("place", ["loss", "loss times ratio", "reward"])
@pytest.mark.parametrize("estimator", ESTIMATORS)
@given(st.lists(st.tuples(numbers, numbers), min_size=2, max_size=6))
def test_the_gradient_of_each_estimator_in_each_place(
    estimator: Estimator, place: str, logits: list[tuple[float, float]]
) -> None:
    """The table in the docstring of `kl_estimate`, against exact KL."""
    policy, reference = torch.tensor(logits, dtype=torch.float64).T
    found, reverse, forward, own = expected_gradient(policy, reference, estimator, place)
    wanted = {
        ("k1", "loss"): torch.zeros_like(reverse),
        ("k1", "loss times ratio"): reverse,
        ("k1", "reward"): reverse,
        ("k2", "loss"): reverse,
        ("k2", "loss times ratio"): own,
        ("k2", "reward"): own - reverse,
        ("k3", "loss"): forward,
        ("k3", "loss times ratio"): reverse,
        ("k3", "reward"): reverse - forward,
    }[estimator, place]
    assert torch.allclose(found, wanted, atol=1e-8)


@given(st.lists(st.tuples(numbers, numbers), min_size=2, max_size=6))
def test_k1_and_k3_have_the_mean_kl_and_k3_is_never_negative(
    logits: list[tuple[float, float]],
) -> None:
    policy, reference = torch.tensor(logits, dtype=torch.float64).T.log_softmax(1)
    kl = (policy.exp() * (policy - reference)).sum()
    for estimator in ("k1", "k3"):
        assert torch.isclose((policy.exp() * kl_estimate(policy - reference, estimator)).sum(), kl)
    assert (kl_estimate(policy - reference, "k3") >= 0).all()


def test_token_weights_by_their_sums() -> None:
    """Every row 1/B (grpo), every token the same (bnpo, dapo), a constant length (dr_grpo)."""
    mask = torch.tensor([[1.0, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]])
    assert token_weights("grpo", mask, 0).sum(1).tolist() == pytest.approx([1 / 3, 1 / 3, 0])
    assert token_weights("bnpo", mask, 0).sum(1).tolist() == pytest.approx([4 / 6, 2 / 6, 0])
    assert token_weights("dapo", mask, 12).sum(1).tolist() == pytest.approx([4 / 12, 2 / 12, 0])
    assert token_weights("dr_grpo", mask, 8).sum(1).tolist() == pytest.approx([4 / 24, 2 / 24, 0])
    assert token_weights("luspo", mask, 0).sum(1).tolist() == pytest.approx([4 / 3, 2 / 3, 0])
