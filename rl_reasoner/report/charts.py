"""The report's charts: small inline SVGs drawn by matplotlib, in the page's own colours and font.

Every chart is as wide as a phone's screen, so that its text is read at its natural size there and
several stand beside each other on a wide screen. matplotlib draws in marker colours that become
CSS variables, which is how one drawing reads in light and in dark. Legends are left to the page.
Output is the same for the same figures: ids are hashed with a fixed salt, no date is written.
"""

import io
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias
from xml.etree import ElementTree

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from rl_reasoner.report.html import Element
from rl_reasoner.report.text import percent, plain, short

Axes: TypeAlias = Any  # matplotlib's own classes are untyped here
WIDTH, HEIGHT = 4.8, 2.6  # inches of 72 px
_POINTS = 150  # along the x axis: more would not be seen

_VARIABLES = ("ink", "soft", "grid", "before", "c1", "c2", "c3", "c4", "c5", "c6")
_MARKS = {name: f"#0102{0x10 + index:02x}" for index, name in enumerate(_VARIABLES)}
SERIES = ("c1", "c2", "c3", "c4", "c5", "c6")

_SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "rl-reasoner",
    "image.composite_image": False,
    "text.parse_math": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "font.size": 10.5,
    "axes.edgecolor": _MARKS["grid"],
    "axes.labelcolor": _MARKS["soft"],
    "text.color": _MARKS["ink"],
    "xtick.color": _MARKS["soft"],
    "ytick.color": _MARKS["soft"],
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "grid.color": _MARKS["grid"],
    "grid.linewidth": 0.8,
    "lines.solid_capstyle": "round",
}


@dataclass(frozen=True)
class Line:
    """One curve: values at steps, with `band` (low, high) around it where given."""

    label: str
    steps: Sequence[int]
    values: Sequence[float]
    band: tuple[Sequence[float], Sequence[float]] | None = None


@dataclass(frozen=True)
class Chart:
    """A drawing with its title, its newest figures in words, and (label, colour variable) pairs."""

    title: str
    svg: Element
    summary: str = ""
    note: str = ""
    legend: Sequence[tuple[str, str]] = field(default_factory=tuple)


@dataclass(frozen=True)
class Bar:
    """One bar: a share of 1 with its interval."""

    label: str
    value: float
    interval: tuple[float, float] | None


def colour(index: int) -> str:
    """The colour variable of the series `index`; the palette starts over after its end."""
    return SERIES[index % len(SERIES)]


def curve(title: str, lines: Sequence[Line], *, share: bool = False, note: str = "") -> Chart:
    """Curves over steps. Long ones are drawn faint, with their running mean over them.

    The summary gives the first line's running mean at both ends.
    """
    with _style():
        figure, axes = _axes("step", share=share)
        for index, line in enumerate(lines):
            _draw_line(axes, line, _MARKS[colour(index)])
        if share:
            axes.set_ylim(bottom=0)
        svg = _svg(figure, title)
    legend = [(line.label, colour(i)) for i, line in enumerate(lines)] if len(lines) > 1 else []
    _, means = _running_mean(lines[0].values)
    ends = [percent(v) if share else short(v) for v in (means[0], means[-1])]
    return Chart(title, svg, " → ".join(ends), note, legend)


def stack(
    title: str, labels: Sequence[str], steps: Sequence[int], rows: Sequence[Sequence[float]]
) -> Chart:
    """Areas on top of each other: at each step one row of seconds, a figure a label."""
    with _style():
        figure, axes = _axes("step")
        marks = [_MARKS[colour(i)] for i in range(len(labels))]
        areas = list(
            zip(*_means([[s, *row] for s, row in zip(steps, rows, strict=True)]), strict=True)
        )
        axes.stackplot(areas[0], areas[1:], colors=marks, alpha=0.75, linewidth=0)
        axes.set_ylim(bottom=0)
        svg = _svg(figure, title)
    sums = [sum(row[i] for row in rows) for i in range(len(labels))]
    parts = [
        f"{label} {100 * s / (sum(sums) or 1):.0f}%" for label, s in zip(labels, sums, strict=True)
    ]
    return Chart(title, svg, "", "seconds", [(part, colour(i)) for i, part in enumerate(parts)])


