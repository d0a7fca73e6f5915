"""Which prompts are worth sampling: Beta posteriors of success, of each prompt or of each level.

Prompts that the policy always or never solves teach nothing. A schedule counts successes and
failures, and draws rows by what the counts say; a share of the probability is spread evenly, so
that nothing starves and what was too hard is tried again. The draw follows from its key and the
counts alone. Pure bookkeeping: knows no trainer and no data.

- `PromptSchedule`: a posterior for each prompt; the probability grows with the expected variance
  of a completion's success, E[p (1 - p)], which is largest at p = 1/2.
- `LevelSchedule`: a posterior for each level of the rows; the probability of a level grows with how
  near its success is expected to be to a band. What is learned of some rows of a level counts for
  all: it takes a few batches, where a posterior for each prompt takes passes over the data.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rl_reasoner.dataset.levels import Levels
from rl_reasoner.errors import UserError
from rl_reasoner.rollout.drawing import keyed_generator

_EVEN = 0.2  # share of the probability that does not look at the counts
_KEPT = 0.5  # of a prompt's earlier counts at its next visit: the policy has changed since
_EVEN_LEVELS = 0.1  # the same two of levels, which are few and counted in every batch;
_KEPT_LEVELS = 0.8  # kept of all levels' counts: an unvisited one is less and less known
_GRID = 4096  # cells of the integrals over a posterior: fine beside the narrowest flank, 0.001


class Schedule(ABC):
    """The posteriors Beta(a, b) of `count` things, from Beta(1, 1) on, that rows are drawn by.

    A completion's success is its reward on the scale from the smallest (0) to the largest (1)
    reward seen so far.
    """

    def __init__(self, count: int) -> None:
        self.counts = torch.ones(count, 2, dtype=torch.float64)  # a, b of each
        self.bounds = torch.tensor([torch.inf, -torch.inf], dtype=torch.float64)

    @abstractmethod
    def probabilities(self) -> Tensor:
        """(rows,) the chance of each row to be drawn first."""

    @abstractmethod
    def _count(self, prompts: Sequence[int], success: Tensor) -> None:
        """Take in the shares of success (len(prompts), G) of the rows' completions."""

    def order(self, key: Sequence[int]) -> list[int]:
        """All rows in the order in which they are drawn, without replacement (Gumbel's trick).

        The same numbers for the same `key` (integers >= 0) and counts.
        """
        chances = self.probabilities()
        noise = torch.from_numpy(keyed_generator(key).gumbel(size=len(chances)))
        found: list[int] = (chances.log() + noise).argsort(descending=True).tolist()
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
        if low < high:
            self._count(prompts, (known - low) / (high - low))

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"counts": self.counts, "bounds": self.bounds}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `state()`. Raises `UserError` for one of other rows."""
        if state["counts"].shape != self.counts.shape:
            raise UserError(
                f"the checkpoint's curriculum counts {len(state['counts'])} prompts or levels, the "
                f"data has {len(self.counts)}: continue with the data that it was made with"
            )
        self.counts, self.bounds = state["counts"], state["bounds"]


class PromptSchedule(Schedule):
    """A posterior for each of the prompts; see the module's docstring."""

    def probabilities(self) -> Tensor:
        """(count,) the chance of each prompt to be drawn first."""
        a, b = self.counts.unbind(1)
        variance = a * b / ((a + b) * (a + b + 1))  # E[p (1 - p)] under Beta(a, b)
        return (1 - _EVEN) * variance / variance.sum() + _EVEN / len(variance)

    def _count(self, prompts: Sequence[int], success: Tensor) -> None:
        for prompt, row in zip(prompts, success, strict=True):
            solved, tried = row.nansum(), row.isnan().logical_not().sum()
            if tried:
                earlier = 1 + _KEPT * (self.counts[prompt] - 1)
                self.counts[prompt] = earlier + torch.stack([solved, tried - solved])


class LevelSchedule(Schedule):
    """A posterior for each level of the rows, kept in the `band` (low, high) of success.

    Rows of a level are drawn evenly. At each update the earlier counts of all levels weigh less.
    """

    def __init__(self, levels: Levels, band: tuple[float, float]) -> None:
        super().__init__(len(levels.names))
        self.levels = levels
        self.band = band
        self._of_rows = torch.tensor(levels.of_rows)
        self._sizes = self._of_rows.bincount()

    def shares(self) -> Tensor:
        """(levels,) the chance of each level to be drawn first."""
        use = expected_use(self.counts, self.band)
        return (1 - _EVEN_LEVELS) * use / use.sum() + _EVEN_LEVELS / len(use)

    def probabilities(self) -> Tensor:
        """(rows,) the chance of each row to be drawn first."""
        return (self.shares() / self._sizes)[self._of_rows]

    def _count(self, prompts: Sequence[int], success: Tensor) -> None:
        solved, tried = success.nansum(1), success.isnan().logical_not().sum(1).double()
        new = torch.zeros_like(self.counts)
        new.index_add_(0, self._of_rows[list(prompts)], torch.stack([solved, tried - solved], 1))
        self.counts = 1 + _KEPT_LEVELS * (self.counts - 1) + new

    def metrics(self, prompts: Sequence[int]) -> dict[str, float]:
        """What is logged of a batch of the rows `prompts`: the posteriors' means, and the shares.

        `curriculum/level_mean`, where levels are numbers: the mean level of the batch.
        """
        means = self.counts[:, 0] / self.counts.sum(1)
        shares = self.shares()
        told = {}
        for place, name in enumerate(self.levels.names):
            told[f"curriculum/success/{name}"] = means[place].item()
            told[f"curriculum/share/{name}"] = shares[place].item()
        if self.levels.numbers is not None:
            numbers = [self.levels.numbers[self.levels.of_rows[prompt]] for prompt in prompts]
            told["curriculum/level_mean"] = sum(numbers) / len(numbers)
        return told


def expected_use(counts: Tensor, band: tuple[float, float]) -> Tensor:
    """(levels,) E[u(p)] under Beta(a, b), the rows of `counts` (levels, 2), all >= 1.

    u is 1 where the success p is in the band (low, high), and falls to 0 at p = 0 and at p = 1 as
    the square of the way from there: where no level is in the band, the nearest are of most use.
    """
    low, high = band
    p = (torch.arange(_GRID, dtype=torch.float64) + 0.5) / _GRID
    use = torch.minimum(p / low, (1 - p) / (1 - high)).clamp(max=1.0).square()
    logs = (counts[:, :1] - 1) * p.log() + (counts[:, 1:] - 1) * (1 - p).log()
    return logs.softmax(1) @ use
