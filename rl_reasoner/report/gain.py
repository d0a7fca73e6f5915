"""What a gain is: sentences that a run's own figures support, and no more.

A policy that answers better after training may have a new skill, or only a habit: it came to use
more often what it could do before. Forcing the mode of answering (always with a chain of thought,
always without) tells the two apart; without it the verdict is that this was not measured. Answers
judged apart from their form, which is where they stand, tell what is form of a gain, and nothing
of habit or skill. Pure functions on figures; knows nothing of files.

Notions are kept apart on purpose. *Apart*: the two intervals do not meet, a change. *Paired*: they
meet, yet the test of the same problems finds a change. *Within*: each accuracy lies inside the
other's interval, no change that this many problems could show. Between lies "not settled". A loss
is told as a gain is.
"""

from collections.abc import Mapping
from typing import Literal, TypeAlias

from rl_reasoner.evaluation.comparison import form_words
from rl_reasoner.evaluation.formatting import fixed, p_value, percent, points, points_span, span
from rl_reasoner.report.run_data import Paired, SetResult

Move: TypeAlias = Literal["rose", "fell", "within", "unsettled", "unknown"]
Figures: TypeAlias = Mapping[str, SetResult]  # one set's figures by mode; "" is the set as it is

SURE = 0.05  # p-value of a paired test, adjusted for several, under which it is a change
_FORM = 0.1  # a smaller share of a gain is not named as form where the forced chain explains it
THINKING_RISE = 0.1  # a smaller rise in the share of thinking is not named as the behaviour


def mode_name(mode: str, result: SetResult) -> str:
    """How a mode is called on the page."""
    if mode:
        return {"chain-forced": "Chain forced", "direct-forced": "Direct forced"}.get(
            mode, mode.replace("-", " ").capitalize()
        )
    return "Greedy" if result.temperature == 0 else "As evaluated"


def moved(before: SetResult, after: SetResult) -> Move:
    """How accuracy moved, measured against both intervals.

    Where they meet, or one is missing, the paired test of `after` decides, if it is there and finds
    a change. "within" is a move no larger than half of the narrower interval; "unknown": there are
    neither intervals nor a test.
    """
    a, b = before.interval, after.interval
    if a is not None and b is not None and apart(before, after):
        return "rose" if b[0] > a[1] else "fell"
    if after.paired is not None and after.paired.adjusted < SURE:
        return "rose" if after.paired.difference > 0 else "fell"
    if a is None or b is None:
        return "unknown" if after.paired is None else "unsettled"
    half = min(a[1] - a[0], b[1] - b[0]) / 2
    return "within" if abs(after.accuracy - before.accuracy) <= half else "unsettled"


def apart(before: SetResult, after: SetResult) -> bool:
    """Whether the two intervals do not meet."""
    a, b = before.interval, after.interval
    return a is not None and b is not None and (b[0] > a[1] or b[1] < a[0])


def evidence(before: SetResult, after: SetResult) -> str:
    """The evidence for a rise or fall."""
    return "with intervals apart" if apart(before, after) else "by the paired test"


def paired_words(test: Paired) -> tuple[str, str]:
    """A paired test's interval in points, and its p-values: ("[−9.7, −1.5]", "p 0.0097").

    Where the correction for several tests shows, the second is "p 0.0097 (0.019 by Holm)".
    """
    p, adjusted = p_value(test.p), p_value(test.adjusted)
    words = f"p {p}" if adjusted == p else f"p {p} ({adjusted} by Holm)"
    return points_span(test.interval), words


def explain_gain(before: Figures, after: Figures, *, by: str) -> list[str]:
    """Sentences on what changed between two evaluations of one set.

    `before` and `after` map a mode ("", "chain-forced", "direct-forced", "sampled") to figures;
    `by` names what lies between them, such as "GRPO". Empty when the set itself is not in both.
    """
    if "" not in before or "" not in after:
        return []
    sentences = [_headline(before[""], after[""])]
    if (test := after[""].paired) is not None:
        moved_by, words = points(test.difference), ", ".join(paired_words(test))
        sentences.append(f"On the same {test.problems:,} problems: {moved_by} points {words}.")
    if causes := explain_cause(before, after, by=by):
        sentences += causes
    elif _move(before, after, "chain-forced") in ("rose", "fell"):
        sentences.append(_changed(before, after, "chain-forced"))
    sentences += [
        _changed(before, after, mode)
        for mode in ("direct-forced", "sampled")
        if _move(before, after, mode) in ("rose", "fell")
    ]
    return sentences + _pass_at(before, after)