def heat_map(title: str, steps: Sequence[int], rows: Sequence[Sequence[float]], note: str) -> Chart:
    """Shares of experts (one list a step); the full colour is twice the fair share or more."""
    experts = len(rows[0])
    with _style():
        figure, axes = _axes("step")
        axes.grid(visible=False)
        tint = LinearSegmentedColormap.from_list(
            "tint", [(0.23, 0.44, 0.86, a) for a in (0.0, 1.0)]
        )
        axes.imshow(
            list(zip(*_means(rows), strict=True)),
            cmap=tint,
            vmin=0,
            vmax=2 / experts,
            aspect="auto",
            interpolation="none",
            extent=(steps[0], max(steps[-1], steps[0] + 1), experts - 0.5, -0.5),
        )
        axes.set_ylabel("expert")
        axes.yaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
        svg = _svg(figure, title)
    return Chart(title, svg, f"largest {100 * max(rows[-1]):.1f}%", note)


def bars(title: str, sets: Sequence[tuple[str, Sequence[Bar]]], *, note: str = "") -> Chart:
    """Lying bars with error bars under each set's name, one bar an evaluation."""
    labels = list(dict.fromkeys(bar.label for _, group in sets for bar in group))
    colours = evaluation_colours(labels)
    unit = (
        0.19  # inches of one bar; a set's name takes as much, and half of it is left between sets
    )
    units = sum(len(group) + 1.6 for _, group in sets)
    with _style():
        figure, axes = _axes("", height=0.35 + unit * units)
        axes.grid(visible=False, axis="y")
        axes.grid(visible=True, axis="x")
        y = 0.5
        for name, group in sets:
            axes.text(0, y, _shortened(name), va="center", fontsize=10.5)
            for bar in group:
                y += 1
                axes.barh(y, bar.value, 0.8, color=_MARKS[colours[bar.label]], zorder=2)
                if bar.interval is not None:
                    axes.hlines(y, *bar.interval, color=_MARKS["ink"], linewidth=1.4, zorder=3)
            y += 1.6
        axes.set_ylim(y - 0.9, -0.1)
        axes.set_xlim(0, 1)
        axes.set_yticks([])
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
        axes.xaxis.set_major_formatter(FuncFormatter(_percent_tick))
        svg = _svg(figure, title)
    return Chart(title, svg, "", note, [(label, colours[label]) for label in labels])


def pass_at_k(title: str, curves: Sequence[tuple[str, Sequence[int], Sequence[float]]]) -> Chart:
    """pass@k over k on a doubling axis, one curve an evaluation: (label, ks, shares)."""
    colours = evaluation_colours([label for label, _, _ in curves])
    ticks = sorted({k for _, ks, _ in curves for k in ks})
    with _style():
        figure, axes = _axes("k", share=True)
        axes.set_xscale("log", base=2)
        for label, ks, values in curves:
            mark = _MARKS[colours[label]]
            axes.plot(ks, values, color=mark, linewidth=1.8, marker="o", markersize=3.5)
        axes.set_xticks(ticks, [str(k) for k in ticks])
        axes.minorticks_off()
        svg = _svg(figure, title)
    return Chart(title, svg, "", "", [(label, colours[label]) for label, _, _ in curves])


def evaluation_colours(labels: Sequence[str]) -> dict[str, str]:
    """A colour variable for each evaluation: grey before, the accent after, others between."""
    fixed = {"before": "before", "after": "c1"}
    others = [label for label in labels if label not in fixed]
    return {label: fixed.get(label) or colour(1 + others.index(label)) for label in labels}


def number_ids(page: Element) -> None:
    """In each `svg` of a finished page, drop unused ids and make the others unique in the page."""
    for index, root in enumerate(page.iter("svg"), start=1):
        used = set(re.findall(r"#([\w-]+)", ElementTree.tostring(root, encoding="unicode")))
        for element in root.iter():
            name = element.attrib.pop("id", None)
            if name in used:
                element.set("id", f"chart{index}-{name}")
            for key in ("href", "clip-path"):
                value = element.get(key, "")
                if value.startswith(("#", "url(#")):
                    element.set(key, value.replace("#", f"#chart{index}-"))


def _style() -> Any:
    """matplotlib's own defaults and ours over them, whatever the user's style files say."""
    ours = {**matplotlib.rcParamsDefault, **_SETTINGS}
    ours.pop("backend")  # rc_context would not put it back
    return matplotlib.rc_context(ours)


def _axes(label: str, *, share: bool = False, height: float = HEIGHT) -> tuple[Any, Axes]:
    figure = Figure(figsize=(WIDTH, height), dpi=72, layout="constrained")
    axes = figure.add_subplot()
    axes.grid(visible=True, axis="y")
    axes.set_axisbelow(True)
    axes.set_xlabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
    axes.yaxis.set_major_formatter(FuncFormatter(_percent_tick if share else _tick))
    return figure, axes


