"""Values of trees, and the equality of two expressions.

Without letters: exact fractions, else mpmath at 50 digits with a relative tolerance (repeated at
400 digits where the two are near). With letters: the same at fixed points derived from the letters'
names, points where a side is not real left out. There is no absolute tolerance. What is past a
bound of `arithmetic` is never computed.
"""

import math
import zlib
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache

from rl_reasoner.answers.equality import functions
from rl_reasoner.answers.equality.arithmetic import (
    DIGITS,
    MAX_FACTORIAL,
    Evaluator,
    Precision,
    TooLarge,
    Undefined,
    Value,
    added,
    matrix_power,
    multiplied,
    one_budget,
    powered,
    shape,
    spend,
)
from rl_reasoner.answers.tree import (
    Node,
    decimal_digits,
    is_undecidable,
    letters,
    matrices_of,
    spelled,
)

MORE_DIGITS = 400
POINTS = 14
MIN_POINTS = 3
ENOUGH_POINTS = 6


class TreeEvaluator(Evaluator):
    """Evaluates trees, a method for each kind of node."""

    def value(self, node: Node) -> Value:
        spend(2)
        method = getattr(self, f"_{node.op}", None)
        if method is None:
            raise Undefined(f"{node.op} has no value")
        return method(node)

    # ------------------------------------------------------------------ leaves

    def _num(self, node: Node) -> Value:
        return node.number

    _based = _num

    def _sym(self, node: Node) -> Value:
        name = node.name.rstrip("\u0307")
        if name not in self.at:
            raise Undefined(f"the letter {name} has no value")
        return self.at[name]

    def _const(self, node: Node) -> Value:
        if node.name in self.at:
            return self.at[node.name]
        if node.name == "inf":
            raise Undefined("infinity is not a number")
        if node.name == "i":
            return self.mp.mpc(0, 1)
        return +self.mp.pi if node.name == "pi" else self.mp.exp(1)

    def _quantity(self, node: Node) -> Value:
        inner = self.value(node.args[0])
        percent = node.name == "percent^1"
        return multiplied(self, inner, Fraction(1, 100)) if percent else inner

    def _deg(self, node: Node) -> Value:
        inner = self.value(node.args[0])
        return self.number(inner) * self.mp.pi / 180 if self.in_angle else inner

    # ------------------------------------------------------------------ arithmetic

    def _add(self, node: Node) -> Value:
        return added(self, [self.value(arg) for arg in node.args])

    def _neg(self, node: Node) -> Value:
        return multiplied(self, self.value(node.args[0]), Fraction(-1))

    def _mul(self, node: Node) -> Value:
        result = self.value(node.args[0])
        for arg in node.args[1:]:
            result = multiplied(self, result, self.value(arg))
        return result

    def _div(self, node: Node) -> Value:
        top, bottom = (self.value(arg) for arg in node.args)
        if isinstance(bottom, tuple):
            raise Undefined("division by a matrix")
        if bottom == 0:
            raise Undefined("division by zero")
        if isinstance(bottom, Fraction):
            return multiplied(self, top, 1 / bottom)
        return multiplied(self, top, 1 / bottom)

    def _ratio(self, node: Node) -> Value:
        if len(node.args) != 2:
            raise Undefined("a ratio of more than two is not a number")
        return self._div(node)

    def _pow(self, node: Node) -> Value:
        base = self.value(node.args[0])
        if isinstance(base, tuple):
            if node.args[1].op == "sym" and node.args[1].name in ("T", "\\top"):
                return tuple(zip(*base, strict=True))
            return matrix_power(self, base, self.value(node.args[1]))
        return powered(self, base, self.value(node.args[1]))

    def _fact(self, node: Node) -> Value:
        inner = self.value(node.args[0])
        if isinstance(inner, Fraction) and inner.denominator == 1:
            if inner < 0:
                raise Undefined("the factorial of a negative number")
            if inner > MAX_FACTORIAL:
                raise TooLarge(f"a factorial beyond {MAX_FACTORIAL}")
            spend(int(inner) ** 2 // 90_000)
            return Fraction(math.factorial(int(inner)))
        return functions.gamma(self, self.number(inner) + 1)

    # ------------------------------------------------------------------ functions

    def _call(self, node: Node) -> Value:
        return functions.applied(self, node)

    def _index(self, node: Node) -> Value:
        name = f"{node.name}_{spelled(node.args[0])}" if node.args[0].op == "sym" else ""
        if name and node.args[0].name.rstrip("\u0307") not in self.at:
            return self.at[name] if name in self.at else point_of(name, 0)
        return self.opaque(f"{node.name}_", [self.value(node.args[0])])

    def opaque(self, name: str, values: list[Value]) -> Fraction:
        """The value of an unknown function, or of a name with an index, at `values`."""
        point = self.at.get(name.strip("?_"))  # else f(1) and f(2) would be two constants
        parts = [name] if point is None else [name, str(point)]
        spend(30 * len(values))
        for value in values:
            number = self.mp.mpc(self.number(value))
            parts += [self.mp.nstr(number.real, 20), self.mp.nstr(number.imag, 20)]
        return point_of("|".join(parts), 1)

    def _sum(self, node: Node) -> Value:
        return functions.summed(self, node)

    def _matrix(self, node: Node) -> Value:
        return tuple(tuple(self.value(entry) for entry in row.args) for row in node.args)


# ---------------------------------------------------------------------- equality


@lru_cache(maxsize=4096)
def point_of(name: str, index: int) -> Fraction:
    """The fixed value of the letter `name` at the `index`-th point, a small fraction.

    Points 0 and 1 lie in (0, 1) and (1, 3); later ones change sign and size, so that a domain like
    x > 0, |x| < 1 or x < -3 has points of its own.
    """
    seed = zlib.crc32(f"{name}/{index}".encode("utf-8", "surrogatepass"))
    unit = Fraction(seed % 997 + 2, 1009)
    sign = -1 if (seed >> 12) & 1 else 1
    if index % 7 in (0, 4):
        return unit
    if index % 7 == 1:
        return 1 + 2 * unit
    if index % 7 == 2:
        return sign * unit
    if index % 7 == 3:
        return sign * (1 + 3 * unit)
    return 4 + 5 * unit if index % 7 == 5 else -(2 + 3 * unit)


def _matrix(name: str, index: int) -> Value:
    """The fixed value of a letter that stands for a matrix."""
    a, b, c, d = (point_of(f"{name}{place}", index) for place in range(4))
    return (a, b), (c, d)


def near(ev: Precision, left: Value, right: Value, exponent: int) -> bool:
    """Whether two numbers agree to a relative 10**-`exponent` (no absolute tolerance)."""
    if isinstance(left, Fraction) and isinstance(right, Fraction):
        return left == right
    a, b = ev.number(left), ev.number(right)
    scale = max(abs(a), abs(b))
    return bool(abs(a - b) <= scale * ev.mp.mpf(10) ** -exponent)


def same_value(ev: Precision, left: Value, right: Value, exponent: int) -> bool:
    """`near` for numbers and, entry by entry, for matrices of one shape."""
    if isinstance(left, tuple) or isinstance(right, tuple):
        return (
            isinstance(left, tuple)
            and isinstance(right, tuple)
            and shape(left) == shape(right)
            and all(
                same_value(ev, a, b, exponent)
                for pair in zip(left, right, strict=True)
                for a, b in zip(*pair, strict=True)
            )
        )
    return near(ev, left, right, exponent)


def constant(node: Node, digits: int = DIGITS) -> Value:
    """The value of a tree without letters; raises `Undefined` or `TooLarge`."""
    try:
        with one_budget():
            return TreeEvaluator({}, digits).value(node)
    except (ZeroDivisionError, OverflowError) as error:
        raise Undefined(str(error)) from error


def samples(left: Node, right: Node) -> Iterator[tuple[TreeEvaluator, Value, Value]]:
    """Both sides at the fixed points where both have a value; without letters, once as often."""
    names = [name.lstrip("?") for name in letters(left) | letters(right)]
    matrices = matrices_of(left, right)
    points = POINTS if names else 1
    for index in range(points):
        ev = TreeEvaluator(
            {n: _matrix(n, index) if n in matrices else point_of(n, index) for n in names}
        )
        try:
            values = ev.value(left), ev.value(right)
        except (Undefined, ZeroDivisionError, OverflowError):
            continue
        yield from [(ev, *values)] * (POINTS // points)


def same_function(left: Node, right: Node) -> bool:
    """Whether two expressions with letters agree at every point where both are real.

    Where they are real at fewer than three points, complex values are compared instead.
    """
    real = others = 0
    others_agree = True
    for ev, a, b in samples(left, right):
        agree = same_value(ev, a, b, 35)
        if ev.is_real(a) and ev.is_real(b):
            if not agree:
                return False
            real += 1
        else:
            others += 1
            others_agree = others_agree and agree
        if real >= ENOUGH_POINTS:
            break
    return real >= MIN_POINTS or (others >= MIN_POINTS and others_agree)


def proportional(left: Node, right: Node) -> int:
    """The sign of the constant c with left = c * right at every fixed point; 0 where none is."""
    ratio: Value = None
    seen = 0
    for ev, a, b in samples(left, right):
        if not (ev.is_real(a) and ev.is_real(b)) or isinstance(a, tuple) or isinstance(b, tuple):
            continue
        if a == 0 or b == 0:
            return 0
        quotient = (
            a / b
            if isinstance(a, Fraction) and isinstance(b, Fraction)
            else (ev.mp.re(ev.number(a)) / ev.mp.re(ev.number(b)))
        )
        if ratio is not None and not same_value(ev, ratio, quotient, 30):
            return 0
        ratio = quotient
        seen += 1
        if seen >= ENOUGH_POINTS:
            break
    return 0 if seen < MIN_POINTS else (1 if ratio > 0 else -1)


def same_constant(left: Node, right: Node) -> bool:
    """Whether two expressions without letters have one value, and the more exactly if near."""
    a, b = constant(left), constant(right)
    ev = TreeEvaluator({})
    if not same_value(ev, a, b, 20):
        return False  # and two equal fractions may have a part that was rounded to 0
    return same_value(
        TreeEvaluator({}, MORE_DIGITS),
        constant(left, MORE_DIGITS),
        constant(right, MORE_DIGITS),
        250,
    )


def approximates(decimal: Node, exact: Node) -> bool:
    """Whether a decimal of at least 8 significant digits is right to a relative 1e-6.

    An exact whole number, real or complex, is never matched by a rounded one.
    """
    if decimal_digits(decimal) < 8 or decimal_digits(exact) or letters(exact):
        return False
    ev = TreeEvaluator({})
    a, b = constant(decimal), constant(exact)
    if isinstance(a, tuple) or isinstance(b, tuple):
        return False
    parts = [b] if isinstance(b, Fraction) else [ev.mp.re(b), ev.mp.im(b)]
    if all(part == int(part) for part in parts if abs(part) < 10**40):
        return False
    return near(ev, ev.number(a), ev.number(b), 6)


def equal(left: Node, right: Node) -> str:
    """How two scalar expressions are equal ("exact value", ...), or an empty string.

    Raises `Undefined` and `TooLarge`. Undecidable parts (sums and integrals in letters) count by
    their structure: equal means equal, unequal means only that this function cannot tell.
    """
    if left == right:
        return "same expression"
    with one_budget():
        return _equal(left, right)


def _equal(left: Node, right: Node) -> str:
    if letters(left) or letters(right) or is_undecidable(left) or is_undecidable(right):
        return "same values at fixed points" if same_function(left, right) else ""
    if same_constant(left, right):
        return "same exact value"
    if approximates(left, right) or approximates(right, left):
        return "decimal right to 1e-6"
    return ""