def explain_cause(before: Figures, after: Figures, *, by: str) -> list[str]:
    """Whether a change is a habit, a skill or not measured, then what of it is form.

    Empty where there is no change.
    """
    move = _move(before, after, "")
    return _causes(before, after, by, gain=move == "rose") if move in ("rose", "fell") else []


def _move(before: Figures, after: Figures, mode: str) -> Move:
    if mode not in before or mode not in after:
        return "unknown"
    return moved(before[mode], after[mode])


def _headline(before: SetResult, after: SetResult) -> str:
    name = "Greedy accuracy" if after.temperature == 0 else "Accuracy"
    way = f"from {percent(before.accuracy)} to {percent(after.accuracy)}"
    match move := moved(before, after):
        case "rose" | "fell":
            return f"{name} {move} {way}, {evidence(before, after)}."
        case "within":
            return f"{name} went {way}, a move within its intervals: this run shows no change."
        case "unsettled":
            return f"{name} went {way}; the intervals overlap, so these figures do not settle it."
        case "unknown":
            return f"{name} went {way}; without intervals nothing more can be said."


def _causes(before: Figures, after: Figures, by: str, *, gain: bool) -> list[str]:
    """What the forced chain and the lenient figures say of a risen or fallen accuracy."""
    first, last = before[""], after[""]
    forced = _cause(before, after, by, gain=gain)
    if first.lenient is None or last.lenient is None:
        return [forced]
    form = _form(first, first.lenient, last, last.lenient, by)
    if _move(before, after, "chain-forced") == "unknown":
        return [forced, form]
    strict, lenient = last.accuracy - first.accuracy, last.lenient.accuracy - first.lenient.accuracy
    named = (strict - lenient if gain else lenient - strict) >= _FORM * abs(strict)
    return [forced, form] if named else [forced]


def _form(
    first: SetResult, first_lenient: SetResult, last: SetResult, last_lenient: SetResult, by: str
) -> str:
    """How much of a strict difference is form, and whether the rest is a change by itself."""
    strict, lenient = last.accuracy - first.accuracy, last_lenient.accuracy - first_lenient.accuracy
    words = form_words(strict, lenient, clear=True)
    way = f"{percent(first_lenient.accuracy)} before and {percent(last_lenient.accuracy)} after"
    match move := moved(first_lenient, last_lenient):
        case "rose" | "fell":
            shown = evidence(first_lenient, last_lenient)
            rest = f"apart from form, accuracy {move} as well ({way}, {shown})"
            if (move == "rose") != (strict > 0):
                rest = f"apart from form, accuracy {move} ({way}, {shown})"
        case "within":
            rest = f"{by} did not measurably change how often it is right in any form ({way})"
        case _:
            rest = f"whether it is right more or less often in any form is not settled ({way})"
    return f"Form, which is where the answer stands: {words}; {rest}."


