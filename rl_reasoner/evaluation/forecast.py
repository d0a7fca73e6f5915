"""Will it learn? A forecast of a grpo stage from a few sampled groups and the times of its steps.

GRPO learns from differences within a group and makes likely what sampling already finds. So a
forecast looks at how often a completion is right (pass@1), how often one of a group is (pass@k),
and how many groups are flat: no completion better than another, nothing to learn from. Beside it
stand the minutes that the stage takes here, and the difference that its evaluation could show at
all. Right is a completion with the full reward. Pure; `pipeline.forecaster` reads what a forecast
is made of, `benchmarks/forecasts.py` holds forecasts against what then happened.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean, variance
from typing import Any, Literal

from rl_reasoner.evaluation.length_course import LengthCourse
from rl_reasoner.evaluation.statistics import Interval, pass_at_k, planned_difference, wilson
from rl_reasoner.foreign import mapping, number

LearningVerdict = Literal["likely", "flat at 0", "too easy", "equal rewards", "too few", "unclear"]
Totals = Sequence[float | None]  # total rewards of a prompt's completions; None: left out

PROMPTS = 64
"""Groups that a forecast wants: a share of flat groups is then known to within 12 points."""
FLAT = 0.9
"""Share of flat groups from which on nothing is learned; `learning_alarms` warns at the same."""
SOLVED = 0.95
"""pass@1 from which on a stage is too easy: what is left to gain is less than most evaluations
can show."""
FEW_GROUPS = 50
"""Groups with a difference in the whole stage below which it is too short: a step of fewer than 4
is mostly noise (`preflight`), and a dozen steps of AdamW at usual rates move a policy little."""
_MOVES = ("rose", "fell", "stayed")
CLEAR = 0.7
"""Lower end of the interval of the share of flat groups from which on it counts as known: ten
groups that are all flat. With fewer, a verdict that nothing is learned would be a guess."""
_SURE = 3.0  # standard errors that a mean reward must have moved by
_ALMOST = 1e-9
_CHANGED = 0.2  # of the length: below it no word is said of the change


@dataclass(frozen=True)
class StagePlan:
    """What a recipe says of a grpo stage: `prompts` prompts x `size` completions a step.

    `refills`: rounds of dynamic sampling; `highest`: the largest total of rewards from 0 to 1, None
    where the scale is not known; `iterations`: steps on one batch; `longest`: the most tokens that
    a completion can have.
    """

    name: str
    steps: int
    prompts: int
    size: int
    highest: float | None
    temperature: float = 1.0
    refills: int = 0
    iterations: int = 1
    longest: float = math.inf

    @property
    def batches(self) -> int:
        """How often the stage samples."""
        return -(-self.steps // self.iterations)


@dataclass(frozen=True)
class SampledGroups:
    """The groups a forecast is made of; `truncated` is the share of completions cut off.

    `of` says in words where they come from, `thrown_away` is the share of groups that dynamic
    sampling has already replaced: all of them were flat. `course` is how their length moves.
    """

    groups: Sequence[Totals]
    of: str
    truncated: float = 0.0
    thrown_away: float = 0.0
    course: LengthCourse = field(default_factory=LengthCourse)


@dataclass(frozen=True)
class StepPace:
    """Means: seconds of a step by part (generation, reward, training, rest), a completion's tokens.

    Of a batch that several steps train on, each has its share of the generation and the reward.
    `share` is that of completions in all tokens that a step trains on, with prompts. `spent` are
    the seconds that the stage has taken so far, for `done` steps; both 0 before it.
    """

    parts: Mapping[str, float]
    tokens: float
    share: float = 1.0
    spent: float = 0.0
    done: int = 0

    @property
    def step(self) -> float:
        """Seconds of a whole step."""
        return math.fsum(self.parts.values())

    def longer(self, factor: float) -> float:
        """How many seconds longer a step takes with completions `factor` times as long.

        Sampling goes by the length of completions, the training pass by theirs with the prompts'.
        """
        goes = self.parts.get("generation", 0.0) + self.share * self.parts.get("training", 0.0)
        return (factor - 1) * goes


@dataclass(frozen=True)
class PlannedEvals:
    """Seconds of one evaluation of each kind, how often the one in training comes, what is asked.

    `sets`: set (with mode) -> problems, completions a problem.
    """

    ends: float = 0.0
    validation: float = 0.0
    validations: int = 0
    sets: Mapping[str, tuple[int, int]] = field(default_factory=dict)


# ------------------------------------------------------------------------------- groups


def full_scale(groups: Sequence[Totals], highest: float | None) -> float | None:
    """The full reward; None where it is not known, or rewards above it show another scale."""
    values = [value for group in groups for value in group if value is not None]
    if highest is None or any(value > highest * (1 + 1e-6) for value in values):
        return None
    return highest


def right_of(groups: Sequence[Totals], full: float) -> list[tuple[int, int]]:
    """(completions, right ones) of each group in which one was judged."""
    kept = [[value for value in group if value is not None] for group in groups]
    return [(len(g), sum(value >= full - _ALMOST for value in g)) for g in kept if g]


def pass_curve(counts: Sequence[tuple[int, int]], size: int) -> dict[int, float]:
    """pass@k for k = 1, 2, 4, … and `size`: the mean of the unbiased estimates of all groups.

    `counts`: (completions, right ones) of each; those with fewer than k completions have no pass@k.
    """
    ks = [k for k in (1 << i for i in range(size.bit_length())) if k < size] + [size]
    curve = {k: [pass_at_k(n, right, k) for n, right in counts if n >= k] for k in ks}
    return {k: fmean(values) for k, values in curve.items() if values}


def disagreement(counts: Sequence[tuple[int, int]]) -> float | None:
    """How often of two completions of one problem exactly one is right: the mean of 2p(1-p).

    Unbiased: ordered pairs of different completions are counted. None where no group has two.
    """
    shares = [2 * c * (n - c) / (n * (n - 1)) for n, c in counts if n > 1]
    return fmean(shares) if shares else None


@dataclass(frozen=True)
class FlatGroups:
    """Shares of all groups in which no completion is better than another, by where they are."""

    at_0: float
    at_1: float
    between: float
    groups: int

    @property
    def share(self) -> float:
        """The share of flat groups."""
        return self.at_0 + self.at_1 + self.between

    @property
    def interval(self) -> Interval:
        """Wilson's 95% interval of it."""
        return wilson(self.share * self.groups, self.groups)


