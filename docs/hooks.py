"""What the site is made of beside docs/: pages from elsewhere in the repository, and its links.

mkdocs calls the functions here by their names (see `hooks` in mkdocs.yml). A link in a document
leads to a file of the repository, so that it also works in an editor or on a code host; here it
becomes a link to the page, or to a copy of the file in the site. Formulas become MathML, so that
the site needs no script from elsewhere.
"""

import html
import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

from rl_reasoner.recipe.json_schema import recipe_schema

ROOT = Path(__file__).resolve().parent.parent
PAGES = {  # file of the repository -> page of the site
    "README.md": "index.md",
    "README.zh-CN.md": "zh-CN.md",
    "recipes/README.md": "recipes.md",
    "rewards/README.md": "rewards.md",
    "data/DATASHEET.md": "data.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changes.md",
    "SECURITY.md": "security.md",
}
_LINK = re.compile(r"(!?\[[^\]]*\]\()([^)\s#]+)(#[^)]*)?(\))")
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
_FIELDS = "<!-- here the site has every field of a recipe -->"
_FENCE = re.compile(r"(^```.*?^```)", re.DOTALL | re.MULTILINE)


def on_config(config: Any) -> Any:
    """Put documents of docs/ that the navigation does not name behind the other concepts."""
    named = str(config.nav)
    for file in sorted((ROOT / "docs").glob("*.md")):
        if file.name not in named:
            [concepts] = [part["Concepts"] for part in config.nav if "Concepts" in part]
            concepts.append(file.name)
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages from elsewhere, and every file that a page links to."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
    wanted = {
        target
        for file in list(files.documentation_pages())
        for target in _linked(file.content_string, _source(file.src_uri))
    }
    for target in sorted(wanted):
        copy = _copied(target)
        if copy is not None and not files.get_file_from_path(copy):
            files.append(File.generated(config, copy, content=(ROOT / target).read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links to files of the repository into links of the site."""
    here = page.file.src_uri
    if _FIELDS in markdown:
        markdown = markdown.replace(_FIELDS, "\n".join(_fields()))
    parts = _FENCE.split(markdown)  # every second one is code
    parts[::2] = [_LINK.sub(lambda found: _moved(found, here), part) for part in parts[::2]]
    return "".join(parts)


def on_page_content(html_text: str, **_: Any) -> str:
    """Turn TeX into MathML."""

    def formula(found: re.Match[str]) -> str:
        display = "inline" if found[1] == "span" else "block"
        return str(convert(html.unescape(found[2]), display=display))

    return _FORMULA.sub(formula, html_text)


def _fields() -> Iterator[str]:
    """Tables of the fields of a recipe and of each of its parts, from its schema."""
    schema = recipe_schema()
    for name, part in {"Recipe": schema, **schema["$defs"]}.items():
        whole = next((one for one in part.get("anyOf", ()) if "properties" in one), part)
        yield f"\n## {name}\n\n{_first(whole)}\n"
        yield "| field | value | default | meaning |\n|---|---|---|---|"
        for field, facts in whole["properties"].items():
            default = "required" if field in whole.get("required", ()) else ""
            if facts.get("default") is not None and not isinstance(facts["default"], dict):
                default = f"`{json.dumps(facts['default'], ensure_ascii=False)}`"
            named = schema["$defs"].get(str(facts.get("$ref")).rpartition("/")[2], {})
            meaning = (_first(facts) or _first(named)).replace("|", "\\|")
            yield f"| `{field}` | {_kind(facts)} | {default} | {meaning} |"


def _first(part: dict[str, Any]) -> str:
    """The first paragraph of a description, as one line."""
    return " ".join(str(part.get("description", "")).partition("\n\n")[0].split())


def _kind(facts: dict[str, Any]) -> str:
    """What a field takes, in words; parts as links."""
    if "$ref" in facts:
        name = facts["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "enum" in facts:
        return ", ".join(f"`{value}`" for value in facts["enum"])
    if "const" in facts:
        return f"`{facts['const']}`"
    for several in ("anyOf", "oneOf"):
        if several in facts:
            kinds = [_kind(one) for one in facts[several] if one.get("type") != "null"]
            return " or ".join(dict.fromkeys(kinds))
    kind = str(facts.get("type", "anything"))
    if kind == "array" and isinstance(facts.get("items"), dict):
        return f"list of {_kind(facts['items'])}"
    if kind == "object" and isinstance(facts.get("additionalProperties"), dict):
        return f"name → {_kind(facts['additionalProperties'])}"
    words = {"array": "list", "string": "text", "object": "name → value", "boolean": "yes or no"}
    return words.get(kind, kind)


def _source(page: str) -> str:
    """The file of the repository that a page of the site is made of."""
    there = {page: source for source, page in PAGES.items()}
    return there.get(page, f"docs/{page}")


def _copied(target: str) -> str | None:
    """Where in the site a file of the repository lies that is no page; None for pages."""
    if target in PAGES or (target.startswith("docs/") and target.endswith(".md")):
        return None
    if target.startswith("docs/"):
        return target.removeprefix("docs/")
    plain = target.endswith((".png", ".svg", ".json", ".yaml"))
    return f"source/{target}" if plain else f"source/{target}.txt"  # shown instead of saved


def _linked(markdown: str, source: str) -> set[str]:
    """The files of the repository that a document links to."""
    prose = "".join(_FENCE.split(markdown)[::2])
    links = {found[2] for found in _LINK.finditer(prose) if "://" not in found[2]}
    files = {posixpath.normpath(posixpath.join(posixpath.dirname(source), link)) for link in links}
    return {file for file in files if (ROOT / file).is_file()}


def _moved(found: re.Match[str], page: str) -> str:
    before, link, anchor, after = found.groups()
    if "://" in link or link.startswith("mailto:"):
        return found[0]
    source = _source(page)
    target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
    if not (ROOT / target).exists():
        raise PluginError(f"{source}: the link to {link} leads nowhere")
    if (ROOT / target).is_dir():
        raise PluginError(f"{source}: the link to {link} leads to a folder, which has no page")
    there = PAGES.get(target) or _copied(target) or target.removeprefix("docs/")
    return (
        f"{before}{posixpath.relpath(there, posixpath.dirname(page) or '.')}{anchor or ''}{after}"
    )
