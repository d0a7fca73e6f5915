"""Errors that are the user's to fix, and the hints in them.

A `UserError` is shown as one panel without a traceback and ends a verb with exit code 2; every
other exception is a fault of the work itself (exit code 1). Knows nothing of the other modules.
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence


class UserError(Exception):
    """A mistake in what the user gave: one or several messages, each with its place and a fix."""

    def __init__(self, *messages: str) -> None:
        super().__init__("\n".join(messages))
        self.messages: Sequence[str] = messages


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The one of `known` that is most like `name`, where one is like it; dashes of flags aside."""
    words = {one.lstrip("-"): one for one in known}
    near = difflib.get_close_matches(name.lstrip("-"), list(words), n=1, cutoff=0.6)
    return words[near[0]] if near else None


def did_you_mean(name: str, known: Iterable[str], renamed: Mapping[str, str] | None = None) -> str:
    """` Did you mean 'x'?` for the known name nearest to `name`, or an empty string.

    `renamed` maps old names to new ones: near an old name, its new name is suggested.
    """
    now = {**(renamed or {}), **{name: name for name in known}}
    near = nearest(name, now)
    return f" Did you mean {now[near]!r}?" if near is not None else ""


def unknown(kind: str, name: str, known: Iterable[str], *, owner: str = "") -> UserError:
    """The error for a `name` that is not in `known`: suggests the nearest, and lists up to 40.

    `owner` is what has the known names, where that helps: "reward length has no option 'x'".
    """
    names = sorted(known)
    there = f" There are: {', '.join(names)}." if 0 < len(names) <= 40 else ""
    mistake = f"{owner} has no {kind} {name!r}" if owner else f"unknown {kind} {name!r}"
    return UserError(f"{mistake}.{did_you_mean(name, names)}{there}")


def check_one_of(kind: str, value: object, known: Iterable[str]) -> None:
    """Raise `UserError` where `value`, a setting that is called `kind`, is none of `known`."""
    names = [*known]
    if not isinstance(value, str):
        there = ", ".join(names)
        raise UserError(f"{kind} is {value!r:.40}: expected a text. There are: {there}.")
    if value not in names:
        raise unknown(kind, value, names)


def error_text(error: BaseException) -> str:
    """The text of an exception of a user's code, whose `__str__` may raise."""
    try:
        return str(error)
    except Exception:
        return "(its message cannot be shown)"


def first_line(error: BaseException) -> str:
    """The first line of an error's text: libraries append advice that is not for our users."""
    return str(error).strip().partition("\n")[0]


class RunStopped(RuntimeError):
    """A run that cannot continue by itself: shown as one panel, without a traceback.

    `title` heads the panel; `code` is the exit code. `folder`, where known, is the run to resume,
    and `launch` the `--launch` to do it with.
    """

    title = "the run stopped"
    code = 1
    folder: str | None = None
    launch: str | None = None


class OldName(FutureWarning):
    """A recipe, or a flag, uses the old name of a field: it works, and is pointed out once."""
