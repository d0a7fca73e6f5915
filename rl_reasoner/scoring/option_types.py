"""Do values fit what a function says of its options, and what does a text mean for one of them?

Looked at are true or false, numbers, texts, null, choices (`Literal`), lists and mappings, and one
of several such. What else an option is said to be is not checked, nor what cannot be resolved.
"""

import inspect
import numbers
import os
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from rl_reasoner.foreign import json_value

_LISTS = (list, tuple, set, frozenset, Sequence, Collection, Iterable)
_MAPPINGS = (dict, Mapping)
_PLAIN = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
_MANY = {int: "whole numbers", float: "numbers", str: "texts"}
_WORDS = {"true": True, "false": False, "yes": True, "no": False, "on": True, "off": False}
_NOTHING = ("none", "null", "~", "")


def option_parameters(fn: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The parameters of `fn` by name, with what their annotations stand for."""
    with suppress(Exception):  # whatever a name in an annotation comes to, or that it is none
        return dict(inspect.signature(fn, eval_str=True).parameters)
    found = dict(inspect.signature(fn).parameters)
    known = getattr(inspect.unwrap(fn), "__globals__", {})
    for name, parameter in found.items():
        if isinstance(parameter.annotation, str):
            own: Any = parameter.empty
            with suppress(Exception):  # that of another parameter may be known
                holder = types.SimpleNamespace(__annotations__={name: parameter.annotation})
                own = typing.get_type_hints(holder, known)[name]
            found[name] = parameter.replace(annotation=own)
    return found


def wrong_options(
    owner: str, parameters: Mapping[str, inspect.Parameter], options: Mapping[str, Any]
) -> list[str]:
    """What is wrong with those of the `options` of `owner` that do not fit its parameters."""
    return [
        f"option {name} of {owner} is {value!r:.40}: expected {_said(parameters[name].annotation)}"
        for name, value in options.items()
        if name in parameters and not _suits(value, parameters[name])
    ]


def read_option(text: str, parameter: inspect.Parameter | None) -> Any:
    """The value that a command line's text means for an option: as JSON, else the text itself.

    Words such as `no` and `None` are a value where the option is said to have such a one.
    """
    values: list[Any] = []
    with suppress(ValueError):
        values.append(json_value(text))
    kind: Any = Any if parameter is None else parameter.annotation
    if parameter is not None and kind is parameter.empty and type(parameter.default) is bool:
        kind = bool
    if _checked(kind):
        word = text.lower()
        own = any(text in get_args(one) for one in _kinds(kind) if get_origin(one) is Literal)
        own = own or (not text and str in _kinds(kind))
        if type(None) in _kinds(kind) and word in _NOTHING and not own:
            values.append(None)
        values.append(text)
        with suppress(ValueError, OverflowError):  # `.5` is no JSON, and `1e3` none of an int
            number = float(text)
            values += [int(number), number] if number.is_integer() else [number]
        if word in _WORDS:
            values.append(_WORDS[word])
    for value in values:
        if _fits(value, kind):
            return bool(value) if kind is bool else value
    return values[0] if values else text


def _suits(value: Any, parameter: inspect.Parameter) -> bool:
    """Whether an option may have this value; one like a default that does not fit may be."""
    kind, default = parameter.annotation, parameter.default
    return _fits(value, kind) or (type(value) is type(default) and not _fits(default, kind))


def _kinds(kind: Any) -> tuple[Any, ...]:
    """The alternatives of an annotation."""
    if get_origin(kind) is Annotated:
        return _kinds(get_args(kind)[0])
    if get_origin(kind) in (Union, types.UnionType):
        return tuple(one for part in get_args(kind) for one in _kinds(part))
    return (type(None) if kind is None else kind,)


def _checked(kind: Any) -> bool:
    """Whether values are held against this annotation: each of its alternatives is known."""
    known = (*_PLAIN, type(None), *_LISTS, *_MAPPINGS, Literal)
    return all((get_origin(one) or one) in known for one in _kinds(kind))


def _fits(value: Any, kind: Any) -> bool:
    return not _checked(kind) or any(_is_a(value, one) for one in _kinds(kind))


def _is_a(value: Any, kind: Any) -> bool:
    """Whether `value` is of this kind, which is one of those that are checked."""
    origin, parts = get_origin(kind) or kind, get_args(kind)
    if origin is Literal:
        return any(type(value) is type(part) and value == part for part in parts)
    if origin in _LISTS:
        if isinstance(value, str | bytes | Mapping) or not isinstance(value, Collection):
            return False
        if origin is tuple and parts and parts[-1] is not Ellipsis:
            return len(value) == len(parts) and all(map(_fits, value, parts))
        return not parts or all(_fits(one, parts[0]) for one in value)
    if origin in _MAPPINGS:
        return isinstance(value, Mapping)
    if origin is bool:  # 0 and 1 are as good, and numpy's own
        is_bool = isinstance(value, bool) or type(value).__name__ in ("bool", "bool_")
        return is_bool or (isinstance(value, int) and value in (0, 1))
    if origin in (int, float):
        of = numbers.Integral if origin is int else numbers.Real
        return isinstance(value, of) and not isinstance(value, bool)
    return isinstance(value, (str, os.PathLike) if origin is str else origin)


def _said(kind: Any) -> str:
    """What a value of this annotation is, in words."""
    words: list[str] = []
    for one in _kinds(kind):
        origin, parts = get_origin(one) or one, get_args(one)
        if origin is Literal:
            words += map(repr, parts)
        elif origin in _LISTS:
            fixed = origin is tuple and parts and parts[-1] is not Ellipsis
            known = parts and parts[0] in tuple(_MANY)  # some annotations have no hash
            many = _MANY[parts[0]] if known and not fixed else ""
            count = str(len(parts)) if fixed else many
            words.append(f"a list of {count}" if count else "a list")
        elif origin in _MAPPINGS:
            words.append("a mapping")
        else:
            words.append(_PLAIN.get(one, "null"))
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
