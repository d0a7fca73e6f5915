"""HTML elements with every text escaped.

Text reaches the page only as element text or attribute value of an `ElementTree`, which escapes it
on serialisation; there is no way to pass markup through. Texts of scripts and style sheets cannot
be escaped: only ours, without a "<" that could end them, are let through. Knows nothing of runs.
"""

import re
from collections.abc import Iterable
from typing import TypeAlias
from xml.etree import ElementTree

from rl_reasoner.evaluation.formatting import percent, span
from rl_reasoner.foreign import printable

Element: TypeAlias = ElementTree.Element
Child: TypeAlias = "Element | str | Iterable[Element | str | None] | None"


def h(tag: str, *children: Child, **attributes: str) -> Element:
    """The element `tag` with `children` (elements, texts, None for nothing, or lists of them).

    Attribute names are written with "_" for "-" and may end in "_" (`class_="note"`).
    """
    names = {name.rstrip("_").replace("_", "-"): printable(v) for name, v in attributes.items()}
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
        element[-1].tail = (element[-1].tail or "") + printable(item)
    elif item is not None:
        element.text = (element.text or "") + printable(item)


def document(root: Element) -> str:
    """The whole page as text, doctype first.

    Raises ValueError for a script or style sheet that would be read as other than it is.
    """
    for element in root.iter():
        if element.tag in ("script", "style") and re.search("</|<!--", element.text or ""):
            raise ValueError(f"a {element.tag} holds what would end it")
    return (
        "<!doctype html>\n" + ElementTree.tostring(root, encoding="unicode", method="html") + "\n"
    )


def table(head: list[str], rows: list[list[Child]], *, numeric_from: int = 1) -> Element:
    """A table; columns from `numeric_from` hold figures.

    It scrolls sideways where it does not fit. On a phone each row is a block of its own, with the
    column's title beside every cell: nothing is out of sight.
    """

    def cell(tag: str, index: int, content: Child) -> Element:
        look = "figure" if index >= numeric_from else "name"
        if tag == "th":
            return h(tag, content, class_=look)
        filled = h("span", content)
        empty = not (len(filled) or filled.text)
        return h(tag, filled, class_=f"{look} empty" if empty else look, data_label=head[index])

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


def section(id_: str, title: str, *children: Child) -> Element:
    """A section of a page, which its navigation lists by the `title`."""
    return h("section", h("h2", title), *children, id=id_)


def note(*children: Child) -> Element:
    """A remark in small print."""
    return h("p", *children, class_="note")


def folded(summary: str, *children: Child) -> Element:
    """What is shown at a click on its `summary`."""
    return h("details", h("summary", summary), *children)


def estimate(share: float, interval: tuple[float, float] | None) -> list[Element | str | None]:
    """A share with its interval behind it, for a table's cell."""
    return [percent(share), h("span", span(interval), class_="interval")]
