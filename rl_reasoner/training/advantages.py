"""Advantages, KL estimators and the weights of tokens: pure functions on tensors.

Rewards are (N,) in groups of `size` rows that lie together; NaN is a row that no reward could
score: it counts in no mean and no deviation, and its advantage is 0. Masks are (B, T), 1 on the
tokens that count. Nothing here knows a trainer or a config.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

_SMALL = 1e-4  # added to deviations, as by trl
Estimator = Literal["k1", "k2", "k3"]
ESTIMATORS: tuple[Estimator, ...] = ("k1", "k2", "k3")


def total_rewards(table: Tensor, weights: Tensor) -> Tensor:
    """(N,) weighted sums of the (N, F) rewards; an abstention (NaN) adds nothing to its row.

    A row on which all F abstain is NaN.
    """
    totals = (table * weights).nansum(dim=1)
    return totals.masked_fill(table.isnan().all(dim=1), torch.nan)


def group_relative(rewards: Tensor, size: int, scale: str) -> Tensor:
    """(N,) advantages of GRPO: (r - mean) / std (DeepSeekMath, arXiv 2402.03300, section 4.1.2).

    `scale` is "group", "batch" (the deviation of all rewards, arXiv 2508.08221), or "none" (Dr.
    GRPO, arXiv 2503.20783, section 3.2).
    """
    groups = rewards.view(-1, size)
    centred = groups - groups.nanmean(dim=1, keepdim=True)
    if scale == "group":
        centred = centred / (_deviation(groups) + _SMALL)
    elif scale == "batch":
        centred = centred / (_deviation(rewards[None]) + _SMALL)
    return centred.flatten().nan_to_num(nan=0.0)


def leave_one_out(rewards: Tensor, size: int) -> Tensor:
    """(N,) advantages of RLOO (arXiv 2402.14740): r_i - mean of r_j over the others of the group.

    A row that is alone in its group gets 0.
    """
    groups = rewards.view(-1, size)
    others = groups.isnan().logical_not().sum(dim=1, keepdim=True) - 1
    mean = (groups.nansum(dim=1, keepdim=True) - groups) / others
    return (groups - mean).flatten().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def group_centred(rewards: Tensor, size: int) -> Tensor:
    """(N,) r - mean of the group; NaN stays: what REINFORCE++-baseline normalises."""
    groups = rewards.view(-1, size)
    return (groups - groups.nanmean(dim=1, keepdim=True)).flatten()


def over_group_mean(rewards: Tensor, size: int) -> Tensor:
    """(N,) advantages of MaxRL: (r - mean) / mean (arXiv 2602.02710, algorithm 1).

    For rewards of at least 0. Of right or wrong, p the chance to be right, the expected gradient of
    a group's mean of A * log pi is (1 + (1 - p) + ... + (1 - p)^(size - 2)) grad p: that of the sum
    of pass@k / k up to k = size - 1, whose limit is log p. Where nothing is right, 0.
    """
    groups = rewards.view(-1, size)
    mean = groups.nanmean(dim=1, keepdim=True)
    found = ((groups - mean) / mean).flatten()
    return found.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def without_baseline(rewards: Tensor) -> Tensor:
    """(N,) 2r - 1 for rewards from 0 to 1: +1 for what is right, -1 for what is wrong.

    REINFORCE as the sum of positive and negative samples' reinforcement (arXiv 2506.01347, section
    2): L = L_PSR + L_NSR. With `positive_weighed`, W-REINFORCE.
    """
    return (rewards * 2.0 - 1.0).nan_to_num(nan=0.0)


def prompt_averaged(rewards: Tensor, tokens: Tensor, size: int) -> Tensor:
    """(N,) advantages of ScaleRL (arXiv 2510.13786, section 4): for a loss that is a mean over the
    `tokens` (N,) of all rows.

    r less the group's mean, divided by the deviation of all such numbers, over the groups that vary
    alone; each group weighs the same, whatever its length: times (tokens of a group, on average
    over all rows' tokens) / (its tokens). What does not vary gets 0, and counts nowhere.
    """
    groups = rewards.view(-1, size)
    centred = groups - groups.nanmean(dim=1, keepdim=True)
    taught = varied(rewards[:, None], size)
    kept = centred[taught].nan_to_num(nan=0.0)
    own = (tokens.view(-1, size) * groups.isfinite())[taught].sum(dim=1, keepdim=True)
    share = tokens.sum() / own.clamp(min=1.0) / taught.sum().clamp(min=1)
    deviation = _deviation(centred[taught].reshape(1, -1)) + _SMALL
    found = torch.zeros_like(centred)
    found[taught] = kept / deviation * share
    return found.flatten()


def positive_weighed(advantages: Tensor, weight: float) -> Tensor:
    """The same shape, with positive advantages times `weight`.

    Of `without_baseline`, L = weight * L_PSR + L_NSR: W-REINFORCE (arXiv 2506.01347, section 5),
    and for a weight of 0 NSR, which trains on what is wrong alone.
    """
    return torch.where(advantages > 0, weight * advantages, advantages)


def returns_to_go(rewards: Tensor, penalty: Tensor, mask: Tensor) -> Tensor:
    """(B, T) r - sum of the penalties of token t and those behind it.

    REINFORCE++ (arXiv 2501.03262), equation 8, whose penalty is beta * KL(t), equation 9. `rewards`
    (B,), `penalty` and `mask` (B, T).
    """
    behind = (penalty * mask).flip(1).cumsum(1).flip(1)
    return rewards[:, None] - behind


def whitened(
    values: Tensor, mask: Tensor, total: Callable[[Tensor], Tensor] = lambda value: value
) -> Tensor:
    """(B, T) (A - mean) / std over the tokens of the whole batch; 0 where `mask` is 0 or A is NaN.

    REINFORCE++ (arXiv 2501.03262), equation 10. `total` adds a tensor up over the processes.
    """
    mask = mask * values.isfinite()
    values = values.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    count, added = total(torch.stack([mask.sum(), (values * mask).sum()]))
    centred = (values - added / count.clamp(min=1.0)) * mask
    variance = total(centred.square().sum()) / count.clamp(min=1.0)
    found: Tensor = centred / (variance.sqrt() + _SMALL)
    return found


def varied(values: Tensor, size: int) -> Tensor:
    """(N / size,) bool: the groups in which some column of `values` (N, F) is not constant.

    DAPO (arXiv 2503.14476), equation 11, for any rewards: other groups teach nothing.
    """
    groups = values.view(-1, size, values.shape[1])
    high = groups.nan_to_num(nan=-torch.inf).amax(dim=1)
    low = groups.nan_to_num(nan=torch.inf).amin(dim=1)
    found: Tensor = (high > low).any(dim=1)
    return found


def kl_estimate(log_ratio: Tensor, estimator: Estimator) -> Tensor:
    """An estimate of KL(pi || ref) from log_ratio = log pi - log ref at sampled tokens.

    Schulman, "Approximating KL divergence" (2020), with l = log_ratio:

        k1 = l        k2 = l^2 / 2        k3 = exp(-l) - 1 + l   (DeepSeekMath, equation 4)

    All are used at tokens drawn from pi. As numbers, k1 and k3 have the mean KL(pi || ref). What
    they teach depends on where they stand. With R = grad KL(pi || ref), the gradient one wants, and
    F = grad KL(ref || pi), the expected gradients are

    =========  ==================  ======================  ================================
    estimator  in the loss, alone  in the loss, x ratio    in the reward (a number there)
    =========  ==================  ======================  ================================
    k1         0                   R                       R
    k2         R                   grad E[k2]              grad E[k2] - R
    k3         F                   R                       R - F
    =========  ==================  ======================  ================================

    "x ratio" is `use_bias_correction_kl` (DeepSeek-V3.2, arXiv 2512.02556), which is trl's default:
    the ratio is 1 when a batch is used for the first time, its gradient is not 0.
    """
    if estimator == "k1":
        return log_ratio
    if estimator == "k2":
        return log_ratio.square() / 2
    return torch.expm1(-log_ratio) + log_ratio


def token_weights(loss_type: str, mask: Tensor, constant: float) -> Tensor:
    """(B, T) the weight of each token in trl's loss of this type, before gradient accumulation.

    `constant` is the number of tokens to divide by: the longest completion for dr_grpo (arXiv
    2503.20783), the tokens of an optimizer step for dapo, cispo and vespo; the others ignore it.
    """
    rows = mask.shape[0]
    if loss_type in ("grpo", "sapo"):
        return mask / mask.sum(1, keepdim=True).clamp(min=1.0) / rows
    if loss_type == "bnpo":
        return mask / mask.sum().clamp(min=1.0)
    if loss_type == "luspo":
        return mask / rows
    return mask / (constant * rows if loss_type == "dr_grpo" else constant)


def _deviation(groups: Tensor) -> Tensor:
    """(n, 1) standard deviation of each row's numbers; NaN where there are fewer than two."""
    known = groups.isnan().logical_not().sum(dim=1, keepdim=True)
    squares = (groups - groups.nanmean(dim=1, keepdim=True)).square().nansum(dim=1, keepdim=True)
    return (squares / (known - 1)).sqrt().masked_fill(known < 2, torch.nan)
