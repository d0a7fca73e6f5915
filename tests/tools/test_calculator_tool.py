"""The calculator: exact, as Python's fractions are, and bounded whatever it is given."""

import operator
import time
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl_reasoner.tools.calculator import MOST_EXPRESSION, calculate, calculator, value_text

SIGNS: dict[str, Callable[[Fraction, Fraction], Fraction]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "//": lambda a, b: Fraction(a // b),
    "%": operator.mod,
}
numbers = st.one_of(
    st.integers(0, 10**12).map(lambda n: (str(n), Fraction(n))),
    st.decimals(0, 10**6, places=4).map(lambda d: (f"{d:f}", Fraction(d))),
)


@st.composite
def joined(draw: st.DrawFn, parts: st.SearchStrategy[tuple[str, Fraction]]) -> tuple[str, Fraction]:
    """Two expressions in parentheses and a sign between them; a power; or one with a minus."""
    (one, a), (other, b) = draw(parts), draw(parts)
    sign = draw(st.sampled_from([*SIGNS, "**", "^", "neg"]))
    space = draw(st.sampled_from(["", " ", "\n\t"]))
    if sign == "neg":
        return f"-({one})", -a
    if sign in ("**", "^"):
        power = draw(st.integers(-3, 3).filter(lambda e: a or e >= 0))
        return f"({one}){space}{sign}{space}{power}", a**power
    if not b and sign in ("/", "//", "%"):
        sign = "+"
    return f"({one}){space}{sign}{space}({other})", SIGNS[sign](a, b)


@settings(max_examples=300)
@given(st.recursive(numbers, joined, max_leaves=10))
def test_values_are_those_of_fractions(case: tuple[str, Fraction]) -> None:
    text, value = case
    if max(value.numerator.bit_length(), value.denominator.bit_length()) < 500 and len(text) < 1000:
        try:
            assert calculate(text) == value
        except OverflowError:  # of a part of it
            assert "**" in text or "^" in text


@settings(max_examples=300)
@given(st.lists(st.tuples(st.sampled_from([*SIGNS, "**"]), st.integers(1, 4)), max_size=8))
def test_signs_bind_as_in_python(parts: list[tuple[str, int]]) -> None:
    text = "7" + "".join(f" {sign} {number}" for sign, number in parts if sign != "/")
    bare = text.replace("//", "+")  # Python's of whole numbers, where all stays whole
    try:
        value = calculate(bare)
    except OverflowError:
        assert bare.count("**") > 1
        return
    assert value == eval(bare)  # noqa: S307 (of signs and digits made here)


@given(st.fractions())
def test_a_shown_value_says_what_it_is(value: Fraction) -> None:
    text = value_text(value)
    exact = text.partition(",")[0]
    if not exact.startswith("about"):
        assert Fraction(exact) == value
    if "about" in text:
        about = Fraction(Decimal(text.rpartition("about ")[2]))
        assert abs(about - value) <= abs(value) * Fraction(1, 10**11)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("347*29", "10063"),
        ("0.1 + 0.2", "0.3"),
        ("1/3", "1/3, about 0.333333333333"),
        ("-2**2", "-4"),
        ("2**3**2", "512"),
        ("2**-2", "0.25"),
        ("(17 + 4) × 23 ÷ 7 − 1", "68"),
        ("1.5e3 - 5E-1", "1499.5"),
        ("--3", "3"),
        ("7 // -2", "-4"),
        ("0**0", "1"),
        ("(-1)**1000001", "-1"),
        ("-1/8", "-0.125"),
    ],
)
def test_answers_read_as_people_write_them(text: str, answer: str) -> None:
    assert calculator(expression=text) == answer


@pytest.mark.parametrize(
    ("text", "kind", "told"),
    [
        ("", ValueError, "expected a number, found 'the end'"),
        ("2 +", ValueError, "found 'the end'"),
        ("2 3", ValueError, "expected an operator, found '3'"),
        ("(1", ValueError, "expected ')'"),
        ("1)", ValueError, "expected an operator, found ')'"),
        ("1,000", ValueError, "',' is not part of a calculation"),
        ("x + 1", ValueError, "'x' is not part"),
        ("__import__('os')", ValueError, "'_' is not part"),
        ("1.2.3", ValueError, "'1.2.3' is not a number"),
        ("1e", ValueError, "'1e' is not a number"),
        ("2 ** 0.5", ValueError, "an exponent must be a whole number"),
        ("1/0", ZeroDivisionError, "division by zero"),
        ("1 // (2 - 2)", ZeroDivisionError, "division by zero"),
        ("0 ** -1", ZeroDivisionError, "division by zero"),
        ("9**9**9", OverflowError, "more than 1,000 digits"),
        ("1e99999", OverflowError, "more than 1,000 digits"),
        ("1e-9999", OverflowError, "more than 1,000 digits"),
        ("10**999 * 10**999", OverflowError, "more than 1,000 digits"),
        ("(" * 400 + "1" + ")" * 400, ValueError, "within each other"),
        ("-" * 900 + "1", ValueError, "within each other"),
        ("2**" * 300 + "1", ValueError, "within each other"),
        ("1" * (MOST_EXPRESSION + 1), ValueError, "more than 1,000 characters"),
    ],
)
def test_what_is_no_calculation_is_told_in_words(
    text: str, kind: type[Exception], told: str
) -> None:
    with pytest.raises(kind) as caught:
        calculate(text)
    assert told in str(caught.value)


@settings(max_examples=300)
@given(st.text(alphabet="0123456789.eE+-*/%()^ ×÷x_", max_size=MOST_EXPRESSION))
def test_any_text_is_a_value_or_a_reason(text: str) -> None:
    began = time.thread_time()
    try:
        assert len(value_text(calculate(text))) < 2100
    except (ValueError, ZeroDivisionError, OverflowError) as error:
        assert str(error)
    assert time.thread_time() - began < 5  # a bound on what it computes, not on its speed
