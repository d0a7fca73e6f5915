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


def test_two_stars_between_two_numbers_are_no_bold() -> None:
    for power in ("3 ** 4 = 7", "3**4 = 7", "x ** 2 + 4 = 16"):
        found = step_arithmetic(f"{power}. 16 - 3 - 4 = 9. So 9.", prompt=PROMPT)
        assert found.parts == {"right": 1.0, "wrong": 0.0}, power


def test_the_numbers_of_a_problem_may_be_wide() -> None:
    assert step_arithmetic("16 - 3 = 13. 13", prompt="有１６个，吃了３个").value == 1.0