def _cause(before: Figures, after: Figures, by: str, *, gain: bool) -> str:
    """Where a risen or fallen accuracy comes from, as far as the forced chain tells."""

    def say(of_gain: str, of_loss: str) -> str:
        return of_gain if gain else of_loss

    move = _move(before, after, "chain-forced")
    if move == "unknown":
        return (
            f"Habit or skill: not measured, so a behaviour used {say('more', 'less')} often and a "
            f"skill that is {say('new', 'lost')} cannot be told apart. {_how_to_measure(after[''])}"
        )
    first, last = before["chain-forced"], after["chain-forced"]
    way = f"{percent(first.accuracy)} before and {percent(last.accuracy)} after"
    if move == say("rose", "fell"):
        better, more = say("better", "worse"), say("more", "less")
        return (
            f"Skill: with the chain forced, accuracy {move} as well ({way}, "
            f"{evidence(first, last)}): "
            f"{by} made the thinking itself {better}, not only {more} frequent."
        )
    if move in ("rose", "fell"):
        return f"With the chain forced, accuracy {move} ({way}, {evidence(first, last)})."
    if move == "unsettled":
        return (
            f"With the chain forced, accuracy was {way}; the intervals overlap, so whether {by} "
            f"{say('added', 'cost')} skill is not settled."
        )
    margin = f"a move smaller than its interval ({_half_width(first)})"
    if _above(after[""], first) if gain else _above(before[""], last):
        compared = say(
            "now does better than its forced chain did before, so thinking alone does not account "
            "for the gain",
            "did better before than its forced chain does now, so thinking alone does not account "
            "for it",
        )
        return f"With the chain forced, accuracy was {way}, {margin}; yet the policy {compared}."
    did = say(
        "selected a behaviour the policy already had", "made the policy use less of what it can do"
    )
    return (
        f"Habit: {by} {did}{_behaviour(before[''], after[''])}; it did not measurably "
        f"{say('add', 'cost')} skill: with the chain forced, accuracy was {way}, {margin}."
    )


def _how_to_measure(after: SetResult) -> str:
    """What tells a habit from a skill: the forced chain where there is one, else a prompt."""
    if after.thinking:
        return "evals.forced (--evals.forced true) measures it: the chain is forced at both ends."
    return (
        "Without a chain of thought to force (evals.forced), ask the untrained policy in its best "
        "prompt, with as many tokens: what that reaches, it could do already."
    )


def _above(a: SetResult, b: SetResult) -> bool:
    return a.interval is not None and b.interval is not None and a.interval[0] > b.interval[1]


def _half_width(result: SetResult) -> str:
    low, high = result.interval or (0.0, 0.0)
    return f"±{fixed(50 * (high - low))} points"


def _behaviour(before: SetResult, after: SetResult) -> str:
    if before.thinking is None or after.thinking is None:
        return ""
    if abs(after.thinking - before.thinking) < THINKING_RISE:
        return ""
    return (
        f" (thinking first: {percent(before.thinking)} of completions before, "
        f"{percent(after.thinking)} after)"
    )


def _changed(before: Figures, after: Figures, mode: str) -> str:
    what = {
        "chain-forced": "With the chain forced, accuracy",
        "direct-forced": "With direct answers forced, accuracy",
        "sampled": "Sampled accuracy",
    }[mode]
    verb, first, last = _move(before, after, mode), before[mode], after[mode]
    way = f"from {percent(first.accuracy)} to {percent(last.accuracy)}"
    return f"{what} {verb} {way}, {evidence(first, last)}."


def _pass_at(before: Figures, after: Figures) -> list[str]:
    """One sentence for the first mode that has pass@k on both sides: smallest and largest k."""
    for mode in before:
        common = at_both(before[mode], after[mode]) if mode in after else []
        if len(common) >= 2:
            ways = [_way(before[mode], after[mode], k) for k in (common[0], common[-1])]
            return [f"Over samples, {ways[0]} and {ways[1]}."]
    return []


def at_both(before: SetResult, after: SetResult) -> list[int]:
    """The k of which both ends have pass@k."""
    return sorted({*before.pass_at} & {*after.pass_at})


def at(result: SetResult, k: int) -> SetResult:
    """pass@k as figures of its own; pass@1 is the accuracy, with its interval and paired test."""
    if k == 1:
        return result
    test = result.pass_paired.get(k)
    return SetResult(result.pass_at[k], result.pass_interval.get(k), paired=test)


def _way(before: SetResult, after: SetResult, k: int) -> str:
    first, last = at(before, k), at(after, k)
    move = moved(first, last)
    verb = move if move in ("rose", "fell") else "went"
    ends = " to ".join(
        f"{percent(one.accuracy)}{(one.interval and f' [{span(one.interval)}]') or ''}"
        for one in (first, last)
    )
    open_ends = {
        "unknown": "no intervals given",
        "within": "no change shown",
        "unsettled": "not settled",
    }
    shown = open_ends.get(move) or evidence(first, last)
    if k > 1 and (test := last.paired) is not None:
        shown += f": {points(test.difference)} points {', '.join(paired_words(test))}"
    return f"pass@{k} {verb} from {ends} ({shown})"
