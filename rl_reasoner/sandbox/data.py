"""Plain data on the wire between the host, a judge and a program.

Values travel as JSON trees in which every JSON object is a tag for what JSON lacks (tuples, sets,
dictionaries with any keys, bytes, dates, large integers ...). The encoder may run inside a hostile
program: what it says is only ever an answer, so it is free to be generous with subclasses. The
decoder and `equal_trees` run on the safe side: they trust nothing, execute nothing of the value,
and `equal_trees` never builds a hash table from a hostile value's own hashes. Knows nothing of the
other modules.
"""

import base64
import builtins
import json
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from typing import Any

Tree = Any  # what json.loads returns; objects hold exactly one tag
MAX_BYTES = 8 << 20
MAX_DEPTH = 200
MAX_DIGITS = 10_000
_DECODING_S = 5.0  # many times what the largest honest message needs
_AT_ONCE = 256
_PLAIN_INT = 1 << 63
_MOST_AXES = 32
# Kinds of numbers that arrays travel with, by numpy's names: of a processor's own sizes.
_ARRAYS = {"|b1", "|i1", "|u1", *(f"<{kind}{size}" for kind in "iu" for size in (2, 4, 8))}
_ARRAYS |= {"<f2", "<f4", "<f8", "<c8", "<c16"}
_BUILTIN_TYPES = {kind for kind in vars(builtins).values() if isinstance(kind, type)}


class NotData(Exception):
    """A value that is not plain data (its type's name), or one nested too deeply."""


class Malformed(Exception):
    """Bytes or a tree that no honest encoder wrote."""


def encode(value: object, refer: Callable[[object], Tree] | None = None, depth: int = 0) -> Tree:
    """`value` as a tree. What is not plain data goes to `refer`, or raises `NotData` without one.

    Subclasses of plain types travel as the plain type, numpy scalars as numbers, arrays of other
    things than numbers as lists. Deques and dates are data only as they are: a program's subclass,
    a `maxlen` and a named time zone would be lost.
    """
    if depth > MAX_DEPTH:
        raise NotData("data nested too deeply")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        number = int.__int__(value)
        return number if -_PLAIN_INT < number < _PLAIN_INT else {"i": format(number, "x")}
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, list):
        return [encode(item, refer, depth + 1) for item in list.__iter__(value)]
    return _encode_tagged(value, refer, depth + 1)


def _encode_tagged(value: object, refer: Callable[[object], Tree] | None, depth: int) -> Tree:
    if isinstance(value, tuple):
        return {"t": [encode(item, refer, depth) for item in tuple.__iter__(value)]}
    if isinstance(value, dict):
        pairs = dict.items(value)
        return {"d": [[encode(k, refer, depth), encode(v, refer, depth)] for k, v in pairs]}
    if isinstance(value, (set, frozenset)):
        items = [encode(item, refer, depth) for item in list(value)]
        return {"s" if isinstance(value, set) else "f": items}
    if isinstance(value, (bytes, bytearray)):
        return {"b": base64.b64encode(value).decode()}
    if isinstance(value, complex):
        return {"c": [value.real, value.imag]}
    if isinstance(value, range):
        return {"r": [encode(part) for part in (value.start, value.stop, value.step)]}
    if isinstance(value, Fraction):
        return {"q": [encode(value.numerator), encode(value.denominator)]}
    if isinstance(value, Decimal):
        return {"D": str(value)}
    if type(value) is deque and value.maxlen is None:
        return {"Q": [encode(item, refer, depth) for item in deque.__iter__(value)]}
    if isinstance(value, (date, timedelta)) and _is_plain_time(value):
        return {"w": _when_told(value)}
    if isinstance(value, type) and value in _BUILTIN_TYPES:
        return {"T": value.__name__}
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        given: Any = value
        kind = given.dtype.str if type(value).__name__ == "ndarray" else ""
        if kind not in _ARRAYS:
            return encode(given.tolist(), refer, depth)
        return {"a": [kind, list(given.shape), encode(given.ravel().tolist(), refer, depth)]}
    if refer is None:
        raise NotData(type(value).__name__)
    return refer(value)


def decode(tree: Tree, refer: Callable[[str, Any], object] | None = None) -> Any:
    """The value of a tree; `refer(tag, argument)` resolves tags that are no data, and types.

    Arrays are nested lists without `refer`, and with it numpy's where that is loaded. Raises
    `Malformed` for anything that `encode` does not write, and for sets and dictionaries that take
    too long to fill, since their members were chosen to collide.
    """
    return _decode(tree, refer, time.thread_time() + _DECODING_S)


