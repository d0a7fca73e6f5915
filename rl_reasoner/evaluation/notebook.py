"""Evaluations and comparisons as a notebook shows them: small tables, every text escaped.

HTML without scripts or style sheets, in the notebook's own colours, so that it is readable in light
and dark ones and where outputs are not trusted. Knows figures and rows only.
"""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from rl_reasoner.evaluation.formatting import bracketed, p_value, percent, points, points_span
from rl_reasoner.foreign import printable

_CELL = "vertical-align:top;white-space:pre-wrap"
_FLIPS_SHOWN = 5
_TEXT_SHOWN = 160  # characters of a problem or completion


def text(value: object, most: int | None = None) -> str:
    """A foreign text as HTML: control characters shown, markup escaped, cut to `most`."""
    whole = printable(str(value))
    return escape(whole if most is None or len(whole) <= most else f"{whole[:most]}…")


def html_table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> str:
    """A table of cells that are HTML already; columns from `left` on hold figures."""

    def cells(tag: str, row: Sequence[str]) -> str:
        sides = ["left" if n < left else "right" for n in range(len(row))]
        return "".join(
            f'<{tag} style="text-align:{side};{_CELL}">{cell}</{tag}>'
            for side, cell in zip(sides, row, strict=True)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f"<table><thead><tr>{cells('th', heads)}</tr></thead><tbody>{body}</tbody></table>"


def estimated(figures: Mapping[str, Any] | None) -> str:
    """An accuracy with its interval; a dash for none."""
    if figures is None:
        return "–"
    return f"{percent(figures['accuracy'])} {bracketed(figures.get('interval'))}".strip()


def difference(entry: Mapping[str, Any]) -> str:
    """A paired difference in points with its interval and p-value, as plain text."""
    low, high = entry["interval"]
    moved = f"{points(entry['difference'])} {points_span((low, high))}"
    return f"{moved}, p {p_value(entry['p_holm'])}"


def result_html(name: str, policy: str, sets: Mapping[str, Mapping[str, Any]]) -> str:
    """The figures of an evaluation."""
    rows = [
        [
            text(key),
            f"{figures['problems']:,}"
            + (f" × {figures['samples']}" if figures["samples"] > 1 else ""),
            estimated(figures),
            estimated(figures.get("lenient")),
        ]
        for key, figures in sets.items()
    ]
    heads = ["set", "problems", "strict, 95% interval", "lenient, 95% interval"]
    return f"<p><b>{text(name)}</b>: {text(policy)}</p>{html_table(heads, rows)}"


def comparison_html(entries: Mapping[str, Mapping[str, Any]]) -> str:
    """Paired differences by set, how much of each is form, and some problems that changed."""
    rows, notes, flips = [], [], []
    for name, entry in entries.items():
        lenient = text(difference(entry["lenient"])) if "lenient" in entry else "–"
        counts = [f"{entry['problems']:,}", f"{entry['better']:,}", f"{entry['worse']:,}"]
        rows.append([text(name), *counts, text(difference(entry)), lenient])
        notes += [f"{name}: {entry['form']['words']}"] if "form" in entry else []
        for flip in entry["flips"][:_FLIPS_SHOWN]:
            sides = [
                f"{percent(side['share'], 0)} {text(side.get('completion', ''), _TEXT_SHOWN)}"
                for side in (flip["a"], flip["b"])
            ]
            flips.append([text(name), text(flip["problem"], _TEXT_SHOWN), *sides])
    heads = ["set", "problems", "better", "worse", "difference, points", "lenient"]
    told = "".join(f"<p>{text(note)}</p>" for note in notes)
    changed = html_table(["set", "problem", "a", "b"], flips, left=4) if flips else ""
    summary = "<summary>problems whose verdict changed</summary>"
    more = f"<details>{summary}{changed}</details>" if changed else ""
    return html_table(heads, rows) + told + more
