"""Rewards of a script or a notebook's cell as text: a recipe keeps it, and a resume reads it.

`source_of` puts down the source of a function and of what it names: functions and classes of the
script, imports, constants. `reward_from_source` makes a module of that text again. Lines keep their
places, so that a fault shows the line of the script. What is alive (a model, a connection) has no
text: such a reward belongs in a file. Runs nothing but the text of a recipe, which is its
author's program.
"""

import __future__

import ast
import builtins
import inspect
import linecache
import math
import re
import symtable
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from rl_reasoner.errors import UserError
from rl_reasoner.scoring.fault_places import of_library
from rl_reasoner.scoring.reward import FILE_MODULE, Reward, is_shipped
from rl_reasoner.trust import check_typed

MOST_CHARS = 1 << 18
"""What the text of a reward may have: code and constants, not a data set."""
TEXT = "__reward_text__"
"""The global of a module made by `reward_from_source` that holds its text."""
_FROM = re.compile(r"# from (?P<file>.+), line (?P<line>\d+)")
_SCRIPTS = ("__main__", "__mp_main__")
_LATER = __future__.annotations
_UNREAD = "from __future__ import annotations"
"""The first line of a text whose annotations are not evaluated, as in its script."""


def reference_of(fn: Callable[..., Any]) -> tuple[str, str | None]:
    """The name of a function under which a recipe has it, and its text where it has to keep that.

    A shipped reward has its name, one of an installed package "module:name", any other its text.
    Raises ValueError, in words, for what cannot be written down.
    """
    target = fn.fn if isinstance(fn, Reward) else fn
    name = str(getattr(target, "__name__", type(target).__name__))
    module = str(getattr(target, "__module__", ""))
    if is_shipped(fn):
        return name, None
    space = getattr(target, "__globals__", {})
    if (text := space.get(TEXT)) is not None:  # of another recipe
        return name, text
    if _of_package(space) and _imported(target):
        return f"{module}:{name}", None
    if not isinstance(target, FunctionType) or name == "<lambda>":
        raise ValueError(f"a reward is a function with a name, or a name: this is {target!r:.60}")
    return name, source_of(fn)


def source_of(fn: Callable[..., Any]) -> str:
    """The text of a module in which `fn` is as it is here. Raises ValueError, in words."""
    target = fn.fn if isinstance(fn, Reward) else fn
    writer = _Writer(target.__name__)
    writer.take(target.__name__, fn, {})
    first = [_UNREAD] if writer.unread else []
    text = "\n".join([*first, *dict.fromkeys(writer.imports), "", *writer.blocks])
    if len(text) > MOST_CHARS:
        raise ValueError(
            f"reward {target.__name__!r}: {writer.advised(f'it has {len(text):,} characters')}"
        )
    return text


def reward_from_source(name: str, text: str) -> Callable[..., Any]:
    """The function `name` of the module that `text` makes. Raises `UserError`."""
    check_typed(f"{name} (its source is in the recipe)")
    module = ModuleType(f"{FILE_MODULE}{name}")
    space = vars(module)
    space[TEXT] = text
    lines = text.splitlines()
    flags = _LATER.compiler_flag if text.startswith(_UNREAD) else 0
    try:
        with _importable(module):
            for node in ast.parse(text).body:
                first = _first_line(node)
                mark = _FROM.fullmatch(lines[first - 2]) if first > 1 else None
                if mark:
                    ast.increment_lineno(node, int(mark["line"]) - first)
                file = mark["file"] if mark else f"<reward {name}>"
                code = compile(ast.Module([node], []), file, "exec", flags)
                exec(code, space)  # noqa: S102 (the recipe's own)
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        if isinstance(error, ModuleNotFoundError):
            why += " (is its folder on PYTHONPATH?)"
        raise UserError(f"reward {name!r}, its source in the recipe: {why}") from error
    if not callable(space.get(name)):
        raise UserError(f"reward {name!r}: its source in the recipe has no function of that name")
    fn: Callable[..., Any] = space[name]
    return fn


@contextmanager
def _importable(module: ModuleType) -> Iterator[None]:
    """Inside, `module` is found by its name: dataclasses look there what an annotation means."""
    before = sys.modules.get(module.__name__)
    sys.modules[module.__name__] = module
    try:
        yield
    finally:
        del sys.modules[module.__name__]
        if before is not None:
            sys.modules[module.__name__] = before


