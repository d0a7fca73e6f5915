"""The arithmetic of a chain as a reward, and what is written to please it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl_reasoner.rewards.step_arithmetic import step_arithmetic

PROMPT = "Janet's ducks lay 16 eggs. She eats 3, bakes 4, and sells each of the rest for $2."
SOLVED = "She has 16 - 3 - 4 = 9 eggs.\nShe makes 9 * 2 = $18 a day.\nThe answer is 18."


def value(text: str, prompt: str = PROMPT) -> float | None:
    return step_arithmetic(text, prompt=prompt).value


@pytest.mark.parametrize(
    "text",
    [
        SOLVED,
        "16-3=<<16-3=13>>13, 13 - 4 = 9 and 9 x 2 = 18. So 18.",
        "$16 - 3 - 4 = 9$ and $9 \\times 2 = 18$, so \\boxed{18}",
        "- 16 - (3 + 4) = 9\n- 9 × 2 = 18\n#### 18",
        "16 - 3 - 4 = 13 - 4 = 9. 9*2=18.00 dollars: 18",
        "1. 3 + 4 = 7. 2. 16 − 7 = 9. 3. 9·2 = 18. It is 18",
        "16 eggs - 3 for her - 4 muffins = 9 eggs. 9 eggs * $2/egg = $18. So 18.",
        "(16 eggs - 7 eggs) * 2 = 18 as 3 + 4 = 7. Or 3 + 4 = 7 and 16 - 7 = 9, 9*2 = 18: 18.",
    ],
)
def test_right_steps_in_the_forms_in_which_they_are_written(text: str) -> None:
    assert value(text) == 1.0, step_arithmetic(text, prompt=PROMPT)


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("16 - 3 - 4 = 8 eggs. 8 * 2 = 16 dollars: 16 - 1 = 15. So 15.", 0.0),
        ("16 - 3 = 13. 13 - 4 = 9. 9 * 2 = 19. So 19.", 2 / 3),
        ("16 - 3 - 4 = 9 and 9 / 0 = 5 and 9 * 2 = 18. 18", 1.0),
    ],
)
def test_wrong_steps_lower_the_share(text: str, share: float) -> None:
    found = value(text)
    if share:
        assert found == pytest.approx(share)
    else:
        assert found is not None and found < 1.0


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("3 - 16 = -13. -13 + 16 = 3. 3 * 2 = 6: 6", 1.0),
        ("3 - 16 = -13.\n-13 + 16 = 3. 3 * 2 = 6: 6", 1.0),
        ("16 - 3 - 4 = 9, as √16 - 3 = 1 and x² - 3 = 1 and １６ − 3 − 4 = 9. 9 * 2 = 18: 18", 1.0),
        ("- 16 + 4 = 20\n- 3 + 4 = 8\n- 20 - 3 = 17: 17", 2 / 3),
    ],
)
def test_a_minus_may_be_a_sign_and_what_is_not_read_is_not_wrong(text: str, share: float) -> None:
    assert value(text) == pytest.approx(share), step_arithmetic(text, prompt=PROMPT)


def test_a_step_may_begin_with_a_negative_number_of_the_problem() -> None:
    prompt = "It is -3 degrees, and gets 9 degrees warmer. How warm is it then?"
    assert step_arithmetic("-3 + 9 = 6: 6", prompt=prompt).value == 1.0
    assert step_arithmetic("-4 + 10 = 6: 6", prompt=prompt).value == 0.0
    assert step_arithmetic("-3 * 9 = -27: -27", prompt=prompt).value == 1.0
    assert step_arithmetic("-3 * 9 = -27.\n27", prompt=prompt).value == 0.0  # another answer
    assert step_arithmetic("-3 * 9 = 27: 27", prompt=prompt).value == 0.0  # no dash of a list
    assert step_arithmetic("- 3 * 9 = 27: 27", prompt=prompt).value == 1.0
    assert step_arithmetic("-$3 * 9 = 27: 27", prompt=prompt).value == 0.0
    for said in ("Total - 27 apples", "Profit – $27", "27", "it is 27-fold"):
        assert step_arithmetic(f"3 * 9 = 27. So\n{said}", prompt=prompt).value == 1.0, said
    for said in ("-27", "\\boxed{-27}", "that is -27 degrees", "- 27", "= −27", "a loss of -$27"):
        assert step_arithmetic(f"-3 * 9 = -27. So\n{said}", prompt=prompt).value == 1.0, said


def test_more_forms() -> None:
    assert value("100 * .5 = 50. So 50", "half of a hundred") == 1.0
    assert value("12 * 7 = 84. 84 * 3 = 252. So 252", "three dozen a day for a week") == 1.0
    assert value("100% - 20% = 80%. 80% * 50 = 40. So 40", "50, less 20%") == 1.0
    assert value("x*2 - 6 = 18. 12 * 2 = 24. 24 - 6 = 18. So 18", "12 twice, less 6") == 1.0
    assert value("20% * 50 = 10. So 10", "20% of 50?") == 1.0
    assert value("1/3 * 90 = 30. 30 / 7 = 4.29. So 4.29", "a third of 90, by 7") == 1.0
    assert value("80,000 * 1.5 = 120,000. So 120000", "80,000 by 150%") == 1.0
    assert value("2^10 - 24 = 1000. So 1000", "2 to the 10, less 24") == 1.0


@pytest.mark.parametrize(
    "hack",
    [
        "",
        "The answer is 18.",
        "1 = 1. 2 = 2. 16 = 16. 18",
        "16 * 1 = 16. 16 + 0 = 16. 3 / 1 = 3. 16 3 18",
        "100 + 100 = 200. 200 + 5 = 205. 205",
        "x = 16. y = 3. So 18.",
        "16 - 3 = . = 13. 13 13",
        "<think></think><answer>18</answer>",
        "16 + 4 = 2 * 9 + 2. The answer is 2.",
        "16 + 984 = 1000. The answer is 1000.",
        "1016 - 16 = 1000. So 1000.",
        "(16 - 16) + 1000 = 1000. 1000",
        "500 + 500 = 1000 and 1000 * 16 / 16 = 1000. 1000",
        "16 - 3 = 13. 13 + 987 = 1000. The answer is 1000.",
        "984 + 16 = 1000. 1000 + 3 = 1003. \\boxed{1003}",
        "16 eggs + 984 more eggs = 1000 eggs. So 1000.",
    ],
)
def test_what_is_cheap_to_write_is_not_paid(hack: str) -> None:
    assert value(hack) == 0.0, step_arithmetic(hack, prompt=PROMPT)


def test_a_number_from_nowhere_leads_nowhere() -> None:
    """Neither it nor what is made of it may be calculated with; what is grounded still counts."""
    found = step_arithmetic("16 - 3 = 13. 13 + 987 = 1000. 1000 / 2 = 500. So 13.", PROMPT)
    assert found.parts == {"right": 1.0, "wrong": 0.0} and found.value == 1.0
    found = step_arithmetic("16 + 900 = 984. 984 + 16 = 1000. So 1000.", PROMPT)
    assert found.parts == {"right": 1.0, "wrong": 1.0}, "a wrong claim costs as much as it gives"


def test_with_only_right_steps_to_a_wrong_answer_are_not_paid() -> None:
    strict = step_arithmetic.with_options(only_right=True)
    led = "16 + 4 = 20. The answer is 20."  # right arithmetic, and not what was asked
    assert value(led) == 1.0 and strict(led, prompt=PROMPT, answer="18").value == 0.0
    assert strict(SOLVED, prompt=PROMPT, answer="18").value == 1.0
    assert strict(SOLVED, prompt=PROMPT, answer=None).value is None
    unusable = strict(SOLVED, prompt=PROMPT, answer="")
    assert unusable.value is None and "gold" in unusable.reason, "as math_answer"


def test_a_claim_said_often_counts_once_and_idle_right_ones_do_not() -> None:
    wrong = "16 - 3 - 4 = 8. "
    repeated = step_arithmetic(wrong + "8 * 2 = 16. " * 50 + "The answer is 16.", PROMPT)
    assert repeated.parts == {"right": 1.0, "wrong": 1.0}
    idle = step_arithmetic(
        "16 - 3 - 4 = 9. 9 * 2 = 17. "
        + " ".join(f"16 + {i} = {16 + i}." for i in range(30, 60))
        + " 17 + 1 = 18. The answer is 18.",
        PROMPT,
    )
    assert idle.parts == {"right": 2.0, "wrong": 1.0}, "the first and the last lead to it"


def test_a_result_made_again_counts_once_and_a_wrong_one_that_repeats_its_operand_counts() -> None:
    nine = "16 - 3 - 4"
    padded = f"16 - 3 = 14. {nine} = 9. {nine} + 0 = 9. ({nine}) * 1 = 9. {nine} + 2 - 2 = 9. "
    found = step_arithmetic(padded + "The answer is 9.", PROMPT)
    assert found.parts == {"right": 1.0, "wrong": 1.0}
    found = step_arithmetic("16 + 4 = 16. 16 - 3 - 4 = 9. The answer is 9.", PROMPT)
    assert found.parts == {"right": 1.0, "wrong": 1.0}


def test_at_least_so_many_right_ones() -> None:
    assert step_arithmetic.with_options(at_least=3)(SOLVED, prompt=PROMPT).value == 0.0
    assert step_arithmetic.with_options(at_least=2)(SOLVED, prompt=PROMPT).value == 1.0


@given(st.integers(2, 10**6), st.integers(2, 10**6), st.sampled_from("+-*"), st.integers(-3, 3))
def test_a_claim_is_right_where_python_says_so(a: int, b: int, sign: str, off: int) -> None:
    result = {"+": a + b, "-": a - b, "*": a * b}[sign] + off
    if result < 0 or result in (a, b):
        return
    text = f"We have {a:,} {sign} {b} = {result:,}. So {result}."
    assert value(text, f"{a} and {b}") == float(off == 0)


@given(st.text(alphabet="0123456789+-*/^()=,.%$x \n\\times", max_size=300))
def test_any_text_gets_a_share(text: str) -> None:
    found = value(text)
    assert found is not None and 0.0 <= found <= 1.0


def test_hostile_numbers_are_bounded() -> None:
    for text in (
        "9^9^9^9^9 = 1. 9 9",
        "9" * 20_000 + " + 1 = 2",
        "(" * 9_000 + "1 + 1 = 3" + ")" * 9_000,
        "(" * 9_000 + "1" + ")" * 9_000 + " + 1 = 2",
        "*" * 9_999 + "1 + 1 = 3" + "*" * 9_999,
        "=" * 9_999,
    ):
        assert value(text, "9") == 0.0
