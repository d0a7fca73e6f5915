"""The report page from a `RunData`: what the gain is, results, how to get them again.

Its head is in `first_screen`, the stages' own sections are in `stages`, the page around them in
`shell`. A section is a function of the run that gives an element with an id and a heading, or None;
`SECTIONS` has them in order.
"""

import json
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rl_reasoner.evaluation.formatting import duration, fixed, percent, points, short_number, signed
from rl_reasoner.evaluation.labels import split_label
from rl_reasoner.foreign import mapping, printable
from rl_reasoner.report import charts
from rl_reasoner.report.charts import Bar, Trace
from rl_reasoner.report.controls import controls_section
from rl_reasoner.report.first_screen import (
    by_mode,
    cause_of,
    ends_of,
    first_screen,
    move_chip,
    other_models,
)
from rl_reasoner.report.gain import (
    Figures,
    at,
    at_both,
    explain_gain,
    mode_name,
    moved,
    paired_words,
)
from rl_reasoner.report.hacking import hacking_section
from rl_reasoner.report.html import Child, Element, estimate, folded, h, note, section, table
from rl_reasoner.report.paired import add_paired_tests
from rl_reasoner.report.pipeline import pipeline_section
from rl_reasoner.report.run_data import RunData, SetResult, StageRecord, title_in
from rl_reasoner.report.shell import browser_section, shell, show_button
from rl_reasoner.report.sources import run_sources
from rl_reasoner.report.stages import alarms_of, figures, stage_section

_REASONS_SHOWN = 8


def build_page(run: RunData, live: Mapping[str, Any] | None = None) -> str:
    """Build the whole page as HTML text; the same run gives the same text.

    `live` is for a page that is served while the run trains: see `shell`.
    """
    run = add_paired_tests(run)
    sources = run_sources(run)
    sections = [
        *[build(run) for build in SECTIONS],
        *map(stage_section, run.stages),
        browser_section(sources),
        *[build(run) for build in LAST_SECTIONS],
    ]
    footer = "Made by rl-reasoner from this run's folder."
    return shell(f"{run.name} – run report", sections, footer, sources, live)


# --- what the gain is


def _gain(run: RunData) -> Element | None:
    before, after = ends_of(run)
    others = other_models(run)
    blocks, moves = [], set()
    for base in dict.fromkeys(split_label(name)[0] for name in after):
        first, last = by_mode(before, base), by_mode(after, base)
        if "" not in first or "" not in last:
            continue
        both = first.keys() & last.keys()
        if len(both) >= 2 or (first[""].lenient and last[""].lenient):
            blocks.append(_gain_of_set(run, base, first, last, others))
            moves |= {moved(first[mode], last[mode]) for mode in both}
    if not blocks:
        return None
    title = {(True, False): "What the gain is", (False, True): "What the loss is"}
    meaning = (
        "Better or worse: the intervals are apart, or the paired test of the same problems finds "
        "a change (p under 0.05 after Holm's correction for the number of sets and modes; lenient "
        "accuracy and pass@k are corrected apart). Intervals that overlap alone do not prove that "
        "nothing changed. rl-reasoner compare has the problems that flipped. Lenient: the answer "
        "counts wherever a person reads it; what a strict gain has beyond the "
        "lenient one is form. Form says nothing of habit or skill."
    )
    heading = title.get(("rose" in moves, "fell" in moves), "What changed")
    heading = "What the difference is" if others else heading
    return section("gain", heading, *blocks, note(meaning))


def _gain_of_set(run: RunData, base: str, before: Figures, after: Figures, others: str) -> Element:
    """The change on a set, by mode; `others` is said of it where the ends are two models."""
    rows: list[list[Child]] = []
    for mode in [m for m in before if m in after]:
        a, b = before[mode], after[mode]
        rows.append(_change(mode_name(mode, b), a, b))
        if a.lenient is not None and b.lenient is not None:
            rows.append(_change(f"{mode_name(mode, b)}, lenient", a.lenient, b.lenient))
        ks = at_both(a, b)
        rows += [_change(f"pass@{k}", at(a, k), at(b, k)) for k in ks[-1:] if len(ks) > 1]
    first, last = before[""], after[""]
    if first.thinking is not None and last.thinking is not None:
        shares = [percent(first.thinking), percent(last.thinking)]
        rise = points(last.thinking - first.thinking)
        rows.append(["Share of thinking", *shares, rise, None, None])
    if first.mean_length is not None and last.mean_length is not None:
        lengths = [fixed(first.mean_length), fixed(last.mean_length)]
        more = signed(last.mean_length - first.mean_length)
        rows.append(["Mean length, tokens", *lengths, more, None, None])
    headline, *sentences = [others] if others else explain_gain(before, after, by=cause_of(run))
    return h(
        "div",
        h("h3", title_in(run, base)),
        h("div", h("p", h("strong", headline)), [h("p", s) for s in sentences], class_="callout"),
        table(["", "Before", "After", "Change", "On the same problems", ""], rows),
    )


