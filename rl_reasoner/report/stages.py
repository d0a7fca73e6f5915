"""One stage's section of the report: its curves, and what its evaluations warned of."""

import json
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from rl_reasoner.evaluation.formatting import duration, percent
from rl_reasoner.evaluation.learning_alarms import LearningAlarms, learning_alarms
from rl_reasoner.foreign import mapping, number
from rl_reasoner.report import charts
from rl_reasoner.report.charts import Bar, Chart, Trace
from rl_reasoner.report.forecast import forecast_table
from rl_reasoner.report.html import Child, Element, folded, h, note, section, table
from rl_reasoner.report.run_data import StageRecord, interval

_LAYERS_SHOWN = 6
_OTHERS_SHOWN = 60
_TALL = 12  # lines of bars that make a chart twice as high as others


class _Curve(NamedTuple):
    """A chart: its title, the (label, metric) pairs on it, whether they are shares, a note."""

    title: str
    metrics: tuple[tuple[str, str], ...]
    share: bool = False
    note: str = ""


_CURVES = (
    _Curve(
        "Truncation, equal groups",
        (
            ("truncated", "completions/clipped_ratio"),
            ("groups whose rewards are all equal", "frac_reward_zero_std"),
        ),
        share=True,
    ),
    _Curve(
        "Tools",
        (
            ("completions with calls", "tools/completions_with_calls"),
            ("calls that failed", "tools/failure_frequency"),
        ),
        share=True,
    ),
    _Curve("KL to the reference", (("KL", "kl"),)),
    _Curve("Entropy", (("entropy", "entropy"),), note="nats per token"),
    _Curve("Clipped tokens", (("clipped", "clip_ratio/region_mean"),), share=True),
    _Curve("Loss", (("loss", "loss"),)),
    _Curve("Token accuracy", (("accuracy", "mean_token_accuracy"),), share=True),
    _Curve("Gradient norm", (("norm", "grad_norm"),)),
    _Curve("Tokens per second", (("tokens/s", "tokens_per_second"),)),
    _Curve(
        "Busiest expert",
        (("max / mean", "experts/max_over_mean"),),
        note="its load over the mean; 1 is even",
    ),
    _Curve(
        "Evenness of the experts' load",
        (("entropy", "experts/entropy"),),
        note="entropy of the load over the largest possible; 1 is even",
    ),
    _Curve("Dead experts", (("without a token", "experts/dead"),), note="of all layers"),
    _Curve(
        "Experts that replay changed",
        (("flips", "router_replay/flips"),),
        share=True,
        note="choices of a token in a layer that differ from those it was sampled with",
    ),
)


def stage_section(stage: StageRecord) -> Element | None:
    """The section of `stage`; None when nothing was logged in it."""
    if "histogram" in stage.card:
        return _filter_section(stage)
    if not stage.metrics:
        return None
    place = f"stage-{stage.index}"
    drawings, others = list(drawings_of(stage)), list(others_of(stage))
    moving, flat = ([d for d in drawings if d.flat == still] for still in (False, True))
    seconds = stage.seconds()
    steps = f"{stage.metrics[-1]['step']:,} steps"
    steps += f", {duration(seconds)}" if seconds else ""
    size = charts.end_size(len(stage.metrics))
    means = f". Beside a curve: means of its first and last {size} steps" if size > 1 else ""
    more = f"{len(others)} other metrics, by their names in the log"
    return section(
        place,
        f"Stage {stage.index} · {stage.name}",
        h("p", f"{steps}{means}", class_="under"),
        *_warnings(stage),
        forecast_table(stage),
        figures(moving, place) if moving else None,
        folded(_flat_words(flat), figures(flat, place)) if flat else None,
        folded(more, figures(others, place)) if others else None,
    )


def _flat_words(flat: Sequence[Chart]) -> str:
    """What is told of curves that are one value all along, which are folded away."""
    values = [f"{chart.title} {chart.summary.partition(' → ')[0]}" for chart in flat]
    return f"{len(flat)} that did not move: {', '.join(values)}"


def _filter_section(stage: StageRecord) -> Element:
    """What a filter stage kept of its rows, what it dropped and why, and all pass rates."""
    card, place = stage.card, f"stage-{stage.index}"
    kept, of, samples = (number(card.get(name)) or 0 for name in ("rows", "of", "samples_a_row"))
    dropped = [f"{number(n) or 0:,.0f} {why}" for why, n in mapping(card.get("dropped")).items()]
    words = f"{kept:,.0f} of {of:,.0f} rows kept, with pass rates {card.get('keep')} of "
    words += f"{samples:,.0f} samples. Dropped: {', '.join(dropped)}."
    found = card["histogram"] if isinstance(card["histogram"], list) else []
    counts = [
        [number(mapping(bar).get(name)) or 0 for name in ("rate", "rows", "kept")] for bar in found
    ]
    groups = [
        (f"{rate:.3f}", [Bar("kept" if some else "dropped", rows / max(of, 1), None)])
        for rate, rows, some in counts
    ]
    cells: list[list[Child]] = [[f"{r:.3f}", f"{n:,.0f}", f"{k:,.0f}"] for r, n, k in counts]
    cut, mean = percent(number(card.get("truncated"))), percent(number(card.get("mean_rate")))
    remark = f"Mean pass rate {mean}; {cut} of the completions cut off at "
    return section(
        place,
        f"Stage {stage.index} · {stage.name}",
        h("p", words, class_="under"),
        figures([charts.bars("Rows by pass rate", groups, note="share of all rows")], place),
        folded("The numbers of rows", table(["Pass rate", "Rows", "Kept"], cells)),
        note(f"{remark}{card.get('max_tokens')} tokens. Judged by: {card.get('judged_by')}."),
    )


