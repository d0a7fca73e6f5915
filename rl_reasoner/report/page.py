"""The report page from a `RunData`: overview, what the gain is, results, how to reproduce them.

The stages' own sections are in `stages`, the page around them in `shell`. A section is a function
of the run that gives an element with an id and a heading, or None; `SECTIONS` has them in order.
"""

import json
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rl_reasoner.foreign import mapping, number, printable
from rl_reasoner.report import charts
from rl_reasoner.report.charts import Bar, Trace
from rl_reasoner.report.controls import controls_section, headline_of, read_controls
from rl_reasoner.report.formatting import duration, percent, short_number, signed, span
from rl_reasoner.report.gain import (
    Figures,
    apart,
    at,
    at_both,
    explain_gain,
    mode_name,
    moved,
    paired_words,
    split_mode,
)
from rl_reasoner.report.html import Child, Element, estimate, folded, h, note, section, table
from rl_reasoner.report.paired import add_paired_tests
from rl_reasoner.report.pipeline import pipeline_section
from rl_reasoner.report.run_data import RunData, SetResult, StageRecord
from rl_reasoner.report.shell import browser_section, shell, show_button
from rl_reasoner.report.sources import run_sources
from rl_reasoner.report.stages import alarms_of, figures, learning_alarms_of, stage_section

_MODES = ("", "chain-forced", "direct-forced", "sampled")
_STAGES_NAMED = 3
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


def _ends(run: RunData) -> tuple[Mapping[str, SetResult], Mapping[str, SetResult]]:
    """The figures before and after, empty where there are none."""
    sets = {e.name: e.sets for e in run.evals}
    return sets.get("before", {}), sets.get("after", {})


def _main_set(run: RunData) -> str | None:
    """The first set evaluated as it is (no mode), of those after training when there are any."""
    before, after = _ends(run)
    return next((name for name in (*after, *before) if not split_mode(name)[1]), None)


# --- overview


def _overview(run: RunData) -> Element:
    facts = [h("div", h("dt", name), h("dd", value)) for name, value in run_facts(run)]
    warnings = [
        f"Stage {stage.name}: {text}" for stage in run.stages for text in learning_alarms_of(stage)
    ]
    if run.unreadable:
        warnings.append(f"Could not be read in full: {', '.join(run.unreadable)}.")
    return h(
        "header",
        h("p", "Run report", class_="eyebrow"),
        h("h1", run.name),
        h("p", _policy_line(run), class_="lead"),
        h("div", _headline(run), h("dl", facts, id="facts") if facts else None, class_="hero"),
        [h("p", text, class_="warning") for text in warnings],
    )


def _policy_line(run: RunData) -> str:
    facts = mapping(run.lock.get("policy"))
    parts = [_policy_name(run)]
    total, active = number(facts.get("parameters")), number(facts.get("active_parameters"))
    if total is not None:
        parts.append(f"{short_number(total)} parameters")
    if active is not None and active != total:
        parts.append(f"{short_number(active)} active per token")
    return " · ".join(part for part in parts if part)


def _policy_name(run: RunData) -> str:
    source = run.recipe.get("policy")
    if isinstance(source, dict):
        source = source.get("source")
    return str(source or next((e.policy for e in run.evals), ""))


def run_facts(run: RunData) -> list[tuple[str, str]]:
    """The facts of the overview as (name, value)."""
    return [(name, value) for name, value in _facts(run) if value]


def _facts(run: RunData) -> Iterator[tuple[str, str]]:
    yield "Device", _inline(run.lock.get("device"))
    yield "Seed", _inline(run.lock.get("seed"))
    seconds = sum(stage.seconds() for stage in run.stages)
    yield "Training time", duration(seconds) if seconds else ""
    steps = {s.name: s.metrics[-1]["step"] for s in run.stages if s.metrics}
    few = ", ".join(f"{count:,} {name}" for name, count in steps.items())
    many = f"{sum(steps.values()):,} in {len(steps)} stages"
    yield "Steps", few if len(steps) <= _STAGES_NAMED else many
    rollouts = [stage.rollouts for stage in run.stages if stage.rollouts]
    if rollouts:
        yield "Completions", f"{sum(r.completions for r in rollouts):,}"
        for title, outcome in (("Abstentions", "abstain"), ("Reward faults", "fault")):
            count = sum(c[outcome] for r in rollouts for c in r.outcomes.values())
            yield title, f"{count:,}"


