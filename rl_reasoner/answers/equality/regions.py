"""Sets of real numbers: intervals, inequalities, unions and what is left out, as one normal form.

A region is a sorted tuple of disjoint pieces with numeric ends. `region` gives it for every way of
writing such a set; `compare` holds two regions against each other. Ends with letters have no region
(they are compared as they stand).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from rl_reasoner.answers.equality.arithmetic import Precision, TooLarge, Undefined
from rl_reasoner.answers.equality.shapes import has_sign_pair, members
from rl_reasoner.answers.equality.values import TreeEvaluator, constant, near
from rl_reasoner.answers.tree import Node, add, is_label, letters, negative, spelled, walk

_EV = Precision()
_ORDERS = {"<", "<=", ">", ">=", "!="}
_FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "!=": "!=", "=": "="}


@dataclass(frozen=True, slots=True)
class Piece:
    """An interval or, with both ends equal and closed, a point."""

    low: Any
    low_closed: bool
    high: Any
    high_closed: bool


@dataclass(frozen=True, slots=True)
class Region:
    """Disjoint pieces in order, and the name of the variable where one was written."""

    pieces: tuple[Piece, ...]
    name: str = ""


def _infinite(sign: int) -> Any:
    return _EV.mp.inf if sign > 0 else -_EV.mp.inf


def everything() -> tuple[Piece, ...]:
    """The whole line."""
    return (Piece(_infinite(-1), False, _infinite(1), False),)


def end_of(node: Node) -> Any:
    """The numeric end that `node` stands for; raises `Undefined` where it has none."""
    if node.op == "const" and node.name == "inf":
        return _infinite(1)
    if node.op == "neg" and node.args[0].op == "const" and node.args[0].name == "inf":
        return _infinite(-1)
    if letters(node):
        raise Undefined("an end with letters")
    value = constant(node)
    if isinstance(value, tuple) or not _EV.is_real(value):
        raise Undefined("an end that is not real")
    return _EV.mp.re(_EV.number(value))


def same_end(a: Any, b: Any) -> bool:
    """Whether two ends are one number (or the same infinity)."""
    return bool(a == b) or bool(_EV.mp.isfinite(a) and _EV.mp.isfinite(b) and near(_EV, a, b, 40))


def same_region(a: Region, b: Region) -> bool:
    """Whether two regions are one set, and their variables agree where both are named."""
    if a.name and b.name and a.name != b.name:
        return False
    return len(a.pieces) == len(b.pieces) and all(
        same_end(p.low, q.low)
        and same_end(p.high, q.high)
        and p.low_closed == q.low_closed
        and p.high_closed == q.high_closed
        for p, q in zip(a.pieces, b.pieces, strict=True)
    )


def merged(pieces: Iterable[Piece]) -> tuple[Piece, ...]:
    """`pieces` in order, those that overlap or touch made one."""
    result: list[Piece] = []
    for piece in sorted(pieces, key=lambda p: (p.low, not p.low_closed)):
        last = result[-1] if result else None
        if last is None or not (
            piece.low < last.high
            or (same_end(piece.low, last.high) and (piece.low_closed or last.high_closed))
        ):
            result.append(piece)
        elif same_end(piece.high, last.high):
            closed = piece.high_closed or last.high_closed
            result[-1] = Piece(last.low, last.low_closed, last.high, closed)
        elif piece.high > last.high:
            result[-1] = Piece(last.low, last.low_closed, piece.high, piece.high_closed)
    return tuple(result)


def intersected(left: Iterable[Piece], right: Iterable[Piece]) -> tuple[Piece, ...]:
    """What two unions of pieces have in common."""
    result = []
    rights = tuple(right)
    for a in left:
        for b in rights:
            low, low_closed = max((a.low, not a.low_closed), (b.low, not b.low_closed))
            high, high_closed = min((a.high, a.high_closed), (b.high, b.high_closed))
            if low < high or (low == high and not low_closed and high_closed):
                result.append(Piece(low, not low_closed, high, high_closed))
    return merged(result)


def complement(pieces: Iterable[Piece]) -> tuple[Piece, ...]:
    """The line without `pieces` (merged)."""
    result = []
    low, low_closed = _infinite(-1), False
    for piece in pieces:
        if low < piece.low or (low == piece.low and low_closed and not piece.low_closed):
            result.append(Piece(low, low_closed, piece.low, not piece.low_closed))
        low, low_closed = piece.high, not piece.high_closed
    if low < _infinite(1):
        result.append(Piece(low, low_closed, _infinite(1), False))
    return tuple(result)


# ---------------------------------------------------------------------- from trees


def region(node: Node) -> Region | None:
    """The set of real numbers that `node` describes; None where it describes no such set."""
    try:
        return _region(node)
    except (Undefined, TooLarge):
        return None


def _region(node: Node) -> Region | None:
    if node.op == "reals":
        return Region(everything())
    if node.op == "seq":
        return _interval(node)
    if node.op == "set":
        ends = [end_of(arg) for arg in node.args]
        return Region(merged(Piece(end, True, end, True) for end in ends))
    if node.op in ("union", "cap", "minus"):
        return _combined(node.op, _region(node.args[0]), _region(node.args[1]))
    if node.op == "builder":
        return _built(node)
    if node.op == "rel":
        return _relation(node)
    if node.op == "list":
        return _listed(node)
    return None


def _interval(node: Node) -> Region | None:
    if len(node.args) != 2 or node.name not in ("()", "[]", "(]", "[)"):
        return None
    low, high = (end_of(arg) for arg in node.args)
    if low > high or (low == high and node.name != "[]"):
        return None
    closed = (node.name[0] == "[" and low != _infinite(-1), node.name[1] == "]")
    return Region((Piece(low, closed[0], high, closed[1] and high != _infinite(1)),))


def _combined(op: str, left: Region | None, right: Region | None) -> Region | None:
    if left is None or right is None or (left.name and right.name and left.name != right.name):
        return None
    name = left.name or right.name
    if op == "union":
        return Region(merged((*left.pieces, *right.pieces)), name)
    other = right.pieces if op == "cap" else complement(right.pieces)
    return Region(intersected(left.pieces, other), name)


def _built(node: Node) -> Region | None:
    subject, condition = node.args
    condition_region = _region(condition)
    if subject.op == "rel" and condition_region is not None:
        return _combined("cap", _region(subject), condition_region)
    return condition_region


def _relation(node: Node) -> Region | None:
    signs = node.name.split()
    if signs in (["in"], ["notin"]) and is_label(node.args[0]):
        inside = _region(node.args[1])
        if inside is None:
            return None
        pieces = inside.pieces if signs == ["in"] else complement(inside.pieces)
        return Region(pieces, spelled(node.args[0]))
    if signs == ["!="] and (node.args[1].op == "list" or has_sign_pair(node.args[1])):
        parts = [Node("rel", (node.args[0], arg), "!=") for arg in members(node.args[1])]
        return _joined([_region(part) for part in parts], "cap")
    if signs == ["="] and is_label(node.args[0]):
        end = end_of(node.args[1])
        return Region((Piece(end, True, end, True),), spelled(node.args[0]))
    if not set(signs) <= _ORDERS | {"="} or not set(signs) & _ORDERS:
        return None
    pairs = zip(node.args, signs, node.args[1:], strict=False)
    return _joined([_solved(left, sign, right) for left, sign, right in pairs], "cap")


def _joined(parts: list[Region | None], op: str) -> Region | None:
    result = parts[0]
    for part in parts[1:]:
        result = _combined(op, result, part)
    return result


def _listed(node: Node) -> Region | None:
    """A list of conditions: "or" unites, the rest intersects unless nothing is in common."""
    members = list(node.args)
    if members[0].op == "rel" and not any(member.op == "rel" for member in members[1:]):
        if members[0].name != "!=":
            return None
        subject = members[0].args[0]
        members[1:] = [Node("rel", (subject, member), "!=") for member in members[1:]]
    parts = [_region(member) for member in members]
    if any(part is None for part in parts):
        return None
    if node.name == "or" or any(member.op == "seq" for member in members):
        return _joined(parts, "union")
    common = _joined(parts, "cap")
    return common if common is None or common.pieces else _joined(parts, "union")


def _solved(left: Node, sign: str, right: Node) -> Region | None:
    """The region of `left sign right`, affine in one name or in the size of such a thing."""
    sides = ((left, sign, right), (right, _FLIPPED[sign], left))
    for side, order, other in sides:
        if side.op == "call" and side.name == "abs" and not letters(other):
            return _absolute(side.args[0], order, other)
    for side, order, other in sides:
        if is_label(side) and not letters(other):
            return Region(_ray(order, end_of(other)), spelled(side))
    names = letters(left) | letters(right)
    if len(names) != 1 or any(part.op in ("index", "sum") for part in walk(left)):
        return None
    (name,) = names
    slope, start = _affine(add(left, negative(right)), name)
    order = sign if slope > 0 else _FLIPPED[sign]
    return Region(_ray(order, -start / slope), name)


def _affine(node: Node, name: str) -> tuple[Any, Any]:
    """Slope and value at 0 of an expression affine in `name`; raises `Undefined` else."""
    values = [_EV.number(TreeEvaluator({name: Fraction(x)}).value(node)) for x in (0, 1, 2, 5)]
    if not all(_EV.is_real(value) for value in values):
        raise Undefined("not real")
    start = _EV.mp.re(values[0])
    slope = _EV.mp.re(values[1]) - start
    straight = all(
        near(_EV, _EV.mp.re(values[at]), start + x * slope, 35) for at, x in ((2, 2), (3, 5))
    )
    if not straight or slope == 0:
        raise Undefined("not affine")
    return slope, start


def _ray(sign: str, end: Any) -> tuple[Piece, ...]:
    if sign in (">", ">="):
        return (Piece(end, sign == ">=", _infinite(1), False),)
    if sign in ("<", "<="):
        return (Piece(_infinite(-1), False, end, sign == "<="),)
    point = (Piece(end, True, end, True),)
    return point if sign == "=" else complement(point)


def _absolute(inside: Node, order: str, bound: Node) -> Region | None:
    inner = inside
    parts = (
        _solved(inner, "<" if "<" in order else ">", bound),
        _solved(inner, ">" if "<" in order else "<", negative(bound)),
    )
    if "=" in order and order != "!=":
        parts = (
            _solved(inner, "<=" if "<" in order else ">=", bound),
            _solved(inner, ">=" if "<" in order else "<=", negative(bound)),
        )
    if order in ("=", "!="):
        return None
    return _joined(list(parts), "cap" if "<" in order else "union")