class _Writer:
    """Collects imports and blocks of text, each after what it needs."""

    def __init__(self, reward: str) -> None:
        self.reward = reward
        self.imports: list[str] = []
        self.blocks: list[str] = []
        self.taken: dict[str, Any] = {}
        self.unread = False  # whether a script leaves its annotations unevaluated

    def advised(self, why: str) -> str:
        return f"{why}: put the reward into a file and name it 'FILE.py:{self.reward}'"

    def take(self, name: str, value: Any, space: Mapping[str, Any]) -> None:
        """Write that `name` is `value`; `space` are the globals in which it was found."""
        if name in self.taken:
            if not _same(self.taken[name], value):
                what = f"reward {self.reward!r} has two things called {name}"
                raise ValueError(self.advised(what))
            return
        self.taken[name] = value
        inner = value.fn if isinstance(value, Reward) else value
        if isinstance(value, ModuleType):
            self.imports.append(f"import {value.__name__} as {name}")
        elif (place := _imported(inner)) and _of_package(vars(sys.modules[place[0]])):
            self.imports.append(f"from {place[0]} import {place[1]} as {name}")
        elif isinstance(whole := inspect.unwrap(inner), (FunctionType, type)):
            self._define(name, value, whole, space)
        elif (literal := _literal(value)) is not None:
            self.imports += ["import re", "import pathlib"]
            self.blocks.append(f"{name} = {literal}\n")
        else:
            what = f"reward {self.reward!r} uses {name}, a {type(value).__name__}"
            raise ValueError(self.advised(f"{what}, which cannot be written into the recipe"))

    def _define(self, name: str, value: Any, inner: Any, space: Mapping[str, Any]) -> None:
        """Write a function or class of the script, and before it what it names."""
        source, file, line = self._source(inner, space)
        known = dict(_space(inner, space))
        self.unread |= known.get("annotations") is _LATER
        known |= _captured(inner) if isinstance(inner, FunctionType) else {}
        for used in sorted(_names(source)):
            if used != inner.__name__ and used in known and not _built_in(used, known[used]):
                self.take(used, known[used], known)
        self.blocks.append(f"# from {file}, line {line}\n{source.rstrip()}\n")
        bare = not ast.parse(source).body[0].decorator_list  # type: ignore[attr-defined]
        if isinstance(value, Reward) and bare:
            self.imports.append("from rl_reasoner import reward as _reward")
            settings = f"optional={value.optional!r}, on_abstain={value.on_abstain!r}"
            settings += ", group=True" if value.group else ""
            settings += ", policy_text=True" if value.policy_text else ""
            self.blocks.append(f"{inner.__name__} = _reward({settings})({inner.__name__})\n")
        if name != inner.__name__:
            self.blocks.append(f"{name} = {inner.__name__}\n")
        if isinstance(value, Reward):
            self._attach(value, "batch", value.many, known)
            self._attach(value, "checks", value.option_check, known)

    def _attach(self, reward: Reward, how: str, inner: Any, space: Mapping[str, Any]) -> None:
        """Write the function that `reward` was given by its decorator `how`."""
        if not isinstance(inner, FunctionType):
            return
        if how == "checks" and inner.__name__ == "<lambda>":  # it has no source of its own
            return
        self.take(inner.__name__, inner, space)
        name = reward.fn.__name__
        around = {**space, **_space(inner, space), name: reward}
        source, _, _ = self._source(inspect.unwrap(inner), space)
        decorators = ast.parse(source).body[0].decorator_list  # type: ignore[attr-defined]
        of = [one.value for one in decorators if getattr(one, "attr", "") == how]
        if not any(isinstance(one, ast.Name) and _same(around.get(one.id), reward) for one in of):
            self.blocks.append(f"{name}.{how}({inner.__name__})\n")  # it was given by a call

    def _source(self, inner: Any, space: Mapping[str, Any]) -> tuple[str, str, int]:
        """Source, the file's name and the first line of a function or class."""
        try:
            lines, line = inspect.getsourcelines(inner)
            file = inspect.getsourcefile(inner) or ""
        except (OSError, TypeError):
            file, lines, line = _class_lines(inner, str(space.get("__file__", "")))
        source = textwrap.dedent("".join(lines))
        if not source.lstrip().startswith(("def ", "async def ", "class ", "@")):
            raise ValueError(self.advised(f"the source of {inner.__name__} cannot be found"))
        cell = not file or file.startswith("<") or "ipykernel" in file
        return source, "cell" if cell else Path(file).name, line


def _same(one: Any, other: Any) -> bool:
    """Whether two values are one; a reward is the same with other options."""
    both = isinstance(one, Reward) and isinstance(other, Reward)
    return one is other or (both and one.fn is other.fn)


