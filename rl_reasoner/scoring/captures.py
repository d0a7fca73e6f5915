"""What the code of a reward names of the outside: variables, and attributes of modules and classes.

Found in its byte code, so that nothing is run for it. `settings_of` are the numbers and texts among
them that a fresh import would not give: a script may have set them. `set_all` sets them elsewhere.
"""

import base64
import dataclasses
import dis
import importlib
import pickle
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache, partial
from types import CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple

from rl_reasoner.scoring.reward import Reward

ABSENT = object()
"""The value of a name that there is not."""
PLAIN = (str, bytes, int, float, complex, bool, type(None))
_SCRIPT = ("__main__", "__mp_main__")


class Use(NamedTuple):
    """A name in a function's code, the attributes taken of it, and whether the last is set."""

    name: str  # empty: the function's first argument
    captured: bool
    path: tuple[str, ...]
    written: bool


class Found(NamedTuple):
    """A value, and the module or class whose attribute it is, if it is one."""

    space: Any
    name: str
    value: Any


def named(function: FunctionType, use: Use, owner: type | None) -> Any:
    """The value of the name in `use`."""
    if not use.name:
        return owner
    return (cells(function) if use.captured else function.__globals__).get(use.name, ABSENT)


def followed(value: Any, path: Sequence[str]) -> Found:
    """Where `path` leads from `value`, through modules and classes; nothing is run for it."""
    found = Found(None, "", value)
    for name in path:
        spaces = found.value.__mro__ if isinstance(found.value, type) else [found.value]
        if not isinstance(spaces[0], (type, ModuleType)):
            break
        space = next((space for space in spaces if name in vars(space)), spaces[0])
        found = Found(space, name, vars(space).get(name, ABSENT))
    return found


@lru_cache(1024)
def uses(code: CodeType) -> tuple[Use, ...]:
    """What `code` and the functions within it name of the outside, in the order of the code."""
    steps = [step for step in dis.get_instructions(code) if step.opname != "EXTENDED_ARG"]
    first = code.co_varnames[0] if code.co_argcount else None
    found = []
    for at, step in enumerate(steps):
        captured = step.opname.endswith("DEREF") and step.argval in code.co_freevars
        if captured or step.opname in ("STORE_GLOBAL", "DELETE_GLOBAL"):
            if not step.opname.startswith("LOAD"):
                found.append(Use(step.argval, captured, (), True))
                continue
        elif step.opname.startswith("LOAD_FAST"):
            if step.argval != first:
                continue
        elif step.opname not in ("LOAD_GLOBAL", "LOAD_NAME"):
            continue
        path, written = _path(steps[at + 1 :])
        name = "" if step.opname.startswith("LOAD_FAST") else step.argval
        found.append(Use(name, captured, path, written))
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            found += [use for use in uses(constant) if use.name]
    return tuple(found)


def _path(steps: Sequence[dis.Instruction]) -> tuple[tuple[str, ...], bool]:
    """The attributes that `steps` take of what is on the stack, and whether they set the last."""
    path = []
    for at, step in enumerate(steps):
        if step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            path.append(str(step.argval))
        elif step.opname in ("STORE_ATTR", "DELETE_ATTR"):
            return (*path, str(step.argval)), True
        elif step.opname == "COPY" and steps[at + 1].opname == "LOAD_ATTR":  # a.b += 1
            return (*path, str(steps[at + 1].argval)), True
        else:
            break
    return tuple(path), False


def of_script(value: Any) -> bool:
    """Whether `value` is a class that is sent itself, and not by its name in a module."""
    if not isinstance(value, type):
        return False
    return value.__module__ in _SCRIPT or "<" in value.__qualname__


def standard(module: str | None) -> bool:
    """Whether `module` comes with Python."""
    return module not in _SCRIPT and str(module).partition(".")[0] in sys.stdlib_module_names


