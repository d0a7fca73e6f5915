"""How long completions become while a policy learns: what the minutes of a stage depend on.

Two things in the groups that a stage samples at first tell it. The trend: how the length moves from
step to step, as with a price for length. It goes on, damped (Gardner and McKenzie 1985). The pull:
how long the best completions of a group are beside all of it, since GRPO makes likely what is best
in its group. Pure; `forecast` turns the course into minutes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

_ARRIVED = 0.5  # share of the steps to come after which the pull has done its work


@dataclass(frozen=True)
class MeasuredGroup:
    """A group as it was sampled in `step`: (length, total reward; None: left out) of each."""

    step: int
    completions: Sequence[tuple[int, float | None]]


@dataclass(frozen=True)
class LengthCourse:
    """What is expected of the length, in logarithms: 0 is as long as now.

    `trend`: change a step at the end of the `seen` steps; `pull`: change by what is best in groups.
    """

    trend: float = 0.0
    pull: float = 0.0
    seen: int = 0

    def factors(self, steps: int) -> list[float]:
        """The length in each of the `steps` to come, as a share of its mean in those seen.

        The trend goes on for about as many steps again as were seen: its damping is 1 - 1/seen.
        """
        damping = 1 - 1 / self.seen if self.seen else 0.0
        moved, each, found = self.trend * max(0, self.seen - 1) / 2, self.trend, []
        for step in range(1, steps + 1):
            each *= damping
            moved += each
            found.append(math.exp(moved + self.pull * min(1.0, step / (_ARRIVED * steps))))
        return found


def course_of(groups: Sequence[MeasuredGroup], seen: int) -> LengthCourse:
    """The course of the length, from the groups of the `seen` first steps.

    Trend and pull each count as far as they stand out from the groups' differences: times
    1 - 1/t², where t is their size in standard errors; not at all from one standard error down.
    """
    measured = [group for group in groups if group.completions]
    lengths = [_mean_log([n for n, _ in group.completions]) for group in measured]
    pulls = [
        _mean_log(_best(group)) - length for group, length in zip(measured, lengths, strict=True)
    ]
    return LengthCourse(_trend([group.step for group in measured], lengths), _sure(pulls), seen)


def _mean_log(lengths: Sequence[int]) -> float:
    """The logarithm of the mean length; an empty completion counts as one token."""
    return math.log(fmean(max(1, length) for length in lengths))


def _best(group: MeasuredGroup) -> list[int]:
    """The lengths of a group's best completions: all of them where no reward is known."""
    rewards = [reward for _, reward in group.completions if reward is not None]
    if not rewards:
        return [length for length, _ in group.completions]
    return [length for length, reward in group.completions if reward == max(rewards)]


def _trend(steps: Sequence[int], lengths: Sequence[float]) -> float:
    """The slope of `lengths` by `steps` (least squares), as far as it stands out."""
    if len(steps) < 3 or len({*steps}) < 2:
        return 0.0
    middle, mean = fmean(steps), fmean(lengths)
    spread = math.fsum((step - middle) ** 2 for step in steps)
    pairs = [(s - middle, y - mean) for s, y in zip(steps, lengths, strict=True)]
    slope = math.fsum(x * y for x, y in pairs) / spread
    left = math.fsum((y - slope * x) ** 2 for x, y in pairs)
    return _shrunk(slope, math.sqrt(left / (len(steps) - 2) / spread))


def _sure(values: Sequence[float]) -> float:
    """The mean of `values`, as far as it stands out."""
    if len(values) < 2:
        return 0.0
    return _shrunk(fmean(values), stdev(values) / math.sqrt(len(values)))


def _shrunk(found: float, error: float) -> float:
    """The positive part of the James-Stein estimate of one figure with a known standard error."""
    return found * max(0.0, 1 - (error / found) ** 2) if found else 0.0
