"""Boxes in a text: the last `\\boxed{...}` or `\\fbox{...}`, those it forms one list with, all."""

import re
from dataclasses import dataclass

from rl_reasoner.answers.parsing.lexer import closing_brace
from rl_reasoner.answers.tree import Unreadable

MAX_JOINED = 60
MAX_GAP = 90
MAX_ALL = 16
_BOX = re.compile(r"\\(?:boxed|fbox|framebox)(?![a-zA-Z])\s*")
_BARE = re.compile(r"\\?[^\s${}\\]+")
_DELIMITERS = re.compile(r"\$|\\[()\[\],;:! ]|\\q?quad|~|\\displaystyle|\*\*|\\left|\\right|\s+")
_STRAY = re.compile(r"\{([^{}\\]+)\\\}(?=[\s$.]*$)")
_LABEL = re.compile(r"[A-Za-z](?:_\{?\w{1,4}\}?)?(?:\([A-Za-z]\))?=")
_JOINT = re.compile(
    r"(?:[a-z]{1,12})?(?:[,;、，；&]+|(?:[,;]?(?:and|or|和|或|或者|与|及)))"
    r"(?:possibly|maybe|perhaps|also|alternatively|else|even|probably)?,?"
)
_HEDGED = re.compile(
    r"[\W_]*or(?:[ ,:]+(?:else|perhaps|maybe|possibly|even|alternatively|also|it|this|that|the"
    r"|final|answer|result|value|solution|is|are|be|could|may|might|would|should))*+[\W_]*"
)


@dataclass(frozen=True, slots=True)
class Boxes:
    """Contents of the last box and of the boxes joined to it, first to last.

    `closed` is False where the last box never closes.
    """

    contents: tuple[str, ...]
    closed: bool = True


@dataclass(frozen=True, slots=True)
class AllBoxes:
    """Contents of the boxes of a text: those of the last list of boxes, and those before it."""

    last: tuple[str, ...] = ()
    before: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Box:
    start: int
    end: int
    content: str


def last_boxes(text: str) -> Boxes | None:
    """The boxes that end `text`; None where it has no box. Linear in the length of `text`."""
    starts = [match.span() for match in _BOX.finditer(text)]
    if not starts:
        return None
    group = _last_list(text, starts)
    if not group:
        return Boxes((), closed=False)
    return Boxes(tuple(box.content for box in group))


def boxes_of(text: str) -> AllBoxes:
    """All boxes of `text` that close, each one's content; of very many the last ones."""
    starts = [match.span() for match in _BOX.finditer(text)]
    if not starts:
        return AllBoxes()
    group = _last_list(text, starts)
    first = group[0].start if group else len(text)
    before = [span for span in starts if span[0] < first][-MAX_ALL:]
    found = (_box(text, *span, within=first) for span in before)
    contents = tuple(box.content for box in found if box is not None)
    return AllBoxes(tuple(box.content for box in group), contents)


def _last_list(text: str, starts: list[tuple[int, int]]) -> list[_Box]:
    """The last box and those it forms one list with; empty where the last never closes."""
    last = _box(text, *starts[-1])
    if last is None:
        return []
    group = [last]
    for span in reversed(starts[:-1]):
        if group[0].start - span[1] > MAX_GAP + 400 or len(group) >= MAX_JOINED:
            break
        box = _box(text, *span, within=group[0].start)
        if box is None or not _joins(text[box.end : group[0].start]):
            break
        group.insert(0, box)
    return group


def _box(text: str, start: int, after: int, within: int | None = None) -> _Box | None:
    stop = len(text) if within is None else within
    if text[after : after + 1] != "{":
        bare = _BARE.match(text, after)
        if bare is None or within is not None:
            return None
        return _Box(start, bare.end(), bare[0].rstrip(".,;"))
    try:
        end = closing_brace(text[after:stop], 0) + after
    except Unreadable:
        stray = _STRAY.match(text, after)  # a backslash before the closing brace
        return _Box(start, stray.end(), stray[1]) if stray and within is None else None
    return _Box(start, end + 1, text[after + 1 : end])


def _joins(gap: str) -> bool:
    """Whether `gap` is only a joint: a comma, "and", "or" or a wide space, with a label allowed.

    Words of a hedge may follow an "or" ("or the answer is").
    """
    if len(gap) > MAX_GAP or "\n\n" in gap:
        return False
    wide = re.search(r"\\q?quad", gap) is not None
    words = re.sub(r"\\text(?:rm|bf)?\s*\{([^{}]*)\}", r"\1", gap)
    if _HEDGED.fullmatch(_DELIMITERS.sub(" ", words).lower()):
        return True
    bare = _DELIMITERS.sub("", words)
    bare = _LABEL.sub("", bare)
    return (wide and not bare) or _JOINT.fullmatch(bare.lower()) is not None
