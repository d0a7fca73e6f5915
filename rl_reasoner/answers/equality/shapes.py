"""Questions about the shape of an answer's tree: its label, its members, its unit, its bounds.

Pure and structural, except that a chain of equalities is checked for being one value. `compare`
asks these questions of both sides and holds the parts against each other.
"""

from collections.abc import Callable, Sequence
from itertools import product
from math import prod
from typing import TypeVar

from rl_reasoner.answers.equality.arithmetic import TooLarge, Undefined
from rl_reasoner.answers.equality.values import equal
from rl_reasoner.answers.tree import (
    Node,
    is_derivative,
    is_label,
    letters,
    names,
    spelled,
    walk,
)

_T = TypeVar("_T")
MAX_EXPANDED = 64
_INFINITE = Node("const", name="inf")
_ORDER = frozenset({"<", "<=", ">", ">="})


class Inconsistent(ValueError):
    """A chain of equalities whose members differ in value."""


def attempted(compute: Callable[[], _T]) -> _T | None:
    """The result of `compute`, or None where a value is undefined or past a bound."""
    try:
        return compute()
    except (Undefined, TooLarge, ZeroDivisionError, OverflowError):
        return None


def single(node: Node) -> Node:
    """The only member of a list or set of one; any other node itself."""
    while node.op in ("list", "set") and len(node.args) == 1:
        node = node.args[0]
    return node


def labelled(node: Node) -> tuple[Node | None, Node]:
    """The label of `node` (None without one) and what it stands for.

    `x = 5`, `5 = x`, `x in S`, `x = 1 or 2`; several assignments have the tuple of their names. A
    chain stands for its last member; raises `Inconsistent` where its members differ.
    """
    if node.op == "list":
        return _list_label(node)
    if node.op in ("mul", "call"):
        return _named_point(node)
    if node.op != "rel":
        return None, node
    signs = node.name.split()
    if signs == ["in"] and is_label(node.args[0]):
        return node.args[0], node.args[1]
    if not set(signs) <= {"=", "~"}:
        return None, node
    parts = list(node.args)
    label: Node | None = None
    if _is_name(parts[0]) and not _mentions(parts[-1], parts[0]):
        label = parts.pop(0)
        signs.pop(0)
    elif len(parts) == 2 and _is_name(parts[1]) and not _mentions(parts[0], parts[1]):
        return parts[1], parts[0]
    body = _chain_value(parts, signs, labelled=label is not None)
    return (label, body) if body is not None else (None, node)


def _named_point(node: Node) -> tuple[Node | None, Node]:
    """`P(3, -2)` as the tuple with the label P."""
    if node.op == "mul" and len(node.args) == 2:
        name, body = node.args
        if name.op == "sym" and name.name[:1].isupper() and body.op == "seq" and body.name == "()":
            return name, body
    if node.op == "call" and node.name[:1] == "?" and node.name[1:2].isupper():
        numbers = all(not letters(arg) for arg in node.args)
        if len(node.args) > 1 and numbers:
            return Node("sym", name=node.name[1:]), Node("seq", node.args, "()")
    return None, node


def _is_name(node: Node) -> bool:
    """Whether `node` is a label, or a limit, a sum or an integral that is told the value of."""
    return is_label(node) or (node.op == "sum" and _is_open(node))


def _mentions(body: Node, label: Node) -> bool:
    """Whether `body` has the label's own name in it, so that it is no definition."""
    if is_derivative(label) or (label.op == "sum" and not _is_open(body)):
        return False
    if label.op in ("call", "index"):
        return any(part.op == label.op and part.name == label.name for part in walk(body))
    return bool(letters(label) & letters(body))


def _chain_value(parts: list[Node], signs: list[str], *, labelled: bool) -> Node | None:
    """The value of a chain: its last exact member. None for an equation."""
    exact = [parts[0]]
    for part, sign in zip(parts[1:], signs, strict=True):
        if sign == "~" and not (_is_decimal(exact[-1]) and not _is_decimal(part)):
            continue
        exact = [*exact, part] if sign == "=" else [part]
    last = exact[-1]
    for part in exact[:-1]:
        if labelled and letters(part) - letters(last):
            continue  # a formula before its value
        if last.op in ("list", "set", "seq", "matrix", "pm", "rel") or part.op == last.op == "rel":
            continue
        if not attempted(lambda part=part: _agree(part, last)):  # type: ignore[misc]
            if _is_open(part) and not _is_open(last):
                continue  # a limit, a sum or an integral before its value
            if letters(part) or letters(last):
                return None
            raise Inconsistent("the members of the chain differ")
    return last


