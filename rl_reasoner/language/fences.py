"""Fenced blocks of Markdown, as models write them: what is in them, and where.

The fences of CommonMark (0.31, section 4.5), in one pass over the lines. A fence that is indented
by more than three opens a block in a list alone; in a block that is not so far in, it is text, as
in a docstring. Runs nothing, and never raises.
"""

import ast
import re
import warnings
from dataclasses import dataclass

_FENCE = re.compile(r"([ \t]*+)(`{3,}+|~{3,}+)[ \t]*+([\w+-]*+)[^`]*+")
_ITEM = re.compile(r"[ \t]*+(?:[-*+]|\d{1,9}[.)])[ \t]")
_DEEPER = 3  # columns that a fence may be further in than what it stands in
_MOST_ENDS = 8  # lines of a block that are tried as its last
_PYTHON = {"python", "python3", "py", "py3"}


@dataclass(frozen=True, slots=True)
class FencedBlock:
    """A block: the language of its fence ("" without), its text, and where its lines are.

    `start` and `end` count the characters of the whole text: the block's first line begins at
    `start`, the closing fence stands at `end`, or in the line that ends there. `indent` is what
    stands before the fence, and is left out of the block's lines.
    """

    language: str
    code: str
    start: int
    end: int
    indent: str


def fenced_blocks(text: str, *, unclosed: bool = False) -> list[FencedBlock]:
    """Each closed block of `text`, in order.

    A fence with a language inside a block starts a new block: the one before it was never closed.
    Such a block, and one that is open at the end, is closed by a fence at the end of one of its
    lines, where there is one and what it closes is Python, or said to be something else. `unclosed`
    also takes a last block that never closes.
    """
    found: list[FencedBlock] = []
    opened: re.Match[str] | None = None
    cut: list[str] | None = None  # the block's lines, up to a fence at the end of one
    tried = start = at = edge = cut_at = 0  # edge: the column that a fence is measured from
    in_list = False
    lines: list[str] = []

    def block(by: re.Match[str], inside: list[str], end: int) -> FencedBlock:
        code = "\n".join(_without(by[1], line) for line in inside)
        return FencedBlock(by[3], code, start, end, by[1])

    for line in text.split("\n"):
        at += len(line) + 1
        fence = _FENCE.fullmatch(line)
        if fence and (opened or not in_list) and column_of(fence[1]) > edge + _DEEPER:
            fence = None
        if opened and fence and fence[2].startswith(opened[2]) and not fence[3]:
            found.append(block(opened, lines, at - len(line) - 1))
            opened, edge, cut = None, 0, None
        elif fence and (fence[3] or not opened):
            if opened and cut is not None:
                found.append(block(opened, cut, cut_at))
            opened, start, lines, edge, cut = fence, at, [], column_of(fence[1]), None
            tried = 0
        elif opened:
            last = _before_fence(line, opened[2]) if cut is None and tried < _MOST_ENDS else ""
            if last:
                tried += 1
                cut_at = at - 1
                cut = [*lines, last] if _is_whole(block(opened, [*lines, last], cut_at)) else None
            lines.append(line)
            edge = min(edge, column_of(line)) if line.strip() else edge
        elif line.strip():
            in_list = bool(_ITEM.match(line)) or (in_list and line[0] in " \t")
    if opened and (unclosed or cut is not None):
        whole = (lines, len(text)) if cut is None else (cut, cut_at)
        found.append(block(opened, *whole))
    return found


def _before_fence(line: str, fence: str) -> str:
    """What stands in `line` before a `fence` that ends it; empty where none does, or several."""
    text = line.rstrip()
    before = text.rstrip(fence[0])
    ends = len(text) - len(before) >= len(fence) and fence not in before
    return before.rstrip() if ends else ""


def _is_whole(block: FencedBlock) -> bool:
    """Whether a block may end with its last line, a fence behind it: no comment, and Python."""
    if block.language.lower() not in {*_PYTHON, ""}:
        return True
    if block.code.rpartition("\n")[2].lstrip().startswith("#"):
        return False
    inside = block.code.lstrip("\n")[:1].isspace()  # of a function that the problem began
    return wrong_line(f"if 1:\n{block.code}" if inside else block.code) is None


def wrong_line(program: str) -> int | None:
    """The line, from 1, that keeps a program from being Python; None where nothing does."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its escapes
            ast.parse(program)
    except SyntaxError as error:
        return error.lineno or 1
    except (ValueError, RecursionError, MemoryError):
        return 1
    return None


def python_blocks(text: str, *, unclosed: bool = False) -> list[FencedBlock]:
    """The blocks that are said to be Python; where none is, those without a language."""
    found = fenced_blocks(text, unclosed=unclosed)
    tagged = [block for block in found if block.language.lower() in _PYTHON]
    return tagged or [block for block in found if not block.language]


def column_of(line: str) -> int:
    """The column that a line's text begins in; a tab goes to the next multiple of four."""
    expanded = line.expandtabs(4)
    return len(expanded) - len(expanded.lstrip(" "))


def _without(indent: str, line: str) -> str:
    if line.startswith(indent):
        return line[len(indent) :]
    return line[min(len(indent), len(line) - len(line.lstrip(" \t"))) :]