def _decode(tree: Tree, refer: Callable[[str, Any], object] | None, until: float) -> Any:
    if isinstance(tree, list):
        return [_decode(item, refer, until) for item in tree]
    if not isinstance(tree, dict):
        return tree
    tag, body = _tag(tree)
    try:
        if tag == "t":
            return tuple(_decode(item, refer, until) for item in _items(body))
        if tag == "d":
            table: dict[Any, Any] = {}
            for some in _portions(_items(body), until):
                table.update((_decode(k, refer, until), _decode(v, refer, until)) for k, v in some)
            return table
        if tag == "Q":
            return deque(_decode(item, refer, until) for item in _items(body))
        if tag in ("s", "f"):
            members: set[Any] = set()
            for some in _portions(_items(body), until):
                members.update(_decode(item, refer, until) for item in some)
            return members if tag == "s" else frozenset(members)
        if tag == "r":
            return range(*(decode(part) for part in _items(body)))
        if tag in _SCALARS and (tag != "T" or refer is None):
            return _SCALARS[tag](body)
        if tag == "a":
            return array(body) if refer is not None else _decode(nested_lists(body), None, until)
    except (TypeError, ValueError, ArithmeticError, LookupError) as error:
        raise Malformed(f"bad {tag!r}") from error
    if refer is None:
        raise Malformed(f"unknown tag {tag!r}")
    return refer(tag, body)


def array(body: Any) -> Any:
    """numpy's array of a tree's body, if numpy is loaded; else nested lists.

    Of plain numbers alone, whose kind is one of a fixed list: nothing of it is ever run. One
    without elements stays lists: of shape (0, 1) it would be close to any answer.
    """
    lists = decode(nested_lists(body))
    numpy = sys.modules.get("numpy")
    if numpy is None or 0 in body[1]:
        return lists
    return numpy.array(lists, dtype=body[0]).reshape(body[1])


def nested_lists(body: Any) -> Tree:
    """The nested lists of an array's body, numbers checked. Raises `Malformed`."""
    if not isinstance(body, list) or len(body) != 3 or body[0] not in _ARRAYS:
        raise Malformed("no array")
    _, shape, flat = body
    sizes = _items(shape)
    if not all(type(size) is int and size >= 0 for size in sizes) or len(sizes) > _MOST_AXES:
        raise Malformed("an array of no shape")
    items = _items(flat)
    if math.prod(sizes) != len(items) or not all(
        _kind(item, False)[0] == "number" for item in items
    ):
        raise Malformed("an array of other numbers than it has room for")
    for size in reversed(sizes[1:]):
        items = [items[at : at + size] for at in range(0, len(items), size)] if size else items
    return items if sizes else items[0]


def _portions(items: list[Any], until: float) -> Iterator[list[Any]]:
    """`items` in parts, as long as this thread has computed for less than `until`."""
    for start in range(0, len(items), _AT_ONCE):
        if start and time.thread_time() > until:
            raise Malformed("a set or dictionary whose members collide")
        yield items[start : start + _AT_ONCE] if start or len(items) > _AT_ONCE else items


def dump(tree: Tree) -> bytes:
    """A tree as bytes (ASCII JSON; nan and infinities by Python's names)."""
    return json.dumps(tree, separators=(",", ":")).encode()


def load(raw: bytes) -> Tree:
    """The tree in `raw`; raises `Malformed` for bad, too large or too deep input."""
    if len(raw) > MAX_BYTES:
        raise Malformed(f"more than {MAX_BYTES} bytes")
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise Malformed("not JSON") from error


def equal_trees(tree: Tree, expected: Tree, tolerance: float = 0.0, loose: bool = False) -> bool:
    """Whether two trees stand for equal values, as Python's `==` says for plain data.

    `tolerance` is allowed between numbers, absolutely or relative to the expected one. `loose`
    lets tuples equal lists (an expectation that came from JSON). Raises `Malformed`.
    """
    try:
        return _equal(tree, expected, tolerance, loose)
    except Exception as error:  # a hostile tree, or one too deep: never this process's trouble
        raise Malformed(str(error)) from error


def _equal(tree: Tree, expected: Tree, tolerance: float, loose: bool) -> bool:
    kind, body = _kind(tree, loose)
    other, wanted = _kind(expected, loose)
    if kind != other:
        return False
    if kind == "number":
        return _numbers_equal(body, wanted, tolerance)
    if kind in ("list", "t", "Q"):
        return len(body) == len(wanted) and all(
            _equal(a, b, tolerance, loose) for a, b in zip(body, wanted, strict=True)
        )
    if kind == "s":
        return len(body) == len(wanted) and (
            {_canonical(item) for item in body} == {_canonical(item) for item in wanted}
        )
    if kind == "d":
        ours, theirs = _by_key(body), _by_key(wanted)
        return ours.keys() == theirs.keys() and all(
            _equal(value, theirs[key], tolerance, loose) for key, value in ours.items()
        )
    return bool(body == wanted)


