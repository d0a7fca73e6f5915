"""How long completions become while a policy learns: what the minutes of a stage depend on.

Two things in the groups that a stage samples at first tell it. The trend: how the length moves from
step to step, for instance with a price for length. It goes on, damped (Gardner and McKenzie 1985).
The pull: how long the best completions of a group are beside all of it, since GRPO makes likely
what is best in its group. Pure; `forecast` turns the course into minutes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, linear_regression, stdev

_ARRIVED = 0.5  # share of the steps to come after which the pull has done its work
_STEPS = 4  # below so many, the noise that a step's groups share cannot be told from a trend
_GROUPS = 8  # below so many, a standard error says little
_ALMOST = 1e-9


@dataclass(frozen=True)
class MeasuredGroup:
    """A group as it was sampled in `step`: (length, total reward; None: left out) of each."""

    step: int
    completions: Sequence[tuple[int, float | None]]


@dataclass(frozen=True)
class LengthCourse:
    """What is expected of the length, in logarithms: 0 is its mean in the `seen` steps.

    `trend`: change from step to step; `pull`: change by what is best in groups; `least`: the mean
    of the shortest group that was seen. The first step, which warms up, is not part of the mean.
    """

    trend: float = 0.0
    pull: float = 0.0
    least: float = 0.0
    seen: int = 0

    def factors(self, steps: int, most: float = math.inf) -> list[float]:
        """The length in each of the `steps` to come, as a share of its mean in those seen.

        The trend goes on for about as many steps again as were seen: its damping is 1 - 1/seen. It
        may be the pull at work, so where both go one way the larger counts. No length is below that
        of the shortest group, nor above `most` times the mean.
        """
        damping = 1 - 1 / self.seen if self.seen else 0.0
        moved, each, found = self.trend * max(0, self.seen - 2) / 2, self.trend, []
        for step in range(1, steps + 1):
            each *= damping
            moved += each
            pulled = self.pull * min(1.0, step / (_ARRIVED * steps))
            both = max(moved, pulled, key=abs) if moved * pulled > 0 else moved + pulled
            found.append(math.exp(min(max(both, self.least), math.log(max(1.0, most)))))
        return found


def course_of(groups: Sequence[MeasuredGroup], seen: int) -> LengthCourse:
    """The course of the length, from the groups of the `seen` first steps.

    Trend and pull each count as far as they stand out from noise: times 1 - 1/t², where t is their
    size in standard errors; not at all from one standard error down.
    """
    measured = [group for group in groups if group.completions]
    if not measured:
        return LengthCourse(seen=seen)
    lengths = [_mean_log([n for n, _ in group.completions]) for group in measured]
    pulls = [
        _mean_log(_best(group)) - length for group, length in zip(measured, lengths, strict=True)
    ]
    least = min(lengths) - fmean(lengths)
    return LengthCourse(_trend([g.step for g in measured], lengths), _sure(pulls), least, seen)


def _mean_log(lengths: Sequence[int]) -> float:
    """The mean logarithm of lengths; an empty completion counts as one token.

    Of any part of a group it is the group's on average, where rewards do not go by length. That of
    the mean length would be lower for the part: the fewer, the lower.
    """
    return fmean(math.log(max(1, length)) for length in lengths)


def _best(group: MeasuredGroup) -> list[int]:
    """The lengths of a group's best completions: all of them where no reward is known."""
    known = [(n, r) for n, r in group.completions if r is not None and math.isfinite(r)]
    highest = max((reward for _, reward in known), default=0.0)
    best = [length for length, reward in known if reward >= highest - _ALMOST]
    return best or [length for length, _ in group.completions]


def _trend(steps: Sequence[int], lengths: Sequence[float]) -> float:
    """The slope of `lengths` by `steps` (least squares), as far as it stands out.

    Its error is the larger of two: by groups, and by the means of steps, whose groups share what is
    particular to a step.
    """
    of_steps = {
        step: [n for s, n in zip(steps, lengths, strict=True) if s == step]
        for step in dict.fromkeys(steps)
    }
    if len(of_steps) < _STEPS:
        return 0.0
    slope, by_groups = _slope(steps, lengths)
    _, by_steps = _slope([*of_steps], [fmean(each) for each in of_steps.values()])
    return _shrunk(slope, max(by_groups, by_steps))


def _slope(xs: Sequence[float], ys: Sequence[float]) -> tuple[float, float]:
    """The slope of `ys` by `xs` and its standard error; three points at least."""
    slope, level = linear_regression(xs, ys)
    left = math.fsum((y - level - slope * x) ** 2 for x, y in zip(xs, ys, strict=True))
    middle = fmean(xs)
    spread = math.fsum((x - middle) ** 2 for x in xs)
    return slope, math.sqrt(left / (len(xs) - 2) / spread)


def _sure(values: Sequence[float]) -> float:
    """The mean of `values`, as far as it stands out."""
    if len(values) < _GROUPS:
        return 0.0
    return _shrunk(fmean(values), stdev(values) / math.sqrt(len(values)))


def _shrunk(found: float, error: float) -> float:
    """The positive part of the James-Stein estimate of one figure with a known standard error."""
    return found * max(0.0, 1 - (error / found) ** 2) if abs(found) > _ALMOST else 0.0