def _change(name: str, a: SetResult, b: SetResult) -> list[Child]:
    moved_by = b.accuracy - a.accuracy if b.paired is None else b.paired.difference
    change = points(moved_by)
    paired: Child = None
    if b.paired:
        interval, p = paired_words(b.paired)
        paired = [interval, h("span", p, class_="interval")]
    ends = [estimate(one.accuracy, one.interval) for one in (a, b)]
    return [name, *ends, change, paired, move_chip(a, b)]


# --- results


def _results(run: RunData) -> Element | None:
    names = list(dict.fromkeys(name for e in reversed(run.evals) for name in e.sets))
    if not names:
        return None
    results = {n: [(e.name, e.sets[n]) for e in run.evals if n in e.sets] for n in names}
    groups = [
        (title_in(run, n), [Bar(label, r.accuracy, r.interval) for label, r in results[n]])
        for n in names
    ]
    drawings = [charts.bars("Accuracy", groups, note="lines are 95% intervals")]
    for name in names:
        if curves := [_pass_curve(label, r) for label, r in results[name] if len(r.pass_at) > 1]:
            drawings.append(charts.pass_at_k_chart(f"pass@k on {title_in(run, name)}", curves))
    charts_shown = figures(drawings, "evaluations")
    return section("evaluations", "Evaluations", charts_shown, _results_table(run, names))


def _pass_curve(label: str, result: SetResult) -> Trace:
    spans = [result.pass_interval.get(k) for k in result.pass_at]
    return Trace(label, [*result.pass_at], [*result.pass_at.values()], charts.band(spans))


def _results_table(run: RunData, names: Sequence[str]) -> Element:
    head = ["Set", "Evaluation", "Problems", "Samples", "Accuracy", "Lenient", "Cut off"]
    head.append("Mean length")
    rows: list[list[Child]] = []
    for name in names:
        for e in run.evals:
            if name in e.sets:
                result = e.sets[name]
                counts = [short_number(result.problems), short_number(result.samples)]
                length = result.mean_length
                lengths = [percent(result.truncated), "–" if length is None else fixed(length)]
                judged = [_accuracy(result), _accuracy(result.lenient)]
                rows.append([title_in(run, name), e.name, *counts, *judged, *lengths])
    return table(head, rows, numeric_from=2)


def _accuracy(result: SetResult | None) -> Child:
    return "–" if result is None else estimate(result.accuracy, result.interval)


# --- faults and time


def _faults(run: RunData) -> Element | None:
    """The rewards' outcomes, their commonest faults, and the alarms of evaluations."""
    rows: list[list[Child]] = []
    reasons: Counter[tuple[str, str, str]] = Counter()
    for stage in run.stages:
        kept = stage.rollouts
        for name, counts in kept.outcomes.items() if kept else ():
            cells = [f"{counts[outcome]:,}" for outcome in ("score", "abstain", "fault")]
            rows.append([f"{stage.name} · {name}", *cells])
        for (name, reason), count in kept.fault_reasons.items() if kept else ():
            reasons[f"stage-{stage.index}-rollouts", name, reason] += count
    alarms = [f"{stage.name}: {text}" for stage in run.stages for text in alarms_of(stage)]
    if not (rows or alarms):
        return None
    completions = sum(s.rollouts.completions for s in run.stages if s.rollouts)
    truncated = sum(s.rollouts.truncated for s in run.stages if s.rollouts)
    cut = f"{completions:,} completions, {percent(truncated / max(completions, 1))} cut off."
    return section(
        "faults",
        "Faults",
        [h("p", text, class_="warning") for text in alarms],
        h("p", cut, class_="under") if completions else None,
        table(["Reward", "Scores", "Abstentions", "Faults"], rows) if rows else None,
        [_reason(*place, count) for place, count in reasons.most_common(_REASONS_SHOWN)],
    )


