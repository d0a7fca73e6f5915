"""The same words have the same value in a box, between answer tags, behind a cue and a mark."""

import pytest

from rl_reasoner.answers import verify

PLACES = (r"\boxed{{{}}}", "<answer>{}</answer>", "The answer is {}.", "#### {}")
BY_PLACE = pytest.mark.parametrize("place", PLACES, ids=("box", "tag", "cue", "mark"))

REMARKS = (
    *("12, because 3 times 4 is 12", "12 people, not 13", "12 times a week", "12 pages in 3 days"),
    *("So in 4 weeks he spends 3*4=12 hours on it", "John finishes in 12 hours", "12 plus tax"),
    *("the remainder when 100 is divided by 22 is $12$", "the costs add up to $12", "a sum of $12"),
    *("12, because otherwise the triangle would not exist", "They differ by 12"),
    *("Therefore, at least $12$ of them are right-handed", "shown below **12**"),
)
ANOTHER_VALUE = (
    *(r"\ge 12", "at most 12", "more than 12", "12 or more", "12+", "half of 12", "twice 12"),
    *("12 squared", "12 divided by 4", r"\text{not }12", "12 if x>0, 13 otherwise", "12 in 60"),
    *("12 tenths", "12 halves", "12 thirds", "12 permille", "12 mm by 4"),
)
SAME_VALUE = (
    *("12", "12 apples", "12 more apples", "12 in total", "12 left", "12 square meters", "**12**"),
    "12 quarters",
    *("12 sq ft", "12 sq. cm", "12 cu ft", "12 kWh", "12 MB", "12 kPa", "12 nm", "12 rpm", "12 qt"),
    *("12 Ω", "12 kΩ", "12 μm", "12 µg", "12 years old", "12 cc", "Rs. 12", r"\text{Rs. }12"),
)


@BY_PLACE
@pytest.mark.parametrize("said", ANOTHER_VALUE)
def test_words_that_change_a_number_leave_no_answer_of_that_number(place: str, said: str) -> None:
    score = verify(place.format(said), "12")
    assert score.value == 0.0, score.reason


@BY_PLACE
@pytest.mark.parametrize("said", SAME_VALUE)
def test_words_that_only_name_what_is_counted_change_nothing(place: str, said: str) -> None:
    score = verify(place.format(said), "12")
    assert score.value == 1.0, score.reason


@pytest.mark.parametrize("place", PLACES[1:], ids=("tag", "cue", "mark"))
@pytest.mark.parametrize("said", REMARKS)
def test_a_sentence_may_go_on_behind_its_answer(place: str, said: str) -> None:
    score = verify(place.format(said), "12")
    assert score.value == 1.0, score.reason


@pytest.mark.parametrize("place", PLACES[:2] + PLACES[3:], ids=("box", "tag", "mark"))
def test_a_factorial_is_one_and_a_spoken_mark_is_none(place: str) -> None:
    assert verify(place.format("5!"), "120").value == 1.0
    assert verify(place.format("5!"), "5").value == 0.0
    assert verify("The answer is 5!", "5").value == 1.0


@pytest.mark.parametrize(
    ("one", "other"),
    [
        *(("27, 54, 108", "27,54,108"), ("2, 3, 5, 101", "2,3,5,101"), ("101,103", "101, 103")),
        *(("(1,200)^2", "1440000"), ("3(1,200)", "3600"), (r"\$(1,200)", "1200")),
        *(("[90,120]", "[90, 120]"), ("(1,200)+5", "1205"), (r"2\cdot(1,200)", "2400")),
        *(("1,000", "1000"), ("1,234,567", "1234567"), (r"50\,\mu m", "50 μm"), ("2μg", r"2\mu g")),
        *((r"2\,\Omega", r"2\Omega"), ("2GB", "2BG"), ("5cc", "5c^2")),
        (
            r"\begin{cases} x & \text{if } x > 0 \\ -x & \text{if } x \leq 0 \end{cases}",
            r"\begin{cases}x&\text{if }x>0\\-x&\text{if }x\le0\end{cases}",
        ),
        *((r"6 / 5 \mathrm{~N}-\mathrm{m}", r"$6/5\mathrm{~N}-\mathrm{m}$"), ("3 @ 4", "3@4")),
        *(("0.0011_{2}", "0.0011_2"), ("5 sq m", "5 m^2"), ("2 nm", "2mn"), ("5 tenths", "1/2")),
    ],
)
def test_two_spellings_of_one_answer(one: str, other: str) -> None:
    for gold, said in ((one, other), (other, one)):
        score = verify(rf"\boxed{{{said}}}", gold)
        assert score.value == 1.0, score.reason


@pytest.mark.parametrize(
    ("gold", "said"),
    [
        *(("1, 0", "1,000"), ("2754108", "27,54,108"), ("x^12 @", "x^{12} @"), ("5 m^2", "5 cu m")),
        *(("5 kW", "5 kWh"), (r"5\omega", r"5\Omega"), ("5", "5 tenths")),
        *(("1,234", "234, 1"), ("5,120", "120 and 5"), ("2", "2MB")),
    ],
)
def test_spellings_of_two_answers(gold: str, said: str) -> None:
    score = verify(rf"\boxed{{{said}}}", gold)
    assert score.value == 0.0, score.reason


DOUBTED = (
    *("12, I think maybe 13", "$12$, I think maybe $13$", "12, but I am not sure, perhaps 13"),
    *("12, so it might be 13", "12 - I think possibly 13", "12 apples, I think maybe 13 apples"),
    *("12, which might be 13", "12, so the answer could be 13"),
)
NOT_DOUBTED = (
    *("12, maybe 12 apples", "12, which could be written as 24/2", "12, as we may divide 24 by 2"),
    *("12, as 3 times 4 is possibly the simplest way", "12, since 3 of them could be 4 each"),
    *("12, as the sides may be 3 and 4", "12, as there may be 3 left over", "12, I think."),
    *("$12$, I believe", "12 apples, I am sure"),
)


@BY_PLACE
@pytest.mark.parametrize("said", DOUBTED)
@pytest.mark.parametrize("gold", ["12", "13"])
def test_a_remark_that_doubts_an_answer_by_another_is_a_hedge(
    place: str, said: str, gold: str
) -> None:
    score = verify(place.format(said), gold)
    assert score.value == 0.0, score.reason


@pytest.mark.parametrize("place", PLACES[1:])
@pytest.mark.parametrize("said", NOT_DOUBTED)
def test_a_remark_with_no_other_answer_is_no_hedge(place: str, said: str) -> None:
    score = verify(place.format(said), "12")
    assert score.value == 1.0, score.reason


def test_another_choice_in_doubt_is_a_hedge() -> None:
    assert verify("The answer is B, I think maybe C.", "B").value == 0.0
    assert verify("The answer is B, I think maybe B.", "B").value == 1.0
    assert verify("The answer is B, since the point could be A.", "B").value == 1.0
