"""Which prompts are worth sampling: a Beta posterior of each prompt's share of success.

Prompts that the policy always or never solves teach nothing. `PromptSchedule` counts successes and
failures per prompt, and draws prompts with a probability that grows with the expected variance of
a completion's success, E[p (1 - p)], which is largest at p = 1/2. A fifth of the probability is
spread evenly, so that no prompt starves and one that was too hard is tried again. The draw follows
from its key and the counts alone. Pure bookkeeping: knows no trainer and no data.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rl_reasoner.rollout.drawing import keyed_generator

_EVEN = 0.2  # share of the probability that does not look at the counts
_KEPT = 0.5  # of a prompt's earlier counts at its next visit: the policy has changed since


class PromptSchedule:
    """The posteriors Beta(a, b) of `count` prompts, from Beta(1, 1) on.

    A completion's success is its reward on the scale from the smallest (0) to the largest (1)
    reward seen so far.
    """

    def __init__(self, count: int) -> None:
        self.counts = torch.ones(count, 2, dtype=torch.float64)  # a, b of each prompt
        self.bounds = torch.tensor([torch.inf, -torch.inf], dtype=torch.float64)

    def probabilities(self) -> Tensor:
        """(count,) the chance of each prompt to be drawn first."""
        a, b = self.counts.unbind(1)
        variance = a * b / ((a + b) * (a + b + 1))  # E[p (1 - p)] under Beta(a, b)
        return (1 - _EVEN) * variance / variance.sum() + _EVEN / len(variance)

    def order(self, key: Sequence[int]) -> list[int]:
        """All prompts in the order in which they are drawn, without replacement (Gumbel's trick).

        The same numbers for the same `key` (integers >= 0) and counts.
        """
        noise = torch.from_numpy(keyed_generator(key).gumbel(size=len(self.counts)))
        found: list[int] = (self.probabilities().log() + noise).argsort(descending=True).tolist()
        return found

    def update(self, prompts: Sequence[int], rewards: Tensor) -> None:
        """Take in the rewards (len(prompts), G) of the prompts' completions; NaN ones are left out.

        Nothing is learned while all rewards seen are equal: that may be success or failure.
        """
        known = rewards.double().cpu()
        low, high = self.bounds.tolist()
        low = min(low, known.nan_to_num(nan=torch.inf).min().item())
        high = max(high, known.nan_to_num(nan=-torch.inf).max().item())
        self.bounds = torch.tensor([low, high], dtype=torch.float64)
        if not low < high:
            return
        success = (known - low) / (high - low)
        for prompt, row in zip(prompts, success, strict=True):
            solved, tried = row.nansum(), row.isnan().logical_not().sum()
            if tried:
                earlier = 1 + _KEPT * (self.counts[prompt] - 1)
                self.counts[prompt] = earlier + torch.stack([solved, tried - solved])

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"counts": self.counts, "bounds": self.bounds}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `state()`."""
        self.counts, self.bounds = state["counts"], state["bounds"]