def flat_groups(groups: Sequence[Totals], full: float | None) -> FlatGroups:
    """Count flat groups at no reward, at the full one (`full`, where it is known) and between.

    A group of which fewer than two completions were judged is flat, too: at 0 where none was right.
    """
    at_0 = at_1 = between = 0
    for group in groups:
        known = [value for value in group if value is not None]
        if len(known) > 1 and max(known) - min(known) >= _ALMOST:
            continue
        level = known[0] if known else 0.0
        at_1 += full is not None and level >= full - _ALMOST
        at_0 += abs(level) < _ALMOST
        between += (full is None or level < full - _ALMOST) and abs(level) >= _ALMOST
    n = max(1, len(groups))
    return FlatGroups(at_0 / n, at_1 / n, between / n, len(groups))


def useful_groups(flat: float, prompts: int, refills: int) -> float:
    """Groups of a step that are not flat, where a share `flat` of those sampled is.

    Each round of dynamic sampling samples one group for each flat one that is left.
    """
    return prompts * (1 - flat ** (refills + 1))


def groups_sampled(flat: float, prompts: int, refills: int) -> float:
    """Groups that a step samples for `prompts` kept ones: more with dynamic sampling."""
    return prompts * math.fsum(flat**i for i in range(refills + 1))


def widened(seconds: float, rows: int, other: tuple[float, int], wanted: int) -> float:
    """Seconds that sampling `wanted` rows at once takes, where `rows` of them took `seconds`.

    Between the same time (a pass costs what reading the weights costs) and time in proportion;
    `other`, the (seconds, rows) of a second measurement, says where between.
    """
    proportion = seconds * wanted / rows
    if other[1] == rows or wanted <= rows:
        return proportion
    each = (other[0] - seconds) / (other[1] - rows)
    return min(proportion, max(seconds, seconds + each * (wanted - rows)))


# -------------------------------------------------------------------------- what is seen


def reward_moved(rewards: Sequence[float]) -> Literal["rose", "fell", "stayed"] | None:
    """How a stage's reward moved: the steps of its last fifth against those of its first.

    A move is one of three standard errors of the two means. None for fewer than 25 steps.
    """
    part = len(rewards) // 5
    if part < 5:
        return None
    first, last = rewards[:part], rewards[-part:]
    error = math.sqrt(variance(first) / part + variance(last) / part)
    moved = fmean(last) - fmean(first)
    if abs(moved) <= max(1e-3, _SURE * error):
        return "stayed"
    return "rose" if moved > 0 else "fell"


# ------------------------------------------------------------------------------ forecast


