"""Where a reward went wrong: the file and line of the user's own code, not of ours or a library's.

A function that was sent by value (cloudpickle) has lost the name of its file; its globals still
have it.
"""

import inspect
import sysconfig
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rl_reasoner.paths import room

_SENT = "<dynamic-code>"  # cloudpickle's name for every file
_PACKAGE = Path(__file__).resolve().parent.parent
_INSTALLED = {"site-packages", "dist-packages"}
_LIBRARIES = tuple(
    Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib")
)


def location_of(error: BaseException, fn: Callable[..., Any] | None = None) -> str:
    """` at FILE:LINE` of the innermost line of the user's that `error` went through.

    Where it went through none (a wrong value, arguments that do not fit) that is where `fn` is
    defined, without a function the line that raised. Empty where nothing is known.
    """
    steps = [
        (frame.f_code.co_filename, line, frame.f_code.co_name, frame.f_globals)
        for frame, line in traceback.walk_tb(error.__traceback__)
    ]
    theirs = [step for step in steps if _of_user(_file(step[0], step[3]))]
    if theirs:
        return _shown(*theirs[-1])
    if fn is not None and (where := definition(fn)):
        return where
    return _shown(*steps[-1]) if steps else ""


def definition(fn: Callable[..., Any]) -> str:
    """` at FILE:LINE` where `fn` is defined; empty for what is no function of Python."""
    try:
        inner = inspect.unwrap(getattr(fn, "fn", fn))
    except ValueError:
        return ""
    code = getattr(inner, "__code__", None)
    if code is None:
        return ""
    return _shown(code.co_filename, code.co_firstlineno, code.co_name, inner.__globals__)


def _shown(file: str, line: int, name: str, space: Mapping[str, Any]) -> str:
    path = _file(file, space)
    return f" in {name}, line {line}" if path == _SENT else f" at {Path(path).name}:{line}"


def _file(file: str, space: Mapping[str, Any]) -> str:
    return str(space.get("__file__") or file) if file == _SENT else file


def _of_user(file: str) -> bool:
    if file.startswith("<") and file != _SENT:
        return file.startswith(("<ipython", "<reward "))
    path = Path(file).resolve()
    return not of_library(file) or path.is_relative_to(room("rewards").resolve())


def of_library(file: str | None) -> bool:
    """Whether a file is Python's, an installed package's or this package's own."""
    if file is None:
        return False
    path = Path(file).resolve()
    folders = (*_LIBRARIES, _PACKAGE)
    return bool(_INSTALLED & {*path.parts}) or any(path.is_relative_to(f) for f in folders)
