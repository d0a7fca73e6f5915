"""How steps of arithmetic are written: in formulas, brackets and bold, and beside what is no step.

`test_step_arithmetic.py` says what a step is paid for.
"""

import pytest

from rl_reasoner.rewards.step_arithmetic import step_arithmetic

PROMPT = "Janet's ducks lay 16 eggs. She eats 3, bakes 4, and sells each of the rest for $2."


@pytest.mark.parametrize(
    ("nine", "eighteen"),
    [
        (r"\(16 - 3 - 4 = 9\)", r"\(9 \times 2 = 18\)"),
        (r"\[ 16 - 3 - 4 = 9 \]", r"\[ 9 \cdot 2 = \boxed{18} \]"),
        (r"$\left(16 - 3\right) - 4 = 9$", r"$\left(9 \times 2\right) = 18$"),
        (r"\begin{aligned} 16 - 3 - 4 &= 9 \\", r" 9 * 2 &= 18 \end{aligned}"),
        ("She has some left (16 - 3 - 4 = 9)", "and sells them (9 * 2 = 18)"),
        ("She has ((16 - 3) - 4 = 9)", "and sells (9 eggs * $2 = $18 a day)"),
        ("16 - 3 - 4 = **9**", "9 * 2 = **18**"),
        ("**16 - 3 - 4 = 9** eggs", "***9 * 2 = 18***"),
        ("16 - 3 - 4 = *9*", "**9** * **2** = **$18**"),
        ("16－3－4＝9", "9×2＝18"),
        ("剩下（１６－３－４＝９）", "（９＊２＝１８）"),
    ],
)
def test_a_step_is_seen_in_formulas_brackets_and_bold(nine: str, eighteen: str) -> None:
    found = step_arithmetic(f"{nine}. Then {eighteen}.\nThe answer is 18", prompt=PROMPT)
    assert found.value == 1.0 and found.parts == {"right": 2.0, "wrong": 0.0}, found
    wrong = nine.replace("9", "8").replace("９", "８")
    found = step_arithmetic(f"{wrong}. Then {eighteen}.\nThe answer is 18", prompt=PROMPT)
    assert found.value == 0.0 and found.parts["wrong"] == 1.0, "a wrong one is seen as well"


def test_a_product_may_have_no_sign() -> None:
    for nine in ("3(16 - 13) = 9", "(16 - 13)(4 - 1) = 9"):
        assert step_arithmetic(f"16 - 3 = 13 and 4 - 1 = 3: {nine}. 9", prompt=PROMPT).value == 1.0
    found = step_arithmetic("3(4 + 2) = 18. The answer is 18", prompt=PROMPT)
    assert found.parts == {"right": 1.0, "wrong": 0.0}


def test_two_stars_between_two_numbers_are_no_bold() -> None:
    for power in ("3 ** 4 = 7", "3**4 = 7", "x ** 2 + 4 = 16"):
        found = step_arithmetic(f"{power}. 16 - 3 - 4 = 9. So 9.", prompt=PROMPT)
        assert found.parts == {"right": 1.0, "wrong": 0.0}, power


def test_the_numbers_of_a_problem_may_be_wide() -> None:
    assert step_arithmetic("16 - 3 = 13. 13", prompt="有１６个，吃了３个").value == 1.0


@pytest.mark.parametrize(
    "said",
    [
        "Let 2x + 4 = 16",
        "16 - 4 = 2x",
        "20 - 4 = 13 + x",
        "Let x_1 + 3 = 9",
        "y1 + 3 = 9",
        "f(16 - 3) = 4",
        "4(16 - 3) = 50",  # a product; or a note
        "(16 - 3)(4 + 2) = 70",
        "16 + (4 * (2 / 16) = 18",
        "(16 - y) * 2 + 3 = 9",
        "13 / 2 = 6 1/2",
        "13 / 2 = 6½",
        r"13 / 2 = 6\frac{1}{2}",
        "13 / 2 = 6 and 1/2",
        "13 / 2 = 6 and a half",
        "3 * 3 = 3²",
        "4 * 4 = 2^{4}",
        "4 * 3 * 2 = 4!",
        "13 / 4 = 3 remainder 1",
        "13 / 4 = 3, remainder 1",
        "13 / 4 = 3 (remainder 1)",
        "13 / 4 = 3 R1",
        "13 / 4 = 3 boxes with 1 left",
        "22 / 4 = 3 weeks and 1 day",
        "64 / 4 = 5 feet 4 inches",
        "16,5 - 3 = 13,5",
        "16 000 - 3 = 15 997",
        "16'000 - 3 = 15'997",
        "16.000 - 3 = 15.997",
        "16{,}000 - 3 = 15{,}997",
        "10:30 + 2 = 12:30",
        "16 * 1000 = 16 thousand",
        "2 dozen + 3 = 27",
        "half of 16 - 3 = 5",
        "3 times 4 + 2 = 14",
    ],
)
def test_what_goes_on_beyond_a_claim_is_not_told_wrong(said: str) -> None:
    found = step_arithmetic(f"{said}. Then 16 - 3 - 4 = 9. The answer is 9", prompt=PROMPT)
    assert found.value == 1.0 and found.parts == {"right": 1.0, "wrong": 0.0}, found


@pytest.mark.parametrize(
    "said",
    [
        "16 - 3 = 12 and 12 * 2 = 24",
        "16 eggs - 3 eggs = 12 eggs and 12 eggs * 2 = 24",
        "16 - 3 = 12 (eggs)",
        "16-3=<<16-3=12>>12",
        "16 - 3 = $12 a day",
        "16 - 3 = 12 - so she has 12",
        r"16 - 3 = 12 \text{ eggs}",
        "1. 16 - 3 = 12",
        "Step 1: 16 - 3 = 12",
        "剩下16-3=12个",
        "剩下(16-3)*2=24，",
        "9 x 2 = 17",
    ],
)
def test_what_stands_beside_a_wrong_claim_does_not_hide_it(said: str) -> None:
    assert step_arithmetic(said, prompt=PROMPT).parts["wrong"] == 1.0
