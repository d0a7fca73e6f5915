"""A run against its control arms: treatment minus control, paired by problem.

`against_controls` makes the comparison out of evaluations, `controls.json` keeps it, and a section
of the page and the terminal show it. All differences on sets and arms are one family of tests:
their p-values are adjusted by Holm's method (lenient ones apart). Knows nothing of torch.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from rl_reasoner.evaluation.comparison import compare_rows
from rl_reasoner.evaluation.formatting import duration, percent, signed
from rl_reasoner.evaluation.learning_alarms import Metrics
from rl_reasoner.evaluation.result import EvalResult
from rl_reasoner.evaluation.statistics import Interval, holm
from rl_reasoner.files import read_jsonl
from rl_reasoner.foreign import json_value, mapping, number, printable
from rl_reasoner.recipe.recipe import ControlName
from rl_reasoner.report import charts
from rl_reasoner.report.charts import Bar, Trace
from rl_reasoner.report.gain import SURE, paired_words
from rl_reasoner.report.html import Child, Element, estimate, h, note, section, table
from rl_reasoner.report.run_data import Paired, RunData, interval, title_in
from rl_reasoner.report.stages import figures

CONTROLS_FILE = "controls.json"
_LENIENT = "@lenient"
_KEPT = ("problems", "difference", "interval", "test", "p", "detectable")
_MEANING = (
    "An arm is the same stage again: policy, seed, data, order and steps are those of the "
    "treatment, only the reward differs. What an arm gains too, the run's own reward has not "
    "taught: some policies improve on rewards that are drawn at random (arXiv 2506.10947)."
)


def against_controls(
    stage: str,
    before: EvalResult,
    treatment: EvalResult,
    arms: Mapping[str, EvalResult],
    facts: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """The comparison as JSON values.

    `stage`, what all arms repeat; `treatment` and each of `arms` with `sets`: accuracy and its
    interval, the paired `gain` on the policy `before`; of an arm also `headline` (treatment minus
    control: difference, 95% interval, p, `p_holm` over all sets and arms) and its `facts`. What
    was also judged leniently stands in `SET@lenient`, a family of tests of its own, as in
    `compare`; `tests` are those of a family.
    """
    headlines = {name: _tests(arm, treatment) for name, arm in arms.items()}
    for lenient in (False, True):
        tests = [
            test
            for entries in headlines.values()
            for key, test in entries.items()
            if key.endswith(_LENIENT) == lenient
        ]
        for test, p in zip(tests, holm([test["p"] for test in tests]), strict=True):
            test["p_holm"] = p
    shown = {
        name: {**facts[name], "headline": entries, "sets": _sets(before, arms[name])}
        for name, entries in headlines.items()
    }
    strict = sum(not key.endswith(_LENIENT) for entries in headlines.values() for key in entries)
    sets = {"before": _figures(before), "treatment": {"sets": _sets(before, treatment)}}
    return {"stage": stage, "tests": strict, **sets, "arms": shown}


def _tests(a: EvalResult, b: EvalResult) -> dict[str, dict[str, Any]]:
    """The paired tests of b against a by set, lenient ones behind the strict."""
    entries = compare_rows(a.rows, b.rows)
    leniently = {
        f"{name}{_LENIENT}": {"problems": entry["problems"], **entry["lenient"]}
        for name, entry in entries.items()
        if "lenient" in entry
    }
    return {
        name: {part: entry[part] for part in _KEPT} for name, entry in (entries | leniently).items()
    }


def _sets(before: EvalResult, after: EvalResult) -> dict[str, Any]:
    gains = _tests(before, after)
    return {
        name: {**own, "gain": {part: gains[name][part] for part in ("difference", "interval")}}
        for name, own in _figures(after).items()
        if name in gains
    }


def _figures(result: EvalResult) -> dict[str, dict[str, Any]]:
    """Accuracy and interval by set, lenient ones beside the strict."""
    found = {}
    for name, own in result.sets.items():
        for key, shown in ((name, own), (f"{name}{_LENIENT}", own.get("lenient"))):
            if shown:
                found[key] = {part: shown[part] for part in ("accuracy", "interval")}
    return found


# -------------------------------------------------------------------------- reading it again


def read_controls(folder: Path) -> Mapping[str, Any]:
    """What `controls.json` of a run holds; empty where there is none that can be read."""
    try:
        return mapping(json_value((folder / CONTROLS_FILE).read_bytes()))
    except (OSError, ValueError):
        return {}


def _arms(controls: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The arms that there can be, by name; the file may be anybody's."""
    arms = mapping(controls.get("arms"))
    return {arm: mapping(arms[arm]) for arm in get_args(ControlName) if arm in arms}


