"""`value_only`: a calculation equals its value, and still leaves the sum undone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl_reasoner import verify
from rl_reasoner.answers.verdict import left_to_do
from rl_reasoner.hacking.maths import judge_maths
from rl_reasoner.rewards.math_answer import math_answer


def score(completion: str, answer: str, **options: object) -> float | None:
    """What math_answer gives with `value_only`."""
    return math_answer(completion, answer, value_only=True, **options).value  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "calculation",
    [
        "900 - 156",
        "x = 900 - 156",
        "700 + 44",
        "744 + 0",
        "744 \\cdot 1",
        "93 \\times 8",
        "1488/2",
        "\\frac{1488}{2}",
        "744/1",
        "744^1",
        "|-744|",
        "\\sqrt{553536}",
        "(900 - 156) apples",
        "\\$900 - \\$156",
        "7.44 \\times 100",
    ],
)
def test_a_calculation_left_to_do_is_not_the_answer(calculation: str) -> None:
    completion = f"So \\boxed{{{calculation}}}."
    assert score(completion, "744") == 0.0
    if verify(completion, "744").value:  # else wrong for another reason
        assert left_to_do(completion, "744")
        reason = math_answer(completion, "744", value_only=True).reason
        assert reason.startswith("a calculation left to do: ")


@pytest.mark.parametrize(
    ("calculation", "gold"),
    [
        (r"\int_0^1 (900-156)\,dx", "744"),
        (r"\int_0^3 x^2\,dx", "9"),
        (r"$\int_0^3 x^2\,dx$", "9"),
        (r"x = \int_0^3 x^2\,dx", "9"),
        (r"\int_0^3 x^2\,dx \text{ units}", "9"),
        (r"\{\int_0^3 x^2\,dx\}", "9"),
        (r"\int_0^1 (1/2)\,dx", "1/2"),
        (r"\sum_{k=1}^{\infty} 2^{-k}", "1"),
        (r"\lim_{x\to 0}\frac{\sin x}{x}", "1"),
        (r"\lim_{n\to\infty} (3 + 1/n)", "3"),
        (r"(1, \int_0^1 2\,dx)", "(1, 2)"),
        ("(3 - 2, 2)", "(1, 2)"),
        (r"1, \int_0^1 2\,dx", "1, 2"),
        ("x > 900 - 156", r"(744, \infty)"),
        (r"\pm\sqrt 9", "3, -3"),
        (r"\begin{pmatrix} 2 - 1 & 2 \end{pmatrix}", r"\begin{pmatrix} 1 & 2 \end{pmatrix}"),
    ],
)
def test_neither_where_sympy_decides_nor_in_a_part_of_an_answer(
    calculation: str, gold: str
) -> None:
    completion = f"So \\boxed{{{calculation}}}."
    assert verify(completion, gold).value == 1.0
    assert score(completion, gold) == 0.0
    verdict, why = judge_maths(completion, gold, "What is it?", completion)
    assert verdict == "disagrees" and why.startswith("a calculation left to do")


def test_without_the_option_equal_is_right() -> None:
    assert math_answer("\\boxed{900 - 156}", "744").value == 1.0


def test_a_bare_last_line_too() -> None:
    assert verify("900 - 156", "744").value == 1.0
    assert score("900 - 156", "744") == 0.0
    assert score("900 - 156 = 744", "744") == 1.0


@pytest.mark.parametrize(
    ("value", "gold"),
    [
        ("744", "744"),
        ("**744**", "744"),
        ("\\$744", "744"),
        ("744 apples", "744"),
        ("x = 744", "744"),
        ("900 - 156 = 744", "744"),
        ("x = 900 - 156 = 744", "744"),
        ("1{,}744", "1744"),
        ("-3", "-3"),
        ("-\\frac{3}{4}", "-0.75"),
        ("1/2", "0.5"),
        ("0.5", "\\frac12"),
        ("1\\frac{1}{2}", "3/2"),
        ("50\\%", "50%"),
        ("3 \\times 10^5", "300000"),
        ("5 m", "5"),
        ("seven", "7"),
        ("5 million", "5000000"),
        ("-1.5 thousand", "-1500"),
        ("2 dozens", "24"),
        ("5 hundredths", "0.05"),
        (r"\int_0^3 x^2\,dx = 9", "9"),
        (r"x \in \{744\}", "744"),
        ("P(1, 2)", "(1, 2)"),
        ("x = 1, y = 2", "(1, 2)"),
        ("x > 744", r"(744, \infty)"),
        (r"\{x \mid x > 744\}", "x > 744"),
        (r"\mathbb{R} \setminus \{0\}", r"x \ne 0"),
        (r"\pm 3", "3, -3"),
        ("1:2", "0.5 : 1"),
    ],
)
def test_a_value_is_an_answer(value: str, gold: str) -> None:
    completion = f"So \\boxed{{{value}}}."
    assert verify(completion, gold).value == 1.0
    assert score(completion, gold) == 1.0


@pytest.mark.parametrize(("letter", "gold"), [("A", "A. circle"), ("C", "(C) I and III only")])
def test_the_letter_of_a_choice_with_its_text_is_an_answer(letter: str, gold: str) -> None:
    assert score(f"\\boxed{{{letter}}}", gold) == 1.0


@pytest.mark.parametrize(
    "gold", ["2^{10}", "(1, \\sqrt{2})", "2\\sqrt{3}", "x + 1", "3!", "(1, 2)", "B"]
)
def test_only_plain_numbers_are_asked_to_be_worked_out(gold: str) -> None:
    assert score(f"\\boxed{{{gold}}}", gold) == 1.0


def test_a_wrong_answer_keeps_its_reason_and_an_unusable_gold_abstains() -> None:
    assert math_answer("\\boxed{900 - 157}", "744", value_only=True).reason.endswith("not equal")
    assert score("\\boxed{3}", "") is None


def test_between_tags_of_ones_own() -> None:
    tags = ["<ans>", "</ans>"]
    assert score("<ans>900 - 156</ans>", "744", tags=tags) == 0.0
    assert score("<ans>744</ans>", "744", tags=tags) == 1.0


@given(st.integers(-(10**6), 10**6), st.integers(-(10**6), 10**6))
def test_no_sum_counts_and_every_number_does(left: int, right: int) -> None:
    gold = str(left + right)
    assert score(f"\\boxed{{{left} + ({right})}}", gold) == 0.0
    assert score(f"\\boxed{{{left + right}}}", gold) == 1.0


@given(st.text(max_size=40), st.text(max_size=40))
def test_never_raises(completion: str, answer: str) -> None:
    assert left_to_do(completion, answer) in (left_to_do(completion, answer), "")
    assert score(completion, answer) in (0.0, 1.0, None)
