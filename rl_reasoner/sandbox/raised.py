"""Exceptions between a judge and a program: by value, as class, arguments and plain attributes.

Classes are builtin ones, or what the two sides agree on by handles: nothing is looked up by a name
that the other side says, but a builtin's. Both sides tell and rebuild alike (`remote`, `judging`).
"""

import builtins
from collections.abc import Callable
from contextlib import suppress
from types import GetSetDescriptorType, MemberDescriptorType
from typing import Any

from rl_reasoner.sandbox import data

HANDLE = "__handle__"  # of an exception of the program's own class, and of the class
OF_PROGRAM = "of_program"  # set on what the program raised
BUILTIN = {
    kind: [name for name, part in vars(kind).items() if name != "args" and name[0] != "_"
           and isinstance(part, (GetSetDescriptorType, MemberDescriptorType))]
    for kind in vars(builtins).values() if isinstance(kind, type) and issubclass(kind, Exception)
}  # fmt: skip
"""The builtin exceptions, each with the names of its own attributes."""


def kind_of(tree: data.Tree, decode: Callable[[data.Tree], Any]) -> Any:
    """The class of an exception, or a base of one, whichever builtin that is."""
    return data.decode(tree) if isinstance(tree, dict) and "T" in tree else decode(tree)


def told(
    error: Exception,
    kind: data.Tree,
    encode: Callable[[object], data.Tree],
    handle: int | None = None,
) -> data.Tree:
    """`error` as a tree, `kind` being its class's; attributes that are no plain data stay away."""
    try:
        text = str(error)
    except Exception:  # of a class of its own
        text = ""
    try:
        args = [encode(value) for value in error.args]
    except TypeError:  # what a test cannot pass
        args = [text]
    named = [name for base in type(error).__mro__ for name in BUILTIN.get(base, ())]
    attributes = {name: getattr(error, name, None) for name in named} | vars(error)
    plain = []
    for name, value in attributes.items():
        if value is not None or name not in named:
            with suppress(data.NotData):
                plain.append([str(name), data.encode(value)])
    cause = error.__cause__
    because = encode(cause) if isinstance(cause, Exception) else None
    return {"x": [kind, args, plain, text, handle, because]}


def rebuilt(body: Any, decode: Callable[[data.Tree], Any]) -> Exception:
    """The exception that `told` has told. Raises ValueError or TypeError for what it never says."""
    tree, args, attributes, text, handle, because = body
    kind, cause, values = kind_of(tree, decode), decode(because), [decode(value) for value in args]
    if not (isinstance(kind, type) and issubclass(kind, Exception) and isinstance(text, str)):
        raise TypeError("no exception")
    plain = {str(name): data.decode(value) for name, value in attributes}
    own = {HANDLE: handle, "__text__": text} if type(kind) is not type else {}
    error: Exception = RuntimeError(text)
    for given in (values, [text]):
        try:
            error = type.__call__(kind, *given)
            for name, value in plain.items():
                if not name.startswith("__") and name not in ("args", OF_PROGRAM):
                    setattr(error, name, value)
            vars(error).update(own)
            if str(error) == text:
                break
        except Exception:  # not the arguments of that class, or no value of an attribute of it
            continue
    error.__cause__ = cause if isinstance(cause, Exception) else None
    return error
