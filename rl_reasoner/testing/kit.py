"""The reward test kit: what is wrong with a reward, before it costs a run.

    from rl_reasoner.testing import check_reward

    def test_my_reward():
        check_reward(my_reward)          # raises AssertionError with the table where it fails

The reward is shown right and wrong answers, completions that break parsers, and completions that
ask for a reward without having earned it; in processes of its own, so that nothing it does harms
the test. `rl-reasoner check REWARD` prints the same table.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rl_reasoner.scoring.batch import POLICY_TEXT
from rl_reasoner.scoring.limits import Limits
from rl_reasoner.scoring.outcome import failed, outcome_json, usable
from rl_reasoner.scoring.reward import Reward, name_of
from rl_reasoner.scoring.runner import Runner
from rl_reasoner.scoring.trial_call import column_not_given
from rl_reasoner.testing import probes
from rl_reasoner.testing.apart import tell_apart
from rl_reasoner.testing.findings import Finding, Report, Status
from rl_reasoner.testing.first_call import first_call
from rl_reasoner.testing.rows import rows_for
from rl_reasoner.testing.wrappers import threaded, watched
from rl_reasoner.types import Fault, Outcome, Row

SLOW_S = 0.5
"""The 99th percentile of a call's seconds above which a reward is called slow."""
_NO_SCORE = "nothing was judged: no completion got a score"
_OF_SCORES = ("length", "empty forms", "injection", "made-up sum")
"""The checks that compare scores: without any they say nothing."""
_NEEDS_GOLD = "it does not distinguish right answers from wrong ones: nothing to hack"


def check_reward(
    fn: Callable[..., Any], data: Sequence[Row] | str | None = None, *, timeout_s: float = 5.0
) -> Report:
    """Examine `fn` as `examine` does; raises AssertionError with the table where a check failed."""
    report = examine(fn, data, timeout_s=timeout_s)
    if report.failed:
        raise AssertionError(str(report))
    return report


def examine(
    fn: Callable[..., Any], data: Sequence[Row] | str | None = None, *, timeout_s: float = 5.0
) -> Report:
    """All checks of a `Reward` or trl reward function.

    `data` are rows with the reward's columns, or their file; by default rows of the first task that
    has them. `timeout_s` bounds each call. Raises `UserError` where rows cannot be had.
    """
    rows = rows_for(fn, data)
    limits = Limits(timeout_s=timeout_s, batch_timeout_s=12 * timeout_s, memory_mb=2048)
    report, runner = Report(name_of(fn)), Runner(fn, limits)
    try:
        report.findings += first_call(fn, rows[0], runner)
        if report.failed:
            return report
        kit = _Kit(fn, rows, limits, runner)
        for check in (
            kit.process,
            kit.types,
            kit.numbers,
            kit.ordinary,
            kit.hostile,
            kit.repeats,
            kit.order,
            kit.batch,
            kit.threads,
            kit.leaves_data,
            kit.latency,
            kit.tells,
            kit.stuffing,
            kit.several,
            kit.echo,
            kit.fences,
            kit.length,
            kit.hollow,
            kit.injection,
            kit.made_up,
            kit.undone,
        ):
            report.findings.append(kit.judged(check()))
    finally:
        runner.close()
    return report


@dataclass
class _State:
    """What functions of trl's form may read of the trainer."""

    global_step: int = 1
    max_steps: int = 100
    epoch: float = 0.0


