"""Properties of the verifier: reflexive, symmetric, blind to spelling, never fooled by a change."""

from fractions import Fraction

import pytest
import sympy
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rl_reasoner.answers import verify

SETTINGS = settings(max_examples=60, deadline=None)
whole = st.integers(-999, 999)
natural = st.integers(1, 999)


def right(answer: str, gold: str) -> bool:
    return verify(rf"\boxed{{{answer}}}", gold).value == 1.0


def spellings(value: Fraction) -> list[str]:
    """One fraction as models write it."""
    top, bottom = value.numerator, value.denominator
    sign, top = ("-", -top) if top < 0 else ("", top)
    written = [
        f"{sign}{top}/{bottom}",
        rf"{sign}\frac{{{top}}}{{{bottom}}}",
        rf"{sign}\dfrac{{{top}}}{{{bottom}}}",
        rf"\frac{{{sign}{top}}}{{{bottom}}}",
        rf"\left( {sign}\tfrac{{{top}}}{{{bottom}}} \right)",
        rf"x = {sign}\frac{{{3 * top}}}{{{3 * bottom}}}",
        rf"{sign}\frac{{{top}}}{{{bottom}}}\text{{ cm}}",
    ]
    if bottom > 1 and top > bottom:
        written.append(rf"{sign}{top // bottom}\frac{{{top % bottom}}}{{{bottom}}}")
        written.append(f"{sign}{top // bottom} {top % bottom}/{bottom}")
    return written


@SETTINGS
@given(whole, natural, st.data())
def test_a_fraction_equals_itself_in_every_spelling(
    top: int, bottom: int, data: st.DataObject
) -> None:
    written = spellings(Fraction(top, bottom))
    gold, answer = data.draw(st.sampled_from(written)), data.draw(st.sampled_from(written))
    assert right(answer, gold)


@SETTINGS
@given(whole, natural, whole, natural, st.data())
def test_two_different_fractions_are_never_equal(
    a: int, b: int, c: int, d: int, data: st.DataObject
) -> None:
    left, other = Fraction(a, b), Fraction(c, d)
    assume(left != other)
    gold = data.draw(st.sampled_from(spellings(left)))
    assert not right(data.draw(st.sampled_from(spellings(other))), gold)


@SETTINGS
@given(st.integers(0, 10**40), st.integers(-(10**6), 10**6))
def test_big_whole_numbers_match_exactly_or_not_at_all(value: int, change: int) -> None:
    assert right(f"{value:,}", str(value))
    assert right(f"{value:,}".replace(",", r"{,}"), str(value))
    assert right(str(value + change), str(value)) == (change == 0)


@SETTINGS
@given(st.integers(1, 10**12), st.integers(1, 12))
def test_a_rounded_decimal_is_not_the_value(digits: int, places: int) -> None:
    exact = Fraction(digits, 7 * 10**places)
    rounded = f"{float(exact):.4g}"
    assert right(rounded, f"{exact.numerator}/{exact.denominator}") == (Fraction(rounded) == exact)


@SETTINGS
@given(st.lists(whole, min_size=2, max_size=6, unique=True), st.randoms(use_true_random=False))
def test_sets_forget_order_and_tuples_do_not(values: list[int], random: object) -> None:
    shuffled = list(values)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    gold, answer = (", ".join(map(str, row)) for row in (values, shuffled))
    assert right(rf"\{{{answer}\}}", rf"\{{{gold}\}}")
    assert right(answer, rf"\{{{gold}\}}")
    assert right(f"({answer})", f"({gold})") == (shuffled == values)
    assert not right(rf"\{{{answer}, 1000\}}", rf"\{{{gold}\}}")
    assert not right(", ".join(map(str, shuffled[:-1])), gold)


@SETTINGS
@given(
    whole,
    natural,
    st.sampled_from(["()", "[]", "(]", "[)"]),
    st.sampled_from(["()", "[]", "(]", "[)"]),
)
def test_open_and_closed_ends_differ(low: int, length: int, gold: str, answer: str) -> None:
    def interval(brackets: str) -> str:
        return f"{brackets[0]}{low},{low + length}{brackets[1]}"

    def condition(brackets: str) -> str:
        left = r"\le" if brackets[0] == "[" else "<"
        return rf"{low} {left} x {'<=' if brackets[1] == ']' else '<'} {low + length}"

    assert right(interval(answer), interval(gold)) == (gold == answer)
    assert right(condition(answer), interval(gold)) == (gold == answer)
    assert right(interval(answer), condition(gold)) == (gold == answer)


x, y = sympy.symbols("x y")
leaves = st.one_of(st.sampled_from([x, y]), st.integers(-9, 9).map(sympy.Integer))
expressions = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda pair: pair[0] + pair[1]),
        st.tuples(inner, inner).map(lambda pair: pair[0] * pair[1]),
        st.tuples(inner, st.integers(2, 3)).map(lambda pair: pair[0] ** pair[1]),
        inner.map(lambda part: sympy.sin(part)),
        inner.map(lambda part: sympy.exp(-(part**2))),
        inner.map(lambda part: part / (x**2 + 1)),
    ),
    max_leaves=6,
)
rewritings = st.sampled_from([sympy.expand, sympy.factor, sympy.together, sympy.trigsimp])


@SETTINGS
@given(expressions, rewritings, st.booleans())
def test_a_rewritten_expression_is_equal_and_a_changed_one_is_not(
    expression: sympy.Expr, rewrite: object, as_latex: bool
) -> None:
    def spell(part: sympy.Expr) -> str:
        return sympy.latex(part) if as_latex else str(part).replace("E", "e")

    rewritten = rewrite(expression)  # type: ignore[operator]
    assume(len(spell(rewritten)) < 1_500)
    gold = sympy.latex(expression)
    assert right(spell(rewritten), gold), (gold, spell(rewritten))
    assert not right(spell(rewritten + 1), gold)
    assert not right(spell(rewritten + x / 100), gold)


@SETTINGS
@given(expressions, expressions)
def test_symmetric_on_expressions(left: sympy.Expr, other: sympy.Expr) -> None:
    first, second = sympy.latex(left), sympy.latex(other)
    assert right(first, second) == right(second, first)


@pytest.mark.parametrize(
    ("plain", "styled"),
    [
        (r"\frac{x+1}{2}", r"\dfrac{ x + 1 }{ 2 }"),
        (r"(1,\frac{1}{2})", r"\left(1,\,\tfrac12\right)"),
        (r"[0,\infty)", r"\left[0,\; +\infty\right)"),
        (r"\{1,2\}", r"\left\{1,\ 2\right\}"),
        (r"\sqrt{2}x", r"\sqrt 2 \cdot x"),
        (r"x\le 2", r"x \leqslant 2"),
        (r"\begin{pmatrix}1&2\end{pmatrix}", r"\begin{bmatrix} 1 & 2 \end{bmatrix}"),
    ],
)
def test_blind_to_latex_spelling_in_both_directions(plain: str, styled: str) -> None:
    assert right(styled, plain)
    assert right(plain, styled)
