"""One stage's section of the report: its curves, its rewards' outcomes, completions of it."""

from collections.abc import Iterator
from typing import NamedTuple

from rl_reasoner.report import charts
from rl_reasoner.report.charts import Chart, Line
from rl_reasoner.report.html import Child, Element, h, table
from rl_reasoner.report.read import Group, Rollouts, Sample, Stage, interval, number
from rl_reasoner.report.text import duration, percent, short, signed

_LAYERS_SHOWN = 6
_FAULTS_SHOWN = 5


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
    _Curve("KL to the reference", (("KL", "kl"),)),
    _Curve("Entropy", (("entropy", "entropy"),), note="nats a token"),
    _Curve("Clipped tokens", (("clipped", "clip_ratio/region_mean"),), share=True),
    _Curve("Loss", (("loss", "loss"),)),
    _Curve("Token accuracy", (("accuracy", "mean_token_accuracy"),), share=True),
    _Curve("Gradient norm", (("norm", "grad_norm"),)),
    _Curve("Tokens a second", (("tokens/s", "tokens_per_second"),)),
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


def stage_section(stage: Stage) -> Element | None:
    """The section of `stage`; None when nothing was logged in it."""
    drawings = list(_drawings(stage))
    if not drawings and stage.rollouts is None:
        return None
    seconds = stage.seconds()
    steps = f"{stage.metrics[-1]['step']:,} steps" if stage.metrics else "no steps"
    return h(
        "section",
        h("h2", f"Stage {stage.index} · {stage.name}"),
        h("p", f"{steps}, {duration(seconds)}" if seconds else steps, class_="under"),
        *_warnings(stage),
        h("div", [figure(drawing) for drawing in drawings], class_="charts") if drawings else None,
        *(_rewards(stage.rollouts) if stage.rollouts else []),
        _samples(stage.rollouts) if stage.rollouts else None,
        id=f"stage-{stage.index}",
    )


def _warnings(stage: Stage) -> Iterator[Element]:
    """The best policy of the stage, and the alarms of its evaluations with the steps they stood."""
    if stage.best:
        told = f"Best by the lower bound on {stage.best.get('set')}: step {stage.best.get('step')}"
        accuracy = percent(number(stage.best.get("accuracy")))
        yield h("p", f"{told}, accuracy {accuracy}; it is kept in best/.", class_="note")
    alarms: dict[str, tuple[int, str]] = {}  # kind -> first step, newest words
    for row in stage.metrics:
        found = row.get("alarms")
        for kind, text in found.items() if isinstance(found, dict) else []:
            alarms[kind] = (alarms.get(kind, (row["step"], ""))[0], str(text))
    for step, text in alarms.values():
        yield h("p", f"Alarm, first at step {step}: {text}", class_="warning")


def figure(drawing: Chart) -> Element:
    """A chart with its caption: title, newest figures, legend, note."""
    legend = [
        h("span", h("i", style=f"background: var(--{colour})"), label)
        for label, colour in drawing.legend
    ]
    return h(
        "figure",
        h(
            "figcaption",
            h("b", drawing.title),
            h("span", drawing.summary, class_="ends") if drawing.summary else None,
            h("span", legend, class_="legend") if legend else None,
        ),
        drawing.svg,
        h("p", drawing.note, class_="note") if drawing.note else None,
    )


def _drawings(stage: Stage) -> Iterator[Chart]:
    yield from _reward(stage)
    yield from _evals(stage)
    yield from _lengths(stage)
    for curve in _CURVES:
        lines = [Line(label, *stage.series(key)) for label, key in curve.metrics]
        lines = [line for line in lines if line.values]
        if lines:
            yield charts.curve(curve.title, lines, share=curve.share, note=curve.note)
    yield from _timing(stage)
    yield from _experts(stage)


def _reward(stage: Stage) -> Iterator[Chart]:
    steps, values = stage.series("reward")
    if not values:
        return
    spread_steps, spread = stage.series("reward_std")
    band = None
    if spread_steps == steps:
        band = (
            [v - s for v, s in zip(values, spread, strict=True)],
            [v + s for v, s in zip(values, spread, strict=True)],
        )
    parts = [key for key in stage.keys("rewards/") if key.endswith("/mean")]
    lines = [Line("total", steps, values, band)]
    if len(parts) > 1:
        lines += [
            Line(key.split("/")[1], *stage.series(key)) for key in parts if stage.series(key)[1]
        ]
    note = "band: one standard deviation within a group" if band else ""
    yield charts.curve("Reward", lines, note=note)


def _evals(stage: Stage) -> Iterator[Chart]:
    for key in stage.keys("eval/"):
        steps, values = stage.series(key)
        if not key.endswith("/accuracy") or not values:
            continue
        name = key.removeprefix("eval/").removesuffix("/accuracy")
        found = {row["step"]: interval(row.get(f"eval/{name}/interval")) for row in stage.metrics}
        bands = [found[step] for step in steps]
        known = [band for band in bands if band is not None]
        band = ([b[0] for b in known], [b[1] for b in known]) if len(known) == len(bands) else None
        note = "band: 95% interval" if band else ""
        line = Line("accuracy", steps, values, band)
        yield charts.curve(f"Accuracy on {name}", [line], share=True, note=note)


