"""Values of named functions and large operators, for `arithmetic.Evaluator`.

Whole-number functions are exact on rationals; the others go through mpmath, each behind a bound on
its argument. An unknown function gets a pseudo-random value that depends on its name and arguments,
so that f(x) equals f(x) and nothing else.
"""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from rl_reasoner.answers.equality.arithmetic import (
    MAX_EXPONENT,
    MAX_FACTORIAL,
    Evaluator,
    TooLarge,
    Undefined,
    Value,
    added,
    bounded,
    multiplied,
    spend,
    spend_on_fractions,
)
from rl_reasoner.answers.tree import Node, names

MAX_TERMS = 1_000
_TRIGONOMETRIC = names("sin cos tan cot sec csc")
_COSTLY = {"erf": 200, "det": 1}
_PLAIN = {
    "arcsin": "asin", "arccos": "acos", "arctan": "atan", "arccot": "acot", "arcsec": "asec",
    "arccsc": "acsc", "arcsinh": "asinh", "arccosh": "acosh", "arctanh": "atanh", "sinh": "sinh",
    "cosh": "cosh", "tanh": "tanh", "coth": "coth", "sech": "sech", "csch": "csch", "erf": "erf",
}  # fmt: skip


def applied(ev: Evaluator, node: Node) -> Value:
    """The value of the function call `node`; raises `Undefined` and `TooLarge`."""
    name = node.name
    spend(_COSTLY.get(name, 10) * ev.rate)
    if name.startswith("?"):
        return ev.opaque(name, [ev.value(arg) for arg in node.args])
    if name in _TRIGONOMETRIC:
        return trigonometric(ev, name, node.args)
    values = [ev.value(arg) for arg in node.args]
    if name == "det":
        return determinant(ev, values[0])
    if any(isinstance(value, tuple) for value in values):
        raise Undefined(f"{name} of a matrix")
    if name in _WHOLE:
        return _WHOLE[name](ev, values)
    if len(values) != 1:
        raise Undefined(f"{name} of {len(values)} arguments")
    if name in _SINGLE:
        return _SINGLE[name](ev, values[0])
    if name in _PLAIN:
        return elementary(ev, name, values[0])
    raise Undefined(f"the function {name}")


def trigonometric(ev: Evaluator, name: str, args: tuple[Node, ...]) -> Value:
    """sin, cos and the like; degrees inside the argument are turned into radians."""
    if len(args) != 1:
        raise Undefined(f"{name} of {len(args)} arguments")
    outer, ev.in_angle = ev.in_angle, True
    degrees = args[0].op == "quantity" and args[0].name == "degree^1"
    angle = ev.number(ev.value(args[0]))
    ev.in_angle = outer
    if degrees:
        angle = angle * ev.mp.pi / 180
    if abs(angle) > 10**12:
        raise TooLarge("the angle of a trigonometric function")
    below = {"tan": "cos", "sec": "cos", "cot": "sin", "csc": "sin"}.get(name)
    if below and abs(getattr(ev.mp, below)(angle)) < ev.mp.mpf(10) ** (6 - ev.digits):
        raise Undefined(f"a pole of {name}")
    value = getattr(ev.mp, name)(angle)
    return Fraction(0) if abs(value) < ev.mp.mpf(10) ** (6 - ev.digits) else value


def elementary(ev: Evaluator, name: str, value: Value) -> Value:
    """An inverse or hyperbolic function."""
    number = ev.number(value)
    if abs(number) > MAX_EXPONENT:
        raise TooLarge(f"the argument of {name}")
    return getattr(ev.mp, _PLAIN[name])(number)


def exponential(ev: Evaluator, value: Value) -> Value:
    """e to the power of `value`."""
    number = ev.number(value)
    if abs(number) > MAX_EXPONENT:
        raise TooLarge("the argument of exp")
    return ev.mp.exp(number)


def logarithm(ev: Evaluator, values: list[Value]) -> Value:
    """The natural logarithm, or that to the base in the second place."""
    if len(values) > 2 or values[0] == 0 or (values[-1] in (0, 1) and len(values) == 2):
        raise Undefined("a logarithm without value")
    top = ev.mp.log(ev.number(values[0]))
    return top if len(values) == 1 else top / ev.mp.log(ev.number(values[1]))


