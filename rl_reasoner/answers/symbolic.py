"""Sympy's second opinion on two expressions, inside a worker process only.

Trees are turned into sympy objects one operation at a time (never from text), behind bounds on
size, letters, exponents and factorials. The letters of counting (k, m, n, ...) stand for positive
whole numbers, others for real ones. Sympy may only find equality: what it cannot show is not equal.
"""

from collections.abc import Callable
from functools import reduce
from typing import Any

from rl_reasoner.answers.tree import Node, letters, names, walk

MAX_NODES = 150
MAX_LETTERS = 6
MAX_POWER = 200
MAX_SYMBOLIC_FACTORIAL = 500
_COUNTING = frozenset("jklmnpqN")


class Unsuited(ValueError):
    """The tree has a part that is not handed to sympy."""


def admissible(left: Node, right: Node) -> bool:
    """Whether both sides are inside the bounds for sympy, and name no unknown function."""
    nodes = [*walk(left), *walk(right)]
    if any(node.op == "index" or node.name.startswith("?") for node in nodes):
        return False  # their structure has been compared already
    if len(nodes) > MAX_NODES or len(letters(left) | letters(right)) > MAX_LETTERS:
        return False
    for node in nodes:
        kind = "fact" if node.name == "factorial2" else node.op
        limit = {"pow": MAX_POWER, "fact": MAX_SYMBOLIC_FACTORIAL}.get(kind)
        numbers = [abs(n.number) for n in walk(node) if n.number is not None] if limit else []
        if limit and any(number > limit for number in numbers):
            return False
    return True


def symbolically_equal(left: Node, right: Node) -> bool:
    """Whether sympy shows that the two are one value; False also where it cannot tell.

    May take long and much memory: call it in a worker. Raises `Unsuited` and sympy's own errors.
    """
    import sympy

    difference = to_sympy(left) - to_sympy(right)
    for step in (lambda e: e, lambda e: e.doit(), sympy.simplify, _gathered):
        difference = step(difference)
        if difference == 0:
            return True
    return False


def _gathered(expression: Any) -> Any:
    import sympy

    return sympy.simplify(sympy.combsimp(sympy.expand_func(expression.rewrite(sympy.gamma))))


def to_sympy(node: Node) -> Any:
    """The sympy object of a scalar tree."""
    import sympy

    if node.number is not None:
        return sympy.Rational(node.number.numerator, node.number.denominator)
    if node.op == "sym":
        return symbol(node.name)
    if node.op == "const":
        return {"pi": sympy.pi, "e": sympy.E, "i": sympy.I, "inf": sympy.oo}[node.name]
    if node.op == "sum":
        return large(node)
    parts = [to_sympy(arg) for arg in node.args]
    if node.op == "call":
        return _called(node.name, parts)
    if node.op in _OPERATIONS:
        return _OPERATIONS[node.op](*parts)
    raise Unsuited(node.op)


def symbol(name: str) -> Any:
    """A letter as a symbol: whole and positive for the letters of counting, else real."""
    import sympy

    if name[:1] in _COUNTING:
        return sympy.Symbol(name, integer=True, positive=True)
    return sympy.Symbol(name, real=True)


def large(node: Node) -> Any:
    """A sum, product, integral or limit."""
    import sympy

    kind, _, name = node.name.partition(" ")
    body, lower, upper = node.args
    variable = symbol(name)
    inside = to_sympy(body)
    if name == "i":
        inside = inside.subs(sympy.I, variable)
    if kind == "lim":
        return sympy.limit(inside, variable, to_sympy(lower))
    if lower.op == "set" or upper.op == "set":
        if kind == "int":
            return sympy.Integral(inside, variable)
        raise Unsuited("a sum without bounds")
    bounds = (variable, to_sympy(lower), to_sympy(upper))
    made = {"sum": sympy.Sum, "prod": sympy.Product, "int": sympy.Integral}[kind]
    return made(inside, bounds)


_OPERATIONS: dict[str, Callable[..., Any]] = {
    "add": lambda *parts: reduce(lambda a, b: a + b, parts),
    "mul": lambda *parts: reduce(lambda a, b: a * b, parts),
    "neg": lambda part: -part,
    "div": lambda top, bottom: top / bottom,
    "pow": lambda base, exponent: base**exponent,
    "fact": lambda part: _called("factorial", [part]),
}
_NAMES = {
    "arcsin": "asin", "arccos": "acos", "arctan": "atan", "ln": "log", "abs": "Abs", "binom":
    "binomial", "ceil": "ceiling", "mod": "Mod", "max": "Max", "min": "Min",
}  # fmt: skip
_KNOWN = names(
    "asin acos atan sin cos tan cot sec csc sinh cosh tanh log exp Abs binomial floor ceiling Mod"
    " Max Min factorial factorial2 gcd lcm sign erf"
)


def _called(name: str, parts: list[Any]) -> Any:
    import sympy

    name = _NAMES.get(name, name)
    if name not in _KNOWN:
        raise Unsuited(name)
    return getattr(sympy, name)(*parts)


# ---------------------------------------------------------------------- trees over a pipe


def pack_tree(node: Node) -> list[Any]:
    """`node` as plain lists for JSON."""
    number = node.number
    return [
        node.op,
        [pack_tree(arg) for arg in node.args],
        node.name,
        None if number is None else [str(number.numerator), str(number.denominator)],
    ]


def unpack_tree(data: list[Any]) -> Node:
    """The node that `pack_tree` made lists of."""
    from fractions import Fraction

    op, args, name, number = data
    return Node(
        op,
        tuple(unpack_tree(arg) for arg in args),
        name,
        None if number is None else Fraction(int(number[0]), int(number[1])),
    )
