"""HTML elements with every text escaped, and the way figures are written.

Text reaches the page only as element text or attribute value of an `ElementTree`, which escapes it
on serialisation; there is no way to pass markup through. Knows nothing of runs.
"""

import re
from collections.abc import Iterable
from typing import TypeAlias
from xml.etree import ElementTree

Element: TypeAlias = ElementTree.Element
Child: TypeAlias = "Element | str | Iterable[Element | str | None] | None"

# Control characters (tab and newline aside) and lone surrogates: neither HTML nor UTF-8 can hold
# them. The bidirectional overrides go too: with them a text can read as other than it is.
_UNSHOWABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069\ufffe\uffff]"
)

_UNITS = ((1e12, 1e12, "T"), (1e9, 1e9, "B"), (1e6, 1e6, "M"), (1e4, 1e3, "k"))


def plain(text: str) -> str:
    """`text` with line ends made "\\n" and every character that cannot be shown made "\\ufffd"."""
    return _UNSHOWABLE.sub("\ufffd", text.replace("\r\n", "\n"))


def h(tag: str, *children: Child, **attributes: str) -> Element:
    """The element `tag` with `children` (elements, texts, None for nothing, or lists of them).

    Attribute names are written with "_" for "-" and may end in "_" (`class_="note"`).
    """
    names = {name.rstrip("_").replace("_", "-"): plain(v) for name, v in attributes.items()}
    element = ElementTree.Element(tag, names)
    for child in children:
        items = [child] if child is None or isinstance(child, str | Element) else child
        for item in items:
            _append(element, item)
    return element


def _append(element: Element, item: Element | str | None) -> None:
    if isinstance(item, Element):
        element.append(item)
    elif item is not None and len(element):
        element[-1].tail = (element[-1].tail or "") + plain(item)
    elif item is not None:
        element.text = (element.text or "") + plain(item)


def document(root: Element) -> str:
    """The whole page as text, doctype first."""
    return (
        "<!doctype html>\n" + ElementTree.tostring(root, encoding="unicode", method="html") + "\n"
    )


def table(head: list[str], rows: list[list[Child]], *, numeric_from: int = 1) -> Element:
    """A table in a box that scrolls sideways; columns from `numeric_from` hold figures."""

    def cell(tag: str, index: int, content: Child) -> Element:
        return h(tag, content, class_="figure" if index >= numeric_from else "name")

    return h(
        "div",
        h(
            "table",
            h("thead", h("tr", [cell("th", i, title) for i, title in enumerate(head)])),
            h("tbody", [h("tr", [cell("td", i, c) for i, c in enumerate(row)]) for row in rows]),
        ),
        class_="scroll",
        tabindex="0",
    )


def percent(share: float | None) -> str:
    """A share of 1 as "71.3%"; "–" for None."""
    return "–" if share is None else f"{100 * share:.1f}%"


def span(interval: tuple[float, float] | None) -> str:
    """An interval of shares as "66.6–75.4%"; empty for None."""
    return "" if interval is None else f"{100 * interval[0]:.1f}–{100 * interval[1]:.1f}%"


def short(value: float | None) -> str:
    """A figure with some three digits that count, large ones as "12.3k", "4.1M"; "–" for None."""
    if value is None:
        return "–"
    size, unit = next(((s, u) for least, s, u in _UNITS if abs(value) >= least), (1.0, ""))
    scaled = value / size
    text = f"{scaled:,.0f}" if 99.95 <= abs(scaled) < 1e5 else f"{scaled:.3g}"
    return (text + unit).replace("-", "−")


def signed(value: float, digits: int = 1) -> str:
    """A difference with its sign: "+1.0", "−0.5"."""
    return f"{value:+.{digits}f}".replace("-", "−")


def duration(seconds: float) -> str:
    """Seconds as "2 h 05 min", "3 min 07 s" or "12.3 s"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
