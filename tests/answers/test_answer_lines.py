"""Answers of several lines: which breaks part two relations, and which are spaces."""

import pytest

from rl_reasoner.answers import verify

TWO = "$y_1=2x$\n$y_2=3x$"


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("y_1=2x, y_2=3x", TWO),
        ("y_2=3x, y_1=2x", TWO),
        ("$y_1 = 2x$\n$y_2 = 3x$", TWO),
        ("a=2, b=3", "a = 2\n\nb = 3"),
        ("1, 2", "x=1\nx=2"),
        ("x>1\ny<2", "y<2, x>1"),
        ("x=1, y=2\nx=3, y=4", "x=3, y=4\nx=1, y=2"),
        ("2x+y=3\nx-y=5", "2x+y=3, x-y=5"),
        ("x = 2 \\cdot 3\n= 6", "6"),
        ("x = 2 \\cdot 3\\\\ = 6", "6"),
        ("x = 2 \\cdot 3\nx = 6", "6"),
        ("A = \\pi r^2\nA = 9\\pi", "9\\pi"),
        ("x = 2 + 3\n+ 4 = 9", "9"),
        ("x = 2 +\n3 = 5", "5"),
        ("\\frac{1\n}{2}", "1/2"),
    ],
)
def test_lines_that_are_the_same_answer(answer: str, gold: str) -> None:
    assert verify(rf"\boxed{{{answer}}}", gold).value == 1.0
    assert verify(f"<answer>{answer}</answer>", gold).value == 1.0


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("3", "a=2\nb=3"),
        ("a=2\n b=3", "a=9\nb=3"),
        ("a=2\nb=3", "3"),
        ("$y_1=7x$\n$y_2=3x$", TWO),
        ("2", "x=1\nx=2"),
        ("3", "\\begin{aligned} a&=2\\\\ b&=3\\end{aligned}"),
    ],
)
def test_the_last_of_several_lines_is_not_all(answer: str, gold: str) -> None:
    assert verify(rf"\boxed{{{answer}}}", gold).value == 0.0
    assert verify(f"<answer>{answer}</answer>", gold).value == 0.0


@pytest.mark.parametrize(
    ("said", "gold"),
    [
        ("r = 5\nA = \\pi r^2\nA = 25\\pi", "25\\pi"),
        ("a = 3\nb = 4\nc = \\sqrt{a^2+b^2}\nc = 5", "5"),
        ("f(x)=x^2\nf(3)=9", "9"),
        ("P(A)=1/2\nP(A\\cap B)=1/6", "1/6"),
    ],
)
def test_a_line_that_uses_one_above_it_is_a_derivation(said: str, gold: str) -> None:
    assert verify(f"<answer>{said}</answer>", gold).value == 1.0
    assert verify("<answer>f(1)=2\nf(2)=3</answer>", "f(1)=5\nf(2)=3").value == 0.0


def test_a_derivation_ends_in_its_last_line() -> None:
    assert verify("<answer>2x+1=11\n2x=10\nx=5</answer>", "5").value == 1.0
    assert verify("a = 2\nb = 3", "3").value == 1.0


@pytest.mark.parametrize(
    "said",
    [
        "3 \\times 4 = 12\n12 + 5 = 17",
        "$3 \\times 4 = 12$\n\n$12 + 5 = 17$",
        "3 * 4 = 12 apples\n12 + 5 = 17 apples",
    ],
)
def test_calculations_are_a_derivation(said: str) -> None:
    assert verify(f"<answer>{said}</answer>", "17").value == 1.0
    assert verify(f"<answer>{said}</answer>", "12").value == 0.0
    assert verify("<answer>5 = x\n3 = y</answer>", "x = 5, y = 3").value == 1.0