def _headline(run: RunData) -> Element | None:
    name = _main_set(run)
    if name is None:
        return None
    before, after = (sets.get(name) for sets in _ends(run))
    shown = [(label, r) for label, r in (("before", before), ("after", after)) if r is not None]
    numbers: list[Child] = []
    for label, result in shown:
        if numbers:
            numbers.append(h("span", "→", class_="arrow", aria_label="to"))
        figure = h("span", percent(result.accuracy), class_="big")
        under = h("span", f"{label} · {span(result.interval)}".rstrip(" ·"), class_="under")
        numbers.append(h("span", figure, under, class_=f"value {label}"))
    greedy = "greedy " if shown[-1][1].temperature == 0 else ""
    return h(
        "div",
        h("p", f"{name} · {greedy}accuracy", class_="label"),
        h("p", *numbers, class_="numbers"),
        h("p", _chip(before, after), " ", _size(shown[-1][1]), class_="under"),
        _beside("sampled", *(sets.get(f"{name}@sampled") for sets in _ends(run))),
        _beside("lenient", *(each and each.lenient for each in (before, after))),
        [h("p", line, class_="under") for line in headline_of(read_controls(run.folder), name)],
        class_="headline",
    )


def _beside(what: str, before: SetResult | None, after: SetResult | None) -> Element | None:
    """Accuracy of another kind, where both ends have it.

    Of samples: a careless policy may be right when greedy. Lenient: a gain may be of form alone.
    """
    if before is None or after is None:
        return None
    way = f"{percent(before.accuracy)} → {percent(after.accuracy)}"
    return h("p", f"{what} {way} ", _chip(before, after), class_="under")


def _size(result: SetResult) -> str:
    problems = "" if result.problems is None else f"{result.problems:,} problems, "
    kind = "Wilson 95% intervals" if result.samples == 1 else "95% intervals"
    return problems + kind if result.interval else problems.rstrip(", ")


def _chip(before: SetResult | None, after: SetResult | None) -> Element | None:
    """Whether accuracy moved and by what evidence, in a few words."""
    if before is None or after is None:
        return None
    evidence = "intervals apart" if apart(before, after) else "paired test"
    match moved(before, after):
        case "rose":
            return h("span", evidence, class_="chip good")
        case "fell":
            return h("span", evidence, class_="chip bad")
        case "unknown":
            return None
        case _:
            return h("span", "intervals overlap", class_="chip")


# --- what the gain is


def _gain(run: RunData) -> Element | None:
    before, after = _ends(run)
    blocks, moves = [], set()
    for base in dict.fromkeys(split_mode(name)[0] for name in after):
        first, last = _by_mode(before, base), _by_mode(after, base)
        if "" not in first or "" not in last:
            continue
        both = first.keys() & last.keys()
        if len(both) >= 2 or (first[""].lenient and last[""].lenient):
            blocks.append(_gain_of_set(base, first, last, _cause(run)))
            moves |= {moved(first[mode], last[mode]) for mode in both}
    if not blocks:
        return None
    title = {(True, False): "What the gain is", (False, True): "What the loss is"}
    meaning = (
        "A change is one whose intervals are apart, or that the paired test of the same problems "
        "finds (p under 0.05, adjusted for the number of tests); intervals that overlap alone do "
        "not prove that nothing changed. rl-reasoner compare has the problems that flipped. "
        "Lenient: the answer counts wherever a person reads it, in whatever form; what a strict "
        "gain has beyond the lenient one is form."
    )
    heading = title.get(("rose" in moves, "fell" in moves), "What changed")
    return section("gain", heading, *blocks, note(meaning))


