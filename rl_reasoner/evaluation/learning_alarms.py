"""Alarms that a run cannot learn, from the metrics of its steps: what is wrong, and since when.

GRPO learns from differences within a group. Where nearly all completions are cut off, nearly all
groups have equal rewards, or the gradient is 0, steps go by and nothing is learned; the alarm says
what to change. Groups that are equal because all is right raise none, unless they were so from the
start. Pure; the live view and the report use the same.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any, TypeAlias

from rl_reasoner.foreign import number

Metrics: TypeAlias = Mapping[str, Any]
_TOO_HIGH = 0.9  # share from which on nothing is learned
_LITTLE = 0.5  # mean weight of a correction from which on it takes the gradient away
_WINDOW = 10  # steps that a share is averaged over
_MIN_STEPS = 5  # before the first alarm
_SOLVED = 0.9  # of the highest reward, from which on a group counts as right
_ZERO = 0.02  # of it, up to which a mean counts as 0


@dataclass(frozen=True)
class LearningAlarm:
    """What keeps a stage from learning: from which step on, until which (None: it still does)."""

    kind: str
    since: int
    until: int | None
    text: str

    def __str__(self) -> str:
        when = f"since step {self.since}" if self.until is None else ""
        return f"{when or f'from step {self.since} to {self.until}'}: {self.text}"


class _Streak:
    """One share over the steps: since when it is too high, and its mean from there on."""

    def __init__(self, least: int) -> None:
        self.least = least
        self.newest: deque[tuple[int, float, float]] = deque(maxlen=_WINDOW)
        self.first: int | None = None  # step with the first value of all
        self.last = 0  # step with a share that is too high
        self.since: int | None = None
        self.values: list[tuple[float, float]] = []  # (share, reward) from `since` to `last`
        self._after: list[tuple[float, float]] = []

    def add(self, step: int, share: float, reward: float) -> None:
        """Take the share of the next step, and its mean reward."""
        self.first = step if self.first is None else self.first
        self.newest.append((step, share, reward))
        high = len(self.newest) >= self.least and fmean(s for _, s, _ in self.newest) >= _TOO_HIGH
        if high and self.since is None:
            at = next(i for i, (_, s, _) in enumerate(self.newest) if s >= _TOO_HIGH)
            self.since, self.values, self._after = self.newest[at][0], [], []
            for one in list(self.newest)[at:]:
                self._count(*one)
        elif high:
            self._count(step, share, reward)
        else:
            self.since = None

    def _count(self, step: int, share: float, reward: float) -> None:
        self._after.append((share, reward))
        if share >= _TOO_HIGH:
            self.values += self._after
            self._after, self.last = [], step

    @property
    def share(self) -> float:
        return fmean(share for share, _ in self.values)

    @property
    def reward(self) -> float:
        return fmean(reward for _, reward in self.values)


class LearningAlarms:
    """The alarms of one stage of GRPO, fed a step at a time.

    `longest` is its completions' limit in tokens, `steps` how many it has, `highest` the largest
    total of rewards from 0 to 1 (None: not known); a larger reward shows another scale.
    """

    def __init__(self, longest: int | None, steps: int, highest: float | None) -> None:
        self.longest = longest
        self.highest = highest
        least = max(1, min(_MIN_STEPS, steps))
        self.streaks = {kind: _Streak(least) for kind in ("cut off", "flat", "still", "light")}
        self.over: list[LearningAlarm] = []
        self._raised: dict[str, LearningAlarm] = {}

    def add(self, row: Metrics) -> list[LearningAlarm]:
        """Take the metrics of the next step; return the alarms that it raises."""
        reward, norm = number(row.get("reward")), number(row.get("grad_norm"))
        weight = number(row.get("sampling/importance_sampling_ratio/mean"))
        if self.highest is not None and (reward or 0.0) > self.highest * (1 + 1e-6):
            self.highest = None
        shares = {
            "cut off": number(row.get("completions/clipped_ratio")),
            "flat": number(row.get("frac_reward_zero_std")),
            "still": None if norm is None else float(norm == 0),
            "light": None if weight is None else float(weight < _LITTLE),
        }
        for kind, share in shares.items():
            if share is not None:
                self.streaks[kind].add(int(row["step"]), share, reward or 0.0)
        now = {alarm.kind: alarm for alarm in self.standing()}
        for kind, before in self._raised.items():
            if kind not in now or now[kind].since != before.since:
                over = max(before.since, self.streaks[kind].last)
                self.over.append(LearningAlarm(kind, before.since, over, before.text))
        known = {(before.kind, before.since) for before in self._raised.values()}
        self._raised = now
        return [alarm for alarm in now.values() if (alarm.kind, alarm.since) not in known]

    def standing(self) -> list[LearningAlarm]:
        """The alarms that hold now."""
        texts = {
            kind: self._words(kind, streak)
            for kind, streak in self.streaks.items()
            if streak.since is not None
        }
        if "flat" in texts:  # equal rewards give no gradient
            texts.pop("still", None)
        return [
            LearningAlarm(kind, self.streaks[kind].since or 0, None, text)
            for kind, text in texts.items()
            if text
        ]

    def _words(self, kind: str, streak: _Streak) -> str:
        if kind == "still":
            return "no step changes the policy: the gradient is 0"
        if kind == "light":
            return (
                f"the weights that correct for sampling are under {_LITTLE} on average: next to "
                "nothing is learned. Look at cut-offs (top_p, top_k, min_p) and at what samples"
            )
        share = "all" if streak.share > 0.9995 else f"{streak.share:.0%} of the"
        if kind == "cut off":
            where = f" at {self.longest} tokens" if self.longest else ""
            return f"{share} completions are cut off{where}: raise sampling.max_tokens"
        high = self.highest
        if high and streak.reward >= _SOLVED * high:
            if streak.since != streak.first:
                return ""  # learned
            return f"{share} groups are all right: the rows are too easy to learn from"
        if abs(streak.reward) <= _ZERO * (high or 1.0):
            return (
                f"{share} groups are flat at 0, where no completion is better than another: use "
                "easier rows, an sft stage first, or a reward that gives partial credit"
            )
        return (
            f"{share} groups have equal rewards (mean {streak.reward:.3g}): no completion is "
            "better than another, and nothing is learned"
        )


def learning_alarms(rows: Iterable[Metrics], signs: LearningAlarms) -> list[LearningAlarm]:
    """All alarms in a stage's metrics, in order."""
    for row in rows:
        signs.add(row)
    return sorted([*signs.over, *signs.standing()], key=lambda alarm: alarm.since)


def highest_of(weights: Iterable[float]) -> float | None:
    """The largest total of rewards from 0 to 1 with these weights; None for none above 0."""
    return sum(weight for weight in weights if weight > 0) or None
