"""Functions in trl's own form: `f(completions=[...], **columns)`, a value a row.

Read off their signatures, before they are called: is it of that form at all, and do the data have
what it asks for? A call that does not fit would say so in Python's words, row after row.
"""

import inspect
from collections.abc import Callable, Iterable
from typing import Any

_CATCH_ALL = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
OF_TRAINER = ("trainer_state", "log_extra", "log_metric")
"""What trl hands to rewards of its trainer: not columns, and the same for all rows."""
OF_TRL = {"completion_ids", "prompts", *OF_TRAINER}
"""What trl hands to rewards beside the completions and the data's columns."""


def form_mistake(fn: Callable[..., Any], name: str) -> str:
    """What is wrong with `fn` as a function of trl's form, whatever the data; empty if nothing."""
    names, needed, catches = _parameters(fn)
    if names is None or "completions" in names or (catches and "completion" not in needed):
        return ""
    return (
        f"reward {name!r} is a plain function of ({', '.join(names)}): put @reward on it, or let "
        "it take completions (trl's form: lists of completions and columns, a list of numbers back)"
    )


def call_mistake(fn: Callable[..., Any], name: str, columns: Iterable[str]) -> str:
    """Why `fn` cannot be called with these columns; empty where it can."""
    names, needed, catches = _parameters(fn)
    if names is None or (mistake := form_mistake(fn, name)):
        return "" if names is None else mistake
    given = {"completions", *columns}
    for lacking in needed:
        if lacking not in given:
            return needs_column(name, lacking, columns)
    if not catches and (unasked := sorted(given - {*names})):
        return (
            f"reward {name!r} does not take {unasked[0]!r}: a function in trl's form gets "
            "every column of the data, and more; give it **kwargs"
        )
    return ""


def _parameters(fn: Callable[..., Any]) -> tuple[list[str] | None, list[str], bool]:
    """Names, those without a default, whether it takes any keyword; None: cannot be known."""
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):
        return None, [], False
    named = [p for p in parameters if p.kind not in _CATCH_ALL]
    needed = [p.name for p in named if p.default is p.empty]
    catches = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
    return [p.name for p in named], needed, catches


def needs_column(name: str, lacking: str, columns: Iterable[str]) -> str:
    """That the reward `name` lacks a column, and which there are, without what trl adds."""
    there = ", ".join(sorted({*columns} - OF_TRL)) or "none"
    return f"reward {name!r} needs the column {lacking!r}; the data has {there}"
