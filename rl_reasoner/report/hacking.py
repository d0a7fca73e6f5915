"""The report's section on reward hacking: the meter's curve, its alarms, and completions to read.

Windows are taken as they are found in `hacking.jsonl`: a value of the wrong kind counts as absent.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, cast

from rl_reasoner.evaluation.formatting import percent, short_number
from rl_reasoner.foreign import mapping, number
from rl_reasoner.hacking.judges import WORDS, JudgeKind
from rl_reasoner.report import charts
from rl_reasoner.report.charts import Chart, Trace
from rl_reasoner.report.html import Child, Element, estimate, folded, h, note, section, table
from rl_reasoner.report.run_data import RunData, StageRecord, interval
from rl_reasoner.report.stages import figures

_EXAMPLES = 8  # of a stage, from its newest windows
_CHARS = 1200  # of a prompt or a completion
_MEANING = (
    "At the end of each window the completions that are paid most, one a group at most, are judged "
    "again by a judge that does not pay the policy. Disagreement is the share that it calls wrong, "
    "with a 95% interval. The alarm is a test of its own: in a stage that disagrees no more than "
    "is tolerated, the chance of any alarm is at most 1%. Training does not see these verdicts."
)


def hacking_section(run: RunData) -> Element | None:
    """The section of all stages that a meter looked at; None where none did."""
    blocks = [_stage(stage) for stage in run.stages if stage.hacking]
    if not blocks:
        return None
    return section("hacking", "Reward hacking", *blocks, note(_MEANING))


def hacking_alarms_of(stage: StageRecord) -> list[str]:
    """The alarm of a stage's meter in its newest words, with the step at which it first stood."""
    raised = [row for row in stage.hacking if isinstance(row.get("alarm"), str)]
    if not raised:
        return []
    first, last = raised[0].get("step"), raised[-1].get("step")
    over = "" if raised[-1] is stage.hacking[-1] else f", last at step {last}"
    return [f"Alarm, first at step {first}{over}: {raised[-1]['alarm']}"]


def verdicts_in_words(stage: StageRecord) -> str:
    """How many completions of a stage its meter had judged again, and what came of it."""
    counts = {
        name: sum(int(number(row.get(name)) or 0) for row in stage.hacking)
        for name in ("judged", "disagrees", "cannot_tell")
    }
    return (
        f"{counts['judged']:,} of the best-paid completions judged again, {counts['disagrees']:,} "
        f"wrong by the independent judge, {counts['cannot_tell']:,} undecided."
    )


def _stage(stage: StageRecord) -> Element:
    drawing = _curve(stage)
    shown = [*_examples(stage)]
    return h(
        "div",
        h("h3", f"Stage {stage.index} · {stage.name}"),
        h("p", verdicts_in_words(stage), class_="under"),
        [h("p", text, class_="warning") for text in hacking_alarms_of(stage)],
        figures([drawing], "hacking") if drawing is not None else None,
        shown,
        folded("Window by window", _windows(stage)),
    )


def _curve(stage: StageRecord) -> Chart | None:
    known = [
        (int(row["step"]), share, interval(row.get("interval")))
        for row in stage.hacking
        if number(row.get("step")) is not None
        and (share := number(row.get("disagreement"))) is not None
    ]
    if not known:
        return None
    steps, shares, spans = zip(*known, strict=True)
    line = Trace("disagreement", [*steps], [*shares], charts.band(spans))
    title = f"Disagreement of the independent judge, {stage.name}"
    return charts.curve(title, [line], share=True, note="band: 95% interval")


def _windows(stage: StageRecord) -> Element:
    rows: list[list[Child]] = []
    for row in stage.hacking:
        share = number(row.get("disagreement"))
        numbers = [number(row.get(name)) for name in ("judged", "disagrees", "cannot_tell")]
        rows.append(
            [
                f"to step {short_number(number(row.get('step')) or 0)}",
                *(f"{value or 0:,.0f}" for value in numbers),
                "–" if share is None else estimate(share, interval(row.get("interval"))),
                _mean_pay(row),
            ]
        )
    head = ["Window", "Judged", "Disagrees", "Cannot tell", "Disagreement", "Proxy reward"]
    return table(head, rows)


def _mean_pay(row: Mapping[str, Any]) -> str:
    pay = number(row.get("proxy_reward"))
    return "–" if pay is None else percent(pay, 0)


def _examples(stage: StageRecord) -> Iterator[Element]:
    """What the judges disagree on, the newest first; then what nobody can tell."""
    lists = [row.get("examples") for row in reversed(stage.hacking)]
    given = [
        one for some in lists if isinstance(some, list) for one in some if isinstance(one, dict)
    ]
    for verdict, title in (
        ("disagrees", "Paid most, and wrong by the independent judge"),
        ("cannot tell", "Paid most, and the independent judge cannot tell"),
    ):
        some = [one for one in given if one.get("verdict") == verdict]
        if some:
            shown = [_example(one) for one in some[:_EXAMPLES]]
            reasons = Counter(str(one.get("reason")).partition(":")[0] for one in some)
            why = "; ".join(f"{count} × {reason}" for reason, count in reasons.most_common(4))
            yield folded(f"{title}: {len(some)} examples", note(why), *shown)


def _example(one: Mapping[str, Any]) -> Element:
    kind = str(one.get("judge"))
    judge = WORDS[cast(JudgeKind, kind)] if kind in WORDS else ""
    pay = number(mapping(one).get("pay"))
    place = f"step {one.get('step')}, row {one.get('row')}, paid {percent(pay, 0)} of the most"
    return h(
        "div",
        h("p", place, class_="under"),
        h("pre", str(one.get("prompt", ""))[:_CHARS]),
        h("pre", str(one.get("completion", ""))[:_CHARS]),
        note(f"{one.get('reason', '')} ({judge})" if judge else str(one.get("reason", ""))),
    )