def methods(owner: type) -> Iterator[FunctionType]:
    """The functions written in a class: not those that `dataclass` and the like made for it."""
    made = dataclasses.is_dataclass(owner) or hasattr(owner, "__attrs_attrs__")
    for name, item in vars(owner).items():
        function = getattr(item, "__func__", getattr(item, "fget", item))
        if not isinstance(function, FunctionType) or (made and name.startswith("__")):
            continue
        if function.__globals__.get("__name__") == owner.__module__:
            yield function


def cells(function: FunctionType) -> dict[str, Any]:
    """What a function has captured, by name; None for what is not bound yet."""
    found = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:
            found[name] = None
    return found


# ---------------------------------------------------------- what a fresh import would not give


def settings_of(fn: Any, home: dict[str, Any] | None) -> dict[str, str]:
    """The numbers and texts of imported modules and their classes that `fn` reads, pickled.

    By "module:name"; without a module where it is that of `fn` itself, whose globals are `home`.
    The script, or other modules, may have set them since the import. What the functions themselves
    set is state of whatever process they run in.
    """
    found: dict[str, Any] = {}
    own: set[str] = set()
    seen: set[int] = set()
    waiting: list[tuple[Any, type | None]] = [(fn, None)]
    while waiting:
        value, owner = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Reward):
            waiting += [(value.fn, None), (value.many, None)]
        elif isinstance(value, partial):
            waiting += [(item, None) for item in (value.func, *value.args)]
        elif isinstance(value, type) and (of_script(value) or _in(home, value)):
            waiting += [(method, value) for method in methods(value)]
        if not isinstance(value, FunctionType) or not (_in(home, value) or _near(value)):
            continue
        waiting += [(item, None) for item in (*cells(value).values(), *vars(value).values())]
        for use in uses(value.__code__):
            root = named(value, use, owner)
            place = followed(root, use.path)
            waiting += [(root, None), (place.value, None)]
            key = _key(place, home)
            if use.name and not (use.path or use.captured) and value.__globals__ is home:
                key = "" if use.name.startswith("__") else f":{use.name}"
            if use.written:
                own.add(key)
            elif key and _plain(place.value):
                found[key] = place.value
    return {
        k: base64.b64encode(pickle.dumps(v)).decode()
        for k, v in sorted(found.items())
        if k not in own
    }


def set_all(settings: Mapping[str, str], home: dict[str, Any] | None) -> None:
    """Set in this process what `settings_of` found in another."""
    for key, value in settings.items():
        module, _, path = key.partition(":")
        *parts, name = path.split(".")
        new = pickle.loads(base64.b64decode(value))  # noqa: S301 (the parent's)
        space = vars(importlib.import_module(module)) if module else home or {}
        if not parts:
            space[name] = new
            continue
        owner = space[parts[0]]
        for part in parts[1:]:
            owner = getattr(owner, part)
        old = getattr(owner, name, ABSENT)
        if (type(old), old) != (type(new), new):  # classes written in C refuse even the same
            setattr(owner, name, new)


def _key(place: Found, home: dict[str, Any] | None) -> str:
    """The name of an attribute in `settings_of`; empty where it is none."""
    if place.space is None or place.name.startswith("__") or of_script(place.space):
        return ""
    of_class = isinstance(place.space, type)
    module = str(place.space.__module__ if of_class else place.space.__name__)
    if standard(module) or module in _SCRIPT:
        return ""
    path = f"{place.space.__qualname__}.{place.name}" if of_class else place.name
    return f":{path}" if home is not None and home.get("__name__") == module else f"{module}:{path}"


def _near(function: FunctionType) -> bool:
    """Whether `function` is of the script, or made by another."""
    if standard(function.__module__):
        return False
    return function.__module__ in _SCRIPT or "<" in function.__qualname__


def _plain(value: Any) -> bool:
    if isinstance(value, (tuple, frozenset)):
        return type(value) in (tuple, frozenset) and all(map(_plain, value))
    return type(value) in PLAIN


def _in(home: dict[str, Any] | None, value: Any) -> bool:
    """Whether `value`, a function or class, stands in the module with the globals `home`."""
    if isinstance(value, FunctionType):
        return value.__globals__ is home
    return home is not None and value.__module__ == home.get("__name__")
