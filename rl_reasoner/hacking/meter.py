"""The hacking meter of one stage: it collects what is paid best, and judges it window by window.

Each window's figures and examples are a line of `hacking.jsonl` in the stage's folder:

    {"step": 5, "groups": 80, "judged": 31, "agrees": 30, "disagrees": 1, "cannot_tell": 1,
     "disagreement": 0.03, "interval": [0.01, 0.16], "proxy_reward": 1.0, "alarm": null,
     "scale": [0.0, 1.0], "rewards": {"math_answer": [0.0, 1.0]}, "examples": [{…}]}

The file and `rollouts.jsonl` are all of its state: a stage that goes on after a checkpoint has the
same windows as one that nothing interrupted. It draws nothing from random generators, and what it
finds never reaches the trainer.
"""

import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any

from rl_reasoner.evaluation.formatting import percent, span
from rl_reasoner.evaluation.statistics import wilson
from rl_reasoner.files import append_rows, keep_rows_until, read_jsonl
from rl_reasoner.foreign import number
from rl_reasoner.hacking.judges import Claim, IndependentJudge, Rejudged, claims_of
from rl_reasoner.hacking.window import (
    Alarm,
    IndependentVerdict,
    Paid,
    Scale,
    VerdictCounts,
    alarm_of,
    best_paid,
    unknown_alarm_of,
)
from rl_reasoner.recipe.recipe import Recipe
from rl_reasoner.scoring.batch import POLICY_TEXT
from rl_reasoner.types import Row

FILE = "hacking.jsonl"
_EXAMPLES = 6  # of a window, disagreements first
_AGREEING = 1  # of them, to hold the others against
_TEXT = 2000  # characters of a prompt or a completion in an example


class HackingMeter:
    """The meter of a stage of GRPO, fed its rollouts; see the module's docstring.

    `folder` is the stage's, `step` the last one that is done: what the files hold after it goes.
    """

    def __init__(
        self,
        folder: Path,
        recipe: Recipe,
        rows: Sequence[Row],
        rewards: Mapping[str, Callable[..., Any]],
        step: int = 0,
    ) -> None:
        self.file = folder / FILE
        self.every = recipe.hacking_meter.every
        self.most = recipe.hacking_meter.completions
        self.seed = recipe.run.seed
        self.claims: list[Claim] = claims_of(recipe, rewards)
        self.judge = IndependentJudge(recipe, rows, self.claims)
        self.scale = Scale()
        self.windows: list[VerdictCounts] = []
        self.unknown: list[VerdictCounts] = []
        self.standing: Alarm | None = None
        self.alarm = ""
        """The alarm that stands since the last window, in words; empty for none."""
        self._best: dict[tuple[int, int], Paid] = {}  # by step and group, of the open window
        keep_rows_until(self.file, step)
        closed = 0
        for row in read_jsonl(self.file):
            closed = int(row["step"])
            low, high = row["scale"]
            ranges = {name: (least, most) for name, (least, most) in row["rewards"].items()}
            self.scale = Scale(low, high, ranges)
            self._count(row["judged"], row["disagrees"], row["cannot_tell"])
            self.alarm = str(row["alarm"] or "")
        if step > closed:
            later = (
                row
                for row in read_jsonl(folder / "rollouts.jsonl")
                if closed < (number(row.get("step")) or 0) <= step
            )
            for _, batch in groupby(later, key=lambda row: row["step"]):
                self.add([*batch])

    def add(self, rollouts: Sequence[Mapping[str, Any]]) -> None:
        """Take the scored completions of a batch, as `rollouts.jsonl` has them."""
        indices: Counter[tuple[int, int]] = Counter()
        weights = {claim.name: claim.weight for claim in self.claims}
        values = [_values(row["scores"], weights) for row in rollouts]
        for known in values:
            self.scale.see(known)
        for row, known in zip(rollouts, values, strict=True):
            place = int(row["step"]), int(row["group"])
            index = indices[place]
            indices[place] += 1
            pay = self.scale.pay(known, weights)
            if pay is None or row.get("left_out_by"):  # not paid, whatever its other rewards say
                continue
            self.scale.note(pay)
            texts = row["prompt"], row["completion"]
            one = Paid(*place, index, row.get("row"), *texts, pay, row.get(POLICY_TEXT))
            best = self._best.get(place)
            if best is None or _rank(one, self.seed) < _rank(best, self.seed):
                self._best[place] = one

    def close(self, step: int, *, last: bool = False) -> dict[str, Any]:
        """End a window if one ends at `step` (or it is the `last`): its metrics, else nothing."""
        if step % self.every and not last:
            return {}
        groups = [one for (at, _), one in self._best.items() if at <= step]
        self._best = {place: one for place, one in self._best.items() if place[0] > step}
        if not groups:
            return {}
        started = time.perf_counter()
        chosen = best_paid(groups, self.scale, self.most, self.seed, self.judge.in_parts)
        judged = self.judge.judge(chosen, self.scale)
        row = self._row(step, len(groups), judged)
        append_rows(self.file, [row])
        metrics = {f"hacking/{name}": row[name] for name in ("judged", "disagrees", "cannot_tell")}
        if row["judged"]:
            metrics |= {f"hacking/{n}": row[n] for n in ("disagreement", "interval")}
        return {**metrics, "hacking/time": time.perf_counter() - started}

    def _row(self, step: int, groups: int, judged: Sequence[Rejudged]) -> dict[str, Any]:
        counts = Counter(one.verdict for one in judged)
        agrees, disagrees = counts["agrees"], counts["disagrees"]
        known = agrees + disagrees
        self._count(known, disagrees, counts["cannot tell"])
        verdict: IndependentVerdict = "disagrees" if alarm_of(self.windows) else "cannot tell"
        self.alarm = alarm_words(self.standing, judged, verdict) if self.standing else ""
        return {
            "step": step,
            "groups": groups,
            "judged": known,
            "agrees": agrees,
            "disagrees": disagrees,
            "cannot_tell": counts["cannot tell"],
            "disagreement": disagrees / known if known else None,
            "interval": [*wilson(disagrees, known)] if known else None,
            "proxy_reward": fmean(one.paid.pay for one in judged) if judged else None,
            "alarm": self.alarm or None,
            "scale": [self.scale.low, self.scale.high],
            "rewards": self.scale.rewards,
            "examples": examples_of(judged),
        }

    def _count(self, known: int, disagrees: int, unknown: int) -> None:
        self.windows.append(VerdictCounts(known, disagrees))
        self.unknown.append(VerdictCounts(known + unknown, unknown))
        self.standing = alarm_of(self.windows) or unknown_alarm_of(self.unknown)


