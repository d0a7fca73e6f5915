"""The page of one saved evaluation, or of two compared.

Figures with their intervals, pass@k and maj@k, right answers by length, tables by level and
subject, overlaps with training data, completions with the reasons of their scores, the manifest;
for two results also the paired comparison. Pure: results in, text out.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rl_reasoner.evaluation.comparison import sentence_of, unlike
from rl_reasoner.evaluation.formatting import fixed, p_value, percent, points, points_span
from rl_reasoner.evaluation.labels import set_title
from rl_reasoner.evaluation.result import EvalResult, compare
from rl_reasoner.report import charts
from rl_reasoner.report.browse import EntrySource
from rl_reasoner.report.charts import Bar, Chart, Trace
from rl_reasoner.report.html import Child, Element, estimate, folded, h, note, section, table
from rl_reasoner.report.page import flat
from rl_reasoner.report.run_data import EVAL_ROWS_KEPT
from rl_reasoner.report.shell import browser_section, shell, show_button
from rl_reasoner.report.sources import evaluations
from rl_reasoner.report.stages import figures

Named = Sequence[tuple[str, EvalResult]]


def build_evaluation_page(results: Sequence[EvalResult], files: Sequence[str] = ()) -> str:
    """Build the page of one or two results as HTML text; equal results give equal text.

    `files` are the names of their files, which tell two results of one policy apart.
    """
    labels = [charts.RESULT] if len(results) == 1 else ["a", "b"]
    named = list(zip(labels, results, strict=True))
    entries = compare(*results) if len(results) == 2 else {}
    sources = _sources(named, entries)
    sections = [
        _header(named, files),
        _comparison(named, entries, sources) if entries else None,
        _tables(named),
        _curves(named),
        _parts(named),
        browser_section(sources),
        *[_manifest(label, result) for label, result in named],
    ]
    title = f"{results[-1].policy} – evaluation"
    return shell(title, sections, "Made by rl-reasoner from saved completions.", sources)


def _header(named: Named, files: Sequence[str]) -> Element:
    title = named[0][1].policy if len(named) == 1 else "Two evaluations"
    of = [f", {name}" for name in files] or [""] * len(named)
    told = zip(named, of, strict=True) if len(named) > 1 else ()
    lines = [f"{label}: {result.policy}{file}" for (label, result), file in told]
    conditions = [
        ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in result.settings.items())
        for _, result in named
    ]
    if len(set(conditions)) > 1:
        lines += [f"{label}: {those}" for (label, _), those in zip(named, conditions, strict=True)]
    else:
        lines += conditions[:1]
    return h(
        "header",
        h("p", "Evaluation", class_="eyebrow"),
        h("h1", title),
        [h("p", line, class_="lead") for line in lines],
    )


# --- figures


def _names(named: Named) -> list[str]:
    """Every set of the page."""
    return list(dict.fromkeys(name for _, result in named for name in result.sets))


def _tables(named: Named) -> Element:
    names = _names(named)
    alone = len(named) == 1
    head = ["Set"] if alone else ["Set", "Result"]
    first = len(head)
    head += ["Problems", "Samples", "Accuracy", "Lenient", "Cut off", "No answer"]
    head += ["Abstained", "Faults", "Mean length"]
    rows: list[list[Child]] = []
    for name in names:
        for label, result in named:
            s = result.sets.get(name)
            if s is None:
                continue
            shares = [
                percent(s.get(key)) for key in ("truncated", "no_answer", "abstained", "faults")
            ]
            counts = [f"{s['problems']:,}", str(s["samples"])]
            judged = [_accuracy(s), _accuracy(s.get("lenient"))]
            mean = s.get("mean_length")
            length = "–" if mean is None else fixed(mean)
            title = set_title(name, names)
            whose: list[Child] = [title] if alone else [title, label]
            rows.append([*whose, *counts, *judged, *shares, length])
    meaning = (
        "95% intervals: Wilson's for one completion per problem, clustered by problem for several. "
        "A completion that has no answer or could not be judged is not right; one that was cut off "
        "is judged by what was written until then. Lenient: right wherever a person reads the "
        "answer, in whatever form; a dash where answer and form are one thing."
    )
    return section("figures", "Figures", table(head, rows, numeric_from=first), note(meaning))


def _accuracy(figures: Mapping[str, Any] | None) -> Child:
    return "–" if figures is None else estimate(figures["accuracy"], figures["interval"])


def _curves(named: Named) -> Element:
    names = _names(named)
    drawings, lengths = list(_drawings(named, names)), list(_by_length(named, names))
    return section(
        "curves",
        "Curves",
        figures(drawings, "curves"),
        figures(lengths, "curves") if lengths else None,
    )


def _drawings(named: Named, names: Sequence[str]) -> Iterator[Chart]:
    groups = [
        (set_title(n, names), [_bar(label, r.sets[n]) for label, r in named if n in r.sets])
        for n in names
    ]
    yield charts.bars("Accuracy", groups, note="lines are 95% intervals")
    many = len(named) > 1
    for name in names:
        curves = [
            line
            for label, result in named
            for kind in ("pass", "maj")
            for line in [_points(result.sets.get(name, {}), kind, label if many else "")]
            if len(line.steps) > 1
        ]
        if curves:
            yield charts.pass_at_k_chart(f"pass@k and maj@k on {set_title(name, names)}", curves)


def _by_length(named: Named, names: Sequence[str]) -> Iterator[Chart]:
    for name in names:
        label, result = _last_with(name, named)
        bins = result.sets[name].get("by_length", [])
        if len(bins) > 1:
            lengths = [(_tokens(*b["tokens"]), [_bar(label, b)]) for b in bins]
            title = f"Right answers by length on {set_title(name, names)}"
            yield charts.bars(title, lengths, note="about a fifth of the completions each")


def _last_with(name: str, named: Named) -> tuple[str, EvalResult]:
    """The last result that has the set, with its label."""
    return next((label, result) for label, result in reversed(named) if name in result.sets)


def _tokens(shortest: int, longest: int) -> str:
    return f"{shortest} tokens" if shortest == longest else f"{shortest} to {longest} tokens"


def _bar(label: str, s: Mapping[str, Any]) -> Bar:
    low, high = s["interval"]
    return Bar(label, s["accuracy"], (low, high))


def _points(s: Mapping[str, Any], kind: str, label: str) -> Trace:
    curve, spans = s.get(f"{kind}_at", {}), s.get(f"{kind}_at_interval", {})
    band = charts.band([spans.get(k) for k in curve])
    return Trace(f"{kind}@k {label}".strip(), [int(k) for k in curve], [*curve.values()], band)


def _parts(named: Named) -> Element | None:
    """Tables at k, by level and subject, and of overlaps, of every set that has them.

    Of two results, those of the second, else of the first.
    """
    blocks: list[Element] = []
    for name in _names(named):
        label, result = _last_with(name, named)
        s = result.sets[name]
        title = set_title(name, _names(named))
        title += f" ({label})" if len(named) > 1 else ""
        blocks += _at_k(title, s)
        for column, groups in s.get("by", {}).items():
            rows: list[list[Child]] = [
                [value, f"{g['problems']:,}", estimate(g["accuracy"], g["interval"])]
                for value, g in groups.items()
            ]
            heads = [column, "Problems", "Accuracy"]
            blocks += [h("h3", f"{title} by {column}"), table(heads, rows)]
        if "contamination" in s:
            counts = s["contamination"]
            heads = [key.replace("_", " ") for key in counts]
            values: list[Child] = [f"{value:,}" for value in counts.values()]
            blocks.append(h("h3", f"{title}: overlap with the training rows"))
            blocks.append(table(heads, [values], numeric_from=0))
    return section("detail", "In detail", blocks) if blocks else None


def _at_k(title: str, s: Mapping[str, Any]) -> list[Element]:
    kinds = [kind for kind in ("pass", "maj") if len(s.get(f"{kind}_at", {})) > 1]
    if not kinds:
        return []
    rows: list[list[Child]] = []
    for k in s[f"{kinds[0]}_at"]:
        cells: list[Child] = [k]
        for kind in kinds:
            interval = s.get(f"{kind}_at_interval", {}).get(k)
            cells.append(estimate(s[f"{kind}_at"][k], interval))
        rows.append(cells)
    heads = ["k", *(f"{kind}@k" for kind in kinds)]
    how = "pass@k by the unbiased estimator, maj@k exact over classes of equal answers; bootstrap"
    return [h("h3", f"{title} at k"), table(heads, rows), note(how)]


# --- comparison


def _comparison(
    named: Named, entries: Mapping[str, Mapping[str, Any]], sources: Sequence[EntrySource]
) -> Element:
    head = ["Set", "Problems", "b − a, points", "95% interval", "p", "p (Holm)"]
    head += ["Detectable", "Test"]
    rows: list[list[Child]] = []
    titles = {name: set_title(name, _names(named)) for name in entries}
    for name, entry in entries.items():
        rows.append([titles[name], f"{entry['problems']:,}", *_tested(entry)])
        if "lenient" in entry:
            rows.append([f"{titles[name]}, lenient", "", *_tested(entry["lenient"])])
        if "pass_at_k" in entry:
            at_k = f"{titles[name]}, pass@{entry['pass_at_k']['k']}"
            rows.append([at_k, "", *_tested(entry["pass_at_k"])])
    meaning = (
        "Detectable: the least true difference that this many problems show 4 times in 5, "
        "by a p of its own; fewer than six problems show none. "
        "Holm: adjusted for the number of sets; lenient ones and pass@k apart."
    )
    return section(
        "comparison",
        "Comparison, paired by problem",
        h("ul", [h("li", sentence_of(titles[name], entry)) for name, entry in entries.items()]),
        table(head, rows),
        [note(sentence) for sentence in (meaning, *unlike(entries))],
        [_flipped(name, titles[name], entry, sources) for name, entry in entries.items()],
    )


def _tested(entry: Mapping[str, Any]) -> list[Child]:
    """The cells of a difference with its test."""
    low, high = entry["interval"]
    p_values = [p_value(entry[key]) for key in ("p", "p_holm")]
    least = entry["detectable"]
    detectable = "none" if least is None else f"±{fixed(100 * least)}"
    moved = [points(entry["difference"]), points_span((low, high))]
    return [*moved, *p_values, detectable, entry["test"]]


def _flipped(
    name: str, title: str, entry: Mapping[str, Any], sources: Sequence[EntrySource]
) -> Element | None:
    """How many rows flipped, which a click shows side by side."""
    better, worse = entry["better"], entry["worse"]
    source = next((s for s in sources if s.place == name), None)
    if not better + worse or source is None:
        return None
    counts = f"{title}: {better:,} rows better in b, {worse:,} worse. "
    return note(counts, show_button("show them", source=source.key, outcome="mixed"))


# --- completions


def _sources(named: Named, entries: Mapping[str, Mapping[str, Any]]) -> list[EntrySource]:
    """The completions of every set: of large ones the rows that flipped, then the first."""
    kept = []
    for label, result in named:
        place = "row_b" if label == "b" else "row"
        rows = {}
        for name, every in result.rows.items():
            flipped = [flip[place] for flip in entries.get(name, {}).get("flips", [])]
            chosen = list(dict.fromkeys([*flipped, *range(len(every))]))[:EVAL_ROWS_KEPT]
            rows[name] = [every[i] for i in sorted(chosen)]
        kept.append((label, rows))
    return evaluations(kept)


def _manifest(label: str, result: EvalResult) -> Element | None:
    rows: list[list[Child]] = [[name, h("code", value)] for name, value in flat(result.manifest)]
    if not rows:
        return None
    title = "Manifest" if label == "result" else f"Manifest of {label}"
    facts = folded("What it was measured with", table(["", ""], rows, numeric_from=9))
    return section(f"manifest-{label}", title, facts)
