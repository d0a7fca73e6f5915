"""Fenced blocks of Markdown, as models write them: what is in them, and where.

The fences of CommonMark (0.31, section 4.5), in one pass over the lines, at any indentation: lists
are not read, and a block in a list is indented by more than three. Pure text; never raises.
"""

import re
from dataclasses import dataclass

_FENCE = re.compile(r"([ \t]*+)(`{3,}+|~{3,}+)[ \t]*+([\w+-]*+)[^`]*+")
_DEEPER = 3  # spaces that a closing fence may be further in than what it closes
_PYTHON = {"python", "python3", "py", "py3"}


@dataclass(frozen=True, slots=True)
class FencedBlock:
    """A block: the language of its fence ("" without), its text, and where its first line begins.

    `start` counts the characters of the whole text; `indent` is what stands before the fence, and
    is left out of the block's lines.
    """

    language: str
    code: str
    start: int
    indent: str


def fenced_blocks(text: str, *, unclosed: bool = False) -> list[FencedBlock]:
    """Each closed block of `text`, in order.

    A fence with a language inside a block starts a new block: the one before it was never closed.
    `unclosed` also takes a last block that never closes.
    """
    found: list[FencedBlock] = []
    opened: re.Match[str] | None = None
    start = at = 0
    lines: list[str] = []

    def closed(by: re.Match[str]) -> FencedBlock:
        return FencedBlock(by[3], "\n".join(_without(by[1], line) for line in lines), start, by[1])

    for line in text.split("\n"):
        at += len(line) + 1
        fence = _FENCE.fullmatch(line)
        if fence and opened and len(fence[1]) > len(opened[1]) + _DEEPER:
            fence = None  # of the block's own text, as in a docstring
        if opened and fence and fence[2].startswith(opened[2]) and not fence[3]:
            found.append(closed(opened))
            opened = None
        elif fence and (fence[3] or not opened):
            opened, start, lines = fence, at, []
        else:
            lines.append(line)
    if opened and unclosed:
        found.append(closed(opened))
    return found


def python_blocks(text: str, *, unclosed: bool = False) -> list[FencedBlock]:
    """The blocks that are said to be Python; where none is, those without a language."""
    found = fenced_blocks(text, unclosed=unclosed)
    tagged = [block for block in found if block.language.lower() in _PYTHON]
    return tagged or [block for block in found if not block.language]


def _without(indent: str, line: str) -> str:
    if line.startswith(indent):
        return line[len(indent) :]
    return line[min(len(indent), len(line) - len(line.lstrip(" \t"))) :]