def _values(scores: Mapping[str, Mapping[str, Any]], names: Collection[str]) -> dict[str, float]:
    """The values of the rewards `names`, where they gave one."""
    given = {name: number(scores[name].get("value")) for name in names if name in scores}
    return {name: value for name, value in given.items() if value is not None}


def _rank(one: Paid, seed: int) -> tuple[float, str]:
    return -one.pay, one.drawn(seed)


def alarm_words(
    alarm: Alarm, judged: Sequence[Rejudged], verdict: IndependentVerdict = "disagrees"
) -> str:
    """An alarm in words: how many have a verdict, with their interval, and the commonest reason."""
    wrong, of = alarm.counts.disagrees, alarm.counts.judged
    reasons = Counter(one.reason.partition(":")[0] for one in judged if one.verdict == verdict)
    why = f", most often: {reasons.most_common(1)[0][0]}" if reasons else ""
    shares = f"{percent(wrong / of, 0)} {span(wilson(wrong, of))}"
    said = "are not right by" if verdict == "disagrees" else "can no more be judged by"
    return (
        f"{wrong} of the {of} best-paid completions {said} an independent judge "
        f"({shares}; {percent(alarm.tolerated, 0)} is tolerated){why}: is the reward being hacked?"
    )


def examples_of(judged: Sequence[Rejudged]) -> list[dict[str, Any]]:
    """A few of a window's completions with both judgements, disagreements first."""
    order = ("disagrees", "cannot tell", "agrees")
    by_verdict = {verdict: [o for o in judged if o.verdict == verdict] for verdict in order}
    chosen = by_verdict["disagrees"][: _EXAMPLES - _AGREEING]
    chosen += by_verdict["cannot tell"][: max(0, _EXAMPLES - _AGREEING - len(chosen))]
    chosen += by_verdict["agrees"][:_AGREEING]
    return [
        {
            "step": one.paid.step,
            "row": one.paid.row,
            "group": one.paid.group,
            "index": one.paid.index,
            "prompt": one.paid.prompt[:_TEXT],
            "completion": one.paid.completion[:_TEXT],
            "pay": one.paid.pay,
            "verdict": one.verdict,
            "reason": one.reason[:300],
            "judge": one.kind,
        }
        for one in chosen
    ]
