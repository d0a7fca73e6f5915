"""Plain English in every text that a user can meet: messages, help, descriptions of fields.

Searched are the string literals of the package with a space in them, and the docstrings that
`--help` and the recipe's schema show.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from support.places import ROOT

# How this project once spoke, and what it says now.
OLD_IDIOM = {
    r"\bcannot go on\b": "error, cannot continue",
    r"\bmend(s|ed|ing)?\b": "fix",
    r"\btold (in|of|by|with|as)\b|\bis told\b": "given, reported",
    r"\btells (of|apart|right)\b": "distinguishes, reports",
    r"\bheed(s|ed)?\b": "uses, applies",
    r"\b(go|goes|going|went) on (with|from|in|as|exactly)\b": "continues, starts from",
    r"\banother than\b|\b(is|are) another\b": "changed, different",
    r"(?<!there )\b(is|are) no (?!longer)[a-z]+": "is not a",
    r"\banew\b": "again",
    r"\bheld against\b": "compared with",
    r"\bbroke down\b": "kept failing",
    r"\bso many (?!that)": "this many",
    r"\bhas not\b(?= *[.,;:]|$)": "does not have",
    r"\bin the mean\b": "on average",
    r"\bstands? (for|in|beside|with|under|twice)\b": "is, occurs",
    r"\b(lies|lie) (in|beside|on|at|here)\b": "is in, is next to",
    r"\bas it was\b|\bof before\b|\bnot to be had\b": "unchanged, old, not available",
    r"\bmake room\b": "free space",
    r"\bwhat (is|was) said\b|\bsaid otherwise\b": "set, reported",
    r"\b(was|were) asked\b|; asked: |, asked: ": "expected",
    r"\b(prompts|completions|rows|tokens|nats) an? (step|prompt|second|token|batch)\b": "per",
    r"\bdoes not go with\b": "cannot be combined with",
}
# Not ours to word: what models are trained on, and how people write answers.
DATA = ("dataset/tasks/", "language/identification.py", "answers/wording.py", "testing/probes.py")


def text_of(node: ast.AST) -> str | None:
    """A literal's text, with {…} for what an f-string puts in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        parts = (v.value if isinstance(v, ast.Constant) else "{…}" for v in node.values)
        return "".join(map(str, parts))
    return None


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of what a user can meet of a module."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    shown = path.parent.name in ("cli", "recipe")
    hidden: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            if not (isinstance(node, ast.ClassDef) and shown):  # docstrings, of fields too
                hidden |= {id(line.value) for line in node.body if isinstance(line, ast.Expr)}
        elif isinstance(node, ast.JoinedStr):
            hidden |= {id(part) for part in ast.walk(node) if part is not node}
    for node in ast.walk(tree):
        text = text_of(node) if id(node) not in hidden else None
        if text is not None and " " in text.strip():
            yield node.lineno, text  # type: ignore[attr-defined]


@cache
def all_texts() -> list[tuple[str, str]]:
    """(file:line, text) of the whole package."""
    files = [p for folder in ("rl_reasoner", "rewards") for p in (ROOT / folder).rglob("*.py")]
    return [
        (f"{path.relative_to(ROOT)}:{line}", text)
        for path in sorted(files)
        if not any(part in str(path) for part in DATA)
        for line, text in texts(path)
    ]


@pytest.mark.parametrize("old", OLD_IDIOM)
def test_no_message_has_the_old_idiom(old: str) -> None:
    found = [
        f"{place}: {text!r} (plain: {OLD_IDIOM[old]})"
        for place, text in all_texts()
        if re.search(old, text)
    ]
    assert not found, "\n".join(found)


def test_the_search_reads_messages_help_and_descriptions() -> None:
    read = {text for name in ("train", "dispatch") for _, text in texts_of("cli", name)}
    assert "stop after this stage" in read
    assert any("Run a recipe." in text for text in read)
    assert any("is not a multiple of" in text for _, text in texts_of("recipe", "stages"))
    assert any(text == "peak learning rate" for _, text in texts_of("recipe", "optim"))


def texts_of(room: str, module: str) -> Iterator[tuple[int, str]]:
    return texts(ROOT / "rl_reasoner" / room / f"{module}.py")
