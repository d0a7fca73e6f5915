"""Two letters that spell a word, where they stand as factors: `ax+by`, `e^{it}`, `\\frac{at}{2}`.

Alone, or beside other words, they are the word.
"""

import re

_OPERATED = frozenset({"^", "_", "+", "-", "*", "/"})
_OPENED = frozenset({"", "{", "(", "["})
_NO_FACTORS = frozenset({"km", "st", "nd", "rd", "th", "am", "pm"})
_RAISED = re.compile(r"\s*+[_^]")
_OPERATOR = re.compile(
    r"\s*+(?:[*/=<>]|[-+](?=\s)"
    r"|\\(?:cdot|times|pm|mp|leq?|geq?|neq?|lt|gt|div|approx)(?![a-zA-Z]))|[-+]"
)
_CLOSED = re.compile(r"\s*+(?:$|[)}\]|,])")
_EQUAL = re.compile(r"\s*+=")


def spells_factors(text: str, at: int, end: int, before: tuple[tuple[str, str], ...]) -> bool:
    """Whether the letters `text[at:end]` are factors, behind tokens of these kinds and texts.

    `before` are the last two tokens, fewer at the start.
    """
    run = text[at:end]
    if len(run) != 2 or run in _NO_FACTORS:
        return False
    if (run[0].islower() and run[1].isupper()) or _RAISED.match(text, end):
        return True
    kind, last = before[-1] if before else ("", "")
    operator, closed = _OPERATOR.match(text, end), _CLOSED.match(text, end)
    if kind in ("rel", "fn") or last in _OPERATED or (kind == "let" and len(last) > 1):
        return bool(operator or closed)
    if kind == "num" or last in ("}", ")"):
        return bool(operator or (closed and not text[at - 1].isspace()))
    if last not in _OPENED:
        return False
    if closed and last in ("{", "("):
        return len(before) > 1 and (last == "{" or before[0][0] in ("fn", "let"))
    return bool(operator) and (bool(last) or not _EQUAL.match(text, end))