def _kind(tree: Tree, loose: bool) -> tuple[str, Any]:
    """The kind of value a tree stands for, and its content ready to compare."""
    if tree is None or isinstance(tree, str):
        return type(tree).__name__, tree
    if isinstance(tree, (bool, int, float)):
        return "number", tree
    if isinstance(tree, list):
        return "list", tree
    tag, body = _tag(tree)
    if tag in ("i", "c", "q", "D"):
        return "number", _SCALARS[tag](body)
    if tag == "t":
        return "list" if loose else "t", _items(body)
    if tag == "Q":
        return tag, _items(body)
    if tag == "w":
        return tag, _when(body)
    if tag in ("s", "f"):
        return "s", _items(body)
    if tag == "d":
        return tag, _items(body)
    if tag == "r":
        return tag, range(*(decode(part) for part in _items(body)))
    if tag == "a":
        return _kind(nested_lists(body), loose)
    return tag, body


def _numbers_equal(a: Any, b: Any, tolerance: float) -> bool:
    if a == b:
        return True
    if not tolerance:
        return False
    try:
        if isinstance(a, Decimal) or isinstance(b, Decimal):  # these do not add to floats
            a, b = (float(x) if isinstance(x, Decimal) else x for x in (a, b))
        allowed = tolerance * max(1.0, abs(b))  # infinite where b is: then nothing else is near
        return bool(math.isfinite(allowed) and abs(a - b) <= allowed)  # False for nan
    except OverflowError:
        return False


def _by_key(pairs: list[Any]) -> dict[str, Tree]:
    table = {_canonical(key): value for key, value in pairs}
    if len(table) != len(pairs):
        raise Malformed("a dictionary with a key twice")
    return table


def _canonical(tree: Tree) -> str:
    """A text that is the same for keys that are equal: hashed in place of the value itself."""
    kind, body = _kind(tree, loose=False)
    if kind == "number":
        if isinstance(body, float) and math.isnan(body):
            raise Malformed("nan as a key")
        if isinstance(body, (int, float, Fraction)) and body == body // 1:
            return f"n{int(body):x}"
        return f"n{body!r}"
    if kind in ("list", "t"):
        return f"{kind}({','.join(_canonical(item) for item in body)})"
    if kind == "s":
        return f"s({','.join(sorted(_canonical(item) for item in body))})"
    return f"{kind}{body!r}"


def _tag(tree: Any) -> tuple[str, Any]:
    if not isinstance(tree, dict) or len(tree) != 1:
        raise Malformed("an object must hold one tag")
    return next(iter(tree.items()))


def _items(body: Any) -> list[Any]:
    if not isinstance(body, list):
        raise Malformed("a list was expected")
    return body


def _integer(body: Any) -> int:
    return int(body, 16) if isinstance(body, str) else int(body)


def _complex(body: Any) -> complex:
    real, imaginary = _items(body)
    return complex(float(real), float(imaginary))


def _fraction(body: Any) -> Fraction:
    top, bottom = (decode(part) for part in _items(body))
    if not (isinstance(top, int) and isinstance(bottom, int)):
        raise ValueError("a fraction is of integers")
    if max(abs(top), abs(bottom)).bit_length() > 4 * MAX_DIGITS:
        raise ValueError("too many digits")
    return Fraction(top, bottom)


def _decimal(body: Any) -> Decimal:
    number = Decimal(body) if len(body) <= MAX_DIGITS else Decimal("nan")
    if not number.is_finite() or abs(number.adjusted()) > MAX_DIGITS:
        raise ValueError("no finite decimal of reasonable size")
    return number


def _is_plain_time(value: date | timedelta) -> bool:
    zone = value.tzinfo if type(value) is datetime else None
    return type(value) in (date, datetime, timedelta) and type(zone) in (timezone, type(None))


def _when_told(value: date | timedelta) -> Tree:
    if isinstance(value, timedelta):
        return ["delta", [value.days, value.seconds, value.microseconds]]
    if isinstance(value, datetime):
        return ["time", datetime.isoformat(value)]
    return ["date", date.isoformat(value)]


def _when(body: Any) -> date | timedelta:
    kind, told = _items(body)
    if kind == "delta":
        days, seconds, microseconds = (int(part) for part in _items(told))
        return timedelta(days, seconds, microseconds)
    return {"time": datetime, "date": date}[kind].fromisoformat(told)


def _bytes(body: Any) -> bytes:
    return base64.b64decode(body, validate=True)


def _builtin_type(body: Any) -> type:
    found = getattr(builtins, body, None)
    if not isinstance(found, type):
        raise ValueError("no builtin type")
    return found


_SCALARS: dict[str, Callable[[Any], Any]] = {
    "i": _integer,
    "c": _complex,
    "q": _fraction,
    "D": _decimal,
    "b": _bytes,
    "w": _when,
    "T": _builtin_type,
}