def _is_open(node: Node) -> bool:
    """Whether `node` is a limit, an integral, or a sum without two whole numbers as its ends.

    Also with numbers added and multiplied; `x + \\int_0^1 f(t) dt` is an equation's side.
    """
    if node.op == "sum" and (
        not node.name.startswith(("sum ", "prod "))
        or any(end.number is None or end.number.denominator != 1 for end in node.args[1:])
    ):
        return True
    if node.op not in ("add", "neg", "mul", "div", "pow", "sum", "quantity"):
        return False
    parts = node.args[:1] if node.op == "sum" else node.args
    opened = [_is_open(part) for part in parts]
    return any(opened) and all(
        part_open or not letters(part) for part, part_open in zip(parts, opened, strict=True)
    )


def _agree(part: Node, last: Node) -> bool:
    """Whether a chain may go from `part` to `last`: `15 / 30 * 100 = 50%` may.

    By its factor of 100 the number is one of percent; `1/2 = 0.5%` is wrong.
    """
    if equal(_bare(part), _bare(last)):
        return True
    percent = last.op == "quantity" and last.name == "percent^1"
    hundred = any(one.number == 100 for one in walk(part) if one is not part)
    return percent and hundred and bool(equal(part, last.args[0]))


def _bare(node: Node) -> Node:
    return node.args[0] if node.op == "quantity" and node.name != "percent^1" else node


def _is_decimal(node: Node) -> bool:
    return any(part.op == "num" and part.digits for part in walk(node))


def _list_label(node: Node) -> tuple[Node | None, Node]:
    parts = [labelled(arg) if arg.op == "rel" else (None, arg) for arg in node.args]
    labels = [label for label, _ in parts if label is not None]
    bodies = tuple(body for _, body in parts)
    if not labels or parts[0][0] is None:
        return None, node
    names = {spelled(label) for label in labels}
    if len(names) == 1 and not any(body.op == "rel" for body in bodies):
        return labels[0], Node("list", bodies, name=node.name)
    if len(labels) == len(parts) == len(names):
        return Node("seq", tuple(labels), name="names"), Node("list", bodies, name=node.name)
    return None, node


def assignments(node: Node) -> list[tuple[str, Node]]:
    """Names and values of `x = 6, y = 1` or `(x, y) = (6, 1)`; empty where it is neither."""
    label, body = labelled(node)
    if label is None or label.op != "seq" or body.op not in ("seq", "list"):
        return []
    if len(label.args) != len(body.args):
        return []
    return [(spelled(name), value) for name, value in zip(label.args, body.args, strict=True)]


def base(name: str) -> str:
    """A name without its index; an angle, or a function of something, stays whole."""
    return name if "(" in name else name.partition("_")[0]


def without_domain(node: Node, gold: Node) -> Node:
    """`node` without where it holds, `x + 1, x \\ne 1`, if the gold says nothing of that."""
    if node.op != "list" or node.name == "or" or gold.op == "list":
        return node
    if any(map(_is_condition, walk(gold))):
        return node
    first, *conditions = node.args
    label, value = labelled(first)
    if first.op == "rel" and label is None:  # of a curve it is another one
        return node
    names = letters(value)
    told = all(
        _is_condition(part) and letters(part) and letters(part) - {"bbZ", "bbN", "bbQ"} <= names
        for part in conditions
    )
    return first if told else node


def without_integers(node: Node, given: Node) -> Node:
    """A gold without "for integer k" where the answer says nothing of that: it is a convention."""
    if node.op != "list" or node.name == "or" or given.op == "list":
        return node
    first, *conditions = node.args
    told = all(p.op == "rel" and p.name == "in" and p.args[1].name == "bbZ" for p in conditions)
    return first if told else node


def _is_condition(node: Node) -> bool:
    signs = set(node.name.split())
    return node.op == "rel" and bool(signs) and signs <= {*_ORDER, "!=", "in"}


def has_labelled(node: Node) -> bool:
    """Whether `node` is a list of which a member has a name of its own."""
    return node.op == "list" and any(
        part.op == "rel" and labelled(part)[0] is not None for part in node.args
    )


def same_label(left: Node, right: Node) -> bool:
    """Whether two labels agree: one name, or one of them with arguments the other leaves out."""
    if spelled(left) == spelled(right):
        return True
    for one, other in ((left, right), (right, left)):
        name, _, index = spelled(one).partition("_")
        if "," in index and index.replace(",", "").isdecimal() and name == spelled(other):
            return True  # x_{1,2} are the values of x
    pair = {left.op: left, right.op: right}
    if set(pair) == {"call", "sym"}:
        return pair["call"].name.lstrip("?") == pair["sym"].name
    return False


def has_sign_pair(node: Node) -> bool:
    """Whether a plus-minus sign occurs in a value, tuple or assignment."""
    return node.op not in ("list", "set") and any(part.op == "pm" for part in walk(node))


def members(node: Node) -> list[Node]:
    """The members of a list or set, plus-minus signs expanded; a value is its own member."""
    parts = node.args if node.op in ("list", "set") else (node,)
    return [member for part in parts for member in _expanded(part)]


