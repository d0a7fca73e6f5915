"""The calculator: exact arithmetic on text, by a parser of its own, bounded in every direction.

Integers, decimals and fractions, `+ - * / // % **` and parentheses; all values are exact fractions.
Nothing is evaluated by Python, so a call costs microseconds and runs in place. What is wrong with
an expression is an exception whose text is for the policy.
"""

from decimal import Context, Decimal
from fractions import Fraction

from rl_reasoner.tools.tool import tool

MOST_EXPRESSION = 1000
_MOST_DIGITS = 1000
_MOST_DEPTH = 50
_MOST_BITS = _MOST_DIGITS * 3322 // 1000  # of 10 ** _MOST_DIGITS
_LONG = 40
_ABOUT = Context(prec=12)
_SIGNS = ("**", "//", "+", "-", "*", "/", "%", "(", ")")
_WRITTEN = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-", "^": "\0"})


def calculate(expression: str) -> Fraction:
    """The exact value of an expression.

    Raises ValueError where it is none or too long, ZeroDivisionError, and OverflowError for values
    of more than `_MOST_DIGITS` digits.
    """
    if len(expression) > MOST_EXPRESSION:
        raise ValueError(f"the expression has more than {MOST_EXPRESSION:,} characters")
    reader = _Reader(expression.translate(_WRITTEN).replace("\0", "**"))
    value = reader.sum(0)
    if reader.here:
        raise ValueError(f"expected an operator, found {reader.here!r}")
    return value


@tool
def calculator(expression: str) -> str:
    """Calculate an arithmetic expression exactly.

    Args:
        expression: Numbers, + - * / // % ** and parentheses, such as (17 + 4) * 23 / 7.
    """
    return value_text(calculate(expression))


calculator.bounded = True


def value_text(value: Fraction) -> str:
    """A value as text: an integer, an exact decimal, or a fraction and about what it is."""
    if value.denominator == 1:
        return str(value.numerator)
    rest, twos, fives = value.denominator, 0, 0
    while rest % 2 == 0:
        rest, twos = rest // 2, twos + 1
    while rest % 5 == 0:
        rest, fives = rest // 5, fives + 1
    places = max(twos, fives)
    if rest == 1 and places <= _LONG:
        digits = str(abs(value.numerator) * 10**places // value.denominator).zfill(places + 1)
        return f"{'-' if value < 0 else ''}{digits[:-places]}.{digits[-places:]}"
    about = f"about {_ABOUT.divide(Decimal(value.numerator), Decimal(value.denominator))}"
    fraction = f"{value.numerator}/{value.denominator}"
    return about if len(fraction) > _LONG else f"{fraction}, {about}"


class _Reader:
    """Reads an expression from left to right, and calculates as it goes."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.here = ""  # the sign or number that is read next; empty at the end
        self._advance()

    def sum(self, depth: int) -> Fraction:
        value = self._product(depth)
        while (sign := self.here) in ("+", "-"):
            self._advance()
            other = self._product(depth)
            value = _bounded(value + other if sign == "+" else value - other)
        return value

    def _product(self, depth: int) -> Fraction:
        value = self._signed(depth)
        while (sign := self.here) in ("*", "/", "//", "%"):
            self._advance()
            other = self._signed(depth)
            if sign != "*" and not other:
                raise ZeroDivisionError("division by zero")
            if sign == "*":
                value = value * other
            elif sign == "/":
                value = value / other
            else:
                value = Fraction(value // other) if sign == "//" else value % other
            _bounded(value)
        return value

    def _signed(self, depth: int) -> Fraction:
        if depth > _MOST_DEPTH:
            raise ValueError(f"more than {_MOST_DEPTH} parentheses or signs within each other")
        if self.here in ("+", "-"):
            sign = self.here
            self._advance()
            value = self._signed(depth + 1)
            return -value if sign == "-" else value
        base = self._atom(depth)
        if self.here != "**":
            return base
        self._advance()
        return _power(base, self._signed(depth + 1))

    def _atom(self, depth: int) -> Fraction:
        found = self.here
        if found == "(":
            self._advance()
            value = self.sum(depth + 1)
            if self.here != ")":
                raise ValueError(f"expected ')', found {self.here or 'the end'!r}")
            self._advance()
            return value
        if not found or found in _SIGNS:
            raise ValueError(f"expected a number, found {found or 'the end'!r}")
        self._advance()
        return _number(found)

    def _advance(self) -> None:
        """Read the next sign or number into `here`."""
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1
        rest = self.text[self.at : self.at + 2]
        self.here = next((sign for sign in _SIGNS if rest.startswith(sign)), "")
        if not self.here and rest:
            end = self.at
            while end < len(self.text) and _in_number(self.text, end):
                end += 1
            if end == self.at:
                raise ValueError(f"{self.text[self.at]!r} is not part of a calculation")
            self.here = self.text[self.at : end]
        self.at += len(self.here)


def _in_number(text: str, at: int) -> bool:
    """Whether the character belongs to a number: also the sign of an exponent."""
    one = text[at]
    if one in "+-":
        return at > 0 and text[at - 1] in "eE"
    return one in "0123456789.eE"


def _number(text: str) -> Fraction:
    body, _, exponent = text.lower().partition("e")
    whole, _, decimals = body.partition(".")
    parts = [whole + decimals, exponent.lstrip("+-") if "e" in text.lower() else "0"]
    if not all(part.isdecimal() for part in parts) or body.count(".") > 1:
        raise ValueError(f"{text[:_LONG]!r} is not a number")
    if len(parts[1]) > 4:
        raise OverflowError(f"a number of more than {_MOST_DIGITS:,} digits")
    shift = int(exponent or "0") - len(decimals)
    if abs(shift) > _MOST_DIGITS:
        raise OverflowError(f"a number of more than {_MOST_DIGITS:,} digits")
    return _bounded(Fraction(int(parts[0])) * Fraction(10) ** shift)


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        raise ValueError("an exponent must be a whole number")
    if not base and exponent < 0:
        raise ZeroDivisionError("division by zero")
    bits = max(base.numerator.bit_length(), base.denominator.bit_length()) - 1
    if bits * abs(exponent) > _MOST_BITS:
        raise OverflowError(f"a number of more than {_MOST_DIGITS:,} digits")
    if base in (0, 1, -1):  # whatever the exponent: it may be huge
        odd = exponent.numerator % 2
        return base if odd else Fraction(int(bool(base) or not exponent))
    return _bounded(base**exponent.numerator)


def _bounded(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > _MOST_BITS:
        raise OverflowError(f"a number of more than {_MOST_DIGITS:,} digits")
    return value
