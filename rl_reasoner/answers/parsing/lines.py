"""Line breaks between relations: where one parts two of them, it is written as `\\\\`.

To TeX a line break is a space, so that `a = 2` above `b = 3` would read as a = 2b = 3.
"""

import re
from itertools import pairwise

_SIGN = re.compile(r"[=<>≤≥≠≈∈]|\\(?:leq?|geq?|neq?|lt|gt|approx|in|leqslant|geqslant)(?![a-zA-Z])")
_CALCULATED = re.compile(r"[-+*/^]|^\d|\\(?:[dt]?frac|sqrt|cdot|times)(?![a-zA-Z])")
_NUMBER = re.compile(r"[-−]?[\d.,]+")
_COMMAND = re.compile(r"\\[a-zA-Z]+")
_NAME = re.compile(r"[A-Za-z](?:_(?:\w|\{\w{1,20}\}))?")
_LETTER = re.compile(r"[^\W\d_]")
_GOES_ON = re.compile(r"\\(?:cdot|times|div|pm|mp|cup|cap|q?quad)(?![a-zA-Z])")


def parted_lines(text: str) -> str:
    """`text` with `\\\\` between lines that are relations of their own.

    Equations above a name's value, `2x = 10` and `x = 5`, are a derivation and stay as they are,
    and so are calculations, `3 + 4 = 7`, and lines that use one above them: `A = \\pi r^2` below
    `r = 5`, `f(3) = 9` below `f(x) = x^2`.
    """
    if "\n" not in text or "\\begin" in text:
        return text
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    found = [*map(_sides, lines)]
    sides = [one for one in found if one is not None]
    if len({_CALCULATED.search(left) is None for left, _ in sides}) > 1 or _uses_above(sides):
        return text
    parts = lines[:1]
    for (above, first), (below, second) in pairwise(zip(lines, found, strict=True)):
        listed = "," in above
        parts += [r" \\ " if _apart(first, second, listed=listed) else " ", below]
    return "".join(parts)


def _uses_above(sides: list[tuple[str, str]]) -> bool:
    """Whether a line's value is told by a name, or a function, of a line above it."""
    names: set[str] = set()
    for left, right in sides:
        head, bracket, argument = left.partition("(")
        if not names.isdisjoint(_NAME.findall(_COMMAND.sub(" ", right))) or head + "(" in names:
            return True
        if not bracket:
            names.add(left)
        elif _LETTER.search(argument):
            names.add(head + "(")
    return False


def _apart(first: tuple[str, str] | None, second: tuple[str, str] | None, *, listed: bool) -> bool:
    """Whether lines of these sides, that follow each other, are two relations.

    One name twice is a derivation, `A = \\pi r^2` and `A = 9\\pi`, unless both are numbers, or the
    first line has several members (`listed`).
    """
    if first is None or second is None:
        return False
    if first[0] != second[0] or listed:
        return True
    return not any(_LETTER.search(_COMMAND.sub("", right)) for _, right in (first, second))


def _sides(line: str) -> tuple[str, str] | None:
    """Left and right of the first sign in a whole relation; None for anything else."""
    plain = line.replace("$", " ").replace("\\(", " ").replace("\\)", " ").strip(" .")
    sign = _SIGN.search(plain)
    if sign is None or plain[-1] in ",;+-*/=<>^_\\&|" or plain[0] in "+-*/&)]}":
        return None
    left, right = plain[: sign.start()].strip(), plain[sign.end() :].strip()
    has_name = _LETTER.search(_COMMAND.sub("", left)) is not None
    if sign[0] == "=" and not has_name and _NUMBER.fullmatch(left) is None:
        return None
    ends = _GOES_ON.match(left) or any(m.end() == len(right) for m in _GOES_ON.finditer(right))
    return (left, right) if left and right and not ends and _is_closed(plain) else None


def _is_closed(line: str) -> bool:
    """Whether every bracket of `line` closes in it, kinds aside: intervals mix them."""
    depth = 0
    for char in line:
        depth += (char in "([{") - (char in ")]}")
        if depth < 0:
            return False
    return depth == 0
