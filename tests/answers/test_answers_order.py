"""Where the order of parts, or the sign between them, makes another answer."""

import pytest

from rl_reasoner.answers import verify

ANOTHER = (
    (r"p \land q", r"p \lor q"),
    (r"p \wedge q", r"p \vee q"),
    (r"\forall x\exists y", r"\exists x\forall y"),
    (r"\forall x \exists y\, P(x,y)", r"\exists y \forall x\, P(x,y)"),
    (r"p \implies q", "q"),
    (r"\nabla\cdot F", r"\nabla\times F"),
    (r"\nabla F", r"\nabla\cdot F"),
    (r"\vec a\cdot\vec b", r"\vec a\times\vec b"),
    (r"\mathbf{a}\cdot\mathbf{b}", r"\mathbf{a}\times\mathbf{b}"),
    (r"\vec a\times\vec b", r"\vec b\times\vec a"),
    ("AB^{-1}", "B^{-1}A"),
    ("A^{-1}B^{-1}", "(AB)^{-1}"),
    ("A^TB", "BA^T"),
    ("PAP^{-1}", "P^{-1}AP"),
    ("PAP^{-1}", "A"),
    (r"n\ge 3 \text{ odd}", r"n\ge 3"),
    (r"n\ge 3 \text{ (odd)}", r"n\ge 3"),
    (r"x > 0 \text{ integer}", "x > 0"),
    ("42 (mod 7)", "42"),
    (r"x \equiv 45 \pmod 7", "45"),
    ("C (or D)", "C"),
    ("CBAD", "ABCD"),
    (r"\text{CBAD}", r"\text{ABCD}"),
)
ONE = (
    (r"p \land q", r"q \wedge p"),
    (r"x>1 \land x<3", "1<x<3"),
    (r"x=1 \lor x=2", "1, 2"),
    (r"x=1 \text{ and } x=2", r"x=1 \text{ or } x=2"),
    (r"\forall x\exists y", r"\forall x\,\exists y"),
    (r"2x = 4 \implies x = 2", "x = 2"),
    (r"\vec a\cdot\vec b", r"\overrightarrow{b}\cdot\vec a"),
    (r"\vec a\times\vec b", r"-\vec b\times\vec a"),
    (r"3 \times \vec a", r"3\vec a"),
    ("PV = nRT", "nRT = VP"),
    (r"C A^{-1}", r"\frac{C}{A}"),
    ("T^{-1}L", "LT^{-1}"),
    ("(AB)^{-1}", "B^{-1}A^{-1}"),
    (r"x > 5 \text{ dollars}", "x > 5"),
    ("3 (mod 7)", "3"),
    (r"n\ge 3 \text{ odd}", r"n \geq 3\text{ odd}"),
    ("DCA", "ACD"),
    ("C (the third option)", "C"),
    (r"5 \text{ integers}", "5"),
)


@pytest.mark.parametrize(("one", "other"), ANOTHER)
def test_another_order_or_sign_is_another_answer(one: str, other: str) -> None:
    for gold, said in ((one, other), (other, one)):
        score = verify(rf"\boxed{{{said}}}", gold)
        assert score.value == 0.0, score.reason


@pytest.mark.parametrize(("one", "other"), ONE)
def test_what_commutes_still_does(one: str, other: str) -> None:
    score = verify(rf"\boxed{{{one}}}", other)
    assert score.value == 1.0, score.reason


@pytest.mark.parametrize(
    "said",
    ["C (or D)", "C - or D", "C (also D)", "C (D?)", "**C** (or D)", "C, but D is also right"],
)
@pytest.mark.parametrize(
    "place", ["The answer is {}.", "<answer>{}</answer>", "#### {}", "答案：{}"]
)
def test_a_second_choice_behind_the_first_is_a_hedge(place: str, said: str) -> None:
    assert verify(place.format(said), "C").value == 0.0
    assert verify(place.format(said), "D").value == 0.0


def test_a_second_choice_that_is_turned_down_is_none() -> None:
    assert verify("The answer is C, not D.", "C").value == 1.0
    assert verify("The answer is C, but D is wrong.", "C").value == 1.0
    assert verify("The answer is C. or D.", "C").value == 0.0