def _reason(source: str, name: str, reason: str, count: int) -> Element:
    """A fault's reason; a click on its count shows the completions."""
    wanted = {"source": source, "outcome": "fault", "text": reason[:80]}
    button = show_button(f"{count:,} × fault", "chip bad", **wanted)
    return note(button, " ", f"{name}: {reason}")


def _timing(run: RunData) -> Element | None:
    """Where the time went, by stage."""
    rows = [_time(stage) for stage in run.stages if stage.seconds()]
    if not rows:
        return None
    head = ["Stage", "Steps", "Time", "A step", "Tokens per second", "Where it went"]
    return section("time", "Time", table(head, rows))


def _time(stage: StageRecord) -> list[Child]:
    sums = {key.removeprefix("timing/"): sum(stage.series(key)[1]) for key in stage.keys("timing/")}
    whole = sum(sums.values())
    parts = [f"{name} {percent(value / whole, 0)}" for name, value in sums.items()] if whole else []
    speeds = stage.series("tokens_per_second")[1]
    steps = int(stage.metrics[-1]["step"])
    return [
        stage.name,
        f"{steps:,}",
        duration(stage.seconds()),
        duration(stage.seconds() / max(steps, 1)),
        short_number(sum(speeds) / len(speeds)) if speeds else "–",
        ", ".join(parts) or "–",
    ]


# --- how to get it again


def _reproduce(run: RunData) -> Element | None:
    command = run.lock.get("command")
    if isinstance(command, list):
        command = shlex.join(str(word) for word in command)
    rows: list[list[Child]] = [
        [name, h("code", value)]
        for name, value in flat(run.lock)
        if name.partition(".")[0] != "command"
    ]
    if not (command or rows or run.recipe_text):
        return None
    facts = table(["", ""], rows, numeric_from=9)
    recipe = h("pre", run.recipe_text)
    return section(
        "reproduce",
        "How to get it again",
        h("p", _machine(run)) if _machine(run) else None,
        h("pre", *_words(f"{_threads(run)}{command}"), class_="command") if command else None,
        folded("Versions, data and hardware (lock.json)", facts) if rows else None,
        folded("Resolved recipe (recipe.yaml)", recipe) if run.recipe_text else None,
    )


def _threads(run: RunData) -> str:
    """The variable that sets the run's number of threads: another number rounds differently."""
    count = run.lock.get("threads")
    there = isinstance(count, int) and run.lock.get("device") == "cpu"
    return f"OMP_NUM_THREADS={count} " if there else ""


def _machine(run: RunData) -> str:
    """What the run was made on, and what another machine changes."""
    versions = mapping(run.lock.get("versions"))
    libraries = [f"{name} {versions[name]}" for name in ("torch", "trl") if name in versions]
    python, threads = run.lock.get("python"), run.lock.get("threads")
    where = ", ".join(_inline(v) for v in (run.lock.get("machine"), run.lock.get("device")) if v)
    if not where:
        return ""
    counted = isinstance(threads, int)
    parts = [where, f"{threads} thread{'s' if threads != 1 else ''}" if counted else ""]
    parts += [f"Python {python}" if python else "", *libraries]
    made = ", ".join(printable(part) for part in parts if part)
    return (
        f"Made on {made}. The same command gives the same bits on such a machine with as many "
        "threads; another number of threads, processor or version of torch rounds otherwise, and "
        "its figures differ as those of another seed do."
    )


def _words(command: str) -> list[Child]:
    """The words of a command, none of which is broken at its hyphens."""
    words: list[Child] = []
    for word in command.split(" "):
        words += [" ", h("span", word)]
    return words[1:]


def flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """The leaves of nested mappings as ("data.train.sha256", "…")."""
    for name, item in value.items():
        if isinstance(item, dict) and item:
            yield from flat(item, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", _inline(item)


def _inline(value: Any) -> str:
    """A value on one line: text as it is, anything else as JSON; empty for None."""
    if value is None or isinstance(value, str):
        return printable(value or "")
    return json.dumps(value, ensure_ascii=False)


SECTIONS: tuple[Callable[[RunData], Element | None], ...] = (
    first_screen,
    _gain,
    controls_section,
    pipeline_section,
    _results,
)
"""What comes first; the stages and the browser of completions follow."""
LAST_SECTIONS: tuple[Callable[[RunData], Element | None], ...] = (
    hacking_section,
    _faults,
    _timing,
    _reproduce,
)
"""What comes behind the browser."""
