"""The small tree an answer is read into, and questions about it that need no arithmetic.

One node type with an operation name; `lexer` and `parser` build it, `values`, `regions` and
`compare` look at it, `judge` hands it to sympy. Trees are immutable, hashable and plain data.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction


class Unreadable(ValueError):
    """The text is no mathematics in this grammar, or past one of its bounds."""


@dataclass(frozen=True, slots=True)
class Node:
    """An operation with its operands.

    `op` is one of: num, sym, const, add, mul, div, pow, neg, call, fact, pm, deg, index, sum,
    matrix, based (scalars); list, set, seq, rel, union, cap, minus, reals, ratio, builder
    (structures); quantity (a scalar with a unit); text. `name` holds the letter, function, relation
    signs, brackets, unit or words; `number` the value of a num; `digits` the significant digits of
    a num that was written as a decimal (0 for an integer).
    """

    op: str
    args: "tuple[Node, ...]" = ()
    name: str = ""
    number: Fraction | None = None
    digits: int = 0


INFINITY = Node("const", name="inf")
REALS = Node("reals", name="R")
EMPTY = Node("set")


def integer(value: int) -> Node:
    """The exact whole number `value` as a node."""
    return Node("num", number=Fraction(value))


def walk(node: Node) -> Iterator[Node]:
    """`node` and every node below it."""
    stack = [node]
    while stack:
        top = stack.pop()
        yield top
        stack.extend(top.args)


def letters(node: Node) -> frozenset[str]:
    """Names of the free letters, and of the unknown functions with a mark before them."""
    found: set[str] = set()
    bound: set[str] = set()
    for part in walk(node):
        if part.op == "sym":
            found.add(part.name)
        elif part.op == "index" or (part.op == "call" and part.name.startswith("?")):
            found.add("?" + part.name)
        elif part.op == "sum":
            bound.add(part.name.partition(" ")[2])
    return frozenset(found - bound)


def decimal_digits(node: Node) -> int:
    """Fewest significant digits among the decimals in `node`; 0 where it has none."""
    return min((n.digits for n in walk(node) if n.op == "num" and n.digits), default=0)


def is_undecidable(node: Node) -> bool:
    """Whether fixed points cannot settle equality: sums, integrals and limits in letters."""
    return any(part.op == "sum" for part in walk(node))


def is_label(node: Node) -> bool:
    """Whether `node` is a single name that an equation may give a value to.

    A letter with or without index or arguments, a capital run such as AB, a size |AB|, an angle, a
    function of a name, a ratio or tuple of names, or words.
    """
    if node.op in ("sym", "index", "text"):
        return True
    if node.op == "call":
        return node.name.startswith("?") or all(is_label(arg) for arg in node.args)
    if node.op == "mul":
        return all(arg.op == "sym" and arg.name[:1].isupper() for arg in node.args)
    if node.op in ("seq", "ratio") or (node.op == "div" and _derivative_or_segments(node)):
        return bool(node.args) and all(is_label(arg) for arg in node.args)
    return False


def _derivative_or_segments(node: Node) -> bool:
    parts = [part.name for part in walk(node) if part.op == "sym"]
    return all(name[:1].isupper() for name in parts) or parts.count("d") == 2


def spelled(node: Node) -> str:
    """A canonical spelling of `node`, for labels and for sorting."""
    inner = ",".join(spelled(arg) for arg in node.args)
    number = "" if node.number is None else str(node.number)[:60]
    if node.op in ("sym", "const"):
        return node.name
    return f"{node.op}{node.name}{number}" + (f"({inner})" if inner else "")
