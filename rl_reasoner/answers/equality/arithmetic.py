"""Arithmetic on values: exact fractions, mpmath numbers, matrices of either.

Below `functions` and `values`. Every step is bounded, and so is the work of all steps of one
comparison (`one_budget`). A fraction stays exact as long as the operation is closed. mpmath's
precision belongs to a context of its own in each thread.
"""

import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

from rl_reasoner.answers.tree import Node

MAX_BITS = 200_000
MAX_FACTORIAL = 5_000
MAX_EXPONENT = 100_000_000
MAX_WORK = 100_000
"""Work of one comparison, in units of about two microseconds."""
DIGITS = 50

Value = Any
"""A Fraction, an mpmath number, or a tuple of rows of such (a matrix)."""


class Undefined(ValueError):
    """The tree has no value: division by zero, a set where a number should be."""


class TooLarge(ValueError):
    """The value is past a bound; it is never computed."""


class _Contexts(threading.local):
    """One mpmath context a thread and precision."""

    def __init__(self) -> None:
        self.made: dict[int, Any] = {}

    def get(self, digits: int) -> Any:
        """The context of that precision."""
        if digits not in self.made:
            from mpmath.ctx_mp import MPContext

            context = MPContext()
            context.dps = digits
            self.made[digits] = context
        return self.made[digits]


_CONTEXTS = _Contexts()


class _Work(threading.local):
    """What is left of this thread's budget; None where none has begun."""

    left: int | None = None


_WORK = _Work()


@contextmanager
def one_budget() -> Iterator[None]:
    """All evaluation inside shares one `MAX_WORK`; inside another budget, that one goes on."""
    if _WORK.left is not None:
        yield
        return
    _WORK.left = MAX_WORK
    try:
        yield
    finally:
        _WORK.left = None


def spend(units: int) -> None:
    """Take `units` of the budget; raises `TooLarge` once it is used up."""
    if _WORK.left is not None:
        _WORK.left -= units
        if _WORK.left < 0:
            raise TooLarge("an evaluation of too many steps")


