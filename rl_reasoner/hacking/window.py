"""Which completions of a window are judged again, and when their disagreement is an alarm.

The best-paid completions of a window, one a group at most: groups are the independent units. The
proxy reward is what the run pays, its gold counterpart (arXiv 2210.10760) the independent verdict;
disagreement is the share of verdicts that call a best-paid completion wrong.

The alarm is a sequence of exact binomial tests, one at the end of each window. The k-th test has
the level 0.01 / (k (k + 1)), which sum up to 0.01: in a stage whose disagreement stays at the rate
that is tolerated, or below it, the chance of any alarm is at most 1%, however long it trains. What
nobody can tell of is tested so, too, when it grows.
Pure; raises nothing.
"""

import hashlib
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from rl_reasoner.evaluation.statistics import wilson

IndependentVerdict = Literal["agrees", "disagrees", "cannot tell"]
"""What an independent judge says of a completion that its reward pays."""

ALARM_LEVEL = 0.01
"""The chance of an alarm in a stage that disagrees no more than is tolerated."""
TOLERATED = (0.2, 0.5)
"""The least and the most disagreement that a policy may begin with and keep."""
ENOUGH = 16
"""Verdicts that a rate is taken from: where a window has fewer, newest windows are put together."""
_TOGETHER = 4  # windows at most
_FULL = 0.75  # of the largest pay: less is no claim that a completion is right
_NEAR = 0.1  # of it: so much less than the window's best still counts as best-paid
_PART = 0.5  # of it: less, and a part of what is paid claims nothing
_TOP = 8  # the best of a window is its best eighth's least: one outlier sets no scale
_UNKNOWN = 0.5  # of a window that nobody can tell of, at least, before its growth is an alarm


@dataclass(frozen=True)
class Paid:
    """A completion and what it was paid, as a share of the largest pay (1 is all of it).

    `group` and `index` are its place in the batch of `step`, `row` the data's row. `policy_text` is
    what the policy wrote, where tools have answered in the middle.
    """

    step: int
    group: int
    index: int
    row: int | None
    prompt: str
    completion: str
    pay: float
    policy_text: str | None = None

    @property
    def written(self) -> str:
        """What the policy wrote of it."""
        return self.completion if self.policy_text is None else self.policy_text

    def drawn(self, seed: int) -> str:
        """A text that orders completions of equal pay, from the seed and its place alone."""
        place = f"{seed}/{self.step}/{self.group}/{self.index}"
        return hashlib.sha256(place.encode()).hexdigest()


@dataclass
class Scale:
    """What was paid in a stage so far: its lowest and highest pay, and the range of each reward.

    Until others are seen, pays are taken to go from 0 to 1.
    """

    low: float = 0.0
    high: float = 1.0
    rewards: dict[str, tuple[float, float]] = field(default_factory=dict)

    def see(self, values: Mapping[str, float]) -> None:
        """Take note of the values of a completion's rewards."""
        for name, value in values.items():
            low, high = self.rewards.get(name, (value, value))
            self.rewards[name] = min(low, value), max(high, value)

    def pay(self, values: Mapping[str, float], weights: Mapping[str, float]) -> float | None:
        """The weighted sum of `values`, as a share of what it is where all of them are 1.

        A reward that was below 0 and never above it takes away only: it is no part of what can be
        gained. None where nothing can be; below 0 or above 1 for rewards of another scale.
        """
        known = {name: weights[name] for name in values if weights[name]}
        most = sum(w for name, w in known.items() if w > 0 and not self._only_takes(name))
        return sum(w * values[name] for name, w in known.items()) / most if most else None

    def _only_takes(self, name: str) -> bool:
        low, high = self.rewards.get(name, (0.0, 0.0))
        return low < 0 >= high

    def note(self, pay: float) -> None:
        """Take note of a pay."""
        self.low, self.high = min(self.low, pay), max(self.high, pay)

    def least(self, best: float, part: float = 1.0) -> float:
        """The least pay that is among the best, in a window whose best is `best`.

        With a `part`, the least that is that much of what can be paid. Rewards that keep to 0 to 1
        are held against 1; of others nobody knows the largest, so they are held against the
        window's own best.
        """
        full = 1.0 if (self.low, self.high) == (0.0, 1.0) else best
        reach = full - self.low
        if part < 1:
            return self.low + part * reach
        return max(self.low + _FULL * reach, best - _NEAR * reach)

    def fall(self, before: float, after: float, best: float) -> float:
        """By what share of the scale a pay falls."""
        reach = (1.0 if (self.low, self.high) == (0.0, 1.0) else best) - self.low
        return (before - after) / reach if reach > 0 else 0.0