def _lengths(stage: Stage) -> Iterator[Chart]:
    steps, values = stage.series("completions/mean_length")
    if not values:
        return
    low_steps, low = stage.series("completions/min_length")
    high_steps, high = stage.series("completions/max_length")
    band = (low, high) if low_steps == high_steps == steps else None
    note = "tokens; band: shortest to longest" if band else "tokens"
    yield charts.curve("Completion length", [Line("mean", steps, values, band)], note=note)


def _timing(stage: Stage) -> Iterator[Chart]:
    keys = stage.keys("timing/")
    rows = list(_complete(stage, keys))
    if keys and len(rows) >= 2:
        labels = [key.removeprefix("timing/") for key in keys]
        steps, seconds = zip(*rows, strict=True)
        yield charts.stack("Time of a step", labels, steps, seconds)


def _complete(stage: Stage, keys: list[str]) -> Iterator[tuple[int, list[float]]]:
    """The steps at which all of `keys` were logged, with their values."""
    found = [dict(zip(*stage.series(key), strict=True)) for key in keys]
    for step in sorted(set[int]().union(*found)):
        if all(step in values for values in found):
            yield step, [values[step] for values in found]


def _experts(stage: Stage) -> Iterator[Chart]:
    keys = stage.keys("experts/load/")
    gap = -(-len(keys) // _LAYERS_SHOWN) or 1
    for key in keys[::gap]:
        loads = [(row["step"], row[key]) for row in stage.metrics if _is_load(row.get(key))]
        loads = [(step, load) for step, load in loads if len(load) == len(loads[0][1])]
        if loads:
            fair = 100 / len(loads[0][1])
            steps, shares = zip(*loads, strict=True)
            name = key.removeprefix("experts/load/").replace("layer", "layer ")
            note = f"share of tokens by expert; fair is {fair:.1f}%, full colour twice that"
            yield charts.heat_map(f"Expert load, {name}", steps, shares, note)


def _is_load(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) > 0
        and all(isinstance(v, float | int) for v in value)
    )


def _rewards(rollouts: Rollouts) -> Iterator[Element]:
    """What the rewards said: counts of outcomes, and the commonest faults."""
    if rollouts.outcomes:
        rows: list[list[Child]] = [
            [name, *(f"{counts[outcome]:,}" for outcome in ("score", "abstain", "fault"))]
            for name, counts in rollouts.outcomes.items()
        ]
        yield h("h3", "What the rewards said")
        cut = percent(rollouts.truncated / max(rollouts.completions, 1))
        yield h("p", f"{rollouts.completions:,} completions, {cut} truncated.", class_="under")
        yield table(["Reward", "Scores", "Abstentions", "Faults"], rows)
    for reason, count in rollouts.fault_reasons.most_common(_FAULTS_SHOWN):
        yield h("p", h("span", f"{count:,} × fault", class_="chip bad"), " ", reason, class_="note")


def _samples(rollouts: Rollouts) -> Element | None:
    if not rollouts.steps:
        return None
    blocks: list[Child] = [h("h3", "Completions")]
    for step, groups in reversed(rollouts.steps):
        blocks.append(h("p", f"Step {step}", class_="label"))
        last = step == rollouts.steps[-1][0]
        blocks += [_group(g, opened=last and i == 0) for i, g in enumerate(groups)]
    return h("div", *blocks)


def _group(group: Group, *, opened: bool) -> Element:
    lines = group.prompt.strip().splitlines() or [""]
    marks = [
        h("i", class_=f"mark {_tone(s)}", title=f"reward {short(s.reward)}") for s in group.samples
    ]
    summary = h(
        "summary",
        h("span", lines[-1][:160], class_="title"),
        h("span", marks, class_="marks", aria_label=f"{len(marks)} completions"),
    )
    attributes = {"open": "open"} if opened else {}
    more = f"{group.hidden:,} more of this group are not shown." if group.hidden else None
    return h(
        "details",
        summary,
        h("pre", group.prompt, class_="prompt"),
        h("p", "Expected answer: ", h("code", group.answer), class_="note")
        if group.answer
        else None,
        h("div", [_sample(s) for s in group.samples], class_="beside"),
        h("p", more, class_="note") if more else None,
        class_="group",
        **attributes,
    )


def _tone(sample: Sample) -> str:
    """Better or worse than its group; without a sign when there is no advantage."""
    advantage = sample.advantage or 0.0
    return "good" if advantage > 0 else "bad" if advantage < 0 else "even"


def _sample(sample: Sample) -> Element:
    advantage = "–" if sample.advantage is None else signed(sample.advantage, 2)
    verdicts = [
        h(
            "li",
            h("b", name),
            " ",
            short(v.value) if v.outcome == "score" else h("span", v.outcome, class_="chip bad"),
            f" – {v.reason}" if v.reason else None,
        )
        for name, v in sample.verdicts.items()
    ]
    return h(
        "div",
        h(
            "p",
            h("span", f"reward {short(sample.reward)}", class_=f"chip {_tone(sample)}"),
            f" advantage {advantage}",
            h("span", " · truncated", class_="cut") if sample.truncated else None,
            class_="label",
        ),
        h("pre", sample.completion),
        h("ul", verdicts, class_="verdicts") if verdicts else None,
        class_="sample",
    )