def control_differences(controls: Mapping[str, Any]) -> Iterator[tuple[str, str, Paired]]:
    """Each set and arm with the treatment's difference from it, sets in their order."""
    headlines = {arm: mapping(one.get("headline")) for arm, one in _arms(controls).items()}
    for name in dict.fromkeys(key for entries in headlines.values() for key in entries):
        for arm, entries in headlines.items():
            if (test := _paired(mapping(entries.get(name)))) is not None:
                yield name, arm, test


def _paired(entry: Mapping[str, Any]) -> Paired | None:
    values = [number(entry.get(key)) for key in ("problems", "difference", "p", "p_holm")]
    spread = interval(entry.get("interval"))
    problems, difference, p, adjusted = values
    if problems is None or difference is None or p is None or adjusted is None or spread is None:
        return None
    return Paired(int(problems), difference, spread, p, adjusted, str(entry.get("test")))


def verdict(test: Paired) -> str:
    """What a difference from a control says, in a word or two."""
    low, high = test.interval
    if test.adjusted < SURE and low > 0:
        return "above its control"
    if test.adjusted < SURE and high < 0:
        return "below its control"
    return "not told apart"


def _accuracy(part: Mapping[str, Any], name: str) -> tuple[float | None, Interval | None]:
    entry = mapping(part.get(name.replace("@clean", "")))
    return number(entry.get("accuracy")), interval(entry.get("interval"))