def _warnings(stage: StageRecord) -> Iterator[Element]:
    """The best policy of the stage, and the alarms of its evaluations with the steps they stood."""
    if stage.best:
        best = f"Best on {stage.best.get('set')}: step {stage.best.get('step')}, accuracy"
        accuracy = percent(number(stage.best.get("accuracy")))
        yield note(
            f"{best} {accuracy}; it is kept in best/. It is the one whose interval has the highest "
            "lower end: the highest of many accuracies is partly luck. The stage goes on, and "
            "ends, with its last step."
        )
    for text in [*learning_alarms_of(stage), *alarms_of(stage)]:
        yield h("p", text, class_="warning")


def alarms_of(stage: StageRecord) -> list[str]:
    """The alarms of a stage's evaluations, each with the step at which it first stood.

    That of the hacking meter is told in a section of its own.
    """
    alarms: dict[str, tuple[int, str]] = {}  # kind -> first step, newest words
    for row in stage.metrics:
        raised = row.get("alarms")
        for kind, text in raised.items() if isinstance(raised, dict) else []:
            if kind == "hacking":
                continue
            alarms[kind] = (alarms.get(kind, (row["step"], ""))[0], str(text))
    return [f"Alarm, first at step {step}: {text}" for step, text in alarms.values()]


def learning_alarms_of(stage: StageRecord) -> list[str]:
    """What kept a stage of GRPO from learning, each with its share and since when."""
    sampling = mapping(stage.settings.get("sampling"))
    longest, steps = number(sampling.get("max_tokens")), number(stage.settings.get("steps"))
    most = len(stage.metrics) if steps is None else int(steps)
    alarms = LearningAlarms(None if longest is None else int(longest), most, stage.highest)
    return [f"Alarm, {alarm}" for alarm in learning_alarms(stage.metrics, alarms)]


def figure(drawing: Chart, place: str) -> Element:
    """A chart with its caption: title, newest figures, legend, note; `place` is its section's id.

    The script draws into `.plot`; the specification is taken out of the page by `shell`.
    """
    legend = [h("span", h("i", class_=f"dot {colour}"), label) for label, colour in drawing.legend]
    summary = f"{drawing.title}: {drawing.summary}".rstrip(": ")
    bars = sum(1 + len(group["bars"]) for group in drawing.spec.get("groups", ()))
    return h(
        "figure",
        h(
            "figcaption",
            h("b", drawing.title),
            h("span", drawing.summary, class_="ends"),
            h("span", legend, class_="legend") if legend else None,
        ),
        h("div", class_="plot", tabindex="0", role="img", aria_label=summary),
        note(drawing.note) if drawing.note else None,
        class_="chart tall" if bars > _TALL else "chart",
        data_chart=f"{place}/{drawing.title}",
        data_spec=json.dumps(drawing.spec, allow_nan=False),
    )


def figures(drawings: Sequence[Chart], place: str) -> Element:
    """The charts of the section `place`, side by side where there is room."""
    return h("div", [figure(drawing, place) for drawing in drawings], class_="charts")


def drawings_of(stage: StageRecord) -> Iterator[Chart]:
    """The charts of a stage, in their order on the page."""
    yield from _reward(stage)
    yield from _evals(stage)
    yield from _lengths(stage)
    yield from _levels(stage)
    for curve in _CURVES:
        lines = [Trace(label, *stage.series(key)) for label, key in curve.metrics]
        lines = [line for line in lines if line.values]
        if lines:
            yield charts.curve(curve.title, lines, share=curve.share, note=curve.note)
    yield from _faults(stage)
    yield from _timing(stage)
    yield from _experts(stage)


def others_of(stage: StageRecord) -> Iterator[Chart]:
    """A small chart of every other figure that was logged."""
    shown = {key for curve in _CURVES for _, key in curve.metrics}
    shown |= {"step", "reward", *(f"completions/{k}_length" for k in ("mean", "min", "max"))}
    apart = ("timing/", "eval/", "curriculum/", "hacking/")
    kept = 0
    for key in stage.keys(""):
        single = key.endswith("/mean") and key.startswith("rewards/")
        if key in shown or key.startswith(apart) or single or key.endswith("/faults"):
            continue
        steps, values = stage.series(key)
        if len(set(values)) > 1 and kept < _OTHERS_SHOWN:
            kept += 1
            yield charts.curve(key, [Trace(key, steps, values)])