def spend_on_fractions(left: Fraction, right: Fraction, per_unit: int) -> None:
    """Pay for common divisors, which are quadratic, and for digits, `per_unit` bits a unit."""
    a, b = left.numerator.bit_length(), left.denominator.bit_length()
    c, d = right.numerator.bit_length(), right.denominator.bit_length()
    divisors = a * d + c * b + b * d if b > 1 or d > 1 else 0
    spend(4 + (divisors >> 20) + (a + b + c + d) // per_unit)


class Precision:
    """A number of decimal digits, and mpmath at that precision."""

    def __init__(self, digits: int = DIGITS) -> None:
        self.digits = digits
        self.rate = max(1, digits // 40)  # what a function costs, as a multiple of that at few

    @property
    def mp(self) -> Any:
        """mpmath's context of this thread and precision."""
        return _CONTEXTS.get(self.digits)

    def number(self, value: Value) -> Any:
        """`value` as an mpmath number."""
        if isinstance(value, Fraction):
            return self.mp.mpf(value.numerator) / value.denominator
        if isinstance(value, tuple):
            raise Undefined("a matrix where a number should be")
        return value

    def is_real(self, value: Value) -> bool:
        """Whether a value has no imaginary part beyond rounding."""
        if isinstance(value, tuple):
            return all(self.is_real(entry) for row in value for entry in row)
        if isinstance(value, Fraction):
            return True
        size = abs(value)
        limit = size * self.mp.mpf(10) ** -30
        return bool(self.mp.isfinite(size) and abs(self.mp.im(value)) <= limit)


class Evaluator(Precision, ABC):
    """Values of trees at one point and precision, as `functions` need them (`values` makes them).

    `at` gives the letters their values; `in_angle` is set inside the argument of sin and the like.
    """

    def __init__(self, at: Mapping[str, Value], digits: int = DIGITS) -> None:
        super().__init__(digits)
        self.at = dict(at)
        self.in_angle = False

    @abstractmethod
    def value(self, node: Node) -> Value:
        """The value of `node`; raises `Undefined` and `TooLarge`."""

    @abstractmethod
    def opaque(self, name: str, values: list[Value]) -> Fraction:
        """A pseudo-random value for an unknown function, the same for equal arguments."""


def added(ev: Precision, terms: list[Value]) -> Value:
    """The sum of `terms`; a result below the rounding of its terms is exactly 0."""
    if any(isinstance(term, tuple) for term in terms):
        if not all(isinstance(term, tuple) and shape(term) == shape(terms[0]) for term in terms):
            raise Undefined("matrices of different shapes")
        return tuple(
            tuple(added(ev, list(entries)) for entries in zip(*rows, strict=True))
            for rows in zip(*terms, strict=True)
        )
    if all(isinstance(term, Fraction) for term in terms):
        exact = Fraction(0)
        for term in terms:
            spend_on_fractions(exact, term, 2_000)
            exact = bounded(exact + term)
        return exact
    spend(len(terms))
    numbers = [ev.number(term) for term in terms]
    total = ev.mp.fsum(numbers)
    largest = max(abs(number) for number in numbers)
    return Fraction(0) if abs(total) <= largest * ev.mp.mpf(10) ** (8 - ev.digits) else total


def multiplied(ev: Precision, left: Value, right: Value) -> Value:
    """The product of two numbers, a number and a matrix, or two matrices."""
    if isinstance(left, tuple) and isinstance(right, tuple):
        if shape(left)[1] != shape(right)[0]:
            raise Undefined("matrices that cannot be multiplied")
        columns = list(zip(*right, strict=True))
        return tuple(
            tuple(
                added(ev, [multiplied(ev, a, b) for a, b in zip(row, column, strict=True)])
                for column in columns
            )
            for row in left
        )
    if isinstance(right, tuple):
        left, right = right, left
    if isinstance(left, tuple):
        return tuple(tuple(multiplied(ev, entry, right) for entry in row) for row in left)
    if isinstance(left, Fraction) and isinstance(right, Fraction):
        spend_on_fractions(left, right, 150)
        return bounded(left * right)
    spend(2)
    if left == 0 or right == 0:
        return Fraction(0)
    return ev.number(left) * ev.number(right)


def shape(matrix: Value) -> tuple[int, int]:
    """Rows and columns of a matrix value."""
    return len(matrix), len(matrix[0])


def bounded(value: Fraction) -> Fraction:
    """`value` unless its numerator or denominator is past `MAX_BITS`."""
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        raise TooLarge(f"a number of more than {MAX_BITS} bits")
    return value


def matrix_power(ev: Precision, base: Value, times: Value) -> Value:
    """A whole power of a square matrix."""
    square = shape(base)[0] == shape(base)[1]
    if times == -1 and shape(base) == (2, 2):
        return _inverse(ev, base)
    if not (isinstance(times, Fraction) and times.denominator == 1 and 1 <= times <= 64 and square):
        raise Undefined("a power of a matrix that is not computed here")
    result = base
    for _ in range(int(times) - 1):
        result = multiplied(ev, result, base)
    return result


def _inverse(ev: Precision, matrix: Value) -> Value:
    (a, b), (c, d) = matrix
    minus = multiplied(ev, Fraction(-1), multiplied(ev, b, c))
    size = added(ev, [multiplied(ev, a, d), minus])
    if size == 0:
        raise Undefined("the inverse of a matrix that has none")
    turned = ((d, multiplied(ev, Fraction(-1), b)), (multiplied(ev, Fraction(-1), c), a))
    return multiplied(ev, powered(ev, size, Fraction(-1)), turned)


def powered(ev: Precision, base: Value, exponent: Value) -> Value:
    """`base ** exponent`: exact where possible, the real root for odd roots of negatives."""
    if isinstance(exponent, tuple):
        raise Undefined("a matrix as exponent")
    if isinstance(base, Fraction) and isinstance(exponent, Fraction):
        exact = exact_power(base, exponent)
        if exact is not None:
            return exact
        if base < 0 and exponent.denominator % 2 and exponent.denominator > 1:
            root = ev.mp.exp(ev.mp.log(ev.number(-base)) * ev.number(exponent))
            return -root if exponent.numerator % 2 else root
    if base == 0:
        if ev.number(exponent).real > 0:
            return Fraction(0)
        raise Undefined("zero to a power that is not positive")
    spend(20 * ev.rate)
    base, power = ev.number(base), ev.number(exponent)
    if abs(power) * (1 + abs(ev.mp.log(abs(base)))) > MAX_EXPONENT:
        raise TooLarge("an exponent past its bound")
    if isinstance(exponent, Fraction) and exponent.denominator == 1:
        return base ** int(exponent)
    if isinstance(exponent, Fraction) and exponent.denominator % 2 and _negative_real(ev, base):
        root = ev.mp.exp(ev.mp.log(-ev.mp.re(base)) * power)
        return -root if exponent.numerator % 2 else root
    return ev.mp.exp(ev.mp.log(base) * power)


def _negative_real(ev: Precision, value: Any) -> bool:
    return bool(ev.mp.im(value) == 0 and ev.mp.re(value) < 0)


def exact_power(base: Fraction, exponent: Fraction) -> Fraction | None:
    """The rational value of a power, or None where it is irrational (or never needed exactly)."""
    if exponent.denominator == 1:
        if base in (0, 1, -1):
            if base == 0 and exponent < 0:
                raise Undefined("zero to a negative power")
            return (
                base ** int(exponent % 2 if base == -1 else exponent)
                if base
                else Fraction(exponent == 0)
            )
        bits = max(base.numerator.bit_length(), base.denominator.bit_length())
        if abs(exponent) * bits > MAX_BITS:
            if base.denominator == 1 or base.numerator in (1, -1):
                raise TooLarge(f"a power of more than {MAX_BITS} bits")
            return None
        spend(int(abs(exponent)) * bits // 200)
        return Fraction(base ** int(exponent))
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if base < 0 or exponent.denominator > 64 or bits > 4096:
        return None
    if exponent.denominator > 2:
        spend(2 * bits // exponent.denominator * (1 + bits // 500))
    top = _root(base.numerator, exponent.denominator)
    bottom = _root(base.denominator, exponent.denominator)
    if top is None or bottom is None:
        return None
    return exact_power(Fraction(top, bottom), Fraction(exponent.numerator))


def _root(value: int, degree: int) -> int | None:
    """The whole `degree`-th root of `value`, or None."""
    if degree == 2:
        root = math.isqrt(value)
        return root if root * root == value else None
    if value in (0, 1):
        return value
    low, high = 1, 1 << (value.bit_length() // degree + 1)
    while low < high:
        middle = (low + high) // 2
        if middle**degree < value:
            low = middle + 1
        else:
            high = middle
    return low if low**degree == value else None
