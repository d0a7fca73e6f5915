"""What a gain is: sentences that a run's own figures support, and no more.

A policy that answers better after training may have learned something, or may only have come to
use more often what it could do before. Forcing the mode of answering (always with a chain of
thought, always without) tells the two apart. Pure functions on figures; knows nothing of files.

Two notions are kept apart on purpose. *Apart*: the two intervals do not meet, a change. *Within*:
each accuracy lies inside the other's interval, no change that this many problems could show.
Between the two lies "not settled".
"""

from collections.abc import Mapping
from typing import Literal, TypeAlias

from rl_reasoner.report.read import SetResult
from rl_reasoner.report.text import percent

Move: TypeAlias = Literal["rose", "fell", "within", "unsettled", "unknown"]
Figures: TypeAlias = Mapping[str, SetResult]  # one set's figures by mode; "" is the set as it is

THINKING_RISE = 0.1  # a smaller rise in the share of thinking is not named as the behaviour


def split_mode(name: str) -> tuple[str, str]:
    """A set's name as (set, mode): "modular_test@sampled" is ("modular_test", "sampled")."""
    base, _, mode = name.partition("@")
    return base, mode


def mode_name(mode: str, result: SetResult) -> str:
    """How a mode is called on the page."""
    if mode:
        return {"chain-forced": "Chain forced", "direct-forced": "Direct forced"}.get(
            mode, mode.replace("-", " ").capitalize()
        )
    return "Greedy" if result.temperature == 0 else "As evaluated"


def moved(before: SetResult, after: SetResult) -> Move:
    """How accuracy moved, measured against both intervals; "unknown" where one is missing.

    "within" is a move no larger than half of the narrower interval.
    """
    a, b = before.interval, after.interval
    if a is None or b is None:
        return "unknown"
    if b[0] > a[1]:
        return "rose"
    if b[1] < a[0]:
        return "fell"
    half = min(a[1] - a[0], b[1] - b[0]) / 2
    return "within" if abs(after.accuracy - before.accuracy) <= half else "unsettled"


def explain(before: Figures, after: Figures, *, by: str) -> list[str]:
    """Sentences on what changed between two evaluations of one set.

    `before` and `after` map a mode ("", "chain-forced", "direct-forced", "sampled") to figures;
    `by` names what lies between them, such as "GRPO". Empty when the set itself is not in both.
    """
    if "" not in before or "" not in after:
        return []
    sentences = [_headline(before[""], after[""])]
    if moved(before[""], after[""]) == "rose":
        sentences.append(_source(before, after, by))
    elif _move(before, after, "chain-forced") in ("rose", "fell"):
        sentences.append(_apart(before, after, "chain-forced"))
    sentences += [
        _apart(before, after, mode)
        for mode in ("direct-forced", "sampled")
        if _move(before, after, mode) in ("rose", "fell")
    ]
    return sentences + _pass_at(before, after)


def _move(before: Figures, after: Figures, mode: str) -> Move:
    if mode not in before or mode not in after:
        return "unknown"
    return moved(before[mode], after[mode])


def _headline(before: SetResult, after: SetResult) -> str:
    name = "Greedy accuracy" if after.temperature == 0 else "Accuracy"
    way = f"from {percent(before.accuracy)} to {percent(after.accuracy)}"
    match moved(before, after):
        case "rose":
            return f"{name} rose {way}, with intervals apart."
        case "fell":
            return f"{name} fell {way}, with intervals apart."
        case "within":
            return f"{name} went {way}, a move within its intervals: this run shows no change."
        case "unsettled":
            return f"{name} went {way}; the intervals overlap, so these figures do not settle it."
        case "unknown":
            return f"{name} went {way}; without intervals nothing more can be said."


def _source(before: Figures, after: Figures, by: str) -> str:
    """Where a risen accuracy comes from, as far as the forced chain tells."""
    move = _move(before, after, "chain-forced")
    if move == "unknown":
        return (
            "The forced chain was not measured on both sides, so a new skill and a behaviour "
            "used more often cannot be told apart."
        )
    first, last = before["chain-forced"], after["chain-forced"]
    way = f"{percent(first.accuracy)} before and {percent(last.accuracy)} after"
    if move == "rose":
        return (
            f"With the chain forced, accuracy rose as well ({way}, intervals apart): {by} made "
            "the thinking itself better, not only more frequent."
        )
    if move == "fell":
        return f"With the chain forced, accuracy fell ({way}, intervals apart)."
    if move == "unsettled":
        return (
            f"With the chain forced, accuracy was {way}; the intervals overlap, so whether {by} "
            "added skill is not settled."
        )
    margin = f"a move smaller than its interval ({_half_width(first)})"
    if _above(after[""], first):
        return (
            f"With the chain forced, accuracy was {way}, {margin}; yet the policy now does better "
            "than its forced chain did before, so thinking alone does not account for the gain."
        )
    return (
        f"{by} selected a behaviour the policy already had{_behaviour(before[''], after[''])}; it "
        f"did not measurably add skill: with the chain forced, accuracy was {way}, {margin}."
    )


def _above(a: SetResult, b: SetResult) -> bool:
    return a.interval is not None and b.interval is not None and a.interval[0] > b.interval[1]


def _half_width(result: SetResult) -> str:
    low, high = result.interval or (0.0, 0.0)
    return f"±{50 * (high - low):.1f} points"


def _behaviour(before: SetResult, after: SetResult) -> str:
    if before.thinking is None or after.thinking is None:
        return ""
    if after.thinking - before.thinking < THINKING_RISE:
        return ""
    return (
        f" (thinking first: {percent(before.thinking)} of completions before, "
        f"{percent(after.thinking)} after)"
    )


def _apart(before: Figures, after: Figures, mode: str) -> str:
    what = {
        "chain-forced": "With the chain forced, accuracy",
        "direct-forced": "With direct answers forced, accuracy",
        "sampled": "Sampled accuracy",
    }[mode]
    verb = _move(before, after, mode)
    first, last = before[mode].accuracy, after[mode].accuracy
    return f"{what} {verb} from {percent(first)} to {percent(last)}, with intervals apart."


def _pass_at(before: Figures, after: Figures) -> list[str]:
    """One sentence for the first mode that has pass@k on both sides: smallest and largest k."""
    for mode in before:
        common = sorted(
            set(before[mode].pass_at) & set(after[mode].pass_at) if mode in after else ()
        )
        if len(common) >= 2:
            ways = [
                f"pass@{k} went from {percent(before[mode].pass_at[k])} to "
                f"{percent(after[mode].pass_at[k])}"
                for k in (common[0], common[-1])
            ]
            return [f"Over samples, {ways[0]} and {ways[1]} (no intervals given)."]
    return []