def rounded(direction: str) -> Callable[[Evaluator, Value], Value]:
    """The floor or ceiling function."""

    def apply(ev: Evaluator, value: Value) -> Value:
        """The rounded value, exact on fractions."""
        if isinstance(value, Fraction):
            return Fraction(math.floor(value) if direction == "floor" else math.ceil(value))
        number = ev.mp.re(value) if ev.is_real(value) else value
        whole = ev.mp.nint(number)
        if abs(number - whole) < ev.mp.mpf(10) ** (10 - ev.digits) * (1 + abs(whole)):
            return whole
        return getattr(ev.mp, direction if direction == "floor" else "ceil")(number)

    return apply


def gamma(ev: Evaluator, argument: Any) -> Any:
    """The gamma function away from its poles."""
    if abs(argument) > MAX_FACTORIAL:
        raise TooLarge(f"a gamma function beyond {MAX_FACTORIAL}")
    if argument == ev.mp.floor(argument.real) and argument.real <= 0:
        raise Undefined("a pole of the gamma function")
    spend(50 * ev.rate)
    return ev.mp.gamma(argument)


def binomial(ev: Evaluator, values: list[Value]) -> Value:
    """n over k; exact for whole numbers, through the gamma function otherwise."""
    if len(values) != 2:
        raise Undefined("a binomial coefficient of two numbers")
    n, k = values
    whole = all(isinstance(v, Fraction) and v.denominator == 1 for v in values)
    if whole and n >= 0:
        if not 0 <= k <= n:
            return Fraction(0)
        if min(k, n - k) > MAX_FACTORIAL or n > MAX_FACTORIAL**2:
            raise TooLarge("a binomial coefficient past its bound")
        spend(int(min(k, n - k)) ** 2 // 10_000)
        return Fraction(math.comb(int(n), int(k)))
    a, b = ev.number(n), ev.number(k)
    return gamma(ev, a + 1) / (gamma(ev, b + 1) * gamma(ev, a - b + 1))


def whole_numbers(values: list[Value], name: str) -> list[int]:
    """`values` as integers; raises `Undefined` where one is none."""
    if not all(isinstance(value, Fraction) and value.denominator == 1 for value in values):
        raise Undefined(f"{name} of something that is not a whole number")
    return [int(value) for value in values]


def divisor(ev: Evaluator, values: list[Value]) -> Value:
    """The greatest common divisor of whole numbers."""
    result = 0
    for number in whole_numbers(values, "gcd"):
        spend(1 + (result.bit_length() * number.bit_length() >> 20))
        result = math.gcd(result, number)
    return Fraction(result)


def multiple(ev: Evaluator, values: list[Value]) -> Value:
    """The least common multiple of whole numbers."""
    result = Fraction(1)
    for number in whole_numbers(values, "lcm"):
        spend(1 + (result.numerator.bit_length() * number.bit_length() >> 20))
        result = bounded(Fraction(math.lcm(result.numerator, number)))
    return result


def double_factorial(ev: Evaluator, values: list[Value]) -> Value:
    """n!! = n (n - 2) (n - 4) …; exact for whole numbers, 0!! = (-1)!! = 1."""
    if len(values) != 1:
        raise Undefined("a double factorial of one number")
    n = values[0]
    if not isinstance(n, Fraction) or n.denominator != 1:
        z = ev.number(n)  # mpmath's fac2, within our bounds
        turned = (ev.mp.pi / 2) ** ((ev.mp.cos(ev.mp.pi * z) - 1) / 4)
        return gamma(ev, z / 2 + 1) * ev.mp.mpf(2) ** (z / 2) * turned
    if n < -1:
        raise Undefined("the double factorial of a negative number")
    if n > MAX_FACTORIAL:
        raise TooLarge(f"a double factorial beyond {MAX_FACTORIAL}")
    spend(int(n) ** 2 // 20_000)
    return Fraction(math.prod(range(int(n), 0, -2)))


def remainder(ev: Evaluator, values: list[Value]) -> Value:
    """a mod b with the sign of b."""
    if len(values) != 2 or values[1] == 0:
        raise Undefined("mod of two numbers, the second not 0")
    a, b = values
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        spend_on_fractions(a, b, 150)
        return a - b * math.floor(a / b)
    a, b = ev.number(a), ev.number(b)
    return a - b * ev.mp.floor(ev.mp.re(a / b))


def extreme(pick: Callable[[list[Any]], Any]) -> Callable[[Evaluator, list[Value]], Value]:
    """max or min of real numbers."""

    def apply(ev: Evaluator, values: list[Value]) -> Value:
        """The picked value."""
        if not all(ev.is_real(value) for value in values):
            raise Undefined("an order among complex numbers")
        if all(isinstance(value, Fraction) for value in values):
            return pick(values)
        return pick([ev.mp.re(ev.number(value)) for value in values])

    return apply


def signum(ev: Evaluator, value: Value) -> Value:
    """-1, 0 or 1."""
    return Fraction((ev.number(value).real > 0) - (ev.number(value).real < 0))


def determinant(ev: Evaluator, matrix: Value) -> Value:
    """The determinant of a square matrix of at most 6 rows, by cofactors."""
    if not isinstance(matrix, tuple) or len(matrix) != len(matrix[0]) or len(matrix) > 6:
        raise Undefined("the determinant of a square matrix of at most 6 rows")
    if len(matrix) == 1:
        return matrix[0][0]
    terms = []
    for column, entry in enumerate(matrix[0]):
        minor = tuple(row[:column] + row[column + 1 :] for row in matrix[1:])
        part = multiplied(ev, entry, determinant(ev, minor))
        terms.append(multiplied(ev, part, Fraction((-1) ** column)))
    return added(ev, terms)


def summed(ev: Evaluator, node: Node) -> Value:
    """The value of a sum or product over few whole numbers; else one made of its parts."""
    kind, _, variable = node.name.partition(" ")
    body, lower, upper = node.args
    open_ended = [b.op == "set" or b.name == "inf" for b in (lower, upper)]
    bounds: list[Value] = [
        None if is_open else ev.value(b)
        for b, is_open in zip((lower, upper), open_ended, strict=True)
    ]
    outer = ev.at.get(variable)
    low, high = bounds
    finite = all(isinstance(b, Fraction) and b.denominator == 1 for b in bounds)
    result: Value
    if kind in ("sum", "prod") and variable and finite and 0 <= high - low <= MAX_TERMS:
        result = Fraction(kind == "prod")
        for term in range(int(low), int(high) + 1):
            ev.at[variable] = Fraction(term)
            value = ev.value(body)
            result = added(ev, [result, value]) if kind == "sum" else multiplied(ev, result, value)
    else:
        parts = [bound for bound in bounds if bound is not None]
        for point in (Fraction(13, 7), Fraction(29, 11)):
            ev.at[variable] = point
            parts.append(ev.value(body))
        marks = "".join(bound.name or bound.op for bound in (lower, upper) if bound.op != "num")
        result = ev.opaque(f"{kind}{len(parts)}{'inf' if 'inf' in marks else ''}", parts)
    ev.at.pop(variable, None)
    if outer is not None:
        ev.at[variable] = outer
    return result


_WHOLE: dict[str, Callable[[Evaluator, list[Value]], Value]] = {
    "gcd": divisor,
    "lcm": multiple,
    "mod": remainder,
    "binom": binomial,
    "factorial2": double_factorial,
    "max": extreme(max),
    "min": extreme(min),
    "log": logarithm,
    "ln": logarithm,
    "lg": lambda ev, values: logarithm(ev, [*values, Fraction(10)]),
}
_SINGLE: dict[str, Callable[[Evaluator, Value], Value]] = {
    "exp": exponential,
    "abs": lambda ev, value: abs(value),
    "floor": rounded("floor"),
    "ceil": rounded("ceil"),
    "sign": signum,
    "Re": lambda ev, value: ev.mp.re(ev.number(value)),
    "Im": lambda ev, value: ev.mp.im(ev.number(value)),
    "arg": lambda ev, value: ev.mp.arg(ev.number(value)),
}
