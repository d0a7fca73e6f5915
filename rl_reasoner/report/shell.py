"""What every page has: head and security policy, navigation, the browser's frame, scripts, packs.

A page is one file that asks for nothing. Its security policy allows the one script and the one
style sheet that are written into it, by their hashes, and no request; a page that is served live
may ask its own server. The script builds everything from texts, never from markup: trusted types
are required, and none are made.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from itertools import count
from typing import Any

from rl_reasoner.report.browse import EntrySource, pack_content
from rl_reasoner.report.html import Element, document, h, note, section

_SCRIPTS = ("charts.js", "browser.js", "page.js")
_KEYS = (
    ("j / k", "next, previous completion; in the list also ↓ ↑"),
    ("n / p", "next, previous prompt"),
    ("/", "filter by text"),
    ("d", "differences within the group"),
    ("t", "light, dark"),
    ("Esc", "close, leave a field"),
    ("?", "this help"),
    ("← →", "read a curve that has the focus"),
)
_SHOWN = (
    ("", "all"),
    ("above", "better than the group"),
    ("below", "worse than the group"),
    ("mixed", "groups that differ"),
    ("truncated", "cut off"),
    ("abstained", "abstained"),
    ("fault", "reward failed"),
)
_ORDERS = (
    ("", "as they came"),
    ("new", "newest first"),
    ("high", "reward, high first"),
    ("low", "reward, low first"),
    ("long", "longest first"),
)


@cache
def _asset(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


@cache
def _script() -> str:
    return '"use strict";\n{\n' + "\n".join(_asset(name) for name in _SCRIPTS) + "}\n"


def policy(*, live: bool) -> str:
    """The page's content security policy."""

    def hashed(text: str) -> str:
        digest = hashlib.sha256(text.encode()).digest()
        return f"'sha256-{base64.b64encode(digest).decode()}'"

    parts = {
        "default-src": "'none'",
        "script-src": hashed(_script()),
        "style-src": hashed(_asset("page.css")),
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    if live:
        parts["connect-src"] = "'self'"
    return "; ".join(f"{name} {value}" for name, value in parts.items())


def shell(
    title: str,
    sections: Sequence[Element | None],
    footer: str,
    sources: Sequence[EntrySource] = (),
    live: Mapping[str, Any] | None = None,
) -> str:
    """A whole page as HTML text: head, sections, the browser of `sources`, scripts and packs.

    `live` is what the script asks its server with, for a page that is served.
    """
    shown = [each for each in sections if each is not None]
    main = h("main", shown)
    about = {
        "charts": _taken_specs(main),
        "sources": [
            {"key": s.key, "name": s.name, "place": s.place, "note": s.note, "end": s.end}
            for s in sources
        ],
        "live": live,
    }
    packs = [("about", about), *(pack for source in sources for pack in source.packs())]
    root = h(
        "html",
        _head(title, live=live is not None),
        h(
            "body",
            _navigation(shown, live=live is not None),
            main,
            h("footer", footer),
            _help(),
            [
                h("script", pack_content(content), type="text/plain", id=f"pack-{k}")
                for k, content in packs
            ],
            h("script", _script()),
        ),
        lang="en",
    )
    return document(root)


def _head(title: str, *, live: bool) -> Element:
    return h(
        "head",
        h("meta", charset="utf-8"),
        h("meta", http_equiv="Content-Security-Policy", content=policy(live=live)),
        h("meta", name="referrer", content="no-referrer"),
        h("meta", name="viewport", content="width=device-width, initial-scale=1"),
        h("meta", name="color-scheme", content="light dark"),
        h("link", rel="icon", href="data:,"),
        h("title", title),
        h("style", _asset("page.css")),
    )


def _taken_specs(main: Element) -> dict[str, Any]:
    """The charts' specifications by their keys, taken out of their figures.

    Of charts with one key the later ones get a number: each figure shows its own.
    """
    specs: dict[str, Any] = {}
    for element in main.iter("figure"):
        spec = element.attrib.pop("data-spec", None)
        if spec is not None:
            key = first = element.get("data-chart", "")
            for number in count(2):
                if key not in specs:
                    break
                key = f"{first} ({number})"
            element.set("data-chart", key)
            specs[key] = json.loads(spec)
    return specs


def _navigation(sections: Sequence[Element], *, live: bool) -> Element:
    links = []
    for each in sections:
        heading = each.find("h2")
        if heading is not None and each.get("id"):
            name = each.get("data-short") or "".join(heading.itertext())
            links.append(h("a", name, href=f"#{each.get('id')}"))
    return h(
        "nav",
        h("div", links, class_="links"),
        h("span", "live", id="live", class_="chip", role="status") if live else None,
        h("button", "◐", type="button", id="theme", title="light, dark (t)", aria_label="Theme"),
        h("button", "?", type="button", id="keys", title="keys (?)", aria_label="Help"),
        aria_label="Sections",
    )


def _help() -> Element:
    rows = [h("div", h("dt", h("kbd", keys)), h("dd", what)) for keys, what in _KEYS]
    return h(
        "dialog",
        h("h2", "Keys"),
        h("dl", rows, class_="keys"),
        note("A click on a curve of a stage shows the completions of that step."),
        h("form", h("button", "Close", type="submit"), method="dialog"),
        id="help",
    )


def browser_section(sources: Sequence[EntrySource]) -> Element | None:
    """The frame of the browser of completions, which the script fills; None without sources."""
    if not sources:
        return None
    listed = {"class_": "list", "tabindex": "0", "role": "listbox", "aria_label": "Completions"}
    entries = h("div", h("div", class_="rows"), **listed)
    detail = h("article", class_="detail", aria_live="polite", tabindex="-1")
    return section(
        "completions",
        "Completions",
        h("noscript", note("Charts and completions need the page's own script.")),
        _filters(sources),
        h("p", id="found", class_="under", role="status"),
        h("div", entries, detail, class_="browser"),
    )


def show_button(text: str, look: str = "chip", /, **wanted: str) -> Element:
    """A button that shows the completions that are `wanted`, by names and values of filters."""
    return h("button", text, type="button", class_=look, data_show=json.dumps(wanted))


def _filters(sources: Sequence[EntrySource]) -> Element:
    def choice(name: str, label: str, options: Sequence[tuple[str, str]]) -> Element:
        items = [h("option", text, value=value) for value, text in options]
        return h("label", label, h("select", items, name=name))

    def bound(name: str, label: str, step: str) -> Element:
        field = h("input", name=name, type="number", step=step, inputmode="decimal")
        return h("label", label, field, class_="bound")

    text = h("input", name="text", type="search", placeholder="words in it")
    return h(
        "form",
        choice("source", "From", [(source.key, source.name) for source in sources]),
        choice("outcome", "Show", _SHOWN),
        h("label", "Text  /", text, class_="wide"),
        bound("from", "Step from", "1"),
        bound("to", "to", "1"),
        bound("low", "Reward from", "any"),
        bound("high", "to", "any"),
        choice("order", "Order", _ORDERS),
        h("button", "Clear", type="reset"),
        id="filters",
        autocomplete="off",
        role="search",
    )
