"""The forms in which the countdown reward reads a right expression, and those it refuses."""

import pytest

from rl_reasoner.scoring.reward import Reward


@pytest.mark.parametrize(
    "answer",
    [
        *("(1+2)*3 = 9", "(1+2)*3=9", "(1+2)*3 = 9.0", "(1+2)×3", "(1 + 2) · 3", "(2+1)÷(1/3)"),
        *("$(1+2)*3$", "$$(1+2)*3$$", "`(1+2)*3`", r"\((1+2)*3\)", "$(1+2)*3 = 9$"),
        *(
            "**(1+2)*3**",
            "(1+2)*3.",
            "(1+2)*3 = 9.",
            r"\frac{(1+2)*3}{1}",
            r"3 \times \dfrac{1+2}{1}",
        ),
        *(r"(1+2) \times 3", r"(1+2)\cdot3", r"\left(1+2\right)\times 3", r"$(1+2) \times 3 = 9$"),
    ],
)
def test_usual_forms_of_a_right_expression(countdown: Reward, answer: str) -> None:
    numbers = [1, 2, 3] if "÷" not in answer and "frac" not in answer else [1, 1, 2, 3]
    for text in (f"<answer>{answer}</answer>", rf"\boxed{{{answer}}}", f"So:\n{answer}"):
        score = countdown(text, numbers=numbers, target=9)
        assert score.value == 1.0, score.reason


@pytest.mark.parametrize(
    "answer",
    [
        *("(1+2)*3 = 8", "(1+2)*3 = 9 = 9", "(1+2)*3 = 3*3", "(1+2)*3 =", "= 9", "9 = (1+2)*3"),
        *("$(1+2)*3", "``(1+2)*3``", "$`(1+2)*3`$", r"(1+2)\timesx3", "(1+2)*3 = 9/1", "3*3 = 9"),
        *(r"\frac{3*3}{1}", r"\frac{3}{1-1}", r"\frac{3}", r"\frac{(1+2)*3}{1", "{(1+2)*3}"),
        *(
            "**(1+2)*3",
            "(1+2)*3..",
            "(1+2)**3",
            "1+2 = 9",
            "(1+2)*3 = ９",
            "$",
            "`",
            "$$",
            r"(1+2)\frac{3}{1}",
        ),
    ],
)
def test_what_is_no_right_expression(countdown: Reward, answer: str) -> None:
    score = countdown(f"<answer>{answer}</answer>", numbers=[1, 2, 3], target=9)
    assert score.value == 0.0
    assert score.reason


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r"First \boxed{(1+2)*3}. Better: \boxed{\frac{6}{1}}", 0.0),  # the first was paid
        (r"First \boxed{6}. Better: \boxed{\frac{(1+2)*3}{1}}", 1.0),
        (r"<answer>\boxed{(1+2)*3}</answer>", 1.0),
        (r"<answer>6</answer> <answer>\boxed{\frac{(1+2)*3}{1}}</answer>", 1.0),
        (r"<answer>(1+2)*3</answer> \boxed{6", 1.0),  # a box that never closes
        (r"\boxed{(1+2)*3} is in \boxed{ as asked" + ", as asked" * 40, 1.0),  # nor this one
        (r"\boxed{(1+2)*3} \boxed{" + "1+" * 200 + "1}", 0.0),
    ],
)
def test_the_last_answer_decides_whatever_stands_in_it(
    countdown: Reward, text: str, value: float
) -> None:
    assert countdown(text, numbers=[1, 1, 2, 3, 6], target=9).value == value


def test_another_number_behind_the_sign_is_told(countdown: Reward) -> None:
    score = countdown("(1+2)*3 = 8", numbers=[1, 2, 3], target=9)
    assert score.reason == "(1+2)*3 = 8 is 9, which it calls 8"