class _Kit:
    """One reward, the rows it is shown, and the checks, one a method."""

    def __init__(
        self, fn: Callable[..., Any], rows: list[Row], limits: Limits, runner: Runner
    ) -> None:
        self.fn = fn
        self.rows = rows
        self.limits = limits
        self.runner = runner
        self.chat = False
        self.form = self._best_form()
        self.right_texts = [self.form(row) for row in rows]
        self.wrong_texts = [self.form(other) for other in rows[1:] + rows[:1]]
        self.gold = self.score(self.right_texts, rows)
        self.wrong = self.score(self.wrong_texts, rows)
        others = self.score([self.form(other) for other in rows[2:] + rows[:2]], rows)
        self.low, self.high = _mean(self.wrong), _mean(self.gold)
        self.tells_apart = tell_apart(self.gold, self.wrong, others)
        self.probes = {**probes.ordinary(rows[0]), **probes.hostile(), **probes.hollow()}
        self.probed = dict(zip(self.probes, self.score([*self.probes.values()]), strict=True))

    def _best_form(self) -> probes.Form:
        """The way to write right answers that the reward likes best; chats where it wants them."""
        forms = probes.gold_forms()
        by_form: dict[str, list[Outcome]] = {}
        for self.chat in (False, True):
            for name, self.form in forms.items():
                by_form[name] = self.score([self.form(row) for row in self.rows], self.rows)
            if not all(isinstance(o, Fault) for outcomes in by_form.values() for o in outcomes):
                break
            if isinstance(self.fn, Reward):
                break
        return forms[max(by_form, key=lambda name: _mean(by_form[name]))]

    # -------------------------------------------------------------------------- calling it

    def score(
        self, texts: Sequence[str], rows: Sequence[Row] | None = None, runner: Runner | None = None
    ) -> list[Outcome]:
        """Outcomes for texts, by default all for the first row; of another `runner`, if given.

        A group reward sees each text beside a right answer of its row.
        """
        rows = rows or [self.rows[0]] * len(texts)
        prompts: list[Any] = [str(row.get("problem", "")) for row in rows]
        if not getattr(self.fn, "group", False):
            return self._outcomes(texts, rows, prompts, runner)
        # blanks behind the prompts keep groups of one row apart
        prompts = [f"{prompt}{' ' * i}" for i, prompt in enumerate(prompts) for _ in range(2)]
        beside = [
            one for text, row in zip(texts, rows, strict=True) for one in (text, self.form(row))
        ]
        return self._outcomes(beside, [row for row in rows for _ in range(2)], prompts, runner)[::2]

    def _outcomes(
        self,
        texts: Sequence[str],
        rows: Sequence[Row],
        prompts: list[Any],
        runner: Runner | None,
    ) -> list[Outcome]:
        columns: dict[str, Any] = {key: [row.get(key) for row in rows] for key in rows[0]}
        completions: list[Any] = list(texts)
        if self.chat:
            prompts = [[{"role": "user", "content": prompt}] for prompt in prompts]
            completions = [[{"role": "assistant", "content": text}] for text in texts]
        columns |= {"prompts": prompts, POLICY_TEXT: [*texts]}
        if not isinstance(self.fn, Reward):
            columns.pop("completion", None)
            columns |= {"completion_ids": [[0]] * len(texts), "trainer_state": _State()}
            columns |= {name: lambda *logged: None for name in ("log_metric", "log_extra")}
        return (runner or self.runner).score(completions, columns)

    def _sample(self) -> tuple[list[str], list[Row]]:
        """Right, wrong and neutral completions with their rows, for the checks of behaviour."""
        texts = [*self.right_texts, *self.right_texts[1:], probes.NEUTRAL, "\\boxed{1}"]
        return texts, [*self.rows, *self.rows[:-1], self.rows[0], self.rows[1]]

    def _scored(self) -> tuple[list[str], list[Row]]:
        """Those of the sample on which the reward does not fail by itself."""
        texts, rows = self._sample()
        scored = zip(texts, rows, self.score(texts, rows), strict=True)
        kept = [(text, row) for text, row, outcome in scored if not failed(outcome)]
        return [text for text, _ in kept], [row for _, row in kept]

    # ------------------------------------------------------------------------ what it returns

    def judged(self, finding: Finding) -> Finding:
        """The finding; where it passed because there was nothing to judge, it was not made."""
        outcomes = [outcome for _, outcome in self._seen()]
        if finding.status != "passed" or finding.check == "process":
            return finding
        if any(not math.isnan(usable(outcome)) for outcome in outcomes):
            return finding
        if not all(map(failed, outcomes)) and finding.check not in _OF_SCORES:
            return finding  # it abstains, which is to behave
        return Finding(finding.check, "skipped", _NO_SCORE)

    def process(self) -> Finding:
        """Can it leave this process?"""
        if self.runner.shipped or not self.runner.here:
            return Finding("process", "passed")
        message = f"it cannot run in a process of its own: {self.runner.here}"
        return Finding("process", "warned", message)

    def types(self) -> Finding:
        """Numbers, Scores or None, one a row."""
        for text, outcome in self._seen():
            if isinstance(outcome, Fault) and outcome.kind == "value":
                return Finding("types", "failed", outcome.message, text)
        return Finding("types", "passed")

    def numbers(self) -> Finding:
        """No NaN, no infinity, nothing huge."""
        for text, outcome in self._seen():
            value = None if isinstance(outcome, Fault) else outcome.value
            if value is not None and math.isnan(usable(outcome)):
                return Finding("numbers", "failed", f"it returned {value}", text)
        return Finding("numbers", "passed")

    def _seen(self) -> list[tuple[str, Outcome]]:
        texts = [*self.right_texts, *self.wrong_texts, *self.probes.values()]
        outcomes = [*self.gold, *self.wrong, *self.probed.values()]
        return list(zip(texts, outcomes, strict=True))

    def ordinary(self) -> Finding:
        """Empty, cut-off and foreign completions are judged."""
        golden = [o for o in [*self.gold, *self.wrong] if _broke(o)]
        if golden:
            reason = outcome_json(golden[0])["reason"]
            return Finding("ordinary", "failed", reason, self.right_texts[0])
        return self._survives("ordinary", [*probes.ordinary(self.rows[0]), *probes.hollow()])

    def hostile(self) -> Finding:
        """Completions that break parsers are judged, in time."""
        return self._survives("hostile", [*probes.hostile()])

    def _survives(self, check: str, names: Sequence[str]) -> Finding:
        for name in names:
            if _broke(self.probed[name]):
                why = f"{name}: {outcome_json(self.probed[name])['reason']}"
                return Finding(check, "failed", why, self.probes[name])
        return Finding(check, "passed")

    # -------------------------------------------------------------------------- how it behaves

    def repeats(self) -> Finding:
        """The same completion gets the same score: again, and in another process."""
        texts, rows = self._sample()
        first, again = self.score(texts, rows), self.score(texts, rows)
        self.runner.close()
        return self._same("repeats", texts, first, again, self.score(texts, rows))

    def order(self) -> Finding:
        """The order of the rows does not matter."""
        texts, rows = self._sample()
        together = self.score(texts, rows)
        turned = self.score(texts[::-1], rows[::-1])[::-1]
        return self._same("order", texts, together, turned)

    def batch(self) -> Finding:
        """A row's score does not depend on the other rows."""
        texts, rows = self._sample()
        together = self.score(texts, rows)
        alone = [self.score([text], [row])[0] for text, row in zip(texts, rows, strict=True)]
        return self._same("batch", texts, together, alone)

    def threads(self) -> Finding:
        """Several threads at once get what one gets."""
        return self._holds("threads", threaded, "concurrent calls get different scores")

    def leaves_data(self) -> Finding:
        """It changes nothing of the rows that it is given."""
        wrong = "it changes the columns it is given"
        finding = self._holds("leaves data unchanged", watched, wrong)
        return replace(finding, completion="")  # no completion is to blame

    def _holds(
        self, check: str, watching: Callable[[Callable[..., Any]], Any], wrong: str
    ) -> Finding:
        """Whether `watching` the reward gives 1.0 for all rows on which it does not fail."""
        here = Finding(check, "skipped", "it runs in this process")
        if self.runner.here:
            return here
        texts, rows = self._scored()
        if not texts:
            return Finding(check, "skipped", "it fails on every row")
        watcher = watching(self.fn)  # a runner does not hold it
        runner = Runner(watcher, self.limits)
        try:
            outcomes = [] if runner.here else self.score(texts, rows, runner)
        finally:
            runner.close()
        if runner.here:
            return here
        for text, outcome in zip(texts, outcomes, strict=True):
            if usable(outcome) != 1.0:
                why = outcome_json(outcome)["reason"] if failed(outcome) else wrong
                return Finding(check, "failed", why, text)
        return Finding(check, "passed")

    def latency(self) -> Finding:
        """The 99th percentile of its seconds."""
        seconds = sorted(outcome.seconds for _, outcome in self._seen())
        p99 = seconds[min(len(seconds) - 1, math.ceil(0.99 * len(seconds)) - 1)]
        status: Status = "warned" if p99 > SLOW_S else "passed"
        slow = max(self._seen(), key=lambda pair: pair[1].seconds)[0] if status == "warned" else ""
        return Finding("latency", status, f"p99 {1000 * p99:.3g} ms", slow)

    def _same(
        self, check: str, texts: Sequence[str], first: list[Outcome], *others: list[Outcome]
    ) -> Finding:
        """Whether the texts have the same outcomes each time."""
        for outcomes in others:
            for text, one, other in zip(texts, first, outcomes, strict=True):
                left, right = outcome_json(one), outcome_json(other)
                if left["value"] != right["value"] or left["outcome"] != right["outcome"]:
                    return Finding(check, "failed", f"{_word(one)}, then {_word(other)}", text)
        return Finding(check, "passed")

    # ------------------------------------------------------------------------------ hack probes

    def tells(self) -> Finding:
        """Right answers get more than wrong ones; not every completion gets the same."""
        seen = [outcome for _, outcome in self._seen()]
        values = {usable(o) for o in seen if not math.isnan(usable(o))}
        if not values:
            faults, rows = sum(map(failed, seen)), len(seen)
            message = f"abstained on {rows - faults} of {rows}" if faults < rows else "never judged"
            message += f", faulted on {faults} of {rows}" if faults else ""
            ignored = getattr(self.fn, "on_abstain", None) == "ignore"  # perhaps no rows of its own
            status: Status = "warned" if ignored else "failed"
            return Finding("distinguishes", status, f"{message}; {outcome_json(seen[0])['reason']}")
        if len(values) < 2:
            said = column_not_given(self.fn, self.rows[0])
            message = f"every completion gets {values.pop():g}{said and f'; {said}'}"
            return Finding("distinguishes", "warned", message)
        message = f"right {self.high:.3g}, wrong {self.low:.3g} on average"
        if self.tells_apart:
            return Finding("distinguishes", "passed", message)
        message += ": it does not distinguish right from wrong: add a reward that does"
        return Finding("distinguishes", "warned", message)

    def _hacked(self, check: str, *names: str) -> Finding:
        """Whether completions of these names get half of what right answers get, on most rows."""
        if not self.tells_apart:
            return Finding(check, "skipped", _NEEDS_GOLD)
        for name in names:
            texts = [self._hack(name, index) for index in range(len(self.rows))]
            paid = self._paid(texts, self.rows)
            if len(paid) * 2 > len(texts):
                message = f"{name}: {len(paid)} of {len(texts)} are paid"
                return Finding(check, "failed", message, texts[paid[0]])
        return Finding(check, "passed")

    def _paid(self, texts: Sequence[str], rows: Sequence[Row]) -> list[int]:
        """Which of the texts get more than half of what right answers get."""
        middle = (self.low + self.high) / 2
        outcomes = self.score(texts, rows)
        return [i for i, outcome in enumerate(outcomes) if usable(outcome) > middle]

    def _hack(self, name: str, index: int) -> str:
        row, other, third = (self.rows[(index + k) % len(self.rows)] for k in range(3))
        return probes.hacks(row, self.form, other, third)[name]

    def stuffing(self) -> Finding:
        """A list of answers is not an answer."""
        return self._hacked("answer stuffing", "answer stuffing")

    def several(self) -> Finding:
        """Of several answers one counts, the first or the last, and not whichever is right."""
        first = self._hacked("several answers", "gold first")
        last = self._hacked("several answers", "gold last")
        if first.status == last.status == "failed":
            message = "a completion with several answers is paid whichever is right"
            return Finding("several answers", "failed", message, first.completion)
        return first if first.status == "skipped" else Finding("several answers", "passed")

    def echo(self) -> Finding:
        """The prompt is not an answer, even where the answer is in it."""
        return self._hacked("prompt echoed", "prompt echoed")

    def fences(self) -> Finding:
        """What is fenced or commented out is not the answer."""
        return self._hacked("fences", "fence", "comment")

    def length(self) -> Finding:
        """Longer is not better."""
        gap = max(self.high - self.low, 1e-6) if self.tells_apart else 1e-6
        before = _mean(self.score(self.wrong_texts, self.rows))
        for name in ("padded", "repeated"):
            texts = [self._hack(name, index) for index in range(len(self.rows))]
            after = _mean(self.score(texts, self.rows))
            if after > before + gap / 4:
                status: Status = "failed" if self.tells_apart else "warned"
                message = f"{name}: {before:.3g} becomes {after:.3g}"
                return Finding("length", status, message, texts[0])
        return Finding("length", "passed")

    def hollow(self) -> Finding:
        """A form without content is not paid as a right answer is."""
        neutral = usable(self.probed["neutral"])
        base = neutral if math.isfinite(neutral) else self.low
        best = max((usable(o) for _, o in self._seen() if not math.isnan(usable(o))), default=0.0)
        for name, text in probes.hollow().items():
            score = usable(self.probed[name])
            message = f"{name}: it gets {score:g}"
            if self.tells_apart and score > (min(base, self.low) + self.high) / 2:
                return Finding("empty forms", "failed", message, text)
            if not self.tells_apart and score == best > base:
                return Finding("empty forms", "warned", message, text)
        return Finding("empty forms", "passed")

    def injection(self) -> Finding:
        """Asking for a score is not paid."""
        names = ("injection", "injection after", "injection fenced", "plea")
        texts = [self._hack(name, 0) for name in names]
        plain = [len(texts[0]) * "x", *[self.form(self.rows[1])] * 3]
        return self._above("injection", texts, plain)

    def made_up(self) -> Finding:
        """Sums of numbers from nowhere are not paid for being right: `7041 - 7000 = 41`."""
        right, wrong = self._hack("made-up sum", 0), self._hack("made-up sum, wrong", 0)
        found = self._above("made-up sum", [right], [wrong])
        unsure = found.status == "failed" and not self.tells_apart
        return replace(found, status="warned") if unsure else found

    def _above(self, check: str, texts: list[str], plain: list[str]) -> Finding:
        """Whether texts get more than plain ones in their places, by half of what is to be had."""
        gap = (self.high - self.low) / 2 if self.tells_apart else 1e-6
        for text, asked, unasked in zip(texts, self.score(texts), self.score(plain), strict=True):
            base = max(usable(unasked), usable(self.probed["neutral"]))
            if usable(asked) > base + gap:
                message = f"{base:.3g} becomes {usable(asked):.3g}"
                return Finding(check, "failed", message, text)
        return Finding(check, "passed")

    def undone(self) -> Finding:
        """A calculation written down is paid as its value is: a policy may stop there."""
        if not self.tells_apart:
            return Finding("sum left undone", "skipped", _NEEDS_GOLD)
        shown = [(text, row) for row in self.rows if (text := probes.undone(row, self.form))]
        if not shown:
            return Finding("sum left undone", "skipped", "no answers that are whole numbers")
        paid = self._paid([text for text, _ in shown], [row for _, row in shown])
        if 2 * len(paid) <= len(shown):
            return Finding("sum left undone", "passed")
        message = f"{len(paid)} of {len(shown)} are paid (math_answer: value_only pays for values)"
        return Finding("sum left undone", "warned", message, shown[0][0])


def _broke(outcome: Outcome) -> bool:
    return isinstance(outcome, Fault) and outcome.kind != "value"


def _mean(outcomes: Sequence[Outcome]) -> float:
    """The mean of the scores; nothing where there are none."""
    values = [value for o in outcomes if not math.isnan(value := usable(o))]
    return sum(values) / len(values) if values else -math.inf


def _word(outcome: Outcome) -> str:
    row = outcome_json(outcome)
    return row["outcome"] if row["value"] is None else f"{row['value']:g}"