@dataclass(frozen=True)
class Forecast:
    """What is to be expected of a grpo stage; `to_json` is its file. Shares are of 1."""

    plan: StagePlan
    sampled: SampledGroups
    pace: StepPace
    evals: PlannedEvals
    flat: FlatGroups
    pass_at: Mapping[int, float]
    differ: float | None

    @property
    def verdict(self) -> LearningVerdict:
        """What decides whether the stage learns."""
        return _verdict(self)

    @property
    def direction(self) -> Literal["up", "none"]:
        """Whether the policy is expected to gain what an evaluation can show."""
        return "up" if self.verdict == "likely" else "none"

    @property
    def useful(self) -> float:
        """Completions of a step that are in groups with a difference."""
        return self.plan.size * self._useful_groups

    @property
    def _useful_groups(self) -> float:
        # with the groups that dynamic sampling has kept, its rounds are already counted
        refills = 0 if self.sampled.thrown_away else self.plan.refills
        return useful_groups(self.flat.share, self.plan.prompts, refills)

    @property
    def minutes(self) -> dict[str, float]:
        """Minutes of one of the first steps, of all steps, of the evaluations among them, of the
        whole stage with these, and of the evaluation before or after it.

        The steps to come, and the evaluations among them, go by the expected length of completions.
        Where dynamic sampling has not yet run, its rounds are added to sampling and scoring.
        """
        pace, plan = self.pace, self.plan
        more = 0.0
        if plan.refills and not pace.done:
            factor = groups_sampled(self.flat.share, plan.prompts, plan.refills) / plan.prompts
            more = (factor - 1) * (pace.parts.get("generation", 0) + pace.parts.get("reward", 0))
        step = pace.step + more
        factors = self._factors
        validation = self.evals.validation * self.evals.validations * fmean(factors or [1.0])
        to_come = math.fsum(step + pace.longer(factor) for factor in factors)
        seconds = {
            "step": step,
            "steps": pace.done * step + to_come,
            "validation": validation,
            "stage": pace.spent + to_come + validation,
            "end": self.evals.ends,
        }
        return {name: value / 60 for name, value in seconds.items()}

    @cached_property
    def _factors(self) -> list[float]:
        """The length of completions in each step to come, as a share of the first steps'."""
        most = self.plan.longest / self.pace.tokens if self.pace.tokens else 1.0
        return self.sampled.course.factors(self.plan.steps - self.pace.done, most)

    @property
    def last_length(self) -> float:
        """The mean length of completions that is expected at the stage's end, in tokens."""
        return self.pace.tokens * (self._factors or [1.0])[-1]

    @property
    def change_of_length(self) -> str:
        """The length that the minutes assume, in words; "" for a change below a fifth."""
        first, last = self.pace.tokens, self.last_length
        if not first or abs(last / first - 1) < _CHANGED:
            return ""
        return f", with completions from {first:.0f} to about {last:.0f} tokens"

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens sampled a second, while it samples."""
        seconds = self.pace.parts.get("generation", 0.0)
        each = self.pace.tokens * self.plan.prompts * self.plan.size / self.plan.iterations
        return each / seconds if seconds else None

    @property
    def detectable(self) -> dict[str, float | None]:
        """Set -> the least gain that its evaluation finds; empty where nothing is known of it.

        None for a set of too few problems to find any.
        """
        if self.differ is None:
            return {}
        sets = self.evals.sets.items()
        return {name: planned_difference(n, self.differ, m) for name, (n, m) in sets}

    @property
    def sentence(self) -> str:
        """The verdict in one sentence, with what to try."""
        return _sentence(self)

    def to_json(self) -> dict[str, Any]:
        """The forecast as JSON values."""
        return {
            "stage": self.plan.name,
            "of": self.sampled.of,
            "verdict": self.verdict,
            "direction": self.direction,
            "sentence": self.sentence,
            "groups": self.flat.groups,
            "pass_at": {str(k): share for k, share in self.pass_at.items()},
            "flat": {
                "share": self.flat.share,
                "interval": [*self.flat.interval],
                "at_0": self.flat.at_0,
                "at_1": self.flat.at_1,
                "between": self.flat.between,
            },
            "truncated": self.sampled.truncated,
            "thrown_away": self.sampled.thrown_away,
            "completions": self.plan.prompts * self.plan.size,
            "useful_completions": self.useful,
            "mean_length": self.pace.tokens,
            "last_length": self.last_length,
            "tokens_per_second": self.tokens_per_second,
            "seconds": dict(self.pace.parts),
            "minutes": self.minutes,
            "detectable": self.detectable,
        }


def forecast(
    plan: StagePlan, sampled: SampledGroups, pace: StepPace, evals: PlannedEvals
) -> Forecast:
    """Forecast a stage from `sampled` groups (at least one) and the `pace` of its steps."""
    full = full_scale(sampled.groups, plan.highest)
    counts = right_of(sampled.groups, full) if full is not None else []
    flat = flat_groups(sampled.groups, full)
    return Forecast(
        plan, sampled, pace, evals, flat, pass_curve(counts, plan.size), disagreement(counts)
    )


def beside_outcome(made: Mapping[str, Any]) -> str:
    """A forecast (its JSON, with `outcome`) beside what happened, in one sentence.

    Of a stage that was interrupted only the steps' minutes are known, and compared.
    """
    minutes, outcome = mapping(made.get("minutes")), mapping(made.get("outcome"))
    pairs = [("stage", "minutes", ""), ("steps", "minutes_of_steps", " for its steps")]
    times = ""
    for ours, theirs, what in pairs:
        planned, took = number(minutes.get(ours)), number(outcome.get(theirs))
        if planned and took:
            times = f"forecast {_minutes(planned)}, took {_minutes(took)}{what}"
            break
    expected = {"up": "expected to learn", "none": "expected not to learn"}
    said = [times, expected.get(str(made.get("direction")), "")]
    said += [f"the reward {moved}"] if (moved := outcome.get("reward")) in _MOVES else []
    return "; ".join(filter(None, said))


def _minutes(value: float) -> str:
    return f"{value:.1f} min" if value < 99.5 else f"{value / 60:.1f} h"


def _verdict(made: Forecast) -> LearningVerdict:
    flat, thrown = made.flat, made.sampled.thrown_away
    if made.pass_at.get(1, 0.0) >= SOLVED:
        return "too easy"
    if flat.share * (1 - thrown) + thrown >= FLAT and flat.share > 0:
        where: dict[LearningVerdict, float] = {
            "flat at 0": flat.at_0,
            "too easy": flat.at_1,
            "equal rewards": flat.between,
        }
        known = flat.interval[0] > CLEAR or thrown > 0
        return max(where, key=lambda kind: where[kind]) if known else "unclear"
    if made._useful_groups * made.plan.batches < FEW_GROUPS:
        return "too few"
    return "likely"


def _sentence(made: Forecast) -> str:
    plan, flat = made.plan, made.flat
    passes = [f"pass@{k} {made.pass_at[k]:.0%}" for k in (1, plan.size) if k in made.pass_at]
    seen = ", ".join([f"{flat.share:.0%} of groups flat", *passes])
    useful = f"{made.useful:.0f} of {plan.prompts * plan.size} completions of a step"
    match made.verdict:
        case "likely":
            return f"likely to learn: {seen}; it learns from {useful}"
        case "too easy":
            tip = "harder rows, or a stage that ends here"
            return f"too easy: {flat.at_1:.0%} of groups flat at 1, {', '.join(passes)}; try {tip}"
        case "equal rewards":
            tip = "a reward that distinguishes better completions from worse ones"
            return f"nothing to learn from: {flat.between:.0%} of groups have equal rewards; {tip}"
        case "flat at 0":
            tips = _tips(made)
            return f"nothing to learn from: {flat.at_0:.0%} of groups flat at 0; try {tips}"
        case "unclear":
            return (
                f"not clear: only {flat.groups} groups were sampled ({seen}); ten or more can tell"
            )
        case "too few":
            groups = made._useful_groups * plan.batches
            return (
                f"too short to learn: {groups:.0f} groups with a difference in all {plan.steps} "
                f"steps ({seen}); try more steps or more prompts per step"
            )


def _tips(made: Forecast) -> str:
    """What to try where nothing is right, the likeliest cause first."""
    plan = made.plan
    tips = []
    if made.sampled.truncated > 0.5:
        tips.append(f"a larger sampling.max_tokens ({made.sampled.truncated:.0%} are cut off)")
    if made.pass_at.get(plan.size, 0.0) > 0:
        tips.append("only rows that are sometimes solved (rl-reasoner filter)")
        tips.append(f"larger groups (group.size {4 * plan.size})")
    else:
        tips.append("an sft stage that teaches the form of an answer")
    tips.append("easier rows")
    if plan.temperature > 1:
        tips.append("a lower sampling.temperature")
    return ", ".join(tips[:-1]) + f" or {tips[-1]}" if len(tips) > 1 else tips[0]