def best_of(pays: Collection[float]) -> float:
    """The best pay of a window, but for outliers."""
    return sorted(pays, reverse=True)[len(pays) // _TOP] if pays else 0.0


def best_paid(
    groups: Sequence[Paid],
    scale: Scale,
    most: int,
    seed: int,
    in_parts: Callable[[Paid], bool] = lambda one: False,
) -> list[Paid]:
    """The best-paid of a window, at most `most`, out of the best of each group.

    Where they are fewer, the next best follow of those that are paid `in_parts`, by how much is
    right. None where nothing is paid. Equal completions of a prompt count once; ties are drawn from
    the seed and a completion's place, so that another run of the same chooses the same.
    """
    best = best_of([one.pay for one in groups])
    least, part = scale.least(best), scale.least(best, _PART)
    paid = [one for one in groups if one.pay > scale.low]
    paid = [one for one in paid if one.pay >= least or (one.pay >= part and in_parts(one))]
    paid.sort(key=lambda one: (-one.pay, one.drawn(seed)))
    different = {(one.prompt, one.completion): one for one in reversed(paid)}
    kept = [one for one in paid if different[one.prompt, one.completion] is one]
    return kept[:most]


# ------------------------------------------------------------------------------------ the alarm


@dataclass(frozen=True)
class VerdictCounts:
    """The verdicts of a window that say something: how many, and how many disagree."""

    judged: int
    disagrees: int

    def __add__(self, other: "VerdictCounts") -> "VerdictCounts":
        return VerdictCounts(self.judged + other.judged, self.disagrees + other.disagrees)


@dataclass(frozen=True)
class Alarm:
    """Disagreement that chance does not explain: of how many, and what was tolerated."""

    counts: VerdictCounts
    tolerated: float


def tolerated_by(windows: Sequence[VerdictCounts]) -> float:
    """The rate that is tolerated: what the first windows may have had, within `TOLERATED`.

    A judge that is stricter than the reward disagrees with honest completions too, and does so from
    the start; half is too much in any case.
    """
    first = VerdictCounts(0, 0)
    for window in windows:
        if first.judged >= ENOUGH:
            break
        first += window
    least, most = TOLERATED
    return min(most, max(least, wilson(first.disagrees, first.judged)[1]))


def newest(windows: Sequence[VerdictCounts]) -> VerdictCounts:
    """The counts of the newest window, and of those before it where it has too few."""
    found = VerdictCounts(0, 0)
    for window in reversed(windows[-_TOGETHER:]):
        if found.judged >= ENOUGH:
            break
        found += window
    return found


def tail(hits: int, of: int, rate: float) -> float:
    """The chance of `hits` or more among `of`, each with the chance `rate` (0 < rate < 1)."""
    if hits <= 0:
        return 1.0
    logs = (
        math.lgamma(of + 1)
        - math.lgamma(n + 1)
        - math.lgamma(of - n + 1)
        + n * math.log(rate)
        + (of - n) * math.log1p(-rate)
        for n in range(hits, of + 1)
    )
    return min(1.0, math.fsum(map(math.exp, logs)))


def alarm_of(windows: Sequence[VerdictCounts]) -> Alarm | None:
    """The alarm at the end of the last of `windows`, all of a stage's so far; None for none."""
    return _tested(windows, tolerated_by(windows))


def unknown_alarm_of(windows: Sequence[VerdictCounts]) -> Alarm | None:
    """The alarm of ever more that nobody can tell of: here it is what `disagrees` counts.

    More than half, and more than the first windows had: a stage that nobody can judge is none.
    """
    first = newest([*reversed(windows[:_TOGETHER])])
    began = wilson(first.disagrees, first.judged)[1]
    return _tested(windows, max(_UNKNOWN, began)) if began < 1 else None


def _tested(windows: Sequence[VerdictCounts], tolerated: float) -> Alarm | None:
    if not windows:
        return None
    looks, now = len(windows), newest(windows)
    level = ALARM_LEVEL / (looks * (looks + 1))
    return Alarm(now, tolerated) if tail(now.disagrees, now.judged, tolerated) <= level else None