def _expanded(node: Node) -> list[Node]:
    if not has_sign_pair(node):
        return [node]
    tied = any(part.op == "pm" and part.name == "mp" for part in walk(node))
    if node.op == "seq" and not tied:  # a minus-plus goes with the plus-minus beside it
        options = [_expanded(arg) for arg in node.args]
        if prod(map(len, options)) > MAX_EXPANDED:
            raise TooLarge(f"more than {MAX_EXPANDED} choices of signs")
        rows = list(product(*options))
        return [Node("seq", row, name=node.name) for row in rows]
    return [_signed(node, upper=True), _signed(node, upper=False)]


def _signed(node: Node, *, upper: bool) -> Node:
    """`node` with every plus-minus sign read as its upper (or lower) sign."""
    if not node.args:
        return node
    args = tuple(_signed(arg, upper=upper) for arg in node.args)
    if node.op != "pm":
        return Node(node.op, args, node.name, node.number, node.digits)
    last = args[-1] if (node.name == "pm") == upper else Node("neg", (args[-1],))
    return last if len(args) == 1 else Node("add", (args[0], last))


def flat_union(node: Node) -> list[Node]:
    """The parts of nested unions."""
    if node.op != "union":
        return [node]
    return [part for arg in node.args for part in flat_union(arg)]


def is_interval(node: Node) -> bool:
    """Whether brackets can only be an interval: of two kinds, or with an infinite end."""
    return (
        node.op == "seq"
        and len(node.args) == 2
        and (
            node.name in ("(]", "[)")
            or any(part.op == "const" and part.name == "inf" for a in node.args for part in walk(a))
        )
    )


def ascending(node: Node) -> Node:
    """A chain of inequalities turned so that its signs are < and <=, if they all point one way."""
    signs = node.name.split()
    if not set(signs) <= {">", ">="}:
        return node
    turned = " ".join("<" if sign == ">" else "<=" for sign in reversed(signs))
    return Node("rel", node.args[::-1], name=turned)


def bounds_of(node: Node) -> Node | None:
    """A condition on one name with ends of any kind, as the interval it describes."""
    if node.op == "seq" and len(node.args) == 2:
        return node
    if node.op == "rel" and node.name == "in":
        return bounds_of(node.args[1])
    if node.op != "rel" or not set(node.name.split()) <= _ORDER:
        return None
    chain = ascending(node)
    signs = chain.name.split()
    if not set(signs) <= {"<", "<="}:
        return None
    if len(signs) == 2 and is_label(chain.args[1]):
        name = ("(" if signs[0] == "<" else "[") + (")" if signs[1] == "<" else "]")
        return Node("seq", (chain.args[0], chain.args[2]), name=name)
    if len(signs) == 1 and is_label(chain.args[0]):
        closer = ")" if signs[0] == "<" else "]"
        return Node("seq", (Node("neg", (_INFINITE,)), chain.args[1]), name="(" + closer)
    if len(signs) == 1 and is_label(chain.args[1]):
        opener = "(" if signs[0] == "<" else "["
        return Node("seq", (chain.args[0], _INFINITE), name=opener + ")")
    return None


def as_matrix(node: Node, other: Node) -> Node:
    """Nested square brackets as a matrix where the other side is one."""
    rows = node.args
    nested = node.op == "seq" and node.name == "[]" and all(r.op == "seq" for r in rows)
    if other.op != "matrix" or not nested or len({len(row.args) for row in rows}) != 1:
        return node
    return Node("matrix", tuple(Node("seq", row.args, "row") for row in rows))


def split_unit(node: Node) -> tuple[str, Node]:
    """The unit of a value ("" without one) and the value."""
    return (node.name, node.args[0]) if node.op == "quantity" else ("", node)


def bases(nodes: Sequence[Node]) -> list[list[str]]:
    """For each tree the bases of its numbers that are written with one."""
    return [
        sorted(part.name.rpartition("_")[2] for part in walk(node) if part.op == "based")
        for node in nodes
    ]


_OF_WHOLE_NUMBERS = names("mod binom factorial2 floor ceil gcd lcm")


def needs_assumptions(node: Node) -> bool:
    """Whether equality may hang on letters being whole numbers, or on a sum in letters.

    Fixed points cannot settle these, so that sympy is asked.
    """
    for part in walk(node):
        inside = any(letters(arg) for arg in part.args)
        whole = part.op == "fact" or part.name in _OF_WHOLE_NUMBERS
        power = part.op == "pow" and letters(part.args[1]) and _negative_base(part.args[0])
        if part.op == "sum" or (inside and (whole or power or _turns(part))):
            return True
    return False


def _negative_base(node: Node) -> bool:
    return node.op == "neg" or (node.number is not None and node.number < 0)


def _turns(node: Node) -> bool:
    """A trigonometric function of whole or half turns of a letter."""
    return node.name in ("sin", "cos", "tan") and any(part.name == "pi" for part in walk(node))