def _faults(stage: StageRecord) -> Iterator[Chart]:
    keys = [key for key in stage.keys("rewards/") if key.endswith("/faults")]
    lines = [Trace(key.split("/")[1], *stage.series(key)) for key in keys]
    if any(any(line.values) for line in lines):
        yield charts.curve("Reward faults", lines, note="completions that a reward failed on")


def _reward(stage: StageRecord) -> Iterator[Chart]:
    steps, values = stage.series("reward")
    if not values:
        return
    spread_steps, spread = stage.series("reward_std")
    band = None
    if spread_steps == steps:
        pairs = list(zip(values, spread, strict=True))
        band = [v - s for v, s in pairs], [v + s for v, s in pairs]
    parts = [key for key in stage.keys("rewards/") if key.endswith("/mean")]
    lines = [Trace("total", steps, values, band)]
    if len(parts) > 1:
        singles = [Trace(key.split("/")[1], *stage.series(key)) for key in parts]
        lines += [line for line in singles if line.values]
    remark = "band: one standard deviation of all completions of a step" if band else ""
    yield charts.curve("Reward", lines, note=remark)


def _evals(stage: StageRecord) -> Iterator[Chart]:
    for key in stage.keys("eval/"):
        steps, values = stage.series(key)
        if not key.endswith("/accuracy") or len(values) < 2:  # one is no curve
            continue
        name = key.removeprefix("eval/").removesuffix("/accuracy")
        spans = {row["step"]: interval(row.get(f"eval/{name}/interval")) for row in stage.metrics}
        band = charts.band([spans[step] for step in steps])
        remark = "band: 95% interval" if band else ""
        lenient = Trace("lenient", *stage.series(f"eval/{name}/lenient"))
        lines = [Trace("accuracy", steps, values, band), *([lenient] if lenient.values else [])]
        yield charts.curve(f"Accuracy on {name}", lines, share=True, note=remark)


def _lengths(stage: StageRecord) -> Iterator[Chart]:
    steps, values = stage.series("completions/mean_length")
    if not values:
        return
    low_steps, low = stage.series("completions/min_length")
    high_steps, high = stage.series("completions/max_length")
    band = (low, high) if low_steps == high_steps == steps else None
    remark = "tokens; band: shortest to longest" if band else "tokens"
    yield charts.curve("Completion length", [Trace("mean", steps, values, band)], note=remark)


def _levels(stage: StageRecord) -> Iterator[Chart]:
    """What a curriculum of levels knows of each level, and how often it draws it."""
    steps, values = stage.series("curriculum/level_mean")
    if values:
        yield charts.curve("Level", [Trace("mean", steps, values)], note="mean of a step's prompts")
    drawn = ("share", "Levels drawn", "chance of each level to be drawn")
    for kind, title, remark in (("success", "Success by level", "posterior means"), drawn):
        keys = stage.keys(f"curriculum/{kind}/")
        shown = keys[:: -(-len(keys) // len(charts.SERIES)) or 1]
        lines = [Trace(key.split("/", 2)[2], *stage.series(key)) for key in shown]
        remark += f"; {len(shown)} of {len(keys)} levels" if len(shown) < len(keys) else ""
        if lines:
            yield charts.curve(title, lines, share=True, note=remark)


def _timing(stage: StageRecord) -> Iterator[Chart]:
    keys = stage.keys("timing/")
    rows = list(_complete(stage, keys))
    if keys and len(rows) >= 2:
        labels = [key.removeprefix("timing/") for key in keys]
        steps, seconds = zip(*rows, strict=True)
        yield charts.stack("Time per step", labels, steps, seconds)


def _complete(stage: StageRecord, keys: list[str]) -> Iterator[tuple[int, list[float]]]:
    """The steps at which all of `keys` were logged, with their values."""
    series = [dict(zip(*stage.series(key), strict=True)) for key in keys]
    for step in sorted(set[int]().union(*series)):
        if all(step in values for values in series):
            yield step, [values[step] for values in series]


def _experts(stage: StageRecord) -> Iterator[Chart]:
    for key in layers_of(stage):
        loads = [(row["step"], row[key]) for row in stage.metrics if _is_load(row.get(key))]
        loads = [(step, load) for step, load in loads if len(load) == len(loads[0][1])]
        if loads:
            fair = percent(1 / len(loads[0][1]))
            steps, shares = zip(*loads, strict=True)
            name = key.removeprefix("experts/load/").replace("layer", "layer ")
            remark = f"share of tokens by expert; fair is {fair}, full colour twice that"
            yield charts.heat_map(f"Expert load, {name}", steps, shares, remark)


def layers_of(stage: StageRecord) -> Sequence[str]:
    """The metrics with the experts' load of the layers that are shown."""
    keys = stage.keys("experts/load/")
    return keys[:: -(-len(keys) // _LAYERS_SHOWN) or 1]


def _is_load(value: object) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(number(v) is not None for v in value)