def _draw_line(axes: Axes, line: Line, mark: str) -> None:
    steps = line.steps
    if line.band is not None:
        low, high = line.band
        parts = _parts(len(steps))
        lows, highs = [min(low[i:j]) for i, j in parts], [max(high[i:j]) for i, j in parts]
        at = [steps[i] for i, _ in parts]
        axes.fill_between(at, lows, highs, color=mark, alpha=0.16, linewidth=0)
    marker = {"marker": "o", "markersize": 3.5} if len(line.values) <= 12 else {}
    places, means = _running_mean(line.values)
    if means != list(line.values):
        kept = _extremes(line.values)
        raw = [steps[i] for i in kept], [line.values[i] for i in kept]
        axes.plot(*raw, color=mark, linewidth=0.8, alpha=0.3)
    axes.plot([steps[i] for i in places], means, color=mark, linewidth=1.8, **marker)


def _parts(count: int) -> list[tuple[int, int]]:
    """(start, end) of at most `_POINTS` even parts of `count` things."""
    size = max(1, -(-count // _POINTS))
    return [(i, min(i + size, count)) for i in range(0, count, size)]


def _extremes(values: Sequence[float]) -> list[int]:
    """Where each part has its lowest and its highest value: no spike is lost to thinning."""
    kept = set()
    for i, j in _parts(len(values)):
        part = sorted(range(i, j), key=lambda at: values[at])
        kept |= {part[0], part[-1]}
    return sorted(kept)


def _means(rows: Sequence[Sequence[float]]) -> list[list[float]]:
    """The mean row of each part of `rows`."""
    parts = [rows[i:j] for i, j in _parts(len(rows))]
    return [[sum(values) / len(part) for values in zip(*part, strict=True)] for part in parts]


def _running_mean(values: Sequence[float]) -> tuple[list[int], list[float]]:
    """Places along `values`, first and last among them, and the mean around each.

    A mean is over a fifteenth of all values; while they are few, over the one alone.
    """
    reach = len(values) // 30
    places = sorted({i for i, _ in _parts(len(values))} | {len(values) - 1})
    windows = [values[max(0, i - reach) : i + reach + 1] for i in places]
    return places, [sum(window) / len(window) for window in windows]


def _shortened(name: str, most: int = 44) -> str:
    name = plain(name).replace("\n", " ")
    return name if len(name) <= most else name[: most - 1] + "…"


def _tick(value: float, _: int) -> str:
    return short(value)


def _percent_tick(value: float, _: int) -> str:
    return f"{100 * value:.3g}%"


def _svg(figure: Any, title: str) -> Element:
    """The figure as an `svg` element fit to stand in a page beside others of its kind."""
    out = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the page's font draws it, not ours
        FigureCanvasSVG(figure).print_svg(out, metadata={"Date": None, "Creator": None})
    source = out.getvalue()
    for name, mark in _MARKS.items():
        source = source.replace(mark, f"var(--{name})")
    root = ElementTree.fromstring(source)
    _strip(root)
    box = root.get("viewBox", "")
    root.attrib.clear()
    root.attrib.update({"viewBox": box, "role": "img", "aria-label": plain(title)})
    return root


def _strip(root: Element) -> None:
    """Take out what only a file of its own needs: namespaces, metadata, styles, font families."""
    for element in list(root.iter()):
        for child in list(element):
            if child.tag.endswith(("}metadata", "}style")):
                element.remove(child)
        element.tag = element.tag.rpartition("}")[2]
        element.text = element.text if (element.text or "").strip() else None
        element.tail = None
        for name, value in list(element.attrib.items()):
            del element.attrib[name]
            element.set(name.rpartition("}")[2], _tight(value, path=name == "d"))
        if element.tag == "text" and "style" in element.attrib:
            element.set(
                "style", re.sub(r"font(-family)?:[^;]*;", _font_size, element.get("style", ""))
            )


def _tight(value: str, *, path: bool) -> str:
    """An attribute's value without spaces that only lay it out; a path's to a hundredth of a px."""
    value = re.sub(r"\d+\.\d{3,}", lambda n: f"{float(n.group()):.2f}", value) if path else value
    value = re.sub(r"rotate\(-0 [^)]*\)", "", " ".join(value.split()))
    return value.replace("base64, ", "base64,")


def _font_size(match: re.Match[str]) -> str:
    size = re.search(r"[\d.]+px", match.group())
    return f"font-size: {size.group()};" if size else ""