def _names(source: str) -> set[str]:
    """The names that a definition takes from outside."""
    names: set[str] = set()
    waiting = [symtable.symtable(source, "reward", "exec")]
    while waiting:
        table = waiting.pop()
        top = table.get_type() == "module"
        for symbol in table.get_symbols():
            outside = symbol.is_referenced() if top else symbol.is_global()
            if outside and not (top and symbol.is_assigned()):
                names.add(symbol.get_name())
        waiting += table.get_children()
    return names


def _captured(function: FunctionType) -> dict[str, Any]:
    """What a function has captured, by name; without what is not bound yet."""
    captured = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):
            captured[name] = cell.cell_contents
    return captured


def _space(inner: Any, space: Mapping[str, Any]) -> Mapping[str, Any]:
    """The globals of a function or class; a class without a module has those where it was found."""
    if isinstance(inner, FunctionType):
        return inner.__globals__
    module = sys.modules.get(inner.__module__)
    return space if module is None or inner.__module__ in _SCRIPTS else vars(module)


def _built_in(name: str, value: Any) -> bool:
    """Whether a global is what its name means everywhere; one of the script's own goes before."""
    if name.startswith("__") and hasattr(builtins, name):
        return True
    usual = getattr(builtins, name, None)
    of_cells = str(getattr(value, "__globals__", {}).get("__name__")).startswith("IPython.")
    return usual is not None and (value is usual or (of_cells and inspect.unwrap(value) is usual))


def _first_line(node: ast.stmt) -> int:
    """The line that a definition begins with, its decorators counted."""
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    return min([node.lineno, *(decorator.lineno for decorator in decorators)])


def _class_lines(owner: Any, script: str) -> tuple[str, list[str], int]:
    """File, lines and first line of a class of a script that is no module, or of a cell."""
    codes = [getattr(item, "__code__", None) for item in vars(owner).values()]
    files = [code.co_filename for code in codes if code is not None] + [script]
    files += [f for f in reversed(linecache.cache) if f.startswith("<ipython") or "ipykernel" in f]
    for file in files:
        lines = linecache.getlines(file)
        try:
            nodes = [*ast.walk(ast.parse("".join(lines)))]
        except SyntaxError:  # a cell with a magic
            continue
        for node in nodes:
            if isinstance(node, ast.ClassDef) and node.name == owner.__name__:
                first = _first_line(node)
                return file, lines[first - 1 : node.end_lineno], first
    return "", [], 0


def _imported(value: Any) -> tuple[str, str] | None:
    """Module and name by which `value` is imported elsewhere, or None."""
    module = str(getattr(value, "__module__", ""))
    for key in ("__qualname__", "__name__", "_name"):
        name = getattr(value, key, None)
        space = sys.modules.get(module) if module not in _SCRIPTS else None
        if isinstance(name, str) and space is not None:
            there = getattr(space, name, None)
            if value is there or (isinstance(there, Reward) and there.fn is value):
                ours = module.startswith("rl_reasoner.")  # public names stay where they are
                public = ours and name in sys.modules["rl_reasoner"].__all__
                return "rl_reasoner" if public else module, name
    return None


def _of_package(space: Mapping[str, Any]) -> bool:
    """Whether a module with these globals is installed: it can be imported from any folder."""
    file = space.get("__file__")
    if str(space.get("__name__")).startswith("rl_reasoner."):
        return True
    return (file is None and space.get("__name__") in sys.builtin_module_names) or of_library(file)


def _literal(value: Any) -> str | None:
    """Python for a constant, or for tables of constants; None for all else."""
    if type(value) is float and not math.isfinite(value):
        return f'float("{value}")'
    if type(value) in (str, bytes, int, float, complex, bool, type(None)):
        return repr(value)
    if isinstance(value, re.Pattern):
        return f"re.compile({value.pattern!r}, {value.flags})"
    if isinstance(value, Path):
        return f"pathlib.Path({str(value)!r})"
    if type(value) in (list, tuple, set, frozenset, dict):
        parts = list(_parts(value))
        if any(part is None for part in parts):
            return None
        inside = ", ".join(map(str, parts))
        if type(value) is dict:
            return f"dict([{inside}])"
        return f"{type(value).__name__}([{inside}])"
    return None


def _parts(value: Any) -> Iterator[str | None]:
    for item in sorted(value, key=repr) if isinstance(value, (set, frozenset)) else value:
        own = _literal(item)
        if own is not None and isinstance(value, dict):
            other = _literal(value[item])
            yield None if other is None else f"({own}, {other})"
        else:
            yield own