def _levels(controls: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The figures by set: before, of the treatment, of each arm."""
    return {
        "before": mapping(controls.get("before")),
        "treatment": mapping(mapping(controls.get("treatment")).get("sets")),
        **{arm: mapping(one.get("sets")) for arm, one in _arms(controls).items()},
    }


# ------------------------------------------------------------------------------------ the page


def controls_section(run: RunData) -> Element | None:
    """The section of the page; None for a run without control arms."""
    controls = read_controls(run.folder)
    tests = [*control_differences(controls)]
    if not tests:
        return None
    levels, groups = _levels(controls), []
    for name in dict.fromkeys(name for name, _, _ in tests if "@clean" not in name):
        shown = {label: _accuracy(part, name) for label, part in levels.items()}
        bars = [
            Bar(label, share, ends) for label, (share, ends) in shown.items() if share is not None
        ]
        groups.append((name, bars))
    drawings = [charts.bars("Treatment and controls", groups, note="lines are 95% intervals")]
    drawings += _curves(run, controls)
    head = ["Set", "Control", "Before", "Treatment", "Control's", "Treatment minus control", "", ""]
    rows: list[list[Child]] = []
    for name, arm, test in tests:
        ends = [_cell(levels[label], name) for label in ("before", "treatment", arm)]
        spread, p = paired_words(test)
        points: Child = [signed(100 * test.difference), h("span", spread, class_="interval")]
        rows.append([name, arm, *ends, points, p, _chip(test)])
    return section(
        "controls",
        "Against its controls",
        h("div", [h("p", sentence) for sentence in control_sentences(controls)], class_="callout"),
        figures(drawings, "controls"),
        table(head, rows, numeric_from=2),
        [h("p", text, class_="under") for text in _facts(controls)],
        note(_MEANING),
    )


def _curves(run: RunData, controls: Mapping[str, Any]) -> Iterator[charts.Chart]:
    """The treatment's and its controls' way through the stage, where it was looked at."""
    ours = next((stage for stage in run.stages if stage.name == controls.get("stage")), None)
    if ours is None:
        return
    folders = {arm: run.folder / "controls" / arm for arm in _arms(controls)}
    ways: dict[str, list[Metrics]] = {"treatment": ours.metrics}
    ways |= {arm: _metrics(folder / "stages" / f"1-{arm}") for arm, folder in folders.items()}
    watched = [key for key in ours.keys("eval/") if key.endswith("/accuracy")][:1]
    for key in (*watched, "completions/mean_length"):
        traces = []
        for label, metrics in ways.items():
            values = [(int(row["step"]), number(row.get(key))) for row in metrics]
            known = [(step, value) for step, value in values if value is not None]
            if known:
                traces.append(Trace(label, [step for step, _ in known], [v for _, v in known]))
        if len(traces) > 1:
            accuracy = key in watched
            name = title_in(run, key.removeprefix("eval/").removesuffix("/accuracy"))
            title = f"{name} while training" if accuracy else "Length in the stage"
            yield charts.curve(title, traces, share=accuracy)


def _metrics(folder: Path) -> list[Metrics]:
    rows = read_jsonl(folder / "metrics.jsonl")
    return [row for row in rows if number(row.get("step")) is not None]


def _cell(part: Mapping[str, Any], name: str) -> Child:
    share, ends = _accuracy(part, name)
    return "–" if share is None else estimate(share, ends)


def _chip(test: Paired) -> Element:
    words = verdict(test)
    kind = {"above its control": "chip good", "below its control": "chip bad"}.get(words, "chip")
    return h("span", words, class_=kind)


def _facts(controls: Mapping[str, Any]) -> Iterator[str]:
    """What each arm was: its reward, its steps, its time."""
    for arm, one in _arms(controls).items():
        options = mapping(one.get("reward"))
        mean, low, high = (number(options.get(name)) for name in ("mean", "low", "high"))
        what = "reward for the form of the answer alone"
        if mean is not None and low is not None and high is not None:
            what = f"reward drawn, mean {mean:.3g} of {low:g} to {high:g}"
        steps, seconds = (number(one.get(name)) for name in ("steps", "seconds"))
        parts = [what, f"{steps or 0:,.0f} steps"]
        parts += [duration(seconds)] if seconds else []
        yield printable(f"{arm}: {', '.join(parts)}")


def headline_of(controls: Mapping[str, Any], name: str) -> list[str]:
    """A line for each control of the set `name`, for the head of the page."""
    return [
        f"minus {arm}: {signed(100 * test.difference)} {paired_words(test)[0]}, {verdict(test)}"
        for own, arm, test in control_differences(controls)
        if own == name
    ]


def control_sentences(controls: Mapping[str, Any]) -> list[str]:
    """What the treatment's gain on each set is beside its controls', in words."""
    levels, found = _levels(controls), []
    for name, arm, test in control_differences(controls):
        gains = [_gain(levels[label], name) for label in ("treatment", arm)]
        words = ", ".join(paired_words(test))
        text = f"{name}: {signed(100 * test.difference)} points on {arm} {words}"
        if None not in gains:
            own, others = (signed(100 * (gain or 0.0)) for gain in gains)
            text += f"; the treatment gained {own}, the control {others}"
        found.append(printable(f"{text}: {verdict(test)}."))
    return found


def _gain(part: Mapping[str, Any], name: str) -> float | None:
    return number(mapping(mapping(part.get(name)).get("gain")).get("difference"))


# -------------------------------------------------------------------------------- the terminal


def controls_table(controls: Mapping[str, Any]) -> str:
    """The comparison as text; empty where there is none."""
    levels, cells = _levels(controls), []
    for name, arm, test in control_differences(controls):
        shares = [_accuracy(levels[label], name)[0] for label in ("before", "treatment", arm)]
        spread, p = paired_words(test)
        points = f"{signed(100 * test.difference)} {spread}"
        cells.append([name, arm, *map(percent, shares), points, p, verdict(test)])
    if not cells:
        return ""
    head = ["set", "control", "before", "treatment", "control's", "treatment minus control", "", ""]
    widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in (head, *cells)]
    tests = number(controls.get("tests")) or len(cells)
    lines.append(f"paired by problem; p adjusted by Holm for {tests:.0f} tests, lenient ones apart")
    return printable("\n".join(lines))