def _cause(run: RunData) -> str:
    """What lies between the two evaluations: a run evaluates before its first GRPO stage."""
    kinds = [settings.get("kind") for settings in run.stage_settings]
    between = kinds[kinds.index("grpo") :] if "grpo" in kinds else []
    return "GRPO" if set(between) == {"grpo"} else "Training"


def _by_mode(sets: Mapping[str, SetResult], base: str) -> Figures:
    modes = {split_mode(n)[1]: result for n, result in sets.items() if split_mode(n)[0] == base}
    order = [m for m in _MODES if m in modes] + [m for m in modes if m not in _MODES]
    return {mode: modes[mode] for mode in order}


def _gain_of_set(base: str, before: Figures, after: Figures, by: str) -> Element:
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
        rise = signed(100 * (last.thinking - first.thinking))
        rows.append(["Share of thinking", *shares, rise, None, None])
    if first.mean_length is not None and last.mean_length is not None:
        lengths = [f"{first.mean_length:.1f}", f"{last.mean_length:.1f}"]
        more = signed(last.mean_length - first.mean_length)
        rows.append(["Mean length, tokens", *lengths, more, None, None])
    headline, *sentences = explain_gain(before, after, by=by)
    return h(
        "div",
        h("h3", base),
        h("div", h("p", h("strong", headline)), [h("p", s) for s in sentences], class_="callout"),
        table(["", "Before", "After", "Change", "On the same problems", ""], rows),
    )


def _change(name: str, a: SetResult, b: SetResult) -> list[Child]:
    moved_by = b.accuracy - a.accuracy if b.paired is None else b.paired.difference
    points = signed(100 * moved_by)
    paired: Child = None
    if b.paired:
        interval, p = paired_words(b.paired)
        paired = [interval, h("span", p, class_="interval")]
    ends = [estimate(one.accuracy, one.interval) for one in (a, b)]
    return [name, *ends, points, paired, _chip(a, b)]


# --- results


def _results(run: RunData) -> Element | None:
    names = list(dict.fromkeys(name for e in reversed(run.evals) for name in e.sets))
    if not names:
        return None
    groups = [
        (n, [Bar(e.name, e.sets[n].accuracy, e.sets[n].interval) for e in run.evals if n in e.sets])
        for n in names
    ]
    drawings = [charts.bars("Accuracy", groups, note="lines are 95% intervals")]
    for name in names:
        shown = [(e.name, e.sets[name]) for e in run.evals if name in e.sets]
        if curves := [_pass_curve(label, r) for label, r in shown if len(r.pass_at) > 1]:
            drawings.append(charts.pass_at_k_chart(f"pass@k on {name}", curves))
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
                lengths = [percent(result.truncated), short_number(result.mean_length)]
                judged = [_accuracy(result), _accuracy(result.lenient)]
                rows.append([name, e.name, *counts, *judged, *lengths])
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
    parts = [f"{name} {value / whole:.0%}" for name, value in sums.items()] if whole else []
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


# --- how to reproduce it


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
        "How to reproduce it",
        h("pre", f"{_threads(run)}{command}", class_="command") if command else None,
        folded("Versions, data and hardware (lock.json)", facts) if rows else None,
        folded("Resolved recipe (recipe.yaml)", recipe) if run.recipe_text else None,
    )


def _threads(run: RunData) -> str:
    """The variable that sets the run's number of threads: another number rounds differently."""
    count = run.lock.get("threads")
    there = isinstance(count, int) and run.lock.get("device") == "cpu"
    return f"OMP_NUM_THREADS={count} " if there else ""


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
    _overview,
    _gain,
    controls_section,
    pipeline_section,
    _results,
)
"""What comes first; the stages and the browser of completions follow."""
LAST_SECTIONS: tuple[Callable[[RunData], Element | None], ...] = (_faults, _timing, _reproduce)
"""What comes behind the browser."""
