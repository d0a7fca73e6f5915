"""The small tree an answer is read into: making it, and questions that need no arithmetic.

One node type with an operation name; `lexer` and `parser` build it, `values`, `regions` and
`compare` look at it, `judge` hands it to sympy. Trees are immutable, hashable and plain data.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import gcd


class Unreadable(ValueError):
    """The text is not mathematics in this grammar, or past one of its bounds."""


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


def names(text: str) -> frozenset[str]:
    """The words of `text`, for tables of names."""
    return frozenset(text.split())


def integer(value: int) -> Node:
    """The exact whole number `value` as a node."""
    return Node("num", number=Fraction(value))


def decimal_node(text: str) -> Node:
    """The exact node of a number as the lexer gives it: `12`, `.5`, `3.2e5`."""
    if len(text) > 3000:
        raise Unreadable("a number of more than 3000 digits")
    if text.isdecimal():
        return Node("num", number=Fraction(int(text)))
    mantissa, _, exponent = text.partition("e")
    if exponent and abs(int(exponent)) > 3000:
        raise Unreadable("a power of ten beyond 3000")
    whole, point, fraction = mantissa.partition(".")
    number = Fraction(int(whole or "0") * 10 ** len(fraction) + int(fraction or "0"), 1)
    number *= Fraction(10) ** (int(exponent or "0") - len(fraction))
    digits = len((whole + fraction).lstrip("0")) if fraction or exponent else 0
    return Node("num", number=number, digits=digits if point or exponent else 0)


def repeating_node(text: str) -> Node:
    """The exact node of a repeating decimal `whole.fixed|cycle`."""
    head, _, cycle = text.partition("|")
    whole, _, fixed = head.partition(".")
    if len(text) > 300:
        raise Unreadable("a repeating decimal of more than 300 digits")
    nines = (10 ** len(cycle) - 1) * 10 ** len(fixed)
    number = Fraction(int(whole + fixed)) / 10 ** len(fixed) + Fraction(int(cycle), nines)
    return Node("num", number=number)


def add(*terms: Node) -> Node:
    """The sum of `terms`, nested sums made flat."""
    flat = [part for term in terms for part in (term.args if term.op == "add" else (term,))]
    return flat[0] if len(flat) == 1 else Node("add", tuple(flat))


def multiply(*factors: Node) -> Node:
    """The product of `factors`, nested products made flat."""
    flat = [
        part for factor in factors for part in (factor.args if factor.op == "mul" else (factor,))
    ]
    return flat[0] if len(flat) == 1 else Node("mul", tuple(flat))


def negative(node: Node) -> Node:
    """Minus `node`; the sign of a number goes into the number."""
    if node.op == "num" and node.number is not None:
        return Node("num", number=-node.number, digits=node.digits)
    return Node("neg", (node,))


def walk(node: Node) -> Iterator[Node]:
    """`node` and every node below it."""
    stack = [node]
    while stack:
        top = stack.pop()
        yield top
        stack.extend(top.args)


def depth(node: Node) -> int:
    """Number of levels of `node`, found without recursion."""
    level, deepest = [node], 0
    while level:
        level = [arg for part in level for arg in part.args]
        deepest += 1
    return deepest


def letters(node: Node) -> frozenset[str]:
    """Names of the free letters, and of the unknown functions with a mark before them."""
    letters_in: set[str] = set()
    bound: set[str] = set()
    for part in walk(node):
        if part.op == "sym":
            letters_in.add(part.name)
        elif part.op == "index" or (part.op == "call" and part.name.startswith("?")):
            letters_in.add("?" + part.name)
        elif part.op == "sum":
            bound.add(part.name.partition(" ")[2])
    return frozenset(letters_in - bound)


def decimal_digits(node: Node) -> int:
    """Fewest significant digits among the decimals in `node`; 0 where it has none."""
    return min((n.digits for n in walk(node) if n.op == "num" and n.digits), default=0)


def is_undecidable(node: Node) -> bool:
    """Whether fixed points cannot settle equality: sums, integrals and limits in letters."""
    return any(part.op == "sum" for part in walk(node))


def is_label(node: Node) -> bool:
    """Whether `node` is a single name that an equation may give a value to.

    A letter with or without index or arguments, a capital run such as AB, a size |AB|, an angle, a
    function of a name, a derivative, a product of vectors, a ratio or tuple of names, or words.
    """
    if node.op in ("sym", "index", "text"):
        return True
    if node.op == "call":
        return node.name.startswith("?") or all(is_label(arg) for arg in node.args)
    if node.op == "mul":
        if len(node.args) == 2 and node.args[0].name in ("Delta", "\\nabla"):
            return is_label(node.args[1])
        return all(
            arg.op == "sym" and (arg.name[:1].isupper() or arg.name.startswith("vec "))
            for arg in node.args
        )
    if node.op in ("seq", "ratio", "union", "cap") or (node.op == "div" and _of_segments(node)):
        return bool(node.args) and all(is_label(arg) for arg in node.args)
    return is_derivative(node)


def matrices_of(left: Node, right: Node) -> frozenset[str]:
    """The capitals of two expressions that are read as matrices, whose factors do not commute.

    They are where two of them meet and one is inverted or transposed, `AB^{-1}`. A quotient, or
    the dimensions M, L and T, tell of numbers.
    """
    parts = [*walk(left), *walk(right)]
    capitals = {p.name for p in parts if p.op == "sym" and len(p.name) == 1 and p.name.isupper()}
    if len(capitals) < 2 or not any(map(_turns_a_matrix, parts)):
        return frozenset()
    below = [node for part in parts if part.op == "div" for node in walk(part.args[1])]
    return frozenset() if any(node.name in capitals for node in below) else frozenset(capitals)


def _turns_a_matrix(node: Node) -> bool:
    if node.op != "pow":
        return False
    base, exponent = node.args
    factors = base.args if base.op == "mul" else (base,)
    named = all(f.op == "sym" and len(f.name) == 1 and f.name.isupper() for f in factors)
    inverted = exponent.number == -1 or exponent.name in ("T", "\\top")
    return named and inverted and factors[0].name not in ("M", "L", "T")


def is_derivative(node: Node) -> bool:
    """Whether `node` is `dy/dx` of any order, of one name by another."""
    if node.op != "div":
        return False
    tops, bottoms = (part.args if part.op == "mul" else (part,) for part in node.args)
    top, bottom = (part[0].args[0] if part[0].op == "pow" else part[0] for part in (tops, bottoms))
    marks = top.name == bottom.name and top.name in ("d", "\\partial")
    return marks and len(tops) == 2 and len(bottoms) > 1 and tops[1].op in ("sym", "index", "call")


def is_worked_out(node: Node) -> bool:
    """Whether `node` is numbers with nothing left to calculate: `744`, `$7.50`, `-1/2`, `(1, 3e5)`.

    A fraction of whole numbers counts in lowest terms only, so `100/4` does not. Of a chain of
    equal parts one worked out is enough: `900 - 156 = 744`. Of an inequality, a list, a tuple or a
    set every part is to be, names aside.
    """
    if node.op == "rel" and set(node.name.split()) == {"="}:
        return any(map(is_worked_out, node.args))
    if node.args and (node.op in _OF_PARTS or _is_named_point(node)):
        worked_out = [is_worked_out(part) for part in node.args]
        told = zip(node.args, worked_out, strict=True)
        return any(worked_out) and all(done or is_label(part) for part, done in told)
    if node.op in ("neg", "quantity") or (node.op == "pm" and len(node.args) == 1):
        return is_worked_out(node.args[0])
    numbers = [part.number for part in node.args if part.op == "num" and part.number is not None]
    if node.op == "div" and len(numbers) == 2 and all(n.denominator == 1 for n in numbers):
        return abs(numbers[1]) > 1 and gcd(int(numbers[0]), int(numbers[1])) == 1
    if node.op == "mul" and len(node.args) == 2 and len(numbers) == 1:
        power = next(part for part in node.args if part.op != "num")
        exponents = [part.op == "num" for part in power.args]
        return power.op == "pow" and all(exponents) and power.args[0].number == 10
    return node.op in ("num", "const", "reals")


_OF_PARTS = names("rel list seq set matrix union minus builder")


def _is_named_point(node: Node) -> bool:
    """Whether `node` is `P(1, 2)`, which is read as a product or as a function of two."""
    if node.op == "mul":
        return len(node.args) == 2 and node.args[1].op == "seq"
    return node.op == "call" and node.name.startswith("?") and len(node.args) > 1


def _of_segments(node: Node) -> bool:
    return all(part.name[:1].isupper() for part in walk(node) if part.op == "sym")


def spelled(node: Node) -> str:
    """A canonical spelling of `node`, for labels and for sorting."""
    inner = ",".join(spelled(arg) for arg in node.args)
    number = "" if node.number is None else str(node.number)[:60]
    if node.op in ("sym", "const"):
        return node.name
    return f"{node.op}{node.name}{number}" + (f"({inner})" if inner else "")
